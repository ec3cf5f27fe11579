"""Decoded training crops per second, by how the images are stored.

  python -m benchmarks.input_pipeline [--frames=12] [--crop=256] [--batch=8]

Frames of 720x1280 are cut out of the bundled photographs, mirrored to size, and
stored in each way; the training iterator then reads them in the calling thread
alone, so that a figure is that of one core. Rounds are interleaved. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import statistics
import tempfile
import time

import ml_collections
import numpy as np
from PIL import Image

from benchmarks import measure
from pynas_jax import config as config_lib
from pynas_jax.data import builders
from pynas_jax.data import degrade
from pynas_jax.data import pipeline
from pynas_jax.data import sources

HEIGHT, WIDTH = 720, 1280
ROUNDS = 5


def write_frames(root: Path, suffix: str, count: int) -> None:
  """Writes blurred and sharp frames in GoPro's layout."""
  photos = sources.SharpPhotos('train')
  recipe = degrade.Recipe(kernel_size=15, kernel_steps=16, noise_sigma=1.0)
  for i in range(count + 2):
    rng = np.random.default_rng(i)
    photo = photos[i % len(photos)]['sharp']
    pad = ((0, HEIGHT - photo.shape[0]), (0, WIDTH - photo.shape[1]), (0, 0))
    sharp = np.pad(photo, pad, 'symmetric')
    sharp = np.roll(sharp, rng.integers(400, size=2), axis=(0, 1))
    blurred = recipe.degrade(rng, sharp.astype(np.float32) / 255)
    pixels = {'sharp': sharp, 'blur': np.rint(blurred * 255).astype(np.uint8)}
    split = 'train' if i < count else 'test'
    for side, image in pixels.items():
      path = root / split / f'{i:02}' / side / f'000001{suffix}'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)


def make_kinds(
  folder: Path, args: argparse.Namespace
) -> dict[str, ml_collections.ConfigDict]:
  """Returns {storage kind: settings that read it}."""
  builders.DATASETS['gopro'].COUNTS = {'train': args.frames, 'test': 2}
  kinds = {}
  for kind, suffix, settings in (
    ('folder of PNG frames', '.png', {'name': 'folder'}),
    ('folder of JPEG frames', '.jpg', {'name': 'folder'}),
    ('prepared PNG frames', '.png', {'name': 'gopro'}),
    ('prepared PNG tiles', '.png', {'name': 'gopro', 'tiles': True}),
  ):
    root = folder / suffix[1:]
    if not root.exists():
      write_frames(root, suffix, args.frames)
    config = config_lib.base()
    config.data.update(
      root=str(root), prepared_dir=str(folder / 'prepared'), num_threads=0,
      validation_fraction=0.0, **settings,
    )  # fmt: skip
    kinds[kind] = config
  config = config_lib.base()
  config.data.num_threads = 0
  return kinds | {'bundled photographs, blurred anew': config}


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  parser.add_argument('--frames', type=int, default=12, help='to store')
  parser.add_argument('--crop', type=int, default=256, help='pixels')
  parser.add_argument('--batch', type=int, default=8, help='crops')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    kinds = make_kinds(Path(folder), args)
    iterators = {
      kind: pipeline.make_train_iterator(
        config, split='train', batch_size=args.batch, crop=args.crop, seed=0
      )
      for kind, config in kinds.items()
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(ROUNDS + 1):
      for kind, batches in iterators.items():
        began = time.perf_counter()
        for _ in range(3):
          next(batches)
        seconds = time.perf_counter() - began
        if round_:  # The first is warm-up.
          rates[kind].append(3 * args.batch / seconds)
  medians = {kind: statistics.median(values) for kind, values in rates.items()}
  whole = medians['prepared PNG frames']
  rows = [
    {'storage': kind, 'crops_per_s': rate, 'to_png_frames': rate / whole}
    for kind, rate in medians.items()
  ]
  summary = {'tiles_over_frames': medians['prepared PNG tiles'] / whole}
  measure.report('Training crops', rows, summary | vars(args))


if __name__ == '__main__':
  main()
