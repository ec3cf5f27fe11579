"""Losses are what they say, with gradients that are finite everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import losses
from pynas_jax import metrics


def batch(seed=0):
  return np.random.default_rng(seed).random((3, 12, 13, 3), dtype=np.float32)


def test_mse():
  expected = np.mean(np.square(batch(0).astype(np.float64) - batch(1)))
  np.testing.assert_allclose(losses.mse(batch(0), batch(1)), expected, 1e-6)


def test_negative_psnr_is_the_mean_over_images():
  expected = -metrics.psnr(batch(0), batch(1)).mean()
  actual = losses.negative_psnr(batch(0), batch(1))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_gradient_is_finite_even_where_images_are_equal(name):
  sharp = batch()
  for restored in (sharp, sharp + 1e-6, 1 - sharp, 1e3 * sharp):
    value, gradient = jax.value_and_grad(losses.LOSSES[name])(
      jnp.asarray(restored), sharp
    )
    assert value.shape == () and np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('name', ['mse', 'psnr'])
def test_gradient_points_to_the_sharp_image(name):
  loss, sharp = losses.LOSSES[name], batch()
  restored = jnp.asarray(1 - sharp)
  gradient = jax.grad(loss)(restored, sharp)
  np.testing.assert_array_equal(np.sign(gradient), np.sign(restored - sharp))


@pytest.mark.parametrize('name', losses.LOSSES)
def test_bfloat16_is_computed_in_float32(name):
  restored = jnp.asarray(batch(1), jnp.bfloat16)
  value = losses.LOSSES[name](restored, batch())
  assert value.dtype == jnp.float32
  exact = losses.LOSSES[name](restored.astype(jnp.float32), batch())
  np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_charbonnier_is_the_absolute_error_but_at_zero():
  expected = np.abs(batch(0).astype(np.float64) - batch(1)).mean()
  actual = losses.charbonnier(batch(0), batch(1))
  np.testing.assert_allclose(actual, expected, rtol=1e-3)
  np.testing.assert_allclose(
    losses.charbonnier(batch(), batch()), losses.SMOOTHING, rtol=1e-5
  )


@pytest.mark.parametrize(
  ('name', 'factor', 'weight'),
  [('mse_ssim', 1.0, 0.6), ('mse_ssim_code', 0.5, 0.5)],
)
def test_mse_and_ssim_are_weighted_as_in_paper_and_code(name, factor, weight):
  sharp = batch()
  restored = (0.8 * sharp + 0.1).astype(np.float32)
  similarity = np.asarray(metrics.ssim(restored, sharp), np.float64)
  log = np.log10(1 / similarity).mean()
  expected = factor * (losses.mse(restored, sharp) + weight * log)
  np.testing.assert_allclose(
    losses.LOSSES[name](restored, sharp), expected, rtol=1e-5
  )
