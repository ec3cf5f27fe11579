"""What experiments draw their networks from."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest

from experiments import video_pairs
from experiments.box import int8
from experiments.box import make_data
from experiments.box import manifest
from experiments.box import release as box
from experiments.hinas import run as hinas
from experiments.random_vs_search import run
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook
from pynas_jax import spaces
from pynas_jax.data import files
from pynas_jax.deploy import release


@pytest.fixture
def config(tmp_path):
  (tmp_path / 'data').mkdir()
  flags = [f'--{name}={tmp_path}' for name in ('pairs', 'photos', 'out')]
  return run.make_config(run.parse_args('Compares.', flags))


def test_random_networks_cover_the_space(config):
  space = spaces.make_space(config)
  rng = np.random.default_rng(0)
  drawn = [run.random_genotype(rng, space) for _ in range(200)]
  schemes = {genotype_lib.format_scheme(g.scheme) for g in drawn}
  assert schemes == set(run.SCHEMES)
  cells = [op for g in drawn for scale in g.scales for op in scale.cells]
  shares = [cells.count(op) / len(cells) for op in space.operators]
  np.testing.assert_allclose(shares, 0.2, atol=0.03)
  assert len({g.digest() for g in drawn}) > 190
  shared = [run.random_genotype(rng, space, shared=True) for _ in range(50)]
  for genotype in shared:
    assert len({scale.cells for scale in genotype.scales}) == 1
    assert genotype.share_weights == (len(genotype.scales) > 1)


def test_equal_cost_is_equal(config):
  cheap = run.make_searches(config)['PyNAS_d, cost']
  config_lib.validate(cheap)
  rng = np.random.default_rng(1)
  drawn = run.equal_cost_genotypes(rng, cheap, 12.0, 600)
  for genotype in drawn:
    assert abs(run.count(genotype) / 12.0 - 1) <= run.EQUAL_COST
  # At the greatest width all but the skeleton is beyond this cost.
  widths = set(cheap.search.base_widths)
  assert {g.widths[0] for g in drawn} == widths - {max(widths)}
  designs = run.trivial_genotypes((1, 2), 12.0, config.model)
  assert set(designs) == {'conv_3x3', 'conv_5x5', 'conv_3x3_dil2'}
  for operator, genotype in designs.items():
    assert abs(run.count(genotype) / 12.0 - 1) <= run.EQUAL_COST
    assert {op for s in genotype.scales for op in s.cells} == {operator}


def test_photographs_join_the_videos_scene_by_scene(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'NUM_PHOTOS', {'train': 2, 'val': 1, 'test': 1})
  monkeypatch.setattr(run, 'PAIRS_PER_SCENE', 2)
  rng = np.random.default_rng(0)

  def write(path, noise=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = 128 + rng.integers(-noise, noise + 1, (200, 220, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)

  for split in ('train', 'val', 'test'):
    for i in range(3):
      write(tmp_path / 'photos' / split / f'{split}{i}.jpg')
  scenes = {'train': (*video_pairs.VALIDATION, 'walk'), 'test': ('street',)}
  for split, names in scenes.items():
    for name in names:
      # From 36 dB, which is as good as sharp, to 12 dB, which is lost.
      for i, noise in enumerate((7, 14, 22, 28, 110)):
        folder = tmp_path / 'pairs' / split / name
        write(folder / 'sharp' / f'{i}.png')
        write(folder / 'blur' / f'{i}.png', noise)
  flags = [f'--{name}={tmp_path / name}' for name in ('pairs', 'photos', 'out')]
  run.parse_args('Compares.', flags)
  pairs, faults = files.find_pairs(tmp_path / 'out' / 'data')
  assert not faults
  found = {}
  for pair in pairs:
    name = pair.sequence.split('/')[-1]
    found.setdefault(pair.split, {}).setdefault(name, []).append(pair)
  assert {k: len(v) for k, v in found['train'].items()} == {
    'walk': 2, 'photo_train0': 2, 'photo_train1': 2,
  }  # fmt: skip
  assert set(found['validation']) == {*video_pairs.VALIDATION, 'photo_val0'}
  assert set(found['test']) == {'street', 'photo_test0'}
  blurred = [path.name for path in (tmp_path / 'out').rglob('walk/blur/*')]
  assert sorted(blurred) == ['1.png', '3.png']


def test_the_box_learns_from_what_is_blurred_and_is_tested_on_all(tmp_path):
  rng = np.random.default_rng(0)
  sharp = np.full((224, 224, 3), 128, np.uint8)
  # By columns of tiles: 26 dB, and as good as sharp.
  noise = np.where(np.arange(224) < 112, 22, 1)[:, None]
  blurred = (sharp + rng.integers(-noise, noise + 1, (224, 224, 1))).astype(
    np.uint8
  )
  for split in ('train', 'test'):
    make_data.write_pairs(tmp_path / split / 'a', 'b', blurred, sharp, 0.0)
  written = {
    split: sorted(p.name for p in (tmp_path / split / 'a/blur').iterdir())
    for split in ('train', 'test')
  }
  assert written == {'train': ['b-0.png', 'b-2.png'], 'test': ['b-0.png']}


def test_a_data_set_without_a_folder_is_refused_at_once(capsys):
  flags = ['--task=denoise', '--train=a', '--out=b', '--test', 'set5']
  with pytest.raises(SystemExit, match='2'):
    hinas.parse_args(flags)
  assert "--test is 'set5'" in capsys.readouterr().err


def test_the_box_is_from_the_files_in_its_manifest(shared, tmp_path, capsys):
  data = shared / 'data'
  others = ('bigbuckbunny', 'sample_edit_list')
  videos = [p for p in (data / 'video').glob('*.mp4') if p.stem not in others]
  folders = ('photos_clic', 'photos_gb82', 'benchmarks/bsds500')
  photos = [data / name for name in folders]
  flags = ['--check', '--videos', *map(str, videos)]
  assert manifest.main([*flags, '--photos', *map(str, photos)]) == 0
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
  photos[1] = tmp_path
  assert manifest.main([*flags, '--photos', *map(str, photos)]) == 1
  said = capsys.readouterr().out
  assert 'other photo a.png' in said
  assert said.count('missing photo') == 25


def test_the_box_keeps_scores_curves_and_times(tmp_path, monkeypatch, capsys):
  rng = np.random.default_rng(0)
  for side in ('blur', 'sharp'):
    path = tmp_path / 'data' / 'test' / 'clip' / side / 'pairs1-000001-0.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
  models = tmp_path / 'models'
  before = json.loads((release.MODELS / 'fast' / 'config.json').read_text())
  for folder in (tmp_path / 'run_1', tmp_path / 'run_2', models / 'fast'):
    shutil.copytree(release.MODELS / 'fast', folder)
  shutil.copytree(release.MODELS / 'quality', models / 'quality')
  for i, run_dir in enumerate((tmp_path / 'run_1', tmp_path / 'run_2')):
    with logbook.Logbook(run_dir) as log:
      log.write('train', 10, {'validation/psnr': 30.0 + i})
  monkeypatch.setattr(release, 'MODELS', models)
  monkeypatch.setattr(box, 'HERE', tmp_path)
  flags = [f'--data={tmp_path / "data"}', '--name=fast', '--minutes=7']
  runs = ['--runs', str(tmp_path / 'run_1'), str(tmp_path / 'run_2')]
  box.main([*flags, *runs, '--keep_times'])
  after = json.loads((models / 'fast' / 'config.json').read_text())
  assert after['timings'] == before['timings']
  assert 'Trained for 7 core minutes' in after['limits']
  found = json.loads((tmp_path / 'fast.json').read_text())
  assert [row['pairs'] for row in found['rows']] == [
    'video, exposure 1', 'sharp, left alone',
  ]  # fmt: skip
  assert found['rows'][0]['psnr'] == after['metrics']['video, exposure 1: psnr']
  stages = [(r['stage'], r['validation/psnr']) for r in found['curves']]
  assert stages == [('run_1', 30.0), ('run_2', 31.0)]
  with Image.open(tmp_path / 'fast_curves.png') as image:
    assert image.width > image.height
  assert 'run_2' in found['command']
  with pytest.raises(SystemExit, match='2'):
    box.main([*flags, *runs, '--keep_times', '--name=quality'])
  assert 'another architecture' in capsys.readouterr().err


def test_the_box_is_scored_in_8_bits(tmp_path, monkeypatch):
  pytest.importorskip('openvino')
  with Image.open(box.BLURRY) as image:
    photo = image.crop((200, 200, 264, 264))
  pair = tmp_path / 'test' / 'photo_a'
  for side, pixels in (('blur', photo.resize((32, 32))), ('sharp', photo)):
    (pair / side).mkdir(parents=True)
    pixels.resize((64, 64)).save(pair / side / 'a.png')
  restorer = box.Restorer.from_pretrained('fast')
  rows = box.score(restorer, tmp_path)
  (tmp_path / 'fast.json').write_text(json.dumps({'rows': rows}))
  monkeypatch.setattr(box, 'HERE', tmp_path)
  flags = [f'--data={tmp_path}', '--names', 'fast']
  int8.main(flags)
  found = json.loads((tmp_path / 'int8.json').read_text())['rows']['fast']
  assert [row['psnr_float32'] for row in found] == [r['psnr'] for r in rows]
  for row in found:
    assert 0 < abs(row['psnr_int8'] - row['psnr_float32']) < 4
  rows[0]['number'] = 2
  (tmp_path / 'fast.json').write_text(json.dumps({'rows': rows}))
  with pytest.raises(SystemExit, match="1 pairs of 'photographs'; expected 2"):
    int8.main(flags)


def test_the_box_has_more_motion_for_training_alone(
  tmp_path, monkeypatch, capsys
):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (300, 300, 3), np.uint8)
  for side in ('blur', 'sharp'):
    for split in ('train', 'test'):
      path = tmp_path / 'pairs' / split / 'clip' / side / '000001.png'
      path.parent.mkdir(parents=True)
      Image.fromarray(pixels[:224, :224]).save(path)
  # By their names, for training, testing and validation.
  stems = {make_data.split_of(Path(f'{i}.png')): f'{i}' for i in range(99)}
  (tmp_path / 'photos').mkdir()
  for stem in stems.values():
    Image.fromarray(pixels).save(tmp_path / 'photos' / f'{stem}.png')
  narrow = Image.fromarray(pixels[:, :200])
  narrow.save(tmp_path / 'photos' / 'narrow.png')

  def make(out, *flags):
    monkeypatch.setattr('sys.argv', [
      'make_data', f'--video_pairs={tmp_path / "pairs"}', '--keep=1',
      f'--photos={tmp_path / "photos"}', f'--out={tmp_path / out}',
      '--per_photo=1', *flags,
    ])  # fmt: skip
    make_data.main()
    return {
      str(path.relative_to(tmp_path / out)): path.read_bytes()
      for path in (tmp_path / out).rglob('*.png')
    }

  plain, more = make('plain'), make('more', '--moves=2', '--reduce')
  assert len(stems) == 3
  assert {k: v for k, v in more.items() if k in plain} == plain
  said = ''.join(capsys.readouterr().err.split())  # It is wrapped anywhere.
  assert 'narrow.pngistoonarrow' in said
  assert not any('narrow' in name for name in more)
  new = sorted(k for k in more if k not in plain and '/blur/' in k)
  clip = 'train/clip/blur/pairs-000001-reduced-0.png'
  photo = f'train/photo_{stems["train"]}/blur/moved'
  assert new == [
    clip, *(f'{photo}0{i}-{tile}.png' for i in range(2) for tile in range(4))
  ]  # fmt: skip
  for name in new:
    with Image.open(tmp_path / 'more' / name) as image:
      assert image.size == (112, 112)


def test_motion_blurs_about_the_middle_of_the_exposure():
  y, x = np.mgrid[:96, :96]
  dot = np.exp(-((y - 48) ** 2 + (x - 48) ** 2) / 18).astype(np.float32)
  sharp = np.repeat(dot[..., None], 3, axis=2)
  peaks = []
  for seed in range(12):
    rng = np.random.default_rng(seed)
    light = make_data.move(rng, sharp)[..., 1].astype(np.float64)
    light = np.where(light > 0.1, light, 0) ** make_data.GAMMA
    centre = [(light * axis).sum() / light.sum() for axis in (y, x)]
    np.testing.assert_allclose(centre, 48, atol=2.5)
    peaks.append(light.max())
  assert max(peaks) > 0.9 and min(peaks) < 0.6  # Some hardly move.


@pytest.mark.parametrize(
  'flags',
  [
    ['--task=denoise', '--sigma=50', '--epochs=10'],
    ['--task=super_resolution', '--scale=3', '--crop=48', '--adam=1e-3'],
  ],
  ids=['denoise', 'x3'],
)
def test_a_shorter_search_of_hinas_keeps_its_proportions(flags, tmp_path):
  args = hinas.parse_args(
    [*flags, f'--train={tmp_path}', f'--out={tmp_path}', '--width=4']
  )
  c = hinas.make_config(args)
  config_lib.validate(c)
  s = c.search
  assert s.warmup_steps / s.num_steps == pytest.approx(0.2, abs=0.01)
  assert s.first_score / s.num_steps == pytest.approx(0.6, abs=0.01)
  assert s.num_steps % s.eval_every == 0
  assert c.hinas.width == 4
