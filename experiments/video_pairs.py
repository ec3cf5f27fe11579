"""Which of the pairs of `pynas_jax.data.make_pairs` experiments learn from."""

from __future__ import annotations

import numpy as np

from pynas_jax import metrics

VALIDATION = ('04_coffee', 'bikes-shot2')  # Scenes of the training videos.
# Of the blurred to the sharp side, in dB: what hardly differs teaches only the
# identity (the loss is a logarithm), and what is all smear teaches nothing.
BLUR_PSNR = (19.0, 34.0)


def is_blurred(psnr: float) -> bool:
  """Tells whether a PSNR in dB is within `BLUR_PSNR`."""
  return BLUR_PSNR[0] < psnr < BLUR_PSNR[1]


def has_blur(blurred: np.ndarray, sharp: np.ndarray) -> bool:
  """Tells whether there is something to learn from a pair, u8[H, W, 3]."""
  images = (x[None] / np.float32(255) for x in (blurred, sharp))
  return is_blurred(float(metrics.psnr(*images)[0]))
