"""Motion blur of video: frames averaged over the time that a shutter is open.

Nah et al. (CVPR 2017) film at 240 frames a second and average 7 to 13 frames;
the middle one is the sharp target. Ordinary video is too slow for that and
would show ghosts: its frames between the frames are interpolated from optical
flow first, which is ours, as in Super SloMo (Jiang et al., CVPR 2018) but with
the classical DIS flow (Kroeger et al., ECCV 2016).

Images are RGB uint8[H, W, 3]; flows are float32[H, W, 2], the (x, y) in pixels
from a place in one frame to the same thing in another. Averages are taken in
linear light, value ** gamma. Needs OpenCV, of the extra 'video'.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from pynas_jax import config as config_lib

try:
  import cv2
except ImportError:  # An extra; `make_pairs` says how to get it.
  cv2 = None

MAX_EXPOSURE = 2.0  # Frame intervals: from the frame before to the one after.
MIN_SIDE = 32  # Pixels: the optical flow crashes on some smaller frames.


def optical_flow(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Estimates where everything in one frame is in another.

  Args:
    source: u8[H, W, 3].
    target: u8[H, W, 3].

  Returns:
    f32[H, W, 2], (x, y) in pixels: what is at p in the source is at p + flow[p]
    in the target.

  Raises:
    SettingError: If a side is below MIN_SIDE.

  Source: Kroeger et al., Fast optical flow using dense inverse search, 2016.
  """
  if min(source.shape[:2]) < MIN_SIDE:
    raise config_lib.SettingError(
      f'frame is {source.shape[1]}x{source.shape[0]}; expected at least '
      f'{MIN_SIDE} pixels a side.'
    )
  grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (source, target)]
  dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  return dis.calc(*grey, None)


def centre_flows(
  previous: np.ndarray, centre: np.ndarray, following: np.ndarray
) -> np.ndarray:
  """Returns f32[2, H, W, 2], the flows from a frame to both its neighbours."""
  return np.stack([optical_flow(centre, x) for x in (previous, following)])


def motion_map(flows: np.ndarray) -> np.ndarray:
  """Returns how far every pixel moves.

  >>> motion_map(np.array([[[[3.0, -4.0]]], [[[0.0, 1.0]]]])).tolist()
  [[3.0]]

  Args:
    flows: f32[2, H, W, 2], of `centre_flows`.

  Returns:
    f32[H, W], pixels in a frame interval.
  """
  return np.sqrt(np.square(flows).sum(axis=-1)).mean(axis=0)


def _linear(frame: np.ndarray, gamma: float) -> np.ndarray:
  """Returns f32[H, W, 3], light in [0, 1], of u8[H, W, 3]."""
  table = (np.arange(256, dtype=np.float32) / 255) ** gamma
  return table[frame]


def _encode(light: np.ndarray, gamma: float) -> np.ndarray:
  """Returns u8[H, W, 3] of f32[H, W, 3], light in [0, 1]."""
  values = np.clip(light, 0, 1) ** (1 / gamma)
  return np.rint(255 * values).astype(np.uint8)


def averaged_blur(frames: Sequence[np.ndarray], *, gamma: float) -> np.ndarray:
  """Averages neighbouring frames of fast video in linear light.

  >>> black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255)
  >>> averaged_blur([black, white, black, white], gamma=1.0).tolist()
  [[[128, 128, 128]]]

  Args:
    frames: N of u8[H, W, 3].
    gamma: Exponent that makes values linear in light.

  Returns:
    u8[H, W, 3].

  Source: Nah et al., Deep multi-scale convolutional neural network for dynamic
  scene deblurring, CVPR 2017.
  """
  total = _linear(frames[0], gamma)
  for frame in frames[1:]:  # One by one, as all at once need much memory.
    total += _linear(frame, gamma)
  return _encode(total / len(frames), gamma)


def interpolated_blur(
  previous: np.ndarray,
  centre: np.ndarray,
  following: np.ndarray,
  *,
  exposure: float,
  subframes: int,
  gamma: float,
  flows: np.ndarray | None = None,
) -> np.ndarray:
  """Blurs a frame as if the shutter had been open around it.

  Averages the frame and 2 * `subframes` interpolated ones, at equal times, in
  linear light.

  Args:
    previous: u8[H, W, 3], the frame before.
    centre: u8[H, W, 3], in the middle of the exposure.
    following: u8[H, W, 3], the frame after.
    exposure: Time that the shutter is open, frame intervals, in (0, 2].
    subframes: Interpolated frames on each side of the centre.
    gamma: Exponent that makes values linear in light.
    flows: f32[2, H, W, 2], of `centre_flows`, where they are known already.

  Returns:
    u8[H, W, 3].

  Raises:
    SettingError: If the exposure, subframes or gamma is out of range.

  Source: Jiang et al., Super SloMo, CVPR 2018, Eq. 4 for the flows; frames are
  blended by time alone, as there is no network to tell what is hidden.
  """
  check_blur(exposure, subframes, gamma)
  if flows is None:
    flows = centre_flows(previous, centre, following)
  # Equal parts of the exposure, of which the frame itself has the middle one.
  times = exposure * np.arange(1, subframes + 1) / (2 * subframes + 1)
  total = _linear(centre, gamma)
  light = total.copy()
  for other, to_other in zip((previous, following), flows, strict=True):
    to_centre = optical_flow(other, centre)
    other_light = _linear(other, gamma)
    for t in times.tolist():  # 0 at the centre, 1 at the other frame.
      moved = (1 - t) * to_other - t * to_centre
      total += (1 - t) * _warp(light, -t * moved)
      total += t * _warp(other_light, (1 - t) * moved)
  return _encode(total / (2 * subframes + 1), gamma)


def _warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
  """Fetches every pixel from where the flow points to."""
  height, width = flow.shape[:2]
  # Maps of other types than float32 are refused by OpenCV.
  x = flow[..., 0] + np.arange(width, dtype=np.float32)
  y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
  return cv2.remap(
    image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
  )


def moving_windows(
  motion: np.ndarray, *, size: int, count: int
) -> list[tuple[int, int]]:
  """Finds the square windows with the most motion that do not overlap.

  >>> motion = np.zeros((4, 9))
  >>> motion[1, 2], motion[3, 7] = 5.0, 9.0
  >>> [(y <= 3 < y + 2, x <= 7 < x + 2)
  ...  for y, x in moving_windows(motion, size=2, count=1)]
  [(True, True)]

  Args:
    motion: f[H, W], of `motion_map`.
    size: Side of a window, pixels.
    count: Windows wanted.

  Returns:
    (y, x) of the upper left corners, the most moving first; fewer than `count`
    where no more fit.
  """
  if size > min(motion.shape):
    return []
  sums = np.pad(motion.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
  scores = (
    sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size]
    + sums[:-size, :-size]
  )  # fmt: skip
  found = []
  while len(found) < count and scores.max() > -math.inf:
    y, x = map(int, np.unravel_index(scores.argmax(), scores.shape))
    found.append((y, x))
    top, left = max(0, y - size + 1), max(0, x - size + 1)
    scores[top : y + size, left : x + size] = -math.inf
  return found


def check_blur(exposure: float, subframes: int, gamma: float) -> None:
  """Raises a SettingError for the first of the three that is out of range."""
  config_lib.require(
    0 < exposure <= MAX_EXPOSURE, 'exposure', exposure,
    f'above 0, at most {MAX_EXPOSURE:g} frame intervals',
  )  # fmt: skip
  config_lib.require(subframes >= 1, 'subframes', subframes, '1 or more')
  config_lib.require(0 < gamma < math.inf, 'gamma', gamma, 'a number above 0')
