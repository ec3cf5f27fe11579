"""Degradations: their statistics, their references, their seeds."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from pynas_jax import config as config_lib
from pynas_jax.data import blur
from pynas_jax.data import degrade


def photo(height=120, width=90):
  """Returns f32[H, W, 3], smooth with some edges."""
  rng = np.random.default_rng(0)
  image = ndimage.gaussian_filter(rng.random((height, width, 3)), (3, 3, 0))
  image = (image - image.min()) / np.ptp(image)
  image[20:40, 30:50] = 1
  return image.astype(np.float32)


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize('sigma', [15, 30, 50, 70])
def test_gaussian_noise_has_its_sigma(sigma):
  grey = np.full((200, 200, 3), 0.5, np.float32)
  noisy = degrade.gaussian_noise(rng(), grey, sigma=sigma)
  assert noisy.dtype == np.float32
  assert abs(noisy.std() * 255 / sigma - 1) < 0.02
  assert abs(noisy.mean() - 0.5) < 0.005
  assert (noisy.max() > 1) == (sigma > 30)
  rounded = degrade.gaussian_noise(rng(), grey, sigma=sigma, quantize=True)
  np.testing.assert_allclose(rounded, np.clip(noisy, 0, 1), atol=0.5 / 255)
  np.testing.assert_allclose(rounded * 255, np.rint(rounded * 255), atol=1e-4)


def test_sensor_noise_grows_with_the_light():
  for light in (0.1, 0.8):
    image = np.full((300, 300, 3), light, np.float32)
    noisy = degrade.sensor_noise(rng(), image, gain=0.01)
    assert abs(noisy.var() / (0.01 * light) - 1) < 0.03
    assert abs(noisy.mean() - light) < 0.002
  np.testing.assert_array_equal(
    degrade.sensor_noise(rng(), image, gain=0), image
  )


def test_jpeg_is_pillows_file(tmp_path):
  image = photo()
  path = tmp_path / 'a.jpg'
  pixels = np.rint(image * 255).astype(np.uint8)
  Image.fromarray(pixels).save(path, quality=40)
  decoded = degrade.jpeg(image, quality=40)
  assert decoded.dtype == np.float32
  np.testing.assert_array_equal(
    np.rint(decoded * 255), np.array(Image.open(path))
  )
  errors = [
    np.mean((degrade.jpeg(image, quality=q) - image) ** 2) for q in (10, 50, 95)
  ]
  assert errors == sorted(errors, reverse=True)
  grey = degrade.jpeg(image[..., :1], quality=90)
  assert grey.shape == image[..., :1].shape


def test_imresize_is_matlabs():
  # imresize(reshape(0:15, 4, 4)', 3 / 4), as sanghyun-son/bicubic_pytorch
  # prints it after comparing with MATLAB.
  image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
  expected = [
    [0.7506, 2.1004, 3.4503], [6.1505, 7.5000, 8.8499],
    [11.5497, 12.8996, 14.2494],
  ]  # fmt: skip
  resized = degrade.imresize(image, scale=0.75)
  assert resized.dtype == np.float32
  np.testing.assert_allclose(resized[..., 0], expected, atol=1e-3)


@pytest.mark.parametrize('scale', [1 / 2, 1 / 3, 1 / 4, 0.75, 2, 3])
@pytest.mark.parametrize('shape', [(96, 72), (132, 60)])
def test_imresize_is_pillows_inside(scale, shape):
  # Pillow filters alike, but leaves out what is beyond the border.
  image = rng().random((*shape, 1), np.float32)
  resized = degrade.imresize(image, scale=scale)[..., 0]
  height, width = resized.shape
  assert (height, width) == tuple(int(np.ceil(s * scale)) for s in shape)
  reference = Image.fromarray(image[..., 0]).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  edge = int(np.ceil(3 * max(1, scale)))
  inside = (slice(edge, -edge), slice(edge, -edge))
  np.testing.assert_allclose(
    resized[inside], np.asarray(reference)[inside], atol=1e-5
  )


def test_imresize_keeps_flat_images_and_reflects():
  flat = np.full((10, 7, 3), 0.3, np.float32)
  for scale in (0.25, 0.5, 1.7, 4):
    np.testing.assert_allclose(degrade.imresize(flat, scale=scale), 0.3, 1e-6)
  image = photo()
  np.testing.assert_allclose(degrade.imresize(image, scale=1), image, atol=1e-6)
  mirrored = np.pad(image, ((40, 40), (40, 40), (0, 0)), 'symmetric')
  wide = degrade.imresize(mirrored, scale=0.25)[10:-10, 10:-10]
  narrow = degrade.imresize(image[:, :88], scale=0.25)
  np.testing.assert_allclose(narrow[:, :20], wide[:, :20], atol=1e-5)


def test_highlights_hold_hidden_light():
  image = photo()
  bright = degrade.expand_highlights(image, gain=4)
  white = image.max(axis=2) >= degrade.WHITE
  np.testing.assert_allclose(bright[white], 4 * image[white])
  np.testing.assert_array_equal(bright[~white], image[~white])


def test_recipe_of_blur_and_noise_alone():
  recipe = degrade.Recipe(kernel_size=9, kernel_steps=8, noise_sigma=5.0)
  grey = np.full((128, 128, 3), 0.5, np.float32)
  noisy = recipe.degrade(rng(), grey)
  assert noisy.dtype == np.float32
  assert abs(noisy.std() * 255 - 5.0) < 0.1
  white = recipe.degrade(rng(), grey * 2)
  assert white.max() == 1.0
  assert white.min() >= 0.0
  clear = degrade.Recipe(kernel_size=9, kernel_steps=8, noise_sigma=0.0)
  kernel = blur.random_walk_kernel(rng(), size=9, steps=8)
  expected = blur.apply_kernel(photo(), kernel)
  np.testing.assert_array_equal(clear.degrade(rng(), photo()), expected)
  assert clear.margin == 8


def test_recipe_in_linear_light():
  plain = degrade.Recipe(kernel_size=9, kernel_steps=8, noise_sigma=0.0)
  linear = degrade.Recipe(
    kernel_size=9, kernel_steps=8, noise_sigma=0.0, light_gamma=2.2
  )
  kernel = blur.random_walk_kernel(rng(), size=9, steps=8)
  expected = blur.apply_kernel(photo() ** np.float32(2.2), kernel) ** (1 / 2.2)
  np.testing.assert_allclose(
    linear.degrade(rng(), photo()), expected, atol=1e-5
  )
  # Light adds up brighter than stored values do.
  assert linear.degrade(rng(), photo()).mean() > plain.degrade(
    rng(), photo()
  ).mean()


@pytest.mark.parametrize(
  'settings',
  [{'highlight_gain': 8.0}, {'shot_noise': 0.02}, {'jpeg_quality': (30, 60)}],
)
def test_each_setting_of_the_recipe_tells(settings):
  names = {'kernel_size': 9, 'kernel_steps': 8, 'noise_sigma': 0.0}
  plain = degrade.Recipe(**names).degrade(rng(), photo())
  other = degrade.Recipe(**names, **settings).degrade(rng(), photo())
  assert np.mean(np.abs(plain - other)) > 1e-3
  assert other.dtype == np.float32
  assert 0 <= other.min() <= other.max() <= 1


def test_highlights_become_streaks():
  dark = np.full((41, 41, 3), 0.05, np.float32)
  dark[20, 20] = 1
  names = {'kernel_size': 15, 'kernel_steps': 16, 'noise_sigma': 0.0}
  plain = degrade.Recipe(**names).degrade(rng(), dark)
  lamp = degrade.Recipe(**names, highlight_gain=60.0).degrade(rng(), dark)
  assert plain.max() < 0.6
  assert (lamp > 0.98).sum() >= 6


def test_recipe_takes_its_settings():
  data = config_lib.base().data
  data.update(
    kernel_size=5, kernel_steps=3, noise_sigma=2.0, light_gamma=2.2,
    highlight_gain=3.0, shot_noise=0.01, jpeg_quality=(70, 80),
  )  # fmt: skip
  assert degrade.Recipe.from_settings(data) == degrade.Recipe(
    5, 3, 2.0, 2.2, 3.0, 0.01, (70, 80)
  )


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('highlight_gain', 0.5), ('jpeg_quality', (0, 50)),
    ('jpeg_quality', (80, 60)), ('jpeg_quality', (50,)),
    ('jpeg_quality', (50.5, 60)), ('shot_noise', -1.0), ('light_gamma', 0.0),
    ('saturation_jitter', 1.0), ('num_threads', -1), ('tiles', True),
  ],
)  # fmt: skip
def test_bad_settings_are_refused(name, value):
  config = config_lib.base()
  config.data.update({name: value})
  with pytest.raises(config_lib.SettingError, match=f'data.{name} is'):
    config_lib.validate(config)


_DIGEST = """
import hashlib
import numpy as np
from pynas_jax.data import degrade
image = np.linspace(0, 1, 60 * 50 * 3, dtype=np.float32).reshape(60, 50, 3)
recipe = degrade.Recipe(9, 16, 10.0, 2.2, 3.0, 0.01, (30, 90))
digest = hashlib.sha256()
for seed in range(3):
  rng = np.random.default_rng(seed)
  digest.update(degrade.gaussian_noise(rng, image, sigma=30).tobytes())
  digest.update(degrade.jpeg(image, quality=30 + seed).tobytes())
  digest.update(recipe.degrade(rng, image).tobytes())
print(digest.hexdigest())
"""


def test_bits_follow_from_the_seed_in_every_process():
  digests = {
    subprocess.run(
      [sys.executable, '-c', _DIGEST], capture_output=True, text=True,
      check=True, env={'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('1', '2')
  }  # fmt: skip
  assert len(digests) == 1
  assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_varying_blur_mixes_two_blurs_across_the_frame():
  names = {'kernel_size': 9, 'kernel_steps': 8, 'noise_sigma': 0.0}
  even = degrade.Recipe(**names).degrade(rng(), photo())
  varying = degrade.Recipe(**names, varying=1.0).degrade(rng(), photo())
  difference = np.abs(varying - even).mean(axis=2)
  # The first kernel is the same: one side keeps its blur, the other does not.
  sides = [
    difference[:12].mean(), difference[-12:].mean(),
    difference[:, :9].mean(), difference[:, -9:].mean(),
  ]  # fmt: skip
  assert max(sides) > 4 * min(sides)
  never = degrade.Recipe(**names, varying=0.0).degrade(rng(), photo())
  np.testing.assert_array_equal(never, even)
  ramp = blur.random_ramp(rng(), height=20, width=30)
  assert ramp.shape == (20, 30, 1)
  assert ramp.min() == 0 and ramp.max() == 1
