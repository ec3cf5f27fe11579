"""Training losses by name.

Functions of batches f[B, H, W, C] of images in [0, 1] to a scalar f32[]; they
compute in float32 whatever the network computes in. PyNAS section 3.2 trains
with the mean squared error.
"""

from __future__ import annotations

from collections.abc import Callable

from jax import Array
import jax.numpy as jnp

from pynas_jax import metrics

EPSILON = 1e-8  # Of a squared error: keeps the gradient finite, caps at 80 dB.
SMOOTHING = 1e-3  # Of an absolute error.
SSIM_WEIGHT = 0.6  # HiNAS section 3.4.
SSIM_FLOOR = 1e-3  # Keeps the logarithm finite.


def _errors(restored: Array, sharp: Array) -> Array:
  """Returns f32[B], the mean squared error of each image."""
  metrics.check_pair(restored, sharp)
  error = restored.astype(jnp.float32) - sharp.astype(jnp.float32)
  return jnp.square(error).mean(axis=(1, 2, 3))


def mse(restored: Array, sharp: Array) -> Array:
  """Returns the mean squared error.

  Args:
    restored: f[B, H, W, C].
    sharp: f[B, H, W, C] in [0, 1].

  Returns:
    f32[].

  Source: PyNAS section 3.2.
  """
  return _errors(restored, sharp).mean()


def negative_psnr(restored: Array, sharp: Array) -> Array:
  """Returns minus the mean PSNR: every image counts, however bad it is.

  Args:
    restored: f[B, H, W, C].
    sharp: f[B, H, W, C] in [0, 1].

  Returns:
    f32[], dB; at least -80, where the gradient is 0.

  Source: ours; the logarithm of the error that image restoration scores.
  """
  return 10.0 * jnp.log10(_errors(restored, sharp) + EPSILON).mean()


def charbonnier(restored: Array, sharp: Array) -> Array:
  """Returns the mean absolute error, smooth at 0.

  Unlike 'psnr', it lets pairs that hardly differ be: their PSNR would change
  most, and drown what the blurred ones have to teach.

  Args:
    restored: f[B, H, W, C].
    sharp: f[B, H, W, C] in [0, 1].

  Returns:
    f32[], at least SMOOTHING.

  Source: Charbonnier et al., ICIP 1994; the constant of MPRNet.
  """
  metrics.check_pair(restored, sharp)
  error = restored.astype(jnp.float32) - sharp.astype(jnp.float32)
  return jnp.sqrt(jnp.square(error) + SMOOTHING**2).mean()


def mse_ssim(
  restored: Array, sharp: Array, *, weight: float = SSIM_WEIGHT
) -> Array:
  """Returns the mean squared error and the logarithm of 1 / SSIM.

  Args:
    restored: f[B, H, W, C]; H and W at least 11.
    sharp: f[B, H, W, C] in [0, 1].
    weight: Of the logarithm.

  Returns:
    f32[].

  Source: HiNAS Eq. 7.
  """
  similarity = metrics.ssim(restored, sharp)
  # It may be negative; there, the error alone shows the way.
  log = -jnp.log10(jnp.maximum(similarity, SSIM_FLOOR)).mean()
  return mse(restored, sharp) + weight * log


def mse_ssim_code(restored: Array, sharp: Array) -> Array:
  """Returns `mse_ssim` as HiNAS's code has it in the search.

  Args:
    restored: f[B, H, W, C]; H and W at least 11.
    sharp: f[B, H, W, C] in [0, 1].

  Returns:
    f32[].
  """
  return 0.5 * mse_ssim(restored, sharp, weight=0.5)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
  'mse': mse,
  'psnr': negative_psnr,
  'charbonnier': charbonnier,
  'mse_ssim': mse_ssim,
  'mse_ssim_code': mse_ssim_code,
}
