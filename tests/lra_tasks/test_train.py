"""Runs from the outside: what they write, and that nothing which happens to them is lost."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from run_helpers import (
  ROOT,
  STEPS,
  environment,
  finish,
  read,
  run_here,
  save_altered,
  start,
)

from kl_flax import Predictor
from kl_flax.models import MODELS
from lra_tasks.data import listops


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


def test_validation_with_several_draws(shared, reference, tmp_path):
  fields = {'eval_frequency': 40, 'validation_samples': 3, 'save_checkpoints': False}
  assert run_here(shared, tmp_path, **fields) == 0
  (record,) = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  last = json.loads((reference / 'metrics.jsonl').read_text().splitlines()[-1])
  # The training is the same; the validation is another mean, over the same examples.
  assert record['train_loss'] != last['train_loss']  # Of 40 steps, not of 20.
  assert record['eval_loss'] == pytest.approx(last['eval_loss'], rel=0.05)
  assert record['eval_loss'] != last['eval_loss']
  examples = round(3 * 64 * record['eval_accuracy'], 6)
  assert examples == int(examples)
  assert read(tmp_path, 'results.json')['eval_samples'] == 1


def test_a_finished_run_is_left_alone(shared, reference, caplog):
  before = (reference / 'results.json').stat().st_mtime_ns
  assert run_here(shared, reference) == 0
  assert 'This run is finished' in caplog.text
  assert (reference / 'results.json').stat().st_mtime_ns == before
  assert 'eval_samples' not in caplog.text
  config = (reference / 'config.json').read_text()
  assert run_here(shared, reference, eval_samples=7) == 0
  assert 'with eval_samples=1; --test_only evaluates it with 7' in caplog.text
  assert (reference / 'config.json').read_text() == config


def test_an_early_evaluation_does_not_finish_a_run(shared, reference, tmp_path):
  shutil.copytree(reference, tmp_path / 'run')
  early = read(reference, 'results.json') | {'steps': 20}
  (tmp_path / 'run/results.json').write_text(json.dumps(early))
  assert run_here(shared, tmp_path / 'run') == 0
  assert read(tmp_path / 'run', 'results.json')['steps'] == STEPS


def test_impossible_options_are_named_before_data_is_prepared(tmp_path, caplog):
  attention = {'num_frequencies': -4}
  with pytest.raises(ValueError, match='-4'):
    run_here(tmp_path, tmp_path / 'run', attention=attention)
  assert 'preparing' not in caplog.text
  assert list(tmp_path.iterdir()) == []


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


def test_damaged_newest_checkpoint(shared, reference, tmp_path, caplog):
  shutil.copytree(reference, tmp_path / 'run')
  run = tmp_path / 'run'
  (run / 'results.json').unlink()
  for path in (run / 'checkpoints/40/state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-20])
  assert run_here(shared, run) == 0
  assert 'Checkpoint 40' in caplog.text
  assert 'is left out' in caplog.text
  assert 'Continuing at step 30' in caplog.text
  assert read(run, 'results.json')['steps'] == STEPS


def test_another_config_in_the_directory(shared, reference):
  with pytest.raises(ValueError, match='holds another run.*\n.*warmup: 10 there, 77 now'):
    run_here(shared, reference, warmup=77)


def test_test_only_evaluates_the_best_checkpoint(shared, reference, tmp_path):
  shutil.copytree(reference, tmp_path / 'run')
  (tmp_path / 'run/results.json').unlink()
  assert run_here(shared, tmp_path / 'run', test_only=True) == 0
  ours, theirs = read(tmp_path / 'run', 'results.json'), read(reference, 'results.json')
  assert ours['accuracy'] == theirs['accuracy']
  assert ours['best_step'] == theirs['best_step']
  assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-5)


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
  config.max_length = 20
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


@pytest.mark.slow
def test_lra_files_run_on_lra_data(shared, tsv, tmp_path):
  config = tmp_path / 'transformer_base.py'
  config.write_text(LRA_BASE.format(model_type='transformer'))
  flags = ['--task=listops', f'--config={config}', f'--data_dir={tsv}', '--task_name=basic']
  output = finish(start(shared, tmp_path / 'run', *flags))
  assert 'were longer than max_length=20 and were cut' in output
  results = read(tmp_path / 'run', 'results.json')
  assert results['preset'] == 'lra'
  assert results['examples'] == 16


@pytest.mark.slow
def test_lra_files_of_missing_models_list_those_that_exist(shared, tmp_path):
  config = tmp_path / 'transformer_tlb_base.py'
  config.write_text(LRA_BASE.format(model_type='transformer_tlb'))
  output = finish(start(shared, tmp_path / 'r', '--task=listops', f'--config={config}'), 1)
  assert "error: unknown model_type 'transformer_tlb'" in output
  assert 'Traceback' not in output
  assert f'known: {", ".join(sorted(MODELS))}' in output


def test_a_damaged_tsv_is_named_with_its_line(shared, tsv, tmp_path):
  shutil.copytree(tsv, tmp_path / 'tsv')
  path = tmp_path / 'tsv/basic_train.tsv'
  lines = path.read_text().splitlines()
  lines[3] = lines[3].replace('[', '{', 1)
  path.write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=r'basic_train\.tsv.*4'):
    run_here(
      shared, tmp_path / 'run', source=str(tmp_path / 'tsv'),
      data=dataclasses.asdict(listops.ListOpsData()),
    )  # fmt: skip


def test_help_names_the_flags():
  help_text = subprocess.run(
    [sys.executable, '-m', 'lra_tasks.train', '--help'],
    cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
  ).stdout  # fmt: skip
  for flag in ('--config', '--model_dir', '--data_dir', '--source', '--task_name', 'test_only'):
    assert flag in help_text


def test_predictor_names_what_it_cannot_read(reference, caplog):
  predictor = Predictor.restore(str(reference))
  with pytest.raises(ValueError, match='needs at least one input'):
    predictor.predict([])
  with pytest.raises(ValueError, match=r"input 1: unknown symbol '\[SUM' \(symbol 1 of 4\)"):
    predictor.predict(['[MAX 1 2 ]', '[SUM 1 2 ]'])
  logging.getLogger('kl_flax').propagate = True
  one = predictor.predict('[MAX 1 ' + '2 ' * 200 + ']')
  assert '1 of 1 inputs were cut at max_length=64' in caplog.text
  assert one.labels.shape == (1,)


def test_a_run_keeps_the_names_of_its_classes(reference, tmp_path):
  predictor = Predictor.restore(str(reference))
  assert predictor.class_names == tuple('0123456789')
  prediction = predictor.predict(['[MAX 1 2 ]', '[MIN 1 2 ]'])
  assert prediction.names == [str(label) for label in prediction.labels]
  # Runs of before had none.
  shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
  description = read(tmp_path, 'config.json')
  del description['class_names']
  (tmp_path / 'config.json').write_text(json.dumps(description))
  older = Predictor.restore(str(tmp_path))
  assert older.class_names is older.predict('[MAX 1 2 ]').names is None


def test_predictions_do_not_depend_on_their_company(reference):
  """Lengths fall into two buckets, and the batch is larger than one program takes."""
  predictor = Predictor.restore(str(reference))
  inputs = [f'[MAX {"1 " * (n % 50)}{n % 10} ]' for n in range(40)]
  together = predictor.predict(inputs)
  alone = np.concatenate([predictor.predict(text).probabilities for text in inputs[::13]])
  np.testing.assert_allclose(together.probabilities[::13], alone, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(together.labels, together.probabilities.argmax(axis=1))


def test_predictor_finds_altered_parameters(reference, tmp_path):
  shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
  step = read(reference, 'results.json')['best_step']

  def alter(state):
    state['params']['logits']['bias'][3] += 2**-10

  save_altered(tmp_path / 'checkpoints', step)
  before, same = (Predictor.restore(str(path)).params for path in (reference, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, before, same)
  save_altered(tmp_path / 'checkpoints', step, alter)
  with pytest.raises(ValueError, match='cannot be read: its contents do not match'):
    Predictor.restore(str(tmp_path))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'num_layers': 2},
      r'another model than its checkpoint is of: encoder/block_1/.* is \(.*absent',
    ),
    ({'vocab_size': 20}, r'encoder/embedding/table is \(20, 32\) by the one, \(16, 32\) in the'),
    ({'model_type': 'transformer', 'attention': {}}, 'log_variance is absent by the one'),
    ({'attention': {}}, "its attention lacks 'num_frequencies'"),
    ({'qkv_dim': 33}, 'describes an impossible model: qkv_dim=33 must be a multiple'),
    ({'num_heads': 0}, 'describes an impossible model: '),
  ],
)
def test_predictor_finds_a_config_of_another_model(reference, tmp_path, changes, message):
  shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
  description = read(reference, 'config.json')
  description['model'] |= changes
  (tmp_path / 'config.json').write_text(json.dumps(description))
  with pytest.raises(ValueError, match=message):
    Predictor.restore(str(tmp_path))


def test_predictor_needs_a_run_with_a_checkpoint(reference, tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no trained model'):
    Predictor.restore(str(tmp_path))
  shutil.copy(reference / 'config.json', tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no checkpoint: a training that has not ended'):
    Predictor.restore(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no checkpoint of step 7'):
    Predictor.restore(str(reference), step=7)
