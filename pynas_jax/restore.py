"""Pictures and videos restored, in one command: sharp, clean or larger.

  python -m pynas_jax.restore -i photo.jpg holiday/ clip.mp4 -o results

Every input becomes `results/{stem}_{suffix}.{ext}`; a folder's subfolders stay.
Pixels are uint8 or uint16 [H, W, C] and come out as the network's `scale` times
as high and wide. What fails is told in a line and the rest goes on. JAX is
loaded only once there is something to restore.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
import os
from pathlib import Path
import re
import signal
import sys
import time
from typing import Any
import warnings

import numpy as np
from PIL import Image

from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import interruption
from pynas_jax import logbook
from pynas_jax.data import files
from pynas_jax.deploy import images
from pynas_jax.deploy import videos

MODELS = Path(__file__).parent / 'models'
BACKENDS = ('auto', 'xla', 'onnxruntime', 'openvino')
_LATEST = 1e9  # Seconds, of a frame: 30 years.


@dataclasses.dataclass(frozen=True)
class Job:
  """A file to restore, and the folder for the result."""

  source: Path
  folder: Path

  @property
  def is_video(self) -> bool:
    return self.source.suffix.lower() in videos.SUFFIXES


class NetworkError(RuntimeError):
  """A network that broke off."""


class _Parser(argparse.ArgumentParser):
  """Raises what is wrong with a flag."""

  def error(self, message: str):
    raise config_lib.SettingError(f'{message}; --help lists the flags.')


def _parser() -> argparse.ArgumentParser:
  program = Path(sys.argv[0])
  is_module = program.suffix == '.py'
  parser = _Parser(
    prog=f'python -m pynas_jax.{program.stem}' if is_module else program.name,
    description='Restores pictures and videos by a network: the one in the box '
    'makes them sharp; others take noise away, say, or enlarge.',
    allow_abbrev=False,
  )
  flag = parser.add_argument
  flag('-i', '--input', '--input_dir', required=True, nargs='+',
       metavar='PATH', action='extend',
       help='pictures, videos and folders of them; or - for raw rgb24 frames '
       'from stdin to stdout, with --size; a network that enlarges writes '
       'larger ones')  # fmt: skip
  flag('-o', '--output', '--result_dir', default='results', metavar='DIR',
       type=Path, help='folder for the results (%(default)s)')  # fmt: skip
  flag('-n', '--model_name', default='fast', metavar='NAME',
       help='a network that comes with the package (%(default)s)')  # fmt: skip
  flag('--model_path', type=Path, metavar='DIR',
       help='your own instead: a release folder, a workdir or a checkpoint')
  flag('-t', '--tile', type=int, default=0, metavar='SIZE',
       help='restore in tiles of so many input pixels a side; 0 is the whole '
       'frame, if there is memory for it (%(default)s)')  # fmt: skip
  flag('--tile_pad', '--tile_overlap', type=int, metavar='PIXELS',
       help='what a tile sees around itself (as much as the network looks at, '
       'or 64)')  # fmt: skip
  flag('--suffix', default='out',
       help="of the results' names; '' is none (%(default)s)")  # fmt: skip
  flag('--ext', default='auto', choices=('auto', *images.EXTENSIONS),
       help='kind of the pictures written; auto is that of each input, and '
       'alpha or 16 bits need PNG (%(default)s)')  # fmt: skip
  kind = parser.add_mutually_exclusive_group().add_argument
  dtype = {'dest': 'dtype', 'action': 'store_const', 'default': 'float32'}
  kind('--fp32', const='float32', **dtype, help='32-bit arithmetic (default)')
  kind('--bf16', const='bfloat16', **dtype, help='16-bit: perhaps faster')
  kind('--int8', const='int8', **dtype, help='8-bit: fastest on most CPUs, '
       'less exact where pictures are all but sharp; by OpenVINO')  # fmt: skip
  flag('--backend', default='auto', choices=BACKENDS,
       help='what runs the network (%(default)s)')  # fmt: skip
  flag('--device', default='auto', metavar='KIND',
       help='cpu, cuda, tpu, or one of several, such as cuda:1 (%(default)s)')
  flag('--recursive', action='store_true', help='subfolders too')
  flag('--overwrite', action='store_true',
       help='replace results that are there, instead of skipping them')
  flag('--compare', action='store_true',
       help='write input and result side by side; the input is enlarged by '
       'bicubic interpolation if the result is larger')  # fmt: skip
  flag('--fps', type=float, metavar='N',
       help='frames a second of restored videos, then without sound; else '
       'every frame keeps its time')  # fmt: skip
  flag('--start', type=float, default=0.0, metavar='S',
       help='where to begin in videos, seconds (%(default)s)')  # fmt: skip
  flag('--end', type=float, default=math.inf, metavar='S',
       help='where to stop in videos, seconds')  # fmt: skip
  flag('--size', metavar='WxH', help='of raw frames, such as 1280x720')
  flag('--max_pixels', type=int, default=images.MAX_PIXELS, metavar='N',
       help='refuse larger pictures, as attacks, and larger results '
       '(%(default)s)')  # fmt: skip
  return parser


def _read_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags, checked.

  Raises:
    SettingError: Names the flag that is wrong.
  """
  # A file such as '-1.mp4' is no flag.
  parser = _parser()
  known = {name for action in parser._actions for name in action.option_strings}
  argv = [
    f'./{arg}' if re.match('-.', arg) and arg not in known
    and os.path.exists(arg) else arg
    for arg in argv
  ]  # fmt: skip
  flags = parser.parse_args(argv)
  require = config_lib.require
  require(flags.tile >= 0, 'tile', flags.tile, '0 or more')
  pad = flags.tile_pad
  require(pad is None or pad >= 0, 'tile_pad', pad, '0 or more')
  require(
    not re.search(r'[/\\\0]', flags.suffix), 'suffix', flags.suffix,
    'part of a file name',
  )  # fmt: skip
  require(
    flags.fps is None or 0.01 <= flags.fps < 1000, 'fps', flags.fps,
    '0.01 or more, below 1000',
  )  # fmt: skip
  end = min(flags.end, _LATEST)
  require(0 <= flags.start < end, 'start', flags.start,
          f'0 or more, below {end:g}, see --end')  # fmt: skip
  require(flags.max_pixels > 0, 'max_pixels', flags.max_pixels, 'above 0')
  out = flags.output
  require(out.is_dir() or not out.exists(), 'output', str(out), 'a folder')
  raw = '-' in flags.input
  require(not raw or len(flags.input) == 1, 'input', flags.input,
          'either - or files')  # fmt: skip
  size = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', flags.size or '')
  require(bool(size) if raw else not flags.size, 'size', flags.size,
          'such as 1280x720 for the input -, and nothing else')  # fmt: skip
  flags.tail = f'_{flags.suffix}' if flags.suffix else ''
  flags.size = size and (int(size[2]), int(size[1]))
  require(not size or math.prod(flags.size) <= flags.max_pixels, 'size',
          size and size[0], f'at most {flags.max_pixels:,} pixels; raise '
          '--max_pixels to allow it')  # fmt: skip
  for name in flags.input if not raw else ():
    require(os.path.exists(name), 'input', name, 'a file or a folder')
  if flags.model_path is None:
    flags.model_path = _bundled(flags.model_name)
  require(flags.model_path.exists(), 'model_path', str(flags.model_path),
          'a release folder, a workdir or a checkpoint')  # fmt: skip
  return flags


def _bundled(name: str) -> Path:
  """Returns the folder of a network that comes with the package."""
  names = sorted(path.parent.name for path in MODELS.glob('*/config.json'))
  if name not in names:
    known = ', '.join(names) or 'none (this package comes without)'
    raise config_lib.SettingError(
      f'model_name is {name!r}; there is {known}. Give your own network by '
      f'--model_path.{genotype_lib.nearest(name, names)}'
    )
  return MODELS / name


def _jobs(flags: argparse.Namespace) -> list[Job]:
  """Returns the files to restore, those of folders in order of their paths."""
  jobs, out = [], flags.output.resolve()
  others: collections.Counter[str] = collections.Counter()
  suffixes = (*files.SUFFIXES, *videos.SUFFIXES)
  for name in map(Path, flags.input):
    if not name.is_dir():
      jobs.append(Job(name, flags.output))
      continue
    walk = name.rglob('*') if flags.recursive else name.iterdir()
    for path in sorted(walk):
      inner = path.relative_to(name)
      if files.is_hidden(inner) or not path.is_file():
        continue
      # Not what an earlier run wrote here; without a suffix its folder tells.
      own = path.resolve().is_relative_to(out) and (
        path.stem.endswith(flags.tail)
        if flags.tail else name.resolve() in out.parents
      )
      if own:
        others['of an earlier run'] += 1
        continue
      if path.suffix.lower() in suffixes:
        jobs.append(Job(path, flags.output / inner.parent))
      else:
        others[path.suffix.lower() or 'without a suffix'] += 1
  if not jobs:
    raise config_lib.SettingError(
      f'input is {", ".join(flags.input)}, where there is no picture or video; '
      f'expected files that end with {", ".join(suffixes)}'
      + ('.' if flags.recursive else ', or --recursive.')
    )
  if others:
    kinds = ', '.join(f'{count} {kind}' for kind, count in others.items())
    _say(f'Files are left out: {kinds}.')
  return list(dict.fromkeys(jobs))


def _open_network(flags: argparse.Namespace, streams: int) -> Any:
  """Returns the Restorer that the flags name."""
  import jax

  from pynas_jax import parallel
  from pynas_jax.deploy import restorer

  if flags.device != 'auto':
    kind, _, index = flags.device.partition(':')
    try:
      device = jax.devices(kind)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
      raise config_lib.SettingError(
        f'device is {flags.device!r}, which is not here: {error}.'
      ) from None
    jax.config.update('jax_default_device', device)
  network = restorer.Restorer.from_pretrained(
    flags.model_path, dtype=flags.dtype, backend=flags.backend, streams=streams
  )
  if (
    flags.dtype == 'bfloat16' and flags.backend == 'auto'
    and network.backend == 'xla' and parallel.device().platform == 'cpu'
  ):  # fmt: skip
    _say('--bf16: of what is installed, only XLA has it on this processor; '
         '--fp32 may be faster.')  # fmt: skip
  return network


class _Enhancer:
  """The network for pixels of any kind, opened when first needed.

  After the first, as many threads may restore at once as there are streams.
  """

  def __init__(self, flags: argparse.Namespace, *, streams: int = 1):
    self._flags, self._streams = flags, streams

  @functools.cached_property
  def _network(self) -> Any:
    from pynas_jax.deploy import tiling  # Loads JAX.

    network = _open_network(self._flags, self._streams)
    return tiling.Tiler(
      network, network.genotype, tile=self._flags.tile,
      pad=self._flags.tile_pad, threads=self._streams, say=_say,
    )  # fmt: skip

  def size(self, height: int, width: int) -> tuple[int, int]:
    """Returns height and width of what is made of a picture."""
    scale = self._network.scale
    return scale * height, scale * width * (2 if self._flags.compare else 1)

  def __call__(self, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Restores u8 or u16[H, W, C]; twice as wide if to be compared."""
    network = self._network
    try:
      restored = images.restore(
        pixels, lambda image: network(image, **options)
      )
    except (MemoryError, RuntimeError) as error:
      reason = str(error).partition('\n')[0]
      raise NetworkError(
        f'the network broke off: {reason}. If memory is short, smaller tiles '
        'need less; see --tile'
      ) from error
    if self._flags.compare:
      height, width = restored.shape[:2]
      given = images.enlarge(pixels, height=height, width=width)
      restored = np.concatenate([given, restored], axis=1)
    return restored


class _Batch:
  """Files restored one after the other, and what became of them."""

  def __init__(self, flags: argparse.Namespace, jobs: Sequence[Job]):
    self._flags, self._jobs = flags, jobs
    self._enhance = _Enhancer(flags)
    self._enhance_frame = _Enhancer(flags, streams=videos.STREAMS)
    self._sources = {job.source.resolve() for job in jobs}
    self._taken: dict[str, Path] = {}
    self.done = self.skipped = self.failed = 0

  def fail(self, job: Job, error: object) -> None:
    self.failed += 1
    _say_failure(f'{job.source}: {error}')

  def target(self, job: Job, suffix: str) -> Path | None:
    """Returns the file to write, or None if it is there already.

    Raises:
      FileExistsError: If it is an input, or the result of another one.
    """
    path = job.folder / f'{job.source.stem}{self._flags.tail}{suffix}'
    key = str(path.resolve())
    other = self._taken.setdefault(key.casefold(), job.source)
    if other != job.source:
      raise FileExistsError(
        f'{path} is the result of {other} already; restore one of them with '
        'another --suffix or --output'
      )
    if Path(key) in self._sources:
      raise FileExistsError(
        f'{path} would be overwritten, which is an input; give another '
        '--suffix or --output'
      )
    if path.exists() and not self._flags.overwrite:
      self.skipped += 1
      _say(f'{job.source}: {path} is there; --overwrite replaces it.')
      return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  def images(self) -> None:
    """Restores the pictures: read, restored and written in a thread each."""
    jobs = [job for job in self._jobs if not job.is_video]
    if not jobs:
      return
    limit = self._flags.max_pixels
    with logbook.progress(len(jobs), 'Restoring pictures') as bar:
      finished = 0

      def tiles(done: int, total: int) -> None:
        bar.update(finished, tiles=f'{done}/{total}')

      def restore(read: Iterator[tuple]) -> Iterator[tuple]:
        for job, path, picture in read:
          if isinstance(picture, images.Picture):
            try:
              size = self._enhance.size(*picture.pixels.shape[:2])
              images.check_size(path.suffix, *size, max_pixels=limit)
              pixels = self._enhance(picture.pixels, on_tile=tiles)
              picture = dataclasses.replace(picture, pixels=pixels)
            except (images.ImageError, NetworkError) as error:
              picture = error
          yield job, path, picture

      # One ahead, as pictures can be large.
      read = videos.ahead(map(self._read, jobs), 1)
      for job, path, picture in videos.ahead(restore(read), 1):
        try:
          if isinstance(picture, Exception):
            raise picture
          if picture is not None:
            images.write(path, picture)
            self.done += 1
            if picture.note:
              _say(f'{job.source}: {picture.note}.')
        except (OSError, ValueError, NetworkError) as error:
          self.fail(job, error)  # ValueError: too large for the format.
        finished += 1
        bar.update(finished)

  def _read(
    self, job: Job
  ) -> tuple[Job, Path | None, images.Picture | Exception | None]:
    """Returns the picture of a job, None to skip it, or what is wrong."""
    limit = self._flags.max_pixels
    try:
      suffix = images.output_suffix(
        job.source, self._flags.ext, max_pixels=limit
      )
      path = self.target(job, suffix)
      picture = path and images.read(job.source, max_pixels=limit)
      return job, path, picture
    except (OSError, images.ImageError) as error:
      return job, None, error

  def videos(self) -> None:
    """Restores the videos."""
    for job in self._jobs:
      if job.is_video:
        try:
          self._video(job)
        except (OSError, NetworkError, videos.VideoError) as error:
          self.fail(job, error)

  def _video(self, job: Job) -> None:
    flags = self._flags
    expected = videos.expected_frames(
      job.source, start=flags.start, end=flags.end
    )
    suffix = videos.output_suffix(job.source, sound=not flags.fps)
    path = self.target(job, suffix)
    if path is None:
      return
    with logbook.progress(expected, f'Restoring {job.source.name}') as bar:
      began = time.monotonic()

      def on_frame(frames: int) -> None:
        nonlocal began
        figures = {}
        if frames > 1:
          pace = (frames - 1) / (time.monotonic() - began)
          figures = {'frames/s': pace}
        else:  # The first one waits for the compiler.
          began = time.monotonic()
        bar.update(min(frames, expected), **figures)

      report = videos.restore_video(
        job.source, path, self._enhance_frame, fps=flags.fps, start=flags.start,
        end=flags.end, on_frame=on_frame,
      )  # fmt: skip
    if report.left_out:
      kinds = ', '.join(sorted(report.left_out))
      _say(f'{job.source}: not kept: {kinds}.')
    faults = [report.fault] if report.fault else []
    if report.repeated:
      text = f'{report.repeated} frames are damaged and show the one before'
      faults.append(text)
    if faults:
      text = (
        f'{", ".join(faults)}; {path} has {report.frames} frames, and stays as '
        'it is unless you --overwrite it'
      )
      self.fail(job, text)
    else:
      self.done += 1


def _say(line: str) -> None:
  """Prints a line that is never wrapped, where the progress bars are."""
  print(line, file=sys.stderr)


def _say_failure(message: object, status: int = 1) -> int:
  """Prints what is wrong; returns the exit status."""
  _say(f'Error: {message}')
  return status


def _run(argv: Sequence[str]) -> int:
  flags = _read_flags(argv)
  # Pillow's own limit must not come before this one.
  Image.MAX_IMAGE_PIXELS = flags.max_pixels
  warnings.simplefilter('ignore', Image.DecompressionBombWarning)
  if flags.size:
    height, width = flags.size
    count = videos.restore_raw(
      sys.stdin.buffer, sys.stdout.buffer, _Enhancer(flags), height=height,
      width=width,
    )  # fmt: skip
    _say(f'{count} frames restored.')
    return 0
  began = time.monotonic()
  batch = _Batch(flags, _jobs(flags))
  batch.images()
  batch.videos()
  _say(
    f'{batch.done} restored, {batch.skipped} skipped, {batch.failed} failed in '
    f'{time.monotonic() - began:.1f} s; results are in {flags.output}.'
  )
  return 1 if batch.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Restores what the flags name.

  Args:
    argv: Flags; those of the command line if None.

  Returns:
    Exit status: 0 done, 1 something failed on the way, 2 a flag is unusable,
    130 stopped.
  """
  try:
    with interruption.stopped_by_sigterm():
      return _run(sys.argv[1:] if argv is None else argv)
  except config_lib.SettingError as error:
    return _say_failure(error, 2)
  except (OSError, NetworkError, videos.VideoError) as error:
    return _say_failure(error)
  except KeyboardInterrupt:
    text = 'stopped; the same command again skips what is done.'
    return _say_failure(text, 128 + signal.SIGINT)
  except ValueError as error:
    # A network that cannot be loaded says why.
    if not type(error).__module__.startswith('pynas_jax.'):
      raise
    return _say_failure(error, 2)


if __name__ == '__main__':
  sys.exit(main())
