"""Tasks beside deblurring: what they read, how they are split and scored."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from skimage import color

from pynas_jax import config as config_lib
from pynas_jax import evaluate
from pynas_jax import metrics
from pynas_jax.config import SettingError
from pynas_jax.data import augment
from pynas_jax.data import check
from pynas_jax.data import degrade
from pynas_jax.data import pipeline
from pynas_jax.data import sources
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.nn import patches

TASKS = {
  'denoise': {'data.noise_sigma': 30.0},
  'super_resolution': {
    'data.scale': 3, 'space': 'hinas', 'search.refine_passes': 0
  },
  'jpeg': {'data.jpeg_quality': (10, 40)},
}


def settings(task, **changes):
  c = config_lib.shrink(config_lib.base())
  sides = {'data.crop': 24, 'data.eval_crop': 48}
  config_lib.override(c, {'task': task} | sides | TASKS[task] | changes)
  config_lib.validate(c)
  return c


def photo():
  return sources.SharpPhotos('test')[0]['sharp'].astype(np.float32) / 255


@pytest.mark.parametrize('task', TASKS)
def test_batches_and_held_out_pairs_have_the_tasks_input(task):
  c = settings(task)
  scale = 3 if task == 'super_resolution' else 1
  batches = pipeline.make_train_iterator(
    c, split='train', batch_size=2, crop=24, seed=0
  )
  batch, held_out = next(batches), pipeline.validation_batch(c)
  for pairs, side in ((batch, 24), (held_out, 48)):
    assert pairs['sharp'].shape == (2, side, side, 3)
    small = side // scale
    assert pairs['blurred'].shape == (2, small, small, 3)
    assert pairs['blurred'].min() >= 0 and pairs['blurred'].max() <= 1
    restored = patches.enlarge(jnp.asarray(pairs['blurred']), factor=scale)
    # The same place, and not the same picture.
    assert (metrics.psnr(restored, jnp.asarray(pairs['sharp'])) > 15).all()
    assert (metrics.psnr(restored, jnp.asarray(pairs['sharp'])) < 60).all()


@pytest.mark.parametrize('grey', [False, True])
def test_noise_is_as_strong_as_it_says_and_fits_into_a_file(grey):
  flat = np.full((200, 200, 3), 0.5, np.float32)
  recipe = degrade.Noise(sigma=30.0, grey=grey)
  noisy = recipe.degrade(np.random.default_rng(0), flat)
  assert noisy.std() * 255 == pytest.approx(30, rel=0.02)
  np.testing.assert_allclose(noisy * 255, np.rint(noisy * 255), atol=1e-4)
  assert (noisy[..., 0] == noisy[..., 1]).all() == grey


@pytest.mark.parametrize('jitter', [0.0, 0.2])
def test_noise_may_stay_as_papers_have_it(identity, jitter):
  changes = {'data.noise_clip': False, 'data.noise_sigma': 70.0}
  changes['data.saturation_jitter'] = jitter
  c = settings('denoise', **changes)
  source = sources.make_source(c.data, 'test', seed=0, task=c.task)
  batches = pipeline.make_train_iterator(
    c, split='train', batch_size=4, crop=24, seed=0
  )
  for pair in (next(batches), pipeline.validation_batch(c)):
    noise = (pair['blurred'] - pair['sharp']) * 255
    assert noise.std() == pytest.approx(70, rel=0.05)
    assert pair['blurred'].min() < 0 and pair['blurred'].max() > 1
  part = sources.Part(source, (0,))
  means, _, _ = evaluate.evaluate(restorer_lib.load(identity), part)
  # What a network returns is clipped.
  clipped = (np.clip(source[0]['blurred'], 0, 255) - source[0]['sharp']) / 255
  expected = -10 * np.log10(np.square(clipped).mean())
  assert means['psnr_float'] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_a_small_crop_is_a_crop_of_the_small_image(scale):
  """A training pair knows nothing of the border of its crop."""
  recipe = degrade.Downscale(scale)
  sharp = photo()[: 60 * scale, : 60 * scale]
  rng = np.random.default_rng(0)
  whole = recipe.degrade(rng, sharp)
  side = 12 * scale + recipe.margin
  start = 20 * scale
  wide = sharp[start : start + side, start : start + side]
  small, large = augment.centre_pair(
    recipe.degrade(rng, wide), wide, 12 * scale
  )
  low = start // scale + recipe.margin // (2 * scale)
  np.testing.assert_allclose(
    small, whole[low : low + 12, low : low + 12], atol=1e-6
  )
  high = low * scale
  size = 12 * scale
  np.testing.assert_array_equal(
    large, sharp[high : high + size, high : high + size]
  )


def test_noise_that_nobody_sees_is_refused():
  c = settings('denoise', **{'data.noise_sigma': 1.0})
  with pytest.raises(SettingError, match='data.noise_sigma is 1.0.* as 25'):
    check.check_data(c)


def test_pairs_have_noise_of_their_own(tmp_path):
  for split, side in itertools.product(('train', 'test'), ('input', 'target')):
    folder = tmp_path / split / side
    folder.mkdir(parents=True)
    for name in 'abcd':
      Image.new('RGB', (64, 64)).save(folder / f'{name}.png')
  changes = {
    'data.name': 'folder', 'data.root': str(tmp_path), 'data.noise_sigma': 1.0
  }  # fmt: skip
  c = settings('denoise', **changes)
  assert sources.make_source(c.data, 'test', seed=0, task=c.task).paired


def test_jpeg_draws_its_quality():
  rng = np.random.default_rng(0)
  recipe = degrade.Jpeg((10, 40))
  drawn = [recipe.degrade(rng, photo()[:32, :32]) for _ in range(8)]
  every = {degrade.jpeg(photo()[:32, :32], quality=q).tobytes()
           for q in range(10, 41)}  # fmt: skip
  assert {image.tobytes() for image in drawn} <= every
  assert len({image.tobytes() for image in drawn}) > 1


def test_weights_alphas_and_validation_divide_the_training_images():
  c = config_lib.override(config_lib.base(), {'data.alpha_fraction': 0.5})
  splits = (*sources.search_splits(c.data), 'validation')
  assert splits == ('weights', 'alphas', 'validation')
  weights, alphas, held_out = (
    sources.make_training_source(c.data, split, seed=3) for split in splits
  )
  assert len(weights) == len(alphas) == 4
  both = [*weights.names, *alphas.names]
  assert sorted(both) == sorted(sources.PHOTOS['train'])
  assert not set(both) & set(held_out.names)
  assert weights[1]['name'] == weights.names[1]
  assert weights.sizes[0] == weights[0]['sharp'].shape[:2]
  other = sources.make_training_source(c.data, 'weights', seed=4)
  assert other.names != weights.names
  assert sources.search_splits(config_lib.base().data) == (
    'train', 'validation'
  )  # fmt: skip
  c.data.alpha_fraction = 0.01
  with pytest.raises(SettingError, match='alpha_fraction is 0.01 of 8'):
    sources.make_training_source(c.data, 'alphas', seed=3)


def test_grey_images_are_pillows_in_three_channels():
  c = settings('denoise', **{'data.grey': True})
  plain = sources.make_training_source(settings('denoise').data, 'test', seed=0)
  grey = sources.make_training_source(c.data, 'test', seed=0)
  assert grey.names == plain.names and grey.sizes == plain.sizes
  expected = Image.fromarray(plain[0]['sharp']).convert('L')
  for channel in range(3):
    np.testing.assert_array_equal(grey[0]['sharp'][..., channel], expected)
  pair = sources.make_source(c.data, 'test', seed=0, task='denoise')[0]
  for image in (pair['blurred'], pair['sharp']):
    assert (image == image[..., :1]).all()
  assert pair['is_grey']


def test_super_resolution_makes_its_own_small_images(tmp_path):
  for split, side in itertools.product(('train', 'test'), ('blur', 'sharp')):
    folder = tmp_path / split / side
    folder.mkdir(parents=True)
    for name in 'abcd':
      Image.new('RGB', (61, 50)).save(folder / f'{name}.png')
  c = settings(
    'super_resolution', **{'data.name': 'folder', 'data.root': str(tmp_path)}
  )
  with pytest.raises(SettingError, match='sharp images alone'):
    sources.make_source(c.data, 'test', seed=0, task=c.task)
  for split in ('train', 'test'):
    for path in (tmp_path / split / 'sharp').iterdir():
      path.rename(tmp_path / split / path.name)
    for side in ('blur', 'sharp'):
      for path in (tmp_path / split / side).iterdir():
        path.unlink()
      (tmp_path / split / side).rmdir()
  source = sources.make_source(c.data, 'test', seed=0, task=c.task)
  assert source.sizes[0] == (48, 60)  # What 3 divides.
  assert source[0]['sharp'].shape == (48, 60, 3)
  assert source[0]['blurred'].shape == (16, 20, 3)


# Scores.


def test_luminance_is_that_of_ycbcr():
  image = photo()[None, :20, :30]
  reference = color.rgb2ycbcr(image)[..., :1] / 255
  np.testing.assert_allclose(
    metrics.luminance(jnp.asarray(image)), reference, atol=1e-6
  )


@pytest.mark.parametrize('scale', [1, 2])
def test_squares_are_put_back_in_their_places(scale):
  calls = []

  def restorer(batch):
    calls.append(batch.shape)
    return jnp.repeat(jnp.repeat(batch, scale, axis=1), scale, axis=2)

  x = jnp.asarray(photo()[None, :50, :37])
  restored = evaluate.restore_patches(
    restorer, x, patch=16 * scale, scale=scale
  )
  np.testing.assert_array_equal(restored, restorer(x))
  assert calls[0] == (4 * 3, 16, 16, 3)


@pytest.mark.parametrize(
  ('name', 'count', 'scale', 'published'),
  [
    ('set5', 5, 4, 28.42), ('set14', 14, 2, 30.24), ('set14', 14, 3, 27.55),
    ('set14', 14, 4, 26.00),
  ],
)  # fmt: skip
def test_bicubic_is_what_papers_report(
  shared, tmp_path, monkeypatch, name, count, scale, published
):
  """Also where a file has one channel, as one of Set14."""
  (tmp_path / 'test').symlink_to(shared / 'data/benchmarks' / name)
  # As many images as sizes, for each of which they would be compiled.
  none = {'ssim': jnp.zeros(1), 'ssim_3d': jnp.zeros(1)}
  monkeypatch.setattr(
    evaluate, '_score', lambda *images: none | {'psnr': metrics.psnr(*images)}
  )
  c = settings(
    'super_resolution',
    **{'data.name': 'folder', 'data.root': str(tmp_path), 'data.scale': scale},
  )
  source = sources.make_source(c.data, 'test', seed=0, task=c.task)
  assert len(source) == count

  def restorer(batch):
    return patches.enlarge(batch, factor=scale)

  means, _, _ = evaluate.evaluate(restorer, source, num_samples=0)
  assert means['psnr'] == pytest.approx(published, abs=0.02)
