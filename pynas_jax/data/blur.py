"""Blur synthesis: camera motion as a random walk.

Miao and Zhu (Computer Engineering 47(9), 2021) simulate the trajectory of a
shaken camera by a random walk and rasterise it by nearest-neighbour
interpolation into a blur kernel. How far the walk turns and how its length is
drawn is ours, as their text leaves it open.

Images are float32 [H, W, C] in [0, 1]; kernels are float32 [K, K], K odd.
"""

from __future__ import annotations

import chex
import numpy as np

from pynas_jax import config as config_lib

TURN_SIGMA = 0.4  # Radians per step: smooth, yet bends over a whole exposure.
MIN_REACH = 0.2  # Of the kernel's radius: the mildest blur.
SAMPLES_PER_PIXEL = 4  # Of the trajectory, so that the raster has no gaps.


def random_walk_kernel(
  rng: np.random.Generator, *, size: int, steps: int
) -> np.ndarray:
  """Draws the blur kernel of one exposure of a shaken camera.

  Each step goes on in the direction of the one before plus a random turn. The
  trajectory is moved to put its centroid on the kernel's centre, so that sharp
  and blurred images stay aligned, and scaled to reach a uniformly drawn part of
  the kernel's radius, so that kernels range from mild to strong.

  >>> kernel = random_walk_kernel(np.random.default_rng(0), size=9, steps=16)
  >>> kernel.shape, bool(kernel.min() >= 0), round(float(kernel.sum()), 6)
  ((9, 9), True, 1.0)

  Args:
    rng: Source of randomness.
    size: Side of the kernel K, pixels, odd.
    steps: Steps of the walk; more steps bend it more.

  Returns:
    f32[K, K], not negative, of sum 1.

  Raises:
    SettingError: If `size` is even, or either is below 1.

  Source: Miao and Zhu, 2021 (random walk, nearest neighbour).
  """
  if size < 1 or size % 2 == 0:
    raise config_lib.SettingError(
      f'kernel size is {size}; expected an odd number of pixels.'
    )
  if steps < 1:
    raise config_lib.SettingError(
      f'kernel steps is {steps}; expected 1 or more.'
    )
  turns = rng.normal(0.0, TURN_SIGMA, steps)
  angles = rng.uniform(0.0, 2 * np.pi) + np.cumsum(turns)
  moves = np.stack([np.sin(angles), np.cos(angles)], axis=1)
  corners = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])

  # The camera moves at constant speed: samples at equal times, [T, 2].
  times = np.linspace(0, steps, SAMPLES_PER_PIXEL * max(size, steps) + 1)
  path = np.stack(
    [np.interp(times, np.arange(steps + 1), c) for c in corners.T], axis=1
  )
  path -= path.mean(axis=0)
  radius = size // 2
  reach = rng.uniform(MIN_REACH, 1.0) * radius
  if 0 < reach <= 0.5:  # All of it would be rounded to the centre: no blur.
    reach += 0.5
  path *= reach / np.abs(path).max()

  rows, columns = np.rint(path).astype(int).T + radius
  kernel = np.zeros((size, size), np.float32)
  np.add.at(kernel, (rows, columns), 1.0)
  return kernel / kernel.sum()


def apply_kernel(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Convolves an image with a kernel; borders reflect.

  Sums the shifted images of the kernel's non-zero elements: a trajectory has
  few of them, so this is faster than a Fourier transform.

  Args:
    image: f32[H, W, C].
    kernel: f32[K, K], K odd.

  Returns:
    f32[H, W, C].
  """
  chex.assert_rank([image, kernel], [3, 2])
  chex.assert_type([image, kernel], np.float32)
  height, width, _ = image.shape
  size = kernel.shape[0]
  chex.assert_shape(kernel, (size, size))
  radius = size // 2
  border = (radius, radius)
  padded = np.pad(image, (border, border, (0, 0)), 'reflect')
  total = np.zeros_like(image)
  for i, j in zip(*np.nonzero(kernel), strict=True):
    # Convolution turns the kernel round: element (0, 0) meets the last pixel.
    y, x = size - 1 - i, size - 1 - j
    total += kernel[i, j] * padded[y : y + height, x : x + width]
  return total


def random_ramp(
  rng: np.random.Generator, *, height: int, width: int
) -> np.ndarray:
  """Draws a weight that rises from 0 to 1 across the frame, in any direction.

  A blur that varies is two blurs mixed by it: a turn of the camera moves one
  side of the picture in another way than the other.

  Args:
    rng: Source of randomness.
    height: Pixels.
    width: Pixels.

  Returns:
    f32[H, W, 1] in [0, 1].
  """
  angle = rng.uniform(0.0, 2 * np.pi)
  y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  along = np.sin(angle) * y + np.cos(angle) * x
  return np.clip(0.5 + along / 2, 0, 1).astype(np.float32)[..., None]
