"""Patches: exact inverses, the published order, any size."""

import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import genotype
from pynas_jax.nn import patches


def image(*shape):
  return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize('scheme', genotype.all_schemes(), ids=str)
def test_merge_undoes_split_on_every_grid(scheme):
  for rows, cols in genotype.grids(scheme):
    x = image(2, 3 * rows, 2 * cols, 3)
    parts = patches.split(x, rows=rows, cols=cols)
    assert parts.shape == (2 * rows * cols, 3, 2, 3)
    merged = patches.merge(parts, rows=rows, cols=cols)
    np.testing.assert_array_equal(merged, x)


def test_split_is_row_major_and_keeps_images_apart():
  x = image(2, 8, 6, 3)
  parts = patches.split(x, rows=2, cols=3)
  for b in range(2):
    for r in range(2):
      for c in range(3):
        expected = x[b, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2]
        np.testing.assert_array_equal(parts[6 * b + 3 * r + c], expected)


def test_eight_patches_are_four_rows_and_two_columns_as_published():
  # DMPHN level 4: each quarter of the image is split into top and bottom.
  assert genotype.grids((1, 2, 4, 8)) == ((1, 1), (2, 1), (2, 2), (4, 2))


@pytest.mark.parametrize('top', [-2, 0, 1, 3, 5])
def test_window_has_zeros_around_the_image(top):
  x = image(2, 5, 4, 3)
  rows = np.pad(x, ((0, 0), (2, 9), (2, 1), (0, 0)))[:, top + 2 :]
  for height in (1, 4, 8):  # Fewer rows than the image has, and more.
    found = patches.window(x, top, before=2, sides=(height, 7))
    np.testing.assert_array_equal(found, rows[:, :height])


def test_split_names_the_way_out():
  with pytest.raises(ValueError, match='5x6; pad it first'):
    patches.split(image(1, 5, 6, 3), rows=2, cols=1)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (5, 3), (12, 24), (13, 25)])
def test_padding_reflects_and_starts_with_the_image(size):
  x = image(1, *size, 3)
  padded = patches.pad_to_multiple(jnp.asarray(x), height=12, width=24)
  assert padded.shape[1] % 12 == padded.shape[2] % 24 == 0
  pads = [(0, n - m) for n, m in zip(padded.shape, x.shape, strict=True)]
  np.testing.assert_array_equal(padded, np.pad(x, pads, mode='reflect'))


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_depth_to_space_undoes_space_to_depth(factor):
  x = image(2, 8, 12, 3)
  folded = patches.space_to_depth(x, factor=factor)
  unfolded = patches.depth_to_space(folded, factor=factor)
  np.testing.assert_array_equal(unfolded, x)
