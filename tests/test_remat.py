"""Features computed anew by gradients: the same results, in less memory."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.genotype import NafnetGenotype
from pynas_jax.nn import blocks
from pynas_jax.search import bilevel
from pynas_jax.spaces import base

KEY = jax.random.key(0)
CELLS = ('conv_3x3', 'conv_3x3_dil2', 'sep_conv_3x3')


def pyramid(*, scheme=(1, 2), widths=(4, 8, 8), share_weights=False):
  return genotype_lib.PyramidGenotype(
    scales=tuple(
      genotype_lib.ScaleGenotype(patches, CELLS, CELLS) for patches in scheme
    ),
    widths=widths, cells_per_stage=1, share_weights=share_weights,
  )  # fmt: skip


GENOTYPES = {
  'pynas': pyramid(),
  'pynas, shared weights': pyramid(share_weights=True),
  'nafnet': NafnetGenotype(width=4, encoder=(1, 2), middle=1, decoder=(1, 1)),
  'hinas': genotype_lib.HinasGenotype(
    cells=2 * ((((0, 'conv_3x3'), (1, 'sep_conv_3x3')),),), levels=(0, 1),
    width=4, stem_width=4, scale=2,
  ),
}  # fmt: skip


def batch_of(side, scale=1):
  rng = np.random.default_rng(0)
  return {
    'blurred': jnp.asarray(rng.random((2, side, side, 3), np.float32)),
    'sharp': jnp.asarray(
      rng.random((2, scale * side, scale * side, 3), np.float32)
    ),
  }


def config_of(space):
  c = config_lib.shrink(config_lib.base())
  c.space, c.hinas.layers, c.hinas.nodes = space, 1, 1
  c.hinas.candidates = ('conv_3x3', 'skip', 'zero')
  c.search.estimator = 'mixture' if space == 'hinas' else 'one_path'
  return c


def mapped(step):
  return jax.pmap(
    step, axis_name=parallel.AXIS, in_axes=(None, 0, None), out_axes=None,
    devices=jax.local_devices()[:1],
  )  # fmt: skip


def training_step(genotype, *, side, remat):
  """Returns a step and its arguments."""
  network = spaces.space_of(genotype).network(genotype, remat=remat)
  tx = optax.sgd(1.0)
  step = train_lib.make_train_step(network, tx, loss='mse', ema_decay=0.0)
  state = train_lib.init_state(
    base.init_params(KEY, network), tx, ema_decay=0.0
  )
  batch = parallel.shard(batch_of(side, genotype.scale), 1)
  return mapped(step), (state, batch, KEY)


def search_step(name, kind, *, remat):
  c = config_of(name)
  space, s = spaces.make_space(c), c.search
  draft = space.draft((1,))
  stage = space.stages(draft)[0]
  supernet = space.supernet(draft, stage, remat=remat)
  alphas = space.init_alphas(KEY, draft, stage)
  params = base.init_params(KEY, supernet, space.decode(alphas))
  state = bilevel.init_state(params, alphas, s)
  step = (
    bilevel.make_weight_step(space, stage, supernet, s) if kind == 'weight'
    else bilevel.make_alpha_step(supernet, s)
  )  # fmt: skip
  return mapped(step), (state, parallel.shard(batch_of(16), 1), KEY)


def assert_same(steps):
  """Compares the steps without `remat` and with it; all begin alike."""
  (kept, args), (anew, own_args) = steps
  jax.tree.map(np.testing.assert_array_equal, args[0], own_args[0])
  for step, remat in ((kept, False), (anew, True)):
    assert ('remat' in str(jax.make_jaxpr(step)(*args))) == remat
  (state, figures), (own_state, own_figures) = kept(*args), anew(*args)
  assert np.isfinite(figures['loss'])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
    (state, figures), (own_state, own_figures),
  )  # fmt: skip


@pytest.mark.parametrize('name', GENOTYPES)
def test_training_steps_are_the_same(name):
  assert_same(
    training_step(GENOTYPES[name], side=16, remat=remat)
    for remat in (False, True)
  )


@pytest.mark.parametrize('kind', ['weight', 'alpha'])
@pytest.mark.parametrize('space', ['pynas', 'hinas'])
def test_steps_of_a_search_are_the_same(space, kind):
  assert_same(search_step(space, kind, remat=remat) for remat in (False, True))


@pytest.mark.skipif(
  jax.__version_info__ < (0, 12), reason='XLA for CPUs keeps all features'
)
def test_memory_is_less():
  genotype = pyramid(scheme=(1, 2, 4), widths=(8, 16, 16))
  temporaries = []
  for remat in (False, True):
    step, args = training_step(genotype, side=128, remat=remat)
    analysis = step.lower(*args).compile().memory_analysis()
    temporaries.append(analysis.temp_size_in_bytes)
  assert temporaries[1] < temporaries[0] / 2


def test_a_run_that_went_out_of_memory_goes_on_with_it(tmp_path, monkeypatch):
  asked = []
  encode = blocks.ScaleNetwork.encode

  def recompute(function):
    asked.append(function)
    return function

  c = config_lib.shrink(config_lib.base())
  api.open_workdir(tmp_path, c)  # As the run without it.
  c.model.remat = True
  monkeypatch.setattr(nn, 'remat', recompute)
  found = api.search(c, workdir=tmp_path)
  assert encode in asked
  asked.clear()
  api.train(found.genotype, c, workdir=tmp_path)
  assert encode in asked
