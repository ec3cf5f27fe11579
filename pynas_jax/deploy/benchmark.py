"""Timing of inference, honestly: synchronised, compilation and copies apart.

Frames are uint8 [1, H, W, 3], 720 x 1280 by default (PyNAS Table 1, whose times
are probably those of launching the work, not of finishing it).
"""

from __future__ import annotations

from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from pynas_jax import config
from pynas_jax import parallel
from pynas_jax.deploy.restorer import Restorer

WARM_UP_RUNS = 2


def time_restorer(
  restorer: Restorer, *, height: int = 720, width: int = 1280, runs: int = 20
) -> dict[str, Any]:
  """Times one frame through the network.

  Args:
    restorer: The network, with the backend to be timed.
    height: Of the frame, in pixels.
    width: Of the frame, in pixels.
    runs: Timed runs, after a warm-up.

  Returns:
    `p50` and `p95` of the device time, `to_device` and `to_host` (medians of
    the copies), all in ms; `compile_s`, `fps`, `real_time` (whether p50 and
    copies together keep up with video), `memory_mib` (what compiling and
    running added at most; None where nothing tells), `backend`, `device`,
    `dtype`, `runs`, `height` and `width`.
  """
  rng = np.random.default_rng(0)
  frame = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
  # A fresh Restorer, as one that met this size before has nothing to compile.
  restorer = Restorer(
    restorer.genotype, restorer.params, dtype=restorer.dtype,
    backend=restorer.backend,
  )  # fmt: skip
  device = parallel.device()
  memory = _memory_mib(device, reset=True)
  began = time.perf_counter()
  program = restorer.compile(frame.shape, frame.dtype)
  compile_s = time.perf_counter() - began
  times_ms: dict[str, list[float]] = {'to_device': [], 'run': [], 'to_host': []}
  for i in range(WARM_UP_RUNS + runs):
    marks = [time.perf_counter()]
    on_device = program.put(frame)
    marks.append(time.perf_counter())
    restored = program.run(on_device)
    marks.append(time.perf_counter())
    program.get(restored)
    marks.append(time.perf_counter())
    if i >= WARM_UP_RUNS:
      for name, seconds in zip(times_ms, np.diff(marks), strict=True):
        times_ms[name].append(1e3 * float(seconds))
  p50, p95 = np.percentile(times_ms['run'], [50, 95])
  to_device, to_host = (
    float(np.median(times_ms[name])) for name in ('to_device', 'to_host')
  )
  peak = _memory_mib(device)
  return {
    'p50': float(p50),
    'p95': float(p95),
    'to_device': to_device,
    'to_host': to_host,
    'compile_s': compile_s,
    'fps': 1e3 / float(p50),
    'real_time': to_device + float(p50) + to_host <= config.REAL_TIME_MS,
    'memory_mib': peak - memory if peak and memory else None,
    'backend': restorer.backend,
    'device': parallel.device_name(),
    'dtype': restorer.dtype,
    'runs': runs,
    'height': height,
    'width': width,
  }


def _memory_mib(device: jax.Device, *, reset: bool = False) -> float | None:
  """Returns the peak of memory in use; `reset` starts from what is in use."""
  stats = device.memory_stats()
  if stats:
    return stats['bytes_in_use' if reset else 'peak_bytes_in_use'] / 2**20
  try:  # Linux.
    if reset:
      Path('/proc/self/clear_refs').write_text('5')
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(dict(s.split(':') for s in lines)['VmHWM'].split()[0]) / 2**10
  except (OSError, KeyError):
    return None
