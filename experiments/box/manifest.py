"""Writes or checks the list of the files that the networks in the box are from.

  python -m experiments.box.manifest --videos videos/*.mp4 \
    --photos clic gb82 bsds500 [--check]

`manifest.csv` has kind, name, split and SHA-256 of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import csv
import hashlib
from pathlib import Path
import sys

from experiments import video_pairs
from experiments.box import make_data

PATH = Path(__file__).with_name('manifest.csv')
TEST_VIDEOS = ('test_video', 'mv_with_2_top_shots', '02_cups', 'bedroom')
HEADER = ('kind', 'name', 'split', 'sha256')


def rows_of(
  videos: Sequence[Path], photos: Sequence[Path]
) -> Iterator[tuple[str, str, str, str]]:
  """Yields a row for each video, and each photograph in folders."""
  for path in sorted(videos):
    split = 'test' if path.stem in TEST_VIDEOS else 'train'
    for scene in video_pairs.VALIDATION:
      if scene == path.stem:
        split = 'val'
      elif scene.startswith(f'{path.stem}-'):
        split = f'train; val {scene}'
    yield 'video', path.name, split, _sha256(path)
  for folder in photos:
    for path in make_data.photographs(folder):
      yield 'photo', path.name, make_data.split_of(path), _sha256(path)


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 1 if the files are others than listed."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--videos', type=Path, nargs='+', required=True)
  parser.add_argument('--photos', type=Path, nargs='+', required=True)
  parser.add_argument('--check', action='store_true', help='write nothing')
  args = parser.parse_args(argv)
  rows = [HEADER, *rows_of(args.videos, args.photos)]
  if not args.check:
    with PATH.open('w', newline='') as file:
      csv.writer(file, lineterminator='\n').writerows(rows)
    return 0
  with PATH.open(newline='') as file:
    listed = set(map(tuple, csv.reader(file)))
  for row in sorted(set(rows) ^ listed):
    print('missing' if row in listed else 'other', *row)
  return 1 if set(rows) != listed else 0


if __name__ == '__main__':
  sys.exit(main())
