"""Command lines with a --config: from their words to a config, and what is wrong in them."""

from __future__ import annotations

import os
import re
import runpy
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from kl_flax.errors import unknown_name
from kl_flax.models import MODELS
from lra_tasks import configuration
from lra_tasks.configuration import DEFAULTS, NESTED
from lra_tasks.console import with_help
from lra_tasks.tasks import TASKS

# What a wrong command line raises where it is parsed.
_WRONG = (flags.Error, AttributeError, ImportError, KeyError, TypeError, ValueError)


def load(
  config: str, changes: Mapping[str, Any] = types.MappingProxyType({})
) -> ml_collections.ConfigDict:
  """Return the config that '--config=FILE:ARGUMENT' names, changed as on a command line.

  Args:
    config: 'FILE:ARGUMENT' of one of our files.
    changes: values other than None, or their texts, by field; options have names such as
      'attention.num_frequencies'.

  Raises:
    ValueError: for an unknown model, preset or field, or a text that is no value of its field.
  """
  path, _, argument = config.partition(':')
  loaded = runpy.run_path(path)['get_config'](argument)
  words = [f'--config.{name}={value}' for name, value in changes.items()]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict('config', loaded, flag_values=values, sys_argv=['', *words])
    values(['', *words])
  except _WRONG as error:
    raise ValueError(
      find_unknown_field([f'--config={config}', *words]) or _reason(error)
    ) from error
  return values.config


def parse_flags(argv: list[str]) -> list[str]:
  """Parse a command line; a wrong flag, model, preset or field is one line, not a traceback."""
  problem = _missing_file(argv)
  if not problem:
    try:
      return flags.FLAGS(argv)
    except SyntaxError as error:
      problem = f'{error.filename}, line {error.lineno}: {error.msg}'
    except _WRONG as error:
      problem = find_unknown_field(argv) or _reason(error)
  print(f'error: {problem}', file=sys.stderr)
  sys.exit(1)


def _joined(argv: Iterable[str]) -> list[str]:
  """Return a command line with `--config FILE` as one word."""
  return re.sub(r'(?m)^--config\n', '--config=', '\n'.join(argv)).split('\n')


def _missing_file(argv: Iterable[str]) -> str | None:
  """Return a message about a --config of a command line whose file does not exist."""
  words = [word for word in _joined(argv) if word.startswith('--config=')]
  paths = [word.removeprefix('--config=') for word in words]
  for path in (path.partition(':')[0] for path in paths):
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or '.'):
      return f'--config: {path} does not exist, seen from {os.getcwd()}'
    if not os.path.exists(path):
      known = [other for other in os.listdir(folder or '.') if other.endswith('.py')]
      return unknown_name(f'file of {folder or "."}', name, known)
  return None


def _reason(error: Exception) -> str:
  """Return what went wrong, of messages that hold a whole traceback its last line."""
  lines = str(error.args[0] if error.args else error).strip().splitlines() or [repr(error)]
  reason = re.sub(r'^[\w.]*Error: ', '', lines[-1])
  name = reason.strip('\'"')
  if name in DEFAULTS or name in NESTED:  # LRA's files leave fields out.
    value = 'ml_collections.ConfigDict()' if name in NESTED else repr(DEFAULTS[name])
    return f'the config has no field {name}, add it to its file: config.{name} = {value}'
  return with_help(reason, error)


def find_unknown_field(argv: Iterable[str]) -> str | None:
  """Return a message about the first `--config.FIELD=...` of a command line that does not exist.

  >>> find_unknown_field(['--config=configs/listops.py:gmm_prf', '--config.batchsize=1'])[:68]
  "unknown config field 'batchsize' (did you mean 'batch_size'?); known"
  """
  argv = _joined(argv)
  files = [a for a in argv if a.startswith('--config=')]
  match = re.search(r'(\w+)\.py(?::(\w+))?', files[0]) if files else None
  task, model = match.groups() if match else (None, None)
  for argument in argv:
    if not argument.startswith('--config.'):
      continue
    name, _, option = argument.partition('=')[0].removeprefix('--config.').partition('.')
    if name not in DEFAULTS and name not in NESTED:
      return unknown_name('config field', name, [*DEFAULTS, *NESTED])
    if option and name in DEFAULTS:
      return f'config field {name!r} is one value: there is no {name}.{option}'
    kind, known = _known_options(name, task, model)
    if option and known is not None and option not in known:
      return unknown_name(kind, option, known)
  return None


def _known_options(name: str, task: str | None, model: str | None) -> tuple[str, list[str] | None]:
  """Return a description and the names of the options under a field; None where unknown."""
  if name == 'attention' and model in MODELS:
    return f'attention option of {model}', list(configuration.own_options(model))
  if name == 'data' and task in TASKS:
    return f'data option of {task}', list(configuration.data_defaults(task))
  if name == 'data':  # A file that is not named after its task.
    every = {option for task in TASKS for option in configuration.data_defaults(task)}
    return 'data option', sorted(every)
  return '', None
