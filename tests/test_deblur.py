"""`pynas-deblur` on pictures: what goes in comes out, but for the blur."""

from __future__ import annotations

import io
import itertools
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL import ImageCms
from PIL import ImageOps
import pytest

from pynas_jax import deblur
from pynas_jax.deploy import images

COMMAND = (sys.executable, '-m', 'pynas_jax.deblur')
SIZES = ((1, 1), (1, 9), (9, 1), (33, 20))  # Height, width.
# Kind -> Pillow's mode, or channels of 16 bits, and the formats that have it.
KINDS = {
  'bilevel': ('1', ('png', 'tif', 'bmp')),
  'gray': ('L', ('png', 'tif', 'bmp', 'webp', 'jpg')),
  'gray_alpha': ('LA', ('png', 'tif')),
  'palette': ('P', ('png', 'tif', 'bmp')),
  'palette_alpha': ('P', ('png',)),
  'rgb': ('RGB', ('png', 'tif', 'bmp', 'webp', 'jpg', 'ppm')),
  'rgb_alpha': ('RGBA', ('png', 'tif', 'webp')),
  'cmyk': ('CMYK', ('tif', 'jpg')),
  'deep_gray': (1, ('png', 'tif')),
  'deep_rgb': (3, ('png', 'tif')),
  'deep_rgb_alpha': (4, ('png', 'tif')),
}
CASES = {
  f'{kind}_{size[0]}x{size[1]}_{ext}.{ext}': (kind, mode, size)
  for kind, (mode, formats) in KINDS.items()
  for size, ext in itertools.product(SIZES, formats)
}
DEEP = [name for name in CASES if name.startswith('deep')]
SHALLOW = [name for name in CASES if name not in DEEP]


def pixels(height, width, channels=3, dtype=np.uint8, seed=0):
  rng = np.random.default_rng(seed)
  high = np.iinfo(dtype).max
  return rng.integers(0, high, (height, width, channels), dtype, endpoint=True)


def write_case(folder, name):
  """Writes a picture of the kind, format and size that its name tells."""
  kind, mode, size = CASES[name]
  if kind.startswith('deep'):
    image = pixels(*size, mode, np.uint16)
    cv2.imwrite(str(folder / name), image)
    return
  image = Image.fromarray(pixels(*size, 4))
  if mode == 'LA':
    image = Image.fromarray(pixels(*size, 2))
  elif mode != 'RGBA':
    image = image.convert('RGB').convert(mode)
  options = {'lossless': True, 'exact': True} if 'webp' in name else {}
  if kind == 'palette_alpha':
    options = {'transparency': 0}
  image.save(folder / name, **options)


def run(*args, **flags):
  """Runs the command in this process; returns its exit status."""
  argv = list(map(str, args))
  for name, value in flags.items():
    argv += [f'--{name}', *([] if value is True else [str(value)])]
  return deblur.main(argv)


@pytest.fixture(scope='module')
def matrix(identity, tmp_path_factory):
  folder = tmp_path_factory.mktemp('matrix')
  (folder / 'in').mkdir()
  for name in CASES:
    write_case(folder / 'in', name)
  out = folder / 'out'
  assert run('-i', folder / 'in', '-o', out, model_path=identity) == 0
  assert len(list(out.iterdir())) == len(CASES)
  return folder


def result_of(name, out):
  (path,) = out.glob(f'{pathlib.Path(name).stem}_out.*')
  return path


@pytest.mark.parametrize('name', SHALLOW)
def test_identity_returns_every_picture(matrix, name):
  path = result_of(name, matrix / 'out')
  suffix = pathlib.Path(name).suffix
  assert path.suffix == {'.ppm': '.png'}.get(suffix, suffix)
  with Image.open(matrix / 'in' / name) as old, Image.open(path) as new:
    assert new.size == old.size
    assert new.has_transparency_data == old.has_transparency_data
    gray = old.mode in ('1', 'L', 'LA') and suffix != '.webp'
    assert new.mode.startswith('L' if gray else 'RGB')
    old, new = (np.array(x.convert('RGBA')) for x in (old, new))
  if suffix == '.jpg':
    return
  np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize('name', DEEP)
def test_identity_returns_16_bits(matrix, name):
  path = result_of(name, matrix / 'out')
  assert path.suffix == pathlib.Path(name).suffix
  old, new = (
    cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    for file in (matrix / 'in' / name, path)
  )
  assert new.dtype == np.uint16
  np.testing.assert_array_equal(new, old)


def test_identity_returns_16_bits_of_gray_with_alpha(identity, tmp_path):
  deep = pixels(7, 5, 2, np.uint16)
  source, target = tmp_path / 'a.png', tmp_path / 'a_out.png'
  source.write_bytes(images._png16(deep, {}))
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  np.testing.assert_array_equal(images.read(target).pixels, deep)


def profile():
  return ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


@pytest.mark.parametrize(
  ('ext', 'deep'),
  [(ext, False) for ext in ('png', 'jpg', 'webp', 'tif')]
  + [('png', True), ('tif', True)],
)
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_and_metadata_kept(
  tmp_path, orientation, ext, deep
):
  """The network is left out: what matters here is the file."""
  exif = Image.Exif()
  exif[0x0112], exif[0x010F] = orientation, 'Maker'
  exif.get_ifd(0x8769)[0x9003] = '2026:01:02 03:04:05'  # DateTimeOriginal.
  exif = exif.tobytes()
  source, target = tmp_path / f'a.{ext}', tmp_path / f'b.{ext}'
  if deep:
    encode = images._tiff if ext == 'tif' else images._png16
    metadata = {'exif': exif, 'icc_profile': profile()}
    source.write_bytes(encode(pixels(8, 16, 3, np.uint16), metadata))
  else:
    image = Image.fromarray(np.kron(pixels(1, 2), np.ones((8, 8, 1), np.uint8)))
    options = {'lossless': True} if ext == 'webp' else {'quality': 100}
    image.save(source, exif=exif, icc_profile=profile(), **options)
  picture = images.read(source)
  images.write(target, picture)
  with Image.open(source) as old, Image.open(target) as new:
    upright = ImageOps.exif_transpose(old)
    assert new.size == upright.size == ((8, 16) if orientation > 4 else (16, 8))
    np.testing.assert_allclose(
      np.array(new, int), np.array(upright, int), atol=4 if ext == 'jpg' else 0
    )
    found = new.getexif()
    assert found.get(0x0112, 1) == 1
    assert found[0x010F] == 'Maker'
    assert found.get_ifd(0x8769)[0x9003] == '2026:01:02 03:04:05'
    assert new.info['icc_profile'] == profile()
