"""NAFNet (Chen et al., ECCV 2022): a hand-made network to compare with.

Images are f[B, H, W, 3] in [0, 1], of any size. Nothing is searched here: the
genotype says the width and the number of blocks, so that the network is
trained, scored and timed by the same code as those of a search. Blocks, widths
and paddings are those of the published code for GoPro.
"""

from __future__ import annotations

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax.genotype import NafnetGenotype
from pynas_jax.nn import canvas
from pynas_jax.nn import ops
from pynas_jax.nn import patches

EPSILON = 1e-6  # Of the layer norms, as the published code.


class _Depthwise(nn.Module):
  """3x3 convolution of each channel, with bias."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = ops.depthwise_init(3)
    kernel = self.param('kernel', init, (3, 3, x.shape[-1]))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    y = ops.depthwise_conv2d(x, kernel.astype(self.dtype))
    return y + bias.astype(self.dtype)[None, None, None]


def _gate(x: jax.Array) -> jax.Array:
  """Halves the channels: one half times the other (SimpleGate)."""
  a, b = jnp.split(x, 2, axis=-1)
  return a * b


class Block(nn.Module):
  """NAFBlock: gated convolutions with channel attention, then a gated MLP."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    norm = lambda name: nn.LayerNorm(  # noqa: E731
      epsilon=EPSILON, dtype=self.dtype, name=name
    )
    conv = lambda features, name: ops.Conv(  # noqa: E731
      features, 1, dtype=self.dtype, name=name
    )
    scale = lambda name: self.param(  # noqa: E731
      name, nn.initializers.zeros, (c,)
    ).astype(self.dtype)[None, None, None]
    y = conv(2 * c, 'conv1')(norm('norm1')(x))
    y = _gate(_Depthwise(self.dtype, name='conv2')(y))
    attention = conv(c, 'attention')(canvas.mean(y))
    y = conv(c, 'conv3')(y * attention)
    x = x + scale('beta') * y
    y = _gate(conv(2 * c, 'conv4')(norm('norm2')(x)))
    return x + scale('gamma') * conv(c, 'conv5')(y)


class NafnetModule(nn.Module):
  """The U-shaped network; adds its output to the image."""

  genotype: NafnetGenotype
  zero_init_last: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # Gradients compute features anew, block by block.

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Restores images f[B, H, W, 3]; returns f32[B, H, W, 3], not clipped."""
    chex.assert_shape(image, (None, None, None, 3))
    g, dtype = self.genotype, self.dtype
    block = nn.remat(Block) if self.remat else Block
    factor = 2 ** len(g.encoder)
    x = patches.pad_to_multiple(image, height=factor, width=factor)
    x = ops.Conv(g.width, dtype=dtype, name='intro')(x.astype(dtype))
    skips = []
    for level, count in enumerate(g.encoder):
      for i in range(count):
        x = block(dtype, name=f'encoder{level}_{i}')(x)
      skips.append(x)
      # A 2x2 convolution of stride 2 is a 1x1 one of folded pixels.
      x = patches.space_to_depth(x, factor=2)
      features = g.width * 2 ** (level + 1)
      x = ops.Conv(features, 1, dtype=dtype, name=f'down{level}')(x)
    for i in range(g.middle):
      x = block(dtype, name=f'middle_{i}')(x)
    for level, count in enumerate(g.decoder):
      x = nn.Conv(
        2 * x.shape[-1], (1, 1), use_bias=False, dtype=dtype, name=f'up{level}'
      )(x)
      x = patches.depth_to_space(x, factor=2) + skips.pop()
      for i in range(count):
        x = block(dtype, name=f'decoder{level}_{i}')(x)
    init = nn.initializers.zeros if self.zero_init_last else ops.KERNEL_INIT
    x = ops.Conv(3, kernel_init=init, dtype=dtype, name='ending')(x)
    x = x[:, : image.shape[1], : image.shape[2]]
    return image + x.astype(jnp.float32)


class Nafnet:
  """What training, evaluation and deployment ask of a space."""

  @staticmethod
  def network(genotype: NafnetGenotype, **options: Any) -> NafnetModule:
    return NafnetModule(genotype, **options)

  @staticmethod
  def multiple(genotype: NafnetGenotype) -> tuple[int, int]:
    return (2 ** len(genotype.encoder),) * 2

  @staticmethod
  def count(
    genotype: NafnetGenotype, *, height: int, width: int
  ) -> tuple[int, int]:
    factor = 2 ** len(genotype.encoder)
    pixels = (height + -height % factor) * (width + -width % factor)
    counts = []  # (parameters, multiply-adds per pixel, pixels)

    def add(params_and_macs, share):
      counts.append((*params_and_macs, pixels // share))

    def add_blocks(number, c, share):
      conv1, conv5 = (ops.count_conv(1, c, k * c) for k in (2, 1))
      depthwise = (9 * 2 * c + 2 * c, 9 * 2 * c)
      for _ in range(number):
        for one in (conv1, depthwise, conv5, conv1, conv5):
          add(one, share)
        # Attention works on one pixel; two norms; beta and gamma.
        counts.append((*conv5, 1))
        counts.append((2 * 2 * c + 2 * c, 0, 0))

    c, share = genotype.width, 1
    add(ops.count_conv(3, 3, c), share)
    for number in genotype.encoder:
      add_blocks(number, c, share)
      share *= 4
      add(ops.count_conv(1, 4 * c, 2 * c), share)
      c *= 2
    add_blocks(genotype.middle, c, share)
    for number in genotype.decoder:
      add((2 * c * c, 2 * c * c), share)
      c, share = c // 2, share // 4
      add_blocks(number, c, share)
    add(ops.count_conv(3, c, 3), share)
    return sum(p for p, _, _ in counts), sum(m * n for _, m, n in counts)
