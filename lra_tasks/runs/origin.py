"""What a run starts from: nothing, or the encoder of another run (`--init_from`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kl_flax import checkpoints
from kl_flax.models import get_row, make_model
from kl_flax.parameters import named_leaves, parameter_shapes
from kl_flax.tokenizers import Tokenizer, tokenizer_from_dict
from lra_tasks import configuration
from lra_tasks.runs.finished import Run, read_description, read_folder

# Arguments of a model that are not about its encoder's parameters.
_NOT_OF_ENCODERS = (
  'activation', 'dropout_rate', 'dtype', 'hidden_dim', 'interaction', 'mask_zero', 'num_classes',
  'num_inputs', 'num_predictions', 'separator',
)  # fmt: skip


class Origin:
  """Nothing: a run that starts with what its seed draws.

  Attributes:
    label: what tells apart runs that start from different ones; part of the config.
    model_dir: of the run that another one starts from.
    tokenizer: likewise; None leaves it to the task.
  """

  label: str = ''
  model_dir: str | None = None
  tokenizer: Tokenizer | None = None

  def check(self, arguments: Mapping[str, Any]) -> None:
    """Refuse a model whose encoder is another one."""

  def check_start(self) -> None:
    """Refuse to start, where that cannot be, before anything is compiled for it."""

  def start(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters that a run with these starts with."""
    return params


def find_origin(init_from: str | None, model_dir: str) -> Origin:
  """Return what a run starts from: what is named, else what the run that lies there started from.

  Raises:
    FileNotFoundError: see `NamedOrigin`.
    ValueError: likewise; if the config.json that lies there is damaged.
  """
  if init_from:
    return NamedOrigin(init_from)
  description = read_description(model_dir, whole=True)
  if description is None or not description['config'].get('pretrained'):
    return Origin()
  return StoredOrigin(model_dir, description)


class StoredOrigin(Origin):
  """What the run that lies there started from, as its config.json tells: enough to go on.

  Args:
    own_dir: of the run that lies there.
    description: contents of its config.json.

  Raises:
    FileNotFoundError: if its vocabulary is missing.
    ValueError: if its tokenizer is damaged.
  """

  def __init__(self, own_dir: str, description: Mapping[str, Any]) -> None:
    self.label, self.model_dir = description['config']['pretrained'], description.get('init_from')
    self.tokenizer = tokenizer_from_dict(description['tokenizer'], own_dir)
    self._own_dir = own_dir

  def check_start(self) -> None:
    """Refuse to: of the other run only the name is left.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      f'{self._own_dir} holds no checkpoint to go on from: give --init_from again (it was '
      f'{self.model_dir}), or delete the directory to start anew'
    )


class NamedOrigin(Origin):
  """A finished run whose encoder another one starts with, at its best step.

  Args:
    model_dir: the run's directory.

  Raises:
    FileNotFoundError: if it holds no run, one that is not finished, or one without its vocabulary.
    ValueError: if one of its files, the tokenizer's too, is damaged.
  """

  def __init__(self, model_dir: str) -> None:
    self.model_dir = os.path.abspath(model_dir)
    description = read_description(self.model_dir, whole=True)
    found = read_folder(Path(self.model_dir))
    if description is None:
      raise FileNotFoundError(f'--init_from={self.model_dir} holds no run: it has no config.json')
    if not isinstance(found, Run):  # Later, its best step might be another one.
      raise FileNotFoundError(
        f'--init_from={self.model_dir} holds a run that is not finished: let it run on'
      )
    self._description, self._results = description, found
    self.tokenizer = tokenizer_from_dict(description['tokenizer'], model_dir)

  @property
  def label(self) -> str:
    """Task, model, config, seed and step."""
    described = self._description
    model, seed = described['config']['model_type'], described['config']['random_seed']
    step = self._results.best_step or self._results.steps
    return f'{described["task"]}/{model}/{described["config_id"]}/seed{seed}/step{step}'

  def check(self, arguments: Mapping[str, Any]) -> None:
    """Refuse a model with another encoder; for this neither data nor checkpoints are needed.

    Args:
      arguments: of `kl_flax.models.make_model`.

    Raises:
      ValueError: if the encoders differ; the message names a parameter and what makes it so.
    """
    model = self._description['model']
    by_position = get_row(model['model_type']).depends_on_positions
    if by_position and model['max_length'] != arguments['max_length']:
      raise self._mismatch(
        f'{model["model_type"]} depends on the largest length, which is max_length='
        f'{model["max_length"]} there and {arguments["max_length"]} here: --config.max_length='
        f'{model["max_length"]} makes them equal'
      )
    free = {*_NOT_OF_ENCODERS, *(() if by_position else ('max_length',))}
    if abs(model['vocab_size'] - arguments['vocab_size']) <= 1:  # One of the two may have the mask.
      free.add('vocab_size')
    there, here = (
      configuration.essential(json.loads(json.dumps(dict(each))), free)
      for each in (model, arguments)
    )
    self._compare(*map(_encoder_shapes, (model, arguments)), configuration.difference(there, here))

  def start(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters whose encoder is that of the run; the head stays as it is.

    The vector of the mask, which only models of masked tokens have, is left out or stays.

    Args:
      params: of the model, as they are drawn.

    Raises:
      FileNotFoundError: if the run has no checkpoint.
      ValueError: if the encoders differ, see `check`; if the checkpoint is damaged.
    """
    _, state = checkpoints.restore(self.model_dir)
    given, wanted = named_leaves(state['params']['encoder']), named_leaves(params['encoder'])
    self._compare(given, wanted)
    taken = [_fitted(given[name], wanted[name]) for name in wanted]
    return {**params, 'encoder': jax.tree.unflatten(jax.tree.structure(params['encoder']), taken)}

  def _compare(
    self, given: Mapping[str, Any], wanted: Mapping[str, Any], differences: Sequence[str] = ()
  ) -> None:
    """Raise a ValueError unless all parameters (or shapes) have a place; `differences` tell why."""
    if lacking := wanted.keys() - given.keys():
      raise self._mismatch(f'it has no parameter {min(lacking)}', differences)
    if unknown := given.keys() - wanted.keys():
      raise self._mismatch(f'its parameter {min(unknown)} has no place here', differences)
    for name in wanted:
      there, here = given[name].shape, wanted[name].shape
      # One of the two may have the mask.
      with_mask = name == 'embedding/table' and abs(there[0] - here[0]) <= 1
      if there[with_mask:] != here[with_mask:]:
        raise self._mismatch(f'its {name} is {there}, here it is {here}', differences)

  def _mismatch(self, what: str, differences: Sequence[str] = ()) -> ValueError:
    return ValueError(
      '\n  '.join(
        [
          f'--init_from={self.model_dir} does not fit: {what}. Model, pooling, sizes and tokenizer '
          'must be those of that run' + ':' * bool(differences),
          *differences,
        ]
      )
    )


def _fitted(given: np.ndarray, wanted: jax.Array) -> jax.Array:
  """Return the other run's array; of a table with or without the mask, as many rows as fit."""
  if given.shape == wanted.shape:
    return jnp.asarray(given, wanted.dtype)
  rows = min(len(given), len(wanted))
  return wanted.at[:rows].set(given[:rows])


def _encoder_shapes(arguments: Mapping[str, Any]) -> dict[str, Any]:
  return named_leaves(parameter_shapes(make_model(**arguments))['encoder'])
