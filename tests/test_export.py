"""Networks for other runtimes: every format, and what is refused."""

import os
import signal
import subprocess
import sys

import jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
import numpy as np
import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax.deploy import backends
from pynas_jax.deploy import export
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

onnx = pytest.importorskip('onnx')
CELLS = ('conv_3x3', 'sep_conv_3x3')
NETWORK = genotype_lib.PyramidGenotype(
  scales=tuple(genotype_lib.ScaleGenotype(p, CELLS, CELLS) for p in (1, 3)),
  widths=(4, 8), cells_per_stage=1,
)  # fmt: skip
SIZES = ('dynamic', '35x51')


@pytest.fixture(scope='module')
def restorer():
  network = space_of(NETWORK).network(NETWORK)
  return Restorer(NETWORK, base.init_params(jax.random.key(0), network))


@pytest.fixture(scope='module')
def model(restorer, tmp_path_factory):
  return restorer.save_pretrained(tmp_path_factory.mktemp('release') / 'net')


def run(model, out, *flags):
  return export.main([f'--model={model}', f'--out={out}', *flags])


def photo(size):
  size = (36, 48) if size == 'dynamic' else export.parse_size(size)
  return np.round(255 * backends.photograph(*size)).astype(np.uint8)


@pytest.mark.parametrize('size', SIZES)
def test_saved_runs_without_the_network(model, restorer, size, tmp_path):
  pytest.importorskip('flatbuffers')
  assert run(model, tmp_path / 'n', '--format=saved', f'--size={size}') == 0
  image = photo(size)
  found = export.load_saved(tmp_path / 'n.jax')(image)
  np.testing.assert_allclose(found.astype(int), restorer(image), atol=1)


@pytest.mark.parametrize('size', SIZES)
def test_onnx_runs_in_its_runtime(model, restorer, size, tmp_path, capsys):
  ort = pytest.importorskip('onnxruntime')
  assert run(model, tmp_path / 'n', '--format=onnx', f'--size={size}') == 0
  session = ort.InferenceSession(tmp_path / 'n.onnx')
  image = photo(size)
  (found,) = session.run(['restored'], {'image': image})
  np.testing.assert_allclose(found.astype(int), restorer(image), atol=1)
  told = 'height must be a multiple of 6, width of 2' in capsys.readouterr().out
  assert told == (size == 'dynamic')


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['onnx', 'saved', 'openvino', 'stablehlo'])
def test_networks_that_enlarge_are_written(kind, size, tmp_path):
  for library in ('onnxruntime', 'openvino', 'flatbuffers'):
    pytest.importorskip(library)
  genotype = genotype_lib.HinasGenotype(
    cells=((((0, 'conv_3x3'), (1, 'skip')),),), levels=(0,), width=4,
    stem_width=4, scale=2,
  )  # fmt: skip
  module = space_of(genotype).network(genotype)
  params = base.init_params(jax.random.key(0), module)
  model = Restorer(genotype, params).save_pretrained(tmp_path / 'net')
  assert run(model, tmp_path / 'n', f'--format={kind}', f'--size={size}') == 0


def test_openvino_runs_in_its_runtime(model, restorer, tmp_path):
  pytest.importorskip('openvino')
  flags = '--format=openvino', '--size=35x51', '--image=float32'
  assert run(model, tmp_path / 'n', *flags) == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == ['n.bin', 'n.xml']
  image = backends.photograph(35, 51)
  found = backends.open_openvino(tmp_path / 'n.xml', 'float32')(image)
  np.testing.assert_allclose(found, restorer(image), atol=1e-4)


def test_stablehlo_is_for_cpu_and_cuda(model, tmp_path):
  flags = '--format=stablehlo', '--size=35x51', '--dtype=bf16'
  assert run(model, tmp_path / 'n', *flags) == 0
  context = ir.Context()
  stablehlo.register_dialect(context)
  content = (tmp_path / 'n.mlir').read_bytes()
  module = stablehlo.deserialize_portable_artifact(context, content)
  assert 'tensor<1x35x51x3xui8>' in str(module)
  assert 'bf16' in str(module)


def test_a_wrong_file_is_not_left_behind(model, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(backends, 'MAX_DIFFERENCE', -1.0)
  assert run(model, tmp_path / 'n', '--format=onnx', '--image=float32') == 2
  assert 'differs from XLA by' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--format=onnx', '--size=720'), "size is '720'; expected"),
    (('--format=onnx', '--dtype=bf16'), 'use f32, or format openvino'),
    (('--format=onnx', '--model=nowhere'), 'nowhere is no folder'),
    (('--format=onnx', '--out=.'), 'out is ., a folder; expected a file'),
  ],
)
def test_bad_input_ends_with_status_2(model, tmp_path, flags, message, capsys):
  assert run(model, tmp_path / 'n', *flags) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.startswith('Error: ')


def test_a_folder_of_the_name_is_refused_before_any_work(tmp_path, capsys):
  (tmp_path / 'n.onnx').mkdir()
  assert run('nowhere', tmp_path / 'n', '--format=onnx') == 2
  assert 'n.onnx, a folder; expected a file' in capsys.readouterr().err


def test_a_full_disk_ends_with_status_1(model, tmp_path):
  """OpenVINO has an error of its own for it."""
  code = f"""if True:
    import resource, sys
    from pynas_jax.deploy import export
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    sys.exit(export.main(['--model={model}', '--out={tmp_path / 'n'}',
                          '--format=openvino', '--size=32x32']))
  """
  done = subprocess.run(
    [sys.executable, '-c', code], text=True, capture_output=True,
    env=os.environ | {'PYNAS_JAX_CACHE': 'off'},
  )  # fmt: skip
  assert done.returncode == 1, done.stderr
  assert 'Error: n.xml cannot be written' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_behind(
  model, tmp_path, monkeypatch, capsys, number
):
  def write(network, path, size, dtype):
    path.write_text('half of it')
    signal.raise_signal(number)

  monkeypatch.setitem(export.WRITERS, 'onnx', write)
  assert run(model, tmp_path / 'n', '--format=onnx') == 130
  assert capsys.readouterr().err == 'Stopped; nothing was written.\n'
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_ends_with_status_1(model, tmp_path):
  (tmp_path / 'file').touch()
  assert run(model, tmp_path / 'file' / 'n', '--format=onnx') == 1
