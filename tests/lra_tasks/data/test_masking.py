"""Tests of masked batches: how many, where, by what, and for any number of processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data.pipeline import Evaluation, Masking, Share, train_batches


def make_batch(inputs, lengths):
  size = len(lengths)
  return {
    'inputs': np.asarray(inputs, np.int32),
    'lengths': np.asarray(lengths, np.int32),
    'targets': np.zeros(size, np.int32),
    'weights': np.ones(size, np.float32),
    'truncated': np.zeros(size, np.float32),
  }


def random_batch(size, length, vocab_size, num_special, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, length + 1, size)
  inputs = rng.integers(num_special, vocab_size, (size, length))
  inputs[rng.random(inputs.shape) < 0.1] = max(num_special - 1, 0)  # Separators.
  return make_batch(inputs * (np.arange(length) < lengths[:, None]), lengths)


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0.02, 0.9), st.integers(0, 3))
def test_what_is_predicted(size, length, rate, number):
  masking = Masking(vocab_size=20, num_special=3, max_length=40, rate=rate, seed=number)
  batch = random_batch(size, length, 20, 3, seed=number)
  masked = masking(batch, number, slice(0, size), size)
  for row in range(size):
    before, after = batch['inputs'][row], masked['inputs'][row]
    candidates = np.flatnonzero(before >= 3)
    count = min(max(round(rate * len(candidates)), 1), len(candidates))
    weights = masked['weights'][row]
    assert weights.tolist() == [1.0] * count + [0.0] * (masking.num_predictions - count)
    chosen = masked['positions'][row][:count]
    assert len(set(chosen.tolist())) == count
    assert np.all(np.isin(chosen, candidates))
    np.testing.assert_array_equal(masked['targets'][row][:count], before[chosen])
    others = np.delete(np.arange(length), chosen)
    np.testing.assert_array_equal(after[others], before[others])
    assert np.all((after[chosen] == 20) | ((after[chosen] >= 3) & (after[chosen] < 20)))
  assert masked['positions'].shape == (size, masking.num_predictions)
  np.testing.assert_array_equal(masked['lengths'], batch['lengths'])


def test_shares_of_kinds():
  """0.8, 0.1 and 0.1, of which a drawn id is by chance the one that stood there."""
  vocab_size = 1000
  masking = Masking(vocab_size, num_special=1, max_length=500)
  inputs = np.random.default_rng(0).integers(1, vocab_size, (400, 500))
  batch = make_batch(inputs, [500] * 400)
  masked = masking(batch, 0, slice(0, 400), 400)
  found = np.take_along_axis(masked['inputs'], masked['positions'], axis=1)
  total = found.size
  assert total == 400 * 75
  assert masked['weights'].sum() == total
  sd = lambda p: np.sqrt(p * (1 - p) / total)
  for share, p in [
    (np.mean(found == vocab_size), 0.8),
    (np.mean(found == masked['targets']), 0.1 + 0.1 / 999),
  ]:
    assert abs(share - p) < 4 * sd(p)
  # Positions are uniform: none is chosen much more often than others.
  counts = np.bincount(masked['positions'].ravel(), minlength=500)
  chi2 = np.sum((counts - 60) ** 2 / (60 * 0.85))
  assert 400 < chi2 < 600  # 499 degrees of freedom: 499 ± 3 · 32.
  drawn = found[(found != vocab_size) & (found != masked['targets'])]
  assert drawn.min() >= 1
  assert len(np.unique(drawn)) > 900


class Source:
  def __len__(self):
    return 24

  def __getitems__(self, indices):
    return [{'inputs': np.arange(1, 10 + i % 5), 'target': 0} for i in indices]


def test_processes_mask_alike():
  options = {'batch_size': 8, 'max_length': 16, 'masking': Masking(14, 1, 16, rate=0.3)}

  def take(share):
    batches = train_batches(Source(), seed=1, share=share, **options)
    trained = [next(batches)[0] for _ in range(4)]
    return trained + list(Evaluation(Source(), share=share, **options))

  whole, parts = take(Share()), [take(Share(i, 2)) for i in range(2)]
  for step, batch in enumerate(whole):
    for name, value in batch.items():
      np.testing.assert_array_equal(np.concatenate([p[step][name] for p in parts]), value)
  # Another batch, another mask; another pass over the evaluation, the same.
  assert np.any(whole[0]['positions'] != whole[1]['positions'])
  np.testing.assert_array_equal(whole[4]['positions'], take(Share())[4]['positions'])


def test_rows_that_fill_up_a_batch_predict_nothing():
  options = {'batch_size': 16, 'max_length': 16, 'share': Share(), 'masking': Masking(14, 1, 16)}
  *_, last = Evaluation(Source(), **options)
  assert np.all(last['weights'][:8, 0] == 1)
  assert not last['weights'][8:].any()


@pytest.mark.parametrize('lengths', [[0, 0], [1, 0]])
def test_sequences_with_nothing_or_one_thing_to_predict(lengths):
  masking = Masking(9, 1, 4)
  batch = make_batch(np.full((2, 4), 5) * (np.arange(4) < np.array(lengths)[:, None]), lengths)
  masked = masking(batch, 0, slice(0, 2), 2)
  assert masked['weights'].sum(axis=1).tolist() == lengths
