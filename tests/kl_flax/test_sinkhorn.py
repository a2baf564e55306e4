import jax
import numpy as np
import pytest
from hypothesis import given
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
  output_and_gradients,
)

from kl_flax.baselines.sinkhorn import SinkhornAttention, balance

MODULE = SinkhornAttention(num_positions=24, block_size=4, num_iterations=3, temperature=0.8)
SOFTMAX = MODULE.clone(sorting='softmax')


def golden_sorting(module, key, params, mask):
  """Return S of one sequence of one head: by division, over the blocks with a valid key."""
  size, length = module.block_size, len(key)
  sums = [(key * mask[:, None])[i : i + size].sum(axis=0) for i in range(0, length, size)]
  chosen = [i for i in range(len(sums)) if np.any(mask[i * size : (i + 1) * size])]
  found = np.exp((np.array(sums) @ params['sorting'])[np.ix_(chosen, chosen)] / module.temperature)
  if module.sorting == 'softmax':
    found /= np.sum(found, axis=1, keepdims=True)
  else:
    for _ in range(module.num_iterations):
      found /= np.sum(found, axis=1, keepdims=True)
      found /= np.sum(found, axis=0, keepdims=True)
  sorting = np.zeros((len(sums), len(sums)))
  sorting[np.ix_(chosen, chosen)] = found
  return sorting


def golden(module):
  """Return a function that sorts keys and values by a matrix of all positions."""

  def run(query, key, value, params, mask):
    size = module.block_size
    extra = -query.shape[1] % size
    length = query.shape[1]
    pad = lambda x: np.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
    query, key, value, mask = (pad(x) for x in (query, key, value, mask))
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
      sorting = golden_sorting(module, key[b, :, h], params, mask[b])
      # From place s of block j to place s of block i.
      moved = np.kron(sorting, np.eye(size)) * mask[b]
      total = np.repeat(np.sum(sorting, axis=1), size)
      for i in range(query.shape[1]):
        logits, values = [], []
        block = i // size * size
        for j in range(block, block + size):
          if mask[b, j]:
            logits.append(key[b, j, h] @ query[b, i, h] / np.sqrt(query.shape[3]))
            values.append(value[b, j, h])
          if np.any(moved[j]):
            share = np.sum(moved[j]) / total[j]
            sorted_key, sorted_value = (moved[j] @ x[b, :, h] / share for x in (key, value))
            logit = sorted_key @ query[b, i, h] / np.sqrt(query.shape[3])
            logits.append(logit + np.log(share))
            values.append(sorted_value)
        if logits:
          weights = np.exp(logits)
          out[b, i, h] = weights @ np.array(values) / np.sum(weights)
    return out[:, :length]

  return run


@pytest.mark.parametrize(
  ('module', 'length', 'masked'),
  [
    pytest.param(MODULE, 24, False, marks=pytest.mark.slow),  # All blocks there may be.
    (MODULE, 11, True),
    # One block: attends to itself twice.
    pytest.param(MODULE, 4, False, marks=pytest.mark.slow),
    pytest.param(MODULE, 3, True, marks=pytest.mark.slow),
    (SOFTMAX, 10, False),
  ],
)
def test_golden_values_and_gradients_in_float64_numpy(module, length, masked):
  assert_equals_golden(module, golden(module), length, masked)


@given(bits=st.lists(st.booleans(), min_size=22, max_size=22), seed=st.integers(0, 10**6))
def test_any_mask(bits, seed):
  inputs, _ = make_inputs(11, seed)
  params = make_params(MODULE, inputs)
  mask = np.array(bits).reshape(2, 11)
  expected = golden(MODULE)(*inputs, params, mask)
  np.testing.assert_allclose(apply(MODULE, params, inputs, mask), expected, rtol=0, atol=2e-5)


def test_whole_blocks_may_be_masked():
  inputs, mask = make_inputs(11)
  mask[0, 4:8] = False
  mask[1, :8] = False
  mask[1, 8] = True
  params = make_params(MODULE, inputs)
  expected = golden(MODULE)(*inputs, params, mask)
  np.testing.assert_allclose(apply(MODULE, params, inputs, mask), expected, rtol=0, atol=2e-5)


def test_a_sharp_permutation_moves_whole_blocks():
  """Of keys whose sums name a block, each place gets that block, as ordinary attention would."""
  module = SinkhornAttention(12, block_size=4, num_iterations=20, temperature=0.01)
  (query, key, value), _ = make_inputs(12, size=4, heads=1, batch=1)
  key -= key.reshape(1, 3, 4, 1, 4).mean(axis=2).repeat(4, axis=1)
  source = np.array([2, 0, 1])  # Of block i.
  key[0, np.arange(12), 0, source.repeat(4)] += 1.0
  out = apply(module, {'sorting': np.eye(4, 3, dtype=np.float32)}, (query, key, value))
  for i in range(3):
    places = np.concatenate([np.arange(4) + 4 * i, np.arange(4) + 4 * source[i]])
    weights = np.exp(query[0, 4 * i : 4 * i + 4, 0] @ key[0, places, 0].T / 2)
    expected = weights @ value[0, places, 0] / np.sum(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(out[0, 4 * i : 4 * i + 4, 0], expected, rtol=1e-4, atol=1e-5)


def test_balanced_matrices_are_doubly_stochastic():
  logits = np.random.default_rng(0).normal(0, 2, (2, 1, 5, 5)).astype(np.float32)
  chosen = np.array([[True] * 5, [True, False, True, True, False]])[:, None]
  mask = chosen[..., :, None] & chosen[..., None, :]
  balanced = np.asarray(jax.jit(balance, static_argnums=2)(logits, mask, 30))
  for axis in (-1, -2):
    np.testing.assert_allclose(np.sum(balanced, axis=axis), chosen, atol=1e-4)
  assert np.all(balanced[~mask] == 0)


def test_masked_positions_do_not_count():
  assert_masked_positions_do_not_count(MODULE, 11, 9)


def test_rows_without_valid_keys_give_zeros_and_finite_gradients():
  assert_rows_without_keys_are_zero(MODULE, 11)


def test_sharp_sorting_has_finite_gradients():
  """Also at places where the block that is chosen is masked."""
  inputs, mask = make_inputs(11)
  params = jax.tree.map(lambda x: 30 * x, make_params(MODULE, inputs))
  for leaf in jax.tree.leaves(output_and_gradients(MODULE, params, inputs, mask)):
    assert np.all(np.isfinite(leaf))


def test_bfloat16():
  assert_bfloat16_is_close(MODULE, 11)


def test_dropout():
  assert_dropout_averages_to_the_prediction(MODULE.clone(dropout_rate=0.5), 4)


def test_gumbel_noise_is_for_training_alone():
  module = MODULE.clone(sorting='gumbel_sinkhorn')
  inputs, mask = make_inputs(11)
  params = make_params(module, inputs)
  expected = np.asarray(apply(MODULE, params, inputs, mask))
  np.testing.assert_array_equal(apply(module, params, inputs, mask, 1), expected)
  train = lambda seed: np.asarray(apply(module, params, inputs, mask, seed, deterministic=False))
  np.testing.assert_array_equal(train(1), train(1))
  assert np.any(train(1) != train(2))
  assert np.any(train(1) != expected)


def test_nothing_is_quadratic():
  assert_no_square(SinkhornAttention(512))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'block_size': 0}, 'block_size must be an integer of at least 1, got 0'),
    ({'num_iterations': 0}, 'num_iterations must be an integer of at least 1'),
    ({'temperature': 0.0}, 'temperature must be above 0, got 0.0: the closer'),
    ({'sorting': 'sort'}, "unknown sorting 'sort'.*known: gumbel_sinkhorn, sink"),
  ],
)
def test_what_cannot_be_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    SinkhornAttention(9, **options)


def test_longer_sequences_are_errors():
  inputs, _ = make_inputs(9)
  with pytest.raises(ValueError, match='length 9 exceed num_positions=8: .* larger max_length'):
    jax.eval_shape(SinkhornAttention(8).init, jax.random.key(0), *inputs)
