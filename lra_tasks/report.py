"""Print the results of finished runs beside the published figures.

  python -m lra_tasks.report DIR... [--format=table|markdown|csv] [--output=FILE]
                             [--published=matching|all|none] [--external]

Each DIR is the --model_dir of a run of lra_tasks.train, or a folder with such runs
anywhere below it. Runs of one config that differ in their seed alone become one row: mean
and sample standard deviation. There is one table for each task, data set and split.
"""

# `load_results` reads files, `build_report` makes rows of numbers, `make_grid` makes text of them,
# `render_*` lays it out. All but the first are pure.

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import os
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from lra_tasks import results
from lra_tasks.results import Figure, Group, Results, Run, Unfinished

_FORMAT = flags.DEFINE_enum(
  'format', 'table', ('table', 'markdown', 'csv'),
  'table: text for the terminal. markdown: tables for GitHub. csv: raw numbers, accuracies as '
  'fractions, one line a row.',
)  # fmt: skip
_OUTPUT = flags.DEFINE_string('output', None, 'File to write instead of standard output.')
_PUBLISHED = flags.DEFINE_enum(
  'published', 'matching', ('matching', 'all', 'none'),
  'Which published figures to show. matching: those of the models that were run, and of random '
  'guessing. all: also the models that were not run. none: no figures.',
)  # fmt: skip
_EXTERNAL = flags.DEFINE_bool(
  'external', False,
  "Also show entries of the LRA leaderboard that do not keep to LRA's rules, for models that were "
  'run, or with --published=all.',
)  # fmt: skip

_TASKS = ('listops', 'text', 'retrieval', 'image', 'pathfinder32', 'pathfinder128')  # Their order.
_MAX_PARAMETER_RATIO = 1.10  # LRA's rule for like-for-like models.

# ------------------------------------------------------------------------- rows of numbers


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table: numbers, not text. Accuracies are fractions."""

  kind: str  # 'run', 'majority' or 'published'
  model: str
  preset: str = ''  # With the start of config_id in brackets where that tells rows apart.
  runs: tuple[Run, ...] = ()
  repeated: tuple[Run, ...] = ()  # Left out: older runs of the same seeds.
  examples: tuple[int, ...] = ()
  accuracy: float | None = None
  accuracy_sd: float | None = None
  accuracy_of_one_draw: float | None = None
  paper: Figure | None = None
  lra: Figure | None = None
  comparable: bool | None = None  # Whether these figures are for the same data.
  difference_to_paper: float | None = None
  parameter_ratio: float | None = None
  steps_per_second: float | None = None  # Mean over the runs.
  peak_memory_bytes: int | None = None  # Largest of the runs.

  @property
  def label(self) -> str:
    """What names the row in notes."""
    return f'{self.model} {self.preset}'.rstrip()

  @property
  def breaks_lra_rule(self) -> bool | None:
    """Whether the model is too large to be compared under LRA's rule; None if not known."""
    return None if self.parameter_ratio is None else self.parameter_ratio > _MAX_PARAMETER_RATIO

  def values(self, name: str) -> tuple[Any, ...]:
    """Return the distinct values of a field of `Run` over the runs, sorted, without None."""
    return _distinct(getattr(run, name) for run in self.runs)


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
  return tuple(sorted({value for value in values if value is not None}))


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one task, data set and split: ours, chance, then published ones."""

  task: str
  dataset: str
  split: str
  rows: tuple[Row, ...]

  @property
  def figures(self) -> tuple[Figure, ...]:
    """Every published figure that is shown."""
    return tuple(dict.fromkeys(f for row in self.rows for f in (row.paper, row.lra) if f))

  @property
  def examples(self) -> int | None:
    """Number of examples, None if the rows differ in it."""
    counts = _distinct(n for row in self.rows for n in row.examples)
    return counts[0] if len(counts) == 1 else None


class Report(NamedTuple):
  """The whole report, ready to be rendered."""

  tables: tuple[Table, ...]
  unfinished: tuple[Unfinished, ...] = ()


def build_report(
  found: Results, figures: Iterable[Figure], which: str = 'matching', external: bool = False
) -> Report:
  """Return one table for each task, data set and split.

  Args:
    found: the runs.
    figures: all published figures.
    which: 'matching' shows the figures of the models that were run and of random guessing, 'all'
      those of every other model too, 'none' nothing.
    external: whether to show entries that do not keep to LRA's rules.
  """
  figures = tuple(figures) if which != 'none' else ()
  groups = collections.defaultdict(list)
  for group in results.group_runs(found.runs):
    first = group.runs[0]
    groups[first.task, first.dataset, first.split].append(group)
  order = lambda key: (_rank(key[0].partition('/')[0]), key)  # Of a task, then its variants.
  tables = []
  for key in sorted(groups, key=order):
    published = results.published_for(figures, key[0], external)
    tables.append(Table(*key, _rows(groups[key], published, which == 'all')))
  return Report(tuple(tables), found.unfinished)


def _rank(task: str) -> int:
  return _TASKS.index(task) if task in _TASKS else len(_TASKS)


def _rows(
  groups: Sequence[Group], published: Mapping[str, Mapping[str, Figure]], others: bool
) -> tuple[Row, ...]:
  """Return our rows, best first; chance; models that were not run (if `others`), best first."""
  configs = collections.Counter((g.runs[0].model, g.runs[0].preset) for g in groups)
  ours = []
  for group in groups:
    first = group.runs[0]
    tag = f'({first.config_id[:6]})' if configs[first.model, first.preset] > 1 else ''
    preset = f'{first.preset or ""} {tag}'.strip()
    ours.append(_run_row(group, preset, published.get(first.model, {})))
  chance = {(run.examples, run.majority_class) for row in ours for run in row.runs}
  comparable = all(row.comparable for row in ours)
  rest = [
    Row('published', model, _regime(figures.values()), comparable=comparable, **figures)
    for model, figures in published.items()
    if model not in {row.model for row in ours}
    and (others or any(figure.family == 'chance' for figure in figures.values()))
  ]
  return (
    *sorted(ours, key=lambda row: (-row.accuracy, row.label)),
    *(Row('majority', 'majority', examples=(n,), accuracy=a) for n, a in sorted(chance)),
    *sorted(rest, key=lambda row: (-((row.paper or row.lra).value or 0), row.model)),
  )


def _run_row(group: Group, preset: str, figures: Mapping[str, Figure]) -> Row:
  runs, paper = group.runs, figures.get('paper')
  accuracies = [run.accuracy for run in runs]
  mean = statistics.fmean(accuracies)
  single = [run.accuracy_of_one_draw for run in runs]
  comparable = all(run.is_comparable for run in runs)
  has_difference = comparable and paper and paper.value is not None
  ratios = [run.parameters / run.base_parameters for run in runs if run.base_parameters]
  speeds = [run.steps_per_second for run in runs if run.steps_per_second is not None]
  memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
  return Row(
    kind='run',
    model=runs[0].model,
    preset=preset,
    runs=runs,
    repeated=group.repeated,
    examples=_distinct(run.examples for run in runs),
    accuracy=mean,
    accuracy_sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
    accuracy_of_one_draw=None if None in single else statistics.fmean(single),
    **figures,
    comparable=comparable,
    difference_to_paper=mean - paper.fraction if has_difference else None,
    parameter_ratio=max(ratios, default=None),
    steps_per_second=statistics.fmean(speeds) if speeds else None,
    peak_memory_bytes=max(memory, default=None),
  )


def _regime(figures: Iterable[Figure]) -> str:
  return 'external' if all(f.regime == 'external' for f in figures) else 'published'


# -------------------------------------------------------------------------- cells and notes

# By the header of a column, or by the mark.
_LEGEND = {
  'model': 'majority: always answering the commonest class of the split.',
  '± sd': '± sd: sample standard deviation over the runs of a row.',
  'Δ': "Δ: our mean minus the paper's figure, in percentage points.",
  '/ base': '/ base: parameters over those of the base Transformer.',
  'samples': 'samples: draws of the random features per example in the evaluation.',
  'one draw': 'one draw: accuracy with a single draw; ours % is the mean over all.',
  '(': '(…) start of config_id, where one model and preset was run with different configs.',
  '*': '* preset with fields changed on the command line; config.json has them.',
  '†': "† more than 10 % larger than the base Transformer: outside LRA's rule for like-for-like "
  'comparison.',
  '‡': '‡ the checkpoint was chosen on the split that is reported here (as LRA does where a task '
  'has no validation split): optimistic.',
  '§': '§ published for the full task; our data or split is not the same, so no difference is '
  'given.',
  '¶': '¶ mean speed and largest memory over runs on different hardware.',
  '◊': '◊ the runs were made by different revisions of the code.',
}


def compact_seeds(seeds: Iterable[int]) -> str:
  """Return seeds as a list with stretches of three or more shortened.

  >>> compact_seeds([0, 1, 2, 3, 7, 8])
  '0–3, 7, 8'
  """
  stretches = collections.defaultdict(list)
  for i, seed in enumerate(sorted(seeds)):
    stretches[seed - i].append(seed)
  return ', '.join(
    f'{s[0]}–{s[-1]}' if len(s) > 2 else ', '.join(map(str, s)) for s in stretches.values()
  )


def _number(value: float | None, template: str = '{:.2f}', scale: float = 1.0) -> str:
  return '' if value is None else template.format(scale * value)


def _one_draw(row: Row) -> str:
  """Return the accuracy of one draw, where there were more."""
  several = any(samples > 1 for samples in row.values('eval_samples'))
  return _number(row.accuracy_of_one_draw, scale=100) if several else ''


def _span(values: Sequence[int], text: Callable[[int], str] = '{:,}'.format) -> str:
  return '–'.join(map(text, values[:1] + values[1:][-1:]))


def _size(parameters: int) -> str:
  return f'{parameters / 1e6:.2f}M' if parameters >= 999_950 else f'{parameters / 1e3:.1f}k'


def _figure(figure: Figure | None) -> str:
  if figure and figure.value is None:
    return figure.note.partition(':')[0]  # 'FAIL: no better than chance'
  return _number(figure and figure.value)


class Column(NamedTuple):
  """One column of a table; `text` of a row is empty where there is no value."""

  header: str
  text: Callable[[Row], str]
  mark: str = ''
  is_marked: Callable[[Row], Any] = lambda row: False
  left: bool = False


_elsewhere = lambda row: row.comparable is False
_mixed = lambda row: len(row.values('device')) > 1
_COLUMNS = (
  Column('model', lambda row: row.model, left=True),
  Column('preset', lambda row: row.preset, left=True),
  Column('ours %', lambda row: _number(row.accuracy, scale=100),
         '‡', lambda row: any(row.values('validation_is_test'))),
  Column('± sd', lambda row: _number(row.accuracy_sd, '± {:.2f}', 100)),
  Column('runs', lambda row: str(len(row.runs) or ''),
         '◊', lambda row: len(row.values('git_revision')) > 1),
  Column('seeds', lambda row: compact_seeds(row.values('seed')), left=True),
  Column('examples', lambda row: _span(row.examples)),
  Column('paper %', lambda row: _figure(row.paper), '§', _elsewhere),
  Column('Δ', lambda row: _number(row.difference_to_paper, '{:+z.2f}', 100)),
  Column('LRA %', lambda row: _figure(row.lra), '§', _elsewhere),
  Column('params', lambda row: _span(row.values('parameters'), _size)),
  Column('/ base', lambda row: _number(row.parameter_ratio, '{:.3f}'),
         '†', lambda row: row.breaks_lra_rule),
  Column('steps', lambda row: _span(row.values('steps'))),
  Column('steps/s', lambda row: _number(row.steps_per_second), '¶', _mixed),
  Column('peak GiB', lambda row: _number(row.peak_memory_bytes, scale=2**-30), '¶', _mixed),
  Column('samples', lambda row: _span(row.values('eval_samples'))),
  Column('one draw', _one_draw),
)  # fmt: skip


class Cell(NamedTuple):
  """Text of one cell and the mark behind it."""

  text: str
  mark: str = ''


class Grid(NamedTuple):
  """The columns of a table that hold something, and the cells, row by row."""

  columns: tuple[Column, ...]
  rows: tuple[tuple[Cell, ...], ...]


def make_grid(table: Table) -> Grid:
  """Return the text of a table's cells, without the columns that are empty throughout."""
  columns = tuple(
    column
    for column in _COLUMNS
    if any(column.text(row) for row in table.rows)
    and not (column.header == 'examples' and table.examples)  # The title has it.
  )
  return Grid(columns, tuple(tuple(_cell(c, row) for c in columns) for row in table.rows))


def _cell(column: Column, row: Row) -> Cell:
  text = column.text(row)
  if not text:
    return Cell('–' if row.kind == 'run' else '')
  return Cell(text, column.mark if column.is_marked(row) else '')


def title_lines(table: Table) -> tuple[str, str]:
  """Return what was measured, and on which data."""
  examples = f' ({table.examples:,} examples)' if table.examples else ''
  ours = all(run.comparable for row in table.rows for run in row.runs)
  return (
    f'{table.task}: accuracy on the {table.split} split{examples}',
    f'data: {table.dataset}' + ('' if ours else " (NOT the benchmark's own)"),
  )


def table_notes(table: Table) -> list[str]:
  """Return the sources, the hardware and what was left out, for one table."""
  notes = []
  for source, column in results.SOURCES.items():
    figures = [figure for figure in table.figures if figure.source == source]
    if figures:
      header = 'LRA %' if column == 'lra' else 'paper %'
      places = ', '.join(dict.fromkeys(f.table for f in figures))
      remarks = dict.fromkeys(f.note for f in figures if f.note)
      notes.append('; '.join([f'{header}: {source}, {places}', *remarks]) + '.')
  rows_on = collections.defaultdict(list)
  for row in table.rows:
    for device in row.values('device'):
      seeds = [run.seed for run in row.runs if run.device == device]
      some = f' (seeds {compact_seeds(seeds)})' if len(seeds) < len(row.runs) else ''
      rows_on[device].append(row.label + some)
  for device, labels in rows_on.items():
    several = f'Hardware {device}: {"; ".join(labels)}.'
    notes.append(several if len(rows_on) > 1 else f'Hardware of our rows: {device}.')
  return notes + [note for row in table.rows for note in _repeat_notes(row)]


def _repeat_notes(row: Row) -> list[str]:
  kept = {run.seed: run.path.parent for run in row.runs}
  return [
    f'{row.label}: seed {run.seed} was run again, which is no independent run. Kept the newest '
    f'results.json, in {kept[run.seed]}; left out {run.path.parent} ({100 * run.accuracy:.2f} %).'
    for run in row.repeated
  ]


def report_notes(report: Report) -> list[str]:
  """Return the legend of the columns and marks that are shown, and the unfinished runs."""
  shown = set()
  for table in report.tables:
    columns, rows = make_grid(table)
    shown |= {column.header for column in columns} | {cell.mark for row in rows for cell in row}
    shown |= {character for row in table.rows for character in row.preset if character in '*('}
  return [text for key, text in _LEGEND.items() if key in shown] + [
    f'Not finished, left out: {run}.' for run in report.unfinished
  ]


# ------------------------------------------------------------------------------- rendering


def _lines(grid: Grid, escape: Callable[[str], str] = str) -> list[tuple[str, ...]]:
  """Return header and rows as texts, those of a column equally wide.

  Marks have a strip of their own: the digits stay aligned.
  """
  columns = []
  for column, cells in zip(grid.columns, zip(*grid.rows, strict=True), strict=True):
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
  lines = []
  for table in report.tables:
    header, *texts = map('  '.join, _lines(make_grid(table)))
    lines += [*title_lines(table), '', header, '─' * len(header)]
    kind = 'run'
    for row, text in zip(table.rows, texts, strict=True):
      lines += [''] * (row.kind != kind) + [text]
      kind = row.kind
    lines += ['', *map(wrapper.fill, table_notes(table)), '']
  lines += map(wrapper.fill, report_notes(report))
  return '\n'.join(line.rstrip() for line in lines) + '\n'


def _markdown(text: str) -> str:
  for character in '\\|*`<[]':
    text = text.replace(character, '\\' + character)
  return ' '.join(text.split())


def render_markdown(report: Report) -> str:
  """Return the report as GitHub-flavoured Markdown."""
  items = lambda notes: [f'- {_markdown(note)}' for note in notes]
  lines = []
  for table in report.tables:
    grid = make_grid(table)
    header, *rows = _lines(grid, _markdown)
    rules = ['-' * (len(text) - 1) for text in header]
    rules = [f':{r}' if c.left else f'{r}:' for r, c in zip(rules, grid.columns, strict=True)]
    title, data = map(_markdown, title_lines(table))
    lines += [f'### {title}', '', data, '']
    lines += [f'| {" | ".join(texts)} |' for texts in (header, rules, *rows)]
    lines += ['', *items(table_notes(table)), '']
  # A paragraph of its own, or the two lists would become one.
  lines += ['Legend:', '', *items(report_notes(report))]
  return '\n'.join(lines) + '\n'


_CSV_COLUMNS = (
  'kind', 'task', 'dataset', 'split', 'model', 'preset', 'config_id', 'accuracy', 'accuracy_sd',
  'accuracy_of_one_draw', 'accuracy_sd_of_draws', 'runs', 'seeds', 'examples', 'comparable',
  'validation_is_test', 'published_paper', 'published_lra', 'difference_to_paper', 'parameters',
  'base_parameters', 'parameter_ratio', 'breaks_lra_rule', 'steps', 'steps_per_second',
  'peak_memory_bytes', 'eval_samples', 'device', 'git_revision', 'source', 'note',
)  # fmt: skip


def render_csv(report: Report) -> str:
  """Return the report as CSV with raw numbers; all accuracies are fractions.

  Lines of kind 'run' and 'majority' are the rows of the tables. Each published figure that is shown
  is a line of kind 'published' with its source, also where its model was run. Several values of one
  cell are separated by blanks, or by semicolons if they are text.
  """
  file = io.StringIO()
  writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator='\n')
  writer.writeheader()
  for table in report.tables:
    lines = [_csv_of_row(row) for row in table.rows if row.kind != 'published']
    for f in table.figures:
      line = {'kind': 'published', 'preset': _regime([f]), 'accuracy': f.fraction}
      lines.append(f._asdict() | line | {'source': f'{f.source}, {f.table}'})
    for line in lines:
      line = vars(table) | line
      writer.writerow({name: _csv_value(line.get(name)) for name in _CSV_COLUMNS})
  return file.getvalue()


def _csv_of_row(row: Row) -> dict[str, Any]:
  if row.kind != 'run':
    return vars(row)
  of_runs = {name: row.values(name) for name in vars(row.runs[0])}
  return of_runs | vars(row) | {
    'runs': len(row.runs),
    'preset': row.runs[0].preset,
    'seeds': row.values('seed'),
    'published_paper': row.paper and row.paper.fraction,
    'published_lra': row.lra and row.lra.fraction,
    'breaks_lra_rule': row.breaks_lra_rule,
    'source': tuple(str(run.path) for run in row.runs),
    'note': ' '.join(_repeat_notes(row)),
  }  # fmt: skip


def _csv_value(value: Any) -> Any:
  if isinstance(value, tuple):
    separator = '; ' if any(isinstance(v, str) for v in value) else ' '
    return separator.join(str(_csv_value(v)) for v in value)
  return str(value).lower() if isinstance(value, bool) else value


# --------------------------------------------------------------------------------- command


def main(argv: Sequence[str]) -> int:
  """Print the report of the directories `argv[1:]`; return the exit code."""
  try:
    if len(argv) < 2:
      raise ValueError('name the directory of at least one run; --help tells more')
    found = results.load_results(argv[1:])
  except (ValueError, OSError) as error:
    return _fail(error)
  report = build_report(found, results.load_published(), _PUBLISHED.value, _EXTERNAL.value)
  render = {'table': render_table, 'markdown': render_markdown, 'csv': render_csv}[_FORMAT.value]
  text = render(report)
  if _FORMAT.value == 'csv':  # The other formats have notes.
    for run in report.unfinished:
      print(f'note: not finished, left out: {run}', file=sys.stderr)
  try:
    if _OUTPUT.value:
      Path(_OUTPUT.value).write_text(text, encoding='utf-8')
    else:
      sys.stdout.reconfigure(errors='replace')  # Encodings that lack a dash or a mark.
      print(text, end='', flush=True)
  except BrokenPipeError:
    # The reader (`| head`) has seen enough; keep the interpreter from flushing again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    return _fail(error)
  return 0


def _fail(error: ValueError | OSError) -> int:
  is_file = isinstance(error, OSError) and error.filename
  print(f'error: {f"{error.filename}: {error.strerror}" if is_file else error}', file=sys.stderr)
  return 1


if __name__ == '__main__':
  app.run(main)
