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


def correlate(x: jax.Array, grad: jax.Array, *, pad: int) -> jax.Array:
  """Returns the sums over images and pixels of x, shifted, times grad.

  Args:
    x: f32[B, H, W, C].
    grad: f32[B, H + 2 * pad - k + 1, W + 2 * pad - k + 1, D], k <= `MAX_TAPS`.
    pad: Zeros on each side of x, pixels.

  Returns:
    f32[C, k, k, D], by tap.
  """
  chex.assert_rank([x, grad], 4)
  batch, height, width, c_in = x.shape
  _, *sides, c_out = grad.shape
  taps = height + 2 * pad - sides[0] + 1
  chex.assert_scalar_in(taps, 1, MAX_TAPS)
  chex.assert_shape(grad, (batch, None, width + 2 * pad - taps + 1, None))
  of_pixels, of_gradients, to_taps = _matrices(taps)
  rows, columns = (-(-side // _TILE) for side in sides)  # Of tiles.
  row_bytes = 4 * batch * _TILE * width * c_in
  band_rows = min(rows, max(1, _BAND_BYTES // row_bytes))
  bands = -(-rows // band_rows)  # All of them whole.
  x = _cut(x, bands * band_rows, columns, taps=taps, before=pad)
  grad = _cut(grad, bands * band_rows, columns, taps=1, before=0)
  size = len(of_pixels)

  def add_band(band, total):
    factors = [
      _transform(array, matrix, band * band_rows, band_rows, columns)
      for array, matrix in ((x, of_pixels), (grad, of_gradients))
    ]
    points, tiles = (0, 1), (2, 3, 4)
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


def _cut(
  x: jax.Array, rows: int, columns: int, *, taps: int, before: int
) -> jax.Array:
  """Returns x with zeros around, cut into rows of tiles.

  Args:
    x: [B, H, W, C].
    rows: Of tiles.
    columns: Of tiles.
    taps: k, which tiles reach beyond their own pixels for.
    before: Zeros above and left of x, pixels.

  Returns:
    [B, R, 4, 4 * columns + k - 1, C], R as many as the rows reach.
  """
  height = _TILE * (rows + -(-(taps - 1) // _TILE))
  width = _TILE * columns + taps - 1
  pads = [
    (before, side - before - own)
    for side, own in zip((height, width), x.shape[1:3], strict=True)
  ]
  x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
  return x.reshape(len(x), -1, _TILE, *x.shape[2:])


def _transform(
  x: jax.Array, matrix: np.ndarray, first: jax.Array, rows: int, columns: int
) -> jax.Array:
  """Returns both sides of every tile of a band times the matrix.

  Args:
    x: [B, R, 4, W, C], of `_cut`.
    matrix: [M, N], for tiles of N x N pixels, `_TILE` apart.
    first: i32[], row of tiles that the band begins with.
    rows: Of tiles in the band.
    columns: Of tiles.

  Returns:
    [M, M, B, rows, columns, C], column by column.
  """
  size = matrix.shape[1]
  if _JAX_IS_OLD:  # It is slow at sums of slices whose place is not known.
    reach = (size - 1) // _TILE
    x = lax.dynamic_slice_in_dim(x, first, rows + reach, axis=1)
    first = 0
  shape = (x.shape[0], rows, 1, *x.shape[3:])
  parts = [
    lax.dynamic_slice(x, (0, first + i // _TILE, i % _TILE, 0, 0), shape)
    for i in range(size)
  ]
  x = jnp.stack(_combine(matrix, [part[:, :, 0] for part in parts]))
  x = lax.optimization_barrier(x)  # Fused, it would be computed many times.
  span = _TILE * (columns - 1) + 1
  parts = [lax.slice_in_dim(x, i, i + span, _TILE, axis=3) for i in range(size)]
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
