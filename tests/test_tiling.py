"""Tiles: exact where a network looks no further, told where it does."""

import dataclasses

import jax
import numpy as np
import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax import spaces
from pynas_jax.deploy import restorer
from pynas_jax.deploy import tiling
from pynas_jax.spaces import base


def network(scheme=(1,), **options):
  """A small network of all operators, with weights large enough to matter."""
  cells = ('conv_5x5', 'conv_3x3_dil2')
  scales = tuple(
    genotype_lib.ScaleGenotype(p, cells, ('sep_conv_3x3', 'conv_3x3_x2'))
    for p in scheme
  )
  return compiled(
    genotype_lib.PyramidGenotype(
      scales=scales, widths=(4, 8), cells_per_stage=1, **options
    )
  )


def enlarging():
  """A network of super-resolution by 2; its reach is along several paths."""
  cell = (
    ((0, 'sep_conv_3x3'), (1, 'conv_5x5_dil2')),
    ((1, 'skip'), (2, 'conv_3x3_dil2')),
  )
  return compiled(
    genotype_lib.HinasGenotype(
      cells=(cell, cell), levels=(1, 0), width=4, stem_width=4, sep_repeats=2,
      scale=2,
    )  # fmt: skip
  )


def compiled(g):
  module = spaces.space_of(g).network(g)
  params = base.init_params(jax.random.key(0), module)
  return restorer.Restorer(g, jax.tree.map(lambda x: 2 * x, params))


def picture(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


ONE_SCALE = {
  'pixel_shuffle': network,
  'transposed': lambda: network(upsample='transposed', unshuffle=2),
  'enlarging': enlarging,
}


@pytest.fixture(scope='module', params=ONE_SCALE)
def one_scale(request):
  return ONE_SCALE[request.param]()


def test_reach_is_how_far_a_pixel_is_seen(one_scale):
  reach = tiling.context_of(one_scale.genotype).reach
  assert 10 < reach < 60
  image = picture(192, 192) / np.float32(255)
  whole = one_scale(image)
  seen = 0
  for y, x in ((96, 96), (97, 98), (99, 95)):  # Of any place in a stride.
    changed = image.copy()
    changed[y, x] = 1 - changed[y, x]
    places = np.nonzero((one_scale(changed) != whole).any(axis=2))
    ys, xs = (x // one_scale.genotype.scale for x in places)
    seen = max(seen, np.abs(ys - y).max(), np.abs(xs - x).max())
  assert 0.7 * reach <= seen <= reach


@pytest.mark.parametrize('size', [(150, 170), (161, 90), (31, 300)], ids=str)
def test_tiles_of_one_scale_are_exact(one_scale, size):
  context = tiling.context_of(one_scale.genotype)
  image = picture(*size)
  options = {
    'tile': 48, 'align': context.align, 'scale': one_scale.genotype.scale
  }  # fmt: skip
  for kind, tolerance in ((image, 1), (image / np.float32(255), 1e-5)):
    whole = one_scale(kind)
    cut = tiling.tiled(one_scale, kind, pad=context.pad, **options)
    assert (cut.dtype, cut.shape) == (kind.dtype, whole.shape)
    difference = np.abs(cut.astype(float) - whole.astype(float))
    assert difference.max() <= tolerance
  near = tiling.tiled(one_scale, image, pad=4, **options)
  assert np.abs(near.astype(int) - one_scale(image)).max() > 1


@pytest.mark.parametrize('size', [(64, 64), (65, 130), (201, 97), (7, 200)])
@pytest.mark.parametrize('pad', [0, 8, 40])
@pytest.mark.parametrize('fade', [0, 16, 999])
@pytest.mark.parametrize('align', [1, 4])
@pytest.mark.parametrize('scale', [1, 3])
def test_tiles_cover_every_pixel_once(size, pad, fade, align, scale):
  image = picture(*size)
  shapes, steps = set(), []

  def repeated(part):
    shapes.add(part.shape)
    return part.repeat(scale, axis=0).repeat(scale, axis=1)

  for kind in (image, image.astype(np.float32)):
    cut = tiling.tiled(
      repeated, kind, tile=32, pad=pad, fade=fade, align=align, scale=scale,
      on_tile=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    whole = kind.repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_allclose(cut, whole, rtol=1e-6)
  assert len(shapes) == 1  # One program is compiled for all of them.
  done, total = zip(*steps, strict=True)
  assert set(total) == {len(steps) // 2}
  assert done == 2 * tuple(range(1, len(steps) // 2 + 1))


@pytest.mark.parametrize('scale', [1, 2])
def test_neighbours_fade_into_each_other(scale):
  count = iter(range(100))

  def flat(part):  # Each tile another gray.
    height, width = (scale * side for side in part.shape[:2])
    return np.full((height, width, 3), 0.1 * next(count), np.float32)

  image = np.zeros((32, 96, 3), np.float32)
  cut = tiling.tiled(flat, image, tile=32, pad=16, fade=16, scale=scale)
  row = cut[7, :, 0]
  first, last = 24 * scale, 40 * scale
  assert row[0] == row[first - 1] == 0
  np.testing.assert_allclose(row[last : last + 16], 0.1)
  np.testing.assert_allclose(
    np.diff(row[first:last]), 0.1 / (16 * scale), rtol=1e-3
  )
  hard = tiling.tiled(flat, image, tile=32, pad=16, scale=scale)[7, :, 0]
  assert len(set(hard.tolist())) == 3


def test_whatever_looks_at_all_of_a_frame_is_told_so():
  patches = network((1, 2)).genotype
  assert tiling.context_of(patches).reach is None
  nafnet = genotype_lib.NafnetGenotype(8, (1,), 1, (1,))
  assert tiling.context_of(nafnet).reach is None


def test_what_tiles_change_is_measured_and_told_once():
  restore, said = network((1, 2)), []
  tiler = tiling.Tiler(
    restore, restore.genotype, tile=64, pad=16, say=said.append
  )
  image = picture(150, 200)
  cut = tiler(image)
  assert tiler(image[:40, :40]).shape == (40, 40, 3)
  np.testing.assert_array_equal(tiler(image), cut)
  (line,) = said
  assert line.startswith('200x150 pixels are restored in tiles of 64. This')
  assert 'looks at more than a tile: in the middle 150x150 pixels' in line
  assert 'no difference' not in line
  assert (cut != restore(image)).any()


@pytest.mark.parametrize('size', [(1, 200), (200, 1)])
def test_an_image_one_pixel_wide_has_tiles(size):
  restore, said = network((1, 2)), []
  tiler = tiling.Tiler(
    restore, restore.genotype, tile=64, pad=16, say=said.append
  )
  assert tiler(picture(*size)).shape == (*size, 3)
  assert len(said) == 1


def test_frames_are_whole_until_the_memory_is_short(one_scale, monkeypatch):
  context = tiling.context_of(one_scale.genotype)
  image = picture(180, 200)
  whole = one_scale(image)
  for memory, lines in ((1 << 40, 0), (1, 1)):
    monkeypatch.setattr(tiling, 'free_memory', lambda m=memory: m)
    said = []
    tiler = tiling.Tiler(one_scale, one_scale.genotype, say=said.append)
    restored = tiler(image)
    assert np.abs(restored.astype(int) - whole).max() <= 1
    assert len(said) == lines
  tile = tiling.largest_tile(context, memory=1)
  assert said == [
    f'200x180 pixels are restored in tiles of {tile}, as there is no memory '
    'for all of it at once; this network restores tiles as it does the whole.'
  ]


def test_threads_share_the_memory(one_scale, monkeypatch):
  context = tiling.context_of(one_scale.genotype)
  image, memory = picture(180, 200), 0
  while (
    tiling.largest_tile(context, memory=memory) + 2 * context.pad
  ) ** 2 < 180 * 200:
    memory += 1 << 20
  monkeypatch.setattr(tiling, 'free_memory', lambda: memory)
  for threads, lines in ((1, 0), (2, 1)):
    said = []
    tiling.Tiler(
      one_scale, one_scale.genotype, threads=threads, say=said.append
    )(image)
    assert len(said) == lines


def test_free_memory_is_of_this_machine():
  free = tiling.free_memory()
  assert 10 << 20 < free < 1 << 44


def test_tiles_grow_with_memory_and_shrink_with_the_network():
  narrow = genotype_lib.dmphn((1,))
  wide = dataclasses.replace(narrow, widths=(64, 128, 256))
  sides = [
    tiling.largest_tile(tiling.context_of(g), memory=m << 30)
    for g, m in ((wide, 1), (narrow, 1), (narrow, 4), (narrow, 16))
  ]
  assert sides == sorted(set(sides))
  assert all(side % 4 == 0 for side in sides)
