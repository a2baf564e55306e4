"""The metrics of variance as figures: of the runs of one task each."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from lra_tasks.analysis.variance_measures import Variance
from lra_tasks.paper import split_name
from lra_tasks.plotting import color, label, new_figure


def draw_metrics(found: Sequence[Variance]) -> Any:
  """Return the four metrics of the runs of one task side by side: Figure 5.

  A point is a run. Of each model the run whose votes are most accurate is filled.
  """
  titles = ('RSD, median', 'PI, %', 'gain by voting', 'voting accuracy, %')
  figure, axes = new_figure(len(titles), width=2.8, height=3.4)
  best = {v.model: v for v in sorted(found, key=lambda v: v.voting_accuracy)}
  places = _places(found)
  for axis, title, values in zip(
    axes, titles, zip(*map(_metrics, found), strict=True), strict=True
  ):
    for v, place, value in zip(found, places, values, strict=True):
      face = color(v.model) if v is best[v.model] else 'none'
      axis.plot(place, value, 'o', color=color(v.model), markerfacecolor=face)
    axis.set(title=title, xticks=[], xlim=(-0.6, len(best) - 0.4))
    axis.grid(axis='y', alpha=0.3)
  _add_legend(figure, found)
  draws = ' or '.join(map(str, sorted({v.samples for v in found})))
  split = split_name(found[0].task, found[0].split)
  caption = f'{found[0].task}, {split}, {draws} draws; filled: the most accurate run of a model'
  figure.supxlabel(caption, fontsize=8)
  return figure


def _places(found: Sequence[Variance]) -> list[float]:
  """Return where each run stands: those of a model side by side, the less accurate on the left."""
  places = {}
  for column, model in enumerate(dict.fromkeys(v.model for v in found)):
    runs = sorted((v for v in found if v.model == model), key=lambda v: v.voting_accuracy)
    for i, v in enumerate(runs):
      places[id(v)] = column + 0.7 * ((i + 0.5) / len(runs) - 0.5)
  return [places[id(v)] for v in found]


def _metrics(v: Variance) -> tuple[float, ...]:
  """Return what is drawn; nothing is where a deviation is infinite."""
  deviation = v.median_deviation if np.isfinite(v.median_deviation) else float('nan')
  return deviation, 100 * v.inconsistency, v.gain, 100 * v.voting_accuracy


def _add_legend(figure: Any, found: Sequence[Variance]) -> None:
  """Name the models beside a figure, whose runs share a color; a single run in full."""
  from matplotlib.patches import Patch

  names = collections.defaultdict(list)
  for v in found:
    names[v.model].append(f'{v.preset}, seed {v.seed}')
  patches = []
  for model, runs in names.items():
    name = runs[0] if len(runs) == 1 else f'{len(runs)} runs'
    patches.append(Patch(color=color(model), label=f'{label(model)}, {name}'))
  figure.legend(handles=patches, loc='outside right upper', frameon=False)


def draw_correlations(found: Sequence[Variance]) -> Any:
  """Return pairs of metrics over the runs of one task, with R² of a line: Figures 9 and 10."""
  rsd, pi, gain, _ = zip(*map(_metrics, found), strict=True)
  pairs = (('RSD', rsd, 'gain', gain), ('PI, %', pi, 'gain', gain), ('RSD', rsd, 'PI, %', pi))
  figure, axes = new_figure(len(pairs), width=3.4, height=3.4)
  for axis, (x_name, x, y_name, y) in zip(axes, pairs, strict=True):
    for v, a, b in zip(found, x, y, strict=True):
      axis.plot(a, b, 'o', color=color(v.model))
    squared = r_squared(x, y)
    title = f'R² = {squared:.2f}' if np.isfinite(squared) else 'no spread, no R²'
    axis.set(xlabel=x_name, ylabel=y_name, title=title)
    axis.grid(alpha=0.3)
  _add_legend(figure, found)
  return figure


def r_squared(x: Sequence[float], y: Sequence[float]) -> float:
  """Return the squared correlation; NaN where one of them does not vary, or is not all numbers.

  >>> round(r_squared([1, 2, 3], [1, 2, 4]), 3)
  0.964
  """
  if not (np.ptp(x) > 0 and np.ptp(y) > 0):
    return float('nan')
  return float(np.corrcoef(x, y)[0, 1] ** 2)
