"""The report as text, for terminals, GitHub and programs."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable
from typing import Any

from lra_tasks.reporting.cells import Sheet, make_sheets, repeat_notes, report_notes
from lra_tasks.reporting.rows import Report, Row, regime


def _lines(sheet: Sheet, escape: Callable[[str], str] = str) -> list[tuple[str, ...]]:
  """Return header and rows as texts, those of a column equally wide.

  Marks have a strip of their own: the digits stay aligned.
  """
  columns = []
  for column, cells in zip(sheet.columns, zip(*sheet.rows, strict=True), strict=True):
    strip = max(len(cell.mark) for cell in cells)
    texts = [escape(column.header)]
    texts += [escape(cell.text) + cell.mark.ljust(strip) for cell in cells]
    width = max(3, *map(len, texts))
    columns.append([t.ljust(width) if column.left else t.rjust(width) for t in texts])
  return list(zip(*columns, strict=True))


def render_table(report: Report) -> str:
  """Return the report as text for a terminal; tables are as wide as they are."""
  wrapper = textwrap.TextWrapper(
    80, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
  )
  lines, sheets = [], make_sheets(report)
  for sheet in sheets.all:
    header, *texts = map('  '.join, _lines(sheet))
    lines += [sheet.title, *filter(None, [sheet.subtitle]), '', header, '─' * len(header)]
    for i, text in enumerate(texts):
      lines += [''] * (i in sheet.breaks) + [text]
    lines += ['', *map(wrapper.fill, sheet.notes), *([''] if sheet.notes else [])]
  lines += map(wrapper.fill, report_notes(report, sheets))
  return '\n'.join(line.rstrip() for line in lines) + '\n'


def _markdown(text: str) -> str:
  for character in '\\|*`<[]':
    text = text.replace(character, '\\' + character)
  return ' '.join(text.split())


def render_markdown(report: Report) -> str:
  """Return the report as a page of GitHub-flavoured Markdown."""
  items = lambda notes: [f'- {_markdown(note)}' for note in notes]
  lines = [
    '# Results',
    '',
    'Made by `python -m lra_tasks.report`. Columns and marks are explained',
    'at the end.',
    '',
  ]
  sheets = make_sheets(report)
  for sheet in sheets.all:
    header, *rows = _lines(sheet, _markdown)
    rules = ['-' * (len(text) - 1) for text in header]
    rules = [f':{r}' if c.left else f'{r}:' for r, c in zip(rules, sheet.columns, strict=True)]
    lines += [f'## {_markdown(sheet.title)}', '']
    lines += [_markdown(sheet.subtitle), ''] if sheet.subtitle else []
    lines += [f'| {" | ".join(texts)} |' for texts in (header, rules, *rows)]
    lines += ['', *items(sheet.notes), *([''] if sheet.notes else [])]
  # A paragraph of its own, or the two lists would become one.
  lines += ['Legend:', '', *items(report_notes(report, sheets))]
  return '\n'.join(lines) + '\n'


_CSV_COLUMNS = (
  'kind', 'task', 'dataset', 'split', 'model', 'preset', 'changed', 'config_id', 'accuracy',
  'accuracy_sd', 'accuracy_of_one_draw', 'accuracy_sd_of_draws', 'voting_accuracy', 'runs',
  'seeds', 'examples', 'comparable', 'validation_is_test', 'published_paper', 'published_lra',
  'difference_to_paper', 'difference_to_lra', 'parameters', 'base_parameters', 'parameter_ratio',
  'breaks_lra_rule', 'steps', 'steps_per_second', 'peak_memory_bytes', 'eval_samples', 'f1',
  'matthews', 'learning_rate', 'pretrained', 'device', 'git_revision', 'source', 'note',
)  # fmt: skip


def render_csv(report: Report) -> str:
  """Return the report as CSV with raw numbers; all accuracies are fractions.

  Lines of kind 'run' and 'majority' are the rows of the tables, and those of learning rates that
  tables leave out. Each published score that is shown is a line of kind 'published' with its
  source, also where its model was run. Several values of one cell are separated by blanks, or by
  semicolons if they are text. `changed` is true where fields of the preset were changed.
  Differences are empty there, and where `comparable` is false: published figures do not compare.
  """
  file = io.StringIO()
  writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator='\n')
  writer.writeheader()
  for table in report.tables:
    rows = [row for row in table.rows if row.kind != 'published']
    lines = [_csv_of_row(row) for row in (*rows, *table.passed_over)]
    for score in table.published:
      line = {'kind': 'published', 'preset': regime([score]), 'accuracy': score.fraction}
      line |= {'source': f'{score.source}, {score.table}', 'dataset': None}  # Not of ours.
      lines.append(score._asdict() | line)
    for line in lines:
      line = vars(table) | line
      writer.writerow({name: _csv_value(line.get(name)) for name in _CSV_COLUMNS})
  return file.getvalue()


def _csv_of_row(row: Row) -> dict[str, Any]:
  if row.kind != 'run':
    return vars(row)
  preset = row.runs[0].preset or ''
  plain = preset.removesuffix('*')
  of_runs = {name: row.values(name) for name in vars(row.runs[0])}
  return of_runs | vars(row) | {
    'runs': len(row.runs),
    'preset': plain,
    'changed': plain != preset,
    'seeds': row.values('seed'),
    'published_paper': row.paper and row.paper.fraction,
    'published_lra': row.lra and row.lra.fraction,
    'difference_to_paper': row.difference if row.reference is row.paper else None,
    'difference_to_lra': row.difference if row.reference is row.lra else None,
    'breaks_lra_rule': row.breaks_lra_rule,
    'source': tuple(str(run.path) for run in row.runs),
    'note': ' '.join(repeat_notes(row)),
  }  # fmt: skip


def _csv_value(value: Any) -> Any:
  if isinstance(value, tuple):
    separator = '; ' if any(isinstance(v, str) for v in value) else ' '
    return separator.join(str(_csv_value(v)) for v in value)
  return str(value).lower() if isinstance(value, bool) else value
