"""Data parallelism: the only place that knows devices.

A step is a pure `(state, batch, key) -> (state, metrics)` that averages its
gradients with `mean`. State, key and metrics are the same on every device; the
batch's leading axis is shared out.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import functools
import os
from pathlib import Path
import platform
from typing import Any

import jax
import jax.numpy as jnp

AXIS = 'devices'
LEAD = 4  # Steps launched and not done: a device need not wait for the next.
_CPUINFO = Path('/proc/cpuinfo')
# Instruction sets that decide how fast a processor multiplies, the best first.
_FAST = ('amx_tile', 'avx512_bf16', 'avx512_vnni', 'avx512f', 'avx2', 'asimd')


def make_parallel(
  step: Callable[..., Any],
  *,
  devices: Sequence[jax.Device] | None = None,
  compile_program: Callable[..., Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
  """Returns `step(state, batch, key)` on all local devices.

  The state that a call returns is donated to the next one. What `pmap` compiled
  stays in memory when the step is gone, until `jax.clear_caches()`.

  Args:
    step: `(state, batch, key) -> (state, metrics)`; uses `mean`.
    devices: Local devices, all by default.
    compile_program: Makes of the mapped step and its first arguments what is
      called with such; None leaves that to JAX.
  """
  devices = list(devices or jax.local_devices())
  mapped = jax.pmap(
    step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None,
    devices=devices, donate_argnums=(0,),
  )  # fmt: skip

  everywhere = jax.sharding.NamedSharding(
    jax.sharding.Mesh(devices, (AXIS,)), jax.sharding.PartitionSpec()
  )

  program = mapped if compile_program is None else None

  def run(state, batch, key):
    nonlocal program
    # A first state lies elsewhere than those that come back, and the step would
    # be compiled for both. It is copied: its donation is no caller's loss.
    if any(
      getattr(leaf, 'sharding', None) != everywhere
      for leaf in jax.tree.leaves(state)[:1]
    ):
      state = jax.device_put(jax.tree.map(jnp.copy, state), everywhere)
    args = state, shard(batch, len(devices)), key
    if program is None:
      program = compile_program(mapped, *args)
    return program(*args)

  return run


class DeviceError(ValueError):
  """A device that is asked for and is not there."""


def check_devices() -> None:
  """Raises DeviceError if JAX finds none of those that it is told to use."""
  try:
    jax.local_devices()
  except (AssertionError, RuntimeError) as error:
    asked = os.environ.get('JAX_PLATFORMS', '')
    reason = f': {error}' if str(error) else ''
    raise DeviceError(
      f'JAX_PLATFORMS is {asked!r}, and JAX finds no such device{reason}. '
      'Unset it, or set it to cpu.'
    ) from None


def device() -> jax.Device:
  """Returns the device that JAX uses where none is named."""
  return jnp.zeros(()).device  # By `jax.default_device`, or else the first one.


@functools.cache
def processor() -> tuple[str, str]:
  """Returns the name of the processor, and what Linux says that it can do."""
  name, features = platform.processor() or platform.machine(), ''
  try:
    lines = _CPUINFO.read_text().splitlines()
  except OSError:
    return name, features
  of = {k.strip(): v for k, _, v in (line.partition(':') for line in lines)}
  features = of.get('flags') or of.get('Features') or ''  # x86, or ARM.
  return of.get('model name', name).strip(), features.strip()


def device_name() -> str:
  """Returns 'gpu: NVIDIA ...', or the processor and the cores that it lends."""
  if device().platform != 'cpu':
    return f'{device().platform}: {device().device_kind}'
  name, features = processor()
  fast = [word for word in _FAST if word in features.split()][:1]
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:  # Elsewhere than on Linux.
    cores = os.cpu_count()
  return ', '.join([f'cpu: {name}', *fast, f'{cores} cores'])


def mean(tree: Any) -> Any:
  """Averages over devices, inside a step."""
  if jax.lax.axis_size(AXIS) == 1:  # XLA would make a copy.
    return tree
  return jax.lax.pmean(tree, AXIS)


def check_batch_size(batch_size: int) -> None:
  """Raises ValueError unless the local devices can share a batch."""
  num_devices = jax.local_device_count()
  if batch_size % num_devices:
    raise ValueError(
      f'a batch of {batch_size} cannot be shared by {num_devices} devices; '
      f'expected a multiple of {num_devices}.'
    )


def shard(batch: Any, num_devices: int) -> Any:
  """Reshapes leaves [B, ...] to [num_devices, B // num_devices, ...]."""
  return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


class Launched:
  """Steps that the device may not have done yet, as JAX does not wait.

  They are few, so that progress is what was done, and a stop is felt soon.

  Attributes:
    done: The last step that is done.
  """

  def __init__(self, done: int):
    self.done = done
    self._results: collections.deque[tuple[int, jax.Array]] = (
      collections.deque()
    )

  def add(self, step: int, result: jax.Array) -> None:
    """Waits until no more than `LEAD` steps are to be done.

    Args:
      step: That was launched.
      result: Of the step, not donated to another.
    """
    self._results.append((step, result))
    while self._results and (
      len(self._results) > LEAD or self._results[0][1].is_ready()
    ):
      self.done, result = self._results.popleft()
      jax.block_until_ready(result)
