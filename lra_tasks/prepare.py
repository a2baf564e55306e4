"""Prepare the benchmark data of a task ahead of time; training then finds it on disk.

  python -m lra_tasks.prepare --task=listops

Or, for the data of a config that says more of it than which task it is for:

  python -m lra_tasks.prepare --config=configs/text.py:gmm_prf --config.data.seed=1

Prints where the data lies. Data that is already prepared is left as it is. Beside the data,
manifest.json holds the number of examples and the SHA-256 of the files of each split, and how the
data was split.
"""

from __future__ import annotations

import gc
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from lra_tasks import configuration, tasks
from lra_tasks.console import one_line_errors, set_up_logging
from lra_tasks.data import datasets
from lra_tasks.tasks import TASKS


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  tasks.define_data_flags(flag_values)
  config_flags.DEFINE_config_file(
    'config', None, 'configs/TASK.py:MODEL[,PRESET], in place of --task.', lock_config=True,
    flag_values=flag_values,
  )  # fmt: skip


def describe(builder: datasets.Builder) -> str:
  """Return lines that say where a prepared data set lies, what it holds and what it takes."""
  path = pathlib.Path(builder.data_dir)
  size = sum(file.stat().st_size for file in path.iterdir())
  lines = [
    f'  {name:<10} {split.num_examples:>9,} examples' for name, split in builder.info.splits.items()
  ]
  return '\n'.join([str(path), *lines, f'  {"size":<10} {size / 1e6:>9,.1f} MB'])


def _open(flag_values: flags.FlagValues) -> datasets.Builder:
  if flag_values.config is None and not flag_values.task:
    raise ValueError(f'--task is required, one of: {", ".join(TASKS)}; --help tells more')
  fields = {'task': flag_values.task, 'data': {}}
  if flag_values.config is not None:
    fields = configuration.resolve(flag_values.config, flag_values.task)
  return configuration.open_data(
    fields,
    **tasks.read_data_flags(flag_values),
  )


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Prepare what the flags name; return the exit code: 0, 1 after an error, 130 if interrupted."""
  set_up_logging()
  if len(argv) > 1:
    raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
  try:
    with datasets.interruptible():
      builder = _open(flag_values)
      datasets.prepare(builder)
  except KeyboardInterrupt:
    print('interrupted: nothing was prepared', file=sys.stderr)
    return 130
  print(describe(builder))
  return 0


def run() -> None:
  """Run the command."""
  define_flags()
  # JAX watches garbage collection, where interrupts are lost: keep it short.
  gc.freeze()
  app.run(main, flags_parser=configuration.parse_flags)


if __name__ == '__main__':
  run()
