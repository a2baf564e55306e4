"""What is measured of a run whose predictions vary: on examples, or read from its results.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kl_flax.predictor import Predictor
from lra_tasks.console import show_progress
from lra_tasks.data import pipeline
from lra_tasks.metrics import VoteMetrics, Votes
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import Run

# Examples whose votes are counted at a time.
_CHUNK = 256


class Variance(NamedTuple):
  """What was found of one run on one split; fractions, not percentages.

  Attributes:
    model: its name.
    preset: of its config.
    seed: of the run.
    task: its name.
    split: that was predicted.
    examples: their number.
    samples: draws.
    accuracy: mean over the draws.
    voting_accuracy: this and the others as in `lra_tasks.metrics.VoteMetrics`.
    inconsistency: likewise.
    median_deviation: likewise.
    mean_deviation: likewise.
    learning_rate: of the run, where it tells.
    directory: of the run.
  """

  model: str
  preset: str
  seed: int
  task: str
  split: str
  examples: int
  samples: int
  accuracy: float
  voting_accuracy: float
  inconsistency: float
  median_deviation: float
  mean_deviation: float
  learning_rate: float | None = None
  directory: str = ''

  @property
  def gain(self) -> float:
    """Return voting accuracy over accuracy (AGV)."""
    return self.voting_accuracy / self.accuracy if self.accuracy else float('nan')


def measure(
  predictor: Predictor, examples: Iterable[tuple[Any, int]], samples: int
) -> dict[str, float]:
  """Return the metrics of `Variance` on examples.

  Args:
    predictor: of the run.
    examples: token ids (of pairs, two) and target of each.
    samples: number of draws.

  Raises:
    ValueError: if there is no example.
  """
  right, votes = [], Votes()
  for inputs, targets in _chunks(examples):
    vote = predictor.vote(inputs, samples, encoded=True)
    right.append(vote.votes[np.arange(len(targets)), targets] / samples)
    votes.add(vote, targets)
  found = votes.metrics()
  if found is None:
    raise ValueError('there is no example to measure on')
  return {'accuracy': float(np.mean(np.concatenate(right))), **found._asdict()}


def _chunks(examples: Iterable[tuple[Any, int]]) -> Iterator[tuple[list[Any], np.ndarray]]:
  inputs, targets = [], []
  for tokens, target in examples:
    inputs.append(tokens)
    targets.append(target)
    if len(inputs) == _CHUNK:
      yield inputs, np.array(targets)
      inputs, targets = [], []
  if inputs:
    yield inputs, np.array(targets)


def measure_run(
  predictor: Predictor,
  model_dir: str,
  description: Mapping[str, Any],
  *,
  split: str,
  samples: int,
  limit: int | None = None,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
) -> Variance:
  """Return what was found of a trained run on the data that it was trained with.

  Args:
    predictor: of the run.
    model_dir: the run's directory.
    description: contents of its config.json.
    split: 'train', 'validation' or 'test'.
    samples: number of draws.
    limit: of examples, the first ones; None for all.
    data_dir: where prepared data sets are kept.
    source: raw data to prepare from.
    task_name: name of the data set within the task; None for that of the run.

  Raises:
    OSError: if the data cannot be had.
    ValueError: if it is another, or there is none.
  """
  fields = description['config']
  records = rundir.read_split(
    model_dir, description, split, data_dir=data_dir, source=source, task_name=task_name
  )
  count = len(records) if limit is None else min(limit, len(records))
  with show_progress(f'{model_dir}: predicting', count) as advance:
    examples = _examples(records, count, predictor.model.num_inputs, advance)
    found = measure(predictor, examples, samples)
  return Variance(
    fields['model_type'],
    fields['preset'],
    fields['random_seed'],
    description['task'],
    split,
    count,
    samples,
    **found,
    learning_rate=fields.get('learning_rate'),
    directory=str(model_dir),
  )


def _examples(records, count, num_inputs, advance) -> Iterator[tuple[Any, int]]:
  names = pipeline.input_names(num_inputs)
  for start in range(0, count, _CHUNK):
    for record in records.__getitems__(list(range(start, min(start + _CHUNK, count)))):
      parts = [record[name] for name in names]
      yield parts[0] if num_inputs == 1 else parts, int(record['target'])
    advance(min(_CHUNK, count - start))


def read_result(
  run: Run, *, split: str, samples: int | None = None, limit: int | None = None
) -> Variance | None:
  """Return what a run's own evaluation found; None if it did not find this.

  Args:
    run: a finished one.
    split: that is asked for.
    samples: number of draws; None for any.
    limit: of examples; None for all. An evaluation has all.
  """
  found = {name: getattr(run, name) for name in VoteMetrics._fields}
  fits = run.split == split and samples in (None, run.eval_samples)
  if None in found.values() or not fits or (limit is not None and limit < run.examples):
    return None
  preset, count = run.preset or '', run.examples
  numbers = count, run.eval_samples, run.accuracy
  of_run = {'learning_rate': run.learning_rate, 'directory': str(run.path.parent)}
  return Variance(run.model, preset, run.seed, run.task, split, *numbers, **found, **of_run)
