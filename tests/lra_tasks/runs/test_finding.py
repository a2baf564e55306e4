"""Tests of reading results: what is found below a folder, every error."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from lra_tasks.runs.finding import group_runs, load_results
from lra_tasks.runs.finished import parse_run

RUN = {
  'task': 'listops', 'dataset': 'listops/1.0.0', 'comparable': True, 'model': 'gmm_prf',
  'preset': 'paper', 'split': 'test', 'accuracy': 0.37, 'examples': 2000, 'majority_class': 0.171,
  'seed': 0, 'steps': 100, 'validation_is_test': False, 'eval_samples': 1, 'parameters': 1000,
  'base_parameters': 1000, 'steps_per_second': 18.0, 'peak_memory_bytes': 2**30, 'device': 'cpu',
  'config_id': 'a1b2c3d4e5f6', 'git_revision': 'abc', 'versions': {'jax': '0.11.2'},
}  # fmt: skip


def write_run(folder, planned=None, **changes):
  """A finished run on disk; a value of ... leaves the key out."""
  folder.mkdir(parents=True, exist_ok=True)
  values = {key: value for key, value in {**RUN, **changes}.items() if value is not ...}
  (folder / 'results.json').write_text(json.dumps(values))
  if planned is not None:
    config = {'config': {'num_train_steps': planned}}
    (folder / 'config.json').write_text(json.dumps(config))


def error_of(folder):
  with pytest.raises((ValueError, OSError)) as caught:
    load_results([folder])
  return str(caught.value)


def test_load_finds_runs_below_and_counts_each_once(tmp_path):
  write_run(tmp_path / 'a' / 'seed0', planned=100)
  write_run(tmp_path / 'a' / 'seed1', seed=1)
  write_run(tmp_path / 'a' / 'seed0' / 'checkpoints' / '10', seed=9)
  (tmp_path / 'link').symlink_to(tmp_path / 'a')
  (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
  found = load_results([tmp_path / 'a', tmp_path / 'a/seed1', tmp_path / 'link', tmp_path])
  assert [run.seed for run in found.runs] == [0, 1]
  assert [run.path.parent.name for run in found.runs] == ['seed0', 'seed1']
  assert found.unfinished == ()


@pytest.mark.parametrize(
  ('metrics', 'config', 'words'),
  [
    ('{"step": 20}\n{"st', '{"config": {"num_train_steps": 5000}}', 'up to step 20 of 5,000)'),
    ('{"step": 20}\n{"step": 40}\n', '{}', '(evaluated up to step 40)'),
    ('', '{}', '(not evaluated yet)'),
    ('7', '{"config": {"num_train_steps": "many"}}', '(not evaluated yet)'),
    (None, '{"config": "of something else"}', '(not evaluated yet)'),
  ],
)
def test_unfinished_run_says_how_far_it_got(tmp_path, metrics, config, words):
  folder = tmp_path / 'b'
  folder.mkdir()
  (folder / 'config.json').write_text(config)
  if metrics is not None:
    (folder / 'metrics.jsonl').write_text(metrics)
  error = error_of(tmp_path)
  assert f'{tmp_path}: no finished run here or below: {folder} (' in error
  assert words in error
  write_run(tmp_path / 'a')
  [run] = load_results([tmp_path]).unfinished
  assert str(run).endswith(words)


def test_evaluation_before_the_last_step_is_no_finished_run(tmp_path):
  write_run(tmp_path, planned=200)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 80}\n')
  error = error_of(tmp_path)
  assert f'{tmp_path} (results.json has 37.00 % on test after step 100 of 200, by --test' in error
  assert 'the steps after that are missing); python -m lra_tasks.train ' in error


def test_empty_folder_says_where_results_come_from(tmp_path):
  error = f'{tmp_path}: no finished run here or below; python -m lra_tasks.train '
  assert error_of(tmp_path).startswith(error)


def test_unreadable_folder_and_file(tmp_path, monkeypatch):
  path = tmp_path / 'results.json'
  assert error_of(path) == f'[Errno 2] No such file or directory: {str(path)!r}'
  path.touch()
  assert error_of(path) == f'[Errno 20] Not a directory: {str(path)!r}'
  path.unlink()
  path.symlink_to(tmp_path / 'gone')
  assert error_of(tmp_path) == f'[Errno 2] No such file or directory: {str(path)!r}'

  def deny(path):
    raise PermissionError(errno.EACCES, 'Permission denied', path)

  monkeypatch.setattr(os, 'scandir', deny)  # File modes do not stop root.
  assert f'Permission denied: {str(tmp_path)!r}' in error_of(tmp_path)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'damaged JSON: Expecting value'),
    (b'{\n"task" "listops"}', "damaged JSON: Expecting ':' delimiter: line 2 column 8"),
    (b'\xff\xfe', "damaged JSON: 'utf-8' codec can't decode"),
    (b'[1]', 'expected a JSON object, got list'),
    (b'{}', 'missing: task, dataset'),
  ],
)
def test_damaged_file(tmp_path, content, words):
  (tmp_path / 'results.json').write_bytes(content)
  assert f'{tmp_path}/results.json: {words}' in error_of(tmp_path)


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('config.json', '', 'damaged JSON: Expecting value'),
    ('config.json', '{"config": {"num_tr', 'damaged JSON: Unterminated string'),
    ('results.json', '', 'damaged JSON: Expecting value'),
    ('results.json', '{}', 'missing: task, dataset'),
  ],
)
def test_below_a_folder_damaged_runs_are_left_out(tmp_path, name, content, words):
  write_run(tmp_path / 'a', planned=100)
  write_run(tmp_path / 'c', planned=100, seed=1)
  (tmp_path / 'c' / name).write_text(content)
  found = load_results([tmp_path, tmp_path])
  assert [run.path.parent.name for run in found.runs] == ['a']
  (damaged,) = found.damaged
  assert damaged.path == tmp_path / 'c'
  assert str(damaged).startswith(f'{tmp_path}/c/{name}: {words}')
  assert str(damaged).endswith('; move the run away, or restore the file')
  # One that is named is an error, as is a folder with no other.
  assert error_of(tmp_path / 'c') == str(damaged)
  (tmp_path / 'a' / 'results.json').unlink()
  (tmp_path / 'a' / 'config.json').unlink()
  assert f'{tmp_path}: no finished run here or below: {damaged}; python -m' in error_of(tmp_path)


def test_below_a_folder_a_link_to_nothing_is_left_out(tmp_path):
  write_run(tmp_path / 'a')
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c' / 'results.json').symlink_to(tmp_path / 'gone')
  (damaged,) = load_results([tmp_path]).damaged
  assert str(damaged) == f"[Errno 2] No such file or directory: '{tmp_path}/c/results.json'"


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'seed': ..., 'steps': ...}, 'missing: seed, steps'),
    ({'accuracy': 36.96}, 'accuracy is 36.96: expected a fraction between 0 and 1'),
    ({'accuracy': float('nan')}, 'accuracy is NaN: expected a fraction'),
    ({'accuracy': None}, 'accuracy is null: expected a fraction'),
    ({'seed': '0'}, 'seed is "0": expected an integer'),
    ({'seed': True}, 'seed is true: expected an integer'),
    ({'seed': 1.5}, 'seed is 1.5: expected an integer'),
    ({'comparable': 1}, 'comparable is 1: expected true or false'),
    ({'model': ['gmm']}, 'model is ["gmm"]: expected a string'),
    ({'steps_per_second': 'fast'}, 'steps_per_second is "fast": expected a number'),
  ],
)
def test_wrong_values_are_named(tmp_path, changes, words):
  write_run(tmp_path, **changes)
  assert f'{tmp_path}/results.json: {words}' in error_of(tmp_path)


@pytest.mark.parametrize(
  ('votes', 'deviation', 'expected'),
  [
    (0.4, 0.5, 0.5),
    (0.4, None, math.inf),  # JSON has no number for it.
    (0.4, math.inf, math.inf),  # As earlier versions wrote it.
    (None, None, None),
    (0.4, ..., None),
  ],
)
def test_null_is_infinite_where_votes_were_counted(tmp_path, votes, deviation, expected):
  write_run(tmp_path, voting_accuracy=votes, mean_deviation=deviation)
  [run] = load_results([tmp_path]).runs
  assert run.mean_deviation == expected


# Repeated seeds.


def make_run(modified=0.0, **changes):
  return parse_run({**RUN, **changes}, Path('runs/results.json'), modified)


def test_seeds_are_grouped_and_of_a_repeated_one_the_newest_stays():
  runs = [make_run(2, seed=1), make_run(3, seed=0), make_run(1, seed=0)]
  [group] = group_runs(runs)
  assert group == (((runs[1], runs[0])), (runs[2],))


@pytest.mark.parametrize('key', ['task', 'dataset', 'split', 'model', 'preset', 'config_id'])
def test_runs_of_different_configs_stay_apart(key):
  groups = group_runs([make_run(), make_run(seed=1, **{key: 'other'})])
  assert [len(group.runs) for group in groups] == [1, 1]


def test_runs_know_their_last_evaluations(tmp_path):
  write_run(tmp_path)
  (run,) = load_results([tmp_path]).runs
  assert run.late == ()
  lines = [f'{{"step": {step}, "eval_accuracy": 0.{step}}}\n' for step in range(1, 8)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(lines) + '{"step": 8, "eval_loss": 1.0}\n{"st')
  (run,) = load_results([tmp_path]).runs
  assert run.late == ((3, 0.3), (4, 0.4), (5, 0.5), (6, 0.6), (7, 0.7))
