"""`pynas-deblur` on pictures: what goes in comes out, but for the blur."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import cv2
import jax
import numpy as np
from PIL import Image
from PIL import ImageCms
from PIL import ImageOps
from PIL import PngImagePlugin
from PIL import TiffImagePlugin
import pytest

from pynas_jax import deblur
from pynas_jax import restore
from pynas_jax.deploy import images

LINUX = sys.platform == 'linux'
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


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch):
  """The command sets limits of Pillow and JAX for its process, which is ours.
  """
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
  yield
  jax.config.update('jax_default_device', None)


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
  argv = ['--backend', 'xla', *map(str, args)]
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


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


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
    metadata = {'exif': exif, 'icc_profile': PROFILE}
    source.write_bytes(encode(pixels(8, 16, 3, np.uint16), metadata))
  else:
    image = Image.fromarray(np.kron(pixels(1, 2), np.ones((8, 8, 1), np.uint8)))
    options = {'lossless': True} if ext == 'webp' else {'quality': 100}
    image.save(source, exif=exif, icc_profile=PROFILE, **options)
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
    assert new.info['icc_profile'] == PROFILE


@pytest.mark.parametrize('target', ['jpg', 'png', 'webp'])
@pytest.mark.parametrize('source', ['jpg', 'png', 'webp', 'tif'])
def test_exif_goes_from_format_to_format(tmp_path, source, target):
  exif = Image.Exif()
  exif[0x010F] = 'Maker'
  path = tmp_path / f'a.{source}'
  Image.fromarray(pixels(8, 16)).save(path, exif=exif)
  images.write(tmp_path / f'b.{target}', images.read(path))
  with Image.open(tmp_path / f'b.{target}') as new:
    assert new.getexif()[0x010F] == 'Maker'


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def write_described(path, deep):
  """Writes a picture with all that its format can say of it."""
  image = pixels(8, 16, 3, np.uint16 if deep else np.uint8)
  text = (b'tEXt', b'Author\0Me')
  kept = {'dpi': (300.0, 200.0), 'xmp': XMP, 'chunks': [text]}
  if path.suffix == '.tif':
    path.write_bytes(images._tiff(image, kept))
  elif deep:
    path.write_bytes(images._png16(image, kept))
  else:
    info = PngImagePlugin.PngInfo()
    info.add(*text)
    info.add_itxt('XML:com.adobe.xmp', XMP.decode())
    iptc = b'Photoshop 3.0\0008BIM\4\4\0\0\0\0\0\x08\x1c\2\5\0\3cat'
    segment = b'\xff\xed' + struct.pack('>H', len(iptc) + 2) + iptc
    comment = {'comment': b'Beach', 'extra': segment, 'xmp': XMP}
    options = {'pnginfo': info} if path.suffix == '.png' else comment
    Image.fromarray(image).save(path, dpi=kept['dpi'], **options)


@pytest.mark.parametrize(
  ('ext', 'deep'),
  [('png', False), ('png', True), ('tif', False), ('tif', True),
   ('jpg', False)],
)  # fmt: skip
def test_what_describes_a_picture_is_kept(tmp_path, ext, deep):
  source, target = tmp_path / f'a.{ext}', tmp_path / f'b.{ext}'
  write_described(source, deep)
  images.write(target, images.read(source))
  with Image.open(source) as old, Image.open(target) as new:
    names = {'png': ('Author',), 'jpg': ('comment', 'photoshop'), 'tif': ()}
    for name in ('xmp', *names[ext]):
      assert new.info[name] == old.info[name], name
    dpi = [float(number) for number in new.info['dpi']]
    np.testing.assert_allclose(dpi, (300, 200), atol=0.02)


def test_a_resolution_that_is_none_is_left_out(tmp_path):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION):
    tags[tag] = TiffImagePlugin.IFDRational(300, 0)
  tags[TiffImagePlugin.RESOLUTION_UNIT] = 2
  path = tmp_path / 'a.tif'
  Image.fromarray(pixels(8, 8)).save(path, tiffinfo=tags)
  picture = images.read(path)
  assert 'dpi' not in picture.metadata
  for suffix in ('.tif', '.png', '.jpg'):
    images.write(tmp_path / f'b{suffix}', picture)


def test_a_transparent_colour_of_16_bits_stays(tmp_path):
  deep = pixels(4, 4, 3, np.uint16)
  key = (b'tRNS', deep[0, 0].astype('>u2').tobytes())
  path = tmp_path / 'a.png'
  path.write_bytes(images._png16(deep, {'chunks': [key]}))
  found = images.read(path).pixels
  assert found.shape == (4, 4, 4)
  np.testing.assert_array_equal(found[..., :3], deep)
  assert found[0, 0, 3] == 0
  assert found[1:, :, 3].min() == 65535


@pytest.mark.parametrize(
  ('ext', 'deep'), [('png', False), ('png', True), ('jpg', False)]
)
def test_damaged_exif_is_left_out(identity, tmp_path, capsys, ext, deep):
  source, exif = tmp_path / f'a.{ext}', b'Exif\0\0no EXIF at all'
  picture = images.Picture(pixels(8, 8), True, {'exif': exif})
  if deep:
    deep = pixels(8, 8, 3, np.uint16)
    source.write_bytes(images._png16(deep, picture.metadata))
  else:
    Image.fromarray(picture.pixels).save(source, exif=exif)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert 'its EXIF is damaged, and left out' in capsys.readouterr().err
  assert 'exif' not in images.read(tmp_path / f'a_out.{ext}').metadata


def test_bigtiff_of_16_bits_is_refused(tmp_path):
  path = tmp_path / 'a.tif'
  Image.fromarray(pixels(8, 8, 1, np.uint16)[..., 0]).save(path, big_tiff=True)
  with pytest.raises(images.ImageError, match='16 bits are stored as BigTIFF'):
    images.read(path)


def test_cmyk_of_16_bits_is_refused(tmp_path):
  content = images._tiff(pixels(8, 8, 4, np.uint16), {})
  entry = struct.Struct('<HHIHH')  # Tag, type (SHORT), count, value, padding.
  for old, new in (
    ((262, 3, 1, 2, 0), (262, 3, 1, 5, 0)),  # RGB becomes CMYK;
    ((338, 3, 1, 2, 0), (339, 3, 1, 1, 0)),  # there is no alpha.
  ):
    assert entry.pack(*old) in content
    content = content.replace(entry.pack(*old), entry.pack(*new))
  path = tmp_path / 'a.tif'
  path.write_bytes(content)
  with pytest.raises(images.ImageError, match='16 bits are stored as CMYK'):
    images.read(path)


@pytest.mark.parametrize(
  ('tag', 'words'),
  [(322, 'in tiles'), (284, 'in planes'), (338, 'times alpha')],
)
def test_16_bits_that_would_be_misread_are_refused(tmp_path, tag, words):
  exif = Image.Exif()
  exif[tag] = 2
  deep = pixels(8, 8, 4 if tag == 338 else 3, np.uint16)
  content = images._tiff(deep, {'exif': exif.tobytes()})
  entry = struct.Struct('<HHIHH')  # Tag, type (SHORT), count, value, padding.
  if tag == 338:
    unassociated = entry.pack(tag, 3, 1, 2, 0)
    assert unassociated in content
    content = content.replace(unassociated, entry.pack(tag, 3, 1, 1, 0))
  path = tmp_path / 'a.tif'
  path.write_bytes(content)
  with pytest.raises(images.ImageError, match=f'16 bits are stored {words}'):
    images.read(path)


def write_picture(path, *size, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels(*(size or (8, 8)))).save(path, **options)
  return path


def contents(folder):
  """Returns the paths of all files, relative to the folder."""
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob('*')
    if path.is_file()
  )


def write_bomb(path, side=50_000):
  """Writes a correct picture of one bit a pixel, all of them zero."""
  packer = zlib.compressobj(1)
  data = [packer.compress(bytes(side // 8 + 1)) for _ in range(side)]
  header = struct.pack('>2I5B', side, side, 1, 0, 0, 0, 0)
  chunks = [(b'IHDR', header), (b'IDAT', b''.join(data) + packer.flush())]
  with path.open('wb') as file:
    file.write(b'\x89PNG\r\n\x1a\n')
    for name, content in (*chunks, (b'IEND', b'')):
      file.write(struct.pack('>I', len(content)) + name + content)
      file.write(struct.pack('>I', zlib.crc32(name + content)))


def write_bad_files(folder):
  """Writes files that cannot be restored; returns what is to be said of each.
  """
  (folder / 'text.png').write_text('no picture')
  (folder / 'empty.jpg').write_bytes(b'')
  for ext in ('png', 'jpg', 'tif', 'webp', 'bmp'):
    path = write_picture(folder / f'cut.{ext}', 64, 64)
    os.truncate(path, path.stat().st_size * 2 // 3)
  (folder / 'drawing.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n')
  frames = [Image.fromarray(pixels(8, 8, seed=i)) for i in range(3)]
  for ext in ('png', 'webp', 'tif'):
    frames[0].save(
      folder / f'moving.{ext}', save_all=True, append_images=frames[1:]
    )
  Image.fromarray(np.ones((4, 4), np.float32)).save(folder / 'float.tif')
  write_bomb(folder / 'bomb.png', side=20_000)
  return {
    'text.png': 'it is no picture', 'empty.jpg': 'it is no picture',
    'drawing.png': 'it is no picture', 'float.tif': 'of mode F',
    'bomb.png': 'more than 178,956,970 pixels',
    'moving.png': 'has 3 frames', 'moving.tif': 'has 3 frames',
    'moving.webp': 'has 3 frames',
  } | {
    f'cut.{ext}': 'truncated or damaged'
    for ext in ('png', 'jpg', 'tif', 'webp', 'bmp')
  }  # fmt: skip


def test_bad_files_have_a_line_each_and_the_rest_is_restored(
  identity, tmp_path, capsys
):
  folder, out = tmp_path / 'in', tmp_path / 'out'
  write_picture(folder / 'good.png')
  expected = write_bad_files(folder)
  write_picture(folder / 'zoo.png')
  assert run('-i', folder, '-o', out, model_path=identity) == 1
  lines = capsys.readouterr().err.splitlines()
  for name, words in expected.items():
    (line,) = [x for x in lines if x.startswith(f'Error: {folder / name}: ')]
    assert words in line
  assert f'2 restored, 0 skipped, {len(expected)} failed' in lines[-1]
  assert contents(out) == ['good_out.png', 'zoo_out.png']


@pytest.mark.skipif(not LINUX, reason='reads the peak memory from /proc')
def test_a_bomb_is_refused_at_once(identity, tmp_path):
  """In a process of its own: under a second of work, and 200 MB."""
  write_bomb(tmp_path / 'bomb.png')
  code = f"""if True:
    import pathlib
    import sys
    import time
    from pynas_jax import deblur
    assert deblur.main(['-i', 'bomb.png', '--model_path', {str(identity)!r}])
    print(time.process_time(), 'jax' in sys.modules)
    print(pathlib.Path('/proc/self/status').read_text())
  """
  # The peak that `resource` tells is that of the process before `exec`.
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, check=True, text=True,
    capture_output=True,
  )  # fmt: skip
  assert 'bomb.png: it has more than' in done.stderr
  seconds, has_jax = done.stdout.split()[:2]
  assert float(seconds) < 1
  assert has_jax == 'False'
  assert int(re.search(r'VmHWM:\s+(\d+) kB', done.stdout)[1]) < 200_000


def test_max_pixels_moves_the_limit(identity, tmp_path, capsys):
  path = write_picture(tmp_path / 'a.png', 10, 10)
  flags = {'model_path': identity, 'output': tmp_path / 'out'}
  assert run('-i', path, max_pixels=99, **flags) == 1
  assert 'more than 99 pixels' in capsys.readouterr().err
  assert run('-i', path, max_pixels=100, **flags) == 0


def test_names_and_folders(identity, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  names = ('-n.png', 'a b; $(touch pwned).jpg', 'ü.PNG', 'sub/a.png')
  for name in names:
    write_picture(tmp_path / 'in' / name)
  (tmp_path / 'in' / 'notes.txt').write_text('not for us')
  (tmp_path / 'in' / '._a.png').write_text('what a Mac leaves beside a.png')
  (tmp_path / 'in' / 'loop.png').symlink_to('loop.png')
  write_picture(tmp_path / 'in' / '.thumbnails' / 't.png')
  flags = {'model_path': identity}
  assert run('-i', 'in', **flags) == 0
  assert contents(tmp_path / 'results') == [
    '-n_out.png', 'a b; $(touch pwned)_out.jpg', 'ü_out.png'
  ]  # fmt: skip
  assert 'Files are left out: 1 .txt.' in capsys.readouterr().err
  assert run('-i', 'in', '--recursive', '-o', 'all', **flags) == 0
  assert 'sub/a_out.png' in contents(tmp_path / 'all')
  assert len(contents(tmp_path / 'all')) == len(names)
  write_picture(tmp_path / '-n.png')
  assert run('-i', '-n.png', '-o', '-x', suffix='', **flags) == 2
  assert run('-i', '-n.png', '-o', './-x', suffix='', **flags) == 0
  assert contents(tmp_path / '-x') == ['-n.png']
  assert sorted(os.listdir()) == ['-n.png', '-x', 'all', 'in', 'results']
  write_picture(tmp_path / 'in' / 'time_out.png')
  assert run('-i', 'in', '-o', 'in', **flags) == 0
  assert '1 .txt, 1 of an earlier run' in capsys.readouterr().err


def test_results_are_not_written_over_nor_restored_again(
  identity, tmp_path, capsys
):
  path, out = write_picture(tmp_path / 'a.png'), tmp_path / 'a_out.png'
  args = ('-i', tmp_path, '-o', tmp_path)
  flags = {'model_path': identity}
  assert run(*args, **flags) == 0
  out.write_bytes(b'mine')
  assert run(*args, **flags) == 0
  said = capsys.readouterr().err
  assert f'{path}: {out} is there; --overwrite replaces it.' in said
  assert '0 restored, 1 skipped, 0 failed' in said
  assert out.read_bytes() == b'mine'
  assert run(*args, '--overwrite', **flags) == 0
  np.testing.assert_array_equal(images.read(out).pixels, pixels(8, 8))
  assert contents(tmp_path) == ['a.png', 'a_out.png']


def test_results_below_the_input_are_not_restored_again(
  identity, tmp_path, capsys
):
  write_picture(tmp_path / 'sub' / 'a.png')
  args = ('-i', tmp_path, '-o', tmp_path / 'out', '--recursive')
  flags = {'model_path': identity, 'suffix': ''}
  assert run(*args, **flags) == 0
  assert run(*args, **flags) == 0
  assert '0 restored, 1 skipped, 0 failed' in capsys.readouterr().err
  assert contents(tmp_path) == ['out/sub/a.png', 'sub/a.png']
  # A folder of results that holds the inputs hides none of them.
  args = ('-i', tmp_path / 'sub', '-o', tmp_path)
  assert run(*args, **flags) == 0
  assert (tmp_path / 'a.png').exists()


def test_no_result_takes_the_place_of_an_input_or_another(
  identity, tmp_path, capsys
):
  one, two = (write_picture(tmp_path / f'a.{ext}') for ext in ('bmp', 'tif'))
  before = one.read_bytes(), two.read_bytes()
  flags = {'model_path': identity, 'suffix': ''}
  args = ('-i', one, two, '--overwrite')
  assert run(*args, '-o', tmp_path, **flags) == 1
  said = capsys.readouterr().err
  assert f'{two} would be overwritten, which is an input' in said
  assert (one.read_bytes(), two.read_bytes()) == before
  assert run(*args, '-o', tmp_path / 'out', ext='png', **flags) == 1
  said = capsys.readouterr().err
  assert f'a.png is the result of {one} already' in said
  np.testing.assert_array_equal(
    images.read(tmp_path / 'out' / 'a.png').pixels, pixels(8, 8)
  )


@pytest.mark.parametrize(
  ('mode', 'ext', 'expected'),
  [
    ('RGB', 'jpg', '.jpg'), ('RGBA', 'jpg', '.png'), ('RGBA', 'webp', '.webp'),
    ('I;16', 'webp', '.png'), ('RGB', 'webp', '.webp'),
  ],
)  # fmt: skip
def test_alpha_and_16_bits_need_png(identity, tmp_path, mode, ext, expected):
  Image.new(mode, (9, 7)).save(tmp_path / 'a.png')
  out = tmp_path / 'out'
  flags = {'model_path': identity, 'ext': ext}
  assert run('-i', tmp_path / 'a.png', '-o', out, **flags) == 0
  (path,) = out.iterdir()
  assert path.suffix == expected
  with Image.open(path) as image:
    assert images.FORMATS[image.format] == expected


def test_pictures_side_by_side_keep_alpha(identity, tmp_path):
  rgba = pixels(9, 7, 4)
  Image.fromarray(rgba).save(tmp_path / 'a.png')
  flags = {'model_path': identity, 'compare': True}
  assert run('-i', tmp_path / 'a.png', '-o', tmp_path, **flags) == 0
  both = images.read(tmp_path / 'a_out.png').pixels
  np.testing.assert_array_equal(both, np.concatenate([rgba, rgba], axis=1))


@pytest.mark.parametrize('kind', ['L', 'RGB'])
def test_a_jpeg_stays_near_and_keeps_its_profile(identity, tmp_path, kind):
  y, x = np.mgrid[:40, :56]
  image = Image.fromarray((40 + x + 2 * y).astype(np.uint8)).convert(kind)
  image.save(tmp_path / 'a.jpg', icc_profile=PROFILE, quality=90)
  flags = {'model_path': identity}
  assert run('-i', tmp_path / 'a.jpg', '-o', tmp_path, **flags) == 0
  with (
    Image.open(tmp_path / 'a.jpg') as old,
    Image.open(tmp_path / 'a_out.jpg') as new,
  ):
    assert new.mode == kind
    assert new.info['icc_profile'] == PROFILE
    np.testing.assert_allclose(np.array(new, int), np.array(old, int), atol=4)


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--wrong'], 'unrecognized arguments: --wrong'),
    (['--ext', 'gif'], "invalid choice: 'gif'"),
    (['--backend', 'tpu'], "invalid choice: 'tpu'"),
    (['--tile', '-1'], 'tile is -1; expected 0 or more'),
    (['--tile_pad', '-1'], 'tile_pad is -1; expected 0 or more'),
    (['--suffix', '../x'], "suffix is '../x'; expected part of a file name"),
    (['--fps', '0'], 'fps is 0.0; expected 0.01 or more'),
    (['--fps', 'nan'], 'fps is nan; expected 0.01 or more'),
    (['--start', '3', '--end', '2'], 'start is 3.0; expected 0 or more'),
    (['--max_pixels', '0'], 'max_pixels is 0; expected above 0'),
    (['--size', '8x8'], "size is '8x8'; expected such as 1280x720"),
    (['--fp32', '--bf16'], 'not allowed with argument --fp32'),
    (['--int8'], 'xla has no int8 here; use float32, or backend'),
    (['--device', 'abacus'], "device is 'abacus', which is not here"),
    (['--device', 'cpu:99'], "device is 'cpu:99', which is not here"),
    (['--model_path', 'nowhere'], "model_path is 'nowhere'; expected a"),
    (['--model_path', 'in'], 'holds no finished checkpoint'),
    (['--output', 'in/a.png'], "output is 'in/a.png'; expected a folder"),
    (['--input', 'gone.png'], "input is 'gone.png'; expected a file"),
    (['--input', '-'], 'expected either - or files'),
  ],
)  # fmt: skip
def test_unusable_flags_stop_with_status_2(
  identity, tmp_path, monkeypatch, capsys, args, words
):
  monkeypatch.chdir(tmp_path)
  write_picture(tmp_path / 'in' / 'a.png')
  assert run('-i', 'in', '--model_path', identity, *args) == 2
  said = capsys.readouterr().err
  assert words in said.splitlines()[-1]
  assert contents(tmp_path) == ['in/a.png']


def test_an_unknown_network_names_those_there_are(
  tmp_path, capsys, monkeypatch
):
  write_picture(tmp_path / 'a.png')
  args = ('-i', tmp_path / 'a.png', '-n', 'fats', '-o', tmp_path / 'out')
  monkeypatch.setattr(restore, 'MODELS', tmp_path / 'models')
  assert run(*args) == 2
  assert "model_name is 'fats'; there is none" in capsys.readouterr().err
  for name in ('fast', 'quality'):
    folder = tmp_path / 'models' / name
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text('{}')
  assert run(*args) == 2
  said = capsys.readouterr().err
  assert 'there is fast, quality. Give your own network by --model_path' in said
  assert "Did you mean 'fast'?" in said


def test_an_empty_folder_is_told(identity, tmp_path, capsys):
  (tmp_path / 'sub').mkdir()
  write_picture(tmp_path / 'sub' / 'a.png')
  assert run('-i', tmp_path, model_path=identity) == 2
  assert 'no picture or video' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['release', 'checkpoint'])
def test_networks_are_loaded_from_where_they_are(identity, tmp_path, kind):
  from pynas_jax.deploy import restorer

  path = identity / 'checkpoints' / '1'
  if kind == 'release':
    path = tmp_path / 'release'
    restorer.load(identity).save_pretrained(path)
  source = write_picture(tmp_path / 'a.png')
  flags = {'model_path': path, 'backend': 'xla', 'device': 'cpu', 'bf16': True}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  restored = images.read(tmp_path / 'a_out.png').pixels
  np.testing.assert_allclose(restored.astype(int), pixels(8, 8), atol=2)


def test_pictures_are_restored_in_8_bits(tmp_path):
  pytest.importorskip('openvino')
  photos = pathlib.Path(images.__file__).parents[1] / 'data' / 'photos'
  restored = []
  for kind in ('fp32', 'int8'):
    paths = ('-i', photos / 'night.png', '-o', tmp_path / kind)
    assert run(*paths, backend='auto', **{kind: True}) == 0
    path = tmp_path / kind / 'night_out.png'
    restored.append(images.read(path).pixels.astype(int))
  assert 0 < np.abs(restored[0] - restored[1]).mean() < 1


def test_bfloat16_that_is_slow_here_is_told(
  identity, tmp_path, monkeypatch, capsys
):
  from pynas_jax.deploy import backends

  monkeypatch.setattr(
    backends, '_has_type',
    lambda backend, dtype: dtype == 'float32' or backend == 'xla',
  )
  source = write_picture(tmp_path / 'a.png')
  flags = {'model_path': identity, 'backend': 'auto', 'overwrite': True}
  for kind, told in (('bf16', True), ('fp32', False)):
    assert run('-i', source, '-o', tmp_path, **flags, **{kind: True}) == 0
    assert ('--fp32 may be faster' in capsys.readouterr().err) == told


def test_a_network_that_breaks_off_fails_the_picture_alone(
  identity, tmp_path, monkeypatch, capsys
):
  """The one thing replaced is the memory, which the machine may have."""
  from pynas_jax.deploy import tiling

  whole = tiling.Tiler.__call__

  def call(self, image, *args, **options):
    if image.shape[0] > 9:
      raise RuntimeError('RESOURCE_EXHAUSTED: out of memory\nmore')
    return whole(self, image, *args, **options)

  monkeypatch.setattr(tiling.Tiler, '__call__', call)
  small, large = (
    write_picture(tmp_path / f'{side}.png', side, side) for side in (8, 10)
  )
  out = tmp_path / 'out'
  assert run('-i', large, small, '-o', out, model_path=identity) == 1
  said = capsys.readouterr().err
  assert f'{large}: the network broke off: RESOURCE_EXHAUSTED: out of' in said
  assert 'see --tile' in said
  assert contents(out) == ['8_out.png']


def test_tiles_are_told_and_change_nothing(identity, tmp_path, capsys):
  source = write_picture(tmp_path / 'a.png', 150, 130)
  flags = {'model_path': identity, 'tile': 64}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  said = capsys.readouterr().err
  assert '130x150 pixels are restored in tiles of 64; this network' in said
  np.testing.assert_array_equal(
    images.read(tmp_path / 'a_out.png').pixels, pixels(150, 130)
  )
