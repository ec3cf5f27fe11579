"""PSNR and SSIM agree with scikit-image and SciPy."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
from skimage import metrics as skimage_metrics

from pynas_jax import metrics

PHOTOS = pathlib.Path(__file__).parents[2] / 'shared/data/photos_gb82'


def textured(height, width):
  rng = np.random.default_rng(height * width)
  noise = rng.normal(size=(height, width, 3))
  waves = sum(ndimage.gaussian_filter(noise, (s, s, 0)) * s for s in (1, 3, 9))
  waves[: height // 3] = 1.0  # A flat, burnt-out part, where SSIM is touchy.
  return np.clip(0.5 + 0.25 * waves, 0, 1)


def photo():
  paths = sorted(PHOTOS.glob('*.png'))
  if not paths:
    pytest.skip(f'no photographs in {PHOTOS}')
  with Image.open(paths[0]) as image:
    return np.asarray(image.convert('RGB'))[:301, :233] / 255


@pytest.fixture(params=['textured', 'odd', 'smallest', 'photo'])
def pair(request):
  """A damaged picture and the sharp one, f32[H, W, 3]."""
  sizes = {'textured': (96, 128), 'odd': (61, 37), 'smallest': (11, 12)}
  sharp = photo() if request.param == 'photo' else textured(
    *sizes[request.param]
  )  # fmt: skip
  noise = np.random.default_rng(0).normal(size=sharp.shape)
  damaged = ndimage.gaussian_filter(sharp, (1, 1, 0)) + 0.02 * noise
  return np.clip(damaged, 0, 1).astype(np.float32), sharp.astype(np.float32)


def test_psnr_agrees_with_scikit_image(pair):
  expected = skimage_metrics.peak_signal_noise_ratio(
    pair[1].astype(np.float64), pair[0].astype(np.float64), data_range=1
  )
  actual = metrics.psnr(pair[0][None], pair[1][None])
  assert actual.shape == (1,) and actual.dtype == jnp.float32
  np.testing.assert_allclose(actual[0], expected, atol=1e-4)


def test_ssim_agrees_with_scikit_image(pair):
  expected = skimage_metrics.structural_similarity(
    *(x.astype(np.float64) for x in pair), gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=-1, data_range=1,
  )  # fmt: skip
  actual = metrics.ssim(pair[0][None], pair[1][None])
  np.testing.assert_allclose(actual[0], expected, atol=1e-4)


def ssim_3d_of_scipy(x, y):
  x, y = x.astype(np.float64), y.astype(np.float64)

  def blur(volume):
    return ndimage.gaussian_filter(volume, 1.5, mode='nearest', radius=5)

  mx, my = blur(x), blur(y)
  vx, vy = blur(x * x) - mx**2, blur(y * y) - my**2
  luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
  structure = (2 * (blur(x * y) - mx * my) + 9e-4) / (vx + vy + 9e-4)
  return np.mean(luminance * structure)


def test_ssim_3d_agrees_with_scipy(pair):
  actual = metrics.ssim_3d(pair[0][None], pair[1][None])
  expected = ssim_3d_of_scipy(*pair)
  np.testing.assert_allclose(actual[0], expected, atol=1e-4)


@pytest.mark.parametrize('shape', [(1, 1, 1, 3), (1, 5, 7, 1), (1, 9, 40, 4)])
def test_ssim_3d_takes_any_size(shape):
  x, y = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
  expected = ssim_3d_of_scipy(x[0], y[0])
  np.testing.assert_allclose(metrics.ssim_3d(x, y)[0], expected, atol=1e-4)


@pytest.mark.parametrize('score', [metrics.psnr, metrics.ssim, metrics.ssim_3d])
def test_scores_are_per_image_and_compile(score):
  sharp = np.stack([textured(32, 24), textured(32, 24)[::-1]])
  noise = np.random.default_rng(0).normal(size=sharp.shape)
  sharp, damaged = np.float32(sharp), np.float32(sharp + 0.1 * noise)
  together = jax.jit(score)(damaged, sharp)
  apart = [score(damaged[i : i + 1], sharp[i : i + 1])[0] for i in range(2)]
  np.testing.assert_allclose(together, apart, rtol=1e-5)
  assert together[0] != together[1]


def test_scores_of_equal_images():
  image = np.float32(textured(24, 24))[None]
  assert metrics.psnr(image, image)[0] == np.inf
  np.testing.assert_allclose(metrics.ssim(image, image), 1, atol=1e-6)
  np.testing.assert_allclose(metrics.ssim_3d(image, image), 1, atol=1e-6)


def test_psnr_of_a_large_image_keeps_its_digits():
  rng = np.random.default_rng(0)
  sharp = rng.random((1, 720, 1280, 3), dtype=np.float32)
  damaged = sharp + np.float32(1e-3)
  error = np.square(damaged.astype(np.float64) - sharp)
  expected = -10 * np.log10(error.mean())
  np.testing.assert_allclose(metrics.psnr(damaged, sharp)[0], expected, 1e-6)


def test_scores_of_bfloat16_are_computed_in_float32(pair):
  damaged = jnp.asarray(pair[0][None], jnp.bfloat16)
  exact = damaged.astype(jnp.float32)
  sharp = pair[1][None]
  for score in (metrics.psnr, metrics.ssim, metrics.ssim_3d):
    expected = score(exact, sharp)
    np.testing.assert_allclose(score(damaged, sharp), expected, rtol=1e-6)


def test_quantize_rounds_as_an_8_bit_file():
  image = np.random.default_rng(0).uniform(-0.2, 1.2, (1, 40, 40, 3))
  image = image.astype(np.float32)
  saved = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  quantized = metrics.quantize(image)
  np.testing.assert_array_equal(np.round(quantized * 255), saved)
  np.testing.assert_allclose(quantized, saved / 255, atol=1e-7)


def test_ssim_refuses_images_smaller_than_its_window():
  image = np.zeros((1, 10, 40, 3), np.float32)
  with pytest.raises(ValueError, match='10x40.*at least 11x11'):
    metrics.ssim(image, image)


def test_scores_refuse_different_shapes():
  with pytest.raises(AssertionError):
    metrics.psnr(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 9, 3)))
  with pytest.raises(AssertionError):
    metrics.psnr(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))


@pytest.mark.parametrize('name', ['psnr', 'ssim', 'ssim_3d'])
def test_mask_leaves_pixels_out(name):
  score = getattr(metrics, name)
  rng = np.random.default_rng(5)
  sharp = rng.random((2, 40, 44, 3), np.float32)
  restored = sharp + 0.05 * rng.standard_normal(sharp.shape, np.float32)
  ones = np.ones((2, 40, 44, 1), np.float32)
  np.testing.assert_allclose(
    score(restored, sharp, ones), score(restored, sharp), rtol=1e-5
  )
  # Spoiled pixels, and the windows that see them, do not count.
  mask = ones.copy()
  mask[:, :, 30:] = 0
  spoiled = restored.copy()
  spoiled[:, :, 36:] = 0
  np.testing.assert_allclose(
    score(spoiled, sharp, mask), score(restored, sharp, mask), rtol=1e-5
  )
  assert np.all(np.abs(score(spoiled, sharp) - score(restored, sharp)) > 0.01)


def test_masked_psnr_is_the_mean_over_what_is_left():
  rng = np.random.default_rng(6)
  sharp, restored = rng.random((2, 1, 20, 24, 3), np.float32)
  mask = np.zeros((1, 20, 24, 1), np.float32)
  mask[:, 3:9, 5:20] = 1
  np.testing.assert_allclose(
    metrics.psnr(restored, sharp, mask),
    metrics.psnr(restored[:, 3:9, 5:20], sharp[:, 3:9, 5:20]), rtol=1e-5,
  )  # fmt: skip
