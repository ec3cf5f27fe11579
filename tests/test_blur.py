"""Blur kernels and their convolution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pynas_jax import config as config_lib
from pynas_jax.data import blur


@pytest.mark.parametrize('size', [1, 3, 15, 31])
@pytest.mark.parametrize('steps', [1, 24])
def test_kernels_are_centred_averages(size, steps):
  rng = np.random.default_rng(0)
  offsets = np.arange(size) - size // 2
  for _ in range(50):
    kernel = blur.random_walk_kernel(rng, size=size, steps=steps)
    assert kernel.shape == (size, size)
    assert kernel.dtype == np.float32
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-6)
    assert abs(kernel.sum(0) @ offsets) < 0.5
    assert abs(kernel.sum(1) @ offsets) < 0.5


def test_kernels_are_connected_and_range_from_mild_to_strong():
  rng = np.random.default_rng(1)
  reach = []
  for _ in range(100):
    kernel = blur.random_walk_kernel(rng, size=15, steps=24)
    _, num_parts = ndimage.label(kernel, structure=np.ones((3, 3)))
    assert num_parts == 1
    rows, columns = np.nonzero(kernel)
    reach.append(max(np.ptp(rows), np.ptp(columns)) + 1)
  assert min(reach) <= 4
  assert max(reach) >= 13


@pytest.mark.parametrize('size', [3, 5, 7])
def test_kernels_always_blur(size):
  rng = np.random.default_rng(0)
  for _ in range(200):
    kernel = blur.random_walk_kernel(rng, size=size, steps=16)
    assert kernel[size // 2, size // 2] < 1


def test_kernels_follow_from_the_seed():
  def draw(seed):
    rng = np.random.default_rng(seed)
    return blur.random_walk_kernel(rng, size=15, steps=24)

  np.testing.assert_array_equal(draw(3), draw(3))
  assert np.any(draw(3) != draw(4))


@pytest.mark.parametrize(('size', 'steps'), [(4, 8), (0, 8), (5, 0)])
def test_bad_kernel_settings_are_refused(size, steps):
  with pytest.raises(config_lib.SettingError, match='kernel'):
    blur.random_walk_kernel(np.random.default_rng(0), size=size, steps=steps)


@pytest.mark.parametrize('shape', [(37, 24, 3), (111, 111, 3), (5, 4, 1)])
@pytest.mark.parametrize('size', [1, 5, 15])
def test_apply_kernel_is_scipys_mirror_convolution(shape, size):
  rng = np.random.default_rng(2)
  image = rng.random(shape, np.float32)
  kernel = rng.random((size, size), np.float32)  # Asymmetric and dense.
  kernel /= kernel.sum()
  expected = ndimage.convolve(
    image.astype(np.float64), kernel[:, :, None], mode='mirror'
  )
  result = blur.apply_kernel(image, kernel)
  assert result.dtype == np.float32
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_apply_kernel_refuses_other_types():
  image, kernel = np.zeros((8, 8, 3), np.float32), np.ones((1, 1), np.float32)
  with pytest.raises(AssertionError):
    blur.apply_kernel(image.astype(np.uint8), kernel)
  with pytest.raises(AssertionError):
    blur.apply_kernel(image[None], kernel)
