"""Sets JAX up before any test imports it: devices, strictness, cache.

Tests see four virtual CPU devices, so that data parallelism is tested anywhere;
`jax.devices()[:1]` is the single device to compare with.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import sys

# They concern the CPU platform alone; a GPU is left as it is.
_FLAGS = {'--xla_force_host_platform_device_count': '4'}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # Unoptimized programs compile in a third of the time without them. 0.12 has
  # no such flag, and would not start.
  _FLAGS['--xla_cpu_use_fusion_emitters'] = 'false'
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    _set = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{_set} {_flag}={_value}'.strip()

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
  """Strict JAX, and compiled programs kept between test runs."""
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  # As `backends.need` does it: a test may import the runtimes before.
  sys.modules.setdefault('openvino_telemetry', None)
  os.environ['ORT_DISABLE_TELEMETRY'] = '1'
  # Tests compile much and compute little. In the environment too, for the
  # processes that tests start.
  if not os.environ.get('JAX_PLATFORMS', '').startswith('cuda'):
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
    jax.config.update('jax_disable_most_optimizations', True)
  # One cache per version: entries of another one are never of use.
  name = f'jax-{jax.__version__}-py{sys.version_info.minor}'
  cache = getattr(config, 'cache', None)
  cache = cache and cache.mkdir(name)
  if cache and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.05'
    jax.config.update('jax_compilation_cache_dir', str(cache))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)


@pytest.fixture(autouse=True)
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
  """Times of layers and networks need not be good ones in tests."""
  from pynas_jax import latency

  monkeypatch.setattr(latency, 'SECONDS', 0.0)


@pytest.fixture
def four_devices() -> None:
  """Skips where there are fewer."""
  if jax.local_device_count() < 4:
    pytest.skip(f'{jax.local_device_count()} devices; four are needed')


@pytest.fixture
def short_of_memory(monkeypatch) -> None:
  """Steps ask for 64 TiB, of one device: of several, some might wait."""

  def run(*args):
    del args
    return jax.block_until_ready(jax.numpy.zeros(1 << 46, jax.numpy.uint8))

  monkeypatch.setattr(
    'pynas_jax.parallel.make_parallel', lambda *_, **__: run
  )


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
  """The root of the source tree."""
  return ROOT


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """Material beside the source tree that is too big for it; skips without."""
  path = ROOT.parent / 'shared'
  if not path.is_dir():
    pytest.skip(f'{path} is not there: it holds reference images and weights')
  return path


@pytest.fixture(scope='session')
def identity(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A real network whose weights are all zero: it returns what it is given."""
  from pynas_jax import genotype
  from pynas_jax import spaces
  from pynas_jax.deploy import restorer
  from pynas_jax.spaces import base

  cells = ('zero', 'zero')
  net = genotype.PyramidGenotype(
    scales=(genotype.ScaleGenotype(1, cells, cells),), widths=(2, 2),
    cells_per_stage=1,
  )  # fmt: skip
  module = spaces.space_of(net).network(net)
  params = base.init_params(jax.random.key(0), module)
  params = jax.tree.map(lambda x: 0 * x, params)
  path = tmp_path_factory.mktemp('identity') / 'network'
  return restorer.Restorer(net, params).save(path)
