"""One battery for every search space, and what only PyNAS has."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import spaces
from pynas_jax.spaces import base

KEY = jax.random.key(0)
# Odd and even, deep and shallow; every axis of the grids is split.
SCHEMES = ((1,), (1, 2, 4, 8), (1, 3, 9), (1, 2, 6), (1, 4, 16))


def make_space(name='pynas', **model):
  config = config_lib.shrink(config_lib.base())
  config.space = name
  config_lib.override(config, {'model': model})
  return spaces.make_space(config)


def random_params(params, seed=0):
  """Parameters with no zeros, so that every part has an effect."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    value = 0.2 * rng.standard_normal(leaf.shape)
    if path[-1].key == 'var':  # Of a batch norm.
      value = 1 + np.abs(value)
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)


def image(*size, seed=0):
  x = np.random.default_rng(seed).random((*size, 3), np.float32)
  return jnp.asarray(x)


def random_alphas(space, draft, stage, seed):
  """Alphas far from each other; those that cannot be chosen stay so."""
  key = jax.random.fold_in(KEY, seed)
  return 1e3 * space.init_alphas(key, draft, stage)


def apply(module):
  return jax.jit(lambda *args: base.apply(module, *args))


def search_at_random(space, scheme):
  """Yields (supernet, params, gates, draft) of every stage, alphas random."""
  draft, params = space.draft(scheme), {}
  for i, stage in enumerate(space.stages(draft)):
    alphas = random_alphas(space, draft, stage, seed=i)
    supernet = space.supernet(draft, stage)
    one_hot = space.decode(alphas)
    fresh = random_params(base.init_params(KEY, supernet, one_hot), seed=i)
    params = base.inherit(fresh, params)
    draft = space.derive(draft, stage, alphas)
    yield supernet, params, one_hot, draft


def begin(name):
  """Returns a supernet, its gates and its parameters."""
  space = make_space(name)
  draft = space.draft((1,))
  stage = space.stages(draft)[0]
  one_hot = space.decode(space.init_alphas(KEY, draft, stage))
  supernet = space.supernet(draft, stage)
  return supernet, one_hot, base.init_params(KEY, supernet, one_hot)


@pytest.mark.parametrize('name', spaces.SPACES)
def test_parameters_of_known_shapes_begin_without_a_compiler(name, caplog):
  supernet, one_hot, params = begin(name)
  with jax.log_compiles(), caplog.at_level('WARNING'):
    again = base.init_params(KEY, supernet, one_hot)
    jax.block_until_ready(again)
  assert 'XLA compilation' not in caplog.text
  chex.assert_trees_all_equal(params, again)


def test_parameters_begin_as_flax_begins_them():
  supernet, one_hot, params = begin('pynas')
  fast_key = jax.random.wrap_key_data(
    jnp.tile(jax.random.key_data(KEY), 2), impl='rbg'
  )
  whole = jax.jit(supernet.init)(fast_key, image(1, 16, 16), one_hot)
  chex.assert_trees_all_equal(params, whole['params'])


@pytest.mark.parametrize(
  ('name', 'scheme'),
  [*(('pynas', scheme) for scheme in SCHEMES), ('hinas', (1,))],
)
def test_derived_network_equals_one_hot_supernet(name, scheme):
  """Deriving is only pruning: same weights, same function."""
  space = make_space(name)
  *_, (supernet, params, one_hot, draft) = search_at_random(space, scheme)
  genotype = space.genotype(draft)
  network = space.network(genotype)
  fresh = base.init_params(KEY, network)
  inherited = base.inherit(fresh, params)
  assert jax.tree.structure(fresh) == jax.tree.structure(inherited)
  x = image(1, 50, 46)
  derived = apply(network)(inherited, x)
  expected = apply(supernet)(params, x, one_hot)
  assert not np.allclose(derived, x, atol=1e-2)
  np.testing.assert_allclose(derived, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', spaces.SPACES)
def test_genotypes_survive_json_and_name_their_space(name):
  space = make_space(name)
  *_, (_, _, _, draft) = search_at_random(space, (1, 2))
  genotype = space.genotype(draft)
  assert genotype_lib.from_json(genotype.to_json()) == genotype
  assert spaces.space_of(genotype) is spaces.SPACES[name]


@pytest.mark.parametrize('name', spaces.SPACES)
def test_a_finished_stage_is_kept_by_the_next_one(name):
  """The weights of coarser scales go on."""
  stages = list(search_at_random(make_space(name), (1, 2)))
  for (_, before, _, _), (_, after, _, _) in zip(
    stages, stages[1:], strict=False
  ):
    fixed = base.inherit(after, before)  # Equal if all of `before` is in it.
    jax.tree.map(np.testing.assert_array_equal, fixed, after)
    assert set(after) > set(before)


@pytest.mark.parametrize('name', spaces.SPACES)
def test_sampled_marks_the_operators_on_the_path(name):
  """Changing what is not marked changes nothing; what is marked, something."""
  space = make_space(name)
  *_, (supernet, params, one_hot, draft) = search_at_random(space, (1, 2))
  stage = space.stages(space.draft((1, 2)))[-1]
  del draft
  sampled = space.sampled(params, stage, one_hot)
  x = image(1, 16, 16)
  restore = apply(supernet)
  expected = restore(params, x, one_hot)
  others = jax.tree.map(lambda m, p: jnp.where(m, p, p + 1), sampled, params)
  np.testing.assert_array_equal(restore(others, x, one_hot), expected)
  marked = jax.tree.map(lambda m, p: jnp.where(m, p + 1, p), sampled, params)
  assert (restore(marked, x, one_hot) != expected).any()


def random_genotype(space, scheme, seed):
  rng = np.random.default_rng(seed)
  shape = (len(scheme), space.num_edges)
  names = rng.choice(genotype_lib.OPERATORS, shape).tolist()
  cells = [tuple(row) for row in names]
  if space.share != 'none':
    cells = cells[:1] * len(scheme)
  draft = dataclasses.replace(space.draft(scheme), cells=tuple(cells))
  return space.genotype(draft)


@pytest.mark.parametrize(
  'model',
  [
    {},
    {'link': 'concat', 'upsample': 'transposed'},
    {'unshuffle': 2, 'global_residual': False, 'cells_per_stage': 2},
    {'share': 'weights', 'link': 'concat'},
  ],
  ids=str,
)
def test_counts_are_those_of_the_network(model):
  space = make_space(**model)
  genotype = random_genotype(space, (1, 2, 4), seed=0)
  network = space.network(genotype)
  params = base.init_params(KEY, network)
  num_params, _ = space.count(genotype, height=64, width=64)
  assert num_params == sum(leaf.size for leaf in jax.tree.leaves(params))


def conv_macs(jaxpr):
  """Multiply-adds of all convolutions in a jaxpr: the second reference."""
  total = 0
  for eqn in jaxpr.eqns:
    is_conv2d = eqn.primitive.name.startswith('custom_vjp')
    if is_conv2d or eqn.primitive.name == 'conv_general_dilated':
      # From outside: inside, `ops.conv2d` may add a channel for speed.
      kernel = eqn.invars[1].aval.shape
      n, h, w, d = eqn.outvars[0].aval.shape
      # Of 2x2 are transposed convolutions, which use one row and column less.
      cut = 1 - kernel[0] % 2
      total += n * (h - cut) * (w - cut) * d * np.prod(kernel[:3])
      continue
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += conv_macs(inner)
      elif hasattr(inner, 'jaxpr'):
        total += conv_macs(inner.jaxpr)
  return total


@pytest.mark.parametrize('upsample', genotype_lib.UPSAMPLES)
def test_multiply_adds_are_those_of_the_traced_network(upsample):
  space = make_space(upsample=upsample, link='concat')
  genotype = random_genotype(space, (1, 3, 9), seed=1)
  cells = ('conv_5x5', 'conv_3x3')
  scales = tuple(
    genotype_lib.ScaleGenotype(p, cells, cells) for p in genotype.scheme
  )
  genotype = dataclasses.replace(genotype, scales=scales)
  network = space.network(genotype)
  shapes = jax.eval_shape(lambda: base.init_params(KEY, network))
  x = jax.ShapeDtypeStruct((1, 50, 100, 3), jnp.float32)  # Pads to 54 x 102.
  jaxpr = jax.make_jaxpr(network.apply)({'params': shapes}, x)
  _, macs = space.count(genotype, height=50, width=100)
  assert macs == conv_macs(jaxpr.jaxpr)


def test_golden_counts_of_dmphn():
  one = genotype_lib.dmphn((1,))
  four = genotype_lib.dmphn()
  count = spaces.space_of(four).count
  assert count(one, height=720, width=1280)[0] == 1_808_131
  params, macs = count(four, height=720, width=1280)
  assert params == 7_232_524
  assert round(macs / 1e9) == 916
  network = spaces.space_of(four).network(four)
  shapes = jax.eval_shape(lambda: base.init_params(KEY, network))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_232_524


@pytest.mark.parametrize(
  'size', [(1, 1), (1, 9), (17, 2), (12, 36), (31, 47)], ids=str
)
@pytest.mark.parametrize('unshuffle', [1, 2])
def test_any_size_comes_back_in_its_own(size, unshuffle):
  space = make_space(unshuffle=unshuffle)
  genotype = random_genotype(space, (1, 3, 9), seed=2)
  network = space.network(genotype, zero_init_last=True)
  params = base.init_params(KEY, network)
  x = image(2, *size)
  restored = apply(network)(params, x)
  # The last convolutions start at zero, so the network is the identity.
  np.testing.assert_allclose(restored, x, atol=1e-6)


def test_721x1283_comes_back_in_its_own_size():
  network = spaces.space_of(genotype_lib.dmphn()).network(genotype_lib.dmphn())
  shapes = jax.eval_shape(lambda: base.init_params(KEY, network))
  x = jax.ShapeDtypeStruct((1, 721, 1283, 3), jnp.float32)
  restored = jax.eval_shape(network.apply, {'params': shapes}, x)
  assert restored.shape == x.shape


def test_padding_does_not_reach_far():
  """A pixel changes with the padding only near the bottom and the right."""
  space = make_space()
  genotype = random_genotype(space, (1,), seed=3)
  network = space.network(genotype)
  params = random_params(base.init_params(KEY, network))
  x = image(1, 64, 64)
  whole = apply(network)(params, x)
  cut = apply(network)(params, x[:, :63, :63])
  np.testing.assert_allclose(cut[:, :20, :20], whole[:, :20, :20], atol=1e-5)


def test_patches_do_not_see_each_other_before_they_are_merged():
  """The encoder of the coarsest scale works on patches: DMPHN's locality."""
  space = make_space(global_residual=False)
  draft = space.draft((1, 2))
  cells = ('conv_5x5',) * space.num_edges
  draft = dataclasses.replace(draft, cells=(cells, cells))
  network = space.network(space.genotype(draft))
  params = random_params(base.init_params(KEY, network))

  @jax.jit
  def encode(x):
    _, state = network.apply(
      {'params': params}, x, capture_intermediates=True, mutable='intermediates'
    )
    return state['intermediates']['scale2']['encoder']['__call__'][0]

  x = image(1, 32, 16)
  top, bottom = encode(x)
  changed_top, changed_bottom = encode(x.at[:, 16:].set(0.0))
  np.testing.assert_array_equal(top, changed_top)
  assert (bottom != changed_bottom).any()


def assert_derived(space, genotype, params, x, expected):
  """The network with the supernet's weights does what the supernet did."""
  network = space.network(genotype)
  inherited = base.inherit(base.init_params(KEY, network), params)
  derived = apply(network)(inherited, x)
  np.testing.assert_allclose(derived, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('share', ['cells', 'weights'])
def test_shared_search_gives_every_scale_the_same_cells(share):
  space = make_space(share=share)
  (stage,) = list(search_at_random(space, (1, 2, 4)))
  supernet, params, one_hot, draft = stage
  genotype = space.genotype(draft)
  assert len({scale.cells for scale in genotype.scales}) == 1
  assert genotype.share_weights == (share == 'weights')
  names = {'shared'} if share == 'weights' else {'scale1', 'scale2', 'scale3'}
  assert set(params) == names
  x = image(1, 16, 24)
  expected = apply(supernet)(params, x, one_hot)
  assert_derived(space, genotype, params, x, expected)


def test_joint_search_fills_all_scales_at_once():
  space = make_space(joint=True)
  scheme = (1, 2, 4)
  (stage,) = list(search_at_random(space, scheme))
  supernet, params, one_hot, draft = stage
  assert len(one_hot.index) == 3 * space.num_edges
  genotype = space.genotype(draft)
  assert len({scale.cells for scale in genotype.scales}) == 3
  x = image(1, 16, 24)
  expected = apply(supernet)(params, x, one_hot)
  assert_derived(space, genotype, params, x, expected)
  # What is not marked as sampled has no effect, scale by scale.
  sampled = space.sampled(params, 'all', one_hot)
  others = jax.tree.map(lambda m, p: jnp.where(m, p, p + 1), sampled, params)
  again = apply(supernet)(others, x, one_hot)
  np.testing.assert_array_equal(again, expected)
  assert not all(jax.tree.leaves(sampled))
  config = config_lib.base()
  config_lib.override(config, {'model': {'joint': True, 'share': 'cells'}})
  with pytest.raises(config_lib.SettingError, match='model.joint'):
    config_lib.validate(config)
