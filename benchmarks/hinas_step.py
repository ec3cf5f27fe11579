"""Search steps of HiNAS: memory with and without cell sharing, hours of all.

  python -m benchmarks.hinas_step [--sharing=on,off] [--batch=8] [--runs=5]

At the paper's settings for denoising unless told otherwise. Memory is what XLA
allots for temporaries; times are medians, on the device at hand, and a search
is as many steps as `config.hinas` has. A step takes minutes to compile. The
last line is one JSON object.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from pynas_jax import config as config_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax.search import bilevel
from pynas_jax.spaces import base

KEY = jax.random.key(0)


def make_steps(config):
  """Returns {name: step} of weights and alphas, and their first state."""
  space = spaces.make_space(config)
  draft = space.draft((1,))
  (stage,) = space.stages(draft)
  supernet = space.supernet(draft, stage)
  alphas = space.init_alphas(KEY, draft, stage)
  params = base.init_params(KEY, supernet, space.decode(alphas))
  steps = {
    'weight': bilevel.make_weight_step(space, stage, supernet, config.search),
    'alpha': bilevel.make_alpha_step(supernet, config.search),
  }
  return steps, bilevel.init_state(params, alphas, config.search)


def measure_steps(config, batch, runs: int) -> dict[str, float]:
  """Returns memory and, if there are runs, times of the two steps."""
  result = {}
  steps, state = make_steps(config)
  result['params'] = sum(x.size for x in jax.tree.leaves(state.params))
  for name, step in steps.items():
    if name == 'alpha' and not runs:
      continue
    mapped = jax.pmap(
      step, axis_name=parallel.AXIS, in_axes=(None, 0, None), out_axes=None,
      devices=jax.local_devices()[:1],
    )  # fmt: skip
    began = time.perf_counter()
    compiled = mapped.lower(state, batch, KEY).compile()
    result[f'{name}_compile_s'] = time.perf_counter() - began
    memory = compiled.memory_analysis()
    result[f'{name}_temp_mib'] = memory.temp_size_in_bytes / 2**20
    if not runs:
      continue
    current, _ = mapped(state, batch, KEY)
    # Once more: a state that a step returned is laid out in another way.
    current, _ = jax.block_until_ready(mapped(current, batch, KEY))
    times = []
    for _ in range(runs):
      began = time.perf_counter()
      current, _ = jax.block_until_ready(mapped(current, batch, KEY))
      times.append(time.perf_counter() - began)
    result[f'{name}_s'] = statistics.median(times)
  return result


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  measure.add_names(parser, '--sharing', ('on', 'off'))
  parser.add_argument('--layers', type=int, default=3)
  parser.add_argument('--nodes', type=int, default=4)
  parser.add_argument('--width', type=int, default=20, help='channels')
  parser.add_argument('--batch', type=int, default=8, help='crops')
  parser.add_argument('--crop', type=int, default=64, help='pixels')
  parser.add_argument('--runs', type=int, default=5, help='timed; 0 is none')
  args = parser.parse_args()

  config = config_lib.hinas('denoise', sigma=30.0)
  config.hinas.layers, config.hinas.nodes = args.layers, args.nodes
  config.hinas.width = args.width
  shape = (1, args.batch, args.crop, args.crop, 3)  # For one device.
  pixels = np.random.default_rng(0).random(shape, np.float32)
  batch = {name: jnp.asarray(pixels) for name in ('blurred', 'sharp')}
  rows, summary = [], vars(args)
  for sharing in args.sharing:
    config.hinas.share_cells = sharing == 'on'
    row = {'cells_shared': sharing, **measure_steps(config, batch, args.runs)}
    if args.runs:
      s = config.search
      row['search_hours'] = (
        s.num_steps * row['weight_s']
        + (s.num_steps - s.warmup_steps) * row['alpha_s']
      ) / 3600
    rows.append(row)
  memory = {row['cells_shared']: row['weight_temp_mib'] for row in rows}
  if {'on', 'off'} <= set(memory):
    summary['off_to_on_temp'] = memory['off'] / memory['on']
  measure.report('Steps of HiNAS', rows, summary)


if __name__ == '__main__':
  main()
