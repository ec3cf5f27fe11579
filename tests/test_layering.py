"""The package keeps to its layers, and to what it may import and call."""

from __future__ import annotations

import ast
import configparser
import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 'pynas_jax'

# A module imports only modules above it. Names are relative to the package.
ORDER = (
  'genotype', 'config', 'metrics', 'losses', 'resize', 'parallel',
  'compiling',
  'nn', 'nn.canvas', 'nn.quantization', 'nn.patches', 'nn.winograd', 'nn.ops',
  'nn.gates', 'nn.mixed', 'nn.blocks', 'nn.layers',
  'spaces.base', 'spaces.pynas', 'spaces.hinas_paths', 'spaces.hinas_modules',
  'spaces.hinas', 'spaces.nafnet', 'spaces.dmphn', 'spaces',
  'command', 'logbook', 'interruption',
  'data', 'data.blur', 'data.degrade', 'data.augment', 'data.files',
  'data.faults', 'data.builders.base', 'data.builders.deblurring',
  'data.builders.restoration', 'data.builders', 'data.sources',
  'data.pipeline', 'data.check', 'data.shutter', 'data.video',
  'data.pair_folder', 'data.make_pairs',
  'checkpoint', 'drawing', 'plot', 'train',
  'latency', 'search', 'search.stopping', 'search.cost', 'search.refine',
  'search.bilevel', 'search.schemes', 'search.local', 'search.pareto',
  'search.hierarchical',
  'caching', 'deploy', 'deploy.calibration', 'deploy.onnx_graph',
  'deploy.backends', 'deploy.release', 'deploy.tiling', 'deploy.restorer',
  'deploy.benchmark', 'deploy.export', 'deploy.images', 'deploy.videos',
  'restore', 'deblur', 'registration', 'evaluate', 'api', 'main', 'report',
)  # fmt: skip
# The package itself loads `api`, when first asked for a function of it.
FILES = {
  '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix(
    '.__init__'
  ): path
  for path in sorted(PACKAGE.rglob('*.py'))
  if path != PACKAGE / '__init__.py'
}
NO_JAX = (
  'genotype', 'resize', 'drawing', 'plot', 'data.shutter', 'data.video',
  'data.pair_folder', 'data.make_pairs', 'deploy.images', 'deploy.videos',
  'restore', 'deblur', 'report',
)  # fmt: skip
FORBIDDEN_IMPORTS = ('tensorflow', 'pickle', 'cloudpickle', 'dill', 'marshal')
FORBIDDEN_CALLS = (
  'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen',
)  # fmt: skip


@functools.cache
def tree(module: str) -> ast.Module:
  return ast.parse(FILES[module].read_text())


def imports(module: str) -> set[str]:
  """Returns the full names that a module imports, lazily or not."""
  found = set()
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module}:{node.lineno} imports relatively'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def inner_imports(module: str) -> set[str]:
  """Returns the modules of this package that a module imports."""
  found = set()
  for name in imports(module):
    if not name.startswith('pynas_jax.'):
      continue
    name = name.removeprefix('pynas_jax.')
    if name not in FILES:  # `from pynas_jax.spaces import space_of`.
      name = name.rpartition('.')[0]
    if name:  # '' is the package itself, for its version.
      found.add(name)
  return found


def dotted(node: ast.expr) -> str:
  """Returns 'os.system' for the expression os.system."""
  if isinstance(node, ast.Attribute):
    return f'{dotted(node.value)}.{node.attr}'
  return node.id if isinstance(node, ast.Name) else ''


def test_every_file_has_a_place_in_the_order():
  assert sorted(ORDER) == sorted(FILES)


@pytest.mark.parametrize('module', FILES)
def test_imports_point_one_way(module):
  above = set(ORDER[: ORDER.index(module)])
  assert inner_imports(module) <= above


@pytest.mark.parametrize('module', FILES)
def test_nothing_forbidden_is_imported(module):
  roots = {name.partition('.')[0] for name in imports(module)}
  assert not roots & set(FORBIDDEN_IMPORTS)


@pytest.mark.parametrize('module', FILES)
def test_no_code_is_made_of_text(module):
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Call):
      where = f'{module}:{node.lineno}'
      assert dotted(node.func) not in FORBIDDEN_CALLS, where
      for keyword in node.keywords:
        shell = keyword.arg == 'shell'
        assert not shell or ast.unparse(keyword.value) == 'False', where


def run_python(code: str, **env: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code], check=True, text=True, capture_output=True,
    env=os.environ | {'PYTHONPATH': str(PACKAGE.parent)} | env,
  ).stdout.strip()  # fmt: skip


@pytest.mark.parametrize('module', NO_JAX)
def test_loads_no_jax(module):
  code = f'import sys, pynas_jax.{module}; print("jax" in sys.modules)'
  assert run_python(code) == 'False'


def test_functions_and_subpackages_keep_apart():
  code = """if True:
    import pynas_jax
    print(set(pynas_jax.__all__) <= set(dir(pynas_jax)))
    print(callable(pynas_jax.derive_and_train), callable(pynas_jax.load))
    from pynas_jax import train
    print(callable(train.make_schedule))
  """
  assert run_python(code).split() == ['True'] * 4


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('', 'xla'),
    # A user's own choice stays.
    ('--xla_cpu_experimental_ynn_fusion_type=+individual_convolution', 'ynn'),
  ],
)
def test_convolutions_of_few_channels_use_all_cores(flags, expected):
  """YNNPACK of jaxlib 0.10 runs this one on one core."""
  if not importlib.metadata.version('jaxlib').startswith('0.10.'):
    pytest.skip('in this jaxlib, YNNPACK uses all cores')
  code = """if True:
    import pynas_jax
    import jax
    from pynas_jax.nn import ops
    x, kernel = jax.numpy.ones((1, 64, 64, 32)), jax.numpy.ones((3, 3, 32, 32))
    text = jax.jit(ops.conv2d).lower(x, kernel).compile().as_text()
    print('ynn' if '__ynn_fusion' in text else 'xla')
  """
  assert run_python(code, XLA_FLAGS=flags, JAX_PLATFORMS='cpu') == expected


def test_flags_of_a_user_are_kept():
  """One that XLA does not know would stop every program."""
  code = 'import os, pynas_jax; print(os.environ["XLA_FLAGS"])'
  flags = run_python(code, XLA_FLAGS='--xla_cpu_enable_fast_math=false')
  own, *ours = flags.split()
  assert own == '--xla_cpu_enable_fast_math=false'
  is_old = importlib.metadata.version('jaxlib').startswith('0.10.')
  assert len(ours) == is_old


def test_every_package_is_in_the_wheel():
  setup = configparser.ConfigParser()
  setup.read(PACKAGE.parent / 'setup.cfg')
  files = PACKAGE.rglob('__init__.py')
  found = {
    '.'.join(file.parent.relative_to(PACKAGE.parent).parts) for file in files
  }
  named = set(setup['options']['packages'].split())
  assert named == found | {'pynas_jax.configs'}


def test_requirements_agree_with_setup_cfg():
  root = PACKAGE.parent
  setup = configparser.ConfigParser()
  setup.read(root / 'setup.cfg')
  expected = setup['options']['install_requires'].split()
  lines = (root / 'requirements.txt').read_text().splitlines()
  assert [line for line in lines if line[:1] not in ('#', '')] == expected
