"""The report as numbers: our runs, gathered by config, beside the published scores."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lra_tasks.paper import PAPER_SHORT_TASKS
from lra_tasks.reporting.differences import different_fields
from lra_tasks.reporting.published import PublishedScore, published_for
from lra_tasks.runs.finding import Group, Results, group_runs
from lra_tasks.runs.finished import Damaged, Run, Unfinished

# Those of LRA, in the order of tables.
LRA_TASKS = (
  'listops', 'text', 'retrieval', 'image', 'pathfinder32', 'pathfinder64', 'pathfinder128',
  'pathfinder256',
)  # fmt: skip
# Data that stand in for a benchmark's own: {task of ours: task of the published scores}, see
# `benchmark_of`. These are shown beside ours, but no difference is taken.
STAND_INS = {
  'retrieval/aan_rebuilt': 'retrieval',
  'image/cifar10_jpeg': 'image',
  'image/cifar10_png': 'image',
}
_MAX_PARAMETER_RATIO = 1.10  # LRA's rule for like-for-like models.
# Whose score the rows of a preset are held against, as long as no field was changed: that which it
# repeats, or is meant to beat. Other runs are other experiments than the published ones.
_HELD_AGAINST = {'paper': 'paper', 'tuned': 'paper', 'lra': 'lra'}
# (preset, task) where the scores are of something else, and why.
_NOT_HELD = {
  ('lra', 'text'): "LRA's figures on Text are of inputs of 4,000 bytes; the preset lra has the "
  "1,000 of LRA's config: no difference is given."
}  # fmt: skip


class Rate(NamedTuple):
  """A learning rate that was tried.

  Attributes:
    learning_rate: of the config.
    preset: of its runs.
    seeds: that its runs share with those of all other rates.
    score: mean of `Run.score` over these.
  """

  learning_rate: float
  preset: str
  seeds: tuple[int, ...]
  score: float


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table: numbers, not text. Accuracies are fractions."""

  kind: str  # 'run', 'majority' or 'published'
  model: str
  # With 'best rate' behind it where learning rates of the preset were tried, and `tag`.
  preset: str = ''
  runs: tuple[Run, ...] = ()
  repeated: tuple[Run, ...] = ()  # Left out: older runs of the same seeds.
  examples: tuple[int, ...] = ()
  accuracy: float | None = None
  accuracy_sd: float | None = None
  accuracy_of_one_draw: float | None = None
  voting_accuracy: float | None = None
  paper: PublishedScore | None = None
  lra: PublishedScore | None = None
  comparable: bool | None = None  # Whether these two are for the same data.
  parameter_ratio: float | None = None
  steps_per_second: float | None = None  # Mean over the runs.
  peak_memory_bytes: int | None = None  # Largest of the runs.
  rates: tuple[Rate, ...] = ()  # The largest first; empty where only one was run.
  tried: bool = False  # Whether the learning rate stands in `rates` of another row.
  # What tells rows of one model and preset apart: fields in which their configs differ, or the
  # start of config_id in brackets.
  tag: str = ''
  other_revision: bool = False  # Whether the code is not that of most rows: speeds do not compare.

  @property
  def shared(self) -> bool:
    """Whether other runs shared the hardware: speeds are no measure of the model then."""
    return any('shared by' in run.device for run in self.runs)

  @property
  def late_accuracy(self) -> float | None:
    """Mean of the last evaluations on validation; None if a run lacks them."""
    return mean(mean(run.late_accuracies) for run in self.runs)

  @property
  def has_fallen(self) -> bool:
    """Whether a run lost what it had learnt, after the checkpoint that is shown."""
    return any(run.has_fallen for run in self.runs)

  @property
  def is_guess(self) -> bool:
    """Whether accuracy, where that is the task's metric, is that of the commonest class.

    Up to two standard errors of so many examples, or worse.
    """
    if not self.runs or any(run.metric != 'accuracy' for run in self.runs):
      return False
    guess = statistics.fmean(run.majority_class for run in self.runs)
    return 100 * (self.accuracy - guess) <= 2 * max(map(example_error, self.runs))

  @property
  def label(self) -> str:
    """What names the row in notes."""
    return f'{self.model} {self.preset}'.rstrip()

  @property
  def is_changed(self) -> bool:
    """Whether fields besides the learning rate were changed: the label does not tell which."""
    return '*' in self.preset.removesuffix(self.tag)

  @property
  def reference(self) -> PublishedScore | None:
    """The published score that the row is held against, if its preset is held against one."""
    column = _HELD_AGAINST.get(self.runs[0].preset) if self.runs else None
    return getattr(self, column) if column else None

  @property
  def difference(self) -> float | None:
    """Our mean minus the published score; None where they are not of one experiment."""
    reference = self.reference
    if not (self.comparable and reference) or reference.value is None or self.not_held:
      return None
    return self.accuracy - reference.fraction

  @property
  def not_held(self) -> str | None:
    """Why a row of an unchanged preset is not held against its reference; None if it is."""
    if self.reference is None:
      return None
    return _NOT_HELD.get((self.runs[0].preset, self.runs[0].task))

  @property
  def breaks_lra_rule(self) -> bool | None:
    """Whether the model is too large to be compared under LRA's rule; None if not known."""
    return None if self.parameter_ratio is None else self.parameter_ratio > _MAX_PARAMETER_RATIO

  def values(self, name: str) -> tuple[Any, ...]:
    """Return the distinct values of a field of `Run` over the runs, sorted, without None."""
    return _distinct(getattr(run, name) for run in self.runs)


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
  return tuple(sorted({value for value in values if value is not None}))


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one task, data set and split: ours, chance, then published ones.

  Attributes:
    task: of all rows.
    dataset: likewise.
    split: likewise.
    rows: what is shown.
    passed_over: rows of ours with learning rates that another row's was better than.
  """

  task: str
  dataset: str
  split: str
  rows: tuple[Row, ...]
  passed_over: tuple[Row, ...] = ()

  @property
  def published(self) -> tuple[PublishedScore, ...]:
    """Every published score that is shown."""
    return tuple(dict.fromkeys(f for row in self.rows for f in (row.paper, row.lra) if f))

  @property
  def examples(self) -> int | None:
    """Number of examples, None if the rows differ in it."""
    counts = _distinct(n for row in self.rows for n in row.examples)
    return counts[0] if len(counts) == 1 else None


class Report(NamedTuple):
  """The whole report, ready to be rendered."""

  tables: tuple[Table, ...]
  unfinished: tuple[Unfinished, ...] = ()
  damaged: tuple[Damaged, ...] = ()

  @property
  def left_out(self) -> list[str]:
    """A sentence on each run that is not shown, without its full stop."""
    return [f'not finished, left out: {run}' for run in self.unfinished] + [
      f'damaged, left out: {run}' for run in self.damaged
    ]


def build_report(
  found: Results,
  published: Iterable[PublishedScore],
  which: str = 'matching',
  external: bool = False,
) -> Report:
  """Return one table for each task, data set and split.

  Args:
    found: the runs.
    published: all published scores.
    which: 'matching' shows the scores of the models that were run and of random guessing, 'all'
      those of every other model too, 'none' nothing.
    external: whether to show entries that do not keep to LRA's rules.
  """
  published = tuple(published) if which != 'none' else ()
  groups = collections.defaultdict(list)
  for group in group_runs(found.runs):
    first = group.runs[0]
    groups[first.task, first.dataset, first.split].append(group)
  # Of a task, then its variants.
  order = lambda key: (place_in(LRA_TASKS, key[0].partition('/')[0]), key)
  tables = []
  for key in sorted(groups, key=order):
    of_task = published_for(published, benchmark_of(key[0]), external)
    rows = (_run_row(group, of_task.get(group.runs[0].model, {})) for group in groups[key])
    ours = sorted(rows, key=_place)
    # On GLUE the paper tried several; elsewhere its figures are of the preset's own.
    ours, passed_over = _choose_rates(ours, keep_plain=key[0] not in PAPER_SHORT_TASKS)
    ours = _tell_apart(_mark_revisions(ours))
    rest = _other_rows(ours, of_task, which == 'all')
    tables.append(Table(*key, (*ours, *rest), _tell_apart(passed_over)))
  return Report(tuple(tables), found.unfinished, found.damaged)


def benchmark_of(task: str) -> str:
  """Return the task that published scores are of: another one for data that stand in.

  >>> benchmark_of('image/cifar10_jpeg'), benchmark_of('text')
  ('image', 'text')
  """
  return STAND_INS.get(task, task)


def place_in(names: Sequence[str], name: str) -> int:
  """Return where a name stands, behind all of them if nowhere: names in an order of their own.

  >>> [place_in(('listops', 'text'), name) for name in ('text', 'chess')]
  [1, 2]
  """
  return names.index(name) if name in names else len(names)


def _place(row: Row) -> tuple[float, str]:
  """Return what rows of ours are sorted by: best first."""
  return -row.accuracy, row.label


def _choose_rates(rows: Sequence[Row], *, keep_plain: bool) -> tuple[list[Row], list[Row]]:
  """Return rows with the learning rates that are best on validation, and those passed over.

  Of the rates with most seeds, it is the one with the best mean.

  Args:
    rows: of one task, data set and split.
    keep_plain: whether a preset that was run as it is keeps a row of that name: it takes part, but
      published figures are held against it, whichever rate is the best.
  """
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row.model, row.runs[0].rates_id or row.runs[0].config_id].append(row)
  chosen, passed_over = [], []
  for members in groups.values():
    comparable = _with_a_common_seed(members)
    rates = _rates(comparable)
    if rates:
      best = max(comparable, key=_quality)
      kept = [row for row in comparable if keep_plain and not row.is_changed]
      name = best.preset if best in kept else f'{_base_of(best, rates)}, best rate'
      chosen.append(dataclasses.replace(best, rates=rates, preset=name))
      chosen += [dataclasses.replace(row, tried=True) for row in kept if row is not best]
      passed_over += [row for row in comparable if row is not best and row not in kept]
      members = [row for row in members if row not in comparable]
    chosen += members
  return sorted(chosen, key=_place), passed_over


def _base_of(row: Row, rates: Sequence[Rate]) -> str:
  """Return the preset whose learning rates were tried: without a star if it was run as it is."""
  plain = [rate.preset for rate in rates if not rate.preset.endswith('*')]
  own = row.preset.removesuffix('*')
  return own if own in plain else next(iter(plain), row.preset)


def _quality(row: Row) -> tuple[int, float, float]:
  """Return what the best of several learning rates has most of; of equals, the largest rate."""
  score = statistics.fmean(run.score for run in row.runs)
  return len(row.runs), score, row.runs[0].learning_rate


def _with_a_common_seed(rows: Sequence[Row]) -> list[Row]:
  """Return the rows that have the seed, the smallest of several, that most of them have."""
  counts = collections.Counter(run.seed for row in rows for run in row.runs)
  seed = min(counts, key=lambda seed: (-counts[seed], seed))
  return [row for row in rows if any(run.seed == seed for run in row.runs)]


def _rates(rows: Sequence[Row]) -> tuple[Rate, ...]:
  """Return what was tried, where rows of one model differ in nothing but the learning rate."""
  by_rate = {row.runs[0].learning_rate: row for row in rows}
  scores = [run.score for row in rows for run in row.runs]
  if len(by_rate) < max(len(rows), 2) or {None} & {*by_rate, *scores}:
    return ()
  shared = set.intersection(*({run.seed for run in row.runs} for row in rows))
  return tuple(
    Rate(
      rate,
      row.runs[0].preset or '',
      tuple(sorted(shared)),
      statistics.fmean(run.score for run in row.runs if run.seed in shared),
    )
    for rate, row in sorted(by_rate.items(), reverse=True)
  )


def _tell_apart(rows: Sequence[Row]) -> tuple[Row, ...]:
  """Return rows whose presets have tags where one model and preset has several configs."""
  groups = collections.defaultdict(list)
  for place, row in enumerate(rows):
    groups[row.model, row.preset].append(place)
  tags = [''] * len(rows)
  for places in groups.values():
    if len(places) > 1:
      for place, tag in zip(places, _tags([rows[place] for place in places]), strict=True):
        tags[place] = tag
  return tuple(
    dataclasses.replace(row, tag=tag, preset=f'{row.preset} {tag}'.strip())
    for row, tag in zip(rows, tags, strict=True)
  )


def _tags(rows: Sequence[Row]) -> list[str]:
  """Return what tells rows of one model and preset apart."""
  # Rows with the best of several learning rates have a column for it.
  besides = ('learning_rate',) if all(row.rates for row in rows) else ()
  fields = different_fields([row.runs for row in rows], besides)
  return [text or f'({row.runs[0].config_id[:6]})' for text, row in zip(fields, rows, strict=True)]


def _other_rows(
  ours: Sequence[Row], published: Mapping[str, Mapping[str, PublishedScore]], others: bool
) -> tuple[Row, ...]:
  """Return chance, then models that were not run (if `others`), best first."""
  chance = {(run.examples, run.majority_class) for row in ours for run in row.runs}
  comparable = all(row.comparable for row in ours)
  rest = [
    Row('published', model, regime(scores.values()), comparable=comparable, **scores)
    for model, scores in published.items()
    if model not in {row.model for row in ours}
    and (others or any(score.family == 'chance' for score in scores.values()))
  ]
  return (
    *(Row('majority', 'majority', examples=(n,), accuracy=a) for n, a in sorted(chance)),
    *sorted(rest, key=lambda row: (-((row.paper or row.lra).value or 0), row.model)),
  )


def _run_row(group: Group, published: Mapping[str, PublishedScore]) -> Row:
  runs = group.runs
  accuracies = [run.accuracy for run in runs]
  ratios = [run.parameters / run.base_parameters for run in runs if run.base_parameters]
  speeds = [run.steps_per_second for run in runs if run.steps_per_second is not None]
  memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
  return Row(
    kind='run',
    model=runs[0].model,
    preset=runs[0].preset or '',
    runs=runs,
    repeated=group.repeated,
    examples=_distinct(run.examples for run in runs),
    accuracy=statistics.fmean(accuracies),
    accuracy_sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
    accuracy_of_one_draw=mean(run.accuracy_of_one_draw for run in runs),
    voting_accuracy=mean(run.voting_accuracy for run in runs),
    **published,
    comparable=all(run.is_comparable and run.task not in STAND_INS for run in runs),
    parameter_ratio=max(ratios, default=None),
    steps_per_second=statistics.fmean(speeds) if speeds else None,
    peak_memory_bytes=max(memory, default=None),
  )


def _mark_revisions(rows: Sequence[Row]) -> list[Row]:
  """Return our rows of one table, marked where their code is not that of most of them.

  Where two revisions are equally common, there is none to compare with: all rows are marked.
  """
  revisions = [frozenset(run.git_revision for run in row.runs) for row in rows]
  counts = collections.Counter(revisions)
  common = [revision for revision, n in counts.items() if n == max(counts.values())]
  return [
    dataclasses.replace(row, other_revision=[revision] != common)
    for row, revision in zip(rows, revisions, strict=True)
  ]


def example_error(*runs: Run) -> float:
  """Return the standard error, in points, that so many examples leave of a run's score.

  That of accuracies, which serves for F1, too; of correlations the largest that there can be,
  n^(-1/2). Of two runs, that of their difference, as if both had been tested on examples of their
  own: an upper bound, since they share them.
  """
  spread = lambda run: 1.0 if run.metric == 'matthews' else run.accuracy * (1 - run.accuracy)
  return 100 * math.sqrt(sum(spread(run) / run.examples for run in runs))


def mean(values: Iterable[float | None]) -> float | None:
  """Return the mean; None if a run lacks the value: one over other runs would not compare."""
  values = list(values)
  return None if None in values or not values else statistics.fmean(values)


def regime(scores: Iterable[PublishedScore]) -> str:
  """Return 'external' for entries that do not keep to LRA's rules, else 'published'."""
  return 'external' if all(score.regime == 'external' for score in scores) else 'published'
