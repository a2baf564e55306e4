"""Presets: what the files in `configs` are made of, and the way from 'MODEL[,PRESET]' to a config.

A file of `configs` holds the tables of one task. What several tasks share is here.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from kl_flax.errors import unknown_name
from kl_flax.models import MODELS, get_row
from lra_tasks import lra_files
from lra_tasks.configuration import new_config
from lra_tasks.tasks import get_task

PRESETS = ('paper', 'lra', 'tuned', 'tiny')
# Of the preset tiny, whatever the task; each adds its length.
TINY: dict[str, Any] = {
  'batch_size': 16,
  'num_train_steps': 40,
  'eval_frequency': 20,
  'checkpoint_freq': 10,
  'learning_rate': 0.02,
  'warmup': 10,
  'num_layers': 1,
  'emb_dim': 32,
  'num_heads': 2,
  'qkv_dim': 32,
  'mlp_dim': 64,
  'resample_every': 10,
}
TINY_FREQUENCIES = 16
# Models whose frequencies come in blocks of rotations, head size of them each.
_IN_BLOCKS = tuple(name for name in MODELS if name.startswith(('fastfood', 'structured')))
# Frequencies on short sequences (the paper's Table 8: 64 or 128), where 128 is not meant.
SHORT_FREQUENCIES = dict.fromkeys(_IN_BLOCKS, 64)
# In the preset paper, where the authors' code starts with a broad kernel and estimates 2κ: its
# constant feature, 1, is 2^(-1/2) beside features that estimate κ.
AUTHORS_GMM_RKS = {'gmm_rks': {'initial': 'authors', 'smoothing': 0.7071}}
# Of the preset tuned, where the default takes too many parameters for LRA's rule of 10 %.
_TUNED_OPTIONS: dict[str, dict[str, Any]] = {'longformer': {'global_projections': False}}
# ... by task, where there are some for every position: the most that the rule allows, or 1 where it
# allows none.
_TUNED_SIZES: dict[str, dict[str, dict[str, int]]] = {
  'linformer': {
    'retrieval': {'projected_length': 6},
    'pathfinder32': {'projected_length': 1},
    'pathfinder64': {'projected_length': 1},
    'pathfinder128': {'projected_length': 3},
    'pathfinder256': {'projected_length': 1},
    'sparse_sum': {'projected_length': 14},
  },
  'synthesizer': {
    'listops': {'rank': 6},
    'text': {'rank': 2},
    'retrieval': {'rank': 1},
    'image': {'rank': 1},
    'pathfinder32': {'rank': 1},
    'pathfinder64': {'rank': 1},
    'pathfinder128': {'rank': 1},
    'pathfinder256': {'rank': 1},
    'sparse_sum': {'rank': 1},
  },
}


def parse_argument(argument: str, presets: Iterable[str] = PRESETS) -> tuple[str, str]:
  """Return model and preset of a config argument 'MODEL[,PRESET]'.

  Without a preset: 'lra' for the models that LRA has files of, 'paper' for all others; where the
  task lacks it, the first that it has.

  Raises:
    ValueError: for an unknown model or preset, with the nearest known name.

  >>> parse_argument('gmm_prf'), parse_argument('transformer,tiny')
  (('gmm_prf', 'paper'), ('transformer', 'tiny'))
  """
  model, _, preset = argument.partition(',')
  get_row(model)  # Raises for one that does not exist.
  presets = tuple(presets)
  if not preset:
    wanted = 'lra' if model in lra_files.MODELS else 'paper'
    preset = wanted if wanted in presets else presets[0]
  if preset not in presets:
    raise ValueError(unknown_name('preset', preset, presets))
  return model, preset


def task_config(
  task: str,
  argument: str,
  presets: Mapping[str, Mapping[str, Any]],
  *,
  num_frequencies: Mapping[str, int],
  models: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
  data: Mapping[str, Mapping[str, Any]] | None = None,
  attention: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
  lra_performer: Mapping[str, Any] = types.MappingProxyType({'kernel': 'relu'}),
  lra_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> ml_collections.ConfigDict:
  """Return the config that 'MODEL[,PRESET]' names in the tables of a task's file.

  Args:
    task: a task of the registry.
    argument: 'MODEL[,PRESET]', see `parse_argument`.
    presets: preset -> fields that differ from the defaults.
    num_frequencies: model -> frequencies, in all presets but tiny; others have their default.
    models: preset -> model -> fields that differ from those of the preset.
    data: preset -> data options that differ from the benchmark's.
    attention: preset -> model -> options of its mechanism, which come before all others.
    lra_performer: options of the Performer in the preset lra. LRA's files leave the kernel out, and
      so take its code's.
    lra_kwargs: model -> options of its mechanism in LRA's file, by LRA's names.

  Raises:
    ValueError: for an unknown model or preset, with the nearest known name.
  """
  model, preset = parse_argument(argument, presets)
  fields = dict(presets[preset]) | (models or {}).get(preset, {}).get(model, {})
  options: dict[str, Any] = {}
  if preset == 'tiny':
    options['num_frequencies'] = TINY_FREQUENCIES
  elif model in num_frequencies:
    options['num_frequencies'] = num_frequencies[model]
  if preset == 'lra':
    of_file = lra_files.read_options(model, (lra_kwargs or {}).get(model, {}))
    options |= lra_performer if model == 'performer' else of_file
  if preset == 'tuned':
    options |= _TUNED_OPTIONS.get(model, {}) | _TUNED_SIZES.get(model, {}).get(task, {})
  options |= (attention or {}).get(preset, {}).get(model, {})
  return new_config(task, model, preset, attention=options, data=(data or {}).get(preset), **fields)


def pathfinder_presets(
  task: str,
  *,
  batch_size: int,
  num_epochs: int,
  dropout_rate: float,
  grad_clip_norm: float = 0.0,
  tiny: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
  """Return the presets of a Pathfinder task.

  Args:
    task: 'pathfinder32' or another resolution.
    batch_size, num_epochs, dropout_rate, grad_clip_norm: of LRA's config of the Transformer.
    tiny: fields of the preset tiny that the number of pixels calls for.
  """
  epoch = 160_000 // batch_size  # Steps; of the last, incomplete batch LRA makes none.
  base = get_task(task).base_model
  lra = {
    'batch_size': batch_size,
    'num_train_steps': num_epochs * epoch,
    'eval_frequency': epoch,
    'checkpoint_freq': epoch,
    'learning_rate': 1e-3,
    'factors': 'constant * linear_warmup * cosine_decay',
    'warmup': epoch,
    'steps_per_cycle': num_epochs * epoch,
    'weight_decay': 0.0,
    'grad_clip_norm': grad_clip_norm,
    'dropout_rate': dropout_rate,
    **base,
  }
  return {
    'lra': lra,
    # LRA's sizes, nothing dropped from attention; not yet selected on validation data.
    'tuned': lra | {'attention_dropout_rate': 0.0},
    'tiny': TINY | {'max_length': base['max_length'], 'pooling_mode': 'MEAN'} | dict(tiny or {}),
  }


def block_frequencies(task: str) -> dict[str, int]:
  """Return the head size of LRA's base Transformer for each model with blocks of rotations.

  More blocks than one would break LRA's rule on Pathfinder, whose heads are small.

  >>> block_frequencies('pathfinder32')['fastfood_prf']
  4
  """
  base = get_task(task).base_model
  return dict.fromkeys(_IN_BLOCKS, base['qkv_dim'] // base['num_heads'])
