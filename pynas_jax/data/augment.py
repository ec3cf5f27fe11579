"""Augmentation: one draw for all images of a pair.

Pairs are degraded and sharp, [H, W, 3] each. PyNAS section 3.2 and DMPHN crop
at random only; quarter turns and the saturation jitter are SDNet's, of the same
authors as DMPHN; flips are ours, and with turns HiNAS's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# ITU-R BT.601, the grey that Pillow, and so the SDNet code, fades towards.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def random_crop(
  rng: np.random.Generator, images: Sequence[np.ndarray], size: int
) -> np.ndarray:
  """Cuts the same square out of all images.

  Args:
    rng: Source of randomness.
    images: Each u8[H, W, 3].
    size: Side of the crop, pixels.

  Returns:
    f32[N, size, size, 3] in [0, 1].
  """
  height, width, _ = images[0].shape
  y = rng.integers(height - size + 1)
  x = rng.integers(width - size + 1)
  crops = np.stack([image[y : y + size, x : x + size] for image in images])
  return crops.astype(np.float32) / 255


def centre_pair(
  degraded: np.ndarray, sharp: np.ndarray, size: int
) -> list[np.ndarray]:
  """Cuts the same middle out of two images, of which one may be smaller.

  Args:
    degraded: [h, w, C].
    sharp: [H, W, C], larger by a whole factor or as large.
    size: Side of the sharp crop, a multiple of that factor, pixels.

  Returns:
    [s, s, C] and [size, size, C].
  """
  scale = sharp.shape[0] // degraded.shape[0]
  y, x = ((side - size // scale) // 2 for side in degraded.shape[:2])
  return [
    image[k * y : k * y + k * size // scale, k * x : k * x + k * size // scale]
    for image, k in ((degraded, 1), (sharp, scale))
  ]


def turn(
  rng: np.random.Generator, images: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Turns squares by quarters and flips them: eight ways, all as likely.

  Args:
    rng: Source of randomness.
    images: Each [S, S, C], of any side S.

  Returns:
    Views of them.
  """
  quarters, flip = rng.integers(4), 1 - 2 * rng.integers(2)
  return [np.rot90(image, quarters)[:, ::flip] for image in images]


def jitter_saturation(
  rng: np.random.Generator, images: Sequence[np.ndarray], strength: float
) -> list[np.ndarray]:
  """Makes colours stronger or fainter by a factor drawn evenly.

  Args:
    rng: Source of randomness.
    images: Each f32[H, W, 3] in [0, 1].
    strength: The factor is within 1 - strength and 1 + strength.

  Returns:
    Likewise.

  Source: the SDNet code, with a strength of 0.2.
  """
  factor = np.float32(rng.uniform(1 - strength, 1 + strength))
  greys = [(image @ LUMA)[..., None] for image in images]
  return [
    np.clip(grey + factor * (image - grey), 0, 1)
    for image, grey in zip(images, greys, strict=True)
  ]
