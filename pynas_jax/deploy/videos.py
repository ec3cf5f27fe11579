"""Video files, in and out, by PyAV: frames are restored, the rest is kept.

Frames are uint8 [H, W, 3] or, of video deeper than 8 bits, uint16; restored
ones may be larger, all by the same factor. Kept are their number and times, the
kind of pixels, the colours' matrix and range, and the sound, packet by packet.
What a phone turned is written upright. Decoding, encoding and each of the
`STREAMS` frames restored at a time have a thread; few frames are in memory.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import dataclasses
from fractions import Fraction
import functools
import heapq
import io
import math
import os
from pathlib import Path
import struct
from typing import BinaryIO

import av
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation
from av.video.reformatter import VideoReformatter
import numpy as np

from pynas_jax.deploy import images

SUFFIXES = (
  '.3g2', '.3gp', '.asf', '.avi', '.f4v', '.flv', '.m2ts', '.m4v', '.mkv',
  '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.mxf', '.ogv', '.qt', '.ts', '.vob',
  '.webm', '.wmv',
)  # fmt: skip
# MP4 tells times exactly; these are kept as they are, or hold what MP4 cannot.
_OUTPUT = {'.mkv': '.mkv', '.webm': '.mkv', '.mov': '.mov', '.m4v': '.m4v'}
_MUXERS = {'.mkv': 'matroska', '.mov': 'mov', '.m4v': 'mp4', '.mp4': 'mp4'}
_TAGS = {'language', 'title', 'handler_name'}  # Of a stream, kept.
# What FFmpeg calls kinds of files. Phones keep place and time in tags of these.
_TAGGED = ('mov', 'mp4')
# Of broadcasts: times begin anywhere, and seeking finds no frame to begin with.
_BROADCAST = ('mpegts', 'mpeg')
_MATROSKA = 'matroska,webm'
_CODEC = 'libx264'
_MAX_SIDE = 16_384  # Pixels, of its frames.
_MAX_BITS = 10  # Of its colours.
# Hardly to be told from the frames, and encoded faster than they are restored.
_OPTIONS = {'crf': '16', 'preset': 'veryfast'}
# Without the last two, FFmpeg darkens a frame by a level on its way to RGB and
# back; with them and BILINEAR, it makes noise of 10 bits.
_EXACT = (
  Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND
  | Interpolation.FULL_CHR_H_INT
)
# FFmpeg's numbers: matrices and ranges.
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6
_LIMITED, _FULL = 1, 2
_MAX_BT601 = (576, 1279)  # Height and width.
# FFmpeg's number of a matrix -> PyAV's, where they differ.
_MATRICES = {6: 5}
_HDR = (
  SideDataType.MASTERING_DISPLAY_METADATA,
  SideDataType.CONTENT_LIGHT_LEVEL,
)
SLACK = 1.0  # Seconds of a video's stated length that need not be there.
DEPTH = 2  # Frames that a thread may be ahead of the next one.
STREAMS = 2  # Frames restored at once: no core waits for the last of a layer.

Enhance = Callable[[np.ndarray], np.ndarray]


class VideoError(ValueError):
  """A video that cannot be restored; the message says why, not which."""


@dataclasses.dataclass
class Report:
  """What became of a video.

  Attributes:
    frames: Frames written.
    repeated: Those of them that could not be decoded, and are the one before.
    fault: Why not all of it was read; '' if it was.
    left_out: Kinds of things that are not kept.
  """

  frames: int = 0
  repeated: int = 0
  fault: str = ''
  left_out: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class _Pose:
  """How frames are to be shown: transposed first, and mirrored then."""

  transposed: bool = False
  left_right: bool = False
  up_down: bool = False

  @classmethod
  def of(cls, frame: av.VideoFrame) -> _Pose:
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
      return cls()
    # A pixel at x, y is shown at a x + c y, b x + d y.
    a, b, _, c, d, *_ = struct.unpack('<9i', bytes(data))
    if abs(a) + abs(d) < abs(b) + abs(c):
      return cls(True, c < 0, b < 0)
    return cls(False, a < 0, d < 0)

  def show(self, image: np.ndarray) -> np.ndarray:
    """Returns a picture, [H, W, C], as it is to be seen."""
    image = image.swapaxes(0, 1) if self.transposed else image
    image = image[:, ::-1] if self.left_right else image
    image = image[::-1] if self.up_down else image
    return np.ascontiguousarray(image)


@dataclasses.dataclass(frozen=True)
class _Look:
  """How frames are stored: pixels, and FFmpeg's numbers of their colours."""

  format: av.VideoFormat
  pose: _Pose
  matrix: int
  range: int
  primaries: int
  transfer: int

  @classmethod
  def of(cls, frame: av.VideoFrame, pose: _Pose) -> _Look:
    matrix, range_ = frame.colorspace, frame.color_range
    small = frame.height <= _MAX_BT601[0] and frame.width <= _MAX_BT601[1]
    if matrix == _UNSPECIFIED and small:
      matrix = _BT601  # As players guess, but not once it is enlarged.
    if frame.format.is_rgb:
      matrix, range_ = _BT709, _LIMITED
    elif len(frame.format.components) == 1:
      range_ = _FULL  # FFmpeg takes gray for that, whatever it is tagged.
    return cls(
      frame.format, pose, matrix, range_, frame.color_primaries, frame.color_trc
    )  # fmt: skip

  @property
  def deep(self) -> bool:
    return max(part.bits for part in self.format.components) > 8

  @property
  def array(self) -> str:
    """The format of frames in memory."""
    return 'rgb48le' if self.deep else 'rgb24'

  @property
  def planes(self) -> str:
    """The same in planes, to which FFmpeg converts YUV faster."""
    if self.format.is_rgb:
      return self.array
    return 'gbrp16le' if self.deep else 'gbrp'

  def stored(self, height: int, width: int) -> str:
    """Returns the encoder's format that is most like this one."""
    bits = '10le' if self.deep else ''
    if len(self.format.components) == 1 and not self.format.is_rgb:
      return f'gray{bits}'
    share = (self.format.chroma_width(64), self.format.chroma_height(64))
    chroma = {(32, 32): '420', (32, 64): '422'}.get(share, '444')
    # The encoder halves no odd number.
    if width % 2 or (chroma == '420' and height % 2):
      chroma = '444'
    return f'yuv{chroma}p{bits}'


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A frame at a time, counted in the stream's units."""

  time: int
  duration: int
  image: np.ndarray | None = None  # None if it could not be decoded.
  look: _Look | None = None


def _lost(frame: av.VideoFrame) -> Iterator[str]:
  """Yields what a frame has and H.264 of ours has not."""
  if frame.interlaced_frame:
    yield 'interlacing'
  if any(part.is_alpha for part in frame.format.components):
    yield 'alpha'
  if any(part.bits > _MAX_BITS for part in frame.format.components):
    yield f'more than {_MAX_BITS} bits'
  if any(frame.side_data.get(kind) is not None for kind in _HDR):
    yield 'HDR metadata'


def _has_image(item: _Frame | av.Packet) -> bool:
  return isinstance(item, _Frame) and item.image is not None


def ahead(items: Iterable, depth: int = DEPTH) -> Iterator:
  """Yields items that are made in a thread, `depth` of them in advance.

  >>> list(ahead(x * x for x in range(4)))
  [0, 1, 4, 9]
  """
  items, end = iter(items), object()
  pool = futures.ThreadPoolExecutor(1)
  try:
    made = collections.deque(
      pool.submit(next, items, end) for _ in range(depth)
    )
    while (item := made.popleft().result()) is not end:
      made.append(pool.submit(next, items, end))
      yield item
  finally:
    pool.shutdown(cancel_futures=True)


def output_suffix(path: Path, *, sound: bool = True) -> str:
  """Returns the suffix of the video to write.

  Args:
    path: A video.
    sound: Whether its sound is to be kept, which not every kind of file holds.

  Raises:
    VideoError: If it cannot be read.
  """
  usual = _OUTPUT.get(path.suffix.lower(), '.mp4')
  with _opened(path) as container:
    streams = list(container.streams.audio) if sound else []
    kinds = (usual, '.mov', '.mkv')
    return next((kind for kind in kinds if _holds(kind, streams)), usual)


def _holds(suffix: str, sound: list[av.AudioStream]) -> bool:
  """Returns whether a kind of file can hold streams of sound."""
  contexts = [stream.codec_context for stream in sound]
  if None in contexts:
    return False  # It is of no kind that FFmpeg knows.
  if _MUXERS[suffix] == 'mp4' and any(
    context.name.startswith('pcm_') for context in contexts
  ):
    return False  # Few play it, and FFmpeg fails if no one names the speakers.
  try:
    with av.open(io.BytesIO(), 'w', format=_MUXERS[suffix]) as output:
      for stream in sound:
        output.add_stream_from_template(stream)
      output.start_encoding()
  except (ValueError, av.FFmpegError):
    return False
  return True


def expected_frames(path: Path, *, start: float, end: float) -> int:
  """Returns about how many frames are between two times, in seconds."""
  with _opened(path) as container:
    stream = _video_of(container)
    seconds = _length(container)
    rate = float(stream.average_rate or 0)
    if seconds and (start > 0 or end < seconds):
      return max(1, round((min(end, seconds) - start) * rate))
    return stream.frames or max(1, round(seconds * rate))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
  """Opens a video; as a file, since a name can look like another protocol."""
  try:
    with av.open(f'file:{path}') as container:
      if not container.streams.video:
        raise VideoError('it has no video stream')
      yield container
  except av.FFmpegError as error:
    raise VideoError(f'it cannot be read: {error.strerror}') from error


def _video_of(container: av.container.InputContainer) -> av.VideoStream:
  """Returns the stream to restore, which is no cover and no preview."""
  return container.streams.best('video')


def _length(container: av.container.InputContainer) -> float:
  """Returns the stated length in seconds; 0 if none is."""
  length = container.duration or 0
  if container.format.name == _MATROSKA:  # It states the end.
    length -= container.start_time or 0
  return max(0, length) / av.time_base


def _converter() -> Callable[..., av.VideoFrame]:
  """Returns a function that changes the format of frames."""
  # One for all frames: each would make tables and threads of its own.
  return functools.partial(
    VideoReformatter().reformat, interpolation=_EXACT, threads=1
  )


class _Decoder:
  """Packets in, frames out; a packet that is damaged yields one without image.
  """

  def __init__(self, stream: av.VideoStream, report: Report):
    self._report = report
    self._context = stream.codec_context
    # Its packets have the times of decoding, and frames those of packets.
    self._is_avi = stream.container.format.name == 'avi'
    self._pose = _Pose()
    self.step = round(1 / (stream.time_base * (stream.average_rate or 25)))
    self._convert = _converter()
    self._due: list[int] = []  # Times of packets whose frames are to come.
    self._failed = 0  # Packets of which there will be none.
    self._last = -self.step

  def decode(self, packet: av.Packet | None) -> Iterator[_Frame]:
    """Yields the frames that a packet completes; None completes the last."""
    if packet is not None and packet.pts is not None:
      heapq.heappush(self._due, packet.pts)
    try:
      decoded = self._context.decode(packet)
    except av.FFmpegError:
      self._failed += 1
      decoded = []
    for frame in decoded:
      yield from self._frames(frame)
    if packet is None:
      for time in sorted(self._due)[: self._failed]:
        yield _Frame(time, self.step)

  def _frames(self, frame: av.VideoFrame) -> Iterator[_Frame]:
    """Yields those that are missing before a frame, and the frame."""
    time = self._last + self.step if frame.pts is None else frame.pts
    if self._is_avi and self._due:
      time = self._due[0]
    while self._due and self._due[0] <= time:
      missing = heapq.heappop(self._due)
      if missing < time and self._failed:
        self._failed -= 1
        yield _Frame(missing, self.step)
    if self._last < 0:  # PyAV frees no frame at once whose side data are read.
      self._report.left_out.update(_lost(frame))
      self._pose = _Pose.of(frame)
    self._last = time
    look = _Look.of(frame, self._pose)
    try:
      image = self._convert(frame, format=look.planes).to_ndarray()
    except av.FFmpegError as error:
      raise VideoError(
        f'its colours, {frame.format.name} by matrix {look.matrix}, cannot be '
        f'converted: {error.strerror}'
      ) from error
    image = self._pose.show(image)
    yield _Frame(time, frame.duration or self.step, image, look)


def _read(
  container: av.container.InputContainer,
  copied: list[av.AudioStream],
  report: Report,
  *,
  start: float,
  end: float,
) -> Iterator[_Frame | av.Packet]:
  """Yields the frames between two times, and the packets of other streams."""
  video = _video_of(container)
  decoder = _Decoder(video, report)
  origin = (container.start_time or 0) / av.time_base
  length = _length(container)
  reading = {video, *copied}
  if len(reading) <= len(container.streams.audio):  # Some of it is left out.
    lengths = [float((x.duration or 0) * x.time_base) for x in reading]
    length = min(length, max(lengths)) if all(lengths) else 0.0
  if start > 0 and container.format.name not in _BROADCAST:
    container.seek(int((origin + start) * av.time_base))

  def seconds(time: int | None, unit: Fraction) -> float:
    return start if time is None else float(time * unit) - origin

  def is_inside(time: int | None, unit: Fraction) -> bool:
    # Sound begins before 0, with what its decoder needs first.
    now = seconds(time, unit)
    return (not start or start <= now) and now < end

  def inside(frames: Iterable[_Frame]) -> Iterator[_Frame]:
    for frame in frames:
      if is_inside(frame.time, video.time_base):
        yield frame

  packets, reached = 0, 0.0
  try:
    for packet in container.demux(*reading):
      if not packet.size:
        continue  # The end of a stream.
      unit = packet.time_base
      time = packet.dts if packet.pts is None else packet.pts
      duration = (packet.duration or 0) * unit
      reached = max(reached, seconds(time, unit) + duration)
      # Frames are not stored in the order of their times, but of these.
      if seconds(packet.dts, unit) >= end:
        reading.discard(packet.stream)
      if not reading:
        break
      if packet.stream is video:
        packets += 1
        yield from inside(decoder.decode(packet))
      elif is_inside(time, unit):
        yield packet
    else:
      # AVI counts frames that it leaves out, too, and MP4 those cut away.
      is_counted = not start and container.format.name != 'avi'
      is_short = reached < length - 2 * decoder.step * video.time_base
      if is_counted and is_short and packets < video.frames:
        report.fault = f'{packets} of {video.frames} frames are there'
      elif reached < length - SLACK:
        report.fault = f'it ends after {reached:.2f} of {length:.2f} seconds'
  except av.FFmpegError as error:
    report.fault = f'it breaks off: {error.strerror}'
  yield from inside(decoder.decode(None))


class _Encoder:
  """Writes frames of the size of the first one, and packets of other streams.
  """

  def __init__(
    self,
    output: av.container.OutputContainer,
    container: av.container.InputContainer,
    copied: list[av.AudioStream],
    report: Report,
    *,
    fps: float | None,
    start: float,
  ):
    self._output, self._report, self._begin = output, report, start
    if start or container.format.name in _BROADCAST:
      self._begin += (container.start_time or 0) / av.time_base
    self._source, self._copied = _video_of(container), copied
    self._rate = fps and Fraction(fps).limit_denominator(1001 * 60)
    self._unit = 1 / self._rate if self._rate else self._source.time_base
    self._convert = _converter()
    self._video: av.VideoStream | None = None
    self._sound: dict[av.AudioStream, av.AudioStream] = {}
    self._waiting: list[_Frame | av.Packet] = []  # For the first frame.
    self._shown = _Frame(0, 0)  # The last one that has an image.
    self._last = self._latest = -math.inf  # Times, written and read.
    output.metadata.update(container.metadata)

  def write(self, item: _Frame | av.Packet) -> None:
    """Writes what comes next; all of it once the first image is there."""
    self._waiting.append(item)
    if _has_image(item):
      self._shown = item
      if self._video is None:
        self._video = self._add_video(item)
        self._sound = {each: self._add_sound(each) for each in self._copied}
    if self._video is not None:
      for each in self._waiting:
        (self._frame if isinstance(each, _Frame) else self._packet)(each)
      self._waiting.clear()

  def finish(self) -> None:
    """Writes the frames that the encoder holds back."""
    if self._video is not None:
      self._output.mux(self._video.encode())

  def _packet(self, packet: av.Packet) -> None:
    shift = round(self._begin / packet.time_base)
    packet.pts, packet.dts = (
      None if time is None else time - shift
      for time in (packet.pts, packet.dts)
    )
    packet.stream = self._sound[packet.stream]
    self._output.mux(packet)

  def _frame(self, item: _Frame) -> None:
    self._report.repeated += item.image is None
    look, video = self._shown.look, self._video
    frame = av.VideoFrame.from_ndarray(self._shown.image, format=look.array)
    frame = self._convert(
      frame, format=video.pix_fmt, width=video.width, height=video.height,
      dst_colorspace=_MATRICES.get(look.matrix, look.matrix),
      dst_color_range=look.range,
    )  # fmt: skip
    frame.time_base = self._unit
    if self._rate:
      frame.pts = self._report.frames
    else:
      time = item.time - round(self._begin / self._unit)
      if item.time < self._latest:
        self._report.fault = 'its times jump back, as of videos joined'
      self._latest = max(item.time, self._latest)
      self._last = frame.pts = max(time, self._last + 1)
      frame.duration = item.duration
    self._output.mux(video.encode(frame))
    self._report.frames += 1

  def _add_sound(self, source: av.AudioStream) -> av.AudioStream:
    """Returns the stream for packets of one of the source."""
    stream = self._output.add_stream_from_template(source)
    _copy_tags(source, stream)
    return stream

  def _add_video(self, first: _Frame) -> av.VideoStream:
    """Returns the stream for frames like the first one."""
    height, width = first.image.shape[:2]
    source, look = self._source, first.look
    if max(height, width) > _MAX_SIDE:
      raise VideoError(
        f'its frames become {width}x{height} pixels, and H.264 holds at most '
        f'{_MAX_SIDE} a side; make it smaller before'
      )
    video = self._output.add_stream(
      _CODEC, rate=self._rate or source.average_rate or 25, options=_OPTIONS
    )
    video.width, video.height = width, height
    video.pix_fmt = look.stored(height, width)
    context = video.codec_context
    context.time_base = self._unit
    context.colorspace, context.color_range = look.matrix, look.range
    context.color_primaries, context.color_trc = look.primaries, look.transfer
    shape = source.sample_aspect_ratio
    if shape and shape != 1:
      is_turned = look.pose.transposed
      context.sample_aspect_ratio = 1 / shape if is_turned else shape
    _copy_tags(source, video)
    return video


def _copy_tags(source: av.stream.Stream, stream: av.stream.Stream) -> None:
  """Gives a stream the names of its source, and says if it is to be played."""
  stream.disposition = source.disposition
  for name in _TAGS & source.metadata.keys():
    stream.metadata[name] = source.metadata[name]


def restore_video(
  source: Path,
  target: Path,
  enhance: Enhance,
  *,
  fps: float | None = None,
  start: float = 0.0,
  end: float = math.inf,
  on_frame: Callable[[int], None] = lambda frames: None,
) -> Report:
  """Restores a video.

  Args:
    source: The video.
    target: The new file; written under another name until it is whole.
    enhance: Restores a frame, u8 or u16[H, W, 3], to one of the same type and
      of any size, but the same for all. After the first frame, `STREAMS`
      threads call it at once.
    fps: Frames a second of the new video, which then has no sound; None keeps
      the times of the frames.
    start: Where to begin, seconds.
    end: Where to stop, seconds.
    on_frame: Is told the frames written so far.

  Returns:
    What became of it.

  Raises:
    VideoError: If nothing can be read, or the new file not be written.
  """
  report = Report()
  partial = images.unfinished(target)
  try:
    with _opened(source) as container:
      copied = [
        stream for stream in container.streams.audio
        if not fps and _holds(target.suffix, [stream])
      ]  # fmt: skip
      kept = {_video_of(container), *copied}
      report.left_out |= {x.type for x in container.streams if x not in kept}
      chapters = container.chapters()
      if chapters and (fps or start or end < math.inf):
        report.left_out.add('chapters')  # Their times would be others.
        chapters = []
      items = ahead(_read(container, copied, report, start=start, end=end))
      items = _restore(items, enhance)
      try:
        muxer = _MUXERS[target.suffix]
        options = {'movflags': 'use_metadata_tags'} if muxer in _TAGGED else {}
        with av.open(
          f'file:{partial}', 'w', format=muxer, options=options
        ) as output, contextlib.closing(items):
          output.set_chapters(chapters)
          encoder = _Encoder(
            output, container, copied, report, fps=fps, start=start
          )
          for item in items:
            encoder.write(item)
            on_frame(report.frames)
          encoder.finish()
      except av.FFmpegError as error:
        raise VideoError(f'{target} cannot be written: {error}') from error
    if not report.frames:
      raise VideoError(report.fault or 'it has no frames there')
    os.replace(partial, target)
  finally:
    partial.unlink(missing_ok=True)
  return report


def _restore(
  items: Iterable[_Frame | av.Packet], enhance: Enhance
) -> Iterator[_Frame | av.Packet]:
  """Yields what comes, in order, with restored images."""

  def restore(item: _Frame | av.Packet) -> _Frame | av.Packet:
    if _has_image(item):
      item = dataclasses.replace(item, image=enhance(item.image))
    return item

  pool = futures.ThreadPoolExecutor(STREAMS)
  made: collections.deque[futures.Future] = collections.deque()
  waiting = 0  # Images in `made`.
  is_first = True
  try:
    with contextlib.closing(items):
      for item in items:
        made.append(pool.submit(restore, item))
        waiting += _has_image(item)
        if waiting and is_first:
          made[-1].result()  # It opens the network, for the others too.
          is_first = False
        while made and (waiting == STREAMS + DEPTH or made[0].done()):
          done = made.popleft().result()
          waiting -= _has_image(done)
          yield done
      while made:
        yield made.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def restore_raw(
  source: BinaryIO,
  target: BinaryIO,
  enhance: Enhance,
  *,
  height: int,
  width: int,
) -> int:
  """Restores raw frames of a pipe: rgb24, row by row, one after the other.

  Args:
    source: The pipe that they come from.
    target: The pipe that they go to, in the size that `enhance` returns.
    enhance: Restores a frame, u8[H, W, 3].
    height: Of the frames that come, pixels.
    width: Of the frames that come, pixels.

  Returns:
    The number of frames.

  Raises:
    VideoError: If the last frame is not whole.
  """
  shape = (height, width, 3)

  def read() -> Iterator[np.ndarray]:
    while data := source.read(math.prod(shape)):
      if len(data) < math.prod(shape):
        raise VideoError(
          f'it ends with {len(data)} bytes of a frame of {math.prod(shape)}: '
          f'expected rgb24 of {width}x{height} pixels'
        )
      yield np.frombuffer(data, np.uint8).reshape(shape)

  count = 0
  with contextlib.closing(ahead(map(enhance, ahead(read())))) as frames:
    for frame in frames:
      target.write(frame.tobytes())
      target.flush()
      count += 1
  return count
