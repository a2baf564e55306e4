import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.baselines import softmax
from kl_flax.baselines.softmax import SoftmaxAttention, softmax_weights
from kl_flax.checks import check_key_mask


def make_inputs(seed=0, b=2, lq=5, lk=7, h=2, d=4, e=4):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  inputs = normal(b, lq, h, d), normal(b, lk, h, d), normal(b, lk, h, e)
  mask = rng.random((b, lk)) < 0.6
  mask[:, 0] = True
  return inputs, mask


def golden_attention(query, key, value, mask):
  """Return softmax attention in float64, row by row; rows without valid keys are zeros."""
  query, key, value = (x.astype(np.float64) for x in (query, key, value))
  out = np.zeros((*query.shape[:3], value.shape[3]))
  for b, i, h in np.ndindex(query.shape[:3]):
    if np.any(mask[b]):
      weights = np.exp(key[b, :, h] @ query[b, i, h] / math.sqrt(query.shape[3])) * mask[b]
      out[b, i, h] = weights @ value[b, :, h] / np.sum(weights)
  return out


def weigh(out):
  """Return a loss in which every entry of the output has a weight of its own."""
  out = out.astype(jnp.float32)
  return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))


def outputs_and_gradients(function, *inputs):
  """Return the output and the gradients of a fixed projection of it."""

  def loss(inputs):
    out = function(*inputs)
    return weigh(out), out

  gradients, out = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(inputs))
  return out, *gradients


@functools.partial(jax.jit, static_argnames=('rate', 'deterministic'))
def attend(query, key, value, key_mask=None, seed=0, *, rate=0.0, deterministic=True):
  rngs = {'dropout': jax.random.key(seed)}
  module = SoftmaxAttention(rate)
  return module.apply({}, query, key, value, key_mask, deterministic=deterministic, rngs=rngs)


@given(seed=st.integers(0, 10**6), masked=st.booleans())
def test_golden_values_in_float64_numpy(seed, masked):
  inputs, mask = make_inputs(seed)
  out = attend(*inputs, mask if masked else None)
  mask = mask if masked else np.ones_like(mask)
  np.testing.assert_allclose(out, golden_attention(*inputs, mask), rtol=1e-4, atol=1e-5)


def test_golden_weights_in_float64_numpy():
  (query, key, _), mask = make_inputs()
  mask[1] = False
  weights = np.asarray(jax.jit(softmax_weights)(query, key, mask[:, None, None, :]))
  assert weights.dtype == jnp.float32
  assert np.all(weights[0][..., ~mask[0]] == 0)
  identity = np.broadcast_to(np.eye(7, dtype=np.float32)[:, None], (2, 7, 2, 7))
  expected = golden_attention(query, key, identity, mask)
  np.testing.assert_allclose(weights[0], expected[0].swapaxes(0, 1), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)  # No NaN where all is masked.


def test_values_may_have_a_size_of_their_own():
  inputs, mask = make_inputs(e=3)
  np.testing.assert_allclose(
    attend(*inputs, mask), golden_attention(*inputs, mask), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('mask', [np.ones((2, 7), np.int32), np.ones((2, 6), bool)])
def test_masks_are_bool_and_as_long_as_the_keys(mask):
  inputs, _ = make_inputs()
  with pytest.raises(ValueError, match=r'key_mask must be bool\[2, 7\], got (int32|bool)\[2, '):
    check_key_mask(mask, inputs[1])
  with pytest.raises((ValueError, TypeError), match='key_mask'):  # Shapes are checked here, too.
    attend(*inputs, mask)


@pytest.mark.parametrize('deterministic', [True, False])
def test_rows_without_valid_keys_give_zeros_and_finite_gradients(deterministic):
  inputs, mask = make_inputs()
  mask[1] = False
  run = functools.partial(attend, key_mask=mask, rate=0.5, deterministic=deterministic)
  out, *gradients = outputs_and_gradients(run, *inputs)
  assert np.all(out[1] == 0)
  assert np.any(out[0] != 0)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient[0] != 0)
    assert np.all(gradient[1] == 0)


@pytest.fixture
def fused_on_cpu(monkeypatch):
  """Let `_fused` call XLA's product where it asks for cuDNN's kernel, under the kernel's rules."""
  original = jax.nn.dot_product_attention

  def dot_product_attention(query, key, value, *, key_value_seq_lengths, scale, implementation):
    assert implementation == 'cudnn'
    assert query.shape[1] % 2 == key.shape[1] % 2 == 0
    assert query.shape[3] % 8 == 0
    assert key.shape == value.shape
    lengths = {'key_value_seq_lengths': key_value_seq_lengths}
    return original(query, key, value, scale=scale, implementation='xla', **lengths)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', dot_product_attention)


@pytest.mark.usefixtures('fused_on_cpu')
@pytest.mark.parametrize(
  ('lengths', 'sizes', 'masked'),
  [
    ((5, 7), (5, 3), 'anywhere'),
    pytest.param((8, 16), (8, 8), 'anywhere', marks=pytest.mark.slow),
    pytest.param((5, 7), (5, 3), 'at the end', marks=pytest.mark.slow),
    ((8, 16), (8, 8), 'at the end'),
    ((1, 9), (8, 17), 'nowhere'),
    pytest.param((8, 16), (8, 8), 'nowhere', marks=pytest.mark.slow),
  ],
)
def test_fused_equals_the_plain_product(lengths, sizes, masked):
  inputs, mask = make_inputs(lq=lengths[0], lk=lengths[1], d=sizes[0], e=sizes[1])
  if masked == 'at the end':
    mask = np.arange(lengths[1]) < np.array([[3], [lengths[1]]])
  mask = None if masked == 'nowhere' else jnp.asarray(mask)[:, None, None, :]

  def naive(query, key, value):
    return jnp.einsum('bhls,bshe->blhe', softmax_weights(query, key, mask), value)

  fused = outputs_and_gradients(lambda *inputs: softmax._fused(*inputs, mask), *inputs)
  for a, b in zip(fused, outputs_and_gradients(naive, *inputs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('fused_on_cpu')
def test_fused_masks_exactly_in_bfloat16():
  inputs, mask = make_inputs(d=8, e=8)
  inputs = [x.astype(jnp.bfloat16) for x in inputs]
  fused = jax.jit(softmax._fused)
  out = fused(*inputs, mask[:, None, None, :])
  assert out.dtype == jnp.bfloat16
  wide = [np.asarray(x, np.float32) for x in inputs]
  np.testing.assert_allclose(
    np.asarray(out, np.float64), golden_attention(*wide, mask), atol=0.03, rtol=0.03
  )
  # Anything could stand where the mask is: not a trace of it comes out.
  others = [x.copy() for x in inputs]
  for x in others[1:]:
    x[~mask] = 30
  np.testing.assert_array_equal(fused(*others, mask[:, None, None, :]), out)


def test_dropped_weights_average_to_the_deterministic_output():
  inputs, mask = make_inputs()
  run = functools.partial(attend, *inputs, mask, rate=0.5, deterministic=False)
  outs = np.asarray(jax.jit(jax.vmap(run))(np.arange(4_000)), np.float64)
  np.testing.assert_allclose(outs[3], run(3), rtol=1e-4, atol=1e-6)
  assert np.any(outs[3] != outs[4])
  error = np.std(outs, axis=0) / math.sqrt(len(outs))
  assert np.all(error > 0)
  assert np.all(np.abs(np.mean(outs, axis=0) - attend(*inputs, mask)) < 4.5 * error)


def test_predictions_ignore_dropout():
  inputs, mask = make_inputs()
  expected = attend(*inputs, mask)
  np.testing.assert_array_equal(attend(*inputs, mask, 1, rate=0.5), expected)
  np.testing.assert_array_equal(attend(*inputs, mask, 2, rate=0.5), expected)
  # And so does training at a rate of zero.
  np.testing.assert_array_equal(attend(*inputs, mask, deterministic=False), expected)


def test_bfloat16_runs_on_every_platform():
  inputs, mask = make_inputs()
  out = attend(*(x.astype(jnp.bfloat16) for x in inputs), mask)
  assert out.dtype == jnp.bfloat16
  expected = golden_attention(*inputs, mask)
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.05)
