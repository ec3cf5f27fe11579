"""Makes the pairs that the networks in the box learn from.

  python -m experiments.box.make_data --video_pairs pairs1 pairs2 \
    --photos photos --out data

`video_pairs` are folders of `pynas_jax.data.make_pairs`, `photos` a folder of
sharp photographs. Their pictures are shaken by random walks, evenly or varying
over the frame, or blurred by motion as video is; both with noise and JPEG.
Training pairs are cut into tiles, which are faster to read. Split by scene:
videos as `make_pairs` did, photographs by file name. See README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import hashlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from experiments import video_pairs
from pynas_jax import logbook
from pynas_jax.data import degrade

TILE = 112  # Pixels.
TEST_CROP = 224
LONG_SIDE = 1024  # Photographs are reduced to this, to be sharp per pixel.
SIZES = (5, 7, 9)  # Of kernels, pixels.
MARGIN = 32  # Pixels that motion brings in from each side.
MAX_MOTION = 24.0  # Pixels in the time that the shutter is open.
GAMMA = 2.2  # Value ** GAMMA is light.


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


def add_video_pairs(
  source: Path, out: Path, *, reduce: bool, keep: float
) -> None:
  """Adds pairs of video; those for training also reduced, by 0.5 to 0.9."""
  for path in sorted(source.glob('*/*/blur/*.png')):
    split, scene, _, name = path.parts[-4:]
    split = 'val' if scene in video_pairs.VALIDATION else split
    pair = [
      np.array(Image.open(path.parent.parent / side / name))
      for side in ('blur', 'sharp')
    ]
    name = f'{source.name}-{path.stem}'
    write_pairs(out / split / scene, name, *pair, keep)
    if reduce and split == 'train':
      draw = hashlib.sha256(f'{scene}/{name}'.encode()).digest()[0] / 255
      size = (round(TEST_CROP * (0.5 + 0.4 * draw)),) * 2
      pair = [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in pair]
      name += '-reduced'
      write_pairs(out / split / scene, name, *pair, keep)


def photographs(folder: Path) -> list[Path]:
  """Returns the photographs in and below a folder, in order."""
  return [p for p in sorted(folder.rglob('*')) if p.suffix in ('.jpg', '.png')]


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


def draw_motion(rng: np.random.Generator, side: int) -> np.ndarray:
  """Returns how a picture moves while the shutter is open.

  Args:
    rng: Source of randomness.
    side: Of the picture, pixels.

  Returns:
    f64[2, 3], what is to be added to the affine map that leaves it as it is.
  """
  angle = rng.uniform(0, 2 * np.pi)
  length = np.exp(rng.uniform(0, np.log(MAX_MOTION)))
  turn, zoom = rng.normal(0, 0.02, 2)
  linear = np.array([[zoom, -turn], [turn, zoom]])
  shift = length * np.array([np.cos(angle), np.sin(angle)])
  return np.column_stack([linear, shift - linear @ [side / 2, side / 2]])


def move(rng: np.random.Generator, sharp: np.ndarray) -> np.ndarray:
  """Blurs a picture as video is: by a camera, or a thing before it, that moves.

  Args:
    rng: Source of randomness.
    sharp: f32[S, S, 3] in [0, 1], what is seen in the middle of the exposure.

  Returns:
    f32[S, S, 3] in [0, 1], with noise and JPEG.
  """
  side = len(sharp)
  light = sharp**GAMMA
  still = np.zeros((2, 3))
  which = rng.choice(('camera', 'thing', 'both'))
  camera = still if which == 'thing' else draw_motion(rng, side)
  thing = camera if which == 'camera' else draw_motion(rng, side)
  mask = np.zeros((side, side), np.float32)
  centre, axes = rng.integers(0, side, 2), rng.integers(side // 8, side // 2, 2)
  cv2.ellipse(
    mask, centre.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, 1, -1,
    cv2.LINE_AA,
  )  # fmt: skip

  def at(time: float, image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(
      image, np.eye(2, 3) + time * motion, (side, side),
      flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip

  times = np.linspace(-0.5, 0.5, int(MAX_MOTION) + 1)
  total = np.zeros_like(light)
  for time in times:
    frame = at(time, light, camera)
    if which != 'camera':
      alpha = np.clip(at(time, mask, thing), 0, 1)[..., None]
      frame += alpha * (at(time, light, thing) - frame)
    total += frame
  blurred = np.clip(total / len(times), 0, 1) ** np.float32(1 / GAMMA)
  blurred = degrade.gaussian_noise(rng, blurred, sigma=rng.uniform(0, 2))
  if rng.random() < 0.5:
    blurred = degrade.jpeg(blurred, quality=int(rng.integers(80, 100)))
  return np.clip(blurred, 0, 1)


def blur_crop(
  rng: np.random.Generator, pixels: np.ndarray, size: int,
  blur: Callable[[np.random.Generator, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """Returns a random square of a photograph, blurred and sharp.

  Args:
    rng: Source of randomness.
    pixels: u8[H, W, 3], the photograph.
    size: Side of the square, pixels.
    blur: `shake` or `move`.

  Returns:
    Two u8[size, size, 3].
  """
  y, x = (rng.integers(n - size + 1) for n in pixels.shape[:2])
  sharp = pixels[y : y + size, x : x + size]
  blurred = blur(rng, sharp.astype(np.float32) / 255)
  return np.rint(blurred * 255).astype(np.uint8), sharp


def add_photos(
  source: Path, out: Path, *, per_photo: int, moves: int, keep: float
) -> None:
  """Adds photographs, `per_photo` times shaken and `moves` times moved."""
  for path in photographs(source):
    split = split_of(path)
    with Image.open(path) as image:
      image = image.convert('RGB')
      image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
      pixels = np.array(image)
    if min(pixels.shape[:2]) < TEST_CROP:
      logbook.say(f'{path} is too narrow')
      continue
    seed = int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:4])
    rng = np.random.default_rng(seed)
    scene = out / split / f'photo_{path.stem}'
    for i in range(per_photo):
      pair = blur_crop(rng, pixels, TEST_CROP, shake)
      write_pairs(scene, f'{i:02}', *pair, keep)
    large = TEST_CROP + 2 * MARGIN
    if split != 'train' or min(pixels.shape[:2]) < large:
      continue
    for i in range(moves):
      pair = blur_crop(rng, pixels, large, move)
      pair = (x[MARGIN:-MARGIN, MARGIN:-MARGIN] for x in pair)
      write_pairs(scene, f'moved{i:02}', *pair, keep)


def main() -> None:
  """Makes the data."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--video_pairs', type=Path, nargs='+', required=True)
  parser.add_argument('--photos', type=Path, nargs='+', required=True)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--per_photo', type=int, default=6)
  parser.add_argument(
    '--moves', type=int, default=0,
    help='pairs that each photograph for training gives beside, by motion',
  )
  parser.add_argument(
    '--reduce', action='store_true',
    help='add reduced copies of the video pairs for training',
  )
  parser.add_argument(
    '--keep', type=float, default=0.04,
    help='part that is kept of what is all but sharp, or all smear',
  )
  args = parser.parse_args()
  for source in args.video_pairs:
    logbook.say(f'pairs of {source}')
    add_video_pairs(source, args.out, reduce=args.reduce, keep=args.keep)
  for source in args.photos:
    logbook.say(f'photographs of {source}')
    add_photos(
      source, args.out, per_photo=args.per_photo, moves=args.moves,
      keep=args.keep,
    )  # fmt: skip


if __name__ == '__main__':
  main()
