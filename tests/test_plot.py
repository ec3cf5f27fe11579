"""Pictures are well formed, complete and not blank."""

from __future__ import annotations

import random
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
from PIL import Image
import pytest

from pynas_jax import drawing
from pynas_jax import genotype as genotype_lib
from pynas_jax import plot

SVG = '{http://www.w3.org/2000/svg}'


def network(scheme, widths=(4, 8), cells_per_stage=1, **settings):
  """A network with random operators, every operator at least once."""
  rng = random.Random(0)  # noqa: S311
  count = len(widths) * cells_per_stage
  operators = list(genotype_lib.OPERATORS) * 2 * count * len(scheme)
  halves = []
  for _ in range(2 * len(scheme)):
    half, operators = operators[:count], operators[count:]
    rng.shuffle(half)
    halves.append(tuple(half))
  scales = tuple(
    genotype_lib.ScaleGenotype(p, halves[2 * i], halves[2 * i + 1])
    for i, p in enumerate(scheme)
  )
  return genotype_lib.PyramidGenotype(
    scales, widths, cells_per_stage, **settings
  )


def image(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(path):
  with Image.open(path) as opened:
    return np.asarray(opened.convert('RGB'))


def test_grids_refine_each_other():
  grids = genotype_lib.grids
  assert grids((1, 2, 4, 8)) == ((1, 1), (2, 1), (2, 2), (4, 2))
  assert grids((1, 16)) == ((1, 1), (4, 4))
  assert grids((1, 3, 9)) == ((1, 1), (3, 1), (3, 3))
  assert grids((1, 2, 6)) == ((1, 1), (2, 1), (2, 3))
  for scheme in genotype_lib.all_schemes():
    rows, cols = zip(*grids(scheme), strict=True)
    assert tuple(r * c for r, c in grids(scheme)) == scheme
    for sides in (rows, cols):
      assert all(b % a == 0 for a, b in zip(sides, sides[1:], strict=False))


@pytest.mark.parametrize(
  'genotype',
  [
    network((1,), (8,)),
    network((1, 2, 4, 8), (32, 64, 128), 2),
    network((1, 3, 9), link='concat', upsample='transposed'),
    network((1, 16), (4,) * 6, global_residual=False, unshuffle=2),
    genotype_lib.dmphn(),
  ],
  ids=['one', 'four', 'odd', 'deep', 'dmphn'],
)
def test_architecture_shows_every_cell(genotype):
  svg = drawing.architecture_svg(genotype, subtitle='3 < 4 & "fast"')
  root = ElementTree.fromstring(svg)  # noqa: S314
  groups = root.findall(f'{SVG}g[@class="scale"]')
  assert len(groups) == len(genotype.scales)
  for group, scale in zip(groups, genotype.scales, strict=True):
    cells = group.findall(f'.//{SVG}rect[@class="cell"]')
    assert tuple(cell.get('data-operator') for cell in cells) == scale.cells
  text = ' '.join(root.itertext())
  assert '3 < 4 & "fast"' in text
  assert genotype_lib.format_scheme(genotype.scheme) in text
  legend = root.find(f'{SVG}g[@class="legend"]')
  used = {op for scale in genotype.scales for op in scale.cells}
  named = {title.text for title in legend.iter(f'{SVG}title')}
  assert named == used


def test_architecture_stays_inside_its_picture():
  root = ElementTree.fromstring(drawing.architecture_svg(network((1, 2, 4))))  # noqa: S314
  width, height = float(root.get('width')), float(root.get('height'))
  for rect in root.findall(f'./{SVG}g[@class="scale"]//{SVG}rect'):
    x, y, w, h = (float(rect.get(k)) for k in ('x', 'y', 'width', 'height'))
    assert min(x, y) >= 0 and x + w <= width and y + h <= height


def test_every_operator_has_a_style():
  assert set(drawing.OPERATOR_STYLES) == set(genotype_lib.OPERATORS)


def history():
  records = []
  for stage in ('search/trial0/scale2', 'search/trial0/scale1', 'train'):
    for step in range(1, 81):
      record = {'stage': stage, 'step': step, 'train/loss': 1 / step}
      if stage != 'train':
        record |= {'alpha/entropy': 1.6 - step / 80, 'alpha/tau': 5 / step}
      if step % 20 == 0:
        record['val/psnr'] = 25 + step / 50
      records.append(record)
  return records


@pytest.mark.parametrize(
  'records',
  [
    history(),
    [],
    [{'stage': 'train'}, {'step': 1}, {'stage': 'train', 'step': 1}],
    [{'stage': 'train', 'step': 1, 'train/loss': None, 'val/psnr': 25.0}],
    [{'stage': 'train', 'step': 3, 'train/loss': -25.0, 'note': 'text'}],
  ],
  ids=['whole', 'none', 'bare', 'null', 'one'],
)
def test_curves_are_drawn_from_whatever_is_there(tmp_path, records):
  plot.curves(records, tmp_path / 'curves.png')
  pixels = picture(tmp_path / 'curves.png')
  assert min(pixels.shape[:2]) >= 200
  assert pixels.std() > 1


def test_samples_show_all_pictures_in_colour(tmp_path):
  rows = [('first', *(image(70, 90, seed) for seed in range(3))),
          ('second', *(image(50, 120, seed) for seed in range(3)))]  # fmt: skip
  captions = [('24.1 dB', '26.0 dB', ''), ('22 dB', '23 dB', '')]
  plot.samples(rows, tmp_path / 'samples.png', captions=captions)
  pixels = picture(tmp_path / 'samples.png')
  assert pixels.shape[1] > 1200 and pixels.std() > 20
  plot.samples(rows[:1], tmp_path / 'one.png')
  assert picture(tmp_path / 'one.png').shape[0] < pixels.shape[0]


@pytest.mark.parametrize('shape', [(1, 1), (3, 200), (700, 900)])
def test_samples_take_any_size(tmp_path, shape):
  plot.samples([('x', *[image(*shape)] * 3)], tmp_path / 'samples.png')
  assert (tmp_path / 'samples.png').stat().st_size > 1000


def test_samples_show_the_busiest_part():
  pixels = np.full((200, 300, 3), 128, np.uint8)
  pixels[120:150, 220:250] = image(30, 30)
  top, left = plot._busiest(pixels, 20)
  assert 115 <= top <= 135 and 215 <= left <= 235


def test_samples_refuse_bad_rows(tmp_path):
  with pytest.raises(ValueError, match='at least one'):
    plot.samples([], tmp_path / 'samples.png')
  row = ('odd', image(8, 8), image(8, 9), image(8, 8))
  with pytest.raises(ValueError, match="'odd'.*one shape"):
    plot.samples([row], tmp_path / 'samples.png')


def test_drawing_imports_neither_jax_nor_pyplot():
  code = (
    'import sys\n'
    'from pynas_jax import logbook, plot\n'
    'assert not {"jax", "matplotlib.pyplot"} & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
