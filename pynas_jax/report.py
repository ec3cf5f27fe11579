"""Tables and figures of the PyNAS paper, from the reports of runs.

  python -m pynas_jax.report --runs runs/found runs/dmphn --out results

Reads report.json, scores.json and strips/ of workdirs, never a network. Rows of
other authors are as published, on GoPro and their own machines: they compare
with runs on GoPro only. Source: PyNAS, Tables 1 to 3 and Figures 1, 4 and 5.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Mapping, Sequence
import itertools
import json
import numbers
from pathlib import Path
import statistics
import sys
from typing import Any

import numpy as np
from PIL import Image

from pynas_jax import config as config_lib
from pynas_jax import plot

BYTES_PER_PARAM = 4  # Sizes are of float32 weights, in 1e6 bytes.
# Of the files of a run, what is read here.
_KEYS = {
  'report': {
    'task': str, 'dataset': str, 'params': numbers.Real, 'psnr': numbers.Real,
    'ssim_3d': numbers.Real,
  },
  'scores': {'mean': dict, 'sequences': dict},
}  # fmt: skip
# Of networks, in the results of random_vs_search.
GROUPS = ('found', 'random', 'random_equal_cost', 'trivial')
# PyNAS Table 1: model, PSNR in dB, SSIM, size in MB, time at 720p in ms.
TABLE_1 = (
  ('Sun et al.', 24.64, 0.8429, 54.1, 12000.0),
  ('Nah et al.', 29.23, 0.9162, 303.6, 4300.0),
  ('Zhang J. et al.', 29.19, 0.9306, 37.1, 1400.0),
  ('Tao et al.', 30.10, 0.9323, 33.6, 1600.0),
  ('DMPHN', 30.25, 0.9351, 29.0, 30.0),
  ('Yuan et al.', 29.57, 0.9338, 3.1, 10.0),
  ('PyNAS_s', 30.51, 0.9391, 20.7, 26.0),
  ('PyNAS_d', 30.62, 0.9405, 35.9, 17.0),
)
# PyNAS Table 2: PSNR in dB of the ten test videos, in the order of
# `VideoDeblurring.TEST`.
TABLE_2 = {
  'Input': (24.14, 30.52, 28.38, 27.31, 22.60, 29.31, 27.74, 23.86, 30.59,
            26.98),
  'PSDeblur': (24.42, 28.77, 25.15, 27.77, 22.02, 25.74, 26.11, 19.75, 26.48,
               24.62),
  'WFA': (25.89, 32.33, 28.97, 28.36, 23.99, 31.09, 28.58, 24.78, 31.30,
          28.20),
  'Su et al.': (25.75, 31.15, 29.30, 28.38, 23.63, 30.70, 29.23, 25.62, 31.92,
                28.06),
  'DMPHN': (29.89, 33.35, 31.82, 31.32, 26.35, 32.49, 30.51, 27.11, 34.77,
            30.02),
  'PyNAS_d': (30.11, 33.52, 31.92, 31.54, 26.44, 32.73, 30.69, 27.51, 35.07,
              30.45),
}  # fmt: skip
# PyNAS Table 3: model, PSNR in dB, SSIM.
TABLE_3 = (
  ('Average of random models', 29.11, 0.9251),
  ('NAS-DIP', 29.01, 0.9176),
  ('CLEARER', 28.96, 0.9188),
  ('PyNAS_s', 30.51, 0.9391),
  ('PyNAS_d', 30.62, 0.9405),
)


def read_run(workdir: Path) -> dict[str, Any]:
  """Returns what a run reports: its report, scores and strips.

  Raises:
    SettingError: Names the file that is missing or cannot be read.
  """
  run: dict[str, Any] = {}
  for key, keys in _KEYS.items():
    path = workdir / f'{key}.json'
    try:
      run[key] = json.loads(path.read_text())
      for name, kind in keys.items():
        if not isinstance(run[key].get(name), kind):
          raise ValueError(f'its {name} is {run[key].get(name)!r}')
    except (OSError, ValueError, AttributeError) as error:
      raise config_lib.SettingError(
        f'--runs has {workdir}, but {path} cannot be read: {error}. Expected '
        'the workdir of a run that ended with an evaluation.'
      ) from None
  run['name'] = _name(workdir, run['report']['task'])
  run['strips'] = {
    path.name: path for path in sorted((workdir / 'strips').glob('*.png'))
  }
  return run


def _name(workdir: Path, task: str) -> str:
  """Returns what a run is called, with its task if published rows have another.

  >>> _name(Path('runs/a'), 'super-resolution x2')
  'a (super-resolution x2, luminance)'
  """
  name = workdir.resolve().name
  if task in ('deblurring', 'deblur'):  # The latter of older runs.
    return name
  of = ', luminance' if task.startswith('super-resolution') else ''
  return f'{name} ({task}{of})'


def _set_apart(runs: Sequence[dict[str, Any]], workdirs: list[Path]) -> None:
  """Puts the way to a workdir before names that several runs have."""
  counts = collections.Counter(run['name'] for run in runs)
  for run, workdir in zip(runs, workdirs, strict=True):
    if counts[run['name']] > 1:
      run['name'] = f'{workdir.parent.as_posix()}/{run["name"]}'


def markdown(
  header: Sequence[str], rows: Sequence[Sequence[Any]], title: str
) -> str:
  """Returns a table as Markdown; numbers get two digits, SSIM four.

  >>> print(markdown(['Model', 'PSNR'], [['a', 30.123]], 'T').strip())
  # T
  <BLANKLINE>
  | Model | PSNR |
  | --- | --- |
  | a | 30.12 |
  """

  def text(name, value):
    if isinstance(value, float):
      return f'{value:.4f}' if name == 'SSIM' else f'{value:.2f}'
    return '' if value is None else str(value)

  lines = [list(header), ['---'] * len(header)]
  lines += [list(map(text, header, row)) for row in rows]
  body = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
  return f'# {title}\n\n{body}'


def _point(run: Mapping[str, Any]) -> dict[str, Any]:
  report = run['report']
  latency = report.get('latency_720p_ms') or {}
  is_720p = (latency.get('height'), latency.get('width')) == (720, 1280)
  return {
    'name': run['name'],
    'psnr': report['psnr'],
    'ssim': report['ssim_3d'],
    'size_mb': BYTES_PER_PARAM * report['params'] / 1e6,
    # Times of other sizes do not compare.
    'latency_ms': latency['p50'] if is_720p else None,
    'dataset': report['dataset'],
  }


def _published() -> list[dict[str, Any]]:
  keys = ('name', 'psnr', 'ssim', 'size_mb', 'latency_ms')
  return [
    dict(zip(keys, row, strict=True)) | {'dataset': 'gopro', 'published': True}
    for row in TABLE_1
  ]


def table_1(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns PSNR, SSIM (as MATLAB counts), size and time of the runs."""
  rows = [
    [
      p['name'] + (' (published)' if p.get('published') else ''),
      p['dataset'], p['psnr'], p['ssim'], p['size_mb'], p['latency_ms'],
    ]
    for p in [*_published(), *map(_point, runs)]
  ]  # fmt: skip
  header = ['Model', 'Dataset', 'PSNR', 'SSIM', 'Size, MB', 'Time, ms']
  return markdown(header, rows, 'Table 1: quality, size and time')


def table_2(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns the PSNR of each sequence; published rows for their own videos."""
  names = sorted({n for run in runs for n in run['scores']['sequences']})
  rows: list[list[Any]] = []
  if runs and all(
    run['report']['dataset'] == 'video_deblurring' for run in runs
  ):
    rows += [
      [f'{name} (published)', *values, statistics.mean(values)]
      for name, values in TABLE_2.items()
    ]
  for key, label in (('psnr_input', 'input of '), ('psnr', '')):
    for run in runs:
      sequences = run['scores']['sequences']
      values = [sequences.get(name, {}).get(key) for name in names]
      mean = run['scores']['mean'][key]
      rows.append([label + run['name'], *values, mean])
  return markdown(['Model', *names, 'Average'], rows, 'Table 2: PSNR by video')


def read_comparison(path: Path) -> dict[str, Any]:
  """Returns the results of random_vs_search.

  Raises:
    SettingError: If the file cannot be read, or holds something else.
  """
  try:
    comparison = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise config_lib.SettingError(
      f'--comparison {path} cannot be read: {error}.'
    ) from None
  is_right = isinstance(comparison, dict) and comparison.keys() >= {
    'dataset', *GROUPS
  }
  if not is_right:
    raise config_lib.SettingError(
      f'--comparison {path} is not the results.json of random_vs_search.'
    )
  return comparison


def table_3(comparison: Mapping[str, Any]) -> str:
  """Returns the comparison with random networks, of random_vs_search."""
  rows: list[list[Any]] = [
    [f'{name} (published, GoPro)', psnr, None, None]
    for name, psnr, _ in TABLE_3
  ]
  for group in GROUPS:
    values = comparison[group]
    if values:
      spread = statistics.stdev(values) if len(values) > 1 else None
      rows.append(
        [group.replace('_', ' '), statistics.mean(values), spread, len(values)]
      )
  header = ['Models', 'mean PSNR', 'spread', 'networks']
  title = f'Table 3: search and chance ({comparison["dataset"]})'
  return markdown(header, rows, title)


def figures(runs: Sequence[Mapping[str, Any]], out: Path) -> None:
  """Draws Figures 1, 4 and 5."""
  points = [*_published(), *map(_point, runs)]
  plot.trade_off(
    [p for p in points if p['latency_ms']], out / 'figure_1.png',
    x='latency_ms', x_label='time of a 720p frame, ms',
    real_time=config_lib.REAL_TIME_MS,
  )  # fmt: skip
  plot.trade_off(
    [p | {'millions': p['size_mb'] / BYTES_PER_PARAM} for p in points],
    out / 'figure_4.png', x='millions', x_label='parameters, 1e6',
  )  # fmt: skip
  shared = set.intersection(*(set(run['strips']) for run in runs))
  rows = []
  for name in sorted(shared):
    strips = [np.asarray(Image.open(run['strips'][name])) for run in runs]
    side = strips[0].shape[0]
    ends = [(strip[:, :side], strip[:, -side:]) for strip in strips]
    # Names of other tasks' pairs may be the same, but not what they show.
    if all(map(np.array_equal, ends[0] * len(ends), itertools.chain(*ends))):
      restored = [strip[:, side : 2 * side] for strip in strips]
      rows.append([ends[0][0], *restored, ends[0][1]])
  if rows:
    titles = ['blurry', *(run['name'] for run in runs), 'sharp']
    plot.side_by_side(rows, titles, out / 'figure_5.png')


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the tables and figures.

  Args:
    argv: Flags; those of the command line if None.

  Returns:
    Exit status: 0, or 2 for a run that cannot be read.
  """
  parser = argparse.ArgumentParser(
    prog='python -m pynas_jax.report', description=__doc__.split('\n')[0]
  )
  parser.add_argument(
    '--runs', nargs='+', type=Path, required=True, help='workdirs'
  )
  parser.add_argument('--out', type=Path, required=True, help='folder to write')
  parser.add_argument(
    '--comparison', type=Path, help='results.json of random_vs_search, Table 3'
  )
  args = parser.parse_args(argv)
  try:
    runs = [read_run(workdir) for workdir in args.runs]
    _set_apart(runs, args.runs)
    comparison = args.comparison and read_comparison(args.comparison)
    args.out.mkdir(parents=True, exist_ok=True)
  except (config_lib.SettingError, OSError, ValueError) as error:
    print(f'Error: {error}', file=sys.stderr)
    return 2
  (args.out / 'table_1.md').write_text(table_1(runs))
  (args.out / 'table_2.md').write_text(table_2(runs))
  if comparison:
    (args.out / 'table_3.md').write_text(table_3(comparison))
  figures(runs, args.out)
  print(f'Look at {args.out}.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
