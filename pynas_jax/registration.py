"""Registration of an output to a sharp picture of another camera.

Images are f32[H, W, 3] in [0, 1]. The pictures of RealBlur are a fraction of a
pixel apart, which costs decibels that no network can win back: papers register
each output to the sharp picture and score where the two overlap.
"""

from __future__ import annotations

import chex
import numpy as np

from pynas_jax import config as config_lib

ITERATIONS = 100  # Of the ECC, as in MPRNet's and Restormer's scoring.


def register(
  image: np.ndarray, sharp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Matches an image's light and place to those of the sharp one.

  The image is scaled by the factor of least squares, then warped by the
  homography of the highest enhanced correlation coefficient.

  Args:
    image: f32[H, W, 3] in [0, 1].
    sharp: f32[H, W, 3] in [0, 1].

  Returns:
    The warped image, f32[H, W, 3], and where it is known: f32[H, W, 1] of 0
    and 1.

  Raises:
    SettingError: If OpenCV is not installed.

  Source: Evangelidis and Psarakis, IEEE PAMI 30(10), 2008; the protocol of
    Rim et al., ECCV 2020.
  """
  try:
    import cv2
  except ImportError:
    raise config_lib.SettingError(
      "data.name is 'realblur', whose scores need OpenCV: pip install "
      "'pynas-jax[video]'."
    ) from None
  chex.assert_equal_shape([image, sharp])
  chex.assert_type([image, sharp], np.float32)
  image = image * np.float32(np.sum(sharp * image) / np.sum(image * image))
  grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (sharp, image)]
  stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
  try:
    _, warp = cv2.findTransformECC(
      *grey, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, stop,
      None, 5,
    )  # fmt: skip
  except cv2.error:  # It did not converge: the image stays where it is.
    warp = np.eye(3, dtype=np.float32)
  height, width, _ = sharp.shape
  warped = cv2.warpPerspective(
    image, warp, (width, height), borderMode=cv2.BORDER_REFLECT,
    flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
  )  # fmt: skip
  mask = cv2.warpPerspective(
    np.ones((height, width), np.float32), warp, (width, height),
    flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
  )  # fmt: skip
  return warped, mask[..., None]
