"""Operators: values and gradients against JAX's own convolutions; counts."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import genotype
from pynas_jax.nn import ops


def normal(seed, *shape):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(x, jnp.float32)


def reference_conv(x, kernel, dilation=1, groups=1):
  pad = dilation * (kernel.shape[0] // 2)
  return lax.conv_general_dilated(
    x, kernel, (1, 1), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups,
  )  # fmt: skip


def assert_same_function(f, g, *args):
  """Values and gradients of f and g agree."""
  weight = normal(9, *f(*args).shape)

  def total(function):
    return lambda *args: (function(*args) * weight).sum()

  np.testing.assert_allclose(f(*args), g(*args), rtol=1e-5, atol=1e-5)
  every = tuple(range(len(args)))
  grads = jax.jit(jax.grad(total(f), every))(*args)
  expected = jax.jit(jax.grad(total(g), every))(*args)
  for a, b in zip(grads, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'weight_gradient', ['images', 'strips', 'products', 'elsewhere']
)
@pytest.mark.parametrize('features', [2, 4])  # Fewer than come in, and more.
@pytest.mark.parametrize(
  ('size', 'dilation'), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2), (3, 3)]
)
def test_conv2d_is_the_native_convolution(
  size, dilation, features, weight_gradient, monkeypatch
):
  if weight_gradient == 'elsewhere':
    monkeypatch.setattr(ops, '_correlate_on_cpu', ops._correlate_elsewhere)
  elif weight_gradient == 'products':
    monkeypatch.setattr(ops, '_WINOGRAD_CHANNELS', 1)
    monkeypatch.setattr(ops, '_WINOGRAD_PRODUCTS', 1)
  else:
    images = {'images': 1, 'strips': 8}
    monkeypatch.setattr(ops, '_MIN_IMAGES', images[weight_gradient])
  x, kernel = normal(0, 2, 9, 7, 3), normal(1, size, size, 3, features)
  assert_same_function(
    lambda x, k: ops.conv2d(x, k, dilation),
    lambda x, k: reference_conv(x, k, dilation), x, kernel,
  )  # fmt: skip


@pytest.mark.parametrize('bands', [1, 2, 4, 9, 99])
def test_depthwise_conv2d_is_the_native_grouped_convolution(bands, monkeypatch):
  x, kernel = normal(0, 2, 9, 7, 4), normal(1, 3, 3, 4)
  monkeypatch.setattr(ops, '_BAND_BYTES', x.nbytes // bands)
  assert_same_function(
    ops.depthwise_conv2d,
    lambda x, k: reference_conv(x, k[:, :, None], groups=4), x, kernel,
  )  # fmt: skip


def test_transposed_conv2d_is_the_native_one():
  assert_same_function(
    ops.transposed_conv2d,
    lambda x, k: lax.conv_transpose(x, k, (2, 2), 'SAME'),
    normal(0, 2, 5, 7, 3), normal(1, 4, 4, 3, 2),
  )  # fmt: skip


@pytest.mark.skipif(
  jax.__version_info__ < (0, 12), reason='XLA for CPUs orders them itself'
)
@pytest.mark.parametrize('dilation', [1, 2])
def test_gradients_in_turn_take_less_memory(monkeypatch, dilation):
  def loss(kernels, x):
    for kernel in kernels:
      x = x + jax.nn.relu(ops.conv2d(x, kernel, dilation))
    return (x**2).mean()

  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 128, 128, 16)), jnp.float32)
  kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 16, 16)) / 20, jnp.float32)

  def compile_gradient():
    # A function of its own, that what is traced is not the one before.
    program = jax.jit(lambda *args: jax.grad(loss)(*args))
    return program.lower(kernels, x).compile()

  in_turn = compile_gradient()
  monkeypatch.setattr(ops, '_both_first', lambda x, y: (x, y))
  at_once = compile_gradient()
  np.testing.assert_allclose(
    in_turn(kernels, x), at_once(kernels, x), rtol=1e-4, atol=1e-6
  )
  temporaries = [
    program.memory_analysis().temp_size_in_bytes
    for program in (in_turn, at_once)
  ]
  assert temporaries[0] <= temporaries[1] - x.nbytes / 2


@pytest.mark.parametrize(
  ('function', 'kernel_shape'),
  [
    (ops.conv2d, (3, 3, 32, 32)),
    (functools.partial(ops.conv2d, dilation=2), (3, 3, 32, 32)),
    (ops.depthwise_conv2d, (3, 3, 32)),
  ],
  ids=['conv', 'dilated', 'depthwise'],
)
def test_large_kernel_gradients_make_no_copies(function, kernel_shape):
  if jax.default_backend() != 'cpu':
    pytest.skip('for processors')

  def gradient(x, kernel, grad):
    return jax.vjp(lambda kernel: function(x, kernel), kernel)[1](grad)

  x = jax.ShapeDtypeStruct((2, 256, 256, 32), jnp.float32)
  kernel = jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
  program = jax.jit(gradient).lower(x, kernel, x).compile()
  temporaries = program.memory_analysis().temp_size_in_bytes
  assert temporaries < 4 * x.size / 2


def test_every_operator_of_a_genotype_can_be_built():
  assert tuple(ops.OPS) == genotype.OPERATORS


@pytest.mark.parametrize('name', ops.OPS)
def test_operators_keep_the_shape_and_have_the_parameters_counted(name):
  module, x = ops.OPS[name](6), normal(0, 1, 8, 8, 6)
  variables = module.init(jax.random.key(0), x)
  assert module.apply(variables, x).shape == x.shape
  num_params = sum(p.size for p in jax.tree.leaves(variables))
  assert ops.count(name, 6)[0] == num_params


def test_golden_counts():
  counts = {name: ops.count(name, 32) for name in ops.OPS}
  assert counts == {
    'conv_3x3': (9248, 9216),
    'conv_5x5': (25632, 25600),
    'conv_3x3_dil2': (9248, 9216),
    'sep_conv_3x3': (1344, 1312),
    'zero': (0, 0),
    'conv_3x3_x2': (18496, 18432),
  }


def test_zero_returns_zeros():
  x = normal(0, 1, 4, 4, 3)
  assert not ops.Zero(3).apply({}, x).any()


def test_bfloat16_arithmetic_keeps_float32_weights():
  module, x = ops.Conv(4, dtype=jnp.bfloat16), normal(0, 1, 8, 8, 3)
  variables = module.init(jax.random.key(0), x)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
  y = module.apply(variables, x)
  assert y.dtype == jnp.bfloat16
  exact = ops.Conv(4).apply(variables, x)
  np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.1, atol=0.1)
