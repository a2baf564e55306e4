"""Which runs a sweep makes: tasks by models by seeds, and settings that are tried."""

from __future__ import annotations

import ast
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kl_flax.models import get_row
from lra_tasks import command_line, configuration
from lra_tasks.runs.origin import NamedOrigin
from lra_tasks.tasks import get_task

# The preset of models whose own differ.
_COMMON = 'paper'


class Job(NamedTuple):
  """One run.

  Attributes:
    task: its name.
    config: 'FILE:MODEL,PRESET', as --config wants it.
    name: of its directory.
    seed: of the run.
    changes: pairs of a config field and a value, as they stand on a command line.
    init_from: directory of the run that it starts from, '' for none.
    task_name: of the data set within the task, '' for the task's own.
    rivals: runs of the first seed, one with the same changes, that decide whether it is made: if
      that one is the best of them on validation. None decide nothing.
  """

  task: str
  config: str
  name: str
  seed: int
  changes: tuple[tuple[str, str], ...] = ()
  init_from: str = ''
  task_name: str = ''
  rivals: tuple[Job, ...] = ()

  def flags(self) -> list[str]:
    """Return what the training command is told of the run."""
    changes = (('random_seed', str(self.seed)), *self.changes)
    return [
      f'--config={self.config}',
      *(f'--config.{name}={value}' for name, value in changes),
      *([f'--init_from={self.init_from}'] if self.init_from else []),
      *([f'--task_name={self.task_name}'] if self.task_name else []),
    ]

  def fields(self) -> dict[str, Any]:
    """Return the resolved config.

    Raises:
      FileNotFoundError: if the run that it starts from is not there.
      ValueError: for fields or values that do not exist.
    """
    return dict(_fields(self))


@functools.cache  # Sweeps ask for it each time that they look at a run.
def _fields(job: Job) -> dict[str, Any]:
  config = command_line.load(job.config, dict(job.changes) | {'random_seed': str(job.seed)})
  fields = configuration.resolve(config)
  return fields | ({'pretrained': NamedOrigin(job.init_from).label} if job.init_from else {})


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
  data_sets: Mapping[str, str] | None = None,
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
    data_sets: task -> name of a data set within it, where it is not the task's own.

  Raises:
    FileNotFoundError: if there is no such run.
    ValueError: for unknown tasks, models, presets, fields or values.
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
    data_set = (data_sets or {}).get(task, '')
    job = Job(task, config, name, seed, pairs, start, data_set, rivals if decide else ())
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
    raise ValueError(
      f'--try must be FIELD=VALUE,VALUE..., each value once (one alone is for --set), got {tried!r}'
    )
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

  Where their own differ, so do sizes and steps, and a table of them would compare nothing: then it
  is `paper`.

  Raises:
    ValueError: if the task does not have it.
  """
  found: dict[str, list[str]] = {}
  for model in models:
    config = _config(task, model, preset, configs)
    try:
      found.setdefault(command_line.load(config).preset, []).append(model)
    except ValueError as error:
      raise ValueError(f'{task}: {error}') from error
  return next(iter(found)) if len(found) == 1 else _preset(task, models, _COMMON, configs)


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
