"""Every dataset, from a small folder of the layout that it is published in."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import builders
from pynas_jax.data import check
from pynas_jax.data import files
from pynas_jax.data import pipeline
from pynas_jax.data import sources
from pynas_jax.data.builders import base

SIZE = (12, 16)  # Height and width, pixels.


class Dummy:
  """Writes images, each of one value that says which it is.

  The value of a degraded image is one more than that of its sharp one.
  """

  def __init__(self, root):
    self.root, self.count = root, 0

  def image(self, value):
    return np.full((*SIZE, 3), value, np.uint8)

  def write(self, name, pixels):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {'quality': 100} if path.suffix == '.jpg' else {}
    Image.fromarray(pixels).save(path, **options)

  def sharp(self, name):
    self.count += 2
    self.write(name, self.image(self.count))

  def pair(self, blurred, sharp):
    self.sharp(sharp)
    self.write(blurred, self.image(self.count + 1))


def gopro(d):
  for side in ('blur_gamma', 'blur'):
    d.count = 0
    for sequence in ('train/372', 'train/374', 'train/378', 'test/384'):
      for i in (47, 48):
        name = f'GOPRO_Large/{sequence}/{{}}/{i:06}.png'
        d.pair(name.format(side), name.format('sharp'))
  return {'train': 6, 'test': 2}


def video_deblurring(d):
  for video in ('IMG_0001', '720p_240fps_1', 'IMG_0003', 'IMG_0049'):
    for i in range(2):
      name = f'quantitative_datasets/{video}/{{}}/{i:05}.jpg'
      d.pair(name.format('input'), name.format('GT'))
  return {'train': 4, 'test': 4}


def kohler(d):
  for i, k in ((1, 1), (1, 12), (4, 2)):
    for frame in (1, 2, 10):
      d.sharp(f'Image{i}/Kernel{k}/GroundTruth{i}_{k}_{frame}.png')
    d.write(f'Blurry{i}_{k}.png', d.image(d.count + 1))
  return {'test': 3}


def reds(d):
  for part, sequence in (('train', '000'), ('train', '239'), ('val', '000')):
    for i in range(2):
      name = f'{part}/{part}_{{}}/{sequence}/{i:08}.png'
      d.pair(name.format('blur'), name.format('sharp'))
  return {'train': 4, 'test': 2}


def realblur(d):
  home = 'RealBlur-J_ECC_IMCORR_centroid_itensity_ref'
  lists = {'train': ('scene001', 'scene002'), 'test': ('scene003',)}
  for split, scenes in lists.items():
    lines = []
    for scene, i in itertools.product(scenes, (1, 2)):
      sharp = f'{home}/{scene}/gt/gt_{i}.png'
      blurred = f'{home}/{scene}/blur/blur_{i}.png'
      d.pair(blurred, sharp)
      lines.append(f'{sharp} {blurred} \n')
    (d.root / f'RealBlur_J_{split}_list.txt').write_text(''.join(lines))
  return {'train': 4, 'test': 2}


def rain800(d):
  for part, count in (('training', 3), ('test_syn', 2)):
    for i in range(1, count + 1):
      d.count += 2
      halves = [d.image(d.count), d.image(d.count + 1)]
      d.write(f'rain/{part}/{i}.jpg', np.concatenate(halves, axis=1))
  return {'train': 3, 'test': 2}


def sidd_medium(d):
  for folder in (
    '0001_001_S6_00100_00060_3200_L', '0108_005_GP_00800_03200',
    '0200_010_GP_01600_03200',
  ):  # fmt: skip
    for i in (10, 11):
      name = f'SIDD_Medium_Srgb/Data/{folder}/{folder[:4]}_{{}}_SRGB_{i:03}.PNG'
      d.pair(name.format('NOISY'), name.format('GT'))
  return {'train': 6}


def bsd500(d):
  for part, count in (('train', 2), ('val', 2), ('test', 2)):
    for i in range(count):
      d.sharp(f'BSDS500/data/images/{part}/{i}.jpg')
  return {'train': 4, 'test': 2}


def div2k(d):
  for part, count in (('train', 3), ('valid', 1)):
    for i in range(count):
      d.sharp(f'DIV2K_{part}_HR/{i:04}.png')
  return {'train': 3, 'test': 1}


def flat(folder, count):
  def write(d):
    for i in range(count):
      d.sharp(f'{folder}/{i:03}.bmp')
    return {'test': count}

  return write


LAYOUTS = {
  'gopro': gopro, 'video_deblurring': video_deblurring, 'kohler': kohler,
  'reds': reds, 'realblur': realblur, 'rain800': rain800,
  'sidd_medium': sidd_medium, 'bsd500': bsd500, 'div2k': div2k,
  # Of these the true number of images.
  'set5': flat('Set5', 5), 'set14': flat('.', 14), 'set12': flat('Set12', 12),
  'bsd68': flat('BSD68', 68), 'kodak24': flat('kodak24', 24),
  'urban100': flat('Urban100', 100), 'bsd100': flat('BSD100', 100),
  'live1': flat('refimgs', 29), 'classic5': flat('classic5', 5),
}  # fmt: skip
PUBLISHED = {
  'gopro': (2103, 1111), 'video_deblurring': (5708, 1000), 'kohler': (0, 48),
  'reds': (24000, 3000), 'realblur': (3758, 980), 'rain800': (700, 100),
  'sidd_medium': (320, 0), 'bsd500': (300, 200), 'div2k': (800, 100),
}  # fmt: skip


def settings(name, tmp_path, **values):
  data = config_lib.base().data
  data.name, data.root = name, str(tmp_path / 'download')
  data.prepared_dir = str(tmp_path / 'prepared')
  data.update(values)
  return data


@pytest.fixture(params=LAYOUTS)
def dataset(request, tmp_path, monkeypatch):
  """The settings of a dataset that has been downloaded, and its counts."""
  name = request.param
  (tmp_path / 'download').mkdir()
  counts = LAYOUTS[name](Dummy(tmp_path / 'download'))
  if name in PUBLISHED:
    monkeypatch.setattr(builders.DATASETS[name], 'COUNTS', counts)
  return settings(name, tmp_path), counts


def test_every_dataset_can_be_set_and_is_tested():
  names = set(builders.DATASETS)
  assert names == set(LAYOUTS)
  assert {'photos', 'folder', *names} == set(config_lib.CHOICES['data.name'])


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_counts(name):
  counts = builders.DATASETS[name].COUNTS
  assert (counts.get('train', 0), counts.get('test', 0)) == PUBLISHED[name]


def test_dataset(dataset):
  data, counts = dataset
  prepared = builders.prepare(data)
  entries = prepared.entries
  found = {
    split: [e for e in entries if e.split == split] for split in counts
  }
  assert {split: len(own) for split, own in found.items()} == counts
  assert len({entry.name for entry in entries}) == len(entries)
  for split in counts:
    # Frames stay in order, so that a video can be made of them.
    names = [entry.name for entry in found[split]]
    for _, group in itertools.groupby(names, lambda x: x.rpartition('/')[0]):
      keys = [[int(n) for n in re.findall(r'\d+', name)] for name in group]
      assert keys == sorted(keys)
  for i, entry in enumerate(entries):
    item = prepared[i]
    assert item['name'] == entry.name
    assert item['sequence'] == entry.sequence
    assert entry.size == SIZE
    sharp = item['sharp']
    assert sharp.dtype == np.uint8
    assert ('blurred' in item) == prepared.paired
    if data.name == 'kohler':
      assert sharp.shape == (3, *SIZE, 3)
      sharp = sharp[-1]
    assert sharp.shape == (*SIZE, 3)
    if prepared.paired:
      assert item['blurred'].shape == (*SIZE, 3)
      assert abs(float(item['blurred'].mean()) - sharp.mean() - 1) < 0.6
  # Nothing is needed of the download once it is prepared.
  data.root = 'nowhere'
  again = builders.prepare(data)
  assert again.entries == entries


def test_files_of_one_channel_are_known(tmp_path):
  dummy = Dummy(tmp_path / 'download')
  flat('Set12', 12)(dummy)
  dummy.write('Set12/003.bmp', dummy.image(9)[..., 0])
  prepared = builders.prepare(settings('set12', tmp_path))
  found = [prepared[i]['is_grey'] for i in range(len(prepared))]
  assert found == [i == 3 for i in range(12)]


def test_splits_share_no_sequence(dataset):
  data, counts = dataset
  sequences = {}
  for split in sources.SPLITS:
    if split != 'test' and 'train' not in counts:
      with pytest.raises(config_lib.SettingError, match=f'the {split} split'):
        sources.make_source(data, split, seed=0)
      continue
    source = sources.make_source(data, split, seed=0)
    item = source[0]
    assert item['blurred'].shape == (*SIZE, 3)
    sequences[split] = {
      source[i]['sequence'] or source[i]['name'] for i in range(len(source))
    }
  for a, b in itertools.combinations(sequences.values(), 2):
    assert not a & b


def test_missing_download_gives_instructions(tmp_path):
  for name, cls in builders.DATASETS.items():
    for root in ('', str(tmp_path / 'nowhere'), str(tmp_path)):
      data = settings(name, tmp_path, root=root)
      with pytest.raises(config_lib.SettingError) as error:
        builders.prepare(data)
      assert repr(root) in str(error.value)
      assert cls.PAGE in str(error.value)
      assert cls.LAYOUT in str(error.value)
      for count in cls.COUNTS.values():
        assert str(count) in str(error.value)
  assert not list((tmp_path / 'prepared').rglob('*.array_record*'))


def test_missing_download_ends_with_status_2(root, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'pynas_jax.data.check',
     '--config=configs/train.py:tiny', '--config.data.name=gopro',
     f'--config.data.root={tmp_path}',
     f'--config.data.prepared_dir={tmp_path}/prepared'],
    cwd=root, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'https://seungjunnah.github.io/Datasets/gopro' in done.stderr
  assert 'Traceback' not in done.stderr


def test_check_of_a_dataset_that_is_for_testing_only(tmp_path, capsys):
  LAYOUTS['set5'](Dummy(tmp_path / 'download'))
  config = config_lib.base()
  config.data = settings('set5', tmp_path)
  with pytest.raises(config_lib.SettingError, match='the train split'):
    check.main(config)
  config.mode = 'evaluate'
  check.main(config)
  shown = capsys.readouterr().out
  assert '20 sharp images, to be degraded, of 12x16 to 12x16' in shown


def test_incomplete_download_is_refused(tmp_path, monkeypatch):
  cls = builders.DATASETS['gopro']
  monkeypatch.setattr(cls, 'COUNTS', {'train': 7, 'test': 2})
  gopro(Dummy(tmp_path / 'download'))
  (tmp_path / 'download/GOPRO_Large/test/384/blur/000047.png').unlink()
  with pytest.raises(config_lib.SettingError) as error:
    builders.prepare(settings('gopro', tmp_path))
  assert 'train: 6 found, but 7 published' in str(error.value)
  assert 'test: 1 found, but 2 published' in str(error.value)
  assert '000047.png: no partner' in str(error.value)


def test_gopro_has_two_inputs(tmp_path, monkeypatch):
  d = Dummy(tmp_path / 'download')
  monkeypatch.setattr(builders.DATASETS['gopro'], 'COUNTS', gopro(d))
  for path in (tmp_path / 'download').rglob('blur_gamma/*.png'):
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
  plain = builders.prepare(settings('gopro', tmp_path))
  gamma = builders.prepare(settings('gopro', tmp_path, subset='blur_gamma'))
  assert plain.entries == gamma.entries
  np.testing.assert_array_equal(
    gamma[0]['blurred'], 255 - plain[0]['blurred']
  )
  np.testing.assert_array_equal(gamma[0]['sharp'], plain[0]['sharp'])
  with pytest.raises(config_lib.SettingError, match="'blur' and 'blur_gamma'"):
    builders.prepare(settings('gopro', tmp_path, subset='J'))


def test_listed_paths_stay_in_their_folder(tmp_path, monkeypatch):
  cls = builders.DATASETS['realblur']
  monkeypatch.setattr(cls, 'COUNTS', realblur(Dummy(tmp_path / 'download')))
  path = tmp_path / 'download' / 'RealBlur_J_test_list.txt'
  path.write_text(path.read_text() + '../a.png /etc/b.png\nalone.png\n')
  with pytest.raises(config_lib.SettingError) as error:
    builders.prepare(settings('realblur', tmp_path))
  assert 'list.txt, line 3' in str(error.value)
  assert 'list.txt, line 4' in str(error.value)


@pytest.mark.parametrize('name', ['bsd500', 'gopro'])
def test_no_image_has_tiles_in_two_splits(tmp_path, monkeypatch, name):
  monkeypatch.setattr(base, 'TILE', 8)
  monkeypatch.setattr(base, 'TILE_STEP', 6)
  counts = LAYOUTS[name](Dummy(tmp_path / 'download'))
  monkeypatch.setattr(builders.DATASETS[name], 'COUNTS', counts)
  data = settings(name, tmp_path, tiles=True, validation_fraction=0.3)

  def images(source):
    # Without the number of a degradation, as of bsd500.
    return {re.sub(r'-\d+$', '', files.image_of(x)) for x in source.names}

  for seed in range(8):
    held_out = images(sources.make_source(data, 'validation', seed=seed))
    trained = images(sources.make_training_source(data, 'train', seed=seed))
    assert held_out
    assert trained
    assert not held_out & trained
    assert len(held_out | trained) == counts['train']
    halves = data.copy_and_resolve_references()
    halves.alpha_fraction = 0.5
    weights, alphas = (
      images(sources.make_training_source(halves, split, seed=seed))
      for split in sources.HALVES
    )
    assert not weights & alphas
    assert weights | alphas == trained


def test_tiles_cover_the_training_images(tmp_path, monkeypatch):
  monkeypatch.setattr(base, 'TILE', 8)
  monkeypatch.setattr(base, 'TILE_STEP', 6)
  monkeypatch.setattr(
    builders.DATASETS['gopro'], 'COUNTS', gopro(Dummy(tmp_path / 'download'))
  )
  rng = np.random.default_rng(0)
  for path in (tmp_path / 'download').rglob('*.png'):
    pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  data = settings('gopro', tmp_path, tiles=True)
  tiles = sources.make_training_source(data, 'train', seed=0)
  whole = sources.make_source(data, 'train', seed=0)
  assert set(tiles.sizes) == {(8, 8)}
  assert len(tiles) == 6 * len(whole)  # 2 rows of 3.
  items = {name: whole[i] for i, name in enumerate(whole.names)}
  covered = {name: np.zeros(SIZE, bool) for name in items}
  for i in range(len(tiles)):
    tile = tiles[i]
    name, _, place = tile['name'].partition('@')
    y, x = map(int, place.split(','))
    covered[name][y : y + 8, x : x + 8] = True
    assert tile['sequence'] == items[name]['sequence']
    for side in ('blurred', 'sharp'):
      np.testing.assert_array_equal(
        tile[side], items[name][side][y : y + 8, x : x + 8]
      )
  assert all(mask.all() for mask in covered.values())
  # Tiles of a sequence are held out with it.
  held = sources.make_training_source(data, 'validation', seed=0)
  assert not {n.partition('@')[0] for n in held.names} & set(items)
  # Scores are of whole images.
  assert sources.make_source(data, 'test', seed=0).sizes == (SIZE,) * 2
  config = config_lib.base()
  config.data = data
  batches = pipeline.make_train_iterator(
    config, split='train', batch_size=2, crop=8, seed=0
  )
  assert next(batches)['sharp'].shape == (2, 8, 8, 3)


def test_nothing_imports_tensorflow():
  code = (
    'import sys, pynas_jax.data.builders; print("tensorflow" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'False'
