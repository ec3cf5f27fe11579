"""What all dataset builders share: a folder of files becomes an ArrayRecord.

A builder is TensorFlow Datasets' own kind, yet nothing here imports TensorFlow:
examples are written as ArrayRecord and read as a data source. Image files are
stored byte for byte. An example is {'name', 'sequence', 'input': image,
'target': image}; without 'input' where the dataset has sharp images only, and
with a list of targets where the best-matching one counts.

Names, sequences and sizes of all examples stand in the dataset's metadata, so
that a split can be divided by sequence without reading an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import io
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax.data import faults as faults_lib
from pynas_jax.data import files

TILES = 'tiles'
TILE = 384  # Pixels; holds the largest crop of the paper, 288.
TILE_STEP = 256  # Pixels at most between tiles, so that they overlap.


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known of an example without reading it."""

  name: str
  split: str
  sequence: str
  size: tuple[int, int]  # Height and width, pixels.


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """A variant of a dataset: which inputs, and whole images or tiles."""

  subset: str = ''
  tiles: bool = False


def _configs(subsets: Sequence[str]) -> list[Config]:
  return [
    Config(
      name='_'.join(filter(None, (subset, TILES if tiles else ''))) or 'full',
      subset=subset, tiles=tiles,
    )
    for subset in subsets
    for tiles in (False, True)
  ]  # fmt: skip


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A dataset that its user has downloaded.

  Subclasses say where from, what the folder looks like and how many images it
  has, and find them.
  """

  VERSION = tfds.core.Version('1.0.0')
  # There are no checksums or README.md beside the builders; TFDS looks for them
  # by a library that it does not install.
  code_path = pkg_dir_path = None

  PAGE: ClassVar[str] = ''  # Where to download it.
  LAYOUT: ClassVar[str] = ''  # Paths of its images in `data.root`.
  COUNTS: ClassVar[dict[str, int]] = {}  # Split -> pairs, or images.
  SUBSETS: ClassVar[tuple[str, ...]] = ('',)  # Choices of `data.subset`.
  # How it is scored: whole images, against the best match or registered.
  PROTOCOL: ClassVar[str] = 'whole'
  PAIRED: ClassVar[bool] = True  # Whether it has degraded images.

  def __init_subclass__(cls, **kwargs: Any):
    cls.BUILDER_CONFIGS = _configs(cls.SUBSETS)
    cls.MANUAL_DOWNLOAD_INSTRUCTIONS = cls.instructions()
    super().__init_subclass__(**kwargs)

  @classmethod
  def find(
    cls, root: Path, subset: str
  ) -> tuple[list[files.Pair], list[str]]:
    """Returns the pairs in a folder, and a line for each stray file."""
    raise NotImplementedError

  @classmethod
  def instructions(cls) -> str:
    """Returns how to get the dataset."""
    counts = ', '.join(f'{n} {split}' for split, n in cls.COUNTS.items())
    return (
      f'Download {cls.__name__} from {cls.PAGE} and unpack it, so that '
      f'data.root (manual_dir for TFDS) holds {cls.LAYOUT}: {counts}.'
    )

  @classmethod
  def check(cls, root: Path, subset: str) -> list[files.Pair]:
    """Returns the pairs in a folder, all of them good.

    Raises:
      SettingError: With the instructions if nothing is there, else with all
        that is wrong.
    """
    pairs, faults = cls.find(root, subset) if root.is_dir() else ([], [])
    where = f'data.root is {str(root)!r}'
    if not pairs:
      raise config_lib.SettingError(
        f'{where}, which does not hold it. {cls.instructions()}'
      )
    for split, count in cls.COUNTS.items():
      found = sum(pair.split == split for pair in pairs)
      if found != count:
        faults.append(f'{split}: {found} found, but {count} published')
    faults += faults_lib.find_faults(
      pairs, [pair.split for pair in pairs], root=root
    )
    if faults:
      raise config_lib.SettingError(faults_lib.listing(faults, where=where))
    return pairs

  def _info(self) -> tfds.core.DatasetInfo:
    image = lambda: tfds.features.Image(shape=(None, None, None))  # noqa: E731
    features = {
      'name': tfds.features.Text(), 'sequence': tfds.features.Text(),
      'target': image(),
    }  # fmt: skip
    if self.PAIRED:
      features['input'] = image()
    if self.PROTOCOL == 'best_match':
      features['target'] = tfds.features.Sequence(image())
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      homepage=self.PAGE,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    config = self.builder_config
    pairs = self.check(Path(dl_manager.manual_dir), config.subset)
    # Whole images are for scoring: tiles are of training images alone.
    splits = [s for s in self.COUNTS if not (config.tiles and s == 'test')]
    return {
      split: self._generate_examples(
        split, [pair for pair in pairs if pair.split == split]
      )
      for split in splits
    }

  def _generate_examples(
    self, split: str, pairs: Sequence[files.Pair]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    entries = []
    with logbook.progress(len(pairs), f'store {split}') as bar:
      for i, pair in enumerate(pairs):
        for example, size in _examples(pair, tiles=self.builder_config.tiles):
          entries.append([example['name'], example['sequence'], *size])
          yield len(entries) - 1, example
        bar.update(i + 1)
    self.info.metadata[split] = entries


def home(root: Path, name: str) -> Path:
  """Returns the folder of a dataset: `root`, or `name` in it."""
  return root / name if (root / name).is_dir() else root


def folders(home_: Path) -> list[Path]:
  """Returns the folders in a folder, by name."""
  return sorted(path for path in home_.iterdir() if path.is_dir())


def _examples(
  pair: files.Pair, *, tiles: bool
) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
  """Returns the examples that a pair makes, with their sizes in pixels."""
  example: dict[str, Any] = {'name': pair.name, 'sequence': pair.sequence}
  if not tiles and not pair.halves:
    if pair.blurred is not None:
      example['input'] = pair.blurred
    example['target'] = pair.sharp if len(pair.sharp) > 1 else pair.sharp[0]
    yield example, files.size_of(pair)
    return
  item = files.read(pair)
  height, width, _ = item['sharp'].shape
  boxes = tile_boxes(height, width) if tiles else [(0, 0, height, width)]
  for y, x, h, w in boxes:
    example['name'] = files.tile_name(pair.name, y, x) if tiles else pair.name
    for feature, key in (('input', 'blurred'), ('target', 'sharp')):
      if key in item:
        example[feature] = _png(item[key][y : y + h, x : x + w])
    yield dict(example), (h, w)


def tile_boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
  """Returns the overlapping tiles that cover an image, evenly spaced.

  >>> tile_boxes(400, 384)
  [(0, 0, 384, 384), (16, 0, 384, 384)]

  Args:
    height: Of the image, pixels.
    width: Likewise.

  Returns:
    (top, left, height, width) of each, pixels; a side shorter than a tile is
    not divided.
  """
  starts = []
  for size in (height, width):
    room = max(0, size - TILE)
    count = math.ceil(room / TILE_STEP) + 1
    starts.append(np.linspace(0, room, count).round().astype(int).tolist())
  tall, wide = min(TILE, height), min(TILE, width)
  return [(y, x, tall, wide) for y in starts[0] for x in starts[1]]


def _png(pixels: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  # The fastest compression: it costs a tenth more space than the default.
  Image.fromarray(pixels).save(file, 'PNG', compress_level=1)
  file.seek(0)
  return file


class Prepared:
  """A `sources.Source` of all examples of a prepared dataset.

  Attributes:
    entries: What is known of each example.
    names: Of the examples.
    sizes: Of the examples, height and width, pixels.
    paired: Whether items have a 'blurred' image.
    protocol: How the dataset is scored.
  """

  def __init__(self, builder: Builder):
    """Opens a prepared dataset."""
    self.paired, self.protocol = builder.PAIRED, builder.PROTOCOL
    self.entries, self._places = [], []
    images = {'input', 'target'} & set(builder.info.features)
    if self.protocol == 'best_match':
      images.discard('target')  # TFDS cannot skip the decoding of a sequence.
    decoders = {name: tfds.decode.SkipDecoding() for name in images}
    self._sources = {}
    for split, rows in builder.info.metadata.items():
      self._sources[split] = builder.as_data_source(split, decoders=decoders)
      for i, (name, sequence, height, width) in enumerate(rows):
        self.entries.append(Entry(name, split, sequence, (height, width)))
        self._places.append((split, i))
    self.names = [entry.name for entry in self.entries]
    self.sizes = [entry.size for entry in self.entries]

  def __len__(self) -> int:
    return len(self.entries)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Decodes an example.

    Returns:
      As `files.read`.
    """
    split, place = self._places[index]
    example = self._sources[split][place]
    item: dict[str, Any] = {
      key: example[key].decode() for key in ('name', 'sequence')
    }
    for feature, key in (('input', 'blurred'), ('target', 'sharp')):
      if feature in example:
        item[key] = _decode(example[feature])
    if isinstance(example['target'], bytes):
      item['is_grey'] = files.is_grey(io.BytesIO(example['target']))
    return item


def _decode(content: bytes | Sequence[np.ndarray]) -> np.ndarray:
  """Returns u8[H, W, 3] of a file, u8[F, H, W, 3] of several images."""
  if isinstance(content, bytes):
    return files.decode(io.BytesIO(content))
  return np.stack(content)
