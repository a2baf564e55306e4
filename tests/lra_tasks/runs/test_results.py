import numpy as np
import pytest

from lra_tasks.files import read_json, write_json
from lra_tasks.metrics import VoteMetrics
from lra_tasks.runs import results
from lra_tasks.runs.finished import parse_run


def test_results_tell_draws_apart(tmp_path):
  about = {
    'task': 't', 'dataset': 'd', 'comparable': True, 'validation_is_test': False, 'parameters': 2,
    'base_parameters': 4, 'config_id': 'c', 'versions': {},
    'sessions': [{'device': 'x', 'git_revision': r} for r in ('a', None, 'b', 'a')],
    'config': {
      'task': 'mrpc', 'model_type': 'm', 'preset': 'p', 'random_seed': 3, 'learning_rate': 0.1,
      'objective': 'classify',
    },
  }  # fmt: skip
  sums = {
    'loss': np.array(16.0), 'accuracy': np.array(9.0), 'weight': np.array(16.0),
    'accuracy_by_draw': np.array([1.0, 2.0, 3.0, 3.0]), 'labels': np.array([12.0, 4.0]),
    # F1 of each draw: 0, 2/3, 1 and 0.
    'confusion_by_draw': np.array(
      [[[1, 2], [1, 0]], [[1, 0], [1, 1]], [[2, 0], [0, 2]], [[3, 0], [1, 0]]]
    ),
  }  # fmt: skip
  options = {'split': 'test', 'steps': 5, 'best_step': None}
  found = results.collect(about, sums, [], eval_samples=4, **options)
  assert (found['examples'], found['accuracy'], found['loss']) == (4, 9 / 16, 1.0)
  assert found['accuracy_of_one_draw'] == 0.25
  assert found['f1'] == pytest.approx((2 / 3 + 1) / 4)
  assert (found['matthews'], found['learning_rate'], found['pretrained']) == (None, 0.1, None)
  assert (found['validation_accuracy'], found['validation_score']) == (None, None)
  record = {'step': 5, 'eval_accuracy': 0.5, 'eval_f1': 0.25, 'steps_per_second': 1.0}
  best = options | {'best_step': 5}
  at_best = results.collect(
    about, sums, [record | {'wall_time_seconds': 1.0}], eval_samples=4, **best
  )
  assert (at_best['validation_accuracy'], at_best['validation_score']) == (0.5, 0.25)
  assert at_best['judged_by'] == 'f1'
  assert (found['device'], found['git_revision']) == ('x', 'a, unknown, b')
  assert found['accuracy_sd_of_draws'] == pytest.approx(np.sqrt(2.75 / 3) / 4)  # Of 1, 2, 3, 3.
  votes = VoteMetrics(0.5, 0.25, 0.1, float('inf'))
  found = results.collect(about, sums | {'votes': votes}, [], eval_samples=4, **options)
  write_json(str(tmp_path / 'results.json'), found)
  stored = read_json(str(tmp_path / 'results.json'))
  assert (stored['median_deviation'], stored['mean_deviation']) == (0.1, None)
  back = parse_run(stored, tmp_path / 'results.json')
  assert VoteMetrics(**{name: getattr(back, name) for name in VoteMetrics._fields}) == votes
  sums |= {'accuracy_by_draw': np.array([9.0]), 'votes': None}
  found = results.collect(about, sums, [], eval_samples=1, **options)
  assert (found['accuracy_of_one_draw'], found['accuracy_sd_of_draws']) == (9 / 16, None)
  assert 'voting_accuracy' not in found
