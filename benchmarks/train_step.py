"""Images a second of one training step: ours by devices, and PyTorch's.

  python -m benchmarks.train_step [--networks=found,dmphn] [--devices=1,2,4]

The batch is shared out over virtual devices of the same processor, so that what
is lost is what sharing costs; 'jit' is the step without `pmap`, compiled as in
short trainings, the others are as in long ones (`pynas_jax.compiling`). 'remat'
is 'jit' whose gradients compute features anew (`model.remat`); `temp_mib` is
what XLA allots to either for temporaries. Adam and the clip of the gradient are
the same in PyTorch. Times are medians of interleaved steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import functools
import os
from typing import Any

from benchmarks import measure

_VIRTUAL = '--xla_force_host_platform_device_count'


def make_ours(
  genotype: Any, params: Any, batch: Any, t: Any, *, remat: bool = False
) -> Callable[[int], tuple[Callable[[], None], dict[str, float]]]:
  """Returns what makes a step of the devices, 0 for `jit`, and its figures."""
  import jax
  import optax

  from pynas_jax import compiling
  from pynas_jax import parallel
  from pynas_jax import train as train_lib
  from pynas_jax.spaces import space_of

  network = space_of(genotype).network(genotype, remat=remat)
  schedule = train_lib.make_schedule(t, t.num_steps)
  tx = train_lib.clipped(optax.adam(schedule), t.clip_norm)
  step = train_lib.make_train_step(network, tx, loss='mse', ema_decay=0.0)

  def make(devices: int) -> tuple[Callable[[], None], dict[str, float]]:
    # Donated: each has its own.
    own = jax.tree.map(jax.numpy.copy, params)
    states = [train_lib.init_state(own, tx, ema_decay=0.0)]
    key, figures = jax.random.key(0), {}
    if devices:
      run = parallel.make_parallel(
        step, devices=jax.local_devices()[:devices],
        compile_program=compiling.of_steps(compiling.MANY_STEPS),
      )  # fmt: skip
    else:
      # `vmap` gives the step the axis that it averages over.
      mapped = jax.vmap(
        step, in_axes=(None, 0, None), axis_name=parallel.AXIS, axis_size=1
      )

      @functools.partial(jax.jit, donate_argnums=(0,))
      def function(state, batch, key):
        stacked = mapped(state, parallel.shard(batch, 1), key)
        return jax.tree.map(lambda x: x[0], stacked)

      run = function.lower(*states, batch, key).compile()
      temp = run.memory_analysis().temp_size_in_bytes
      figures['temp_mib'] = temp / measure.MIB

    def one_step() -> None:
      state, _ = run(states.pop(), batch, key)
      states.append(jax.block_until_ready(state))

    return one_step, figures

  return make


def make_torch(
  genotype: Any, params: Any, batch: Any, t: Any
) -> Callable[[], None]:
  """Returns a function that does a step of PyTorch's network."""
  import torch

  from benchmarks import peers

  device = measure.torch_device()
  network = peers.load(peers.Pyramid(genotype), params).to(device)
  images = {k: peers.to_torch(v).to(device) for k, v in batch.items()}
  tx = torch.optim.Adam(network.parameters(), lr=t.lr)

  def one_step() -> None:
    tx.zero_grad(set_to_none=True)
    restored = network(images['blurred'])
    loss = torch.nn.functional.mse_loss(restored, images['sharp'])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), t.clip_norm)
    tx.step()
    loss.item()

  return one_step


def measure_network(
  name: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
  """Returns the rows of one network."""
  import jax.numpy as jnp
  import numpy as np

  from benchmarks import networks
  from pynas_jax import config as config_lib

  genotype, params = networks.read(name)
  rng = np.random.default_rng(0)
  shape = (args.batch, args.crop, args.crop, 3)
  batch = {
    k: jnp.asarray(rng.random(shape, np.float32)) for k in ('blurred', 'sharp')
  }
  settings = config_lib.base().train
  settings.optimizer = 'adam'  # As PyTorch's.
  task = (genotype, params, batch, settings)
  make = make_ours(*task)
  made = {'jit': make(0), 'remat': make_ours(*task, remat=True)(0)}
  made |= {f'pmap, {n} devices': make(n) for n in args.devices}
  functions = {step: one_step for step, (one_step, _) in made.items()}
  if measure.is_installed('torch'):
    functions['torch'] = make_torch(*task)
  medians = measure.median_ms(functions, runs=args.runs)
  return [
    {
      'network': name, 'step': step, 'ms': ms,
      'images_per_s': 1e3 * args.batch / ms, 'to_jit': ms / medians['jit'],
      'to_torch': ms / medians['torch'] if 'torch' in medians else None,
      'temp_mib': None,
    } | (made[step][1] if step in made else {})
    for step, ms in medians.items()
  ]  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Returns the time of a step of training over PyTorch's, by network."""
  return {
    f'{row["network"]}_to_torch': row['to_torch']
    for row in rows
    if row['step'] == 'pmap, 1 devices' and row['to_torch']
  }


def main() -> None:
  """Measures and prints."""
  parser = measure.make_networks_parser(__doc__)
  parser.add_argument('--crop', type=int, default=128, help='pixels')
  parser.add_argument('--batch', type=int, default=4, help='crops')
  parser.add_argument('--devices', default='1,2,4', help='numbers of devices')
  parser.add_argument('--runs', type=int, default=5, help='timed steps')
  args = parser.parse_args()
  args.devices = [int(n) for n in args.devices.split(',')]
  if bad := [n for n in args.devices if n < 1 or args.batch % n]:
    parser.error(f'--devices has {bad}, which cannot share {args.batch} crops.')
  # Before JAX is loaded; it concerns processors alone.
  flags = [os.environ.get('XLA_FLAGS', ''), f'{_VIRTUAL}={max(args.devices)}']
  os.environ['XLA_FLAGS'] = ' '.join(flags).strip()
  settings = {'runs': args.runs, 'crop': args.crop, 'batch': args.batch}
  measure.report(
    'A training step',
    measure.of_networks(measure_network, args),
    lambda rows: settings | ratios(rows),
  )


if __name__ == '__main__':
  main()
