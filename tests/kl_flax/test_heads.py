import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.attention import KernelAttention
from kl_flax.encoder import Encoder
from kl_flax.heads import POOLINGS, Classifier, DualClassifier, pool
from kl_flax.orthogonal import Gaussian

POOL = jax.jit(pool, static_argnames='pooling')
LENGTH = 6


def make_classifier(pooling='CLS', **changes):
  """Return a classifier whose encoder only embeds, adds positions and normalises."""
  sizes = {'vocab_size': 9, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 0, 'mlp_dim': 12}
  sizes |= {'max_length': LENGTH, 'use_cls': pooling == 'CLS'} | changes
  encoder = Encoder(functools.partial(KernelAttention, None, 'elu'), **sizes)
  return Classifier(encoder, 3, pooling)


def make_inputs(seed=0):
  rng = np.random.default_rng(seed)
  inputs = rng.integers(1, 9, (3, LENGTH)).astype(np.int32)
  return inputs, np.arange(LENGTH) < np.array([[LENGTH], [4], [1]])


def random_params(model, length=LENGTH):
  inputs = jax.ShapeDtypeStruct((3, length), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@given(seed=st.integers(0, 10**6), masked=st.booleans())
def test_golden_values_of_pooling(seed, masked):
  rng = np.random.default_rng(seed)
  encoded = rng.normal(size=(3, LENGTH, 4)).astype(np.float32)
  mask = rng.random((3, LENGTH)) < 0.6 if masked else np.ones((3, LENGTH), bool)
  for b in range(3):
    rows = [encoded[b, i].tolist() for i in range(LENGTH) if mask[b, i]]
    total = [sum(row[i] for row in rows) for i in range(4)]
    kept = [encoded[b, i] if mask[b, i] else np.zeros(4) for i in range(LENGTH)]
    expected = {
      'CLS': encoded[b, 0],
      'SUM': total,
      'MEAN': [v / max(len(rows), 1) for v in total],
      'FLATTEN': np.concatenate(kept),
    }
    assert expected.keys() == set(POOLINGS)
    for pooling, vector in expected.items():
      pooled = POOL(encoded, mask if masked else None, pooling)
      np.testing.assert_allclose(pooled[b], vector, rtol=1e-5, atol=1e-6, err_msg=pooling)


def test_padding_that_is_not_finite_is_left_out():
  encoded = np.ones((3, LENGTH, 4), np.float32)
  _, mask = make_inputs()
  encoded[~mask] = np.nan
  for pooling in ('MEAN', 'SUM', 'FLATTEN'):
    assert np.all(np.isfinite(POOL(encoded, mask, pooling)))


def test_sums_of_bfloat16_vectors_are_float32():
  # Which bfloat16 has not: 300 is followed by 302.
  encoded = np.ones((1, 301, 1), jnp.bfloat16)
  assert POOL(encoded, None, 'SUM').tolist() == [[301.0]]
  assert POOL(encoded, None, 'MEAN').tolist() == [[1.0]]


def test_unknown_pooling_is_an_error():
  unchecked = getattr(pool, '__wrapped__', pool)  # Without the run-time check of annotations.
  with pytest.raises(ValueError, match="one of CLS, MEAN, SUM, FLATTEN, got 'MAX'"):
    unchecked(jnp.ones((3, LENGTH, 4)), None, 'MAX')


@pytest.mark.parametrize('pooling', POOLINGS)
def test_golden_logits(pooling):
  model = make_classifier(pooling)
  params = random_params(model)
  inputs, mask = make_inputs()
  run = lambda module, params: jax.jit(module.apply)({'params': params}, inputs, mask)
  logits = run(model, params)
  assert logits.dtype == jnp.float32
  pooled = np.asarray(POOL(*run(model.encoder, params['encoder']), pooling), np.float64)
  hidden = pooled @ params['hidden']['kernel'] + params['hidden']['bias']
  expected = np.maximum(hidden, 0) @ params['logits']['kernel'] + params['logits']['bias']
  assert hidden.shape == (3, 12)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_logits_of_bfloat16_models_are_float32():
  params = random_params(make_classifier())
  inputs, mask = make_inputs()
  run = lambda model: jax.jit(model.apply)({'params': params}, inputs, mask)
  wide, narrow = run(make_classifier()), run(make_classifier(dtype=jnp.bfloat16))
  assert narrow.dtype == jnp.float32
  np.testing.assert_allclose(narrow, wide, atol=0.03 * np.max(np.abs(wide)))
  # The last product is float32's: its logits do not stand on bfloat16's grid.
  assert np.any(np.asarray(narrow).astype(jnp.bfloat16).astype(np.float32) != narrow)


def test_flatten_needs_inputs_of_one_length():
  model = make_classifier('FLATTEN')
  random_params(model, LENGTH)
  with pytest.raises(ValueError, match='padded to max_length=6, got 5'):
    random_params(model, LENGTH - 1)


def test_cls_pooling_needs_an_encoder_with_cls():
  with pytest.raises(ValueError, match='use_cls'):
    random_params(make_classifier('CLS', use_cls=False))


# Pairs.


def make_dual(pooling='CLS', interaction=None, **changes):
  return DualClassifier(make_classifier(pooling, **changes).encoder, 3, pooling, interaction)


def make_pairs():
  inputs, mask = make_inputs()
  return np.stack([inputs, inputs[::-1]], axis=1), np.stack([mask, mask[::-1]], axis=1)


def random_dual_params(model):
  inputs = jax.ShapeDtypeStruct((3, 2, LENGTH), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize('interaction', slow_but(['NLI'], [None, 'NLI']))
@pytest.mark.parametrize('pooling', POOLINGS)
def test_golden_logits_of_pairs(pooling, interaction):
  model = make_dual(pooling, interaction)
  params = random_dual_params(model)
  inputs, mask = make_pairs()
  logits = jax.jit(model.apply)({'params': params}, inputs, mask)
  towers = []
  for k in (0, 1):
    encode = jax.jit(model.encoder.apply)
    encoded = encode({'params': params['encoder']}, inputs[:, k], mask[:, k])
    towers.append(np.asarray(POOL(*encoded, pooling), np.float64))
  u, v = towers
  x = np.concatenate([u, v] + ([u * v, u - v] if interaction else []), axis=1)
  for name, size in (('hidden', 12), ('hidden2', 6)):
    x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
    assert x.shape == (3, size)
  expected = x @ params['logits']['kernel'] + params['logits']['bias']
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_padding_of_pairs_changes_nothing():
  model = make_dual('MEAN', num_layers=1, qkv_dim=8)
  params = random_dual_params(model)
  inputs, mask = make_pairs()
  other = np.where(mask, inputs, 7)
  run = jax.jit(model.apply)
  np.testing.assert_allclose(
    run({'params': params}, other, mask), run({'params': params}, inputs, mask), rtol=1e-5
  )


def test_both_towers_draw_the_same_frequencies():
  encoder = make_classifier().encoder.clone(
    make_attention=lambda: KernelAttention(Gaussian(4, parent=None), 'positive'),
    num_layers=1, qkv_dim=8,
  )  # fmt: skip
  model = DualClassifier(encoder, 3, interaction='NLI')
  inputs = jnp.asarray(np.repeat(make_inputs()[0][:, None], 2, axis=1))
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  shapes = jax.eval_shape(model.init, rngs, inputs)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  # u − v is the last quarter of what the head sees: zero, if both towers are one.
  kernel = np.zeros_like(params['hidden']['kernel'])
  kernel[24:] = 1
  params = params | {'hidden': {'kernel': kernel, 'bias': np.zeros(12, np.float32)}}
  capture = lambda module, name: name == '__call__' and module.name == 'hidden'
  run = functools.partial(model.apply, capture_intermediates=capture, mutable='intermediates')
  _, state = jax.jit(run)({'params': params}, inputs, rngs={'spectral': jax.random.key(2)})
  assert not np.any(state['intermediates']['hidden']['__call__'][0])
