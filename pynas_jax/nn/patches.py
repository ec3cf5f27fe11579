"""Multi-patch split and merge, and padding for images of any size.

Images are f[B, H, W, C]. Patches of a level ride on the batch axis, so one
network call sees them all. The grids nest (`genotype.grids`), so a merged
feature map can be split again along the grid of any other level.

Source: PyNAS section 2.2 (Eqs. 3 and 4); the order of the axes is DMPHN's.
"""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pynas_jax import resize
from pynas_jax.nn import canvas

_BICUBIC_REACH = 2  # Pixels to each side that a bicubic value is made of.


def split(image: jax.Array, *, rows: int, cols: int) -> jax.Array:
  """Splits images into a row-major grid of non-overlapping patches.

  Patch `r * cols + c` of an image is `image[r*h:(r+1)*h, c*w:(c+1)*w]`;
  `merge` is the exact inverse.

  Args:
    image: [B, H, W, C].
    rows: Patches along H.
    cols: Patches along W.

  Returns:
    [B * rows * cols, H // rows, W // cols, C].

  Raises:
    ValueError: If the grid does not divide the image.

  >>> split(jnp.zeros((1, 8, 8, 3)), rows=2, cols=1).shape
  (2, 4, 8, 3)
  """
  chex.assert_rank(image, 4)
  b, h, w, c = image.shape
  if h % rows or w % cols:
    raise ValueError(
      f'A grid of {rows}x{cols} patches does not divide an image of {h}x{w}; '
      'pad it first with pad_to_multiple.'
    )
  if canvas.is_held():
    height, width = canvas.extent(image)
    shape = (b, h // rows, w // cols, c)
    patches = [
      jax.lax.dynamic_slice(image, (0, *corner, 0), shape)
      for corner in _corners(height // rows, width // cols, rows, cols)
    ]
    return jnp.stack(patches, axis=1).reshape(-1, *shape[1:])
  x = image.reshape(b, rows, h // rows, cols, w // cols, c)
  return x.swapaxes(2, 3).reshape(-1, h // rows, w // cols, c)


def merge(patches: jax.Array, *, rows: int, cols: int) -> jax.Array:
  """Fits the patches of `split` together again.

  Args:
    patches: [B * rows * cols, h, w, C].
    rows: Patches along H.
    cols: Patches along W.

  Returns:
    [B, rows * h, cols * w, C].

  >>> merge(jnp.zeros((2, 4, 8, 3)), rows=2, cols=1).shape
  (1, 8, 8, 3)
  """
  chex.assert_rank(patches, 4)
  n, h, w, c = patches.shape
  if canvas.is_held():
    corners = _corners(*canvas.extent(patches), rows, cols)
    x = patches.reshape(-1, rows * cols, h, w, c)
    image = jnp.zeros((len(x), rows * h, cols * w, c), x.dtype)
    for i, corner in enumerate(corners):
      # What a patch has beside its image is overwritten by those that follow.
      image = jax.lax.dynamic_update_slice(image, x[:, i], (0, *corner, 0))
    return image
  x = patches.reshape(n // (rows * cols), rows, cols, h, w, c)
  return x.swapaxes(2, 3).reshape(-1, rows * h, cols * w, c)


def _corners(
  height: jax.Array, width: jax.Array, rows: int, cols: int
) -> list[tuple[jax.Array, jax.Array]]:
  """Returns where patches of a size begin, row by row."""
  grid = itertools.product(range(rows), range(cols))
  return [(row * height, col * width) for row, col in grid]


def pad_to_multiple(image: jax.Array, *, height: int, width: int) -> jax.Array:
  """Reflects images at the bottom and right up to multiples of a size.

  Args:
    image: [B, H, W, C]; H and W may be smaller than the padding.
    height: The result's H is a multiple of it, in pixels.
    width: Likewise W.

  Returns:
    [B, H', W', C]; `[:, :H, :W]` is the image.

  >>> pad_to_multiple(jnp.zeros((1, 720, 1280, 3)), height=12, width=12).shape
  (1, 720, 1284, 3)
  """
  chex.assert_rank(image, 4)
  pads = [(0, 0), (0, -image.shape[1] % height), (0, -image.shape[2] % width)]
  if not any(after for _, after in pads):
    return image
  return jnp.pad(image, [*pads, (0, 0)], mode='reflect')


def window(
  image: jax.Array, top: jax.Array, *, before: int, sides: tuple[int, int]
) -> jax.Array:
  """Returns some rows of images, whole, with zeros around the images.

  In a loop over such bands none of them is kept, as a padded copy would be.

  Args:
    image: [B, H, W, C].
    top: i32[], the first row, from -before to H.
    before: Zeros above and left of the images, pixels.
    sides: Rows and columns; the latter before + W or more.

  Returns:
    [B, *sides, C].

  >>> window(jnp.ones((1, 8, 4, 1)), 7, before=1, sides=(3, 6))[0, :, 1, 0]
  Array([1., 0., 0.], dtype=float32)
  """
  chex.assert_rank(image, 4)
  (rows, columns), (_, height, width, _) = sides, image.shape
  inside = min(rows, height)
  start = jnp.clip(top, 0, height - inside)
  x = jax.lax.dynamic_slice_in_dim(image, start, inside, axis=1)
  pads = ((before, rows), (before, columns - before - width))
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  x = jax.lax.dynamic_slice_in_dim(x, top - start + before, rows, axis=1)
  return jax.lax.optimization_barrier(x)  # Else it is made for each use.


def space_to_depth(image: jax.Array, *, factor: int) -> jax.Array:
  """Folds `factor` x `factor` pixels into channels.

  Args:
    image: [B, H, W, C], H and W multiples of `factor`.
    factor: 1 returns the image as it is.

  Returns:
    [B, H // factor, W // factor, factor * factor * C].

  >>> space_to_depth(jnp.zeros((1, 4, 6, 3)), factor=2).shape
  (1, 2, 3, 12)
  """
  chex.assert_rank(image, 4)
  b, h, w, c = image.shape
  x = image.reshape(b, h // factor, factor, w // factor, factor, c)
  x = x.swapaxes(2, 3)
  return x.reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: jax.Array, *, factor: int) -> jax.Array:
  """Unfolds channels into pixels: the inverse of `space_to_depth`.

  Args:
    x: [B, h, w, factor * factor * C].
    factor: Of magnification.

  Returns:
    [B, h * factor, w * factor, C].

  >>> depth_to_space(jnp.zeros((1, 2, 3, 12)), factor=2).shape
  (1, 4, 6, 3)
  """
  chex.assert_rank(x, 4)
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, factor, factor, c // (factor * factor))
  return x.swapaxes(2, 3).reshape(b, h * factor, w * factor, -1)


def enlarge(image: jax.Array, *, factor: int) -> jax.Array:
  """Enlarges images, bicubic as in MATLAB.

  Args:
    image: f[B, H, W, C].
    factor: Of both sides; 1 returns the image as it is.

  Returns:
    f32[B, factor * H, factor * W, C].

  >>> enlarge(jnp.ones((1, 4, 6, 3)), factor=3).shape
  (1, 12, 18, 3)
  """
  chex.assert_rank(image, 4)
  image = image.astype(jnp.float32)
  if factor == 1:
    return image
  # Every output pixel is made of 5 input pixels a side, and those of one input
  # pixel are alike everywhere: a convolution, of one row of weights a phase.
  side = 2 * _BICUBIC_REACH + 1
  middle = slice(_BICUBIC_REACH * factor, (_BICUBIC_REACH + 1) * factor)
  phases = resize.bicubic_weights(side, factor)[middle]
  channels = image.shape[-1]
  kernel = np.einsum('ai,bj,cd->ijcabd', phases, phases, np.eye(channels))
  kernel = kernel.reshape(side, side, channels, factor * factor * channels)
  for axis in (1, 2):
    # Reflected. In two steps it is right for one pixel, and for any number.
    for step in range(0, 2 * _BICUBIC_REACH, 2):
      size = image.shape[axis]
      edges = [
        jax.lax.slice_in_dim(image, i, i + 1, axis=axis)
        for i in (step, size - 1 - step)
      ]
      image = jnp.concatenate([edges[0], image, edges[1]], axis=axis)
  large = jax.lax.conv_general_dilated(
    image, jnp.asarray(kernel, jnp.float32), (1, 1), 'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    # Not in TensorFloat-32, which accelerators take otherwise.
    precision='highest',
  )  # fmt: skip
  return depth_to_space(large, factor=factor)
