import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanism_helpers import (
  apply,
  assert_bfloat16_is_close,
  assert_dropout_averages_to_the_prediction,
  assert_equals_golden,
  assert_masked_positions_do_not_count,
  assert_no_square,
  assert_rows_without_keys_are_zero,
  make_inputs,
  make_params,
)

from kl_flax.baselines.linformer import LinformerAttention

MODULE = LinformerAttention(num_positions=12, projected_length=5)


def golden(query, key, value, params, mask):
  """Return Linformer's attention row by row."""
  projection = params['projection']
  out = np.zeros((*query.shape[:3], value.shape[3]))
  for b, i, h in np.ndindex(query.shape[:3]):
    keys, values = (
      sum(np.outer(projection[j], x[b, j, h]) for j in range(x.shape[1]) if mask[b, j])
      for x in (key, value)
    )
    weights = np.exp(keys @ query[b, i, h] / np.sqrt(query.shape[3]))
    out[b, i, h] = weights @ values / np.sum(weights)
  return out


@pytest.mark.parametrize(('length', 'masked'), [(12, False), (7, True), (1, True)])
def test_golden_values_and_gradients_in_float64_numpy(length, masked):
  assert_equals_golden(MODULE, golden, length, masked)


@settings(max_examples=20)
@given(bits=st.lists(st.booleans(), min_size=20, max_size=20), seed=st.integers(0, 10**6))
def test_any_mask(bits, seed):
  inputs, _ = make_inputs(10, seed)
  params = make_params(MODULE, inputs)
  mask = np.array(bits).reshape(2, 10)
  expected = golden(*inputs, params, mask | ~np.any(mask, axis=1, keepdims=True))
  expected *= np.any(mask, axis=1)[:, None, None, None]
  np.testing.assert_allclose(apply(MODULE, params, inputs, mask), expected, rtol=0, atol=1e-5)


def test_masked_positions_do_not_count():
  assert_masked_positions_do_not_count(MODULE, 7, 5)


def test_rows_without_valid_keys_give_zeros_and_finite_gradients():
  assert_rows_without_keys_are_zero(MODULE, 7)


def test_bfloat16():
  assert_bfloat16_is_close(MODULE, 12)


def test_dropout():
  assert_dropout_averages_to_the_prediction(MODULE.clone(dropout_rate=0.5), 4)


def test_nothing_is_quadratic():
  assert_no_square(LinformerAttention(512))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'projected_length': 0}, 'projected_length must be an integer of at least 1, got 0'),
  ],
)
def test_what_cannot_be_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    LinformerAttention(9, **options)


def test_longer_sequences_are_errors():
  inputs, _ = make_inputs(9)
  with pytest.raises(ValueError, match='length 9 exceed num_positions=8: .* larger max_length'):
    jax.eval_shape(LinformerAttention(8).init, jax.random.key(0), *inputs)
