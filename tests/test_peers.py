"""PyTorch's networks of the benchmarks are ours, and only their path learns."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax.nn import gates
from pynas_jax.spaces import base
from pynas_jax.spaces import pynas

torch = pytest.importorskip('torch', reason='it is what is compared with')
peers = pytest.importorskip('benchmarks.peers')

OPERATORS = (
  'conv_3x3', 'conv_5x5', 'conv_3x3_dil2', 'sep_conv_3x3', 'zero',
)  # fmt: skip
HALF = ('conv_3x3', 'sep_conv_3x3')
TINY = genotype_lib.PyramidGenotype(
  scales=(
    genotype_lib.ScaleGenotype(1, HALF, HALF[::-1]),
    genotype_lib.ScaleGenotype(2, ('conv_5x5', 'zero'), HALF),
  ),
  widths=(4, 6), cells_per_stage=1, unshuffle=2,
)  # fmt: skip
IMAGE = np.random.default_rng(0).random((1, 18, 21, 3), np.float32)


def random_params(module, *args):
  """Parameters that are nowhere zero, so that a wrong place shows."""
  params = base.init_params(jax.random.key(0), module, *args)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda p: 0.2 * rng.standard_normal(p.shape, np.float32), params
  )


@pytest.mark.parametrize(
  'genotype', [
    TINY,
    dataclasses.replace(TINY, link='concat', global_residual=False),
    dataclasses.replace(TINY, upsample='transposed', unshuffle=1),
  ],
)  # fmt: skip
def test_networks_are_equal(genotype):
  network = pynas.PyNAS.network(genotype)
  params = random_params(network)
  ours = network.apply({'params': params}, IMAGE)
  theirs = peers.load(peers.Pyramid(genotype), params)
  with torch.no_grad():
    restored = theirs(peers.to_torch(IMAGE)).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(restored, ours, rtol=1e-4, atol=1e-4)


def test_supernets_are_equal_and_only_the_sampled_path_has_gradients():
  space = pynas.PyNAS((4, 6), 1, OPERATORS)
  draft = space.draft((1,))
  supernet = space.supernet(draft, 'scale1')
  path = (0, 3, 4, 2)
  params = random_params(supernet, gates.fixed(path))
  ours = supernet.apply({'params': params}, IMAGE, gates.fixed(path))
  genotype = space.genotype(
    space.derive(draft, 'scale1', jax.nn.one_hot(np.array(path), 5))
  )
  theirs = peers.load(peers.Pyramid(genotype, OPERATORS), params)
  restored = theirs(peers.to_torch(IMAGE), [(i, None) for i in path])
  np.testing.assert_allclose(
    restored.detach().permute(0, 2, 3, 1).numpy(), ours, rtol=1e-4, atol=1e-4
  )
  restored.square().mean().backward()
  cells = theirs.scale1.encoder.cell0
  assert cells.conv_3x3.weight.grad is not None
  assert cells.conv_5x5.weight.grad is None
