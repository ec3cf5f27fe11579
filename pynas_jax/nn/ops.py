"""Candidate operators by name, and the convolutions that they are made of.

Feature maps are [B, H, W, C], float32 or bfloat16; weights are float32. An
operator keeps the shape. In a cell it is followed by ReLU (PyNAS section 2.3:
no batch norm), except `conv_3x3_x2`, DMPHN's conv-ReLU-conv.

XLA:CPU runs the weight gradient of a convolution inside a `lax.switch` a
hundred times slower than outside, so `conv2d` has hand-written gradients that
are plain convolutions or products again; depthwise convolutions are shifted
multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import itertools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from pynas_jax.nn import canvas
from pynas_jax.nn import patches
from pynas_jax.nn import quantization
from pynas_jax.nn import winograd


def by_shape(init: Callable) -> Callable:
  """Returns an initialiser that is compiled once for each shape.

  Args:
    init: Of Flax, `(key, shape) -> f32[*shape]`.
  """
  return jax.jit(init, static_argnums=1)


@functools.cache
def depthwise_init(kernel_size: int) -> Callable:
  """Returns the initialiser of depthwise kernels, f32[k, k, C].

  One input channel a filter: the fan is that of a k x k x 1 kernel.

  Args:
    kernel_size: k, in pixels.
  """
  return by_shape(nn.initializers.normal(1.0 / kernel_size))


# N(0, 0.5 * sqrt(2 / (k * k * features))), as the DMPHN code.
KERNEL_INIT = by_shape(
  nn.initializers.variance_scaling(0.5, 'fan_out', 'normal')
)
_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# Weight gradients of fewer channels are not faster by Winograd's products, and
# those of fewer products for each tap are not worth compiling them.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_PRODUCTS = 2**23
_BAND_BYTES = 2**21  # Of features at a time, in depthwise kernel gradients.
# XLA:CPU of jax 0.10 takes up to four times as long for those of fewer images.
_MIN_IMAGES = 8 if jax.__version_info__ < (0, 11) else 1


def conv2d(
  x: jax.Array, kernel: jax.Array, dilation: int = 1, pad: int | None = None
) -> jax.Array:
  """Convolves with stride 1 and zero padding.

  Args:
    x: [B, H, W, C].
    kernel: [k, k, C, D], of the same dtype.
    dilation: Distance between kernel taps, in pixels.
    pad: Pixels on each side, for a dilation of 1; None keeps the size, for odd
      k.

  Returns:
    [B, H, W, D], or what the padding makes of H and W.
  """
  x, kernel = quantization.visit(x, kernel)
  if kernel.shape[0] > 1:
    x = canvas.blank(x)
  return _conv2d(x, kernel, dilation, pad)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, dilation, pad):
  if pad is None:
    pad = dilation * (kernel.shape[0] // 2)
  if x.shape[3] % 2 and x.shape[3] > 1:
    # XLA:CPU takes four times as long for 3 channels as for 4, 5 as for 6.
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
  return lax.conv_general_dilated(
    x, kernel, (1, 1), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation),
    dimension_numbers=_DIMENSIONS,
  )  # fmt: skip


def _conv2d_forward(x, kernel, dilation, pad):
  return _conv2d(x, kernel, dilation, pad), (x, kernel)


def _conv2d_backward(dilation, pad, saved, grad):
  x, kernel = saved
  size = kernel.shape[0]
  if pad is None:
    pad = dilation * (size // 2)
  other_pad = dilation * (size - 1) - pad
  if size > 1:  # A product needs no copies of x.
    x, grad = _both_first(x, grad)
  kernel_grad = _kernel_grad(x, grad, size, dilation, pad, other_pad)
  kernel_grad, grad = _both_first(kernel_grad, grad)
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  return _conv2d(grad, flipped, dilation, other_pad), kernel_grad


def _kernel_grad(x, grad, size, dilation, pad, other_pad):
  if size == 1:  # A product of matrices.
    pixels = (0, 1, 2)
    return lax.dot_general(x, grad, ((pixels, pixels), ((), ())))[None, None]

  # Or the other way round: x slides over the gradient. It is fast where the
  # kernel has the more channels, and is not larger than the image.
  if grad.shape[3] < x.shape[3] or size % 2 == 0:
    kernel_grad = _correlate(grad, x, other_pad, dilation)[:, ::-1, ::-1]
    return kernel_grad.transpose(1, 2, 3, 0)
  return _correlate(x, grad, pad, dilation).transpose(1, 2, 0, 3)


def _both_first(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns two arrays, neither of which is used before both are computed.

  Left to itself, XLA:CPU makes copies of what a gradient needs, padded or
  transposed, long before it, and keeps them all. Both results have to be used:
  an array whose result is not is not waited for.

  Args:
    x: Of any shape.
    y: Of any shape.

  Returns:
    (x, y).
  """
  return lax.optimization_barrier((x, y))


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _correlate(
  x: jax.Array, grad: jax.Array, pad: int, dilation: int
) -> jax.Array:
  """Returns the sums over images and pixels of x, shifted, times grad.

  That is a convolution whose batch is C and whose kernel is the gradient; of
  each phase of the pixels, if the taps are dilated.

  Args:
    x: [B, H, W, C].
    grad: [B, H + 2 * pad - r, W + 2 * pad - r, D], r = dilation * (k - 1).
    pad: Zeros on each side of x, pixels; r / 2 if the taps are dilated.
    dilation: Distance between taps, pixels.

  Returns:
    [C, k, k, D], by tap.
  """
  return lax.platform_dependent(
    x, grad,
    cpu=functools.partial(_correlate_on_cpu, pad=pad, dilation=dilation),
    default=functools.partial(_correlate_elsewhere, pad=pad, dilation=dilation),
  )  # fmt: skip


def _correlate_elsewhere(x, grad, *, pad, dilation=1):
  """The same, as JAX writes the gradient of a convolution itself."""
  x, grad, pad = _phases(x, dilation), _phases(grad, dilation), pad // dilation
  return lax.conv_general_dilated(
    x, grad, (1, 1), [(pad, pad)] * 2,
    dimension_numbers=('CHWN', 'IHWO', 'NHWC'),
  )  # fmt: skip


def _correlate_on_cpu(x, grad, *, pad, dilation):
  """The same by Winograd's products, where they gain, or transposed explicitly.

  XLA:CPU has fast paths for convolutions that are.

  Strides, as of a dilated convolution without phases, have none.
  """
  reach = (x.shape[1] + 2 * pad - grad.shape[1]) // dilation
  if (
    reach < winograd.MAX_TAPS
    and min(x.shape[3], grad.shape[3]) >= _WINOGRAD_CHANNELS
    and grad.size * x.shape[3] >= _WINOGRAD_PRODUCTS
    and x.dtype == jnp.float32
  ):
    return winograd.correlate(x, grad, pad=pad, dilation=dilation)
  x, grad, pad = _phases(x, dilation), _phases(grad, dilation), pad // dilation
  strips, row_pad = max(1, _MIN_IMAGES // len(x)), pad
  while grad.shape[1] % strips:
    strips -= 1
  if strips > 1:  # Of rows, as images of their own.
    rows = grad.shape[1] // strips
    x, row_pad = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0))), 0
    tops = range(0, grad.shape[1], rows)
    x = jnp.concatenate([x[:, i : i + rows + reach] for i in tops])
    grad = jnp.concatenate([grad[:, i : i + rows] for i in tops])
  return lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), (1, 1),
    [(row_pad, row_pad), (pad, pad)], dimension_numbers=_DIMENSIONS,
  )  # fmt: skip


def _phases(x: jax.Array, step: int) -> jax.Array:
  """Returns every step-th pixel, by row and column, as images of their own.

  Args:
    x: [B, H, W, C].
    step: Pixels, s.

  Returns:
    [s * s * B, H / s, W / s, C]; sides that are no multiples have zeros beside.
  """
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, -h % step), (0, -w % step), (0, 0)))
  h, w = x.shape[1] // step, x.shape[2] // step
  x = x.reshape(b, h, step, w, step, c).transpose(2, 4, 0, 1, 3, 5)
  return x.reshape(step * step * b, h, w, c)


def transposed_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Doubles the resolution: a transposed convolution with stride 2.

  XLA:CPU is slow at it, and slower at its gradients. So it is one convolution
  2x2 that makes the even and the odd rows and columns, and a depth-to-space.

  Args:
    x: [B, H, W, C].
    kernel: [4, 4, C, D], of the same dtype.

  Returns:
    [B, 2 * H, 2 * W, D]: `lax.conv_transpose` with padding 'SAME'.
  """
  n, h, w, c = x.shape
  d = kernel.shape[-1]
  # Row 2i + a takes tap 2t + a of row i + t + a - 1, for t = 0, 1.
  taps = kernel.reshape(2, 2, 2, 2, c, d)  # [t, a, s, b, C, D].
  taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * d)
  # Row p has rows p - 1 and p of x: a = 0 finds row i there, a = 1 row i - 1.
  phases = jnp.split(conv2d(x, taps, 1, 1), 4, axis=-1)
  places = itertools.product(range(2), repeat=2)
  y = [
    lax.slice(phase, (0, a, b, 0), (n, a + h, b + w, d))
    for phase, (a, b) in zip(phases, places, strict=True)
  ]
  return patches.depth_to_space(jnp.concatenate(y, axis=-1), factor=2)


def _pad_spatially(x: jax.Array, size: int) -> jax.Array:
  pad = (size // 2, size // 2)
  return jnp.pad(x, ((0, 0), pad, pad, (0, 0)))


def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves each channel with its own kernel, by shifted multiply-adds.

  Args:
    x: [B, H, W, C].
    kernel: [k, k, C], k odd, of the same dtype.

  Returns:
    [B, H, W, C].
  """
  x, kernel = quantization.visit(x, kernel)
  return _depthwise_conv2d(canvas.blank(x), kernel)


@jax.custom_vjp
def _depthwise_conv2d(x, kernel):
  size = kernel.shape[0]
  h, w = x.shape[1:3]
  padded = _pad_spatially(x, size)
  # Split at once: large graphs of many taps take minutes to compile.
  factors = jnp.split(kernel.reshape(size * size, 1, 1, -1), size * size)
  taps = itertools.product(range(size), repeat=2)
  return sum(
    padded[:, i : i + h, j : j + w] * factor
    for (i, j), factor in zip(taps, factors, strict=True)
  )


def _depthwise_conv2d_forward(x, kernel):
  return _depthwise_conv2d(x, kernel), (x, kernel)


def _depthwise_conv2d_backward(saved, grad):
  x, kernel = saved
  size = len(kernel)
  bands = min(x.shape[1], -(-x.nbytes // _BAND_BYTES))
  if bands == 1:
    kernel_grad = _depthwise_kernel_grad(x, grad, size)
  else:
    in_bands = functools.partial(_banded_kernel_grad, size=size, bands=bands)
    whole = functools.partial(_depthwise_kernel_grad, size=size)
    kernel_grad = lax.platform_dependent(x, grad, cpu=in_bands, default=whole)
  kernel_grad = kernel_grad.reshape(kernel.shape).astype(kernel.dtype)
  kernel_grad, grad = _both_first(kernel_grad, grad)
  return _depthwise_conv2d(grad, kernel[::-1, ::-1]), kernel_grad


def _depthwise_kernel_grad(x, grad, size):
  """Returns the gradient of each tap, [size * size, C], float32 or more."""
  return _tap_grads(_pad_spatially(x, size), grad, size)


def _banded_kernel_grad(x, grad, size, bands):
  """The same, of bands of rows that stay in the cache for all taps."""
  _, height, width, _ = x.shape
  rows = -(-height // bands)
  pad = size // 2

  def band_grad(band):
    sides = (rows + 2 * pad, width + 2 * pad)
    pixels = patches.window(x, band * rows - pad, before=pad, sides=sides)
    grads = patches.window(grad, band * rows, before=0, sides=(rows, width))
    return _tap_grads(pixels, grads, size)

  return lax.map(band_grad, jnp.arange(-(-height // rows))).sum(axis=0)


def _tap_grads(padded, grad, size):
  """The same, of features with the zeros around them."""

  def tap_grad(tap):  # A loop: unrolled, it takes seconds more to compile.
    start = (0, tap // size, tap % size, 0)
    products = lax.dynamic_slice(padded, start, grad.shape) * grad
    exact = jnp.promote_types(grad.dtype, jnp.float32)
    return products.sum((0, 1, 2), dtype=exact)

  return lax.map(tap_grad, jnp.arange(size**2))


_depthwise_conv2d.defvjp(
  _depthwise_conv2d_forward, _depthwise_conv2d_backward
)


class Conv(nn.Module):
  """Convolution with bias; symmetric zero padding, as PyTorch pads.

  Attributes:
    features: Output channels.
    kernel_size: Odd, in pixels.
    dilation: Distance between taps, in pixels.
    stride: 1, or 2 to halve the resolution.
    kernel_init: Initialiser of the kernel; the bias starts at 0.
    dtype: Of the arithmetic.
  """

  features: int
  kernel_size: int = 3
  dilation: int = 1
  stride: int = 1
  kernel_init: Callable = KERNEL_INIT
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = x.astype(self.dtype), *(
      p.astype(self.dtype) for p in (kernel, bias)
    )
    if self.stride == 1:
      y = conv2d(x, kernel, self.dilation)
    else:
      x, kernel = quantization.visit(x, kernel)
      pad = self.kernel_size // 2
      y = lax.conv_general_dilated(
        canvas.blank(x), kernel, (self.stride,) * 2, [(pad, pad)] * 2,
        dimension_numbers=_DIMENSIONS,
      )  # fmt: skip
    return y + bias[None, None, None]


class TransposedConv(nn.Module):
  """Transposed convolution 4x4 with bias, which doubles the resolution."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (4, 4, x.shape[-1], self.features)
    kernel = self.param('kernel', KERNEL_INIT, shape).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = transposed_conv2d(x.astype(self.dtype), kernel)
    return y + bias.astype(self.dtype)[None, None, None]


class SeparableConv(nn.Module):
  """Depthwise convolution, then a 1x1 convolution."""

  features: int
  kernel_size: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1])
    init = depthwise_init(self.kernel_size)
    kernel = self.param('depthwise', init, shape).astype(self.dtype)
    x = depthwise_conv2d(x.astype(self.dtype), kernel)
    return Conv(self.features, 1, dtype=self.dtype, name='pointwise')(x)


class DoubleConv(nn.Module):
  """conv-ReLU-conv: the residual branch of DMPHN."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(Conv(self.features, dtype=self.dtype, name='conv1')(x))
    return Conv(self.features, dtype=self.dtype, name='conv2')(x)


class Zero(nn.Module):
  """No connection: returns zeros."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.zeros_like(x, dtype=self.dtype)


OPS: dict[str, Callable[..., nn.Module]] = {
  'conv_3x3': Conv,
  'conv_5x5': functools.partial(Conv, kernel_size=5),
  'conv_3x3_dil2': functools.partial(Conv, dilation=2),
  'sep_conv_3x3': SeparableConv,
  'zero': Zero,
  'conv_3x3_x2': DoubleConv,
}
# Pixels to each side that an operator looks at, where it is not 1.
REACH = {'conv_5x5': 2, 'conv_3x3_dil2': 2, 'zero': 0, 'conv_3x3_x2': 2}
NOT_ACTIVATED = ('conv_3x3_x2',)


def count_conv(kernel_size: int, c_in: int, c_out: int) -> tuple[int, int]:
  """Returns (parameters with bias, multiply-adds per output pixel).

  >>> count_conv(3, 3, 32)
  (896, 864)
  """
  macs = kernel_size * kernel_size * c_in * c_out
  return macs + c_out, macs


def count(name: str, features: int) -> tuple[int, int]:
  """Returns (parameters, multiply-adds per pixel) of an operator.

  Args:
    name: Key of `OPS`.
    features: Channels in and out.

  >>> count('conv_3x3', 32)
  (9248, 9216)
  >>> count('zero', 32)
  (0, 0)
  """
  conv3 = count_conv(3, features, features)
  depthwise, pointwise = 9 * features, count_conv(1, features, features)
  return {
    'conv_3x3': conv3,
    'conv_5x5': count_conv(5, features, features),
    'conv_3x3_dil2': conv3,
    'sep_conv_3x3': (depthwise + pointwise[0], depthwise + pointwise[1]),
    'zero': (0, 0),
    'conv_3x3_x2': (2 * conv3[0], 2 * conv3[1]),
  }[name]
