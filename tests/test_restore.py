"""`pynas-restore` beside deblurring: networks that enlarge, and that denoise.

The reference is the Restorer, called directly.
"""

from __future__ import annotations

from fractions import Fraction
import io
import pathlib
import sys
import types
import typing

import av
import cv2
import jax
import numpy as np
from PIL import Image
from PIL import ImageCms
import pytest

from pynas_jax import deblur
from pynas_jax import genotype as genotype_lib
from pynas_jax import restore
from pynas_jax import spaces
from pynas_jax.data import degrade
from pynas_jax.deploy import images
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.deploy import videos
from pynas_jax.spaces import base

SIZE = (12, 18)  # Height, width.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
XMP = (
  b'<x tiff:ImageWidth="18" exif:PixelYDimension=\'12\'>'
  b'<exif:PixelXDimension>18</exif:PixelXDimension>'
  b'<tiff:ImageLength>12</tiff:ImageLength></x>'
)


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch):
  """The command sets a limit of Pillow for its process, which is ours."""
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)


class Network(typing.NamedTuple):
  folder: pathlib.Path
  restorer: restorer_lib.Restorer


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
  """Tiny networks as release folders, by scale; 1 is that of a denoiser."""
  return {
    scale: make_network(tmp_path_factory.mktemp(f'x{scale}'), scale)
    for scale in (1, 2, 3)
  }


def make_network(folder, scale):
  cell = (((0, 'conv_3x3'), (1, 'sep_conv_3x3')),)
  g = genotype_lib.HinasGenotype(
    cells=(cell,), levels=(0,), width=3, stem_width=4, scale=scale
  )
  module = spaces.space_of(g).network(g)
  tree = jax.eval_shape(lambda: base.init_params(jax.random.key(0), module))
  rng = np.random.default_rng(scale)

  def draw(path, leaf):
    value = 0.25 * rng.standard_normal(leaf.shape, np.float32)
    return 1 + np.abs(value) if path[-1].key == 'var' else value

  params = jax.tree_util.tree_map_with_path(draw, tree)
  network = restorer_lib.Restorer(g, params)
  return Network(network.save_pretrained(folder), network)


def run(*args):
  """Runs the command in this process; returns its exit status."""
  return restore.main(['--backend', 'xla', *map(str, args)])


def smooth(height, width, channels=3, dtype=np.uint8):
  """A picture without detail that JPEG would not keep."""
  y, x, c = np.mgrid[:height, :width, :channels]
  waves = 0.5 + 0.4 * np.sin(y / 5 + c) * np.cos(x / 7 - c)
  return np.round(waves * np.iinfo(dtype).max).astype(dtype)


def by_hand(network, pixels):
  """What becomes of u8 or u16[H, W, C], by the Restorer alone."""
  high = np.iinfo(pixels.dtype).max
  colours = 3 if pixels.shape[2] > 2 else 1
  image = pixels[..., :colours].repeat(3 // colours, axis=2)
  if pixels.dtype == np.uint16:
    restored = np.round(network(image / high) * high)
  else:
    restored = network(image).astype(float)
  if colours == 1:
    restored = restored.mean(axis=2, keepdims=True).round()
  alpha = images.enlarge(
    pixels[..., colours:], height=restored.shape[0], width=restored.shape[1]
  )
  return np.concatenate([restored, alpha], axis=2).astype(pixels.dtype)


# Pictures.


def write_pictures(folder):
  """Writes a picture of each kind; returns their names."""
  folder.mkdir()
  Image.fromarray(smooth(*SIZE)).save(folder / 'rgb.png')
  Image.fromarray(smooth(*SIZE, 1)[..., 0]).save(folder / 'gray.png')
  Image.fromarray(smooth(*SIZE, 2)).save(folder / 'gray_alpha.png')
  Image.fromarray(smooth(*SIZE, 4)).save(folder / 'rgb_alpha.png')
  Image.fromarray(smooth(1, 1)).save(folder / 'dot.png')
  for channels, name in ((3, 'deep.png'), (4, 'deep_alpha.tif')):
    cv2.imwrite(str(folder / name), smooth(*SIZE, channels, np.uint16))
  cmyk = Image.fromarray(smooth(*SIZE)).convert('CMYK')
  cmyk.save(folder / 'cmyk.tif')
  Image.fromarray(smooth(*SIZE)).save(
    folder / 'described.webp', lossless=True, icc_profile=PROFILE, xmp=XMP
  )
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('scale', [1, 2, 3])
def test_pictures_are_what_the_network_makes_of_them(networks, tmp_path, scale):
  names = write_pictures(tmp_path / 'in')
  out = tmp_path / 'out'
  folder, network = networks[scale]
  assert run('-i', tmp_path / 'in', '-o', out, '--model_path', folder) == 0
  for name in names:
    given = images.read(tmp_path / 'in' / name)
    stem, _, suffix = name.partition('.')
    found = images.read(out / f'{stem}_out.{suffix}')
    wanted = by_hand(network, given.pixels)
    height, width, channels = given.pixels.shape
    assert found.pixels.shape == (scale * height, scale * width, channels), name
    np.testing.assert_array_equal(found.pixels, wanted, name)
  flat = images.enlarge(
    smooth(*SIZE), height=scale * SIZE[0], width=scale * SIZE[1]
  )
  changed = np.abs(by_hand(network, smooth(*SIZE)).astype(int) - flat)
  assert changed.mean() > 2  # The network does something.
  described = images.read(out / 'described_out.webp').metadata
  assert described['icc_profile'] == PROFILE
  assert described['xmp'].rstrip(b'\0') == XMP.replace(
    b'18', b'%d' % (18 * scale)
  ).replace(b'12', b'%d' % (12 * scale))


def test_a_turned_photograph_states_its_new_size(networks, tmp_path):
  exif = Image.Exif()
  exif[0x0112], exif[0x010F], exif[0x0100] = 6, 'Maker', SIZE[1]
  exif.get_ifd(0x8769).update({
    0x9003: '2026:01:02 03:04:05', 0xA002: SIZE[1], 0xA003: SIZE[0],
    0x927C: b'of the maker',
  })  # fmt: skip
  source = tmp_path / 'a.jpg'
  Image.fromarray(smooth(*SIZE)).save(
    source, exif=exif, icc_profile=PROFILE, quality=95
  )
  args = ('-i', source, '-o', tmp_path, '--model_path', networks[3].folder)
  assert run(*args) == 0
  given, found = (images.read(tmp_path / x) for x in ('a.jpg', 'a_out.jpg'))
  wanted = by_hand(networks[3].restorer, given.pixels)
  assert wanted.shape == (3 * SIZE[1], 3 * SIZE[0], 3)
  assert np.abs(found.pixels.astype(int) - wanted).mean() < 5
  with Image.open(tmp_path / 'a_out.jpg') as image:
    found = image.getexif()
    inner = found.get_ifd(0x8769)
    assert image.info['icc_profile'] == PROFILE
  assert (found.get(0x0112, 1), found[0x010F], found[0x0100]) == (
    1, 'Maker', 3 * SIZE[0]
  )  # fmt: skip
  assert (inner[0xA002], inner[0xA003]) == (3 * SIZE[0], 3 * SIZE[1])
  assert inner[0x9003] == '2026:01:02 03:04:05'
  assert inner[0x927C] == b'of the maker'


@pytest.mark.parametrize('endian', ['<', '>'])
@pytest.mark.parametrize('prefix', [b'', b'Exif\0\0'])
def test_exif_is_changed_in_place(endian, prefix):
  exif = Image.Exif()
  exif.endian = endian
  exif[0x0101], exif[0x010F] = 7, 'Maker'
  exif.get_ifd(0x8769)[0xA002] = 9
  old = prefix + exif.tobytes().removeprefix(b'Exif\0\0')
  new = images._exif_with_size(old, 70_000, 90_000)
  assert len(new) == len(old)
  found = Image.Exif()
  found.load(new)
  assert (found[0x0101], found[0x010F]) == (70_000, 'Maker')
  assert found.get_ifd(0x8769) == {0xA002: 90_000}
  for end in range(len(old)):  # Damaged, and no fault of ours.
    assert len(images._exif_with_size(old[:end], 1, 1)) == end


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_enlarging_is_bicubic_and_keeps_what_has_the_size(dtype):
  pixels = smooth(9, 11, 2, dtype)
  assert images.enlarge(pixels, height=9, width=11) is pixels
  found = images.enlarge(pixels, height=27, width=33)
  assert found.dtype == dtype
  wanted = degrade.imresize(pixels.astype(np.float32), scale=3)
  inside = np.s_[6:-6, 6:-6]  # They differ in what is beyond the border.
  np.testing.assert_allclose(found[inside], wanted[inside], atol=0.6)
  steps = np.zeros((8, 8, 1), dtype)
  steps[:, 4:] = np.iinfo(dtype).max  # Bicubic goes beyond both.
  assert set(images.enlarge(steps, height=16, width=16)[:, 0, 0]) == {0}


def test_pictures_are_compared_with_bicubic_enlarging(networks, tmp_path):
  rgba = smooth(*SIZE, 4)
  Image.fromarray(rgba).save(tmp_path / 'a.png')
  args = ('-i', tmp_path / 'a.png', '-o', tmp_path, '--compare')
  assert run(*args, '--model_path', networks[2].folder) == 0
  found = images.read(tmp_path / 'a_out.png').pixels
  left = images.enlarge(rgba, height=2 * SIZE[0], width=2 * SIZE[1])
  right = by_hand(networks[2].restorer, rgba)
  np.testing.assert_array_equal(found, np.concatenate([left, right], axis=1))


def test_tiles_are_exact_or_fade(networks, tmp_path, capsys):
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  Image.fromarray(image).save(tmp_path / 'a.png')
  args = ('-i', tmp_path / 'a.png', '-o', tmp_path, '--overwrite')
  args += ('--model_path', networks[2].folder, '--tile', 16)
  whole = networks[2].restorer(image).astype(int)
  differences = {}
  for pad, words in (
    (None, 'this network restores tiles as it does the whole'),
    (2, 'This network looks at more than a tile: in the middle 36x36 pixels'),
  ):
    assert run(*args, *([] if pad is None else ['--tile_pad', pad])) == 0
    assert words in capsys.readouterr().err
    found = images.read(tmp_path / 'a_out.png').pixels
    assert found.shape == (80, 100, 3)
    differences[pad] = np.abs(found - whole)
  assert differences[None].max() <= 1
  assert differences[2].max() > 1
  assert differences[2].mean() < 1


def test_results_too_large_are_refused_before_any_work(
  networks, tmp_path, capsys
):
  Image.fromarray(smooth(10, 10)).save(tmp_path / 'a.png')
  args = ('-i', tmp_path / 'a.png', '-o', tmp_path / 'out')
  args += ('--model_path', networks[2].folder, '--max_pixels')
  assert run(*args, 399) == 1
  said = capsys.readouterr().err
  assert 'a.png: its result has 20x20 pixels, more than 399; raise' in said
  assert run(*args, 400) == 0
  images.check_size('.png', 2, 20_000, max_pixels=40_000)
  with pytest.raises(images.ImageError, match='holds at most 16383 a side'):
    images.check_size('.webp', 2, 20_000, max_pixels=40_000)


@pytest.mark.parametrize('backend', ['auto', 'onnxruntime', 'openvino'])
def test_every_runtime_enlarges(networks, backend, tmp_path):
  Image.fromarray(smooth(*SIZE)).save(tmp_path / 'a.png')
  args = ['-i', tmp_path / 'a.png', '-o', tmp_path / 'out']
  args += ['--model_path', networks[2].folder, '--backend', backend]
  assert restore.main(list(map(str, args))) == 0
  found = np.array(Image.open(tmp_path / 'out' / 'a_out.png'), int)
  wanted = networks[2].restorer(smooth(*SIZE))
  np.testing.assert_allclose(found, wanted, atol=1)


# Videos.


def write_clip(path, frames, *, codec='ffv1', matrix=2, rotation=0):
  """Writes yuv420p with pixels of 4:3, which ffv1 does not tell."""
  with av.open(str(path), 'w') as container:
    video = container.add_stream(codec, rate=25)
    video.height, video.width = frames[0].shape[:2]
    video.pix_fmt = 'yuv420p'
    video.codec_context.colorspace = matrix
    video.codec_context.sample_aspect_ratio = Fraction(4, 3)
    if rotation:
      video.set_display_rotation(rotation)
    for image in frames:
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(video.encode(frame))
    container.mux(video.encode())


def read_clip(path):
  """Returns the frames, and what the video says of them."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    frames = list(container.decode(stream))
    shape = stream.sample_aspect_ratio
  arrays = [
    frame.to_ndarray(format='rgb24', interpolation=videos._EXACT)
    for frame in frames
  ]
  return arrays, (shape, frames[0].format.name, frames[0].colorspace)


def test_videos_are_enlarged_and_compared(networks, tmp_path):
  frames = [smooth(33, 21) // 2 + 30 * i for i in range(3)]
  write_clip(tmp_path / 'a.mkv', frames)
  args = ('-i', tmp_path / 'a.mkv', '-o', tmp_path, '--compare')
  assert run(*args, '--model_path', networks[2].folder) == 0
  given, _ = read_clip(tmp_path / 'a.mkv')
  found, (_, pixels, matrix) = read_clip(tmp_path / 'a_out.mkv')
  # Twice an odd size is even; large video has another matrix by default.
  assert (pixels, matrix) == ('yuv420p', videos._BT601)
  network = networks[2].restorer
  assert len(found) == len(given) == 3
  for old, new in zip(given, found, strict=True):
    assert new.shape == (66, 84, 3)
    left = images.enlarge(old, height=66, width=42)
    for half, wanted in ((new[:, :42], left), (new[:, 42:], network(old))):
      # The video has a colour for four pixels.
      half, wanted = (
        x.reshape(33, 2, 21, 2, 3).mean(axis=(1, 3)) for x in (half, wanted)
      )
      assert np.abs(half - wanted).mean() < 5


@pytest.mark.parametrize('matrix', [1, 2])
def test_what_large_video_leaves_open_stays_so(tmp_path, matrix):
  write_clip(tmp_path / 'a.mkv', [smooth(720, 1280)], matrix=matrix)
  videos.restore_video(tmp_path / 'a.mkv', tmp_path / 'b.mkv', lambda x: x)
  assert read_clip(tmp_path / 'b.mkv')[1][2] == matrix


def test_frames_that_no_video_holds_are_told(tmp_path):
  write_clip(tmp_path / 'a.mkv', [smooth(2, 200)])
  with pytest.raises(videos.VideoError, match='become 20000x200 pixels, and'):
    videos.restore_video(
      tmp_path / 'a.mkv', tmp_path / 'b.mkv',
      lambda x: np.tile(x, (100, 100, 1)),
    )  # fmt: skip
  assert [path.name for path in tmp_path.iterdir()] == ['a.mkv']


@pytest.mark.parametrize(
  ('size', 'rotation', 'expected'),
  [((32, 20), 0, Fraction(4, 3)), ((32, 32), 90, Fraction(3, 4))],
)
def test_pixels_keep_their_shape_in_a_result_of_another(
  tmp_path, size, rotation, expected
):
  write_clip(
    tmp_path / 'a.mp4', [smooth(*size)], codec='libx264', rotation=rotation
  )
  videos.restore_video(
    tmp_path / 'a.mp4', tmp_path / 'b.mp4', lambda x: np.tile(x, (1, 2, 1))
  )
  (frame,), (shape, *_) = read_clip(tmp_path / 'b.mp4')
  assert frame.shape == (size[0], 2 * size[1], 3)
  assert shape == expected


@pytest.mark.parametrize('scale', [1, 3])
def test_frames_of_a_pipe_come_out_larger(
  networks, capsys, monkeypatch, scale
):
  frames = np.stack([smooth(*SIZE) // 2 + 30 * i for i in range(3)])
  out = io.BytesIO()
  for name, pipe in (('stdin', io.BytesIO(frames.tobytes())), ('stdout', out)):
    monkeypatch.setattr(sys, name, types.SimpleNamespace(buffer=pipe))
  args = ('-i', '-', '--size', f'{SIZE[1]}x{SIZE[0]}')
  assert run(*args, '--model_path', networks[scale].folder) == 0
  # One at a time: three together are another program, which rounds otherwise.
  restorer = networks[scale].restorer
  wanted = np.concatenate([restorer(frame[None]) for frame in frames])
  np.testing.assert_array_equal(
    np.frombuffer(out.getvalue(), np.uint8).reshape(wanted.shape), wanted
  )
  assert capsys.readouterr().err == '3 frames restored.\n'


# The command.


@pytest.mark.parametrize(
  ('program', 'name'),
  [
    (restore.__file__, 'python -m pynas_jax.restore'),
    (deblur.__file__, 'python -m pynas_jax.deblur'),
    ('/usr/bin/pynas-restore', 'pynas-restore'),
    ('/usr/bin/pynas-deblur', 'pynas-deblur'),
  ],
)
def test_the_command_tells_the_name_it_was_given(
  monkeypatch, capsys, program, name
):
  monkeypatch.setattr(sys, 'argv', [program, '--help'])
  with pytest.raises(SystemExit):
    deblur.main()
  assert capsys.readouterr().out.startswith(f'usage: {name} [-h] -i')
