"""The report as figures: accuracies beside the published ones; accuracy, memory and speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from lra_tasks.plotting import SOFTMAX, color, label, new_figure
from lra_tasks.reporting.rows import Row, Table
from lra_tasks.reporting.summary import Overview, example_error

_GIB = 2**30
# Of published scores: field of a row, marker, name.
_PUBLISHED = (('paper', 'D', 'paper'), ('lra', 's', 'LRA'))


def accuracies(table: Table) -> Any:
  """Return a figure of our accuracies and the published ones on one task; None without runs.

  Bars are standard deviations over seeds, of a single run the standard error of its examples.
  """
  rows = [row for row in table.rows if row.kind == 'run']
  if not rows:
    return None
  figure, (axis,) = new_figure(width=5.2, height=1.3 + 0.32 * len(rows))
  for i, row in enumerate(reversed(rows)):
    shade = color(row.model)
    axis.errorbar(100 * row.accuracy, i, xerr=100 * _spread(row), color=shade, fmt='o', capsize=3)
    for field, marker, _ in _PUBLISHED:
      if (published := getattr(row, field)) and published.value is not None:
        axis.plot(published.value, i, marker, color='#555555', fillstyle='none', markersize=6)
  for i, chance in enumerate(row.accuracy for row in table.rows if row.kind == 'majority'):
    name = '_nolegend_' if i else 'commonest class'
    axis.axvline(100 * chance, color='#999999', linestyle=':', label=name)
  axis.plot([], [], 'o', color='#333333', label='ours')
  elsewhere = '' if all(row.comparable for row in rows) else ', § other data'
  for field, marker, name in _PUBLISHED:
    scores = [getattr(row, field) for row in rows]
    if any(published and published.value is not None for published in scores):
      axis.plot([], [], marker, color='#555555', fillstyle='none', label=name + elsewhere)
  names = [f'{label(row.model)}, {row.preset}' for row in reversed(rows)]
  axis.set_yticks(range(len(rows)), names)
  axis.set(title=table.task, xlabel='test accuracy, %', ylim=(-0.7, len(rows) - 0.3))
  axis.grid(axis='x', alpha=0.3)
  figure.legend(loc='outside right upper', frameon=False)
  return figure


def _spread(row: Row) -> float:
  if row.accuracy_sd is not None:
    return row.accuracy_sd
  return example_error(row.runs[0]) / 100


class Circle(NamedTuple):
  """A model in a figure of accuracy, memory and speed.

  Attributes:
    model: its name.
    accuracy: in percent.
    memory: largest in use, GiB.
    speed: steps a second.
  """

  model: str
  accuracy: float
  memory: float
  speed: float


def trade_off(table: Table, preset: str) -> Any:
  """Return Figure 3 of the paper (ListOps: 8) for one task; None with fewer than two models.

  Memory is the largest in use over the run, on one device; areas are speeds relative to softmax.
  Rows of another revision of the code than most are left out.
  """
  rows = [row for row in table.rows if row.kind == 'run' and row.preset == preset]
  return _circles([circle for row in rows if (circle := _circle(row.model, [row]))], table.task)


def mean_trade_off(overview: Overview) -> Any:
  """Return Figure 1: the same as means over tasks on data of their own, of models with all."""
  if len(overview.own_tasks) < 2:
    return None
  circles = []
  for model in overview.models:
    rows = [overview.rows.get((model, task)) for task in overview.own_tasks]
    if None not in rows and (circle := _circle(model, rows)):
      circles.append(circle)
  return _circles(circles, f'means over {", ".join(overview.own_tasks)}')


def _circle(model: str, rows: Sequence[Row]) -> Circle | None:
  if any(row.peak_memory_bytes is None or row.steps_per_second is None for row in rows):
    return None  # A CPU does not count its memory.
  if any(row.other_revision or row.shared for row in rows):
    return None
  return Circle(
    model,
    statistics.fmean(100 * row.accuracy for row in rows),
    statistics.fmean(row.peak_memory_bytes / _GIB for row in rows),
    statistics.fmean(row.steps_per_second for row in rows),
  )


def _circles(circles: Sequence[Circle], title: str) -> Any:
  if len(circles) < 2:
    return None
  softmax = [circle.speed for circle in circles if circle.model == SOFTMAX]
  reference = softmax[0] if softmax else min(circle.speed for circle in circles)
  figure, (axis,) = new_figure()
  for circle in circles:
    speed = circle.speed / reference
    text = f'{label(circle.model)}, {speed:.1f} ×'
    place = circle.accuracy, circle.memory
    axis.scatter(*place, s=150 * speed, color=color(circle.model), alpha=0.6, label=text)
  axis.margins(0.25)
  axis.set_ylim(bottom=0)
  axis.set(title=title, xlabel='test accuracy, %', ylabel='largest memory in use, GiB')
  axis.grid(alpha=0.3)
  figure.legend(loc='outside right upper', frameon=False, title='speed', markerscale=0.6)
  return figure
