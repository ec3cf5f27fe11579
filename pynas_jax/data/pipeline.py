"""From sources to batches, by Grain in threads.

A batch is {'blurred': f32[B, H, W, 3], 'sharp': f32[B, H, W, 3]} in [0, 1].
Every random choice follows from the seed and the position of the element, so
batches do not depend on the number of threads, and an iterator restored by
`set_state` goes on bit for bit. Random crops of training pairs are as in PyNAS
section 3.2; the bundled photographs get a fresh blur for each crop (ours).
"""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any

import grain
import ml_collections
import numpy as np

from pynas_jax import config as config_lib
from pynas_jax.data import blur
from pynas_jax.data import sources

Batch = dict[str, np.ndarray]
# Grain's shuffle slows down as the data get fewer, by far more than all else
# here for eight photographs, so few images are repeated before it.
MIN_SHUFFLED = 1024


def make_train_iterator(
  config: ml_collections.ConfigDict,
  *,
  split: str,
  batch_size: int,
  crop: int,
  seed: int,
) -> grain.DatasetIterator:
  """Returns an endless iterator over shuffled random crops.

  Args:
    config: All settings; `config.seed` splits a folder into training and
      validation.
    split: 'train', or 'validation' for the architecture parameters.
    batch_size: Crops in a batch B.
    crop: Side of a crop, pixels.
    seed: Of the order, crops, blurs and noise.

  Returns:
    A Grain iterator of {'blurred': f32[B, crop, crop, 3], 'sharp': the same} in
    [0, 1], with `get_state` and `set_state`.

  Raises:
    SettingError: If images are missing, do not fit or are smaller than a crop.
  """
  data = ml_collections.FrozenConfigDict(config.data)  # Threads read it later.
  source = sources.make_training_source(data, split, seed=config.seed)
  # Blur is drawn on a wider crop, whose border is then cut away.
  margin = data.kernel_size - 1 if data.name == 'photos' else 0
  _check_crop(source, crop, margin)

  def draw(item: dict[str, Any], rng: np.random.Generator) -> Batch:
    pair = _random_crop(rng, item, crop + margin)
    if len(pair) == 1:
      kernel = blur.random_walk_kernel(
        rng, size=data.kernel_size, steps=data.kernel_steps
      )
      blurred = blur.degrade(
        rng, pair[0], kernel=kernel, noise_sigma=data.noise_sigma
      )
      pair = _centre(np.stack([blurred, pair[0]]), crop)
    if data.augment:
      pair = np.rot90(pair, rng.integers(4), axes=(1, 2))
      pair = pair[:, :, :: 1 - 2 * rng.integers(2)]
    return {'blurred': pair[0], 'sharp': pair[1]}

  dataset = (
    grain.MapDataset.source(source)
    .seed(seed % 2**32)
    .repeat(math.ceil(MIN_SHUFFLED / len(source)))
    .shuffle()
    .repeat()  # Before the draw: it gives each pass its own crops.
    .random_map(draw)
    .batch(batch_size)
  )
  options = grain.ReadOptions(
    num_threads=data.num_threads, prefetch_buffer_size=2 * data.num_threads
  )
  return iter(dataset.to_iter_dataset(options))


def validation_batch(config: ml_collections.ConfigDict) -> Batch:
  """Returns centre crops of the validation pairs, always the same.

  Args:
    config: All settings; reads `data.eval_crop`, which is lowered to the
      smallest image, and `data.num_validation`.

  Returns:
    {'blurred': f32[N, E, E, 3], 'sharp': the same} in [0, 1], of pairs evenly
    spaced over the split.

  Raises:
    SettingError: If images are missing or do not fit.
  """
  data = config.data
  source = sources.make_source(data, 'validation', seed=config.seed)
  count = min(data.num_validation, len(source))
  indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
  edge = min(data.eval_crop, *(min(source.sizes[i]) for i in indices))
  pairs = []
  for i in indices:
    item = source[i]
    pair = np.stack([item['blurred'], item['sharp']])
    pairs.append(_centre(pair, edge).astype(np.float32) / 255)
  blurred, sharp = np.stack(pairs, axis=1)
  return {'blurred': blurred, 'sharp': sharp}


def evaluation_pairs(
  config: ml_collections.ConfigDict, split: str = 'test'
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Returns an iterator over whole images: name, blurred and sharp.

  Args:
    config: All settings.
    split: One of `sources.SPLITS`.

  Returns:
    An iterator of (str, u8[H, W, 3], u8[H, W, 3]).

  Raises:
    SettingError: At the call, if images are missing or do not fit.
  """
  source = sources.make_source(config.data, split, seed=config.seed)
  items = (source[i] for i in range(len(source)))
  return ((item['name'], item['blurred'], item['sharp']) for item in items)


def num_evaluation_pairs(
  config: ml_collections.ConfigDict, split: str = 'test'
) -> int:
  """Returns the length of `evaluation_pairs`."""
  return len(sources.make_source(config.data, split, seed=config.seed))


def _check_crop(source: sources.Source, crop: int, margin: int) -> None:
  small = [
    f'{name} ({height}x{width})'
    for name, (height, width) in zip(source.names, source.sizes, strict=True)
    if min(height, width) < crop + margin
  ]
  if small:
    listed = ', '.join(small[: sources.MAX_LISTED])
    more = len(small) - sources.MAX_LISTED
    raise config_lib.SettingError(
      f'data.crop is {crop}'
      + (f', and {margin} more for the blur,' if margin else ',')
      + f' but {len(small)} images are smaller: {listed}'
      + (f' and {more} more' if more > 0 else '')
      + '. Lower data.crop or remove them.'
    )


def _random_crop(
  rng: np.random.Generator, item: dict[str, Any], size: int
) -> np.ndarray:
  """Returns f32[1 or 2, size, size, 3]: blurred, if there is one, and sharp."""
  height, width, _ = item['sharp'].shape
  y = rng.integers(height - size + 1)
  x = rng.integers(width - size + 1)
  images = [item[key] for key in ('blurred', 'sharp') if key in item]
  crops = np.stack([image[y : y + size, x : x + size] for image in images])
  return crops.astype(np.float32) / 255


def _centre(images: np.ndarray, size: int) -> np.ndarray:
  """Returns the middle [N, size, size, C] of [N, H, W, C]."""
  y = (images.shape[1] - size) // 2
  x = (images.shape[2] - size) // 2
  return images[:, y : y + size, x : x + size]
