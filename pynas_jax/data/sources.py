"""Random-access sources of images, by dataset and split.

A source has `len()`, `[index]` as Grain asks, and the `names` and `sizes` of
its images. An item is {'name': str, 'sequence': str, 'blurred': u8[H, W, 3],
'sharp': u8[H, W, 3]}; the training source of sharp images leaves 'blurred' out,
as the pipeline draws a fresh degradation for every crop. Sources that may have
grey files add 'is_grey', whether it was one, as all images have three channels.
With `data.noise_clip` off, 'blurred' is f32[H, W, 3] of any range, of 255.

'photos' are split by photograph. One tenth of the training pairs of other
datasets is held out for validation, as PyNAS section 3.2 does on GoPro: whole
sequences, as neighbouring frames are all but the same (the paper does not say).
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ml_collections
import numpy as np
from PIL import Image

from pynas_jax import config as config_lib
from pynas_jax.data import degrade
from pynas_jax.data import faults as faults_lib
from pynas_jax.data import files

if TYPE_CHECKING:
  from pynas_jax.data.builders import base as builders_base

SPLITS = ('train', 'validation', 'test')
HALVES = ('weights', 'alphas')  # Of 'train', in a search.
PHOTOS = {
  'train': (
    'baby', 'bulb', 'city', 'haze', 'nyc', 'prudential', 'reflect', 'sunset',
  ),
  'validation': ('night', 'pixel'),
  'test': ('girl', 'guitar'),
}  # fmt: skip
# Held-out blurs follow from it alone, so that figures of all runs compare.
HELD_OUT_SEED = 2021
TEST_FRACTION = 0.1  # Of the training pairs where there are none to test on.
# Only of these: a dataset's tiles are without a test split, the dataset is not.
TESTLESS = ('folder', 'sidd_medium')


class Source(Protocol):
  """What the pipeline needs of a dataset; fits Grain's own protocol.

  Attributes:
    paired: Whether items have a 'blurred' image.
    protocol: How an output is scored: 'whole', 'best_match' or 'registered'.
  """

  paired: bool
  protocol: str

  @property
  def names(self) -> Sequence[str]:
    """Name of every item, unique."""

  @property
  def sizes(self) -> Sequence[tuple[int, int]]:
    """Height and width of every item, pixels, known without decoding."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def make_source(
  data: ml_collections.ConfigDict,
  split: str,
  *,
  seed: int,
  task: str = 'deblur',
) -> Source:
  """Returns the blurred and sharp pairs of a split, whole and always the same.

  Args:
    data: The settings `config.data`.
    split: One of SPLITS.
    seed: Of the split into training and validation; the same for all splits of
      one run, or they overlap.
    task: What is done to sharp images, the setting `config.task`.

  Returns:
    A source of items with a 'blurred' image.

  Raises:
    SettingError: Names the dataset, split or files that cannot be used.
  """
  source = _open(data, split, seed, tiles=False)
  recipe = degrade.make_recipe(data, task)
  if source.paired and recipe.scale > 1:
    raise config_lib.SettingError(
      f'data.name is {data.name!r}, with pairs of images of one size; expected '
      f'sharp images alone for the task {task!r}, which makes small ones.'
    )
  if source.paired:
    return source
  sigma = data.noise_sigma
  config_lib.require(
    task != 'denoise' or sigma > 1, 'data.noise_sigma', sigma,
    'above 1 to denoise, such as 25',
  )  # fmt: skip
  return Degraded(source, recipe, data.blurs_per_photo, SPLITS.index(split))


def make_training_source(
  data: ml_collections.ConfigDict, split: str, *, seed: int
) -> Source:
  """Returns the images of a split to draw training crops from.

  Args:
    data: The settings `config.data`.
    split: One of SPLITS, or of `search_splits`.
    seed: As for `make_source`.

  Returns:
    A source of pairs, or of sharp images alone.

  Raises:
    SettingError: Names the dataset, split or files that cannot be used.
  """
  if split not in HALVES:
    return _open(data, split, seed, tiles=data.tiles)
  source = _open(data, 'train', seed, tiles=data.tiles)
  owners = [files.image_of(name) for name in source.names]
  images = list(dict.fromkeys(owners))  # No image has tiles in both halves.
  order = np.random.default_rng(seed % 2**32).permutation(len(images)).tolist()
  cut = round(data.alpha_fraction * len(order))
  if not 0 < cut < len(order):
    raise config_lib.SettingError(
      f'data.alpha_fraction is {data.alpha_fraction} of {len(order)} training '
      'images, which leaves none for the weights or none for the alphas.'
    )
  own = order[:cut] if split == 'alphas' else order[cut:]
  chosen = {images[i] for i in own}
  return Part(source, tuple(i for i, x in enumerate(owners) if x in chosen))


def search_splits(data: ml_collections.ConfigDict) -> tuple[str, str]:
  """Returns the splits that train the weights and the alphas of a search.

  PyNAS trains its alphas on the validation pairs, HiNAS on a half of the
  training images: the setting `data.alpha_fraction`.
  """
  return HALVES if data.alpha_fraction else ('train', 'validation')


def _open(
  data: ml_collections.ConfigDict, split: str, seed: int, *, tiles: bool
) -> Source:
  source = _open_coloured(data, split, seed, tiles=tiles)
  return Grey(source) if data.grey else source


def _open_coloured(
  data: ml_collections.ConfigDict, split: str, seed: int, *, tiles: bool
) -> Source:
  if split not in SPLITS:
    raise config_lib.SettingError(
      f'split is {split!r}; expected one of {", ".join(SPLITS)}.'
    )
  if data.name == 'photos':
    return SharpPhotos(split)
  if data.name == 'folder':
    pairs, stray = list_pairs(data)
    if stray:
      where = f'data.root is {data.root!r}'
      raise config_lib.SettingError(faults_lib.listing(stray, where=where))
    indices = _chosen(pairs, data, split, seed)
    return PairFiles(tuple(pairs[i] for i in indices))
  # TFDS is slow to import, and not used by all data.
  from pynas_jax.data import builders

  dataset = builders.prepare(data, tiles=tiles)
  return Part(dataset, tuple(_chosen(dataset.entries, data, split, seed)))


@functools.cache
def _photo(name: str) -> np.ndarray:
  """Returns u8[H, W, 3] of a bundled photograph, kept in memory."""
  path = importlib.resources.files(__package__) / 'photos' / f'{name}.png'
  with path.open('rb') as file:
    pixels = files.decode(file)
  pixels.setflags(write=False)
  return pixels


@dataclasses.dataclass(frozen=True)
class SharpPhotos:
  """The bundled photographs of a split."""

  split: str
  paired = False
  protocol = 'whole'

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
    return {'name': name, 'sequence': '', 'sharp': _photo(name)}


@dataclasses.dataclass(frozen=True)
class _View:
  """Another source, of which subclasses change something."""

  source: Source

  @property
  def paired(self) -> bool:
    return self.source.paired

  @property
  def protocol(self) -> str:
    return self.source.protocol

  @property
  def names(self) -> Sequence[str]:
    return self.source.names

  @property
  def sizes(self) -> Sequence[tuple[int, int]]:
    return self.source.sizes

  def __len__(self) -> int:
    return len(self.source)


@dataclasses.dataclass(frozen=True)
class Part(_View):
  """Some items of a source."""

  indices: tuple[int, ...]

  @property
  def names(self) -> tuple[str, ...]:
    names = self.source.names
    return tuple(names[i] for i in self.indices)

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    sizes = self.source.sizes
    return tuple(sizes[i] for i in self.indices)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.indices[index]]


@dataclasses.dataclass(frozen=True)
class Grey(_View):
  """A source without colours: its images have three equal channels."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    item = self.source[index]
    keys = [key for key in ('blurred', 'sharp') if key in item]
    grey = {key: _to_grey(item[key]) for key in keys}
    return item | grey | {'is_grey': True}


def _to_grey(images: np.ndarray) -> np.ndarray:
  """Returns u8[..., H, W, 3] in Pillow's grey, that of ITU-R BT.601."""
  rows = images.reshape(-1, *images.shape[-2:])
  grey = np.asarray(Image.fromarray(rows).convert('L'))
  return np.repeat(grey[..., None], 3, axis=-1).reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class Degraded:
  """Sharp images, each with some degradations that never change.

  Attributes:
    sharp: Source of the sharp images.
    recipe: Degrades them; cut to what its factor divides.
    copies: Pairs for each image.
    stream: Number that keeps the degradations of two sources apart.
  """

  sharp: Source
  recipe: degrade.AnyRecipe
  copies: int
  stream: int
  paired = True

  @property
  def protocol(self) -> str:
    return self.sharp.protocol

  @property
  def names(self) -> tuple[str, ...]:
    copies = range(self.copies)
    return tuple(f'{name}-{k}' for name in self.sharp.names for k in copies)

  @property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    return tuple(
      self._cut(size) for size in self.sharp.sizes for _ in range(self.copies)
    )

  def _cut(self, size: Sequence[int]) -> tuple[int, int]:
    scale = self.recipe.scale
    return size[0] // scale * scale, size[1] // scale * scale

  def __len__(self) -> int:
    return len(self.sharp) * self.copies

  def __getitem__(self, index: int) -> dict[str, Any]:
    place, copy = divmod(range(len(self))[index], self.copies)
    item = self.sharp[place]
    rng = np.random.default_rng((HELD_OUT_SEED, self.stream, place, copy))
    height, width = self._cut(item['sharp'].shape)
    pixels = item['sharp'][:height, :width]
    blurred = self.recipe.degrade(rng, pixels.astype(np.float32) / 255) * 255
    if self.recipe.in_file:
      blurred = np.rint(blurred).astype(np.uint8)
    return item | {
      'name': f'{item["name"]}-{copy}', 'sharp': pixels, 'blurred': blurred
    }


def smaller_than(source: Source, side: int) -> list[str]:
  """Returns names and sizes of images of which a side is below, in pixels."""
  return [
    f'{name} ({height}x{width})'
    for name, (height, width) in zip(source.names, source.sizes, strict=True)
    if min(height, width) < side
  ]


@dataclasses.dataclass(frozen=True)
class PairFiles:
  """Image files in a folder, decoded when asked for."""

  pairs: tuple[files.Pair, ...]
  protocol = 'whole'

  @property
  def paired(self) -> bool:
    return self.pairs[0].blurred is not None

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(pair.name for pair in self.pairs)

  @functools.cached_property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    return tuple(files.size_of(pair) for pair in self.pairs)

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return files.read(self.pairs[index])


def list_pairs(
  data: ml_collections.ConfigDict,
) -> tuple[list[files.Pair], list[str]]:
  """Returns the pairs of the folder `data.root`, as `files.find_pairs`.

  Raises:
    SettingError: If there are no images.
  """
  root = Path(data.root).expanduser()
  where = f'data.root is {data.root!r}'
  layouts = (
    'expected train/ and test/, each with blur/ and sharp/ (or input/ and '
    'target/) that hold images of the same names, or sharp images alone.'
  )
  if not data.root or not root.is_dir():
    raise config_lib.SettingError(f'{where}, no folder; {layouts}')
  pairs, stray = files.find_pairs(root, subset=data.subset)
  if not pairs and not stray:
    subset = f' of the data.subset {data.subset!r}' if data.subset else ''
    raise config_lib.SettingError(f'{where}: no images{subset}; {layouts}')
  alike = pairs[0].blurred is None and files.find_alike(root) if pairs else None
  if alike:
    names = ', '.join(f'{a} and {b[0]}' for a, b in files.PARTNERS.items())
    raise config_lib.SettingError(
      f'{where}: {alike[0].name} and {alike[1].name} hold the same pictures '
      f'under the same names, but folders of pairs are called {names}. Rename '
      'them, or give the folder of the sharp ones alone.'
    )
  return pairs, stray


def split_of(
  entries: Sequence[files.Pair | builders_base.Entry],
  data: ml_collections.ConfigDict,
  *,
  seed: int,
) -> list[str]:
  """Returns the split of each entry, as its folder says or held out.

  Args:
    entries: With the attributes `name`, `split` and `sequence`.
    data: The settings `config.data`; reads `validation_fraction`.
    seed: Chooses what is held out.

  Returns:
    One of SPLITS each; no sequence is in two of them, unless there is only one,
    and no image, be it whole or in tiles.
  """
  rng = np.random.default_rng(seed % 2**32)
  splits = [entry.split or 'train' for entry in entries]
  images = [files.image_of(entry.name) for entry in entries]

  def hold_out(split: str, fraction: float) -> None:
    rest = [i for i, old in enumerate(splits) if old == 'train']
    groups: dict[str, list[int]] = {}
    for i in rest:
      groups.setdefault(entries[i].sequence or images[i], []).append(i)
    if len(groups) == 1:
      groups = {}
      for i in rest:
        groups.setdefault(images[i], []).append(i)
    number = len({images[i] for i in rest})
    wanted, held = max(1, round(fraction * number)), 0
    keys = sorted(groups)
    for k in rng.permutation(len(keys)).tolist():
      if held < wanted:
        held += len({images[i] for i in groups[keys[k]]})
        for i in groups[keys[k]]:
          splits[i] = split

  if data.name in TESTLESS and 'test' not in splits:
    hold_out('test', TEST_FRACTION)
  if data.validation_fraction > 0 and 'validation' not in splits:
    hold_out('validation', data.validation_fraction)
  return splits


def _chosen(
  entries: Sequence[files.Pair | builders_base.Entry],
  data: ml_collections.ConfigDict,
  split: str,
  seed: int,
) -> list[int]:
  """Returns the places of a split's entries."""
  splits = split_of(entries, data, seed=seed)
  chosen = [i for i, own in enumerate(splits) if own == split]
  if not chosen:
    raise config_lib.SettingError(
      f'data.name is {data.name!r}, with data.root {data.root!r}: none of its '
      f'{len(entries)} images are left for the {split} split, with '
      f'data.validation_fraction {data.validation_fraction}; expected more '
      f'under {"test" if split == "test" else "train"}/, or another fraction.'
    )
  return chosen
