"""Pairs of blurred and sharp images from any video, as GoPro's were made.

  python -m pynas_jax.data.make_pairs --video a.mp4 b.mp4 --out data/pairs

`shutter.py` says how frames are blurred: ordinary video by interpolation, video
of 120 frames a second or more with `--average`, as Nah et al. (CVPR 2017).

What is written is what `data.name: folder` reads: {train,test}/SCENE/{blur,
sharp}/NNNNNN.png, where a scene is one shot of one video. Needs the extra
'video'. This module imports no JAX but in the processes that score the pairs.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process as futures_process
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import threading
from typing import Any

import av
import numpy as np

from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax.data import pair_folder
from pynas_jax.data import shutter
from pynas_jax.data import video as video_lib

try:
  import cv2
except ImportError:  # An extra; `main` says how to get it.
  cv2 = None

MANIFEST, SHEET = 'manifest.json', 'contact_sheet.jpg'
EXPOSURE, SUBFRAMES = 1.0, 8  # Where the flags are not given.
AVERAGES = range(3, 32, 2)
AGAIN = 'The same command again goes on from here.'


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the pairs follow from, besides the videos; flags of the same names."""

  average: int  # 0 interpolates; then the next two count, else they are None.
  exposure: float | None
  subframes: int | None
  gamma: float
  every: int
  max_pairs: int
  crop: int
  crops_per_frame: int
  min_motion: float
  test: list[str] | None  # File names, or None for a fraction at random.
  test_fraction: float
  seed: int

  @property
  def reach(self) -> int:
    """Frames needed before and after a sharp one."""
    return self.average // 2 or 1

  def check(self) -> None:
    """Raises a SettingError for the first setting that is out of range."""
    if self.average:
      config_lib.require(
        self.average in AVERAGES, 'average', self.average,
        f'an odd number of frames, {AVERAGES[0]} to {AVERAGES[-1]}',
      )  # fmt: skip
      config_lib.require(
        0 < self.gamma < math.inf, 'gamma', self.gamma, 'above 0'
      )
    else:
      shutter.check_blur(self.exposure, self.subframes, self.gamma)
    for name in ('every', 'crops_per_frame'):
      value = getattr(self, name)
      config_lib.require(value >= 1, name, value, '1 or more')
    for name in ('max_pairs', 'crop', 'seed'):
      value = getattr(self, name)
      config_lib.require(value >= 0, name, value, '0 or more')
    config_lib.require(
      0 <= self.min_motion < math.inf, 'min_motion', self.min_motion,
      '0 or more pixels in a frame interval',
    )  # fmt: skip
    config_lib.require(
      0 <= self.test_fraction < 1, 'test_fraction', self.test_fraction,
      '0 or more, below 1',
    )  # fmt: skip
    config_lib.require(
      self.crops_per_frame == 1 or self.crop > 0, 'crops_per_frame',
      self.crops_per_frame, '1 for whole frames, or a --crop',
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Video:
  """A video as the manifest keeps it."""

  file: str  # Name without folders.
  bytes: int
  scene: str
  split: str
  frames: int
  shots: list[tuple[int, int]]  # First frame, and the one after the last.
  broken: str | None  # Why no more frames could be decoded.

  def centres(self, every: int, reach: int) -> Iterator[tuple[str, int]]:
    """Yields the scene and index of every frame to make sharp images of."""
    for i, (start, stop) in enumerate(self.shots):
      shot = f'-shot{i + 1}' if len(self.shots) > 1 else ''
      for frame in range(start + reach, stop - reach, every):
        yield self.scene + shot, frame


def scene_names(stems: Sequence[str]) -> list[str]:
  """Returns names for folders, all different, like those of the videos.

  >>> scene_names(['my dog', 'a', '../$(x);', 'A', 'a-shot2'])
  ['my_dog', 'a', '_x_', 'A-2', 'a_shot2']
  """
  names: list[str] = []
  taken: set[str] = set()
  for stem in stems:
    stem = re.sub(r'[^\w.-]+', '_', stem).lstrip('.-') or 'video'
    # Else it could be a shot of another video.
    stem = name = re.sub(r'-shot(\d+)$', r'_shot\1', stem)
    i = 1
    while name.casefold() in taken:  # Some file systems ignore case.
      i += 1
      name = f'{stem}-{i}'
    taken.add(name.casefold())
    names.append(name)
  return names


def _make(
  frames: Sequence[np.ndarray],
  names: Sequence[str],
  facts: Mapping[str, Any],
  settings: Settings,
  out: pathlib.Path,
) -> list[dict[str, Any]]:
  """Writes the pairs of one frame.

  Args:
    frames: 2 * `settings.reach` + 1 of u8[H, W, 3], in the middle the sharp.
    names: Of the pairs wanted, one for each crop.
    facts: What the records of all of them say.
    settings: How to make them.
    out: Folder of all pairs.

  Returns:
    A record for each name. That of a pair left out has no box, and no motion
    if there was no room for another crop.
  """
  middle = settings.reach
  sharp, blurred = frames[middle], None
  neighbours = frames[middle - 1 : middle + 2]
  flows = shutter.centre_flows(*neighbours)
  motion = shutter.motion_map(flows)
  boxes = [(0, 0, *sharp.shape[:2])]
  if settings.crop:
    corners = shutter.moving_windows(
      motion, size=settings.crop, count=len(names)
    )
    boxes = [(y, x, settings.crop, settings.crop) for y, x in corners]
  records = [{'name': name, **facts, 'motion_px': None} for name in names]
  for record, (y, x, h, w) in zip(records, boxes, strict=False):
    part = np.s_[y : y + h, x : x + w]
    moved = float(motion[part].mean())
    record['motion_px'] = round(moved, 3)
    if moved < settings.min_motion:
      continue
    if blurred is None and settings.average:
      blurred = shutter.averaged_blur(frames, gamma=settings.gamma)
    elif blurred is None:
      blurred = shutter.interpolated_blur(
        *neighbours, exposure=settings.exposure, subframes=settings.subframes,
        gamma=settings.gamma, flows=flows,
      )  # fmt: skip
    paths = pair_folder.sides(out, record['name'])
    for path, image in zip(paths, (blurred, sharp), strict=True):
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = cv2.cvtColor(image[part], cv2.COLOR_RGB2BGR)
      pair_folder.write(path, cv2.imencode('.png', pixels)[1].tobytes())
    record['box'] = [y, x, h, w]
    record['psnr_input_db'] = _psnr(blurred[part], sharp[part])
  return records


def _psnr(blurred: np.ndarray, sharp: np.ndarray) -> float | None:
  """Returns dB; None where the images are equal, as JSON knows no infinity."""
  # Not before `_start_worker` has kept JAX off the accelerator.
  import jax

  from pynas_jax import metrics

  with jax.default_device(jax.devices('cpu')[0]):
    images = (x[None].astype(np.float32) / 255 for x in (blurred, sharp))
    score = float(metrics.psnr(*images)[0])
  return round(score, 3) if math.isfinite(score) else None


def _start_worker() -> None:
  """Sets a worker process up: one core, no accelerator, no life of its own."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  cv2.setNumThreads(1)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The main process stops it.
  parent = multiprocessing.parent_process()

  def follow():  # A killed parent cannot stop its workers.
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


class _InProcess(futures.Executor):
  """Does what it is given at once."""

  def submit(self, fn, /, *args):
    future = futures.Future()
    future.set_result(fn(*args))
    return future


def _executor(workers: int) -> futures.Executor:
  if not workers:
    return _InProcess()
  spawn = multiprocessing.get_context('spawn')
  return futures.ProcessPoolExecutor(workers, spawn, _start_worker)


class _Parser(argparse.ArgumentParser):
  """Raises what is wrong with a flag."""

  def error(self, message: str):
    raise config_lib.SettingError(
      f'{message}. A file name that begins with - is given as ./-name; '
      '--help lists the flags.'
    )


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='python -m pynas_jax.data.make_pairs',
    description='Makes pairs of blurred and sharp images from videos. The same '
    'command again goes on where it was stopped.',
    allow_abbrev=False,
  )
  paths = {'nargs': '+', 'action': 'extend', 'type': pathlib.Path}
  flag = parser.add_argument
  flag('--video', required=True, metavar='FILE', **paths, help='the videos')
  flag('--out', required=True, metavar='DIR', type=pathlib.Path,
       help='folder for the pairs')  # fmt: skip
  flag('--exposure', type=float, metavar='T',
       help='time that the shutter is open, frame intervals, above 0 and at '
       f'most {shutter.MAX_EXPOSURE:g} ({EXPOSURE:g})')  # fmt: skip
  flag('--subframes', type=int, metavar='N',
       help='frames interpolated on each side of the sharp one; more where '
       f'things move fast, or they show as dots ({SUBFRAMES})')  # fmt: skip
  flag('--average', type=int, default=0, metavar='N',
       help='for video of 120 frames a second or more: average N frames, odd, '
       f'{AVERAGES[0]} to {AVERAGES[-1]}, and interpolate none')  # fmt: skip
  flag('--gamma', type=float, default=2.2,
       help='value ** gamma is light (%(default)s)')  # fmt: skip
  flag('--test', metavar='FILE', **paths,
       help='the videos that are for testing, instead of some at random. List '
       'all that show one place: the same scene in train/ and test/ makes '
       'scores too good')  # fmt: skip
  flag('--test_fraction', type=float, default=0.1, metavar='F',
       help='part of the videos that is for testing, at least one of two or '
       'more; 0 is none (%(default)s)')  # fmt: skip
  flag('--every', type=int, default=5, metavar='K',
       help='frames from one sharp frame to the next (%(default)s)')
  flag('--max_pairs', type=int, default=0, metavar='N',
       help='most pairs of a video; 0 is all (%(default)s)')  # fmt: skip
  flag('--crop', type=int, default=0, metavar='SIZE',
       help='side of the square part with the most motion, pixels; 0 is the '
       'whole frame (%(default)s)')  # fmt: skip
  flag('--crops_per_frame', type=int, default=1, metavar='N',
       help='such parts of a frame, not overlapping (%(default)s)')
  flag('--min_motion', type=float, default=1.0, metavar='PX',
       help='least mean motion, pixels in a frame interval; what moves less is '
       'left out. Lower it for fast video (%(default)s)')  # fmt: skip
  flag('--seed', type=int, default=0,
       help='of the choice by --test_fraction (%(default)s)')  # fmt: skip
  flag('--workers', type=int, default=os.cpu_count() or 1, metavar='N',
       help='processes; 0 works in this one (%(default)s)')  # fmt: skip
  return parser


def _read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, Settings]:
  """Returns the flags, and what of them the pairs follow from, checked."""
  # No flag but -h has one dash: the rest are files such as '-1.mp4'.
  argv = [
    f'./{arg}' if re.match('-[^-]', arg) and os.path.exists(arg) else arg
    for arg in argv
  ]
  flags = _parser().parse_args(argv)
  for name, default in (('exposure', EXPOSURE), ('subframes', SUBFRAMES)):
    if flags.average and getattr(flags, name) is not None:
      raise config_lib.SettingError(
        f'{name} is {getattr(flags, name)} and average is {flags.average}; '
        'expected one of them: frames are either interpolated or averaged.'
      )
    if not flags.average and getattr(flags, name) is None:
      setattr(flags, name, default)
  values = {
    field.name: getattr(flags, field.name)
    for field in dataclasses.fields(Settings)
  }
  if flags.test is not None:
    values['test'] = sorted(path.name for path in flags.test)
  settings = Settings(**values)
  settings.check()
  config_lib.require(flags.workers >= 0, 'workers', flags.workers, '0 or more')
  return flags, settings


def _check_videos(flags: argparse.Namespace) -> None:
  """Raises a SettingError for the first video that cannot be used."""
  known: dict[pathlib.Path, pathlib.Path] = {}
  for path in flags.video:
    height, width, _ = video_lib.first_frame(path).shape
    least = max(flags.crop, shutter.MIN_SIDE)
    if min(height, width) < least:
      way_out = 'Lower --crop.' if flags.crop > shutter.MIN_SIDE else 'Omit it.'
      raise config_lib.SettingError(
        f'video {path} is {width}x{height}; expected at least {least} pixels a '
        f'side. {way_out}'
      )
    if path.resolve() in known:
      raise config_lib.SettingError(
        f'video {path} is given twice; expected every video once.'
      )
    known[path.resolve()] = path
  for path in flags.test or ():
    if path.resolve() not in known:
      raise config_lib.SettingError(
        f'test is {path}, which is not one of the videos; expected '
        f'{", ".join(map(str, flags.video))}.'
      )


def _splits(flags: argparse.Namespace) -> list[str]:
  """Returns 'train' or 'test' for every video."""
  count = len(flags.video)
  if flags.test is not None:
    named = {path.resolve() for path in flags.test}
    test = [i for i in range(count) if flags.video[i].resolve() in named]
  else:
    wanted = max(1, round(flags.test_fraction * count))
    # One video cannot be split; of more, one is left to train on.
    held = min(wanted, count - 1) if flags.test_fraction > 0 else 0
    rng = np.random.default_rng(flags.seed)
    test = rng.permutation(count)[:held].tolist()
  return ['test' if i in test else 'train' for i in range(count)]


def _open(flags: argparse.Namespace, settings: Settings) -> list[Video]:
  """Reads the manifest of an earlier run, or looks through the videos.

  Raises:
    SettingError: If the folder holds something else.
  """
  out, path = flags.out, flags.out / MANIFEST
  files = [[video.name, video.stat().st_size] for video in flags.video]
  if path.exists():
    try:
      manifest = json.loads(path.read_bytes())
      videos = [Video(**video) for video in manifest['videos']]
      old = manifest['settings']
    except (KeyError, TypeError, ValueError):
      raise config_lib.SettingError(
        f'{path} is not a manifest of pairs; give another --out.'
      ) from None
    old['video'] = [[video.file, video.bytes] for video in videos]
    for name, value in {**dataclasses.asdict(settings), 'video': files}.items():
      if old.get(name) != value:
        raise config_lib.SettingError(
          f'{name} is {value}, but the pairs in {out} were made with '
          f'{old.get(name)}; expected the same, or another --out.'
        )
    for stray in out.rglob('*.tmp'):  # Of a killed run.
      stray.unlink(missing_ok=True)
    return videos
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise config_lib.SettingError(
      f'out is {out}, which is there but holds no {MANIFEST}; expected a new '
      'or empty folder.'
    )
  names = scene_names([video.stem for video in flags.video])
  videos = []
  total = sum(map(video_lib.expected_frames, flags.video))
  seen = itertools.count(1)
  with logbook.progress(total, 'Looking for shots') as bar:
    for i, split in enumerate(_splits(flags)):
      shots, broken = video_lib.find_shots(
        flags.video[i], lambda: bar.update(min(next(seen), total))
      )
      frames = shots[-1][1]
      videos.append(Video(*files[i], names[i], split, frames, shots, broken))
  manifest = {
    'settings': dataclasses.asdict(settings),
    'versions': {x.__name__: x.__version__ for x in (av, cv2, np)},
    'videos': [dataclasses.asdict(video) for video in videos],
  }
  out.mkdir(parents=True, exist_ok=True)
  logbook.write_json(path, manifest)
  return videos


def _make_all(
  flags: argparse.Namespace,
  settings: Settings,
  videos: Sequence[Video],
  journal: pair_folder.Journal,
) -> None:
  """Makes all pairs that are missing."""
  plan = [list(v.centres(settings.every, settings.reach)) for v in videos]
  most = settings.max_pairs or math.inf
  made = [0] * len(videos)  # Pairs of each video.
  pending: collections.deque[tuple[int, int, futures.Future]] = (
    collections.deque()
  )
  position = 0  # Among the frames of all videos.

  with (
    logbook.progress(sum(map(len, plan)), 'Making pairs') as bar,
    _executor(flags.workers) as executor,
  ):

    def finish() -> None:
      i, place, future = pending.popleft()
      made[i] += journal.add(future.result())
      bar.update(place, pairs=sum(made))

    for i, (video, path) in enumerate(zip(videos, flags.video, strict=True)):
      reader = video_lib.Reader(path, settings.reach)
      end = position + len(plan[i])
      for scene, frame in plan[i]:
        position += 1
        # Never more at once than memory holds, or than may all be kept: what is
        # made does not depend on who is first.
        while pending and (
          len(pending) > flags.workers + 1
          or made[i] + settings.crops_per_frame
          * (1 + sum(j == i for j, _, _ in pending)) > most
        ):  # fmt: skip
          finish()
        count = min(settings.crops_per_frame, most - made[i])
        if count <= 0:
          break
        stem = f'{video.split}/{scene}/{frame:06}'
        names = (stem,)
        if settings.crop:
          names = tuple(f'{stem}_{k}' for k in range(count))
        records = journal.find(names)
        if records is not None:
          made[i] += sum('box' in record for record in records)
          continue
        frames, time = reader.window(frame)
        facts = {
          'split': video.split, 'video': video.file, 'frame': frame,
          'time_s': time,
        }  # fmt: skip
        future = executor.submit(
          _make, frames, names, facts, settings, flags.out
        )
        pending.append((i, position, future))
      position = end
    while pending:
      finish()
    bar.update(position, pairs=sum(made))


def _report(
  flags: argparse.Namespace,
  settings: Settings,
  videos: Sequence[Video],
  journal: pair_folder.Journal,
) -> int:
  """Draws the contact sheet and prints the table; returns the exit status."""
  rows, shown = [], []
  scenes = journal.scenes()
  for scene, records in scenes.items():
    pairs = [record for record in records if 'box' in record]
    still = [
      record for record in records
      if 'box' not in record and record['motion_px'] is not None
    ]  # fmt: skip
    text = f'{len(pairs)} made, {len(still)} still'
    if pairs:
      scores = [record['psnr_input_db'] for record in pairs]
      scores = [score for score in scores if score is not None]
      motion = np.mean([record['motion_px'] for record in pairs])
      mean = f'{np.mean(scores):.2f} dB' if scores else 'equal'
      text += f', {mean}, {motion:.2f} px'
      # Two away from the ends, as long as there is room for all scenes.
      parts = (1, 3) if 2 * len(scenes) <= pair_folder.SHEET_TILES else (2,)
      chosen = sorted({part * len(pairs) // 4 for part in parts})
      shown += [pairs[i] for i in chosen]
    rows.append((scene, text))
  for video in videos:
    if not any(True for _ in video.centres(1, settings.reach)):
      rows.append((f'{video.split}/{video.scene}', 'no shot is long enough'))
  logbook.table(
    'Scene: pairs made, left out as too still, mean PSNR of the blurred '
    'images, mean motion in a frame interval',
    rows,
  )
  status = 0
  if shown:
    pair_folder.contact_sheet(flags.out, shown, flags.out / SHEET)
    logbook.say(f'Look at {flags.out / SHEET}.')
    if all(video.split != 'test' for video in videos):
      logbook.say(
        'No video is for testing: trainings will hold out some of the pairs. '
        'Those of one video are alike, which makes scores too good; give more '
        'videos, some of them by --test.'
      )
  else:
    status = _failed(
      'no pair was made: the videos are too short, or too still for '
      f'--min_motion {settings.min_motion}.'
    )
  for video in videos:
    if video.broken:
      status = _failed(
        f'{video.file} breaks off after {video.frames} frames '
        f'({video.broken}); the pairs before were made.'
      )
  return status


def _failed(message: object, status: int = 1) -> int:
  """Prints a line that is never wrapped; returns the exit status."""
  print(f'Error: {message}', file=sys.stderr)
  return status


def _run(argv: Sequence[str]) -> int:
  flags, settings = _read_flags(argv)
  if cv2 is None:
    raise config_lib.SettingError(
      "OpenCV is missing; pip install 'pynas-jax[video]'."
    )
  _check_videos(flags)
  videos = _open(flags, settings)
  journal = pair_folder.Journal(flags.out)
  _make_all(flags, settings, videos, journal)
  return _report(flags, settings, videos, journal)


def main(argv: Sequence[str] | None = None) -> int:
  """Makes pairs of the videos that the flags name.

  Args:
    argv: Flags; those of the command line if None.

  Returns:
    Exit status: 0 done, 1 something broke on the way, 2 a bad setting.
  """
  try:
    return _run(sys.argv[1:] if argv is None else argv)
  except config_lib.SettingError as error:
    return _failed(error, 2)
  except (OSError, futures_process.BrokenProcessPool) as error:
    return _failed(f'{error} {AGAIN}')
  except KeyboardInterrupt:
    return _failed(f'stopped. {AGAIN}')


if __name__ == '__main__':
  sys.exit(main())
