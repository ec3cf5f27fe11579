"""Scores a network of the box on scenes that no training saw.

  python -m experiments.box.evaluate --data=data/box --model=fast \
    --out=experiments/box/fast.json

Rows: pairs of video by exposure, shaken photographs, and sharp pictures as
their own input, which should come back as they were.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
import statistics

import numpy as np
from PIL import Image

from pynas_jax import api
from pynas_jax import logbook
from pynas_jax import metrics
from pynas_jax.deploy.restorer import Restorer

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
    group = 'photographs' if is_photo else path.name.partition('-')[0]
    yield group, path, path.parent.parent / 'sharp' / path.name
  for path in blurred[:: -(-len(blurred) // MAX_SHARP)]:
    sharp = path.parent.parent / 'sharp' / path.name
    yield 'sharp, left alone', sharp, sharp


def score(restorer: Restorer, data: Path) -> list[dict]:
  """Returns a row of means for each kind of test pair."""
  values: dict[str, list] = {}
  for group, source, target in pairs(data):
    image, sharp = read(source), read(target)
    restored = restorer(image)
    values.setdefault(group, []).append(
      [
        f(a[None] / np.float32(255), sharp[None] / np.float32(255))[0]
        for a in (image, restored)
        for f in (metrics.psnr, metrics.ssim)
      ]
    )
  names = ('psnr_input', 'ssim_input', 'psnr', 'ssim')
  return [
    {'pairs': group, 'number': len(rows)}
    | {
      name: statistics.fmean(float(row[i]) for row in rows)
      for i, name in enumerate(names)
      if group != 'sharp, left alone' or name in ('psnr', 'ssim')
    }
    for group, rows in values.items()
  ]


def main() -> None:
  """Prints the table and writes it."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=Path, required=True, help='of make_data')
  parser.add_argument('--model', required=True, help='as of pynas-deblur')
  parser.add_argument('--out', type=Path, required=True, help='JSON to write')
  args = parser.parse_args()
  rows = score(Restorer.from_pretrained(args.model), args.data)
  for row in rows:
    logbook.say(str(row))
  logbook.write_json(
    args.out,
    {
      'command': 'python -m experiments.box.evaluate --data=data/box '
      f'--model={args.model} --out={args.out}',
      'rows': rows,
      'versions': api.versions(),
      'commit': api.commit(),
    },
  )


if __name__ == '__main__':
  main()
