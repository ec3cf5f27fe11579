"""Networks in 8 bits: grids, what is rounded, and that runtimes agree."""

import dataclasses
import json
import platform

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageDraw
import pytest

from pynas_jax import caching
from pynas_jax import genotype as genotype_lib
from pynas_jax import parallel
from pynas_jax.deploy import backends
from pynas_jax.deploy import calibration
from pynas_jax.deploy import export
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.deploy.backends import BackendError
from pynas_jax.deploy.backends import Network
from pynas_jax.nn import ops
from pynas_jax.nn import quantization
from pynas_jax.nn.quantization import Grid
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

CELLS = ('conv_3x3_dil2', 'sep_conv_3x3')
NETWORKS = {
  'pyramid': genotype_lib.PyramidGenotype(
    scales=tuple(
      genotype_lib.ScaleGenotype(p, CELLS, CELLS[::-1]) for p in (1, 3)
    ),
    widths=(4, 8), cells_per_stage=1, unshuffle=2, upsample='transposed',
  ),
  'HiNAS x2': genotype_lib.HinasGenotype(
    cells=((((0, 'conv_3x3'), (1, 'skip')),),), levels=(0,), width=4,
    stem_width=4, scale=2,
  ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv(caching.VARIABLE, str(tmp_path / 'cache'))
  monkeypatch.setattr(backends, '_unkept', {})
  return tmp_path / 'cache'


def network(name='pyramid'):
  genotype = NETWORKS[name]
  module = space_of(genotype).network(genotype)
  params = base.init_params(jax.random.key(0), module)
  return Network(genotype, params, 'int8')


def simulated(network, image):
  restore = jax.jit(backends.make_int8_restore(network))
  return np.asarray(restore(network.params, image))


def test_a_grid_has_zero_and_both_ends():
  for low, high in ((0, 1), (-0.3, 0.7), (-2, 0)):
    grid = Grid.between(low, high)
    ends = np.array([low, 0, high], np.float32)
    rounded = quantization.round_input(ends, grid.scale, grid.zero)
    np.testing.assert_allclose(rounded, ends, atol=grid.scale)
    assert rounded[1] == 0
  # Of a feature map that is 0 everywhere.
  grid = Grid.between(0, 0)
  assert quantization.round_input(0.0, grid.scale, grid.zero) == 0


@pytest.mark.parametrize('levels', [127, 64])
def test_kernels_have_values_on_both_sides_of_0_in_each_channel(levels):
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 4))
  kernel *= jnp.array([1.0, 10, 100, 0]).reshape(1, 1, 1, 4)
  rounded = quantization.round_kernel(kernel, levels)
  scale = quantization.kernel_scale(kernel, levels)
  values = np.asarray(rounded / scale)
  np.testing.assert_allclose(values, np.round(values), atol=1e-3)
  assert np.abs(values).max((0, 1, 2)).round().tolist() == [*3 * [levels], 0]
  assert (np.abs(rounded - kernel) <= scale / 2 + 1e-6).all()


def test_grids_fit_what_is_seen():
  rng = np.random.default_rng(0)
  even = rng.uniform(-1, 3, (1_000_000, 1)).astype(np.float32)
  weights = np.ones_like(even)
  grid = calibration.fit(even, weights)
  assert 255 * grid.scale == pytest.approx(4, rel=0.06)
  assert grid.zero == pytest.approx(64, abs=1)
  assert grid.widths == (1.0,)
  # One value far away is clipped rather than all others rounded to nothing.
  values = np.abs(even)
  values[0] = 6
  assert 255 * calibration.fit(values, weights).scale < 4
  # Less so if half of them are as large, though they count for little.
  values[::2], weights[::2] = 2 * values[::2], 1e-2
  assert 255 * calibration.fit(values, weights).scale > 5


def test_narrow_channels_are_widened():
  rng = np.random.default_rng(0)
  values = rng.uniform(0, 1, (1000, 3)).astype(np.float32) * [16, 1, 0]
  grid = calibration.fit(values.astype(np.float32), np.ones((1000, 1)))
  np.testing.assert_allclose(grid.widths, [1, 1 / 4, 1e-3**0.5], rtol=0.01)
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 8))
  x = jnp.asarray(values, jnp.float32).reshape(1, 20, 50, 3)
  exact = ops.conv2d(x, kernel)
  errors = []
  for widths in (grid.widths, ()):
    with quantization.rounding([dataclasses.replace(grid, widths=widths)]):
      errors.append(np.abs(ops.conv2d(x, kernel) - exact)[..., :].mean())
  assert 0 < errors[0] < errors[1]


def test_every_kind_of_convolution_is_seen_and_rounded():
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
  for module in (
    ops.Conv(6), ops.Conv(6, stride=2), ops.TransposedConv(6),
    ops.SeparableConv(6),
  ):  # fmt: skip
    params = module.init(jax.random.key(1), x)
    seen = []
    with quantization.observing(seen.append):
      exact = module.apply(params, x)
    assert len(seen) == (2 if isinstance(module, ops.SeparableConv) else 1)
    grids = [
      calibration.fit(value, np.ones((len(value), 1)))
      for value in (np.asarray(x).reshape(-1, x.shape[-1]) for x in seen)
    ]
    with quantization.rounding(grids):
      rounded = module.apply(params, x)
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    # Without the context, all is as before.
    np.testing.assert_array_equal(module.apply(params, x), exact)


@pytest.mark.parametrize(
  'machine, features, levels',
  [('x86_64', 'avx2', 64), ('AMD64', '', 64), ('x86_64', 'avx2 avx_vnni', 127),
   ('x86_64', 'avx512f avx512_vnni', 127), ('aarch64', 'asimd', 127)],
)  # fmt: skip
def test_kernels_have_7_bits_where_8_might_overflow(
  machine, features, levels, monkeypatch
):
  monkeypatch.setattr(platform, 'machine', lambda: machine)
  monkeypatch.setattr(parallel, 'processor', lambda: ('', features))
  assert quantization.kernel_levels() == levels
  onnx = pytest.importorskip('onnx')
  in_8_bits = network()
  graph = onnx.load_from_string(backends.export_onnx(in_8_bits, np.uint8)).graph
  kernels = [
    onnx.numpy_helper.to_array(w) for w in graph.initializer
    if w.data_type == onnx.TensorProto.INT8
  ]  # fmt: skip
  assert {np.abs(kernel).max() for kernel in kernels} == {levels}


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_graphs_restore_as_the_simulation(name, runtime):
  pytest.importorskip(runtime)
  in_8_bits = network(name)
  image = backends.photograph(36, 48)
  graph = backends.export_onnx(in_8_bits, np.float32)
  run = (
    backends.open_onnx(graph) if runtime == 'onnxruntime'
    else backends.open_openvino(graph, 'float32', image.shape)
  )  # fmt: skip
  found, expected = run(image), simulated(in_8_bits, image)
  exact_network = dataclasses.replace(in_8_bits, dtype='float32')
  exact = backends.compile_network(
    'xla', exact_network, image.shape, image.dtype
  )(image)
  # A value between two of a grid may go to the other one.
  apart = np.abs(expected - exact).mean()
  assert np.abs(found - expected).mean() < apart / 3
  assert apart < 0.01


def test_convolutions_of_graphs_are_of_integers():
  onnx = pytest.importorskip('onnx')
  graph = onnx.load_from_string(
    backends.export_onnx(network(), np.uint8)
  ).graph
  makers = {name: node for node in graph.node for name in node.output}
  types = {w.name: w.data_type for w in graph.initializer}
  convs = [node for node in graph.node if node.op_type == 'Conv']
  assert convs
  for conv in convs:
    x, kernel = (makers[name] for name in conv.input)
    assert x.op_type == kernel.op_type == 'DequantizeLinear'
    assert makers[x.input[0]].op_type == 'QuantizeLinear'
    assert types[kernel.input[0]] == onnx.TensorProto.INT8


def test_text_stays_sharp():
  """It makes values several times as large as photographs do."""
  pytest.importorskip('openvino')
  page = Image.new('RGB', (320, 120), 'white')
  for top in range(5, 110, 15):
    ImageDraw.Draw(page).text((5, top), 'Hamburgefonstiv 0123456789', 'black')
  page = np.asarray(page)

  def psnr_db(**options):
    error = restorer_lib.load('fast', **options)(page) - page.astype(float)
    return -10 * np.log10(np.square(error / 255).mean())

  exact = psnr_db()
  assert psnr_db(dtype='int8', backend='openvino') > exact - 3


def test_networks_are_calibrated_once(cache, monkeypatch, capsys):
  pytest.importorskip('openvino')
  assert backends.choose('auto', network()) == 'openvino'
  assert 'calibrating for 8 bits' in capsys.readouterr().err
  (grids,) = cache.rglob('*-grids')
  kept = json.loads(grids.read_bytes()[backends._CHECKSUM_BYTES :])
  assert len(kept) == 2 * 10  # Convolutions of each scale.
  monkeypatch.delattr(calibration, 'calibrate')
  for path in cache.rglob('*.onnx'):
    path.unlink()
  assert backends.choose('auto', network()) == 'openvino'
  assert not capsys.readouterr().err


def test_other_runtimes_have_no_int8():
  for backend in ('xla', 'onnxruntime'):
    pytest.importorskip('onnxruntime')
    with pytest.raises(BackendError, match='no int8 here; .* .openvino.'):
      backends.choose(backend, network())
  assert set(backends.available(network())) <= {'openvino'}


def test_a_network_that_8_bits_spoil_is_refused(monkeypatch):
  pytest.importorskip('openvino')
  monkeypatch.setitem(backends.MAX_PSNR_CHANGE_DB, 'int8', -1.0)
  with pytest.raises(BackendError, match='openvino in int8 .* Use float32'):
    backends.choose('auto', network())


@pytest.mark.parametrize('name', ['fast', 'quality'])
def test_networks_of_the_package_keep_their_psnr(name):
  pytest.importorskip('openvino')
  exact = restorer_lib.load(name)
  in_8_bits = restorer_lib.load(name, dtype='int8', backend='auto')
  assert in_8_bits.backend == 'openvino'
  sharp = backends.photograph(192, 256)
  blurry = sum(np.roll(sharp, shift, 2) for shift in range(5)) / 5
  psnr_db = [
    -10 * np.log10(np.square(restorer(blurry) - sharp).mean())
    for restorer in (exact, in_8_bits)
  ]
  assert abs(psnr_db[1] - psnr_db[0]) < 0.05


@pytest.mark.parametrize('kind', ['onnx', 'openvino'])
@pytest.mark.parametrize('size', ['dynamic', '35x51'])
def test_export_in_8_bits(kind, size, tmp_path, capsys):
  pytest.importorskip('onnxruntime')
  pytest.importorskip('openvino')
  model = restorer_lib.Restorer(network().genotype, network().params)
  folder = model.save_pretrained(tmp_path / 'net')
  flags = [f'--model={folder}', f'--format={kind}', f'--size={size}']
  out = tmp_path / f'out{export.SUFFIXES[kind]}'
  status = export.main([*flags, f'--out={out}', '--dtype=int8'])
  told = capsys.readouterr()
  if status and (kind, size) == ('openvino', 'dynamic'):
    # On some processors, OpenVINO 2026.4 is wrong where sizes are open.
    assert 'Try a fixed size' in told.err
    assert not out.exists()
    return
  assert status == 0
  assert 'INFERENCE_PRECISION_HINT' not in told.out
  assert ('fix the size' in told.out) == (size == 'dynamic')
  run = (
    backends.open_onnx(out) if kind == 'onnx'
    else backends.open_openvino(out, 'int8')
  )  # fmt: skip
  height, width = (36, 48) if size == 'dynamic' else (35, 51)
  photo = np.round(255 * backends.photograph(height, width)).astype(np.uint8)
  exact, found = model(photo).astype(int), run(photo).astype(int)
  assert 0 < np.abs(found - exact).max() < 16


@pytest.mark.parametrize('kind', ['saved', 'stablehlo'])
def test_jax_has_no_8_bits(kind, tmp_path, capsys):
  flags = ['--model=fast', f'--format={kind}', f'--out={tmp_path / "out"}']
  assert export.main([*flags, '--dtype=int8']) == 2
  assert 'int8 is for formats onnx and openvino' in capsys.readouterr().err
