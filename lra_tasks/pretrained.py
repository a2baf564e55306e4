"""Starting from another run's encoder: `--init_from`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kl_flax import checkpoints
from kl_flax.models import get_row
from kl_flax.tokenizers import Tokenizer, tokenizer_from_dict
from lra_tasks.files import read_json


class Pretrained:
  """A finished run whose encoder another one starts with, at its best step.

  Args:
    model_dir: the run's directory.

  Raises:
    FileNotFoundError: if it holds no run, or one that is not finished.
    ValueError: if its tokenizer cannot be read.
  """

  def __init__(self, model_dir: str) -> None:
    self.model_dir = os.path.abspath(model_dir)
    self._description = self._read('config.json', 'holds no run')
    # Later, its best step might be another one.
    self._results = self._read('results.json', 'holds a run that is not finished: let it run on')
    self.tokenizer: Tokenizer = tokenizer_from_dict(self._description['tokenizer'], model_dir)

  def _read(self, name: str, otherwise: str) -> dict[str, Any]:
    found = read_json(os.path.join(self.model_dir, name))
    if found is None:
      raise FileNotFoundError(f'--init_from={self.model_dir} {otherwise} (there is no {name})')
    return found

  @property
  def label(self) -> str:
    """What tells apart runs that start from different ones: task, model, config, seed, step."""
    described = self._description
    model, seed = described['config']['model_type'], described['config']['random_seed']
    step = self._results['best_step'] or self._results['steps']
    return f'{described["task"]}/{model}/{described["config_id"]}/seed{seed}/step{step}'

  def start(self, params: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Return parameters whose encoder is that of the run; the head stays as it is.

    The vector of the mask, which only models of masked tokens have, is left out or stays.

    Args:
      params: of the model, as they are drawn.
      max_length: of the model.

    Raises:
      FileNotFoundError: if the run has no checkpoint.
      ValueError: if the encoders differ; the message names the parameter. If the checkpoint is
        damaged.
    """
    model = self._description['model']
    by_position = get_row(model['model_type']).depends_on_positions
    if by_position and model['max_length'] != max_length:
      raise self._mismatch(
        f'{model["model_type"]} depends on the largest length, which is max_length='
        f'{model["max_length"]} there and {max_length} here: --config.max_length='
        f'{model["max_length"]} makes them equal'
      )
    _, state = checkpoints.restore(self.model_dir)
    given = _flat(state['params']['encoder'])
    wanted = _flat(params['encoder'])
    if lacking := wanted.keys() - given.keys():
      raise self._mismatch(f'it has no parameter {min(lacking)}')
    if unknown := given.keys() - wanted.keys():
      raise self._mismatch(f'its parameter {min(unknown)} has no place here')
    taken = {name: self._fitted(name, given[name], wanted[name]) for name in wanted}
    treedef = jax.tree.structure(params['encoder'])
    return {**params, 'encoder': jax.tree.unflatten(treedef, taken.values())}

  def _fitted(self, name: str, given: np.ndarray, wanted: jax.Array) -> jax.Array:
    alike = name == 'embedding/table' and given.shape[1:] == wanted.shape[1:]
    if alike and abs(len(given) - len(wanted)) <= 1:  # One of the two may have the mask.
      rows = min(len(given), len(wanted))
      return wanted.at[:rows].set(given[:rows])
    if given.shape != wanted.shape:
      raise self._mismatch(f'its {name} is {given.shape}, here it is {wanted.shape}')
    return jnp.asarray(given, wanted.dtype)

  def _mismatch(self, what: str) -> ValueError:
    return ValueError(
      f'--init_from={self.model_dir} does not fit: {what}. Model, pooling, sizes and tokenizer '
      'must be those of that run'
    )


def _flat(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
