import jax
import numpy as np
import pytest
from breadth import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanism_helpers import (
  apply,
  assert_bfloat16_is_close,
  assert_dropout_averages_to_the_prediction,
  assert_equals_golden,
  assert_masked_positions_do_not_count,
  assert_rows_without_keys_are_zero,
  make_inputs,
  make_params,
)

from kl_flax.baselines.synthesizer import SynthesizerAttention, attend_alike

MODES = [
  ('random', False),
  ('factorized_random', False),
  ('dense', False),
  ('random', True),
  ('dense+random', False),
  ('factorized_random+dense', True),
]


def make_module(mode, dot_product, **options):
  return SynthesizerAttention(12, mode, dot_product, rank=3, **options)


def golden(mode, dot_product):
  """Return a function that computes the attention of a mode row by row."""

  def logits(name, b, i, j, h, query, key, params):
    if name == 'random':
      return params['random'][h, i, j]
    if name == 'factorized_random':
      return params['rows'][h, i] @ params['columns'][h, j]
    if name == 'dense':
      return np.maximum(query[b, i, h], 0) @ params['dense'][h, :, j]
    return query[b, i, h] @ key[b, j, h] / np.sqrt(query.shape[3])

  def run(query, key, value, params, mask):
    names = mode.split('+') + ['dot'] * dot_product
    mixture = np.exp(params.get('mixture', np.zeros(1)))
    mixture /= np.sum(mixture)
    out = np.zeros((*value.shape[:3], value.shape[3]))
    for b, i, h in np.ndindex(value.shape[:3]):
      weights = np.zeros(value.shape[1])
      for j in np.flatnonzero(mask[b]):
        parts = [logits(name, b, i, j, h, query, key, params) for name in names]
        weights[j] = np.exp(np.dot(mixture, parts))
      out[b, i, h] = weights @ value[b, :, h] / max(np.sum(weights), 1e-30)
    return out

  return run


@pytest.mark.parametrize(('mode', 'dot_product'), slow_but(MODES[2:4] + MODES[5:], MODES))
def test_golden_values_and_gradients_in_float64_numpy(mode, dot_product):
  module = make_module(mode, dot_product)
  assert_equals_golden(module, golden(mode, dot_product), 7, masked=True)


@pytest.mark.parametrize('mode', ['random', 'dense'])
def test_golden_values_of_the_largest_length_without_mask(mode):
  assert_equals_golden(make_module(mode, False), golden(mode, False), 12, masked=False)


@settings(max_examples=20)
@given(bits=st.lists(st.booleans(), min_size=20, max_size=20), seed=st.integers(0, 10**6))
def test_any_mask(bits, seed):
  inputs, _ = make_inputs(10, seed)
  module = make_module('factorized_random', False)
  params = make_params(module, inputs)
  mask = np.array(bits).reshape(2, 10)
  expected = golden('factorized_random', False)(*inputs, params, mask)
  np.testing.assert_allclose(apply(module, params, inputs, mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('mode', 'dot_product'), [MODES[0], MODES[5]])
def test_masked_positions_do_not_count(mode, dot_product):
  assert_masked_positions_do_not_count(make_module(mode, dot_product), 7, 5)


@pytest.mark.parametrize('mode', [MODES[0], MODES[5]])
def test_rows_without_valid_keys_give_zeros_and_finite_gradients(mode):
  assert_rows_without_keys_are_zero(make_module(*mode), 7)


def test_padded_keys_with_large_logits_do_not_hide_valid_ones():
  logits = np.array([[[0.0, 120.0, 0.5]] * 3], np.float32)
  value = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
  for masks in ([[1, 0, 1], [1, 0, 0]], [[1, 0, 1], [1, 1, 1]]):
    mask = np.array(masks, bool)
    out = attend_alike(*map(jax.numpy.asarray, (logits, value, mask)))
    weights = np.exp(np.array([0.0, 120.0, 0.5])) * mask
    pairs = zip(weights, value[:, :, 0, 0], strict=True)
    expected = np.array([w @ v / np.sum(w) for w, v in pairs])
    if masks[1][1]:  # The first example's keys are 119.5 below those of the second: counted as 80.
      assert np.all((out[0] > 0) & (out[0] < 2))
      np.testing.assert_allclose(out[1, :, 0, 0], expected[1], rtol=1e-6)
    else:
      np.testing.assert_allclose(out[:, :, 0, 0], np.repeat(expected[:, None], 3, 1), rtol=1e-6)


@pytest.mark.parametrize('mode', [MODES[1], MODES[5]])
def test_bfloat16(mode):
  assert_bfloat16_is_close(make_module(*mode), 12)


def test_logits_that_read_no_input_are_computed_once_for_all_examples():
  for mode, rate, count in [('random', 0.0, 0), ('random', 0.5, 1), ('dense', 0.0, 1)]:
    module = make_module(mode, False, dropout_rate=rate)
    inputs, mask = make_inputs(7)
    params = jax.tree.map(jax.numpy.asarray, make_params(module, inputs))
    step = lambda query, key, value, module=module, params=params, mask=mask: module.apply(
      {'params': params},
      query, key, value, jax.numpy.asarray(mask),
      deterministic=False,
      rngs={'dropout': jax.random.key(0)},
    )  # fmt: skip
    assert ('f32[2,2,7,7]' in str(jax.make_jaxpr(step)(*inputs))) == count


def test_dropout():
  assert_dropout_averages_to_the_prediction(make_module(*MODES[1], dropout_rate=0.5), 4)


def test_what_no_component_reads_may_be_missing():
  (query, _, value), mask = make_inputs(7)
  for mode, dot_product, projections in [
    ('random', False, ('value',)),
    ('dense+random', False, ('query', 'value')),
    ('factorized_random', True, ('query', 'key', 'value')),
  ]:
    assert make_module(mode, dot_product).projections == projections
  for module, inputs in [
    (make_module('random', False), (None, None, value)),
    (make_module('dense', False), (query, None, value)),
  ]:
    out = apply(module, make_params(module, inputs), inputs, mask)
    assert out.shape == value.shape


def test_parameters_are_those_of_the_mode():
  inputs, _ = make_inputs(7)
  shapes = lambda *args: jax.tree.map(np.shape, make_params(make_module(*args), inputs))
  assert shapes('random', False) == {'random': (2, 12, 12)}
  assert shapes('factorized_random', False) == {'rows': (2, 12, 3), 'columns': (2, 12, 3)}
  assert shapes('dense', True) == {'dense': (2, 4, 12), 'mixture': (2,)}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'mode': 'randm'}, "unknown component of mode 'randm' .*mean 'random'"),
    ({'mode': 'dense+'}, "unknown component of mode ''; known: dense, fact"),
    ({'mode': 'dense+dense'}, "each component once, got 'dense\\+dense'"),
    ({'rank': 0}, 'rank must be an integer of at least 1, got 0'),
  ],
)
def test_what_cannot_be_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    SynthesizerAttention(9, **options)


def test_longer_sequences_are_errors():
  inputs, _ = make_inputs(9)
  with pytest.raises(ValueError, match='length 9 exceed num_positions=8: .* larger max_length'):
    jax.eval_shape(SynthesizerAttention(8).init, jax.random.key(0), *inputs)
