"""How time and memory grow: depth, patches, width, image area, candidates.

  python -m benchmarks.scaling [--side=256] [--width=32] [--runs=5]

All but the last are one frame through a network of convolutions 3x3; of the
candidates, a weight step of the sampled-path supernet, with the paper's five,
those twice, and those and five larger ones. `temp_mib` is what XLA allots for
temporaries. `of_first` and `temp_of_first` compare with the first row of the
kind; times of a kind are medians of interleaved runs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks import supernet_step
from pynas_jax import compiling
from pynas_jax import config as config_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.genotype import ScaleGenotype
from pynas_jax.nn import ops
from pynas_jax.spaces import base
from pynas_jax.spaces.pynas import PyNAS

FEW = tuple(config_lib.base().model.candidates)
# With either, the paper's five candidates are ten; this process alone has them.
AGAIN = {f'{name}_again': ops.OPS[name] for name in FEW}
LARGER = {
  'conv_1x1': functools.partial(ops.Conv, kernel_size=1),
  'conv_7x7': functools.partial(ops.Conv, kernel_size=7),
  'conv_3x3_dil3': functools.partial(ops.Conv, dilation=3),
  'sep_conv_5x5': functools.partial(ops.SeparableConv, kernel_size=5),
  'sep_conv_7x7': functools.partial(ops.SeparableConv, kernel_size=7),
}


def _network(scheme: tuple[int, ...], width: int) -> PyramidGenotype:
  cells = ('conv_3x3',) * 3
  return PyramidGenotype(
    scales=tuple(ScaleGenotype(p, cells, cells) for p in scheme),
    widths=(width, 2 * width, 4 * width), cells_per_stage=1,
  )  # fmt: skip


def measure_frames(
  kind: str, networks: dict[str, tuple[PyramidGenotype, int]], runs: int
) -> list[dict[str, Any]]:
  """Returns the rows of networks, each with the side of its frame."""
  functions, temps = {}, {}
  for name, (genotype, side) in networks.items():
    network = PyNAS.network(genotype)
    params = {'params': base.init_params(jax.random.key(0), network)}
    frame = jnp.full((1, side, side, 3), 0.5)
    compiled = compiling.compile_program(
      jax.jit(network.apply), params, frame
    )
    memory = compiled.memory_analysis()
    temps[name] = memory.temp_size_in_bytes / measure.MIB
    functions[name] = functools.partial(
      lambda *args: jax.block_until_ready(args[0](*args[1:])),
      compiled, params, frame,
    )  # fmt: skip
  return _rows(kind, measure.median_ms(functions, runs=runs), temps)


def measure_candidates(
  size: supernet_step.Size, runs: int
) -> list[dict[str, Any]]:
  """Returns the rows of weight steps with 5 and 10 candidates."""
  new = {k: v for k, v in (AGAIN | LARGER).items() if k not in ops.OPS}
  ops.OPS.update(new)
  try:
    functions, temps = {}, {}
    for name, operators in (
      ('5', FEW), ('10', (*FEW, *AGAIN)), ('10, larger', (*FEW, *LARGER))
    ):  # fmt: skip
      task = supernet_step.make_task(size, operators)
      functions[name], figures = supernet_step.make_ours(
        task, 'sampled', 'weight'
      )
      temps[name] = figures['temp_mib']
    medians = measure.median_ms(functions, runs=runs)
  finally:
    for name in new:
      del ops.OPS[name]
  return _rows('candidates', medians, temps)


def _rows(
  kind: str, ms: dict[str, float], temps: dict[str, float]
) -> list[dict[str, Any]]:
  first = next(iter(ms))
  return [
    {
      'kind': kind, 'value': name, 'ms': ms[name],
      'of_first': ms[name] / ms[first], 'temp_mib': temps[name],
      'temp_of_first': temps[name] / temps[first],
    }
    for name in ms
  ]  # fmt: skip


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  parser.add_argument('--side', type=int, default=256, help='pixels')
  parser.add_argument('--width', type=int, default=32, help='channels')
  parser.add_argument('--batch', type=int, default=2, help='of the step')
  parser.add_argument('--runs', type=int, default=5, help='timed runs')
  args = parser.parse_args()
  side, w = args.side, args.width
  chain = (1, 2, 4, 8)
  kinds = {
    'depth': {
      str(n): (_network(chain[:n], w), side) for n in range(1, 5)
    },
    'patches': {str(n): (_network((1, n), w), side) for n in (2, 4, 8, 16)},
    'width': {
      str(n): (_network((1,), n), side) for n in (w // 2, w, 2 * w)
    },
    'area': {
      f'{n}x{n}': (_network((1,), w), n) for n in (side // 2, side, 2 * side)
    },
  }
  rows = [
    row
    for kind, networks in kinds.items()
    for row in measure_frames(kind, networks, args.runs)
  ]
  size = dataclasses.replace(
    supernet_step.SIZES['paper'], widths=(w, 2 * w, 4 * w), crop=side,
    batch=args.batch,
  )  # fmt: skip
  rows += measure_candidates(size, args.runs)
  temps = {row['value']: row['temp_of_first'] for row in rows}
  summary = vars(args) | {'candidates_temp_5_to_10': temps['10']}
  measure.report('Growth', rows, summary)


if __name__ == '__main__':
  main()
