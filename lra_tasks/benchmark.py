"""Measure speed and memory on this machine.

  python -m lra_tasks.benchmark --what=op --config=configs/text.py:gmm_prf,paper \\
      --models=gmm_prf,transformer --lengths=1024,4096,16384
  python -m lra_tasks.benchmark --what=step --config=... --models=... [--lengths=...]
  python -m lra_tasks.benchmark --what=inference --config=... --models=... --batch_sizes=1,256
  python -m lra_tasks.benchmark --what=input --config=configs/text.py:gmm_prf

op: attention alone, forward and with all gradients. step: whole training steps over all devices.
inference: calls of Predictor.predict. input: what the input pipeline delivers by itself.

Times are medians of several repetitions, each of many calls in a row. Beside them stands the time
of softmax attention in the same run, if `transformer` of the same sizes is among the models. For op
the time is compared with a floor: to read inputs and write results once at the bandwidth of copies
on this machine. For step it is compared with the time that the program's memory traffic, as XLA
counts it, takes at that bandwidth (or its operations at the rate of matrix products). --out writes
everything as JSON, which `lra_tasks.speed_plots` draws, and does so after every case.
"""

# A kind of measurement is a function from a `Setting` to `Measurements`, and a row of `KINDS`.

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from kl_flax.models import get_row
from lra_tasks import command_line, configuration, data_flags, parallel
from lra_tasks.console import (
  define_integers,
  one_line_errors,
  set_up_logging,
  table_lines,
  three_digits,
)
from lra_tasks.files import write_json
from lra_tasks.plotting import SOFTMAX
from lra_tasks.speed.cases import (
  Case,
  Measurements,
  Setting,
  measure_inference,
  measure_op,
  measure_step,
)
from lra_tasks.speed.input import measure_input
from lra_tasks.speed.timing import Machine, Quantity, describe_machine, measure_machine
from lra_tasks.training import compilation


class Column(NamedTuple):
  """A column of a table of cases.

  Attributes:
    header: its title, with the unit.
    value: (case, the case of softmax attention beside it or None) -> text.
  """

  header: str
  value: Callable[[Case, Case | None], str]


class Kind(NamedTuple):
  """A kind of measurement.

  Attributes:
    measure: returns what was found; without `columns`, of the setting alone.
    columns: of the table; none for a single case, whose quantities are rows.
  """

  measure: Callable[..., Measurements]
  columns: tuple[Column, ...] = ()


def _label(name: str, header: str) -> Column:
  return Column(header, lambda case, _: _text(case.labels.get(name)))


def _median(name: str, header: str, scale: float = 1.0) -> Column:
  return Column(header, lambda case, _: _number(case.median(name), scale))


def _time(name: str, header: str, floor: str) -> tuple[Column, ...]:
  """Return the columns of a time: median, spread, against softmax attention, against its floor."""

  def spread(case, _):
    quantity = next((q for q in case.quantities if q.name == name), None)
    if quantity is None:
      return ''
    half = (max(quantity.values) - min(quantity.values)) / 2
    return f'{100 * half / quantity.median:.0f} %'

  ratio = lambda a, b: '' if a is None or b is None else f'{a / b:.2f}'
  return (
    _median(name, f'{header} ms'),
    Column('±', spread),
    Column('× softmax', lambda c, s: ratio(s.median(name) if s else None, c.median(name))),
    Column(floor, lambda c, _: ratio(c.median(name), c.median(f'{name}, floor'))),
  )


_CASE = (
  _label('model_type', 'model'),
  _label('program', 'program'),
  _label('num_frequencies', 'M'),
  _label('max_length', 'length'),
  _label('batch_size', 'batch'),
  _label('dtype', 'dtype'),
)
KINDS = {
  'op': Kind(
    measure_op,
    (
      *_CASE,
      *_time('forward', 'forward', '× floor'),
      *_time('forward + backward', 'with gradients', '× floor'),
      _median('forward, temporary memory', 'MiB'),
      _median('forward + backward, temporary memory', 'MiB'),
    ),
  ),
  'step': Kind(
    measure_step,
    (
      *_CASE,
      *_time('step', 'step', '× traffic'),
      _median('step, kernels', 'kernels ms'),
      _median('examples', 'examples/s'),
      _median('step, temporary memory', 'temporary GiB', 1 / 1024),
      _median('step, whole memory', 'all GiB', 1 / 1024),
      _median('step, memory traffic', 'traffic GB'),
      _median('step, operations', 'TFLOP'),
      _median('step, compilation', 'compiled in s'),
    ),
  ),
  'inference': Kind(
    measure_inference,
    (
      *_CASE,
      _median('documents', 'documents/s'),
      _median('latency, p50', 'p50 ms'),
      _median('latency, p99', 'p99 ms'),
      _median('first call', 'first call s'),
    ),
  ),
  'input': Kind(measure_input),
}


# The table.


def render(title: str, notes: Sequence[str], quantities: Sequence[Quantity]) -> str:
  """Return a table: median and spread of each quantity."""
  rows = [('', 'median', 'min', 'max', '')]
  for quantity in quantities:
    values = quantity.to_dict()
    numbers = [_number(values[name]) for name in ('median', 'min', 'max')]
    rows.append((quantity.name, *numbers, quantity.unit))
  return '\n'.join([title, *notes, '', *table_lines(rows, left=(0, 4))])


def render_cases(
  title: str, notes: Sequence[str], cases: Sequence[Case], columns: Sequence[Column]
) -> str:
  """Return a table with a row for each case; columns without any value are left out."""
  rows = [
    [column.value(case, _softmax_beside(case, cases)) for column in columns] for case in cases
  ]
  kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
  body = [[*(row[i] for i in kept), case.note] for row, case in zip(rows, cases, strict=True)]
  header = [*(columns[i].header for i in kept), '']
  return '\n'.join([title, *notes, '', *table_lines([header, *body], left=(0, len(kept)))])


def _softmax_beside(case: Case, cases: Sequence[Case]) -> Case | None:
  """Return the case of softmax attention on the same data."""
  same = ('max_length', 'batch_size', 'dtype', 'sizes')
  for other in cases:
    like = all(other.labels.get(name) == case.labels.get(name) for name in same)
    if like and other.labels['model_type'] == SOFTMAX and other.quantities:
      return other
  return None


def _number(value: float | None, scale: float = 1.0) -> str:
  return '' if value is None else three_digits(scale * value)


def _text(value: Any) -> str:
  if value is None:
    return ''
  return f'{value:,}' if isinstance(value, int) else str(value)


def describe_floors(machine: Machine) -> str:
  """Return a line about the rates that floors are computed with."""
  return (
    f'copies at {machine.bandwidth / 1e9:,.0f} GB/s, '
    f'{machine.dtype} products at {machine.matrix_rate / 1e12:,.3g} TFLOP/s'
  )


# The command.


def configs(flag_values: flags.FlagValues) -> list[dict[str, Any]]:
  """Return the resolved config of every model and implementation that the flags name.

  Raises:
    ValueError: for unknown models or fields.
  """
  first = flag_values.config or ml_collections.ConfigDict()
  found = []
  for model in flag_values.models or [None]:
    config = first if model is None else _config_of(model, first, flag_values['config'])
    fields = configuration.resolve(config, flag_values.task)
    options = get_row(fields['model_type']).options
    given = {}
    if flag_values.num_frequencies is not None:
      given['num_frequencies'] = flag_values.num_frequencies
    for implementation in flag_values.implementations:
      given['implementation'] = implementation
      known = {name: value for name, value in given.items() if name in options}
      fields = fields | {'attention': fields['attention'] | known}
      if fields not in found:  # Other mechanisms have no implementations.
        found.append(fields)
  return found


def _config_of(model: str, first: ml_collections.ConfigDict, flag: Any) -> Any:
  """Return the config of another model: from the same file, with the same preset and changes."""
  name = config_flags.get_config_filename(flag) if flag.value is not None else ''
  path, _, argument = name.partition(':')
  if not argument:  # One of LRA's files, or none.
    return ml_collections.ConfigDict(first.to_dict() | {'model_type': model, 'model_kwargs': {}})
  preset = argument.partition(',')[2] or first.preset
  config = command_line.load(f'{path}:{",".join(filter(None, (model, preset)))}')
  with config.unlocked():
    for field, value in config_flags.get_override_values(flag).items():
      option = field.partition('attention.')[2]
      if not option or option in get_row(model).options:
        config.update_from_flattened_dict({field: value})
  return config


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda kind, *arguments, **options: kind(*arguments, **options, flag_values=flag_values)
  define(flags.DEFINE_enum, 'what', 'step', list(KINDS), 'What to measure.')
  config_flags.DEFINE_config_file(
    'config', None, 'configs/TASK.py:MODEL[,PRESET].', lock_config=True, flag_values=flag_values
  )
  data_flags.define(flag_values)
  define(flags.DEFINE_list, 'models', [], 'Models to compare; by default that of the config.')
  define(
    flags.DEFINE_list, 'implementations', ['auto'],
    'Of kernel attention: auto, xla, fused; each is measured.',
  )  # fmt: skip
  define(flags.DEFINE_integer, 'num_frequencies', None, 'M of all models that have frequencies.')
  define(define_integers, 'lengths', [], "Lengths; by default the config's.")
  define(define_integers, 'batch_sizes', [], "Batch sizes; by default the config's.")
  define(
    flags.DEFINE_integer, 'tokens', None,
    'op: positions of a batch; by default batch size times length of the config.',
  )  # fmt: skip
  define(flags.DEFINE_list, 'dtypes', [], 'bfloat16, float32; by default what training takes here.')
  define(flags.DEFINE_integer, 'repetitions', 5, 'Of each measurement.')
  define(flags.DEFINE_float, 'seconds', 0.5, 'That one repetition takes.')
  define(
    flags.DEFINE_string, 'out', None, 'JSON file to write, with the values of all repetitions.'
  )


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Measure what the flags say and print a table."""
  set_up_logging()
  compilation.choose_products()  # As in a training.
  if len(argv) > 1:
    raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
  _run(flag_values)


def _run(flag_values: flags.FlagValues) -> None:
  kind, out = KINDS[flag_values.what], flag_values.out
  if out and not os.access(os.path.dirname(os.path.abspath(out)), os.W_OK):
    raise ValueError(f'--out={out}: its directory does not exist, or cannot be written to')
  setting = Setting(
    configs(flag_values),
    lengths=flag_values.lengths,
    batch_sizes=flag_values.batch_sizes,
    tokens=flag_values.tokens,
    dtypes=flag_values.dtypes or [parallel.default_dtype()],
    **data_flags.read(flag_values),
    repetitions=flag_values.repetitions,
    seconds=flag_values.seconds,
  )
  task = setting.configs[0]['task']
  record = {'what': flag_values.what, 'task': task}

  def keep(found: Measurements, machine: Mapping[str, Any]) -> None:
    if out:
      cases = [_case_to_dict(case) for case in found.cases]
      configs = [dict(fields) for fields in setting.configs]
      write_json(
        out,
        record | {'subject': found.subject, 'machine': machine, 'configs': configs, 'cases': cases},
      )

  title = f'{task}: {flag_values.what}, {setting.repetitions} repetitions'
  if kind.columns:
    machine = measure_machine()
    keep_case = functools.partial(keep, machine=machine._asdict())
    found = kind.measure(dataclasses.replace(setting, keep=keep_case), machine)
    notes = [found.subject, machine.description, describe_floors(machine)]
    text = render_cases(title, notes, found.cases, kind.columns)
  else:
    found = kind.measure(setting)
    notes = [found.subject, describe_machine()]
    text = render(title, notes, found.cases[0].quantities)
    keep(found, {'description': describe_machine()})
  print(text)


def _case_to_dict(case: Case) -> Mapping[str, Any]:
  quantities = [quantity.to_dict() for quantity in case.quantities]
  return case.labels | {'quantities': quantities} | ({'note': case.note} if case.note else {})


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)


if __name__ == '__main__':
  run()
