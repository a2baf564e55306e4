"""What a run writes at its end: results.json, from which `lra_tasks.runs.finished` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lra_tasks import configuration, metrics
from lra_tasks.experiments import RATE_SEARCH
from lra_tasks.runs.finished import METRIC_LABELS
from lra_tasks.runs.log import means
from lra_tasks.tasks import get_task


def collect(
  description: Mapping[str, Any],
  sums: Mapping[str, Any],
  records: list[dict[str, Any]],
  *,
  split: str,
  steps: int,
  best_step: int | None,
  eval_samples: int,
) -> dict[str, Any]:
  """Return the contents of results.json.

  Args:
    description: contents of config.json.
    sums: from `lra_tasks.training.evaluation.evaluate`, label counts included.
    records: of metrics.jsonl.
    split: what was evaluated.
    steps: number of training steps taken.
    best_step: the step whose parameters were evaluated; None if the last one's.
    eval_samples: draws of the frequencies per example.
  """
  config = description['config']
  judged_by = configuration.judged_by(config)
  final = means(sums, '')
  by_draw = sums['accuracy_by_draw'] / (sums['weight'] / eval_samples)
  at_best = [r for r in records if r['step'] == best_step]
  rates = [r['steps_per_second'] for r in records if r['steps_per_second']]
  memory = [r['peak_memory_bytes'] for r in records if r.get('peak_memory_bytes')]
  return {
    'task': description['task'],
    'dataset': description['dataset'],
    'comparable': description['comparable'],
    'model': config['model_type'],
    'preset': config['preset'],
    'split': split,
    'accuracy': final['accuracy'],
    # One pass over the split, as for a model without draws; and how far passes are apart.
    'accuracy_of_one_draw': float(by_draw[0]),
    'accuracy_sd_of_draws': float(np.std(by_draw, ddof=1)) if eval_samples > 1 else None,
    # How far draws agree on each example; left out where there is one, or nothing to vote on.
    **(sums['votes']._asdict() if sums.get('votes') else {}),
    'loss': final['loss'],
    **_metrics(description, sums),
    'examples': round(float(np.sum(sums['labels'])) / eval_samples),
    'majority_class': float(np.max(sums['labels']) / np.sum(sums['labels'])),
    'seed': config['random_seed'],
    'learning_rate': config['learning_rate'],
    'pretrained': config.get('pretrained') or None,
    'steps': steps,
    'best_step': best_step,
    'validation_accuracy': at_best[-1]['eval_accuracy'] if at_best else None,
    'judged_by': judged_by,
    'validation_score': at_best[-1].get(f'eval_{judged_by}') if at_best else None,
    'validation_is_test': description['validation_is_test'],
    'eval_samples': eval_samples,
    'parameters': description['parameters'],
    'base_parameters': description['base_parameters'],
    'parameter_ratio': description['parameters'] / description['base_parameters'],
    'wall_time_seconds': records[-1]['wall_time_seconds'] if records else None,
    'steps_per_second': float(np.median(rates)) if rates else None,
    'peak_memory_bytes': max(memory) if memory else None,
    'device': _joined(description, 'device'),
    'config_id': description['config_id'],
    'rates_id': configuration.config_id(config, RATE_SEARCH),
    'git_revision': _joined(description, 'git_revision'),
    'versions': description['versions'],
    'sessions': description['sessions'],
  }


def one_line(found: Mapping[str, Any]) -> str:
  """Return the contents of results.json in a sentence.

  >>> one_line({'accuracy': 0.69, 'examples': 100, 'majority_class': 0.7, 'judged_by': 'matthews',
  ...           'matthews': 0.0, 'loss': 0.62})[:52]
  'Test accuracy 69.00 %, Matthews correlation 0.000, l'
  """
  parts = [f'Test accuracy {100 * found["accuracy"]:.2f} %']
  if (name := found['judged_by']) != 'accuracy':
    parts.append(f'{METRIC_LABELS[name]} {found[name]:.3f}')
  parts.append(f'loss {found["loss"]:.4f}')
  return (
    f'{", ".join(parts)} on {found["examples"]} examples ({100 * found["majority_class"]:.2f} % by '
    'always answering the commonest class)'
  )


def _metrics(
  description: Mapping[str, Any], sums: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
  """Return all metrics beside accuracy, averaged over draws; None for those of other tasks."""
  draws = sums.get('confusion_by_draw')  # None where masked ids were predicted.
  names = () if draws is None else get_task(description['config']['task']).metrics
  return {
    name: metrics.mean_of_draws(name, draws) if name in names else None
    for name in metrics.METRICS
    if name != 'accuracy'
  }


def _joined(description: Mapping[str, Any], name: str) -> str | None:
  """Return what the processes of a run had, separated by commas where it changed."""
  values = dict.fromkeys(session[name] for session in description['sessions'])
  return ', '.join(str(v or 'unknown') for v in values) if values != {None: None} else None
