"""Stops a long run without losing what it did.

Ctrl-C, and SIGTERM, which a cluster sends before it kills, wait for the step in
hand: the loop saves it, and then the signal does what it would have done at
once. A second one does so without waiting. Ours; no paper describes this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading

from pynas_jax.logbook import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
  """Holds back a signal that would stop the process, to the end of the block.

  Yields:
    A function that tells whether one came: time to save and leave the block.
  """
  received: list[int] = []
  handlers = {}

  def restore() -> None:
    for number, handler in handlers.items():
      signal.signal(number, handler)

  def receive(number: int, frame: object) -> None:
    del frame
    received.append(number)
    restore()  # The next one does not wait.

  # Only the main thread gets signals, and may say what they do.
  if threading.current_thread() is threading.main_thread():
    for number in SIGNALS:
      handler = signal.getsignal(number)
      # Ignored, or not Python's: not ours to change.
      if handler not in (signal.SIG_IGN, None):
        handlers[number] = handler
        signal.signal(number, receive)
  is_done = False
  try:
    yield lambda: bool(received)
    is_done = True
  finally:
    restore()
    if received:
      what = 'saved, and stopped' if is_done else 'stopped'
      say(f'{signal.Signals(received[0]).name}: {what}')
      signal.raise_signal(received[0])


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
  """Lets SIGTERM do what Ctrl-C does: nothing half written is left."""
  if threading.current_thread() is not threading.main_thread():
    yield  # No signals here.
    return
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
