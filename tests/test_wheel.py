"""The wheel alone, in an empty environment and an empty folder."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CODE = """if True:
  import pathlib
  import pynas_jax
  from pynas_jax import config
  assert 'site-packages' in pynas_jax.__file__, pynas_jax.__file__
  result = pynas_jax.derive_and_train(config.shrink(config.base()))
  print(result.genotype.describe(), result.metrics)
  assert pathlib.Path('runs/pipeline/report.json').stat().st_size
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_runs_in_an_empty_environment_from_an_empty_folder(tmp_path):
  """Installs the wheel with what it asks for, photographs included."""

  def run(*args, **options):
    subprocess.run(list(map(str, args)), check=True, **options)

  run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
      '--wheel-dir', tmp_path, ROOT)  # fmt: skip
  run(sys.executable, '-m', 'venv', tmp_path / 'venv')
  python = tmp_path / 'venv' / 'bin' / 'python'
  (wheel,) = tmp_path.glob('pynas_jax-*.whl')
  run(python, '-m', 'pip', 'install', '--quiet', wheel)
  empty = tmp_path / 'empty'
  empty.mkdir()
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  env['XLA_FLAGS'] = ''
  run(python, '-c', CODE, cwd=empty, env=env)
  run(python, '-m', 'pynas_jax.main', '--config=configs/evaluate.py',
      '--config.checkpoint=fast', cwd=empty, env=env)  # fmt: skip
