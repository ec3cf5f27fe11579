"""Batches: deterministic, resumable, aligned."""

from __future__ import annotations

import itertools
import types

import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import pipeline
from pynas_jax.data import sources


def iterator(config=None, *, split='train', batch_size=3, crop=24, seed=5):
  return pipeline.make_train_iterator(
    config or config_lib.base(),
    split=split, batch_size=batch_size, crop=crop, seed=seed,
  )  # fmt: skip


def take(batches, count):
  return list(itertools.islice(batches, count))


def same(a, b):
  return all(
    np.array_equal(x[key], y[key])
    for x, y in zip(a, b, strict=True)
    for key in ('blurred', 'sharp')
  )


@pytest.fixture
def folder_config(tmp_path):
  """Pairs whose blurred image is 255 minus the sharp one; no two rows alike."""
  config = config_lib.base()
  config.data.name, config.data.root = 'folder', str(tmp_path)
  rng = np.random.default_rng(0)
  for split, count in (('train', 5), ('test', 2)):
    for i in range(count):
      sharp = rng.integers(0, 256, (32 + i, 40, 3), np.uint8)
      for side, pixels in (('sharp', sharp), ('blur', 255 - sharp)):
        path = tmp_path / split / side / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
  return config


def test_a_batch_of_one():
  one, two = take(iterator(batch_size=1), 2)
  assert one['blurred'].shape == (1, 24, 24, 3)
  assert not same([one], [two])


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_batches_of_photographs(split):
  (batch,) = take(iterator(split=split), 1)
  assert set(batch) == {'blurred', 'sharp'}
  for images in batch.values():
    assert images.shape == (3, 24, 24, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() <= images.max() <= 1
  assert np.any(batch['blurred'] != batch['sharp'])


def test_batches_follow_from_the_seed_whatever_the_threads():
  reference = take(iterator(), 6)
  assert same(reference, take(iterator(), 6))
  assert not same(reference, take(iterator(seed=6), 6))
  for num_threads in (0, 1, 2, 5):
    config = config_lib.base()
    config.data.num_threads = num_threads
    assert same(reference, take(iterator(config), 6))


def test_resumed_iterator_goes_on_bit_for_bit():
  batches = iterator()
  take(batches, 3)
  state = batches.get_state()
  expected = take(batches, 4)
  resumed = iterator()
  take(resumed, 1)
  resumed.set_state(state)
  assert same(expected, take(resumed, 4))
  batches.set_state(state)
  assert same(expected, take(batches, 4))


def test_a_later_change_of_the_settings_does_not_reach_the_threads():
  config = config_lib.base()
  batches = iterator(config)
  config.data.noise_sigma = 100.0
  config.data.kernel_size = 3
  assert same(take(batches, 2), take(iterator(), 2))


def test_each_pass_draws_new_crops_and_blurs_of_all_photographs():
  config = config_lib.base()
  config.data.augment = False
  crops = set()
  for batch in take(iterator(config, batch_size=8), 40):
    crops |= {crop.tobytes() for crop in batch['blurred']}
  assert len(crops) == 320
  source = sources.make_training_source(config.data, 'train', seed=0)
  assert len(source) == 8


def test_blurred_crops_are_aligned_and_free_of_borders():
  # With a kernel of one pixel and no noise there is nothing to tell apart.
  config = config_lib.base()
  config.data.kernel_size, config.data.noise_sigma = 1, 0.0
  (batch,) = take(iterator(config), 1)
  np.testing.assert_array_equal(batch['blurred'], batch['sharp'])
  # Otherwise the error at the border is the same as inside.
  config = config_lib.base()
  config.data.noise_sigma = 0.0
  batches = take(iterator(config, batch_size=16, crop=48), 12)
  error = np.mean(
    [(b['blurred'] - b['sharp']) ** 2 for b in batches], axis=(0, 1, 4)
  )
  border = np.concatenate([error[:3].ravel(), error[-3:].ravel()]).mean()
  assert 0.7 < border / error[8:-8, 8:-8].mean() < 1.4


@pytest.mark.parametrize('augment', [False, True])
def test_pairs_are_cropped_and_turned_together(folder_config, augment):
  folder_config.data.augment = augment
  source = sources.make_source(folder_config.data, 'train', seed=0)
  windows = {
    np.rot90(item['sharp'][y : y + 32, x : x + 32], turns)[:, ::flip].tobytes()
    for item in map(source.__getitem__, range(len(source)))
    for y in range(item['sharp'].shape[0] - 31)
    for x in range(item['sharp'].shape[1] - 31)
    for turns in range(4 if augment else 1)
    for flip in ((1, -1) if augment else (1,))
  }
  seen = set()
  for batch in take(iterator(folder_config, batch_size=8, crop=32), 5):
    np.testing.assert_allclose(batch['blurred'] + batch['sharp'], 1, atol=1e-6)
    pixels = np.rint(batch['sharp'] * 255).astype(np.uint8)
    seen |= {crop.tobytes() for crop in pixels}
  assert seen <= windows
  assert len(seen) > 20


def test_crops_larger_than_images_are_refused(folder_config):
  with pytest.raises(config_lib.SettingError, match=r'train/\d \(3\dx40\)'):
    iterator(folder_config, crop=40)
  with pytest.raises(config_lib.SettingError, match='8 more to be degraded'):
    iterator(crop=576)
  take(iterator(crop=568), 1)


def test_validation_batch_is_fixed():
  config = config_lib.base()
  batch = pipeline.validation_batch(config)
  assert batch['blurred'].shape == batch['sharp'].shape == (8, 288, 288, 3)
  assert batch['blurred'].dtype == batch['sharp'].dtype == np.float32
  config.seed = 9
  config.data.num_threads = 1
  assert same([batch], [pipeline.validation_batch(config)])
  config.data.num_validation, config.data.eval_crop = 2, 1000
  fewer = pipeline.validation_batch(config)
  assert fewer['sharp'].shape == (2, 576, 576, 3)
  # Evenly spaced: the first pair and the last, centred.
  for i, j in ((0, 0), (1, 7)):
    centre = fewer['blurred'][i, 144:-144, 144:-144]
    np.testing.assert_array_equal(centre, batch['blurred'][j])


def test_validation_batch_shrinks_to_the_smallest_image(folder_config):
  batch = pipeline.validation_batch(folder_config)
  (size,) = sources.make_source(
    folder_config.data, 'validation', seed=folder_config.seed
  ).sizes
  assert batch['sharp'].shape == (1, size[0], size[0], 3)


def test_waiting_is_measured(monkeypatch):
  seconds = 0.0
  clock = types.SimpleNamespace(perf_counter=lambda: seconds)
  monkeypatch.setattr(pipeline, 'time', clock)

  def spend(more):
    nonlocal seconds
    seconds += more

  class Slow:
    """An iterator that takes as long as the training that reads it."""

    def __next__(self):
      spend(2)
      return {}

    def get_state(self):
      return {'next_index': 3}

    def set_state(self, state):
      raise AssertionError(state)

  class Busy:
    """A step that the device still works on."""

    def is_ready(self):
      return False

  batches = pipeline.Batches(Slow())
  assert batches.wait_fraction() == 0.0
  # No step comes after the last batch.
  for pause, fraction in ((2, 10 / 19), (0, 1)):
    for _ in range(10):
      next(batches)
      spend(pause)
    assert batches.wait_fraction() == pytest.approx(fraction)
    spend(100)  # An evaluation, say.
  for _ in range(3):
    batches.take(Busy())
  assert batches.wait_fraction() == 0.0
  assert batches.get_state() == {'next_index': 3}
