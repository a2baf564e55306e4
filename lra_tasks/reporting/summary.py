"""What the runs say together: models by tasks beside the paper's tables, and paired comparisons.

All of it follows from the rows of `lra_tasks.reporting.rows`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lra_tasks.finished import Run
from lra_tasks.reporting.rows import LRA_TASKS, Row, Table

# In points: what differs by less from the published figure reproduces it.
TOLERANCE = 1.0
# Models of the paper's Tables 2 and 5 that are here, and the controls with the Gaussian kernel.
PAPER_MODELS = (
  'gmm_rks', 'fastfood_rks', 'generative_rks', 'gmm_prf', 'fastfood_prf', 'generative_prf',
  'transformer', 'linear_transformer', 'performer', 'rks', 'prf',
)  # fmt: skip
PAPER_TASKS = ('listops', 'text', 'retrieval', 'image')


class Overview(NamedTuple):
  """All models on all tasks, one preset: the paper's Tables 2 and 5 redrawn.

  Attributes:
    preset: of all rows.
    tasks: the columns.
    models: the rows, those of the paper first and in its order.
    rows: (model, task) -> our row.
    missing: (model, task) of the paper that were not run.
  """

  preset: str
  tasks: tuple[str, ...]
  models: tuple[str, ...]
  rows: dict[tuple[str, str], Row]
  missing: tuple[tuple[str, str], ...] = ()

  def mean(self, model: str) -> float | None:
    """Return the mean accuracy over the tasks; None if one of them is missing."""
    found = [self.rows.get((model, task)) for task in self.tasks]
    return None if None in found else statistics.fmean(row.accuracy for row in found)


def verdict(row: Row) -> str:
  """Return '≈' for reproduced within a point, '▲' better, '▼' worse, '' where nothing compares."""
  if row.difference_to_paper is None:
    return ''
  points = round(100 * row.difference_to_paper, 6)
  return '≈' if abs(points) <= TOLERANCE else '▲' if points > 0 else '▼'


def make_overviews(tables: Iterable[Table]) -> list[Overview]:
  """Return an overview of every preset that was run on two tasks of LRA or more.

  Of several data sets of a task, the benchmark's own is shown. Presets with fields changed are left
  out: a label does not tell which fields.
  """
  presets: dict[str, dict[tuple[str, str], Row]] = {}
  for table in tables:
    for row in table.rows:
      if _is_plain(row) and table.split == 'test' and table.task in LRA_TASKS:
        rows, key = presets.setdefault(row.preset, {}), (row.model, table.task)
        if key not in rows or (row.comparable and not rows[key].comparable):
          rows[key] = row
  overviews = []
  for preset, rows in presets.items():
    tasks = sorted({task for _, task in rows}, key=lambda task: (_place(task, LRA_TASKS), task))
    models = sorted({model for model, _ in rows}, key=lambda m: (_place(m, PAPER_MODELS), m))
    if len(tasks) > 1:
      wanted = [(m, t) for t in PAPER_TASKS for m in PAPER_MODELS] if preset == 'paper' else []
      missing = tuple(key for key in wanted if key not in rows)
      overviews.append(Overview(preset, tuple(tasks), tuple(models), rows, missing))
  return sorted(overviews, key=lambda overview: (overview.preset != 'paper', overview.preset))


def _is_plain(row: Row) -> bool:
  """Return whether a row of ours is what its preset says."""
  return row.kind == 'run' and not set('*(').intersection(row.preset)


def _place(name: str, names: Sequence[str]) -> int:
  return names.index(name) if name in names else len(names)


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


class Comparison(NamedTuple):
  """Two models on one task, seed by seed.

  Attributes:
    question: that it bears on.
    first: the model that might be better.
    second: what it is compared with.
    task: of both.
    preset: of both.
    difference: mean over the seeds of first − second, in points.
    error: its standard error.
    seeds: that both were run with.
  """

  question: str
  first: str
  second: str
  task: str
  preset: str
  difference: float
  error: float
  seeds: tuple[int, ...]

  @property
  def answer(self) -> str:
    """Return 'yes' or 'no' where two standard errors say so, else 'not clear'."""
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
  if not pairs:
    return []
  differences = [100 * (a.accuracy - b.accuracy) for a, b in pairs]
  spread = statistics.stdev(differences) if len(pairs) > 1 else 0.0
  # Seeds of one test split share its examples: their spread alone would say too little.
  error = max(spread / math.sqrt(len(pairs)), *(_example_error(a, b) for a, b in pairs))
  seeds = tuple(sorted(a.seed for a, _ in pairs))
  return [
    Comparison(
      question,
      first.model,
      second.model,
      task,
      first.preset,
      statistics.fmean(differences),
      error,
      seeds,
    )
  ]


def _example_error(a: Run, b: Run) -> float:
  """Return the standard error, in points, that so many examples leave.

  As if both had been tested on examples of their own: an upper bound, since they share them.
  """
  variance = sum(run.accuracy * (1 - run.accuracy) / run.examples for run in (a, b))
  return 100 * math.sqrt(variance)
