import collections

import numpy as np
import pytest

from lra_tasks import rundir
from lra_tasks.run_log import read_json

STATE = {'w': np.zeros(2**18, np.float32)}  # 1 MiB


def description(**config):
  return {'config': {'warmup': 10, **config}, 'dataset': 'd', 'model': {'dtype': 'f'}, 'x': 1}


def test_a_run_can_be_continued(tmp_path):
  rundir.open_run(str(tmp_path / 'a/b'), description(), STATE, resume=True)
  rundir.open_run(str(tmp_path / 'a/b'), {**description(), 'x': 2}, STATE, resume=True)
  assert read_json(str(tmp_path / 'a/b/config.json')) == {**description(), 'x': 2}
  assert rundir.stored_dtype(str(tmp_path / 'a/b')) == 'f'
  assert rundir.stored_dtype(str(tmp_path)) is None


def test_fields_that_do_not_touch_parameters_may_change(tmp_path):
  rundir.open_run(str(tmp_path), description(eval_samples=1), STATE, resume=True)
  rundir.open_run(str(tmp_path), description(eval_samples=100), STATE, resume=True)


def test_another_run_is_refused_and_the_difference_shown(tmp_path):
  rundir.open_run(str(tmp_path), description(), STATE, resume=True)
  with pytest.raises(ValueError, match=r'(?s)holds another run.*config\.warmup: 10 there, 20 now'):
    rundir.open_run(str(tmp_path), description(warmup=20), STATE, resume=True)


def test_restore_checkpoints_false_wants_an_empty_directory(tmp_path):
  rundir.open_run(str(tmp_path), description(), STATE, resume=False)
  with pytest.raises(ValueError, match='restore_checkpoints is False'):
    rundir.open_run(str(tmp_path), description(), STATE, resume=False)


def test_unwritable_directories_are_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'--model_dir=.*file/run cannot be written'):
    rundir.open_run(str(tmp_path / 'file/run'), description(), STATE, resume=True)


def test_a_full_disk_is_said_at_the_start(tmp_path, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr('shutil.disk_usage', lambda path: usage(10, 10, 3 * 2**20))
  with pytest.raises(OSError, match='has 3 MiB free; the checkpoints of this run need 4 MiB'):
    rundir.open_run(str(tmp_path), description(), STATE, resume=True)
  assert not (tmp_path / 'config.json').exists()


def test_a_run_knows_that_its_data_was_named(tmp_path):
  rundir.check_source(str(tmp_path), None)
  (tmp_path / 'config.json').write_text('{"dataset": "image/x/1.0.0", "from_source": true}')
  rundir.check_source(str(tmp_path), 'there')
  with pytest.raises(ValueError, match='a run on image/x/1.0.0, .* give the same --source again'):
    rundir.check_source(str(tmp_path), None)
  (tmp_path / 'config.json').write_text('{"dataset": "image/x/1.0.0"}')  # As earlier versions did.
  rundir.check_source(str(tmp_path), None)


def test_results_tell_draws_apart():
  about = {
    'task': 't', 'dataset': 'd', 'comparable': True, 'validation_is_test': False, 'parameters': 2,
    'base_parameters': 4, 'device': 'x', 'config_id': 'c', 'git_revision': None, 'versions': {},
    'config': {'model_type': 'm', 'preset': 'p', 'random_seed': 3},
  }  # fmt: skip
  sums = {
    'loss': np.array(16.0), 'accuracy': np.array(9.0), 'weight': np.array(16.0),
    'accuracy_by_draw': np.array([1.0, 2.0, 3.0, 3.0]), 'labels': np.array([12.0, 4.0]),
  }  # fmt: skip
  options = {'split': 'test', 'steps': 5, 'best_step': None}
  found = rundir.results(about, sums, [], eval_samples=4, **options)
  assert (found['examples'], found['accuracy'], found['loss']) == (4, 9 / 16, 1.0)
  assert found['accuracy_of_one_draw'] == 0.25
  assert found['accuracy_sd_of_draws'] == pytest.approx(np.sqrt(2.75 / 3) / 4)  # Of 1, 2, 3, 3.
  sums |= {'accuracy_by_draw': np.array([9.0])}
  found = rundir.results(about, sums, [], eval_samples=1, **options)
  assert (found['accuracy_of_one_draw'], found['accuracy_sd_of_draws']) == (9 / 16, None)
