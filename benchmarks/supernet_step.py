"""Weight and alpha step of a supernet: one sampled path and what to compare.

  python -m benchmarks.supernet_step [--sizes=demo,paper] [--runs=7]

- `sampled`: the search's own steps. The alphas are so sure that they always
  take the path of the static network.
- `remat`: `sampled`, but gradients compute features anew (`model.remat`).
- `static`: that path built alone.
- `mixture`: all operators, weighted by softmax.
- `one-hot`: all operators, times the sampled gates.
- `torch`: a PyTorch supernet that runs only the sampled operators.

All are compiled as in long searches (`pynas_jax.compiling`). The alpha step is
that of the gates' gradient ('one_path'). Rows are of one size and step;
`temp_mib` is what XLA allots for temporaries, `step_mib` what the memory of a
process of its own rises by in two steps, `process_mib` its peak, with the
libraries of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import functools
import itertools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from pynas_jax import compiling
from pynas_jax import config as config_lib
from pynas_jax import parallel
from pynas_jax import train as train_lib
from pynas_jax.nn import gates as gates_lib
from pynas_jax.nn.gates import Gates
from pynas_jax.search import bilevel
from pynas_jax.spaces import base
from pynas_jax.spaces.pynas import PyNAS
from pynas_jax.spaces.pynas import Pyramid

KEY = jax.random.key(0)
SURE = 100.0  # Of alpha: the other operators are never sampled.
OURS = ('sampled', 'remat', 'static', 'mixture', 'one-hot')
SEARCHED = OURS[:2]  # What a search does.
VARIANTS = (*OURS, 'torch')
STEPS = ('weight', 'alpha')


@dataclasses.dataclass(frozen=True)
class Size:
  """Of a supernet of one scale, and of a batch on one device."""

  widths: tuple[int, ...]
  unshuffle: int
  crop: int
  batch: int


SIZES = {
  'tiny': Size((4,), 1, 8, 2),  # To see that all parts turn.
  'demo': Size((16, 32, 64), 2, 64, 8),
  # The widths and crops of the paper; as many of them as two cores digest.
  'paper': Size((32, 64, 128), 1, 256, 2),
  # As many as a GPU has work with.
  'gpu': Size((32, 64, 128), 1, 256, 16),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """All that the variants have in common."""

  space: PyNAS
  path: tuple[int, ...]
  alphas: jax.Array
  settings: Any
  batch: dict[str, jax.Array]

  @property
  def draft(self):
    return self.space.draft((1,))


def make_task(
  size: Size, operators: tuple[str, ...] | None = None
) -> Task:
  """Returns the task of a size; by default with the paper's operators."""
  config = config_lib.base()
  operators = operators or tuple(config.model.candidates)
  config.search.loss, config.search.estimator = 'mse', 'one_path'
  space = PyNAS(size.widths, 1, operators, unshuffle=size.unshuffle)
  # Every operator of the paper that computes something, in turn.
  computing = [
    operators.index(name) for name in config.model.candidates if name != 'zero'
  ]
  path = tuple(np.resize(computing, space.num_edges).tolist())
  alphas = SURE * jax.nn.one_hot(np.array(path), len(operators))
  rng = np.random.default_rng(0)
  shape = (1, size.batch, size.crop, size.crop, 3)  # For one device.
  batch = {
    name: jnp.asarray(rng.random(shape, np.float32))
    for name in ('blurred', 'sharp')
  }
  return Task(space, path, alphas, config.search, batch)


@dataclasses.dataclass(frozen=True)
class _AllTimesOneHot:
  """A supernet that runs all operators and multiplies by sampled gates."""

  supernet: Pyramid
  count: int

  def apply(self, variables: Any, image: jax.Array, gates: Gates):
    every = jnp.broadcast_to(
      jnp.arange(self.count), (len(gates.index), self.count)
    )
    one_hot = jax.nn.one_hot(gates.index[:, 0], self.count)
    return self.supernet.apply(
      variables, image, Gates(every, gates.weight * one_hot)
    )


def make_step(
  task: Task, variant: str, step: str, state: Any = None
) -> tuple[Callable, Any]:
  """Returns one of our steps, mapped over one device, and the state to give it.

  Args:
    task: What to do.
    variant: One of `OURS`.
    step: One of `STEPS`.
    state: Of the other step, to go on from as a search does; None is a new one.
  """
  space, s = task.space, task.settings.copy_and_resolve_references()
  remat = variant == 'remat'
  supernet = space.supernet(task.draft, 'scale1', remat=remat)
  alphas = task.alphas
  gates = (gates_lib.argmax(alphas),)
  if variant == 'static':
    cells = tuple((space.operators[i],) for i in task.path)
    if step == 'weight':
      cells = tuple(operator for (operator,) in cells)
    supernet = Pyramid((1,), (cells,), space.widths, unshuffle=space.unshuffle)
    # Of a choice of one, the gates still have a gradient to be computed.
    alphas = jnp.zeros((len(cells), 1))
    gates = () if step == 'weight' else (gates_lib.argmax(alphas),)
  elif variant == 'mixture':
    s.estimator = 'mixture'
  network = supernet
  if variant == 'one-hot':
    network = _AllTimesOneHot(supernet, len(space.operators))

  if variant == 'static' and step == 'weight':
    tx = optax.chain(*bilevel.make_weight_tx(s))
    function = train_lib.make_train_step(
      network, tx, loss=s.loss, ema_decay=0.0
    )
    init = functools.partial(train_lib.init_state, tx=tx, ema_decay=0.0)
  else:
    init = functools.partial(bilevel.init_state, alphas=jnp.copy(alphas), s=s)
    function = (
      bilevel.make_weight_step(space, 'scale1', network, s)
      if step == 'weight'
      else bilevel.make_alpha_step(network, s)
    )
  devices = jax.local_devices()[:1]
  mapped = jax.pmap(
    function, axis_name=parallel.AXIS, in_axes=(None, 0, None), out_axes=None,
    devices=devices, donate_argnums=(0,),
  )  # fmt: skip
  if state is None:
    # Where the states lie that come back: else the step is compiled for both.
    mesh = jax.sharding.Mesh(devices, (parallel.AXIS,))
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = init(base.init_params(KEY, supernet, *gates))
    state = jax.device_put(state, there)
  return mapped, state


def make_ours(
  task: Task, variant: str, step: str
) -> tuple[Callable[[], None], dict[str, float]]:
  """Returns a function that does a step and waits, and what it compiled to."""
  mapped, state = make_step(task, variant, step)
  began = time.perf_counter()
  compiled = compiling.compile_program(mapped, state, task.batch, KEY)
  figures = {
    'compile_s': time.perf_counter() - began,
    'temp_mib': compiled.memory_analysis().temp_size_in_bytes / measure.MIB,
  }
  step_fn = compiled if compiling.has_onednn() else mapped  # As a search does.
  states = [state]  # Each is donated to the next step.

  def run() -> None:
    new, _ = step_fn(states.pop(), task.batch, KEY)
    states.append(jax.block_until_ready(new))

  return run, figures


def make_torch(task: Task, step: str) -> Callable[[], None]:
  """Returns a function that does a step of the PyTorch supernet."""
  import torch

  from benchmarks import peers

  space, s, device = task.space, task.settings, measure.torch_device()
  genotype = space.genotype(space.derive(task.draft, 'scale1', task.alphas))
  network = peers.Pyramid(genotype, space.operators).to(device)
  images = {k: peers.to_torch(v[0]).to(device) for k, v in task.batch.items()}
  alphas = torch.tensor(np.array(task.alphas), device=device)
  if step == 'weight':
    tx = torch.optim.Adam(network.parameters(), lr=s.weight_lr)
  else:
    network.requires_grad_(False)
    tx = torch.optim.Adam([alphas.requires_grad_()], lr=s.alpha_lr)

  def run() -> None:
    with torch.no_grad():
      gumbel = -torch.log(-torch.log(torch.rand_like(alphas)))
      path = (alphas + gumbel).argmax(-1)
    gates = [None] * len(path)
    if step == 'alpha':
      probs = torch.softmax((alphas + gumbel) / s.tau_start, -1)
      probs = probs.gather(-1, path[:, None])[:, 0]
      gates = list(1 + probs - probs.detach())
    tx.zero_grad(set_to_none=True)
    edges = list(zip(path.tolist(), gates, strict=True))
    restored = network(images['blurred'], edges)
    loss = torch.nn.functional.mse_loss(restored, images['sharp'])
    loss.backward()
    if step == 'weight':
      torch.nn.utils.clip_grad_norm_(network.parameters(), s.clip_norm)
    tx.step()
    loss.item()

  return run


def make_run(task: Task, variant: str, step: str):
  """Returns a function that does a step, and what is known without running."""
  if variant == 'torch':
    return make_torch(task, step), {}
  return make_ours(task, variant, step)


def measure_memory(size: str, variant: str, step: str) -> dict[str, float]:
  """Returns the memory of two steps; to be called in a process of its own."""
  run, _ = make_run(make_task(SIZES[size]), variant, step)
  run()
  return measure.peak_mib(lambda: (run(), run()))


def measure_size(
  size: str,
  *,
  variants: list[str],
  steps: list[str],
  runs: int,
  cache: dict[str, str],
) -> Iterator[dict[str, Any]]:
  """Yields the rows of one size; `cache` is the compiler's, as variables."""
  task = make_task(SIZES[size])
  for step in steps:
    made = {v: make_run(task, v, step) for v in variants}
    functions = {variant: run for variant, (run, _) in made.items()}
    medians = measure.median_ms(functions, runs=runs)
    for variant in variants:
      flags = ['--memory', size, variant, step]
      memory = measure.in_process('benchmarks.supernet_step', flags, cache)
      figures = {'compile_s': None, 'temp_mib': None} | made[variant][1]
      yield (
        {'size': size, 'step': step, 'variant': variant}
        | {'ms': medians[variant],
           'to_static': medians[variant] / medians['static']}
        | figures | memory
      )  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Returns our steps over each other variant: time and memory."""
  found = {}
  of = {(r['size'], r['step'], r['variant']): r for r in rows}
  for ours, (size, step, variant) in itertools.product(SEARCHED, of):
    over, row = of.get((size, step, ours)), of[size, step, variant]
    for key in ('ms', 'temp_mib', 'step_mib', 'device_mib'):
      if over and variant != ours and row.get(key):
        name = f'{size}_{step}_{ours}_to_{variant}_{key}'
        found[name] = over[key] / row[key]
  return found


def main() -> None:
  """Measures and prints."""
  parser = measure.make_parser(__doc__)
  measure.add_names(parser, '--sizes', SIZES, default='demo,paper')
  measure.add_names(parser, '--variants', VARIANTS)
  measure.add_names(parser, '--steps', STEPS)
  parser.add_argument('--runs', type=int, default=7, help='timed runs')
  parser.add_argument('--memory', nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.memory:
    print(json.dumps(measure_memory(*args.memory)))
    return
  if missing := {'sampled', 'static'} - set(args.variants):
    parser.error(f'--variants lacks {missing}, which others are compared with')
  variants = [
    v for v in args.variants
    if v != 'torch' or measure.is_installed('torch')
  ]  # fmt: skip
  with measure.compilation_cache() as cache:
    options = {'variants': variants, 'steps': args.steps}
    options |= {'runs': args.runs, 'cache': cache}
    measure.report(
      'Steps of a supernet',
      (row for s in args.sizes for row in measure_size(s, **options)),
      lambda rows: {'runs': args.runs} | ratios(rows),
    )


if __name__ == '__main__':
  main()
