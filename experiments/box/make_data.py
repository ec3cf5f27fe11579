"""Makes the pairs that the networks in the box learn from.

  python -m experiments.box.make_data --video_pairs pairs1 pairs2 \
    --photos photos --out data

`video_pairs` are folders of `pynas_jax.data.make_pairs`, `photos` a folder of
sharp photographs. Their pictures are shaken by random walks, evenly or varying
over the frame, with noise and JPEG. Training pairs are cut into tiles, which
are faster to read. Split by scene: videos as `make_pairs` did, photographs by
file name. See README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from experiments import video_pairs
from pynas_jax import logbook
from pynas_jax.data import degrade

TILE = 112  # Pixels.
TEST_CROP = 224
LONG_SIDE = 1024  # Photographs are reduced to this, to be sharp per pixel.
SIZES = (5, 7, 9)  # Of kernels, pixels.


def tiles(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
  """Yields the whole tiles of an image."""
  height, width = pixels.shape[:2]
  for y in range(0, height - size + 1, size):
    for x in range(0, width - size + 1, size):
      yield pixels[y : y + size, x : x + size]


def write_pairs(
  scene: Path, name: str, blurred: np.ndarray, sharp: np.ndarray, keep: float
) -> None:
  """Writes the tiles of a pair; all of them if they are for testing.

  Args:
    scene: Folder to write to.
    name: Of the files.
    blurred: u8[H, W, 3].
    sharp: u8[H, W, 3].
    keep: Part that is written of the tiles without
      `video_pairs.has_blur`.
  """
  split = scene.parent.name
  size = TILE if split == 'train' else TEST_CROP
  both = zip(tiles(blurred, size), tiles(sharp, size), strict=True)
  for i, pair in enumerate(both):
    file = f'{name}-{i}.png'
    draw = hashlib.sha256(f'{scene.name}/{file}'.encode()).digest()[0] / 256
    if not (split == 'test' or draw < keep or video_pairs.has_blur(*pair)):
      continue
    for side, pixels in zip(('blur', 'sharp'), pair, strict=True):
      path = scene / side / file
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path, compress_level=1)


def add_video_pairs(source: Path, out: Path, *, keep: float) -> None:
  """Adds pairs of video."""
  for path in sorted(source.glob('*/*/blur/*.png')):
    split, scene, _, name = path.parts[-4:]
    split = 'val' if scene in video_pairs.VALIDATION else split
    pair = [
      np.array(Image.open(path.parent.parent / side / name))
      for side in ('blur', 'sharp')
    ]
    name = f'{source.name}-{path.stem}'
    write_pairs(out / split / scene, name, *pair, keep)


def split_of(path: Path) -> str:
  """Returns a photograph's split, from its name alone."""
  draw = hashlib.sha256(path.stem.encode()).digest()[0] % 16
  return {0: 'test', 1: 'val'}.get(draw, 'train')


def shake(rng: np.random.Generator, sharp: np.ndarray) -> np.ndarray:
  """Takes a shaken picture."""
  recipe = degrade.Recipe(
    kernel_size=int(rng.choice(SIZES)),
    kernel_steps=int(rng.integers(4, 32)),
    noise_sigma=float(rng.uniform(0, 2)),
    light_gamma=float(rng.choice((1.0, 2.2))),
    highlight_gain=3.0,
    jpeg_quality=(85, 100) if rng.random() < 0.5 else (),
    varying=0.5,
  )
  return recipe.degrade(rng, sharp)


def add_photos(source: Path, out: Path, *, per_photo: int, keep: float) -> None:
  """Adds shaken photographs."""
  paths = [p for p in sorted(source.rglob('*')) if p.suffix in ('.jpg', '.png')]
  for path in paths:
    split = split_of(path)
    with Image.open(path) as image:
      image = image.convert('RGB')
      image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
      pixels = np.array(image)
    seed = int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:4])
    rng = np.random.default_rng(seed)
    for i in range(per_photo):
      y, x = (rng.integers(n - TEST_CROP + 1) for n in pixels.shape[:2])
      sharp = pixels[y : y + TEST_CROP, x : x + TEST_CROP]
      blurred = shake(rng, sharp.astype(np.float32) / 255)
      blurred = np.rint(blurred * 255).astype(np.uint8)
      scene = out / split / f'photo_{path.stem}'
      write_pairs(scene, f'{i:02}', blurred, sharp, keep)


def main() -> None:
  """Makes the data."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--video_pairs', type=Path, nargs='+', required=True)
  parser.add_argument('--photos', type=Path, nargs='+', required=True)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--per_photo', type=int, default=6)
  parser.add_argument(
    '--keep', type=float, default=0.04,
    help='part that is kept of what is all but sharp, or all smear',
  )
  args = parser.parse_args()
  for source in args.video_pairs:
    logbook.say(f'pairs of {source}')
    add_video_pairs(source, args.out, keep=args.keep)
  for source in args.photos:
    logbook.say(f'photographs of {source}')
    add_photos(source, args.out, per_photo=args.per_photo, keep=args.keep)


if __name__ == '__main__':
  main()
