"""Sources of image pairs: bundled photographs and folders."""

from __future__ import annotations

import importlib.resources
import itertools

import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import sources


def write(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def write_pairs(parent, names, height=20, width=24):
  """Writes pairs whose sharp image is the blurred one plus 1."""
  for name in names:
    rng = np.random.default_rng(len(str(parent / name)))
    pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
    write(parent / 'blur' / f'{name}.png', pixels)
    write(parent / 'sharp' / f'{name}.png', pixels + 1)


def folder(root, **settings):
  data = config_lib.base().data
  data.name, data.root = 'folder', str(root)
  data.update(settings)
  return data


def names(data, split, seed=0):
  return set(sources.make_source(data, split, seed=seed).names)


def test_bundled_photographs_are_small_and_free():
  bundle = importlib.resources.files('pynas_jax.data') / 'photos'
  files = {path.name: len(path.read_bytes()) for path in bundle.iterdir()}
  photos = {f'{n}.png' for n in itertools.chain(*sources.PHOTOS.values())}
  assert set(files) == photos | {'LICENSE', 'README.md'}
  assert sum(files.values()) <= 4_000_000
  assert 'CC0 1.0' in (bundle / 'LICENSE').read_text()


def test_photo_splits_share_no_image():
  data = config_lib.base().data
  digests = {
    split: {
      item['sharp'].tobytes()
      for item in map(
        sources.SharpPhotos(split).__getitem__,
        range(len(sources.PHOTOS[split])),
      )
    }
    for split in sources.SPLITS
  }
  assert [len(digests[split]) for split in sources.SPLITS] == [8, 2, 2]
  assert len(set.union(*digests.values())) == 12
  assert len(sources.make_source(data, 'test', seed=0)) == 8


def test_held_out_blurs_never_change():
  data = config_lib.base().data
  first = sources.make_source(data, 'test', seed=0)
  other = sources.make_source(data, 'test', seed=1)
  assert first.names == other.names
  assert len(set(first.names)) == len(first.names) == len(first.sizes)
  a, b, copy = first[1], other[1], first[2]
  np.testing.assert_array_equal(a['blurred'], b['blurred'])
  np.testing.assert_array_equal(a['sharp'], copy['sharp'])
  assert np.any(a['blurred'] != copy['blurred'])
  assert a['blurred'].dtype == a['sharp'].dtype == np.uint8
  assert a['blurred'].shape == a['sharp'].shape == (*first.sizes[1], 3)


def test_training_photographs_are_sharp_only():
  data = config_lib.base().data
  for split in ('train', 'validation'):
    source = sources.make_training_source(data, split, seed=0)
    assert source.names == sources.PHOTOS[split]
    assert set(source[0]) == {'name', 'sequence', 'sharp'}
    assert not source.paired


def test_unknown_split_is_refused():
  with pytest.raises(config_lib.SettingError, match='expected one of train'):
    sources.make_source(config_lib.base().data, 'tests', seed=0)


def test_folder_of_raw_gopro_layout(tmp_path):
  for sequence in ('GOPR1', 'GOPR2'):
    write_pairs(tmp_path / 'train' / sequence, [f'{i:02}' for i in range(10)])
  write_pairs(tmp_path / 'test' / 'GOPR3', ['01', '02'])
  write_pairs(tmp_path / 'test', ['flat'])
  (tmp_path / 'train' / 'GOPR1' / 'blur' / 'notes.txt').write_text('no image')
  write(tmp_path / 'train/GOPR1/blur_gamma/01.png', np.zeros((4, 4), np.uint8))
  data = folder(tmp_path)
  train, held = names(data, 'train'), names(data, 'validation')
  # Sequences are never divided, so one of the two is held out.
  assert len(train) == len(held) == 10
  assert {name[:11] for name in train} != {name[:11] for name in held}
  assert names(data, 'test') == {'test/GOPR3/01', 'test/GOPR3/02', 'test/flat'}
  assert names(data, 'validation') == held
  assert any(names(data, 'validation', seed) != held for seed in (1, 2, 3))
  source = sources.make_source(data, 'train', seed=0)
  assert source.sizes[0] == (20, 24)
  item = source[0]
  assert item['name'] == source.names[0]
  np.testing.assert_array_equal(item['blurred'] + 1, item['sharp'])


def test_folder_without_splits_is_split_by_seed(tmp_path):
  write_pairs(tmp_path, [f'{i:02}' for i in range(20)])
  data = folder(tmp_path)
  parts = [names(data, split) for split in sources.SPLITS]
  assert [len(part) for part in parts] == [16, 2, 2]
  assert len(set.union(*parts)) == 20


def test_validation_fraction(tmp_path):
  write_pairs(tmp_path / 'train', ['a', 'b', 'c'])
  assert len(names(folder(tmp_path), 'validation')) == 1
  data = folder(tmp_path, validation_fraction=0.0)
  assert len(names(data, 'train')) == 2
  with pytest.raises(config_lib.SettingError, match='validation_fraction'):
    sources.make_source(data, 'validation', seed=0)


def test_without_a_folder_of_test_images_some_are_held_out(tmp_path):
  for sequence in 'abc':
    write_pairs(tmp_path / 'train' / sequence, ['1', '2'])
  data = folder(tmp_path)
  parts = [names(data, split) for split in sources.SPLITS]
  assert [len(part) for part in parts] == [2, 2, 2]
  # Sequences are not divided.
  assert len({name[:7] for part in parts for name in part}) == 3
  assert all(len({name[:7] for name in part}) == 1 for part in parts)


def test_images_are_turned_upright_and_become_rgb(tmp_path):
  grey = np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)
  exif = Image.Exif()
  exif[0x0112] = 6
  write(tmp_path / 'test/blur/a.png', grey, exif=exif)
  write(tmp_path / 'test/sharp/a.PNG', np.rot90(grey, -1))
  source = sources.make_source(folder(tmp_path), 'test', seed=0)
  item = source[0]
  assert source.sizes == ((24, 20),)
  assert item['sharp'].shape == (24, 20, 3)
  np.testing.assert_array_equal(item['blurred'], item['sharp'])


@pytest.mark.parametrize('root', ['', 'nowhere'])
def test_missing_root(tmp_path, root):
  data = folder(tmp_path / root if root else '')
  with pytest.raises(config_lib.SettingError, match='data.root'):
    sources.make_source(data, 'train', seed=0)


def test_folder_without_pairs(tmp_path):
  (tmp_path / 'train' / 'blur').mkdir(parents=True)
  with pytest.raises(config_lib.SettingError, match='no images; expected'):
    sources.make_source(folder(tmp_path), 'train', seed=0)
  write_pairs(tmp_path / 'train', ['a', 'b'])
  with pytest.raises(config_lib.SettingError, match="the data.subset 'input'"):
    sources.make_source(folder(tmp_path, subset='input'), 'train', seed=0)


def test_unknown_names_of_pairs_are_refused(tmp_path):
  """They would be taken for sharp images, and blurred again."""
  write_pairs(tmp_path / 'train', ['a', 'b'])
  (tmp_path / 'train' / 'blur').rename(tmp_path / 'train' / 'shaken')
  with pytest.raises(config_lib.SettingError) as error:
    sources.make_source(folder(tmp_path), 'train', seed=0)
  assert 'hold the same pictures under the same names' in str(error.value)
  assert 'blur and sharp, ' in str(error.value)


def test_missing_partners_are_all_listed(tmp_path):
  write_pairs(tmp_path / 'train', [f'{i:02}' for i in range(14)])
  for i in range(12):
    (tmp_path / 'train' / 'sharp' / f'{i:02}.png').unlink()
  (tmp_path / 'train' / 'blur' / '13.png').unlink()
  with pytest.raises(config_lib.SettingError) as error:
    sources.make_source(folder(tmp_path), 'train', seed=0)
  text = str(error.value)
  assert '13 faults' in text
  for i in range(12):
    assert f'train/blur/{i:02}.png: no partner in train/sharp' in text
  assert 'train/sharp/13.png: no partner in train/blur' in text


def test_pair_of_unequal_sizes_is_named(tmp_path):
  write_pairs(tmp_path / 'test', ['d', 'e'])
  write(tmp_path / 'test/sharp/d.png', np.zeros((8, 9, 3), np.uint8))
  source = sources.make_source(folder(tmp_path), 'test', seed=0)
  with pytest.raises(config_lib.SettingError, match='test/d: .*8, 9, 3'):
    source[0]


def test_sharp_images_alone_are_degraded(tmp_path):
  for split, count in (('train', 4), ('test', 2)):
    for i in range(count):
      rng = np.random.default_rng(i)
      pixels = rng.integers(0, 255, (40, 44, 3), np.uint8)
      write(tmp_path / split / 'deep' / f'{i}.png', pixels)
  data = folder(tmp_path, blurs_per_photo=3)
  test = sources.make_source(data, 'test', seed=0)
  assert test.names[:4] == (
    'test/deep/0.png-0', 'test/deep/0.png-1', 'test/deep/0.png-2',
    'test/deep/1.png-0',
  )  # fmt: skip
  assert test.sizes == ((40, 44),) * 6
  assert np.any(test[0]['blurred'] != test[0]['sharp'])
  assert np.any(test[0]['blurred'] != test[1]['blurred'])
  train = sources.make_training_source(data, 'train', seed=0)
  assert len(train) == 3
  assert 'blurred' not in train[0]
  assert names(data, 'train').isdisjoint(names(data, 'validation'))


def test_one_sequence_is_divided_by_frame(tmp_path):
  write_pairs(tmp_path / 'train' / 'only', [f'{i:02}' for i in range(20)])
  data = folder(tmp_path)
  assert [len(names(data, s)) for s in sources.SPLITS] == [16, 2, 2]


def test_a_folder_of_validation_images_is_taken_as_it_is(tmp_path):
  write_pairs(tmp_path / 'train', ['a', 'b', 'c'])
  write_pairs(tmp_path / 'val', ['d'])
  data = folder(tmp_path)
  assert names(data, 'validation') == {'val/d'}
  assert [len(names(data, s)) for s in ('train', 'test')] == [2, 1]


def test_truncated_image_is_named(tmp_path):
  write_pairs(tmp_path / 'test', ['a'])
  path = tmp_path / 'test' / 'blur' / 'a.png'
  path.write_bytes(path.read_bytes()[:300])
  source = sources.make_source(folder(tmp_path), 'test', seed=0)
  with pytest.raises(config_lib.SettingError, match='blur/a.png'):
    source[0]


def test_two_images_of_one_name(tmp_path):
  write_pairs(tmp_path / 'test', ['a'])
  write(tmp_path / 'test/blur/a.jpg', np.zeros((20, 24, 3), np.uint8))
  with pytest.raises(config_lib.SettingError, match=r'a\.png: a\.jpg has the'):
    sources.make_source(folder(tmp_path), 'test', seed=0)
