"""The report as tables of words: cells, marks, notes, whatever they are written in."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lra_tasks.paper import PAPER_MODELS, split_name
from lra_tasks.reporting import glue, published
from lra_tasks.reporting.published import PublishedScore
from lra_tasks.reporting.rows import Report, Row, Table, mean
from lra_tasks.reporting.summary import (
  VERDICTS,
  Comparison,
  Overview,
  difference_error,
  make_comparisons,
  make_overviews,
  verdict,
)
from lra_tasks.runs.finished import METRIC_LABELS

# By the header of a column, or by the mark.
_LEGEND = {
  'model': 'majority: always answering the commonest class of the split.',
  'voting %': 'voting %: accuracy of the class that most of the draws predict.',
  '± sd': '± sd: sample standard deviation over the runs of a row.',
  'Δ': "Δ: our mean minus the published figure, in percentage points: the paper's for the presets "
  "paper and tuned, LRA's for lra; ± its standard error, in which the published figure has that of "
  'so many examples. Ours is the largest of that over the seeds, that of so many examples and, '
  'where evaluations chose the checkpoint, that of the last five; of one seed it says nothing of '
  'others.',
  'LRA %': "LRA %: with LRA's own sizes and schedules; rows of the preset lra alone are held "
  'against it.',
  '/ base': '/ base: parameters over those of the base Transformer.',
  'MCC': 'MCC: Matthews correlation.',
  'samples': 'samples: draws of the random features per example in the evaluation.',
  '± se': '± se: standard error, the largest of that over the seeds, that of so many examples (of '
  'accuracies, also for F1; of correlations n^(-1/2); of two models an upper bound, since they '
  'share them), and, where evaluations chose the checkpoint, that of the last five.',
  'answer': 'answer: yes or no where the difference is more than two standard errors, of three '
  'seeds or more. Each model has the options of the preset, such as its number of frequencies and '
  'its start: more than the question names may differ.',
  'one draw': 'one draw: accuracy with a single draw, the first, which evaluations in training '
  'have too; ours % is the mean over all.',
  'last five': 'last five: mean accuracy, in %, of the last five evaluations on validation, or of '
  'all where there are fewer.',
  'metric': 'metric: what the task is judged by; a point is a hundredth.',
  'best rate': 'best rate: of the learning rates that were run with most seeds, the best on '
  'validation, all else equal.',
  '=': 'FIELD=VALUE: one model and preset was run with configs that differ in these fields.',
  '(': '(…) start of config_id, where one model and preset was run with different configs, in more '
  'than two fields or in what their config.json, if there is one, does not tell.',
  '*': '* preset with fields changed on the command line; config.json has them. It is another '
  'experiment than the published one: no difference is given.',
  '†': "† more than 10 % larger than the base Transformer: outside LRA's rule for like-for-like "
  'comparison.',
  '‡': '‡ the checkpoint was chosen on the split that is reported here (as in LRA, where a task '
  'has no validation split, and as is usual with GLUE): optimistic, most of all for models that '
  'draw nothing, whose figure is the largest of many; that of others is over more draws.',
  '↘': '↘ accuracy fell after the checkpoint that is shown: those of the last five evaluations '
  'that came later are on average more than 5 points, and two standard errors of so many '
  'examples, below.',
  '○': '○ no better than always answering the commonest class, or by less than two standard '
  'errors; of a difference, neither model.',
  '§': "§ published for the benchmark's own data and split; ours are others, so no difference is "
  'given.',
  '¶': '¶ mean speed and largest memory over runs on different hardware, or of runs that shared '
  'theirs.',
  '‖': '‖ speed and memory with a revision of the code that is not that of most rows of the table: '
  'not comparable with theirs, and left out of figures.',
  '◊': '◊ the runs were made by different revisions of the code.',
  '≈': '≈ not told apart from the published figure: within 1 point or two standard errors of the '
  'difference.',
  '?': '? as ≈, but two standard errors are more than 5 points: the figures tell nothing.',
  '▲': '▲ better than the published figure by more than 1 point and two standard errors of the '
  'difference.',
  '▼': '▼ worse than the published figure by more than 1 point and two standard errors of the '
  'difference.',
}
_PAPER = 'the KL-Transformer paper, Tables 2 and 5'


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


def _mean(row: Row, name: str) -> str:
  return _number(mean(getattr(run, name) for run in row.runs), '{:.3f}')


def _one_draw(row: Row) -> str:
  """Return the accuracy of one draw, where there were more."""
  several = any(samples > 1 for samples in row.values('eval_samples'))
  return _number(row.accuracy_of_one_draw, scale=100) if several else ''


def _rate(row: Row) -> str:
  """Return the learning rate, where it is one of several that were run."""
  return _number(row.runs[0].learning_rate, '{:g}') if row.rates or row.tried else ''


def _difference(row: Row) -> str:
  if row.difference is None:
    return ''
  return f'{100 * row.difference:+z.2f} ± {difference_error(row):.1f} {verdict(row)}'


def _span(values: Sequence[int], text: Callable[[int], str] = '{:,}'.format) -> str:
  return '–'.join(map(text, values[:1] + values[1:][-1:]))


def _size(parameters: int) -> str:
  return f'{parameters / 1e6:.2f}M' if parameters >= 999_950 else f'{parameters / 1e3:.1f}k'


def _published(score: PublishedScore | None) -> str:
  if score and score.value is None:
    return score.note.partition(':')[0]  # 'FAIL: no better than chance'
  return _number(score and score.value)


class Column(NamedTuple):
  """One column of a table; `text` of a row is empty where there is no value.

  `marks` stand behind the text of the rows that they are true of.
  """

  header: str
  text: Callable[[Row], str]
  marks: Mapping[str, Callable[[Row], Any]] = types.MappingProxyType({})
  left: bool = False


_elsewhere = lambda row: row.comparable is False
_OF_SPEED = {
  '¶': lambda row: len(row.values('device')) > 1 or row.shared,
  '‖': lambda row: row.other_revision,
}
_OF_ACCURACY = {
  '‡': lambda row: any(row.values('validation_is_test')),
  '↘': lambda row: row.has_fallen,
  '○': lambda row: row.is_guess,
}
_COLUMNS = (
  Column('model', lambda row: row.model, left=True),
  Column('preset', lambda row: row.preset, left=True),
  Column('ours %', lambda row: _number(row.accuracy, scale=100), _OF_ACCURACY),
  Column('± sd', lambda row: _number(row.accuracy_sd, '± {:.2f}', 100)),
  Column('voting %', lambda row: _number(row.voting_accuracy, scale=100)),
  Column('last five', lambda row: _number(row.late_accuracy, scale=100)),
  Column('runs', lambda row: str(len(row.runs) or ''),
         {'◊': lambda row: len(row.values('git_revision')) > 1}),
  Column('seeds', lambda row: compact_seeds(row.values('seed')), left=True),
  Column('examples', lambda row: _span(row.examples)),
  Column('paper %', lambda row: _published(row.paper), {'§': _elsewhere}),
  Column('Δ', _difference),
  Column('LRA %', lambda row: _published(row.lra), {'§': _elsewhere}),
  Column('params', lambda row: _span(row.values('parameters'), _size)),
  Column('/ base', lambda row: _number(row.parameter_ratio, '{:.3f}'),
         {'†': lambda row: row.breaks_lra_rule}),
  Column('rate', _rate),
  Column('steps', lambda row: _span(row.values('steps'))),
  Column('steps/s', lambda row: _number(row.steps_per_second), _OF_SPEED),
  Column('peak GiB', lambda row: _number(row.peak_memory_bytes, scale=2**-30), _OF_SPEED),
  Column('F1', lambda row: _mean(row, 'f1')),
  Column('MCC', lambda row: _mean(row, 'matthews')),
  Column('samples', lambda row: _span(row.values('eval_samples'))),
  Column('one draw', _one_draw),
)  # fmt: skip


class Heading(NamedTuple):
  """What stands above a column, and whether its cells are flush left."""

  header: str
  left: bool = False


class Cell(NamedTuple):
  """Text of one cell and the mark behind it."""

  text: str
  mark: str = ''


class Sheet(NamedTuple):
  """A table as it is shown.

  Attributes:
    title: what was measured.
    subtitle: on what; may be empty.
    columns: their headers, and which of them are flush left.
    rows: cells, row by row.
    breaks: indices of rows that begin another kind of rows.
    notes: sentences below it.
  """

  title: str
  subtitle: str
  columns: tuple[Heading, ...]
  rows: tuple[tuple[Cell, ...], ...]
  breaks: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()


class Sheets(NamedTuple):
  """The report's tables: of all tasks together, each task, learning rates, and each question."""

  overviews: tuple[Sheet, ...]
  tasks: tuple[Sheet, ...]
  rates: tuple[Sheet, ...]
  questions: tuple[Sheet, ...]

  @property
  def all(self) -> tuple[Sheet, ...]:
    """Return the tables in their order."""
    return self.overviews + self.tasks + self.rates + self.questions


def make_sheets(report: Report) -> Sheets:
  """Return the report's tables; those of tasks in the order of `report.tables`."""
  tables = report.tables
  comparisons = itertools.groupby(make_comparisons(tables), lambda c: c.question)
  of_glue = glue.make_overview(tables, PAPER_MODELS)
  overviews = [*map(_overview_sheet, make_overviews(tables))]
  return Sheets(
    tuple(overviews + ([_glue_sheet(of_glue)] if of_glue else [])),
    tuple(map(task_sheet, tables)),
    tuple(_rates_sheet(table) for table in tables if any(row.rates for row in table.rows)),
    tuple(_comparison_sheet(question, list(found)) for question, found in comparisons),
  )


def task_sheet(table: Table) -> Sheet:
  """Return the table of one task, without the columns that are empty throughout."""
  columns = tuple(
    column
    for column in _COLUMNS
    if any(column.text(row) for row in table.rows)
    and not (column.header == 'examples' and table.examples)  # The title has it.
  )
  title, data = title_lines(table)
  kinds = [row.kind for row in table.rows]
  return Sheet(
    title,
    data,
    tuple(Heading(column.header, column.left) for column in columns),
    tuple(tuple(_cell(c, row) for c in columns) for row in table.rows),
    tuple(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]),
    tuple(table_notes(table)),
  )


def _rates_sheet(table: Table) -> Sheet:
  """Return how good each model was with each learning rate that was tried."""
  rows = [row for row in table.rows if row.rates]
  headers = sorted({rate.learning_rate for row in rows for rate in row.rates}, reverse=True)
  lines = []
  for row in rows:
    scores = {rate.learning_rate: _number(rate.score, '{:.3f}') for rate in row.rates}
    cells = [Cell(scores.get(rate, '–')) for rate in headers]
    lines.append(
      (Cell(row.model), Cell(row.preset), *cells, Cell(compact_seeds(row.rates[0].seeds)))
    )
  run = rows[0].runs[0]
  metric = METRIC_LABELS[run.metric]
  of_rates = [Heading(f'{rate:g}') for rate in headers]
  return Sheet(
    f'{table.task}: learning rates',
    f'{metric} on validation' + (', which is the test split' if run.validation_is_test else ''),
    (
      Heading('model', left=True),
      Heading('preset', left=True),
      *of_rates,
      Heading('seeds', left=True),
    ),
    tuple(lines),
  )


def _overview_sheet(overview: Overview) -> Sheet:
  means = {model: overview.mean(model) for model in overview.models}
  with_means = any(mean is not None for mean in means.values())
  rows = []
  for model in overview.models:
    cells = [_overview_cell(overview.rows.get((model, task))) for task in overview.tasks]
    mean = [Cell(_number(means[model], scale=100) or '–')] if with_means else []
    rows.append((Cell(model), *cells, *mean))
  rows_of_ours = overview.rows.values()
  notes = []
  if any(row.reference for row in rows_of_ours):
    source = "LRA's leaderboard" if overview.preset == 'lra' else _PAPER
    notes.append(f'In brackets the figure of {source}.')
  notes += _reasons(rows_of_ours)
  if overview.stood_in:
    tasks = ', '.join(dict.fromkeys(task for _, task in overview.stood_in))
    notes.append(f'On other data alone: {tasks}.')
  if overview.missing:
    by_task: dict[str, list[str]] = {}
    for model, task in overview.missing:
      by_task.setdefault(task, []).append(model)
    text = '; '.join(f'{task}: {", ".join(models)}' for task, models in by_task.items())
    notes.append(f'Not run: {text}.')
  headers = ['model', *overview.tasks, *(['mean'] if with_means else [])]
  return Sheet(
    f'preset {overview.preset}: accuracy on the test splits, %',
    '',
    tuple(Heading(header, header == 'model') for header in headers),
    tuple(rows),
    notes=tuple(notes),
  )


def _glue_sheet(overview: glue.GlueOverview) -> Sheet:
  rows, rates = [], {}
  for model, corpus in overview.models:
    cells = []
    for metric in overview.metrics:
      score = overview.scores.get((model, corpus, metric))
      if score is None:
        cells.append(Cell('–'))
        continue
      text = _number(score.value) + _number(score.sd, ' ± {:.2f}')
      text += _number(score.published, ' ({:.2f})')
      cells.append(Cell(text, '' if score.comparable or score.published is None else '§'))
      if score.learning_rate is not None:
        rates.setdefault(score.learning_rate, {}).setdefault(metric.task, []).append(model)
    rows.append((Cell(model), Cell(corpus or 'nothing'), *cells))
  guesses = [Cell(_number(overview.majority.get(metric)) or '–') for metric in overview.metrics]
  rows.append((Cell('majority'), Cell(''), *guesses))
  notes = [
    'Development sets: accuracy, F1 or Matthews correlation, in brackets the figure of the '
    'KL-Transformer paper, Tables 3 and 13, whose models were pre-trained on WikiText-103.',
    'Seeds are those of fine-tuning. Of the learning rates that were run with the first seed, '
    'the best on the development set (the paper says no more than that '
    'several were tried): '
    + '; '.join(
      f'{rate:g} ' + ', '.join(f'{task} ({", ".join(dict.fromkeys(m))})' for task, m in by.items())
      for rate, by in sorted(rates.items(), reverse=True)
    )
    + '.',
  ]
  if overview.missing:
    notes.append(f'Not run: {", ".join(overview.missing)}.')
  headers = ['model', 'pre-trained on', *(metric.header for metric in overview.metrics)]
  return Sheet(
    'GLUE',
    '',
    tuple(Heading(header, i < 2) for i, header in enumerate(headers)),
    tuple(rows),
    (len(overview.models),),
    notes=tuple(notes),
  )


def _overview_cell(row: Row | None) -> Cell:
  if row is None:
    return Cell('–')
  text = _number(row.accuracy, scale=100) + _number(row.accuracy_sd, ' ± {:.2f}', 100)
  if row.reference and row.reference.value is not None:
    text += f' ({row.reference.value:.2f})'
  marks = {
    verdict(row): True,
    **{mark: is_shown(row) for mark, is_shown in _OF_ACCURACY.items()},
    '†': row.breaks_lra_rule,
    '§': _elsewhere(row),
  }
  return Cell(text, ''.join(mark for mark, shown in marks.items() if shown))


def _comparison_sheet(question: str, found: Sequence[Comparison]) -> Sheet:
  headers = {
    'comparison': True, 'task': True, 'preset': True, 'metric': True, 'points': False,
    '± se': False, 'seeds': True, 'answer': True,
  }  # fmt: skip
  rows = [
    (
      Cell(f'{c.first} − {c.second}'),
      Cell(c.task),
      Cell(c.preset),
      Cell(METRIC_LABELS[c.metric]),
      Cell(
        f'{c.difference:+.2f}', '‡' * c.is_optimistic + '↘' * c.has_fallen + '○' * c.are_guesses
      ),
      Cell(f'± {c.error:.2f}'),
      Cell(compact_seeds(c.seeds)),
      Cell(c.answer),
    )
    for c in found
  ]
  return Sheet(
    question,
    'difference on the reported split, seed by seed',
    tuple(Heading(header, left) for header, left in headers.items()),
    tuple(rows),
  )


def _cell(column: Column, row: Row) -> Cell:
  text = column.text(row)
  if not text:
    return Cell('–' if row.kind == 'run' else '')
  return Cell(text, ''.join(mark for mark, is_shown in column.marks.items() if is_shown(row)))


def title_lines(table: Table) -> tuple[str, str]:
  """Return what was measured, and on which data."""
  examples = f' ({table.examples:,} examples)' if table.examples else ''
  ours = all(run.comparable for row in table.rows for run in row.runs)
  return (
    f'{table.task}: accuracy on the {split_name(table.task, table.split)}{examples}',
    f'data: {table.dataset}' + ('' if ours else " (NOT the benchmark's own)"),
  )


def table_notes(table: Table) -> list[str]:
  """Return the sources, the hardware and what was left out, for one table."""
  notes = []
  for source, column in published.SOURCES.items():
    scores = [score for score in table.published if score.source == source]
    if scores:
      header = 'LRA %' if column == 'lra' else 'paper %'
      places = ', '.join(dict.fromkeys(score.table for score in scores))
      remarks = dict.fromkeys(score.note for score in scores if score.note)
      notes.append('; '.join([f'{header}: {source}, {places}', *remarks]) + '.')
  notes += _reasons(table.rows)
  notes += [
    f"{row.label}: of the learning rates that were run with most seeds, the preset's own is the "
    'best on validation.'
    for row in table.rows
    if row.rates and 'best rate' not in row.preset
  ]
  rows_on = collections.defaultdict(list)
  for row in table.rows:
    for device in row.values('device'):
      seeds = [run.seed for run in row.runs if run.device == device]
      some = f' (seeds {compact_seeds(seeds)})' if len(seeds) < len(row.runs) else ''
      rows_on[device].append(row.label + some)
  for device, labels in rows_on.items():
    several = f'Hardware {device}: {"; ".join(labels)}.'
    notes.append(several if len(rows_on) > 1 else f'Hardware of our rows: {device}.')
  return notes + [note for row in table.rows for note in repeat_notes(row)]


def _reasons(rows: Iterable[Row]) -> list[str]:
  """Return why rows have no difference though their preset is held against a figure."""
  return list(dict.fromkeys(row.not_held for row in rows if row.not_held))


def repeat_notes(row: Row) -> list[str]:
  """Return a sentence for each run of a row that was left out."""
  kept = {run.seed: run.path.parent for run in row.runs}
  return [
    f'{row.label}: seed {run.seed} was run again, which is no independent run. Kept the newest '
    f'results.json, in {kept[run.seed]}; left out {run.path.parent} ({100 * run.accuracy:.2f} %).'
    for run in row.repeated
  ]


def report_notes(report: Report, sheets: Sheets) -> list[str]:
  """Return the legend of the columns and marks that are shown, and the runs left out."""
  shown: set[str] = set()
  for sheet in sheets.all:
    shown |= {column.header for column in sheet.columns}
    shown |= {mark for row in sheet.rows for cell in row for mark in cell.mark}
    shown |= {sign for row in sheet.rows for cell in row for sign in cell.text if sign in VERDICTS}
  if shown.intersection(VERDICTS):
    shown.add('Δ')  # They go by it.
  for table in report.tables:
    for row in table.rows:
      shown |= {'(' if row.tag.startswith('(') else '='} if row.tag else set()
      shown |= {'*'} if row.is_changed else set()
      shown |= {'best rate'} if 'best rate' in row.preset else set()
  return [text for key, text in _LEGEND.items() if key in shown] + [
    f'{text[0].upper()}{text[1:]}.' for text in report.left_out
  ]
