"""PSNR and SSIM per image: the only definitions in the package.

Arrays are batches of images f32[B, H, W, C] in [0, 1]; every score is f32[B].
PyNAS section 3.2 reports PSNR and SSIM and defines neither. Ours: the primary
PSNR is of the `quantize`d output, as of a saved 8-bit picture, with the PSNR of
the float output beside it; `ssim` is the usual 2-D one per colour channel, and
`ssim_3d` the one that papers on GoPro quote, as their scripts call MATLAB's
`ssim` on the colour image, which takes it for a volume.
"""

from __future__ import annotations

import chex
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

RADIUS = 5  # Pixels: an 11x11 window, Wang et al. 2004.
WINDOW = 2 * RADIUS + 1
SIGMA = 1.5  # Pixels, likewise.
MAX_PSNR = 100.0  # dB, of equal images where a mean is taken.
C1, C2 = 0.01**2, 0.03**2  # Likewise, for a data range of 1.


def check_pair(restored: Array, sharp: Array) -> None:
  """Raises AssertionError unless both are f[B, H, W, C] of one shape."""
  chex.assert_rank([restored, sharp], 4)
  chex.assert_equal_shape([restored, sharp])
  chex.assert_type([restored, sharp], float)


def _mean(x: Array, mask: Array | None = None) -> Array:
  """Returns f32[B], the mean of each image f32[B, H, W, C].

  A mean of the rows' means: one running float32 sum over millions of pixels
  loses digits.
  """
  if mask is None:
    return x.mean(axis=(2, 3)).mean(axis=1)
  return _mean(x * mask) / _mean(mask)


def quantize(image: Array) -> Array:
  """Returns the image as it comes back from an 8-bit file.

  Args:
    image: f[...] of any range; clipped to [0, 1].

  Returns:
    f32[...]; multiples of 1 / 255.
  """
  chex.assert_type(image, float)
  image = jnp.clip(image.astype(jnp.float32), 0.0, 1.0)
  return jnp.round(image * 255.0) / 255.0


def luminance(image: Array, *, full_range: bool = False) -> Array:
  """Returns the luminance Y of MATLAB's `rgb2ycbcr`, of ITU-R BT.601.

  >>> [round(255 * float(luminance(jnp.full((1, 1, 1, 3), x))[0, 0, 0, 0]))
  ...  for x in (0.0, 1.0)]
  [16, 235]

  Args:
    image: f[B, H, W, 3] in [0, 1].
    full_range: Whether it goes from 0 to 255, so that equal channels stay what
      they are.

  Returns:
    f32[B, H, W, 1].
  """
  chex.assert_shape(image, (None, None, None, 3))
  weights = (65.481, 128.553, 24.966)
  # Not a matrix product, which accelerators may compute in TensorFloat-32.
  colours = sum(w * image[..., i] for i, w in enumerate(weights))
  y = colours / sum(weights) if full_range else (colours + 16.0) / 255.0
  return y[..., None]


def capped(psnr_db: float) -> float:
  """Returns a PSNR that means can be taken of: at most MAX_PSNR.

  >>> capped(31.5), capped(float('inf'))
  (31.5, 100.0)
  """
  return min(psnr_db, MAX_PSNR)


@jax.jit
def psnr(restored: Array, sharp: Array, mask: Array | None = None) -> Array:
  """Returns the peak signal-to-noise ratio for a data range of 1.

  Args:
    restored: f[B, H, W, C]; nothing is clipped or rounded.
    sharp: f[B, H, W, C] in [0, 1].
    mask: f32[B, H, W, 1], 1 where pixels count and 0 elsewhere.

  Returns:
    f32[B], dB; infinite where the images are equal.
  """
  check_pair(restored, sharp)
  error = restored.astype(jnp.float32) - sharp.astype(jnp.float32)
  return -10.0 * jnp.log10(_mean(jnp.square(error), mask))


def _taps() -> np.ndarray:
  """Returns f64[2 * RADIUS + 1], the Gaussian, of sum 1."""
  x = np.arange(-RADIUS, RADIUS + 1)
  taps = np.exp(-0.5 * np.square(x / SIGMA))
  return taps / taps.sum()


def _blur(x: Array, axis: int) -> Array:
  """Filters one axis, keeping only where the window fits, in shifted adds."""
  size = x.shape[axis] - 2 * RADIUS
  taps = _taps()
  # The window is symmetric, so two shifts share one multiplication.
  out = float(taps[RADIUS]) * _shift(x, RADIUS, size, axis)
  for k in range(RADIUS):
    pair = _shift(x, k, size, axis) + _shift(x, 2 * RADIUS - k, size, axis)
    out += float(taps[k]) * pair
  return out


def _shift(x: Array, start: int, size: int, axis: int) -> Array:
  return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


def _blur_channels(x: Array) -> Array:
  """Filters the last axis with replicated ends: a small matrix of weights."""
  channels = x.shape[-1]
  weights = np.zeros((channels, channels))
  for c in range(channels):
    for k, tap in enumerate(_taps()):
      weights[c, np.clip(c + k - RADIUS, 0, channels - 1)] += tap
  # Not a matrix product, which accelerators may compute in TensorFloat-32.
  outs = [
    sum(float(weights[c, k]) * x[..., k] for k in range(channels))
    for c in range(channels)
  ]
  return jnp.stack(outs, axis=-1)


def _similarity(restored: Array, sharp: Array, blur) -> Array:
  """Returns the SSIM map, given the window as a linear filter of images."""
  # Variances do not depend on the mean; float32 keeps more digits around 0.
  x = restored.astype(jnp.float32) - 0.5
  y = sharp.astype(jnp.float32) - 0.5
  mean_x, mean_y, squares, product = blur(
    jnp.stack([x, y, jnp.square(x) + jnp.square(y), x * y])
  )
  covariance = product - mean_x * mean_y
  variances = squares - jnp.square(mean_x) - jnp.square(mean_y)
  mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
  return ((2.0 * mean_x * mean_y + C1) * (2.0 * covariance + C2)) / (
    (jnp.square(mean_x) + jnp.square(mean_y) + C1) * (variances + C2)
  )


@jax.jit
def ssim(restored: Array, sharp: Array, mask: Array | None = None) -> Array:
  """Returns the structural similarity, the mean of the colour channels'.

  Equals scikit-image's `structural_similarity` with `gaussian_weights=True,
  sigma=1.5, use_sample_covariance=False, data_range=1`.

  Args:
    restored: f[B, H, W, C]; H and W at least 11.
    sharp: f[B, H, W, C] in [0, 1].
    mask: f32[B, H, W, 1], 1 where windows around pixels count, 0 elsewhere.

  Returns:
    f32[B], at most 1.

  Raises:
    ValueError: If the window does not fit into the images.

  Source: Wang et al., Image quality assessment, IEEE TIP 2004.
  """
  check_pair(restored, sharp)
  height, width = sharp.shape[1:3]
  if min(height, width) < WINDOW:
    raise ValueError(
      f'ssim got images of {height}x{width}; expected at least '
      f'{WINDOW}x{WINDOW} pixels, the size of its window.'
    )
  blur = lambda x: _blur(_blur(x, 2), 3)  # noqa: E731
  if mask is not None:
    mask = mask[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
  return _mean(_similarity(restored, sharp, blur), mask)


@jax.jit
def ssim_3d(
  restored: Array, sharp: Array, mask: Array | None = None
) -> Array:
  """Returns the structural similarity of the images as H x W x C volumes.

  The window is an 11x11x11 Gaussian, the borders are replicated, and the mean
  goes over every value: what MATLAB's `ssim` does with a colour image.

  Args:
    restored: f[B, H, W, C]; of any size.
    sharp: f[B, H, W, C] in [0, 1].
    mask: f32[B, H, W, 1], as for `ssim`.

  Returns:
    f32[B], at most 1; above `ssim` as a rule.

  Source: the documentation of MATLAB's `ssim`.
  """
  check_pair(restored, sharp)

  def blur(x):
    pad = ((0, 0), (0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0))
    return _blur(_blur(_blur_channels(jnp.pad(x, pad, mode='edge')), 2), 3)

  return _mean(_similarity(restored, sharp, blur), mask)
