import pathlib
import subprocess
import sys
import types

import grain
import numpy as np
import pytest
from run_helpers import ROOT, environment, save_altered

from kl_flax.checkpoints import checksum, quiet_storage
from lra_tasks.runs.checkpoints import RunCheckpoints


def make_state(value):
  return {'params': {'w': np.full((3, 4), value, np.float32)}, 'step': np.int32(value)}


def make_data():
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def save(directory, scores, keep_accuracies=()):
  """Save a checkpoint per (step, score); a score of None means not evaluated."""
  checkpoints, data = RunCheckpoints(directory, keep_accuracies), make_data()
  for step, score in scores:
    metrics = None if score is None else {'accuracy': score}
    checkpoints.save(step, make_state(step), data, metrics)
    next(data)
  checkpoints.close()


def steps_in(directory):
  return sorted(int(p.name) for p in pathlib.Path(directory).iterdir() if p.name.isdigit())


def test_two_newest_and_the_best_are_kept(tmp_path):
  save(tmp_path, [(1, 0.2), (2, 0.9), (3, 0.1), (4, None), (5, 0.3), (6, None)])
  assert steps_in(tmp_path) == [2, 5, 6]
  assert RunCheckpoints(tmp_path).best_step() == 2


def test_the_first_to_reach_an_accuracy_are_kept(tmp_path):
  scores = [(1, 0.1), (2, 0.2), (3, None), (4, 0.15), (5, 0.65), (6, 0.7), (7, 0.9), (8, 0.3)]
  save(tmp_path, scores, (20, 40, 60, 80, 95))
  assert steps_in(tmp_path) == [2, 5, 7, 8]
  # A run that goes on keeps them, too; another one may still be reached.
  save(tmp_path, [(9, 0.6), (10, 0.96), (11, 0.97), (12, None), (13, None)], (20, 40, 60, 80, 95))
  assert steps_in(tmp_path) == [2, 5, 7, 10, 11, 12, 13]
  assert RunCheckpoints(tmp_path).best_step() == 11


def test_the_score_ranks_and_the_accuracy_is_reached(tmp_path):
  scores = [(1, 0.1, 0.9), (2, 0.45, 0.2), (3, 0.5, 0.95), (4, 0.6, 0.1), (5, None, None)]
  checkpoints, data = RunCheckpoints(tmp_path, (40, 80)), make_data()
  wanted = []
  for step, accuracy, score in scores:
    metrics = None if score is None else {'accuracy': accuracy, 'score': score}
    wanted += [checkpoints.is_wanted(metrics)] if metrics else []
    checkpoints.save(step, make_state(step), data, metrics)
  checkpoints.close()
  assert wanted == [True, True, True, False]  # The first, 40 %, the best.
  assert steps_in(tmp_path) == [2, 3, 4, 5]
  again = RunCheckpoints(tmp_path, (40, 80))
  assert again.best_step() == 3
  assert again.is_wanted({'accuracy': 0.8, 'score': 0.0})
  assert again.is_wanted({'accuracy': 0.0, 'score': 0.95})
  assert not again.is_wanted({'accuracy': 0.79, 'score': 0.94})


def test_checkpoints_of_earlier_versions_have_no_score_and_come_last(tmp_path):
  save(tmp_path, [(1, 0.9), (2, 0.8)])
  checkpoints, data = RunCheckpoints(tmp_path), make_data()
  for step, score in ((3, -0.1), (4, 0.2), (5, 0.1), (6, 0.1)):
    metrics = {'accuracy': 0.5, 'score': score}
    assert checkpoints.is_wanted(metrics) == (step < 5)
    checkpoints.save(step, make_state(step), data, metrics)
  checkpoints.close()
  assert steps_in(tmp_path) == [4, 5, 6]
  assert RunCheckpoints(tmp_path).best_step() == 4


def test_of_equal_checkpoints_the_last_is_the_best(tmp_path):
  save(tmp_path, [(1, 0.5), (2, 0.5), (3, 0.4)])
  assert RunCheckpoints(tmp_path).best_step() == 2
  assert steps_in(tmp_path) == [2, 3]


def test_state_and_iterator_come_back(tmp_path):
  save(tmp_path, [(1, 0.2), (2, None)])
  data = make_data()
  step, state = RunCheckpoints(tmp_path).restore_newest(make_state(0), data)
  assert step == 2
  np.testing.assert_array_equal(state['params']['w'], make_state(2)['params']['w'])
  assert next(data) == 1


def test_relative_directories_work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save('run/checkpoints', [(1, 0.2)])
  assert steps_in(tmp_path / 'run/checkpoints') == [1]


def test_nothing_to_restore(tmp_path):
  assert RunCheckpoints(tmp_path).restore_newest(make_state(0), make_data()) is None


def damage(directory, how):
  """Damage the files that hold the arrays."""
  files = [p for p in pathlib.Path(directory, 'state').rglob('*') if p.is_file()]
  assert files
  for path in files:
    content = bytearray(path.read_bytes())
    if how == 'truncate':
      path.write_bytes(content[: len(content) // 2])
    elif how == 'remove':
      path.unlink()
    elif len(content) > 40:
      content[len(content) // 2] ^= 0xFF
      path.write_bytes(content)


@pytest.mark.parametrize('how', ['truncate', 'remove', 'flip'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, how):
  import logging

  logging.getLogger('lra_tasks').propagate = True
  save(tmp_path, [(1, 0.2), (2, 0.3)])
  damage(tmp_path / '2', how)
  data = make_data()
  step, state = RunCheckpoints(tmp_path).restore_newest(make_state(0), data)
  assert step == 1
  assert state['step'] == 1
  assert next(data) == 0
  assert 'Checkpoint 2' in caplog.text
  assert 'is left out' in caplog.text
  save(tmp_path, [(2, 0.4)])  # Its place is free again.
  assert steps_in(tmp_path) == [1, 2]


def alter_weight(state):
  state['params']['w'][2, 3] += 2**-20


def alter_step(state):
  state['step'] += 1


@pytest.mark.parametrize('alter', [alter_weight, alter_step])
def test_silently_altered_values_are_found(tmp_path, caplog, alter):
  save(tmp_path, [(1, 0.2)])
  save_altered(tmp_path, 1)  # Nothing but values counts.
  step, state = RunCheckpoints(tmp_path).restore_newest(make_state(0), make_data())
  assert (step, state['step']) == (1, 1)
  save_altered(tmp_path, 1, alter)
  with pytest.raises(ValueError, match='no checkpoint in .* can be read'):
    RunCheckpoints(tmp_path).restore_newest(make_state(0), make_data())
  assert 'its contents do not match their checksum' in caplog.text


def test_errors_that_are_no_damage_remove_nothing(tmp_path, monkeypatch):
  save(tmp_path, [(1, 0.2), (2, 0.3)])
  checkpoints = RunCheckpoints(tmp_path)

  def fail(step, like):
    raise OSError('the disk is away')

  monkeypatch.setattr(checkpoints, '_read', fail)
  with pytest.raises(ValueError, match='no checkpoint in'):
    checkpoints.restore_newest(make_state(0), make_data())
  assert steps_in(tmp_path) == [1, 2]


def test_an_unfinished_checkpoint_is_not_seen(tmp_path):
  save(tmp_path, [(1, 0.2), (2, 0.3)])
  (tmp_path / '2').rename(tmp_path / '2.orbax-checkpoint-tmp')
  step, _ = RunCheckpoints(tmp_path).restore_newest(make_state(0), make_data())
  assert step == 1


def test_saving_again_replaces(tmp_path):
  save(tmp_path, [(1, None)])
  save(tmp_path, [(1, 0.7)])
  assert RunCheckpoints(tmp_path).best_step() == 1


def test_checksum_sees_values_names_shapes_and_types():
  state = make_state(3)
  variants = [
    make_state(4),
    {'params': {'v': state['params']['w']}, 'step': state['step']},
    {**state, 'params': {'w': state['params']['w'].reshape(4, 3)}},
    {**state, 'params': {'w': state['params']['w'].view(np.int32)}},
  ]
  assert checksum(state) == checksum(make_state(3))
  assert len({checksum(v) for v in [state, *variants]}) == 5


@pytest.mark.parametrize(
  ('call', 'write'),
  [
    ('save', lambda checkpoints: checkpoints.save(1, make_state(1), make_data(), None)),
    ('wait_until_finished', RunCheckpoints.wait),
    ('close', RunCheckpoints.close),
  ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, call, write):
  checkpoints = RunCheckpoints(tmp_path)

  def fail(*args, **options):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Error writing "w" in file "/d": Failed writing: "/d/7": No space left\nx'
    )

  monkeypatch.setattr(checkpoints._manager, call, fail)
  with pytest.raises(OSError, match=r'cannot be written to .*MiB are free: No space left\. Make'):
    write(checkpoints)
  monkeypatch.undo()
  checkpoints.close()


def test_of_a_damaged_checkpoint_nothing_is_said_but_the_error(tmp_path):
  directory = tmp_path / 'checkpoints'
  checkpoints = RunCheckpoints(directory)
  state = {str(i): np.full(1000, i, np.float32) for i in range(50)}
  checkpoints.save(1, state, make_data(), None)
  checkpoints.close()
  for path in (directory / '1' / 'state' / 'd').iterdir():
    path.write_bytes(b'')
  # Several times: what is said depends on how far the other reads are.
  program = """
import sys, time
from kl_flax.checkpoints import restore
for _ in range(5):
  try:
    restore(sys.argv[1])
  except ValueError as error:
    print(str(error)[:12])
time.sleep(0.2)
"""
  found = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100,
  )  # fmt: skip
  assert (found.returncode, found.stderr) == (0, '')
  assert found.stdout == 'checkpoint 1\n' * 5


def test_other_things_that_cannot_be_raised_are_still_told(monkeypatch):
  told = []
  monkeypatch.setattr(sys, 'unraisablehook', told.append)
  quiet_storage()
  quiet_storage()
  closed = RuntimeError('Event loop is closed')
  others = [(ValueError('x'), None), (closed, 'an object')]
  for error, subject in [(closed, None), *others]:
    sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=subject))
  assert [(x.exc_value, x.object) for x in told] == others
