import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but

from kl_flax.attention import KernelAttention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.encoder import (
  Encoder,
  EncoderBlock,
  Mlp,
  MultiHeadAttention,
  TokenEmbedding,
  gelu,
  sinusoidal_positions,
)
from kl_flax.heads import pool
from kl_flax.models import MODELS, AttentionRow, make_classifier

TINY = {
  'vocab_size': 9,
  'emb_dim': 12,
  'num_heads': 2,
  'num_layers': 1,
  'qkv_dim': 8,
  'mlp_dim': 16,
  'max_length': 11,
}
LENGTH = 7

# Keys of this kind compile in half of the time.
make_key = functools.partial(jax.random.key, impl='rbg')

# Sizes of LRA's base ListOps Transformer, and the count of its parameters, part by part.
LRA_LISTOPS = {
  'vocab_size': 16,
  'emb_dim': 512,
  'num_heads': 8,
  'num_layers': 4,
  'qkv_dim': 512,
  'mlp_dim': 1024,
  'max_length': 2000,
}
LRA_LAYER = (
  4 * 512 * 512  # Query, key, value and output projections, without bias.
  + 2 * (512 + 512)  # Two LayerNorms: scale and bias.
  + (512 * 1024 + 1024)
  + (1024 * 512 + 512)  # The MLP, with biases.
)
# One of each kind: the samplers that they differ in are tested by themselves.
REPRESENTATIVES = (
  'transformer', 'linear_transformer', 'gmm_rks', 'gmm_prf', 'fastfood_prf', 'generative_rks',
  'performer', 'bigbird', 'linformer', 'local', 'longformer', 'reformer', 'sinkhorn',
  'sparse_transformer', 'synthesizer',
)  # fmt: skip
# For the default run, some of each kind: masks, precision and padding are tested with each
# mechanism, too.
SOME = slow_but(
  ('transformer', 'gmm_prf', 'longformer', 'reformer', 'synthesizer'), REPRESENTATIVES
)
# So that tiny sequences have several blocks.
BLOCKS = {'reformer': {'chunk_length': 4}, 'sinkhorn': {'block_size': 4}}

LRA_REST = (
  16 * 512  # Token embedding.
  + 512  # CLS.
  + (512 + 512)  # Final LayerNorm.
  + (512 * 1024 + 1024)
  + (1024 * 10 + 10)  # The head: Dense(mlp_dim), Dense(classes).
)


@functools.cache
def make_model(model_type, pooling='CLS', **changes):
  options = {'num_frequencies': 8} if MODELS[model_type].stochastic else BLOCKS.get(model_type)
  return make_classifier(
    model_type, num_classes=3, pooling=pooling, attention=options, **{**TINY, **changes}
  )


@functools.cache
def abstract_params(model, length=LENGTH):
  inputs = jax.ShapeDtypeStruct((2, length), jnp.int32)
  rngs = {'params': make_key(0), 'spectral': make_key(1)}
  return jax.eval_shape(model.init, rngs, inputs)['params']


def random_params(model, length=LENGTH, seed=0):
  """Return random values for all parameters, those that start at zero or one included."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, abstract_params(model, length))


@functools.partial(jax.jit, static_argnames=('model', 'deterministic'))
def apply(model, params, inputs, key_mask=None, seed=0, *, deterministic=True):
  rngs = {'spectral': make_key(7), 'dropout': make_key(seed)}
  return model.apply({'params': params}, inputs, key_mask, deterministic=deterministic, rngs=rngs)


@functools.partial(jax.jit, static_argnames='model')
def apply_and_pool(model, params, inputs, key_mask):
  """Return logits, the whole encoding, and the vectors that other poolings would make of it.

  One compilation serves several tests.
  """
  run = functools.partial(
    model.apply, {'params': params}, inputs, key_mask, rngs={'spectral': make_key(7)}
  )
  logits = run()
  encoded, mask = run(method=lambda model, *args: model.encoder(*args))
  outputs = {pooling: pool(encoded, mask, pooling) for pooling in ('MEAN', 'SUM')}
  return {'logits': logits, 'encoded': encoded, 'mask': mask} | outputs


def make_inputs(seed=0, length=LENGTH, batch=3):
  rng = np.random.default_rng(seed)
  inputs = rng.integers(1, TINY['vocab_size'], (batch, length)).astype(np.int32)
  valid = np.arange(length) < np.array([length, length - 2, 1])[:batch, None]
  return inputs, valid


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('model_type', 'changes', 'expected'),
  [
    ('transformer', {}, 4 * LRA_LAYER + LRA_REST),
    pytest.param('linear_transformer', {}, 4 * LRA_LAYER + LRA_REST, marks=pytest.mark.slow),
    ('transformer', {'tied_weights': True}, LRA_LAYER + LRA_REST),
    ('transformer', {'learn_pos_emb': True}, 4 * LRA_LAYER + LRA_REST + 2001 * 512),
    pytest.param(
      'transformer', {'pooling': 'MEAN'}, 4 * LRA_LAYER + LRA_REST - 512, marks=pytest.mark.slow
    ),
    # One mean and one S for every head of 64: the second component mirrors the first.
    ('gmm_rks', {}, 4 * (LRA_LAYER + 8 * 64 + 8 * 64 * 64) + LRA_REST),
    pytest.param(
      'gmm_prf', {}, 4 * (LRA_LAYER + 8 * 64 + 8 * 64) + LRA_REST, marks=pytest.mark.slow
    ),
    pytest.param(
      'gmm_rks',
      {'attention': {'tied': False}},
      4 * (LRA_LAYER + 2 * 8 * 64 * 65) + LRA_REST,
      marks=pytest.mark.slow,
    ),
    pytest.param(
      'gmm_prf',
      {'tied_weights': True},
      LRA_LAYER + 8 * 64 + 8 * 64 + LRA_REST,
      marks=pytest.mark.slow,
    ),
    # A column of E for each of 2001 positions, rounded up to eights.
    ('linformer', {}, 4 * (LRA_LAYER + 2008 * 16) + LRA_REST),
    pytest.param(
      'linformer',
      {'attention': {'projected_length': 32}},
      4 * (LRA_LAYER + 2008 * 32) + LRA_REST,
      marks=pytest.mark.slow,
    ),
    # No keys.
    ('reformer', {}, 4 * (LRA_LAYER - 512 * 512) + LRA_REST),
    # Of each block's sum, logits of 41 blocks of 50.
    ('sinkhorn', {}, 4 * (LRA_LAYER + 64 * 41) + LRA_REST),
    # Neither queries nor keys, but factors.
    (
      'synthesizer',
      {},
      4 * (LRA_LAYER - 2 * 512 * 512 + 2 * 8 * 2008 * 32) + LRA_REST,
    ),
    # As LRA's own file has it: 129 million parameters more than the base, and two for the mixture.
    (
      'synthesizer',
      {'attention': {'mode': 'random', 'dot_product': True}},
      4 * (LRA_LAYER + 8 * 2008 * 2008 + 2) + LRA_REST,
    ),
  ],
)
def test_parameter_counts_are_those_of_lra(model_type, changes, expected):
  model = make_classifier(model_type, num_classes=10, **{**LRA_LISTOPS, **changes})
  assert count(abstract_params(model)) == expected


def assert_only_valid_positions_count(run, inputs, valid):
  """Assert that neither padding nor the other examples change what `run` returns of each example.

  `run` maps inputs and mask to a dictionary of NumPy arrays [batch, ...].
  """
  outputs = run(inputs, valid)

  def compare(inputs, valid, examples):
    for name, value in run(inputs, valid).items():
      assert np.min(np.ptp(outputs[name], axis=0)) > 1e-3
      expected = outputs[name][examples]
      value = value[: len(expected)]
      np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-5, err_msg=name)

  # What stands at padded positions does not count ...
  compare(np.where(valid, inputs, 8), valid, slice(None))
  # ... nor do the other examples ...
  compare(np.concatenate([inputs[:1], make_inputs(1)[0][1:]]), valid, slice(1))
  # ... nor how many padded positions and other examples there are.
  more = ((0, 0), (0, TINY['max_length'] - inputs.shape[1]))
  compare(np.pad(inputs[1:], more), np.pad(valid[1:], more), slice(1, None))


@pytest.mark.parametrize('model_type', SOME)
def test_neither_padding_nor_the_rest_of_the_batch_counts(model_type):
  model = make_model(model_type)
  params = random_params(model)

  def run(inputs, valid):
    outputs = jax.device_get(apply_and_pool(model, params, inputs, valid))
    return {name: outputs[name] for name in ('logits', 'MEAN', 'SUM')}

  assert_only_valid_positions_count(run, *make_inputs())


def test_neither_padding_nor_the_rest_of_the_batch_counts_without_cls():
  model = make_model('linear_transformer', 'MEAN')
  params = random_params(model)
  run = lambda *inputs: {'logits': np.asarray(apply(model, params, *inputs))}
  assert_only_valid_positions_count(run, *make_inputs())


def test_flatten_masks_its_padding():
  model = make_model('linear_transformer', 'FLATTEN')
  params = random_params(model, TINY['max_length'])
  inputs, valid = make_inputs(length=TINY['max_length'])
  logits = apply(model, params, inputs, valid)
  others = apply(model, params, np.where(valid, inputs, 8), valid)
  np.testing.assert_allclose(others, logits, rtol=1e-5, atol=1e-5)
  assert not np.allclose(apply(model, params, inputs, np.ones_like(valid)), logits, atol=1e-2)


@pytest.mark.parametrize('pooling', slow_but(['CLS'], ['CLS', 'MEAN']))
def test_mask_zero_masks_id_zero_wherever_it_stands(pooling):
  plain, masking = (make_model('gmm_prf', pooling, mask_zero=value) for value in (False, True))
  params = random_params(plain)
  inputs = np.array([[0, 3, 0, 0, 5, 1, 0], [2, 4, 0, 1, 0, 0, 8]], np.int32)
  valid = np.array([[True] * 5 + [False] * 2, [True] * 7])
  for mask, given in ((inputs > 0, None), ((inputs > 0) & valid, valid)):
    expected = apply(plain, params, inputs, mask)
    np.testing.assert_allclose(apply(masking, params, inputs, given), expected, rtol=1e-5)
  unmasked = apply(plain, params, inputs, np.ones_like(valid))
  assert not np.allclose(unmasked, apply(masking, params, inputs), atol=1e-3)


def test_no_valid_position_at_all_gives_finite_logits_and_gradients():
  model = make_model('gmm_prf', 'MEAN')
  inputs, valid = make_inputs()
  valid[1] = False

  def loss(params):
    logits = apply(model, params, inputs, valid)
    return jnp.sum(jnp.sin(logits)), logits

  outputs = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(random_params(model)))
  for value in jax.tree.leaves(outputs):
    assert np.all(np.isfinite(value))


def layer_norm(x, params):
  x = x - np.mean(x, axis=-1, keepdims=True)
  x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
  return x * params['scale'] + params['bias']


def golden_encoder(params, blocks, tokens, valid):
  """Return the encoding of one sequence by pre-LN layers of softmax attention, float64."""
  x = np.concatenate([params['cls'][0], params['embedding']['table'][tokens]])
  x = x + golden_positions(*x.shape)
  valid = np.concatenate([[True], valid])
  for block in blocks:
    y = layer_norm(x, block['attention_norm'])
    mixed = 0
    for h in range(TINY['num_heads']):
      q, k, v = (y @ block['attention']['qkv'][:, i, h] for i in range(3))
      weights = np.exp(q @ k.T / math.sqrt(q.shape[1])) * valid
      weights /= np.sum(weights, axis=1, keepdims=True)
      mixed = mixed + weights @ v @ block['attention']['out']['kernel'][h]
    x = x + mixed
    first, second = block['mlp']['Dense_0'], block['mlp']['Dense_1']
    y = layer_norm(x, block['mlp_norm']) @ first['kernel'] + first['bias']
    y = y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    x = x + y @ second['kernel'] + second['bias']
  return layer_norm(x, params['norm'])


def golden_positions(length, features):
  """Return PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i + 1) = its cosine (Vaswani et al. 2017)."""
  table = np.zeros((length, features))
  for position, column in np.ndindex(length, features):
    angle = position / 10000 ** ((column - column % 2) / features)
    table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
  return table


@pytest.mark.parametrize('tied', [False, True])
def test_golden_values_of_the_encoder_in_float64_numpy(tied):
  model = make_model('transformer', **({'num_layers': 2, 'tied_weights': True} if tied else {}))
  params = random_params(model)
  inputs, valid = make_inputs()
  outputs = jax.device_get(apply_and_pool(model, params, inputs, valid))
  with_cls = np.pad(valid, ((0, 0), (1, 0)), constant_values=True)
  np.testing.assert_array_equal(outputs['mask'], with_cls)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params['encoder'])
  blocks = [params['block']] * 2 if tied else [params['block_0']]
  for b in range(len(inputs)):
    expected = golden_encoder(params, blocks, inputs[b], valid[b])
    np.testing.assert_allclose(outputs['encoded'][b], expected, rtol=1e-4, atol=1e-4)


def of_outputs(model, num_outputs):
  """Return a function of parameters: the last layer for so many positions, and its gradients."""
  args = tuple(map(jnp.asarray, make_inputs()))

  def loss(params):
    rngs = {'spectral': make_key(7)}
    encoded, mask = model.encoder.apply(
      {'params': params}, *args, num_outputs=num_outputs, rngs=rngs
    )
    first = encoded[:, :2]
    return jnp.sum(jnp.sin(first + jnp.arange(first.size).reshape(first.shape))), (encoded, mask)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize('model_type', slow_but(('transformer', 'gmm_rks', 'local'), tuple(MODELS)))
def test_the_last_layer_may_leave_positions_out(model_type):
  model = make_model(model_type, num_layers=2)
  params = random_params(model)['encoder']
  (_, (whole, mask)), expected = of_outputs(model, None)(params)
  (_, (encoded, mask_of_two)), gradients = of_outputs(model, 2)(params)
  assert encoded.shape == (3, 2, TINY['emb_dim'])
  np.testing.assert_array_equal(mask_of_two, mask[:, :2])
  np.testing.assert_allclose(encoded, whole[:, :2], rtol=1e-4, atol=2e-5)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
  jax.tree.map(close, *jax.device_get((gradients, expected)))


def test_only_the_cls_query_meets_the_last_layer():
  lengths = []

  def look(call, args, kwargs, context):
    if isinstance(context.module, KernelAttention) and context.method_name == '__call__':
      lengths.append((args[0].shape[1], args[1].shape[1]))
    return call(*args, **kwargs)

  inputs = jnp.asarray(make_inputs()[0])
  for pooling in ('CLS', 'MEAN'):
    model = make_model('linear_transformer', pooling, num_layers=2)
    params = random_params(model)
    with nn.intercept_methods(look):
      model.apply({'params': params}, inputs)
  assert lengths == [(8, 8), (1, 8), (8, 8), (8, 8)]
  # Where the order counts, the first query is not the first of fewer.
  assert not KernelAttention(None, 'elu', causal=True).takes_fewer_queries


def test_no_output_at_all_is_an_error():
  encoder = make_model('linear_transformer').encoder
  with pytest.raises(ValueError, match='num_outputs must be at least 1, got 0'):
    encoder.init(make_key(0), jnp.asarray(make_inputs()[0]), num_outputs=0)


@pytest.mark.parametrize('features', [8, 7, 1])
def test_sinusoidal_positions_are_the_papers(features):
  table = sinusoidal_positions(12, features)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table, golden_positions(12, features), atol=1e-6)


def test_learned_positions_replace_sinusoids():
  encoder = make_model('linear_transformer', num_layers=0, learn_pos_emb=True).encoder
  params = random_params(encoder)
  assert params['positions'].shape == (12, 12)
  inputs, _ = make_inputs()
  encoded, mask = apply(encoder, params, inputs)
  assert mask is None
  x = params['embedding']['table'][inputs]
  x = np.concatenate([np.broadcast_to(params['cls'], (3, 1, 12)), x], axis=1)
  expected = layer_norm(x + params['positions'][: LENGTH + 1], params['norm'])
  np.testing.assert_allclose(encoded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('vocab_size', [9, 600])  # By one-hot vectors and by a gather.
def test_embedding_returns_rows_of_the_table(vocab_size, dtype):
  embedding = TokenEmbedding(vocab_size, 12, dtype)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(vocab_size, 12)).astype(np.float32)
  inputs = rng.integers(0, vocab_size, (3, LENGTH)).astype(np.int32)
  inputs[0, :2] = 0, vocab_size - 1
  weights = rng.integers(-4, 5, (3, LENGTH, 12)).astype(np.float32)  # Exact in bfloat16.

  @jax.jit
  def run(table, inputs):
    def loss(table):
      rows = embedding.apply({'params': {'table': table}}, inputs)
      return jnp.sum(rows * weights, dtype=jnp.float32), rows

    return jax.grad(loss, has_aux=True)(table)

  gradient, rows = run(table, inputs)
  assert rows.dtype == dtype
  np.testing.assert_array_equal(rows, table.astype(dtype)[inputs])
  expected = np.zeros_like(table)
  np.add.at(expected, inputs, weights)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize('vocab_size', [20, 1000])
def test_gradients_of_a_frequent_token_are_summed_up_in_float32(vocab_size):
  """In bfloat16 a sum of ones ends at 256: the next one is below half its spacing.

  Nor is 2001, rounded at the end, a number of bfloat16.
  """
  embedding = TokenEmbedding(vocab_size, 4, jnp.bfloat16)
  table, inputs = jnp.ones((vocab_size, 4)), jnp.full((1, 2001), 7)

  def loss(table):
    return jnp.sum(embedding.apply({'params': {'table': table}}, inputs), dtype=jnp.float32)

  gradient = jax.jit(jax.grad(loss))(table)
  np.testing.assert_array_equal(gradient[7], 2001)
  assert gradient.dtype == jnp.float32


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('vocab_size', [20, 1000])
def test_gradients_of_an_embedding_go_through_vmap_and_shard_map(vocab_size, dtype):
  embedding = TokenEmbedding(vocab_size, 4, dtype)
  table, inputs = jnp.ones((vocab_size, 4)), jnp.array([[7, 7, 3], [7, 1, 3]])

  def loss(table, inputs):
    return jnp.sum(embedding.apply({'params': {'table': table}}, inputs), dtype=jnp.float32)

  expected = jax.vmap(lambda ids: jnp.bincount(ids, length=vocab_size))(inputs)
  gradient = jax.grad(jax.checkpoint(loss))
  of_each = jax.jit(jax.vmap(gradient, (None, 0)))(table, inputs[:, None])
  np.testing.assert_array_equal(of_each[..., 0], expected)
  # The table is the same everywhere, and its gradient a sum over devices.
  same, split = jax.P(), jax.P('devices')
  mesh = jax.sharding.Mesh(jax.devices()[:1], 'devices')
  mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(same, split), out_specs=same)
  np.testing.assert_array_equal(jax.jit(mapped)(table, inputs)[:, 0], expected.sum(0))


@pytest.mark.parametrize('vocab_size', [20, 1000])
def test_embedding_in_float32_has_derivatives_in_forward_mode(vocab_size):
  embedding = TokenEmbedding(vocab_size, 4)
  inputs = jnp.array([[7, 7, 3]])
  table = jnp.asarray(np.random.default_rng(0).normal(size=(vocab_size, 4)), jnp.float32)
  look_up = lambda table: embedding.apply({'params': {'table': table}}, inputs)
  _, tangent = jax.jvp(look_up, (table,), (2 * table,))
  np.testing.assert_array_equal(tangent, 2 * table[inputs])


@pytest.mark.parametrize('model_type', SOME)
def test_parameters_of_bfloat16_models_are_float32(model_type):
  params = abstract_params(make_model(model_type, dtype='bfloat16'))
  assert params == abstract_params(make_model(model_type))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('model_type', SOME)
def test_bfloat16_computes_close_to_float32(model_type):
  model = make_model(model_type)
  params = random_params(model)
  inputs, valid = make_inputs()
  wide = np.asarray(apply_and_pool(model, params, inputs, valid)['logits'])
  logits = apply(make_model(model_type, dtype='bfloat16'), params, inputs, valid)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, wide, atol=0.05 * np.max(np.abs(wide)))
  assert np.any(np.asarray(logits) != wide)


def test_dropout_acts_in_training_alone_and_by_its_key():
  model = make_model('linear_transformer')
  params = random_params(model)
  run = functools.partial(apply, model, params, *make_inputs())
  np.testing.assert_array_equal(run(1), run(2))
  train = lambda seed: np.asarray(run(seed, deterministic=False))
  np.testing.assert_array_equal(train(1), train(1))
  assert np.all(train(1) != train(2))
  assert np.all(train(1) != np.asarray(run(1)))


def test_initial_values_are_lras():
  sizes = {'vocab_size': 99, 'emb_dim': 32, 'num_heads': 4, 'qkv_dim': 96, 'mlp_dim': 64}
  encoder = Encoder(lambda: KernelAttention(None, 'elu'), **{**TINY, **sizes}, learn_pos_emb=True)
  inputs, _ = make_inputs()
  params = jax.device_get(jax.jit(encoder.init)(make_key(0), inputs)['params'])
  assert not np.any(params['cls'])
  assert abs(np.std(params['embedding']['table']) - 1) < 0.05
  assert abs(np.std(params['positions']) - 0.02) < 0.003
  block = params['block_0']
  for norm in (block['attention_norm'], block['mlp_norm'], params['norm']):
    assert np.all(norm['scale'] == 1)
    assert not np.any(norm['bias'])
  # Xavier's sqrt(6 / (fan_in + fan_out)); of the fused kernel each third is a matrix [E, H·D].
  matrices = [(block['attention']['qkv'][:, i], 32 + 96) for i in range(3)]
  matrices.append((block['attention']['out']['kernel'], 96 + 32))
  layers = [block['mlp'][f'Dense_{i}'] for i in range(2)]
  matrices += [(layer['kernel'], 32 + 64) for layer in layers]
  for matrix, fans in matrices:
    largest = np.max(np.abs(matrix))
    assert 0.99 * math.sqrt(6 / fans) < largest <= math.sqrt(6 / fans)
  for layer in layers:
    assert 0 < np.max(np.abs(layer['bias'])) < 1e-5


def test_sequences_longer_than_max_length_are_an_error():
  with pytest.raises(ValueError, match='length 12 exceed max_length=11'):
    abstract_params(make_model('transformer'), 12)
  abstract_params(make_model('transformer'), 11)


def test_heads_must_divide_qkv_dim():
  attention = MultiHeadAttention(SoftmaxAttention, num_heads=3, qkv_dim=8)
  x = jax.ShapeDtypeStruct((2, LENGTH, 12), jnp.float32)
  with pytest.raises(ValueError, match='qkv_dim=8 must be a multiple of num_heads=3'):
    jax.eval_shape(attention.init, make_key(0), x)


# Sequences are padded inside.


@pytest.mark.parametrize('model_type', SOME)
@pytest.mark.parametrize('masked', [False, True])
def test_padding_inside_changes_nothing(model_type, masked):
  """With CLS the length needs none; four more positions are masked, and four put behind them."""
  model = make_model(model_type)
  params = random_params(model)
  inputs, valid = make_inputs()
  assert (LENGTH + 1) % 8 == 0
  mask = valid if masked else np.ones_like(valid)
  expected = apply_and_pool(model, params, inputs, valid if masked else None)
  more = ((0, 0), (0, 4))
  # Two examples: a program that another test compiles, too.
  mask = mask[:2]
  padded = apply_and_pool(
    model, params, np.pad(inputs[:2], more, constant_values=5), np.pad(mask, more)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
  padded, expected = jax.device_get((padded, expected))
  with_cls = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
  close(padded['encoded'][:, : LENGTH + 1][with_cls], expected['encoded'][:2][with_cls])
  close(padded['logits'], expected['logits'][:2])


@pytest.mark.parametrize(
  ('use_cls', 'learned'), slow_but([(True, True)], [(False, False), (True, True)])
)
def test_lengths_and_masks_are_those_of_the_sequence(use_cls, learned):
  encoder = Encoder(
    functools.partial(KernelAttention, None, 'elu'),
    **{**TINY, 'num_layers': 0, 'max_length': 17},
    use_cls=use_cls,
    learn_pos_emb=learned,
  )
  params = random_params(encoder, 17)
  for length in (1, 6, 7, 8, 9, 15, 16, 17):  # Around multiples of 8, with CLS and without.
    inputs, valid = map(jnp.asarray, make_inputs(length=length))
    positions = length + use_cls
    run = jax.jit(lambda *args: [encoder.apply({'params': params}, *a) for a in (args[:1], args)])
    (encoded, mask), (masked, mask_given) = run(inputs, valid)
    assert mask is None
    assert encoded.shape == (3, positions, TINY['emb_dim'])
    np.testing.assert_array_equal(mask_given[:, use_cls:], valid)
    assert mask_given.shape == (3, positions)
    assert np.all(mask_given[:, :use_cls])
    np.testing.assert_array_equal(masked, encoded)  # No layer has looked at the mask.
    x = params['embedding']['table'][inputs]
    if use_cls:
      x = np.concatenate([np.broadcast_to(params['cls'], (3, 1, 12)), x], axis=1)
    table = params['positions'] if learned else golden_positions(18, 12)
    expected = layer_norm(x + table[:positions], params['norm'])
    np.testing.assert_allclose(encoded, expected, rtol=1e-4, atol=1e-5)


def test_learned_positions_end_before_the_padding_does():
  """Eleven symbols and CLS have twelve positions; inside there are sixteen."""
  model, larger = (make_model('transformer', learn_pos_emb=True, max_length=n) for n in (11, 15))
  params = random_params(model, 11)
  assert params['encoder']['positions'].shape == (12, 12)
  more = np.pad(params['encoder']['positions'], ((0, 4), (0, 0)), constant_values=9.0)
  params_of_larger = {**params, 'encoder': {**params['encoder'], 'positions': more}}
  inputs, valid = make_inputs(length=11)

  def logits_and_gradients(model, params):
    def loss(params):
      logits = apply(model, params, inputs, valid)
      return jnp.sum(jnp.sin(logits)), logits

    gradients, logits = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    return logits, gradients['encoder']['positions']

  logits, given = logits_and_gradients(model, params)
  expected_logits, expected = logits_and_gradients(larger, params_of_larger)
  np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
  assert not np.any(expected[12:])
  assert np.all(np.any(expected[:12], axis=1))
  np.testing.assert_allclose(given, expected[:12], rtol=1e-3, atol=1e-5)


# The MLP.

EXTREME = [0.0, 1e-6, 1e-3, 0.5, 1.0, 3.0, 5.0, 8.0, 10.0, 20.0, 100.0, 1e4, 1e6]


def golden_gelu(x):
  """Return the GELU in its tanh form and its derivative, float64."""
  x = np.asarray(x, np.float64)
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  # (1 + tanh z) / 2 without cancellation; beyond 350 all digits are zero.
  gate = 1 / (1 + np.exp(-2 * np.clip(inner, -350, 350)))
  slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
  return x * gate, gate + 2 * x * gate * (1 - gate) * slope


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_gelu_is_that_of_jax(dtype):
  x = np.concatenate([np.linspace(-12, 12, 4001), EXTREME, -np.array(EXTREME)])
  x = jnp.asarray(x, dtype)
  value, slope = golden_gelu(np.asarray(x, np.float32))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
  assert gelu(x).dtype == jnp.float32
  close(gelu(x), value)
  # JAX's has errors of its own where 1 + tanh z has lost its digits.
  close(gelu(x), jax.nn.gelu(x.astype(jnp.float32), approximate=True), atol=3e-6)
  tangents = jnp.linspace(-1, 1, len(x)).astype(dtype)
  primal, tangent = jax.jvp(gelu, (x,), (tangents,))
  assert tangent.dtype == jnp.float32
  close(primal, value)
  close(tangent, slope * np.asarray(tangents, np.float32))
  gradient = jax.grad(lambda x: jnp.sum(gelu(x)))(x)
  assert gradient.dtype == dtype
  rounding = 1e-6 if dtype == jnp.float32 else 2**-8
  close(np.asarray(gradient, np.float32), slope, rtol=rounding)


class PlainMlp(nn.Module):
  """`Mlp` by flax and jax alone, everything kept."""

  mlp_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, deterministic):
    y = nn.Dense(self.mlp_dim, dtype=self.dtype)(x)
    y = jax.nn.gelu(y.astype(jnp.float32)).astype(self.dtype)
    return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


def mlp_and_params(dtype):
  mlp = Mlp(24, 0.3, dtype)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 12)), dtype)
  draw = lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(0, 0.4, leaf.shape))
  params = jax.tree.map(draw, jax.eval_shape(lambda: mlp.init(make_key(0), x))['params'])
  return mlp, params, x


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_mlp_is_the_plain_one(dtype):
  mlp, params, x = mlp_and_params(dtype)

  def run(module, **options):
    loss = lambda params, x: jnp.sum(jnp.sin(module.apply({'params': params}, x, **options)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

  given, expected = jax.device_get((run(mlp), run(PlainMlp(24, dtype), deterministic=True)))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.03

  def compare(a, b):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.max(np.abs(b))))

  jax.tree.map(compare, given, expected)


def test_mlp_has_the_masks_of_its_values_in_its_gradients():
  """The backward pass computes the hidden layer's dropout again."""
  mlp, params, x = mlp_and_params(jnp.float32)
  options = {'deterministic': False, 'rngs': {'dropout': make_key(1)}}
  run = jax.jit(lambda x: mlp.apply({'params': params}, x, **options))
  kept = np.asarray(run(x)) != 0
  assert 0.6 < np.mean(kept) < 0.8
  direction = jax.random.normal(jax.random.key(2), x.shape)
  weights = jax.random.normal(jax.random.key(3), x.shape)
  (gradient,) = jax.vjp(run, x)[1](weights)
  step = 1e-2
  difference = (run(x + step * direction) - run(x - step * direction)) / (2 * step)
  np.testing.assert_allclose(
    jnp.sum(weights * difference), jnp.sum(gradient * direction), rtol=5e-3
  )


class Passing(nn.Module):
  """A mechanism that does nothing."""

  @nn.compact
  def __call__(self, query, key, value, key_mask=None, *, deterministic=True):
    return value


@pytest.mark.parametrize('deterministic', [True, False])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_layer_keeps_five_activations(dtype, deterministic):
  """Its input, normalised input, what attention returned, the sum, the hidden layer."""
  block = EncoderBlock(Passing, 2, 12, 24, 0.3, dtype)
  x = jax.ShapeDtypeStruct((5, 7, 12), dtype)
  params = jax.eval_shape(block.init, make_key(0), x)['params']
  rngs = {'dropout': make_key(1)}
  run = lambda params, x: block.apply({'params': params}, x, deterministic=deterministic, rngs=rngs)
  leaves = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(run, *args)[1], params, x))
  kept = sorted((leaf.shape, leaf.dtype) for leaf in leaves if leaf.size >= 5 * 7 * 12)
  wide = [((5, 7, 2, 6), dtype), *[((5, 7, 12), dtype)] * 3, ((5, 7, 24), dtype)]
  assert kept == sorted(wide)


# What a mechanism may ask for.


class ValuesOnly(nn.Module):
  """Passes the values on, times a parameter for every position there may be."""

  num_positions: int
  projections = ('value',)

  @nn.compact
  def __call__(self, query, key, value, key_mask=None, *, deterministic=True):
    assert query is None
    assert key is None
    factor = self.param('factor', nn.initializers.ones, (self.num_positions,))
    return value * factor[None, : value.shape[1], None, None]


def test_a_mechanism_gets_the_projections_that_it_names():
  make_attention = functools.partial(ValuesOnly, 16)
  block = MultiHeadAttention(make_attention, num_heads=2, qkv_dim=8)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)
  out, variables = block.init_with_output(make_key(0), x)
  params = variables['params']
  assert params['qkv'].shape == (6, 1, 2, 4)
  value = np.einsum('blf,fhd->blhd', x, params['qkv'][:, 0])
  expected = np.einsum('blhd,hdf->blf', value, params['out']['kernel'])
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_mechanisms_with_parameters_for_positions_get_their_number(monkeypatch):
  monkeypatch.setitem(
    MODELS, 'values_only', AttentionRow(lambda num_positions: ValuesOnly(num_positions))
  )
  assert MODELS['values_only'].options == {}
  for pooling, max_length, expected in [('CLS', 11, 16), ('CLS', 16, 24), ('MEAN', 16, 16)]:
    model = make_classifier(
      'values_only', num_classes=3, pooling=pooling, **TINY | {'max_length': max_length}
    )
    assert model.encoder.make_attention() == ValuesOnly(expected)
    shapes = abstract_params(model, length=2)
    assert shapes['encoder']['block_0']['attention']['ValuesOnly_0']['factor'].shape == (expected,)
    jax.eval_shape(model.init, {'params': make_key(0)}, np.zeros((1, max_length), np.int32))
