"""From sources to batches, by Grain in threads.

A batch is {'blurred': f32[B, H, W, 3], 'sharp': f32[B, H, W, 3]} in [0, 1]; the
former is whatever the task's input is, smaller in super-resolution, and beyond
[0, 1] where noise is not clipped.
Every random choice follows from the seed and the position of the element, so
batches do not depend on the number of threads, and an iterator restored by
`set_state` goes on bit for bit. Random crops of training pairs are as in PyNAS
section 3.2; sharp images get a fresh degradation for each crop (ours).
"""

from __future__ import annotations

import math
import time
from typing import Any, Self

import grain
import jax
import ml_collections
import numpy as np

from pynas_jax import config as config_lib
from pynas_jax.data import augment
from pynas_jax.data import degrade
from pynas_jax.data import sources

Batch = dict[str, np.ndarray]
# Grain's shuffle slows down as the data get fewer, by far more than all else
# here for eight photographs, so few images are repeated before it.
MIN_SHUFFLED = 1024
MAX_LISTED = 10


class Batches:
  """Grain's iterator over batches, and how long the device waits for it."""

  def __init__(self, iterator: grain.DatasetIterator):
    """Wraps the iterator."""
    self._iterator = iterator
    self.get_state, self.set_state = iterator.get_state, iterator.set_state
    self._forget()

  def _forget(self) -> None:
    self._began, self._ended, self._waited = None, 0.0, 0.0

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> Batch:
    return self.take(None)

  def take(self, running: jax.Array | None) -> Batch:
    """Returns the next batch.

    Args:
      running: A result of the step before. Steps are launched ahead of the
        device: as long as it is busy, nobody waits.
    """
    began = time.perf_counter()
    batch = next(self._iterator)
    self._ended = time.perf_counter()
    self._began = began if self._began is None else self._began
    if running is None or running.is_ready():
      self._waited += self._ended - began
    return batch

  def wait_fraction(self) -> float:
    """Returns the share of time that the device waited, since the last call.

    The time is that of whole steps, from asking for the first batch to having
    the last; what comes after the last batch, such as an evaluation, is not in
    it. An upper bound: the device may have become idle in the middle of a wait.
    """
    span = self._ended - (self._began or 0.0)
    fraction = self._waited / span if self._began is not None else 0.0
    self._forget()
    return fraction


def make_train_iterator(
  config: ml_collections.ConfigDict,
  *,
  split: str,
  batch_size: int,
  crop: int,
  seed: int,
) -> Batches:
  """Returns an endless iterator over shuffled random crops.

  Args:
    config: All settings; `config.seed` divides training from validation.
    split: Of the images; for a search, those of `sources.search_splits`.
    batch_size: Crops in a batch B.
    crop: Side of a crop, pixels.
    seed: Of the order, crops, blurs and noise.

  Returns:
    An iterator of {'blurred': f32[B, crop, crop, 3], 'sharp': the same} in
    [0, 1], with `get_state` and `set_state`.

  Raises:
    SettingError: If images are missing, do not fit or are smaller than a crop.
  """
  data = ml_collections.FrozenConfigDict(config.data)  # Threads read it later.
  source = sources.make_training_source(data, split, seed=config.seed)
  check_crop(config, source, crop)
  recipe = degrade.make_recipe(data, config.task)
  margin = _margin(source, recipe)

  def draw(item: dict[str, Any], rng: np.random.Generator) -> Batch:
    images = [item[key] for key in ('blurred', 'sharp') if key in item]
    pair = augment.random_crop(rng, images, crop + margin)
    if data.saturation_jitter > 0:  # Of the scene: noise keeps its colours.
      pair = augment.jitter_saturation(rng, pair, data.saturation_jitter)
    if len(pair) == 1:
      pair = augment.centre_pair(recipe.degrade(rng, pair[0]), pair[0], crop)
    if data.augment:
      pair = augment.turn(rng, pair)
    return {'blurred': pair[0], 'sharp': pair[1]}

  dataset = (
    grain.MapDataset.source(source)
    .seed(seed % 2**32)
    .repeat(math.ceil(MIN_SHUFFLED / len(source)))
    .shuffle()
    .repeat()  # Before the draw: it gives each pass its own crops.
    .random_map(draw)
    .batch(batch_size, drop_remainder=True)  # There is none, but Grain counts.
  )
  options = grain.ReadOptions(
    num_threads=data.num_threads, prefetch_buffer_size=2 * data.num_threads
  )
  return Batches(iter(dataset.to_iter_dataset(options)))


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
  source = sources.make_source(
    data, 'validation', seed=config.seed, task=config.task
  )
  source = scored(source, data)
  edge = min(data.eval_crop, *map(min, source.sizes))
  items = [source[i] for i in range(len(source))]
  pairs = [augment.centre_pair(x['blurred'], x['sharp'], edge) for x in items]
  blurred, sharp = (
    np.stack(images).astype(np.float32) / 255
    for images in zip(*pairs, strict=True)
  )
  return {'blurred': blurred, 'sharp': sharp}


def scored(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """Returns `data.num_validation` pairs evenly spaced over a split."""
  count = min(data.num_validation, len(source))
  indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
  return sources.Part(source, tuple(indices))


def _margin(source: sources.Source, recipe: degrade.Recipe) -> int:
  """Returns by how many pixels crops are drawn wider, to be blurred and cut."""
  return 0 if source.paired else recipe.margin


def check_crop(
  config: ml_collections.ConfigDict, source: sources.Source, crop: int
) -> None:
  """Checks that no image for training is smaller than a crop.

  Args:
    config: All settings.
    source: Of `sources.make_training_source`.
    crop: Side of a crop, pixels.

  Raises:
    SettingError: Names those that are.
  """
  margin = _margin(source, degrade.make_recipe(config.data, config.task))
  small = sources.smaller_than(source, crop + margin)
  if small:
    listed = ', '.join(small[:MAX_LISTED])
    more = len(small) - MAX_LISTED
    raise config_lib.SettingError(
      f'data.crop is {crop}'
      + (f', and {margin} more to be degraded,' if margin else ',')
      + f' but {len(small)} images are smaller: {listed}'
      + (f' and {more} more' if more > 0 else '')
      + '. Lower data.crop'
      + (' or data.kernel_size' if margin and config.task == 'deblur' else '')
      + ', or remove them.'
    )
