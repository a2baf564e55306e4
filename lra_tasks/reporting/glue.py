"""GLUE, the paper's Tables 3 and 13 redrawn: models by tasks, each with its best learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lra_tasks.paper import PAPER_SHORT_TASKS
from lra_tasks.reporting.published import load_published
from lra_tasks.reporting.rows import Row, Table, place_in
from lra_tasks.runs.finished import Run


class Metric(NamedTuple):
  """One metric of a task: a column.

  Attributes:
    task: of GLUE.
    field: of `Run`.
    header: of the column.
    published: name in published_results.csv.
    guess: figure of always answering the commonest class, given its share of the development set.
  """

  task: str
  field: str
  header: str
  published: str
  guess: Callable[[float], float] = lambda share: share


METRICS = (
  Metric('sst2', 'accuracy', 'sst2', 'sst2'),
  Metric('mrpc', 'accuracy', 'mrpc', 'mrpc_acc'),
  # The commonest class is "equivalent", of which F1 is.
  Metric('mrpc', 'f1', 'mrpc F1', 'mrpc_f1', lambda share: 2 * share / (1 + share)),
  Metric('qqp', 'accuracy', 'qqp', 'qqp_acc'),
  Metric('qqp', 'f1', 'qqp F1', 'qqp_f1', lambda share: 0.0),  # It is "not equivalent".
  Metric('mnli', 'accuracy', 'mnli', 'mnli_m'),
  Metric('qnli', 'accuracy', 'qnli', 'qnli'),
  Metric('wnli', 'accuracy', 'wnli', 'wnli'),
  Metric('rte', 'accuracy', 'rte', 'rte'),
  Metric('cola', 'matthews', 'cola MCC', 'cola_mcc', lambda share: 0.0),
)
# The paper's names in Table 13.
_PUBLISHED_AS = {'fastfood_fixed_rks': 'fastfood_fixed', 'fastfood_s_rks': 'fastfood_s'}


class Score(NamedTuple):
  """A cell.

  Attributes:
    value: mean over the seeds, on the development set, in [0, 1] (MCC in [-1, 1]).
    sd: sample standard deviation; None of a single seed.
    learning_rate: the best of those that were tried.
    published: the paper's figure, if there is one.
    comparable: whether both are about the same data.
  """

  value: float
  sd: float | None
  learning_rate: float | None
  published: float | None
  comparable: bool


class GlueOverview(NamedTuple):
  """All models on all tasks of GLUE.

  Attributes:
    metrics: those with a figure of ours.
    models: (model, what it was pre-trained on, '' for nothing).
    scores: (model, pre-training, metric) -> cell.
    majority: metric -> that of always answering the commonest class.
    missing: tasks of the paper that were not run.
  """

  metrics: tuple[Metric, ...]
  models: tuple[tuple[str, str], ...]
  scores: dict[tuple[str, str, Metric], Score]
  majority: dict[Metric, float]
  missing: tuple[str, ...]


def make_overview(tables: Iterable[Table], order: tuple[str, ...]) -> GlueOverview | None:
  """Return the overview, None without runs on GLUE.

  Runs are those of the preset `paper`, with the learning rate that is best on the development set.

  Args:
    tables: of the report.
    order: models in the order of rows; others follow.
  """
  found: dict[tuple[str, str, str], Row] = {}
  for table in tables:
    if table.task in PAPER_SHORT_TASKS and table.split == 'test':
      for key, row in _by_model(table).items():
        found[(*key, table.task)] = row
  if not found:
    return None
  scores = {
    (model, corpus, metric): score
    for (model, corpus, task), row in found.items()
    for metric in METRICS
    if metric.task == task and (score := _score(row, metric)) is not None
  }
  models = sorted({key[:2] for key in found}, key=lambda key: (place_in(order, key[0]), key))
  metrics = tuple(metric for metric in METRICS if any(key[2] is metric for key in scores))
  tried = {task for _, _, task in found}
  missing = tuple(dict.fromkeys(m.task for m in METRICS if m.task not in tried))
  shares = {task: row.runs[0].majority_class for (_, _, task), row in found.items()}
  majority = {metric: metric.guess(shares[metric.task]) for metric in metrics}
  return GlueOverview(metrics, tuple(models), scores, majority, missing)


def _by_model(table: Table) -> dict[tuple[str, str], Row]:
  """Return (model, pre-training) -> the row with the best learning rate of the preset `paper`.

  Where the preset was not run as it is, of rows with changed fields the one with most rates.
  """
  found: dict[tuple[str, str], list[Row]] = {}
  for row in table.rows:
    if row.kind == 'run' and row.runs[0].preset in ('paper', 'paper*'):
      found.setdefault((row.model, _corpus(row.runs[0])), []).append(row)
  order = lambda row: (not row.is_changed, len(row.rates), len(row.runs))
  return {key: max(rows, key=order) for key, rows in found.items()}


def _corpus(run: Run) -> str:
  """Return what a run was pre-trained on: the data set, or the task."""
  parts = (run.pretrained or '').split('/')
  return '/'.join(parts[:-4])


def _score(row: Row, metric: Metric) -> Score | None:
  """Return the cell, None where a run lacks the metric."""
  values = [getattr(run, metric.field) for run in row.runs]
  if None in values:
    return None
  name = _PUBLISHED_AS.get(row.model, row.model)
  published = [
    score.value
    for score in load_published('score')
    if (score.model, score.task) == (name, f'glue/{metric.published}')
  ]
  return Score(
    statistics.fmean(values),
    statistics.stdev(values) if len(values) > 1 else None,
    row.runs[0].learning_rate,
    published[0] if published else None,
    bool(row.comparable),
  )
