"""Pairs of image files: finding them in folders, decoding them.

Decoded images are uint8 [H, W, 3], upright. A pair is found by its two files'
common name, in folders beside each other:

  train|test/blur, sharp               as most deblurring repositories
  train|test/SEQUENCE/blur, sharp      raw GoPro, which also has blur_gamma
  train|test/input, target             as NAFNet and MAXIM
  train|test/input_crops, target_crops as Restormer
  SEQUENCE/input, GT                   as the video deblurring of Su et al.
  train|test/lq, gt; noisy, clean      as many others

Without train/ and test/ the same is sought in the root; val/ may be there too.
Capitals make no difference. Where there are no such folders, every image is a
sharp one without a partner; in ten folders or more, each holds a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import os
from pathlib import Path
import re
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL import ImageOps

from pynas_jax import config as config_lib

SUFFIXES = (
  '.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip
# Folder -> split.
SPLITS = {
  'train': 'train', 'training': 'train', 'val': 'validation',
  'valid': 'validation', 'validation': 'validation', 'test': 'test',
  'testing': 'test',
}  # fmt: skip
# Folder of the inputs -> those of their targets. Of several inputs beside each
# other the first counts, unless the setting `data.subset` names another.
PARTNERS = {
  'blur': ('sharp',),
  'blur_gamma': ('sharp',),
  'blurred': ('sharp',),
  'blurry': ('sharp',),
  'input': ('target', 'gt'),
  'input_crops': ('target_crops',),
  'lq': ('gt', 'hq'),
  'noisy': ('clean', 'gt'),
}
# So many folders of sharp images are sequences, such as videos: whichever are
# held out, most are left. Fewer may be albums of any size.
MIN_SEQUENCES = 10
_MAX_SIDES = 4  # Folders beside each other that may be sides of pairs.
_ALIKE = 0.9  # Correlation of thumbnails: they show the same.
_ORIENTATION = 0x0112  # EXIF tag; values above 4 swap height and width.


@dataclasses.dataclass(frozen=True)
class Pair:
  """The files of one scene.

  Attributes:
    name: Unique in the dataset.
    split: 'train', 'validation', 'test', or '' where its folder says none.
    sequence: Video or burst that no split may divide; '' is an image alone.
    blurred: The degraded image, or None if it is to be made of the sharp one.
    sharp: The sharp image; or several, of which the best-matching one counts.
    halves: One file holds both, the sharp image left of the degraded one.
  """

  name: str
  split: str
  sequence: str
  blurred: Path | None
  sharp: tuple[Path, ...]
  halves: bool = False

  @property
  def files(self) -> tuple[Path, ...]:
    """All files, none twice."""
    if self.blurred is None or self.halves:
      return self.sharp
    return (self.blurred, *self.sharp)


def tile_name(name: str, y: int, x: int) -> str:
  """Returns the name of the tile of an image that begins at (y, x).

  >>> tile_name('a/b', 0, 96)
  'a/b@0,96'
  """
  return f'{name}@{y},{x}'


def image_of(name: str) -> str:
  """Returns the name of the image that a tile is of, or of the image itself.

  >>> image_of('a/b@0,96'), image_of('icon@2x')
  ('a/b', 'icon@2x')
  """
  return re.sub(r'@\d+,\d+$', '', name)


def decode(file: Path | BinaryIO) -> np.ndarray:
  """Decodes an image.

  Args:
    file: A path, or an open file.

  Returns:
    u8[H, W, 3], upright; 16 bits are rounded to 8.

  Raises:
    SettingError: Names the file that cannot be decoded.
  """
  try:
    with Image.open(file) as image:
      upright = ImageOps.exif_transpose(image)
    if upright.mode in ('I', 'F'):
      raise ValueError(
        f'its pixels are of mode {upright.mode}; expected gray, palette, RGB '
        'or CMYK, of 8 or 16 bits'
      )
    if upright.mode.startswith('I;16'):  # Pillow would clip them at 255.
      gray = np.rint(np.asarray(upright) / 257).astype(np.uint8)
      return np.repeat(gray[..., None], 3, axis=-1)
    return np.array(upright.convert('RGB'))
  except (
    OSError, SyntaxError, ValueError, Image.DecompressionBombError,
  ) as error:  # fmt: skip
    raise config_lib.SettingError(
      f'{file} cannot be decoded: {error}. Replace it or remove the pair.'
    ) from error


def is_grey(file: Path | BinaryIO) -> bool:
  """Returns whether an image has one channel, by its header."""
  with Image.open(file) as image:
    return Image.getmodebase(image.mode) == 'L'


def read(pair: Pair) -> dict[str, Any]:
  """Decodes a pair.

  Returns:
    {'name', 'sequence', 'is_grey': bool, 'blurred': u8[H, W, 3], 'sharp':
    u8[H, W, 3], or u8[F, H, W, 3] of several}; without 'blurred' if the pair
    has none. 'is_grey' is of the sharp file.

  Raises:
    SettingError: If a file cannot be decoded, or the sizes differ.
  """
  item: dict[str, Any] = {'name': pair.name, 'sequence': pair.sequence}
  images = [decode(path) for path in pair.sharp]
  if pair.halves:
    width = images[0].shape[1] // 2
    item['blurred'] = images[0][:, width : 2 * width]
    images = [images[0][:, :width]]
  elif pair.blurred is not None:
    item['blurred'] = decode(pair.blurred)
  shapes = {image.shape for image in (*images, item.get('blurred', images[0]))}
  if len(shapes) > 1:
    raise config_lib.SettingError(
      f'{pair.name}: its images have the shapes {sorted(shapes)}; expected one.'
    )
  item['is_grey'] = is_grey(pair.sharp[0])
  item['sharp'] = images[0] if len(images) == 1 else np.stack(images)
  return item


def size_of(pair: Pair) -> tuple[int, int]:
  """Returns height and width of an upright pair, from its header."""
  with Image.open(pair.sharp[0]) as image:
    width, height = image.size
    # The method of the base class: that of PNG files decodes all pixels.
    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) > 4
  if turned:
    width, height = height, width
  return height, width // 2 if pair.halves else width


def images_under(folder: Path) -> list[Path]:
  """Returns the image files in and below a folder, in order of their paths."""
  return [
    path
    for parent in _folders(folder)
    for path in sorted(parent.iterdir())
    if path.suffix.lower() in SUFFIXES and not is_hidden(Path(path.name))
  ]


def find_pairs(root: Path, *, subset: str = '') -> tuple[list[Pair], list[str]]:
  """Finds the pairs in a folder of one of the layouts that people have.

  Args:
    root: The folder.
    subset: Folder of the inputs, if there are several beside each other.

  Returns:
    The pairs, in order of their paths; and a line for each file that has no
    partner, or more than one.
  """
  tops = _tops(root)
  pairs, faults = [], []
  for top, split in tops:
    for parent in _folders(top):
      sides = _sides(parent, subset)
      if sides:
        found, bad = match(*sides, root=root, top=top, split=split)
        pairs += found
        faults += bad
  if pairs or faults or subset:
    return pairs, faults
  for top, split in tops:
    images = images_under(top)
    in_sequences = len({path.parent for path in images}) >= MIN_SEQUENCES
    for path in images:
      sequence = path.parent.relative_to(root).as_posix()
      name = path.relative_to(root).as_posix()
      alone = not in_sequences or path.parent == top
      pairs.append(Pair(name, split, '' if alone else sequence, None, (path,)))
  return pairs, faults


def find_alike(root: Path) -> tuple[Path, Path] | None:
  """Returns two folders that look like the sides of pairs, if there are any.

  They are beside each other, hold the same names, and the first of these are
  pictures of the same.

  Args:
    root: In which `find_pairs` finds none.
  """
  for top, _ in _tops(root):
    for parent in _folders(top):
      folders = [p for p in _subfolders(parent).values() if not is_hidden(p)]
      if len(folders) > _MAX_SIDES:
        continue
      for two in itertools.combinations(folders, 2):
        sides = [
          {p.relative_to(side).with_suffix(''): p for p in images_under(side)}
          for side in two
        ]
        common = sorted(sides[0].keys() & sides[1].keys())
        if common and _look_alike(*(side[common[0]] for side in sides)):
          return two
  return None


def _look_alike(*paths: Path) -> bool:
  thumbnails = []
  for path in paths:
    image = Image.fromarray(decode(path)).convert('L').resize((16, 16))
    thumbnails.append(np.asarray(image, np.float64).ravel())
  if any(np.ptp(thumbnail) == 0 for thumbnail in thumbnails):
    return False  # Nothing to be seen.
  return np.corrcoef(*thumbnails)[0, 1] > _ALIKE


def _tops(root: Path) -> list[tuple[Path, str]]:
  """Returns the folders to look in, and the splits of what is there."""
  folders = _subfolders(root)
  tops = [
    (folders[name], split) for name, split in SPLITS.items() if name in folders
  ]
  return tops or [(root, '')]


def is_looked_in(root: Path, folder: Path) -> bool:
  """Returns whether images in a folder are found by `find_pairs`.

  Args:
    root: Of the data.
    folder: Perhaps somewhere in it.
  """
  folder = folder.resolve()
  tops = [top.resolve() for top, _ in _tops(root)]
  ways = [folder.relative_to(top) for top in tops if folder.is_relative_to(top)]
  if all(map(is_hidden, ways)):
    return False
  pairs, _ = find_pairs(root)
  if not pairs or pairs[0].blurred is None:
    return True
  # Where there are pairs, only their folders are.
  found = {path.parent.resolve() for pair in pairs for path in pair.files}
  return not found.isdisjoint([folder, *folder.parents])


def is_hidden(way: Path) -> bool:
  """Returns whether systems hide what is found by this way from a folder.

  >>> is_hidden(Path('.thumbnails/a.png')), is_hidden(Path('a.b/c.png'))
  (True, False)
  """
  return any(name.startswith('.') or name == '__MACOSX' for name in way.parts)


def match(
  inputs: Path, targets: Path, *, root: Path, top: Path, split: str
) -> tuple[list[Pair], list[str]]:
  """Matches the images of two folders by name.

  Args:
    inputs: Folder of the degraded images, which may have folders of its own.
    targets: Folder of the sharp ones, with the same folders.
    root: Names are relative to it.
    top: Folder of the split; the way from here to an image is its sequence.
    split: Of the pairs.

  Returns:
    The pairs, and a line for each image that has no partner, or more than one.
  """
  pairs, faults, sides = [], [], []
  for folder in (inputs, targets):
    images: dict[Path, Path] = {}
    for path in images_under(folder):
      key = path.relative_to(folder).with_suffix('')
      if key in images:
        faults.append(
          f'{path.relative_to(root).as_posix()}: {images[key].name} has the '
          'same name'
        )
      images[key] = path
    sides.append(images)
  blurred, sharp = sides
  parent = inputs.parent
  for key in sorted(blurred.keys() | sharp.keys()):
    if key in blurred and key in sharp:
      sequence = (parent / key).parent.relative_to(top).as_posix()
      pairs.append(
        Pair(
          (parent / key).relative_to(root).as_posix(), split,
          '' if sequence == '.' else f'{top.name}/{sequence}',
          blurred[key], (sharp[key],),
        )
      )  # fmt: skip
    else:
      here, other = (sharp, inputs) if key in sharp else (blurred, targets)
      name = here[key].relative_to(root).as_posix()
      faults.append(f'{name}: no partner in {other.relative_to(root)}')
  return pairs, faults


def _folders(top: Path) -> Iterator[Path]:
  """Walks a folder and those below, links too, but not twice, in order."""
  seen = set()
  for parent, names, _ in os.walk(top, followlinks=True):
    real = os.path.realpath(parent)
    names[:] = sorted(name for name in names if not is_hidden(Path(name)))
    if real in seen:
      names.clear()
    else:
      seen.add(real)
      yield Path(parent)


def _sides(parent: Path, subset: str) -> tuple[Path, Path] | None:
  """Returns the folders of inputs and targets in a folder, if it has both."""
  folders = _subfolders(parent)
  for name in [subset] if subset else PARTNERS:
    for partner in PARTNERS[name]:
      if name in folders and partner in folders:
        return folders[name], folders[partner]
  return None


def _subfolders(parent: Path) -> dict[str, Path]:
  """Returns the folders in a folder, by name in lower case, in order."""
  if not parent.is_dir():
    return {}
  # Of two names that differ by capitals alone, the one in lower case counts.
  return {p.name.lower(): p for p in sorted(parent.iterdir()) if p.is_dir()}
