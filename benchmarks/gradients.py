"""What a training step is made of: one convolution 3x3 and its gradients.

  python -m benchmarks.gradients [--shapes=4x128x32,4x64x64]

Shapes are images x side x channels, as many in as out; PyTorch's maps are
channels last. 'product' is the product of matrices that a weight gradient comes
to, of operands that lie in memory as XLA is fastest with, for which every pixel
would first be copied nine times: the gradient is faster only where it takes
fewer products (Winograd). Times are medians of interleaved runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from pynas_jax.nn import ops

SIZE = 3  # Of the kernel.


def shapes(text: str) -> list[tuple[int, int, int]]:
  """Returns the images, side and channels of each shape.

  >>> shapes('4x128x32,1x64x8')
  [(4, 128, 32), (1, 64, 8)]
  """
  found = [tuple(map(int, shape.split('x'))) for shape in text.split(',')]
  if any(len(shape) != 3 or min(shape) < 1 for shape in found):
    raise ValueError(text)  # The parser of flags says so.
  return found


def make_ours(
  x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> dict[str, Callable[[], Any]]:
  """Returns {what: function that runs it, and waits}."""
  channels = x.shape[-1]
  # Drawn anew: that they hold each pixel nine times is nothing to the time.
  key = jax.random.key(0)
  pixels = jax.random.uniform(key, (SIZE**2 * channels, grad.size // channels))

  def of_input(x, kernel, grad):
    return jax.vjp(lambda x: ops.conv2d(x, kernel), x)[1](grad)

  def of_weights(x, kernel, grad):
    return jax.vjp(lambda kernel: ops.conv2d(x, kernel), kernel)[1](grad)

  functions = {
    'forward': (ops.conv2d, (x, kernel)),
    'input gradient': (of_input, (x, kernel, grad)),
    'weight gradient': (of_weights, (x, kernel, grad)),
    'product': (jnp.matmul, (pixels, grad.reshape(-1, channels))),
  }

  def make(function, args):
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))

  return {name: make(*each) for name, each in functions.items()}


def make_torch(
  x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> dict[str, Callable[[], Any]]:
  """Returns the same of PyTorch, but for the product."""
  import torch

  from benchmarks import peers

  device = measure.torch_device()
  x, grad = (peers.to_torch(np.asarray(a)).to(device) for a in (x, grad))
  kernel = torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).to(
    device, memory_format=torch.channels_last
  )  # fmt: skip
  pad = [SIZE // 2] * 2

  def wait() -> None:
    if device == 'cuda':
      torch.cuda.synchronize()

  def forward() -> None:
    torch.nn.functional.conv2d(x, kernel, padding=pad)
    wait()

  def make_gradient(*, of_input: bool) -> Callable[[], None]:
    def gradient() -> None:
      torch.ops.aten.convolution_backward(
        grad, x, kernel, None, [1, 1], pad, [1, 1], False, [0, 0], 1,
        [of_input, not of_input, False],
      )  # fmt: skip
      wait()

    return gradient

  return {
    'forward': forward,
    'input gradient': make_gradient(of_input=True),
    'weight gradient': make_gradient(of_input=False),
  }


def measure_shape(
  shape: tuple[int, int, int], runs: int
) -> list[dict[str, Any]]:
  """Returns the rows of one shape."""
  images, side, channels = shape
  rng = np.random.default_rng(0)
  x, grad = (
    jnp.asarray(rng.random((images, side, side, channels), np.float32))
    for _ in range(2)
  )
  kernel = rng.standard_normal((SIZE, SIZE, channels, channels), np.float32)
  arrays = (x, jnp.asarray(kernel), grad)
  ours = make_ours(*arrays)
  theirs = make_torch(*arrays) if measure.is_installed('torch') else {}
  functions = {('xla', what): f for what, f in ours.items()}
  functions |= {('torch', what): f for what, f in theirs.items()}
  medians = measure.median_ms(functions, runs=runs)
  gflop = 2e-9 * kernel.size * images * side**2
  rows = []
  for what in ours:
    ms = medians['xla', what]
    peer = 'weight gradient' if what == 'product' else what
    torch_ms = medians.get(('torch', peer))
    rows.append({
      'images': images, 'side': side, 'channels': channels, 'what': what,
      'xla_ms': ms, 'xla_gflop_per_s': 1e3 * gflop / ms, 'torch_ms': torch_ms,
      'torch_gflop_per_s': torch_ms and 1e3 * gflop / torch_ms,
      'to_torch': torch_ms and ms / torch_ms,
    })  # fmt: skip
  return rows


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  parser.add_argument(
    '--shapes', type=shapes, default='4x128x32,4x64x64,4x32x128,1x128x32',
    help='of the maps (%(default)s)',
  )  # fmt: skip
  parser.add_argument('--runs', type=int, default=9, help='timed runs')
  args = parser.parse_args()
  rows = (
    row for shape in args.shapes for row in measure_shape(shape, args.runs)
  )
  measure.report('A convolution 3x3', rows, {'runs': args.runs})


if __name__ == '__main__':
  main()
