"""Programs: by oneDNN where it is, and what the cache is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax import compiling

needs_onednn = pytest.mark.skipif(
  not compiling.has_onednn(), reason='no oneDNN in this jaxlib or system'
)


@jax.jit
def convolve(x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def arrays(dtype='float32'):
  rng = np.random.default_rng(0)
  shapes = (1, 32, 32, 16), (3, 3, 16, 16)
  return [jnp.asarray(rng.random(s, np.float32), dtype) for s in shapes]


@needs_onednn
def test_convolutions_are_those_of_onednn():
  compiled = compiling.compile_program(convolve, *arrays())
  assert '__onednn' in compiled.as_text()


def test_bfloat16_is_left_to_xla():
  args = arrays('bfloat16')
  compiled = compiling.compile_program(convolve, *args, dtype='bfloat16')
  assert '__onednn' not in compiled.as_text()


@needs_onednn
def test_flag_of_the_user_is_left_alone(monkeypatch):
  flag = '--xla_cpu_experimental_onednn_custom_call=false'
  monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} {flag}')
  compiled = compiling.compile_program(convolve, *arrays())
  assert '__onednn' not in compiled.as_text()


def test_steps_have_them_in_long_runs_alone(monkeypatch):
  assert compiling.of_steps(10) is None
  assert compiling.of_steps(10**6, 'bfloat16') is None
  assert bool(compiling.of_steps(10**6)) == compiling.has_onednn()
  monkeypatch.setattr(compiling, 'has_onednn', lambda dtype: True)
  args = arrays()
  step = compiling.of_steps(10**6)(convolve, *args)
  np.testing.assert_allclose(step(*args), convolve(*args), rtol=1e-5)


def test_results_are_those_of_xla():
  args = arrays()
  restored = compiling.compile_program(convolve, *args)(*args)
  np.testing.assert_allclose(restored, convolve(*args), rtol=1e-5)


@needs_onednn
def test_without_the_option_xla_compiles_as_it_does(monkeypatch):
  monkeypatch.setattr(compiling, '_ONEDNN', {'xla_no_such_option': True})
  args = arrays()
  compiled = compiling.compile_program(convolve, *args)
  np.testing.assert_array_equal(compiled(*args), convolve(*args))


def test_cache_is_asked_for_nothing_that_it_cannot_keep(tmp_path):
  code = """if True:
    from pynas_jax import compiling
    from tests import test_compiling as t
    args = t.arrays()
    compiling.compile_program(t.convolve, *args)(*args)
    t.convolve(*args)  # Is kept, as before.
  """
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  subprocess.run(
    [sys.executable, '-W', 'error::UserWarning', '-c', code], check=True,
    env=os.environ | cache,
  )  # fmt: skip
  kept = [p.name for p in tmp_path.rglob('jit_convolve*-cache')]
  assert len(kept) == 1
