import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanism_helpers import (
  apply,
  assert_bfloat16_is_close,
  assert_equals_golden,
  assert_masked_positions_do_not_count,
  assert_no_square,
  assert_rows_without_keys_are_zero,
  make_inputs,
)

from kl_flax.baselines.reformer import ReformerAttention, fixed_rotations

ONE = ReformerAttention(24, num_hashes=1, num_buckets=4, chunk_length=3)
SEVERAL = ONE.clone(num_hashes=3)
WHOLE = ONE.clone(num_buckets=1, chunk_length=24)


def golden_found(module, query, mask, num_buckets, size):
  """Return how many rounds let position i attend to position j, int[l, l], of one head."""
  length, head_dim = query.shape
  rotations = fixed_rotations(head_dim, module.num_hashes, num_buckets)
  count = np.zeros((length, length), int)
  for r in range(module.num_hashes):
    scores = query @ rotations[:, r]
    bucket = np.argmax(np.concatenate([scores, -scores], axis=1), axis=1)
    place = {}
    for b in range(num_buckets):
      for i in range(length):
        if mask[i] and bucket[i] == b:
          place[i] = len(place)
    for i in place:
      for j in place:
        step = place[i] // size - place[j] // size
        count[i, j] += bucket[i] == bucket[j] and step in (0, 1)
  return count


def golden(module, num_buckets=4, size=3):
  """Return a function that attends to the union of what the rounds find, row by row."""

  def run(query, key, value, params, mask):
    out = np.zeros((*query.shape[:3], value.shape[3]))
    norm = np.linalg.norm(query, axis=-1, keepdims=True)
    keys = query / norm
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
      if num_buckets == 1:
        found = mask[b] & mask[b][:, None]
      else:
        found = golden_found(module, query[b, :, h], mask[b], num_buckets, size) > 0
      for i in np.flatnonzero(mask[b]):
        others = [j for j in np.flatnonzero(found[i]) if j != i] or [i]
        weights = np.exp(keys[b, others, h] @ query[b, i, h] / np.sqrt(query.shape[3]))
        out[b, i, h] = weights @ value[b, others, h] / np.sum(weights)
    return out

  return run


@pytest.mark.parametrize(
  ('module', 'length', 'masked'),
  [
    (ONE, 24, False),
    pytest.param(ONE, 11, True, marks=pytest.mark.slow),
    (SEVERAL, 11, True),
    pytest.param(SEVERAL, 3, False, marks=pytest.mark.slow),  # One chunk.
    pytest.param(ONE, 2, True, marks=pytest.mark.slow),
  ],
)
def test_golden_values_and_gradients_in_float64_numpy(module, length, masked):
  assert_equals_golden(module, golden(module), length, masked)


@pytest.mark.parametrize('num_hashes', [pytest.param(1, marks=pytest.mark.slow), 3])
def test_one_bucket_in_one_chunk_is_softmax_attention_to_the_others(num_hashes):
  module = WHOLE.clone(num_hashes=num_hashes)
  assert_equals_golden(module, golden(module, num_buckets=1), 11, masked=True)


def test_rounds_find_different_positions():
  """Or else those that several rounds find would not be tested."""
  inputs, mask = make_inputs(11)
  counts = golden_found(SEVERAL, inputs[0][0, :, 0], mask[0], 4, 3)
  assert set(np.unique(counts)) == {0, 1, 2, 3}


@settings(max_examples=20)
@given(bits=st.lists(st.booleans(), min_size=22, max_size=22), seed=st.integers(0, 10**6))
def test_any_mask(bits, seed):
  inputs, _ = make_inputs(11, seed)
  mask = np.array(bits).reshape(2, 11)
  expected = golden(SEVERAL)(*inputs, {}, mask)
  np.testing.assert_allclose(apply(SEVERAL, {}, inputs, mask), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
  'module', [SEVERAL, pytest.param(ReformerAttention(24), marks=pytest.mark.slow)]
)
def test_masked_positions_do_not_count(module):
  assert_masked_positions_do_not_count(module, 11, 9)


def test_rows_without_valid_keys_give_zeros_and_finite_gradients():
  assert_rows_without_keys_are_zero(SEVERAL, 11)


def test_bfloat16():
  assert_bfloat16_is_close(SEVERAL, 11)


def test_nothing_is_quadratic():
  assert_no_square(ReformerAttention(512))
  # With as few buckets as LRA has, two rounds find two fifths of all pairs each.
  assert_no_square(ReformerAttention(512, 2, 10, 0), share=0.9)


def test_keys_are_not_read():
  (query, _, value), mask = make_inputs(11)
  assert ONE.projections == ('query', 'value')
  assert apply(ONE, {}, (query, None, value), mask).shape == value.shape


def test_nothing_is_drawn():
  """The rotations are the same for all seeds, platforms and versions."""
  assert jax.eval_shape(ONE.init, jax.random.key(0), *make_inputs(11)[0]) == {}
  rotations = fixed_rotations(3, 1, 4)
  expected = [[1.764052, 0.400157], [0.978738, 2.240893], [1.867558, -0.977278]]
  np.testing.assert_allclose(rotations[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('num_positions', 'num_buckets', 'chunk_length', 'expected'),
  [
    (2008, 0, 64, (64, 64)),
    (2000, 10, 0, (10, 400)),
    (2008, 10, 0, (10, 402)),
    (9, 0, 64, (2, 64)),
    (9, 1, 5, (1, 5)),
  ],
)
def test_buckets_fill_half_of_a_chunk(num_positions, num_buckets, chunk_length, expected):
  module = ReformerAttention(num_positions, 1, num_buckets, chunk_length)
  assert module._sizes() == expected


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_hashes': 0}, 'num_hashes must be an integer of at least 1, got 0'),
    ({'chunk_length': -1}, 'chunk_length must be an integer of at least 0'),
    ({'num_buckets': 5}, 'num_buckets must be even, 1 or 0, got 5: half'),
    ({'chunk_length': 0}, 'leave both to each other: set one, such as chunk_l'),
  ],
)
def test_what_cannot_be_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    ReformerAttention(9, **options)
