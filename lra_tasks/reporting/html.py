"""The report as one page for browsers, figures included, which needs nothing else."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable
from typing import Any

from lra_tasks.reporting import figures
from lra_tasks.reporting.cells import Sheet, make_sheets, report_notes
from lra_tasks.reporting.rows import Report
from lra_tasks.reporting.summary import make_overviews

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.3rem; }
p.subtitle, ul.notes { color: #666; font-size: 0.85rem; margin: 0.3rem 0; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th { border-bottom: 2px solid #888; font-weight: 600; white-space: nowrap; }
th, td { padding: 0.2rem 0.7rem; text-align: right; white-space: nowrap; }
th.left, td.left { text-align: left; }
td span { color: #b04000; padding-left: 0.15rem; }
tr.break td { border-top: 1px solid #bbb; }
tbody tr:hover { background: #f2f5f8; }
figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0; }
figure svg { max-width: 100%; height: auto; }
"""


def render_html(report: Report) -> str:
  """Return the page.

  Raises:
    ImportError: without matplotlib.
  """
  sheets = make_sheets(report)
  parts = ['<h1>Learned attention kernels on the Long Range Arena</h1>']
  if sheets.overviews:
    parts += ['<h2>Overview</h2>', *map(_table, sheets.overviews)]
    parts += _figures(map(figures.mean_trade_off, make_overviews(report.tables)))
  if sheets.questions:
    parts += ['<h2>What was learnt</h2>', *map(_table, sheets.questions)]
  parts.append('<h2>Tasks</h2>')
  for table, sheet in zip(report.tables, sheets.tasks, strict=True):
    presets = dict.fromkeys(row.preset for row in table.rows if row.kind == 'run')
    trade_offs = [figures.trade_off(table, preset) for preset in presets]
    parts += [_table(sheet), *_figures([figures.accuracies(table), *trade_offs])]
  if sheets.rates:
    parts += ['<h2>Learning rates</h2>', *map(_table, sheets.rates)]
  parts += ['<h2>Legend</h2>', _list(report_notes(report, sheets))]
  body = '\n'.join(parts)
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    '<title>Learned attention kernels on the Long Range Arena</title>\n'
    f'<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
  )


def _table(sheet: Sheet) -> str:
  side = [' class="left"' if column.left else '' for column in sheet.columns]
  header = ''.join(
    f'<th{s}>{html.escape(c.header)}</th>' for s, c in zip(side, sheet.columns, strict=True)
  )
  lines = [f'<h3>{html.escape(sheet.title)}</h3>']
  if sheet.subtitle:
    lines.append(f'<p class="subtitle">{html.escape(sheet.subtitle)}</p>')
  lines += ['<div class="wide"><table>', f'<thead><tr>{header}</tr></thead>', '<tbody>']
  for i, row in enumerate(sheet.rows):
    cells = ''.join(f'<td{s}>{_cell(cell)}</td>' for s, cell in zip(side, row, strict=True))
    lines.append(f'<tr{" class=break" if i in sheet.breaks else ""}>{cells}</tr>')
  return '\n'.join([*lines, '</tbody></table></div>', _list(sheet.notes)])


def _cell(cell: Any) -> str:
  mark = f'<span>{html.escape(cell.mark)}</span>' if cell.mark else ''
  return html.escape(cell.text) + mark


def _list(notes: Iterable[str]) -> str:
  items = ''.join(f'<li>{html.escape(note)}</li>' for note in notes)
  return f'<ul class="notes">{items}</ul>' if items else ''


def _figures(drawn: Iterable[Any]) -> list[str]:
  return [f'<figure>{_svg(figure)}</figure>' for figure in drawn if figure is not None]


def _svg(figure: Any) -> str:
  """Return the figure as an SVG element, the same for the same figure."""
  import matplotlib

  file = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': 'kl_flax', 'svg.fonttype': 'none'}):
    figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})
  text = file.getvalue()
  return re.sub(r'[ \t]+\n', '\n', text[text.index('<svg') :]).strip()
