"""Neural architecture search for real-time image deblurring, in JAX.

`derive_and_train` and `load` can be called from here; all functions are in
`pynas_jax.api` (`search` and `train` name subpackages of this one). They are
imported on first use, so that `import pynas_jax.genotype` does not load JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'
__all__ = ['derive_and_train', 'load']


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module('pynas_jax.api'), name)
