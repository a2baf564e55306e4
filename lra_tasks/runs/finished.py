"""Runs that are finished, and how far others got: what their small files say, without a model.

It reads what `lra_tasks.runs.rundir` and `lra_tasks.train` write, and needs neither JAX nor NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lra_tasks.files import read_json
from lra_tasks.runs.log import read_records


class DamagedRun(ValueError):
  """A file of a run does not hold what it must; the message names it, and what to do."""


# What people call the metrics of results.json.
METRIC_LABELS = {'accuracy': 'accuracy', 'f1': 'F1', 'matthews': 'Matthews correlation'}
Fraction = typing.NewType('Fraction', float)  # Between 0 and 1, as all accuracies of runs are.
# Evaluations that tell where a training ended, and how far single ones are apart.
_LATE = 5
_FALL = 0.05  # Below the best of them: less is common.


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run: what is needed of its results.json, under the keys of that file.

  The annotations are what the file is checked against. None is a null in the file: not measured
  there (a CPU has no peak memory), or not applicable (an original LRA config has no preset).
  """

  path: Path
  modified: float  # Seconds; the file holds no date of its own.
  task: str
  dataset: str
  comparable: bool  # Whether the data is the benchmark's.
  model: str
  preset: str | None
  split: str
  accuracy: Fraction
  examples: int
  majority_class: Fraction
  seed: int
  steps: int
  validation_is_test: bool
  eval_samples: int
  parameters: int
  base_parameters: int | None
  steps_per_second: float | None
  peak_memory_bytes: int | None
  device: str
  config_id: str
  git_revision: str | None
  # Later than the other keys: files that lack them have None.
  accuracy_of_one_draw: Fraction | None = None
  accuracy_sd_of_draws: float | None = None
  # These four as in `lra_tasks.metrics.VoteMetrics`. Where votes were counted, a deviation that is
  # null in the file is infinite.
  voting_accuracy: Fraction | None = None
  inconsistency: Fraction | None = None
  median_deviation: float | None = None
  mean_deviation: float | None = None
  f1: float | None = None
  matthews: float | None = None
  validation_accuracy: Fraction | None = None
  judged_by: str | None = None  # Name of the metric that checkpoints and settings are chosen by.
  validation_score: float | None = None  # In that metric.
  learning_rate: float | None = None
  rates_id: str | None = None  # Equal for runs that differ in seed and learning rate alone.
  pretrained: str | None = None  # Task, model, config and seed of the run that it started from.
  best_step: int | None = None  # Of the checkpoint that was evaluated; None is the last step.
  late: tuple[tuple[int, float], ...] = ()  # Last steps and accuracies in metrics.jsonl.

  @property
  def score(self) -> float | None:
    """What settings are chosen by: the task's own metric on validation.

    Where the test split serves as validation, as with GLUE's development sets, that of the test,
    which is a mean over draws. None where an older file does not have it.
    """
    if self.validation_is_test:
      return getattr(self, self.metric)
    if self.validation_score is None and self.metric == 'accuracy':
      return self.validation_accuracy
    return self.validation_score

  @property
  def metric(self) -> str:
    """Name of the metric of `score`."""
    of_older_files = (name for name in ('matthews', 'f1') if getattr(self, name) is not None)
    return self.judged_by or next(of_older_files, 'accuracy')

  @property
  def late_accuracies(self) -> tuple[float, ...]:
    """Accuracies on validation of the last evaluations."""
    return tuple(value for _, value in self.late)

  @property
  def has_fallen(self) -> bool:
    """Whether accuracy, if it chose the checkpoint that was evaluated, fell after that.

    By more than 5 points and two standard errors of so many examples, on average over the last
    evaluations.
    """
    after = [value for step, value in self.late if step > (self.best_step or self.steps)]
    if self.metric != 'accuracy' or not after:
      return False
    best = self.accuracy if self.validation_accuracy is None else self.validation_accuracy
    fall = best - sum(after) / len(after)
    return fall > max(_FALL, 2 * math.sqrt(best * (1 - best) / self.examples))

  @property
  def is_comparable(self) -> bool:
    """Whether published figures were measured on the same data."""
    return self.comparable and (self.split == 'test' or self.validation_is_test)


def _is_number(value: object) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS = {
  dict: ('an object', lambda value: isinstance(value, dict)),
  str: ('a string', lambda value: isinstance(value, str)),
  bool: ('true or false', lambda value: isinstance(value, bool)),
  int: ('an integer', lambda value: isinstance(value, int) and _is_number(value)),
  float: ('a number', _is_number),
  Fraction: ('a fraction between 0 and 1', lambda value: _is_number(value) and 0 <= value <= 1),
}


_NOT_OF_RESULTS = ('path', 'modified', 'late')


@functools.cache
def _fields() -> dict[str, tuple[Any, bool]]:
  """Return {key: (type, whether it may be null)} of a results.json."""
  fields = {}
  for name, hint in typing.get_type_hints(Run).items():
    if name not in _NOT_OF_RESULTS:
      alternatives = typing.get_args(hint) or (hint,)
      fields[name] = (alternatives[0], type(None) in alternatives)
  return fields


def parse_run(values: Mapping[str, Any], path: Path, modified: float = 0.0) -> Run:
  """Return the run that the object of a results.json describes; other keys are ignored.

  Raises:
    ValueError: naming the file and the key, if one is missing or holds another type.
  """
  later = {field.name: None for field in dataclasses.fields(Run) if field.default is None}
  values = later | _with_infinities(values)
  _check_keys(values, _fields(), path)
  return Run(path=path, modified=modified, **{name: values[name] for name in _fields()})


def _check_keys(
  values: Mapping[str, Any], wanted: Mapping[str, tuple[Any, bool]], path: str | Path
) -> None:
  """Raise a ValueError unless a file has the keys: {key: (type, whether it may be null)}."""
  if missing := [name for name in wanted if name not in values]:
    raise ValueError(f'{path}: missing: {", ".join(missing)}')
  for name, (type_, nullable) in wanted.items():
    expected, check = _CHECKS[type_]
    if not (check(values[name]) or (nullable and values[name] is None)):
      raise ValueError(f'{path}: {name} is {json.dumps(values[name])}: expected {expected}')


_MAY_BE_INFINITE = ('median_deviation', 'mean_deviation')


def _with_infinities(values: Mapping[str, Any]) -> dict[str, Any]:
  """Return the object of a results.json with infinity where JSON has null for want of a number."""
  if values.get('voting_accuracy') is None:
    return dict(values)
  infinite = [name for name in _MAY_BE_INFINITE if values.get(name, 0.0) is None]
  return {**values, **dict.fromkeys(infinite, math.inf)}


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """A run that has begun but has not taken all its steps; `step` of `planned`, where known."""

  path: Path
  step: int | None = None
  planned: int | None = None
  tested: Run | None = None  # What results.json has: --test_only evaluates at any step.

  def __str__(self) -> str:
    """Return the folder and how far the run got."""
    if self.tested is not None:
      return (
        f'{self.path} (results.json has {100 * self.tested.accuracy:.2f} % on {self.tested.split} '
        f'after step {self.tested.steps:,} of {self.planned:,}, by --test_only; the steps after '
        'that are missing)'
      )
    if self.step is None:
      return f'{self.path} (not evaluated yet)'
    planned = '' if self.planned is None else f' of {self.planned:,}'
    return f'{self.path} (evaluated up to step {self.step:,}{planned})'


@dataclasses.dataclass(frozen=True)
class Damaged:
  """A run with a file that cannot be read, and why: the file's name is part of it."""

  path: Path
  reason: str

  def __str__(self) -> str:
    """Return the reason."""
    return self.reason


# What every run tells of itself.
_DESCRIBED = {
  'config': (dict, False), 'config_id': (str, False), 'dataset': (str, False),
  'model': (dict, False), 'task': (str, False), 'tokenizer': (dict, False),
}  # fmt: skip


@contextlib.contextmanager
def _with_way_out() -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise DamagedRun(f'{error}; move the run away, or restore the file') from error


def read_description(
  model_dir: str | os.PathLike[str], *, whole: bool = False
) -> dict[str, Any] | None:
  """Return the contents of a run's config.json, or None where no run lies.

  Args:
    model_dir: the run's directory.
    whole: whether all that every run tells of itself must be there; reports do without.

  Raises:
    DamagedRun: if the file is none that a run has written.
  """
  path = os.path.join(model_dir, 'config.json')
  with _with_way_out():
    description = read_json(path)
    if whole and description is not None:
      _check_keys(description, _DESCRIBED, path)
  return description


def read_whole_description(model_dir: str | os.PathLike[str]) -> dict[str, Any]:
  """Return the contents of a run's config.json, for those who need all of it.

  Raises:
    FileNotFoundError: where no run lies.
    DamagedRun: see `read_description`.
  """
  description = read_description(model_dir, whole=True)
  if description is None:
    raise FileNotFoundError(f'{model_dir} holds no run: it has no config.json')
  return description


def read_folder(folder: Path) -> Run | Unfinished | None:
  """Return the run that lies in `folder`, if one does.

  Raises:
    OSError: if a file cannot be read.
    DamagedRun: if one is none that a run has written.
  """
  description = read_description(folder)
  config = (description or {}).get('config')
  planned = config.get('num_train_steps') if isinstance(config, dict) else None
  planned = planned if isinstance(planned, int) else None
  tested = None
  path = folder / 'results.json'
  if os.path.lexists(path):  # A link to nothing is an error, not an absence.
    modified = path.stat().st_mtime
    with _with_way_out():
      tested = parse_run(read_json(path) or {}, path, modified)
    if planned is None or tested.steps >= planned:  # Fewer: by --test_only.
      return tested
  elif description is None:
    return None
  records = read_records(folder / 'metrics.jsonl')
  return Unfinished(folder, records[-1].get('step') if records else None, planned, tested)


def with_late_evaluations(run: Run) -> Run:
  """Return the run with its last evaluations: apart, as sweeps look at runs again and again."""
  records = read_records(run.path.parent / 'metrics.jsonl')
  pairs = [(record.get('step'), record.get('eval_accuracy')) for record in records]
  late = tuple(pair for pair in pairs if all(map(_is_number, pair)))[-_LATE:]
  return dataclasses.replace(run, late=late)
