r"""How much redrawn frequencies shake the gradient, and learning curves: the paper's 4.2 from runs.

  python -m lra_tasks.gradient_statistics RUN... --out=DIR [--accuracies=20,40,60,80]
                                          [--examples=50] [--draws=50] [--source=DATA]

The runs of the paper, six of 200,000 steps:

  for m in gmm_rks gmm_prf; do for r in 0.1 0.5 0.9; do
    python -m lra_tasks.train --config=configs/sparse_sum.py:$m --config.data.relevance=$r \
      --model_dir=runs/sparse_sum/$m-$r
  done; done
  python -m lra_tasks.gradient_statistics runs/sparse_sum/* --out=runs/sparse_sum_figures

Each RUN is the --model_dir of a run of lra_tasks.train that kept the checkpoints which first
reached these validation accuracies (`keep_accuracies`), as the presets paper and tuned of
configs/sparse_sum.py do. Writes and prints gradients.md, the rows of the paper's Table 14, and
draws learning_curves.png, its Figure 6, with a panel for each data set. In the table, runs of one
model on the same data are averaged. An evaluation that reaches several accuracies at once stands in
several rows. Of a run without checkpoints, as in docs/analysis, only the curve is drawn.

Appendix E.3 records "the gradients on the classifier layer" with 64 neurons, for the first 50
validation examples and 50 draws of the frequencies. Taken here: the derivative of each example's
cross entropy with respect to what each neuron of the hidden layer is given, before the ReLU, which
is that with respect to its bias; in float32, without dropout. An accuracy counts as reached when an
evaluation of the run has it, the mean over `validation_samples` draws, alike in all evaluations.
The ratio of two models is that of the second to the first, so of positive to Fourier features:
the paper's columns "GMM-RKS/GMM-PRF" hold it, too, as the figures beside them show.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from kl_flax import Predictor
from kl_flax.checkpoints import has_checkpoint
from kl_flax.heads import ACTIVATIONS, Classifier
from kl_flax.inspection import markdown
from kl_flax.models import MODELS, make_classifier
from lra_tasks import data_flags, steps, tasks
from lra_tasks.console import (
  define_integers,
  one_line_errors,
  parse_flags,
  set_up_logging,
  show_progress,
  three_digits,
)
from lra_tasks.data import pipeline
from lra_tasks.plotting import color, label, new_figure, save
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import read_whole_description
from lra_tasks.runs.log import read_records

logger = logging.getLogger('lra_tasks.gradient_statistics')  # Not __main__, whose lines go astray.


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


_HEADERS = {'sd': 'sd', 'mean_abs': 'mean of absolutes', 'sd_of_draws': 'sd of draws'}


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


# What is written.


def _by_data(curves: Iterable[Curve]) -> dict[str, dict[str, list[Curve]]]:
  """Return the runs by data set and model, models in the order of the registry."""
  found: dict[str, dict[str, list[Curve]]] = {}
  place = list(MODELS).index
  for curve in sorted(curves, key=lambda curve: (curve.data, place(curve.model))):
    found.setdefault(curve.data, {}).setdefault(curve.model, []).append(curve)
  return found


def table(curves: Sequence[Curve], percents: Sequence[int]) -> str:
  """Return the gradients in Markdown, a table for each data set.

  Of two models there is the ratio, too, of the second to the first. An accuracy that no run of a
  model has reached has a dash.
  """
  parts = []
  for data, models in _by_data(curves).items():
    names = list(models)
    compared = [*names, ' / '.join(reversed(names))] if len(names) == 2 else names
    header = ['accuracy', *(f'step, {name}' for name in names)]
    header += [f'{text}, {name}' for text in _HEADERS.values() for name in compared]
    lines = []
    for percent in percents:
      reached = [
        [curve.gradients[percent] for curve in models[name] if percent in curve.gradients]
        for name in names
      ]
      cells = [_mean_text([step for step, _ in found], '{:,.0f}'.format) for found in reached]
      for quantity in _HEADERS:
        values = [[getattr(statistics, quantity) for _, statistics in found] for found in reached]
        cells += [_mean_text(part, three_digits) for part in values]
        if len(names) == 2:
          both = all(values) and np.mean(values[0]) > 0
          cells.append(three_digits(np.mean(values[1]) / np.mean(values[0])) if both else '–')
      lines.append([f'{percent} %', *cells])
    runs = ', '.join(f'{name} {len(models[name])}' for name in names)
    title = models[names[0]][0].title
    parts.append(f'{title} ({data}); runs: {runs}\n\n{markdown(header, lines, "---:")}')
  return '\n\n'.join(parts) + '\n'


def _mean_text(values: Sequence[float], text: Any) -> str:
  return text(float(np.mean(values))) if values else '–'


def learning_curves(curves: Sequence[Curve]) -> Any:
  """Return validation accuracy over steps, a panel for each data set and a line for each run.

  Single evaluations may jump from one to the next: of a run with many, they are pale behind the
  mean of a twentieth of them.

  Raises:
    ImportError: without matplotlib.
  """
  groups = _by_data(curves)
  figure, axes = new_figure(len(groups), sharey=True)
  shown, smoothed = {}, False
  for axis, models in zip(axes, groups.values(), strict=True):
    for model, runs in models.items():
      for run in runs:
        reached, percents = list(run.accuracies), 100 * np.array([*run.accuracies.values()])
        width = max(1, len(reached) // 20)
        if width > 1:
          smoothed = True
          axis.plot(reached, percents, color=color(model), linewidth=0.5, alpha=0.4)
        middle = reached[width // 2 :][: len(reached) - width + 1]
        mean = np.convolve(percents, np.full(width, 1 / width), 'valid')
        (line,) = axis.plot(middle, mean, color=color(model), linewidth=1.5)
        shown.setdefault(label(model), line)
      axis.set(title=runs[0].title, xlabel='step', ylim=(0, 103))
  axes[0].set_ylabel('validation accuracy, %' + '; thick: running mean' * smoothed)
  figure.legend(shown.values(), shown.keys(), loc='outside right upper', frameon=False)
  return figure


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  flags.DEFINE_string(
    'out', None, 'Directory of the table and the figure; created if need be.',
    flag_values=flag_values,
  )  # fmt: skip
  data_flags.define(flag_values, of_run=True)
  number = lambda name, default, text, least: flags.DEFINE_integer(
    name, default, text, lower_bound=least, flag_values=flag_values
  )
  number('examples', 50, 'The first examples of the validation split.', 1)
  number('draws', 50, 'Draws of the frequencies.', 2)
  define_integers('accuracies', (20, 40, 60, 80), 'Validation accuracies, 0 to 100 %.', flag_values)


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Write table and figure of the runs `argv[1:]`."""
  set_up_logging()
  if len(argv) < 2 or flag_values.out is None:
    raise ValueError('name --out and at least one run; --help tells more')
  for percent in flag_values.accuracies:
    if not 0 <= percent <= 100:
      raise ValueError(f'--accuracies are percentages from 0 to 100, got {percent}')
  for run in argv[1:]:  # Before the work, which may take long.
    read_whole_description(run)
  directory = Path(flag_values.out)
  directory.mkdir(parents=True, exist_ok=True)
  curves = [
    read_run(
      run,
      percents=flag_values.accuracies,
      examples=flag_values.examples,
      draws=flag_values.draws,
      **data_flags.read(flag_values),
    )
    for run in argv[1:]
  ]
  if any(curve.has_checkpoints for curve in curves):
    text = table(curves, flag_values.accuracies)
    (directory / 'gradients.md').write_text(text, encoding='utf-8')
    print(text, end='')
  path = directory / 'learning_curves.png'
  save(learning_curves(curves), path)
  print(path)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
