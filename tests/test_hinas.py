"""HiNAS: paths, cells, what sharing cells means, batch norm, a whole search."""

from __future__ import annotations

import itertools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.genotype import HinasGenotype
from pynas_jax.search import bilevel
from pynas_jax.spaces import base
from pynas_jax.spaces import hinas_modules as modules
from pynas_jax.spaces import hinas_paths as paths

KEY = jax.random.key(0)
CELL = (
  ((0, 'conv_3x3'), (1, 'skip')),
  ((1, 'sep_conv_5x5'), (2, 'conv_5x5_dil2')),
)


def example(**changes):
  """A genotype in which no field has its default."""
  other = (((0, 'conv_3x3_dil2'), (1, 'zero')), CELL[1])
  values = {
    'cells': (CELL, other, CELL), 'levels': (1, 2, 1), 'width': 4,
    'width_factors': (1.0, 1.5, 2.0), 'stem_width': 6, 'sep_repeats': 2,
    'share_cells': False, 'residual': False, 'scale': 2,
  }  # fmt: skip
  return HinasGenotype(**values | changes)


def small_space(**settings):
  c = config_lib.shrink(config_lib.hinas('denoise', sigma=30.0))
  config_lib.override(c, {'hinas': settings})
  return spaces.make_space(c)


def random_params(module, *args, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    value = 0.2 * rng.standard_normal(leaf.shape)
    value = 1 + np.abs(value) if path[-1].key == 'var' else value
    return jnp.asarray(value, jnp.float32)

  params = base.init_params(KEY, module, *args)
  return jax.tree_util.tree_map_with_path(draw, params)


def image(*shape, seed=0):
  x = np.random.default_rng(seed).random((*shape, 3), np.float32)
  return jnp.asarray(x)


# Paths.


def every_path(layers, factors):
  for path in itertools.product(range(factors), repeat=layers):
    steps = zip((0, *path), path, strict=False)
    if all(abs(a - b) <= 1 for a, b in steps):
      yield path


@pytest.mark.parametrize(
  ('layers', 'factors'), list(itertools.product(range(1, 6), range(1, 5)))
)
def test_viterbi_is_the_best_of_all_paths(layers, factors):
  rng = np.random.default_rng(layers * 10 + factors)
  allowed = paths.allowed(layers, factors)
  rows = {row: i for i, row in enumerate(paths.transitions(layers, factors))}
  for _ in range(20):
    probs = rng.random(allowed.shape)

    def log_prob(path, probs=probs):
      levels = (0, *path)
      return sum(
        math.log(probs[rows[i, a], b - a + 1])
        for i, (a, b) in enumerate(zip(levels, path, strict=False))
      )

    found = paths.viterbi(probs, layers=layers, factors=factors)
    every = list(every_path(layers, factors))
    assert found in every
    assert log_prob(found) == pytest.approx(max(map(log_prob, every)))


def test_probabilities_of_all_paths_sum_to_one():
  space = small_space(layers=4, nodes=1)
  alphas = 1e3 * space.init_alphas(KEY, None, '')
  betas = jax.nn.softmax(alphas)[space.num_edges :, :3]
  rows = paths.transitions(4, 3)
  total = 0.0
  for path in every_path(4, 3):
    levels = (0, *path)
    total += math.prod(
      float(betas[rows.index((i, a)), b - a + 1])
      for i, (a, b) in enumerate(zip(levels, path, strict=False))
    )
  assert total == pytest.approx(1, abs=1e-5)


# Decoding.


def test_two_inputs_of_each_node_without_zero():
  space = small_space(layers=1, nodes=3)
  operators = space.operators
  alphas = np.array(space.init_alphas(KEY, None, ''))
  zero, conv, skip = map(operators.index, ('zero', 'conv_3x3', 'skip'))
  alphas[: space.num_edges, zero] = 9.0  # The likeliest, and never taken.
  alphas[5, conv], alphas[7, skip] = 5.0, 4.0  # Inputs 0 and 2 of node 2.
  draft = space.derive(None, '', jnp.asarray(alphas))
  (cell,) = draft.cells
  assert cell[2] == ((0, 'conv_3x3'), (2, 'skip'))
  assert [source for source, _ in cell[0]] == [0, 1]
  assert 'zero' not in space.chosen(draft, '')


@pytest.mark.parametrize('per_layer', [True, False])
def test_layers_have_architectures_of_their_own_or_share_one(per_layer):
  space = small_space(layers=3, nodes=2, per_layer=per_layer)
  alphas = 1e3 * space.init_alphas(KEY, None, '')
  assert space.num_edges == (15 if per_layer else 5)
  genotype = space.genotype(space.derive(None, '', alphas))
  assert len(set(genotype.cells)) == (3 if per_layer else 1)
  assert len(genotype.levels) == 3


# Networks.


@pytest.mark.parametrize(
  ('share_cells', 'per_layer', 'nodes'),
  [
    pytest.param(True, True, 2, marks=pytest.mark.slow),
    (False, False, 1),
  ],
)
def test_found_network_is_the_decoded_supernet(share_cells, per_layer, nodes):
  """On paths that come back to the width of two layers before."""
  space = small_space(
    layers=3, nodes=nodes, share_cells=share_cells, per_layer=per_layer,
    candidates=('conv_3x3', 'sep_conv_3x3', 'skip', 'zero'),
  )  # fmt: skip
  alphas = 1e3 * space.init_alphas(KEY, None, '')
  rows = paths.transitions(3, 3)
  for row, move in (((0, 0), 2), ((1, 1), 2), ((2, 2), 0)):  # 1, 2, 1.
    place = space.num_edges + rows.index(row)
    alphas = alphas.at[place, move].set(1e4)
  gates = space.decode(alphas)
  supernet = space.supernet(None, '')
  params = random_params(supernet, gates)
  genotype = space.genotype(space.derive(None, '', alphas))
  assert genotype.levels == (1, 2, 1)
  network = space.network(genotype)
  fresh = base.init_params(KEY, network)
  x = image(1, 12, 10)
  derived = base.apply(network, base.inherit(fresh, params), x)
  expected = base.apply(supernet, params, x, gates)
  np.testing.assert_allclose(derived, expected, rtol=1e-4, atol=1e-5)
  assert not np.allclose(derived, x, atol=1e-2)


def test_other_paths_inherit_all_but_one_link():
  space = small_space(layers=3, nodes=1)
  alphas = space.init_alphas(KEY, None, '')
  rows = paths.transitions(3, 3)
  for row, move in (((0, 0), 1), ((1, 0), 2), ((2, 1), 2)):  # 0, 1, 2.
    place = space.num_edges + rows.index(row)
    alphas = alphas.at[place, move].set(1e4)
  supernet = space.supernet(None, '')
  trained = random_params(supernet, space.decode(alphas))
  genotype = space.genotype(space.derive(None, '', alphas))
  assert genotype.levels == (0, 1, 2)
  fresh = base.init_params(KEY, space.network(genotype))
  marks = jax.tree_util.tree_map_with_path(
    lambda path, a, b: 'new' if a is b else 'inherited', fresh,
    base.inherit(fresh, trained),
  )  # fmt: skip
  new = {
    tuple(entry.key for entry in path[:2])
    for path, mark in jax.tree_util.tree_leaves_with_path(marks)
    if mark == 'new' and path[-1].key not in ('scale', 'bias')
  } - {('end2', 'bias')}
  links = {keys for keys in new if keys[0] != base.STATISTICS}
  assert links == {('layer3_level2', 'before0')}


def level_outputs(space_nodes, share_cells, params=None):
  """A level with two widths before it, whose operators are skip and conv."""
  level = modules.Level(
    width=3, spec=('skip', 'conv_3x3', 'zero'), nodes=space_nodes, repeats=1,
    share_cells=share_cells,
  )  # fmt: skip
  edges = modules.num_edges(space_nodes)
  rng = np.random.default_rng(0)
  x = [
    jnp.asarray(rng.random((1, 6, 5, 4)), jnp.float32) for _ in range(3)
  ]
  before, earlier = {0: x[0], 1: x[1]}, {0: x[2]}
  betas = {0: jnp.asarray(0.3), 1: jnp.asarray(0.7)}
  weights = jnp.asarray(rng.random((edges, 3)), jnp.float32)
  args = (before, earlier, betas, weights)
  if params is None:
    variables = level.init(KEY, *args)
    return jax.tree.map(jnp.abs, variables)
  return level.apply(params, *args)


def test_sharing_cells_changes_nothing_if_they_are_linear_and_equal():
  """Eq. 5 equals Eq. 6: positive numbers pass a leaky ReLU as they are."""
  params = level_outputs(2, True)
  shared = level_outputs(2, True, params)

  def copied(tree):
    cells = {f'cell_from{k}': tree['cell'] for k in (0, 1)}
    return {k: v for k, v in tree.items() if k != 'cell'} | cells

  separate = {name: copied(tree) for name, tree in params.items()}
  np.testing.assert_allclose(
    level_outputs(2, False, separate), shared, rtol=1e-5
  )
  # With other weights in one of them, it is another function.
  cell = separate['params']['cell_from1']
  separate['params']['cell_from1'] = jax.tree.map(lambda w: 2 * w, cell)
  assert not np.allclose(level_outputs(2, False, separate), shared, rtol=1e-2)


@pytest.mark.parametrize(
  'genotype',
  [example(), example(share_cells=True, residual=True, scale=1, sep_repeats=1)],
  ids=['all', 'plain'],
)
def test_counts_are_those_of_the_network(genotype):
  network = spaces.space_of(genotype).network(genotype)
  params = dict(base.init_params(KEY, network))
  del params[base.STATISTICS]
  count, macs = spaces.space_of(genotype).count(genotype, height=8, width=6)
  assert count == sum(leaf.size for leaf in jax.tree.leaves(params))
  one, _ = spaces.space_of(genotype).count(genotype, height=1, width=1)
  assert one == count
  kernels = [
    leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.ndim > 1
  ]
  assert macs == 48 * sum(kernels)  # Stride 1 everywhere: once for a pixel.


@pytest.mark.parametrize(
  ('scale', 'size'), [(1, (1, 1)), (2, (5, 8)), (3, (1, 1)), (4, (5, 8))]
)
def test_any_size_starts_as_bicubic_enlarging(scale, size):
  genotype = example(scale=scale, residual=True)
  network = spaces.space_of(genotype).network(genotype, zero_init_last=True)
  params = base.init_params(KEY, network)
  restored = base.apply(network, params, image(1, *size))
  assert restored.shape == (1, scale * size[0], scale * size[1], 3)
  flat = base.apply(network, params, jnp.full((1, *size, 3), 0.25))
  np.testing.assert_allclose(flat, 0.25, atol=1e-6)


# Open cells.


class Edge(nn.Module):
  """The weighted sum of all candidates, each by a module of its own."""

  repeats: int

  @nn.compact
  def __call__(self, x, weights):
    return sum(
      weight * modules.Operator(name, self.repeats, False, name=name)(x)
      for name, weight in zip(
        genotype_lib.HINAS_OPERATORS, weights, strict=True
      )
    )


class CellByEdge(nn.Module):
  """What an open cell computes, written edge by edge."""

  nodes: int
  repeats: int

  @nn.compact
  def __call__(self, before, earlier, weights):
    states, rows = [before, earlier], iter(weights)
    for i in range(self.nodes):
      states.append(
        sum(
          Edge(self.repeats, name=f'node{i}_from{k}')(state, next(rows))
          for k, state in enumerate(states)
        )
      )
    return jnp.concatenate(states[2:], axis=-1)


@pytest.mark.parametrize(
  ('nodes', 'repeats'),
  [(2, 2), pytest.param(3, 1, marks=pytest.mark.slow)],
)
def test_open_cell_is_the_sum_of_its_edges(nodes, repeats):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
  inputs = normal(2, 2, 2, 6, 5, 3)  # For two devices.
  weights = normal(modules.num_edges(nodes), 7)
  reference = CellByEdge(nodes, repeats)
  cell = modules.Cell(genotype_lib.HINAS_OPERATORS, nodes, repeats)
  variables, fresh = (
    module.init(KEY, *inputs[0], weights) for module in (reference, cell)
  )
  jax.tree.map(np.testing.assert_array_equal, variables, fresh)
  variables[base.STATISTICS] = jax.tree.map(
    lambda leaf: 1 + np.abs(normal(*leaf.shape)), variables[base.STATISTICS]
  )
  factors = normal(2, 6, 5, nodes * 3)

  def results(module):
    """Output, statistics, gradients; and the output out of training."""

    def loss(variables, weights, x):
      output, learnt = module.apply(
        variables, *x, weights, mutable=[base.STATISTICS]
      )
      return (factors * output).sum(), (output, learnt)

    learning = jax.vmap(
      jax.value_and_grad(loss, (0, 1, 2), has_aux=True), (None, None, 0),
      axis_name=parallel.AXIS,
    )  # fmt: skip
    return (
      jax.jit(learning)(variables, weights, inputs),
      jax.jit(module.apply)(variables, *inputs[0], weights),
    )

  def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())

  jax.tree.map(assert_close, results(reference), results(cell))


def num_equations(jaxpr):
  inner = (
    getattr(leaf, 'jaxpr', leaf)
    for equation in jaxpr.eqns
    for leaf in jax.tree.leaves(
      equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns')
    )
  )
  return len(jaxpr.eqns) + sum(
    num_equations(leaf) for leaf in inner if hasattr(leaf, 'eqns')
  )


def test_the_graph_of_a_cell_is_small():
  """Edge by edge there are over 10 000 equations, and XLA takes too long."""
  cell = modules.Cell(genotype_lib.HINAS_OPERATORS, nodes=4, repeats=1)
  x, weights = jnp.zeros((1, 4, 4, 2)), jnp.zeros((14, 7))
  variables = jax.eval_shape(cell.init, KEY, x, x, weights)
  loss = lambda *args: cell.apply(*args).sum()  # noqa: E731
  graph = jax.make_jaxpr(jax.grad(loss))(variables, x, x, weights)
  assert num_equations(graph.jaxpr) < 4000


# Genotypes.


def test_genotype_is_plain_data():
  genotype = example()
  again = genotype_lib.from_json(genotype.to_json())
  assert again == genotype
  assert again.digest() == genotype.digest()
  assert 'sep_conv_5x5(1)' in genotype.describe()
  assert genotype.widths == (6, 8, 6)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('cells', ()), ('cells', (CELL, CELL[:1], CELL)),
    ('cells', (((0, 'conv_3x3'), (0, 'skip')),)),
    ('cells', ((((0, 'conv_3x3'), (0, 'skip')),),)),
    ('cells', ((((0, 'conv_3x3'), (2, 'skip')),),)),
    ('cells', ((((0, 'conv_3'), (1, 'skip')),),)),
    ('levels', (1, 2)), ('levels', (2, 2, 2)), ('levels', (1, 2, 3)),
    ('levels', (1, 2, True)), ('width', 0), ('width_factors', (1.0, 1e9)),
    ('width_factors', (1.0, 'x')), ('stem_width', 2.5), ('sep_repeats', 0),
    ('share_cells', 1), ('residual', None), ('scale', 9),
  ],
)  # fmt: skip
def test_bad_genotypes_are_refused_and_named(field, value):
  with pytest.raises(genotype_lib.GenotypeError, match=field):
    example(**{field: value})


# Batch norm.


def batches(num_batches, size=4):
  rng = np.random.default_rng(0)
  for _ in range(num_batches):
    sharp = rng.random((size, 12, 12, 3), np.float32)
    yield {'blurred': np.clip(sharp + 0.1, 0, 1), 'sharp': sharp}


def trained(devices, *, ema_decay=0.0, steps=3):
  genotype = example(cells=(CELL,), levels=(1,), scale=1)
  network = spaces.space_of(genotype).network(genotype)
  c = config_lib.hinas('denoise')
  c.train.lr = 1e-3
  tx = train_lib.make_tx(c.train, 10)
  step = parallel.make_parallel(
    train_lib.make_train_step(network, tx, loss='mse', ema_decay=ema_decay),
    devices=jax.local_devices()[:devices],
  )
  params = base.init_params(KEY, network)
  state = train_lib.init_state(params, tx, ema_decay=ema_decay)
  for batch in batches(steps):
    state, _ = step(state, batch, KEY)
  return network, params, jax.device_get(state)


@pytest.mark.usefixtures('four_devices')
def test_training_and_its_statistics_do_not_depend_on_the_devices():
  (_, fresh, one), (_, _, four) = trained(1), trained(4)
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  moved = [
    (a != b).any()
    for a, b in zip(
      jax.tree.leaves(fresh[base.STATISTICS]),
      jax.tree.leaves(one.params[base.STATISTICS]), strict=True,
    )
  ]  # fmt: skip
  assert all(moved)


def test_statistics_come_near_to_those_of_the_data_and_are_averaged_too():
  network, _, state = trained(1, ema_decay=0.5, steps=120)
  (*_, batch) = batches(1, size=4)
  x = np.asarray(batch['blurred']) - 0.5
  kernel = state.params['start1']['kernel']
  first = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  for params in (state.params, state.averaged):
    own = params[base.STATISTICS]['start1_bn']['norm']
    np.testing.assert_allclose(own['mean'], first.mean((0, 1, 2)), atol=0.05)
    np.testing.assert_allclose(own['var'], first.var((0, 1, 2)), rtol=0.3)
  # Out of training, an image's output depends on no other image.
  both = base.apply(network, state.params, batch['blurred'])
  alone = base.apply(network, state.params, batch['blurred'][:1])
  np.testing.assert_allclose(both[:1], alone, atol=1e-5)


def test_search_steps_learn_statistics_and_keep_to_their_part():
  c = config_lib.shrink(config_lib.hinas('denoise', sigma=30.0))
  c.hinas.layers = c.hinas.nodes = 1
  c.search.loss = 'mse'
  space = spaces.make_space(c)
  supernet = space.supernet(None, '')
  alphas = space.init_alphas(KEY, None, '')
  params = base.init_params(KEY, supernet, space.decode(alphas))
  state = bilevel.init_state(params, alphas, c.search)
  devices = jax.local_devices()[:1]
  (batch,) = batches(1)
  weights = parallel.make_parallel(
    bilevel.make_weight_step(space, '', supernet, c.search), devices=devices
  )
  old = jax.device_get(state)
  state, _ = weights(state, batch, KEY)
  new = jax.device_get(state)
  np.testing.assert_array_equal(old.alphas, new.alphas)
  for a, b in zip(
    jax.tree.leaves(old.params[base.STATISTICS]),
    jax.tree.leaves(new.params[base.STATISTICS]), strict=True,
  ):  # fmt: skip
    assert (a != b).any()
  step = parallel.make_parallel(
    bilevel.make_alpha_step(supernet, c.search), devices=devices
  )
  state, _ = step(state, batch, KEY)
  after = jax.device_get(state)
  jax.tree.map(np.testing.assert_array_equal, new.params, after.params)
  real = np.asarray(alphas) > -1e8
  assert (after.alphas != new.alphas)[real].all()
  assert (after.alphas[~real] < -1e8).all()


# From one end to the other.


def tiny(task, **changes):
  c = config_lib.shrink(config_lib.hinas(task, sigma=30.0, scale=1))
  c.hinas.layers = c.hinas.nodes = 1
  c.hinas.candidates = ('conv_3x3', 'sep_conv_3x3', 'skip')  # None is `zero`.
  c.data.name, c.data.root, c.data.validation_fraction = 'photos', '', 0.1
  c.search.first_score = 0
  config_lib.override(c, changes)
  return c


def test_denoising_from_search_to_restorer(tmp_path):
  c = tiny('denoise', **{'search.first_score': 4})
  result = api.derive_and_train(c, workdir=tmp_path)
  assert isinstance(result.genotype, HinasGenotype)
  assert 19 < result.metrics['psnr_input'] < 22  # 18.6 dB, clipped.
  # The score of step 2 does not count: the best is the last.
  (trial,) = api.search(c, workdir=tmp_path).trials
  assert trial['stages'][0]['best_step'] == 4
  noisy = np.zeros((17, 9, 3), np.uint8)
  restored = result.restore(noisy)
  assert restored.shape == noisy.shape
  again = api.load(tmp_path)
  np.testing.assert_array_equal(again(noisy), restored)


def test_super_resolution_is_scored_on_luminance_against_bicubic(tmp_path):
  c = tiny(
    'super_resolution',
    **{'data.scale': 2, 'data.eval_patch': 0, 'model.zero_init_last': True},
  )
  genotype = example(cells=(CELL,), levels=(0,), residual=True, scale=2)
  c.train.lr = 1e-9  # As it begins: bicubic.
  restorer = api.train(genotype, c, workdir=tmp_path)
  small = np.zeros((7, 6, 3), np.float32)
  assert restorer(small).shape == (14, 12, 3)
  scores = api.evaluate(restorer, c, workdir=tmp_path / 'scores')
  assert scores['psnr'] == pytest.approx(scores['psnr_input'], abs=0.05)
  assert 25 < scores['psnr'] < 45
