"""The directory of a run (--model_dir): what it is about, and whether it may be used."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import kl_flax
from kl_flax.models import make_model
from kl_flax.parameters import count_parameters
from kl_flax.tokenizers import Tokenizer, tokenizer_from_dict
from kl_flax.wordpiece import WordPieceTokenizer
from lra_tasks import configuration, parallel, tasks
from lra_tasks.data import datasets
from lra_tasks.experiments import STORAGE
from lra_tasks.files import holder, lock, write_json
from lra_tasks.runs.finished import read_description
from lra_tasks.tasks import get_task

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint', 'grain', 'tensorflow-datasets',
)  # fmt: skip
# What must be the same for a run to be continued.
_IDENTITY = ('config', 'dataset', 'model')
# ... but for fields that do not touch the parameters.
_MAY_CHANGE = ('preset', 'eval_samples', *STORAGE)
# As `git describe --always --dirty` writes them.
_REVISION = r'[0-9a-f]{7,40}(-dirty)?'
# What may change while a run goes on.
_SESSION = ('git_revision', 'versions', 'device', 'processes')
# Two newest checkpoints, the best one, and the one being written; those of accuracies come on top.
_CHECKPOINTS_ON_DISK = 4


def describe(
  fields: Mapping[str, Any],
  model: Mapping[str, Any],
  builder: Any,
  tokenizer: Tokenizer,
  *,
  from_source: bool,
  task_name: str | None = None,
  init_from: str | None = None,
) -> dict[str, Any]:
  """Return the contents of config.json.

  Args:
    fields: the resolved config.
    model: arguments of `kl_flax.models.make_model`.
    builder: of the data set.
    tokenizer: of the run.
    from_source: whether the data was named by --source.
    task_name: of the data set, as it was named.
    init_from: directory of the run that this one starts from.
  """
  spec, parameters = get_task(fields['task']), count_parameters(make_model(**model))
  # Predicting tokens is another task than predicting labels, and has its own tables.
  masked = 'masked' if 'num_predictions' in model and spec.num_classes else ''
  base = configuration.base_model_arguments(fields, model.get('num_classes'), tokenizer)
  return {
    'config': dict(fields),
    'config_id': configuration.config_id(fields),
    'task': '/'.join(filter(None, (spec.name, builder.variant, masked))),
    'dataset': builder.info.full_name,
    'from_source': from_source,
    'task_name': task_name,
    'init_from': init_from,
    'num_texts': spec.num_texts,
    # Of those that the model tells apart.
    'class_names': list(builder.class_names) or None if 'num_classes' in model else None,
    'comparable': spec.is_benchmark(builder),
    'validation_is_test': builder.validation_is_test,
    'model': dict(model),
    'tokenizer': tokenizer.to_dict(),
    'parameters': parameters,
    'base_parameters': count_parameters(make_model(**base)),
    'device': parallel.describe_devices(),
    'processes': jax.process_count(),
    'git_revision': _git_revision(),
    'versions': _versions(),
  }


def stored_dtype(model_dir: str) -> str | None:
  """Return the dtype of the run that lies there, if one does."""
  description = read_description(model_dir, whole=True)
  return description and description['model'].get('dtype')


def stored_task_name(model_dir: str) -> str | None:
  """Return the name of the data set of the run that lies there, if it was given one."""
  description = read_description(model_dir, whole=True)
  return description and description.get('task_name')


def check_run(
  model_dir: str,
  fields: Mapping[str, Any],
  source: str | None,
  task_name: str | None = None,
  *,
  resume: bool,
  write: bool = True,
) -> None:
  """Refuse a directory that cannot hold this run, as far as the config tells: before data is read.

  Args:
    model_dir: the run's directory.
    fields: the resolved config.
    source: raw data, as it was named.
    task_name: of the data set, as it was named; None for that of the run that lies there.
    resume: whether a run that lies there may be continued.
    write: whether anything will be written there.

  Raises:
    ValueError: if it holds another run, or any run where `resume` is False; if the run that lies
      there was given a `source`, and now there is none.
    OSError: if it cannot be written.
  """
  existing = read_description(model_dir, whole=True)
  if existing is None:
    if write and parallel.is_primary():
      _check_could_be_written(model_dir)
    return
  _refuse(model_dir, stored_difference(existing, fields, task_name), resume)
  if existing.get('from_source') and source is None:
    raise ValueError(
      f'{model_dir} holds a run on {existing["dataset"]}, whose data was named by --source: '
      'give the same --source again, or another --model_dir'
    )


def read_split(
  model_dir: str,
  description: Mapping[str, Any],
  split: str,
  *,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
  way_out: str = '',
) -> Sequence[Any]:
  """Return the records of a split of the data that a run was made with, prepared if need be.

  Args:
    model_dir: the run's directory.
    description: contents of its config.json.
    split: 'train', 'validation' or 'test'.
    data_dir: where prepared data sets are kept.
    source: raw data to prepare from.
    task_name: name of the data set within the task; None for that of the run.
    way_out: what else can be done where the data is another, for the message.

  Raises:
    ValueError: if it is other data; then nothing was prepared.
    OSError: if the data cannot be prepared.
  """
  fields, dataset = description['config'], description['dataset']
  with datasets.interruptible():
    builder = configuration.open_data(
      fields,
      data_dir=data_dir,
      source=source,
      task_name=task_name or description.get('task_name'),
    )
    if builder.info.full_name != dataset:
      raise ValueError(
        f'{model_dir} was trained on {dataset}, here is {builder.info.full_name}: name its data by '
        f'--source, --task_name and --data_dir{way_out}'
      )
    datasets.prepare(builder)
  tokenizer = tokenizer_from_dict(description['tokenizer'], model_dir)
  spec = get_task(fields['task'])
  return tasks.read(spec, builder, split, tokenizer, fields['max_length'])


@contextlib.contextmanager
def open_run(
  model_dir: str,
  description: Mapping[str, Any],
  state: Any,
  tokenizer: Tokenizer | None = None,
  *,
  resume: bool,
  write: bool = True,
) -> Iterator[dict[str, Any]]:
  """Have the directory for this run, until the end of the block, and write config.json.

  The first process decides for all.

  Args:
    model_dir: created if it is missing.
    description: from `describe`.
    state: arrays or shapes of the train state, for its size.
    tokenizer: of the run; its vocabulary is written, if it has one.
    resume: whether a run that lies there may be continued.
    write: False where the run is only to be read.

  Yields:
    The contents of config.json; to the first process they tell what the run was made by before.

  Raises:
    ValueError: if it holds another run, or any run where `resume` is False, or one that is under
      way in another process.
    OSError: if it cannot be written, or the disk has no room for the checkpoints.
  """
  problem = None
  description = dict(description) | {'sessions': _sessions(None, description)}
  with contextlib.ExitStack() as stack:
    if parallel.is_primary():
      try:
        existing = read_description(model_dir, whole=True)
        if existing is not None:
          _refuse(model_dir, _difference(existing, description), resume)
        description['sessions'] = _sessions(existing, description)
        if write:
          kept = len(description['config'].get('keep_accuracies', ()))
          _check_writable(model_dir)
          stack.enter_context(_hold(model_dir))
          if description['config'].get('save_checkpoints', True):
            _check_room(model_dir, state, _CHECKPOINTS_ON_DISK + kept)
          if isinstance(tokenizer, WordPieceTokenizer):
            tokenizer.save(model_dir)
          write_json(os.path.join(model_dir, 'config.json'), description)
      except (ValueError, OSError) as error:
        problem = error
    if not parallel.all_agree(problem is None):
      raise problem or ValueError(f'--model_dir={model_dir} cannot be used; process 0 says why')
    yield description


def _hold(model_dir: str) -> contextlib.AbstractContextManager[None]:
  def refuse():
    raise ValueError(
      f'{model_dir}: another process is at work on this run, {holder(model_dir)}: '
      'wait for it, or stop it'
    )

  return lock(model_dir, when_taken=refuse)


def _sessions(
  existing: Mapping[str, Any] | None, description: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """Return what the run was made by: one entry, or more if it was continued by something else."""
  ours = {name: description[name] for name in _SESSION if name in description}
  if existing is None:
    return [ours]
  first = {name: existing[name] for name in _SESSION if name in existing}
  before = list(existing.get('sessions', [first]))
  return before if before[-1] == ours else [*before, ours]


def _refuse(model_dir: str, lines: list[str], resume: bool) -> None:
  """Raise a ValueError if the run that lies there differs, or may not be continued."""
  if not resume:
    raise ValueError(
      f'{model_dir} holds a run and restore_checkpoints is False: name another --model_dir'
    )
  if lines:
    raise ValueError(
      f'{model_dir} holds another run; name another --model_dir, or restore these settings:\n  '
      + '\n  '.join(lines)
    )


def _difference(existing: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
  there, here = map(_identity, (existing, description))
  lines = []
  for name in sorted(_IDENTITY):
    if name in ('config', 'model'):
      lines += configuration.run_difference(there[name], here[name], _MAY_CHANGE, name)
    else:
      lines += configuration.difference(there[name], here[name], name)
  return lines


def _identity(description: Mapping[str, Any]) -> dict[str, Any]:
  """Return what two runs must share to be one, as plain JSON."""
  return json.loads(json.dumps({name: description[name] for name in _IDENTITY}))


def stored_difference(
  description: Mapping[str, Any], fields: Mapping[str, Any], task_name: str | None
) -> list[str]:
  """Return a line for each setting in which a run's config.json is of another run.

  Args:
    description: contents of config.json.
    fields: a resolved config; where it leaves the dtype open, any is right.
    task_name: of the data set; None for that of the run.
  """
  stored = description['config']
  if fields['dtype'] == 'auto':
    fields = {**fields, 'dtype': stored.get('dtype')}
  fields = json.loads(json.dumps(fields))
  lines = configuration.run_difference(stored, fields, _MAY_CHANGE, 'config')
  if task_name:
    name = description.get('task_name') or get_task(stored['task']).task_name
    lines += configuration.difference(name, task_name, 'task_name')
  return lines


def _check_could_be_written(model_dir: str) -> None:
  """Raise an OSError if there is no room for a directory; none is made, for the data may lack."""
  nearest = os.path.abspath(model_dir)
  while not os.path.exists(nearest):
    nearest = os.path.dirname(nearest)
  try:
    with tempfile.TemporaryFile(dir=nearest):
      pass
  except OSError as error:
    raise _unwritable(model_dir, error) from error


def _unwritable(model_dir: str, error: OSError) -> OSError:
  return OSError(f'--model_dir={model_dir} cannot be written: {error.strerror}')


def _check_writable(model_dir: str) -> None:
  probe = os.path.join(model_dir, f'.probe-{jax.process_index()}')
  try:
    os.makedirs(model_dir, exist_ok=True)
    with open(probe, 'w') as file:
      file.write('probe')
    os.remove(probe)
  except OSError as error:
    raise _unwritable(model_dir, error) from error


def _check_room(model_dir: str, state: Any, checkpoints: int) -> None:
  needed = checkpoints * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  # Of a run that is continued, some are there, and older ones go as new ones come.
  steps = Path(model_dir).glob('checkpoints/[0-9]*')
  files = (path for step in steps if step.name.isdigit() for path in step.rglob('*'))
  there = sum(path.stat().st_size for path in files if path.is_file())
  free = shutil.disk_usage(model_dir).free
  if free < needed - there:
    raise OSError(
      f'--model_dir={model_dir} has {free / 2**20:.0f} MiB free; the checkpoints of this run need '
      f'{(needed - there) / 2**20:.0f} MiB: make room, or name a --model_dir elsewhere '
      '(without any, by --config.save_checkpoints=False, the last step is evaluated, not the best)'
    )


def _versions() -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), 'kl_flax': kl_flax.__version__, **versions}


def _git_revision() -> str | None:
  """Return the revision of the checkout that the package runs from.

  GIT_REVISION names it where the history is missing, or is not that of the code (in a container).

  Raises:
    ValueError: if GIT_REVISION names none.
  """
  if named := os.environ.get('GIT_REVISION'):
    if not re.fullmatch(_REVISION, named):
      raise ValueError(
        f'GIT_REVISION={named!r} names no revision: it must be 7 to 40 hexadecimal digits, as '
        '`git rev-parse HEAD` has them, with -dirty behind them if files were changed'
      )
    return named
  here, name = os.path.split(os.path.abspath(__file__))
  git = functools.partial(
    subprocess.run, capture_output=True, text=True, timeout=10, check=False, cwd=here
  )
  try:
    if git(['git', 'ls-files', '--error-unmatch', name]).returncode:
      return None  # Installed inside the checkout of something else.
    done = git(['git', 'describe', '--always', '--dirty', '--abbrev=12'])
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None
