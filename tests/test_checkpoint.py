"""Checkpoints come back bit for bit, and damaged ones are passed over."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pynas_jax import checkpoint


def small_tree(step: int = 0):
  """Returns arrays of every kind that a run keeps."""
  params = {
    'conv': {'kernel': jnp.full((3, 3, 2, 4), 0.1 + step), 'bias': jnp.ones(4)},
    'half': jnp.arange(5, dtype=jnp.bfloat16) / 3,
  }
  state = {
    'opt': optax.adam(1e-3).init(params),
    'step': np.int32(step),
    'big': np.int64(2**40 + step),
    'key': jax.random.key_data(jax.random.key(step)),
    'odd': np.array([np.nan, -0.0, np.inf, 1e-42], np.float32),
    'mask': np.array([True, False]),
    'none': None,
  }
  return {'params': params, 'state': state, 'empty': ()}


def save(checkpoints, step, psnr=None):
  checkpoints.save(
    step,
    arrays=small_tree(step),
    meta={'position': step, 'names': ['a', 'b']},
    metrics=None if psnr is None else {'psnr': psnr},
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()


def test_round_trip_is_bit_exact(tmp_path):
  tree = small_tree(3)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 3, psnr=30.5)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 3
    arrays, meta = checkpoints.restore(3, tree)
    assert checkpoints.metrics(3) == {'psnr': 30.5}
  assert_same_bits(arrays, tree)
  assert arrays['params']['half'].dtype == jnp.bfloat16
  assert meta == {'position': 3, 'names': ['a', 'b']}


def test_abstract_arrays_are_enough(tmp_path):
  tree = small_tree()
  abstract = jax.eval_shape(lambda: tree['params'])
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 0)
    arrays, _ = checkpoints.restore(0, {'params': abstract})
  assert_same_bits(arrays['params'], tree['params'])


def test_arrays_of_many_devices_come_back_whole(tmp_path):
  mesh = jax.make_mesh((jax.device_count(),), ('batch',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  tree = jax.device_put({'w': jnp.arange(8.0)}, sharding)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, arrays={'params': tree}, meta={})
    arrays, _ = checkpoints.restore(1, {'params': tree})
  assert_same_bits(arrays['params'], {'w': np.arange(8, dtype=np.float32)})


def test_keeps_newest_two_and_best(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep_best_metric='psnr') as checkpoints:
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    for step, psnr in enumerate([1.0, 9.0, float('nan'), 2.0, 3.0, None]):
      save(checkpoints, step, psnr)
    assert checkpoints.steps() == [1, 4, 5]
    assert checkpoints.latest() == 5
    assert checkpoints.best() == 1


def test_a_step_before_the_newest_is_kept_when_saved(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    for step in (10, 20, 5):
      save(checkpoints, step)
    assert checkpoints.steps() == [5, 10, 20]
    assert checkpoints.meta(5)['position'] == 5


def test_a_reader_sees_what_another_saves(tmp_path):
  with (
    checkpoint.Checkpoints(tmp_path) as writer,
    checkpoint.Checkpoints(tmp_path) as reader,
  ):
    for step in (1, 2, 3):
      save(writer, step)
      assert reader.latest() == step
      arrays, _ = reader.restore(step, small_tree())
      assert_same_bits(arrays, small_tree(step))


def test_reading_writes_nothing(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'missing') as checkpoints:
    assert checkpoints.latest() is None
    with pytest.raises(checkpoint.CheckpointError, match='not finished'):
      checkpoints.meta(4)
  assert not (tmp_path / 'missing').exists()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
  (tmp_path / '2.orbax-checkpoint-tmp').mkdir()  # A job that is still writing.
  before = sorted(tmp_path.rglob('*'))
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 1
    checkpoints.restore(1, {'state': small_tree()['state']})
  assert sorted(tmp_path.rglob('*')) == before


def _halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  'damage',
  [pathlib.Path.unlink, lambda path: path.write_bytes(b''), _halve, _flip],
  ids=['deleted', 'emptied', 'halved', 'flipped'],
)
def test_any_damaged_file_falls_back_to_the_step_before(tmp_path, damage):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
  files = [p for p in (tmp_path / '2').rglob('*') if p.is_file()]
  assert len(files) > 10
  for path in files:
    data = path.read_bytes()
    damage(path)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      with pytest.warns(UserWarning, match=path.name):
        assert checkpoints.latest() == 1
    path.write_bytes(data)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 2


def test_a_damaged_step_is_refused_and_can_be_saved_again(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    _flip(tmp_path / '1' / 'params' / '_METADATA')
    with pytest.raises(checkpoint.CheckpointError, match='_METADATA is dam'):
      checkpoints.restore(1, {'params': small_tree()['params']})
    checkpoints.restore(1, {'state': small_tree()['state']})  # Still whole.
    with pytest.warns(UserWarning, match='_METADATA'):
      save(checkpoints, 1)
    assert checkpoints.latest() == 1


def test_unfinished_steps_are_ignored_then_removed(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
  (tmp_path / '7').mkdir()
  (tmp_path / '9.orbax-checkpoint-tmp-1').mkdir()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.warns(UserWarning, match='7.*manifest.json is missing'):
      assert checkpoints.latest() == 1
    with pytest.warns(UserWarning, match='7.*manifest.json is missing'):
      save(checkpoints, 2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2']


def test_saving_a_whole_step_again_leaves_it(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
  times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == times


@pytest.mark.parametrize(
  ('leaf', 'message'),
  [
    (
      np.zeros((3, 3, 2, 5), np.float32),
      r'is float32\[3, 3, 2, 4\].*\[3, 3, 2, 5\]',
    ),
    (np.zeros((3, 3, 2, 4), np.float16), r'is float32.*expected float16'),
  ],
)
def test_other_shape_or_dtype_names_the_leaf(tmp_path, leaf, message):
  tree = small_tree()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    tree['params']['conv']['kernel'] = leaf
    with pytest.raises(checkpoint.CheckpointError, match=message) as error:
      checkpoints.restore(1, tree)
  assert 'params/conv/kernel' in str(error.value)


def test_other_leaves_and_items_are_named(tmp_path):
  params = small_tree()['params']
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    more = params | {'extra': np.zeros(1)}
    with pytest.raises(checkpoint.CheckpointError, match='params/extra is no'):
      checkpoints.restore(1, {'params': more})
    less = {'conv': params['conv']}
    with pytest.raises(checkpoint.CheckpointError, match='half.*no such leaf'):
      checkpoints.restore(1, {'params': less})
    with pytest.raises(checkpoint.CheckpointError, match="no item 'ema'"):
      checkpoints.restore(1, {'ema': params})


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='keep_latest is 0'):
    checkpoint.Checkpoints(tmp_path, keep_latest=0)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(checkpoint.CheckpointError, match='meta is not JSON'):
      checkpoints.save(1, arrays={}, meta={'bad': object()})
    with pytest.raises(checkpoint.CheckpointError, match='metrics'):
      checkpoints.save(1, arrays={'metrics': np.ones(1)}, meta={})
  assert not list(tmp_path.iterdir())


def test_orbax_is_quiet(tmp_path, capfd):
  before = logging.get_verbosity()
  logging.set_verbosity(logging.INFO)
  try:
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      save(checkpoints, 1)
      checkpoints.restore(1, small_tree())
    assert logging.get_verbosity() == logging.INFO
  finally:
    logging.set_verbosity(before)
  assert capfd.readouterr().err == ''


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(OSError, match='has 1.0 MiB left, .* needs 1.0 MiB'):
      save(checkpoints, 2)
    assert checkpoints.steps() == [1]


@pytest.mark.skipif(sys.platform == 'win32', reason='no limits on files there')
@pytest.mark.filterwarnings('ignore:Checkpoint skipped')
def test_what_orbax_cannot_write_is_one_error_on_one_line(tmp_path, root):
  """As where a quota is exceeded; then there is room again."""
  code = """if True:
    import resource, sys
    import numpy as np
    from pynas_jax import checkpoint
    arrays = {'params': {'w': np.random.rand(400, 400).astype(np.float32)}}
    with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
      checkpoints.save(1, arrays=arrays, meta={})
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 500_000))
      try:
        checkpoints.save(2, arrays=arrays, meta={})
      except OSError as error:
        print(error)
  """
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)], check=True, text=True,
    capture_output=True, cwd=root, env=os.environ | {'PYTHONPATH': str(root)},
  )  # fmt: skip
  assert done.stderr == ''
  assert done.stdout.startswith(f'{tmp_path} cannot be written: ')
  assert done.stdout.count('\n') == 1
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 1
    save(checkpoints, 2)
    assert checkpoints.latest() == 2


_ENDLESS = """
import sys, itertools
import numpy as np
from pynas_jax import checkpoint
with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
  for step in itertools.count():
    arrays = {'params': {'w': np.full((256, 256), step, np.float32)}}
    checkpoints.save(step, arrays=arrays, meta={'step': step})
    print(step, flush=True)
"""


@pytest.mark.filterwarnings('ignore:Checkpoint skipped')
def test_a_kill_while_saving_leaves_the_step_before(tmp_path, root):
  abstract = {'params': {'w': np.zeros((256, 256), np.float32)}}
  # Delays into a save, in seconds: it takes about a tenth of one.
  for delay in (0.0, 0.04, 0.08):
    process = subprocess.Popen(
      [sys.executable, '-c', _ENDLESS, str(tmp_path / str(delay))],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root,
      env=os.environ | {'PYTHONPATH': str(root)},
    )  # fmt: skip
    saved = [int(process.stdout.readline()) for _ in range(3)][-1]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    saved = max([saved, *map(int, process.stdout)])
    process.communicate()
    with checkpoint.Checkpoints(tmp_path / str(delay)) as checkpoints:
      step = checkpoints.latest()
      assert step in (saved, saved + 1)
      arrays, meta = checkpoints.restore(step, abstract)
      assert meta == {'step': step}
      np.testing.assert_array_equal(arrays['params']['w'], np.float32(step))
      checkpoints.save(step + 5, arrays=abstract, meta={})
      assert checkpoints.latest() == step + 5
