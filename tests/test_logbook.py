"""A logbook survives kills; progress shows in terminals and in log files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from pynas_jax import logbook


def lines(workdir):
  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(s, parse_constant=refuse) for s in text.splitlines()]


def events(workdir, stage):
  """Returns the (tag, step, value) that TensorBoard would show."""
  out = []
  folder = workdir / 'tensorboard' / stage
  for path in folder.glob('events.out.tfevents.*'):
    data = path.read_bytes()
    while data:  # Length, its checksum, an event and its checksum.
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      out += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
      data = data[16 + size :]
  return sorted(out)


def fill(book, steps, stages=('search/trial0/scale2', 'train')):
  for stage in stages:
    for step in steps:
      book.write(stage, step, {'train/loss': 1 / step})


def test_records_are_lines_of_json_flushed_at_once(tmp_path):
  workdir = tmp_path / 'runs' / 'new'
  with logbook.Logbook(workdir) as book:
    book.write('train', 1, {'train/loss': np.float32(0.5), 'images': 8})
    expected = [{'stage': 'train', 'step': 1, 'train/loss': 0.5, 'images': 8}]
    assert lines(workdir) == expected
  assert logbook.read_records(workdir) == expected


def test_what_json_cannot_say_is_null(tmp_path):
  with logbook.Logbook(tmp_path) as book:
    bad = {'a': math.nan, 'b': -math.inf, 'c': np.float32('inf'), 'd': 1.0}
    book.write('train', 1, bad)
  record = lines(tmp_path)[0]
  assert record == {
    'stage': 'train', 'step': 1, 'a': None, 'b': None, 'c': None, 'd': 1.0
  }  # fmt: skip
  assert events(tmp_path, 'train') == [('d', 1, 1.0)]


def test_tensorboard_has_a_run_for_each_stage(tmp_path):
  with logbook.Logbook(tmp_path) as book:
    fill(book, (1, 2))
  for stage in ('search/trial0/scale2', 'train'):
    expected = [('train/loss', 1, 1.0), ('train/loss', 2, 0.5)]
    assert events(tmp_path, stage) == expected


def test_a_resumed_run_leaves_the_records_of_an_uninterrupted_one(tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  with logbook.Logbook(whole) as book:
    fill(book, range(1, 7), ('train',))
  with logbook.Logbook(broken) as book:
    fill(book, range(1, 5), ('train',))
  with logbook.Logbook(broken) as book:
    book.rewind('train', 2)
    fill(book, range(3, 7), ('train',))
  assert lines(broken) == lines(whole)
  assert events(broken, 'train') == events(whole, 'train')


def test_rewind_leaves_other_stages_alone(tmp_path):
  with logbook.Logbook(tmp_path) as book:
    fill(book, (1, 2, 3))
    book.rewind('train', -1)
    book.rewind('never', 0)
    book.write('train', 1, {'train/loss': 7})
  steps = [(r['stage'], r['step']) for r in lines(tmp_path)]
  search = [('search/trial0/scale2', step) for step in (1, 2, 3)]
  assert steps == [*search, ('train', 1)]
  assert len(events(tmp_path, 'search/trial0/scale2')) == 3
  assert events(tmp_path, 'train') == [('train/loss', 1, 7.0)]


def test_a_torn_last_line_is_dropped(tmp_path):
  with logbook.Logbook(tmp_path) as book:
    fill(book, (1, 2), ('train',))
  with (tmp_path / 'metrics.jsonl').open('ab') as file:
    file.write('{"stage": "train", "step": 3, "ü'.encode()[:-1])
  assert [r['step'] for r in logbook.read_records(tmp_path)] == [1, 2]
  with logbook.Logbook(tmp_path) as book:
    fill(book, (3,), ('train',))
  assert [r['step'] for r in lines(tmp_path)] == [1, 2, 3]
  assert not list(tmp_path.glob('*.tmp'))


def test_a_damaged_file_is_refused_with_its_line(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"stage": "a", "step": 1}\noops\n')
  with pytest.raises(logbook.RecordError, match='line 2 is not a record'):
    logbook.Logbook(tmp_path)


def test_records_survive_sigkill(tmp_path):
  code = (
    'import os, signal, sys\n'
    'from pynas_jax import logbook\n'
    'book = logbook.Logbook(sys.argv[1])\n'
    'for step in (1, 2, 3):\n'
    '  book.write("train", step, {"train/loss": step})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  process = subprocess.run([sys.executable, '-c', code, str(tmp_path)])
  assert process.returncode == -signal.SIGKILL
  with logbook.Logbook(tmp_path) as book:
    book.rewind('train', 2)
  assert [r['step'] for r in lines(tmp_path)] == [1, 2]
  # Though the dead process never flushed its events.
  assert [step for _, step, _ in events(tmp_path, 'train')] == [1, 2]


def test_progress_prints_plain_lines_without_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr(logbook, 'PLAIN_SECONDS', 0.0)
  with logbook.progress(4, 'train [1-2]', start=1) as bar:
    for step in (2, 3, 4):
      bar.update(step, **{'loss': 1 / step, 'psnr': 30.123456})
  shown = capsys.readouterr().err.splitlines()
  assert len(shown) == 3
  assert shown[0].startswith('train [1-2]  2/4  0:00:00 elapsed, -:--:-- left')
  assert shown[-1].endswith('4/4  0:00:00 elapsed, 0:00:00 left  '
                            'loss 0.25  psnr 30.12')  # fmt: skip


def test_progress_prints_little_without_a_terminal(capsys):
  with pytest.raises(KeyboardInterrupt), logbook.progress(99, 'search') as bar:
    for step in range(1, 50):
      bar.update(step)
    raise KeyboardInterrupt
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('search  49/99')


def test_progress_draws_a_bar_in_a_terminal():
  code = (
    'from pynas_jax import logbook\n'
    'with logbook.progress(3, "train [1-2]", start=1) as bar:\n'
    '  bar.update(2, loss=0.5)\n'
    '  bar.update(3, loss=0.25)\n'
  )
  ours, theirs = pty.openpty()
  env = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '100'}
  with subprocess.Popen(
    [sys.executable, '-c', code], stderr=theirs, env=env
  ) as process:
    os.close(theirs)
    shown = b''
    with contextlib.suppress(OSError):  # How Linux says that it was closed.
      while part := os.read(ours, 1 << 12):
        shown += part
  os.close(ours)
  assert process.returncode == 0
  shown = shown.decode()
  for text in ('train [1-2]', '3/3', 'loss 0.25', '━'):
    assert text in shown


def test_table_shows_names_and_short_values(capsys):
  logbook.table('Report [demo]', [
    ('PSNR', 31.23456), ('parameters', 7232524), ('ssim', None),
    ('genotype', 'runs/demo/genotype.json'), ('gain', np.float32(0.5)),
  ])  # fmt: skip
  shown = capsys.readouterr().out
  for text in ('Report [demo]', '31.23', '7,232,524', ' - ', '0.5',
               'runs/demo/genotype.json'):  # fmt: skip
    assert text in shown
