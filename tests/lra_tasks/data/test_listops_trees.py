import collections
import dataclasses
import hashlib
import random

import numpy as np
import pytest
import scipy.stats

from lra_tasks.data import listops_trees
from lra_tasks.data.listops import TOKENIZER, evaluate
from lra_tasks.data.listops_trees import ListOpsData

# Small trees, so that many can be drawn; long enough that hardly any comes twice.
SMALL = ListOpsData(
  min_length=15, max_length=80, max_depth=5, max_args=5, num_train=60, num_valid=20, num_test=30
)
GOLDEN = [
  'c5ff91eb8ae5d9b6664b8bd4d4968235',
  '67f3e895b2f24d98ca233cd1325b7c12',
]  # Of 1,000 sequences: SMALL, LRA's.


@pytest.fixture(scope='module')
def default_sequences():
  return listops_trees.generate(ListOpsData(), 3000)


@pytest.fixture(scope='module')
def small_sequences():
  return listops_trees.generate(SMALL, 15_000)


def tree_strings(sequences):
  return [TOKENIZER.decode(tokens) for tokens, _ in sequences]


# The rules once more, one node at a time; shares nothing with the module under test.


def reference_tree(rng, depth, data):
  """Return the symbols of a random tree."""
  if depth == data.max_depth or rng.random() >= 0.25:
    return [str(rng.randrange(10))]
  symbols = [rng.choice(['[MIN', '[MAX', '[MED', '[SM'])]
  for _ in range(rng.randrange(2, data.max_args + 1)):
    symbols += reference_tree(rng, depth + 1, data)
  return [*symbols, ']']


def reference_trees(data, num, seed):
  """Return the lengths of `num` different trees by text, and how many operators were at a root."""
  rng = random.Random(seed)
  trees, drawn = {}, 0
  while len(trees) < num:
    tree = reference_tree(rng, 1, data)
    drawn += len(tree) > 1
    if data.min_length < len(tree) < data.max_length:
      trees[' '.join(tree)] = len(tree)
  return trees, drawn


def assert_same_distribution(first, second, min_count=50):
  """Chi-square test of homogeneity; the seeds are fixed, so it cannot fail by chance later."""
  first, second = collections.Counter(first), collections.Counter(second)
  table, cell = [], np.zeros(2)
  for value in sorted(first | second):
    cell += first[value], second[value]
    if cell.min() >= min_count:
      table.append(cell)
      cell = np.zeros(2)
  table.append(cell)
  table = np.array([row for row in table if row.sum()])
  assert len(table) > 1
  assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


# Generation.


@pytest.mark.parametrize('name', ['default_sequences', 'small_sequences'])
def test_evaluator_agrees_with_targets(name, request):
  for tokens, target in request.getfixturevalue(name).part(0, 1000):
    assert evaluate(TOKENIZER.decode(tokens)) == target


@pytest.mark.parametrize('name', ['default_sequences', 'small_sequences'])
def test_lengths_lie_strictly_inside(name, request):
  data = ListOpsData() if name == 'default_sequences' else SMALL
  sequences = request.getfixturevalue(name)
  assert sequences.lengths.min() > data.min_length
  assert sequences.lengths.max() < data.max_length
  assert sequences.lengths.sum() == sequences.tokens.size
  assert sequences.tokens.dtype == np.uint8
  assert set(np.unique(sequences.tokens)) == set(range(1, 16))


def test_bounds_of_length_are_exclusive_and_reached():
  data = ListOpsData(min_length=4, max_length=7, max_depth=3, max_args=5)
  assert set(listops_trees.generate(data, 500).lengths) == {5, 6}


@pytest.mark.parametrize('name', ['default_sequences', 'small_sequences'])
def test_no_duplicates(name, request):
  texts = tree_strings(request.getfixturevalue(name))
  assert len(set(texts)) == len(texts)


def test_duplicates_are_dropped_in_order():
  data = ListOpsData(min_length=3, max_length=5, max_depth=2, max_args=2)  # 400 different trees.
  sequences = listops_trees.generate(data, 300)
  texts = tree_strings(sequences)
  first_block = tree_strings(listops_trees._make_block(data, 0))
  assert texts == list(dict.fromkeys(first_block))[:300]
  assert [evaluate(text) for text in texts] == sequences.targets.tolist()


def test_asking_for_more_than_there_are_fails(monkeypatch):
  monkeypatch.setattr(listops_trees, '_MAX_REPEATS', 5000)
  data = ListOpsData(min_length=3, max_length=5, max_depth=2, max_args=2)
  with pytest.raises(ValueError, match='num=401 .* the 400 found'):
    listops_trees.generate(data, 401)


def test_golden():
  """The data of a seed is the same everywhere and always; a change needs a new VERSION."""
  small, default = listops_trees.generate(SMALL, 1000), listops_trees.generate(ListOpsData(), 1000)
  digests = [
    hashlib.sha256(s.tokens.tobytes() + s.lengths.astype('<i8').tobytes() + s.targets.tobytes())
    for s in (small, default)
  ]
  assert [digest.hexdigest()[:32] for digest in digests] == GOLDEN


def test_a_larger_number_only_adds(default_sequences):
  few = listops_trees.generate(ListOpsData(), 40)
  assert len(few) == 40
  np.testing.assert_array_equal(few.tokens, default_sequences.part(0, 40).tokens)
  np.testing.assert_array_equal(few.targets, default_sequences.targets[:40])


def test_only_shape_and_seed_determine_the_sequences():
  first = listops_trees.generate(SMALL, 50)
  other = listops_trees.generate(dataclasses.replace(SMALL, num_train=5, num_test=7), 50)
  np.testing.assert_array_equal(first.tokens, other.tokens)
  changed = listops_trees.generate(dataclasses.replace(SMALL, seed=1), 50)
  assert not set(tree_strings(first)) & set(tree_strings(changed))


def test_blocks_differ():
  blocks = [set(tree_strings(listops_trees._make_block(SMALL, block))) for block in range(3)]
  assert len(set.union(*blocks)) > 0.99 * sum(map(len, blocks))


def test_depth_is_bounded_and_reached(small_sequences):
  opens = (small_sequences.tokens >= 11) & (small_sequences.tokens <= 14)
  closes = small_sequences.tokens == 15
  nesting = np.cumsum(opens.astype(int) - closes)
  assert nesting.max() == SMALL.max_depth - 1
  assert (nesting[small_sequences.offsets[1:] - 1] == 0).all()


def test_choices_are_uniform():
  words = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32)
  counts = np.bincount(listops_trees._choose(words, 36).astype(int))
  assert counts.size == 36
  assert np.ptp(counts) <= 5
  # The exact counts differ by one in 2**30 / 36.
  edges = [-(-choice * 2**30 // 36) for choice in range(37)]
  assert set(np.diff(edges)) == {2**30 // 36, 2**30 // 36 + 1}
  low = np.array([edges[7] - 1, edges[7], 2**30 - 1], np.uint32)
  assert listops_trees._choose(low, 36).tolist() == [6, 7, 35]


# Distribution.


@pytest.fixture(scope='module')
def reference():
  return reference_trees(SMALL, 10_000, seed=0)


def test_lengths_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  assert_same_distribution(small_sequences.lengths, trees.values())


def test_roots_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  heads = lambda texts: (text.split(' ', 1)[0] for text in texts)
  assert_same_distribution(heads(tree_strings(small_sequences)), heads(trees))


def test_classes_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  assert_same_distribution(small_sequences.targets, map(evaluate, trees))


@pytest.mark.parametrize('symbol', ['[MED', ']', '7'])
def test_symbols_are_those_of_the_reference(small_sequences, reference, symbol):
  trees, _ = reference
  count = lambda texts: (text.split().count(symbol) for text in texts)
  assert_same_distribution(count(tree_strings(small_sequences)), count(trees))


def test_pairs_of_neighbours_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  # One pair of each sequence, as pairs within a sequence depend on each other.
  middle = lambda texts: (' '.join(text.split()[7:9]) for text in texts)
  assert_same_distribution(middle(tree_strings(small_sequences)), middle(trees), min_count=20)


def test_reference_follows_the_exact_probabilities(reference):
  trees, drawn = reference
  probabilities = listops_trees.length_probabilities(SMALL)[SMALL.min_length + 1 :]
  acceptance = probabilities.sum()
  assert scipy.stats.binomtest(len(trees), drawn, acceptance).pvalue > 1e-3


def test_default_lengths_follow_the_exact_probabilities(default_sequences):
  data = ListOpsData()
  probabilities = listops_trees.length_probabilities(data)[data.min_length + 1 :]
  bins = np.arange(probabilities.size) // 75
  expected = np.bincount(bins, probabilities) / probabilities.sum() * len(default_sequences)
  found = np.bincount(bins[default_sequences.lengths - data.min_length - 1])
  assert scipy.stats.chisquare(found, expected).pvalue > 1e-3


def test_default_acceptance_is_exact():
  data = ListOpsData()
  acceptance = listops_trees.length_probabilities(data)[data.min_length + 1 :].sum()
  roots = 2**21 // data.max_length
  kept = sum(len(listops_trees._grow(data, block)[1]) for block in range(8))
  assert scipy.stats.binomtest(kept, 8 * roots, acceptance).pvalue > 1e-3


def test_default_sequences_are_those_of_the_reference(default_sequences):
  trees, _ = reference_trees(ListOpsData(), 400, seed=1)
  lengths = default_sequences.lengths // 100
  assert_same_distribution(lengths, (length // 100 for length in trees.values()), 20)
  assert_same_distribution(default_sequences.targets, map(evaluate, trees), min_count=10)


def test_length_probabilities_of_a_tiny_case():
  # Root with 2 or 3 digits: 4 and 5 tokens, each with probability 1/2.
  data = ListOpsData(min_length=3, max_length=12, max_depth=2, max_args=3)
  expected = np.zeros(12)
  expected[[4, 5]] = 0.5
  np.testing.assert_allclose(listops_trees.length_probabilities(data), expected, atol=1e-12)


# Splits.


def test_splits_do_not_depend_on_the_size_of_training(small_sequences):
  larger = dataclasses.replace(SMALL, num_train=90)
  first, second = (
    listops_trees.split(small_sequences.part(0, data.num_examples), data)
    for data in (SMALL, larger)
  )
  for name, num in (('validation', 20), ('test', 30)):
    assert len(first[name]) == num
    np.testing.assert_array_equal(first[name].tokens, second[name].tokens)
  assert tree_strings(second['train'])[:60] == tree_strings(first['train'])
  assert sum(map(len, first.values())) == SMALL.num_examples
  with pytest.raises(ValueError, match='expected 140 sequences, got 2'):
    listops_trees.split(second['train'].part(0, 2), larger)


# Parameters.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'max_length': 501}, r'min_length=500 and max_length=501; set max_length to at least 502'),
    ({'min_length': 0}, 'min_length=0 must be at least 1'),
    ({'max_depth': 1}, 'max_depth=1 must be at least 2'),
    ({'max_args': 1}, 'max_args=1 must be at least 2'),
    ({'num_train': 0}, 'num_train=0 must be at least 1'),
    ({'seed': -1}, 'seed=-1 must be at least 0'),
    ({'seed': 2**63}, r'seed=\d+ must be below'),
    ({'max_depth': 3}, 'max_depth=3 and .* probability below 1e-06; allow deeper trees'),
    ({'max_args': 2}, 'and max_args=2 .* probability below'),
    # Binary trees have lengths 4, 7, 10, ...
    ({'min_length': 4, 'max_length': 7, 'max_args': 2}, 'probability'),
  ],
)
def test_impossible_parameters(changes, message):
  with pytest.raises(ValueError, match=message):
    ListOpsData(**changes)


@pytest.mark.parametrize('value', [2000.0, True, '2000', None])
def test_parameters_are_integers(value):
  with pytest.raises(TypeError, match=r'max_length=.* must be an integer'):
    ListOpsData(max_length=value)


def test_progress_is_told():
  done = []
  listops_trees.generate(SMALL, 9000, done.append)
  assert len(done) > 1
  assert sum(done) == 9000


def test_number_of_sequences_is_positive():
  with pytest.raises(ValueError, match='num=0'):
    listops_trees.generate(SMALL, 0)


def test_blocks_may_be_empty():
  data = dataclasses.replace(SMALL, min_length=54, max_length=56, max_depth=4)
  assert min(len(listops_trees._make_block(data, block)) for block in range(10)) == 0
  sequences = listops_trees.generate(data, 10)
  assert set(sequences.lengths) == {55}
  assert [evaluate(text) for text in tree_strings(sequences)] == sequences.targets.tolist()


def test_deep_and_narrow_parameters():
  data = ListOpsData(min_length=10, max_length=40, max_depth=100, max_args=2)
  for tokens, target in listops_trees.generate(data, 200):
    assert evaluate(TOKENIZER.decode(tokens)) == target
    assert tokens.size % 3 == 1
