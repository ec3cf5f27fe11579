"""Augmentation: one draw for all images of a pair.

Pairs are [N, H, W, 3], degraded and sharp. PyNAS section 3.2 and DMPHN crop at
random only; quarter turns and the saturation jitter are SDNet's, of the same
authors as DMPHN; flips are ours.
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


def centre_crop(pair: np.ndarray, size: int) -> np.ndarray:
  """Returns the middle [N, size, size, C] of [N, H, W, C]."""
  y = (pair.shape[1] - size) // 2
  x = (pair.shape[2] - size) // 2
  return pair[:, y : y + size, x : x + size]


def turn(rng: np.random.Generator, pair: np.ndarray) -> np.ndarray:
  """Turns squares by quarters and flips them: eight ways, all as likely.

  Args:
    rng: Source of randomness.
    pair: [N, S, S, C].

  Returns:
    A view [N, S, S, C].
  """
  pair = np.rot90(pair, rng.integers(4), axes=(1, 2))
  return pair[:, :, :: 1 - 2 * rng.integers(2)]


def jitter_saturation(
  rng: np.random.Generator, pair: np.ndarray, strength: float
) -> np.ndarray:
  """Makes colours stronger or fainter by a factor drawn evenly.

  Args:
    rng: Source of randomness.
    pair: f32[N, H, W, 3] in [0, 1].
    strength: The factor is within 1 - strength and 1 + strength.

  Returns:
    f32[N, H, W, 3] in [0, 1].

  Source: the SDNet code, with a strength of 0.2.
  """
  factor = np.float32(rng.uniform(1 - strength, 1 + strength))
  grey = (pair @ LUMA)[..., None]
  return np.clip(grey + factor * (pair - grey), 0, 1)
