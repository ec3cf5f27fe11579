"""Neural architecture search for real-time image deblurring, in JAX.

`derive_and_train` and `load` can be called from here; all functions are in
`pynas_jax.api` (`search` and `train` name subpackages of this one). They are
imported on first use, so that `import pynas_jax.genotype` does not load JAX.
"""

from __future__ import annotations

import importlib
from importlib import metadata
import os
from typing import Any

__version__ = '0.1.0'
__all__ = ['derive_and_train', 'load']
# YNNPACK of jaxlib 0.10, the last for Python 3.11, does convolutions of few
# channels on one core. XLA's own use all, and so does YNNPACK since 0.11.
_YNN = '--xla_cpu_experimental_ynn_fusion_type'


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module('pynas_jax.api'), name)


def __dir__() -> list[str]:
  return sorted(globals().keys() | set(__all__))


def _run_convolutions_on_all_cores() -> None:
  """Sets a flag of XLA, which reads it when it compiles its first program."""
  flags = os.environ.get('XLA_FLAGS', '')
  if metadata.version('jaxlib').startswith('0.10.') and _YNN not in flags:
    flag = f'{_YNN}=-individual_convolution'
    os.environ['XLA_FLAGS'] = f'{flags} {flag}'.strip()


_run_convolutions_on_all_cores()
