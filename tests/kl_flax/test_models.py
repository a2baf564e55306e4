import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from flax import errors

from kl_flax.attention import KernelAttention
from kl_flax.baselines.linformer import LinformerAttention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.errors import unknown_name
from kl_flax.models import MODELS, get_row, make_attention, make_classifier, make_masked_lm

TINY = {
  'num_classes': 3,
  'vocab_size': 9,
  'emb_dim': 8,
  'num_heads': 2,
  'num_layers': 1,
  'qkv_dim': 8,
  'mlp_dim': 8,
  'max_length': 5,
}
INPUTS = np.arange(10, dtype=np.int32).reshape(2, 5) % 9

RNGS = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}

GMM = (
  'num_frequencies num_components tied weights shared_noise antithetic typical_norm initial '
  'smoothing implementation'
)
FASTFOOD = 'num_frequencies initial smoothing implementation'
GENERATIVE = 'num_frequencies num_layers shared_noise smoothing implementation'
STRUCTURED = 'num_frequencies smoothing implementation'
OPTIONS = {
  'gmm_rks': GMM,
  'gmm_prf': GMM,
  'fastfood_rks': FASTFOOD,
  'fastfood_prf': FASTFOOD,
  'fastfood_s_rks': FASTFOOD,
  'fastfood_s_prf': FASTFOOD,
  'fastfood_fixed_rks': FASTFOOD,
  'fastfood_fixed_prf': FASTFOOD,
  'generative_rks': GENERATIVE,
  'generative_prf': GENERATIVE,
  'structured_rks': STRUCTURED,
  'structured_prf': STRUCTURED,
  'rks': 'num_frequencies directions smoothing implementation',
  'prf': 'num_frequencies directions antithetic typical_norm smoothing implementation',
  'performer': 'num_frequencies kernel directions antithetic typical_norm implementation',
  'linear_transformer': '',
  'bigbird': (
    'block_size num_rand_blocks num_global_blocks connectivity_seed attention_dropout_rate'
  ),
  'local': 'block_size attention_dropout_rate',
  'longformer': 'sliding_window_size num_global_tokens global_projections attention_dropout_rate',
  'sparse_transformer': 'pattern block_size num_summary num_global_tokens attention_dropout_rate',
  'linformer': 'projected_length attention_dropout_rate',
  'reformer': 'num_hashes num_buckets chunk_length',
  'sinkhorn': 'block_size sorting num_iterations temperature attention_dropout_rate',
  'synthesizer': 'mode dot_product rank attention_dropout_rate',
  'transformer': 'attention_dropout_rate',
}
# Parameters of one layer's sampler at 2 heads of size 4, default options; none are drawn fixed.
SAMPLER_PARAMETERS = {
  'gmm_rks': 2 * (4 + 16),
  'gmm_prf': 2 * (4 + 4),
  'fastfood_rks': 3 * 2 * 128,
  'fastfood_prf': 3 * 2 * 128,
  'fastfood_s_rks': 2 * 128,
  'fastfood_s_prf': 2 * 128,
  'generative_rks': 5 * (16 + 4) + 4 * 8,
  'generative_prf': 5 * (16 + 4) + 4 * 8,
  'structured_rks': 3 * 2 * 128,
  'structured_prf': 3 * 2 * 128,
}
# The same of mechanisms with parameters for each of five positions, or for a block of 50.
POSITION_PARAMETERS = {'linformer': 5 * 16, 'sinkhorn': 4, 'synthesizer': 2 * 2 * 5 * 32}


# Rows of the same kind as another that is not in it.
_TWINS = {
  'fastfood_s_rks', 'fastfood_s_prf', 'fastfood_fixed_rks', 'fastfood_fixed_prf', 'fastfood_rks',
  'generative_rks', 'structured_rks', 'rks',
}  # fmt: skip
SOME = slow_but(MODELS.keys() - _TWINS, MODELS)


@pytest.mark.parametrize('model_type', SOME)
def test_every_row_builds_initialises_and_applies_with_default_options(model_type):
  mechanism = MODELS[model_type](5)
  query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 2, 4)).astype(np.float32)
  outputs = jax.jit(mechanism.init_with_output)(RNGS, query, key, value)
  out, variables = jax.device_get(outputs)
  assert out.shape == (2, 5, 2, 4)
  for leaf in jax.tree.leaves((out, variables)):
    assert leaf.dtype == jnp.float32
    assert np.all(np.isfinite(leaf))
  sizes = [leaf.size for leaf in jax.tree.leaves(variables.get('params', {}))]
  assert sum(sizes) == (SAMPLER_PARAMETERS | POSITION_PARAMETERS).get(model_type, 0)
  # The values of whole models are tested with the encoder.
  model = make_classifier(model_type, **TINY)
  logits, variables = jax.eval_shape(model.init_with_output, RNGS, INPUTS)
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize('model_type', SOME)
@pytest.mark.usefixtures('unannotated')
def test_mechanisms_refuse_integers(model_type):
  mechanism = MODELS[model_type](5)
  x = jnp.ones((2, 5, 2, 4))
  variables = jax.eval_shape(mechanism.init, RNGS, x, x, x)
  call = lambda variables, *inputs: mechanism.apply(variables, *inputs, rngs=RNGS)
  for dtype in (jnp.int32, bool):
    numbers = x.astype(dtype)
    message = f'query, key and value must be floating, got {numbers.dtype}: convert by'
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(call, variables, numbers, numbers, numbers)


@pytest.mark.parametrize(
  'model_type', slow_but(('gmm_prf', 'performer', 'linear_transformer', 'reformer'), MODELS)
)
def test_stochastic_rows_are_those_that_draw_in_prediction(model_type):
  model = make_classifier(model_type, **TINY)
  params = jax.eval_shape(model.init, RNGS, INPUTS)['params']
  apply = lambda params, inputs: model.apply({'params': params}, inputs)
  if MODELS[model_type].stochastic:
    with pytest.raises(errors.InvalidRngError, match='spectral'):
      jax.eval_shape(apply, params, INPUTS)
  else:
    jax.eval_shape(apply, params, INPUTS)


@pytest.mark.parametrize('model_type', MODELS)
def test_options_of_a_row_are_the_arguments_of_its_mechanism(model_type):
  row = MODELS[model_type]
  assert list(row.options) == OPTIONS[model_type].split()
  assert inspect.Parameter.empty not in row.options.values()  # Every option has a default.
  assert isinstance(row(5, **row.options), nn.Module)
  assert get_row(model_type) is row


def test_a_model_without_frequencies_draws_nothing():
  row = MODELS['performer']
  assert row.is_stochastic({})
  assert not row.is_stochastic({'kernel': 'relu'})
  assert not MODELS['transformer'].is_stochastic({})


def test_options_reach_the_mechanism():
  options = {'num_frequencies': 6, 'num_components': 3, 'tied': False, 'smoothing': 0.5}
  model = make_classifier('gmm_rks', attention=options, **TINY)
  mechanism = model.encoder.make_attention()
  assert isinstance(mechanism, KernelAttention)
  assert (mechanism.features, mechanism.smoothing) == ('fourier', 0.5)
  sampler = mechanism.sampler
  assert (sampler.num_frequencies, sampler.num_components) == (6, 3)
  assert (sampler.covariance, sampler.tied) == ('full', False)
  assert make_classifier('gmm_prf', **TINY).encoder.make_attention().sampler.covariance == (
    'diagonal'
  )
  model = make_classifier('transformer', attention={'attention_dropout_rate': 0.3}, **TINY)
  assert model.encoder.make_attention() == SoftmaxAttention(0.3)


@pytest.mark.parametrize('model_type', [name for name, row in OPTIONS.items() if 'implem' in row])
def test_implementation_reaches_the_mechanism(model_type):
  for implementation in ('xla', 'fused'):
    mechanism = MODELS[model_type].make(implementation=implementation)
    assert mechanism.implementation == implementation
  assert MODELS[model_type].make().implementation == 'auto'


def test_sizes_and_switches_reach_the_encoder():
  model = make_classifier('transformer', pooling='MEAN', dropout_rate=0.3, **TINY)
  assert (model.pooling, model.num_classes) == ('MEAN', 3)
  assert {name: getattr(model.encoder, name) for name in TINY if name != 'num_classes'} == {
    name: size for name, size in TINY.items() if name != 'num_classes'
  }
  assert model.encoder.dropout_rate == 0.3
  assert not model.encoder.use_cls
  assert make_classifier('transformer', **TINY).encoder.use_cls


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', jnp.bfloat16])
def test_dtypes_are_given_by_name_or_as_they_are(dtype):
  encoder = make_classifier('linear_transformer', dtype=dtype, **TINY).encoder
  assert encoder.dtype == jnp.dtype(dtype)
  assert encoder.dtype == getattr(jnp, str(jnp.dtype(dtype)))


def test_unknown_dtypes_are_an_error():
  with pytest.raises(TypeError, match='float99'):
    make_classifier('transformer', dtype='float99', **TINY)


@pytest.mark.parametrize('model_type', ['gmm_pfr', 'GMM_PRF', 'gmm-prf'])
def test_unknown_models_offer_the_nearest(model_type):
  with pytest.raises(ValueError, match=f"unknown model_type '{model_type}'") as error:
    make_classifier(model_type, **TINY)
  assert f'known: {", ".join(sorted(MODELS))}' in str(error.value)
  if model_type != 'GMM_PRF':
    assert "did you mean 'gmm_prf'?" in str(error.value)


@pytest.mark.parametrize(
  ('model_type', 'option', 'message'),
  [
    ('gmm_prf', 'num_frequency', "'num_frequency' \\(did you mean 'num_frequencies'"),
    ('gmm_prf', 'attention_dropout_rate', "attention option of gmm_prf 'attention_dropout_rate'"),
    ('transformer', 'num_frequencies', 'known: attention_dropout_rate'),
    ('linear_transformer', 'smoothing', 'known: none'),
  ],
)
def test_unknown_options_offer_the_nearest(model_type, option, message):
  with pytest.raises(ValueError, match=message):
    make_classifier(model_type, attention={option: 1}, **TINY)


def test_message_without_a_near_name_is_punctuated():
  assert unknown_name('task', 'xyz', ['abc']) == "unknown task 'xyz'; known: abc"


def test_models_of_equal_settings_are_equal():
  """They then share their compiled programs."""
  make = lambda num: make_classifier('gmm_prf', attention={'num_frequencies': num}, **TINY)
  assert make(8) == make(8)
  assert hash(make(8)) == hash(make(8))
  assert make(8) != make(6)


def test_options_that_contradict_each_other_are_errors():
  for model_type, options, message in [
    ('gmm_rks', {'antithetic': True}, 'repeats what tied components have'),
    ('prf', {'directions': 'random'}, "unknown directions 'random'.*known: independent"),
    ('performer', {'kernel': 'elu'}, "unknown kernel of performer 'elu'.*known: relu, softmax"),
    ('longformer', {'sliding_window_size': 3}, 'must be even, got 3'),
  ]:
    with pytest.raises(ValueError, match=message):  # At once, not when the model is first called.
      make_classifier(model_type, attention=options, **TINY)
  model = make_classifier('fastfood_rks', attention={'num_frequencies': 6}, **TINY)
  with pytest.raises(ValueError, match='multiple'):  # Of the head size, which it is told later.
    jax.eval_shape(model.init, RNGS, INPUTS)


def test_options_are_checked_without_a_trace_in_the_module_around():
  """Where a classifier is made inside of another module, that names its own parts as before."""

  class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs):
      x = make_classifier('linformer', **TINY)(inputs)
      return LinformerAttention(4)(*3 * [x[:, :, None, None]])

  params = jax.eval_shape(Model().init, RNGS, INPUTS)['params']
  assert 'LinformerAttention_0' in params


def test_pairs_get_a_classifier_of_pairs():
  model = make_classifier('gmm_prf', num_inputs=2, interaction='NLI', **TINY)
  assert (model.num_inputs, model.interaction) == (2, 'NLI')
  assert make_classifier('gmm_prf', **TINY).num_inputs == 1
  with pytest.raises(ValueError, match='num_inputs must be 1 or 2, got 3'):
    make_classifier('gmm_prf', num_inputs=3, **TINY)
  with pytest.raises(ValueError, match="interaction='NLI' needs pairs"):
    make_classifier('gmm_prf', interaction='NLI', **TINY)


class Own(nn.Module):
  """A model of somebody's own around an attention of the zoo."""

  model_type: str

  @nn.compact
  def __call__(self, x):
    query, key, value = (nn.DenseGeneral((2, 8))(x) for _ in range(3))
    attention = make_attention(self.model_type, num_positions=24)
    attended = attention(query, key, value, jnp.arange(24)[None] < jnp.array([[24], [5]]))
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1))(attended)


@pytest.mark.parametrize('model_type', slow_but(('gmm_prf', 'rks', 'synthesizer'), MODELS))
def test_attention_by_its_name(model_type):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 6)), jnp.float32)
  out, variables = Own(model_type).init_with_output(RNGS, x)
  assert out.shape == x.shape
  assert np.isfinite(out).all()
  again = Own(model_type).apply(variables, x, rngs={'spectral': RNGS['spectral']})
  np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-6)


def test_attention_by_its_name_takes_the_options_of_models():
  attention = make_attention('gmm_rks', num_frequencies=64, smoothing=0.5)
  assert (attention.features, attention.sampler.num_frequencies) == ('fourier', 64)
  assert attention.smoothing == 0.5
  with pytest.raises(ValueError, match="num_freq' .did you mean 'num_frequencies'"):
    make_attention('gmm_rks', num_freq=64)
  with pytest.raises(ValueError, match='linformer depends on the longest length: name num_pos'):
    make_attention('linformer')
  with pytest.raises(ValueError, match='num_positions must be at least 1, got 0'):
    make_attention('linformer', num_positions=0)


def test_unknown_sizes_are_named():
  wrong = {'num_layer': 'num_layers', 'poolng': 'pooling', 'hiden_dim': 'hidden_dim'}
  for name, right in wrong.items():
    message = f"unknown argument of a model '{name}' .did you mean '{right}'"
    with pytest.raises(ValueError, match=message):
      make_classifier('gmm_prf', **{name: 2}, **TINY)
  with pytest.raises(ValueError, match="unknown argument of a model 'use_cls'"):
    make_classifier('gmm_prf', use_cls=False, **TINY)
  with pytest.raises(ValueError, match="'num_prediction' .did you mean 'num_predictions'"):
    make_masked_lm('gmm_prf', num_predictions=1, num_prediction=2, vocab_size=4)
