"""What the runs say together: models by tasks beside the paper's tables, and paired comparisons.

All of it follows from the rows of `lra_tasks.reporting.rows`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lra_tasks.paper import PAPER_MODELS, PAPER_TASKS
from lra_tasks.reporting.rows import (
  LRA_TASKS,
  STAND_INS,
  Row,
  Table,
  benchmark_of,
  example_error,
  place_in,
)
from lra_tasks.runs.finished import Run

# In points: what differs by no more from the published figure reproduces it.
TOLERANCE = 1.0
# ... and of two standard errors, beyond which a difference within them says nothing.
_MOST_ERROR = 5.0
VERDICTS = '≈▲▼?'


class Overview(NamedTuple):
  """All models on all tasks, one preset: the paper's Tables 2 and 5 redrawn.

  Attributes:
    preset: of all rows.
    tasks: the columns; data that stand in for a task's own have one of their own.
    models: the rows, those of the paper first and in its order.
    rows: (model, task) -> our row.
    missing: (model, task) of the paper that were not run, on whatever data.
    stood_in: (model, task) of the paper that were run on data that stand in alone.
  """

  preset: str
  tasks: tuple[str, ...]
  models: tuple[str, ...]
  rows: dict[tuple[str, str], Row]
  missing: tuple[tuple[str, str], ...] = ()
  stood_in: tuple[tuple[str, str], ...] = ()

  @property
  def own_tasks(self) -> tuple[str, ...]:
    """Return the tasks on data of their own."""
    return tuple(task for task in self.tasks if task not in STAND_INS)

  def mean(self, model: str) -> float | None:
    """Return the mean accuracy over tasks on data of their own.

    None unless they are all, the paper's among them.
    """
    if not set(PAPER_TASKS) <= set(self.own_tasks):
      return None
    found = [self.rows.get((model, task)) for task in self.own_tasks]
    return None if None in found else statistics.fmean(row.accuracy for row in found)


def verdict(row: Row) -> str:
  """Return how a row stands to the published figure that it is held against.

  '▲' and '▼' are better and worse, by more than a point and more than two standard errors of the
  difference; '≈' is neither, '?' neither where two standard errors are more than five points, and
  '' stands where nothing compares.
  """
  if row.difference is None:
    return ''
  points = round(100 * row.difference, 6)
  error = 2 * difference_error(row)
  if abs(points) <= max(TOLERANCE, error):
    return '≈' if error <= _MOST_ERROR else '?'
  return '▲' if points > 0 else '▼'


def difference_error(row: Row) -> float:
  """Return the standard error of a row's difference to its published figure, in points.

  Ours, and that of so many examples of the published figure, which tells no other. They are as if
  both had been tested on examples of their own: an upper bound where they share them.
  """
  accuracy = row.reference.fraction
  theirs = 1e4 * accuracy * (1 - accuracy) / row.runs[0].examples
  return math.sqrt(standard_error(row) ** 2 + theirs)


def standard_error(row: Row) -> float:
  """Return the standard error of a row of ours, in points.

  The largest of that over its seeds, of its examples, and of its checkpoints, where they were
  chosen on the split that is reported.
  """
  accuracies = [100 * run.accuracy for run in row.runs]
  others = [*map(example_error, row.runs), _checkpoint_error([(run,) for run in row.runs])]
  return _larger_error(accuracies, others)


def make_overviews(tables: Iterable[Table]) -> list[Overview]:
  """Return an overview of every preset that was run on two tasks of LRA or more.

  Of several data sets of that name, the benchmark's own is shown. Presets with fields changed are
  left out: a label does not tell which fields.
  """
  presets: dict[str, dict[tuple[str, str], Row]] = {}
  for table in tables:
    for row in table.rows:
      of_preset = _is_plain(row) and 'best rate' not in row.preset
      if of_preset and table.split == 'test' and benchmark_of(table.task) in LRA_TASKS:
        rows, key = presets.setdefault(row.preset, {}), (row.model, table.task)
        if key not in rows or (row.comparable and not rows[key].comparable):
          rows[key] = row
  overviews = []
  for preset, rows in presets.items():
    tasks = sorted({task for _, task in rows}, key=_task_order)
    models = sorted({model for model, _ in rows}, key=lambda m: (place_in(PAPER_MODELS, m), m))
    if len(set(map(benchmark_of, tasks))) > 1:
      wanted = [(m, t) for t in PAPER_TASKS for m in PAPER_MODELS] if preset == 'paper' else []
      found = {(model, benchmark_of(task)) for model, task in rows}
      missing = tuple(key for key in wanted if key not in found)
      stood_in = tuple(key for key in wanted if key in found and key not in rows)
      overviews.append(Overview(preset, tuple(tasks), tuple(models), rows, missing, stood_in))
  return sorted(overviews, key=lambda overview: (overview.preset != 'paper', overview.preset))


def _task_order(task: str) -> tuple[int, str]:
  return place_in(LRA_TASKS, benchmark_of(task)), task


def _is_plain(row: Row) -> bool:
  """Return whether a row of ours is what its preset says."""
  return row.kind == 'run' and not row.is_changed and not row.tag


# ------------------------------------------------------------------------------ comparisons

QUESTIONS = {
  'Is a learned kernel better than the Gaussian one?': (
    ('gmm_prf', 'prf'), ('gmm_rks', 'rks'), ('generative_prf', 'prf'), ('generative_rks', 'rks'),
    ('fastfood_prf', 'fastfood_fixed_prf'), ('fastfood_rks', 'fastfood_fixed_rks'),
  ),
  'Are positive features better than Fourier ones?': (
    ('gmm_prf', 'gmm_rks'), ('fastfood_prf', 'fastfood_rks'),
    ('generative_prf', 'generative_rks'), ('prf', 'rks'),
  ),
  'Is the Gaussian mixture the better sampler?': (
    ('gmm_prf', 'fastfood_prf'), ('gmm_prf', 'generative_prf'),
    ('gmm_rks', 'fastfood_rks'), ('gmm_rks', 'generative_rks'),
  ),
  'Are learned kernels better than softmax attention?': (
    ('gmm_prf', 'transformer'), ('fastfood_prf', 'transformer'), ('generative_prf', 'transformer'),
    ('gmm_rks', 'transformer'), ('fastfood_rks', 'transformer'), ('generative_rks', 'transformer'),
  ),
}  # fmt: skip


# From how many seeds no answer is given, and what is said instead.
_FEW_SEEDS = {1: 'one seed', 2: 'two seeds'}


class Comparison(NamedTuple):
  """Two models on one task, seed by seed.

  Attributes:
    question: that it bears on.
    first: the model that might be better.
    second: what it is compared with.
    task: of both.
    preset: of both.
    metric: that the task is judged by.
    difference: mean over the seeds of first − second, in points, hundredths of the metric.
    error: its standard error.
    seeds: that both were run with.
    is_optimistic: whether a checkpoint was chosen on the split that is reported.
    has_fallen: whether a run lost what it had learnt: it tells little about its model.
    are_guesses: whether neither model is better than always answering the commonest class.
  """

  question: str
  first: str
  second: str
  task: str
  preset: str
  metric: str
  difference: float
  error: float
  seeds: tuple[int, ...]
  is_optimistic: bool = False
  has_fallen: bool = False
  are_guesses: bool = False

  @property
  def answer(self) -> str:
    """Return 'yes' or 'no' where two standard errors say so, else 'not clear'.

    Of fewer than three seeds only their number: examples alone do not tell how far seeds are apart.
    """
    if len(self.seeds) in _FEW_SEEDS:
      return _FEW_SEEDS[len(self.seeds)]
    if abs(self.difference) <= 2 * self.error:
      return 'not clear'
    return 'yes' if self.difference > 0 else 'no'


def make_comparisons(tables: Iterable[Table]) -> list[Comparison]:
  """Return all comparisons that the runs allow, by question; see `make_overviews` for presets."""
  found = []
  for table in tables:
    rows = {(row.model, row.preset): row for row in table.rows if _is_plain(row)}
    presets = dict.fromkeys(preset for _, preset in rows)
    for question, pairs in QUESTIONS.items():
      for first, second in pairs:
        for preset in presets:
          if (first, preset) in rows and (second, preset) in rows:
            both = rows[first, preset], rows[second, preset]
            found += _compare(question, *both, table.task)
  order = list(QUESTIONS)
  return sorted(found, key=lambda comparison: order.index(comparison.question))


def _compare(question: str, first: Row, second: Row, task: str) -> list[Comparison]:
  ours = {run.seed: run for run in first.runs}
  pairs = [(ours[run.seed], run) for run in second.runs if run.seed in ours]
  metric = first.runs[0].metric
  if not pairs or any(getattr(run, metric) is None for pair in pairs for run in pair):
    return []
  differences = [100 * (getattr(a, metric) - getattr(b, metric)) for a, b in pairs]
  of_examples = [example_error(a, b) for a, b in pairs]
  seeds = tuple(sorted(a.seed for a, _ in pairs))
  return [
    Comparison(
      question,
      first.model,
      second.model,
      task,
      first.preset,
      metric,
      statistics.fmean(differences),
      _larger_error(differences, [*of_examples, _checkpoint_error(pairs)]),
      seeds,
      any(run.validation_is_test for pair in pairs for run in pair),
      any(run.has_fallen for pair in pairs for run in pair),
      first.is_guess and second.is_guess,
    )
  ]


def _larger_error(values: Sequence[float], others: Sequence[float]) -> float:
  """Return the largest standard error of a mean: that over its seeds, or one of others.

  Seeds of one test split share its examples: their spread alone would say too little.

  Args:
    values: of each seed.
    others: errors, such as those that so many examples leave.
  """
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return max(spread / math.sqrt(len(values)), *others)


def _checkpoint_error(pairs: Sequence[Sequence[Run]]) -> float:
  """Return the standard error, in points, of the choice of checkpoints, a mean over seeds.

  Where the reported split chose the checkpoint of a run, its figure is the largest of many: good
  luck within the spread of the last evaluations. Of two runs, that of their difference.
  """
  variances = [
    statistics.variance(run.late_accuracies)
    for runs in pairs
    for run in runs
    if run.validation_is_test and run.metric == 'accuracy' and len(run.late_accuracies) > 1
  ]
  return 100 * math.sqrt(sum(variances)) / len(pairs)
