"""Checkpoints: a thin layer over Orbax that knows whether a step is whole.

A step holds named items of arrays (`params`, `state`, ...) and one JSON item
(genotype, data position, scores). Every item is stored as a flat mapping from
leaf path to host array, so that any pytree, its optimizer state included, comes
back bit for bit, and an item such as `params` can be read without the others.

Orbax renames a finished step into place. A manifest of SHA-256 digests is
written after that, so a step that was killed half-way or damaged later is
recognised, and `latest` and `best` fall back to one that is whole. Only `save`
removes anything: the checkpoints of a running job can be read safely.

Ours; the paper does not describe its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any
import warnings

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

MANIFEST = 'manifest.json'
META = 'meta'
_SPARE_BYTES = 1 << 20  # Beside the arrays: Orbax's own files, and logs.


class CheckpointError(ValueError):
  """A checkpoint that cannot be used; the message names the file or leaf."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides Orbax's log, unless debugging was asked for: errors are raised."""
  level = logging.get_verbosity()
  if level < logging.DEBUG:
    logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(level)


def _flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves by path.

  >>> _flatten({'w': 1, 'opt': (2, None)})
  {'opt/0': 2, 'w': 1}
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  flat = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  if len(flat) != len(leaves):
    raise CheckpointError('Two leaves have the same path; rename one of them.')
  return flat


def _kind(leaf: Any) -> str:
  """Returns dtype and shape for people.

  >>> _kind(np.zeros((2, 3), np.float32))
  'float32[2, 3]'
  """
  leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'


def _digest(path: pathlib.Path) -> dict[str, Any]:
  with path.open('rb') as file:
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'bytes': path.stat().st_size, 'sha256': sha256}


def _seal(files: dict[str, Any]) -> dict[str, Any]:
  """Returns a manifest of `files` that shows damage to itself, too."""
  sha256 = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  return {'files': files, 'sha256': sha256}


class Checkpoints:
  """The checkpoints of one run; a context manager.

  Args:
    directory: Holds one folder per step; made by the first `save`.
    keep_latest: Number of newest steps to keep.
    keep_best_metric: Name of a metric; the step where it is highest is kept
      too. None keeps the newest only.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep_latest: int = 2,
    keep_best_metric: str | None = None,
  ):
    if keep_latest < 1:
      raise CheckpointError(f'keep_latest is {keep_latest}; expected above 0.')
    self.directory = pathlib.Path(directory).absolute()
    self.keep_latest = keep_latest
    self.keep_best_metric = keep_best_metric
    self._manager_or_none: ocp.CheckpointManager | None = None
    self._cleaned = False

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Releases Orbax's threads."""
    if self._manager_or_none is not None:
      with _quiet():
        self._manager_or_none.close()
      self._manager_or_none = None

  @property
  def _manager(self) -> ocp.CheckpointManager:
    """Orbax's manager; it deletes nothing by itself (see `_keep`)."""
    if self._manager_or_none is None:
      options = ocp.CheckpointManagerOptions(
        create=False, save_root_metadata=False
      )
      with _quiet():
        self._manager_or_none = ocp.CheckpointManager(
          self.directory, options=options
        )
    return self._manager_or_none

  def steps(self) -> list[int]:
    """Returns the steps on disk, oldest first, whole or not."""
    if not self.directory.is_dir():
      return []
    names = (p.name for p in self.directory.iterdir() if p.is_dir())
    # Only names that Orbax writes: '07' is not step 7.
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))

  def latest(self) -> int | None:
    """Returns the newest whole step, or None; warns of damaged ones."""
    return next(filter(self._whole, reversed(self.steps())), None)

  def best(self) -> int | None:
    """Returns the whole step with the highest metric, or None."""
    return self._best([step for step in self.steps() if self._whole(step)])

  def save(
    self,
    step: int,
    *,
    arrays: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Writes a step; when this returns, the step survives a kill.

    A step that is already there and whole is left as it is.

    Args:
      step: Number of the step, 0 or more.
      arrays: Item name -> pytree of arrays; devices do not matter.
      meta: Anything that JSON can hold.
      metrics: Name -> score, higher is better.

    Raises:
      CheckpointError: If an item has a reserved name or `meta` is not JSON.
      OSError: If it cannot be written, as on a full disk.
    """
    if reserved := {META, 'metrics'} & set(arrays):
      raise CheckpointError(f'arrays has {reserved}; these names are taken.')
    metrics = {name: float(value) for name, value in (metrics or {}).items()}
    content = {'meta': dict(meta), 'metrics': metrics}
    try:
      json.dumps(content)
    except (TypeError, ValueError) as error:
      raise CheckpointError(f'meta is not JSON: {error}.') from None
    items = {
      # Orbax refuses an item without leaves; `restore` needs none of it.
      name: ocp.args.StandardSave(jax.tree.map(np.asarray, flat))
      for name, tree in arrays.items()
      if (flat := _flatten(tree))
    }
    self._clean()
    if step in self.steps():
      if self._whole(step):
        return
      self._remove(step)
    self._check_space(arrays)
    args = ocp.args.Composite(**items, **{META: ocp.args.JsonSave(content)})
    try:
      with _quiet():
        self._manager.reload()  # Forgets the steps that were removed.
        # By force: also a step before the newest one, after a fall-back.
        self._manager.save(step, args=args, force=True)
        self._manager.wait_until_finished()
    except ValueError as error:  # Of Orbax, as where a quota is exceeded.
      text = str(error).partition('\n')[0]
      raise OSError(f'{self.directory} cannot be written: {text}') from error
    self._write_manifest(step)
    self._keep(step)

  def restore(
    self, step: int, abstract: Mapping[str, Any]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads some or all items of a step.

    Args:
      step: A step, as `latest` and `best` return it.
      abstract: Item name -> pytree of arrays or `jax.ShapeDtypeStruct`; items
        that are not named are not read.

    Returns:
      The items, as pytrees of numpy arrays like `abstract`, and the `meta`.

    Raises:
      CheckpointError: Names the damaged file, the missing item, or the leaf
        whose shape or dtype differs.
    """
    expected = {name: _flatten(tree) for name, tree in abstract.items()}
    names = [name for name, flat in expected.items() if flat]
    content, found = self._read(step, names)
    arrays = {}
    for name, tree in abstract.items():
      where = f'{self.directory / str(step)}: {name}'
      self._compare(where, expected[name], found.get(name, {}))
      leaves = [found[name][path] for path in expected[name]]
      arrays[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return arrays, content['meta']

  def meta(self, step: int) -> dict[str, Any]:
    """Returns the `meta` of a step without reading its arrays."""
    return self._read(step)[0]['meta']

  def metrics(self, step: int) -> dict[str, float]:
    """Returns the metrics of a step without reading its arrays."""
    return self._read(step)[0]['metrics']

  def _read(
    self, step: int, names: list[str] | tuple[str, ...] = ()
  ) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Returns the JSON content and the flat arrays of the named items."""
    if problem := self._problem(step, (META, *names)):
      raise CheckpointError(problem)
    items = {name: ocp.args.StandardRestore() for name in names}
    with _quiet():
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(**items, **{META: ocp.args.JsonRestore()}),
      )
    return found[META], {name: found[name] for name in names}

  @staticmethod
  def _compare(
    where: str, expected: Mapping[str, Any], found: Mapping[str, Any]
  ) -> None:
    """Raises unless paths, shapes and dtypes agree; Orbax would cast."""
    for path in [*expected, *(path for path in found if path not in expected)]:
      want = _kind(expected[path]) if path in expected else 'no such leaf'
      have = _kind(found[path]) if path in found else 'no such leaf'
      if want != have:
        raise CheckpointError(
          f'{where}/{path} is {have} in the checkpoint; expected {want}. '
          'Use the settings and the genotype that it was saved with.'
        )

  def _check_space(self, arrays: Mapping[str, Any]) -> None:
    """Raises OSError if the disk is too full: Orbax says so on 700 lines."""
    leaves = jax.tree.leaves(dict(arrays))
    needed = _SPARE_BYTES + sum(np.asarray(leaf).nbytes for leaf in leaves)
    free = shutil.disk_usage(self.directory).free
    if free < needed:
      raise OSError(
        f'{self.directory} has {free / 2**20:.1f} MiB left, and a checkpoint '
        f'needs {needed / 2**20:.1f} MiB. Make room; the same command goes on.'
      )

  def _write_manifest(self, step: int) -> None:
    root = self.directory / str(step)
    paths = sorted(path for path in root.rglob('*') if path.is_file())
    files = {path.relative_to(root).as_posix(): _digest(path) for path in paths}
    partial = root / (MANIFEST + '.tmp')
    partial.write_text(json.dumps(_seal(files), indent=1))
    partial.replace(root / MANIFEST)

  def _problem(self, step: int, items: tuple[str, ...] | None = None) -> str:
    """Returns what is wrong with a step (or with some items of it), or ''."""
    root = self.directory / str(step)
    path = root / MANIFEST
    try:
      manifest = json.loads(path.read_bytes())
      if manifest != _seal(manifest['files']):
        raise ValueError
    except FileNotFoundError:
      return f'{path} is missing: that checkpoint was not finished.'
    except (ValueError, KeyError, TypeError):
      return f'{path} is damaged: it is not what was saved.'
    names = {
      name.partition('/')[0] for name in manifest['files'] if '/' in name
    }
    for item in items or ():
      if item not in names:
        return (
          f'{root} has no item {item!r}; it has {", ".join(sorted(names))}.'
        )
    for name, expected in manifest['files'].items():
      path = root / name
      if items and '/' in name and name.partition('/')[0] not in items:
        continue
      if not path.is_file():
        return f'{path} is missing: that checkpoint is damaged.'
      if _digest(path) != expected:
        return f'{path} is damaged: it is not what was saved.'
    return ''

  def _whole(self, step: int) -> bool:
    problem = self._problem(step)
    if problem:
      warnings.warn(f'Checkpoint skipped: {problem}', stacklevel=3)
    return not problem

  def _best(self, steps: list[int]) -> int | None:
    scores = {
      step: self.metrics(step).get(self.keep_best_metric, math.nan)
      for step in steps
      if not self._problem(step, (META,))
    }
    scores = {s: score for s, score in scores.items() if not math.isnan(score)}
    # The newer of two equals, as it has trained for longer.
    return max(scores, key=lambda s: (scores[s], s), default=None)

  def _clean(self) -> None:
    """Before the first save, removes what a killed run left half-done."""
    if self._cleaned:
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    for path in self.directory.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path)
    for step in self.steps():
      if not self._whole(step):
        self._remove(step)
    self._cleaned = True

  def _keep(self, saved: int) -> None:
    """Removes all but the newest steps, the best one and the one just saved.

    Ours and not Orbax's policy, which would remove the old step before the
    manifest of the new one is written.
    """
    steps = self.steps()
    keep = {*steps[-self.keep_latest :], self._best(steps), saved}
    for step in steps:
      if step not in keep:
        self._remove(step)

  def _remove(self, step: int) -> None:
    root = self.directory / str(step)
    # The manifest first, so that a kill leaves an unfinished step.
    (root / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(root)
