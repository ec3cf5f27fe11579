"""Weight step of a supernet: one sampled path, a static path, the mixture.

  python -m benchmarks.supernet_step [--width=32] [--crop=128] [--batch=2]

The sampled path is the search's own weight step; the alphas are so sure that it
always takes the path of the static network, which is that path built alone. The
mixture runs all operators. Times are medians of interleaved runs; memory is
what XLA allots for temporaries. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import console
from rich import table

from pynas_jax import config as config_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.nn import gates
from pynas_jax.search import bilevel
from pynas_jax.spaces import base

KEY = jax.random.key(0)
SURE = 100.0  # Of alpha: the other operators are never sampled.


def make_steps(width: int):
  """Returns {name: (step, state)} of the three weight steps."""
  config = config_lib.base()
  config.model.widths = (width, 2 * width, 4 * width)
  config.model.cells_per_stage = 2
  config.search.loss = 'mse'
  space = spaces.make_space(config)
  draft = space.draft((1,))
  supernet = space.supernet(draft, 'scale1')
  # Every operator that computes something, in turn.
  operators = [i for i, name in enumerate(space.operators) if name != 'zero']
  path = np.resize(operators, space.num_edges)
  alphas = SURE * jax.nn.one_hot(path, len(space.operators))
  one_hot = gates.argmax(alphas)
  params = base.init_params(KEY, supernet, one_hot)
  genotype = space.genotype(space.derive(draft, 'scale1', alphas))
  network = space.network(genotype)

  steps = {}
  tx = bilevel.make_weight_tx(config.search)
  static_params = base.inherit(base.init_params(KEY, network), params)
  static_state = train_lib.init_state(static_params, tx, ema_decay=0.0)
  static = train_lib.make_train_step(network, tx, loss='mse', ema_decay=0.0)
  for name, estimator in (('sampled', 'one_path'), ('mixture', 'mixture')):
    s = config_lib.base().search
    s.update(config.search)
    s.estimator = estimator
    step = bilevel.make_weight_step(space, 'scale1', supernet, s)
    steps[name] = (step, bilevel.init_state(params, alphas, s))
  steps['static'] = (static, static_state)
  return {name: steps[name] for name in ('sampled', 'static', 'mixture')}


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--width', type=int, default=32, help='channels')
  parser.add_argument('--crop', type=int, default=128, help='pixels')
  parser.add_argument('--batch', type=int, default=2, help='crops')
  parser.add_argument('--runs', type=int, default=10, help='timed runs')
  args = parser.parse_args()

  rng = np.random.default_rng(0)
  shape = (1, args.batch, args.crop, args.crop, 3)  # For one device.
  batch = {
    name: jnp.asarray(rng.random(shape, np.float32))
    for name in ('blurred', 'sharp')
  }
  compiled, states, result = {}, {}, {}
  for name, (step, state) in make_steps(args.width).items():
    mapped = jax.pmap(
      step, axis_name=parallel.AXIS, in_axes=(None, 0, None), out_axes=None,
      devices=jax.local_devices()[:1],
    )  # fmt: skip
    began = time.perf_counter()
    compiled[name] = mapped.lower(state, batch, KEY).compile()
    result[f'{name}_compile_s'] = time.perf_counter() - began
    memory = compiled[name].memory_analysis()
    result[f'{name}_temp_bytes'] = memory.temp_size_in_bytes
    states[name], _ = jax.block_until_ready(mapped(state, batch, KEY))
    compiled[name] = mapped

  times_ms = {name: [] for name in compiled}
  for _ in range(args.runs):
    for name, step in compiled.items():
      began = time.perf_counter()
      states[name], _ = jax.block_until_ready(step(states[name], batch, KEY))
      times_ms[name].append(1e3 * (time.perf_counter() - began))
  for name, values in times_ms.items():
    result[f'{name}_ms'] = statistics.median(values)

  shown = table.Table(title='Weight step')
  for column in ('', 'ms', 'to static', 'temporaries, MiB', 'to mixture'):
    shown.add_column(column, justify='right')
  for name in compiled:
    ms, size = result[f'{name}_ms'], result[f'{name}_temp_bytes']
    shown.add_row(
      name, f'{ms:.1f}', f'{ms / result["static_ms"]:.2f}',
      f'{size / 2**20:.1f}', f'{size / result["mixture_temp_bytes"]:.2f}',
    )  # fmt: skip
  console.Console().print(shown)
  device = jax.devices()[0]
  result |= vars(args) | {
    'device': f'{device.platform}: {device.device_kind}',
    'jax': jax.__version__,
    'sampled_to_static_ms': result['sampled_ms'] / result['static_ms'],
    'sampled_to_mixture_temp_bytes': (
      result['sampled_temp_bytes'] / result['mixture_temp_bytes']
    ),
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main()
