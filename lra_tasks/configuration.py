"""Configs: LRA's field names, their defaults, and the way from a config to a resolved run.

A config file is `configs/TASK.py`, named on the command line as `configs/TASK.py:MODEL[,PRESET]`.
Original LRA config files are accepted as they are: fields that they lack take LRA's defaults,
fields that LRA itself ignores are ignored, any other unknown field is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from kl_flax.errors import unknown_name
from kl_flax.models import get_row
from kl_flax.tokenizers import Tokenizer
from lra_tasks import field_checks, lra_files
from lra_tasks.data import pipeline
from lra_tasks.data.datasets import Builder
from lra_tasks.experiments import LATER_FIELDS, REPETITION
from lra_tasks.tasks import get_task

# LRA's names; where its files leave one out, its code takes these values.
DEFAULTS: dict[str, Any] = {
  'task': '',
  'preset': '',
  'model_type': 'transformer',
  # Training.
  'batch_size': 32,
  'num_train_steps': 5000,
  'eval_frequency': 500,
  'num_eval_steps': -1,
  'learning_rate': 0.05,
  'factors': 'constant * linear_warmup * rsqrt_decay',
  'warmup': 1000,
  'steps_per_cycle': 100_000,
  'decay_factor': 0.5,
  'steps_per_decay': 20_000,
  'weight_decay': 0.1,
  'grad_clip_norm': 0.0,
  'random_seed': 0,
  'trial': 0,
  'save_checkpoints': True,
  'restore_checkpoints': True,
  'checkpoint_freq': 10_000,
  # Model.
  'max_length': 2000,
  'emb_dim': 512,
  'num_heads': 8,
  'num_layers': 6,
  'qkv_dim': 512,
  'mlp_dim': 2048,
  'pooling_mode': 'CLS',
  'dropout_rate': 0.1,
  'attention_dropout_rate': 0.1,
  'learn_pos_emb': False,
  'tied_weights': False,
  # Ours.
  **LATER_FIELDS,
  'dtype': 'auto',
  'resample_every': 100,
  # Draws of the frequencies in the evaluation that ends a run; `validation_samples` are those of
  # the evaluations on the way, which choose the checkpoint.
  'eval_samples': 1,
  'keep_accuracies': (),
}
ENCODER_FIELDS = (
  'max_length', 'emb_dim', 'num_heads', 'num_layers', 'qkv_dim', 'mlp_dim', 'dropout_rate',
  'learn_pos_emb', 'tied_weights',
)  # fmt: skip
# Read by none of LRA's code paths.
IGNORED = {
  'max_target_length', 'max_eval_target_length', 'sampling_temperature', 'sampling_top_k',
  'max_predict_token_length', 'prompt', 'use_bfloat16',
}  # fmt: skip
# Options of the mechanism that are fields of the run.
_RUN_OPTIONS = ('attention_dropout_rate',)
# Nested dictionaries; `model` and `model_kwargs` are LRA's.
NESTED = ('attention', 'data', 'model', 'model_kwargs')


def new_config(
  task: str,
  model_type: str,
  preset: str,
  *,
  attention: Mapping[str, Any] | None = None,
  data: Mapping[str, Any] | None = None,
  **fields: Any,
) -> ml_collections.ConfigDict:
  """Return a config with every field, the model's options and the task's data options.

  Args:
    task: a task of the registry.
    model_type: a model of the registry.
    preset: a label that ends up in results.json; with a star if fields are changed afterwards.
    attention: options of the mechanism that differ from its defaults; `num_frequencies` is left out
      where a model has none, so that one number serves all.
    data: options of the data that differ from the benchmark's.
    **fields: values that differ from the defaults.

  Raises:
    ValueError: for an option that the model does not have.
  """
  own, attention = own_options(model_type), dict(attention or {})
  if 'num_frequencies' not in own:
    attention.pop('num_frequencies', None)
  for name in attention.keys() - own.keys():
    raise ValueError(unknown_name(f'attention option of {model_type}', name, own))
  config = ml_collections.ConfigDict(DEFAULTS | fields)
  config.task, config.model_type, config.preset = task, model_type, preset
  # Of a bare None, the command line does not know the type.
  for name, kind in (('interaction', str), ('hidden_dim', int)):
    if config[name] is None:
      config[name] = ml_collections.config_dict.placeholder(kind)
  config.attention = own | attention
  config.data = data_defaults(task) | dict(data or {})
  config.preset_id = _preset_id(resolve(config))
  return config


def resolve(
  config: ml_collections.ConfigDict, task: str | None = None, changed: Iterable[str] = ()
) -> dict[str, Any]:
  """Return the plain, complete dictionary that a run is defined by.

  Args:
    config: ours or LRA's.
    task: names the task where the config does not.
    changed: fields that the command line has changed; of our files, not of LRA's, a digest in the
      config tells as much.

  Raises:
    ValueError: for unknown or contradictory fields and impossible values.
  """
  given = {k: v for k, v in config.to_dict().items() if k not in IGNORED}
  preset_id = given.pop('preset_id', None)
  task = _agree('task', given.get('task') or None, task or None)
  if task is None:
    raise ValueError('the config names no task: pass --task=listops (or another task)')
  get_task(task)
  lra_file = 'preset' not in given
  given = _under_our_names(given, lra_file)
  nested = ('model_kwargs', 'attention', 'data')
  model_kwargs, attention, data = (given.pop(name, {}) for name in nested)
  for name in given:
    if name not in DEFAULTS:
      raise ValueError(unknown_name('config field', name, [*DEFAULTS, *NESTED]))
  # LRA's own files state the fields that differ from the task's base Transformer.
  base = dict(get_task(task).base_model) if lra_file else {}
  fields = DEFAULTS | base | given | {'task': task}
  fields['preset'] = fields['preset'] or 'lra'
  fields['grad_clip_norm'] = fields['grad_clip_norm'] or 0.0
  if fields['num_eval_steps'] >= 99_999:
    fields['num_eval_steps'] = -1  # LRA writes all batches in both ways.
  field_checks.check_values(fields)
  if lra_file:
    attention = lra_files.read_options(fields['model_type'], model_kwargs) | attention
    data = dict(get_task(task).lra_data) | data
  elif model_kwargs:
    raise ValueError('model_kwargs is for LRA files; here options stand under attention')
  fields['attention'] = _attention_options(fields['model_type'], attention)
  kept = fields['keep_accuracies']
  if not isinstance(kept, (tuple, list)):
    raise ValueError(f'keep_accuracies must be a tuple of percentages, got {kept!r}')
  fields['keep_accuracies'] = tuple(kept)
  fields['data'] = dataclasses.asdict(data_options(task, data))
  of_lra = lra_file and set(changed).difference(REPETITION)
  if of_lra or preset_id not in (None, _preset_id(fields)):
    fields['preset'] += '*'  # Figures under a preset's name must be the preset's.
  return dict(sorted(fields.items()))


def _under_our_names(fields: Mapping[str, Any], lra_file: bool) -> dict[str, Any]:
  """Return the fields of a config under the names of `DEFAULTS`, one place for each of them.

  Raises:
    ValueError: for a pooling that is given twice, or a tokenizer that there is none of.
  """
  # As LRA does: the dictionary `model` overrides flat fields.
  given = {**fields, **fields.get('model', {})}
  given.pop('model', None)
  if lra_file and 'num_head' in given:  # In Big Bird's file for images; LRA's code refuses it.
    given['num_heads'] = given.pop('num_head')
  if 'classifier_pool' in given:
    pool = given.pop('classifier_pool')
    given['pooling_mode'] = _agree('pooling_mode', given.get('pooling_mode'), pool)
  if lra_file:  # Options of the mechanism, some of which stand beside `model_kwargs`.
    model_type = given.get('model_type', DEFAULTS['model_type'])
    beside = lra_files.FLAT_FIELDS.get(model_type, ())
    found = {name: given.pop(name) for name in beside if name in given}
    given['model_kwargs'] = found | given.get('model_kwargs', {})
  tokenizer = given.pop('tokenizer', 'char')
  if tokenizer != 'char':
    raise ValueError(f"tokenizer must be 'char', got {tokenizer!r}: texts are read byte by byte")
  return given


def model_arguments(
  fields: Mapping[str, Any], num_classes: int | None = None, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
  """Return the keyword arguments of `kl_flax.models.make_model` (JSON-able) for a resolved config.

  Args:
    fields: the config; its dtype must be resolved too.
    num_classes: of the data set, where it is not the task's.
    tokenizer: of the run, where it is not the task's.
  """
  arguments = _task_arguments(fields, num_classes, tokenizer) | {
    'model_type': fields['model_type'],
    'attention': _all_options(fields),
    'dtype': fields['dtype'],
    **{name: fields[name] for name in ENCODER_FIELDS},
  }
  arguments |= _pooling_arguments(fields['objective'], fields['pooling_mode'])
  if fields['objective'] == 'classify':
    for name in ('interaction', 'hidden_dim', 'activation'):
      if fields[name] != DEFAULTS[name]:
        arguments[name] = fields[name]
  if fields['data'].get('mask_zero'):
    arguments['mask_zero'] = True
  return arguments


def base_model_arguments(
  fields: Mapping[str, Any], num_classes: int | None = None, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
  """Return the same for LRA's base Transformer of the task, with the same objective.

  Args:
    fields: of the config, `task` at least.
    num_classes: see `model_arguments`.
    tokenizer: likewise.
  """
  fields = DEFAULTS | dict(fields)
  base = dict(get_task(fields['task']).base_model)
  pooling = _pooling_arguments(fields['objective'], base.pop('pooling_mode', 'CLS'))
  head = {name: base.pop(name) for name in ('hidden_dim', 'activation') if name in base}
  arguments = _task_arguments(fields, num_classes, tokenizer) | {'model_type': 'transformer'}
  return arguments | base | pooling | (head if fields['objective'] == 'classify' else {})


def _pooling_arguments(objective: str, pooling: str) -> dict[str, Any]:
  """Return how a classifier pools, or the same encoder's CLS position where nothing is pooled."""
  if objective == 'classify':
    return {'pooling': pooling}
  return {} if pooling == 'CLS' else {'use_cls': False}


def is_stochastic(fields: Mapping[str, Any]) -> bool:
  """Return whether the model of a resolved config draws anything in prediction."""
  return get_row(fields['model_type']).is_stochastic(_all_options(fields))


def judged_by(fields: Mapping[str, Any]) -> str:
  """Return the metric, a key of `lra_tasks.metrics.METRICS`, by which checkpoints are chosen."""
  return get_task(fields['task']).judged_by if fields['objective'] == 'classify' else 'accuracy'


def masking(
  fields: Mapping[str, Any], tokenizer: Tokenizer | None = None
) -> pipeline.Masking | None:
  """Return what masks the tokens of batches; None where labels are predicted."""
  if fields['objective'] == 'classify':
    return None
  tokenizer = tokenizer or get_task(fields['task']).tokenizer
  return pipeline.Masking(
    tokenizer.vocab_size,
    tokenizer.num_special,
    fields['max_length'],
    fields['mask_rate'],
    fields['random_seed'],
  )


def _task_arguments(
  fields: Mapping[str, Any], num_classes: int | None, tokenizer: Tokenizer | None
) -> dict[str, Any]:
  spec = get_task(fields['task'])
  tokenizer = tokenizer or spec.tokenizer
  arguments = {'vocab_size': tokenizer.vocab_size}
  if separator := getattr(tokenizer, 'separator', 0):
    arguments['separator'] = separator
  if masks := masking(fields, tokenizer):
    mask = 1  # One more id.
    predictions = {'num_predictions': masks.num_predictions}
    return arguments | predictions | {'vocab_size': tokenizer.vocab_size + mask}
  arguments = {'num_classes': num_classes or spec.num_classes} | arguments
  return arguments | ({} if spec.num_inputs == 1 else {'num_inputs': spec.num_inputs})


def data_options(task: str, values: Mapping[str, Any]) -> Any:
  """Return the task's data options, with the benchmark's values where none are given.

  Raises:
    ValueError: for an unknown option.
  """
  known = data_defaults(task)
  for name in values:
    if name not in known:
      raise ValueError(unknown_name(f'data option of {task}', name, known))
  return get_task(task).data_options(**values)


def open_data(
  fields: Mapping[str, Any], *, data_dir: str, source: str | None, task_name: str | None
) -> Builder:
  """Return the builder of the data that a config is about, perhaps not yet prepared.

  Args:
    fields: `task` and `data` of a resolved config.
    data_dir: where prepared data is, or will be, kept; '~' is the home directory.
    source: raw data to prepare from, if not in `data_dir`.
    task_name: name of the data set within the task; None for the task's own.

  Raises:
    ValueError: for an unknown task or data option, or damaged data.
    OSError: if the data cannot be found or fetched.
  """
  spec = get_task(fields['task'])
  whole = lambda path: path and os.path.abspath(os.path.expanduser(path))
  return spec.make_builder(
    data_options(spec.name, fields['data']),
    data_dir=whole(data_dir),
    source=whole(source),
    task_name=task_name or spec.task_name,
  )


def essential(part: Mapping[str, Any], besides: Iterable[str] = ()) -> dict[str, Any]:
  """Return what tells runs apart of a resolved config, or of the arguments of a model.

  Left out are fields and options of mechanisms that have the default of a later version which
  brought them: they tell no runs apart.

  Args:
    part: the fields or arguments.
    besides: further names that are left out.
  """
  later = {name for name, default in LATER_FIELDS.items() if part.get(name, default) == default}
  rest = {name: value for name, value in part.items() if name not in later.union(besides)}
  if 'attention' in rest:
    defaults = get_row(rest['model_type']).options
    given = rest['attention'].items()
    rest['attention'] = {k: v for k, v in given if k not in defaults or v != defaults[k]}
  return rest


def config_id(fields: Mapping[str, Any], besides: Iterable[str] = ()) -> str:
  """Return a digest that is equal for repetitions of one experiment: all but REPETITION.

  Args:
    fields: of a resolved config.
    besides: further fields in which they may differ.
  """
  rest = essential(fields, (*REPETITION, *besides))
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]


def _preset_id(fields: Mapping[str, Any]) -> str:
  """Return a digest that is equal for runs that one preset's name may stand for.

  A model that draws nothing is evaluated in one pass, whatever the fields of draws say. The digest
  that runs are stored with has `eval_samples` all the same, as it always had.
  """
  unread = () if is_stochastic(fields) else ('eval_samples', 'validation_samples')
  return config_id(fields, unread)


def difference(old: Any, new: Any, prefix: str = '') -> list[str]:
  """Return one line per value in which two resolved configs differ."""
  if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
    return [] if old == new else [f'{prefix}: {old!r} there, {new!r} now']
  lines = []
  for key in sorted({*old, *new}):
    name = f'{prefix}.{key}' if prefix else key
    lines += difference(old.get(key), new.get(key), name)
  return lines


def run_difference(
  old: Mapping[str, Any], new: Mapping[str, Any], besides: Iterable[str], prefix: str
) -> list[str]:
  """Return one line per value that tells two runs apart, defaults named as such values are.

  Args:
    old: fields of a resolved config, or arguments of a model, of one run.
    new: those of the other.
    besides: names in which they may differ.
    prefix: what the lines begin with.
  """
  there, here = (essential(part, besides) for part in (old, new))
  for mine, other in ((there, here), (here, there)):
    mine |= {k: v for k, v in LATER_FIELDS.items() if k in other.keys() - mine.keys()}
    if 'attention' in mine and 'attention' in other:
      absent = other['attention'].keys() - mine['attention'].keys()
      defaults = get_row(mine['model_type']).options
      mine['attention'] |= {k: v for k, v in defaults.items() if k in absent}
  return difference(there, here, prefix)


def own_options(model_type: str) -> dict[str, Any]:
  """Return the options of a mechanism that stand under `attention`, with their defaults."""
  return {k: v for k, v in get_row(model_type).options.items() if k not in _RUN_OPTIONS}


def _all_options(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Options of the mechanism, those that are fields of the run too."""
  options = get_row(fields['model_type']).options
  return fields['attention'] | {name: fields[name] for name in _RUN_OPTIONS if name in options}


def data_defaults(task: str) -> dict[str, Any]:
  """Return the data options of a task with their defaults."""
  return {f.name: f.default for f in dataclasses.fields(get_task(task).data_options)}


def _attention_options(model_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
  known = own_options(model_type)
  for name in given:
    if name not in known:
      raise ValueError(unknown_name(f'attention option of {model_type}', name, known))
  return known | dict(given)


def _agree(name: str, first: Any, second: Any) -> Any:
  if first is not None and second is not None and first != second:
    raise ValueError(f'{name} is given twice, as {first!r} and as {second!r}')
  return second if first is None else first
