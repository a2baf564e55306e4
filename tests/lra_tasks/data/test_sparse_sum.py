import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import read, run_here

from kl_flax import Predictor
from lra_tasks.data import datasets, sparse_sum
from lra_tasks.data.sparse_sum import TOKENIZER, SparseSumData

SMALL = SparseSumData(length=24, num_train=100, num_valid=40, num_test=20)
RELEVANCES = (0.1, 0.5, 0.9)


def values_and_relevance(tokens):
  """Signs and relevance of ids, by the symbols."""
  symbols = [TOKENIZER.decode(row).split() for row in tokens]
  values = np.array([[1 if symbol[0] == '+' else -1 for symbol in row] for row in symbols])
  return values, np.array([[int(symbol[1]) for symbol in row] for row in symbols])


def draw(relevance, length, num, seed=0):
  return sparse_sum.draw(relevance, length, num, np.random.Philox(key=seed))


# Sequences before they are balanced.


@settings(max_examples=30)
@given(
  relevance=st.floats(0, 1), length=st.integers(1, 60), num=st.integers(1, 30), seed=st.integers(0)
)
def test_no_prefix_leaves_the_range(relevance, length, num, seed):
  tokens, sums = draw(relevance, length, num, seed % 2**64)
  values, relevant = values_and_relevance(tokens)
  prefixes = np.cumsum(values * relevant, axis=1)
  assert np.abs(prefixes).max() <= 4
  np.testing.assert_array_equal(prefixes[:, -1], sums)
  assert (tokens.shape, tokens.dtype) == ((num, length), np.uint8)


def law_of_the_walk(relevance, length):
  """The distribution of the sum by powers of the transition matrix."""
  matrix = np.zeros((9, 9))
  for i in range(9):
    matrix[i, i] = 1 - relevance
    neighbours = [j for j in (i - 1, i + 1) if 0 <= j <= 8]
    for j in neighbours:
      matrix[i, j] = relevance / len(neighbours)
  return np.linalg.matrix_power(matrix, length)[4]


@pytest.mark.parametrize('relevance', RELEVANCES)
@pytest.mark.parametrize('length', [7, 200])
def test_sums_are_distributed_as_derived(relevance, length):
  expected, num = law_of_the_walk(relevance, length), 20_000
  np.testing.assert_allclose(sparse_sum.sum_probabilities(relevance, length), expected, atol=1e-12)
  _, sums = draw(relevance, length, num)
  counts = np.bincount(sums + 4, minlength=9)
  errors = np.sqrt(num * expected * (1 - expected))
  assert np.all(np.abs(counts - num * expected) <= 4 * errors)


def test_long_walks_are_at_the_ends_half_as_often():
  ratios = sparse_sum.sum_probabilities(0.5, 1000) * 16
  np.testing.assert_allclose(ratios, [1, 2, 2, 2, 2, 2, 2, 2, 1], rtol=1e-9)


@pytest.mark.parametrize('relevance', RELEVANCES)
def test_coins_are_as_biased_as_they_say(relevance):
  tokens, _ = draw(relevance, 200, 2000)
  values, relevant = values_and_relevance(tokens)
  within = lambda heads, tosses, chance: (
    abs(heads - tosses * chance) <= 4 * math.sqrt(tosses * chance * (1 - chance))
  )
  assert within(relevant.sum(), relevant.size, relevance)
  before = np.cumsum(values * relevant, axis=1) - values * relevant
  free = values[(relevant == 1) & (np.abs(before) < 4)]
  for coins in (free, values[relevant == 0], values[(relevant == 0) & (np.abs(before) == 4)]):
    assert within((coins == 1).sum(), coins.size, 0.5)
  forced = (relevant == 1) & (np.abs(before) == 4)
  assert forced.any()
  np.testing.assert_array_equal(values[forced], -np.sign(before[forced]))


def test_extreme_relevances():
  tokens, sums = draw(0.0, 10, 50)
  assert set(np.unique(tokens)) == {3, 4}
  assert not sums.any()
  tokens, sums = draw(1.0, 11, 50)
  assert set(np.unique(tokens)) == {1, 2}
  assert np.all(sums % 2 == 1)


# Examples.


@given(
  relevance=st.floats(0.2, 0.9), length=st.integers(15, 40), num=st.integers(1, 100),
  seed=st.integers(0, 2**63 - 1), split=st.sampled_from(['train', 'validation', 'test']),
)  # fmt: skip
def test_examples_are_balanced_and_labelled(relevance, length, num, seed, split):
  sizes = dict.fromkeys(['num_train', 'num_valid', 'num_test'], num)
  data = SparseSumData(relevance=relevance, length=length, seed=seed, **sizes)
  tokens, targets = sparse_sum.generate(data, split)
  assert (tokens.shape, tokens.dtype, targets.dtype) == ((num, length), np.uint8, np.int32)
  counts = np.bincount(targets, minlength=9)
  assert counts.max() - counts.min() <= 1
  for row, target in zip(tokens, targets, strict=True):
    assert sparse_sum.evaluate(TOKENIZER.decode(row)) == target - 4


def test_data_is_the_same_everywhere():
  """Taken from what was generated on one machine, to be compared with others."""
  tokens, targets = sparse_sum.generate(SMALL, 'test')
  assert targets.tolist() == [0, 2, 2, 8, 0, 1, 8, 4, 5, 7, 1, 4, 3, 3, 1, 6, 5, 6, 0, 7]
  assert ''.join(map(str, tokens[0])) == '131122223422213444241323'


def test_splits_differ_and_do_not_depend_on_each_other():
  splits = {name: sparse_sum.generate(SMALL, name)[0] for name in SMALL.sizes}
  rows = [row.tobytes() for tokens in splits.values() for row in tokens]
  assert len(set(rows)) == len(rows) == 160
  other = dataclasses.replace(SMALL, num_train=30, num_valid=7)
  np.testing.assert_array_equal(sparse_sum.generate(other, 'test')[0], splits['test'])
  other = dataclasses.replace(SMALL, seed=1)
  assert not np.array_equal(sparse_sum.generate(other, 'test')[0], splits['test'])


def test_examples_are_shuffled():
  """The first examples, of which gradients are taken, are no special ones."""
  data = dataclasses.replace(SMALL, num_valid=900)
  _, targets = sparse_sum.generate(data, 'validation')
  counts = np.bincount(targets[:90], minlength=9)
  assert counts.min() > 0
  assert np.any(counts != 10)


def test_vocabulary():
  assert TOKENIZER.vocab_size == 5
  assert TOKENIZER.encode('+1 -1 +0 -0').tolist() == [1, 2, 3, 4]
  with pytest.raises(ValueError, match=r"unknown symbol '1'"):
    sparse_sum.evaluate('+1 1')


@pytest.mark.parametrize(
  ('fields', 'error', 'message'),
  [
    ({'relevance': 0.0}, ValueError, r'relevance=0.0 must be above 0 and at most 1'),
    ({'relevance': 1.5}, ValueError, r'relevance=1.5 must be'),
    ({'relevance': math.nan}, ValueError, r'relevance=nan must be'),
    ({'relevance': '0.5'}, TypeError, r"relevance='0.5' must be a number, not str"),
    ({'relevance': 1.0}, ValueError, r'fewer than 1 in 10,000 sum to -3'),
    ({'relevance': 0.01, 'length': 20}, ValueError, r'sum to -4; change relevance or length'),
    ({'length': 3}, ValueError, r'sum to -4'),
    ({'length': 0}, ValueError, r'length=0 must be at least 1'),
    ({'num_valid': 0}, ValueError, r'num_valid=0 must be at least 1'),
    ({'num_train': 1.5}, TypeError, r'num_train=1.5 must be an integer, not float'),
    ({'seed': True}, TypeError, r'seed=True must be an integer'),
    ({'seed': -1}, ValueError, r'seed=-1 must be at least 0'),
    ({'seed': 2**63}, ValueError, r'must be below'),
  ],
)
def test_impossible_data(fields, error, message):
  with pytest.raises(error, match=message):
    SparseSumData(**fields)


# The data set.


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  builder = sparse_sum.make_builder(SMALL, data_dir=str(tmp_path_factory.mktemp('data')))
  datasets.prepare(builder)
  return builder


def test_prepared_splits(builder):
  for name, size in SMALL.sizes.items():
    source = builder.as_data_source(name)
    tokens, targets = sparse_sum.generate(SMALL, name)
    assert len(source) == size
    np.testing.assert_array_equal([source[i]['inputs'] for i in range(size)], tokens)
    assert [source[i]['target'] for i in range(size)] == targets.tolist()
    assert source[0]['inputs'].dtype == np.uint8


def test_what_a_builder_says(builder):
  assert builder.info.full_name == 'sparse_sum/r0.5_24_100_40_20_s0/1.0.0'
  assert builder.variant == '0.5'
  assert not sparse_sum.is_benchmark(builder)  # Nothing was published that could stand beside it.
  assert not builder.validation_is_test


def test_name_changes_with_every_parameter():
  name = lambda data: sparse_sum.SparseSumConfig(data=data).name
  names = {name(SMALL)}
  for field in dataclasses.fields(SMALL):
    value = getattr(SMALL, field.name)
    value = 0.25 if field.name == 'relevance' else value + 1
    names.add(name(dataclasses.replace(SMALL, **{field.name: value})))
  assert len(names) == 1 + len(dataclasses.fields(SMALL))


def test_there_is_nothing_to_read_from(tmp_path):
  with pytest.raises(ValueError, match='--source=x: sparse_sum is generated'):
    sparse_sum.make_builder(SMALL, data_dir=str(tmp_path), source='x')
  with pytest.raises(ValueError, match="unknown task_name 'basic'"):
    sparse_sum.make_builder(SMALL, data_dir=str(tmp_path), task_name='basic')


@pytest.mark.slow
def test_a_run_and_its_predictions(shared, tmp_path):
  assert run_here(shared, tmp_path / 'run', task='sparse_sum', argument='gmm_prf,tiny') == 0
  results = read(tmp_path / 'run', 'results.json')
  assert results['task'] == 'sparse_sum/0.5'
  assert results['examples'] == 64
  assert results['majority_class'] == 8 / 64
  data = SparseSumData(**read(tmp_path / 'run', 'config.json')['config']['data'])
  tokens, targets = sparse_sum.generate(data, 'test')
  prediction = Predictor.restore(str(tmp_path / 'run')).predict(map(TOKENIZER.decode, tokens))
  assert np.mean(prediction.labels == targets) == pytest.approx(results['accuracy'])
