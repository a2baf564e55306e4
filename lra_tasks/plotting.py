"""How figures look: the same model has the same colour in all of them."""

from __future__ import annotations

import os
from typing import Any

SOFTMAX = 'transformer'
_COLORS = {
  'gmm_rks': '#1f77b4', 'gmm_prf': '#17becf', 'fastfood_rks': '#2ca02c', 'fastfood_prf': '#98df8a',
  'generative_rks': '#9467bd', 'generative_prf': '#c5b0d5', SOFTMAX: '#d62728',
  'performer': '#ff7f0e', 'linear_transformer': '#8c564b', 'prf': '#bcbd22', 'rks': '#7f7f7f',
  'local': '#e377c2', 'longformer': '#393b79', 'bigbird': '#637939',
  'sparse_transformer': '#e7969c', 'linformer': '#e6ab02', 'reformer': '#7b4173',
  'sinkhorn': '#3182bd', 'synthesizer': '#000000',
}  # fmt: skip
# Of models without a colour of their own.
_OTHERS = ('#e377c2', '#aec7e8', '#ffbb78', '#ff9896', '#c49c94', '#f7b6d2', '#dbdb8d', '#9edae5')


def label(model: str) -> str:
  """Return what a model is called in a figure.

  >>> label('transformer')
  'softmax'
  """
  return 'softmax' if model == SOFTMAX else model


def color(model: str) -> str:
  """Return the colour of a model, '#rrggbb'."""
  return _COLORS.get(model) or _OTHERS[sum(map(ord, model)) % len(_OTHERS)]


def new_figure(columns: int = 1, width: float = 4.6, height: float = 4.2, **options: Any) -> Any:
  """Return a figure with room for a legend on its right, and its axes in a row.

  Raises:
    ImportError: without matplotlib, which the extra `plots` has.
  """
  figure, axes = new_grid(1, columns, width, height, **options)
  return figure, axes[0]


def new_grid(rows: int, columns: int, width: float, height: float, **options: Any) -> Any:
  """Return a figure with room for a legend on its right, and its axes as an array of rows.

  Args:
    rows: of axes.
    columns: of axes.
    width: of one, in inches.
    height: likewise.
    **options: of matplotlib's `Figure.subplots`.

  Raises:
    ImportError: without matplotlib, which the extra `plots` has.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width * columns + 1.8, height * rows), dpi=120, layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
  """Write a PNG, without the version of matplotlib: the same figure gives the same file."""
  figure.savefig(path, metadata={'Software': None})
