"""Print the results of finished runs beside the published figures.

  python -m lra_tasks.report DIR... [--format=table|markdown|csv] [--output=FILE]
                             [--published=matching|all|none] [--external]

Each DIR is the --model_dir of a run of lra_tasks.train, or a folder with such runs
anywhere below it. Runs of one config that differ in their seed alone become one row: mean
and sample standard deviation. There is one table for each task, data set and split.
"""

# Three steps, pure after the first: `load_results` reads the files, `build_report` makes
# rows of numbers, `render_*` makes text of them.

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import importlib.resources
import io
import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

FORMATS = ('table', 'markdown', 'csv')
PUBLISHED = ('matching', 'all', 'none')
MAX_PARAMETER_RATIO = 1.10  # LRA's rule for like-for-like models.

_TASKS = (
  'listops',
  'text',
  'retrieval',
  'image',
  'pathfinder32',
  'pathfinder64',
  'pathfinder128',
  'pathfinder256',
)
# Where a source's figures are shown. A test holds that every source is listed.
_COLUMN_OF_SOURCE = {
  'KL-Transformer paper (TMLR 07/2022)': 'paper',
  'Long Range Arena leaderboard (repository README)': 'lra',
}
_NONE = '–'


class ReportError(ValueError):
  """Something the user can mend; the message is one line that names it."""


# -------------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run: what the report needs of a results.json, under its keys.

  Accuracies are fractions. A value of None is a null in the file: not measured there (a
  CPU has no peak memory), or not applicable (an original LRA config has no preset).
  """

  path: Path
  modified: float  # Seconds; the file holds no date of its own.
  task: str
  dataset: str
  comparable: bool
  model: str
  preset: str | None
  split: str
  accuracy: float
  examples: int
  majority_class: float
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
  git_revision: str | None = None

  @property
  def is_comparable(self) -> bool:
    """Whether a published figure was measured on the same data as this run's."""
    return self.comparable and (self.split == 'test' or self.validation_is_test)


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """A run that has begun but has no results.json; `step` of `planned`, where known."""

  path: Path
  step: int | None = None
  planned: int | None = None

  def describe(self) -> str:
    """Return the folder and how far the run got."""
    if self.step is None:
      return f'{self.path} (not evaluated yet)'
    planned = '' if self.planned is None else f' of {self.planned:,}'
    return f'{self.path} (evaluated up to step {self.step:,}{planned})'


class Results(NamedTuple):
  """What `load_results` found."""

  runs: tuple[Run, ...]
  unfinished: tuple[Unfinished, ...] = ()


_STRINGS = {'task', 'dataset', 'model', 'preset', 'split', 'device', 'config_id', 'git_revision'}
_BOOLEANS = {'comparable', 'validation_is_test'}
_FRACTIONS = {'accuracy', 'majority_class'}
_FLOATS = {*_FRACTIONS, 'steps_per_second'}
_NULLABLE = {'preset', 'base_parameters', 'steps_per_second', 'peak_memory_bytes', 'git_revision'}
_MAY_BE_ABSENT = {'git_revision'}
_KEYS = tuple(f.name for f in dataclasses.fields(Run) if f.name not in ('path', 'modified'))


def _is_finite(value: object) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expected(key: str, value: object) -> str | None:
  """Return what `key` must hold if `value` is not that, else None."""
  if value is None and key in _NULLABLE:
    return None
  if key in _STRINGS:
    return None if isinstance(value, str) else 'a string'
  if key in _BOOLEANS:
    return None if isinstance(value, bool) else 'true or false'
  if key in _FRACTIONS:
    ok = _is_finite(value) and 0 <= value <= 1
    return None if ok else 'a fraction between 0 and 1'
  if key == 'steps_per_second':
    return None if _is_finite(value) and value >= 0 else 'a number, not negative'
  if key == 'base_parameters':
    ok = isinstance(value, int) and _is_finite(value) and value > 0
    return None if ok else 'a positive integer'
  ok = isinstance(value, int) and _is_finite(value) and value >= 0
  return None if ok else 'an integer, not negative'


def parse_run(values: Mapping[str, Any], path: Path, modified: float = 0.0) -> Run:
  """Return the run that the object of a results.json describes; other keys are ignored.

  Raises:
    ReportError: if keys are missing or hold something else than they must.
  """
  missing = [key for key in _KEYS if key not in values and key not in _MAY_BE_ABSENT]
  if missing:
    plural = 's' if len(missing) > 1 else ''
    raise ReportError(f'{path}: missing key{plural} {", ".join(missing)}')
  found = {key: values.get(key) for key in _KEYS}
  for key, value in found.items():
    expected = _expected(key, value)
    if expected:
      raise ReportError(f'{path}: {key} is {json.dumps(value)}: expected {expected}')
  # JSON knows no difference between 1 and 1.0.
  numbers = {key: float(found[key]) for key in _FLOATS if found[key] is not None}
  return Run(path=path, modified=modified, **(found | numbers))


def _read_json(path: Path) -> dict[str, Any]:
  try:
    text = path.read_text(encoding='utf-8')
    value = json.loads(text)
  except OSError as error:
    raise ReportError(f'{path}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise ReportError(f'{path}: damaged: not UTF-8 text ({error.reason})') from error
  except json.JSONDecodeError as error:
    what = str(error) if text.strip() else 'the file is empty'
    raise ReportError(f'{path}: damaged JSON: {what}') from error
  if not isinstance(value, dict):
    raise ReportError(f'{path}: expected a JSON object, got {type(value).__name__}')
  return value


def _last_step(path: Path) -> int | None:
  """Return the last whole line's step: a killed run may have left a torn one."""
  try:
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError:
    return None
  for line in reversed(lines):
    try:
      return int(json.loads(line)['step'])
    except (ValueError, TypeError, KeyError):
      continue
  return None


def _planned_steps(path: Path) -> int | None:
  try:
    config = _read_json(path)
  except ReportError:
    return None
  if isinstance(config.get('config'), dict):
    config = config['config']
  steps = config.get('num_train_steps')
  return steps if isinstance(steps, int) else None


def _raise_unreadable(error: OSError) -> None:
  raise ReportError(f'{error.filename}: cannot be read: {error.strerror}') from error


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
  """Yield (folder, names of its files), following links but entering no folder twice."""
  seen = set()
  for folder, subfolders, names in os.walk(top, followlinks=True, onerror=_raise_unreadable):
    real = os.path.realpath(folder)
    if real in seen:
      subfolders.clear()
      continue
    seen.add(real)
    # A run's own subfolders hold many files and no results.
    subfolders[:] = sorted(
      n for n in subfolders if n not in ('checkpoints', 'summary') and n[0] != '.'
    )
    yield Path(folder), set(names)


def _stopped_early(folder: Path) -> bool:
  """Return whether results.json is of a run that has not taken all its steps (--test_only)."""
  try:
    steps = _read_json(folder / 'results.json').get('steps')
  except ReportError:
    return False  # Loading it will say what is wrong.
  planned = _planned_steps(folder / 'config.json') if (folder / 'config.json').exists() else None
  return planned is not None and isinstance(steps, int) and steps < planned


def _scan(top: Path) -> tuple[list[Path], list[Unfinished]]:
  finished, unfinished = [], []
  for folder, names in _walk(top):
    if 'results.json' in names and not _stopped_early(folder):
      finished.append(folder / 'results.json')
    elif names & {'metrics.jsonl', 'config.json'}:
      unfinished.append(
        Unfinished(
          folder, _last_step(folder / 'metrics.jsonl'), _planned_steps(folder / 'config.json')
        )
      )
  return finished, unfinished


def _no_results(top: Path, unfinished: Sequence[Unfinished]) -> ReportError:
  if not unfinished:
    return ReportError(
      f'{top}: no results.json here or below; `python -m lra_tasks.train '
      f'--config=... --model_dir={top}` writes one at the end of its run'
    )
  more = f', and {len(unfinished) - 1} more' if len(unfinished) > 1 else ''
  return ReportError(
    f'{top}: no finished run: {unfinished[0].describe()}{more}; results.json is '
    'written at the end of a run: call lra_tasks.train again as before to go on'
  )


def load_results(directories: Iterable[str | os.PathLike[str]]) -> Results:
  """Read every results.json in and below `directories`, each file once.

  Raises:
    ReportError: if a directory does not exist or has no finished run below it, or if a
      file is damaged or lacks a key.
  """
  finished: dict[str, Path] = {}
  unfinished: dict[str, Unfinished] = {}
  for top in map(Path, directories):
    if not top.is_dir():
      raise ReportError(
        f"{top}: not a directory; name the run's folder"
        if top.exists()
        else f'{top}: no such directory'
      )
    paths, pending = _scan(top)
    if not paths:
      raise _no_results(top, pending)
    for path in paths:
      finished.setdefault(os.path.realpath(path), path)
    for run in pending:
      unfinished.setdefault(os.path.realpath(run.path), run)
  runs = tuple(
    parse_run(_read_json(path), path, path.stat().st_mtime) for path in finished.values()
  )
  return Results(runs, tuple(unfinished.values()))


# ---------------------------------------------------------------------- published figures


@dataclasses.dataclass(frozen=True)
class Figure:
  """One published accuracy in percent; None where the source reports a failure."""

  source: str
  table: str
  model: str
  family: str
  task: str
  value: float | None
  regime: str
  note: str

  @property
  def text(self) -> str:
    """The figure as shown in a table."""
    if self.value is not None:
      return f'{self.value:.2f}'
    return self.note.partition(':')[0] or _NONE

  @property
  def origin(self) -> str:
    """Source and place in the source."""
    return f'{self.source}, {self.table}'


@functools.cache
def load_published() -> tuple[Figure, ...]:
  """Return the published accuracies of published_results.csv."""
  file = importlib.resources.files('lra_tasks').joinpath('published_results.csv')
  names = [f.name for f in dataclasses.fields(Figure)]
  rows = csv.DictReader(io.StringIO(file.read_text(encoding='utf-8')))
  return tuple(
    Figure(
      **{name: row[name] for name in names if name != 'value'},
      value=float(row['value']) if row['value'] else None,
    )
    for row in rows
    if row['metric'] == 'accuracy'
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
  found: dict[str, dict[str, Figure]] = collections.defaultdict(dict)
  for figure in figures:
    column = _COLUMN_OF_SOURCE.get(figure.source)
    if column and figure.task == task and figure.regime in regimes:
      found[figure.model].setdefault(column, figure)
  return dict(found)


# ----------------------------------------------------------------------------------- rows


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one config, one for each seed, and older runs of the same seeds."""

  runs: tuple[Run, ...]
  repeated: tuple[Run, ...] = ()


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Gather the runs of one config: same task, data set, split, model, preset, config_id.

  A repeated seed is no independent run: the newest stays.
  """
  groups: dict[tuple[Any, ...], list[Run]] = collections.defaultdict(list)
  for run in runs:
    data = run.task, run.dataset, run.split
    groups[(*data, run.model, run.preset, run.config_id)].append(run)
  return [_without_repeats(members) for members in groups.values()]


def _without_repeats(runs: Iterable[Run]) -> Group:
  newest: dict[int, Run] = {}
  repeated = []
  for run in sorted(runs, key=lambda r: (r.modified, str(r.path))):
    if run.seed in newest:
      repeated.append(newest[run.seed])
    newest[run.seed] = run
  return Group(tuple(newest[seed] for seed in sorted(newest)), tuple(repeated))


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table: numbers, not text. Accuracies are fractions.

  Tuples hold the distinct values of a row's runs, sorted; they have one element unless
  runs of one config differ.
  """

  kind: str  # 'run', 'majority' or 'published'
  model: str
  preset: str = ''
  config_id: str = ''
  tag: str = ''  # Tells rows of one model and preset apart.
  accuracy: float | None = None
  accuracy_sd: float | None = None
  paper: Figure | None = None
  lra: Figure | None = None
  difference: float | None = None  # To the paper's figure.
  comparable: bool = True
  validation_is_test: bool = False
  examples: tuple[int, ...] = ()
  parameters: tuple[int, ...] = ()
  base_parameters: tuple[int, ...] = ()
  parameter_ratio: float | None = None
  steps: tuple[int, ...] = ()
  steps_per_second: float | None = None  # Mean over the runs.
  peak_memory_bytes: int | None = None  # Largest of the runs.
  eval_samples: tuple[int, ...] = ()
  runs: tuple[Run, ...] = ()
  repeated: tuple[Run, ...] = ()

  @property
  def label(self) -> str:
    """Model, preset and tag: names the row in notes."""
    return ' '.join(filter(None, (self.model, self.preset_and_tag)))

  @property
  def preset_and_tag(self) -> str:
    """The preset, with the tag if there is one."""
    return f'{self.preset} ({self.tag})' if self.tag else self.preset

  @property
  def seeds(self) -> tuple[int, ...]:
    """Seeds of the runs."""
    return tuple(run.seed for run in self.runs)

  @property
  def devices(self) -> tuple[str, ...]:
    """Hardware of the runs."""
    return _distinct(run.device for run in self.runs)

  @property
  def revisions(self) -> tuple[str, ...]:
    """Code revisions of the runs."""
    return _distinct(run.git_revision for run in self.runs)

  @property
  def breaks_rule(self) -> bool:
    """Whether the model is too large to be compared under LRA's rule."""
    return (self.parameter_ratio or 0) > MAX_PARAMETER_RATIO


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one task, data set and split: ours, chance, then published ones."""

  task: str
  dataset: str
  split: str
  rows: tuple[Row, ...]
  # Every figure shown: those in the rows, none with --published=none.
  figures: tuple[Figure, ...] = ()

  @property
  def examples(self) -> int | None:
    """Number of examples, None if the rows differ in it."""
    counts = _distinct(n for row in self.rows for n in row.examples)
    return counts[0] if len(counts) == 1 else None

  @property
  def title(self) -> str:
    """Task, split and, where it is the same in all rows, the number of examples."""
    examples = f' ({self.examples:,} examples)' if self.examples else ''
    return f'{self.task}: accuracy on the {self.split} split{examples}'


@dataclasses.dataclass(frozen=True)
class Report:
  """The whole report, ready to be rendered."""

  tables: tuple[Table, ...]
  unfinished: tuple[Unfinished, ...] = ()


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
  return tuple(sorted({value for value in values if value is not None}))


def _ratio(runs: Iterable[Run]) -> float | None:
  return max(
    (run.parameters / run.base_parameters for run in runs if run.base_parameters), default=None
  )


def _run_row(group: Group, published: Mapping[str, Mapping[str, Figure]]) -> Row:
  runs, first = group.runs, group.runs[0]
  figures = published.get(first.model, {})
  paper = figures.get('paper')
  accuracies = [run.accuracy for run in runs]
  comparable = all(run.is_comparable for run in runs)
  difference = None
  if comparable and paper and paper.value is not None:
    difference = statistics.fmean(accuracies) - paper.value / 100
  speeds = [run.steps_per_second for run in runs if run.steps_per_second is not None]
  return Row(
    kind='run',
    model=first.model,
    preset=first.preset or '',
    config_id=first.config_id,
    accuracy=statistics.fmean(accuracies),
    accuracy_sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
    paper=paper,
    lra=figures.get('lra'),
    difference=difference,
    comparable=comparable,
    validation_is_test=any(run.validation_is_test for run in runs),
    examples=_distinct(run.examples for run in runs),
    parameters=_distinct(run.parameters for run in runs),
    base_parameters=_distinct(run.base_parameters for run in runs),
    parameter_ratio=_ratio(runs),
    steps=_distinct(run.steps for run in runs),
    steps_per_second=statistics.fmean(speeds) if speeds else None,
    peak_memory_bytes=max(
      (run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None), default=None
    ),
    eval_samples=_distinct(run.eval_samples for run in runs),
    runs=runs,
    repeated=group.repeated,
  )


def _tagged(rows: Sequence[Row]) -> list[Row]:
  """Tag rows of one model and preset with the start of their config_id."""
  same = collections.defaultdict(list)
  for row in rows:
    same[row.model, row.preset].append(row.config_id)
  tagged = []
  for row in rows:
    ids = same[row.model, row.preset]
    lengths = (n for n in range(4, 64) if len({i[:n] for i in ids}) == len(ids))
    length = next(lengths, None)
    tag = row.config_id[:length] if len(ids) > 1 else ''
    tagged.append(dataclasses.replace(row, tag=tag))
  return tagged


def _majority_rows(runs: Iterable[Run]) -> list[Row]:
  """Return one row, or one for each number of examples if runs saw different ones."""
  shares = sorted({(run.majority_class, run.examples) for run in runs})
  return [
    Row(kind='majority', model='majority', accuracy=share, examples=(examples,))
    for share, examples in shares
  ]


def _published_rows(
  published: Mapping[str, Mapping[str, Figure]], ran: set[str], which: str, comparable: bool
) -> list[Row]:
  def value(row: Row) -> float:
    figure = row.paper or row.lra
    return figure.value if figure and figure.value is not None else -1.0

  rows = [
    Row(
      kind='published',
      model=model,
      preset=_published_label(figures.values()),
      paper=figures.get('paper'),
      lra=figures.get('lra'),
      comparable=comparable,
    )
    for model, figures in published.items()
    if model not in ran and (which == 'all' or _is_chance(figures))
  ]
  return sorted(rows, key=lambda row: (-value(row), row.model))


def _published_label(figures: Iterable[Figure]) -> str:
  regimes = {figure.regime for figure in figures}
  return 'external' if regimes == {'external'} else 'published'


def _is_chance(figures: Mapping[str, Figure]) -> bool:
  return any(figure.family == 'chance' for figure in figures.values())


def build_rows(
  groups: Sequence[Group], published: Mapping[str, Mapping[str, Figure]], which: str = 'matching'
) -> list[Row]:
  """Return the rows of one table: our runs, best first; chance; published models.

  Args:
    groups: the configs that were run on one task, data set and split.
    published: figures of this task, from `published_for`.
    which: 'matching' adds the published figures of the models that were run and of random
      guessing, 'all' those of every other model too, 'none' nothing.
  """
  if which == 'none':
    published = {}
  ours = _tagged([_run_row(group, published) for group in groups])
  ours.sort(key=lambda row: (-row.accuracy, row.model, row.preset, row.config_id))
  runs = [run for row in ours for run in row.runs]
  comparable = all(row.comparable for row in ours)
  ran = {row.model for row in ours}
  return ours + _majority_rows(runs) + _published_rows(published, ran, which, comparable)


def _table_order(key: tuple[str, str, str]) -> tuple[Any, ...]:
  task = key[0]
  return (_TASKS.index(task) if task in _TASKS else len(_TASKS), key)


def build_report(
  results: Results, figures: Iterable[Figure], which: str = 'matching', external: bool = False
) -> Report:
  """Return one table for each task, data set and split of `results`."""
  figures = tuple(figures)
  groups = collections.defaultdict(list)
  for group in group_runs(results.runs):
    first = group.runs[0]
    groups[first.task, first.dataset, first.split].append(group)
  tables = []
  for key in sorted(groups, key=_table_order):
    rows = build_rows(groups[key], published_for(figures, key[0], external), which)
    shown = tuple(f for row in rows for f in (row.paper, row.lra) if f)
    tables.append(Table(*key, rows=tuple(rows), figures=shown))
  return Report(tuple(tables), results.unfinished)


# ------------------------------------------------------------------------ cells and notes

_MARKS = {
  '†': f'more than {100 * (MAX_PARAMETER_RATIO - 1):.0f} % larger than the base '
  "Transformer: outside LRA's rule for like-for-like comparison.",
  '‡': 'the checkpoint was chosen on the split that is reported here (as LRA does '
  'where a task has no validation split): optimistic.',
  '§': 'published for the full task; our data or split is not the same, so no difference is given.',
  '¶': 'mean speed and largest memory over runs on different hardware.',
  '◊': 'the runs were made by different revisions of the code.',
}


class Cell(NamedTuple):
  """Text of one cell and the marks behind it."""

  text: str = ''
  marks: str = ''


class Column(NamedTuple):
  """One column of a rendered table; columns without any value are left out."""

  header: str
  block: str  # 'label' columns are repeated where a table is split into its blocks.
  cell: Callable[[Row], Cell]
  legend: str = ''
  left: bool = False


def _number(value: float | int | None, template: str, row: Row, scale: float = 1.0) -> str:
  if value is None:
    return _NONE if row.kind == 'run' else ''
  rounded = template.format(value * scale)
  return rounded.replace('-', '+') if rounded.strip('+-0.') == '' else rounded


def _span(values: Sequence[int], row: Row, text: Callable[[int], str] = '{:,}'.format) -> str:
  if not values:
    return _NONE if row.kind == 'run' else ''
  ends = dict.fromkeys((values[0], values[-1]))
  return '–'.join(map(text, ends))


def _count(value: int) -> str:
  """Return a parameter count in thousands or millions.

  >>> _count(19_000_000), _count(54_321)
  ('19.00M', '54.3k')
  """
  return f'{value / 1e6:.2f}M' if value >= 999_950 else f'{value / 1e3:.1f}k'


def compact_seeds(seeds: Iterable[int]) -> str:
  """Return seeds as a list with runs of three or more shortened.

  >>> compact_seeds([0, 1, 2, 3, 7, 8])
  '0–3, 7, 8'
  """
  stretches: list[list[int]] = []
  for seed in sorted(seeds):
    if stretches and seed == stretches[-1][-1] + 1:
      stretches[-1].append(seed)
    else:
      stretches.append([seed])
  return ', '.join(f'{s[0]}–{s[-1]}' if len(s) > 2 else ', '.join(map(str, s)) for s in stretches)


def _published_cell(row: Row, figure: Figure | None) -> Cell:
  if figure is None:
    return Cell(_number(None, '', row))
  return Cell(figure.text, '' if row.comparable else '§')


def _hardware_mark(row: Row) -> str:
  return '¶' if len(row.devices) > 1 else ''


_COLUMNS = (
  Column(
    'model',
    'label',
    lambda row: Cell(row.model),
    'majority: always answering the commonest class of the split.',
    left=True,
  ),
  Column('preset', 'label', lambda row: Cell(row.preset_and_tag), left=True),
  Column(
    'ours %',
    'accuracy',
    lambda row: Cell(
      _number(row.accuracy, '{:.2f}', row, 100.0), '‡' if row.validation_is_test else ''
    ),
  ),
  Column(
    '± sd',
    'accuracy',
    lambda row: Cell('' if row.accuracy_sd is None else f'± {100 * row.accuracy_sd:.2f}'),
    '± sd: sample standard deviation over the runs of a row.',
  ),
  Column(
    'runs',
    'accuracy',
    lambda row: Cell(str(len(row.runs)) if row.runs else '', '◊' if len(row.revisions) > 1 else ''),
  ),
  Column('seeds', 'accuracy', lambda row: Cell(compact_seeds(row.seeds)), left=True),
  Column('paper %', 'accuracy', lambda row: _published_cell(row, row.paper)),
  Column(
    'Δ',
    'accuracy',
    lambda row: Cell(_number(row.difference, '{:+.2f}', row, 100.0)),
    "Δ: our mean minus the paper's figure, in percentage points.",
  ),
  Column('LRA %', 'accuracy', lambda row: _published_cell(row, row.lra)),
  Column('params', 'cost', lambda row: Cell(_span(row.parameters, row, _count))),
  Column(
    '/ base',
    'cost',
    lambda row: Cell(_number(row.parameter_ratio, '{:.3f}', row), '†' if row.breaks_rule else ''),
    '/ base: parameters over those of the base Transformer.',
  ),
  Column('steps', 'cost', lambda row: Cell(_span(row.steps, row))),
  Column(
    'steps/s',
    'cost',
    lambda row: Cell(_number(row.steps_per_second, '{:.2f}', row), _hardware_mark(row)),
  ),
  Column(
    'peak GiB',
    'cost',
    lambda row: Cell(_number(row.peak_memory_bytes, '{:.2f}', row, 2**-30), _hardware_mark(row)),
  ),
  Column(
    'samples',
    'cost',
    lambda row: Cell(_span(row.eval_samples, row)),
    'samples: draws of the random features per example in the evaluation.',
  ),
)
_EXAMPLES = Column('examples', 'accuracy', lambda row: Cell(_span(row.examples, row)))


class Grid(NamedTuple):
  """The columns of a table that hold something, and for each its cells, row by row."""

  columns: tuple[Column, ...]
  cells: tuple[tuple[Cell, ...], ...]


def make_grid(table: Table) -> Grid:
  """Return the text of a table's cells, without the columns that are empty throughout."""
  columns = list(_COLUMNS)
  if not table.examples:
    columns.insert([column.header for column in columns].index('paper %'), _EXAMPLES)
  filled = []
  for column in columns:
    cells = tuple(column.cell(row) for row in table.rows)
    if any(cell.text not in ('', _NONE) for cell in cells):
      filled.append((column, cells))
  return Grid(tuple(c for c, _ in filled), tuple(cells for _, cells in filled))


def legend(grids: Sequence[Grid]) -> list[str]:
  """Return the explanation of each column and each mark that appears in `grids`."""
  columns = dict.fromkeys(column for grid in grids for column in grid.columns)
  used = {mark for grid in grids for cells in grid.cells for cell in cells for mark in cell.marks}
  return [c.legend for c in columns if c.legend] + [
    f'{mark} {text}' for mark, text in _MARKS.items() if mark in used
  ]


def _source_notes(table: Table) -> list[str]:
  notes = []
  for source, column in _COLUMN_OF_SOURCE.items():
    figures = [f for f in table.figures if f.source == source]
    places = dict.fromkeys(f.table for f in figures)
    remarks = dict.fromkeys(f.note for f in figures if f.note)
    if figures:
      title = 'LRA %' if column == 'lra' else 'paper %'
      notes.append(
        f'{title}: {source}, {", ".join(places)}'
        + ''.join(f'; {remark}' for remark in remarks)
        + '.'
      )
  return notes


def _hardware_notes(table: Table) -> list[str]:
  rows_on = collections.defaultdict(list)
  for row in table.rows:
    for device in row.devices:
      seeds = [run.seed for run in row.runs if run.device == device]
      part = len(row.devices) > 1
      plural = 's' if len(seeds) > 1 else ''
      rows_on[device].append(
        row.label + (f' (seed{plural} {compact_seeds(seeds)})' if part else '')
      )
  if len(rows_on) == 1:
    return [f'Hardware of our rows: {device}.' for device in rows_on]
  return [f'Hardware {device}: {"; ".join(rows)}.' for device, rows in rows_on.items()]


def _repeat_notes(row: Row) -> list[str]:
  kept = {run.seed: run.path.parent for run in row.runs}
  return [
    f'{row.label}: seed {run.seed} was run again, which is no independent run. Kept '
    f'the newest results.json, in {kept[run.seed]}; left out {run.path.parent} '
    f'({100 * run.accuracy:.2f} %).'
    for run in row.repeated
  ]


def table_notes(table: Table) -> list[str]:
  """Return the sources, the hardware and what was left out, for one table."""
  notes = _source_notes(table) + _hardware_notes(table)
  if any(row.tag for row in table.rows):
    notes.append(
      'In brackets: the start of config_id, where one model and preset was '
      'run with different configs.'
    )
  return notes + [note for row in table.rows for note in _repeat_notes(row)]


def _report_notes(report: Report, grids: Sequence[Grid]) -> list[str]:
  unfinished = [f'Not finished, left out: {run.describe()}.' for run in report.unfinished]
  return legend(grids) + unfinished


def _data_line(table: Table) -> str:
  ours = [row for row in table.rows if row.kind == 'run']
  if all(run.comparable for row in ours for run in row.runs):
    return f'data: {table.dataset}'
  return f"data: {table.dataset} (NOT the benchmark's own)"


# ------------------------------------------------------------------------------ rendering


def _padded(column: Column, cells: Sequence[Cell]) -> list[str]:
  """Return header and cells; marks have a strip of their own: the digits stay aligned."""
  strip = max(len(cell.marks) for cell in cells)
  texts = [column.header] + [cell.text + cell.marks.ljust(strip) for cell in cells]
  width = 0 if column.left else max(map(len, texts))
  # Rich would strip the blanks of a cell before it aligned it to the right.
  return [text.rjust(width) for text in texts]


def _rich_table(table: Table, grid: Grid, columns: Sequence[Column]) -> RichTable:
  """Return those columns of `grid`, without the rows that have nothing in them."""
  chosen = [
    (column, cells)
    for column, cells in zip(grid.columns, grid.cells, strict=True)
    if column in columns
  ]
  values = [cells for column, cells in chosen if column.block != 'label']
  texts = [_padded(column, cells) for column, cells in chosen]
  rich_table = RichTable(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
  for text in texts:
    rich_table.add_column(Text(text[0]), no_wrap=True)
  previous = None
  for i, row in enumerate(table.rows):
    if not any(cells[i].text for cells in values):
      continue
    if previous not in (None, row.kind):
      rich_table.add_section()
    previous = row.kind
    rich_table.add_row(
      *(Text(text[i + 1]) for text in texts), style='' if row.kind == 'run' else 'dim'
    )
  return rich_table


def split_columns(
  columns: Sequence[Column], fits: Callable[[Sequence[Column]], bool]
) -> list[list[Column]]:
  """Split a table that is too wide into blocks: by topic, then as much as fits in each.

  Each block begins with the label columns and has at least one column more.
  """
  labels = [column for column in columns if column.block == 'label']
  values = [column for column in columns if column.block != 'label']
  if len(values) < 2 or fits(columns):
    return [list(columns)]
  topics = dict.fromkeys(column.block for column in values)
  parts = [[column for column in values if column.block == topic] for topic in topics]
  if len(parts) == 1:
    sizes = range(len(values) - 1, 1, -1)
    size = next((n for n in sizes if fits([*labels, *values[:n]])), 1)
    parts = [values[:size], values[size:]]
  return [block for part in parts for block in split_columns([*labels, *part], fits)]


def _width(rich_table: RichTable) -> int:
  console = Console(file=io.StringIO(), width=10_000)
  return Measurement.get(console, console.options, rich_table).maximum


def render_table(report: Report, width: int | None = None, color: bool = False) -> str:
  """Return the report as text.

  Args:
    report: what to show.
    width: columns of the terminal. A wider table is split, never cut off. None: no limit.
    color: whether to use the terminal's control codes.
  """
  grids = [make_grid(table) for table in report.tables]
  blocks = []
  for table, grid in zip(report.tables, grids, strict=True):
    make = functools.partial(_rich_table, table, grid)
    fits = lambda columns, make=make: width is None or _width(make(columns)) <= width
    blocks.append([make(columns) for columns in split_columns(grid.columns, fits)])
  needed = max((_width(block) for group in blocks for block in group), default=0)
  console = Console(
    file=io.StringIO(),
    width=max(width or 80, needed),
    highlight=False,
    markup=False,
    emoji=False,
    force_terminal=color,
    color_system='auto' if color else None,
    legacy_windows=False,
  )
  for table, group in zip(report.tables, blocks, strict=True):
    console.print(Text(table.title, style='bold'))
    console.print(Text(_data_line(table)))
    for block in group:
      console.print()
      console.print(block)
    console.print()
    _print_notes(console, table_notes(table))
    console.print()
  _print_notes(console, _report_notes(report, grids))
  lines = console.file.getvalue().rstrip().split('\n')
  return '\n'.join(line.rstrip() for line in lines) + '\n'


def _print_notes(console: Console, notes: Iterable[str]) -> None:
  for note in notes:
    lines = Text(note).wrap(console, console.width - 2)
    for i, line in enumerate(lines):
      console.print(Text('  ' if i else '') + line)


def _markdown_text(text: str) -> str:
  for character in '\\|*`<[]':
    text = text.replace(character, '\\' + character)
  return ' '.join(text.split())


def _markdown_line(cells: Iterable[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def _markdown_grid(grid: Grid) -> list[str]:
  columns = []
  for column, cells in zip(grid.columns, grid.cells, strict=True):
    texts = [column.header] + [' '.join(filter(None, cell)) for cell in cells]
    texts = [_markdown_text(text) for text in texts]
    width = max(3, *map(len, texts))
    rule = ':' + '-' * (width - 1) if column.left else '-' * (width - 1) + ':'
    texts = [text.ljust(width) if column.left else text.rjust(width) for text in texts]
    columns.append([texts[0], rule, *texts[1:]])
  return [_markdown_line(line) for line in zip(*columns, strict=True)]


def _markdown_list(items: Iterable[str]) -> list[str]:
  return ['- ' + _markdown_text(item) for item in items]


def render_markdown(report: Report) -> str:
  """Return the report as GitHub-flavoured Markdown."""
  grids = [make_grid(table) for table in report.tables]
  lines = []
  for table, grid in zip(report.tables, grids, strict=True):
    lines += ['### ' + _markdown_text(table.title), '']
    lines += [_markdown_text(_data_line(table)), '']
    lines += [*_markdown_grid(grid), '']
    lines += [*_markdown_list(table_notes(table)), '']
  # A paragraph of its own, or the two lists would become one.
  lines += ['Legend:', '', *_markdown_list(_report_notes(report, grids))]
  return '\n'.join(lines) + '\n'


CSV_COLUMNS = (
  'kind',
  'task',
  'dataset',
  'split',
  'model',
  'preset',
  'config_id',
  'accuracy',
  'accuracy_sd',
  'runs',
  'seeds',
  'examples',
  'comparable',
  'validation_is_test',
  'published_paper',
  'published_lra',
  'difference_to_paper',
  'parameters',
  'base_parameters',
  'parameter_ratio',
  'breaks_lra_rule',
  'steps',
  'steps_per_second',
  'peak_memory_bytes',
  'eval_samples',
  'device',
  'git_revision',
  'source',
  'note',
)


def _csv_value(value: Any) -> Any:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ' '.join(map(str, value))
  return value


def _fraction(figure: Figure | None) -> float | None:
  return None if figure is None or figure.value is None else round(figure.value / 100, 6)


def _csv_of_row(row: Row) -> dict[str, Any]:
  values = {name: getattr(row, name) for name in CSV_COLUMNS if hasattr(row, name)}
  values |= {
    'runs': len(row.runs) or None,
    'difference_to_paper': row.difference,
    'published_paper': _fraction(row.paper),
    'published_lra': _fraction(row.lra),
  }
  if row.kind == 'run':
    breaks_rule = None if row.parameter_ratio is None else row.breaks_rule
    values |= {
      'breaks_lra_rule': breaks_rule,
      'device': '; '.join(row.devices),
      'git_revision': '; '.join(row.revisions),
      'source': '; '.join(str(run.path) for run in row.runs),
      'note': ' '.join(_repeat_notes(row)),
    }
  else:
    values |= {'comparable': None, 'validation_is_test': None}
  return values


def _csv_of_figure(figure: Figure) -> dict[str, Any]:
  return {
    'kind': 'published',
    'model': figure.model,
    'preset': _published_label([figure]),
    'accuracy': _fraction(figure),
    'source': figure.origin,
    'note': figure.note,
  }


def render_csv(report: Report) -> str:
  """Return the report as CSV with raw numbers; all accuracies are fractions.

  Lines of kind 'run' and 'majority' are the rows of the tables. Each published figure
  that is shown is a line of kind 'published' with its source, also where its model was
  run. Several values of one cell (seeds) are separated by blanks.
  """
  file = io.StringIO()
  writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator='\n')
  writer.writeheader()
  for table in report.tables:
    ours = [_csv_of_row(row) for row in table.rows if row.kind != 'published']
    figures = [_csv_of_figure(figure) for figure in dict.fromkeys(table.figures)]
    for values in ours + figures:
      values |= {'task': table.task, 'dataset': table.dataset, 'split': table.split}
      writer.writerow({name: _csv_value(value) for name, value in values.items()})
  return file.getvalue()


# -------------------------------------------------------------------------------- command


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  flags.DEFINE_enum(
    'format',
    'table',
    FORMATS,
    'table: text for the terminal. markdown: tables for GitHub. csv: raw numbers, '
    'accuracies as fractions, one line a row.',
    flag_values=flag_values,
  )
  flags.DEFINE_string(
    'output', None, 'File to write instead of standard output.', flag_values=flag_values
  )
  flags.DEFINE_enum(
    'published',
    'matching',
    PUBLISHED,
    'Which published figures to show. matching: those of the models that were run, and '
    'of random guessing. all: also the models that were not run. none: no figures.',
    flag_values=flag_values,
  )
  flags.DEFINE_bool(
    'external',
    False,
    "Also show entries of the LRA leaderboard that do not keep to LRA's rules, for "
    'models that were run, or with --published=all.',
    flag_values=flag_values,
  )


def _render(report: Report, flag_values: flags.FlagValues) -> str:
  if flag_values.format == 'markdown':
    return render_markdown(report)
  if flag_values.format == 'csv':
    for run in report.unfinished:
      print(f'note: not finished, left out: {run.describe()}', file=sys.stderr)
    return render_csv(report)
  if flag_values.output:
    return render_table(report)
  # Neither a terminal nor $COLUMNS: as wide as the tables are.
  width = shutil.get_terminal_size((0, 0)).columns or None
  return render_table(report, width, color=sys.stdout.isatty())


def _write(text: str, output: str | None) -> None:
  if output is None:
    encoding = sys.stdout.encoding or 'utf-8'
    sys.stdout.write(text.encode(encoding, 'replace').decode(encoding))
    sys.stdout.flush()
    return
  try:
    Path(output).write_text(text, encoding='utf-8')
  except OSError as error:
    raise ReportError(f'{output}: cannot be written: {error.strerror}') from error


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Print the report of the directories `argv[1:]`; return the exit code."""
  try:
    if len(argv) < 2:
      raise ReportError('name the directory of at least one run; --help tells more')
    report = build_report(
      load_results(argv[1:]), load_published(), flag_values.published, flag_values.external
    )
    _write(_render(report, flag_values), flag_values.output)
  except ReportError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except BrokenPipeError:
    # The reader (`| head`) has seen enough; keep the interpreter from flushing again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  return 0


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main)


if __name__ == '__main__':
  run()
