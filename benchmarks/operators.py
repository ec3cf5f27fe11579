"""Time of each operator per multiply-add, relative to the convolution 3x3.

  python -m benchmarks.operators [--batch=4] [--side=64] [--width=32]

All work on maps of one size, H = W = side, with the same channels in and out.
`forward` is the operator alone, `training` with the gradients of its parameters
and its input. 'depthwise' is the first half of 'sep_conv_3x3'; 'stem 7x7' has 3
channels in. Times are medians of interleaved runs.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from pynas_jax.nn import ops
from pynas_jax.nn.layers import Layer

REFERENCE = 'conv_3x3'
STAGES = ('forward', 'training')


class _Depthwise(nn.Module):
  """The first half of a separable convolution."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(1 / 3)
    kernel = self.param('depthwise', init, (3, 3, x.shape[-1]))
    return ops.depthwise_conv2d(x, kernel)


def make_layers(
  batch: int, side: int, width: int
) -> dict[str, tuple[nn.Module, int, int]]:
  """Returns {name: (module, channels in, multiply-adds)}."""
  size = (batch, side, side, width, width)
  pixels = batch * side * side
  layers = {
    name: Layer('cell', name, *size) for name in ops.OPS if name != 'zero'
  }
  layers |= {
    'stride 2': Layer('down', '', *size),
    'up, pixel shuffle': Layer('up', 'pixel_shuffle', *size),
    'up, transposed': Layer('up', 'transposed', *size),
    'fuse 1x1': Layer('fuse', '', *size),
  }
  found = {
    name: (
      ops.OPS[name](width) if name in ops.OPS else layer.module(), width,
      layer.count()[1],
    )
    for name, layer in layers.items()
  }  # fmt: skip
  found['depthwise'] = (_Depthwise(), width, 9 * width * pixels)
  stem = ops.Conv(width, kernel_size=7)
  found['stem 7x7'] = (stem, 3, ops.count_conv(7, 3, width)[1] * pixels)
  return found


def make_functions(
  module: nn.Module, x: jax.Array
) -> dict[str, Callable[[], Any]]:
  """Returns functions that run a layer, and wait."""
  params = module.init(jax.random.key(0), x)

  def energy(params, x):
    return jnp.square(module.apply(params, x)).sum()

  functions = {
    'forward': jax.jit(module.apply),
    'training': jax.jit(jax.grad(energy, (0, 1))),
  }
  return {
    name: functools.partial(
      lambda function: jax.block_until_ready(function(params, x)), function
    )
    for name, function in functions.items()
  }


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  parser.add_argument('--batch', type=int, default=4, help='of crops')
  parser.add_argument('--side', type=int, default=64, help='pixels')
  parser.add_argument('--width', type=int, default=32, help='channels')
  parser.add_argument('--runs', type=int, default=9, help='timed runs')
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  layers, functions = make_layers(args.batch, args.side, args.width), {}
  for name, (module, channels, _) in layers.items():
    shape = (args.batch, args.side, args.side, channels)
    x = jnp.asarray(rng.random(shape, np.float32))
    for stage, function in make_functions(module, x).items():
      functions[name, stage] = function
  medians = measure.median_ms(functions, runs=args.runs)

  def per_mac(name: str, stage: str) -> float:
    return medians[name, stage] / layers[name][2]

  rows = []
  for name, (_, _, macs) in layers.items():
    row: dict[str, Any] = {'operator': name, 'mmacs': macs / 1e6}
    for stage in STAGES:
      row[f'{stage}_ms'] = medians[name, stage]
      row[f'{stage}_per_mac'] = per_mac(name, stage) / per_mac(REFERENCE, stage)
    rows.append(row)
  measure.report('Operators, per multiply-add', rows, vars(args))


if __name__ == '__main__':
  main()
