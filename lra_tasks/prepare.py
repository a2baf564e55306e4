"""Prepare the benchmark data of a task ahead of time; training then finds it on disk.

  python -m lra_tasks.prepare --task=listops

Prints where the data lies. Data that is already prepared is left as it is. Beside the data,
manifest.json holds the number of examples and the SHA-256 of the files of each split, and how the
data was split.
"""

from __future__ import annotations

import gc
import pathlib
import signal
import sys
from collections.abc import Sequence

from absl import app, flags

from lra_tasks import datasets
from lra_tasks.console import set_up_logging
from lra_tasks.tasks import TASKS, get_task


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda name, default, text: flags.DEFINE_string(
    name, default, text, flag_values=flag_values
  )
  define('task', None, f'The task: {", ".join(TASKS)}.')
  define('data_dir', '~/.cache/kl_flax/data', 'Where prepared data sets are kept.')
  define('source', None, 'Directory or archive of the raw data, if not in data_dir.')
  define('task_name', None, "LRA's name of the data set within the task.")


def describe(builder: datasets.Builder) -> str:
  """Return lines that say where a prepared data set lies, what it holds and what it takes."""
  path = pathlib.Path(builder.data_dir)
  size = sum(file.stat().st_size for file in path.iterdir())
  lines = [
    f'  {name:<10} {split.num_examples:>9,} examples' for name, split in builder.info.splits.items()
  ]
  return '\n'.join([str(path), *lines, f'  {"size":<10} {size / 1e6:>9,.1f} MB'])


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Prepare what the flags name; return the exit code: 0, 1 after an error, 130 if interrupted."""
  set_up_logging()
  try:
    if len(argv) > 1:
      raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
    if not flag_values.task:
      raise ValueError(f'--task is required, one of: {", ".join(TASKS)}; --help tells more')
    spec = get_task(flag_values.task)
    builder = spec.make_builder(
      spec.data_options(),
      data_dir=flag_values.data_dir,
      source=flag_values.source,
      task_name=flag_values.task_name or spec.task_name,
    )
    datasets.prepare(builder)
    print(describe(builder))
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('interrupted: nothing was prepared', file=sys.stderr)
    return 130
  return 0


def run() -> None:
  """Run the command."""
  define_flags()
  # Unwind, so that nothing half-prepared stays; also where a shell's background job ignores Ctrl-C.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
  # JAX watches garbage collection, where interrupts are lost: keep it short.
  gc.freeze()
  app.run(main)


if __name__ == '__main__':
  run()
