"""Scores of images: whole, registered, against the best match, by sequence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics as sk_metrics

from pynas_jax import evaluate
from pynas_jax import metrics
from pynas_jax import registration


def photo(seed=0, size=64):
  rng = np.random.default_rng(seed)
  image = ndimage.gaussian_filter(rng.random((size, size, 3)), (1.5, 1.5, 0))
  return (image - image.min()) / np.ptp(image)


def quantized(image):
  return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


@dataclasses.dataclass
class Items:
  """A source of given items."""

  items: list
  protocol: str = 'whole'
  paired = True

  def __len__(self):
    return len(self.items)

  def __getitem__(self, index):
    return self.items[index]


def item(sharp, name='a', sequence='', noise=0.1, blurred=None):
  if blurred is None:
    rng = np.random.default_rng(7)
    blurred = quantized(sharp / 255 + noise * rng.standard_normal(sharp.shape))
  return {
    'name': name, 'sequence': sequence, 'blurred': blurred, 'sharp': sharp
  }  # fmt: skip


def identity(x):
  return x


def halved(x):
  """A restorer whose output is between the input and grey."""
  return 0.5 * x + 0.25


def test_scores_are_scikit_images():
  pair = item(quantized(photo()))
  means, rows, samples = evaluate.evaluate(halved, Items([pair]))
  restored = pair['blurred'] / 255 * 0.5 + 0.25
  rounded, sharp = np.rint(restored * 255) / 255, pair['sharp'] / 255
  expected = {
    'psnr_input': sk_metrics.peak_signal_noise_ratio(
      sharp, pair['blurred'] / 255, data_range=1
    ),
    'psnr': sk_metrics.peak_signal_noise_ratio(sharp, rounded, data_range=1),
    'psnr_float': sk_metrics.peak_signal_noise_ratio(
      sharp, restored, data_range=1
    ),
    'ssim': sk_metrics.structural_similarity(
      sharp, rounded, channel_axis=2, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False, data_range=1,
    ),
  }  # fmt: skip
  for name, value in expected.items():
    assert abs(means[name] - value) < 1e-3, name
    assert rows[0][name] == means[name]
  assert samples[0][0] == 'a'
  np.testing.assert_array_equal(samples[0][2], np.rint(restored * 255))


@pytest.mark.parametrize('is_grey', [False, True])
def test_one_channel_is_scored_from_0_to_255(is_grey):
  """Not as luminance, whose range of 16 to 235 has smaller errors."""
  sharp = quantized(photo()[..., :1].repeat(3, axis=2))
  small = sharp[::2, ::2]
  pair = item(sharp, blurred=small) | {'is_grey': is_grey}

  def restorer(x):
    return np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)

  means, _, _ = evaluate.evaluate(restorer, Items([pair]))
  restored = restorer(small[None])[0]
  images = [x[2:-2, 2:-2, 0] / 255 for x in (sharp, restored)]
  expected = sk_metrics.peak_signal_noise_ratio(*images, data_range=1)
  if not is_grey:
    expected += 20 * np.log10(255 / 219)
  assert means['psnr'] == pytest.approx(expected, abs=1e-3)


def test_equal_images_leave_means_finite():
  black = np.zeros((16, 16, 3), np.uint8)
  source = Items([item(black, blurred=black)])
  means, rows, _ = evaluate.evaluate(identity, source)
  assert means['psnr'] == means['psnr_input'] == metrics.MAX_PSNR
  assert rows[0]['ssim'] == 1


def test_sequences_have_means_of_their_own():
  items = [
    item(quantized(photo(i)), str(i), sequence, noise)
    for i, (sequence, noise) in enumerate(
      [('A', 0.05), ('A', 0.1), ('B', 0.2), ('', 0.3)]
    )
  ]
  means, rows, _ = evaluate.evaluate(identity, Items(items))
  scores = evaluate.sequence_scores(rows)
  assert set(scores) == {'A', 'B'}
  assert scores['A']['images'] == 2
  psnr = [row['psnr'] for row in rows]
  assert scores['A']['psnr'] == pytest.approx(np.mean(psnr[:2]))
  assert scores['B']['psnr'] == psnr[2]
  assert means['psnr'] == pytest.approx(np.mean(psnr))


def test_best_match_is_the_best_of_the_frames():
  frames = np.stack([quantized(photo(i)) for i in range(4)])
  pair = item(frames, blurred=item(frames[2])['blurred'])
  means, _, samples = evaluate.evaluate(identity, Items([pair], 'best_match'))
  alone, _, _ = evaluate.evaluate(identity, Items([item(frames[2])]))
  assert means == pytest.approx(alone)
  np.testing.assert_array_equal(samples[0][3], frames[2])


def test_registration_finds_place_and_light():
  pytest.importorskip('cv2', reason='registration needs OpenCV')
  size = 96
  picture = photo(size=size + 8)
  sharp = picture[4:-4, 4:-4].astype(np.float32)
  moved = ndimage.shift(picture, (1.3, -0.6, 0), order=3, mode='reflect')
  moved = 0.8 * moved[4:-4, 4:-4].astype(np.float32)
  warped, mask = registration.register(moved, sharp)
  assert warped.shape == sharp.shape
  assert mask.shape == (size, size, 1)
  assert set(np.unique(mask)) == {0.0, 1.0}
  assert 0.9 < mask.mean() < 1
  error = ((warped - sharp) * mask)[8:-8, 8:-8]
  assert np.sqrt(np.mean(error**2)) < 0.01
  pair = item(quantized(sharp), blurred=quantized(moved))
  registered, _, _ = evaluate.evaluate(identity, Items([pair], 'registered'))
  whole, _, _ = evaluate.evaluate(identity, Items([pair]))
  assert whole['psnr'] < 22
  assert registered['psnr'] > 35
  assert registered['ssim'] > 0.98 > whole['ssim']


def test_registration_of_what_has_nothing_in_common_stays():
  pytest.importorskip('cv2', reason='registration needs OpenCV')
  flat = np.full((32, 32, 3), 0.5, np.float32)
  warped, mask = registration.register(flat, photo(size=32).astype(np.float32))
  assert warped.shape == (32, 32, 3)
  assert mask.all()
