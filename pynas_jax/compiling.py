"""Programs, compiled for the device at hand.

jaxlib 0.12 contains oneDNN for processors, and uses its convolutions where a
program asks for them. They take less time than those of its YNNPACK, half of it
with few channels, but in bfloat16, which they emulate where a processor has
none. Programs with them cannot be written to JAX's compilation cache: those
without gradients compile in a second, and steps have them where there are so
many that compiling anew at every start is little. Where `XLA_FLAGS` has the
first option below, on or off, it is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import functools
import math
import os
import platform
import sys
import threading
from typing import Any

import jax

from pynas_jax import parallel

_FLAG = 'xla_cpu_experimental_onednn_custom_call'
_ONEDNN = {
  _FLAG: True,
  # All that YNNPACK keeps, as it would take convolutions and products first.
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
}
MANY_STEPS = 5000  # More than the demo's, whose second start is a quick one.
_MIN_SECONDS = 'jax_persistent_cache_min_compile_time_secs'
_lock = threading.Lock()


def has_onednn(dtype: str = 'float32') -> bool:
  """Returns whether convolutions are oneDNN's, on the device at hand.

  Args:
    dtype: Of the arithmetic.
  """
  return (
    dtype == 'float32'
    and _FLAG not in os.environ.get('XLA_FLAGS', '')
    and jax.__version_info__ >= (0, 12)
    and sys.platform == 'linux'
    and platform.machine() == 'x86_64'
    and parallel.device().platform == 'cpu'
  )


def compile_program(
  function: Callable[..., Any], *args: Any, dtype: str = 'float32'
) -> jax.stages.Compiled:
  """Compiles a function for its arguments.

  Args:
    function: Of `jax.jit` or `jax.pmap`.
    *args: As it will be called with, or their shapes and types.
    dtype: Of the arithmetic.

  Returns:
    What is called with arrays of these shapes and types.
  """
  lowered = function.lower(*args)
  if has_onednn(dtype):
    # The options are experimental: without them it is slower and the same.
    with contextlib.suppress(jax.errors.JaxRuntimeError), _uncached():
      return lowered.compile(compiler_options=_ONEDNN)
  return lowered.compile()


def of_steps(num_steps: int, dtype: str = 'float32') -> Callable | None:
  """Returns how `parallel.make_parallel` is to compile a step, None as it does.

  Args:
    num_steps: That a run does from its first start to its end, so that its
      results do not depend on where it was stopped.
    dtype: Of the arithmetic.
  """
  if num_steps < MANY_STEPS or not has_onednn(dtype):
    return None
  return functools.partial(compile_program, dtype=dtype)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
  """Keeps what is compiled out of JAX's cache, as XLA fails to write it."""
  with _lock:  # Settings are those of all threads.
    seconds = getattr(jax.config, _MIN_SECONDS)
    jax.config.update(_MIN_SECONDS, math.inf)
    try:
      yield
    finally:
      jax.config.update(_MIN_SECONDS, seconds)
