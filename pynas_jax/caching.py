"""The user's cache folder: compiled programs and exported networks.

`PYNAS_JAX_CACHE` names the folder; 'off' keeps nothing. Without it the folder
is `pynas_jax` in `XDG_CACHE_HOME`, which is ~/.cache by default.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
import platform

import jax

from pynas_jax import parallel

VARIABLE = 'PYNAS_JAX_CACHE'
OFF = 'off'


def folder() -> Path | None:
  """Returns the cache folder, which may not exist yet, or None if it is off."""
  named = os.environ.get(VARIABLE)
  if named:
    return None if named == OFF else Path(named).absolute()
  home = os.environ.get('XDG_CACHE_HOME')
  try:
    home = Path(home) if home else Path.home() / '.cache'
  except RuntimeError:  # A user without a home, as in containers.
    return None
  return home.absolute() / 'pynas_jax'


def keep_compiled_programs() -> None:
  """Lets XLA find its programs again in the next process.

  Does nothing where a folder for them is set already, by
  `JAX_COMPILATION_CACHE_DIR` or otherwise, or where none can be written.
  """
  path = folder()
  if path is None or jax.config.jax_compilation_cache_dir:
    return
  # Programs of one kind of processor may crash another: a home can be shared.
  name, features = parallel.processor()
  kind = hashlib.sha256((features or name).encode()).hexdigest()[:8]
  path = path / 'xla' / f'{platform.machine()}-{kind}'
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return
  if not os.access(path, os.W_OK):
    return  # JAX would warn of each program.
  jax.config.update('jax_compilation_cache_dir', str(path))
  # A start compiles a hundred small programs, half of its time together.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
