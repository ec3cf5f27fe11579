"""Checkpoint -> one jitted inference function.

Images go in and come out as [H, W, 3] or [B, H, W, 3], of any size, uint8 or
float in [0, 1]; the output is clipped and has the input's type and size.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax import genotype as genotype_lib
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.genotype import Genotype
from pynas_jax.spaces import base
from pynas_jax.spaces import dmphn
from pynas_jax.spaces import space_of

CHECKPOINTS = 'checkpoints'
GENOTYPE = 'genotype.json'


class LoadError(ValueError):
  """A network that cannot be loaded; the message names the file."""


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


class Restorer:
  """A trained network, compiled ahead of time for each image size it meets.

  Attributes:
    genotype: The architecture.
    params: Its float32 parameters, on the device.
    dtype: Of the arithmetic, 'float32' or 'bfloat16'.
  """

  def __init__(
    self, genotype: Genotype, params: Any, *, dtype: str = 'float32'
  ):
    self.genotype = genotype
    self.params = jax.device_put(params)
    self.dtype = dtype
    # The frame is donated: its memory becomes the output's.
    self._restore = jax.jit(
      make_restore(genotype, dtype=dtype), donate_argnums=(1,)
    )
    self._compiled: dict[Any, Callable[..., jax.Array]] = {}

  def compile(
    self, shape: tuple[int, int, int, int], dtype: Any = np.uint8
  ) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the compiled `(params, image) -> image` for one image shape."""
    signature = (tuple(shape), np.dtype(dtype))
    if signature not in self._compiled:
      image = jax.ShapeDtypeStruct(*signature)
      lowered = self._restore.lower(self.params, image)
      self._compiled[signature] = lowered.compile()
    return self._compiled[signature]

  def __call__(self, image: np.ndarray | jax.Array) -> np.ndarray:
    """Restores an image or a batch of images of one size.

    Args:
      image: uint8, or float in [0, 1]: [H, W, 3] or [B, H, W, 3].

    Returns:
      An array of the same shape; uint8 for uint8, else float32.

    Raises:
      ValueError: If the shape or the type is another.
    """
    image = np.asarray(image)
    is_image = image.ndim in (3, 4) and image.shape[-1] == 3 and image.size
    if not is_image or image.dtype.kind not in 'fu' or (
      image.dtype.kind == 'u' and image.dtype != np.uint8
    ):  # fmt: skip
      raise ValueError(
        f'The image has shape {image.shape} and type {image.dtype}; expected '
        '[H, W, 3] or [B, H, W, 3] of uint8, or of floats in [0, 1].'
      )
    if image.dtype != np.uint8:
      image = image.astype(np.float32)
    batch = image if image.ndim == 4 else image[None]
    compiled = self.compile(batch.shape, batch.dtype)
    # A copy: the donated buffer must not be the caller's own memory.
    restored = np.asarray(compiled(self.params, jnp.array(batch, copy=True)))
    return restored if image.ndim == 4 else restored[0]

  def save(self, directory: str | Path) -> Path:
    """Writes what `load` reads: genotype.json and a checkpoint.

    Args:
      directory: A new or empty folder.

    Raises:
      LoadError: If the folder holds a network already.
    """
    directory = Path(directory)
    if (directory / CHECKPOINTS).exists():
      raise LoadError(
        f'{directory} holds a network already; save to a new folder.'
      )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / GENOTYPE).write_text(self.genotype.to_json())
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
      checkpoints.save(
        1,
        arrays={'params': self.params},
        meta={'genotype': self.genotype.to_dict()},
      )
    return directory


def load(path: str | Path, *, dtype: str = 'float32') -> Restorer:
  """Loads a trained network.

  Args:
    path: A workdir, a folder of checkpoints, one checkpoint in it, a folder
      written by `save`, or a folder of the published DMPHN weights.
    dtype: Of the arithmetic, 'float32' or 'bfloat16'.

  Returns:
    The network of the best validation score, or of the named checkpoint.

  Raises:
    LoadError: If there is no network, or not a whole one.
  """
  path = Path(path)
  if not path.is_dir():
    raise LoadError(f'{path} is no folder; expected a workdir or checkpoint.')
  if dmphn.is_published(path):
    return Restorer(*dmphn.load(path), dtype=dtype)
  step = None
  if (path / CHECKPOINTS).is_dir():
    path = path / CHECKPOINTS
  elif path.name.isdigit():
    path, step = path.parent, int(path.name)
  with Checkpoints(path, keep_best_metric='psnr') as checkpoints:
    step = step or checkpoints.best() or checkpoints.latest()
    if step is None:
      raise LoadError(
        f'{path} holds no finished checkpoint; expected a workdir of training, '
        'or one of its checkpoints.'
      )
    genotype = genotype_lib.from_dict(checkpoints.meta(step)['genotype'])
    network = space_of(genotype).network(genotype)
    abstract = jax.eval_shape(
      lambda: base.init_params(jax.random.key(0), network)
    )
    arrays, _ = checkpoints.restore(step, {'params': abstract})
  return Restorer(genotype, arrays['params'], dtype=dtype)


def read_genotype(path: str | Path) -> Genotype:
  """Reads a genotype: a JSON file, a workdir, or a reference's name.

  Raises:
    LoadError: If the file is missing or not a genotype.
  """
  known = genotype_lib.reference(str(path))
  if known:
    return known
  path = Path(path)
  path = path / GENOTYPE if path.is_dir() else path
  try:
    return genotype_lib.from_json(path.read_text())
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise LoadError(
      f'{path} cannot be read as a genotype: {error}. Expected the '
      "genotype.json of a search, its workdir, 'dmphn', 'dmphn-1-2-4' or "
      "'nafnet-32'."
    ) from None
  except genotype_lib.GenotypeError as error:
    raise LoadError(f'{path}: {error}') from None
