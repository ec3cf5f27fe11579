"""Augmentation: one draw for both images of a pair."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL import ImageEnhance
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import augment
from pynas_jax.data import pipeline


def pair(seed=0, size=10):
  pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
  sharp = pixels.astype(np.uint8)
  return [255 - sharp, sharp]


def test_crops_are_of_one_place():
  rng = np.random.default_rng(0)
  images, places = pair(), set()
  for _ in range(200):
    crop = augment.random_crop(rng, images, 7)
    assert crop.shape == (2, 7, 7, 3)
    np.testing.assert_allclose(crop.sum(axis=0), 1, atol=1e-6)
    places.add(crop.tobytes())
  assert len(places) == 16


@pytest.mark.parametrize('scale', [1, 2, 3])
def test_the_middle_of_both_is_one_place(scale):
  small, _ = pair(size=10)
  large = small.repeat(scale, axis=0).repeat(scale, axis=1)
  crops = augment.centre_pair(small, large, 4 * scale)
  np.testing.assert_array_equal(crops[0], small[3:7, 3:7])
  again = crops[0].repeat(scale, axis=0).repeat(scale, axis=1)
  np.testing.assert_array_equal(crops[1], again)


def test_turns_are_the_eight_of_a_square():
  rng = np.random.default_rng(0)
  images = np.stack(pair())
  seen = {}
  for _ in range(400):
    turned = np.stack(augment.turn(rng, images))
    np.testing.assert_array_equal(turned[0], 255 - turned[1])
    seen[turned.tobytes()] = seen.get(turned.tobytes(), 0) + 1
  assert len(seen) == 8
  assert min(seen.values()) > 25


def test_saturation_is_pillows():
  images = np.stack(pair()).astype(np.float32) / 255
  rng = np.random.default_rng(1)
  factor = np.random.default_rng(1).uniform(0.8, 1.2)
  jittered = augment.jitter_saturation(rng, images, 0.2)
  assert {image.dtype for image in jittered} == {np.dtype(np.float32)}
  for before, after in zip(pair(), jittered, strict=True):
    # Pillow rounds the grey and the result.
    reference = ImageEnhance.Color(Image.fromarray(before)).enhance(factor)
    np.testing.assert_allclose(after * 255, np.asarray(reference), atol=1.6)


@pytest.mark.parametrize('strength', [0.0, 0.2])
def test_the_setting_turns_it_on(strength):
  config = config_lib.base()
  config.data.saturation_jitter = strength
  batches = [
    next(
      pipeline.make_train_iterator(
        c, split='train', batch_size=2, crop=16, seed=0
      )
    )['sharp']
    for c in (config_lib.base(), config)
  ]
  assert np.array_equal(*batches) == (strength == 0)
