"""Runs from the outside: what they write, and that nothing which happens to them is lost."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kl_flax import Predictor
from lra_tasks import configuration, listops
from lra_tasks.loop import NonFiniteLossError
from lra_tasks.train import train

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40  # Of the preset tiny: evaluations at 20 and 40, checkpoints at 10, 20, 30, 40.


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """A directory for the data that all runs share."""
  return tmp_path_factory.mktemp('shared')


def environment(devices=1, **extra):
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', f'device_count={devices}')
  return {**os.environ, 'XLA_FLAGS': flags, 'PYTHONUNBUFFERED': '1', **extra}


def start(shared, model_dir, *flags, config='listops.py:gmm_prf,tiny', devices=1, **extra):
  """Start the command that README shows."""
  command = [
    sys.executable, '-m', 'lra_tasks.train', f'--config={ROOT}/configs/{config}',
    f'--model_dir={model_dir}', f'--data_dir={shared}/data', *flags,
  ]  # fmt: skip
  return subprocess.Popen(
    command, cwd=ROOT, env=environment(devices, **extra), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip


def finish(process, code=0, timeout=120):
  output, _ = process.communicate(timeout=timeout)
  assert process.returncode == code, output
  return output


def wait_for(process, condition):
  """Wait until the condition holds; fail if the process ends before."""
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.002)


def read(model_dir, name):
  return json.loads((model_dir / name).read_text())


def final_state(model_dir):
  with ocp.CheckpointManager(model_dir / 'checkpoints') as manager:
    return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))


def leaves(tree, prefix=''):
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from leaves(value, f'{prefix}/{key}')
  elif isinstance(tree, list | tuple):
    for i, value in enumerate(tree):
      yield from leaves(value, f'{prefix}/{i}')
  elif tree is not None:
    yield prefix, np.asarray(tree)


TIMINGS = {'wall_time_seconds', 'steps_per_second', 'peak_memory_bytes'}


def assert_same_run(model_dir, reference, exact=True):
  """Compare parameters, optimiser state, metrics and results of two runs."""
  compare = np.testing.assert_array_equal
  if not exact:
    compare = lambda a, b, msg: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=msg)
  states = [dict(leaves(dict(final_state(d))['state'])) for d in (model_dir, reference)]
  assert states[0].keys() == states[1].keys()
  for name, value in states[0].items():
    compare(value, states[1][name], name)
  for name in ('metrics.jsonl', 'results.json'):
    lines = [
      [json.loads(line) for line in (d / name).read_text().splitlines()]
      if name.endswith('l')
      else [read(d, name)]
      for d in (model_dir, reference)
    ]
    assert len(lines[0]) == len(lines[1])
    for ours, theirs in zip(*lines, strict=True):
      for key in theirs.keys() - TIMINGS:
        if isinstance(theirs[key], float):
          compare(ours[key], theirs[key], key)
        elif exact:
          assert ours[key] == theirs[key], key


@pytest.fixture(scope='session')
def reference(shared):
  """An uninterrupted run on one device."""
  output = finish(start(shared, shared / 'reference'))
  (shared / 'reference.log').write_text(output)
  return shared / 'reference'


@pytest.fixture(scope='session')
def reference_of_two(shared):
  """An uninterrupted run of one process on two devices."""
  finish(start(shared, shared / 'reference2', devices=2))
  return shared / 'reference2'


def run_here(shared, model_dir, *, argument='gmm_prf,tiny', source=None, test_only=False, **fields):
  """Run in this process, on its two simulated devices."""
  spec = importlib.util.spec_from_file_location('listops_config', ROOT / 'configs/listops.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  resolved = configuration.resolve(module.get_config(argument))
  return train(
    resolved | fields,
    model_dir=str(model_dir),
    data_dir=str(shared / 'data'),
    source=source,
    test_only=test_only,
  )


def test_a_run_writes_what_readme_lists(shared, reference):
  results = read(reference, 'results.json')
  assert results['task'] == 'listops'
  assert results['model'] == 'gmm_prf'
  assert results['preset'] == 'tiny'
  assert results['split'] == 'test'
  assert not results['comparable']
  assert results['examples'] == 64
  assert 0 <= results['accuracy'] <= 1
  assert 0.1 <= results['majority_class'] < 0.5
  assert results['steps'] == STEPS
  assert results['best_step'] in (20, 40)
  assert results['parameter_ratio'] == results['parameters'] / results['base_parameters']
  config = read(reference, 'config.json')
  assert config['config']['model_type'] == 'gmm_prf'
  assert config['versions']['jax']
  records = [json.loads(line) for line in (reference / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in records] == [20, 40]
  assert {'train_loss', 'eval_accuracy', 'learning_rate', 'steps_per_second'} <= records[0].keys()
  assert list((reference / 'summary').glob('events*'))
  log = (shared / 'reference.log').read_text()
  assert 'step 40/40: training loss' in log
  assert 'Test accuracy' in log
  assert 'WARNING' not in log


def test_a_finished_run_is_left_alone(shared, reference):
  before = (reference / 'results.json').stat().st_mtime_ns
  output = finish(start(shared, reference))
  assert 'This run is finished' in output
  assert (reference / 'results.json').stat().st_mtime_ns == before


def test_predictor_agrees_with_the_evaluation_of_the_run(shared, reference):
  fields = read(reference, 'config.json')['config']
  builder = listops.make_builder(listops.ListOpsData(**fields['data']), data_dir=f'{shared}/data')
  source = builder.as_data_source('test')
  records = source.__getitems__(list(range(len(source))))
  expressions = [listops.to_source(r['inputs']) for r in records]
  prediction = Predictor.restore(str(reference)).predict(expressions)
  correct = np.mean(prediction.labels == [r['target'] for r in records])
  assert correct == pytest.approx(read(reference, 'results.json')['accuracy'])
  np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-5)


def kill_at(process, condition):
  wait_for(process, condition)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def test_kill_9_loses_nothing(shared, reference, tmp_path):
  checkpoints = tmp_path / 'checkpoints'
  # While a checkpoint is being written, and between two checkpoints.
  kill_at(start(shared, tmp_path), lambda: list(checkpoints.glob('20.orbax*')))
  kill_at(start(shared, tmp_path), lambda: (checkpoints / '30').exists())
  output = finish(start(shared, tmp_path))
  assert 'Continuing at step' in output
  assert_same_run(tmp_path, reference)


def test_kill_9_with_two_devices(shared, reference_of_two, tmp_path):
  process = start(shared, tmp_path, devices=2)
  kill_at(process, lambda: (tmp_path / 'checkpoints/10').exists())
  finish(start(shared, tmp_path, devices=2))
  assert_same_run(tmp_path, reference_of_two)


def test_preemption_and_interruption_save_and_stop(shared, reference, tmp_path):
  log = tmp_path / 'metrics.jsonl'
  for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
    log.unlink(missing_ok=True)
    process = start(shared, tmp_path)
    wait_for(process, log.exists)  # It is opened right before the loop.
    process.send_signal(number)
    assert 'the same command goes on from there' in finish(process, code)
    assert not (tmp_path / 'results.json').exists()
  finish(start(shared, tmp_path))
  assert_same_run(tmp_path, reference)


def test_damaged_newest_checkpoint(shared, reference, tmp_path):
  shutil.copytree(reference, tmp_path / 'run')
  run = tmp_path / 'run'
  (run / 'results.json').unlink()
  for path in (run / 'checkpoints/40/state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-20])
  output = finish(start(shared, run))
  assert 'Checkpoint 40' in output
  assert 'is damaged' in output
  assert 'Continuing at step 30' in output
  assert_same_run(run, reference)


def start_two(shared, model_dir, devices=1):
  """Start two processes that form one run."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  join = lambda i: {
    'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i),
  }  # fmt: skip
  return [start(shared, model_dir, devices=devices, **join(i)) for i in (0, 1)]


def test_two_processes_equal_one_with_two_devices(shared, reference_of_two, tmp_path):
  outputs = [finish(p) for p in start_two(shared, tmp_path)]
  assert 'Process 0 of 2' in outputs[0]
  assert 'Test accuracy' in outputs[0]
  assert_same_run(tmp_path, reference_of_two, exact=False)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_dies_stops_the_others(shared, tmp_path, victim):
  processes = start_two(shared, tmp_path)
  wait_for(processes[victim], lambda: (tmp_path / 'checkpoints/10').exists())
  processes[victim].kill()
  processes[victim].communicate()
  output, _ = processes[1 - victim].communicate(timeout=100)
  assert processes[1 - victim].returncode != 0
  # Ours where a collective fails; JAX's runtime speaks and aborts when its leader is gone.
  assert 'another process stopped' in output or 'another task died' in output


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(shared, tmp_path):
  explode = {'factors': 'constant * decay_every', 'decay_factor': 1e30, 'steps_per_decay': 15}
  with pytest.raises(NonFiniteLossError, match=r'the loss is \S+ at step 1[67]; no checkpoint'):
    run_here(shared, tmp_path, **explode)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['10']
  with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
    items = manager.restore(10, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
  assert all(np.all(np.isfinite(v)) for _, v in leaves(dict(items)['state']))


def test_another_config_in_the_directory(shared, reference):
  process = start(shared, reference, '--config.warmup=77')
  output = finish(process, 1)
  assert 'holds another run' in output
  assert 'config.warmup: 10 there, 77 now' in output
  assert 'Traceback' not in output


def test_test_only_evaluates_the_best_checkpoint(shared, reference, tmp_path):
  shutil.copytree(reference, tmp_path / 'run')
  (tmp_path / 'run/results.json').unlink()
  finish(start(shared, tmp_path / 'run', '--test_only'))
  ours, theirs = read(tmp_path / 'run', 'results.json'), read(reference, 'results.json')
  assert ours == theirs


def test_test_only_without_a_checkpoint(shared, tmp_path):
  with pytest.raises(ValueError, match='--test_only: .* holds no checkpoint'):
    run_here(shared, tmp_path, test_only=True)


LRA_BASE = """
import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model_type = "{model_type}"
  config.batch_size = 8
  config.eval_frequency = 4
  config.num_train_steps = 4
  config.num_eval_steps = 99999
  config.learning_rate = 0.05
  config.weight_decay = 1e-1
  config.max_target_length = 200  # ignored
  config.sampling_temperature = 0.6
  config.prompt = ""
  config.save_checkpoints = True
  config.restore_checkpoints = True
  config.checkpoint_freq = 10000
  config.random_seed = 0
  config.factors = "constant * linear_warmup * rsqrt_decay"
  config.warmup = 1000
  config.max_length = 40
  config.tied_weights = False
  config.pooling_mode = "CLS"
  config.emb_dim = 16
  config.num_heads = 2
  config.num_layers = 1
  config.qkv_dim = 16
  config.mlp_dim = 16
  config.trial = 0
  return config


def get_hyper(hyper):
  return hyper.product([])
"""


@pytest.fixture(scope='module')
def tsv(tmp_path_factory):
  """LRA's three files, small."""
  directory = tmp_path_factory.mktemp('tsv')
  data = listops.ListOpsData(
    min_length=8, max_length=64, max_depth=4, max_args=5, num_train=64, num_valid=16, num_test=16
  )
  for split, part in listops.split(listops.generate(data, 96), data).items():
    name = {'validation': 'val'}.get(split, split)
    listops.write_tsv(directory / f'basic_{name}.tsv', part)
  return directory


def test_lra_files_run_on_lra_data(shared, tsv, tmp_path):
  config = tmp_path / 'transformer_base.py'
  config.write_text(LRA_BASE.format(model_type='transformer'))
  flags = ['--task=listops', f'--config={config}', f'--data_dir={tsv}', '--task_name=basic']
  output = finish(start(shared, tmp_path / 'run', *flags))
  assert 'were longer than max_length=40 and were cut' in output
  results = read(tmp_path / 'run', 'results.json')
  assert results['preset'] == 'lra'
  assert results['examples'] == 16


def test_lra_files_of_missing_models_list_those_that_exist(shared, tmp_path):
  config = tmp_path / 'reformer_base.py'
  config.write_text(LRA_BASE.format(model_type='reformer'))
  output = finish(start(shared, tmp_path / 'r', '--task=listops', f'--config={config}'), 1)
  assert "error: unknown model_type 'reformer'" in output
  assert 'known: gmm_prf, gmm_rks, linear_transformer, transformer' in output


def test_a_damaged_tsv_is_named_with_its_line(shared, tsv, tmp_path):
  shutil.copytree(tsv, tmp_path / 'tsv')
  path = tmp_path / 'tsv/basic_train.tsv'
  lines = path.read_text().splitlines()
  lines[3] = lines[3].replace('[', '{', 1)
  path.write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=r'basic_train\.tsv.*4'):
    run_here(shared, tmp_path / 'run', source=str(tmp_path / 'tsv'))


def test_without_checkpoints_the_last_parameters_are_evaluated(shared, tmp_path):
  options = {'save_checkpoints': False, 'num_train_steps': 20}
  assert run_here(shared, tmp_path, argument='gmm_rks,tiny', **options) == 0
  results = read(tmp_path, 'results.json')
  assert results['best_step'] is None
  assert results['steps'] == 20
  (record,) = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert record['train_loss'] < 2.6
  assert record['eval_nonpositive_denominators'] == 0  # The smoothing sees to that.


def test_flags_and_help(shared, tmp_path):
  help_text = subprocess.run(
    [sys.executable, '-m', 'lra_tasks.train', '--help'],
    cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
  ).stdout  # fmt: skip
  for flag in ('--config', '--model_dir', '--data_dir', '--source', '--task_name', 'test_only'):
    assert flag in help_text
  output = finish(start(shared, tmp_path, config='listops.py:gmm_prff'), 1)
  assert "did you mean 'gmm_prf'" in output
