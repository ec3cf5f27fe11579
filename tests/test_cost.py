"""What networks cost: the table, the loss term, the front."""

from __future__ import annotations

import itertools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import latency
from pynas_jax import spaces
from pynas_jax.nn.layers import Layer
from pynas_jax.search import cost
from pynas_jax.search import pareto


def tiny(**model):
  c = config_lib.shrink(config_lib.base())
  config_lib.override(c, {'model': model})
  return c, spaces.make_space(c)


def genotype_of(space, scheme, choice):
  draft = space.draft(scheme)
  for stage in space.stages(draft):
    shape = space.init_alphas(jax.random.key(0), draft, stage).shape
    repeated = np.resize(np.asarray(choice), shape[0])
    alphas = jax.nn.one_hot(repeated, len(space.operators))
    draft = space.derive(draft, stage, alphas)
  return space.genotype(draft)


@pytest.mark.parametrize(
  'model',
  [{}, {'joint': True}, {'share': 'cells'}, {'share': 'weights'}],
  ids=str,
)
@pytest.mark.parametrize('link', ['add', 'concat'])
def test_costs_of_choices_add_up_to_the_network(model, link, tmp_path):
  c, space = tiny(link=link, **model)
  c.search.cost = 'macs'
  scheme = (1, 2, 4)
  choice = np.random.default_rng(0).integers(
    len(space.operators), size=space.num_edges
  )
  total, draft = 0.0, space.draft(scheme)
  for stage in space.stages(draft):
    costs, fixed = cost.edge_costs(space, draft, stage, c, workdir=tmp_path)
    repeat = 3 if model.get('joint') else 1
    assert costs.shape == (
      repeat * space.num_edges, len(space.operators)
    )
    chosen = enumerate(np.tile(choice, repeat))
    total += fixed + sum(float(costs[e, k]) for e, k in chosen)
  genotype = genotype_of(space, scheme, choice)
  b = c.benchmark
  _, macs = space.count(genotype, height=b.height, width=b.width)
  assert total == pytest.approx(macs / 1e6, rel=1e-5)


@pytest.mark.parametrize('kind', ['conv', 'down', 'up', 'fuse', 'cell'])
def test_layers_count_what_their_modules_have(kind):
  operator = {'up': 'transposed', 'cell': 'sep_conv_3x3'}.get(kind, '')
  c_out = 8 if kind == 'cell' else 6
  layer = Layer(kind, operator, 2, 10, 12, 8, c_out)
  x = jnp.zeros((2, 10, 12, 8))
  module = layer.module()
  variables = module.init(jax.random.key(0), x)
  sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
  assert sum(sizes) == layer.count()[0]
  y = module.apply(variables, x)
  shape = {'down': (2, 5, 6), 'up': (2, 20, 24)}.get(kind, (2, 10, 12))
  assert y.shape == (*shape, c_out)


def test_cost_term_prefers_cheap_operators():
  costs = jnp.array([[1.0, 4.0], [2.0, 3.0]])
  alphas = jnp.array([[0.3, -0.2], [0.0, 0.0]])
  probs = jax.nn.softmax(alphas)
  expected = cost.expected_cost(alphas, costs, 2.0)
  assert float(expected) == pytest.approx(float((probs * costs).sum()) + 2)
  for form, loss in itertools.product(('add', 'mul'), ('mse', 'psnr')):
    s = config_lib.base().search
    s.cost_form, s.loss, s.cost_weight = form, loss, 0.5
    term = cost.make_cost_term(costs, 2.0, s)
    grads = jax.grad(lambda a, term=term: term(jnp.asarray(0.1), a))(alphas)
    # Descent moves towards the cheap candidate of each edge.
    assert np.all(grads[:, 0] < 0)
    assert np.all(grads[:, 1] > 0)
    # With all as likely, the loss is left as it is.
    even = term(jnp.asarray(0.1), jnp.zeros_like(costs))
    assert float(even) == pytest.approx(0.1)
    s.cost_weight = 0.0
    off = cost.make_cost_term(costs, 2.0, s)(jnp.asarray(0.1), alphas)
    assert float(off) == pytest.approx(0.1)


def test_the_multiplied_error_is_added_decibels():
  costs, alphas = jnp.array([[1.0, 9.0]]), jnp.array([[-1.0, 1.0]])
  s = config_lib.base().search
  s.cost_form, s.cost_weight = 'mul', 0.3
  values = {}
  for s.loss, error in (('mse', 0.01), ('psnr', 10 * np.log10(0.01))):
    values[s.loss] = float(
      cost.make_cost_term(costs, 1.0, s)(jnp.asarray(error), alphas)
    )
  assert values['psnr'] == pytest.approx(10 * np.log10(values['mse']), rel=1e-5)


def test_table_measures_once_and_is_kept(tmp_path, monkeypatch):
  calls = []

  def measure_ms(layer, dtype):
    calls.append(layer)
    return float(len(calls))

  monkeypatch.setattr(latency, 'measure_ms', measure_ms)
  a = Layer('conv', '', 1, 8, 8, 3, 4)
  b = Layer('cell', 'conv_3x3', 1, 8, 8, 4, 4)
  path = tmp_path / 'deep' / 'latency.json'
  table = latency.LatencyTable(path, height=8, width=8)
  assert table.ms([a, b, a]) == 1 + 2 + 1
  assert latency.LatencyTable(path, height=8, width=8).ms([b, b]) == 4
  assert len(calls) == 2
  # Times of another type of arithmetic are another table of the same file.
  other = latency.LatencyTable(path, height=8, width=8, dtype='bfloat16')
  assert other.ms([a]) == 3
  assert len(json.loads(path.read_text())) == 2
  # As are those by other convolutions.
  had = latency.compiling.has_onednn()
  with monkeypatch.context() as context:
    context.setattr(latency.compiling, 'has_onednn', lambda dtype: not had)
    assert latency.LatencyTable(path, height=8, width=8).ms([a]) == 4
  assert latency.LatencyTable(path, height=8, width=8).ms([a]) == 1
  # And those of another processor: a workdir can be shared.
  with monkeypatch.context() as context:
    context.setattr(latency.parallel, 'processor', lambda: ('another', ''))
    assert latency.LatencyTable(path, height=8, width=8).ms([a]) == 5
  for text in (path.read_text()[:-9], '[]'):  # Damaged, it is measured anew.
    path.write_text(text)
    assert latency.LatencyTable(path, height=8, width=8).ms([a]) == len(calls)


def test_table_times_networks_in_its_own_arithmetic(tmp_path, monkeypatch):
  asked = []

  def measure_network_ms(genotype, *, height, width, dtype):
    asked.append((height, width, dtype))
    return 10.0 + len(asked)

  monkeypatch.setattr(latency, 'measure_network_ms', measure_network_ms)
  monkeypatch.setattr(latency, 'measure_ms', lambda layer, dtype: 1.0)
  _, space = tiny()
  genotype = genotype_of(space, (1, 2), [1] * space.num_edges)
  table = latency.LatencyTable(
    tmp_path / 't.json', height=8, width=16, dtype='bfloat16'
  )
  latency.validate(table, [genotype])
  # The network itself before and after, the skeleton, and the skeleton with
  # the one operator.
  assert asked == [(8, 16, 'bfloat16')] * 4


def test_table_predicts_networks(tmp_path):
  """Real times of small frames: loosely, as machines are noisy."""
  _, space = tiny(widths=(8, 16))
  table = latency.LatencyTable(tmp_path / 't.json', height=96, width=128)
  shapes = [(1, 2), (1, 4)]
  genotypes = [
    genotype_of(space, scheme, [k] * space.num_edges)
    for scheme in shapes
    for k in (0, 1)
  ]
  rows = latency.validate(table, genotypes)
  assert {row['genotype'] for row in rows} == {g.digest() for g in genotypes}
  for row in rows:
    assert row['error'] == row['predicted_ms'] / row['measured_ms'] - 1
    assert 0.1 < row['predicted_ms'] / row['measured_ms'] < 10


def test_search_stage_uses_the_latency(tmp_path):
  c, space = tiny()
  c.search.cost = 'latency'
  draft = space.draft((1,))
  costs, fixed = cost.edge_costs(space, draft, 'scale1', c, workdir=tmp_path)
  assert (tmp_path / cost.TABLE).exists()
  names = dict(zip(space.operators, np.asarray(costs).T, strict=True))
  assert np.all(names['zero'] == 0)
  assert np.all(names['conv_3x3'] > 0)
  assert fixed > 0


def points(*pairs):
  return [
    {'psnr': psnr, 'latency_ms': ms, 'trial': i}
    for i, (psnr, ms) in enumerate(pairs)
  ]


def test_front_has_whom_nobody_beats():
  rng = random.Random(0)  # noqa: S311
  trials = points(*[(rng.random(), rng.random()) for _ in range(200)])
  front = pareto.front(trials)
  beaten = lambda t: any(  # noqa: E731
    o['psnr'] >= t['psnr'] and o['latency_ms'] <= t['latency_ms'] and o is not t
    for o in trials
  )
  assert {t['trial'] for t in front} == {
    t['trial'] for t in trials if not beaten(t)
  }
  assert front == sorted(front, key=lambda t: t['latency_ms'])


@pytest.mark.parametrize(
  ('objective', 'winner'), [('psnr', 4), ('fastest', 3), ('knee', 1)]
)
def test_objectives(objective, winner):
  trials = points((29, 5), (31.5, 10), (31.6, 30), (31.95, 60), (32, 100))
  chosen = pareto.choose(trials, objective, slack=0.1)
  assert chosen['trial'] == winner
  assert pareto.choose(trials[:1], objective, slack=0.1)['trial'] == 0


def test_genotype_names_its_filled_variants():
  _, space = tiny()
  genotype = genotype_of(space, (1, 2), [1] * space.num_edges)
  skeleton = space.filled(genotype, 'zero')
  assert {op for s in skeleton.scales for op in s.cells} == {'zero'}
  assert skeleton.scheme == genotype.scheme
  assert isinstance(skeleton, genotype_lib.PyramidGenotype)
