"""Train many models on many tasks, one run after another, as time allows.

  python -m lra_tasks.sweep --tasks=listops,text --models=gmm_prf,fastfood_prf --seeds=0,1,2 \\
      --runs=runs --minutes=25

Every run is the command `python -m lra_tasks.train`, which the log shows, in a process of its own:
its memory is its own too, and a crash ends nothing else. Runs that are finished are skipped, one
that was stopped goes on where it was: the same command, given again, makes the table grow. When
time is up, the run that is under way saves its state and stops.

Seeds come last, so that a first one of everything is there early. Several sweeps may share --runs,
one for each GPU (CUDA_VISIBLE_DEVICES): each takes what no other has taken.

--results_dir keeps the small files of finished runs (config, metrics, results) apart from
checkpoints; what is there counts as finished.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import itertools
import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags

from kl_flax.models import get_row
from lra_tasks import configuration, results, rundir, tasks
from lra_tasks.console import define_integers, set_up_logging
from lra_tasks.run_log import read_json
from lra_tasks.tasks import get_task

# Not __name__: this file runs as __main__.
logger = logging.getLogger('lra_tasks.sweep')

# Those of the paper, and their controls.
MODELS = (
  'gmm_prf', 'fastfood_prf', 'generative_prf', 'gmm_rks', 'fastfood_rks', 'generative_rks',
  'transformer', 'linear_transformer', 'performer', 'prf', 'rks',
)  # fmt: skip
KEPT_FILES = ('config.json', 'metrics.jsonl', 'results.json')
# Seconds that a run needs before its first step; with less left, none is begun.
_START = 30
# Seconds that a run may take to save its state.
_SAVING = 120


class Job(NamedTuple):
  """One run.

  Attributes:
    task: its name.
    config: 'FILE:MODEL,PRESET', as --config wants it.
    name: of its directory.
    seed: of the run.
    changes: pairs of a config field and a value, as they stand on a command line.
  """

  task: str
  config: str
  name: str
  seed: int
  changes: tuple[tuple[str, str], ...] = ()

  def flags(self) -> list[str]:
    """Return what the training command is told of the run."""
    changes = (('random_seed', str(self.seed)), *self.changes)
    return [f'--config={self.config}', *(f'--config.{name}={value}' for name, value in changes)]

  def fields(self) -> dict[str, Any]:
    """Return the resolved config.

    Raises:
      ValueError: for fields or values that do not exist.
    """
    changes = {name: _literal(value) for name, value in self.changes}
    config = configuration.load(self.config, changes | {'random_seed': self.seed})
    return configuration.resolve(config)


def _literal(text: str) -> Any:
  """Return the value that a command line means."""
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def make_jobs(
  task_names: Sequence[str],
  models: Sequence[str],
  seeds: Sequence[int],
  *,
  preset: str | None = None,
  changes: Sequence[str] = (),
  configs: str = 'configs',
) -> list[Job]:
  """Return all runs in the order in which they are to be made.

  Args:
    task_names: tasks of the registry.
    models: models of the registry.
    seeds: of each model on each task; the first one of everything comes first.
    preset: of the configs; by default the model's own.
    changes: 'FIELD=VALUE' for fields of all configs.
    configs: directory of the files TASK.py.

  Raises:
    ValueError: for unknown tasks, models, presets, fields or values.
  """
  for model in models:
    get_row(model)
  pairs = []
  for change in changes:
    field, equals, value = change.partition('=')
    if not (field and equals):
      raise ValueError(f'--set must be FIELD=VALUE, got {change!r}')
    pairs.append((field, value))
  jobs = []
  for seed, task, model in itertools.product(seeds, task_names, models):
    get_task(task)
    file = os.path.join(configs, f'{task}.py')
    if not os.path.exists(file):
      raise ValueError(f'{file} does not exist: --configs must name the directory of {task}.py')
    argument = ','.join(filter(None, (model, preset)))
    label = configuration.load(f'{file}:{argument}').preset
    parts = [model, label, *(f'{field}={value}' for field, value in pairs), f'seed{seed}']
    config = f'{file}:{model},{label}'
    job = Job(task, config, os.path.join(task, '_'.join(parts)), seed, tuple(pairs))
    job.fields()  # Now, rather than in an hour.
    jobs.append(job)
  return jobs


class Outcome(NamedTuple):
  """What became of a run: 'finished', 'stopped', 'failed', 'waiting' or 'taken', and a remark."""

  state: str
  remark: str = ''


def outcome_of(job: Job, directories: Sequence[pathlib.Path]) -> Outcome | None:
  """Return what the first directory that holds the run says of it; None if it has not begun.

  Raises:
    ValueError: if another run lies there.
  """
  for directory in directories:
    folder = directory / job.name
    description = read_json(folder / 'config.json')
    if description is None:
      continue
    _check_same(job, folder, description['config'])
    found = results.read_folder(folder)
    if isinstance(found, results.Run):
      return Outcome('finished', f'{100 * found.accuracy:.2f} % on {found.split}')
    return Outcome('stopped', f'at step {found.step:,}' if found.step else 'before an evaluation')
  return None


def _check_same(job: Job, folder: pathlib.Path, stored: Mapping[str, Any]) -> None:
  """Raise a ValueError unless the folder holds this job."""
  lines = rundir.config_difference(stored, job.fields())
  if lines:
    raise ValueError(
      f'{folder} holds another run; move it away, or name another directory:\n  '
      + '\n  '.join(lines)
    )


class Interrupted(Exception):
  """Somebody wants the sweep to stop."""


class Sweep:
  """Runs jobs until there are none left, or no time.

  Args:
    jobs: in their order.
    runs: directory of the runs.
    results_dir: where the small files of finished runs are kept too.
    options: further flags of the training command, by task.
    deadline: by `time.monotonic`; None is never.
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
    command: Sequence[str] = (sys.executable, '-m', 'lra_tasks.train'),
  ) -> None:
    self._jobs = list(jobs)
    self._runs = pathlib.Path(runs)
    self._kept = None if results_dir is None else pathlib.Path(results_dir)
    self._options = options or {}
    self._deadline = deadline
    self._command = tuple(command)
    self._process: subprocess.Popen[bytes] | None = None
    self._signal: int | None = None

  def outcomes(self) -> dict[Job, Outcome]:
    """Return what there is of each job so far.

    Raises:
      ValueError: if another run lies where one of them belongs.
    """
    directories = [self._runs] if self._kept is None else [self._kept, self._runs]
    return {job: outcome_of(job, directories) or Outcome('waiting') for job in self._jobs}

  def run(self) -> dict[Job, Outcome]:
    """Make all runs that are not finished; return what became of each.

    Raises:
      ValueError: see `outcomes`; nothing is run then.
    """
    found = self.outcomes()
    with self._listening():
      for i, job in enumerate(self._jobs):
        if found[job].state == 'finished' or self._signal or self._left() < _START:
          continue
        with _taken(self._runs / job.name) as mine:
          if not mine:
            found[job] = Outcome('taken', 'by another sweep')
            continue
          logger.info('Run %d of %d: %s', i + 1, len(self._jobs), job.name)
          code = self._train(job)
          found[job] = self.outcomes()[job]
          if found[job].state == 'finished':
            self._keep(job)
          elif code not in (0, 130):
            found[job] = Outcome('failed', f'with exit code {code}, see above')
    return found

  @property
  def interrupted(self) -> bool:
    """Return whether a signal ended the sweep."""
    return self._signal is not None

  def _left(self) -> float:
    return float('inf') if self._deadline is None else self._deadline - time.monotonic()

  def _train(self, job: Job) -> int:
    model_dir = f'--model_dir={self._runs / job.name}'
    command = [*self._command, *job.flags(), model_dir, *self._options.get(job.task, ())]
    logger.info('%s', shlex.join(['python', *command[1:]]))
    # A session of its own: a Ctrl-C is passed on, once.
    self._process = subprocess.Popen(command, start_new_session=True)
    try:
      left = self._left()
      return self._process.wait(None if left == float('inf') else max(0.0, left))
    except subprocess.TimeoutExpired:
      logger.info('Time is up.')
      self._process.send_signal(signal.SIGTERM)
      try:
        return self._process.wait(_SAVING)
      except subprocess.TimeoutExpired:
        logger.warning('It has not stopped for %d s and is killed.', _SAVING)
        return 0
    finally:
      if self._process.poll() is None:
        self._process.kill()
        self._process.wait()
      self._process = None

  def _keep(self, job: Job) -> None:
    if self._kept is None:
      return
    target = self._kept / job.name
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
      shutil.copyfile(self._runs / job.name / name, target / name)

  @contextlib.contextmanager
  def _listening(self) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, self._note) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _note(self, number: int, frame: Any) -> None:
    del frame
    self._signal = number
    if self._process is not None:
      self._process.send_signal(number)


@contextlib.contextmanager
def _taken(folder: pathlib.Path) -> Iterator[bool]:
  """Yield whether this process has the folder for itself; it is given back at the end."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True


def render(found: Mapping[Job, Outcome]) -> str:
  """Return a table of what became of the runs, and a line that counts them."""
  width = max(len(job.name) for job in found)
  lines = [
    f'{job.name:<{width}}  {outcome.state:<8}  {outcome.remark}'.rstrip()
    for job, outcome in found.items()
  ]
  states = [outcome.state for outcome in found.values()]
  counts = [f'{states.count(state)} {state}' for state in dict.fromkeys(states)]
  return '\n'.join([*lines, '─' * max(map(len, lines)), ', '.join(counts)])


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda kind, *arguments: kind(*arguments, flag_values=flag_values)
  define(flags.DEFINE_list, 'tasks', None, 'Tasks, each of which has a file in --configs.')
  define(flags.DEFINE_list, 'models', list(MODELS), 'Models.')
  define(define_integers, 'seeds', [0], 'Seeds; the first one of everything comes first.')
  define(flags.DEFINE_string, 'preset', None, "Preset of all configs; by default each model's own.")
  define(
    flags.DEFINE_multi_string, 'set', [],
    'FIELD=VALUE: a field of all configs, such as learning_rate=0.001 or '
    'attention.num_frequencies=64. May be repeated. Part of the names of runs.',
  )  # fmt: skip
  define(flags.DEFINE_string, 'configs', 'configs', 'Directory of the files TASK.py.')
  define(flags.DEFINE_string, 'runs', 'runs', 'Directory of the runs: TASK/MODEL_PRESET_seedN.')
  define(
    flags.DEFINE_string, 'results_dir', None,
    'Directory where the small files of finished runs are kept; what is there is finished.',
  )  # fmt: skip
  define(flags.DEFINE_float, 'minutes', None, 'Time for all of it; then the state is saved.')
  define(flags.DEFINE_bool, 'dry_run', False, 'Only show what there is and what is to be done.')
  define(
    flags.DEFINE_string, 'data_dir', tasks.DATA_DIR, 'Where prepared data sets are kept.'
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'sources', [],
    'TASK=PATH of raw data, where a task does not generate or download its own.',
  )  # fmt: skip


def _options(flag_values: flags.FlagValues) -> dict[str, list[str]]:
  """Return further flags of the training command for each task."""
  options = {task: [f'--data_dir={flag_values.data_dir}'] for task in flag_values.tasks}
  for source in flag_values.sources:
    task, equals, path = source.partition('=')
    if not equals or task not in options:
      raise ValueError(f'--sources must be TASK=PATH with one of --tasks, got {source!r}')
    options[task].append(f'--source={path}')
  return options


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Run what the flags say; return 0, 1 after an error or a failed run, 130 if interrupted."""
  set_up_logging()
  started = time.monotonic()
  try:
    if len(argv) > 1:
      raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
    if not flag_values.tasks:
      raise ValueError(f'--tasks is required, some of: {", ".join(tasks.TASKS)}')
    if flag_values.minutes is not None and not flag_values.minutes > 0:
      raise ValueError(f'--minutes must be above 0, got {flag_values.minutes}')
    jobs = make_jobs(
      flag_values.tasks,
      flag_values.models,
      flag_values.seeds,
      preset=flag_values.preset,
      changes=flag_values.set,
      configs=flag_values.configs,
    )
    sweep = Sweep(
      jobs,
      runs=flag_values.runs,
      results_dir=flag_values.results_dir,
      options=_options(flag_values),
      deadline=flag_values.minutes and started + 60 * flag_values.minutes,
    )
    found = sweep.outcomes() if flag_values.dry_run else sweep.run()
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(render(found))
  if sweep.interrupted:
    return 130
  return int(any(outcome.state == 'failed' for outcome in found.values()))


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=configuration.parse_flags)


if __name__ == '__main__':
  run()
