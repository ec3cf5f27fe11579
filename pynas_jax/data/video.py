"""Frames of a video file, and its shots, by PyAV.

Frames are RGB uint8[H, W, 3], upright. Needs OpenCV, of the extra 'video'.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
import contextlib
import pathlib

import av
import numpy as np

from pynas_jax import config as config_lib

try:
  import cv2
except ImportError:  # An extra; `make_pairs` says how to get it.
  cv2 = None

# Colours of neighbouring frames of one shot overlap by 86% or more in videos of
# moving cameras, those of different shots by 74% at most.
CUT = 0.2


class BrokenVideo(Exception):  # noqa: N818
  """A video that cannot be decoded from here on; the message says why."""


def decode(path: pathlib.Path) -> Iterator[av.VideoFrame]:
  """Yields the frames of a video; raises BrokenVideo where there are no more.

  The file is read by the protocol 'file', as a name can look like another one.
  """
  try:
    with av.open(f'file:{path}') as container:
      if not container.streams.video:
        raise BrokenVideo('it has no video stream')
      stream = container.streams.video[0]
      packets = 0
      for packet in container.demux(stream):
        if packet.is_corrupt:
          raise BrokenVideo('its data are damaged')
        packets += packet.size > 0
        yield from packet.decode()
      if packets < stream.frames:
        raise BrokenVideo(f'{packets} of {stream.frames} packets are there')
  except av.FFmpegError as error:
    raise BrokenVideo(error.strerror) from error


def pixels(frame: av.VideoFrame) -> np.ndarray:
  """Returns u8[H, W, 3], upright."""
  image = np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90)
  return np.ascontiguousarray(image)


def first_frame(path: pathlib.Path) -> np.ndarray:
  """Returns u8[H, W, 3]; raises a SettingError if there is none."""
  if not path.is_file():
    raise config_lib.SettingError(
      f'video {path} is not a file; expected the path of a video.'
    )
  try:
    with contextlib.closing(decode(path)) as frames:
      return pixels(next(frames))
  except StopIteration:
    reason = 'it has no frames'
  except BrokenVideo as error:
    reason = str(error)
  raise config_lib.SettingError(
    f'video {path} cannot be decoded: {reason}. Replace it or leave it out.'
  )


def expected_frames(path: pathlib.Path) -> int:
  """Returns how many frames a container claims or, if silent, may hold."""
  with av.open(f'file:{path}') as container:
    stream = container.streams.video[0]
    seconds = (container.duration or 0) / av.time_base
    return stream.frames or round(seconds * float(stream.average_rate or 0))


def _colours(frame: av.VideoFrame) -> np.ndarray:
  """Returns f32[512], the share of every colour."""
  small = frame.to_ndarray(format='rgb24', width=64, height=36)
  counts = cv2.calcHist([small], [0, 1, 2], None, [8] * 3, [0, 256] * 3)
  return counts.ravel() / counts.sum()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  """Returns how little two histograms overlap: 0 all, 1 not at all."""
  return np.abs(a - b).sum() / 2


def find_shots(
  path: pathlib.Path, count: Callable[[], None]
) -> tuple[list[tuple[int, int]], str | None]:
  """Returns the shots of a video, and what broke it off; counts its frames."""
  starts: list[int] = []
  size = colours = broken = None
  frames = 0
  try:
    for frame in decode(path):
      last_size, last_colours = size, colours
      size, colours = (frame.width, frame.height), _colours(frame)
      if size != last_size or _distance(colours, last_colours) > CUT:
        starts.append(frames)
      frames += 1
      count()
  except BrokenVideo as error:
    broken = str(error)
  return list(zip(starts, [*starts[1:], frames], strict=True)), broken


class Reader:
  """Windows of neighbouring frames of a video, going forward only."""

  def __init__(self, path: pathlib.Path, reach: int):
    self._frames = enumerate(decode(path))  # Opens the file when first used.
    self._reach = reach
    self._recent = collections.deque(maxlen=2 * reach + 1)

  def window(self, centre: int) -> tuple[list[np.ndarray], float | None]:
    """Returns the frames around one, and its time in seconds."""
    while not self._recent or self._recent[-1][0] < centre + self._reach:
      self._recent.append(next(self._frames))
    time = self._recent[self._reach][1].time
    frames = [pixels(frame) for _, frame in self._recent]
    return frames, None if time is None else round(time, 6)
