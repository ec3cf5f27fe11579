"""First and cached start of search, training and restoring.

  python -m benchmarks.compile_time [--tasks=search,train,restore]

Each start is a process of its own, timed from its first line, imports included,
to the first result; the second finds what the first one compiled in the cache
that the package keeps by default (`pynas_jax.caching`). The steps are those of
`make demo`, whose data is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

from benchmarks import measure

TASKS = ('search', 'train', 'restore')


def _first_result(task: str, width: int) -> None:
  """Does what a task does first, as the command line does it."""
  from pynas_jax import caching

  caching.keep_compiled_programs()
  if task == 'restore':
    import numpy as np

    from pynas_jax.deploy import restorer

    restorer.load('fast')(np.zeros((72, 16 * width, 3), np.uint8))
    return

  import jax

  from benchmarks import supernet_step

  size = supernet_step.Size((width, 2 * width, 4 * width), 2, 64, 8)
  supernet = supernet_step.make_task(size)
  variant, steps = {
    'search': ('sampled', supernet_step.STEPS), 'train': ('static', ('weight',))
  }[task]  # fmt: skip
  state = None
  for step in steps:
    mapped, state = supernet_step.make_step(supernet, variant, step, state)
    state, _ = mapped(state, supernet.batch, jax.random.key(0))
    jax.block_until_ready(state)


def measure_starts(task: str, width: int) -> dict[str, Any]:
  """Returns the row of a task: two starts, in processes of their own."""
  with tempfile.TemporaryDirectory() as folder:
    flags = [f'--start={task}', f'--width={width}']
    starts = [
      measure.in_process(
        'benchmarks.compile_time', flags, {'PYNAS_JAX_CACHE': folder}
      )
      for _ in range(2)
    ]
  first, cached = (start['start_s'] for start in starts)
  return {
    'task': task, 'first_s': first, 'cached_s': cached,
    'cached_to_first': cached / first,
    'imports_s': starts[1]['start_s'] - starts[1]['work_s'],
  }  # fmt: skip


def main() -> None:
  """Measures and prints."""
  began = time.perf_counter()
  parser = measure.make_parser(__doc__)
  measure.add_names(parser, '--tasks', TASKS)
  parser.add_argument('--width', type=int, default=16, help='channels')
  parser.add_argument('--start', choices=TASKS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.start:
    import jax  # noqa: F401  # Part of every start, and no compilation.

    imported = time.perf_counter()
    _first_result(args.start, args.width)
    now = time.perf_counter()
    print(json.dumps({'start_s': now - began, 'work_s': now - imported}))
    return
  rows = (measure_starts(task, args.width) for task in args.tasks)
  measure.report('Starts', rows, {'width': args.width})


if __name__ == '__main__':
  main()
