"""Bicubic resizing as MATLAB's `imresize` does it, as a matrix per side.

Pure NumPy, for the degradation of images and for the skip connection of
super-resolution networks alike.
"""

from __future__ import annotations

import math

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
  """Returns Keys' cubic convolution kernel with a = -0.5."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def bicubic_weights(size: int, scale: float) -> np.ndarray:
  """Returns how every output pixel of a side is made of the input's.

  Args:
    size: Of the input, pixels.
    scale: Factor of the side.

  Returns:
    f64[ceil(size * scale), size], the rows of sum 1.

  >>> bicubic_weights(2, 0.5).tolist()
  [[0.5, 0.5]]
  """
  new_size = math.ceil(size * scale)
  stretch = min(scale, 1.0)  # A wider kernel filters what would alias.
  centres = (np.arange(new_size) + 0.5) / scale - 0.5
  reach = math.ceil(2 / stretch) + 1
  taps = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 1)
  weights = _cubic(stretch * (centres[:, None] - taps))
  weights /= weights.sum(axis=1, keepdims=True)
  taps %= 2 * size  # Reflect: the image, then its mirror image, and so on.
  taps = np.where(taps < size, taps, 2 * size - 1 - taps)
  matrix = np.zeros((new_size, size))
  np.add.at(matrix, (np.arange(new_size)[:, None], taps), weights)
  return matrix
