"""A stop by a signal loses nothing; no two processes share a workdir."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import interruption
from pynas_jax import parallel
from pynas_jax import train
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.logbook import BusyError
from pynas_jax.logbook import Logbook
from pynas_jax.search import bilevel
from pynas_jax.spaces import make_space

ROOT = pathlib.Path(__file__).resolve().parents[1]
CELLS = ('conv_3x3',)
GENOTYPE = genotype_lib.PyramidGenotype(
  (genotype_lib.ScaleGenotype(1, CELLS, CELLS),), (4,), 1
)


@pytest.fixture(autouse=True)
def python_handles_sigint():
  """It does not where a shell runs the tests in the background."""
  old = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, old)


def test_a_signal_waits_for_the_end_of_the_block():
  handlers = [signal.getsignal(number) for number in interruption.SIGNALS]
  steps = []
  with pytest.raises(KeyboardInterrupt):
    with interruption.deferred() as interrupted:
      assert not interrupted()
      signal.raise_signal(signal.SIGINT)
      assert interrupted()
      steps.append('saved')
    steps.append('after')
  assert steps == ['saved']
  assert handlers == [signal.getsignal(n) for n in interruption.SIGNALS]


def test_a_second_signal_does_not_wait():
  steps = []
  with pytest.raises(KeyboardInterrupt):
    with interruption.deferred():
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)
      steps.append('saved')
  assert not steps


def test_an_error_is_not_hidden_and_handlers_come_back():
  handler = signal.getsignal(signal.SIGINT)
  with pytest.raises(ValueError, match='loss'):
    with interruption.deferred():
      raise ValueError('loss')
  assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_is_not_lost_where_the_block_fails():
  with pytest.raises(KeyboardInterrupt):
    with interruption.deferred():
      signal.raise_signal(signal.SIGINT)
      raise ValueError('loss')


def test_ignored_signals_stay_ignored_and_threads_are_left_alone():
  old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    with interruption.deferred() as interrupted:
      signal.raise_signal(signal.SIGTERM)
      assert not interrupted()
  finally:
    signal.signal(signal.SIGTERM, old)
  told = []

  def work():
    with interruption.deferred() as interrupted:
      told.append(interrupted())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert told == [False]


def small_config():
  c = config_lib.shrink(config_lib.base())
  c.model.widths = (4,)
  c.train.num_steps, c.train.eval_every = 6, 4
  c.search.num_steps, c.search.eval_every = 6, 4
  c.search.collapse_fraction = 1.0
  return c


def run_training(workdir):
  c = small_config()
  c.train.optimizer = 'muon'
  with Logbook(workdir) as logbook:
    result = train.train(
      GENOTYPE, c, directory=workdir / 'train', logbook=logbook
    )
  return result.params, result.psnr


def run_search(workdir):
  c = small_config()
  space = make_space(c)
  draft = space.draft((1,))
  with Logbook(workdir) as logbook:
    result = bilevel.search_stage(
      space, draft, 'scale1', c, key=jax.random.key(0), params={},
      workdir=workdir, logbook=logbook, name='train',
    )  # fmt: skip
  return result.params, result.record


@pytest.mark.parametrize('run', [run_training, run_search])
@pytest.mark.parametrize('at', [3, 4])
def test_stopped_and_resumed_it_ends_as_if_never_stopped(
  run, at, tmp_path, monkeypatch
):
  whole = run(tmp_path / 'whole')
  add = parallel.Launched.add

  def stop(self, step, result):
    add(self, step, result)
    if step == at:
      signal.raise_signal(signal.SIGINT)

  with monkeypatch.context() as patch:
    patch.setattr(parallel.Launched, 'add', stop)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / 'broken')
  with Checkpoints(tmp_path / 'broken' / 'train') as checkpoints:
    assert checkpoints.latest() == at
  again = run(tmp_path / 'broken')
  jax.tree.map(np.testing.assert_array_equal, again[0], whole[0])
  assert again[1] == whole[1]


def test_a_workdir_in_use_is_refused_with_the_owner(tmp_path):
  code = (
    'import sys; from pynas_jax.logbook import Logbook\n'
    f'book = Logbook({str(tmp_path)!r}); print("open", flush=True)\n'
    'sys.stdin.read()'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
  ) as process:  # fmt: skip
    assert process.stdout.readline() == 'open\n'
    with pytest.raises(BusyError, match=f'in use by process {process.pid} on'):
      Logbook(tmp_path)
    with pytest.raises(BusyError, match='use another workdir'):
      api.open_workdir(tmp_path, small_config())
    process.kill()
  # A killed process holds nothing.
  with Logbook(tmp_path), pytest.raises(BusyError, match=str(os.getpid())):
    Logbook(tmp_path)
  Logbook(tmp_path).close()


def test_commands_save_and_say_how_they_were_stopped(tmp_path):
  """SIGTERM, then Ctrl-C, long before the first score."""
  genotype = tmp_path / 'small.json'
  genotype.write_text(GENOTYPE.to_json())
  command = [
    sys.executable, '-m', 'pynas_jax.main', '--config=configs/train.py:tiny',
    f'--config.genotype={genotype}', f'--workdir={tmp_path}',
    '--config.train.num_steps=100000', '--config.train.eval_every=100000',
  ]  # fmt: skip
  steps = [0]
  for number, status in ((signal.SIGTERM, -15), (signal.SIGINT, 130)):
    with subprocess.Popen(
      command, cwd=ROOT, text=True, stderr=subprocess.PIPE,
      env=os.environ | {'XLA_FLAGS': ''},
    ) as process:  # fmt: skip
      # A stop that is not heard fails, and does not hang.
      late = threading.Timer(240, process.kill)
      late.start()
      for line in process.stderr:
        step = re.match(r'train +(\d+)/', line)
        if step and int(step[1]) > steps[-1]:
          break
      process.send_signal(number)
      output = process.stderr.read()
      late.cancel()
    assert process.returncode == status, output
    assert f'{number.name}: saved, and stopped' in output
    assert 'Traceback' not in output
    with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
      steps.append(checkpoints.latest())
  assert 0 < steps[1] < steps[2] < 100000
