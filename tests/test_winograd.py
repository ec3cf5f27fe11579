"""Winograd's weight gradients against plain sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax.nn import ops
from pynas_jax.nn import winograd


@pytest.mark.parametrize('jax_is_old', [False, True])
@pytest.mark.parametrize('taps', range(1, winograd.MAX_TAPS + 1))
@pytest.mark.parametrize('band_bytes', [1, 6000, 2**30])
@pytest.mark.parametrize(
  ('shape', 'pad', 'dilation'),
  [
    ((2, 8, 8, 4), 1, 1), ((1, 29, 14, 3), 2, 1), ((3, 5, 6, 2), 0, 1),
    ((2, 19, 14, 3), 2, 2), ((1, 13, 27, 2), 3, 3),
  ],
)  # fmt: skip
def test_correlation_is_the_sum(
  taps, band_bytes, shape, pad, dilation, jax_is_old, monkeypatch
):
  """In bands of one row of tiles, of some, whole or not, and of all."""
  monkeypatch.setattr(winograd, '_JAX_IS_OLD', jax_is_old)
  monkeypatch.setattr(winograd, '_BAND_BYTES', band_bytes)
  images, height, width, channels = shape
  reach = dilation * (taps - 1)
  sides = (height + 2 * pad - reach, width + 2 * pad - reach)
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape)
  grad = rng.standard_normal((images, *sides, 5))
  padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  windows = np.lib.stride_tricks.sliding_window_view(padded, sides, (1, 2))
  windows = windows[:, ::dilation, ::dilation]
  expected = np.einsum('nabchw,nhwd->cabd', windows, grad)
  found = winograd.correlate(
    jnp.asarray(x, jnp.float32), jnp.asarray(grad, jnp.float32), pad=pad,
    dilation=dilation,
  )  # fmt: skip
  assert found.shape == (channels, taps, taps, 5)
  np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_gradients_of_large_images_stay_exact():
  """To a few times what a float32 convolution itself is off by."""
  rng = np.random.default_rng(0)
  x, grad = rng.random((2, 2, 128, 128, 32), np.float32)
  with jax.enable_x64(True):
    exact = np.asarray(
      ops._correlate_elsewhere(
        *(jnp.asarray(a, jnp.float64) for a in (x, grad)), pad=1
      )
    )
  scale = abs(exact).max()
  native = abs(ops._correlate_elsewhere(x, grad, pad=1) - exact).max() / scale
  ours = abs(winograd.correlate(x, grad, pad=1) - exact).max() / scale
  assert ours < max(10 * native, 1e-6)


@pytest.mark.parametrize(
  ('dtype', 'channels', 'side', 'size', 'convolutions'),
  [
    (jnp.float32, 32, 128, 3, 0),
    (jnp.float32, 32, 128, 5, 0),
    (jnp.float32, 32, 128, 7, 1),
    (jnp.float32, 16, 128, 3, 1),
    (jnp.float32, 32, 64, 3, 1),
    (jnp.bfloat16, 32, 128, 3, 1),
  ],
)
def test_weight_gradients_that_gain_by_it_are_so(
  dtype, channels, side, size, convolutions
):
  if jax.default_backend() != 'cpu':
    pytest.skip('for processors')

  def gradient(x, kernel, grad):
    return jax.vjp(lambda kernel: ops.conv2d(x, kernel), kernel)[1](grad)

  x = jax.ShapeDtypeStruct((1, side, side, channels), dtype)
  kernel = jax.ShapeDtypeStruct((size, size, channels, channels), dtype)
  text = jax.jit(gradient).lower(x, kernel, x).as_text()
  assert text.count('stablehlo.convolution') == convolutions
