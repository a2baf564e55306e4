"""How commands meet their user: log lines, progress and errors, all on stderr; tables; flags."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import rich.console
import rich.logging
import rich.progress
from absl import flags
from absl import logging as absl_logging

from lra_tasks.signals import code_of_interrupt

# One console: a log line written while a bar is shown must go above the bar.
CONSOLE = rich.console.Console(stderr=True)

# Flags that are defined here belong to the command that asks for them: its --help shows them.
flags.disclaim_key_flags()

logger = logging.getLogger(__name__)

_SECONDS_PER_LOG = 10


def set_up_logging() -> None:
  """Show our own messages; of the libraries', only warnings.

  Libraries' INFO lines (dozens for each checkpoint) would bury ours; --verbosity shows them.
  """
  if not flags.FLAGS['verbosity'].present:
    absl_logging.set_verbosity(absl_logging.WARNING)
    # What Orbax cannot write it logs once in each of its threads, and then raises.
    absl_logging.get_absl_logger().addFilter(
      lambda record: not (record.exc_info and 'orbax' in record.pathname)
    )
  # Said of every checkpoint without an evaluation, which is what we mean.
  absl_logging.get_absl_logger().addFilter(
    lambda record: 'did not provide metrics' not in record.getMessage()
  )
  if CONSOLE.is_terminal:
    handler: logging.Handler = rich.logging.RichHandler(
      console=CONSOLE, show_path=False, show_level=False, log_time_format='%X'
    )
  else:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  for package in ('lra_tasks', 'kl_flax'):
    ours = logging.getLogger(package)
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def parse_flags(argv: list[str]) -> list[str]:
  """Parse a command line, for `app.run`; a wrong flag is one line, not a page of all flags.

  Commands with a --config have `lra_tasks.command_line.parse_flags`.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f'error: {with_help(str(error), error)}', file=sys.stderr)
    sys.exit(1)


def with_help(message: str, error: Exception) -> str:
  """Return a message about a wrong command line; for an unknown flag, with where to find it."""
  unknown = isinstance(error, flags.UnrecognizedFlagError)
  return f'{message} (--help lists all flags)' if unknown else message


def one_line_errors(main: Callable[..., int | None]) -> Callable[..., int]:
  """Decorate a command's `main`: what its user can mend is one line, not a traceback.

  The exit code is then 1 after a ValueError, an OSError or without matplotlib, which is optional,
  and 130 after Ctrl-C (143 after a SIGTERM that unwound); else it is what `main` returns, where
  None is 0.
  """

  @functools.wraps(main)
  def guarded(*arguments: Any, **options: Any) -> int:
    try:
      return main(*arguments, **options) or 0
    except KeyboardInterrupt as error:
      print('interrupted', file=sys.stderr)
      return code_of_interrupt(error)
    except (ValueError, OSError, ImportError) as error:
      if isinstance(error, ImportError) and 'matplotlib' not in str(error):
        raise
      print(f'error: {_describe(error)}', file=sys.stderr)
      return 1

  return guarded


def _describe(error: Exception) -> str:
  if isinstance(error, ImportError):
    return f'{error}; pip install matplotlib'
  is_file = isinstance(error, OSError) and error.filename
  return f'{error.filename}: {error.strerror}' if is_file else str(error)


class Progress:
  """A progress bar on a terminal, a log line every `log_seconds` elsewhere, nothing if not shown.

  Args:
    total: the last step.
    start: the step to go on from.
    show: False for nothing at all.
    log_seconds: between log lines, where there is no terminal.

  >>> with Progress(10, show=False) as progress:
  ...   progress.update(3, loss=1.2)
  """

  def __init__(self, total: int, *, start: int = 0, show: bool = True, log_seconds: float = 30):
    self._total = total
    self._interval = 0.2 if CONSOLE.is_terminal else log_seconds
    self._show = show
    self._shown = self._origin = (start, time.monotonic())
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn('{task.completed}/{task.total}'),
      rich.progress.BarColumn(),
      rich.progress.TextColumn('{task.description}'),
      rich.progress.TimeRemainingColumn(),
      console=CONSOLE,
      disable=not (show and CONSOLE.is_terminal),
    )
    self._task = self._bar.add_task('compiling', total=total, completed=start)

  def __enter__(self) -> Progress:
    """Show the bar."""
    self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    """Leave the bar where it stands."""
    self._bar.stop()

  def restart_clock(self, step: int) -> None:
    """Measure speed from here: what came before was compilation."""
    self._origin = (step, time.monotonic())

  def due(self) -> bool:
    """Return whether an update would be seen: metrics are worth fetching only then."""
    return self._show and time.monotonic() - self._shown[1] > self._interval

  def update(self, step: int, **values: float) -> None:
    """Show the step and its values."""
    now = time.monotonic()
    self._shown = (step, now)
    cells = [f'{name} {value:.4f}' for name, value in values.items()]
    origin, since = self._origin
    if step > origin:  # Else nothing was measured yet.
      rate = (step - origin) / max(now - since, 1e-9)
      cells.append(f'{rate:.2f} steps/s')
      if self._bar.disable:  # The bar tells it itself.
        cells.append(f'{(self._total - step) / rate:.0f} s left')
    text = '  '.join(cells)
    if not self._bar.disable:
      self._bar.update(self._task, completed=step, description=text)
    elif self._show:
      logger.info('step %d/%d  %s', step, self._total, text)


@contextlib.contextmanager
def show_progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
  """Yield a function to call with each number of examples done.

  Shows a bar on a terminal, and log lines every few seconds elsewhere.

  >>> with show_progress('counting', 10) as advance:
  ...   advance(10)
  """
  terminal = CONSOLE.is_terminal
  seconds = 0.1 if terminal else _SECONDS_PER_LOG
  done, shown = 0, time.monotonic()
  with rich.progress.Progress(console=CONSOLE, transient=True, disable=not terminal) as bar:
    task = bar.add_task(title, total=total)

    def advance(num: int) -> None:
      nonlocal done, shown
      done += num
      if time.monotonic() - shown < seconds:
        return
      shown = time.monotonic()
      bar.update(task, completed=done)
      if not terminal:
        logger.info('%s: %d%s', title, done, f' of {total}' if total else '')

    yield advance


def three_digits(value: float) -> str:
  """Return three digits, or all before the point; thousands are kept apart.

  >>> three_digits(0.14567), three_digits(12345.6)
  ('0.146', '12,346')
  """
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def table_lines(rows: Sequence[Sequence[str]], left: Container[int] = ()) -> list[str]:
  """Return a table in columns: its header, a rule, the other rows.

  Args:
    rows: texts, the header first, as many in each.
    left: numbers of the columns that are flush left.

  >>> print(*table_lines([('model', 'ms'), ('prf', '12.5')], left=(0,)), sep='\\n')
  model    ms
  ───────────
  prf    12.5
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      text.ljust(width) if i in left else text.rjust(width)
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append('  '.join(cells).rstrip())
  return [lines[0], '─' * max(map(len, lines)), *lines[1:]]


class _Integers(flags.ArgumentParser):
  """Whole numbers, separated by commas."""

  syntactic_help = 'whole numbers, separated by commas'

  def parse(self, argument: Any) -> list[int]:
    """Return the numbers."""
    return [int(part) for part in argument.split(',')] if isinstance(argument, str) else argument


def define_integers(
  name: str, default: Sequence[int], help_text: str, flag_values: flags.FlagValues
) -> None:
  """Define a flag of whole numbers, separated by commas."""
  serializer = flags.ListSerializer(',')
  flags.DEFINE(_Integers(), name, default, help_text, flag_values, serializer)
