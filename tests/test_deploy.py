"""From checkpoint to function: types, sizes, saving, timing, errors."""

import jax
import numpy as np
import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax import spaces
from pynas_jax.checkpoint import CheckpointError
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.deploy import benchmark
from pynas_jax.deploy import restorer
from pynas_jax.spaces import base

CELLS = ('conv_3x3', 'sep_conv_3x3')
NETWORK = genotype_lib.PyramidGenotype(
  scales=tuple(genotype_lib.ScaleGenotype(p, CELLS, CELLS) for p in (1, 2)),
  widths=(4, 8), cells_per_stage=1,
)  # fmt: skip


@pytest.fixture(scope='module')
def params():
  network = spaces.space_of(NETWORK).network(NETWORK)
  return base.init_params(jax.random.key(0), network)


@pytest.fixture(scope='module')
def restore(params):
  return restorer.Restorer(NETWORK, params)


def picture(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('shape', [(9, 13, 3), (2, 16, 16, 3)], ids=str)
def test_output_has_the_shape_and_type_of_the_input(restore, shape):
  image = picture(*shape)
  restored = restore(image)
  assert (restored.shape, restored.dtype) == (shape, np.uint8)
  as_float = restore(image / 255)
  assert (as_float.shape, as_float.dtype) == (shape, np.float32)
  assert as_float.min() >= 0
  assert as_float.max() <= 1
  np.testing.assert_array_equal(np.round(as_float * 255), restored)


def test_the_input_is_left_alone_though_its_buffer_is_donated(restore):
  image = picture(16, 16, 3)
  on_device = jax.device_put(image)
  first = restore(on_device)
  np.testing.assert_array_equal(on_device, image)
  np.testing.assert_array_equal(restore(on_device), first)


def test_one_image_of_a_batch_is_as_alone(restore):
  batch = picture(2, 16, 16, 3)
  np.testing.assert_allclose(
    restore(batch)[1].astype(int), restore(batch[1]).astype(int), atol=1
  )


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8),
    np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint16),
    np.zeros((8, 8, 3), bool),
  ],
  ids=lambda x: f'{x.dtype}{x.shape}',
)  # fmt: skip
def test_other_images_are_refused_by_shape_and_type(restore, image):
  with pytest.raises(ValueError, match=f'{image.dtype}; expected'):
    restore(image)


def test_bfloat16_is_near_float32(restore, params):
  image = picture(32, 32, 3) / 255
  near = restorer.Restorer(NETWORK, params, dtype='bfloat16')(image)
  np.testing.assert_allclose(near, restore(image), atol=0.05)
  assert (near != restore(image)).any()


def test_saved_networks_load_as_they_were(restore, tmp_path):
  image = picture(16, 24, 3)
  restore.save(tmp_path / 'net')
  for path in ('net', 'net/checkpoints', 'net/checkpoints/1'):
    loaded = restorer.load(tmp_path / path)
    assert loaded.genotype == NETWORK
    np.testing.assert_array_equal(loaded(image), restore(image))
  with pytest.raises(restorer.LoadError, match='holds a network already'):
    restore.save(tmp_path / 'net')


def test_the_best_checkpoint_is_loaded(params, tmp_path):
  double = jax.tree.map(lambda x: 2 * x, params)
  with Checkpoints(tmp_path, keep_best_metric='psnr') as checkpoints:
    for step, arrays, psnr in ((1, double, 30.0), (2, params, 20.0)):
      checkpoints.save(
        step, arrays={'params': arrays},
        meta={'genotype': NETWORK.to_dict()}, metrics={'psnr': psnr},
      )  # fmt: skip
  best, last = restorer.load(tmp_path), restorer.load(tmp_path / '2')
  jax.tree.map(np.testing.assert_array_equal, best.params, double)
  jax.tree.map(np.testing.assert_array_equal, last.params, params)


def test_what_cannot_be_loaded_is_named(tmp_path, params):
  with pytest.raises(restorer.LoadError, match='nowhere is no folder'):
    restorer.load(tmp_path / 'nowhere')
  with pytest.raises(restorer.LoadError, match='no finished checkpoint'):
    restorer.load(tmp_path)
  other = genotype_lib.dmphn((1,))
  with Checkpoints(tmp_path / 'bad') as checkpoints:
    checkpoints.save(
      1, arrays={'params': params}, meta={'genotype': other.to_dict()}
    )
  with pytest.raises(CheckpointError, match='scale1/'):
    restorer.load(tmp_path / 'bad')


def test_genotypes_are_read_by_name_file_or_folder(tmp_path):
  assert restorer.read_genotype('dmphn') == genotype_lib.dmphn()
  path = tmp_path / 'genotype.json'
  with pytest.raises(restorer.LoadError, match='genotype.json cannot be read'):
    restorer.read_genotype(tmp_path)
  path.write_text(NETWORK.to_json())
  assert restorer.read_genotype(path) == NETWORK
  assert restorer.read_genotype(tmp_path) == NETWORK
  path.write_text(NETWORK.to_json().replace('conv_3x3', 'conv_9x9'))
  with pytest.raises(restorer.LoadError, match='conv_9x9'):
    restorer.read_genotype(path)


def test_timing_waits_for_the_result_and_names_the_device(restore):
  timing = benchmark.time_restorer(restore, height=33, width=40, runs=3)
  assert 0 < timing['p50'] <= timing['p95']
  assert timing['compile_s'] > 0
  assert timing['runs'] == 3
  assert timing['device'].startswith(jax.devices()[0].platform)
  assert (timing['height'], timing['width']) == (33, 40)


def test_timing_grows_with_the_work(restore):
  """A clock that only sees the launch would find the two alike."""
  small, large = (
    benchmark.time_restorer(restore, height=size, width=size, runs=5)['p50']
    for size in (32, 512)
  )
  assert large > 2 * small
