"""Where the inputs of a network's convolutions lie, for 8 bits.

The photographs of the package are what a network sees to learn that: as they
are, blurred and noisy, so that it serves all tasks. Each grid is the one that
rounds the values seen with the least squared error: a wider one rounds all of
them more, a narrower one clips the largest.

What is as sharp as text makes values several times as large. It is seen too, as
photographs of black and white, but counts for little: else all other pictures
would be rounded several times as much.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from pynas_jax.data import blur
from pynas_jax.data import degrade
from pynas_jax.data import sources
from pynas_jax.genotype import Genotype
from pynas_jax.nn import quantization
from pynas_jax.nn.quantization import Grid
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

CROP = 192  # Pixels a side, of the middle of a photograph.
VALUES = 1 << 14  # Of a feature map, of each crop.
BINS = 16 * quantization.LEVELS  # Of a histogram of values.
SHARES = np.linspace(0.1, 1.05, 39)  # Of the range of the values seen.
KERNEL_SIZE, SIGMA = 13, 25.0  # Of blur, pixels, and of noise, of 255.
WEIGHT_OF_TEXT = 0.003  # Of what is as sharp; a photograph has 1.
EVENNESS = 0.5  # Of channels: 0 leaves them as they are, 1 is as wide all.


def crops() -> tuple[np.ndarray, np.ndarray]:
  """Returns photographs, f32[N, H, W, 3], and their weights, f32[N]."""
  rng = np.random.default_rng(0)
  found, weights = [], []
  for split in sources.PHOTOS:
    photos = sources.SharpPhotos(split)
    for i in range(len(photos)):
      sharp = photos[i]['sharp']
      top, left = (side // 2 - CROP // 2 for side in sharp.shape[:2])
      sharp = sharp[top : top + CROP, left : left + CROP] / np.float32(255)
      kernel = blur.random_walk_kernel(rng, size=KERNEL_SIZE, steps=KERNEL_SIZE)
      found += [
        sharp, blur.apply_kernel(sharp, kernel),
        degrade.gaussian_noise(rng, sharp, sigma=SIGMA, quantize=True),
        (sharp > 0.5).astype(np.float32),
      ]  # fmt: skip
      weights += [1, 1, 1, WEIGHT_OF_TEXT]
  return np.stack(found), np.array(weights, np.float32)


def fit(values: np.ndarray, weights: np.ndarray) -> Grid:
  """Returns the grid that rounds values with the least squared error.

  Args:
    values: f32[N, C], of N pixels.
    weights: f32[N, 1], of each of them.
  """
  # Of each channel; none is so narrow that the kernel would suffer.
  reach = np.abs(values * (weights == weights.max())).max(0)
  reach = np.maximum(reach, 1e-3 * reach.max()) if reach.any() else 1 + reach
  widths = (reach / reach.max()) ** EVENNESS
  values = values / widths
  low, high = min(values.min(), 0), max(values.max(), 1e-30)

  counts, edges = np.histogram(
    values, BINS, (low, high), weights=np.broadcast_to(weights, values.shape)
  )
  middles = (edges[1:] + edges[:-1]) / 2

  def squared_error(grid):
    levels = np.rint(middles / grid.scale) + grid.zero
    rounded = (np.clip(levels, 0, quantization.LEVELS) - grid.zero) * grid.scale
    return (counts * np.square(rounded - middles)).sum()

  grids = [Grid.between(share * low, share * high) for share in SHARES]
  best = min(grids, key=squared_error)
  return dataclasses.replace(best, widths=tuple(map(float, widths)))


def calibrate(genotype: Genotype, params: Any) -> list[Grid]:
  """Returns the grid of each convolution's input, in the order of the trace.

  Args:
    genotype: The architecture.
    params: Its float32 parameters.
  """
  network = space_of(genotype).network(genotype)
  rng = np.random.default_rng(0)

  @jax.jit
  def observe(params, image):
    seen = []

    def see(x):
      pixels = x.reshape(-1, x.shape[3])
      count = max(1, VALUES // x.shape[3])
      seen.append(pixels[rng.integers(len(pixels), size=count)])

    with quantization.observing(see):
      base.apply(network, params, image)
    return seen

  images, weights = crops()
  shown = [jax.device_get(observe(params, image[None])) for image in images]
  return [
    fit(np.concatenate(values), np.repeat(weights, len(values[0]))[:, None])
    for values in zip(*shown, strict=True)
  ]
