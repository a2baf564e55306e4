"""Train many models on many tasks, one run after another, as time allows.

  python -m lra_tasks.sweep --tasks=listops,text --models=gmm_prf,fastfood_prf --seeds=0,1,2 \\
      --runs=runs --minutes=25

Every run is the command `python -m lra_tasks.train`, which the log shows, in a process of its own:
its memory is its own too, and a crash ends nothing else. Runs that are finished are skipped, one
that was stopped goes on where it was: the same command, given again, makes the table grow. When
time is up, the run that is under way saves its state, for which it has the last 20 seconds.

  python -m lra_tasks.sweep --tasks=cola --models=gmm_prf --seeds=0,1,2 --runs=runs \\
      --try=learning_rate=2e-3,5e-4,1e-4

makes the runs of the first seed with each of the values, and those of the others with the value
that was best on validation. A value with which the run fails takes no part.

Seeds come last, and before them the values that are tried, so that a first run of everything is
there early. Several sweeps may share --runs, one for each GPU (CUDA_VISIBLE_DEVICES): each takes
what no other has taken.

--results_dir keeps the small files of finished runs (config, metrics, results) apart from
checkpoints; what is there counts as finished. With --delete_checkpoints those runs leave nothing
else: a hundred checkpoints of a large vocabulary take 50 GB.
"""

from __future__ import annotations

import ast
import contextlib
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
from lra_tasks import configuration, rundir, tasks
from lra_tasks.console import define_integers, one_line_errors, set_up_logging
from lra_tasks.files import is_taken, lock
from lra_tasks.finished import Run, read_description, read_folder
from lra_tasks.paper import PAPER_MODELS
from lra_tasks.pretrained import Pretrained
from lra_tasks.tasks import get_task

# Not __name__: this file runs as __main__.
logger = logging.getLogger('lra_tasks.sweep')

KEPT_FILES = ('config.json', 'metrics.jsonl', 'results.json')
# Seconds that a run needs before its first step; with less left, none is begun.
_START = 30
# Seconds before the end at which a run is told to save its state, and until it is killed.
_SAVING, _PATIENCE = 20, 120
# Between two looks at what other sweeps have finished.
_POLL = 5
# A lock beside that of the training, which takes its own a while after it was started.
_LOCK = '.sweep_lock'


class Job(NamedTuple):
  """One run.

  Attributes:
    task: its name.
    config: 'FILE:MODEL,PRESET', as --config wants it.
    name: of its directory.
    seed: of the run.
    changes: pairs of a config field and a value, as they stand on a command line.
    init_from: directory of the run that it starts from, '' for none.
    rivals: runs of the first seed, one with the same changes, that decide whether it is made: if
      that one is the best of them on validation. None decide nothing.
  """

  task: str
  config: str
  name: str
  seed: int
  changes: tuple[tuple[str, str], ...] = ()
  init_from: str = ''
  rivals: tuple[Job, ...] = ()

  def flags(self) -> list[str]:
    """Return what the training command is told of the run."""
    changes = (('random_seed', str(self.seed)), *self.changes)
    return [
      f'--config={self.config}',
      *(f'--config.{name}={value}' for name, value in changes),
      *([f'--init_from={self.init_from}'] if self.init_from else []),
    ]

  def fields(self) -> dict[str, Any]:
    """Return the resolved config.

    Raises:
      FileNotFoundError: if the run that it starts from is not there.
      ValueError: for fields or values that do not exist.
    """
    changes = {name: _literal(value) for name, value in self.changes}
    config = configuration.load(self.config, changes | {'random_seed': self.seed})
    fields = configuration.resolve(config)
    return fields | ({'pretrained': Pretrained(self.init_from).label} if self.init_from else {})


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
  tried: str | None = None,
  configs: str = 'configs',
  init_from: str | None = None,
) -> list[Job]:
  """Return all runs in the order in which they are to be made.

  Args:
    task_names: tasks of the registry.
    models: models of the registry.
    seeds: of each model on each task; the first one of everything comes first.
    preset: of the configs; by default that of the models, which must be the same for all of a task.
    changes: 'FIELD=VALUE' for fields of all configs.
    tried: 'FIELD=VALUE,VALUE ...': the first seed takes each of these, the others the best of them.
    configs: directory of the files TASK.py.
    init_from: directory of the run that each starts from; '{model}' in it stands for the model.

  Raises:
    FileNotFoundError: if there is no such run.
    ValueError: for unknown tasks, models, presets, fields or values; if there is no preset and
      models have different ones.
  """
  for kind, values in {'tasks': task_names, 'models': models, 'seeds': seeds}.items():
    if not values or len(set(values)) < len(values):
      raise ValueError(f'--{kind} must name some, each once, got {",".join(map(str, values))!r}')
  for model in models:
    get_row(model)
  common = tuple(_parse_change(change) for change in changes)
  variants = [(*common, *change) for change in _parse_tried(tried)]
  for fields in ([field for field, _ in variant] for variant in variants):
    if len(set(fields)) < len(fields):
      raise ValueError(f'a run has one value of each field, got {", ".join(fields)}')
  presets = {task: _preset(task, models, preset, configs) for task in task_names}
  jobs: list[Job] = []
  # Values before seeds: sweeps that share --runs then begin with different programs to compile.
  for seed, pairs, task, model in itertools.product(seeds, variants, task_names, models):
    config = _config(task, model, presets[task], configs)
    start = (init_from or '').replace('{model}', model)
    decide = len(variants) > 1 and seed != seeds[0]
    rivals = tuple(job for job in jobs if job.config == config and job.seed == seeds[0])
    parts = [model, presets[task], *map('='.join, pairs), f'seed{seed}']
    name = os.path.join(task, '_'.join(parts))
    job = Job(task, config, name, seed, pairs, start, rivals if decide else ())
    job.fields()  # Now, rather than in an hour.
    jobs.append(job)
  return jobs


def _parse_tried(tried: str | None) -> list[tuple[tuple[str, str], ...]]:
  """Return the changes that a `--try` asks for, one after the other; no change without it."""
  if tried is None:
    return [()]
  field, _, values = tried.partition('=')
  changes = [_parse_change(f'{field}={value}', '--try') for value in values.split(',')]
  if len({repr(_literal(value)) for _, value in changes}) < max(len(changes), 2):
    raise ValueError(f'--try must be FIELD=VALUE,VALUE..., each value once, got {tried!r}')
  return [(change,) for change in changes]


def _config(task: str, model: str, preset: str | None, configs: str) -> str:
  """Return 'FILE:ARGUMENT' of a model on a task."""
  spec = get_task(task)
  file = os.path.join(configs, f'{spec.config_file or task}.py')
  if not os.path.exists(file):
    raise ValueError(
      f'{file} does not exist: --configs must name the directory of {os.path.basename(file)}'
    )
  return f'{file}:' + ','.join(filter(None, (model, task if spec.config_file else '', preset)))


def _preset(task: str, models: Sequence[str], preset: str | None, configs: str) -> str:
  """Return the preset of all models on a task: the one that was named, or their own.

  Raises:
    ValueError: if the task does not have it, or the models' own differ: so do their sizes and steps
      then, and a table of them would compare nothing.
  """
  found: dict[str, list[str]] = {}
  for model in models:
    config = _config(task, model, preset, configs)
    try:
      found.setdefault(configuration.load(config).preset, []).append(model)
    except ValueError as error:
      raise ValueError(f'{task}: {error}') from error
  if len(found) > 1:
    text = '; '.join(f'{label!r} of {", ".join(names)}' for label, names in found.items())
    raise ValueError(
      f'{task}: the default presets of these models differ, and with them sizes and steps: {text}; '
      f'name one for all, such as --preset={next(iter(found))}'
    )
  return next(iter(found))


def _parse_change(change: str, flag: str = '--set') -> tuple[str, str]:
  """Return field and value of a `--set`."""
  field, equals, value = change.partition('=')
  if not (field and equals):
    raise ValueError(f'{flag} must be FIELD=VALUE, got {change!r}')
  if field == 'random_seed':
    raise ValueError(f'{flag}={change}: --seeds has the seeds')
  if '/' in change:
    raise ValueError(f'{flag}={change}: it becomes part of a directory name, which has no "/"')
  return field, value


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
    ValueError: if one is damaged, or another run lies there.
  """
  outcome = Outcome('waiting')
  for directory in directories:
    folder = directory / job.name
    description = read_description(folder)
    if description is None:
      continue
    _check_same(job, folder, description['config'])
    found = read_folder(folder)
    if isinstance(found, Run):
      other = '' if found.comparable else f' of {found.dataset}'
      return Outcome('finished', f'{100 * found.accuracy:.2f} % on {found.split}{other}')
    outcome = Outcome(
      'stopped', f'at step {found.step:,}' if found.step else 'before an evaluation'
    )
  return outcome


def _check_same(job: Job, folder: pathlib.Path, stored: Mapping[str, Any]) -> None:
  """Raise a ValueError unless the folder holds this job."""
  lines = rundir.config_difference(stored, job.fields())
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


class Sweep:
  """Runs jobs until there are none left, or no time.

  Args:
    jobs: in their order.
    runs: directory of the runs.
    results_dir: where the small files of finished runs are kept too.
    options: further flags of the training command, by task.
    deadline: by `time.monotonic`; None is never.
    delete_checkpoints: of finished runs, once their small files are in `results_dir`.
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
    command: Sequence[str] = (sys.executable, '-m', 'lra_tasks.train'),
  ) -> None:
    self._jobs = list(jobs)
    self._runs = pathlib.Path(runs)
    self._kept = None if results_dir is None else pathlib.Path(results_dir)
    self._options = options or {}
    self._delete_checkpoints = delete_checkpoints
    self._deadline = deadline
    self._command = tuple(command)
    self._process: subprocess.Popen[bytes] | None = None
    self._signal: int | None = None
    self._stopped = False
    self._failed: set[Job] = set()

  def outcomes(self) -> dict[Job, Outcome]:
    """Return what there is of each job so far.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if one is damaged, or another run lies where one of them belongs.
    """
    return {job: self._outcome(job) for job in self._jobs}

  def run(self) -> dict[Job, Outcome]:
    """Make all runs that are not finished; return what became of each.

    Raises:
      OSError: see `outcomes`; nothing is run then.
      ValueError: likewise.
    """
    found, before = self.outcomes(), None
    with self._listening():
      while found != before:
        before = dict(found)
        for i, job in enumerate(self._jobs):
          if job not in self._failed:
            found[job] = self._attempt(job, f'Run {i + 1} of {len(self._jobs)}: {job.name}')
        states = {outcome.state for outcome in found.values()}
        if 'undecided' not in states or self._signal or self._left() < _START:
          break
        if found == before and 'taken' in states:
          time.sleep(_POLL)  # Another sweep makes what decides.
          before = None
    return found

  def _attempt(self, job: Job, title: str) -> Outcome:
    """Make one run, see `_take`; an error becomes an outcome."""
    try:
      found = self._take(job, title)
    except (OSError, ValueError) as error:
      logger.error('%s', error)
      found = Outcome('failed', str(error).partition('\n')[0])
    if found.state == 'failed':
      self._failed.add(job)
    return found

  @property
  def exit_code(self) -> int:
    """Return 130 after Ctrl-C, else 0: a scheduler that stops the sweep starts it again."""
    return 130 if self._signal == signal.SIGINT else 0

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

  def _take(self, job: Job, title: str) -> Outcome:
    """Make one run if there is something left to do, and time; return what there is of it then."""
    found = self._outcome(job)  # Another sweep may have made it meanwhile.
    if found.state == 'finished':
      self._keep(job)
    idle = found.state in ('finished', 'undecided', 'passed over')
    if idle or self._signal or self._left() < _START:
      return found
    folder = self._runs / job.name
    try:
      with lock(folder, _LOCK, when_taken=_give_way):
        if is_taken(folder):  # By a training that was started by hand, or whose sweep has died.
          raise BlockingIOError
        logger.info('%s', title)
        code = self._train(job)
        found = self._outcome(job)
        if found.state == 'finished':
          self._keep(job)
        elif code and not self._stopped:
          return Outcome('failed', f'with exit code {code}, see above')
        return found
    except BlockingIOError:
      return Outcome('taken', 'by another process')

  def _left(self) -> float:
    return float('inf') if self._deadline is None else self._deadline - time.monotonic()

  def _train(self, job: Job) -> int:
    model_dir = f'--model_dir={self._runs / job.name}'
    command = [*self._command, *job.flags(), model_dir, *self._options.get(job.task, ())]
    logger.info('%s', shlex.join(['python', *command[1:]]))
    # A session of its own: a Ctrl-C is passed on, once.
    self._process = process = subprocess.Popen(command, start_new_session=True)
    self._stopped = False
    try:
      if self._signal:  # It came just now.
        self._pass_on(self._signal)
      left = self._left()
      return process.wait(None if left == float('inf') else max(0.0, left - _SAVING))
    except subprocess.TimeoutExpired:
      logger.info('Time is up.')
      self._pass_on(signal.SIGTERM)
      try:
        return process.wait(_PATIENCE)
      except subprocess.TimeoutExpired:
        logger.warning('It has not stopped for %d s and is killed.', _PATIENCE)
        return 0
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
      self._process = None

  def _keep(self, job: Job) -> None:
    """Copy the small files of a finished run, whole or not at all; see `delete_checkpoints`."""
    source = self._runs / job.name
    if self._kept is None or not (source / 'results.json').exists():
      return
    target = self._kept / job.name
    if not (target / 'results.json').exists():
      self._copy(source, target)
    if self._delete_checkpoints:
      shutil.rmtree(source / 'checkpoints', ignore_errors=True)

  def _copy(self, source: pathlib.Path, target: pathlib.Path) -> None:
    partial = target.with_name(f'{target.name}.partial-{os.getpid()}')
    partial.mkdir(parents=True)
    for name in KEPT_FILES:
      shutil.copyfile(source / name, partial / name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

  @contextlib.contextmanager
  def _listening(self) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
      self._pass_on(number)

  def _pass_on(self, number: int) -> None:
    self._stopped = True
    self._process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def _give_way() -> None:
  raise BlockingIOError


def render(found: Mapping[Job, Outcome]) -> str:
  """Return a table of what became of the runs, and a line that counts them."""
  found = {job: outcome for job, outcome in found.items() if outcome.state != 'passed over'}
  width = max(len(job.name) for job in found)
  column = max(8, *(len(outcome.state) for outcome in found.values()))
  lines = [
    f'{job.name:<{width}}  {outcome.state:<{column}}  {outcome.remark}'.rstrip()
    for job, outcome in found.items()
  ]
  states = [outcome.state for outcome in found.values()]
  counts = [f'{states.count(state)} {state}' for state in dict.fromkeys(states)]
  return '\n'.join([*lines, '─' * max(map(len, lines)), ', '.join(counts)])


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda kind, *arguments: kind(*arguments, flag_values=flag_values)
  define(flags.DEFINE_list, 'tasks', None, 'Tasks, each of which has a file in --configs.')
  define(flags.DEFINE_list, 'models', list(PAPER_MODELS), 'Models; those of the paper by default.')
  define(define_integers, 'seeds', [0], 'Seeds; the first one of everything comes first.')
  define(
    flags.DEFINE_string, 'preset', None,
    "Preset of all configs; by default the models' own, if they have the same.",
  )  # fmt: skip
  define(
    flags.DEFINE_multi_string, 'set', [],
    'FIELD=VALUE: a field of all configs, such as learning_rate=0.001 or '
    'attention.num_frequencies=64. May be repeated. Part of the names of runs.',
  )  # fmt: skip
  define(
    flags.DEFINE_string, 'try', None,
    'FIELD=VALUE,VALUE...: the first seed takes each of the values, the others the one that had '
    "the best accuracy on validation, or what else the task is judged by: cola by Matthews' "
    'correlation, mrpc and qqp by F1.',
  )  # fmt: skip
  define(
    flags.DEFINE_string, 'init_from', None,
    'Directory of the run whose encoder each starts with; {model} in it stands for the model.',
  )  # fmt: skip
  define(flags.DEFINE_string, 'configs', 'configs', 'Directory of the files TASK.py.')
  define(flags.DEFINE_string, 'runs', 'runs', 'Directory of the runs: TASK/MODEL_PRESET_seedN.')
  define(
    flags.DEFINE_string, 'results_dir', None,
    'Directory where the small files of finished runs are kept; what is there is finished.',
  )  # fmt: skip
  define(
    flags.DEFINE_bool, 'delete_checkpoints', False,
    'Delete the checkpoints of finished runs whose results are kept in --results_dir.',
  )  # fmt: skip
  define(flags.DEFINE_float, 'minutes', None, 'Time for all of it, saving included.')
  define(flags.DEFINE_bool, 'dry_run', False, 'Only show what there is and what is to be done.')
  define(
    flags.DEFINE_string, 'data_dir', tasks.DATA_DIR, 'Where prepared data sets are kept.'
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'sources', [],
    'TASK=PATH of raw data, where a task does not generate or download its own.',
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'task_names', [],
    'TASK=NAME of a data set within a task, such as wikitext=wikitext-2.',
  )  # fmt: skip


def _by_task(
  name: str, values: Sequence[str], options: Mapping[str, list[str]]
) -> Iterator[tuple[str, str]]:
  """Yield task and value of each TASK=VALUE."""
  for value in values:
    task, equals, rest = value.partition('=')
    if not equals or task not in options:
      raise ValueError(f'--{name} must be TASK=VALUE with one of --tasks, got {value!r}')
    yield task, rest


def _options(flag_values: flags.FlagValues) -> dict[str, list[str]]:
  """Return further flags of the training command for each task."""
  options = {task: [f'--data_dir={flag_values.data_dir}'] for task in flag_values.tasks}
  for flag in ('source', 'task_name'):
    for task, value in _by_task(f'{flag}s', flag_values[f'{flag}s'].value, options):
      options[task].append(f'--{flag}={value}')
  return options


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Run what the flags say; return 0, 1 after an error or a failed run, 130 if interrupted."""
  set_up_logging()
  started = time.monotonic()
  if len(argv) > 1:
    raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
  if not flag_values.tasks:
    raise ValueError(f'--tasks is required, some of: {", ".join(tasks.TASKS)}')
  if flag_values.minutes is not None and not flag_values.minutes > 0:
    raise ValueError(f'--minutes must be above 0, got {flag_values.minutes}')
  if flag_values.delete_checkpoints and flag_values.results_dir is None:
    raise ValueError('--delete_checkpoints needs --results_dir, which keeps what is left of a run')
  jobs = make_jobs(
    flag_values.tasks,
    flag_values.models,
    flag_values.seeds,
    preset=flag_values.preset,
    changes=flag_values.set,
    tried=flag_values['try'].value,
    configs=flag_values.configs,
    init_from=flag_values.init_from,
  )
  sweep = Sweep(
    jobs,
    runs=flag_values.runs,
    results_dir=flag_values.results_dir,
    options=_options(flag_values),
    deadline=flag_values.minutes and started + 60 * flag_values.minutes,
    delete_checkpoints=flag_values.delete_checkpoints,
  )
  found = sweep.outcomes() if flag_values.dry_run else sweep.run()
  print(render(found))
  return sweep.exit_code or int(any(outcome.state == 'failed' for outcome in found.values()))


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=configuration.parse_flags)


if __name__ == '__main__':
  run()
