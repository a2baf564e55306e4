"""Makes the runs of a sweep: one after another, or several at once, as time allows."""

from __future__ import annotations

import concurrent.futures
import contextlib
import filecmp
import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lra_tasks import parallel
from lra_tasks.files import holder, lock
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import DamagedRun, Run, Unfinished, read_description, read_folder
from lra_tasks.signals import exit_code_of, handle_signals
from lra_tasks.sweeps.jobs import Job
from lra_tasks.tasks import get_task

logger = logging.getLogger('lra_tasks.sweep')

KEPT_FILES = ('config.json', 'metrics.jsonl', 'results.json')
# Seconds that a run needs before its first step; with less left, none is begun.
START_SECONDS = 30
# Seconds before the end at which a run is told to save its state, and until it is killed.
_SAVING, _PATIENCE = 20, 120
# Between two looks at what other sweeps have finished.
_POLL = 5
# Between two lines about runs that are made at once.
_REPORT = 60
# A lock beside that of the training, which takes its own a while after it was started.
_LOCK = '.sweep_lock'
# The share of a GPU's memory that JAX takes: its name and the former one, of which one may be set.
_MEMORY = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
# Exit codes of a training that was asked to stop, by us or by a scheduler.
_ASKED = tuple(map(exit_code_of, (signal.SIGINT, signal.SIGTERM)))
# Of a training, where several are made at once: their lines would stand between each other's.
_LOG = 'train.log'


class Outcome(NamedTuple):
  """What became of a run, and a remark.

  'finished', 'stopped', 'failed', 'waiting', or 'taken' by another process; 'undecided' until its
  rivals are finished, 'passed over' if another one of them was better.
  """

  state: str
  remark: str = ''


def outcome_of(job: Job, directories: Sequence[pathlib.Path]) -> Outcome:
  """Return what there is of a run, where it got furthest.

  Raises:
    OSError: if a file cannot be read.
    DamagedRun: if one is none that a run has written.
    ValueError: if another run lies there.
  """
  outcome = Outcome('waiting')
  for directory in directories:
    folder = directory / job.name
    description = read_description(folder)
    if description is None:
      continue
    if not isinstance(description.get('config'), Mapping):
      raise DamagedRun(f'{folder}/config.json lacks the config; move the run away, or restore it')
    _check_same(job, folder, description)
    found = read_folder(folder)
    if isinstance(found, Run):
      other = '' if found.comparable else f' of {found.dataset}'
      return Outcome('finished', f'{100 * found.accuracy:.2f} % on {found.split}{other}')
    outcome = Outcome('stopped', _place(found))
  return outcome


def _is_finished(folder: pathlib.Path) -> bool:
  try:
    return isinstance(read_folder(folder), Run)
  except (OSError, ValueError):  # What lies there is for the outcome to tell.
    return False


def _place(run: Unfinished | None) -> str:
  """Return how far a run got; None is one that has just begun."""
  return f'at step {run.step:,}' if run and run.step else 'before an evaluation'


def _check_same(job: Job, folder: pathlib.Path, description: Mapping[str, Any]) -> None:
  """Raise a ValueError unless the folder holds this job."""
  data_set = job.task_name or get_task(job.task).task_name
  lines = rundir.stored_difference(description, job.fields(), data_set)
  if lines:
    raise ValueError(
      f'{folder} holds another run; move it away, or name another directory:\n  '
      + '\n  '.join(lines)
    )


def _score(run: Run) -> float:
  """Return what settings are chosen by."""
  if run.score is None:
    raise ValueError(f'{run.path} has no score on the validation split to choose settings by')
  return run.score


class Worker(NamedTuple):
  """Makes one run at a time.

  Attributes:
    label: for the log; '' where it is the only one.
    environment: variables that its trainings get besides those of this process.
  """

  label: str = ''
  environment: Mapping[str, str] = {}


def make_workers(gpus: Sequence[str], runs_per_gpu: int) -> list[Worker]:
  """Return the workers of some GPUs.

  Args:
    gpus: numbers or names as in CUDA_VISIBLE_DEVICES; none leaves open what trainings run on.
    runs_per_gpu: runs at once on each, which share its memory; without `gpus`, at once.

  Raises:
    ValueError: for less than one run, or a GPU that is named twice.

  >>> [worker.label for worker in make_workers(['0', '1'], 2)]
  ['GPU 0, 1', 'GPU 0, 2', 'GPU 1, 1', 'GPU 1, 2']
  """
  if runs_per_gpu < 1:
    raise ValueError(f'--runs_per_gpu must be at least 1, got {runs_per_gpu}')
  if len(set(gpus)) < len(gpus) or '' in gpus:
    raise ValueError(f'--gpus must name some, each once, got {",".join(gpus)!r}')
  if not gpus and runs_per_gpu == 1:
    return [Worker()]
  shared = {}
  if runs_per_gpu > 1:
    # JAX would take three quarters of the memory for the first run.
    if not any(name in os.environ for name in _MEMORY):
      shared[_MEMORY[0]] = f'{0.9 / runs_per_gpu:.3f}'
    shared[parallel.SHARED_BY] = str(runs_per_gpu)
  workers = []
  for gpu in gpus or [None]:
    of_gpu = shared if gpu is None else shared | {'CUDA_VISIBLE_DEVICES': gpu}
    for number in range(1, runs_per_gpu + 1):
      names = [f'GPU {gpu}'] * (gpu is not None) + [f'{number}'] * (runs_per_gpu > 1)
      workers.append(Worker(', '.join(names), of_gpu))
  return workers


class Sweep:
  """Makes runs until there are none left, or no time.

  Args:
    jobs: in their order.
    runs: directory of the runs.
    results_dir: where the small files of finished runs are kept too.
    options: further flags of the training command, by task.
    deadline: by `time.monotonic`; None is never.
    delete_checkpoints: of finished runs, once their small files are in `results_dir`.
    workers: make one run at a time each. Where there are several, the output of a training goes to
      train.log in the run's directory.
    command: that trains, to which flags are added.
  """

  def __init__(
    self,
    jobs: Sequence[Job],
    *,
    runs: str,
    results_dir: str | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    deadline: float | None = None,
    delete_checkpoints: bool = False,
    workers: Sequence[Worker] = (Worker(),),
    command: Sequence[str] = (sys.executable, '-m', 'lra_tasks.train'),
  ) -> None:
    self._jobs = list(jobs)
    self._runs = pathlib.Path(runs)
    self._kept = None if results_dir is None else pathlib.Path(results_dir)
    self._options = options or {}
    self._delete_checkpoints = delete_checkpoints
    self._deadline = deadline
    self._command = tuple(command)
    self._workers = tuple(workers)
    self._several = len(self._workers) > 1
    self._processes: dict[subprocess.Popen[bytes], Job] = {}
    self._stopped: set[subprocess.Popen[bytes]] = set()  # Those that were asked to.
    self._signal: int | None = None
    self._failed: dict[Job, Outcome] = {}
    self._keeping = threading.Lock()  # Of two workers that find the same finished run.

  def outcomes(self) -> dict[Job, Outcome]:
    """Return what there is of each job so far; one whose files are damaged has failed.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if another run lies where one of them belongs.
    """
    look = lambda job: self._guarded(job, lambda: self._outcome(job), DamagedRun)
    return {job: look(job) for job in self._jobs}

  def run(self) -> dict[Job, Outcome]:
    """Make all runs that are not finished; return what became of each.

    Raises:
      OSError: see `outcomes`; nothing is run then.
      ValueError: likewise.
    """
    self.outcomes()
    with handle_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._note):
      if self._several:
        self._work_together()
      else:
        self._work(self._workers[0])
    return {job: self._at_end(job) for job in self._jobs}

  def _work_together(self) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(self._workers)) as pool:
      futures = [pool.submit(self._work, worker) for worker in self._workers]
      while concurrent.futures.wait(futures, _REPORT).not_done:
        self._report()
    for future in futures:
      future.result()

  def _report(self) -> None:
    """Say how far the runs are whose output nobody sees."""
    is_finished = lambda job: any(_is_finished(folder / job.name) for folder in self._directories())
    running = [f'{job.name} {self._place_of(job)}' for job in tuple(self._processes.values())]
    logger.info(
      '%d of %d runs are finished; under way: %s',
      sum(map(is_finished, self._jobs)), len(self._jobs), '; '.join(running) or 'none',
    )  # fmt: skip

  def _place_of(self, job: Job) -> str:
    try:
      found = read_folder(self._runs / job.name)
    except (OSError, ValueError) as error:  # The run itself, or its end, will say it too.
      return str(error)
    return 'at its end' if isinstance(found, Run) else _place(found)

  def _work(self, worker: Worker) -> None:
    """Make what other workers, here or in another sweep, leave to this one."""
    found, before = {}, None
    while found != before:
      before = dict(found)
      for i, job in enumerate(self._jobs):
        title = f'Run {i + 1} of {len(self._jobs)}: {job.name}'
        found[job] = self._failed.get(job) or self._attempt(job, worker, title)
      states = {outcome.state for outcome in found.values()}
      if 'undecided' not in states or self._signal or self._left() < START_SECONDS:
        break
      if found == before and 'taken' in states:
        time.sleep(_POLL)  # Another one makes what decides.
        before = None

  def _at_end(self, job: Job) -> Outcome:
    if job in self._failed:
      return self._failed[job]
    folder = self._runs / job.name
    taken = _taken(folder)
    if taken:
      return taken
    return self._guarded(job, lambda: self._outcome(job))

  def _attempt(self, job: Job, worker: Worker, title: str) -> Outcome:
    """Make one run, see `_take`; an error becomes an outcome."""
    return self._guarded(job, lambda: self._take(job, worker, title))

  def _guarded(
    self,
    job: Job,
    call: Callable[[], Outcome],
    errors: type[Exception] | tuple[type[Exception], ...] = (OSError, ValueError),
  ) -> Outcome:
    """Return an outcome; one of these errors is that of a job that has failed."""
    try:
      return call()
    except errors as error:
      logger.error('%s', error)
      self._failed[job] = Outcome('failed', str(error).partition('\n')[0])
      return self._failed[job]

  @property
  def exit_code(self) -> int:
    """Return 0 unless a signal stopped it: then 130 after Ctrl-C, 143 after SIGTERM and so on."""
    return exit_code_of(self._signal) if self._signal else 0

  def _directories(self) -> list[pathlib.Path]:
    return [self._runs] if self._kept is None else [self._kept, self._runs]

  def _outcome(self, job: Job) -> Outcome:
    found = outcome_of(job, self._directories())
    if not job.rivals or found.state == 'finished':
      return found
    runs = {
      rival.changes: self._finished(rival) for rival in job.rivals if rival not in self._failed
    }
    missing = [changes[-1] for changes, run in runs.items() if run is None]
    if missing or not runs:
      text = ', '.join(map('='.join, missing)) or 'a value that does not fail'
      return Outcome('undecided', f'until seed {job.rivals[0].seed} has {text}')
    best = max(runs, key=lambda changes: _score(runs[changes]))
    return found if job.changes == best else Outcome('passed over')

  def _finished(self, job: Job) -> Run | None:
    """Return a run that is finished."""
    found = (read_folder(directory / job.name) for directory in self._directories())
    return next((run for run in found if isinstance(run, Run)), None)

  def _take(self, job: Job, worker: Worker, title: str) -> Outcome:
    """Make one run if there is something left to do, and time; return what there is of it then."""
    found = self._outcome(job)  # Another worker may have made it meanwhile.
    if found.state == 'finished':
      self._keep(job)
    idle = found.state in ('finished', 'undecided', 'passed over')
    if idle or self._signal or self._left() < START_SECONDS:
      return found
    folder = self._runs / job.name
    try:
      with lock(folder, _LOCK, when_taken=_give_way):
        if holder(folder):  # A training that was started by hand, or whose sweep has died.
          raise BlockingIOError
        return self._make(job, worker, title)
    except BlockingIOError:
      return _taken(folder) or Outcome('taken', 'by a process that has ended since')

  def _make(self, job: Job, worker: Worker, title: str) -> Outcome:
    """Make a run that is locked."""
    # By now another worker may have made it.
    found = self._failed.get(job) or self._outcome(job)
    if found.state in ('failed', 'finished'):
      return found
    label = f'{worker.label}: ' if worker.label else ''
    logger.info('%s%s', label, title)
    code, was_asked = self._train(job, worker)
    found = self._outcome(job)
    if found.state == 'finished':
      self._keep(job)
    elif code not in (0, *_ASKED) and not was_asked:
      where = str(self._runs / job.name / _LOG) if self._several else 'above'
      found = self._failed[job] = Outcome('failed', f'with exit code {code}, see {where}')
    if self._several:
      logger.info('%s%s: %s', label, job.name, ' '.join(found).rstrip())
    return found

  def _left(self) -> float:
    return float('inf') if self._deadline is None else self._deadline - time.monotonic()

  def _train(self, job: Job, worker: Worker) -> tuple[int, bool]:
    """Train; return the exit code, and whether the training was asked to stop."""
    folder = self._runs / job.name
    command = [*self._command, *job.flags(), f'--model_dir={folder}']
    command += self._options.get(job.task, ())
    line = shlex.join(['python', *command[1:]])
    with contextlib.ExitStack() as stack:
      output = None
      if self._several:
        output = stack.enter_context(open(folder / _LOG, 'ab', buffering=0))
        output.write(f'{line}\n'.encode())
      else:
        logger.info('%s', line)
      # A session of its own: a Ctrl-C is passed on, once.
      process = subprocess.Popen(
        command,
        start_new_session=True,
        env=os.environ | worker.environment,
        stdout=output,
        stderr=output,
      )
      self._processes[process] = job
      try:
        return self._wait(process), process in self._stopped
      finally:
        if process.poll() is None:
          process.kill()
          process.wait()
        del self._processes[process]
        self._stopped.discard(process)

  def _wait(self, process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a training, which is told to stop when time is up."""
    if self._signal:  # It came just now.
      self._pass_on(process, self._signal)
    left = self._left()
    try:
      return process.wait(None if left == float('inf') else max(0.0, left - _SAVING))
    except subprocess.TimeoutExpired:
      logger.info('Time is up.')
      self._pass_on(process, signal.SIGTERM)
    try:
      return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      logger.warning('It has not stopped for %d s and is killed.', _PATIENCE)
      return 0

  def _keep(self, job: Job) -> None:
    """Copy the small files of a finished run, whole or not at all; see `delete_checkpoints`."""
    source = self._runs / job.name
    if self._kept is None or not (source / 'results.json').exists():
      return
    target = self._kept / job.name
    with self._keeping:
      if not (target / 'results.json').exists():
        self._copy(source, target)
    # Beside what is kept, another run of that name may lie.
    same = lambda name: filecmp.cmp(source / name, target / name, shallow=False)
    if self._delete_checkpoints and all(map(same, KEPT_FILES)):
      shutil.rmtree(source / 'checkpoints', ignore_errors=True)

  def _copy(self, source: pathlib.Path, target: pathlib.Path) -> None:
    partial = target.with_name(f'{target.name}.partial-{os.getpid()}')
    partial.mkdir(parents=True)
    for name in KEPT_FILES:
      shutil.copyfile(source / name, partial / name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

  def _note(self, number: int, frame: Any) -> None:
    del frame
    self._signal = number
    for process in tuple(self._processes):
      self._pass_on(process, number)

  def _pass_on(self, process: subprocess.Popen[bytes], number: int) -> None:
    self._stopped.add(process)
    process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def _give_way() -> None:
  raise BlockingIOError


def _taken(folder: pathlib.Path) -> Outcome | None:
  """Return who is at work on a run, a training or, between trainings, a sweep."""
  by = holder(folder) or holder(folder, _LOCK)
  return by and Outcome('taken', f'by {by}')
