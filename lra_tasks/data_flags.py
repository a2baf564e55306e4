"""The flags that say which data a command is about."""

from __future__ import annotations

from absl import flags

from lra_tasks.tasks import TASKS

# Flags that are defined here belong to the command that asks for them: its --help shows them.
flags.disclaim_key_flags()

# Where prepared data sets are kept by default.
DATA_DIR = '~/.cache/kl_flax/data'


def define(flag_values: flags.FlagValues, *, of_run: bool = False) -> None:
  """Define the flags that say which data a command is about.

  Args:
    flag_values: where to define them.
    of_run: whether it is that of a run, whose config.json names the task.
  """
  string = lambda name, default, text: flags.DEFINE_string(
    name, default, text, flag_values=flag_values
  )
  if not of_run:
    string('task', None, f'The task, where no config names it: {", ".join(TASKS)}.')
  string('data_dir', DATA_DIR, 'Where prepared data sets are kept (or the raw ones lie).')
  string('source', None, 'Directory or archive of the raw data, if not in data_dir.')
  string('task_name', None, 'Data set within the task: yelp_reviews (text), wikitext-2 and others.')


def read(flag_values: flags.FlagValues) -> dict[str, str | None]:
  """Return what the flags of `define` say beside the task, as keyword arguments."""
  return {name: flag_values[name].value for name in ('data_dir', 'source', 'task_name')}
