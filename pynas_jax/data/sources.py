"""Random-access sources of images, by dataset and split.

A source has `len()`, `[index]` as Grain asks, and the `names` and `sizes` of
its images. An item is {'name': str, 'blurred': u8[H, W, 3], 'sharp':
u8[H, W, 3]}; the training source of the bundled photographs leaves 'blurred'
out, as the pipeline draws a fresh blur for every crop.

'photos' are split by photograph. 'folder' holds one tenth of the training pairs
out for validation, at random, as PyNAS section 3.2 does on GoPro.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import importlib.resources
import os
import pathlib
from typing import Any, Protocol

import ml_collections
import numpy as np
from PIL import Image
from PIL import ImageOps

from pynas_jax import config as config_lib
from pynas_jax.data import blur

SPLITS = ('train', 'validation', 'test')
PHOTOS = {
  'train': (
    'baby', 'bulb', 'city', 'haze', 'nyc', 'prudential', 'reflect', 'sunset',
  ),
  'validation': ('night', 'pixel'),
  'test': ('girl', 'guitar'),
}  # fmt: skip
# Held-out blurs follow from it alone, so that figures of all runs compare.
HELD_OUT_SEED = 2021
TEST_FRACTION = 0.1  # Of the pairs of a folder without train/ and test/.
SUFFIXES = (
  '.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip
MAX_LISTED = 10
_ORIENTATION = 0x0112  # EXIF tag; values above 4 swap height and width.


class Source(Protocol):
  """What the pipeline needs of a dataset; fits Grain's own protocol."""

  @property
  def names(self) -> Sequence[str]:
    """Name of every item, unique."""

  @property
  def sizes(self) -> Sequence[tuple[int, int]]:
    """Height and width of every item, pixels, known without decoding."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def make_source(
  data: ml_collections.ConfigDict, split: str, *, seed: int
) -> Source:
  """Returns the blurred and sharp pairs of a split, whole and always the same.

  Args:
    data: The settings `config.data`.
    split: One of SPLITS.
    seed: Of the split into training and validation; the same for all splits of
      one run, or they overlap.

  Returns:
    A source of {'name', 'blurred': u8[H, W, 3], 'sharp': u8[H, W, 3]}.

  Raises:
    SettingError: Names the dataset, split or files that cannot be used.
  """
  _check_split(split)
  if data.name == 'photos':
    return BlurredPhotos(
      split, data.blurs_per_photo, data.kernel_size, data.kernel_steps,
      data.noise_sigma,
    )  # fmt: skip
  return _folder(data, split, seed)


def make_training_source(
  data: ml_collections.ConfigDict, split: str, *, seed: int
) -> Source:
  """Returns the images of a split to draw training crops from.

  Args:
    data: The settings `config.data`.
    split: One of SPLITS; 'validation' trains the architecture in a search.
    seed: As for `make_source`.

  Returns:
    A source of pairs, or for 'photos' of {'name', 'sharp': u8[H, W, 3]}.

  Raises:
    SettingError: Names the dataset, split or files that cannot be used.
  """
  _check_split(split)
  if data.name == 'photos':
    return SharpPhotos(split)
  return _folder(data, split, seed)


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise config_lib.SettingError(
      f'split is {split!r}; expected one of {", ".join(SPLITS)}.'
    )


@functools.cache
def _photo(name: str) -> np.ndarray:
  """Returns u8[H, W, 3] of a bundled photograph, kept in memory."""
  path = importlib.resources.files(__package__) / 'photos' / f'{name}.png'
  with path.open('rb') as file, Image.open(file) as image:
    pixels = np.array(image.convert('RGB'))
  pixels.setflags(write=False)
  return pixels


@dataclasses.dataclass(frozen=True)
class SharpPhotos:
  """The bundled photographs of a split."""

  split: str

  @property
  def names(self) -> tuple[str, ...]:
    return PHOTOS[self.split]

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    return tuple(_photo(name).shape[:2] for name in self.names)

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.names[index]
    return {'name': name, 'sharp': _photo(name)}


@dataclasses.dataclass(frozen=True)
class BlurredPhotos:
  """The bundled photographs of a split, each with some blurs that never change.

  Attributes:
    split: One of SPLITS.
    blurs_per_photo: Pairs for each photograph.
    kernel_size: Side of the blur kernels, pixels.
    kernel_steps: Steps of their random walk.
    noise_sigma: Of 255.
  """

  split: str
  blurs_per_photo: int
  kernel_size: int
  kernel_steps: int
  noise_sigma: float

  @property
  def names(self) -> tuple[str, ...]:
    copies = range(self.blurs_per_photo)
    return tuple(f'{name}-{k}' for name in PHOTOS[self.split] for k in copies)

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    return tuple(
      _photo(name).shape[:2]
      for name in PHOTOS[self.split]
      for _ in range(self.blurs_per_photo)
    )

  def __len__(self) -> int:
    return len(PHOTOS[self.split]) * self.blurs_per_photo

  def __getitem__(self, index: int) -> dict[str, Any]:
    photo, copy = divmod(range(len(self))[index], self.blurs_per_photo)
    key = (HELD_OUT_SEED, SPLITS.index(self.split), photo, copy)
    rng = np.random.default_rng(key)
    kernel = blur.random_walk_kernel(
      rng, size=self.kernel_size, steps=self.kernel_steps
    )
    sharp = _photo(PHOTOS[self.split][photo])
    blurred = blur.degrade(
      rng, sharp.astype(np.float32) / 255,
      kernel=kernel, noise_sigma=self.noise_sigma,
    )  # fmt: skip
    return {
      'name': self.names[index],
      'blurred': np.rint(blurred * 255).astype(np.uint8),
      'sharp': sharp,
    }


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two image files of one scene, and their common size in pixels."""

  name: str
  blurred: pathlib.Path
  sharp: pathlib.Path
  size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PairFiles:
  """Pairs of image files, decoded when asked for."""

  pairs: tuple[Pair, ...]

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(pair.name for pair in self.pairs)

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    return tuple(pair.size for pair in self.pairs)

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> dict[str, Any]:
    pair = self.pairs[index]
    return {
      'name': pair.name,
      'blurred': _decode(pair.blurred),
      'sharp': _decode(pair.sharp),
    }


def _decode(path: pathlib.Path) -> np.ndarray:
  """Returns u8[H, W, 3], upright."""
  try:
    with Image.open(path) as image:
      return np.array(ImageOps.exif_transpose(image).convert('RGB'))
  except (OSError, SyntaxError, ValueError) as error:
    raise config_lib.SettingError(
      f'{path} cannot be decoded: {error}. Replace it or remove the pair.'
    ) from error


def _folder(
  data: ml_collections.ConfigDict, split: str, seed: int
) -> PairFiles:
  """Finds, checks and splits the pairs under `data.root`.

  All pairs are checked whatever the split, so that a bad test image stops a run
  before its training.
  """
  root = pathlib.Path(os.path.expanduser(data.root))
  if not data.root or not root.is_dir():
    raise config_lib.SettingError(
      f'data.root is {data.root!r}; expected a folder that holds train/ and '
      'test/, each with blur/ and sharp/.'
    )
  rng = np.random.default_rng(seed % 2**32)
  if (root / 'train').is_dir() or (root / 'test').is_dir():
    pairs = _find_pairs(root, ('train', 'test'))
    test = [pair for pair in pairs if pair.name.startswith('test/')]
    rest = [pair for pair in pairs if not pair.name.startswith('test/')]
  else:
    pairs = _find_pairs(root, ('.',))
    test, rest = _hold_out(rng, pairs, TEST_FRACTION)
  validation, train = _hold_out(rng, rest, data.validation_fraction)
  chosen = {'train': train, 'validation': validation, 'test': test}[split]
  if not chosen:
    raise config_lib.SettingError(
      f'data.root is {data.root!r}: none of its {len(pairs)} pairs are left '
      f'for the {split} split, with data.validation_fraction '
      f'{data.validation_fraction}; expected more pairs under '
      f'{"test" if split == "test" else "train"}/, or another fraction.'
    )
  return PairFiles(tuple(chosen))


def _hold_out(
  rng: np.random.Generator, pairs: Sequence[Pair], fraction: float
) -> tuple[list[Pair], list[Pair]]:
  """Returns a random `fraction` of the pairs, at least one, and the others."""
  count = max(1, round(fraction * len(pairs))) if fraction > 0 else 0
  held = set(rng.permutation(len(pairs))[:count].tolist())
  return (
    [pair for i, pair in enumerate(pairs) if i in held],
    [pair for i, pair in enumerate(pairs) if i not in held],
  )


def _find_pairs(root: pathlib.Path, tops: Sequence[str]) -> list[Pair]:
  """Returns all pairs under the folders `tops` of root, by name, checked."""
  folders = [
    folder
    for top in tops
    for side in ('blur', 'sharp')
    for folder in (root / top).rglob(side)
  ]
  parents = sorted({folder.parent for folder in folders if folder.is_dir()})
  files, missing = [], []
  for parent in parents:
    blurred, sharp = _images(parent / 'blur'), _images(parent / 'sharp')
    for stem in sorted(blurred.keys() | sharp.keys()):
      name = (parent / stem).relative_to(root).as_posix()
      if stem not in sharp:
        missing.append(f'{name} (no sharp)')
      elif stem not in blurred:
        missing.append(f'{name} (no blur)')
      else:
        files.append((name, blurred[stem], sharp[stem]))
  _stop_if(missing, root, 'images without a partner', 'add or remove files')
  if not files:
    raise config_lib.SettingError(
      f'data.root is {str(root)!r}: no pairs; expected images of the same name '
      'in folders blur/ and sharp/ beside each other, under train/ and test/.'
    )
  pairs, unreadable, unequal = [], [], []
  for name, blurred, sharp in files:
    try:
      size, sharp_size = _size(blurred), _size(sharp)
    except (
      OSError, SyntaxError, ValueError, Image.DecompressionBombError,
    ) as error:  # fmt: skip
      unreadable.append(f'{name} ({error})')
      continue
    if size != sharp_size:
      height, width = size
      unequal.append(
        f'{name} (blur {height}x{width}, sharp {sharp_size[0]}x{sharp_size[1]})'
      )
    pairs.append(Pair(name, blurred, sharp, size))
  _stop_if(unreadable, root, 'images that cannot be read', 'replace them')
  _stop_if(
    unequal, root, 'pairs of different height x width', 'resize or remove them'
  )
  return pairs


def _images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the image files of a folder by name without suffix."""
  images: dict[str, pathlib.Path] = {}
  if not folder.is_dir():
    return images
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'):
      if path.stem in images:
        raise config_lib.SettingError(
          f'{folder} holds both {images[path.stem].name} and {path.name}; '
          'expected one image of a name. Remove one.'
        )
      images[path.stem] = path
  return images


def _size(path: pathlib.Path) -> tuple[int, int]:
  """Returns height and width of an upright image, from its header."""
  with Image.open(path) as image:
    if image.mode.startswith(('I', 'F')):
      raise ValueError(f'pixels of mode {image.mode}; expected 8 bits')
    width, height = image.size
    # The method of the base class: that of PNG files decodes all pixels.
    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) > 4
  return (width, height) if turned else (height, width)


def _stop_if(
  bad: Sequence[str], root: pathlib.Path, what: str, way_out: str
) -> None:
  if bad:
    more = len(bad) - MAX_LISTED
    raise config_lib.SettingError(
      f'data.root is {str(root)!r}: {len(bad)} {what}: '
      + ', '.join(bad[:MAX_LISTED])
      + (f' and {more} more' if more > 0 else '')
      + f'. To go on, {way_out}.'
    )
