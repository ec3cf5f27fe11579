"""What all benchmarks share: side-by-side times, peak memory, how to report.

Times are medians of interleaved runs, each waited for; a first run is not
counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from rich import console
from rich import table

MIB = 2**20
_Summary = Mapping[str, Any]
# JAX's names of what lets a GPU use TF32 for float32; None is its default.
_TF32 = (None, 'default', 'high', 'tensorfloat32', 'bfloat16')
_LIBRARIES = (
  'jax', 'jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'flax', 'optax',
  'torch', 'onnxruntime', 'openvino',
)  # fmt: skip


def times_ms(
  functions: Mapping[str, Callable[[], Any]],
  *,
  runs: int,
  settle_s: float = 0.2,
) -> dict[str, list[float]]:
  """Returns the times of functions that wait for their results, in ms.

  Args:
    functions: By name; run in turn.
    runs: Of each, after a first one.
    settle_s: Shorter ones run so long in each turn, and the last run counts:
      PyTorch's threads, for one, spin for some 10 ms after its own, on the
      cores of whoever is next.

  >>> {k: len(v) for k, v in times_ms({'a': int}, runs=1).items()}
  {'a': 1}
  """
  times: dict[str, list[float]] = {name: [] for name in functions}
  for function in functions.values():
    function()
  for _ in range(runs):
    for name, function in functions.items():
      began = time.perf_counter()
      while True:
        started = time.perf_counter()
        function()
        ended = time.perf_counter()
        if ended - began >= settle_s:
          break
      times[name].append(1e3 * (ended - started))
  return times


def median_ms(
  functions: Mapping[str, Callable[[], Any]], *, runs: int
) -> dict[str, float]:
  """Returns the medians of `times_ms`."""
  times = times_ms(functions, runs=runs)
  return {name: statistics.median(values) for name, values in times.items()}


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the PSNR of images in [0, 1], at most 150.

  >>> psnr_db(np.zeros(4), np.full(4, 0.1))
  20.0
  """
  error = float(np.square(np.float64(a) - b).mean())
  return round(-10 * math.log10(max(error, 1e-15)), 2)


def _status_mib(name: str) -> float:
  lines = Path('/proc/self/status').read_text().splitlines()
  line = next(line for line in lines if line.startswith(f'{name}:'))
  return int(line.split()[1]) / 1024


def peak_mib(function: Callable[[], Any]) -> dict[str, float]:
  """Returns the memory of this process while a function runs (Linux).

  Returns:
    `process_mib`, the peak, and `step_mib`, how much of it the function took;
    with an accelerator also `device_mib`, the peak there since the start.
  """
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # Else the peak hides in what was freed.
  with contextlib.suppress(OSError):  # Not every kernel has it.
    Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak so far.
  before = _status_mib('VmRSS')
  function()
  peak = _status_mib('VmHWM')
  found = {'process_mib': peak, 'step_mib': peak - before}
  if torch_device() == 'cuda':
    import jax
    import torch

    ours = jax.devices()[0].memory_stats()['peak_bytes_in_use']
    theirs = torch.cuda.max_memory_allocated()
    found['device_mib'] = max(ours, theirs) / MIB
  return found


def torch_device() -> str:
  """Returns where PyTorch is to run: on the kind of device that JAX is."""
  import jax

  if jax.default_backend() != 'gpu' or not is_installed('torch'):
    return 'cpu'
  import torch

  if not torch.cuda.is_available():
    return 'cpu'
  # As XLA: convolutions by the fastest algorithm, in the same arithmetic.
  torch.backends.cudnn.benchmark = True
  set_tf32(jax.config.jax_default_matmul_precision in _TF32)
  return 'cuda'


def set_tf32(allowed: bool) -> None:
  """Sets whether PyTorch may use TF32 for float32, on a GPU."""
  import torch

  for flags in (torch.backends.cuda.matmul, torch.backends.cudnn):
    flags.allow_tf32 = allowed


def in_process(
  module: str, flags: Sequence[str], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Runs a module in a process of its own.

  Args:
    module: As for `python -m`.
    flags: Of the command line.
    env: Environment variables, beside those of this process.

  Returns:
    The JSON object of its last line.
  """
  ran = subprocess.run(
    [sys.executable, '-m', module, *flags], check=True, text=True,
    stdout=subprocess.PIPE, env=os.environ | dict(env or {}),
  )  # fmt: skip
  return json.loads(ran.stdout.splitlines()[-1])


@contextlib.contextmanager
def compilation_cache() -> Iterator[dict[str, str]]:
  """Keeps what JAX compiles, until the end of the context.

  Yields:
    The environment variables by which other processes find it.
  """
  import jax

  names = ('jax_compilation_cache_dir',
           'jax_persistent_cache_min_compile_time_secs')  # fmt: skip
  old = [getattr(jax.config, name) for name in names]
  with tempfile.TemporaryDirectory() as folder:
    settings = dict(zip(names, (folder, 0.2), strict=True))
    for name, value in settings.items():
      jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in zip(names, old, strict=True):
      jax.config.update(name, value)


def is_installed(library: str) -> bool:
  """Returns whether a library is there, by its name on the package index."""
  try:
    importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def make_parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser of flags whose help keeps the lines of a docstring."""
  return argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )


def add_names(
  parser: argparse.ArgumentParser, flag: str, known: Iterable[str], **options
) -> None:
  """Adds a flag of names with commas between, by default all.

  Args:
    parser: Of the flags.
    flag: '--flag'.
    known: Others are refused.
    **options: Of `add_argument`.
  """
  known = list(dict.fromkeys(known))

  def read(text: str) -> list[str]:
    names = text.split(',')
    if unknown := set(names) - set(known):
      raise argparse.ArgumentTypeError(f'{unknown}; expected some of {known}')
    return names

  options = {'default': ','.join(known), 'help': ', '.join(known)} | options
  parser.add_argument(flag, type=read, **options)


def make_networks_parser(description: str) -> argparse.ArgumentParser:
  """Returns `make_parser` with the flag of which networks to measure."""
  parser = make_parser(description)
  parser.add_argument(
    '--networks', type=lambda text: text.split(','), default='found,dmphn',
    help='names or folders',
  )  # fmt: skip
  return parser


def of_networks(
  function: Callable[..., Iterable[Any]], args: argparse.Namespace, *rest: Any
) -> Iterator[Any]:
  """Yields the rows of `function(name, args, *rest)` of all networks."""
  for name in args.networks:
    yield from function(name, args, *rest)


def environment() -> dict[str, Any]:
  """Returns what figures depend on: device, settings, versions, commit."""
  import jax  # Only here: a benchmark may set JAX up before.

  from pynas_jax import parallel
  from pynas_jax.deploy import release

  return {
    'device': parallel.device_name(),
    'cpus': len(os.sched_getaffinity(0)),
    # By name, where the tree was copied without its history.
    'commit': os.environ.get('COMMIT') or release.commit(),
    'matmul_precision': jax.config.jax_default_matmul_precision,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'versions': {
      name: importlib.metadata.version(name)
      for name in _LIBRARIES
      if is_installed(name)
    },
  }


def _shown(value: Any) -> str:
  """Returns a cell of a table.

  >>> _shown(0.12345), _shown(123.45), _shown(None), _shown('a')
  ('0.123', '123', '', 'a')
  """
  if value is None:
    return ''
  return f'{value:.3g}' if isinstance(value, float) and value < 1e3 else (
    f'{value:.0f}' if isinstance(value, float) else str(value)
  )  # fmt: skip


def report(
  title: str,
  rows: Iterable[Mapping[str, Any]],
  summary: _Summary | Callable[[list[Any]], _Summary],
) -> None:
  """Prints rows as a table; then, as the last line, all as one JSON object.

  An interrupt while rows are measured ends it with those that are there, and
  with exit status 130.

  Args:
    title: Of the table.
    rows: With the same keys in all; they may be measured one after the other.
    summary: Ratios and settings, or a function that makes them of the rows; it
      goes into the object beside `rows`.
  """
  found: list[Mapping[str, Any]] = []
  interrupted = False
  # Shells let what runs in the background ignore it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    found.extend(rows)
  except KeyboardInterrupt:
    if not found:
      raise
    interrupted = True
  shown = table.Table(title=title)
  for column in found[0]:
    shown.add_column(column, justify='right')
  for row in found:
    shown.add_row(*(_shown(value) for value in row.values()))
  console.Console(width=None if sys.stdout.isatty() else 160).print(shown)
  if callable(summary):
    summary = summary(found)
  result = {'rows': found, **summary, **environment()}
  print(json.dumps(result | {'interrupted': interrupted}))
  if interrupted:
    sys.exit(130)
