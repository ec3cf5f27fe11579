"""Every benchmark turns at a tiny size and ends with one JSON object."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import inference
from benchmarks import measure
from benchmarks import networks
from benchmarks import supernet_step
from benchmarks import train_step
from experiments.gpu import frames
from pynas_jax.nn.layers import Layer

SMALL = ('--height=24', '--width=32', '--runs=1')
FOUND = (*SMALL, '--networks=found')
COMMANDS = {
  'benchmarks.gradients': ('--shapes=1x8x2', '--runs=1'),
  'benchmarks.operators': ('--side=8', '--width=2', '--runs=1'),
  'benchmarks.video': (
    '--frames=2', '--height=24', '--width=32', '--runs=1',
  ),
  'experiments.gpu.frames': (*FOUND, '--peak-size=16', '--eager'),
}  # fmt: skip
SLOW = {
  'benchmarks.train_step': (
    '--networks=found', '--crop=8', '--batch=2', '--devices=1,2', '--runs=1',
  ),
  'benchmarks.compile_time': ('--tasks=restore', '--width=2'),
  'benchmarks.scaling': ('--side=16', '--width=4', '--runs=1'),
}  # fmt: skip


def run(module, flags, monkeypatch, capsys):
  """Returns what a benchmark's last line holds."""
  monkeypatch.setattr(sys, 'argv', [module, *flags])
  monkeypatch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
  importlib.import_module(module).main()
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert {'rows', 'device', 'versions', 'commit'} <= set(result)
  return result


@pytest.mark.parametrize('module', COMMANDS)
def test_benchmarks_turn(module, monkeypatch, capsys):
  result = run(module, COMMANDS[module], monkeypatch, capsys)
  for row in result['rows']:
    times = [v for k, v in row.items() if k.endswith('_ms')]
    # What is compared with may be missing.
    assert any(times) and all(t is None or t > 0 for t in times)


@pytest.mark.slow
@pytest.mark.parametrize('module', SLOW)
def test_longer_benchmarks_turn(module, monkeypatch, capsys):
  assert run(module, SLOW[module], monkeypatch, capsys)['rows']


@pytest.mark.slow
@pytest.mark.parametrize('step', supernet_step.STEPS)
def test_sampled_steps_are_compared(step, monkeypatch, capsys):
  flags = ('--sizes=tiny', f'--steps={step}', '--runs=1')
  result = run('benchmarks.supernet_step', flags, monkeypatch, capsys)
  assert result[f'tiny_{step}_sampled_to_static_ms'] > 0
  assert result[f'tiny_{step}_remat_to_mixture_temp_mib'] > 0
  assert all(row['process_mib'] > 100 for row in result['rows'])


def test_tests_are_collected_without_pytorch():
  code = """if True:
    import sys
    import pytest
    sys.modules['torch'] = None
    sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider']))
  """
  found = subprocess.run(
    [sys.executable, '-c', code], check=False, capture_output=True, text=True
  )
  assert found.returncode == 0, found.stdout[-2000:]
  assert 'benchmarks/measure.py' in found.stdout
  assert 'benchmarks/peers.py' not in found.stdout


@pytest.mark.parametrize(
  ('flag', 'reason'),
  [
    ('--variants=sampled,static,fast', "{'fast'}; expected some of"),
    ('--variants=sampled,torch', "lacks {'static'}"),
  ],
)
def test_variants_that_cannot_be_compared_are_refused(
  flag, reason, monkeypatch, capsys
):
  monkeypatch.setattr(sys, 'argv', ['', flag])
  with pytest.raises(SystemExit, match='2'):
    supernet_step.main()
  assert reason in capsys.readouterr().err


def test_networks_without_a_peer_are_refused():
  with pytest.raises(SystemExit, match='nafnet-16 is no pyramid'):
    networks.read('nafnet-16')


def test_types_that_are_not_asked_for_have_no_rows(monkeypatch, capsys):
  flags = (*FOUND, '--runtimes=xla', '--dtypes=float32')
  result = run('benchmarks.inference', flags, monkeypatch, capsys)
  assert [row['dtype'] for row in result['rows']] == ['float32']


def test_missing_runtimes_are_rows_that_say_so(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  flags = (*FOUND, '--runtimes=xla,jax.jit,torch,onnxruntime')
  result = run('benchmarks.inference', flags, monkeypatch, capsys)
  rows = {row['runtime']: row for row in result['rows']}
  assert rows['onnxruntime']['note'] == 'not installed'
  assert rows['jax.jit']['psnr_to_f32_db'] > 100
  assert rows['onnxruntime']['p50_ms'] is None
  assert rows['xla']['p50_ms'] > 0
  for row in result['rows']:
    peak = result['peak_gmacs_per_s'].get(row['dtype'])
    if peak and row['p50_ms']:
      rate = row['gmacs'] / (row['p50_ms'] / 1e3)
      assert row['share_of_peak'] == pytest.approx(rate / peak)


def test_what_was_measured_before_an_interrupt_is_reported(capsys):
  def measure_rows(count):
    yield from [{'ms': 1.0}] * count
    raise KeyboardInterrupt

  def count_rows(rows):
    return {'count': len(rows)}

  with pytest.raises(SystemExit, match='130'):
    measure.report('Some', measure_rows(2), count_rows)
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result['rows'] == [{'ms': 1.0}] * 2
  assert result['count'] == 2
  assert result['interrupted']
  with pytest.raises(KeyboardInterrupt):
    measure.report('None', measure_rows(0), count_rows)


def test_psnr_of_rounding():
  assert measure.psnr_db(np.zeros(4), np.ones(4)) == 0


def test_ratios_are_to_pytorch_and_the_peak_is_of_bfloat16():
  ms = {'xla': 50.0, 'torch': 100.0, 'openvino': 30.0, 'onnxruntime': 40.0}
  rows = [
    {'network': 'a', 'runtime': runtime, 'dtype': 'float32', 'gmacs': 2.0,
     'p50_ms': p50}
    for runtime, p50 in ms.items()
  ]  # fmt: skip
  # 2e9 multiply-adds at 80e9 a second take 25 ms.
  assert inference.ratios(rows, {'float32': 40.0, 'bfloat16': 80.0}) == {
    'a_xla_to_torch': 0.5, 'a_best_exported_to_torch': 0.3,
    'a_floor_to_torch': 0.25,
  }  # fmt: skip


def test_the_step_of_training_is_the_one_that_is_compared():
  rows = [
    {'network': 'a', 'step': step, 'to_torch': ratio}
    for step, ratio in (('jit', 1.2), ('pmap, 1 devices', 1.1), ('torch', 1.0))
  ]
  assert train_step.ratios(rows) == {'a_to_torch': 1.1}


def test_bytes_between_convolutions_count():
  of = {name: frames.count_bytes(Layer('cell', name, 1, 4, 4, 8, 8), 2)
        for name in ('conv_3x3', 'conv_3x3_x2', 'zero')}  # fmt: skip
  params = 9 * 8 * 8 + 8
  assert of == {
    'conv_3x3': 2 * (16 * 16 + params),
    'conv_3x3_x2': 2 * (16 * 32 + 2 * params),
    'zero': 0,
  }


def test_pictures_of_all_runtimes_are_alike(monkeypatch, capsys):
  flags = COMMANDS['experiments.gpu.frames']
  rows = run('experiments.gpu.frames', flags, monkeypatch, capsys)['rows']
  peers = {'torch'} if measure.is_installed('torch') else set()
  assert {row['runtime'] for row in rows} == peers | {'ours'}
  assert min(row['psnr_to_ours_db'] for row in rows) > 45


def test_programs_without_time_are_rows_that_say_so(monkeypatch, capsys):
  flags = [*COMMANDS['experiments.gpu.frames'], '--ready-within=0']
  rows = run('experiments.gpu.frames', flags, monkeypatch, capsys)['rows']
  assert {row['note'] for row in rows} == {'left out: no time'}
  assert {row['p50_ms'] for row in rows} == {None}


def test_bytes_of_layers():
  size = (2, 4, 4, 8, 16)
  values = {'conv': 24, 'down': 8 + 4, 'up': 8 + 64, 'fuse': 32}
  for kind, per_pixel in values.items():
    layer = Layer(kind, 'pixel_shuffle' if kind == 'up' else '', *size)
    expected = 2 * (32 * per_pixel + layer.count()[0])
    assert frames.count_bytes(layer, 2) == expected


@pytest.mark.slow
def test_script_of_the_gpu_runs_a_part(root, tmp_path):
  script = root / 'experiments' / 'gpu' / 'run_all.sh'
  environment = os.environ | {
    'OUT': str(tmp_path), 'PYTHON': sys.executable, 'PYTHONPATH': str(root)
  }  # fmt: skip
  environment['COMMIT'] = 'abc'
  parts = ('operators', 'tests')
  subprocess.run([script, '--dry-run', *parts], check=True, env=environment)
  for part in parts:
    result = json.loads((tmp_path / f'{part}.json').read_text())
    assert result['device'].startswith('cpu')
    assert result['commit'] == 'abc'
  assert ' passed' in result['result']
  late = subprocess.run(
    [script, '--dry-run', 'tests', 'operators'], check=False, text=True,
    env=environment | {'LIMIT': '1'}, stdout=subprocess.PIPE,
  )  # fmt: skip
  assert late.returncode == 1
  assert 'operators: not begun; LIMIT is 1 s' in late.stdout
  refused = subprocess.run([script, 'nothing'], env=environment, check=False)
  assert refused.returncode == 2
