import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data.parts import Parts, plan
from lra_tasks.data.pipeline import Share, collate, sample_lengths, train_batches

# Of a training of a small model.
LONG = {'num_steps': 10**6, 'num_weights': 3_000_000}


class Source:
  """Record i has as many tokens as its length says, all i % 7 + 1."""

  def __init__(self, lengths):
    self.lengths = lengths

  def __len__(self):
    return len(self.lengths)

  def __getitems__(self, indices):
    return [{'inputs': np.full(self.lengths[i], i % 7 + 1, np.uint8), 'target': i} for i in indices]


@given(st.lists(st.integers(0, 20), min_size=8, max_size=8), st.integers(0, 12), st.integers(0, 12))
def test_parts_hold_every_row_once_and_all_of_its_tokens(lengths, first, second):
  batch = collate(Source(lengths), range(8), max_length=16)
  bounds = sorted((first, second))
  cut = Parts((4, 2, 2), (*bounds, 16)).cut(batch)
  if len(cut) == 1:
    assert cut[0] is batch
    clipped = np.sort(np.minimum(lengths, 16))
    assert clipped[3] > bounds[0] or clipped[5] > bounds[1]
  else:
    assert [part['inputs'].shape for part in cut] == [(4, bounds[0]), (2, bounds[1]), (2, 16)]
  rows = {
    int(target): (tokens[tokens > 0].tolist(), int(length), float(cut))
    for part in cut
    for target, tokens, length, cut in zip(
      part['targets'], part['inputs'], part['lengths'], part['truncated'], strict=True
    )
  }
  assert rows == {
    i: ([i % 7 + 1] * min(n, 16), min(n, 16), float(n > 16)) for i, n in enumerate(lengths)
  }


def test_pairs_are_cut_by_the_longer_of_the_two():
  batch = {
    'inputs': np.arange(16).reshape(2, 2, 4), 'lengths': np.array([[1, 4], [2, 2]]),
    'targets': np.array([5, 6]),
  }  # fmt: skip
  short, long = Parts((1, 1), (2, 4)).cut(batch)
  assert (short['targets'].item(), long['targets'].item()) == (6, 5)
  np.testing.assert_array_equal(short['inputs'], [[[8, 9], [12, 13]]])
  np.testing.assert_array_equal(long['inputs'], batch['inputs'][:1])


def reviews():
  """Lengths as of reviews in bytes: most are short, some are cut."""
  return np.random.default_rng(0).lognormal(np.log(970), 0.65, 4096).astype(int)


def test_plan_halves_the_work_on_reviews():
  found = plan(reviews(), batch_size=32, max_length=4000, num_added=1, **LONG)
  assert sum(found.rows) == 32
  assert list(found.lengths) == sorted(found.lengths)
  assert all((length + 1) % 64 == 0 for length in found.lengths[:-1])
  assert 0.4 < np.dot(found.rows, found.lengths) / (32 * 4000) < 0.65
  # Most batches fit, of others than those that it was made from, too.
  lengths = np.random.default_rng(1).choice(np.minimum(reviews(), 4000), (300, 32))
  lengths.sort(axis=1)
  fits = np.all(lengths[:, np.cumsum(found.rows) - 1] <= found.lengths, axis=1)
  assert fits.mean() > 0.95


def test_the_more_devices_share_the_work_the_less_is_worth_a_part():
  options = LONG | {'num_steps': 60_000}
  count = lambda devices: plan(
    reviews(), batch_size=32, max_length=4000, num_devices=devices, **options
  )
  assert len(count(1).rows) > len(count(2).rows) == 2
  assert all(rows % 2 == 0 for rows in count(2).rows)
  assert count(8) is None


@pytest.mark.parametrize(
  ('lengths', 'options'),
  [
    (np.full(50, 1024), {'batch_size': 32, 'max_length': 1024}),  # Pixels.
    (reviews() % 40, {'batch_size': 32, 'max_length': 40}),  # So small that it is no work.
    (reviews(), {'batch_size': 32, 'max_length': 4000, 'num_steps': 1000}),  # Soon over.
    (reviews() + 9000, {'batch_size': 32, 'max_length': 4000}),
    (reviews(), {'batch_size': 1, 'max_length': 4000}),
  ],
)
def test_whole_batches_where_parts_save_nothing(lengths, options):
  assert plan(lengths, **LONG | options) is None


def test_one_part_may_be_short():
  assert plan(np.full(50, 500), batch_size=8, max_length=4000, num_devices=8, **LONG) == Parts(
    (8,), (512,)
  )


def test_batches_come_in_parts_and_go_on_from_a_saved_place():
  source = Source(np.random.default_rng(0).integers(1, 17, 40))
  options = {'batch_size': 8, 'max_length': 16, 'seed': 0, 'share': Share()}
  make = lambda: train_batches(source, parts=Parts((4, 4), (6, 16)), **options)
  batches, plain = make(), train_batches(source, **options)
  counts = []
  for _ in range(10):
    cut, (whole,) = next(batches), next(plain)
    counts.append(len(cut))
    targets = np.concatenate([part['targets'] for part in cut])
    np.testing.assert_array_equal(np.sort(targets), np.sort(whole['targets']))
  assert set(counts) == {1, 2}
  state, expected = batches.get_state(), next(batches)
  again = make()
  again.set_state(state)
  for a, b in zip(next(again), expected, strict=True):
    for name, value in b.items():
      np.testing.assert_array_equal(a[name], value)


def test_lengths_are_sampled_from_the_whole_split():
  source = Source(np.arange(100))
  np.testing.assert_array_equal(np.sort(sample_lengths(source, 1)), np.arange(100))
  sample = sample_lengths(source, 1, size=20)
  assert len(set(sample.tolist())) == 20
  assert sample.max() > 50
  np.testing.assert_array_equal(sample, sample_lengths(source, 1, size=20))
