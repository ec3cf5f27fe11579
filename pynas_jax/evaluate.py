"""Scores of a trained network on held-out images, whole and one by one.

Images are uint8 [H, W, 3]. PSNR and SSIM are taken of the output as it would be
saved, rounded to 8 bits, and averaged over images; `psnr_float` is that of the
unrounded output. `ssim` is per channel, `ssim_3d` the MATLAB-like one that
papers on GoPro quote.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax import metrics
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.logbook import progress

# A held-out image: name, blurred, restored, sharp; images are uint8.
Sample = tuple[str, np.ndarray, np.ndarray, np.ndarray]


@jax.jit
def _score(
  blurred: jax.Array, restored: jax.Array, sharp: jax.Array
) -> dict[str, jax.Array]:
  rounded = metrics.quantize(restored)
  return {
    'psnr_input': metrics.psnr(blurred, sharp),
    'psnr': metrics.psnr(rounded, sharp),
    'psnr_float': metrics.psnr(restored, sharp),
    'ssim_input': metrics.ssim(blurred, sharp),
    'ssim': metrics.ssim(rounded, sharp),
    'ssim_3d': metrics.ssim_3d(rounded, sharp),
  }


def evaluate(
  restorer: Restorer,
  pairs: Iterable[tuple[str, np.ndarray, np.ndarray]],
  *,
  num_pairs: int,
  num_samples: int = 4,
) -> tuple[dict[str, float], list[dict[str, Any]], list[Sample]]:
  """Scores a network.

  Args:
    restorer: The network.
    pairs: Of (name, blurred, sharp); images are uint8 [H, W, 3].
    num_pairs: How many there are, for the progress bar.
    num_samples: Images to return, evenly spaced.

  Returns:
    The mean of each score over images; the scores of each image, with its
    `name`; and some images for people to look at.
  """
  rows, samples = [], []
  wanted = set(np.linspace(0, num_pairs - 1, num_samples).round().astype(int))
  with progress(num_pairs, 'evaluate') as bar:
    for i, (name, blurred, sharp) in enumerate(pairs):
      x, y = (jnp.asarray(p[None] / 255, jnp.float32) for p in (blurred, sharp))
      restored = jnp.asarray(restorer(x))
      scores = _score(x, restored, y)
      rows.append({k: float(v[0]) for k, v in scores.items()} | {'name': name})
      if i in wanted:
        rounded = np.asarray(jnp.round(restored[0] * 255), np.uint8)
        samples.append((name, blurred, rounded, sharp))
      bar.update(i + 1, psnr=rows[-1]['psnr'])
  names = [name for name in rows[0] if name != 'name']
  means = {name: float(np.mean([row[name] for row in rows])) for name in names}
  return means, rows, samples
