"""Signals that ask a process to stop, and the exit codes that tell of them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn


@contextlib.contextmanager
def handle_signals(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
  """Have signals call a function, until the end of the block.

  Only the main thread gets signals: in others nothing changes.
  """
  before = {}
  if threading.current_thread() is threading.main_thread():
    before = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, former in before.items():
      signal.signal(number, former)


class Interrupted(KeyboardInterrupt):
  """Ctrl-C, or another signal that asks to stop; `args` is its number."""


def raise_interrupted(number: int, frame: Any) -> NoReturn:
  """Handle a signal by unwinding.

  Raises:
    Interrupted: always.
  """
  del frame
  raise Interrupted(number)


def code_of_interrupt(error: KeyboardInterrupt) -> int:
  """Return the exit code of a process that a signal unwound.

  >>> code_of_interrupt(Interrupted(signal.SIGTERM)), code_of_interrupt(KeyboardInterrupt())
  (143, 130)
  """
  return exit_code_of(error.args[0] if isinstance(error, Interrupted) else signal.SIGINT)


def exit_code_of(number: int) -> int:
  """Return the exit code of a process that a signal ended, as shells have it.

  >>> exit_code_of(signal.SIGTERM)
  143
  """
  return 128 + number
