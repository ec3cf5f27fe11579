"""NAFNet as a reference: its published size, any image size, a training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import spaces
from pynas_jax.genotype import NafnetGenotype
from pynas_jax.spaces import base

SMALL = NafnetGenotype(width=4, encoder=(1, 2), middle=1, decoder=(1, 1))


def params_of(genotype):
  network = spaces.space_of(genotype).network(genotype)
  return jax.eval_shape(lambda: base.init_params(jax.random.key(0), network))


@pytest.mark.parametrize(
  'genotype',
  [SMALL, NafnetGenotype(16), NafnetGenotype(width=8, encoder=(1, 1, 1, 1))],
)
def test_count_is_that_of_the_parameters(genotype):
  leaves = jax.tree.leaves(params_of(genotype))
  params, _ = spaces.space_of(genotype).count(genotype, height=8, width=8)
  assert params == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(('width', 'millions'), [(32, 17.1), (64, 67.9)])
def test_published_sizes(width, millions):
  genotype = genotype_lib.reference(f'nafnet-{width}')
  size = api.describe_size(genotype)
  assert round(size['params'] / 1e6, 1) == millions
  # 16 and 65 GMAC at 256x256 in the paper's Table 6 and the published code.
  _, macs = spaces.space_of(genotype).count(genotype, height=256, width=256)
  assert abs(macs / 1e9 / {32: 16, 64: 63.6}[width] - 1) < 0.03


def test_any_size_comes_back_and_starts_as_the_identity():
  network = spaces.space_of(SMALL).network(SMALL, zero_init_last=True)
  params = base.init_params(jax.random.key(0), network)
  x = jnp.asarray(np.random.default_rng(0).random((1, 13, 7, 3), np.float32))
  np.testing.assert_allclose(network.apply({'params': params}, x), x)


def test_blocks_have_an_effect_once_their_scales_do():
  network = spaces.space_of(SMALL).network(SMALL)
  params = base.init_params(jax.random.key(0), network)
  x = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 3), np.float32))
  before = network.apply({'params': params}, x)
  for name in ('beta', 'gamma'):
    params['middle_0'][name] = params['middle_0'][name] + 1.0
    after = network.apply({'params': params}, x)
    assert not np.allclose(before, after)
    before = after


def test_it_is_trained_and_scored_like_found_networks(tmp_path):
  config = config_lib.shrink(config_lib.base())
  restorer = api.train(SMALL, config, workdir=tmp_path)
  scores = api.evaluate(restorer, config, workdir=tmp_path)
  assert np.isfinite(scores['psnr'])
  assert api.load(tmp_path).genotype == SMALL


def test_genotype_is_plain_data():
  assert genotype_lib.from_json(SMALL.to_json()) == SMALL
  assert 'width 4' in SMALL.describe()
  for field, value in (('width', 0), ('encoder', (1,)), ('middle', -1)):
    values = SMALL.to_dict() | {field: value}
    with pytest.raises(genotype_lib.GenotypeError, match=f'{field}|decoder'):
      genotype_lib.from_dict(values)


@pytest.mark.parametrize(
  'name', ['dmphn-1-2-5', 'nafnet', 'nafnet-x', 'resnet']
)
def test_unknown_references_are_none(name):
  assert genotype_lib.reference(name) is None


def test_dmphn_of_any_scheme():
  assert genotype_lib.reference('dmphn') == genotype_lib.dmphn()
  assert genotype_lib.reference('dmphn-1-2-4').scheme == (1, 2, 4)


def test_a_network_has_a_resolution():
  with pytest.raises(genotype_lib.GenotypeError, match='encoder is ()'):
    NafnetGenotype(encoder=(), decoder=())
