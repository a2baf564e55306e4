"""Tests of starting from another run's encoder, and of pre-training on any task."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import run_here

from kl_flax import Predictor, checkpoints
from kl_flax.models import make_classifier, make_model
from lra_tasks import command_line, configuration, inspect_run
from lra_tasks.runs.origin import NamedOrigin

SMALL = {'emb_dim': 16, 'mlp_dim': 16, 'num_train_steps': 10, 'eval_frequency': 10}
FIELDS = SMALL | {'checkpoint_freq': 10, 'batch_size': 64}


@pytest.fixture(scope='module')
def pretrained(shared):
  """A run that has learned to predict masked symbols of ListOps."""
  directory = shared / 'masked'
  code = run_here(
    shared, directory, argument='linear_transformer,tiny', objective='masked', **FIELDS
  )
  assert code == 0
  return directory


def read(directory, name):
  return json.loads((directory / name).read_text())


def test_symbols_of_listops_are_predicted(pretrained):
  config, found = read(pretrained, 'config.json'), read(pretrained, 'results.json')
  assert config['task'] == found['task'] == 'listops/masked'
  # Of at most 64 positions; the mask is one id more than ListOps has.
  assert (config['model']['num_predictions'], config['model']['vocab_size']) == (10, 17)
  # Two in fifteen at least: the ids are 1 to 15.
  record = json.loads((pretrained / 'metrics.jsonl').read_text())
  assert 1 < record['eval_loss'] < 6
  assert 0 < found['accuracy'] < 1
  assert found['examples'] > 64 * 2  # Predictions, not sequences.
  with pytest.raises(
    ValueError, match='predicts masked tokens, not labels: start a run .* by --init_from'
  ):
    Predictor.restore(str(pretrained))


# Without training, the encoder is what it was given.
FROZEN = FIELDS | {'learning_rate': 1e-30, 'argument': 'linear_transformer,tiny'}


@pytest.fixture(scope='module')
def started(shared, pretrained):
  """A run that started with the encoder of the other."""
  assert run_here(shared, shared / 'started', init_from=str(pretrained), **FROZEN) == 0
  return shared / 'started'


@pytest.mark.slow
def test_a_run_starts_with_the_encoder_of_another(pretrained, started):
  _, before = checkpoints.restore(str(pretrained))
  _, after = checkpoints.restore(str(started))
  given, taken = (state['params']['encoder'] for state in (before, after))
  assert given['embedding']['table'].shape == (17, 16)
  given['embedding']['table'] = given['embedding']['table'][:16]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), given, taken)
  label = read(started, 'config.json')['config']['pretrained']
  assert label == NamedOrigin(str(pretrained)).label
  assert label.startswith('listops/masked/linear_transformer/')


@pytest.mark.slow
def test_it_is_another_experiment_than_one_from_scratch(shared, tmp_path, pretrained):
  run_here(shared, tmp_path, **FROZEN)
  with pytest.raises(ValueError, match=r'config\.pretrained'):
    run_here(shared, tmp_path, init_from=str(pretrained), **FROZEN)


@pytest.mark.slow
def test_the_other_run_is_needed_at_the_start_alone(shared, tmp_path, pretrained, started):
  shutil.copytree(started, tmp_path / 'a')
  (tmp_path / 'a/results.json').unlink()
  assert run_here(shared, tmp_path / 'a', **FROZEN) == 0
  label = read(started, 'config.json')['config']['pretrained']
  assert read(tmp_path / 'a', 'results.json')['pretrained'] == label
  assert read(tmp_path / 'a', 'config.json')['init_from'] == str(pretrained)
  shutil.rmtree(tmp_path / 'a/checkpoints')
  (tmp_path / 'a/results.json').unlink()
  with pytest.raises(ValueError, match='holds no checkpoint to go on from: give --init_from again'):
    run_here(shared, tmp_path / 'a', **FROZEN)


def arguments(model_type='linear_transformer', **sizes):
  """Arguments of a classifier like the pre-trained model, or of another."""
  return {
    'model_type': model_type, 'num_classes': 10, 'vocab_size': 16, 'emb_dim': 16, 'num_heads': 2,
    'num_layers': 1, 'qkv_dim': 32, 'mlp_dim': 16, 'max_length': 64, **sizes,
  }  # fmt: skip


def parameters(**sizes):
  """Its parameters, all zero."""
  model = make_classifier(**arguments(**sizes))
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(0)}
  shapes = jax.eval_shape(model.init, rngs, jnp.zeros((1, 8), jnp.int32))['params']
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'emb_dim': 8}, r'its block_0/attention/out/kernel is \(2, 16, 16\), here it is \(2, 16, 8\)'),
    ({'vocab_size': 15}, r'its embedding/table is \(17, 16\), here it is \(15, 16\)'),
    ({'num_layers': 2}, r'it has no parameter block_1/attention/out/kernel'),
    ({'model_type': 'gmm_prf'}, 'it has no parameter block_0/attention/KernelAttention_0/sampler'),
    ({'pooling': 'MEAN'}, 'its parameter cls has no place here'),
  ],
)
def test_encoders_that_do_not_fit(pretrained, changes, message):
  match = f'--init_from=.* does not fit: {message}.*those of that run'
  (name,) = changes
  with pytest.raises(ValueError, match=rf'(?s){match}:.*\n  {name}: .* there, .* now'):
    NamedOrigin(str(pretrained)).check(arguments(**changes))
  with pytest.raises(ValueError, match=match):
    NamedOrigin(str(pretrained)).start(parameters(**changes))


def test_an_encoder_that_fits(pretrained):
  _, state = checkpoints.restore(str(pretrained))
  for vocab_size in (16, 17, 18):  # Without a mask, with it, and with one more id.
    NamedOrigin(str(pretrained)).check(arguments(vocab_size=vocab_size))
    params = NamedOrigin(str(pretrained)).start(parameters(vocab_size=vocab_size))
    table = state['params']['encoder']['embedding']['table']
    expected = np.concatenate([table, np.zeros((1, 16), np.float32)])[:vocab_size]
    np.testing.assert_array_equal(params['encoder']['embedding']['table'], expected)
    assert not np.any(params['logits']['kernel'])


def test_runs_that_are_none(pretrained, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'--init_from=.*nowhere holds no run'):
    NamedOrigin(str(tmp_path / 'nowhere'))
  shutil.copytree(pretrained, tmp_path / 'd', ignore=shutil.ignore_patterns('checkpoints'))
  with pytest.raises(FileNotFoundError, match='holds no checkpoint: a training that has not ended'):
    NamedOrigin(str(tmp_path / 'd')).start(parameters())
  # An evaluation of a run that was stopped; when it goes on, another step may be its best.
  results = read(pretrained, 'results.json')
  tested = json.dumps(results | {'steps': results['steps'] - 1})
  (tmp_path / 'd/results.json').write_text(tested)
  with pytest.raises(FileNotFoundError, match='a run that is not finished: let it run on'):
    NamedOrigin(str(tmp_path / 'd'))
  (tmp_path / 'd/results.json').unlink()
  with pytest.raises(FileNotFoundError, match='a run that is not finished: let it run on'):
    NamedOrigin(str(tmp_path / 'd'))


def test_mechanisms_that_depend_on_the_largest_length(pretrained, tmp_path):
  shutil.copytree(pretrained, tmp_path / 'd')
  description = read(tmp_path / 'd', 'config.json')
  description['model']['model_type'] = 'reformer'
  (tmp_path / 'd/config.json').write_text(json.dumps(description))
  message = 'reformer depends on the largest length, which is max_length=64 there and 32 here'
  with pytest.raises(ValueError, match=f'{message}: --config.max_length=64 makes them equal'):
    NamedOrigin(str(tmp_path / 'd')).check(arguments(max_length=32))


def test_masked_models_have_a_cls_position_where_the_classifier_has_one():
  for pooling, use_cls in (('CLS', True), ('MEAN', False)):
    changes = {'objective': 'masked', 'pooling_mode': pooling}
    fields = configuration.resolve(command_line.load('configs/listops.py:prf,tiny', changes))
    fields |= {'dtype': 'float32'}
    assert make_model(**configuration.model_arguments(fields)).encoder.use_cls == use_cls
  # Pathfinder's base has none either.
  base = configuration.base_model_arguments({'task': 'pathfinder32', 'objective': 'masked'})
  assert not make_model(**base).encoder.use_cls


def test_the_field_is_not_for_users():
  config = command_line.load('configs/listops.py:prf,tiny', {'pretrained': 'runs/wikitext'})
  with pytest.raises(ValueError, match="'runs/wikitext' is what --init_from notes down"):
    configuration.resolve(config)


@pytest.mark.slow
def test_a_started_run_is_known_to_have_begun_with_that_encoder(pretrained, started):
  """As `inspect_run` shows it beside the trained one."""
  found = inspect_run.initial_params(read(started, 'config.json'))['encoder']
  _, before = checkpoints.restore(str(pretrained))
  given = before['params']['encoder']
  given['embedding']['table'] = given['embedding']['table'][:16]  # Without the mask.
  jax.tree.map(np.testing.assert_array_equal, given, found)
  about = read(started, 'config.json')
  about['config'] = about['config'] | {'pretrained': 'listops/masked/other/abc/seed0/step10'}
  with pytest.raises(ValueError, match='began with listops/masked/other.*there is listops/masked'):
    inspect_run.initial_params(about)
