"""Every runtime restores as XLA does, on networks of every part."""

from concurrent import futures
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import caching
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax.deploy import backends
from pynas_jax.deploy import benchmark
from pynas_jax.deploy.backends import Network
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.nn import canvas
from pynas_jax.nn import patches
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

onnx = pytest.importorskip('onnx')
RUNTIMES = ('onnxruntime', 'openvino')
SEPARABLE, DILATED = ('sep_conv_3x3', 'zero'), ('conv_3x3_dil2', 'conv_5x5')
DMPHN = ('conv_3x3_x2', 'conv_3x3_x2')


def pyramid(scheme, encoder, decoder, **fields):
  scales = tuple(
    genotype_lib.ScaleGenotype(p, encoder, decoder) for p in scheme
  )
  return genotype_lib.PyramidGenotype(
    scales=scales, widths=(4, 8), cells_per_stage=1, **fields
  )


NETWORKS = {
  'one scale': pyramid((1,), SEPARABLE, DILATED, unshuffle=2),
  '1-2, of DMPHN': pyramid(
    (1, 2), DMPHN, DMPHN, upsample='transposed', global_residual=False
  ),
  '1-3': pyramid((1, 3), DILATED, SEPARABLE, link='concat'),
  '1-4-8': pyramid((1, 4, 8), SEPARABLE, SEPARABLE, share_weights=True),
  'HiNAS': genotype_lib.HinasGenotype(
    cells=((((0, 'sep_conv_5x5'), (1, 'conv_3x3_dil2')),),), levels=(0,),
    width=4, stem_width=4,
  ),
  'HiNAS x3': genotype_lib.HinasGenotype(
    cells=((((0, 'conv_3x3'), (1, 'skip')),),), levels=(0,), width=4,
    stem_width=4, scale=3,
  ),
  'NAFNet': genotype_lib.NafnetGenotype(
    width=4, encoder=(1,), middle=1, decoder=(1,)
  ),
}


@functools.cache
def network(name):
  genotype = NETWORKS[name]
  module = space_of(genotype).network(genotype)
  params = base.init_params(jax.random.key(0), module)
  if name == 'NAFNet':  # Its blocks start as the identity.
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
  return Network(genotype, params)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv(caching.VARIABLE, str(tmp_path / 'cache'))
  monkeypatch.setattr(backends, '_unkept', {})
  return tmp_path / 'cache'


def restored(backend, network, image):
  program = backends.compile_network(
    backend, network, image.shape, image.dtype
  )
  return program(image)


@functools.cache
def by_xla(name, height, width):
  image = backends.photograph(height, width)
  return restored('xla', network(name), image)


@pytest.mark.parametrize('name', NETWORKS)
def test_every_runtime_agrees_with_xla(name):
  """Height and width are no multiples of what the network pads to."""
  image = backends.photograph(35, 51)
  expected = by_xla(name, 35, 51)
  shared = network(name)
  plain = patches.enlarge(jnp.asarray(image), factor=shared.genotype.scale)
  assert np.abs(expected - plain).max() > 0.02  # It does something.
  for runtime in RUNTIMES:
    pytest.importorskip(runtime)
    found = restored(runtime, shared, image)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=runtime)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_canvas_changes_nothing_but_rounding(name):
  shared = network(name)
  shape = backends.canvas_shape(shared, (2, 40, 60, 3))
  multiple = space_of(shared.genotype).multiple(shared.genotype)
  assert not np.any(np.asarray(shape[1:3]) % multiple)
  program = backends.compile_canvas(shared, shape, np.float32)
  height, width = shape[1:3]
  for size in ((35, 51), (1, 1), (2, 40), (height - 2, width - 2), shape[1:3]):
    image = np.concatenate([
      backends.photograph(*size), 1 - backends.photograph(*size)
    ])  # fmt: skip
    given = image.copy()
    found = program(image)
    assert found.flags.writeable
    np.testing.assert_array_equal(image, given)
    expected = restored('xla', shared, image)
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=size)


def test_enlargement_sees_two_pixels_beside_the_image():
  shared, image = network('HiNAS x3'), backends.photograph(127, 127)
  shape = backends.canvas_shape(shared, image.shape)
  assert shape[1:3] == (192, 192)  # Not 128.
  found = backends.compile_canvas(shared, shape, np.float32)(image)
  np.testing.assert_allclose(found, by_xla('HiNAS x3', 127, 127), atol=1e-5)


@pytest.mark.parametrize(
  ('size', 'expected'),
  [
    ((1, 720, 1280), (768, 1280)), ((1, 16, 17), (128, 128)),
    ((1, 12, 40_000), (16, 40_000)), ((100, 64, 60), (64, 64)),
  ],
)  # fmt: skip
def test_canvases_are_not_much_larger_than_images(size, expected):
  shape = backends.canvas_shape(network('1-2, of DMPHN'), (*size, 3))
  assert shape == (size[0], *expected, 3)


def test_a_large_canvas_is_measured_in_32_bits():
  size = jnp.array([47_000, 60_000], jnp.int32)
  with canvas.holding(size, (47_104, 60_032)):
    for part in (1, 2, 8):
      x = jax.ShapeDtypeStruct((1, 47_104 // part, 60_032 // part, 3), float)
      extent = tuple(map(int, canvas.extent(x)))
      assert extent == (47_000 // part, 60_000 // part)


def test_two_threads_restore_by_a_stream_each(monkeypatch):
  openvino, streams = pytest.importorskip('openvino'), []

  class Core(openvino.Core):
    def compile_model(self, *args):
      compiled = super().compile_model(*args)
      streams.append(compiled.get_property('NUM_STREAMS'))
      return compiled

  monkeypatch.setattr(openvino, 'Core', Core)
  shared = dataclasses.replace(network('1-3'), streams=2)
  frames = [backends.photograph(35, 51) * i / 8 for i in range(8)]
  program = backends.compile_network(
    'openvino', shared, frames[0].shape, np.float32
  )
  with futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(program, frames))
  assert streams == [2]
  for frame, restored_ in zip(frames, found, strict=True):
    expected = restored('xla', network('1-3'), frame)
    np.testing.assert_allclose(restored_, expected, atol=1e-4)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_bytes_in_bytes_out_and_batches(runtime):
  pytest.importorskip(runtime)
  photo = np.round(255 * backends.photograph(35, 51)).astype(np.uint8)
  batch = np.concatenate([photo, photo[:, ::-1]])
  expected = restored('xla', network('1-3'), batch)
  found = restored(runtime, network('1-3'), batch)
  assert found.dtype == np.uint8
  np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)


def test_bfloat16_changes_psnr_little():
  pytest.importorskip('openvino')
  sharp = backends.photograph(64, 96)
  blurry = (sharp + np.roll(sharp, 1, 2)) / 2
  rough = dataclasses.replace(network('1-3'), dtype='bfloat16')
  exact = restored('xla', network('1-3'), blurry)

  def psnr_db(image):
    return -10 * np.log10(np.square(image - sharp).mean())

  try:
    backends.choose('openvino', rough)
  except backends.BackendError as error:
    pytest.skip(str(error))
  found = restored('openvino', rough, blurry)
  assert (found != exact).any()
  assert abs(psnr_db(found) - psnr_db(exact)) <= 0.05


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_threads_share_a_restorer(runtime):
  pytest.importorskip(runtime)
  shared = network('one scale')
  restorer = Restorer(shared.genotype, shared.params, backend=runtime)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
  expected = [restorer(image) for image in images]
  found = {}

  def work(i):
    for _ in range(5):
      found.setdefault(i, []).append(restorer(images[i]))

  threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for i, results in found.items():
    for result in results:
      np.testing.assert_array_equal(result, expected[i])
  assert len(found) == 8


def test_exported_graphs_are_kept_and_named_after_what_they_are(cache):
  pytest.importorskip('onnxruntime')
  shared = network('one scale')
  assert backends.choose('onnxruntime', shared) == 'onnxruntime'
  files = {path: path.stat().st_mtime_ns for path in cache.rglob('*.onnx')}
  assert len(files) == 1
  (note,) = cache.rglob('*onnxruntime*-difference')
  difference = float(note.read_bytes()[backends._CHECKSUM_BYTES :])
  assert difference < backends.MAX_DIFFERENCE
  backends.choose('onnxruntime', shared)
  assert files == {p: p.stat().st_mtime_ns for p in cache.rglob('*.onnx')}
  double = jax.tree.map(lambda leaf: 2 * leaf, shared.params)
  backends.export_onnx(Network(shared.genotype, double), np.float32)
  assert len(list(cache.rglob('*.onnx'))) == 2


def test_a_damaged_graph_is_made_again(cache):
  shared = network('one scale')
  graph = backends.export_onnx(shared, np.uint8)
  (path,) = cache.rglob('*.onnx')
  for content in (b'', path.read_bytes()[:-1]):
    path.write_bytes(content)
    assert backends.export_onnx(shared, np.uint8) == graph
    assert path.read_bytes().endswith(graph)


def test_errors_of_onnx_runtime_are_of_a_known_kind():
  pytest.importorskip('onnxruntime')
  graph = backends.export_onnx(network('one scale'), np.float32)
  with pytest.raises(RuntimeError, match='ONNX Runtime: .*INVALID_ARGUMENT'):
    backends.open_onnx(graph)(np.zeros((1, 8, 8, 5), np.float32))


@pytest.mark.parametrize('kind', ['off', 'a file', 'unreadable', 'homeless'])
def test_a_cache_that_serves_not_is_done_without(cache, monkeypatch, kind):
  """And nothing is made for every image anew."""
  if kind == 'off':
    monkeypatch.setenv(caching.VARIABLE, caching.OFF)
  if kind == 'a file':
    cache.touch()
  if kind == 'unreadable':  # Not so for the superuser, whom a folder stops.
    backends.export_onnx(network('one scale'), np.uint8)
    (path,) = cache.rglob('*.onnx')
    path.unlink()
    path.mkdir()
  if kind == 'homeless':
    monkeypatch.delenv(caching.VARIABLE)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(pathlib.Path, 'home', no_home)
    assert caching.folder() is None
  graph = backends.export_onnx(network('one scale'), np.uint8)
  onnx.checker.check_model(onnx.load_from_string(graph))
  assert backends.export_onnx(network('one scale'), np.uint8) is graph
  assert kind == 'unreadable' or not cache.is_dir()


def no_home():
  raise RuntimeError('Could not determine home directory.')


def test_graphs_hold_no_shuffling_of_axes():
  """What makes runtimes slow: only the two ends are transposed."""
  graph = backends.export_onnx(network('1-4-8'), np.uint8)
  ops = [node.op_type for node in onnx.load_from_string(graph).graph.node]
  assert ops.count('Transpose') == 2
  assert 'Reshape' not in ops
  depthwise = [
    attribute.i
    for node in onnx.load_from_string(graph).graph.node
    for attribute in node.attribute
    if attribute.name == 'group' and attribute.i > 1
  ]
  assert depthwise


def test_pixels_are_folded_while_they_are_bytes():
  shared = network('one scale')  # Of pixels folded two by two.
  graph = onnx.load_from_string(backends.export_onnx(shared, np.uint8)).graph
  makers = {name: node for node in graph.node for name in node.output}
  readers = {name: node for node in graph.node for name in node.input}
  (fold,) = (n for n in graph.node if n.op_type == 'SpaceToDepth')
  assert makers[fold.input[0]].input[0] == 'image'
  last = makers['restored']
  unfold = makers[last.input[0]]
  assert (unfold.op_type, makers[unfold.input[0]].op_type) == (
    'DepthToSpace', 'Cast'
  )  # fmt: skip
  # Nothing is left that nobody reads.
  assert all(n in readers for node in graph.node for n in node.output
             if n != 'restored')  # fmt: skip
  assert all(weight.name in readers for weight in graph.initializer)


def test_auto_is_the_first_runtime_that_agrees(monkeypatch):
  shared = network('one scale')
  assert backends.available(shared)[-1] == 'xla'
  assert backends.choose('auto', shared) == backends.available(shared)[0]
  monkeypatch.setenv(caching.VARIABLE, caching.OFF)
  monkeypatch.setattr(backends, 'MAX_DIFFERENCE', -1.0)
  assert backends.choose('auto', shared) == 'xla'
  pytest.importorskip('onnxruntime')
  with pytest.raises(backends.BackendError, match="Use backend 'xla'"):
    backends.choose('onnxruntime', shared)


def test_a_runtime_that_fails_is_not_chosen(monkeypatch):
  pytest.importorskip('onnxruntime')

  def fail(*args):
    raise RuntimeError('libonnx.so: cannot open\nmore of it')

  monkeypatch.setenv(caching.VARIABLE, caching.OFF)
  monkeypatch.setitem(backends.BACKENDS, 'onnxruntime', fail)
  shared = network('one scale')
  assert 'onnxruntime' not in backends.available(shared)
  with pytest.raises(
    backends.BackendError, match="not work here: .*cannot open. Use .*'xla'"
  ):
    backends.choose('onnxruntime', shared)


@pytest.mark.parametrize(
  ('backend', 'dtype', 'message'),
  [
    ('onnxruntme', 'float32', "Did you mean 'onnxruntime'"),
    ('xla', 'float16', 'dtype is .float16.; expected one of float32'),
    ('onnxruntime', 'bfloat16', 'no bfloat16'),
  ],
)
def test_what_cannot_be_used_is_named(backend, dtype, message):
  rough = dataclasses.replace(network('one scale'), dtype=dtype)
  with pytest.raises(backends.BackendError, match=message):
    backends.choose(backend, rough)


def test_runtimes_tell_nobody(tmp_path):
  """ONNX Runtime 1.29 and newer does, and keeps a file for it."""
  pytest.importorskip('onnxruntime')
  code = (
    'from pynas_jax.deploy import restorer; import numpy as np; '
    "restore = restorer.load('fast', backend='onnxruntime'); "
    'restore(np.zeros((8, 8, 3), np.uint8))'
  )
  unset = ('ORT_DISABLE_TELEMETRY', 'XDG_CACHE_HOME')
  kept = {k: v for k, v in os.environ.items() if k not in unset}
  subprocess.run(
    [sys.executable, '-c', code], check=True, env=kept | {'HOME': str(tmp_path)}
  )
  assert not list(tmp_path.rglob('*icrosoft*'))


def test_a_missing_package_is_named_with_the_way_to_get_it():
  with pytest.raises(backends.BackendError, match=r'pynas-jax\[export\]'):
    backends.need('no_such_runtime')


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_timing_is_of_the_runtime(runtime):
  pytest.importorskip(runtime)
  shared = network('one scale')
  restorer = Restorer(shared.genotype, shared.params, backend=runtime)
  timing = benchmark.time_restorer(restorer, height=33, width=40, runs=3)
  assert timing['backend'] == runtime
  assert 0 < timing['p50'] <= timing['p95']
  total = timing['p50'] + timing['to_device'] + timing['to_host']
  assert timing['real_time'] == (total <= config_lib.REAL_TIME_MS)
