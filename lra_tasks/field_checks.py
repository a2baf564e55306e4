"""Which values the fields of a config may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from kl_flax.errors import unknown_name
from kl_flax.heads import ACTIVATIONS, INTERACTIONS, POOLINGS
from kl_flax.models import get_row
from lra_tasks import optimizer
from lra_tasks.tasks import get_task

# Predict labels, or tokens that are masked (pre-training, on the inputs of any task).
OBJECTIVES = ('classify', 'masked')

# Integers of at least 1.
_POSITIVE = (
  'batch_size', 'num_train_steps', 'eval_frequency', 'checkpoint_freq', 'max_length', 'emb_dim',
  'num_heads', 'num_layers', 'qkv_dim', 'mlp_dim', 'resample_every', 'eval_samples',
  'validation_samples', 'warmup', 'steps_per_cycle', 'steps_per_decay',
)  # fmt: skip
_TRUTH_VALUES = ('save_checkpoints', 'restore_checkpoints', 'learn_pos_emb', 'tied_weights')
# Ranges of finite numbers, and how a message tells them.
_ABOVE_0: tuple[Callable[[float], bool], str] = (lambda x: x > 0, 'be above 0')
_FROM_0: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, 'be at least 0')
_RATE: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < 1, 'lie in [0, 1)')
_SHARE: tuple[Callable[[float], bool], str] = (lambda x: 0 < x < 1, 'lie between 0 and 1')
_RANGES = {
  'learning_rate': _ABOVE_0, 'decay_factor': _ABOVE_0, 'weight_decay': _FROM_0,
  'grad_clip_norm': _FROM_0, 'dropout_rate': _RATE, 'attention_dropout_rate': _RATE,
  'adam_b2': _RATE, 'mask_rate': _SHARE,
}  # fmt: skip
_CHOICES: dict[str, Any] = {
  'objective': OBJECTIVES, 'activation': ACTIVATIONS, 'pooling_mode': POOLINGS,
}  # fmt: skip


def check_values(fields: Mapping[str, Any]) -> None:
  """Raise a ValueError that names the first field whose value is impossible, and the rule.

  Args:
    fields: all of them, by our names.
  """
  get_row(fields['model_type'])
  _check_numbers(fields)
  for name in _TRUTH_VALUES:
    if not isinstance(fields[name], bool):
      raise ValueError(f'{name} must be True or False, got {fields[name]!r}')
  optimizer.of_config(fields)  # It knows the factors.
  for name, known in _CHOICES.items():
    if fields[name] not in known:
      raise ValueError(unknown_name(name, str(fields[name]), known))
  if fields['dtype'] not in ('auto', 'float32', 'bfloat16'):
    raise ValueError(f"dtype must be 'auto', 'float32' or 'bfloat16', got {fields['dtype']!r}")
  if fields['pretrained']:
    raise ValueError(
      f'pretrained={fields["pretrained"]!r} is what --init_from notes down: name the run by that'
    )
  _check_with_task(fields)
  if fields['qkv_dim'] % fields['num_heads']:
    raise ValueError(
      f'qkv_dim={fields["qkv_dim"]} must be a multiple of num_heads={fields["num_heads"]}'
    )


def _check_numbers(fields: Mapping[str, Any]) -> None:
  for name in _POSITIVE:
    if not _is_integer(fields[name]) or fields[name] < 1:
      raise ValueError(f'{name} must be an integer of at least 1, got {fields[name]!r}')
  for name, (lies_within, rule) in _RANGES.items():
    if not _is_number(fields[name]):
      raise ValueError(f'{name} must be a finite number, got {fields[name]!r}')
    if not lies_within(fields[name]):
      raise ValueError(f'{name} must {rule}, got {fields[name]!r}')
  seed = fields['random_seed']
  if not _is_integer(seed) or not 0 <= seed < 2**32:
    raise ValueError(f'random_seed must be an integer in 0 .. 2**32 - 1, got {seed!r}')
  steps = fields['num_eval_steps']
  if not _is_integer(steps) or steps < -1 or steps == 0:
    raise ValueError(
      f'num_eval_steps must be an integer of at least 1, or -1 for all, got {steps!r}'
    )
  width = fields['hidden_dim']
  if width is not None and (not _is_integer(width) or width < 1):
    raise ValueError(f'hidden_dim must be an integer of at least 1, or None, got {width!r}')
  for percent in fields['keep_accuracies']:
    if not _is_number(percent) or not 0 < percent <= 100:
      raise ValueError(f'keep_accuracies are percentages above 0, up to 100; got {percent!r}')


def _check_with_task(fields: Mapping[str, Any]) -> None:
  """Raise a ValueError for what the task cannot have."""
  task, interaction = get_task(fields['task']), fields['interaction']
  if fields['objective'] == 'classify' and not task.num_classes:
    raise ValueError(f"{fields['task']} has no labels: set objective='masked'")
  if fields['objective'] == 'masked' and task.num_inputs != 1:
    raise ValueError("objective='masked' is for tasks of single inputs, not of pairs (retrieval)")
  if interaction is None:
    return
  if interaction not in INTERACTIONS:
    raise ValueError(unknown_name('interaction', str(interaction), INTERACTIONS))
  if task.num_inputs == 1:
    raise ValueError(f'interaction={interaction!r} is for tasks of pairs (retrieval)')


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
