"""What a network is made of, as plain data: layers to be counted and timed.

A layer works on feature maps [B, H, W, C], where B counts the patches of a
frame. Its parameters and multiply-adds are known; its time is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax.nn import blocks
from pynas_jax.nn import mixed
from pynas_jax.nn import ops


class _Fuse(nn.Module):
  """The 1x1 convolution over two concatenated feature maps."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.concatenate([x, x], axis=-1)
    return ops.Conv(self.features, 1, dtype=self.dtype)(x)


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a network at one size of its input.

  Attributes:
    kind: 'conv' (3x3), 'down' (3x3, stride 2), 'cell', 'up' (doubles the
      resolution) or 'fuse' (1x1 over two maps).
    operator: Of a cell, or the kind of up-sampling; '' for the others.
    batch: Patches in a frame B.
    height: Of the input, pixels.
    width: Likewise.
    c_in: Channels in; of each map for 'fuse'.
    c_out: Channels out.
  """

  kind: str
  operator: str
  batch: int
  height: int
  width: int
  c_in: int
  c_out: int

  def count(self) -> tuple[int, int]:
    """Returns (parameters, multiply-adds for a frame).

    >>> Layer('conv', '', 1, 2, 2, 3, 32).count()
    (896, 3456)
    """
    pixels = self.batch * self.height * self.width
    if self.kind == 'cell':
      params, macs = ops.count(self.operator, self.c_in)
    elif self.kind == 'fuse':
      params, macs = ops.count_conv(1, 2 * self.c_in, self.c_out)
    elif self.kind == 'up' and self.operator == 'pixel_shuffle':
      params, macs = ops.count_conv(3, self.c_in, 4 * self.c_out)
    elif self.kind == 'up':  # A 4x4 kernel is applied at every input pixel.
      params, macs = ops.count_conv(4, self.c_in, self.c_out)
    else:
      params, macs = ops.count_conv(3, self.c_in, self.c_out)
      pixels //= 4 if self.kind == 'down' else 1
    return params, macs * pixels

  @property
  def reach(self) -> int:
    """Pixels of the input, to each side, that a pixel of the output sees."""
    return {'cell': ops.REACH.get(self.operator, 1), 'fuse': 0}.get(
      self.kind, 1
    )

  @property
  def values(self) -> int:
    """Numbers of the feature maps in and out, for a frame."""
    pixels = self.batch * self.height * self.width
    maps = 2 if self.kind == 'fuse' else 1
    out = {'down': pixels // 4, 'up': 4 * pixels}.get(self.kind, pixels)
    return maps * pixels * self.c_in + out * self.c_out

  def module(self, dtype: str = 'float32') -> nn.Module:
    """Returns the layer as a module, to be timed."""
    dtype = jnp.dtype(dtype)
    if self.kind == 'cell':
      return mixed.Cell(self.operator, dtype=dtype)
    if self.kind == 'fuse':
      return _Fuse(self.c_out, dtype=dtype)
    if self.kind == 'up':
      return blocks.Upsample(self.c_out, self.operator, dtype=dtype)
    stride = 2 if self.kind == 'down' else 1
    return ops.Conv(self.c_out, stride=stride, dtype=dtype)


def encoder_layers(
  widths: Sequence[int],
  cells: Sequence[str],
  *,
  channels: int,
  batch: int,
  height: int,
  width: int,
) -> list[Layer]:
  """Returns the layers of `blocks.Encoder`, in order.

  Args:
    widths: Channels per stage.
    cells: Operators, in order.
    channels: Of the input.
    batch: Patches in a frame.
    height: Of the input, pixels.
    width: Likewise.
  """
  per_stage = len(cells) // len(widths)
  layers, c_in = [], channels
  for stage, c_out in enumerate(widths):
    kind = 'down' if stage else 'conv'
    layers.append(Layer(kind, '', batch, height, width, c_in, c_out))
    if stage:
      height, width = height // 2, width // 2
    for operator in cells[stage * per_stage : (stage + 1) * per_stage]:
      layers.append(Layer('cell', operator, batch, height, width, c_out, c_out))
    c_in = c_out
  return layers


def decoder_layers(
  widths: Sequence[int],
  cells: Sequence[str],
  upsample: str,
  *,
  channels: int,
  batch: int,
  height: int,
  width: int,
) -> list[Layer]:
  """Returns the layers of `blocks.Decoder`, in order.

  Args:
    widths: Channels per stage, as of the encoder.
    cells: Operators, in order.
    upsample: Kind of up-sampling.
    channels: Of the output.
    batch: Patches in a frame.
    height: Of the output, pixels.
    width: Likewise.
  """
  per_stage = len(cells) // len(widths)
  shrink = 2 ** (len(widths) - 1)
  height, width = height // shrink, width // shrink
  layers, c_in = [], widths[-1]
  for stage, c_out in enumerate(reversed(widths)):
    if stage:
      layers.append(Layer('up', upsample, batch, height, width, c_in, c_out))
      height, width = 2 * height, 2 * width
    for operator in cells[stage * per_stage : (stage + 1) * per_stage]:
      layers.append(Layer('cell', operator, batch, height, width, c_out, c_out))
    c_in = c_out
  layers.append(Layer('conv', '', batch, height, width, c_in, channels))
  return layers
