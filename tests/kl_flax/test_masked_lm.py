"""Tests of the masked language model, of segments, and of the classifier that follows them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kl_flax.heads import Classifier, MaskedLanguageModel
from kl_flax.models import make_classifier, make_encoder, make_masked_lm, make_model

SIZES = {
  'vocab_size': 9, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 1, 'qkv_dim': 8, 'mlp_dim': 8,
  'max_length': 7,
}  # fmt: skip
INPUTS = jnp.array([[3, 1, 8, 5, 2, 0, 0], [4, 2, 7, 7, 2, 6, 1]], jnp.int32)
MASK = jnp.arange(7) < jnp.array([[5], [7]])
POSITIONS = jnp.array([[2, 0, 0], [6, 3, 1]], jnp.int32)
RNGS = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}


@functools.cache
def model_and_params(use_cls=True):
  model = make_masked_lm('transformer', num_predictions=3, use_cls=use_cls, **SIZES)
  shapes = jax.eval_shape(model.init, RNGS, INPUTS, MASK, POSITIONS)['params']
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(np.float32)
  return model, jax.tree.map(draw, shapes)


@pytest.mark.parametrize('use_cls', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_logits_are_products_with_the_embedding(use_cls):
  model, params = model_and_params(use_cls)
  logits = jax.jit(model.apply)({'params': params}, INPUTS, MASK, POSITIONS)
  assert (logits.shape, logits.dtype) == ((2, 3, 8), jnp.float32)
  encoded, _ = jax.jit(model.encoder.apply)({'params': params['encoder']}, INPUTS, MASK)
  x = np.stack([encoded[i][POSITIONS[i] + use_cls] for i in range(2)])
  x = x @ params['hidden']['kernel'] + params['hidden']['bias']
  x = np.asarray(nn.gelu(x), np.float64)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * params['norm']['scale'] + params['norm']['bias']
  x = x / np.sqrt(SIZES['emb_dim'])
  table = params['encoder']['embedding']['table']
  np.testing.assert_allclose(logits, x @ table[:8].T + params['bias'], rtol=1e-4, atol=1e-4)


def test_the_embedding_has_both_gradients_and_the_mask_one():
  model, params = model_and_params()

  def loss(params, inputs):
    return jnp.sum(jnp.sin(model.apply({'params': params}, inputs, MASK, POSITIONS)))

  gradients = jax.jit(jax.grad(loss))(params, INPUTS)['encoder']['embedding']['table']
  # Id 3 occurs as input and, as every id but the mask, among the logits; the mask only as input.
  assert np.all(np.any(gradients != 0, axis=1))
  without = jax.jit(jax.grad(loss))(params, jnp.where(INPUTS == 8, 1, INPUTS))
  assert not np.any(without['encoder']['embedding']['table'][8])


def test_models_are_told_apart_by_their_arguments():
  assert isinstance(
    make_model(model_type='transformer', num_predictions=3, **SIZES), MaskedLanguageModel
  )
  assert isinstance(make_model(model_type='transformer', num_classes=3, **SIZES), Classifier)


def test_segments_end_with_their_separator():
  encoder = make_encoder('transformer', separator=2, **SIZES)
  assert 'segments' not in jax.eval_shape(make_encoder('transformer', **SIZES).init, RNGS, INPUTS)
  variables = jax.jit(encoder.init)(RNGS, INPUTS)
  params = variables['params']
  assert params['segments'].shape == (2, 8)
  both = np.array([[5.0] * 8, [-5.0] * 8], np.float32)
  embedded = []

  def of_embedding(segments, inputs):
    """Return the gradient of one vector: it counts the positions of its segment."""
    out = lambda s: jnp.sum(encoder.apply({'params': params | {'segments': s}}, inputs)[0] ** 2)
    return jax.grad(out)(segments)

  # A sequence without a second segment does not know of the second vector.
  one = jnp.array([[3, 1, 8, 5, 4, 1, 2]], jnp.int32)
  gradient = jax.jit(of_embedding)(both, one)
  assert np.any(gradient[0] != 0)
  assert not np.any(gradient[1])
  # Where the second begins: behind the first separator, and up to the end.
  table = params['embedding']['table']
  for inputs in INPUTS:
    first = int(np.argmax(inputs == 2))
    second = np.arange(7) > first
    shifted = table[inputs] + both[second.astype(int)]
    embedded.append(shifted)
  plain = make_encoder('transformer', **SIZES | {'vocab_size': 14})
  own = {name: value for name, value in params.items() if name != 'segments'}
  own |= {'embedding': {'table': np.concatenate(embedded)}}
  expected, _ = plain.apply({'params': own}, jnp.arange(14, dtype=jnp.int32).reshape(2, 7))
  found, _ = encoder.apply({'params': params | {'segments': both}}, INPUTS)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_of_pretrained_encoders():
  model = make_classifier('transformer', num_classes=3, hidden_dim=6, activation='tanh', **SIZES)
  params = jax.jit(model.init)(RNGS, INPUTS)['params']
  assert params['hidden']['kernel'].shape == (8, 6)
  encoded, _ = jax.jit(model.encoder.apply)({'params': params['encoder']}, INPUTS, MASK)
  hidden = np.tanh(encoded[:, 0] @ params['hidden']['kernel'] + params['hidden']['bias'])
  expected = hidden @ params['logits']['kernel'] + params['logits']['bias']
  found = model.apply({'params': params}, INPUTS, MASK)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_impossible_heads():
  with pytest.raises(ValueError, match="unknown activation 'gelu'.*known: relu, tanh"):
    make_classifier('transformer', num_classes=3, activation='gelu', **SIZES)
  with pytest.raises(ValueError, match='are for single inputs'):
    make_classifier('transformer', num_classes=3, num_inputs=2, hidden_dim=6, **SIZES)
