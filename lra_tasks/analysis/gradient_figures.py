"""The paper's Table 14 and Figure 6 of what `gradient_measures` found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kl_flax.inspection import markdown
from kl_flax.models import MODELS
from lra_tasks.analysis.gradient_measures import Curve
from lra_tasks.console import three_digits
from lra_tasks.plotting import color, label, new_figure

_HEADERS = {'sd': 'sd', 'mean_abs': 'mean of absolutes', 'sd_of_draws': 'sd of draws'}


def _by_data(curves: Iterable[Curve]) -> dict[str, dict[str, list[Curve]]]:
  """Return the runs by data set and model, models in the order of the registry."""
  found: dict[str, dict[str, list[Curve]]] = {}
  place = list(MODELS).index
  for curve in sorted(curves, key=lambda curve: (curve.data, place(curve.model))):
    found.setdefault(curve.data, {}).setdefault(curve.model, []).append(curve)
  return found


def table(curves: Sequence[Curve], percents: Sequence[int]) -> str:
  """Return the gradients in Markdown, a table for each data set.

  Of two models there is the ratio, too, of the second to the first. An accuracy that no run of a
  model has reached has a dash.
  """
  parts = []
  for data, models in _by_data(curves).items():
    names = list(models)
    compared = [*names, ' / '.join(reversed(names))] if len(names) == 2 else names
    header = ['accuracy', *(f'step, {name}' for name in names)]
    header += [f'{text}, {name}' for text in _HEADERS.values() for name in compared]
    lines = []
    for percent in percents:
      reached = [
        [curve.gradients[percent] for curve in models[name] if percent in curve.gradients]
        for name in names
      ]
      cells = [_mean_text([step for step, _ in found], '{:,.0f}'.format) for found in reached]
      for quantity in _HEADERS:
        values = [[getattr(statistics, quantity) for _, statistics in found] for found in reached]
        cells += [_mean_text(part, three_digits) for part in values]
        if len(names) == 2:
          both = all(values) and np.mean(values[0]) > 0
          cells.append(three_digits(np.mean(values[1]) / np.mean(values[0])) if both else '–')
      lines.append([f'{percent} %', *cells])
    runs = ', '.join(f'{name} {len(models[name])}' for name in names)
    title = models[names[0]][0].title
    parts.append(f'{title} ({data}); runs: {runs}\n\n{markdown(header, lines, "---:")}')
  return '\n\n'.join(parts) + '\n'


def _mean_text(values: Sequence[float], text: Any) -> str:
  return text(float(np.mean(values))) if values else '–'


def learning_curves(curves: Sequence[Curve]) -> Any:
  """Return validation accuracy over steps, a panel for each data set and a line for each run.

  Single evaluations may jump from one to the next: of a run with many, they are pale behind the
  mean of a twentieth of them.

  Raises:
    ImportError: without matplotlib.
  """
  groups = _by_data(curves)
  figure, axes = new_figure(len(groups), sharey=True)
  shown, smoothed = {}, False
  for axis, models in zip(axes, groups.values(), strict=True):
    for model, runs in models.items():
      for run in runs:
        reached, percents = list(run.accuracies), 100 * np.array([*run.accuracies.values()])
        width = max(1, len(reached) // 20)
        if width > 1:
          smoothed = True
          axis.plot(reached, percents, color=color(model), linewidth=0.5, alpha=0.4)
        middle = reached[width // 2 :][: len(reached) - width + 1]
        mean = np.convolve(percents, np.full(width, 1 / width), 'valid')
        (line,) = axis.plot(middle, mean, color=color(model), linewidth=1.5)
        shown.setdefault(label(model), line)
      axis.set(title=runs[0].title, xlabel='step', ylim=(0, 103))
  axes[0].set_ylabel('validation accuracy, %' + '; thick: running mean' * smoothed)
  figure.legend(shown.values(), shown.keys(), loc='outside right upper', frameon=False)
  return figure
