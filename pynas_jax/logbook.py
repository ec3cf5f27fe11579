"""What a run tells: metrics.jsonl, TensorBoard events, progress bar and table.

A record is plain data, `{'stage': 'train', 'step': 10, 'train/loss': 0.1}`: the
stage of the run, the steps done in it and named numbers. The file is the truth
and the TensorBoard events mirror it, one TensorBoard run for each stage. This
module imports no JAX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import numbers
import os
import pathlib
import socket
import time
from typing import Any, Self

import filelock
from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

FILE_NAME = 'metrics.jsonl'
LOCK, OWNER = '.lock', '.lock.owner'
PLAIN_SECONDS = 10.0  # Between lines of progress where there is no terminal.
NOTEBOOK_SECONDS = 1.0  # Where one line takes the place of another.


class RecordError(ValueError):
  """A line of a log that is not a record; the message says which."""


def read_records(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the records of a run, oldest first; none if it wrote none.

  Args:
    workdir: Folder of the run.

  Returns:
    Dicts; a last line that a killed process left unfinished is ignored.

  Raises:
    RecordError: If another line is not a record.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    return []
  # Bytes, as a kill may split a character; what follows the last newline is
  # unfinished.
  records = []
  for i, line in enumerate(path.read_bytes().split(b'\n')[:-1]):
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if not isinstance(record, dict) or not {'stage', 'step'} <= record.keys():
      raise RecordError(
        f'{path}, line {i + 1} is not a record: {line[:60]!r}. Delete it, '
        'or the file to start anew.'
      )
    records.append(record)
  return records


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """Writes a file in one step, so that no reader meets half of it."""
  partial = path.with_name(path.name + '.tmp')
  partial.write_text(json.dumps(values, indent=2) + '\n')
  partial.replace(path)


def _number(value: Any) -> int | float | None:
  """Returns a JSON number; null for what JSON cannot say."""
  if isinstance(value, numbers.Integral):
    return int(value)
  value = float(value)
  return value if math.isfinite(value) else None


class BusyError(ValueError):
  """A working directory that another process writes to."""


def lock(workdir: str | os.PathLike) -> filelock.FileLock:
  """Takes a working directory, so that no two runs write to it.

  Args:
    workdir: Folder of a run; must be there.

  Returns:
    The lock, to be released; the system releases that of a killed process.

  Raises:
    BusyError: Names the process that has it.
  """
  workdir = pathlib.Path(workdir)
  held, owner = filelock.FileLock(workdir / LOCK), workdir / OWNER
  try:
    held.acquire(blocking=False)
  except filelock.Timeout:
    who = owner.read_text() if owner.exists() else 'another process'
    raise BusyError(
      f'{workdir} is in use by {who}. Wait for it, stop it, or use another '
      'workdir.'
    ) from None
  owner.write_text(f'process {os.getpid()} on {socket.gethostname()}')
  return held


class Logbook:
  """Appends records to `metrics.jsonl`, and the like to TensorBoard.

  A run that resumes calls `rewind` with the step it resumes from, and its
  records are those of a run that never stopped.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the logbook of a run, a new one or one to be continued.

    Args:
      workdir: Folder of the run; made if need be.

    Raises:
      BusyError: If another process has it open.
    """
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._lock = lock(workdir)
    self._path = self._workdir / FILE_NAME
    self._writers: dict[str, Any] = {}  # tensorboardX.SummaryWriter.
    self._open(read_records(workdir))

  def _open(self, records: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the file in one step, then appends to it."""
    text = ''.join(json.dumps(record) + '\n' for record in records)
    temporary = self._path.with_suffix('.jsonl.tmp')
    temporary.write_text(text)
    os.replace(temporary, self._path)
    self._file = self._path.open('a')

  def write(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
    """Appends a record and flushes it.

    Args:
      stage: Part of the run, such as 'search/trial0/scale2' or 'train'.
      step: Steps done in this stage.
      figures: Name, such as 'train/loss' -> number or array of one element;
        NaN and infinity are written as null.
    """
    numbers_ = {name: _number(value) for name, value in figures.items()}
    record = {'stage': stage, 'step': int(step), **numbers_}
    self._file.write(json.dumps(record, allow_nan=False) + '\n')
    self._file.flush()
    self._mirror(record)

  def _mirror(self, record: Mapping[str, Any]) -> None:
    import tensorboardX  # Seconds, where it finds PyTorch: for runs alone.

    stage = record['stage']
    if stage not in self._writers:
      self._writers[stage] = tensorboardX.SummaryWriter(
        str(self._workdir / 'tensorboard' / stage),
        flush_secs=10,
        # The name has a clock of seconds otherwise, and a twin is overwritten.
        filename_suffix=f'.{time.time_ns()}',
      )
    for name, value in record.items():
      if name not in ('stage', 'step') and value is not None:
        self._writers[stage].add_scalar(name, value, record['step'])

  def rewind(self, stage: str, step: int) -> None:
    """Forgets the records of a stage after a step.

    Args:
      stage: Part of the run that is resumed or, with step -1, starts anew.
      step: Steps done in the checkpoint that it resumes from.
    """
    kept = [
      record for record in read_records(self._workdir)
      if record['stage'] != stage or record['step'] <= step
    ]  # fmt: skip
    self._file.close()
    self._open(kept)
    # Written anew, as a killed process never flushed its last events.
    if stage in self._writers:
      self._writers.pop(stage).close()
    folder = self._workdir / 'tensorboard' / stage
    for path in folder.glob('events.out.tfevents.*'):
      path.unlink()
    for record in kept:
      if record['stage'] == stage:
        self._mirror(record)

  def close(self) -> None:
    """Writes out what is pending; harmless when repeated."""
    with contextlib.ExitStack() as stack:  # All of it, on a full disk too.
      stack.callback(self._lock.release)
      while self._writers:
        stack.callback(self._writers.popitem()[1].close)
      stack.callback(self._file.close)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def _text(value: Any) -> str:
  """Writes a value for people.

  >>> _text(7232524), _text(31.23456), _text(1e-4), _text(None)
  ('7,232,524', '31.23', '0.0001', '-')
  """
  if value is None:
    return '-'
  if isinstance(value, (str, bool)):
    return str(value)
  if isinstance(value, numbers.Integral):
    return f'{int(value):,}'
  try:
    return f'{float(value):.4g}'
  except (TypeError, ValueError):
    return str(value)


def _clock(seconds: float | None) -> str:
  """Writes a duration in hours, minutes and seconds.

  >>> _clock(3723.4), _clock(None)
  ('1:02:03', '-:--:--')
  """
  if seconds is None:
    return '-:--:--'
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


class _PlainBar:
  """Progress as lines of text for log files and pipes, as one in a notebook."""

  def __init__(self, console, total: int, description: str, start: int):
    self._total, self._description = total, description
    self._file = console.file
    # Rich's own bars need widgets there, which a saved notebook does not keep.
    self._in_place = console.is_jupyter
    self._step, self._figures, self._shown, self._width = start, '', None, 0
    self._begin = self._printed = time.monotonic()
    # The first step compiles: the pace is measured from its end.
    self._first: tuple[float, int] | None = None

  def update(self, step: int, **figures: Any) -> None:
    now = time.monotonic()
    self._step = step
    self._figures = _join(figures) or self._figures
    self._first = self._first or (now, step)
    seconds = NOTEBOOK_SECONDS if self._in_place else PLAIN_SECONDS
    if now - self._printed >= seconds:
      self._printed = now
      self.show()

  def show(self) -> None:
    if self._step == self._shown:
      return
    self._shown = self._step
    now = time.monotonic()
    left = None
    if self._step >= self._total:
      left = 0.0
    elif self._first is not None and self._step > self._first[1]:
      pace = (now - self._first[0]) / (self._step - self._first[1])
      left = pace * (self._total - self._step)
    line = (
      f'{self._description}  {self._step}/{self._total}  '
      f'{_clock(now - self._begin)} elapsed, {_clock(left)} left'
    )
    # A bare line: no markup, colours or wrapping in a log file.
    line = '  '.join(filter(None, (line, self._figures)))
    if self._in_place:
      line, self._width = '\r' + line.ljust(self._width), len(line)
    self._file.write(line if self._in_place else line + '\n')
    self._file.flush()

  def close(self) -> None:
    self.show()
    if self._in_place and self._width:
      self._file.write('\n')


class _RichBar:
  """Progress as a bar that redraws itself."""

  def __init__(self, progress, task):
    self._progress, self._task = progress, task

  def update(self, step: int, **figures: Any) -> None:
    fields = {'figures': _join(figures)} if figures else {}
    self._progress.update(self._task, completed=step, **fields)


def _join(figures: Mapping[str, Any]) -> str:
  return '  '.join(f'{name} {_text(value)}' for name, value in figures.items())


@contextlib.contextmanager
def progress(
  total: int, description: str, start: int = 0
) -> Iterator[_RichBar | _PlainBar]:
  """Shows how far a loop is, and how long it will take.

  Draws a bar in a terminal, and prints plain lines elsewhere; in a notebook it
  is one, overwritten.

  Args:
    total: Steps of the loop.
    description: What the loop does, in a few words.
    start: Steps done before, when resumed.

  Yields:
    A bar, to be told the steps done by `bar.update(step, loss=0.1, ...)`; the
    latest figures stand beside it.
  """
  console = rich_console.Console(stderr=True)
  if console.is_jupyter or not console.is_interactive:
    bar = _PlainBar(console, total, description, start)
    try:
      yield bar
    finally:
      bar.close()
    return
  # In a narrow terminal the bar and the figures give way, not the times.
  column = rich_table.Column
  columns = (
    rich_progress.TextColumn('{task.description}', markup=False),
    rich_progress.BarColumn(bar_width=None, table_column=column(ratio=1)),
    rich_progress.MofNCompleteColumn(table_column=column(no_wrap=True)),
    rich_progress.TimeElapsedColumn(table_column=column(min_width=7)),
    rich_progress.TimeRemainingColumn(table_column=column(min_width=7)),
    rich_progress.TextColumn('left', table_column=column(min_width=4)),
    rich_progress.TextColumn(
      '{task.fields[figures]}', markup=False,
      table_column=column(no_wrap=True, overflow='ellipsis'),
    ),
  )  # fmt: skip
  shown = rich_progress.Progress(*columns, console=console, expand=True)
  with shown:
    task = shown.add_task(description, total=total, completed=start, figures='')
    yield _RichBar(shown, task)


def table(title: str, rows: Sequence[tuple[str, Any]]) -> None:
  """Prints names and values.

  Args:
    title: Heading.
    rows: Pairs of a name and a value; numbers are shortened.
  """
  shown = rich_table.Table(title=title, title_justify='left')
  shown.add_column('')
  shown.add_column('', justify='right', overflow='fold')
  shown.show_header = False
  for name, value in rows:
    shown.add_row(name, _text(value))
  rich_console.Console(markup=False, highlight=False).print(shown)


def say(text: str) -> None:
  """Prints a line for people, where the progress bars are."""
  rich_console.Console(stderr=True).print(text, markup=False, highlight=False)
