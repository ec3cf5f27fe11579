"""Time of a network on a frame, from a table of the times of its layers.

Every layer is timed once on the device at hand, alone and synchronised, and
kept in a file, so that a search can ask for the time of thousands of networks.
Times are those of compiled code on one frame. A network's is the sum over its
cells and the time of its skeleton, which is all of it but the cells: cutting
into patches and joining cost time too. A cell alone finds its input in the
cache, or has the processor to itself, more often than one in a network. So the
cells of each operator are corrected by a factor, from the skeleton with this
operator in all cells. Source: ProxylessNAS, section 3.2 (the look-up table);
skeleton and factors are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import contextlib
import functools
import json
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp

from pynas_jax import compiling
from pynas_jax import logbook
from pynas_jax import parallel
from pynas_jax.genotype import Genotype
from pynas_jax.nn.layers import Layer
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

LAUNCHED = 16  # Calls that an accelerator is given at once.
RUNS, SECONDS = 7, 0.5  # Of a layer or network, at least; the least counts.


def measure_ms(layer: Layer, dtype: str = 'float32') -> float:
  """Returns the time of a layer on the device at hand, ms."""
  if layer.operator == 'zero':
    return 0.0  # The compiler drops the cell.
  module = layer.module(dtype)
  shape = (layer.batch, layer.height, layer.width, layer.c_in)
  x = jnp.zeros(shape, jnp.dtype(dtype)) + 0.5
  params = jax.tree.map(
    lambda leaf: jnp.full(leaf.shape, 1e-2, leaf.dtype),
    jax.eval_shape(module.init, jax.random.key(0), x),
  )
  return _time_ms(module.apply, params, x, dtype=dtype)


def _time_ms(function: Callable[..., Any], *args: Any, dtype: str) -> float:
  """Returns the least time of compiled calls, each waited for, ms.

  What else a machine does only ever adds to a time. An accelerator is given
  some calls at once, as launching one may take longer than it does.
  """
  calls = 1 if parallel.device().platform == 'cpu' else LAUNCHED
  run = compiling.compile_program(jax.jit(function), *args, dtype=dtype)
  jax.block_until_ready(run(*args))  # Warm-up.
  times_ms, first = [], time.perf_counter()
  while len(times_ms) < RUNS or time.perf_counter() < first + SECONDS:
    began = time.perf_counter()
    jax.block_until_ready([run(*args) for _ in range(calls)])
    times_ms.append(1e3 * (time.perf_counter() - began) / calls)
  return min(times_ms)


class LatencyTable:
  """The times of layers, measured when first asked for and kept in a file."""

  def __init__(
    self,
    path: Path,
    *,
    height: int = 720,
    width: int = 1280,
    dtype: str = 'float32',
  ):
    """Opens a table, which may be empty.

    Args:
      path: JSON file; times of another device, type or version in it are left
        alone.
      height: Of a frame, pixels.
      width: Likewise.
      dtype: Of the arithmetic.
    """
    self.size = {'height': height, 'width': width}
    self._path, self._dtype = path, dtype
    self._key = f'{parallel.device_name()}, {dtype}, jax {jax.__version__}'
    self._key += ', oneDNN' if compiling.has_onednn(dtype) else ''
    self._tables: dict[str, dict[str, float]] = {}
    if path.exists():
      with contextlib.suppress(ValueError):  # Damaged, it is measured anew.
        tables = json.loads(path.read_text())
        self._tables = tables if isinstance(tables, dict) else {}
    self._times = self._tables.setdefault(self._key, {})

  def measure(self, layers: Iterable[Layer]) -> None:
    """Measures the layers that are not in the table."""
    missing = {_name(layer): layer for layer in layers}
    missing = {k: v for k, v in missing.items() if k not in self._times}
    if not missing:
      return
    with logbook.progress(len(missing), 'time layers') as bar:
      for i, (name, layer) in enumerate(missing.items()):
        self._times[name] = round(measure_ms(layer, self._dtype), 4)
        bar.update(i + 1)
    self._save()

  def _save(self) -> None:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    logbook.write_json(self._path, self._tables)

  def ms(self, layers: Iterable[Layer]) -> float:
    """Returns the time of layers one after another, ms."""
    layers = list(layers)
    self.measure(layers)
    return sum(self._times[_name(layer)] for layer in layers)

  def predict_ms(self, genotype: Genotype) -> float:
    """Returns the time of a network on a frame, ms."""
    filled = space_of(genotype).filled
    skeleton = self._network_ms(filled(genotype, 'zero'))
    total = skeleton
    for operator, alone in self._cells_ms(genotype).items():
      everywhere = filled(genotype, operator)
      together = max(0.0, self._network_ms(everywhere) - skeleton)
      total += alone * together / self._cells_ms(everywhere)[operator]
    return total

  def _cells_ms(self, genotype: Genotype) -> dict[str, float]:
    """Returns the time of the cells of each operator, timed alone."""
    cells = [
      layer
      for layers in space_of(genotype).layers(genotype, **self.size)
      for layer in layers
      if layer.kind == 'cell' and layer.operator != 'zero'
    ]
    self.measure(cells)
    times = dict.fromkeys((cell.operator for cell in cells), 0.0)
    for cell in cells:
      times[cell.operator] += self.ms([cell])
    return times

  def measure_network_ms(self, genotype: Genotype) -> float:
    """Returns the time of a whole network, measured anew, ms."""
    return measure_network_ms(genotype, **self.size, dtype=self._dtype)

  def _network_ms(self, genotype: Genotype) -> float:
    name = f'network {genotype.digest()} {self.size}'
    if name not in self._times:
      self._times[name] = round(self.measure_network_ms(genotype), 4)
      self._save()
    return self._times[name]


def _name(layer: Layer) -> str:
  """Returns the key of a layer in the file.

  >>> _name(Layer('cell', 'conv_3x3', 2, 90, 80, 16, 16))
  'cell conv_3x3 2x90x80 16-16'
  """
  size = f'{layer.batch}x{layer.height}x{layer.width}'
  return ' '.join(
    filter(None, (layer.kind, layer.operator, size,
                  f'{layer.c_in}-{layer.c_out}'))
  )  # fmt: skip


def measure_network_ms(
  genotype: Genotype, *, height: int, width: int, dtype: str = 'float32'
) -> float:
  """Returns the time of a whole network on a frame, ms."""
  network = space_of(genotype).network(genotype, dtype=jnp.dtype(dtype))
  params = base.init_params(jax.random.key(0), network)
  frame = jnp.full((1, height, width, 3), 0.5, jnp.float32)
  apply = functools.partial(base.apply, network)
  return _time_ms(apply, params, frame, dtype=dtype)


def validate(
  table: LatencyTable, genotypes: Iterable[Genotype]
) -> list[dict[str, Any]]:
  """Compares the table with whole networks.

  Returns:
    Of each: `genotype` (its digest), `predicted_ms`, `measured_ms` and `error`,
    the relative difference.
  """
  rows = []
  for genotype in genotypes:
    # Before and after: a busy spell of the machine may last for seconds.
    before = table.measure_network_ms(genotype)
    predicted = table.predict_ms(genotype)
    measured = min(before, table.measure_network_ms(genotype))
    rows.append(
      {
        'genotype': genotype.digest(),
        'predicted_ms': predicted,
        'measured_ms': measured,
        'error': predicted / measured - 1,
      }
    )
  return rows
