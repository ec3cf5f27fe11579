"""From checkpoint to function: types, sizes, saving, timing, errors."""

from concurrent import futures
import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax import spaces
from pynas_jax.checkpoint import CheckpointError
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.deploy import backends
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
  half = jax.numpy.asarray(image / 255, jax.numpy.bfloat16)
  np.testing.assert_array_equal(restore(half), restore(half.astype('float32')))


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


@pytest.mark.parametrize('value', [255.0, -2.0, np.nan])
def test_floats_that_are_not_in_0_to_1_are_refused(restore, value):
  image = np.zeros((8, 8, 3))
  image[0, 0, 0] = value
  with pytest.raises(ValueError, match=r'expected floats in \[0, 1\]'):
    restore(image)


def test_the_result_is_the_callers_own(restore):
  restored = restore(picture(16, 16, 3))
  restored += 1


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
  (tmp_path / 'config.json').write_text('{}')  # The settings of a run.
  with pytest.raises(restorer.LoadError, match='no finished checkpoint'):
    restorer.load(tmp_path)
  for name in ('7', '²'):  # Workdirs, of which no checkpoint has the name.
    (tmp_path / name).mkdir()
    with pytest.raises(restorer.LoadError, match=f'{name} holds no finished'):
      restorer.load(tmp_path / name)
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


def one_scale():
  network = dataclasses.replace(NETWORK, scales=NETWORK.scales[:1])
  module = spaces.space_of(network).network(network)
  return network, base.init_params(jax.random.key(0), module)


def test_sizes_share_programs(params, monkeypatch):
  monkeypatch.setattr(backends, 'SMALL_CANVAS', 0)
  restore = restorer.Restorer(NETWORK, params)
  own = restore.compile((1, 50, 40, 3))
  sizes = (
    (50, 40), (120, 120), (70, 120), (125, 105), (7, 100), (100, 40),
  )  # fmt: skip
  for height, width in sizes:
    image = picture(height, width, 3)
    expected = backends.compile_network(
      'xla', backends.Network(NETWORK, params), (1, *image.shape), np.uint8
    )(image[None])[0]
    np.testing.assert_allclose(restore(image).astype(int), expected, atol=1)
  shared = [key.shape[1:3] for key in restore.programs if key.is_canvas]
  assert shared == [(128, 128), (8, 104), (112, 48)]
  assert restore.compile((1, 50, 40, 3)) is own
  # The first one of floats.
  restore(picture(45, 70, 3) / np.float32(255))
  assert next(reversed(restore.programs)) == ((1, 45, 70, 3), np.float32, False)


def test_a_size_that_comes_often_gets_its_own_program(params):
  restore = restorer.Restorer(NETWORK, params)
  sizes = ((9, 8), (8, 9), (7, 9))
  for i in range(restorer.OFTEN + 1):
    for size in sizes[: 2 if i else 3]:
      restore(picture(*size, 3))
    own = [k.shape[1:3] for k in restore.programs if not k.is_canvas]
    assert sorted(own) == sorted(sizes[: 1 if i < restorer.OFTEN else 2])
  assert len(restore.programs) == 3  # One canvas.


def test_programs_that_keep_memory_are_few(params, monkeypatch):
  pytest.importorskip('onnxruntime')
  restore = restorer.Restorer(NETWORK, params, backend='onnxruntime')
  monkeypatch.setattr(  # Two, with small feature maps.
    restorer, 'MAX_BYTES', 2 * restorer.PROGRAM_BYTES + (1 << 20)
  )

  def sizes():
    return [key.shape[1:3] for key in restore.programs]

  for size in ((64, 64), (60, 64)):
    restore(picture(*size, 3))
  assert sizes() == [(64, 64), (60, 64)]
  restore(picture(7, 8, 3))
  assert sizes() == [(60, 64), (7, 8)]
  restore(picture(150, 150, 3))  # 2.9 MB of them.
  assert sizes() == [(150, 150)]


def test_a_restorer_needs_a_stream(params):
  with pytest.raises(restorer.LoadError, match='streams is 0; expected 1'):
    restorer.Restorer(NETWORK, params, streams=0)


def test_the_programs_last_used_are_kept(monkeypatch):
  monkeypatch.setattr(restorer, 'MAX_BYTES', 2 * restorer.PROGRAM_BYTES)
  restore = restorer.Restorer(*one_scale())
  first = restore.compile((1, 8, 8, 3))
  restore.compile((1, 8, 10, 3))
  assert restore.compile((1, 8, 8, 3)) is first
  restore.compile((1, 8, 12, 3))
  widths = [key.shape[2] for key in restore.programs]
  assert widths == [8, 12]


def test_threads_compile_a_shape_once():
  restore = restorer.Restorer(*one_scale())
  with futures.ThreadPoolExecutor(8) as pool:
    programs = list(pool.map(restore.compile, [(1, 12, 12, 3)] * 8))
  assert len(set(map(id, programs))) == 1


def test_compiled_programs_and_their_folder(tmp_path):
  """In a process of its own, as the setting is the process's."""
  code = """if True:
    import jax, sys
    from pynas_jax import caching
    caching.keep_compiled_programs()
    print(jax.config.jax_compilation_cache_dir)
  """

  def folder(**variables):
    environment = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
    return subprocess.run(
      [sys.executable, '-c', code], check=True, text=True, capture_output=True,
      env=environment | variables,
    ).stdout.strip()  # fmt: skip

  root = str(tmp_path)
  assert folder(XDG_CACHE_HOME=root).startswith(f'{root}/pynas_jax/xla/')
  assert folder(PYNAS_JAX_CACHE=root).startswith(f'{root}/xla/')
  assert folder(PYNAS_JAX_CACHE='off') == 'None'
  (tmp_path / 'file').touch()  # Nothing can be written there.
  assert folder(PYNAS_JAX_CACHE=f'{root}/file') == 'None'
  named = {'PYNAS_JAX_CACHE': root, 'JAX_COMPILATION_CACHE_DIR': '/elsewhere'}
  assert folder(**named) == '/elsewhere'


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
