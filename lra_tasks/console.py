"""What a user sees while something runs: log lines and progress bars, all on stderr."""

from __future__ import annotations

import logging
import time

import rich.console
import rich.logging
import rich.progress
from absl import flags
from absl import logging as absl_logging

# One console: a log line written while a bar is shown must go above the bar.
CONSOLE = rich.console.Console(stderr=True)

logger = logging.getLogger(__name__)


def set_up_logging() -> None:
  """Show our own messages; of the libraries', only warnings.

  Libraries' INFO lines (dozens for each checkpoint) would bury ours; --verbosity shows them.
  """
  if not flags.FLAGS['verbosity'].present:
    absl_logging.set_verbosity(absl_logging.WARNING)
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


class Progress:
  """A progress bar on a terminal, a log line every `log_seconds` elsewhere, nothing if not shown.

  >>> with Progress(10, show=False) as progress:
  ...   progress.update(3, loss=1.2)
  """

  def __init__(self, total: int, *, start: int = 0, show: bool = True, log_seconds: float = 30):
    self._total, self._log_seconds = total, log_seconds
    self._started, self._first = time.monotonic(), start
    self._logged = self._drawn = self._started
    self._bar = None
    self._show = show
    if show and CONSOLE.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('[bold]{task.description}'),
        rich.progress.BarColumn(),
        rich.progress.TextColumn('{task.completed}/{task.total}'),
        rich.progress.TextColumn('{task.fields[text]}'),
        rich.progress.TimeRemainingColumn(),
        console=CONSOLE,
      )
      self._task = self._bar.add_task('train', total=total, completed=start, text='')

  def __enter__(self) -> Progress:
    """Show the bar."""
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    """Leave the bar where it stands."""
    if self._bar is not None:
      self._bar.stop()

  def due(self) -> bool:
    """Return whether an update would be seen: metrics are worth fetching only then."""
    now = time.monotonic()
    if self._bar is not None:
      return now - self._drawn > 0.2
    return self._show and now - self._logged > self._log_seconds

  def update(self, step: int, **values: float) -> None:
    """Show the step and its values."""
    now = time.monotonic()
    rate = (step - self._first) / max(now - self._started, 1e-9)
    text = '  '.join(f'{name} {value:.4f}' for name, value in values.items())
    text += f'  {rate:.2f} steps/s'
    self._drawn = now
    if self._bar is not None:
      self._bar.update(self._task, completed=step, text=text)
    elif self.due():
      self._logged = now
      left = (self._total - step) / max(rate, 1e-9)
      logger.info('step %d/%d  %s  %.0f s left', step, self._total, text, left)
