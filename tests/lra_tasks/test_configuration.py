import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from breadth import slow_but
from run_helpers import load_config, load_config_file

from kl_flax.models import MODELS, make_classifier, make_model
from kl_flax.parameters import count_parameters
from lra_tasks import configuration
from lra_tasks.configuration import difference, resolve
from lra_tasks.experiments import LATER_FIELDS
from lra_tasks.presets import parse_argument
from lra_tasks.runs import rundir
from lra_tasks.tasks import TASKS

# GLUE's share one, which is tested by itself.
WITH_FILE = [name for name, spec in TASKS.items() if not spec.config_file]


def lra_config(**fields):
  """A config in the form of LRA's ListOps files."""
  config = ml_collections.ConfigDict(
    {
      'model_type': 'transformer',
      'batch_size': 32,
      'eval_frequency': 50,
      'num_train_steps': 5000,
      'num_eval_steps': 99999,
      'learning_rate': 0.05,
      'weight_decay': 0.1,
      'max_target_length': 200,
      'prompt': '',
      'sampling_temperature': 0.6,
      'save_checkpoints': True,
      'restore_checkpoints': True,
      'checkpoint_freq': 10_000,
      'random_seed': 0,
      'factors': 'constant * linear_warmup * rsqrt_decay',
      'warmup': 1000,
      'max_length': 2000,
      'tied_weights': False,
      'pooling_mode': 'CLS',
      'emb_dim': 512,
      'num_heads': 8,
      'num_layers': 4,
      'qkv_dim': 512,
      'mlp_dim': 1024,
      'trial': 0,
    }
  )
  config.update(fields)
  return config


def test_lra_files_equal_our_lra_preset():
  theirs = resolve(lra_config(), 'listops')
  ours = resolve(load_config('listops', 'transformer,lra'))
  assert difference(ours, theirs) == []


BLOCKS = ('local', 'longformer', 'bigbird', 'sparse_transformer')
# Options that LRA's code has for these models where its files leave them out.
LRA_OPTIONS = {
  'local': {'block_size': 50},
  'longformer': {'sliding_window_size': 512},
  'bigbird': {'block_size': 64, 'num_rand_blocks': 3},
  'sparse_transformer': {'pattern': 'fixed', 'block_size': 50, 'num_summary': 10},
}


@pytest.mark.parametrize('model', BLOCKS)
def test_lra_files_of_block_patterns_equal_our_lra_preset(model):
  """For ListOps, text and matching they name the model alone."""
  files = {
    'listops': lra_config(model_type=model),
    'text': lra_text_config(model_type=model),
    'retrieval': lra_matching_config(model),
  }
  for task, config in files.items():
    theirs = resolve(config, task)
    assert theirs['attention'] | LRA_OPTIONS[model] == theirs['attention']
    assert difference(resolve(load_config(task, model)), theirs) == []


@pytest.mark.parametrize(
  ('model', 'fields'),
  [
    ('local', {'block_size': 64, 'num_heads': 2, 'classifier_pool': 'MEAN'}),
    ('longformer', {'num_layers': 4, 'num_heads': 4, 'classifier_pool': 'MEAN'}),
    # LRA's file spells it like this; the base file's one head stands beside it.
    ('bigbird', {'block_size': 64, 'num_head': 4, 'num_heads': 1}),
    ('sparse_transformer', {}),
  ],
)
def test_lra_files_of_block_patterns_for_image_equal_our_lra_preset(model, fields):
  config = lra_image_config(model)
  with config.model.unlocked():
    config.model.update(fields)
  theirs = resolve(config, 'image')
  assert theirs['num_heads'] == {'local': 2, 'sparse_transformer': 8}.get(model, 4)
  expected = LRA_OPTIONS[model] | {k: v for k, v in fields.items() if k == 'block_size'}
  assert theirs['attention'] | expected == theirs['attention']
  assert difference(resolve(load_config('image', model)), theirs) == []


@pytest.mark.parametrize(
  ('model', 'fields'),
  [
    (
      'local',
      {
        'block_size': 64, 'num_layers': 2, 'num_heads': 4, 'emb_dim': 64, 'dropout_rate': 0.1,
        'qkv_dim': 32, 'mlp_dim': 64,
      },
    ),
    (
      'longformer',
      {
        'num_layers': 2, 'num_heads': 2, 'emb_dim': 32, 'dropout_rate': 0.1, 'qkv_dim': 16,
        'mlp_dim': 32,
      },
    ),
    (
      'bigbird',
      {
        'block_size': 64, 'num_layers': 4, 'num_heads': 2, 'emb_dim': 64, 'dropout_rate': 0.2,
        'qkv_dim': 32, 'mlp_dim': 64,
      },
    ),
    (
      'sparse_transformer',
      {
        'num_layers': 1, 'num_heads': 8, 'emb_dim': 32, 'dropout_rate': 0.2, 'qkv_dim': 16,
        'mlp_dim': 32,
      },
    ),
  ],
)  # fmt: skip
def test_lra_files_of_block_patterns_for_pathfinder_equal_our_lra_preset(model, fields):
  config = lra_image_config(model)
  config.update(
    batch_size=512, eval_frequency=312, num_train_steps=62_400, checkpoint_freq=31_200,
    learning_rate=0.001, warmup=312, steps_per_cycle=62_400,
  )  # fmt: skip
  with config.model.unlocked():
    more = {'attention_dropout_rate': 0.1, 'classifier_pool': 'MEAN', 'learn_pos_emb': False}
    config.model.update(fields | more)
  theirs = resolve(config, 'pathfinder32')
  expected = LRA_OPTIONS[model] | {k: v for k, v in fields.items() if k == 'block_size'}
  assert theirs['attention'] | expected == theirs['attention']
  ours = resolve(load_config('pathfinder32', model))
  differing = {line.split(':')[0] for line in difference(ours, theirs)}
  assert differing == {'checkpoint_freq', 'num_eval_steps'}  # As of all models.


def test_tuned_longformer_has_the_projections_of_the_base_alone():
  fields = resolve(load_config('listops', 'longformer,tuned'))
  assert not fields['attention']['global_projections']
  ours, base = (
    make_classifier(**arguments)
    for arguments in (
      configuration.model_arguments(fields | {'dtype': 'float32'}),
      configuration.base_model_arguments({'task': 'listops'}),
    )
  )
  assert count_parameters(ours) == count_parameters(base)


def test_an_option_of_another_model_is_no_field_of_lras_dictionary():
  config = lra_image_config('longformer')
  with config.model.unlocked():
    config.model.block_size = 64
  with pytest.raises(ValueError, match="unknown config field 'block_size'"):
    resolve(config, 'image')
  # What is a field stays one, though a model has an option of this name.
  fields = resolve(lra_image_config('generative_rks'), 'image')
  assert (fields['num_layers'], fields['attention']['num_layers']) == (1, 4)


MECHANISMS = ('linformer', 'reformer', 'sinkhorn', 'synthesizer')
# Of the fields that follow, LRA's code takes these values where its files say nothing.
LRA_OPTIONS |= {
  'linformer': {'projected_length': 16},
  'reformer': {'num_hashes': 1, 'num_buckets': 10, 'chunk_length': 0},
  'sinkhorn': {'block_size': 50, 'sorting': 'softmax', 'num_iterations': 7, 'temperature': 1.0},
  'synthesizer': {'mode': 'random', 'dot_product': True, 'rank': 32},
}


def assert_is_our_lra_preset(task, model, theirs, attention):
  """Assert that a resolved file of LRA's is our preset, with these options of the mechanism."""
  assert difference(resolve(load_config(task, f'{model},lra')), theirs) == []
  assert theirs['attention'] == LRA_OPTIONS[model] | attention


@pytest.mark.parametrize('model', MECHANISMS)
def test_lra_files_of_mechanisms_equal_our_lra_preset(model):
  assert_is_our_lra_preset('listops', model, resolve(lra_config(model_type=model), 'listops'), {})


def lra_text_config(**fields):
  """A config in the form of LRA's files of text_classification, which do not hold all fields."""
  config = lra_config(
    eval_frequency=100, num_train_steps=20_000, num_eval_steps=-1, warmup=8000, max_length=1000,
    emb_dim=256, num_heads=4, qkv_dim=256, classifier_pool='CLS', **fields,
  )  # fmt: skip
  for name in ('tied_weights', 'pooling_mode') + (
    () if 'model_type' in fields else ('model_type',)
  ):
    del config[name]
  return config


@pytest.mark.parametrize('model', ['transformer', 'performer', 'linear_transformer'])
def test_lra_files_of_text_equal_our_lra_preset(model):
  theirs = resolve(lra_text_config(model_type=model), 'text')
  assert theirs['data']['validation'] == 'test'  # As LRA's code has it.
  assert difference(resolve(load_config('text', f'{model},lra')), theirs) == []


@pytest.mark.parametrize(
  ('model', 'fields', 'attention'),
  [
    ('linformer', {'low_rank_features': 32}, {'projected_length': 32}),
    ('reformer', {}, {}),
    ('sinkhorn', {}, {}),
    (
      'synthesizer',
      {'ignore_dot_product': True, 'synthesizer_mode': 'factorized_random', 'k': 32},
      {'dot_product': False, 'mode': 'factorized_random'},
    ),
  ],
)
def test_lra_files_of_text_and_mechanisms_equal_our_lra_preset(model, fields, attention):
  theirs = resolve(lra_text_config(model_type=model, **fields), 'text')
  assert_is_our_lra_preset('text', model, theirs, attention)


def test_options_that_lra_has_as_fields_are_those_of_their_model():
  with pytest.raises(ValueError, match="unknown config field 'low_rank_features'"):
    resolve(lra_text_config(model_type='reformer', low_rank_features=32), 'text')
  with pytest.raises(ValueError, match="unknown config field 'block_size'"):
    resolve(lra_text_config(block_size=32), 'text')
  config = load_config('text', 'linformer,lra')
  with config.unlocked():
    config.low_rank_features = 8
  with pytest.raises(ValueError, match="unknown config field 'low_rank_features'"):
    resolve(config)


def lra_matching_config(model):
  """A config in the form of LRA's files of matching."""
  config = lra_config(
    model_type=model, eval_frequency=100, num_eval_steps=-1, max_eval_target_length=200,
    sampling_top_k=20, max_predict_token_length=50, warmup=8000, max_length=4000, tokenizer='char',
    emb_dim=128, num_heads=4, qkv_dim=128, mlp_dim=512,
  )  # fmt: skip
  del config['tied_weights']
  return config


@pytest.mark.parametrize('model', ['transformer', 'performer', 'linear_transformer'])
def test_lra_files_of_matching_equal_our_lra_preset(model):
  theirs = resolve(lra_matching_config(model), 'retrieval')
  assert difference(resolve(load_config('retrieval', f'{model},lra')), theirs) == []


@pytest.mark.parametrize('model', MECHANISMS)
def test_lra_files_of_matching_and_mechanisms_equal_our_lra_preset(model):
  theirs = resolve(lra_matching_config(model), 'retrieval')
  assert_is_our_lra_preset('retrieval', model, theirs, {})


def test_lras_base_file_of_text_names_no_model():
  assert resolve(lra_text_config(), 'text')['model_type'] == 'transformer'


def lra_image_config(model):
  """A config in the form of LRA's files of image/configs/cifar10, which nest sizes."""
  config = ml_collections.ConfigDict(
    {
      'model_type': model,
      'batch_size': 256,
      'eval_frequency': 175,
      'num_train_steps': 35_000,
      'num_eval_steps': 39,
      'weight_decay': 0.0,
      'grad_clip_norm': None,
      'save_checkpoints': True,
      'restore_checkpoints': True,
      'checkpoint_freq': 17_500,
      'random_seed': 0,
      'learning_rate': 0.0005,
      'factors': 'constant * linear_warmup * cosine_decay',
      'warmup': 175,
      'steps_per_cycle': 35_000,
      'trial': 0,
    }
  )
  config.model = ml_collections.ConfigDict(
    {
      'emb_dim': 128,
      'num_heads': 8,
      'num_layers': 1,
      'qkv_dim': 64,
      'mlp_dim': 128,
      'dropout_rate': 0.3,
      'attention_dropout_rate': 0.2,
      'classifier_pool': 'CLS',
      'learn_pos_emb': True,
    }
  )
  return config


@pytest.mark.parametrize('model', ['transformer', 'performer', 'linear_transformer'])
def test_lra_files_of_image_equal_our_lra_preset(model):
  theirs = resolve(lra_image_config(model), 'image')
  assert difference(resolve(load_config('image', f'{model},lra')), theirs) == []


@pytest.mark.parametrize(
  ('model', 'fields', 'nested', 'attention'),
  [
    ('linformer', {}, {}, {}),
    (
      'reformer',
      {},
      {'num_layers': 4, 'emb_dim': 64, 'qkv_dim': 32, 'mlp_dim': 64, 'num_heads': 8},
      {},
    ),
    (
      'sinkhorn',
      {'weight_decay': 0.7},
      # Sizes are those of LRA's base file, which its Transformer's overrides.
      {
        'block_size': 64, 'num_layers': 1, 'dropout_rate': 0.1,
        'emb_dim': 32, 'num_heads': 1, 'qkv_dim': 32, 'mlp_dim': 64,
      },
      {'block_size': 64},
    ),
    ('synthesizer', {}, {'synthesizer_mode': 'random'}, {}),
  ],
)  # fmt: skip
def test_lra_files_of_image_and_mechanisms_equal_our_lra_preset(model, fields, nested, attention):
  config = lra_image_config(model)
  config.update(fields)
  config.model.update(nested)
  assert_is_our_lra_preset('image', model, resolve(config, 'image'), attention)


@pytest.mark.parametrize(
  ('model', 'nested', 'attention'),
  [
    (
      'linformer',
      {'num_layers': 1, 'emb_dim': 32, 'qkv_dim': 16, 'mlp_dim': 32, 'num_heads': 2},
      {},
    ),
    (
      'reformer',
      {'num_layers': 2, 'num_heads': 8, 'emb_dim': 64, 'qkv_dim': 32, 'mlp_dim': 64},
      {},
    ),
    (
      'sinkhorn',
      {
        'block_size': 64,
        'num_layers': 2, 'num_heads': 4, 'emb_dim': 32, 'qkv_dim': 16, 'mlp_dim': 64,
      },
      {'block_size': 64},
    ),
    (
      'synthesizer',
      {
        'synthesizer_mode': 'random',
        'num_layers': 2, 'num_heads': 4, 'emb_dim': 64, 'qkv_dim': 32, 'mlp_dim': 64,
      },
      {},
    ),
  ],
)  # fmt: skip
def test_lra_files_of_pathfinder_and_mechanisms_equal_our_lra_preset(model, nested, attention):
  config = lra_image_config(model)
  config.update(
    {
      'batch_size': 512, 'eval_frequency': 312, 'num_train_steps': 62_400, 'learning_rate': 0.001,
      'warmup': 312, 'steps_per_cycle': 62_400,
      # Where ours differ: it evaluates on 39 batches, and saves twice.
      'num_eval_steps': -1, 'checkpoint_freq': 312,
    }
  )  # fmt: skip
  of_task = {
    'dropout_rate': 0.2, 'attention_dropout_rate': 0.1, 'classifier_pool': 'MEAN',
    'learn_pos_emb': False,
  }  # fmt: skip
  config.model = ml_collections.ConfigDict(of_task | nested)
  assert_is_our_lra_preset('pathfinder32', model, resolve(config, 'pathfinder32'), attention)


def test_black_pixels_are_masked_only_if_asked():
  config = load_config('image', 'transformer,lra')
  assert 'mask_zero' not in configuration.model_arguments(resolve(config))
  config.data.mask_zero = True
  fields = resolve(config)
  assert fields['preset'] == 'lra*'
  assert configuration.model_arguments(fields)['mask_zero'] is True


@pytest.mark.parametrize(
  ('task', 'preset'),
  [(task, preset) for task in WITH_FILE for preset in load_config_file(task)._PRESETS],
)
@pytest.mark.parametrize('model', slow_but(['gmm_rks', 'gmm_prf', 'transformer'], MODELS))
def test_every_config_builds_its_model(model, task, preset):
  fields = resolve(load_config(task, f'{model},{preset}'))
  assert fields['preset'] == preset
  assert_model_attends(fields)


@pytest.mark.parametrize('model', MODELS)
def test_quickstart_builds_every_model(model):
  assert_model_attends(resolve(load_config('quickstart', model)))


def assert_model_attends(fields):
  """Trace one attention layer: some options are checked when the head size is known."""
  encoder = make_model(**configuration.model_arguments(fields | {'dtype': 'float32'})).encoder
  shape = (1, 4, encoder.num_heads, encoder.qkv_dim // encoder.num_heads)
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  rngs = {name: jax.random.key(0) for name in ('params', 'spectral')}
  out, _ = jax.eval_shape(encoder.make_attention().init_with_output, rngs, x, x, x)
  assert out.shape == shape


def test_values_that_tell_runs_apart_are_named_where_they_are_defaults():
  old, new = (resolve(load_config('listops', 'gmm_rks,tiny')) for _ in range(2))
  new['attention'] |= {'smoothing': 0.5, 'initial': 'authors'}
  later = next(name for name in LATER_FIELDS if not isinstance(LATER_FIELDS[name], dict))
  new[later] = 'changed'
  old.pop(later)
  found = configuration.run_difference(old, new, (), 'config')
  assert found == sorted(
    [
      "config.attention.initial: 'unit' there, 'authors' now",
      'config.attention.smoothing: 1.0 there, 0.5 now',
      f"config.{later}: {LATER_FIELDS[later]!r} there, 'changed' now",
    ]
  )
  assert configuration.run_difference(new, new, (), '') == []


# The authors' 1 beside features that estimate 2κ, and 1 beside those that estimate κ.
PAPER_SMOOTHING = {
  'gmm_rks': 0.7071, 'fastfood_rks': 1.0, 'generative_rks': 1.0,
  'gmm_prf': 0.0, 'fastfood_prf': 0.0, 'generative_prf': 0.0,
}  # fmt: skip


def test_paper_preset_has_the_figures_of_tables_6_and_7():
  fields = resolve(load_config('listops', 'gmm_prf'))
  expected = {
    'preset': 'paper', 'batch_size': 32, 'learning_rate': 5e-3, 'num_train_steps': 10_000,
    'weight_decay': 0.1, 'warmup': 1000, 'max_length': 2000, 'num_layers': 6, 'num_heads': 8,
    'emb_dim': 512, 'qkv_dim': 512, 'mlp_dim': 2048, 'dropout_rate': 0.1,
    'pooling_mode': 'CLS', 'learn_pos_emb': False, 'resample_every': 100, 'eval_samples': 100,
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected
  assert fields['attention'] == {
    'num_frequencies': 256, 'num_components': 2, 'tied': True, 'smoothing': 0.0,
    'weights': 'equal', 'shared_noise': False, 'antithetic': False, 'typical_norm': 0.0,
    'initial': 'unit', 'implementation': 'auto',
  }  # fmt: skip
  numbers = {
    'gmm_rks': 256, 'fastfood_rks': 64, 'generative_rks': 256,
    'gmm_prf': 256, 'fastfood_prf': 64, 'generative_prf': 128,
  }  # fmt: skip
  for model, number in numbers.items():
    attention = resolve(load_config('listops', model))['attention']
    assert attention['num_frequencies'] == number
    assert attention['smoothing'] == PAPER_SMOOTHING[model]


def test_paper_preset_of_text_has_the_figures_of_tables_6_and_7():
  fields = resolve(load_config('text', 'gmm_prf'))
  expected = {
    'preset': 'paper', 'batch_size': 32, 'learning_rate': 5e-2, 'num_train_steps': 20_000,
    'weight_decay': 0.1, 'warmup': 8000, 'max_length': 4000, 'num_layers': 4, 'num_heads': 4,
    'emb_dim': 256, 'qkv_dim': 256, 'mlp_dim': 1024, 'dropout_rate': 0.1,
    'pooling_mode': 'CLS', 'learn_pos_emb': False, 'resample_every': 100,
    'data': {'validation': 'test', 'seed': 0, 'num_train': -1, 'num_test': -1},
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected
  figures = {
    'gmm_rks': (128, 0.2546), 'fastfood_rks': (64, 1.0), 'generative_rks': (256, 1.0),
    'gmm_prf': (256, 0.0), 'fastfood_prf': (64, 0.0), 'generative_prf': (128, 0.0),
  }  # fmt: skip
  for model, expected in figures.items():
    attention = resolve(load_config('text', model))['attention']
    assert (attention['num_frequencies'], attention['smoothing']) == expected
  for preset in ('lra', 'tuned', 'tiny'):  # The oddity is the paper's.
    assert resolve(load_config('text', f'gmm_rks,{preset}'))['attention']['smoothing'] == 1.0
  assert resolve(load_config('text', 'gmm_prf,tuned'))['data']['validation'] == 'holdout'


@pytest.mark.parametrize('task', ['listops', 'text', 'retrieval', 'image'])
def test_the_kernel_of_gmm_rks_starts_as_the_authors_where_the_preset_asks_for_it(task):
  tuned = 'authors' if task == 'image' else 'unit'  # By validation on Image; untried elsewhere.
  for preset, initial in (('paper', 'authors'), ('tuned', tuned), ('tiny', 'unit')):
    attention = resolve(load_config(task, f'gmm_rks,{preset}'))['attention']
    assert attention['initial'] == initial
  assert resolve(load_config(task, 'gmm_prf'))['attention']['initial'] == 'unit'


def test_paper_preset_of_retrieval_has_the_figures_of_tables_6_and_7():
  fields = resolve(load_config('retrieval', 'gmm_prf'))
  expected = {
    'preset': 'paper', 'batch_size': 32, 'learning_rate': 5e-2, 'num_train_steps': 5000,
    'weight_decay': 0.1, 'warmup': 8000, 'max_length': 4000, 'num_layers': 4, 'num_heads': 4,
    'emb_dim': 128, 'qkv_dim': 128, 'mlp_dim': 512, 'dropout_rate': 0.1, 'interaction': None,
    'pooling_mode': 'CLS', 'learn_pos_emb': False, 'resample_every': 100,
    'data': {'pairs': 'auto', 'seed': 0, 'num_train': -1, 'num_valid': -1, 'num_test': -1},
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected
  numbers = {
    'gmm_rks': 64, 'fastfood_rks': 32, 'generative_rks': 128,
    'gmm_prf': 128, 'fastfood_prf': 32, 'generative_prf': 64,
  }  # fmt: skip
  for model, number in numbers.items():
    attention = resolve(load_config('retrieval', model))['attention']
    assert attention['num_frequencies'] == number
    assert attention['smoothing'] == PAPER_SMOOTHING[model]
  for model in ('gmm_prf', 'transformer'):
    fields = resolve(load_config('retrieval', f'{model},tuned'))
    assert fields['warmup'] < fields['num_train_steps']


def test_paper_preset_of_image_has_the_figures_of_tables_6_and_7():
  fields = resolve(load_config('image', 'gmm_prf'))
  expected = {
    'preset': 'paper', 'batch_size': 256, 'learning_rate': 5e-4, 'num_train_steps': 200 * 175,
    'factors': 'constant * linear_warmup * cosine_decay', 'steps_per_cycle': 200 * 175,
    'weight_decay': 0.0, 'warmup': 175, 'max_length': 1024, 'num_layers': 1, 'num_heads': 8,
    'emb_dim': 128, 'qkv_dim': 64, 'mlp_dim': 128, 'dropout_rate': 0.3,
    'pooling_mode': 'CLS', 'learn_pos_emb': True, 'resample_every': 100, 'eval_samples': 100,
    'data': {'num_train': 50_000, 'num_test': 10_000, 'mask_zero': False},
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected
  numbers = {
    'gmm_rks': 128, 'fastfood_rks': 8, 'generative_rks': 128,
    'gmm_prf': 128, 'fastfood_prf': 8, 'generative_prf': 8,
  }  # fmt: skip
  for model, number in numbers.items():
    attention = resolve(load_config('image', model))['attention']
    assert attention['num_frequencies'] == number
    assert attention['smoothing'] == PAPER_SMOOTHING[model]


def test_a_model_has_fields_of_its_own_in_one_preset_alone():
  rates = {
    (model, preset): resolve(load_config('image', f'{model},{preset}'))['learning_rate']
    for model in ('gmm_rks', 'generative_rks', 'generative_prf') for preset in ('paper', 'tuned')
  }  # fmt: skip
  assert rates.pop(('generative_rks', 'tuned')) == 1e-3
  assert all(rate == {'paper': 5e-4, 'tuned': 2e-3}[preset] for (_, preset), rate in rates.items())
  local = resolve(load_config('image', 'local,lra'))
  assert (local['num_heads'], local['pooling_mode']) == (2, 'MEAN')


def test_lras_performer_file_runs_with_its_own_options():
  """As in LRA's listops/configs/performer_base.py; its files for other tasks name no options."""
  details = {'ortho_scaling': 0.0, 'nb_features': 2}
  kwargs = {'attention_fn_cls': 'softmax', 'attention_fn_kwargs': details}
  fields = resolve(lra_config(model_type='performer', model_kwargs=kwargs), 'listops')
  assert fields['attention'] | {'kernel': 'softmax', 'num_frequencies': 2} == fields['attention']
  ours = resolve(load_config('listops', 'performer,lra'))
  assert difference(ours, fields) == []
  assert resolve(lra_config(model_type='performer'), 'listops')['attention']['kernel'] == 'relu'
  with pytest.raises(ValueError, match="attention option of performer 'attention_fn'"):
    resolve(lra_config(model_type='performer', model_kwargs={'attention_fn': 1}), 'listops')


@functools.cache
def count_in_attention(factory, num_heads, head_size):
  """Return the number of parameters that a mechanism has beside its projections."""
  x = jnp.zeros([1, 2, num_heads, head_size])
  rngs = dict.fromkeys(('params', 'spectral'), jax.random.key(0))
  variables = jax.eval_shape(lambda: factory().init(rngs, x, x, x))
  return sum(leaf.size for leaf in jax.tree.leaves(variables.get('params', {})))


def count_beside_base(fields):
  """Return by how many parameters a model exceeds LRA's base Transformer, whose sizes it has."""
  base, ours = (
    configuration.base_model_arguments(fields),
    configuration.model_arguments(fields),
  )
  differing = {name for name in base if ours[name] != base[name]} - {'model_type'}
  # Positions that are computed are no parameters.
  assert differing <= (set() if base['learn_pos_emb'] else {'max_length'})
  factory = make_classifier(**ours | {'dtype': 'float32'}).encoder.make_attention
  head_size = ours['qkv_dim'] // ours['num_heads']
  return ours['num_layers'] * count_in_attention(factory, ours['num_heads'], head_size)


# Where a single parameter for every position (and head) of each layer is more than the rule allows.
BEYOND_THE_RULE = {
  'linformer': ('pathfinder32',),
  'synthesizer': (
    'retrieval', 'pathfinder32', 'pathfinder64', 'pathfinder128', 'pathfinder256'
  ),
}  # fmt: skip


TUNED = [task for task in WITH_FILE if task != 'wikitext']


@pytest.mark.parametrize('task', slow_but(['pathfinder32'], TUNED))
def test_tuned_preset_keeps_to_the_ten_percent_rule(task):
  base = count_parameters(make_classifier(**configuration.base_model_arguments({'task': task})))
  for model in MODELS:
    fields = resolve(load_config(task, f'{model},tuned'))
    keeps = count_beside_base(fields) <= 0.1 * base
    assert keeps == (task not in BEYOND_THE_RULE.get(model, ())), model
    if not keeps:
      assert 1 in fields['attention'].values(), model


@pytest.mark.parametrize(
  'model', slow_but(['gmm_rks'], ['gmm_rks', 'fastfood_prf', 'generative_prf', 'structured_rks'])
)
def test_parameters_are_those_of_the_base_and_of_the_mechanism(model):
  fields = resolve(load_config('pathfinder64', f'{model},tuned'))
  base = make_classifier(**configuration.base_model_arguments({'task': 'pathfinder64'}))
  ours = make_classifier(**configuration.model_arguments(fields | {'dtype': 'float32'}))
  beside = count_beside_base(fields)
  assert 0 < beside == count_parameters(ours) - count_parameters(base)


@pytest.mark.parametrize('side', [32, 64, 128, 256])
def test_pathfinders_rotations_are_one_block(side):
  for preset in ('lra', 'tuned'):
    for model in MODELS:
      if model.startswith(('fastfood', 'structured')):
        fields = resolve(load_config(f'pathfinder{side}', f'{model},{preset}'))
        head_size = fields['qkv_dim'] // fields['num_heads']
        assert fields['attention']['num_frequencies'] == head_size


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('gmm_rps', "unknown model_type 'gmm_rps' \\(did you mean 'gmm_prf'|'gmm_rks'"),
    ('gmm_prf,papper', "unknown preset 'papper' \\(did you mean 'paper'"),
    ('', 'unknown model_type'),
  ],
)
def test_wrong_arguments_offer_the_nearest_name(argument, message):
  with pytest.raises(ValueError, match=message):
    parse_argument(argument)


@pytest.mark.parametrize(
  ('fields', 'task', 'message'),
  [
    ({}, None, 'names no task: pass --task'),
    ({}, 'listop', "unknown task 'listop' \\(did you mean 'listops'"),
    ({'model_type': 'performr'}, 'listops', "unknown model_type 'performr' .* known: bigbird"),
    ({'learning_rte': 1}, 'listops', "unknown config field 'learning_rte' .*'learning_rate'"),
    ({'attention': {'num_frequences': 1}}, 'listops', 'unknown attention option'),
    ({'data': {'max_lenth': 1}}, 'listops', "did you mean 'max_length'"),
    ({'model': {'emb_dmi': 4}}, 'listops', "did you mean 'emb_dim'"),
    ({'classifier_pool': 'MEAN'}, 'listops', 'pooling_mode is given twice'),
    ({'pooling_mode': 'MAX'}, 'listops', "unknown pooling_mode 'MAX'"),
    ({'batch_size': 0}, 'listops', 'batch_size must be an integer of at least 1, got 0'),
    ({'batch_size': True}, 'listops', 'batch_size must be an integer of at least 1, got True'),
    ({'dropout_rate': '0.1'}, 'listops', "dropout_rate must be a finite number, got '0.1'"),
    ({'learning_rate': math.inf}, 'listops', 'learning_rate must be a finite number, got inf'),
    ({'mask_rate': '0.1'}, 'listops', "mask_rate must be a finite number, got '0.1'"),
    ({'hidden_dim': True}, 'listops', 'hidden_dim must be an integer of at least 1, or None'),
    ({'num_eval_steps': 2.5}, 'listops', 'num_eval_steps must be an integer .* got 2.5'),
    ({'learn_pos_emb': 'no'}, 'listops', "learn_pos_emb must be True or False, got 'no'"),
    ({'keep_accuracies': 'abc'}, 'listops', "keep_accuracies are percentages .* got 'a'"),
    ({'keep_accuracies': (True,)}, 'listops', 'keep_accuracies are percentages .* got True'),
    ({'adam_b2': 1.0}, 'listops', r'adam_b2 must lie in \[0, 1\), got 1.0'),
    ({'num_train_steps': 1.5}, 'listops', 'num_train_steps must be an integer'),
    ({'num_eval_steps': 0}, 'listops', 'num_eval_steps must be an integer of at least 1, .* got 0'),
    ({'dropout_rate': 1.0}, 'listops', r'dropout_rate must lie in \[0, 1\)'),
    ({'qkv_dim': 500}, 'listops', 'must be a multiple of num_heads=8'),
    ({'dtype': 'int8'}, 'listops', 'dtype must be'),
  ],
)
def test_bad_fields_are_named(fields, task, message):
  config = ml_collections.ConfigDict({**lra_config().to_dict(), **fields})
  with pytest.raises(ValueError, match=message):
    resolve(config, task)


def test_files_of_lra_that_were_changed_have_a_star():
  presets = {
    fields: resolve(lra_config(), 'listops', fields)['preset']
    for fields in [(), ('random_seed', 'trial'), ('random_seed', 'num_layers')]
  }
  assert list(presets.values()) == ['lra', 'lra', 'lra*']


def test_nested_model_overrides_flat_fields():
  config = lra_config(model={'num_layers': 1, 'classifier_pool': 'CLS', 'dropout_rate': 0.3})
  fields = resolve(config, 'listops')
  assert (fields['num_layers'], fields['dropout_rate']) == (1, 0.3)


def test_config_id_ignores_seed_and_trial_alone():
  fields = resolve(load_config('listops', 'gmm_prf'))
  same = {**fields, 'random_seed': 7, 'trial': 3}
  assert configuration.config_id(same) == configuration.config_id(fields)
  assert configuration.config_id({**fields, 'warmup': 2}) != configuration.config_id(fields)


def test_a_changed_preset_is_marked():
  config = load_config('listops', 'gmm_prf,paper')
  config.random_seed = 5
  config.checkpoint_freq = 500
  assert resolve(config)['preset'] == 'paper'  # A repetition, written to disk more often.
  config.eval_samples = 1
  assert resolve(config)['preset'] == 'paper*'


@pytest.mark.parametrize(
  ('argument', 'is_drawn'),
  [('transformer,paper', False), ('structured_prf,paper', False), ('performer,lra', False),
   ('performer,paper', True), ('prf,paper', True)],
)  # fmt: skip
def test_draws_of_models_that_draw_nothing_change_no_preset(argument, is_drawn):
  config = load_config('text', argument)
  preset, stored = config.preset, configuration.config_id(resolve(config))
  config.eval_samples = config.eval_samples + 1
  assert resolve(config)['preset'] == preset + '*' * is_drawn
  # What results are stored under has the field, as before.
  assert configuration.config_id(resolve(config)) != stored
  config.eval_samples = config.eval_samples - 1
  config.warmup = 7
  assert resolve(config)['preset'] == f'{preset}*'


def test_options_at_their_defaults_tell_no_runs_apart():
  """A later version may add options: older runs can then still be continued and compared."""
  fields = resolve(load_config('listops', 'gmm_prf'))
  older = fields | {'attention': {'num_frequencies': 256, 'smoothing': 0.0}}
  assert configuration.config_id(older) == configuration.config_id(fields)
  other = fields | {'attention': fields['attention'] | {'antithetic': True}}
  assert configuration.config_id(other) != configuration.config_id(fields)


def test_pairs_may_interact():
  fields = resolve(lra_config(), 'listops')
  assert fields['interaction'] is None
  config = load_config('retrieval', 'gmm_prf')
  assert config.get_type('interaction') is str  # What --config.interaction=NLI needs.
  config.interaction = 'NLI'
  assert resolve(config)['interaction'] == 'NLI'
  with pytest.raises(ValueError, match="interaction='NLI' is for tasks of pairs"):
    resolve(lra_config(interaction='NLI'), 'listops')
  with pytest.raises(ValueError, match="unknown interaction 'nli'; known: NLI"):
    resolve(lra_config(interaction='nli'), 'listops')


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_seeds_that_cannot_be_are_errors(seed):
  with pytest.raises(ValueError, match=f'random_seed must be an integer in .*, got {seed}'):
    resolve(lra_config(random_seed=seed), 'listops')


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('learning_rate', -0.1, 'learning_rate must be above 0, got -0.1'),
    ('decay_factor', 0.0, 'decay_factor must be above 0, got 0.0'),
    ('weight_decay', -1.0, 'weight_decay must be at least 0, got -1.0'),
    ('grad_clip_norm', -1.0, 'grad_clip_norm must be at least 0, got -1.0'),
    ('factors', 'constant * warm', "unknown schedule factor 'warm'"),
  ],
)
def test_impossible_values_are_errors(field, value, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    resolve(lra_config(**{field: value}), 'listops')


def test_options_may_have_the_name_of_a_field():
  """The generator has layers of its own; attention_dropout_rate is a field of the run."""
  config = load_config('listops', 'generative_prf,tiny')
  config.attention.num_layers = 2
  fields = resolve(config)
  arguments = configuration.model_arguments(fields | {'dtype': 'float32'})
  assert (arguments['attention']['num_layers'], arguments['num_layers']) == (2, 1)
  config.num_layers = 3
  arguments = configuration.model_arguments(resolve(config) | {'dtype': 'float32'})
  assert (arguments['attention']['num_layers'], arguments['num_layers']) == (2, 3)
  fields = resolve(load_config('listops', 'transformer,tiny')) | {'attention_dropout_rate': 0.25}
  assert 'attention_dropout_rate' not in fields['attention']
  arguments = configuration.model_arguments(fields | {'dtype': 'float32'})
  assert arguments['attention']['attention_dropout_rate'] == 0.25


def test_options_that_a_model_lacks_are_no_part_of_a_preset():
  make = lambda model, **options: configuration.new_config('listops', model, 'x', attention=options)
  assert make('gmm_prf', num_frequencies=8).attention.num_frequencies == 8
  assert 'num_frequencies' not in make('transformer', num_frequencies=8).attention
  with pytest.raises(ValueError, match="unknown attention option of gmm_prf 'smoothin' .did you"):
    make('gmm_prf', smoothin=3.0)


def test_texts_are_read_byte_by_byte():
  assert resolve(lra_text_config(tokenizer='char'), 'text') == resolve(lra_text_config(), 'text')
  with pytest.raises(ValueError, match="tokenizer must be 'char', got 'subword'"):
    resolve(lra_text_config(tokenizer='subword'), 'text')


def test_a_field_that_earlier_versions_had_not_tells_no_runs_apart():
  fields = resolve(load_config('listops', 'gmm_prf'))
  earlier = {k: v for k, v in fields.items() if k != 'interaction'}
  assert configuration.config_id(earlier) == configuration.config_id(fields)
  changed = fields | {'interaction': 'NLI'}
  assert configuration.config_id(changed) != configuration.config_id(fields)


def test_kept_checkpoints_tell_no_runs_apart():
  config = load_config('listops', 'gmm_prf')
  fields = resolve(config)
  assert fields['keep_accuracies'] == ()
  earlier = {k: v for k, v in fields.items() if k != 'keep_accuracies'}
  config.keep_accuracies = (20, 62.5)
  changed = resolve(config)
  assert changed['preset'] == 'paper'
  ids = {configuration.config_id(each) for each in (fields, earlier, changed)}
  assert len(ids) == 1
  for one in (earlier, changed):
    assert rundir.stored_difference({'config': json.loads(json.dumps(one))}, fields, None) == []
  for wrong in (0, 100.5, -3):
    with pytest.raises(ValueError, match=f'percentages above 0, up to 100; got {wrong}'):
      resolve(lra_config(keep_accuracies=(20, wrong)), 'listops')


def test_sparse_sum_has_the_figures_of_appendix_e():
  fields = resolve(load_config('sparse_sum', 'gmm_rks'))
  expected = {
    'preset': 'paper', 'batch_size': 400, 'learning_rate': 5e-6, 'weight_decay': 0.1,
    'num_layers': 3, 'emb_dim': 64, 'mlp_dim': 64, 'qkv_dim': 64, 'num_heads': 4,
    'max_length': 200, 'learn_pos_emb': True, 'pooling_mode': 'CLS',
    'data': {
      'relevance': 0.5, 'length': 200, 'num_train': 160_000, 'num_valid': 40_000,
      'num_test': 20_000, 'seed': 0,
    },
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected
  for model in ('gmm_rks', 'gmm_prf'):
    assert resolve(load_config('sparse_sum', model))['attention']['num_frequencies'] == 64
