"""The encoder-decoder that every scale of the pyramid is made of.

Feature maps are [B, H, W, C]. PyNAS Figure 3 leaves the layout open; widths,
strides and order are the DMPHN code's: stem, cells, then for each further width
a stride-2 convolution and cells; the decoder mirrors it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax.nn import ops
from pynas_jax.nn import patches
from pynas_jax.nn.gates import Gates
from pynas_jax.nn.mixed import Cell
from pynas_jax.nn.mixed import MixedCell

# An operator, or the candidates of a searchable cell.
CellSpec = str | tuple[str, ...]


def _apply_cell(
  spec: CellSpec, name: str, x: jax.Array, gates: Gates | None, dtype
) -> jax.Array:
  if isinstance(spec, str):
    return Cell(spec, dtype=dtype, name=name)(x)
  return MixedCell(spec, dtype=dtype, name=name)(x, gates)


def _edge(gates: Gates | None, i: int) -> Gates | None:
  return gates if gates is None else Gates(gates.index[i], gates.weight[i])


class Upsample(nn.Module):
  """Doubles the resolution.

  Attributes:
    features: Output channels.
    kind: 'pixel_shuffle' (3x3 convolution, then depth to space), or
      'transposed' (4x4 transposed convolution, as the DMPHN code).
    dtype: Of the arithmetic.
  """

  features: int
  kind: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.kind == 'pixel_shuffle':
      x = ops.Conv(4 * self.features, dtype=self.dtype, name='conv')(x)
      return patches.depth_to_space(x, factor=2)
    return ops.TransposedConv(self.features, self.dtype, name='conv')(x)


class Encoder(nn.Module):
  """Image to features at 1 / 2 ** (len(widths) - 1) of the resolution."""

  widths: Sequence[int]
  cells: Sequence[CellSpec]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, gates: Gates | None = None) -> jax.Array:
    per_stage = len(self.cells) // len(self.widths)
    for stage, width in enumerate(self.widths):
      name, stride = ('stem', 1) if stage == 0 else (f'down{stage}', 2)
      x = ops.Conv(width, stride=stride, dtype=self.dtype, name=name)(x)
      for i in range(stage * per_stage, (stage + 1) * per_stage):
        spec, edge = self.cells[i], _edge(gates, i)
        x = _apply_cell(spec, f'cell{i}', x, edge, self.dtype)
    return x


class Decoder(nn.Module):
  """Features back to an image of `channels`."""

  widths: Sequence[int]
  cells: Sequence[CellSpec]
  upsample: str
  channels: int
  zero_init_last: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, gates: Gates | None = None) -> jax.Array:
    per_stage = len(self.cells) // len(self.widths)
    for stage, width in enumerate(reversed(self.widths)):
      if stage > 0:
        x = Upsample(width, self.upsample, self.dtype, name=f'up{stage}')(x)
      for i in range(stage * per_stage, (stage + 1) * per_stage):
        spec, edge = self.cells[i], _edge(gates, i)
        x = _apply_cell(spec, f'cell{i}', x, edge, self.dtype)
    zeros = nn.initializers.zeros
    init = zeros if self.zero_init_last else ops.KERNEL_INIT
    return ops.Conv(
      self.channels, kernel_init=init, dtype=self.dtype, name='out'
    )(x)


class ScaleNetwork(nn.Module):
  """One scale of the pyramid: an encoder, a decoder, and the feature link.

  Attributes:
    widths: Channels per stage.
    cells: Specs of the encoder's cells, then of the decoder's.
    upsample: Kind of up-sampling.
    link: 'add' or 'concat'.
    channels: Of the image, 3 unless pixels are folded into channels.
    zero_init_last: Whether the decoder starts by predicting zero.
    dtype: Of the arithmetic.
  """

  widths: Sequence[int]
  cells: Sequence[CellSpec]
  upsample: str
  link: str
  channels: int = 3
  zero_init_last: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    half = len(self.cells) // 2
    self.encoder = Encoder(self.widths, self.cells[:half], self.dtype)
    self.decoder = Decoder(
      self.widths, self.cells[half:], self.upsample, self.channels,
      self.zero_init_last, self.dtype,
    )  # fmt: skip
    if self.link == 'concat':
      self.fuse = ops.Conv(self.widths[-1], 1, dtype=self.dtype)

  def encode(self, image: jax.Array, gates: Gates | None = None) -> jax.Array:
    """[B, H, W, channels] -> [B, h, w, widths[-1]]."""
    half = len(self.cells) // 2
    if gates is not None:
      gates = Gates(gates.index[:half], gates.weight[:half])
    return self.encoder(image, gates)

  def join(self, features: jax.Array, coarser: jax.Array) -> jax.Array:
    """Links the features of the next coarser scale into this one's."""
    if self.link == 'add':
      return features + coarser
    return self.fuse(jnp.concatenate([features, coarser], axis=-1))

  def decode(
    self, features: jax.Array, gates: Gates | None = None
  ) -> jax.Array:
    """[B, h, w, widths[-1]] -> [B, H, W, channels]."""
    half = len(self.cells) // 2
    if gates is not None:
      gates = Gates(gates.index[half:], gates.weight[half:])
    return self.decoder(features, gates)
