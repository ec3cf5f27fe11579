"""All that is wrong with a folder is told at once, before any work."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax.data import check


def noise(seed, shape=(24, 32, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(path, **options)
  return path


@pytest.fixture
def good(tmp_path):
  """A folder of six training pairs and two test pairs, all good."""
  for split, count in (('train', 6), ('test', 2)):
    for i in range(count):
      for side in ('blur', 'sharp'):
        path = tmp_path / 'data' / split / side / f'{i}.png'
        save(path, noise(ord(split[1]) * 100 + ord(side[0]) + 7 * i))
  return tmp_path / 'data'


# Each spoils a good folder in one way; the text is what must be told.
def no_partner(root):
  (root / 'train/sharp/0.png').unlink()
  return 'train/blur/0.png: no partner in train/sharp'


def no_input(root):
  (root / 'test/blur/0.png').unlink()
  return 'test/sharp/0.png: no partner in test/blur'


def twin_names(root):
  save(root / 'train/blur/1.jpg', noise(1))
  return 'train/blur/1.png: 1.jpg has the same name'


def other_size(root):
  save(root / 'train/sharp/2.png', noise(2, (20, 32, 3)))
  return 'train/2: the degraded image is 24x32 (height x width), the sharp one'


def empty(root):
  (root / 'train/blur/3.png').write_bytes(b'')
  return 'train/blur/3.png: is empty'


def text(root):
  (root / 'train/sharp/3.png').write_text('no picture at all')
  return 'train/sharp/3.png: is no image'


def truncated_png(root):
  path = root / 'train/blur/4.png'
  path.write_bytes(path.read_bytes()[:-400])
  return 'train/blur/4.png: is truncated or damaged'


def damaged_png(root):
  path = root / 'train/sharp/4.png'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return 'train/sharp/4.png: is truncated or damaged'


def truncated_jpeg(root):
  path = save(root / 'train/blur/6.jpg', noise(3))
  path.write_bytes(path.read_bytes()[:-300])
  save(root / 'train/sharp/6.jpg', noise(4))
  return 'train/blur/6.jpg: is truncated or damaged'


def alpha(root):
  save(root / 'train/blur/7.png', noise(5, (24, 32, 4)))
  save(root / 'train/sharp/7.png', noise(6))
  return 'train/blur/7.png: has 4 channels (RGBA); expected 1 or 3'


def grey_partner(root):
  save(root / 'train/blur/8.png', noise(7))
  save(root / 'train/sharp/8.png', noise(8, (24, 32)))
  return 'train/8: the degraded image has 3 channels, the sharp one 1'


def sixteen_bits(root):
  image = Image.fromarray(noise(9, (24, 32)).astype(np.uint16) * 257)
  save(root / 'train/blur/9.png', image)
  save(root / 'train/sharp/9.png', noise(9, (24, 32)))
  return 'train/blur/9.png: has pixels of mode I;16; expected 8 bits'


def animation(root):
  frames = [Image.fromarray(noise(i)) for i in (10, 11)]
  path = root / 'train/blur/10.webp'
  frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
  save(root / 'train/sharp/10.png', noise(12))
  return 'train/blur/10.webp: has 2 frames; expected one image'


def leak(root):
  # Stored another way, yet the same pixels.
  image = Image.open(root / 'train/sharp/5.png')
  save(root / 'test/sharp/1.png', image, compress_level=0)
  return (
    'test/sharp/1.png: a test image, yet the same as train/sharp/5.png, which '
    'is not'
  )


FAULTS = (
  no_partner, no_input, twin_names, other_size, empty, text, truncated_png,
  damaged_png, truncated_jpeg, alpha, grey_partner, sixteen_bits, animation,
  leak,
)  # fmt: skip


def config_of(root):
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(root)
  return config


def test_good_folder_passes(good, capsys):
  check.main(config_of(good))
  shown = capsys.readouterr().out
  assert 'nothing is wrong' in shown
  assert 'test' in shown
  assert '2 pairs of 24x32 to 24x32' in shown


@pytest.mark.parametrize('spoil', FAULTS)
def test_each_fault_is_told(good, spoil):
  expected = spoil(good)
  with pytest.raises(config_lib.SettingError) as error:
    check.check_data(config_of(good))
  assert expected in str(error.value)
  assert ': 1 faults.' in str(error.value)


@pytest.mark.parametrize('module', ['main', 'data.check'])
def test_all_faults_are_told_at_once_with_status_2(good, root, module):
  expected = [spoil(good) for spoil in FAULTS]
  workdir = good.parent / 'run'
  command = [
    sys.executable, '-m', f'pynas_jax.{module}',
    '--config=configs/train.py:tiny', '--config.data.name=folder',
    f'--config.data.root={good}', '--config.data.crop=16',
  ]  # fmt: skip
  if module == 'main':
    command += ['--config.genotype=dmphn', f'--workdir={workdir}']
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  assert done.returncode == 2, done.stderr
  for line in expected:
    assert line in done.stderr
  assert f'{len(FAULTS)} faults' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not workdir.exists()


def test_what_was_good_is_not_decoded_again(good, tmp_path, monkeypatch):
  config, workdir = config_of(good), tmp_path / 'run'
  check.check_data(config, workdir=workdir)
  memory = json.loads((workdir / check.CHECKED).read_text())
  assert memory.keys() == {check.LEARNT, 'train+validation+test'}

  def refuse(*args, **kwargs):
    raise AssertionError('decoded again')

  with monkeypatch.context() as patch:
    patch.setattr(check.faults_lib, 'find_faults', refuse)
    check.check_data(config, workdir=workdir)
    with pytest.raises(AssertionError, match='decoded again'):
      check.check_data(config, workdir=workdir, splits=('test',))
  check.check_data(config, workdir=workdir, splits=('test',))
  assert 'test' in json.loads((workdir / check.CHECKED).read_text())
  for damaged in ('', '[1]', '{'):
    (workdir / check.CHECKED).write_text(damaged)
    check.check_data(config, workdir=workdir)
    assert json.loads((workdir / check.CHECKED).read_text()) == memory
  save(good / 'train/sharp/2.png', noise(2, (20, 32, 3)))
  with pytest.raises(config_lib.SettingError, match='1 faults'):
    check.check_data(config, workdir=workdir)
