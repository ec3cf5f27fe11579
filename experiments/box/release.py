"""Scores a trained network, times it and puts it in the box.

  python -m experiments.box.release --runs runs/fast_4 runs/fast_fine \
    --data=data/test --name=fast --minutes=142

Scores are those of scenes that no training saw: pairs of video by exposure, all
of them and those that are neither all but sharp nor all smear; shaken
photographs; and sharp pictures as their own input, which should come back as
they were. Times are those of every runtime at hand on a 720p frame, or with
`--keep_times` those of the network of this name and architecture that is
replaced. Writes pynas_jax/models/NAME, and NAME.json and NAME_curves.png of
experiments/box, which have the curves of all runs that are named.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import shlex
import statistics
import sys

import numpy as np
from PIL import Image

from experiments import video_pairs
import pynas_jax
from pynas_jax import api
from pynas_jax import logbook
from pynas_jax import metrics
from pynas_jax import plot
from pynas_jax.deploy import backends
from pynas_jax.deploy import benchmark
from pynas_jax.deploy import release
from pynas_jax.deploy.restorer import Restorer

NAMES = ('psnr_input', 'ssim_input', 'psnr', 'ssim')
DATA = (
  'Pairs made from eight videos by interpolating between frames (exposures of '
  'up to 2 frame intervals), and photographs blurred by random walks and by '
  'moving cameras and things, with noise and JPEG. Scored on four other videos '
  'and on other photographs. See experiments/box.'
)
LIMITS = (
  'Trained for {} core minutes on a CPU: it takes off mild blur and leaves '
  'sharp pictures alone. Strong motion blur stays.'
)
GROUPS = {f'pairs{x}': f'video, exposure {x}' for x in ('0.5', '1', '2')}
BLURRY = Path(pynas_jax.__file__).parent / 'data' / 'blurry' / 'girl.jpg'
HERE = Path(__file__).parent
MAX_SHARP = 60  # Sharp pictures; they differ less than blurred ones.


def read(path: Path) -> np.ndarray:
  """Returns uint8[H, W, 3]."""
  with Image.open(path) as image:
    return np.array(image.convert('RGB'))


def pairs(data: Path) -> Iterator[tuple[str, Path, Path]]:
  """Yields a row's name, the input and what it should become."""
  blurred = sorted((data / 'test').glob('*/blur/*.png'))
  for path in blurred:
    is_photo = path.parts[-3].startswith('photo_')
    folder = path.name.partition('-')[0]  # Of make_pairs.
    group = 'photographs' if is_photo else GROUPS.get(folder, folder)
    yield group, path, path.parent.parent / 'sharp' / path.name
  for path in blurred[:: -(-len(blurred) // MAX_SHARP)]:
    sharp = path.parent.parent / 'sharp' / path.name
    yield 'sharp, left alone', sharp, sharp


def score(restorer: Restorer, data: Path) -> list[dict]:
  """Returns a row of means for each kind of test pair."""
  values: dict[str, list] = {}
  for group, source, target in pairs(data):
    given, sharp = read(source), read(target)
    before, after, sharp = (
      x[None] / np.float32(255) for x in (given, restorer(given), sharp)
    )
    row = []
    for x in (before, after):
      row.append(metrics.capped(float(metrics.psnr(x, sharp)[0])))
      row.append(float(metrics.ssim(x, sharp)[0]))
    values.setdefault(group, []).append(row)
    if group in GROUPS.values() and video_pairs.is_blurred(row[0]):
      low, high = video_pairs.BLUR_PSNR
      values.setdefault(f'{group}, {low:g} to {high:g} dB', []).append(row)
  return [
    {'pairs': group, 'number': len(rows)}
    | {
      name: statistics.fmean(row[i] for row in rows)
      for i, name in enumerate(NAMES)
      if group != 'sharp, left alone' or name in ('psnr', 'ssim')
    }
    for group, rows in values.items()
  ]


def time_all(run: Path) -> list[dict]:
  """Returns the time of a 720p frame by every runtime and type at hand."""
  rows = []
  for backend in backends.BACKENDS:
    for dtype in backends.DTYPES:
      try:
        restorer = Restorer.from_pretrained(run, dtype=dtype, backend=backend)
        rows.append(benchmark.time_restorer(restorer))
      except backends.BackendError as error:
        logbook.say(f'{backend}, {dtype}: {error}')
  return rows


def curves(runs: list[Path]) -> list[dict]:
  """Returns what the runs recorded, with the runs' names as stages."""
  return [
    record | {'stage': run.name}
    for run in runs
    for record in logbook.read_records(run)
  ]


def sample(restorer: Restorer) -> tuple[np.ndarray, np.ndarray]:
  """Returns part of a bundled blurry picture, before and after."""
  height, width = (slice(n // 2 - 160, n // 2 + 160) for n in (576, 576))
  blurry = read(BLURRY)[height, width]
  return blurry, restorer(blurry)


def main(argv: Sequence[str] | None = None) -> None:
  """Scores, times and writes."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument(
    '--runs', type=Path, nargs='+', required=True,
    help='workdirs of the trainings, in order; the last has the network',
  )  # fmt: skip
  parser.add_argument('--data', type=Path, required=True, help='of make_data')
  parser.add_argument('--name', required=True, help='of the network')
  parser.add_argument('--minutes', type=int, required=True, help='of training')
  parser.add_argument(
    '--keep_times', action='store_true',
    help='of the network that is replaced, which has the same architecture',
  )  # fmt: skip
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parser.parse_args(argv)
  run = args.runs[-1]
  restorer = Restorer.from_pretrained(run)
  if args.keep_times:
    known, _, card = release.read(release.MODELS / args.name)
    if known != restorer.genotype:
      parser.error(f'--keep_times: {args.name} has another architecture')
    timings = card.timings
  else:
    timings = time_all(run)
  rows = score(restorer, args.data)
  card = release.Card(
    task='deblurring',
    data=DATA,
    metrics={
      f'{row["pairs"]}: {name}': row[name]
      for row in rows
      for name in NAMES
      if name in row
    },
    timings=tuple(timings),
    limits=LIMITS.format(args.minutes),
    license='apache-2.0',
  )
  restorer.save_pretrained(
    release.MODELS / args.name, card=card, samples=sample(restorer)
  )
  records = curves(args.runs)
  plot.curves(records, HERE / f'{args.name}_curves.png')
  flags = shlex.join(argv)
  logbook.write_json(
    HERE / f'{args.name}.json',
    {
      'command': f'python -m experiments.box.release {flags}',
      'rows': rows,
      'timings': timings,
      'curves': records,
      'versions': api.versions(),
      'commit': api.commit(),
    },
  )
  for row in rows:
    logbook.say(str(row))


if __name__ == '__main__':
  main()
