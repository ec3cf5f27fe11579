"""Tables and figures of the paper, from what runs saved."""

from __future__ import annotations

import json
import shutil

import numpy as np
from PIL import Image
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import report

CELLS = ('conv_3x3', 'zero')
NETWORK = genotype_lib.PyramidGenotype(
  scales=(genotype_lib.ScaleGenotype(1, CELLS, CELLS),),
  widths=(4, 8), cells_per_stage=1,
)  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A real run: a tiny network trained and scored."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  config = config_lib.shrink(config_lib.base())
  restorer = api.train(NETWORK, config, workdir=workdir)
  means = api.evaluate(restorer, config, workdir=workdir)
  values = api.make_report(restorer, config, means)
  values['latency_720p_ms'] = {'p50': 12.5, 'height': 720, 'width': 1280}
  api.write_json(workdir / 'report.json', values)
  return workdir


def cells_of(text):
  """Returns {first cell: other cells} of a Markdown table."""
  lines = [line for line in text.splitlines() if '|' in line]
  rows = [[cell.strip() for cell in x.strip('|').split('|')] for x in lines]
  return {row[0]: row[1:] for row in rows}


def test_a_run_becomes_all_tables_and_figures(run, tmp_path, capsys):
  comparison = tmp_path / 'results.json'
  groups = {
    'found': [30.5, 30.7], 'random': [29.0, 29.5, 30.0],
    'random_equal_cost': [], 'trivial': [30.0],
  }  # fmt: skip
  comparison.write_text(json.dumps({'dataset': 'pairs', **groups}))
  out = tmp_path / 'out'
  status = report.main(
    ['--runs', str(run), '--out', str(out), '--comparison', str(comparison)]
  )
  assert status == 0, capsys.readouterr().err
  values = json.loads((run / 'report.json').read_text())
  table = cells_of((out / 'table_1.md').read_text())
  size = 4 * values['params'] / 1e6
  assert table['tiny'] == [
    'photos', f'{values["psnr"]:.2f}', f'{values["ssim_3d"]:.4f}',
    f'{size:.2f}', '12.50',
  ]  # fmt: skip
  assert table['PyNAS_d (published)'][1:3] == ['30.62', '0.9405']
  table = cells_of((out / 'table_3.md').read_text())
  assert table['found'] == ['30.60', '0.14', '2']
  assert table['random'] == ['29.50', '0.50', '3']
  assert 'random equal cost' not in table
  for name in ('figure_1', 'figure_4', 'figure_5'):
    pixels = np.asarray(Image.open(out / f'{name}.png').convert('RGB'))
    assert min(pixels.shape[:2]) > 150
    assert pixels.std() > 5


@pytest.mark.parametrize(
  ('name', 'value'), [('task', None), ('psnr', 'x'), ('params', [])]
)
def test_reports_of_other_types_are_named(run, tmp_path, capsys, name, value):
  other = shutil.copytree(run, tmp_path / 'other')
  path = other / 'report.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
  out = tmp_path / 'out'
  assert report.main(['--runs', str(other), '--out', str(out)]) == 2
  assert f'its {name} is {value!r}' in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(run, tmp_path, capsys):
  (tmp_path / 'file').touch()
  out = tmp_path / 'file' / 'out'
  assert report.main(['--runs', str(run), '--out', str(out)]) == 2
  assert str(out) in capsys.readouterr().err


def test_times_of_other_sizes_do_not_stand_beside_published_ones(run):
  found = report.read_run(run)
  found['report']['latency_720p_ms']['height'] = 48
  assert cells_of(report.table_1([found]))['tiny'][-1] == ''


def test_strips_hold_blurry_restored_and_sharp(run):
  strips = sorted((run / 'strips').glob('*.png'))
  assert len(strips) == 2  # As many as there are test pairs.
  pixels = np.asarray(Image.open(strips[0]))
  side = pixels.shape[0]
  assert pixels.shape == (side, 3 * side, 3)
  assert np.any(pixels[:, :side] != pixels[:, 2 * side :])


def test_figures_show_pairs_that_all_runs_have_seen(run, tmp_path, monkeypatch):
  first = report.read_run(run)
  other = first | {'name': 'other', 'strips': dict(first['strips'])}
  name, path = next(iter(first['strips'].items()))
  pixels = np.asarray(Image.open(path)).copy()
  pixels[:, : len(pixels)] //= 2  # As blurred by another task.
  Image.fromarray(pixels).save(tmp_path / 'strip.png')
  other['strips'][name] = tmp_path / 'strip.png'
  shown = []
  monkeypatch.setattr(
    report.plot, 'side_by_side', lambda rows, *args: shown.extend(rows)
  )
  report.figures([first, first], tmp_path)
  assert [len(row) for row in shown] == [4, 4]
  report.figures([first, other], tmp_path)
  assert len(shown) == 3


def test_videos_have_columns_and_published_rows(run):
  one = report.read_run(run)
  one['scores']['sequences'] = {
    'A': {'psnr': 30.0, 'psnr_input': 25.0},
    'B': {'psnr': 32.0, 'psnr_input': 27.0},
  }
  table = cells_of(report.table_2([one]))
  assert table['Model'] == ['A', 'B', 'Average']
  assert table['tiny'][:2] == ['30.00', '32.00']
  assert table['input of tiny'][:2] == ['25.00', '27.00']
  assert not any('published' in name for name in table)
  one['report']['dataset'] = 'video_deblurring'
  table = cells_of(report.table_2([one]))
  assert table['PyNAS_d (published)'][0] == '30.11'


def test_published_averages_are_the_papers():
  # The paper's own last average is 0.012 above that of its row.
  printed = {
    'Input': 27.14, 'PSDeblur': 25.08, 'WFA': 28.35, 'Su et al.': 28.37,
    'DMPHN': 30.76, 'PyNAS_d': 31.01,
  }  # fmt: skip
  for name, values in report.TABLE_2.items():
    assert np.mean(values) == pytest.approx(printed[name], abs=0.013), name


def test_runs_are_told_apart(run, tmp_path):
  paths = [tmp_path / parent / 'net' for parent in 'ab']
  for path in paths:
    shutil.copytree(run, path)
  values = json.loads((paths[1] / 'report.json').read_text())
  values['task'] = 'denoising'
  (paths[1] / 'report.json').write_text(json.dumps(values))
  names = [*map(str, paths), str(paths[0])]
  assert report.main(['--out', str(tmp_path), '--runs', *names]) == 0
  table = cells_of((tmp_path / 'table_1.md').read_text())
  assert 'net (denoising)' in table
  assert f'{tmp_path}/a/net' in table
  assert 'net' not in table


@pytest.mark.parametrize('content', ['{', '[]', '{"psnr": 1}'])
def test_what_is_no_comparison_is_refused(run, tmp_path, capsys, content):
  (tmp_path / 'x.json').write_text(content)
  flags = ['--runs', str(run), '--out', str(tmp_path / 'out')]
  assert report.main([*flags, '--comparison', str(tmp_path / 'x.json')]) == 2
  assert 'x.json' in capsys.readouterr().err


@pytest.mark.parametrize('spoil', ['missing', 'broken', 'other'])
def test_unreadable_runs_end_with_status_2(run, tmp_path, capsys, spoil):
  bad = tmp_path / 'bad'
  bad.mkdir()
  if spoil == 'broken':
    (bad / 'report.json').write_text('{')
  if spoil == 'other':
    (bad / 'report.json').write_text('{"psnr": 30.0}')
  status = report.main(['--runs', str(run), str(bad), '--out', str(tmp_path)])
  assert status == 2
  assert str(bad / 'report.json') in capsys.readouterr().err
