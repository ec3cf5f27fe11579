"""Scores of a trained network on held-out images, whole and one by one.

Images are uint8 [H, W, 3]. PSNR and SSIM are taken of the output as it would be
saved, rounded to 8 bits, and averaged over images, as the papers on GoPro do;
`psnr_float` is that of the unrounded output. `ssim` is per channel, `ssim_3d`
the MATLAB-like one that papers on GoPro quote. The means of each sequence are
what PyNAS's Table 2 has. Super-resolution is scored on luminance, or on the
channel of a grey image, without a border of as many pixels as the factor, and
against bicubic enlarging, as in its papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax import metrics
from pynas_jax import registration
from pynas_jax.data import sources
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.logbook import progress
from pynas_jax.nn import patches

# A held-out image: name, blurred, restored, sharp; images are uint8.
Sample = tuple[str, np.ndarray, np.ndarray, np.ndarray]


@jax.jit
def _score(
  image: jax.Array, sharp: jax.Array, mask: jax.Array | None
) -> dict[str, jax.Array]:
  return {
    'psnr': metrics.psnr(image, sharp, mask),
    'ssim': metrics.ssim(image, sharp, mask),
    'ssim_3d': metrics.ssim_3d(image, sharp, mask),
  }


def _against(
  image: jax.Array, sharp: np.ndarray, protocol: str
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns what is scored: an image, a sharp one and where they compare.

  Args:
    image: f32[1, H, W, 3] in [0, 1].
    sharp: u8[H, W, 3], or u8[F, H, W, 3] for 'best_match'.
    protocol: Of the dataset.
  """
  if protocol == 'best_match':
    frames = (jnp.asarray(s[None] / 255, jnp.float32) for s in sharp)
    best = max(frames, key=lambda frame: float(metrics.psnr(image, frame)[0]))
    return image, best, None
  target = (sharp / 255).astype(np.float32)
  if protocol == 'registered':
    warped, mask = registration.register(np.asarray(image[0]), target)
    return jnp.asarray(warped[None]), jnp.asarray(target[None]), mask[None]
  return image, jnp.asarray(target[None]), None


def restore_patches(
  restorer: Restorer, image: np.ndarray, *, patch: int, scale: int = 1
) -> np.ndarray:
  """Restores an image square by square, as HiNAS does (its section 4.1).

  Args:
    restorer: The network.
    image: f32[1, H, W, 3] in [0, 1].
    patch: Side of the squares in the output, pixels.
    scale: Factor by which the output is larger.

  Returns:
    f32[1, scale * H, scale * W, 3].
  """
  side = patch // scale
  padded = patches.pad_to_multiple(image, height=side, width=side)
  grid = {'rows': padded.shape[1] // side, 'cols': padded.shape[2] // side}
  restored = restorer(patches.split(padded, **grid))
  whole = patches.merge(jnp.asarray(restored), **grid)
  height, width = image.shape[1:3]
  return np.asarray(whole[:, : scale * height, : scale * width])


def _scored(image: jax.Array, scale: int, is_grey: bool) -> jax.Array:
  """Returns what is scored of an image: in super-resolution, luminance.

  Papers convert colours to the range of video, 16 to 235, and take a file of
  one channel as it is, from 0 to 255.
  """
  if scale == 1:
    return image
  y = metrics.luminance(image, full_range=is_grey)
  return y[:, scale:-scale, scale:-scale]


def evaluate(
  restorer: Restorer,
  source: sources.Source,
  *,
  num_samples: int = 4,
  patch: int = 0,
) -> tuple[dict[str, float], list[dict[str, Any]], list[Sample]]:
  """Scores a network.

  Args:
    restorer: The network.
    source: Of whole pairs.
    num_samples: Images to return, evenly spaced.
    patch: Side of the squares that an image is cut into; 0 is whole images.

  Returns:
    The mean of each score over images; the scores of each image, with its
    `name` and `sequence`; and some images for people to look at. Equal images
    have `metrics.MAX_PSNR`.
  """
  rows, samples = [], []
  wanted = set(np.linspace(0, len(source) - 1, num_samples).round().astype(int))
  with progress(len(source), 'evaluate') as bar:
    for i in range(len(source)):
      item = source[i]
      blurred, sharp = item['blurred'], item['sharp']
      scale = sharp.shape[-3] // blurred.shape[0]
      x = jnp.asarray(blurred[None] / 255, jnp.float32)
      restored = jnp.asarray(
        restore_patches(restorer, x, patch=patch, scale=scale)
        if patch
        else restorer(x)
      )
      plain = metrics.quantize(patches.enlarge(x, factor=scale))
      rounded = metrics.quantize(restored)

      def against(image, item=item, scale=scale):
        image, target, mask = _against(image, item['sharp'], source.protocol)
        how = scale, item.get('is_grey', False)
        return _scored(image, *how), _scored(target, *how), mask

      before, after = _score(*against(plain)), _score(*against(rounded))
      unrounded = against(restored)
      scores = {
        'psnr_input': before['psnr'],
        'psnr': after['psnr'],
        'psnr_float': metrics.psnr(*unrounded),
        'ssim_input': before['ssim'],
        'ssim': after['ssim'],
        'ssim_3d': after['ssim_3d'],
      }
      rows.append({
        k: metrics.capped(float(v[0])) if k.startswith('psnr') else float(v[0])
        for k, v in scores.items()
      })
      rows[-1] |= {'name': item['name'], 'sequence': item['sequence']}
      if i in wanted:
        picture = np.asarray(jnp.round(rounded[0] * 255), np.uint8)
        _, target, _ = _against(rounded, sharp, source.protocol)
        given, shown = (
          np.asarray(jnp.round(x[0] * 255), np.uint8) for x in (plain, target)
        )
        samples.append((item['name'], given, picture, shown))
      bar.update(i + 1, psnr=rows[-1]['psnr'])
  return mean_scores(rows), rows, samples


def mean_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Returns the mean of each score over images."""
  names = [name for name in rows[0] if name not in ('name', 'sequence')]
  return {name: float(np.mean([row[name] for row in rows])) for name in names}


def sequence_scores(
  rows: Sequence[dict[str, Any]],
) -> dict[str, dict[str, float]]:
  """Returns the means of each sequence; none where images stand alone.

  Args:
    rows: The scores of images, as `evaluate` returns them.
  """
  sequences: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    if row['sequence']:
      sequences.setdefault(row['sequence'], []).append(row)
  return {
    name: mean_scores(own) | {'images': len(own)}
    for name, own in sequences.items()
  }
