import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data import pipeline
from lra_tasks.data.pipeline import Evaluation, Masking, Order, Share, collate, train_batches


class Source:
  """Record i has i + 1 tokens, all i % 7 + 1."""

  def __init__(self, size):
    self.size = size

  def __len__(self):
    return self.size

  def __getitems__(self, indices):
    return [{'inputs': np.full(i + 1, i % 7 + 1, np.uint8), 'target': i} for i in indices]


def whole(iterator):
  """Return the next batch, which is one part."""
  (batch,) = next(iterator)
  return batch


def take(iterator, count):
  return [whole(iterator) for _ in range(count)]


def equal(a, b):
  return all(np.array_equal(a[k], b[k]) for k in a)


def test_collate_pads_cuts_and_weighs():
  batch = collate(Source(10), [0, None, 6], max_length=4)
  np.testing.assert_array_equal(batch['inputs'], [[1, 0, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]])
  np.testing.assert_array_equal(batch['lengths'], [1, 0, 4])
  np.testing.assert_array_equal(batch['targets'], [0, 0, 6])
  np.testing.assert_array_equal(batch['weights'], [1, 0, 1])
  np.testing.assert_array_equal(batch['truncated'], [0, 0, 1])


class Pairs(Source):
  """Record i has sequences of i + 1 and of two tokens."""

  def __getitems__(self, indices):
    return [
      {'inputs1': np.full(i + 1, 300), 'inputs2': np.array([1, 2]), 'target': i} for i in indices
    ]


def test_pairs_are_padded_side_by_side():
  batch = collate(Pairs(10), [4, None, 0], max_length=3, num_inputs=2)
  first = [[[300, 300, 300], [1, 2, 0]], [[0] * 3, [0] * 3], [[300, 0, 0], [1, 2, 0]]]
  np.testing.assert_array_equal(batch['inputs'], first)
  np.testing.assert_array_equal(batch['lengths'], [[3, 2], [0, 0], [1, 2]])
  np.testing.assert_array_equal(batch['truncated'], [1, 0, 0])
  np.testing.assert_array_equal(batch['weights'], [1, 0, 1])
  options = {'batch_size': 4, 'max_length': 3, 'share': Share(1, 2), 'num_inputs': 2}
  assert whole(train_batches(Pairs(8), seed=0, **options))['inputs'].shape == (2, 2, 3)
  assert next(iter(Evaluation(Pairs(8), **options)))['lengths'].tolist() == [[3, 2], [3, 2]]


@pytest.mark.parametrize('max_length', [3, 4, 6])
def test_sequences_of_one_length_are_collated_like_others(max_length):
  class Images(Source):
    def __getitems__(self, indices):
      return [{'inputs': np.arange(i, i + 4, dtype=np.uint8), 'target': i} for i in indices]

  batch = collate(Images(9), [5, 0, 250], max_length)
  expected = np.zeros((3, max_length), np.int32)
  for row, first in enumerate((5, 0, 250)):
    values = np.arange(first, first + 4)[:max_length]
    expected[row, : len(values)] = values
  np.testing.assert_array_equal(batch['inputs'], expected)
  np.testing.assert_array_equal(batch['lengths'], [min(4, max_length)] * 3)
  np.testing.assert_array_equal(batch['truncated'], [max_length < 4] * 3)
  # The last batch of an evaluation is filled up.
  filled = collate(Images(9), [5, None, 250], max_length)
  np.testing.assert_array_equal(filled['inputs'], expected * [[1], [0], [1]])


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_every_batch(count):
  options = {'batch_size': 8, 'max_length': 5, 'seed': 3}
  batches = take(train_batches(Source(30), share=Share(), **options), 9)
  parts = [
    take(train_batches(Source(30), share=Share(i, count), **options), 9) for i in range(count)
  ]
  for step, batch in enumerate(batches):
    for name, value in batch.items():
      np.testing.assert_array_equal(np.concatenate([p[step][name] for p in parts]), value)


def test_every_epoch_holds_every_example_once_in_another_order():
  batches = take(train_batches(Source(24), batch_size=8, max_length=5, seed=0, share=Share()), 6)
  epochs = np.concatenate([b['targets'] for b in batches]).reshape(2, 24)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(24), (2, 1)))
  assert np.any(epochs[0] != epochs[1])
  assert np.any(epochs[0] != np.arange(24))


def test_order_depends_on_the_seed_alone():
  make = lambda seed: take(
    train_batches(Source(30), batch_size=8, max_length=5, seed=seed, share=Share()), 3
  )
  assert all(equal(a, b) for a, b in zip(make(1), make(1), strict=True))
  assert not equal(make(1)[0], make(2)[0])


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.data())
def test_any_part_of_the_order_is_that_of_the_whole(size, seed, data):
  start = data.draw(st.integers(0, 40))
  stop = data.draw(st.integers(start + 1, 45))
  order = Order(size, seed)
  whole = [order[i : i + 1].item() for i in range(45)]
  assert order[start:stop].tolist() == Order(size, seed)[start:stop].tolist() == whole[start:stop]
  for epoch in range(45 // size):
    assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_iterator_goes_on_from_its_saved_state():
  make = lambda: train_batches(Source(30), batch_size=8, max_length=5, seed=0, share=Share())
  iterator = make()
  take(iterator, 5)
  state = iterator.get_state()
  rest = take(iterator, 4)
  again = make()
  again.set_state(state)
  assert all(equal(a, b) for a, b in zip(rest, take(again, 4), strict=True))


def test_evaluation_covers_everything_once_and_fills_up_the_last_batch():
  batches = list(Evaluation(Source(19), batch_size=8, max_length=30, share=Share()))
  weights = np.concatenate([b['weights'] for b in batches])
  targets = np.concatenate([b['targets'] for b in batches])
  np.testing.assert_array_equal(weights, [1] * 19 + [0] * 5)
  np.testing.assert_array_equal(targets[:19], np.arange(19))
  parts = [
    list(Evaluation(Source(19), batch_size=8, max_length=30, share=Share(i, 2))) for i in (0, 1)
  ]
  for step, batch in enumerate(batches):
    np.testing.assert_array_equal(
      np.concatenate([p[step]['targets'] for p in parts]), batch['targets']
    )


@pytest.mark.parametrize(('limit', 'expected'), [(1, 1), (99_999, 3), (-1, 3)])
def test_evaluation_can_be_limited(limit, expected):
  batches = Evaluation(Source(19), batch_size=8, max_length=4, share=Share(), num_batches=limit)
  assert len(list(batches)) == expected


class Uneven(Source):
  """Examples of 0 to 39 positions; example i has target i."""

  def __getitems__(self, indices):
    lengths = [(7 * i) % 40 for i in indices]
    return [
      {'inputs': np.arange(1, n + 1), 'target': i} for i, n in zip(indices, lengths, strict=True)
    ]


@pytest.mark.parametrize('count', [1, 2])
def test_short_sequences_are_evaluated_in_short_batches(monkeypatch, count):
  monkeypatch.setattr(pipeline, '_LEAST_BATCHES', 2)
  options = {'batch_size': 4, 'max_length': 32}
  shares = [Share(i, count) for i in range(count)]
  parts = [list(Evaluation(Uneven(40), share=share, **options)) for share in shares]
  joined = [
    {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for batches in zip(*parts, strict=True)
  ]
  # Lengths are 0 to 39: nine up to 8, eight up to 16, 23 longer ones.
  widths = [batch['inputs'].shape for batch in joined]
  assert widths == [(16, 8)] + [(8, 16)] + [(4, 32)] * 6
  seen = []
  for batch in joined:
    for row in range(len(batch['weights'])):
      if batch['weights'][row]:
        target = int(batch['targets'][row])
        length = (7 * target) % 40
        kept = min(length, 32)
        assert batch['lengths'][row] == kept
        assert batch['truncated'][row] == (length > 32)
        assert batch['inputs'][row, :kept].tolist() == list(range(1, kept + 1))
        assert not batch['inputs'][row, kept:].any()
        seen.append(target)
  assert sorted(seen) == list(range(40))


def test_batches_of_one_length_where_padding_counts_or_few_would_be_short(monkeypatch):
  make = lambda **more: Evaluation(Uneven(40), batch_size=4, max_length=32, share=Share(), **more)
  lengths = lambda batches: {batch['inputs'].shape[1] for batch in batches}
  assert lengths(make()) == {32}
  monkeypatch.setattr(pipeline, '_LEAST_BATCHES', 2)
  assert lengths(make(trim=False)) == {32}
  assert lengths(make(num_batches=3)) == {32}
  # The examples are the first ones all the same.
  limited = list(make(num_batches=5))
  assert lengths(limited) == {16, 32}  # Five of the 20 are up to 8: too few.
  targets = np.concatenate([b['targets'][b['weights'] > 0] for b in limited])
  assert sorted(targets) == list(range(20))


def same_forms(empty, batches):
  form = lambda batch: sorted((name, x.shape, x.dtype.str) for name, x in batch.items())
  assert sorted(map(form, empty)) == sorted({str(form(b)): form(b) for b in batches}.values())
  assert not any(batch['lengths'].any() or batch['weights'].any() for batch in empty)


@pytest.mark.parametrize('masking', [None, Masking(40, 1, 32)])
def test_empty_batches_have_the_forms_of_those_with_data(monkeypatch, masking):
  monkeypatch.setattr(pipeline, '_LEAST_BATCHES', 2)
  options = {'batch_size': 4, 'max_length': 32, 'masking': masking}
  evaluation = Evaluation(Uneven(40), share=Share(), **options)
  same_forms(evaluation.empty_batches(), evaluation)
  assert len(evaluation.empty_batches()) == 3
  trained = whole(train_batches(Uneven(40), seed=0, share=Share(), **options))
  same_forms([pipeline.empty_batch(**options)], [trained])


def test_empty_batches_of_pairs():
  options = {'batch_size': 4, 'max_length': 3, 'num_inputs': 2}
  evaluation = Evaluation(Pairs(10), share=Share(), **options)
  same_forms(evaluation.empty_batches(), evaluation)
  same_forms([pipeline.empty_batch(**options)], evaluation)


def test_a_split_smaller_than_a_batch_is_an_error():
  with pytest.raises(ValueError, match=r'batch_size=32 is larger than .* \(30 examples\)'):
    train_batches(Source(30), batch_size=32, max_length=4, seed=0, share=Share())
