"""What is wrong with the files of a dataset: all of it, before any work.

Every image is decoded once, in threads: only that finds a damaged one.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import ImageOps

from pynas_jax import logbook
from pynas_jax.data import files

CHANNELS = {'1': 1, 'L': 1, 'P': 3, 'RGB': 3}  # Pillow's modes that are read.


@dataclasses.dataclass(frozen=True)
class _Image:
  """What is known of an image file; `fault` is '' for a good one."""

  fault: str = ''
  size: tuple[int, int] = (0, 0)  # Height and width, pixels, upright.
  channels: int = 0
  digest: bytes = b''  # Of the pixels.


def _examine(path: Path) -> _Image:
  """Decodes an image file."""
  try:
    if path.stat().st_size == 0:
      return _Image('is empty')
    with Image.open(path) as image:
      mode, count = image.mode, getattr(image, 'n_frames', 1)
      if count > 1 and image.format != 'MPO':  # A phone's JPEG with a preview.
        return _Image(f'has {count} frames; expected one image')
      if mode.startswith(('I', 'F')):
        return _Image(f'has pixels of mode {mode}; expected 8 bits a channel')
      if mode not in CHANNELS:
        count = len(image.getbands())
        return _Image(f'has {count} channels ({mode}); expected 1 or 3')
      pixels = np.array(ImageOps.exif_transpose(image).convert('RGB'))
  except Image.UnidentifiedImageError:
    return _Image('is no image, whatever its name says')
  except Image.DecompressionBombError as error:
    return _Image(f'is too large: {error}')
  except (OSError, SyntaxError, ValueError) as error:
    return _Image(f'is truncated or damaged: {error}')
  digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
  digest.update(str(pixels.shape).encode())
  return _Image('', pixels.shape[:2], CHANNELS[mode], digest.digest())


def find_faults(
  pairs: Sequence[files.Pair], splits: Sequence[str], *, root: Path
) -> list[str]:
  """Finds all that is wrong with pairs of files.

  Args:
    pairs: The pairs.
    splits: Of each pair: 'train', 'validation' or 'test'.
    root: Names in the answer are relative to it.

  Returns:
    A line for every file that is unreadable, truncated or of a wrong kind,
    every pair of unequal sizes or channels, and every image of the test split
    that is in another split too.
  """
  paths = sorted({path for pair in pairs for path in pair.files})
  known: dict[Path, _Image] = {}
  with (
    futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    logbook.progress(len(paths), 'check images') as bar,
  ):
    for i, image in enumerate(pool.map(_examine, paths)):
      known[paths[i]] = image
      bar.update(i + 1)
  show = lambda path: path.relative_to(root).as_posix()  # noqa: E731
  faults = [f'{show(p)}: {known[p].fault}' for p in paths if known[p].fault]
  for pair in pairs:
    faults += _unequal(pair, known)
  trained_on = {
    known[path].digest: path
    for pair, split in zip(pairs, splits, strict=True)
    for path in pair.files
    if split != 'test' and known[path].digest
  }
  for pair, split in zip(pairs, splits, strict=True):
    for path in pair.files if split == 'test' else ():
      twin = trained_on.get(known[path].digest)
      if twin:
        faults.append(
          f'{show(path)}: a test image, yet the same as {show(twin)}, which is '
          'not'
        )
  return faults


def _unequal(pair: files.Pair, known: dict[Path, _Image]) -> list[str]:
  """Returns what keeps the images of a pair from being compared."""
  images = [known[path] for path in pair.files]
  if any(image.fault for image in images):
    return []
  if pair.halves and images[0].size[1] % 2:
    return [f'{pair.name}: {images[0].size[1]} columns are not two halves']
  first = images[0]
  for other in images[1:]:
    if other.size != first.size:
      (height, width), (other_height, other_width) = first.size, other.size
      return [
        f'{pair.name}: the degraded image is {height}x{width} (height x width)'
        f', the sharp one {other_height}x{other_width}'
      ]
    if other.channels != first.channels:
      return [
        f'{pair.name}: the degraded image has {first.channels} channels, the '
        f'sharp one {other.channels}'
      ]
  return []


def listing(faults: Sequence[str], *, where: str) -> str:
  """Returns the text that tells of all faults.

  Args:
    faults: A line each.
    where: The setting and its value, such as "data.root is 'pairs'".
  """
  lines = ''.join(f'\n  {fault}' for fault in faults)
  return (
    f'{where}: {len(faults)} faults. Replace or remove these files:{lines}'
  )
