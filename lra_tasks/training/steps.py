"""Training and evaluation steps: pure functions of state and batch, to be mapped over devices.

Metrics are sums over examples (never means of means): divide by 'weight' at the very end. What is
no sum, as a median over examples, is computed on the host, from the logits of all draws.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from kl_flax.heads import MaskedLanguageModel
from kl_flax.parameters import Model, init_params, zero_inputs

Sums = dict[str, jax.Array]
AXIS = 'batch'


@flax.struct.dataclass
class TrainState:
  """Everything that a run needs to go on; the only counter is `step`.

  Attributes:
    step: number of finished updates, int32.
    params: of the model, float32.
    opt_state: of the optimiser.
    keys: raw PRNG key data by name: 'dropout', 'spectral', 'evaluation'. They never change: every
      use folds in the step, the device or the sample.
    sums: metrics since the last report.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  keys: dict[str, jax.Array]
  sums: Sums


def init_state(
  model: Model, optimizer: optax.GradientTransformation, *, seed: int | jax.Array
) -> TrainState:
  """Return the state before the first step, a function of the seed alone.

  Args:
    model: the classifier.
    optimizer: of its parameters.
    seed: in 0 .. 2**32 - 1; as an array (uint32) it leaves the compiled program the same.
  """
  names = ('params', 'dropout', 'spectral', 'evaluation')
  keys = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
  params = init_params(model, keys['params'], keys['spectral'])
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    keys={name: jax.random.key_data(keys[name]) for name in names[1:]},
    sums=zero_sums(model),
  )


def zero_batch(model: Model) -> dict[str, jax.Array]:
  """Return a batch of one example, all padding, in the form of `lra_tasks.data.pipeline`."""
  inputs, _, *extra = zero_inputs(model)
  batch = {
    'inputs': inputs,
    'lengths': jnp.zeros(inputs.shape[:-1], jnp.int32),
    'targets': jnp.zeros(1, jnp.int32),
    'weights': jnp.zeros(1),
    'truncated': jnp.zeros(1),
  }
  if isinstance(model, MaskedLanguageModel):
    (positions,) = extra
    integers = dict.fromkeys(('positions', 'targets'), positions)
    batch |= integers | {'weights': jnp.zeros(positions.shape)}
  return batch


def key_mask(batch: dict[str, jax.Array]) -> jax.Array:
  """Return bool[b, l] (of pairs, bool[b, 2, l]), True at valid positions."""
  return jnp.arange(batch['inputs'].shape[-1]) < batch['lengths'][..., None]


def example_sums(logits: jax.Array, batch: dict[str, jax.Array]) -> Sums:
  """Return the sums of loss (nats), correct answers, weights and cut sequences."""
  weights = batch['weights']
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
  correct = jnp.argmax(logits, axis=-1) == batch['targets']
  return {
    'loss': jnp.sum(loss * weights),
    'accuracy': jnp.sum(correct * weights),
    'truncated': jnp.sum(batch['truncated'] * (weights if weights.ndim == 1 else 1)),
    'weight': jnp.sum(weights),
  }


def _diagnostics(variables: Any) -> Sums:
  """Return how many denominators all layers had, and how many were not positive.

  Empty where none sowed them.
  """
  sown = flax.traverse_util.flatten_dict(variables.get('diagnostics', {}))
  counts: Sums = {}
  for (*module, name), fractions in sown.items():
    if name == 'nonpositive_denominators':
      of = sown[*module, 'denominators']  # As often as the module was called.
      counts[name] = counts.get(name, 0) + sum(map(jnp.multiply, fractions, of))
      counts['denominators'] = counts.get('denominators', 0) + sum(of)
  return counts


def _arguments(model: Model, batch: dict[str, jax.Array]) -> list[jax.Array]:
  """Return what a model is called with."""
  return [batch['inputs'], key_mask(batch), *(batch[name] for name in model.extra_inputs)]


def _apply(model, params, batch, **options):
  """Return logits, and of a batch the sums and counts of its denominators."""
  logits, variables = model.apply(
    {'params': params}, *_arguments(model, batch), mutable=['diagnostics'], **options
  )
  return logits, (example_sums(logits, batch), _diagnostics(variables))


def zero_sums(model: Model) -> Sums:
  """Return zeros in the form of the sums of a step."""
  batch = zero_batch(model)
  key = jax.random.key(0)
  shapes = jax.eval_shape(
    lambda: _total([_apply(model, init_params(model, key, key), batch, rngs={'spectral': key})[1]])
  )
  return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def step_keys(state: TrainState, resample_every: int, device: jax.Array) -> dict[str, jax.Array]:
  """Return the PRNG keys of a training step.

  Frequencies are drawn anew every `resample_every` steps and alike on all devices; dropout
  differs in every step and on every device.
  """
  keys = {name: jax.random.wrap_key_data(data) for name, data in state.keys.items()}
  dropout = jax.random.fold_in(jax.random.fold_in(keys['dropout'], state.step), device)
  spectral = jax.random.fold_in(keys['spectral'], state.step // resample_every)
  return {'dropout': dropout, 'spectral': spectral}


def _total(parts: Sequence[tuple[Sums, Sums]]) -> Sums:
  """Return the sums of a batch from sums and counts of its parts.

  The share of denominators that are not positive is times the weight of the examples, as if it were
  a sum over them.
  """
  sums, counts = jax.tree.map(lambda *values: sum(values), *parts)
  if not counts:
    return sums
  share = counts['nonpositive_denominators'] / jnp.maximum(counts['denominators'], 1)
  return sums | {'nonpositive_denominators': share * sums['weight']}


def _keys_of_part(keys: dict[str, jax.Array], part: int) -> dict[str, jax.Array]:
  """Return the keys of a part: dropout differs, frequencies are those of the step."""
  return keys | {'dropout': jax.random.fold_in(keys['dropout'], part)} if part else keys


def train_step(
  state: TrainState,
  parts: Sequence[dict[str, jax.Array]],
  learning_rate: jax.Array,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  resample_every: int,
) -> tuple[TrainState, Sums]:
  """Take one step of gradient descent on one device's share of the batch.

  Args:
    state: before the step.
    parts: of the device's share of the batch, each padded to a length of its own.
    learning_rate: of this step, float32.
    model: to be trained.
    optimizer: gives the updates of a learning rate of 1.
    resample_every: steps between two draws of the frequencies.

  Returns:
    The new state and the sums of this step over all devices.
  """
  rngs = step_keys(state, resample_every, jax.lax.axis_index(AXIS))

  def loss_fn(params):
    found = [
      _apply(model, params, part, deterministic=False, rngs=_keys_of_part(rngs, i))[1]
      for i, part in enumerate(parts)
    ]
    sums = _total(found)
    return sums['loss'], sums

  grads, sums = jax.grad(loss_fn, has_aux=True)(state.params)
  # Divided by the weight afterwards: the devices wait for each other once in a step.
  grads, sums = jax.lax.psum((grads, sums), AXIS)
  total = jnp.maximum(sums['weight'], 1)  # Of ids to predict there may be none.
  grads = jax.tree.map(lambda grad: grad / total, grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda update: learning_rate * update, updates)
  state = state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    sums=jax.tree.map(jnp.add, state.sums, sums),
  )
  return state, sums


def eval_step(
  state: TrainState, batch: dict[str, jax.Array], draw: jax.Array, *, model: nn.Module
) -> dict[str, Any]:
  """Return the sums of a batch over all devices, with label counts, for one draw of frequencies.

  Of classifiers, 'confusion' [c, c] counts the answers given (columns) to each label (rows), and
  'examples' is no sum but what votes are counted from: 'logits' [b, c], 'targets' [b] and 'weights'
  [b] of the whole batch of b examples, on every device.

  Args:
    state: its parameters and key 'evaluation' are used.
    batch: one device's part.
    draw: number of the draw, int32, from 0; its frequencies depend on it alone. As an argument it
      leaves the compiled program the same.
    model: to be evaluated.
  """
  key = jax.random.wrap_key_data(state.keys['evaluation'])
  rngs = {'spectral': jax.random.fold_in(key, draw)}
  logits, found = _apply(model, state.params, batch, rngs=rngs)
  sums = _total([found])
  targets, weights = batch['targets'], batch['weights']
  sums['labels'] = jnp.zeros(model.num_classes).at[targets].add(weights)
  if isinstance(model, MaskedLanguageModel):
    return jax.lax.psum(sums, AXIS)
  place = targets, jnp.argmax(logits, axis=-1)
  sums['confusion'] = jnp.zeros((model.num_classes,) * 2).at[place].add(weights)
  whole = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
  examples = {'logits': logits, 'targets': targets, 'weights': weights}
  return jax.lax.psum(sums, AXIS) | {'examples': jax.tree.map(whole, examples)}
