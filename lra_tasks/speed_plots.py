"""Draw what `lra_tasks.benchmark` measured.

  python -m lra_tasks.speed_plots --out=DIR SPEED.json [SPEED.json ...]

From files of --what=op: time over length, of all mechanisms (crossover_TASK.png).
From files of --what=step with several lengths: memory over length, Figure 4 of the KL-Transformer
paper (memory_over_length_TASK.png), and LRA's table of speed and memory (speed_TASK.md).
From files of --what=step of several tasks: memory of each model, Figure 7 (memory_over_tasks.png).
Only what the files hold is drawn; nothing is taken from the paper. Its Figures 1, 3 and 8, accuracy
beside memory and speed, are in `lra_tasks.report --format=html`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from lra_tasks.console import one_line_errors, parse_flags, set_up_logging, three_digits
from lra_tasks.plotting import SOFTMAX, color, label, new_figure, save

_OUT = flags.DEFINE_string('out', None, 'Directory for the figures; created if need be.')

_GIB = 2**10  # In MiB.


class Point(NamedTuple):
  """A measured case.

  Attributes:
    what: kind of measurement.
    task: of the config.
    series: model, and the program if it is XLA's where there are fused kernels.
    length: of the sequences.
    batch: examples in all.
    dtype: of the computation.
    values: median of each quantity.
    where: device and versions.
  """

  what: str
  task: str
  series: str
  length: int
  batch: int
  dtype: str
  values: Mapping[str, float]
  where: str


def load(paths: Iterable[str | os.PathLike[str]]) -> list[Point]:
  """Return the cases of files that the benchmark wrote; those that failed are left out.

  Raises:
    ValueError: for a file that is none of these.
  """
  points = []
  for path in paths:
    try:
      record = json.loads(Path(path).read_text(encoding='utf-8'))
      where, cases = record['machine']['description'], record['cases']
      fused = {case['model_type'] for case in cases if case.get('program') == 'fused'}
      for case in cases if record['what'] in ('op', 'step') else ():
        values = {quantity['name']: quantity['median'] for quantity in case['quantities']}
        by_xla = case.get('program') == 'xla' and case['model_type'] in fused
        series = case['model_type'] + ' (XLA)' * by_xla
        sizes = case['max_length'], case['batch_size'], case['dtype']
        if values:
          points.append(Point(record['what'], record['task'], series, *sizes, values, where))
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f'{path} is no file of lra_tasks.benchmark --out: {error!r}') from None
  _check(points)
  return points


def _check(points: Sequence[Point]) -> None:
  """Raise a ValueError if points cannot stand in one figure."""
  for name in ('dtype', 'where'):
    values = sorted({getattr(point, name) for point in points})
    if len(values) > 1:
      raise ValueError(f'figures compare what was measured alike, got {"; ".join(values)}')
  seen = set()
  for point in points:
    key = point[:5]
    if key in seen:
      raise ValueError(f'measured twice: {", ".join(map(str, key))}')
    seen.add(key)


def _by_series(points: Iterable[Point]) -> dict[str, list[Point]]:
  """Return the points of each model in the order of lengths; softmax attention comes last."""
  found: dict[str, list[Point]] = {}
  for point in sorted(points, key=lambda p: (p.series == SOFTMAX, p.series, p.length)):
    found.setdefault(point.series, []).append(point)
  return found


# Figures. Each function returns a figure, or None where the points do not make one.


def crossover(points: Sequence[Point]) -> Any:
  """Return attention's time per token over the length, forward and with gradients."""
  points = [point for point in points if point.what == 'op']
  if len({point.length for point in points}) < 2:
    return None
  names = ('forward', 'forward + backward')
  figure, axes = new_figure(len(names), sharey=True)
  for axis, name in zip(axes, names, strict=True):
    for series, line in _by_series(points).items():
      lengths = [p.length for p in line]
      times = [1e6 * p.values[name] / (p.batch * p.length) for p in line]
      axis.plot(lengths, times, **_style(series))
    axis.set(title=name, xlabel='length', yscale='log')
    _mark_lengths(axis, points)
  axes[0].set_ylabel('time per token, ns')
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right upper')
  return _signed(figure, points)


def memory_over_length(points: Sequence[Point]) -> Any:
  """Return the memory of a training step over the length: Figure 4."""
  points = [point for point in points if point.what == 'step']
  if len({point.length for point in points}) < 2:
    return None
  figure, (axis,) = new_figure(1)
  memory = lambda point: point.values['step, whole memory'] / _GIB
  groups = _by_series(points)
  for series in sorted(groups, key=lambda s: -memory(groups[s][-1])):  # As lines end.
    line = groups[series]
    axis.plot([p.length for p in line], list(map(memory, line)), **_style(series))
  axis.set(xlabel='length', ylabel='memory of a training step, GiB')
  axis.set_yscale('log', base=2)
  axis.set_title(points[0].task)
  _mark_lengths(axis, points)
  axis.yaxis.set_major_formatter('{x:g}')
  figure.legend(loc='outside right upper')
  return _signed(figure, points)


def memory_over_tasks(points: Sequence[Point]) -> Any:
  """Return the memory of a training step of each model on each task: Figure 7."""
  points = _longest(point for point in points if point.what == 'step')
  tasks = list(dict.fromkeys(point.task for point in points))
  if len(tasks) < 2:
    return None
  groups = _by_series(points)
  figure, (axis,) = new_figure(1)
  width = 0.8 / len(groups)
  for i, (series, line) in enumerate(groups.items()):
    places = [tasks.index(p.task) + (i - len(groups) / 2 + 0.5) * width for p in line]
    memory = [p.values['step, whole memory'] / _GIB for p in line]
    axis.bar(places, memory, width, label=label(series), color=color(series.partition(' ')[0]))
  axis.set_xticks(range(len(tasks)), tasks)
  axis.set_ylabel('memory of a training step, GiB')
  figure.legend(loc='outside right upper')
  return _signed(figure, points)


def _longest(points: Iterable[Point]) -> list[Point]:
  """Return, of each task, the cases with the longest sequences that all its models have."""
  points = list(points)
  kept = []
  for task in dict.fromkeys(point.task for point in points):
    own = [point for point in points if point.task == task]
    lengths = [{p.length for p in own if p.series == series} for series in {p.series for p in own}]
    longest = max(set.intersection(*lengths), default=None)
    kept += [point for point in own if point.length == longest]
  return kept


def speed_table(points: Sequence[Point]) -> str | None:
  """Return LRA's table as Markdown: steps a second and memory, relative to softmax attention."""
  points = [point for point in points if point.what == 'step']
  lengths = sorted({point.length for point in points})
  groups = _by_series(points)
  if len(lengths) < 2 or SOFTMAX not in groups:
    return None
  base = {p.length: p for p in groups[SOFTMAX]}
  header = ['model', *(f'{n:,}' for n in lengths), *(f'{n:,}' for n in lengths)]
  lines = [
    f'Training steps a second (left) and memory in GiB (right) by length; {points[0].where}.',
    'In brackets: relative to softmax attention.',
    '',
    f'| {" | ".join(header)} |',
    f'|{":---|" + "---:|" * (len(header) - 1)}',
  ]
  for series, line in groups.items():
    at = {p.length: p for p in line}
    speeds = [_relative(at.get(n), base.get(n), lambda p: 1e3 / p.values['step']) for n in lengths]
    memory = lambda p: p.values['step, whole memory'] / _GIB
    memories = [_relative(at.get(n), base.get(n), memory) for n in lengths]
    lines.append(f'| {" | ".join([label(series), *speeds, *memories])} |')
  return '\n'.join(lines) + '\n'


def _relative(point: Point | None, base: Point | None, value: Any) -> str:
  if point is None:
    return '–'
  text = three_digits(value(point))
  return text if base is None else f'{text} ({value(point) / value(base):.2f})'


# How figures look.


def _style(series: str) -> dict[str, Any]:
  """Return the same look for the same model in all figures."""
  model, _, program = series.partition(' ')
  line = '--' if program else '-'
  return {'label': label(series), 'color': color(model), 'linestyle': line, 'marker': '.'}


def _mark_lengths(axis: Any, points: Sequence[Point]) -> None:
  lengths = sorted({point.length for point in points})
  axis.set_xscale('log', base=2)
  axis.set_xticks(lengths, [_short(length) for length in lengths])
  axis.grid(alpha=0.3)


def _short(length: int) -> str:
  """Return for example '4K' for 4,096; a length that is no multiple of 1,024 as it is."""
  return f'{length // 1024}K' if length % 1024 == 0 else f'{length:,}'


def _signed(figure: Any, points: Sequence[Point]) -> Any:
  """Return the figure with the device and the versions below it."""
  figure.supxlabel('; '.join(dict.fromkeys(point.where for point in points)), fontsize=7)
  return figure


def draw(points: Sequence[Point], out: str) -> list[Path]:
  """Write every figure and table that the points make; return their files.

  Raises:
    ValueError: if they make none.
    ImportError: without matplotlib.
  """
  figures, tables = {'memory_over_tasks': memory_over_tasks(points)}, {}
  for task in dict.fromkeys(point.task for point in points):
    own = [point for point in points if point.task == task]
    figures |= {
      f'crossover_{task}': crossover(own),
      f'memory_over_length_{task}': memory_over_length(own),
    }
    tables[f'speed_{task}'] = speed_table(own)
  figures = {name: figure for name, figure in figures.items() if figure is not None}
  tables = {name: table for name, table in tables.items() if table is not None}
  if not figures and not tables:
    raise ValueError('nothing to draw: a figure needs two lengths or two tasks of one kind')
  directory = Path(out)
  directory.mkdir(parents=True, exist_ok=True)
  written = []
  for name, figure in figures.items():
    written.append(directory / f'{name}.png')
    save(figure, written[-1])
  for name, table in tables.items():
    written.append(directory / f'{name}.md')
    written[-1].write_text(table, encoding='utf-8')
  return written


@one_line_errors
def main(argv: Sequence[str]) -> None:
  """Draw the files `argv[1:]`."""
  set_up_logging()
  if len(argv) < 2 or _OUT.value is None:
    raise ValueError('name --out and at least one file of the benchmark; --help tells more')
  for path in draw(load(argv[1:]), _OUT.value):
    print(path)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
