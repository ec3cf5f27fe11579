"""Frames too large for the memory: restored in tiles that overlap.

Images are uint8 or float32 [H, W, 3]; super-resolution returns them `scale`
times as high and wide. A tile sees `pad` pixels around the part that it
restores; all sizes are in pixels of the input. Where that is all that the
network looks at, tiles change nothing: this holds for one scale of
convolutions, whose reach the genotype tells. Patches are cut at fractions of
the frame and channel attention averages over it, so that other networks see
something else in a tile; there, neighbours fade into each other.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import itertools
import math
from pathlib import Path

import chex
import numpy as np

from pynas_jax import parallel
from pynas_jax.genotype import Genotype
from pynas_jax.spaces import space_of

ALIGN, PAD = 16, 64  # Pixels, for networks whose tiles are not exact.
MIN_TILE = 64
# Half of the free memory may go into feature maps. XLA holds 1.5 to 2.3 times
# what the largest layer reads and writes; the rest is for what it packs.
MEMORY_SHARE, LAYERS_HELD = 0.5, 4
UNKNOWN_BYTES = 512  # Per pixel, of a layer of 64 channels.
_SIDE = 1536  # Any frame side that strides and patches divide.

Restore = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Context:
  """What a network looks at.

  Attributes:
    reach: Pixels to each side that a pixel depends on; None is the whole frame.
    align: Tiles start at multiples of it, pixels.
    bytes_per_pixel: Of what the largest layer reads and writes, in float32.
  """

  reach: int | None
  align: int
  bytes_per_pixel: float

  @property
  def pad(self) -> int:
    """Pixels around a tile, unless somebody wants another number."""
    return PAD if self.reach is None else self.reach


def context_of(genotype: Genotype) -> Context:
  """Returns what the network of a genotype looks at.

  >>> from pynas_jax.genotype import dmphn
  >>> context_of(dmphn((1,)))
  Context(reach=70, align=4, bytes_per_pixel=256.0)
  >>> context_of(dmphn((1, 2))).reach is None
  True
  """
  space = space_of(genotype)
  if hasattr(space, 'reach'):
    return Context(space.reach(genotype), 1, 4 * space.values(genotype))
  if not hasattr(space, 'layers'):
    return Context(None, ALIGN, UNKNOWN_BYTES)
  groups = space.layers(genotype, height=_SIDE, width=_SIDE)
  layers = list(itertools.chain(*groups))
  values = max(layer.values for layer in layers)
  bytes_per_pixel = 4 * values / _SIDE**2
  if any(layer.batch > 1 for layer in layers):
    return Context(None, ALIGN, bytes_per_pixel)
  pitches = [_SIDE // layer.height for layer in layers]
  align = max(pitches)
  # Strides round a position down, by less than the largest of them.
  reach = align - 1 + sum(
    pitch * layer.reach for pitch, layer in zip(pitches, layers, strict=True)
  )  # fmt: skip
  return Context(reach, align, bytes_per_pixel)


def free_memory() -> int:
  """Returns the bytes that the device, or else the machine, has left."""
  stats = parallel.device().memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  free = [4 << 30]  # Where nothing tells.
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
    table = dict(line.split(':') for line in lines)
    free = [1024 * int(table['MemAvailable'].split()[0])]
    group = Path('/sys/fs/cgroup')  # A container's limit.
    limit, used = (
      int((group / f'memory.{name}').read_text()) for name in ('max', 'current')
    )
    stat = (group / 'memory.stat').read_text().splitlines()
    held = dict(line.split() for line in stat)
    # Copies of files, which make room.
    used -= int(held['inactive_file']) + int(held['active_file'])
    free.append(limit - used)
  except (OSError, KeyError, ValueError):  # Another system, or no limit.
    pass
  return max(0, min(free))


def largest_tile(context: Context, *, memory: int) -> int:
  """Returns the side of the largest tile, without its surroundings, in pixels.

  >>> largest_tile(Context(51, 4, bytes_per_pixel=256.0), memory=2**30)
  620
  """
  pixels = MEMORY_SHARE * memory / (LAYERS_HELD * context.bytes_per_pixel)
  side = math.isqrt(int(pixels)) - 2 * _up(context.pad, context.align)
  return max(MIN_TILE, side // context.align * context.align)


def _up(size: int, align: int) -> int:
  return -(-size // align) * align


@dataclasses.dataclass(frozen=True)
class _Span:
  """A tile along one axis."""

  seen: slice  # Of the image.
  used: slice  # Of the tile once it is restored.
  written: slice  # Of the restored image.
  fade: int  # Pixels of it that fade in over what is there.


def _spans(
  size: int, *, tile: int, pad: int, fade: int, scale: int
) -> list[_Span]:
  """Cuts an axis into tiles that all see equally much."""
  seen = min(tile + 2 * pad, size)
  spans = []
  for first in range(0, size, tile):
    start = min(max(first - pad, 0), size - seen)
    last = min(first + tile + fade // 2, size)
    before = fade // 2 if first else 0
    spans.append(
      _Span(
        seen=slice(start, start + seen),
        used=slice(scale * (first - before - start), scale * (last - start)),
        written=slice(scale * (first - before), scale * last),
        fade=2 * scale * before,
      )
    )
    if last == size:
      break
  return spans


def _put(target: np.ndarray, part: np.ndarray, fade: int) -> None:
  """Writes a tile, whose beginning along the first axis fades in."""
  covered = min(fade, len(part))
  if covered:
    weight = ((np.arange(covered) + 0.5) / fade).astype(np.float32)
    weight = weight.reshape(-1, *[1] * (part.ndim - 1))
    old = target[:covered].astype(np.float32)
    mixed = old + weight * (part[:covered].astype(np.float32) - old)
    if part.dtype == np.uint8:
      mixed = np.rint(mixed)
    target[:covered] = mixed
  target[covered:] = part[covered:]


def tiled(
  restore: Restore,
  image: np.ndarray,
  *,
  tile: int,
  pad: int,
  fade: int = 0,
  align: int = 1,
  scale: int = 1,
  on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
  """Restores an image in tiles of one size.

  Args:
    restore: [h, w, 3] -> [scale * h, scale * w, 3], of the same type.
    image: u8[H, W, 3] or f32[H, W, 3].
    tile: Side of the part that a tile restores, pixels; made a multiple of
      `align`, as is `pad`.
    pad: Pixels around it that the network sees as well.
    fade: Pixels over which neighbours fade into each other, up to `2 * pad`.
    align: The stride of the network.
    scale: Factor by which it enlarges.
    on_tile: Is told the tiles done, and all.

  Returns:
    The restored image, [scale * H, scale * W, 3] of the same type.
  """
  chex.assert_shape(image, (None, None, 3))
  tile, pad = _up(tile, align), _up(pad, align)
  fade = min(fade, 2 * pad, tile) // 2 * 2
  height, width = image.shape[:2]
  # As networks do it: so every tile can start at a multiple of the stride.
  fill = [(0, -height % align), (0, -width % align), (0, 0)]
  if np.any(fill):
    image = np.pad(image, fill, mode='reflect')
  rows, columns = (
    _spans(size, tile=tile, pad=pad, fade=fade, scale=scale)
    for size in image.shape[:2]
  )
  shape = (scale * image.shape[0], scale * image.shape[1], 3)
  restored = np.empty(shape, image.dtype)
  done = itertools.count(1)
  for row in rows:
    band = np.empty_like(restored[row.written]).swapaxes(0, 1)
    for column in columns:
      part = restore(image[row.seen, column.seen])[row.used, column.used]
      _put(band[column.written], part.swapaxes(0, 1), column.fade)
      on_tile(next(done), len(rows) * len(columns))
    _put(restored[row.written], band.swapaxes(0, 1), row.fade)
  return restored[: scale * height, : scale * width]


class Tiler:
  """A network for frames of any size: whole where they fit, else in tiles.

  What it does is told once, as is by how much tiles change the picture.

  Attributes:
    scale: Factor by which it enlarges.
  """

  def __init__(
    self,
    restore: Restore,
    genotype: Genotype,
    *,
    tile: int = 0,
    pad: int | None = None,
    threads: int = 1,
    say: Callable[[str], None] = print,
  ):
    """Wraps a network.

    Args:
      restore: The network, [H, W, 3] -> [scale * H, scale * W, 3].
      genotype: Its architecture.
      tile: Side of the tiles, pixels; 0 is the whole frame, or the largest
        tiles for which there is memory.
      pad: Pixels around a tile; None is as many as the network looks at.
      threads: How many restore at once; they share the memory.
      say: Is told what is done.
    """
    self.scale = genotype.scale
    self._restore = restore
    self._context = context_of(genotype)
    self._tile, self._threads, self._say = tile, threads, say
    self._pad = self._context.pad if pad is None else pad
    reach = self._context.reach
    self._exact = reach is not None and self._pad >= reach
    self._largest = 0
    self._said = False

  def __call__(
    self,
    image: np.ndarray,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
  ) -> np.ndarray:
    """Restores u8 or f32[H, W, 3]; `on_tile` is told how far it is."""
    # The memory is asked once: later, the network itself holds some.
    self._largest = self._largest or largest_tile(
      self._context, memory=free_memory() // self._threads
    )
    height, width = image.shape[:2]
    tile = self._tile or self._largest
    if self._tile:
      fits = max(height, width) <= tile
    else:
      fits = height * width <= (tile + 2 * self._pad) ** 2
    if fits:
      return self._restore(image)
    if not self._said:
      self._said = True
      self._tell(image, tile)
    return self._cut(image, tile, on_tile)

  def _cut(self, image: np.ndarray, tile: int, on_tile=lambda *_: None):
    return tiled(
      self._restore, image, tile=tile, pad=self._pad, on_tile=on_tile,
      fade=0 if self._exact else self._pad, align=self._context.align,
      scale=self.scale,
    )  # fmt: skip

  def _tell(self, image: np.ndarray, tile: int) -> None:
    """Says how images are cut, and what that does to the middle of one."""
    height, width = image.shape[:2]
    why = '' if self._tile else ', as there is no memory for all of it at once'
    text = f'{width}x{height} pixels are restored in tiles of {tile}{why}'
    if self._exact:
      self._say(f'{text}; this network restores tiles as it does the whole.')
      return
    # Whole, the middle must fit; in tiles, it should be cut.
    side = min(height, width, 2 * (tile + self._pad), self._largest)
    tile = max(1, min(tile, side // 2))
    top, left = (height - side) // 2, (width - side) // 2
    middle = image[top : top + side, left : left + side]
    whole, cut = (
      np.asarray(x, np.float32) * (1 if x.dtype == np.float32 else 1 / 255)
      for x in (self._restore(middle), self._cut(middle, tile))
    )
    error = float(np.mean((whole - cut) ** 2))
    psnr = f'{-10 * math.log10(error):.1f} dB' if error else 'no difference'
    self._say(
      f'{text}. This network looks at more than a tile: in the middle '
      f'{side}x{side} pixels, tiles of {tile} and the whole differ by '
      f'{255 * np.abs(whole - cut).max():.1f} of 255 at most (PSNR: {psnr}).'
    )
