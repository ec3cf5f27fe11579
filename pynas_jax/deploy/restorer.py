"""From a trained network, wherever it is, to one compiled function.

Images go in and come out as [H, W, 3] or [B, H, W, 3], of any size, uint8 or
float in [0, 1]; the output is clipped and has the input's type and size, or a
multiple of its size in super-resolution.

Orbax is imported where it is used: it takes as long to load as JAX, and a
release folder has no need of it.
"""

from __future__ import annotations

import collections
from concurrent import futures
import json
import math
from pathlib import Path
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from pynas_jax import caching
from pynas_jax import genotype as genotype_lib
from pynas_jax import parallel
from pynas_jax.deploy import backends
from pynas_jax.deploy import release
from pynas_jax.deploy import tiling
from pynas_jax.deploy.backends import Network
from pynas_jax.deploy.backends import Program
from pynas_jax.deploy.release import Card
from pynas_jax.deploy.release import LoadError
from pynas_jax.genotype import Genotype
from pynas_jax.spaces import base
from pynas_jax.spaces import dmphn
from pynas_jax.spaces import space_of

CHECKPOINTS = 'checkpoints'
GENOTYPE = 'genotype.json'
REPORT = 'report.json'  # Of what a run scored.
MAX_BYTES = 512 << 20  # That the programs of a Restorer may keep.
PROGRAM_BYTES = 16 << 20  # Of a program, without feature maps.
OFTEN = 8  # Images of a size share programs, before it has its own.
# Beyond those meant for [0, 1], from which filters and noise lead away.
_MIN, _MAX = -2.0, 3.0


class _Key(NamedTuple):
  """What a program is for: a shape, or all that a canvas of it holds."""

  shape: tuple[int, ...]
  dtype: np.dtype
  is_canvas: bool = False

  @property
  def pixels(self) -> int:
    return math.prod(self.shape[:3])

  def holds(self, other: _Key) -> bool:
    """Returns whether it is a canvas with room for the other."""
    pairs = zip(self.shape[1:], other.shape[1:], strict=True)
    return (
      self.is_canvas and self.shape[0] == other.shape[0]
      and all(ours >= theirs for ours, theirs in pairs)
    )  # fmt: skip


class Restorer:
  """A trained network, compiled ahead of time for the image sizes it meets.

  Threads may share one. For an iterable of images, use `map(restorer, images)`.
  XLA takes long for that: it does it for the first size of a type, for those
  that come often and those told to `compile`. Others share programs for larger
  ones, in which the network sees the image alone; the results are the same.

  Attributes:
    genotype: The architecture.
    params: Its float32 parameters, on the device.
    dtype: Of the arithmetic: 'float32', 'bfloat16' or 'int8'.
    backend: The runtime, a key of `backends.BACKENDS`.
    streams: Threads, one or more, that are to restore at once; see
      `backends.Network`.
    programs: The ones used last, by what they are for; the newest is last.
    card: What the release folder says of it, if it came from one.
  """

  card: Card | None = None

  def __init__(
    self,
    genotype: Genotype,
    params: Any,
    *,
    dtype: str = 'float32',
    backend: str = 'xla',
    streams: int = 1,
  ):
    if streams < 1:
      raise LoadError(f'streams is {streams}; expected 1 or more.')
    parallel.check_devices()
    self.genotype = genotype
    self.params = jax.device_put(params)
    self.dtype = dtype
    self._network = Network(genotype, self.params, dtype, streams)
    self.backend = backends.choose(backend, self._network)
    self.streams = streams
    self._lock = threading.Lock()
    self.programs: collections.OrderedDict[_Key, futures.Future[Program]] = (
      collections.OrderedDict()
    )
    self._calls: collections.Counter[_Key] = collections.Counter()
    self._bytes_per_pixel = (
      tiling.LAYERS_HELD * tiling.context_of(genotype).bytes_per_pixel
    )

  @classmethod
  def from_pretrained(
    cls,
    source: str | Path,
    *,
    dtype: str = 'float32',
    backend: str = 'xla',
    streams: int = 1,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
  ) -> Restorer:
    """Loads a trained network from wherever it is.

    Args:
      source: What `load` reads, or a repository of the Hugging Face hub,
        'owner/name'.
      dtype: Of the arithmetic: 'float32', 'bfloat16' or, by OpenVINO, 'int8'.
      backend: 'xla', 'onnxruntime', 'openvino' or 'auto'.
      streams: See the class.
      revision: Branch, tag or commit of the repository.
      cache_dir: Takes what is downloaded; the hub's own folder by default.
      local_files_only: Whether to look for it in `cache_dir` only.

    Raises:
      LoadError: If there is no network, or not a whole one.
    """
    path = release.find(source) or release.download(
      str(source), revision=revision, cache_dir=cache_dir,
      local_files_only=local_files_only,
    )  # fmt: skip
    return load(path, dtype=dtype, backend=backend, streams=streams)

  def save_pretrained(
    self,
    directory: str | Path,
    *,
    card: Card | None = None,
    samples: tuple[np.ndarray, np.ndarray] | None = None,
  ) -> Path:
    """Writes a release folder: see `release.write`."""
    return release.write(
      directory, self.genotype, self.params, card=card or self.card,
      samples=samples,
    )  # fmt: skip

  def compile(
    self, shape: tuple[int, int, int, int], dtype: Any = np.uint8
  ) -> Program:
    """Returns the program for one image shape, compiled at most once."""
    return self._compile(_Key(tuple(shape), np.dtype(dtype)))

  def _compile(self, key: _Key) -> Program:
    with self._lock:
      program = self.programs.pop(key, None)
      is_new = program is None
      program = program or futures.Future()
      self.programs[key] = program
      while self._are_too_many():
        self.programs.popitem(last=False)
    if is_new:  # Other threads that want it wait; those of other shapes do not.
      try:
        program.set_result(self._open(key))
      except BaseException as error:
        with self._lock:
          self.programs.pop(key, None)
        program.set_exception(error)
    return program.result()

  def _open(self, key: _Key) -> Program:
    shape, dtype, is_canvas = key
    if is_canvas:
      return backends.compile_canvas(self._network, shape, dtype)
    return backends.compile_network(self.backend, self._network, shape, dtype)

  def _are_too_many(self) -> bool:
    total = len(self.programs) * PROGRAM_BYTES
    if self.backend != 'xla':  # The others keep their feature maps.
      pixels = sum(key.pixels for key in self.programs)
      total += self._bytes_per_pixel * pixels
    return len(self.programs) > 1 and total > MAX_BYTES

  def _program_for(self, batch: np.ndarray) -> Program:
    """Returns the program of the batch's shape, or one that it shares."""
    key = _Key(batch.shape, batch.dtype)
    with self._lock:
      known = [other for other in self.programs if other.dtype == key.dtype]
      self._calls[key] += 1
      has_own = not known or key in known or self._calls[key] > OFTEN
    if self.backend == 'xla' and not has_own:
      most = backends.max_canvas(key.shape)
      shape = backends.canvas_shape(self._network, key.shape)
      key = _Key(shape, key.dtype, is_canvas=True)
      canvases = (
        other for other in known if other.holds(key) and other.pixels <= most
      )
      key = min(canvases, key=lambda canvas: canvas.pixels, default=key)
    return self._compile(key)

  def __call__(self, image: np.ndarray | jax.Array) -> np.ndarray:
    """Restores an image or a batch of images of one size.

    Args:
      image: uint8, or float in [0, 1]: [H, W, 3] or [B, H, W, 3].

    Returns:
      An array of the same shape, but `genotype.scale` times as high and wide;
      uint8 for uint8, else float32.

    Raises:
      ValueError: If the shape or the type is another, or if the values cannot
        be meant to be in [0, 1].
    """
    image = np.asarray(image)
    if image.dtype == jax.numpy.bfloat16:  # No float to NumPy.
      image = image.astype(np.float32)
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
      low, high = image.min(), image.max()
      if not _MIN < low <= high < _MAX:
        raise ValueError(
          f'The image has values from {low:g} to {high:g}; expected floats in '
          '[0, 1], or uint8.'
        )
    batch = image if image.ndim == 4 else image[None]
    restored = self._program_for(batch)(batch)
    return restored if image.ndim == 4 else restored[0]

  def save(self, directory: str | Path) -> Path:
    """Writes what `load` reads: genotype.json and a checkpoint.

    Args:
      directory: A new or empty folder.

    Raises:
      LoadError: If the folder holds a network already.
    """
    from pynas_jax.checkpoint import Checkpoints

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
        meta={'genotype': self.genotype.to_dict()}
        | ({'task': self.card.task} if self.card else {}),
      )
    return directory


def load(path: str | Path, **options: Any) -> Restorer:
  """Loads a trained network.

  Args:
    path: A workdir, a folder of checkpoints, one checkpoint in it, a folder
      written by `save` or `save_pretrained`, the name of a network of this
      package (`release.shipped`), or a folder of the published DMPHN weights.
    **options: Of `Restorer`: `dtype`, `backend`, `streams`.

  Returns:
    The network of the best validation score, or of the named checkpoint.

  Raises:
    LoadError: If there is no network, or not a whole one.
  """
  caching.keep_compiled_programs()
  found = release.find(path)
  if found is None:
    raise release.no_network(path)
  path = found
  if release.is_release(path):
    genotype, params, card = release.read(path)
    restorer = Restorer(genotype, params, **options)
    restorer.card = card
    return restorer
  if dmphn.is_published(path):
    restorer = Restorer(*dmphn.load(path), **options)
    restorer.card = Card(task='deblurring')
    return restorer
  from pynas_jax.checkpoint import MANIFEST
  from pynas_jax.checkpoint import Checkpoints

  step, workdir = None, path
  if (path / CHECKPOINTS).is_dir():
    path = path / CHECKPOINTS
  elif path.name.isdecimal() and (path / MANIFEST).is_file():
    path, step = path.parent, int(path.name)
  with Checkpoints(path, keep_best_metric='psnr') as checkpoints:
    step = step or checkpoints.best() or checkpoints.latest()
    if step is None:
      raise LoadError(
        f'{path} holds no finished checkpoint; expected a workdir of training, '
        'or one of its checkpoints.'
      )
    meta = checkpoints.meta(step)
    if 'genotype' not in meta:
      raise LoadError(
        f'{path} holds the supernet of a search, not a network; expected the '
        'workdir of the run.'
      )
    genotype = genotype_lib.from_dict(meta['genotype'])
    network = space_of(genotype).network(genotype)
    abstract = jax.eval_shape(
      lambda: base.init_params(jax.random.key(0), network)
    )
    arrays, _ = checkpoints.restore(step, {'params': abstract})
  restorer = Restorer(genotype, arrays['params'], **options)
  report = read_report(workdir, genotype)
  if report:
    restorer.card = release.card_of(report)
  elif 'task' in meta:
    restorer.card = Card(task=meta['task'])
  return restorer


def read_report(workdir: Path, genotype: Genotype) -> dict[str, Any]:
  """Returns what a run reports of a network; {} if nothing."""
  try:
    report = json.loads((workdir / REPORT).read_text())
    return report if report['genotype'] == genotype.to_dict() else {}
  except (OSError, ValueError, TypeError, KeyError):
    return {}  # There is none, or none that is whole.


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
