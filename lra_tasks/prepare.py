"""Prepare the benchmark data of a task ahead of time; training then finds it on disk.

  python -m lra_tasks.prepare --task=listops

Or, for the data of a config that says more of it than which task it is for:

  python -m lra_tasks.prepare --config=configs/text.py:gmm_prf --config.data.seed=1

Prints where the data lies and how many examples its splits have; with --config, how many of them
that config trains, validates and tests on, and of which splits those are. Data that is already
prepared is left as it is. Beside the data, manifest.json holds the number of examples and the
SHA-256 of the files of each split, and how the data was split.
"""

from __future__ import annotations

import gc
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from lra_tasks import command_line, configuration, data_flags
from lra_tasks.console import one_line_errors, set_up_logging
from lra_tasks.data import datasets
from lra_tasks.signals import code_of_interrupt
from lra_tasks.tasks import TASKS


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  data_flags.define(flag_values)
  config_flags.DEFINE_config_file(
    'config', None, 'configs/TASK.py:MODEL[,PRESET], in place of --task.', lock_config=True,
    flag_values=flag_values,
  )  # fmt: skip


def describe(builder: datasets.Builder, fields: Mapping[str, Any] | None = None) -> str:
  """Return lines that say where a prepared data set lies, what it holds and what it takes.

  Args:
    builder: of the data set.
    fields: a resolved config: what it reads is told in place of the splits on disk.
  """
  path = pathlib.Path(builder.data_dir)
  size = sum(file.stat().st_size for file in path.iterdir())
  lines = [
    f'  {name:<10} {split.num_examples:>9,} examples' for name, split in builder.info.splits.items()
  ]
  if fields is not None:
    lines = ['  this config', *(_describe_use(builder, fields, split) for split in _USES)]
  return '\n'.join([str(path), *lines, f'  {"size":<10} {size / 1e6:>9,.1f} MB'])


_USES = {'train': 'trains on', 'validation': 'validates on', 'test': 'tests on'}


def _describe_use(builder: datasets.Builder, fields: Mapping[str, Any], split: str) -> str:
  """Return how many examples a config has for a split, and what they are stored as."""
  stored = builder.reading.get(split, split)
  count = builder.info.splits[stored].num_examples
  if split == 'validation' and fields['num_eval_steps'] >= 0:  # As `pipeline.Evaluation` has it.
    first = fields['num_eval_steps'] * fields['batch_size']
    count, stored = min(count, first), f'the first of {stored}' if first < count else stored
  return f'    {_USES[split]:<12} {count:>9,} examples: {stored}'


def _open(flag_values: flags.FlagValues) -> tuple[datasets.Builder, dict[str, Any] | None]:
  """Return the builder of the data, and the resolved config if one was given."""
  if flag_values.config is None and not flag_values.task:
    raise ValueError(f'--task is required, one of: {", ".join(TASKS)}; --help tells more')
  fields = None
  if flag_values.config is not None:
    fields = configuration.resolve(flag_values.config, flag_values.task)
  named = fields or {'task': flag_values.task, 'data': {}}
  return configuration.open_data(named, **data_flags.read(flag_values)), fields


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Prepare what the flags name; return 0, 1 after an error, 130 or 143 if stopped."""
  set_up_logging()
  if len(argv) > 1:
    raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
  try:
    with datasets.interruptible():
      builder, fields = _open(flag_values)
      datasets.prepare(builder)
  except KeyboardInterrupt as error:
    print('interrupted: nothing was prepared', file=sys.stderr)
    return code_of_interrupt(error)
  print(describe(builder, fields))
  return 0


def run() -> None:
  """Run the command."""
  define_flags()
  # JAX watches garbage collection, where interrupts are lost: keep it short.
  gc.freeze()
  app.run(main, flags_parser=command_line.parse_flags)


if __name__ == '__main__':
  run()
