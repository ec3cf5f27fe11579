"""Images on a canvas: one program for all that are not larger than an array.

Feature maps are [B, H, W, C]. On a canvas, the image is in the top left corner
of each, and all else is to be ignored. Within `holding`, what looks at
neighbours or at the frame as a whole is traced to do so: convolutions find
zeros beside the image, patches are cut at fractions of it, and means are taken
over it. So a network restores the image as it does without a canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import contextvars
import fractions

import chex
import jax
import jax.numpy as jnp

_held: contextvars.ContextVar[tuple[jax.Array, tuple[int, int]] | None] = (
  contextvars.ContextVar('held', default=None)
)


@contextlib.contextmanager
def holding(size: jax.Array, canvas: tuple[int, int]) -> Iterator[None]:
  """Traces what it encloses for images on a canvas.

  Args:
    size: i32[2], height and width of the images; may be traced.
    canvas: Height and width of the canvas. As the images' own, multiples of
      what strides and patches of the network divide.
  """
  chex.assert_shape(size, (2,))
  token = _held.set((size, canvas))
  try:
    yield
  finally:
    _held.reset(token)


def is_held() -> bool:
  """Returns whether images are on a canvas."""
  return _held.get() is not None


def extent(x: jax.Array) -> tuple[jax.Array | int, jax.Array | int]:
  """Returns height and width of the image in a feature map [B, H, W, C]."""
  if not is_held():
    return x.shape[1], x.shape[2]
  held = zip(*_held.get(), x.shape[1:3], strict=True)
  height, width = (_scaled(*sides) for sides in held)
  return height, width


def _scaled(size: jax.Array, canvas: int, feature_map: int) -> jax.Array:
  # Divided first, as a product of two sides can be too large for an i32.
  part = fractions.Fraction(feature_map, canvas)
  return size // part.denominator * part.numerator


def blank(x: jax.Array) -> jax.Array:
  """Returns [B, H, W, C] with zeros beside the image.

  >>> with holding(jnp.array([2, 3]), (4, 4)):
  ...   blank(jnp.ones((1, 4, 4, 1)))[0, :, :, 0].astype(int)
  Array([[1, 1, 1, 0],
         [1, 1, 1, 0],
         [0, 0, 0, 0],
         [0, 0, 0, 0]], dtype=int32)
  """
  if not is_held():
    return x
  height, width = extent(x)
  rows, cols = (
    jax.lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:3], 1), axis)
    for axis in (1, 2)
  )
  return jnp.where((rows < height) & (cols < width), x, 0)


def mean(x: jax.Array) -> jax.Array:
  """Returns the mean over the image: [B, H, W, C] -> [B, 1, 1, C]."""
  if not is_held():
    return x.mean(axis=(1, 2), keepdims=True)
  height, width = extent(x)
  total = blank(x).sum(axis=(1, 2), keepdims=True, dtype=jnp.float32)
  return (total / (height * width)).astype(x.dtype)
