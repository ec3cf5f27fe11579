"""Picture files, in and out, with all that is not to be restored.

Pixels are uint8 or uint16 [H, W, C], upright: C is 1 (gray), 2 (gray, alpha),
3 (RGB) or 4 (RGB, alpha). A lossless file that is read and written has the same
pixels, and its EXIF, XMP, colour profile and resolution; what only one format
has, such as the texts of PNG, stays within it. The orientation is applied, and
its tag removed; sizes that EXIF or XMP state become those of the pixels.
Palettes become RGB, and CMYK too: to restore ink by ink is meaningless, and a
CMYK profile cannot stay with RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import io
import math
import os
from pathlib import Path
import re
import struct
from typing import Any
import zlib

import av
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageCms
from PIL import ImageOps
from PIL import PngImagePlugin
from PIL import TiffImagePlugin
from PIL import TiffTags

MAX_PIXELS = 178_956_970  # More than that Pillow takes for an attack.
MAX_DPI = 1e6  # More is no resolution, nor is 0 or what is no number.
# Pillow's formats that are read -> the suffix of what is written.
FORMATS = {
  'PNG': '.png', 'JPEG': '.jpg', 'MPO': '.jpg', 'WEBP': '.webp',
  'TIFF': '.tif', 'BMP': '.bmp', 'PPM': '.png',
}  # fmt: skip
_OPENED = tuple(name for name in FORMATS if name != 'MPO')  # It opens as JPEG.
EXTENSIONS = ('png', 'jpg', 'webp')
_NO_ALPHA = ('.jpg', '.bmp')
# Pillow's modes -> those that hold them, without alpha.
_MODES = {
  '1': 'L', 'L': 'L', 'LA': 'L', 'P': 'RGB', 'PA': 'RGB', 'RGB': 'RGB',
  'RGBA': 'RGB', 'RGBX': 'RGB', 'YCbCr': 'RGB', 'CMYK': 'RGB',
}  # fmt: skip
# Pillow shortens colours to 8 bits, FFmpeg does not; its names of formats.
_DEMUXERS = {'PNG': 'png_pipe', 'TIFF': 'tiff_pipe', 'PPM': 'ppm_pipe'}
_QUALITY = 95
_SAVE = {
  '.png': {},
  '.bmp': {},
  '.jpg': {'quality': _QUALITY, 'subsampling': 0},
  '.webp': {'quality': _QUALITY},
}
_MAX_SIDES = {'.jpg': 65_500, '.webp': 16_383}  # Pixels that they can hold.
# EXIF orientation -> what makes the picture upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: x[::-1].swapaxes(0, 1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
# The tags of a TIFF file that describe the picture, not how it is stored.
_DESCRIPTIVE = (
  'ImageDescription', 'Make', 'Model', 'Software', 'DateTime', 'Artist',
  'Copyright', 'ExifOffset', 'GPSInfo', 'IPTCNAA',
)  # fmt: skip
# What a PNG file says of its colours, and texts.
_PNG_CHUNKS = (
  b'gAMA', b'cHRM', b'cICP', b'sRGB', b'tEXt', b'zTXt', b'iTXt',
)  # fmt: skip
_PNG_HEAD = b'\x89PNG\r\n\x1a\n'
_PNG_XMP = b'XML:com.adobe.xmp'
# Where EXIF and XMP state the size of the picture.
_EXIF_WIDTHS = (ExifTags.Base.ImageWidth, ExifTags.Base.ExifImageWidth)
_EXIF_HEIGHTS = (ExifTags.Base.ImageLength, ExifTags.Base.ExifImageHeight)
_XMP_WIDTH = re.compile(
  rb'((?:tiff:ImageWidth|exif:PixelXDimension)(?:=["\']|>))\d+'
)
_XMP_HEIGHT = re.compile(
  rb'((?:tiff:ImageLength|exif:PixelYDimension)(?:=["\']|>))\d+'
)


class ImageError(ValueError):
  """A picture that cannot be read or written; it says why, not which."""


@dataclasses.dataclass(frozen=True)
class Picture:
  """A decoded file.

  Attributes:
    pixels: u8 or u16[H, W, C], upright.
    lossless: Whether the file held exactly these pixels.
    metadata: `exif`, `icc_profile`, `xmp` and `dpi`, of what there is; of PNG,
      `chunks`; of JPEG, `comment` and `extra`, a segment of IPTC.
    note: What cannot be kept, for people; '' if nothing.
  """

  pixels: np.ndarray
  lossless: bool
  metadata: dict[str, Any]
  note: str = ''


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
  """Opens a file whose header is that of one picture of allowed size."""
  too_large = ImageError(
    f'it has more than {max_pixels:,} pixels; raise --max_pixels to trust it'
  )
  try:
    with Image.open(path, formats=_OPENED) as image:
      if image.width * image.height > max_pixels:
        raise too_large
      count = getattr(image, 'n_frames', 1)
      if count > 1 and image.format != 'MPO':  # A phone's JPEG with a preview.
        raise ImageError(f'it has {count} frames; expected one picture')
      if image.mode not in _MODES and not _is_deep(image):
        raise ImageError(
          f'its pixels are of mode {image.mode}; expected gray, palette, RGB '
          'or CMYK, of 8 or 16 bits'
        )
      if image.format == 'TIFF' and _is_deep(image):
        _check_deep_tiff(image)
      yield image
  except ImageError:
    raise
  except Image.UnidentifiedImageError:
    raise ImageError(
      'it is no picture that can be read, whatever its name says; expected '
      'PNG, JPEG, WebP, TIFF, BMP or PPM'
    ) from None
  except Image.DecompressionBombError:
    raise too_large from None
  except Exception as error:  # Damaged files make decoders raise anything.
    if getattr(error, 'errno', None):
      raise ImageError(f'it cannot be read: {error.strerror}') from None
    raise ImageError(f'it is truncated or damaged: {error}') from error


def _is_deep(image: Image.Image) -> bool:
  """Returns whether a file has 16 bits a channel; before it is decoded."""
  if image.format == 'TIFF':
    return 16 in image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ())
  raw_modes = [str(tile[3]) for tile in image.tile]
  return image.format in _DEMUXERS and any(';16' in raw for raw in raw_modes)


def _check_deep_tiff(image: Image.Image) -> None:
  """Raises ImageError if FFmpeg would take 16 bits for something else."""
  tags = image.tag_v2
  faults = {
    'in tiles': TiffImagePlugin.TILEWIDTH in tags,
    'in planes': tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2,
    'as CMYK': image.mode == 'CMYK',
    'times alpha': 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()),
    'as BigTIFF': _starts_with(image, b'II+', b'MM\0+'),
  }
  if any(faults.values()):
    reasons = ' and '.join(name for name, there in faults.items() if there)
    raise ImageError(
      f'its 16 bits are stored {reasons}; save it as PNG, or as a TIFF without'
    )


def _starts_with(image: Image.Image, *heads: bytes) -> bool:
  image.fp.seek(0)
  return image.fp.read(4).startswith(heads)


def output_suffix(
  path: Path, ext: str = 'auto', *, max_pixels: int = MAX_PIXELS
) -> str:
  """Returns the suffix of the file to write, from the header of one.

  Args:
    path: A picture.
    ext: One of `EXTENSIONS`, or 'auto' for its own. PNG takes its place where
      it cannot hold alpha or 16 bits.
    max_pixels: Largest picture to be read.

  Raises:
    ImageError: If it is no picture, or too large.
  """
  with _opened(path, max_pixels) as image:
    suffix = FORMATS[image.format] if ext == 'auto' else f'.{ext}'
    alpha = image.has_transparency_data and suffix in _NO_ALPHA
    deep = _is_deep(image) and suffix != '.tif'
    return '.png' if alpha or deep else suffix


def read(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
  """Decodes a picture.

  Raises:
    ImageError: If it is no picture, too large, truncated or damaged.
  """
  with _opened(path, max_pixels) as image:
    deep = _is_deep(image)
    lossless = image.format not in ('JPEG', 'MPO')
    if image.format == 'WEBP':
      lossless = b'VP8L' in path.read_bytes()
    notes = []
    try:
      Image.Exif().load(image.info.get('exif', b''))
    except Exception:  # As in `_opened`.
      del image.info['exif']
      notes.append('its EXIF is damaged, and left out')
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()  # Also finds what is truncated, where FFmpeg does not.
    upright = ImageOps.exif_transpose(image)
    metadata = _metadata(path, image, upright)
    if deep:
      pixels = _read_deep(path, _DEMUXERS[image.format])
      pixels = _UPRIGHT.get(orientation, lambda x: x)(pixels)
    else:
      if image.mode == 'CMYK':
        notes.append('CMYK is written as RGB')
        upright = _from_cmyk(upright)
        metadata.pop('icc_profile', None)
      mode = _MODES[upright.mode] + 'A' * upright.has_transparency_data
      pixels = np.asarray(upright.convert(mode))
      pixels = pixels.reshape(*pixels.shape[:2], -1)
  return Picture(pixels, lossless, metadata, '; '.join(notes))


def _read_deep(path: Path, demuxer: str) -> np.ndarray:
  """Returns u16[H, W, C] as the file has them, not yet upright."""
  source: str | io.BytesIO = f'file:{path}'
  if demuxer == 'png_pipe':
    # Pixels alone: FFmpeg does not decode them beside damaged metadata.
    source = io.BytesIO(
      _png(
        (name, content) for name, content in _read_chunks(path)
        if name[:1].isupper() or name == b'tRNS'
      )
    )  # fmt: skip
  with av.open(source, format=demuxer) as container:
    frame = next(container.decode(video=0))
  layout = frame.format
  if len(frame.planes) > 1 or any(c.bits != 16 for c in layout.components):
    raise ImageError(f'its pixels are stored as {layout.name}; try a PNG')
  kind = np.dtype('u2').newbyteorder('>' if layout.is_big_endian else '<')
  rows = np.frombuffer(frame.planes[0], kind).reshape(frame.height, -1)
  shape = (frame.height, frame.width, len(layout.components))
  return rows[:, : shape[1] * shape[2]].reshape(shape).astype(np.uint16)


def _from_cmyk(image: Image.Image) -> Image.Image:
  """Converts to sRGB by the picture's profile, if it has a good one."""
  try:
    profile = io.BytesIO(image.info['icc_profile'])
    return ImageCms.profileToProfile(
      image, ImageCms.ImageCmsProfile(profile), ImageCms.createProfile('sRGB'),
      outputMode='RGB',
    )  # fmt: skip
  except (KeyError, OSError, ImageCms.PyCMSError):
    return image.convert('RGB')


def _metadata(
  path: Path, image: Image.Image, upright: Image.Image
) -> dict[str, Any]:
  """Returns what describes a picture: see `Picture`."""
  names = ('icc_profile', 'xmp', 'dpi', 'exif')
  kept = {name: upright.info[name] for name in names if upright.info.get(name)}
  if not all(0 < float(number) < MAX_DPI for number in kept.get('dpi', ())):
    del kept['dpi']
  exif = upright.getexif()
  if image.format == 'TIFF':
    exif = image.getexif()
    for tag in set(exif) - {ExifTags.Base[name] for name in _DESCRIPTIVE}:
      del exif[tag]
  if exif and 'exif' not in kept:
    kept['exif'] = exif.tobytes()
  if 'exif' in kept:  # Pillow's writer of JPEG takes it with its name alone.
    kept['exif'] = b'Exif\0\0' + kept['exif'].removeprefix(b'Exif\0\0')
  if image.format == 'PNG':
    # XMP is kept apart; raw profiles are the EXIF and the like of old programs.
    kept['chunks'] = [
      (name, content) for name, content in _read_chunks(path)
      if name in _PNG_CHUNKS
      and not content.startswith((_PNG_XMP, b'Raw profile type '))
    ]  # fmt: skip
  if image.format in ('JPEG', 'MPO'):
    kept['comment'] = image.info.get('comment', b'')
    kept['extra'] = b''.join(
      b'\xff\xed' + struct.pack('>H', len(content) + 2) + content
      for name, content in image.applist if name == 'APP13'
    )  # fmt: skip
  return kept


def _read_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
  """Yields name and content of each chunk of a PNG file."""
  with path.open('rb') as file:
    file.seek(len(_PNG_HEAD))
    while len(head := file.read(8)) == 8:
      size, name = struct.unpack('>I4s', head)
      yield name, file.read(size)
      file.seek(4, os.SEEK_CUR)  # The checksum.


def _png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
  """Returns a PNG file of chunks: name, content."""
  return _PNG_HEAD + b''.join(
    struct.pack('>I', len(data)) + name + data
    + struct.pack('>I', zlib.crc32(name + data))
    for name, data in chunks
  )  # fmt: skip


def enlarge(pixels: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """Enlarges a picture, bicubic.

  >>> enlarge(np.full((1, 2, 1), 7, np.uint16), height=3, width=6).shape
  (3, 6, 1)

  Args:
    pixels: u8 or u16[H, W, C]; returned as they are if they have that size.
    height: Of the result, pixels.
    width: Of the result, pixels.

  Returns:
    u8 or u16[height, width, C].
  """
  if pixels.shape[:2] == (height, width):
    return pixels
  large = np.empty((height, width, pixels.shape[2]), pixels.dtype)
  for i in range(pixels.shape[2]):
    channel = Image.fromarray(pixels[..., i].astype(np.float32))
    channel = np.asarray(channel.resize((width, height), Image.BICUBIC))
    large[..., i] = np.rint(channel.clip(0, np.iinfo(pixels.dtype).max))
  return large


def restore(
  pixels: np.ndarray, network: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Restores all channels but alpha, which is enlarged if need be.

  Args:
    pixels: u8 or u16[H, W, C]; gray goes through the network as RGB, and
      comes back as the mean.
    network: [H, W, 3] -> [H', W', 3], uint8 or float32 in [0, 1].

  Returns:
    [H', W', C] of the same type.
  """
  colours = 3 if pixels.shape[2] > 2 else 1
  image = pixels[..., :colours]
  if colours == 1:
    image = np.repeat(image, 3, axis=2)
  if pixels.dtype == np.uint16:
    restored = network(image.astype(np.float32) / 65535)
    restored = np.rint(restored * 65535).astype(np.uint16)
  else:
    restored = network(image)
  if colours == 1:
    mean = restored.mean(axis=2, keepdims=True, dtype=np.float32)
    restored = np.rint(mean).astype(pixels.dtype)
  height, width = restored.shape[:2]
  alpha = enlarge(pixels[..., colours:], height=height, width=width)
  return np.concatenate([restored, alpha], axis=2)


def check_size(
  suffix: str, height: int, width: int, *, max_pixels: int
) -> None:
  """Raises ImageError if a result is too large to be written.

  Args:
    suffix: Of the file to write.
    height: Of the result, pixels.
    width: Of the result, pixels.
    max_pixels: Largest picture to be written.
  """
  size = f'its result has {width}x{height} pixels'
  if height * width > max_pixels:
    raise ImageError(
      f'{size}, more than {max_pixels:,}; raise --max_pixels to allow it'
    )
  longest = _MAX_SIDES.get(suffix, math.inf)
  if max(height, width) > longest:
    raise ImageError(
      f'{size}, and {suffix} holds at most {longest} a side; use --ext png'
    )


def unfinished(path: Path) -> Path:
  """Returns the name of a file until it is whole, for this process alone."""
  return path.with_name(f'{path.name}.{os.getpid()}.tmp')


def write(path: Path, picture: Picture) -> None:
  """Writes a picture in one step, so that no reader meets half of it.

  Args:
    path: A new file; its suffix is one that `output_suffix` returns.
    picture: The picture. Its metadata are kept, and it is stored without loss
      if it was before, unless as JPEG.
  """
  suffix, pixels = path.suffix, picture.pixels
  kept = _with_size(picture.metadata, *pixels.shape[:2])
  partial = unfinished(path)
  try:
    with partial.open('wb') as file:
      if suffix == '.tif':
        file.write(_tiff(pixels, kept))
      elif pixels.dtype == np.uint16:
        file.write(_png16(pixels, kept))
      else:
        options = _SAVE[suffix] | kept
        if suffix == '.png':
          options['pnginfo'] = PngImagePlugin.PngInfo()
          for name, content in _described(kept):
            options['pnginfo'].add(name, content)
        if suffix == '.webp' and picture.lossless:
          options |= {'lossless': True, 'exact': True}
        squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        Image.fromarray(np.ascontiguousarray(squeezed)).save(
          file, Image.registered_extensions()[suffix], **options
        )
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _with_size(
  metadata: dict[str, Any], height: int, width: int
) -> dict[str, Any]:
  """Returns metadata in which sizes that are stated are right."""
  kept = dict(metadata)
  if 'exif' in kept:
    kept['exif'] = _exif_with_size(kept['exif'], height, width)
  if 'xmp' in kept:
    xmp = _XMP_WIDTH.sub(rb'\g<1>%d' % width, kept['xmp'])
    kept['xmp'] = _XMP_HEIGHT.sub(rb'\g<1>%d' % height, xmp)
  return kept


def _exif_with_size(exif: bytes, height: int, width: int) -> bytes:
  """Returns EXIF as it is, but for the size.

  It is not encoded anew, since makers' notes count from its beginning.
  """
  sizes = dict.fromkeys(_EXIF_WIDTHS, width)
  sizes |= dict.fromkeys(_EXIF_HEIGHTS, height)
  patched = bytearray(exif)
  origin = len(b'Exif\0\0') if exif.startswith(b'Exif') else 0
  order = '<' if exif[origin : origin + 2] == b'II' else '>'
  entry = struct.Struct(f'{order}HHII')  # Tag, type, count, value.
  try:
    directories = list(struct.unpack_from(f'{order}I', exif, origin + 4))
    for start in directories:
      (count,) = struct.unpack_from(f'{order}H', exif, origin + start)
      first = origin + start + 2
      for place in range(first, first + entry.size * count, entry.size):
        tag, _, _, value = entry.unpack_from(exif, place)
        if tag in sizes:  # As LONG, since SHORT ends at 65535.
          entry.pack_into(patched, place, tag, TiffTags.LONG, 1, sizes[tag])
        elif tag == ExifTags.IFD.Exif and len(directories) == 1:
          directories.append(value)
  except struct.error:  # It is damaged from there on.
    pass
  return bytes(patched)


def _described(kept: dict[str, Any]) -> list[tuple[bytes, bytes]]:
  """Returns the chunks by which PNG tells what Pillow does not write."""
  chunks = list(kept.get('chunks', ()))
  if 'xmp' in kept:
    chunks.append((b'iTXt', _PNG_XMP + b'\0\0\0\0\0' + kept['xmp']))
  return chunks


def _png16(pixels: np.ndarray, kept: dict[str, Any]) -> bytes:
  """Encodes u16[H, W, C] as PNG, which Pillow cannot."""
  height, width, channels = pixels.shape
  rows = np.ascontiguousarray(pixels.astype('>u2')).view(np.uint8)
  rows = rows.reshape(height, -1)
  filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)  # 2: "up".
  filtered[0, 1:] = rows[0]
  np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
  colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  header = struct.pack('>2I5B', width, height, 16, colour_type, 0, 0, 0)
  chunks = [(b'IHDR', header)]
  if 'icc_profile' in kept:
    profile = zlib.compress(kept['icc_profile'])
    chunks.append((b'iCCP', b'ICC Profile\0\0' + profile))
  if 'exif' in kept:
    chunks.append((b'eXIf', kept['exif'].removeprefix(b'Exif\0\0')))
  if 'dpi' in kept:
    per_metre = [round(number / 0.0254) for number in kept['dpi']]
    chunks.append((b'pHYs', struct.pack('>2IB', *per_metre, 1)))
  chunks += _described(kept)
  chunks += [(b'IDAT', zlib.compress(filtered.tobytes())), (b'IEND', b'')]
  return _png(chunks)


def _tiff(pixels: np.ndarray, kept: dict[str, Any]) -> bytes:
  """Encodes u8 or u16[H, W, C] as TIFF; Pillow has no 16 bits, or no EXIF."""
  height, width, channels = pixels.shape
  depth = 8 * pixels.itemsize
  data = zlib.compress(np.ascontiguousarray(pixels, f'<u{depth // 8}'))
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  exif = Image.Exif()
  exif.load(kept.get('exif', b''))
  for tag in exif:
    directory = tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    value = exif.get_ifd(tag) if directory else exif[tag]
    if value:
      tags[tag] = value
  tags[TiffImagePlugin.IMAGEWIDTH] = width
  tags[TiffImagePlugin.IMAGELENGTH] = height
  tags[TiffImagePlugin.BITSPERSAMPLE] = (depth,) * channels
  tags[TiffImagePlugin.COMPRESSION] = 8  # Deflate.
  photometric = 2 if channels > 2 else 1  # RGB, or black is zero.
  tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = photometric
  tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
  tags[TiffImagePlugin.ROWSPERSTRIP] = height
  if channels in (2, 4):
    tags[TiffImagePlugin.EXTRASAMPLES] = 2  # Alpha, not premultiplied.
  if 'icc_profile' in kept:
    tags[TiffImagePlugin.ICCPROFILE] = kept['icc_profile']
  if 'xmp' in kept:
    tags[TiffImagePlugin.XMP] = kept['xmp']
  if 'dpi' in kept:
    tags[TiffImagePlugin.X_RESOLUTION] = kept['dpi'][0]
    tags[TiffImagePlugin.Y_RESOLUTION] = kept['dpi'][1]
    tags[TiffImagePlugin.RESOLUTION_UNIT] = 2  # Inches.
  tags[TiffImagePlugin.STRIPOFFSETS] = 0  # Counted from the end of the tags.
  tags[TiffImagePlugin.STRIPBYTECOUNTS] = len(data)
  return b'II*\0' + struct.pack('<I', 8) + tags.tobytes(8) + data
