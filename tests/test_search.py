"""Search: what moves and what does not, when it stops, what it proposes."""

import dataclasses
import functools
import gc
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook as logbook_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.nn import gates
from pynas_jax.search import bilevel
from pynas_jax.search import cost
from pynas_jax.search import hierarchical
from pynas_jax.search import local
from pynas_jax.search import refine
from pynas_jax.search import schemes
from pynas_jax.search.stopping import Stopping
from pynas_jax.spaces import base

KEY = jax.random.key(0)


def batch(seed=0):
  sharp = np.random.default_rng(seed).random((2, 16, 16, 3), np.float32)
  return {'blurred': 0.9 * sharp, 'sharp': sharp}


def start(c):
  space = spaces.make_space(c)
  draft = space.draft((1,))
  stage, *_ = space.stages(draft)
  supernet = space.supernet(draft, stage)
  alphas = space.init_alphas(KEY, draft, stage)
  params = base.init_params(KEY, supernet, space.decode(alphas))
  state = bilevel.init_state(params, alphas, c.search)
  return space, stage, supernet, state


def setup(**search):
  c = config_lib.shrink(config_lib.base())
  config_lib.override(c, {'search': search})
  space, _, supernet, state = start(c)
  return c, space, supernet, state


def parallel_step(step):
  return parallel.make_parallel(step, devices=jax.local_devices()[:1])


@pytest.mark.parametrize('update', ['_update_on_cpu', '_update_elsewhere'])
@pytest.mark.parametrize(
  ('optimizer', 'moments'), [('sgd', ('trace',)), ('adam', ('mu', 'nu'))]
)
def test_unsampled_weights_and_moments_stay_bit_for_bit(
  optimizer, moments, update, monkeypatch
):
  monkeypatch.setattr(bilevel, '_update_on_cpu', getattr(bilevel, update))
  c, space, supernet, state = setup(optimizer=optimizer)
  step = parallel_step(
    bilevel.make_weight_step(space, 'scale1', supernet, c.search)
  )
  state, _ = step(state, batch(), KEY)
  moved = False
  for i in range(1, 5):
    # Momentum would move them: all were sampled or had moments before.
    old = jax.device_get(state)
    key = jax.random.fold_in(jax.random.fold_in(KEY, i), 0)
    sampled = space.sampled(
      old.params, 'scale1',
      gates.one_path(key, jnp.asarray(old.alphas), tau=1.0),
    )  # fmt: skip
    state, _ = step(state, batch(i), KEY)
    new = jax.device_get(state)
    marks = jax.tree.leaves(sampled)
    pairs = [(old.params, new.params)]
    for name in moments:
      pairs.append([optax.tree.get(s.weight_opt, name) for s in (old, new)])
    for before, after in pairs:
      leaves = zip(
        marks, jax.tree.leaves(before), jax.tree.leaves(after), strict=True
      )
      for mark, a, b in leaves:
        if not mark:
          np.testing.assert_array_equal(a, b)
        moved |= bool(mark) and bool((a != b).any())
    assert not all(marks)
  assert moved


def test_only_processors_branch_to_update():
  """A GPU would wait for the host at every branch."""
  tx = optax.adam(1e-3)
  params = {'a': jnp.ones(2), 'b': jnp.ones(3)}

  @jax.jit
  def update(sampled):
    return bilevel.update_sampled(tx, params, tx.init(params), params, sampled)

  sampled = {'a': jnp.asarray(True), 'b': jnp.asarray(False)}
  traced = update.trace(sampled)
  cases = {
    name: traced.lower(lowering_platforms=(name,)).as_text().count('.case')
    for name in ('cpu', 'cuda')
  }
  assert cases['cpu'] - cases['cuda'] == len(params)
  new, opt = update(sampled)
  assert (new['a'] != params['a']).all() and (new['b'] == params['b']).all()
  assert opt[0].count == 1


def moved_parts(before, after):
  """The first two names of each weight or statistic that is another one."""
  old, new = (jax.tree_util.tree_leaves_with_path(x) for x in (before, after))
  return {
    tuple(key.key for key in path if key.key != base.STATISTICS)[:2]
    for (path, a), (_, b) in zip(old, new, strict=True)
    if (a != b).any()
  }


@pytest.mark.parametrize('share_cells', [True, False])
def test_levels_off_the_sampled_path_stay_bit_for_bit(share_cells):
  c = config_lib.shrink(config_lib.base())
  c.hinas.width_factors, c.hinas.share_cells = (1.0, 2.0), share_cells
  c.space, c.search.num_steps = 'hinas', 16  # The rate ends at zero.
  space, stage, supernet, state = start(c)
  step = parallel_step(
    bilevel.make_weight_step(space, stage, supernet, c.search)
  )
  moves = set()
  for i in range(12):
    old = jax.device_get(state.params)
    state, _ = step(state, batch(i), KEY)
    moved = moved_parts(old, jax.device_get(state.params))
    levels = [0]
    for layer in range(1, c.hinas.layers + 1):
      own = [part for part in moved if part[0].startswith(f'layer{layer}_')]
      (level,) = {int(owner.split('_level')[1]) for owner, _ in own}
      sources = {part.split('from')[1] for _, part in own if 'from' in part}
      assert sources == {str(levels[-1])}
      moves.add((layer, levels[-1], level))
      levels.append(level)
    ends = {owner for owner, _ in moved if owner.startswith('end1_from')}
    assert ends == {f'end1_from{levels[-1]}'}
  assert len(moves) == 2 + 4 * (c.hinas.layers - 1)


def test_refining_makes_no_collapsed_network(tmp_path, monkeypatch):
  c = config_lib.shrink(config_lib.base())
  zero = c.model.candidates.index('zero')
  monkeypatch.setattr(  # As one that prefers `zero`, the last one.
    bilevel, 'make_held_out_objective',
    lambda *args: lambda choice: -sum(choice),
  )  # fmt: skip
  found = api.search(
    c, workdir=tmp_path, search={'schemes': ('1',), 'num_trials': 1}
  )
  (scale,) = found.genotype.scales
  cells = (*scale.encoder, *scale.decoder)
  assert cells.count('zero') == c.search.collapse_fraction * len(cells)
  (stage,) = found.trials[0]['stages']
  assert stage['choice'].count(zero) == cells.count('zero')
  assert 0 not in stage['choice']  # The first one, which the search found.
  scores = [r['validation/psnr'] for r in logbook_lib.read_records(tmp_path)]
  assert stage['psnr'] not in scores


def test_mixture_moves_every_weight():
  c, space, supernet, state = setup(estimator='mixture')
  old = jax.device_get(state.params)
  step = parallel_step(
    bilevel.make_weight_step(space, 'scale1', supernet, c.search)
  )
  state, _ = step(state, batch(), KEY)
  for a, b in zip(
    jax.tree.leaves(old), jax.tree.leaves(state.params), strict=True
  ):
    assert (a != b).any()


@pytest.mark.parametrize(
  'estimator', ['one_path', 'two_path', 'mixture', 'reinforce']
)
def test_alpha_step_moves_alphas_and_no_weights(estimator):
  c, _, supernet, state = setup(estimator=estimator)
  old = jax.device_get(state)
  step = parallel_step(bilevel.make_alpha_step(supernet, c.search))
  state, _ = step(state, batch(), KEY)
  assert (state.alphas != old.alphas).any()
  for a, b in zip(
    jax.tree.leaves(old.params), jax.tree.leaves(state.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  'estimator', ['one_path', 'two_path', 'mixture', 'reinforce']
)
def test_alphas_learn_to_leave_out_a_harmful_operator(estimator):
  """All operators but `zero` add noise: the alphas must find `zero`."""
  c, space, supernet, state = setup(
    estimator=estimator, alpha_lr=0.1, loss='mse', warmup_steps=1
  )
  rng = np.random.default_rng(0)

  def spoil(path, leaf):
    harmful = any('cell' in str(entry) for entry in path)
    noise = rng.normal(0, 1.0, leaf.shape).astype(np.float32)
    return noise if harmful else leaf

  params = jax.tree_util.tree_map_with_path(spoil, state.params)
  state = state.replace(params=params)
  step = parallel_step(bilevel.make_alpha_step(supernet, c.search))
  sharp = batch()['sharp']
  for i in range(300):
    state = state.replace(step=jnp.asarray(i, jnp.int32))
    state, _ = step(state, {'blurred': sharp, 'sharp': sharp}, KEY)
  zero = space.operators.index('zero')
  probs = jax.nn.softmax(state.alphas)[:, zero]
  assert probs.mean() > 0.35, probs  # From 0.2.


@pytest.mark.parametrize(('alpha_every', 'num_updates'), [(1, 4), (3, 1)])
def test_alphas_learn_less_often_where_asked(
  tmp_path, alpha_every, num_updates
):
  c = small_config()
  c.search.warmup_steps, c.search.num_steps, c.search.eval_every = 2, 6, 6
  c.search.alpha_every = alpha_every
  space = spaces.make_space(c)
  with logbook_lib.Logbook(tmp_path) as logbook:
    bilevel.search_stage(
      space, space.draft((1,)), 'scale1', c, key=KEY, params={},
      workdir=tmp_path, logbook=logbook, name='stage',
    )  # fmt: skip
  with Checkpoints(tmp_path / 'stage') as checkpoints:
    taken = checkpoints.meta(checkpoints.latest())['alpha_data']['next_index']
  assert taken == num_updates


def test_temperature_is_held_in_the_warm_up_and_then_falls():
  s = config_lib.base().search
  s.warmup_steps, s.num_steps, s.tau_start, s.tau_end = 10, 30, 5.0, 1.0
  steps = jnp.asarray([0, 10, 20, 30])
  taus = bilevel.temperature(steps, s)
  np.testing.assert_allclose(taus, [5.0, 5.0, 3.0, 1.0], rtol=1e-6)


def test_stopping_waits_and_remembers():
  stopping = Stopping(patience=2, collapse_fraction=0.5)
  for score in (30.0, 29.0, 31.0, 30.5):
    stopping = stopping.update(score, ('conv_3x3', 'zero'))
    assert not stopping.reason
  assert stopping.best == 31.0
  assert stopping.update(31.0, ('conv_3x3',) * 2).reason.startswith('no better')


def test_collapse_stops_and_never_counts_as_best():
  stopping = Stopping(patience=9, collapse_fraction=0.5)
  stopping = stopping.update(99.0, ('zero', 'zero', 'conv_3x3'))
  assert 'collapse: 2 of 3' in stopping.reason
  assert stopping.best is None


def proposals_of(config, seed):
  allowed, tried = schemes.choices(config), []
  while (one := schemes.propose(seed, tried, allowed)) is not None:
    tried.append(one)
  return tried


def test_schemes_are_proposed_once_each_and_alike_for_a_seed():
  c = config_lib.base()
  c.search.schemes = ()
  found = [proposals_of(c, seed) for seed in (0, 0, 1)]
  assert sorted(p.scheme for p in found[0]) == sorted(
    genotype_lib.all_schemes()
  )
  assert {(p.unshuffle, p.base_width) for p in found[0]} == {(2, 16)}
  assert found[0] == found[1] != found[2]


def test_factor_and_width_are_top_level_variables_too():
  c = config_lib.base()
  config_lib.override(
    c, {'search': {'unshuffles': (1, 4), 'base_widths': (8, 24)}}
  )
  config_lib.validate(c)
  found = proposals_of(c, 0)
  assert len(found) == len(set(found)) == 3 * 2 * 2
  for proposal in found:
    again = schemes.Proposal.from_dict(
      json.loads(json.dumps(proposal.to_dict()))
    )
    assert again == proposal
    model = proposal.apply(c).model
    width = proposal.base_width
    assert model.widths == (width, 2 * width, 4 * width)
    assert model.unshuffle == proposal.unshuffle
  assert c.model.widths == (16, 32, 64)
  for name, value in (('unshuffles', (3,)), ('base_widths', (0,))):
    c.search[name] = value
    with pytest.raises(config_lib.SettingError, match=name):
      config_lib.validate(c)
    c.search[name] = ()


def test_search_tries_each_scheme_once_and_keeps_the_best(tmp_path):
  settings = {'schemes': ('1', '1-2'), 'num_trials': 5}
  found = small_search(tmp_path, **settings)
  assert sorted(trial['scheme'] for trial in found.trials) == ['1', '1-2']
  assert found.psnr == max(trial['psnr'] for trial in found.trials)
  best = max(found.trials, key=lambda trial: trial['psnr'])
  assert found.genotype == genotype_lib.from_dict(best['genotype'])
  lines = (tmp_path / 'trials.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == found.trials
  # Asked again with a torn last line, it only repeats the trial that was lost.
  (tmp_path / 'trials.jsonl').write_text(lines[0] + '\n' + lines[1][:40])
  again = small_search(tmp_path, **settings)
  assert again.genotype == found.genotype
  assert [t['psnr'] for t in again.trials] == [t['psnr'] for t in found.trials]
  # No trial is lost by a line that is damaged before it.
  text = '{}\n' + lines[1] + '\n'
  (tmp_path / 'trials.jsonl').write_text(text)
  with pytest.raises(config_lib.SettingError, match='trials.jsonl, line 1,'):
    small_search(tmp_path, **settings)
  assert (tmp_path / 'trials.jsonl').read_text() == text


def test_programs_of_a_trial_are_let_go(tmp_path, monkeypatch):
  """Else the memory of a search grows by 100 MB and more with each."""
  steps = []
  make_parallel = parallel.make_parallel

  def remember(step, **options):
    steps.append(weakref.ref(step))
    return make_parallel(step, **options)

  monkeypatch.setattr(parallel, 'make_parallel', remember)
  small_search(tmp_path, schemes=('1', '1-2'), num_trials=2)
  gc.collect()
  assert len(steps) >= 6 and not any(step() for step in steps)


PLAIN = ('conv_3x3', 'conv_5x5')  # None is free, and they compile soon.


def small_config(model=None, train=None, **search):
  c = config_lib.shrink(config_lib.base())
  c.search.num_steps, c.search.score_steps = 3, 2
  c.model.widths = (4,)
  config_lib.override(
    c,
    {'search': search, 'model': {'candidates': PLAIN} | (model or {}),
     'train': train or {}},
  )  # fmt: skip
  config_lib.validate(c)
  return c


def small_search(tmp_path, **settings):
  c = small_config(**settings)
  with logbook_lib.Logbook(tmp_path) as logbook:
    return hierarchical.search(c, workdir=tmp_path, logbook=logbook)


def test_a_failing_trial_is_recorded_and_the_search_goes_on(
  tmp_path, monkeypatch
):
  whole = hierarchical.search_scheme
  failures = {
    (1,): train.TrainingError('the loss is nan at step 7'),
    (1, 2): jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
  }

  def search_scheme(scheme, *args, **kwargs):
    if scheme in failures:
      raise failures[scheme]
    return whole(scheme, *args, **kwargs)

  monkeypatch.setattr(hierarchical, 'search_scheme', search_scheme)
  schemes_ = {'schemes': ('1', '1-2', '1-3'), 'num_trials': 3}
  found = small_search(tmp_path, **schemes_)
  by_scheme = {trial['scheme']: trial for trial in found.trials}
  assert 'TrainingError: the loss is nan' in by_scheme['1']['failed']
  assert 'RESOURCE_EXHAUSTED' in by_scheme['1-2']['failed']
  assert found.genotype.scheme == (1, 3)
  # Asked again, a failed scheme is not tried again.
  monkeypatch.setattr(hierarchical, 'search_scheme', None)
  assert small_search(tmp_path, **schemes_).trials == found.trials


@pytest.mark.usefixtures('short_of_memory')
def test_a_supernet_beyond_memory_fails_with_what_to_set(tmp_path):
  with pytest.raises(train.TrainingError) as raised:
    small_search(tmp_path, schemes=('1',), num_trials=1)
  assert 'scale1: memory does not suffice (RESOURCE_EXH' in str(raised.value)
  assert 'remat=True, or lower search.batch_size' in str(raised.value)


def test_errors_in_the_code_are_not_failures_of_a_trial(tmp_path, monkeypatch):
  def search_scheme(*args, **kwargs):
    raise KeyError('blurred')

  monkeypatch.setattr(hierarchical, 'search_scheme', search_scheme)
  with pytest.raises(KeyError):
    small_search(tmp_path)


def test_one_network_that_is_fast_enough_lets_a_search_begin(monkeypatch):
  config = config_lib.shrink(config_lib.base())
  config.search.schemes, config.search.max_latency_ms = ('1', '1-2'), 5.0
  times = iter([6.0, 5.0, 7.0, 6.5])
  monkeypatch.setattr(
    cost, 'measure', lambda *unused: {'latency_ms': next(times)}
  )
  proposals = schemes.choices(config)
  hierarchical.check_latency(proposals, config)
  with pytest.raises(config_lib.SettingError, match='2 schemes takes 6.5 ms'):
    hierarchical.check_latency(proposals, config)


def test_limits_decide_who_may_win(tmp_path):
  settings = {'schemes': ('1', '1-2'), 'num_trials': 2}
  found = small_search(tmp_path / 'a', **settings)
  gmacs = {t['scheme']: t['gmacs'] for t in found.trials}
  assert gmacs['1'] < gmacs['1-2']
  limit = 0.999 * gmacs['1-2']
  limited = small_search(tmp_path / 'b', **settings, max_gmacs=limit)
  assert limited.genotype.scheme == (1,)
  (text,) = [t['beyond'] for t in limited.trials if t['scheme'] == '1-2'][0]
  assert text.startswith('gmacs is') and 'search.max_gmacs' in text
  with pytest.raises(train.TrainingError, match='max_latency_ms') as error:
    small_search(
      tmp_path / 'c', schemes=('1',), num_trials=1, max_latency_ms=1e-6
    )
  assert '1: latency_ms is' in str(error.value)


def test_schemes_that_cannot_keep_the_limits_are_not_tried(tmp_path):
  settings = {
    'schemes': ('1', '1-2'), 'num_trials': 2,
    'model': {'candidates': ('conv_3x3', 'zero')},
  }  # fmt: skip
  found = small_search(tmp_path / 'a', **settings, max_params=10**4)
  assert len(found.trials) == 2
  least = min(trial['params'] for trial in found.trials)
  few = small_search(tmp_path / 'b', **settings, max_params=least)
  assert [trial['scheme'] for trial in few.trials] == ['1']
  with pytest.raises(config_lib.SettingError, match='max_params') as error:
    small_search(tmp_path / 'c', **settings, max_params=10)
  assert 'of 1, width 4' in str(error.value)
  config = config_lib.shrink(config_lib.base())
  with pytest.raises(config_lib.SettingError, match='of 2 schemes'):
    api.search(
      config, workdir=tmp_path / 'd',
      search={'schemes': ('1', '1-2'), 'max_gmacs': 1e-6},
    )
  assert not (tmp_path / 'd').exists()


LOCAL = {
  'search': {
    'schemes': ('1',), 'num_trials': 1, 'base_widths': (3, 4, 6),
    'max_params': 3000,
  },
  'train': {'inherit': False},
}  # fmt: skip
OPERATORS = ('conv_3x3', 'conv_5x5', 'conv_3x3_dil2', 'sep_conv_3x3', 'zero')


def local_search(workdir, *, model=None, **search):
  settings = LOCAL['search'] | search
  return small_search(workdir, model=model, train=LOCAL['train'], **settings)


def cells_of(genotype):
  return sum((scale.cells for scale in genotype.scales), ())


def better_with_each_separable_cell(monkeypatch):
  whole = train.train

  def train_(genotype, *args, **kwargs):
    psnr = 30.0 + cells_of(genotype).count('sep_conv_3x3')
    return whole(genotype, *args, **kwargs)._replace(psnr=psnr)

  monkeypatch.setattr(train, 'train', train_)


def test_local_search_fits_what_was_found_then_tries_plain_networks():
  c = small_config(
    {'candidates': OPERATORS}, LOCAL['train'], local_trials=9, **LOCAL['search']
  )
  space = spaces.make_space(c)
  size = {'height': 8, 'width': 8}
  draft = space.derive(space.draft((1,)), 'scale1', jnp.array([[0, 1.0]] * 2))
  wide = dataclasses.replace(space.genotype(draft), widths=(64,))
  tried = [wide]
  propose = functools.partial(local.propose, 0, tried, [wide], config=c)
  # What was searched breaks the limits, so that there is no best one yet.
  fitted = propose(choose_best=None)
  tried.append(fitted)
  assert cells_of(fitted) == cells_of(wide) and fitted.widths < wide.widths
  while len(tried) < 7:
    tried.append(propose(choose_best=lambda: fitted))
  # It is 5x5 everywhere itself.
  plain = ('conv_3x3', 'conv_3x3_dil2', 'sep_conv_3x3')
  assert [cells_of(g) for g in tried[2:5]] == [(o,) * 2 for o in plain]
  for network in tried[5:]:
    assert sum(o != 'conv_5x5' for o in cells_of(network)) == 1
  for network in tried[1:]:
    assert space.count(network, **size)[0] <= 3000
    for width in (3, 4, 6):
      if width > network.widths[0]:
        wider = dataclasses.replace(network, widths=(width,))
        assert space.count(wider, **size)[0] > 3000


def test_local_trials_climb_by_one_cell_and_are_resumed(tmp_path, monkeypatch):
  better_with_each_separable_cell(monkeypatch)
  # Without that plain network, which would be the best at once.
  filled = spaces.SPACES['pynas'].filled
  monkeypatch.setattr(
    spaces.SPACES['pynas'], 'filled',
    staticmethod(lambda g, operator: filled(
      g, 'conv_3x3' if operator == 'sep_conv_3x3' else operator)),
  )  # fmt: skip
  model = {'candidates': ('conv_3x3', 'conv_3x3_dil2', 'sep_conv_3x3')}
  settings = {
    'model': model, 'local_trials': 40, 'max_params': 0, 'base_widths': ()
  }  # fmt: skip
  found = local_search(tmp_path, **settings)
  networks = [genotype_lib.from_dict(t['genotype']) for t in found.trials]
  assert len(set(networks)) == len(networks)
  assert cells_of(found.genotype) == ('sep_conv_3x3',) * 2
  # It ends when the best has no neighbour that was not tried.
  space = spaces.make_space(small_config(model))
  assert set(space.neighbours(found.genotype)) <= set(networks)
  assert len(found.trials) < 41
  # The weights are those of the winner.
  network = base.init_params(KEY, space.network(found.genotype))
  assert jax.tree.structure(network) == jax.tree.structure(found.params)
  lines = (tmp_path / 'trials.jsonl').read_text().splitlines(keepends=True)
  (tmp_path / 'trials.jsonl').write_text(''.join(lines[:-2]))
  again = local_search(tmp_path, **settings)
  for one, other in zip(found.trials, again.trials, strict=True):
    assert one['genotype'] == other['genotype']
  jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


def test_a_neighbour_that_fails_or_is_slow_is_not_tried_again(
  tmp_path, monkeypatch
):
  whole, spent = train.train, []

  def train_(genotype, *args, **kwargs):
    if cells_of(genotype) == ('conv_5x5',) * 2:
      raise train.TrainingError('the loss is nan at step 7')
    spent.append(cells_of(genotype))
    return whole(genotype, *args, **kwargs)

  measure = cost.measure

  def measure_(genotype, config):
    slow = cells_of(genotype) == ('conv_3x3',) * 2
    return measure(genotype, config) | {'latency_ms': 50.0 if slow else 20.0}

  monkeypatch.setattr(train, 'train', train_)
  monkeypatch.setattr(cost, 'measure', measure_)
  model = {'candidates': (*PLAIN, 'sep_conv_3x3')}
  found = local_search(
    tmp_path, model=model, local_trials=4, max_latency_ms=33.0
  )
  assert len(found.trials) == 5
  failed = {
    cells_of(genotype_lib.from_dict(t['genotype'])): t['failed']
    for t in found.trials[1:]
    if 'failed' in t
  }
  assert 'the loss is nan' in failed.pop(('conv_5x5',) * 2)
  ((slow, reason),) = failed.items()
  assert slow == ('conv_3x3',) * 2
  assert 'above search.max_latency_ms 33' in reason
  assert slow not in spent


def test_neighbours_differ_in_one_choice():
  c = config_lib.shrink(config_lib.base())
  operators = c.model.candidates
  for share, choices in (('none', 2 * 4), ('cells', 4), ('weights', 4)):
    c.model.share = share
    space = spaces.make_space(c)
    draft = space.draft((1, 2))
    for stage in space.stages(draft):
      alphas = space.init_alphas(KEY, draft, stage)
      draft = space.derive(draft, stage, alphas)
    genotype = space.genotype(draft)
    neighbours = space.neighbours(genotype)
    assert len(set(neighbours)) == len(neighbours)
    assert len(neighbours) == choices * (len(operators) - 1)
    for other in neighbours:
      changed = [
        (level, edge)
        for level, (a, b) in enumerate(
          zip(genotype.scales, other.scales, strict=True)
        )
        for edge, (x, y) in enumerate(zip(a.cells, b.cells, strict=True))
        if x != y
      ]
      assert len({edge for _, edge in changed}) == 1
      assert len(changed) == (1 if share == 'none' else 2)


def test_time_budget_starts_no_further_trial(tmp_path):
  found = small_search(
    tmp_path, schemes=('1', '1-2'), num_trials=2, max_hours=1e-9
  )
  assert len(found.trials) == 1


class Table:
  """A supernet of one edge whose operators have losses of their own.

  No gate has a gradient, as if every operator were scaled at its best.
  """

  losses = (0.3, 0.1, 0.2)

  def apply(self, variables, image, gates):
    del variables
    error = jnp.sqrt(jnp.asarray(self.losses))[gates.index[0, 0]]
    return image + error + 0.0 * gates.weight.sum()


@pytest.mark.parametrize(
  ('estimator', 'learns'), [('reinforce', True), ('one_path', False)]
)
def test_differences_of_losses_tell_what_gate_gradients_cannot(
  estimator, learns
):
  s = config_lib.base().search
  s.estimator, s.loss, s.alpha_lr = estimator, 'mse', 0.05
  step = parallel_step(bilevel.make_alpha_step(Table(), s))
  state = bilevel.init_state({}, jnp.zeros((1, 3)), s)
  image = np.full((2, 4, 4, 3), 0.5, np.float32)
  for _ in range(150):
    state, _ = step(state, {'blurred': image, 'sharp': image}, KEY)
    state = state.replace(step=state.step + 1)
  order = np.argsort(np.asarray(state.alphas)[0]).tolist()
  if learns:
    assert order[-1] == 1
    assert order[0] == 0
  else:
    np.testing.assert_array_equal(state.alphas, np.zeros((1, 3)))


def test_paired_gradient_is_that_of_the_expected_loss():
  s = config_lib.base().search
  s.estimator, s.loss, s.alpha_lr = 'reinforce', 'mse', 1.0
  alphas = jnp.array([[0.5, -0.2, 0.1]])

  def expected_loss(alphas):
    return (jax.nn.softmax(alphas)[0] * jnp.asarray(Table.losses)).sum()

  exact = jax.grad(expected_loss)(alphas)
  # The gradient is read off Adam's first moment, 0.1 of it at the first step.
  step = parallel_step(bilevel.make_alpha_step(Table(), s))
  image = np.full((1, 2, 2, 3), 0.5, np.float32)
  batch_ = {'blurred': image, 'sharp': image}
  total = np.zeros((1, 3))
  count = 4000
  start = jax.device_get(bilevel.init_state({}, alphas, s))
  for i in range(count):
    state, _ = step(start.replace(step=np.int32(i)), batch_, KEY)
    total += np.asarray(optax.tree.get(state.alpha_opt, 'mu')) / 0.1
  np.testing.assert_allclose(total / count, exact, atol=4e-3)


def test_refine_finds_the_best_cell_by_cell_and_stops():
  calls = []

  def objective(choice):
    calls.append(choice)
    return sum((c - t) ** 2 for c, t in zip(choice, (2, 0, 1), strict=True))

  best = refine.refine((0, 0, 0), 3, objective, passes=5)
  assert best == ((2, 0, 1), 0)
  # One for the start, then two passes of three edges with two others each.
  assert len(calls) == 1 + 2 * 3 * 2
  assert refine.refine((1, 1, 1), 3, objective, passes=0)[0] == (1, 1, 1)


@pytest.mark.parametrize('cost_weight', [0.0, 1e6])
def test_refine_lowers_loss_and_cost_of_the_supernet(cost_weight):
  c, space, supernet, state = setup(cost='macs', cost_weight=cost_weight)
  costs = cost.edge_costs(
    space, space.draft((1,)), 'scale1', c, workdir=None
  )
  objective = bilevel.make_held_out_objective(
    bilevel.make_loss(supernet, c.search.loss), state.params, batch(),
    state.alphas, cost.make_cost_term(*costs, c.search),
  )  # fmt: skip
  start = (0,) * space.num_edges
  choice, value = refine.refine(
    start, len(space.operators), objective, passes=1
  )
  assert value == objective(choice) < objective(start)
  zero = space.operators.index('zero')
  assert (choice == (zero,) * space.num_edges) == bool(cost_weight)
