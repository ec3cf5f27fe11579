"""Timing of inference, honestly: synchronised, compilation and copies apart.

Frames are uint8 [1, H, W, 3], 720 x 1280 by default (PyNAS Table 1, whose times
are probably those of launching the work, not of finishing it).
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from pynas_jax.deploy.restorer import Restorer

WARM_UP_RUNS = 2


def time_restorer(
  restorer: Restorer, *, height: int = 720, width: int = 1280, runs: int = 20
) -> dict[str, Any]:
  """Times one frame through the network.

  Args:
    restorer: The network.
    height: Of the frame, in pixels.
    width: Of the frame, in pixels.
    runs: Timed runs, after a warm-up.

  Returns:
    `p50` and `p95` of the device time, `to_device` and `to_host` (medians of
    the copies), all in ms; `compile_s`, `fps`, `device`, `dtype`, `runs`,
    `height` and `width`.
  """
  rng = np.random.default_rng(0)
  frame = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
  began = time.perf_counter()
  # A fresh Restorer, as one that met this size before has nothing to compile.
  restorer = Restorer(
    restorer.genotype, restorer.params, dtype=restorer.dtype
  )
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
  device = jax.devices()[0]
  return {
    'p50': float(p50),
    'p95': float(p95),
    'to_device': float(np.median(times_ms['to_device'])),
    'to_host': float(np.median(times_ms['to_host'])),
    'compile_s': compile_s,
    'fps': 1e3 / float(p50),
    'device': f'{device.platform}: {device.device_kind}',
    'dtype': restorer.dtype,
    'runs': runs,
    'height': height,
    'width': width,
  }
