"""A network compiled for one image shape, by any of the runtimes at hand.

Batches are uint8 or float32 [B, H, W, 3], floats in [0, 1]; the output has the
shape and the type of the input and is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax.genotype import Genotype
from pynas_jax.spaces import space_of

AUTO = 'auto'
DTYPES = ('float32', 'bfloat16')


class BackendError(ValueError):
  """A runtime that is unknown, missing or wrong."""


@dataclasses.dataclass(frozen=True)
class Network:
  """What a runtime compiles.

  Attributes:
    genotype: The architecture.
    params: Its float32 parameters.
    dtype: Of the arithmetic, 'float32' or 'bfloat16'.
  """

  genotype: Genotype
  params: Any
  dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Program:
  """A network compiled for one shape; the three steps can be timed apart.

  Attributes:
    put: Host array -> what `run` takes; the host array is left alone.
    run: Restores, and waits for the result; may use its argument up.
    get: Result of `run` -> host array.
  """

  put: Callable[[np.ndarray], Any]
  run: Callable[[Any], Any]
  get: Callable[[Any], np.ndarray]

  def __call__(self, batch: np.ndarray) -> np.ndarray:
    """Restores a batch of the shape and type compiled for."""
    return self.get(self.run(self.put(batch)))


def make_restore(
  genotype: Genotype, *, dtype: str = 'float32'
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the pure function `(params, image) -> image`.

  It maps uint8 or float32 [B, H, W, 3] to the same type, clipped; uint8 is
  rounded to nearest.
  """
  network = space_of(genotype).network(genotype, dtype=jnp.dtype(dtype))

  def restore(params: Any, image: jax.Array) -> jax.Array:
    is_uint8 = image.dtype == jnp.uint8
    x = image.astype(jnp.float32) / 255 if is_uint8 else image
    y = jnp.clip(network.apply({'params': params}, x), 0, 1)
    return jnp.round(y * 255).astype(jnp.uint8) if is_uint8 else y

  return restore


def _xla(network: Network, shape: tuple[int, ...], dtype: Any) -> Program:
  # The frame is donated: its memory becomes the output's.
  restore = jax.jit(
    make_restore(network.genotype, dtype=network.dtype), donate_argnums=(1,)
  )
  image = jax.ShapeDtypeStruct(shape, dtype)
  compiled = restore.lower(network.params, image).compile()
  return Program(
    # A copy: the donated buffer must not be the caller's own memory.
    put=lambda batch: jax.block_until_ready(jnp.array(batch, copy=True)),
    run=lambda batch: jax.block_until_ready(compiled(network.params, batch)),
    get=np.asarray,
  )


BACKENDS: dict[str, Callable[..., Program]] = {'xla': _xla}


def choose(backend: str, dtype: str) -> str:
  """Returns the runtime that a name stands for, once it can be used.

  Args:
    backend: Key of `BACKENDS`, or 'auto': the fastest that is installed.
    dtype: Of the arithmetic.

  Raises:
    BackendError: If there is no such runtime or type.
  """
  if dtype not in DTYPES:
    raise BackendError(
      f'dtype is {dtype!r}; expected one of {", ".join(DTYPES)}.'
    )
  if backend not in (*BACKENDS, AUTO):
    raise BackendError(
      f'backend is {backend!r}; expected one of '
      f'{", ".join((*BACKENDS, AUTO))}.'
    )
  return 'xla' if backend == AUTO else backend


def compile_network(
  backend: str, network: Network, shape: tuple[int, int, int, int], dtype: Any
) -> Program:
  """Compiles a network for one shape.

  Args:
    backend: Key of `BACKENDS`.
    network: The network.
    shape: Of the batch, [B, H, W, 3].
    dtype: Of the batch, uint8 or float32.
  """
  return BACKENDS[backend](network, shape, np.dtype(dtype))
