"""What was measured of layers, as tables in Markdown: eigenvalues, errors of estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kl_flax.diagnostics import ApproximationReport
from kl_flax.inspection.measures import EigenvalueRow


def eigenvalue_table(
  trained: Sequence[EigenvalueRow], initial: Sequence[EigenvalueRow] | None = None
) -> str:
  """Return the rows as a Markdown table; where they are given, the initial ones stand beside.

  >>> print(eigenvalue_table([EigenvalueRow(1, 2, 1, 0.25, 4.0, 1.5)]))
  | layer | head | minimum | maximum | mean |
  |---|---|---|---|---|
  | 1 | 2 | 0.25 | 4 | 1.5 |
  """
  names, columns = ['layer', 'head'], ['layer', 'head']
  if any(row.component > 1 for row in trained):
    names, columns = [*names, 'component'], [*columns, 'component']
  numbers = ['minimum', 'maximum', 'mean']
  header = [*names, *numbers]
  if initial is not None:
    header = [*names, *(f'{name}, {n}' for name in ('trained', 'initial') for n in numbers)]
  lines = []
  for i, row in enumerate(trained):
    sides = [row] if initial is None else [row, initial[i]]
    cells = [str(getattr(row, name)) for name in columns]
    lines.append(cells + [f'{getattr(side, n):.3g}' for side in sides for n in numbers])
  return markdown(header, lines)


def error_table(
  trained: Sequence[ApproximationReport], initial: Sequence[ApproximationReport] | None = None
) -> str:
  """Return the reports of all layers as a Markdown table, medians over pairs and the 90 % points.

  '–' stands where there is no closed form.
  """
  sides = {'': trained} if initial is None else {'trained': trained, 'initial': initial}
  header = ['layer', 'head', 'kernel of', 'measured, median', '90 %', 'predicted, median', '90 %']
  header = [*header, 'typical_norm']
  if initial is None:
    header.remove('kernel of')
  lines = []
  for number in range(len(trained)):
    for head in range(len(trained[number].measured)):
      for name, reports in sides.items():
        report = reports[number]
        cells = [str(number + 1), str(head + 1), *([name] if name else [])]
        for errors in (report.measured, report.predicted):
          known = errors is not None
          cells += [f'{np.quantile(errors[head], q):.3g}' if known else '–' for q in (0.5, 0.9)]
        lines.append([*cells, f'{report.typical_norm[head]:.3g}'])
  return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], rule: str = '---') -> str:
  """Return a table, without a newline at its end; the rule '---:' aligns all columns right."""
  title, *rows = (f'| {" | ".join(row)} |' for row in (header, *lines))
  return '\n'.join([title, '|' + f'{rule}|' * len(header), *rows])
