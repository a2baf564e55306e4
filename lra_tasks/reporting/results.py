"""Read the results of runs, and the published figures that they are compared with."""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import importlib.resources
import json
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lra_tasks.files import read_json
from lra_tasks.run_log import read_records

# Where a source's figures are shown.
SOURCES = {
  'KL-Transformer paper (TMLR 07/2022)': 'paper',
  'Long Range Arena leaderboard (repository README)': 'lra',
}
# The runs that this package comes with.
KEPT = Path(__file__).parents[1] / 'results'
# Runs that share these differ in their seed alone.
_SAME = ('task', 'dataset', 'split', 'model', 'preset', 'config_id')

Fraction = typing.NewType('Fraction', float)  # Between 0 and 1, as all accuracies of runs are.

# -------------------------------------------------------------------------------- one run


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
  voting_accuracy: Fraction | None = None  # These four as in `lra_tasks.metrics.VoteMetrics`.
  inconsistency: Fraction | None = None
  median_deviation: float | None = None
  mean_deviation: float | None = None
  f1: float | None = None
  matthews: float | None = None
  learning_rate: float | None = None
  rates_id: str | None = None  # Equal for runs that differ in seed and learning rate alone.
  pretrained: str | None = None  # Task, model, config and seed of the run that it started from.

  @property
  def is_comparable(self) -> bool:
    """Whether published figures were measured on the same data."""
    return self.comparable and (self.split == 'test' or self.validation_is_test)


def _is_number(value: object) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS = {
  str: ('a string', lambda value: isinstance(value, str)),
  bool: ('true or false', lambda value: isinstance(value, bool)),
  int: ('an integer', lambda value: isinstance(value, int) and _is_number(value)),
  float: ('a number', _is_number),
  Fraction: ('a fraction between 0 and 1', lambda value: _is_number(value) and 0 <= value <= 1),
}


@functools.cache
def _fields() -> dict[str, tuple[Any, bool]]:
  """Return {key: (type, whether it may be null)} of a results.json."""
  fields = {}
  for name, hint in typing.get_type_hints(Run).items():
    if name not in ('path', 'modified'):
      alternatives = typing.get_args(hint) or (hint,)
      fields[name] = (alternatives[0], type(None) in alternatives)
  return fields


def parse_run(values: Mapping[str, Any], path: Path, modified: float = 0.0) -> Run:
  """Return the run that the object of a results.json describes; other keys are ignored.

  Raises:
    ValueError: naming the file and the key, if one is missing or holds another type.
  """
  later = {field.name: None for field in dataclasses.fields(Run) if field.default is None}
  values = later | values
  missing = [name for name in _fields() if name not in values]
  if missing:
    raise ValueError(f'{path}: missing: {", ".join(missing)}')
  for name, (type_, nullable) in _fields().items():
    expected, check = _CHECKS[type_]
    if not (check(values[name]) or (nullable and values[name] is None)):
      raise ValueError(f'{path}: {name} is {json.dumps(values[name])}: expected {expected}')
  return Run(path=path, modified=modified, **{name: values[name] for name in _fields()})


# --------------------------------------------------------------------------------- folders


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """A run that has begun but has not taken all its steps; `step` of `planned`, where known."""

  path: Path
  step: int | None = None
  planned: int | None = None

  def __str__(self) -> str:
    """Return the folder and how far the run got."""
    if self.step is None:
      return f'{self.path} (not evaluated yet)'
    planned = '' if self.planned is None else f' of {self.planned:,}'
    return f'{self.path} (evaluated up to step {self.step:,}{planned})'


class Results(NamedTuple):
  """What `load_results` found."""

  runs: tuple[Run, ...]
  unfinished: tuple[Unfinished, ...] = ()


def load_results(directories: Iterable[str | os.PathLike[str]]) -> Results:
  """Read every results.json in and below `directories`, each file once.

  Raises:
    OSError: if a directory or file does not exist or cannot be read.
    ValueError: if there is no finished run in or below a directory, or a file is damaged.
  """
  runs: dict[str, Run] = {}
  unfinished: dict[str, Unfinished] = {}
  for top in map(Path, directories):
    found = [read_folder(folder) for folder in _walk(top)]
    pending = [run for run in found if isinstance(run, Unfinished)]
    finished = [run for run in found if isinstance(run, Run)]
    if not finished:
      raise ValueError(
        f'{top}: no finished run here or below'
        + (f': {"; ".join(map(str, pending))}' if pending else '')
        + '; python -m lra_tasks.train --config=... --model_dir=... writes results.json at the '
        'end of its run, and goes on with a run that was stopped'
      )
    for run in finished:
      runs.setdefault(os.path.realpath(run.path), run)
    for run in pending:
      unfinished.setdefault(os.path.realpath(run.path), run)
  return Results(tuple(runs.values()), tuple(unfinished.values()))


def read_folder(folder: Path) -> Run | Unfinished | None:
  """Return the run that lies in `folder`, if one does.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if one is damaged.
  """
  config = (read_json(folder / 'config.json') or {}).get('config')
  planned = config.get('num_train_steps') if isinstance(config, dict) else None
  path = folder / 'results.json'
  if os.path.lexists(path):  # A link to nothing is an error, not an absence.
    modified = path.stat().st_mtime
    run = parse_run(read_json(path) or {}, path, modified)
    if planned is None or run.steps >= planned:  # Fewer: by --test_only.
      return run
  elif not (folder / 'config.json').exists():
    return None
  records = read_records(folder / 'metrics.jsonl')
  return Unfinished(folder, records[-1].get('step') if records else None, planned)


def _walk(top: Path) -> Iterator[Path]:
  """Yield the folder and those below, following links but entering no folder twice."""
  seen = set()
  for folder, subfolders, _ in os.walk(top, followlinks=True, onerror=_raise):
    real = os.path.realpath(folder)
    if real in seen:
      subfolders.clear()
      continue
    seen.add(real)
    # A run's own subfolders hold many files and no results.
    skipped = ('checkpoints', 'summary')
    subfolders[:] = sorted(n for n in subfolders if n not in skipped and n[0] != '.')
    yield Path(folder)


def _raise(error: OSError) -> None:
  raise error


# -------------------------------------------------------------------------- repeated seeds


class Group(NamedTuple):
  """The runs of one config, one for each seed, and older runs of the same seeds."""

  runs: tuple[Run, ...]
  repeated: tuple[Run, ...] = ()


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Gather the runs of one config; of a repeated seed, no independent run, the newest stays."""
  groups = collections.defaultdict(list)
  for run in sorted(runs, key=lambda run: (run.modified, str(run.path))):
    groups[tuple(getattr(run, name) for name in _SAME)].append(run)
  gathered = []
  for members in groups.values():
    newest = {run.seed: run for run in members}
    repeated = tuple(run for run in members if run is not newest[run.seed])
    gathered.append(Group(tuple(newest[seed] for seed in sorted(newest)), repeated))
  return gathered


# ----------------------------------------------------------------------- published figures


class Figure(NamedTuple):
  """One published accuracy in percent; None where the source reports a failure (`note`)."""

  source: str
  table: str
  model: str
  family: str
  task: str
  value: float | None
  regime: str  # 'lra', or 'external' for entries that do not keep to LRA's rules.
  note: str

  @property
  def fraction(self) -> float | None:
    """The accuracy as a fraction, as those of runs are."""
    return None if self.value is None else round(self.value / 100, 6)


@functools.cache
def load_published(metric: str = 'accuracy') -> tuple[Figure, ...]:
  """Return the published accuracies of published_results.csv, or what it calls `score`: GLUE's."""
  file = importlib.resources.files('lra_tasks').joinpath('published_results.csv')
  rows = csv.DictReader(file.read_text(encoding='utf-8').splitlines())
  return tuple(
    Figure(
      **{name: row[name] for name in Figure._fields if name != 'value'},
      value=float(row['value']) if row['value'] else None,
    )
    for row in rows
    if row['metric'] == metric
  )


def published_for(
  figures: Iterable[Figure], task: str, external: bool = False
) -> dict[str, dict[str, Figure]]:
  """Return {model: {'paper' or 'lra': figure}} of one task.

  Args:
    figures: what to choose from.
    task: the task's name; an unknown one has no figures.
    external: also entries that do not keep to LRA's rules.

  >>> published_for(load_published(), 'listops')['gmm_prf']['paper'].value
  36.96
  """
  regimes = {'lra', 'external'} if external else {'lra'}
  found = collections.defaultdict(dict)
  for figure in figures:
    if figure.task == task and figure.regime in regimes:
      found[figure.model].setdefault(SOURCES[figure.source], figure)
  return dict(found)
