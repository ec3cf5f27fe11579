"""Weight gradients of convolutions with fewer products, for processors.

Feature maps are f32[B, H, W, C]. Every tile of 4x4 gradients meets 6x6 pixels
in 3x3 taps: 144 products a pair of channels, 36 once both are transformed. The
36 are products of matrices over all tiles, which XLA:CPU is fast at, as it is
not at the convolution that this gradient is else: one whose kernel is an image.
Source: Winograd's F(3x3, 4x4), and F(5x5, 4x4); Lavin & Gray, Fast Algorithms
for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from pynas_jax.nn import patches

_TILE = 4  # Gradients, a side.
_BAND_BYTES = 2**19  # Of pixels at a time: so much stays in the cache.
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)  # And infinity.
MAX_TAPS = len(_POINTS) + 2 - _TILE
_JAX_IS_OLD = jax.__version_info__ < (0, 11)


def _matrices(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what makes k taps of n = k + 3 pixels and 4 gradients, one side.

  Polynomials are multiplied by their values at n points; the transpose of that
  is `to_taps.T @ ((of_pixels @ x) * (of_gradients @ grad))`, the correlation.

  Args:
    taps: k, of the kernel.

  Returns:
    (of_pixels f64[n, n], of_gradients f64[n, 4], to_taps f64[n, k]).
  """
  size = taps + _TILE - 1

  def values(length):
    finite = np.vander(_POINTS[: size - 1], length, increasing=True)
    return np.vstack([finite, np.eye(length)[-1]])

  of_pixels = np.linalg.inv(values(size)).T
  # Its zeros are zeros again: `_combine` leaves them out.
  return of_pixels.round(12), values(_TILE), values(taps)


def correlate(
  x: jax.Array, grad: jax.Array, *, pad: int, dilation: int = 1
) -> jax.Array:
  """Returns the sums over images and pixels of x, shifted, times grad.

  Args:
    x: f32[B, H, W, C].
    grad: f32[B, H + 2 * pad - r, W + 2 * pad - r, D], where taps reach over
      r = dilation * (k - 1) pixels, and k <= `MAX_TAPS`.
    pad: Zeros on each side of x, pixels.
    dilation: Distance between taps, pixels.

  Returns:
    f32[C, k, k, D], by tap.
  """
  chex.assert_rank([x, grad], 4)
  batch, height, width, c_in = x.shape
  _, *sides, c_out = grad.shape
  reach = height + 2 * pad - sides[0]
  taps = reach // dilation + 1
  chex.assert_scalar_in(taps, 1, MAX_TAPS)
  chex.assert_equal(reach % dilation, 0)
  chex.assert_shape(grad, (batch, None, width + 2 * pad - reach, None))
  of_pixels, of_gradients, to_taps = _matrices(taps)
  block = _TILE * dilation  # Whose pixels are tiles, interleaved.
  rows, columns = (-(-side // block) for side in sides)  # Of blocks.
  row_bytes = 4 * batch * block * width * c_in
  band_rows = min(rows, max(1, _BAND_BYTES // row_bytes))
  bands = -(-rows // band_rows)  # All of them whole.
  size = len(of_pixels)

  def transform(array, matrix, band, before):
    """[M, M, B, rows, dilation, columns, dilation, C], of a band's tiles."""
    more = -(-(matrix.shape[1] - _TILE) // _TILE)  # Blocks that tiles reach to.
    top = band * band_rows * block - before
    sides = (block * (band_rows + more), block * (columns + more))
    pixels = patches.window(array, top, before=before, sides=sides)
    by_row = _transform(pixels, matrix, 1, band_rows, dilation)
    return _transform(by_row, matrix, 4, columns, dilation)

  def add_band(band, total):
    factors = [
      transform(x, of_pixels, band, pad), transform(grad, of_gradients, band, 0)
    ]  # fmt: skip
    points, tiles = (0, 1), (2, 3, 4, 5, 6)
    if _JAX_IS_OLD:  # It is slow at laying out the first factor for this.
      factors = [y.reshape(size**2, -1, y.shape[-1]) for y in factors]
      points, tiles = (0,), (1,)
    products = lax.dot_general(*factors, ((tiles, tiles), (points, points)))
    return total + products.reshape(total.shape)

  # Zeros that wait for the gradient: else XLA makes them first of all.
  zero, grad = lax.optimization_barrier((jnp.zeros((), x.dtype), grad))
  total = jnp.full((size, size, c_in, c_out), zero)
  total = lax.fori_loop(0, bands, add_band, total)
  total = jnp.stack(_combine(to_taps.T, total), axis=1)  # [size, k, C, D].
  return jnp.stack(_combine(to_taps.T, total)).transpose(2, 0, 1, 3)


def _transform(
  x: jax.Array, matrix: np.ndarray, axis: int, blocks: int, dilation: int
) -> jax.Array:
  """Returns one side of every tile times the matrix.

  Args:
    x: [..., S, ...], S whole blocks of `_TILE * dilation` pixels.
    matrix: [M, N], for tiles whose side has N pixels.
    axis: Of S.
    blocks: Whose tiles are returned; others are only reached into.
    dilation: Distance between the pixels of a tile, and number of tiles that
      begin in a block.

  Returns:
    [M, ..., blocks, dilation, ...].
  """
  shape = (*x.shape[:axis], -1, _TILE, dilation, *x.shape[axis + 1 :])
  x = x.reshape(shape)
  parts = []
  for i in range(matrix.shape[1]):
    part = lax.slice_in_dim(x, i // _TILE, i // _TILE + blocks, axis=axis)
    parts.append(lax.index_in_dim(part, i % _TILE, axis + 1, keepdims=False))
  # Fused, it would be computed many times.
  return lax.optimization_barrier(jnp.stack(_combine(matrix, parts)))


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns the matrix times a vector of arrays, leaving out its zeros."""
  return [
    sum(
      float(factor) * part
      for factor, part in zip(row, parts, strict=True)
      if factor
    )
    for row in matrix
  ]
