"""Runs on several devices and in several processes."""

import json
import signal
import socket

import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_helpers import (
  assert_same_run,
  finish,
  kill_at,
  leaves,
  read,
  run_here,
  start,
  wait_for,
)

from lra_tasks.data import parts
from lra_tasks.training.loop import NonFiniteLossError


@pytest.mark.slow
def test_kills_and_signals_lose_nothing(shared, reference, tmp_path, caplog):
  checkpoints, log = tmp_path / 'checkpoints', tmp_path / 'metrics.jsonl'
  for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
    log.unlink(missing_ok=True)
    process = start(shared, tmp_path, devices=2)
    wait_for(process, log.exists)  # It is opened right before the loop.
    process.send_signal(number)
    assert 'the same command goes on from there' in finish(process, code)
    assert not (tmp_path / 'results.json').exists()
  # Between two checkpoints, and while one is being written.
  kill_at(start(shared, tmp_path, devices=2), (checkpoints / '10').exists)
  kill_at(start(shared, tmp_path, devices=2), lambda: list(checkpoints.glob('20.orbax*')))
  assert run_here(shared, tmp_path) == 0
  assert 'Continuing at step' in caplog.text
  assert_same_run(tmp_path, reference)


def test_a_signal_loses_nothing(shared, reference, tmp_path, caplog):
  process = start(shared, tmp_path, devices=2)
  wait_for(process, (tmp_path / 'checkpoints/10').exists)
  process.send_signal(signal.SIGTERM)
  assert 'the same command goes on from there' in finish(process, 143)
  assert not (tmp_path / 'results.json').exists()
  assert run_here(shared, tmp_path) == 0
  assert 'Continuing at step' in caplog.text
  assert_same_run(tmp_path, reference)


def start_two(shared, model_dir, devices=1):
  """Start two processes that form one run."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  join = lambda i: {
    'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i),
  }  # fmt: skip
  return [start(shared, model_dir, devices=devices, **join(i)) for i in (0, 1)]


def kill_one(processes, victim, condition):
  """Kill one of two processes; the other must stop by itself and say why."""
  kill_at(processes[victim], condition)
  output, _ = processes[1 - victim].communicate(timeout=100)
  assert processes[1 - victim].returncode != 0
  # Ours where a collective fails; JAX's runtime speaks and aborts when its leader is gone.
  assert 'another process stopped' in output or 'another task died' in output


@pytest.mark.parametrize('stopped', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_two_devices(shared, reference, tmp_path, stopped):
  """Also when one of them is preempted on the way, or dies: both stop, and both go on."""
  log = tmp_path / 'metrics.jsonl'
  if stopped:
    processes = start_two(shared, tmp_path)
    wait_for(processes[1], log.exists)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
      finish(process, 143)
    log.unlink()
    kill_one(start_two(shared, tmp_path), 1, log.exists)
  outputs = [finish(p) for p in start_two(shared, tmp_path)]
  assert 'Process 0 of 2' in outputs[0]
  assert 'Test accuracy' in outputs[0]
  assert_same_run(tmp_path, reference, exact=False)


@pytest.mark.slow
def test_without_the_first_process_the_other_stops(shared, tmp_path):
  kill_one(start_two(shared, tmp_path), 0, (tmp_path / 'metrics.jsonl').exists)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(shared, tmp_path):
  explode = {'factors': 'constant * decay_every', 'decay_factor': 1e30, 'steps_per_decay': 15}
  with pytest.raises(NonFiniteLossError, match=r'the loss is \S+ at step 1[67]; no checkpoint'):
    run_here(shared, tmp_path, **explode)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['10']
  with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
    items = manager.restore(10, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
  assert all(np.all(np.isfinite(v)) for _, v in leaves(dict(items)['state']))


@pytest.mark.parametrize('model', ['gmm_prf', pytest.param('gmm_rks', marks=pytest.mark.slow)])
def test_without_checkpoints_the_last_parameters_are_evaluated(shared, tmp_path, model):
  options = {'save_checkpoints': False, 'num_train_steps': 20}
  assert run_here(shared, tmp_path, argument=f'{model},tiny', **options) == 0
  results = read(tmp_path, 'results.json')
  assert results['best_step'] is None
  assert results['steps'] == 20
  (record,) = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert record['train_loss'] < 2.6
  if model == 'gmm_rks':
    assert record['eval_nonpositive_denominators'] == 0  # The smoothing sees to that.


@pytest.mark.slow
def test_a_run_in_parts_learns_what_one_of_whole_batches_does(
  shared, tmp_path, caplog, monkeypatch
):
  for name, value in {'_COMPILATION': 0, '_OVERHEAD': 0, '_MULTIPLE': 1}.items():
    monkeypatch.setattr(parts, name, value)
  options = {'num_train_steps': 20, 'dropout_rate': 0.0}
  records = []
  for name in ('parts', 'whole'):
    assert run_here(shared, tmp_path / name, **options) == 0
    records.append(json.loads((tmp_path / name / 'metrics.jsonl').read_text()))
    assert ('computed in parts' in caplog.text) == (name == 'parts')
    caplog.clear()
    monkeypatch.setattr(parts, '_SHARES', ())
  for name in ('train_loss', 'eval_loss'):
    assert records[0][name] == pytest.approx(records[1][name], rel=1e-3)
