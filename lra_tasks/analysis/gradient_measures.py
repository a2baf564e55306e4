"""How much redrawn frequencies shake the gradient of a run, by the paper's Appendix E.3."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kl_flax import Predictor
from kl_flax.checkpoints import has_checkpoint
from kl_flax.heads import ACTIVATIONS, Classifier
from kl_flax.models import make_classifier
from lra_tasks import tasks
from lra_tasks.console import show_progress
from lra_tasks.data import pipeline
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import read_whole_description
from lra_tasks.runs.log import read_records
from lra_tasks.training import steps

logger = logging.getLogger(__name__)


class Statistics(NamedTuple):
  """Of the gradients at one checkpoint; every figure is a mean over the neurons.

  Attributes:
    sd: sample standard deviation over draws and examples together.
    mean_abs: mean of absolute values over draws and examples.
    sd_of_draws: sample standard deviation over the draws alone, mean over the examples.
  """

  sd: float
  mean_abs: float
  sd_of_draws: float


class Curve(NamedTuple):
  """A run: what it is about, its validation accuracies, and its gradients.

  Attributes:
    data: full name of the data set, which tells runs apart that cannot stand side by side.
    title: task and variant.
    model: model_type.
    accuracies: step -> fraction, ascending.
    gradients: accuracy in per cent -> (step that first reached it, statistics), as far as reached.
    has_checkpoints: whether gradients could be taken at all.
  """

  data: str
  title: str
  model: str
  accuracies: dict[int, float]
  gradients: dict[int, tuple[int, Statistics]]
  has_checkpoints: bool = True


def hidden_gradients(
  model: Classifier, params: Any, batch: Mapping[str, jax.Array], keys: jax.Array
) -> jax.Array:
  """Return the derivative of every example's loss with respect to the neurons of the hidden layer.

  Args:
    model: the classifier; n neurons, mlp_dim.
    params: its parameters.
    batch: of b examples, see `lra_tasks.data.pipeline`.
    keys: PRNG keys, [d], one for each draw of the frequencies.

  Returns:
    float32[d, b, n], taken before the activation.
  """
  head = nn.Dense(model.num_classes)

  def loss(hidden):
    logits = head.apply({'params': params['logits']}, ACTIVATIONS[model.activation](hidden))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
    return jnp.sum(losses)  # Examples have neurons of their own.

  def one(key):
    _, variables = model.apply(
      {'params': params},
      batch['inputs'],
      steps.key_mask(batch),
      rngs={'spectral': key},
      capture_intermediates=lambda module, _: module.name == 'hidden',
      mutable=['intermediates'],
    )
    (hidden,) = variables['intermediates']['hidden']['__call__']
    return jax.grad(loss)(hidden.astype(jnp.float32))

  return jax.lax.map(one, keys)


def summarise(gradients: np.ndarray) -> Statistics:
  """Return the statistics of gradients[d, b, n], d draws, b examples, n neurons.

  >>> summarise(np.array([[[1.0], [3.0]], [[1.0], [-1.0]]]))
  Statistics(sd=1.632993161855452, mean_abs=1.5, sd_of_draws=1.4142135623730951)
  """
  gradients = np.asarray(gradients, np.float64)
  together = gradients.reshape(-1, gradients.shape[-1])
  return Statistics(
    float(np.mean(np.std(together, axis=0, ddof=1))),
    float(np.mean(np.abs(together))),
    float(np.mean(np.std(gradients, axis=0, ddof=1))),
  )


def first_to_reach(accuracies: Mapping[int, float], percent: float) -> int | None:
  """Return the first step with at least that accuracy, None if there is none.

  >>> first_to_reach({10: 0.15, 20: 0.4, 30: 0.2}, 20)
  20
  """
  return next((step for step, value in accuracies.items() if value >= percent / 100), None)


def read_run(
  run: str, *, percents: Sequence[int], examples: int, draws: int, **data: str | None
) -> Curve:
  """Return the learning curve of a run, and its gradients where it first reached accuracies.

  Args:
    run: its directory.
    percents: the accuracies, on validation.
    examples: the first of the validation split are taken.
    draws: of the frequencies, at least 2.
    **data: data_dir, source and task_name as in `rundir.read_split`.

  Raises:
    ValueError: if the run is one of pairs or of other data than `data` names, or if one of its
      files or checkpoints is missing or damaged.
    OSError: if there is no such run, or the data cannot be prepared.
  """
  description = read_whole_description(run)
  fields = description['config']
  if tasks.get_task(fields['task']).num_inputs != 1:
    raise ValueError(f'{run} is of pairs; gradients are taken of classifiers of one sequence')
  if 'num_predictions' in description['model']:
    raise ValueError(f'{run} predicts masked ids; gradients are taken of classifiers')
  accuracies = {r['step']: r['eval_accuracy'] for r in read_records(f'{run}/metrics.jsonl')}
  if not accuracies:
    raise ValueError(f'{run} has no evaluation yet: let it run on')
  reached = {percent: first_to_reach(accuracies, percent) for percent in percents}
  reached = {percent: step for percent, step in reached.items() if step is not None}
  has_checkpoints = has_checkpoint(run)
  if not has_checkpoints:
    logger.warning('%s holds no checkpoints to take gradients at: only its curve is drawn.', run)
    reached = {}
  gradients = {}
  if reached:
    model = make_classifier(**{**description['model'], 'dtype': 'float32'})
    batch = _first_examples(run, description, examples, data)
    keys = jax.random.split(jax.random.key(0), draws)
    take = jax.jit(functools.partial(hidden_gradients, model))
    found = {}  # One step may reach several accuracies.
    with show_progress(f'gradients of {run}', len(set(reached.values()))) as advance:
      for step in sorted(set(reached.values())):
        found[step] = summarise(take(_parameters(run, step), batch, keys))
        advance(1)
    gradients = {percent: (step, found[step]) for percent, step in reached.items()}
  elif has_checkpoints:
    logger.warning(
      '%s reached none of %s %%: only its curve is drawn.', run, ', '.join(map(str, percents))
    )
  return Curve(
    description['dataset'],
    description['task'],
    fields['model_type'],
    accuracies,
    gradients,
    has_checkpoints,
  )


def _parameters(run: str, step: int) -> Any:
  try:
    return Predictor.restore(run, step=step).params
  except FileNotFoundError as error:
    raise ValueError(
      f'{error}; a run keeps the first checkpoints that reach accuracies if it is made with, for '
      "example, --config.keep_accuracies='(20, 40, 60, 80)'"
    ) from None


def _first_examples(
  run: str, description: Mapping[str, Any], examples: int, data: Mapping[str, Any]
) -> pipeline.Batch:
  split = rundir.read_split(run, description, 'validation', **data)
  if len(split) < examples:
    raise ValueError(f'{run}: --examples={examples}, but there are only {len(split)}')
  return pipeline.collate(split, range(examples), description['config']['max_length'])
