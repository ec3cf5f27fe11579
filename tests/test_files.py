"""Finding pairs in the layouts that people have."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import files


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 8, 3), len(name), np.uint8)
    Image.fromarray(pixels).save(path)


def found(root, subset=''):
  """Returns {name: (split, sequence, blurred, sharp)} and the faults."""
  pairs, faults = files.find_pairs(root, subset=subset)
  show = lambda path: path and path.relative_to(root).as_posix()  # noqa: E731
  return {
    pair.name: (
      pair.split, pair.sequence, show(pair.blurred),
      *(show(path) for path in pair.sharp),
    )
    for pair in pairs
  }, faults  # fmt: skip


@pytest.mark.parametrize(
  ('inputs', 'targets'),
  [
    ('blur', 'sharp'), ('input', 'target'), ('input_crops', 'target_crops'),
    ('Blur', 'Sharp'), ('INPUT', 'GT'), ('lq', 'gt'), ('noisy', 'clean'),
    ('blurry', 'sharp'), ('LQ', 'HQ'),
  ],
)  # fmt: skip
def test_flat_folders(tmp_path, inputs, targets):
  for split in ('train', 'test'):
    touch(tmp_path, f'{split}/{inputs}/1.png', f'{split}/{targets}/1.jpg')
  assert found(tmp_path) == (
    {
      f'{split}/1': (
        split, '', f'{split}/{inputs}/1.png', f'{split}/{targets}/1.jpg'
      )
      for split in ('train', 'test')
    },
    [],
  )  # fmt: skip


def test_raw_gopro_has_two_inputs(tmp_path):
  for side in ('blur', 'blur_gamma', 'sharp'):
    touch(tmp_path, f'train/A/{side}/1.png')
  name = 'train/A/1'
  plain, faults = found(tmp_path)
  assert plain == {
    name: ('train', 'train/A', 'train/A/blur/1.png', 'train/A/sharp/1.png')
  }
  assert not faults
  gamma, _ = found(tmp_path, 'blur_gamma')
  assert gamma[name][2] == 'train/A/blur_gamma/1.png'
  assert found(tmp_path, 'input') == ({}, [])


def test_sequences_below_the_sides(tmp_path):
  touch(tmp_path, 'train/input/A/1.png', 'train/target/A/1.png')
  pairs, _ = found(tmp_path)
  assert pairs['train/A/1'][:2] == ('train', 'train/A')


def test_sharp_images_alone(tmp_path):
  touch(tmp_path, 'b.png', 'deep/a.webp', '__MACOSX/c.png', '.d.png')
  assert found(tmp_path) == (
    {
      'b.png': ('', '', None, 'b.png'),
      'deep/a.webp': ('', '', None, 'deep/a.webp'),
    },
    [],
  )


@pytest.mark.parametrize(
  ('name', 'split'),
  [('Train', 'train'), ('TEST', 'test'), ('valid', 'validation'),
   ('Testing', 'test'), ('training', 'train')],
)  # fmt: skip
def test_folders_of_splits_have_many_names(tmp_path, name, split):
  touch(tmp_path, f'{name}/blur/1.png', f'{name}/sharp/1.png')
  pairs, _ = found(tmp_path)
  assert {key: pair[:2] for key, pair in pairs.items()} == {
    f'{name}/1': (split, '')
  }


def test_many_folders_are_sequences(tmp_path):
  for i in range(files.MIN_SEQUENCES):
    touch(tmp_path, f'{i}/a.png')
  touch(tmp_path, 'b.png')
  pairs, _ = found(tmp_path)
  assert {pair[1] for pair in pairs.values()} == {'', *map(str, range(10))}
  assert pairs['3/a.png'][1] == '3'
  assert pairs['b.png'][1] == ''


def test_unknown_folders_of_pairs_are_found(tmp_path):
  photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  for folder, pixels in (('in', photo // 2), ('out', photo), ('c', ~photo)):
    for name in ('a', 'b'):
      path = tmp_path / 'train' / folder / 'deep' / f'{name}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path)
  train = tmp_path / 'train'
  assert files.find_alike(tmp_path) == (train / 'in', train / 'out')
  # Videos have the same names as well, but do not show the same.
  shutil.rmtree(train / 'in')
  assert files.find_alike(tmp_path) is None


def test_strays_are_lines_each(tmp_path):
  touch(
    tmp_path, 'test/blur/1.png', 'test/blur/2.png', 'test/sharp/2.png',
    'test/sharp/2.jpg', 'test/sharp/3.png',
  )  # fmt: skip
  pairs, faults = found(tmp_path)
  assert set(pairs) == {'test/2'}
  assert faults == [
    'test/sharp/2.png: 2.jpg has the same name',
    'test/blur/1.png: no partner in test/sharp',
    'test/sharp/3.png: no partner in test/blur',
  ]


def test_links_are_followed_once(tmp_path):
  touch(tmp_path, 'real/A/blur/1.png', 'real/A/sharp/1.png')
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'train').symlink_to(tmp_path / 'real')
  (tmp_path / 'real' / 'A' / 'loop').symlink_to(tmp_path / 'real')
  pairs, _ = files.find_pairs(tmp_path / 'data')
  assert [pair.name for pair in pairs] == ['train/A/1']


def test_halves_and_several_targets_are_read(tmp_path):
  pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
  path = tmp_path / 'both.png'
  Image.fromarray(pixels).save(path)
  pair = files.Pair('both', 'train', '', None, (path,), halves=True)
  item = files.read(pair)
  np.testing.assert_array_equal(item['sharp'], pixels[:, :4])
  np.testing.assert_array_equal(item['blurred'], pixels[:, 4:])
  assert files.size_of(pair) == (6, 4)
  assert pair.files == (path,)
  several = files.Pair('several', 'test', '', path, (path, path))
  assert files.read(several)['sharp'].shape == (2, 6, 8, 3)


def test_gray_of_16_bits_is_rounded_to_8(tmp_path):
  gray = np.arange(255, dtype=np.uint8).reshape(15, 17)
  path = tmp_path / 'deep.png'
  Image.fromarray(gray.astype(np.uint16) * 257 + 100).save(path)
  np.testing.assert_array_equal(
    files.decode(path), np.repeat(gray[..., None], 3, axis=-1)
  )


@pytest.mark.parametrize(
  ('mode', 'is_grey'),
  [('1', True), ('L', True), ('LA', True), ('I;16', True), ('P', False),
   ('RGB', False), ('RGBA', False)],
)  # fmt: skip
def test_files_of_one_channel_are_told_from_coloured_ones(
  tmp_path, mode, is_grey
):
  path = tmp_path / 'a.png'
  Image.new(mode, (8, 8)).save(path)
  pair = files.Pair('a', 'test', '', None, (path,))
  assert files.read(pair)['is_grey'] == is_grey


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
  path = tmp_path / 'a.tif'
  Image.fromarray(np.ones((8, 8), dtype)).save(path)
  with pytest.raises(config_lib.SettingError, match=r'a\.tif.*of mode [IF];'):
    files.decode(path)
