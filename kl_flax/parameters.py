"""The parameters of a model: drawn, or their names, shapes and number without drawing any."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kl_flax.heads import Classifier, DualClassifier, MaskedLanguageModel

Model = Classifier | DualClassifier | MaskedLanguageModel


def init_params(model: Model, key: jax.Array, spectral_key: jax.Array) -> dict[str, Any]:
  """Return initial parameters.

  Args:
    model: whatever its head.
    key: of the parameters.
    spectral_key: of the frequencies; what is drawn with it is no parameter.
  """
  return model.init({'params': key, 'spectral': spectral_key}, *zero_inputs(model))['params']


def zero_inputs(model: Model) -> list[jax.Array]:
  """Return what a model is called with, for one example that is all padding, of the longest length.

  Some poolings and mechanisms have parameters for every position.

  Args:
    model: whatever its head.

  Returns:
    Ids int32 [1, max_length] (of pairs [1, 2, max_length]), bool like these, and what
    `model.extra_inputs` names: positions int32 [1, num_predictions].
  """
  length = model.encoder.max_length
  shape = (1, length) if model.num_inputs == 1 else (1, 2, length)
  arguments = [jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)]
  if isinstance(model, MaskedLanguageModel):
    arguments.append(jnp.zeros((1, model.num_predictions), jnp.int32))
  return arguments


def parameter_shapes(model: Model) -> dict[str, Any]:
  """Return the parameters as `jax.ShapeDtypeStruct`.

  Raises:
    TypeError, ValueError, ZeroDivisionError: for sizes that do not go together.
  """
  key = jax.random.key(0)
  return jax.eval_shape(lambda: init_params(model, key, key))


def count_parameters(model: Model) -> int:
  """Return the number of parameters without computing any."""
  return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model)))


def named_leaves(tree: Any) -> dict[str, Any]:
  """Return the leaves of a tree by their paths.

  >>> named_leaves({'norm': {'scale': 1, 'bias': 2}})
  {'norm/bias': 2, 'norm/scale': 1}
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
