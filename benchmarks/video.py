"""Time of a video's frame, decoded, restored and encoded, by the runtime.

  python -m benchmarks.video [--clip=clip.mp4] [--model=fast] [--runs=3]

`overhead` is what reading, converting and writing add to the time of the
network alone, which restores the same frames from memory one by one, in turn
with the video. A video's frames are restored two at a time, which OpenVINO does
in less time: `streams_ms` is that of the network alone when it may do so as
well, and `overhead_of_streams` what the video adds to it. Without a clip, one
is made that pans over a photograph.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent import futures
from fractions import Fraction
import functools
from pathlib import Path
import tempfile

import av
import numpy as np

from benchmarks import measure
from pynas_jax.deploy import backends
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.deploy import videos
from pynas_jax.deploy.backends import Network

RUNTIMES = (
  ('openvino', 'int8'), ('openvino', 'bfloat16'), ('openvino', 'float32'),
  ('onnxruntime', 'float32'), ('xla', 'float32'),
)  # fmt: skip
PAN = 4  # Pixels a frame.


def write_clip(path: Path, *, height: int, width: int, frames: int) -> None:
  """Writes a video in H.264 that pans over a photograph, round and round."""
  photo = np.rint(255 * backends.photograph(height, width)[0]).astype(np.uint8)
  with av.open(str(path), 'w') as output:
    stream = output.add_stream('libx264', rate=Fraction(30))
    stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
    for i in range(frames):
      image = np.ascontiguousarray(np.roll(photo, -PAN * i, axis=1))
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      output.mux(stream.encode(frame))
    output.mux(stream.encode())


def read_clip(path: Path) -> list[np.ndarray]:
  """Returns all frames of a video, u8[H, W, 3]."""
  with av.open(str(path)) as container:
    return [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]


def restore_all(
  restore: Callable[[np.ndarray], np.ndarray],
  frames: list[np.ndarray],
  *,
  threads: int = 1,
) -> None:
  """Restores frames from memory."""
  with futures.ThreadPoolExecutor(threads) as pool:
    collections.deque(pool.map(restore, frames), maxlen=0)


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  parser.add_argument('--clip', type=Path, help='short video, all in memory')
  parser.add_argument('--model', default='fast', help='name or folder')
  parser.add_argument('--frames', type=int, default=60, help='of a made clip')
  parser.add_argument('--height', type=int, default=720, help='pixels')
  parser.add_argument('--width', type=int, default=1280, help='pixels')
  parser.add_argument('--runs', type=int, default=3, help='times all frames')
  args = parser.parse_args()
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    clip, target = args.clip, Path(folder) / 'restored.mp4'
    if clip is None:
      clip = Path(folder) / 'clip.mp4'
      size = {'height': args.height, 'width': args.width}
      write_clip(clip, **size, frames=args.frames)
    frames = read_clip(clip)
    model = restorer_lib.load(args.model)
    for backend, dtype in RUNTIMES:
      network = Network(model.genotype, model.params, dtype)
      if backend not in backends.available(network):
        continue  # Not installed, or not of this type on this processor.
      restore, restore_at_once = (
        restorer_lib.load(
          args.model, backend=backend, dtype=dtype, streams=streams
        )
        for streams in (1, videos.STREAMS)
      )
      medians = measure.median_ms(
        {
          'network': functools.partial(restore_all, restore, frames),
          'streams': functools.partial(
            restore_all, restore_at_once, frames, threads=videos.STREAMS
          ),
          'video': functools.partial(
            videos.restore_video, clip, target, restore_at_once
          ),
        },
        runs=args.runs,
      )
      network_ms, streams_ms, video_ms = (
        ms / len(frames) for ms in medians.values()
      )
      rows.append(
        {'runtime': backend, 'dtype': dtype, 'network_ms': network_ms,
         'streams_ms': streams_ms, 'video_ms': video_ms,
         'frames_per_s': 1e3 / video_ms, 'overhead': video_ms / network_ms - 1,
         'overhead_of_streams': video_ms / streams_ms - 1}
      )  # fmt: skip
  summary = {'clip': str(args.clip or 'a pan'), 'frames': len(frames)}
  summary |= {'height': frames[0].shape[0], 'width': frames[0].shape[1]}
  measure.report('A frame of a video', rows, summary | {'runs': args.runs})


if __name__ == '__main__':
  main()
