"""Convolutions in 8 bits, as runtimes with such arithmetic compute them.

An input is rounded to one of 256 values, those of its `Grid`, and a kernel to
255 values for each channel out, or 129 where those might overflow (see
`kernel_levels`); sums and all between convolutions stay float32.
Channels that reach less far than others are first widened, and the kernel takes
that back (as SmoothQuant, Xiao et al., 2023). Within `rounding`, a network is
traced to do so. Runtimes do the same by integers: `deploy.onnx_graph` writes
what is rounded as QuantizeLinear and DequantizeLinear. Feature maps are
[B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import dataclasses
import platform

import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax import parallel

LEVELS = 255  # Steps between the least and the greatest value of an input.

_Visitor = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
_visitor: contextvars.ContextVar[_Visitor | None] = contextvars.ContextVar(
  'visitor', default=None
)


@dataclasses.dataclass(frozen=True)
class Grid:
  """The 256 values that an input of a convolution may have, one of them 0.

  Attributes:
    scale: Distance between values.
    zero: How many of them are below 0.
    widths: What each channel is divided by before, C numbers; none is as 1.
  """

  scale: float
  zero: int
  widths: tuple[float, ...] = ()

  @classmethod
  def between(cls, low: float, high: float) -> Grid:
    """Returns the grid from about `low`, at most 0, to `high`, at least 0.

    >>> Grid.between(-1, 4)
    Grid(scale=0.0196078431372549, zero=51, widths=())
    """
    scale = max(high - low, np.finfo(np.float32).tiny * LEVELS) / LEVELS
    return cls(float(scale), int(np.rint(-low / scale)))


@jax.jit
def round_input(x: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
  """Returns the nearest values of a grid; what is beyond has its ends.

  >>> round_input(jnp.array([-0.9, 0.3, 0.6, 200.0]), 0.5, 1).tolist()
  [-0.5, 0.5, 0.5, 127.0]
  """
  return (jnp.clip(jnp.round(x / scale) + zero, 0, LEVELS) - zero) * scale


def kernel_levels() -> int:
  """Returns how many values of kernels are above 0, and as many below.

  x86 without VNNI adds two products of 8 bits in 16, which cut off what is
  beyond: they hold 2 * 255 * 64. So with 7 bits, it computes as others do.
  Source: OpenVINO's documentation, "Saturation (overflow) issue workaround".
  """
  is_x86 = platform.machine().lower() in ('x86_64', 'amd64')
  _, features = parallel.processor()
  return 64 if is_x86 and 'vnni' not in features else 127


def kernel_scale(kernel: jax.Array, levels: int) -> jax.Array:
  """Returns the distance between values of each channel out, [1, ..., D]."""
  axes = tuple(range(kernel.ndim - 1))
  largest = jnp.abs(kernel).max(axis=axes, keepdims=True)
  return jnp.where(largest > 0, largest, 1) / levels


@jax.jit
def round_kernel(kernel: jax.Array, levels: int) -> jax.Array:
  """Returns a kernel [..., D] with 2 levels + 1 values in each channel out."""
  scale = kernel_scale(kernel, levels)
  return jnp.round(kernel / scale) * scale


@contextlib.contextmanager
def _visiting(visitor: _Visitor) -> Iterator[None]:
  token = _visitor.set(visitor)
  try:
    yield
  finally:
    _visitor.reset(token)


def observing(
  see: Callable[[jax.Array], None],
) -> contextlib.AbstractContextManager[None]:
  """Traces what it encloses and shows the input of each convolution."""

  def visitor(x, kernel):
    see(x)
    return x, kernel

  return _visiting(visitor)


def rounding(
  grids: Sequence[Grid],
) -> contextlib.AbstractContextManager[None]:
  """Traces what it encloses with convolutions of rounded inputs and kernels.

  Args:
    grids: Of the inputs, in the order that `observing` showed them in.
  """
  remaining = iter(grids)

  def visitor(x, kernel):
    grid = next(remaining)
    if grid.widths:
      widths = np.asarray(grid.widths, np.float32)
      x = x * (1 / widths).reshape(1, 1, 1, -1)
      kernel = kernel * widths.reshape((1, 1, -1, 1)[: kernel.ndim])
    x = round_input(x, np.float32(grid.scale), np.float32(grid.zero))
    return x, round_kernel(kernel, kernel_levels())

  return _visiting(visitor)


def visit(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns input and kernel of a convolution, as they are to be used."""
  visitor = _visitor.get()
  return (x, kernel) if visitor is None else visitor(x, kernel)
