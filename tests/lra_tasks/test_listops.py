import collections
import dataclasses
import hashlib
import io
import pathlib
import pickle
import random
import re
import resource

import numpy as np
import pytest
import rich.console
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lra_tasks import listops
from lra_tasks.listops import TOKENIZER, ListOpsData

# Small trees, so that many can be drawn; long enough that hardly any comes twice.
SMALL = ListOpsData(
  min_length=15, max_length=80, max_depth=5, max_args=5, num_train=60, num_valid=20, num_test=30
)
GOLDEN = [
  'c5ff91eb8ae5d9b6664b8bd4d4968235',
  '67f3e895b2f24d98ca233cd1325b7c12',
]  # Of 1,000 sequences: SMALL, LRA's.
ROW = '( ( ( [MAX 2 ) 9 ) ] )\t9\r\n'


@pytest.fixture(scope='module')
def default_sequences():
  return listops.generate(ListOpsData(), 3000)


@pytest.fixture(scope='module')
def small_sequences():
  return listops.generate(SMALL, 15_000)


def tree_strings(sequences):
  return [TOKENIZER.decode(tokens) for tokens, _ in sequences]


# The rules once more, one node at a time; shares nothing with the module under test.


def reference_tree(rng, depth, data):
  if depth == data.max_depth or rng.random() >= 0.25:
    return str(rng.randrange(10))
  arguments = [
    reference_tree(rng, depth + 1, data) for _ in range(rng.randrange(2, data.max_args + 1))
  ]
  return [rng.choice(['[MIN', '[MAX', '[MED', '[SM']), *arguments]


def reference_length(tree):
  return 1 if isinstance(tree, str) else 2 + sum(map(reference_length, tree[1:]))


def reference_value(tree):
  if isinstance(tree, str):
    return int(tree)
  values = [reference_value(argument) for argument in tree[1:]]
  if tree[0] == '[SM':
    return sum(values) % 10
  return int({'[MIN': min, '[MAX': max, '[MED': np.median}[tree[0]](values))


def reference_text(tree):
  return tree if isinstance(tree, str) else ' '.join([*map(reference_text, tree), ']'])


def reference_trees(data, num, seed):
  """Returns `num` different trees, and the number of those with an operator at the root drawn."""
  rng = random.Random(seed)
  trees, drawn = {}, 0
  while len(trees) < num:
    tree = reference_tree(rng, 1, data)
    drawn += not isinstance(tree, str)
    if data.min_length < reference_length(tree) < data.max_length:
      trees.setdefault(reference_text(tree), tree)
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


def test_evaluator_agrees_with_every_default_target(default_sequences):
  for tokens, target in default_sequences:
    assert listops.evaluate(TOKENIZER.decode(tokens)) == target


def test_evaluator_agrees_with_small_targets(small_sequences):
  for tokens, target in small_sequences.part(0, 5000):
    assert listops.evaluate(TOKENIZER.decode(tokens)) == target


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
  assert set(listops.generate(data, 500).lengths) == {5, 6}


@pytest.mark.parametrize('name', ['default_sequences', 'small_sequences'])
def test_no_duplicates(name, request):
  texts = tree_strings(request.getfixturevalue(name))
  assert len(set(texts)) == len(texts)


def test_duplicates_are_dropped_in_order():
  data = ListOpsData(min_length=3, max_length=5, max_depth=2, max_args=2)  # 400 different trees.
  sequences = listops.generate(data, 300)
  texts = tree_strings(sequences)
  first_block = tree_strings(listops._make_block(data, 0))
  assert texts == list(dict.fromkeys(first_block))[:300]
  assert [listops.evaluate(text) for text in texts] == sequences.targets.tolist()


def test_asking_for_more_than_there_are_fails(monkeypatch):
  monkeypatch.setattr(listops, '_MAX_REPEATS', 5000)
  data = ListOpsData(min_length=3, max_length=5, max_depth=2, max_args=2)
  with pytest.raises(ValueError, match='num=401 .* the 400 found'):
    listops.generate(data, 401)


def test_golden():
  """The data of a seed is the same everywhere and always; a change needs a new VERSION."""
  small, default = listops.generate(SMALL, 1000), listops.generate(ListOpsData(), 1000)
  digests = [
    hashlib.sha256(s.tokens.tobytes() + s.lengths.astype('<i8').tobytes() + s.targets.tobytes())
    for s in (small, default)
  ]
  assert [digest.hexdigest()[:32] for digest in digests] == GOLDEN


def test_a_larger_number_only_adds(default_sequences):
  few = listops.generate(ListOpsData(), 40)
  assert len(few) == 40
  np.testing.assert_array_equal(few.tokens, default_sequences.part(0, 40).tokens)
  np.testing.assert_array_equal(few.targets, default_sequences.targets[:40])


def test_only_shape_and_seed_determine_the_sequences():
  first = listops.generate(SMALL, 50)
  other = listops.generate(dataclasses.replace(SMALL, num_train=5, num_test=7), 50)
  np.testing.assert_array_equal(first.tokens, other.tokens)
  changed = listops.generate(dataclasses.replace(SMALL, seed=1), 50)
  assert not set(tree_strings(first)) & set(tree_strings(changed))


def test_blocks_differ():
  blocks = [set(tree_strings(listops._make_block(SMALL, block))) for block in range(3)]
  assert len(set.union(*blocks)) > 0.99 * sum(map(len, blocks))


def test_depth_is_bounded_and_reached(small_sequences):
  opens = (small_sequences.tokens >= 11) & (small_sequences.tokens <= 14)
  closes = small_sequences.tokens == 15
  nesting = np.cumsum(opens.astype(int) - closes)
  assert nesting.max() == SMALL.max_depth - 1
  assert (nesting[small_sequences.offsets[1:] - 1] == 0).all()


def test_choices_are_uniform():
  words = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32)
  counts = np.bincount(listops._choose(words, 36).astype(int))
  assert counts.size == 36
  assert np.ptp(counts) <= 5
  # The exact counts differ by one in 2**30 / 36.
  edges = [-(-choice * 2**30 // 36) for choice in range(37)]
  assert set(np.diff(edges)) == {2**30 // 36, 2**30 // 36 + 1}
  low = np.array([edges[7] - 1, edges[7], 2**30 - 1], np.uint32)
  assert listops._choose(low, 36).tolist() == [6, 7, 35]


# Distribution.


@pytest.fixture(scope='module')
def reference():
  return reference_trees(SMALL, 10_000, seed=0)


def test_lengths_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  assert_same_distribution(small_sequences.lengths, map(reference_length, trees.values()))


def test_roots_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  heads = [text.split(' ', 1)[0] for text in tree_strings(small_sequences)]
  assert_same_distribution(heads, (tree[0] for tree in trees.values()))


def test_classes_are_those_of_the_reference(small_sequences, reference):
  trees, _ = reference
  assert_same_distribution(small_sequences.targets, map(reference_value, trees.values()))


@pytest.mark.parametrize('symbol', ['[MIN', '[MED', ']', '0', '7'])
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
  probabilities = listops.length_probabilities(SMALL)[SMALL.min_length + 1 :]
  acceptance = probabilities.sum()
  assert scipy.stats.binomtest(len(trees), drawn, acceptance).pvalue > 1e-3


def test_default_lengths_follow_the_exact_probabilities(default_sequences):
  data = ListOpsData()
  probabilities = listops.length_probabilities(data)[data.min_length + 1 :]
  bins = np.arange(probabilities.size) // 75
  expected = np.bincount(bins, probabilities) / probabilities.sum() * len(default_sequences)
  found = np.bincount(bins[default_sequences.lengths - data.min_length - 1])
  assert scipy.stats.chisquare(found, expected).pvalue > 1e-3


def test_default_acceptance_is_exact():
  data = ListOpsData()
  acceptance = listops.length_probabilities(data)[data.min_length + 1 :].sum()
  roots = 2**21 // data.max_length
  kept = sum(len(listops._grow(data, block)[1]) for block in range(8))
  assert scipy.stats.binomtest(kept, 8 * roots, acceptance).pvalue > 1e-3


def test_default_sequences_are_those_of_the_reference(default_sequences):
  trees, _ = reference_trees(ListOpsData(), 400, seed=1)
  lengths = default_sequences.lengths // 100
  assert_same_distribution(lengths, (reference_length(t) // 100 for t in trees.values()), 20)
  assert_same_distribution(
    default_sequences.targets, map(reference_value, trees.values()), min_count=10
  )


def test_length_probabilities_of_a_tiny_case():
  # Root with 2 or 3 digits: 4 and 5 tokens, each with probability 1/2.
  data = ListOpsData(min_length=3, max_length=12, max_depth=2, max_args=3)
  expected = np.zeros(12)
  expected[[4, 5]] = 0.5
  np.testing.assert_allclose(listops.length_probabilities(data), expected, atol=1e-12)


# Parameters.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'max_length': 501}, r'min_length=500 and max_length=501; set max_length to at least 502'),
    ({'min_length': 0}, 'min_length=0 must be at least 1'),
    ({'max_depth': 1}, 'max_depth=1 must be at least 2'),
    ({'max_args': 1}, 'max_args=1 must be at least 2'),
    ({'num_train': 0}, 'num_train=0 must be at least 1'),
    ({'num_valid': -3}, 'num_valid=-3 must be'),
    ({'num_test': 0}, 'num_test=0 must be'),
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


def test_number_of_sequences_is_positive():
  with pytest.raises(ValueError, match='num=0'):
    listops.generate(SMALL, 0)


def test_blocks_may_be_empty():
  data = dataclasses.replace(SMALL, min_length=54, max_length=56, max_depth=4)
  assert min(len(listops._make_block(data, block)) for block in range(10)) == 0
  sequences = listops.generate(data, 10)
  assert set(sequences.lengths) == {55}
  assert [listops.evaluate(text) for text in tree_strings(sequences)] == sequences.targets.tolist()


def test_deep_and_narrow_parameters():
  data = ListOpsData(min_length=10, max_length=40, max_depth=100, max_args=2)
  for tokens, target in listops.generate(data, 200):
    assert listops.evaluate(TOKENIZER.decode(tokens)) == target
    assert tokens.size % 3 == 1


# The written form.


def test_vocabulary():
  assert TOKENIZER.vocab_size == 16
  assert TOKENIZER.encode('0 9 [MIN [SM ]').tolist() == [1, 10, 11, 14, 15]


@pytest.mark.parametrize(
  ('source', 'value'),
  [
    ('7', 7),
    ('[MIN 4 2 8 ]', 2),
    ('[MAX 4 2 8 ]', 8),
    ('[SM 4 9 8 ]', 1),
    ('[MED 9 1 5 ]', 5),
    ('[MED 1 2 ]', 1),  # 1.5 is truncated.
    ('[MED 9 0 8 3 ]', 5),  # 5.5
    ('[MED 9 0 8 4 ]', 6),
    ('( ( ( [MED 1 ) 2 ) ] )', 1),
    ('( ( ( [SM ( ( ( [MAX 2 ) 9 ) ] ) ) 4 ) ] )', 3),
    ('[MAX [MIN 3 4 ] [SM 5 6 [MED 7 7 ] ] 0 ]', 8),
  ],
)
def test_evaluate(source, value):
  assert listops.evaluate(source) == value


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('', 'expected an expression'),
    ('( )', 'expected an expression'),
    ('[MIN 3 [AVG 4 ] ]', r"'\[AVG' at position 3 of 6: unknown symbol"),
    ('[MIN 3 10 ]', "'10' at position 3 of 4: unknown symbol"),
    ('[MIN 3 4', r"'4' at position 3 of 3: the expression ends within \[MIN"),
    ('[MIN ]', r"']' at position 2 of 2: \[MIN has no arguments"),
    ('3 ]', "']' at position 2 of 2: the expression is already complete"),
    ('] 3', "']' at position 1 of 2: closes an operator"),
    ('[MIN 1 2 ] [MIN 1 2 ]', r"'\[MIN' at position 5 of 8: the expression is already"),
    ('( ( [MIN 1 ) 2 ) ] )', r"'\)' at position 9 of 9: closes a parenthesis"),
    ('( ( [MIN 1 ) ]', 'parentheses are not closed'),
  ],
)
def test_evaluate_names_what_is_malformed(source, message):
  with pytest.raises(ValueError, match=message):
    listops.evaluate(source)


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    ([], 'no tokens'),
    ([11, 1, 2], "'0' at position 2 of 3 stands before a complete expression"),
    ([11], r"'\[MIN' at position 1 of 1 has no closing bracket"),
    ([11, 15], r"'\[MIN' at position 1 of 2 has no arguments"),
    ([1, 2], 'at position 1 of 2 stands before'),
    ([1, 15], '1 closing brackets without operator'),
    ([11, 1, 15, 11, 1, 15], 'at position 3 of 6 stands before'),
    ([11, 1, 15, 0], 'unknown token 0 at position 4'),
    ([16], 'unknown token 16 at position 1'),
  ],
)
def test_to_source_names_what_is_malformed(tokens, message):
  with pytest.raises(ValueError, match=message):
    listops.to_source(np.array(tokens, np.uint8))


trees = st.recursive(
  st.integers(0, 9).map(str),
  lambda tree: st.builds(
    lambda operator, arguments: [operator, *arguments],
    st.sampled_from(['[MIN', '[MAX', '[MED', '[SM']),
    st.lists(tree, min_size=1, max_size=6),
  ),
  max_leaves=40,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_source_tokens_and_value_agree(tree):
  text = reference_text(tree)
  source = listops.to_source(TOKENIZER.encode(text))
  assert source.replace('(', '').replace(')', '').split() == text.split()
  np.testing.assert_array_equal(TOKENIZER.encode(source), TOKENIZER.encode(text))
  assert listops.evaluate(text) == listops.evaluate(source) == reference_value(tree)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_source_nests_to_the_left(tree):
  def written(tree):
    if isinstance(tree, str):
      return tree
    text = tree[0]
    for argument in [*map(written, tree[1:]), ']']:
      text = f'( {text} {argument} )'
    return text

  assert listops.to_source(TOKENIZER.encode(reference_text(tree))) == written(tree)


def test_source_of_generated_sequences(default_sequences):
  for tokens, target in default_sequences.part(0, 100):
    source = listops.to_source(tokens)
    np.testing.assert_array_equal(TOKENIZER.encode(source), tokens)
    assert listops.evaluate(source) == target


# LRA's files.


def test_tsv_round_trip(tmp_path, small_sequences):
  part = small_sequences.part(0, 200)
  listops.write_tsv(tmp_path / 'x.tsv', part)
  rows = list(listops.read_tsv(tmp_path / 'x.tsv'))
  np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in rows]), part.tokens)
  assert [target for _, target in rows] == part.targets.tolist()
  assert rows[0][0].dtype == np.uint8
  assert [path.name for path in tmp_path.iterdir()] == ['x.tsv']


def test_tsv_is_written_as_by_lra(tmp_path):
  listops.write_tsv(tmp_path / 'x.tsv', [(TOKENIZER.encode('[MAX 2 9 ]'), 9)])
  assert (tmp_path / 'x.tsv').read_bytes() == b'Source\tTarget\r\n' + ROW.encode()


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_tsv_may_end_without_a_line_break(tmp_path, end):
  text = f'Source\tTarget\n{ROW}{ROW}'.replace('\r\n', '\n').replace('\n', end).rstrip()
  (tmp_path / 'x.tsv').write_bytes(text.encode())
  assert len(list(listops.read_tsv(tmp_path / 'x.tsv'))) == 2


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', r'line 1: expected the header .*, found an empty file'),
    ('Target\tSource\r\n' + ROW, r"line 1: expected the header .*, found 'Target"),
    ('Source\tTarget\r\n', 'line 2: expected rows after the header, found none'),
    ('Source\tTarget\n' + ROW + '( ( [MAX', 'line 3: expected 2 columns .*, found 1'),
    ('Source\tTarget\n\n' + ROW, 'line 2: expected 2 columns .*, found 1'),
    ('Source\tTarget\n[MAX 2 9 ]\t9\t9\n', 'line 2: expected 2 columns .*, found 3'),
    ('Source\tTarget\n' + ROW + '[MAX 2 9 X ]\t9\n', r"line 3: unknown symbol 'X'.*known are"),
    ('Source\tTarget\n[MAX 2 \x00 ]\t9\n', r"line 2: unknown symbol '\\x00'"),
    ('Source\tTarget\n[MAX 2 9 ]\t10\n', "line 2: expected a target of 0 to 9, found '10'"),
    ('Source\tTarget\n[MAX 2 9 ]\t2.0\n', "line 2: .* found '2.0'"),
    ('Source\tTarget\n[MAX 2 9 ]\t\n', "line 2: .* found ''"),
    ('Source\tTarget\n[MAX 2 9\t9\n', 'line 2: .* found 1 and 0 in 3 symbols'),
    ('Source\tTarget\n\t9\n', 'line 2: expected an expression .* in 0 symbols'),
  ],
)
def test_damaged_tsv(tmp_path, text, message):
  path = tmp_path / 'basic_train.tsv'
  path.write_bytes(text.encode())
  with pytest.raises(ValueError, match=re.escape(f'{path}, ') + message):
    list(listops.read_tsv(path))


def test_tsv_that_is_no_text(tmp_path):
  (tmp_path / 'x.tsv').write_bytes(b'Source\tTarget\n[MAX 2 \xff ]\t2\n')
  with pytest.raises(ValueError, match=r'line 2: unknown symbol .*xff'):
    list(listops.read_tsv(tmp_path / 'x.tsv'))


def test_interrupted_writing_leaves_no_tsv(tmp_path):
  with pytest.raises(ValueError, match='target of 0 to 9, got 11'):
    listops.write_tsv(tmp_path / 'x.tsv', [(np.array([1]), 1), (np.array([1]), 11)])
  assert not (tmp_path / 'x.tsv').exists()


# The data set.


def write_lra_files(directory, task_name='basic', num=5):
  sequences = listops.generate(SMALL, 3 * num)
  for i, name in enumerate(['train', 'val', 'test']):
    part = sequences.part(i * num, (i + 1) * num)
    listops.write_tsv(directory / f'{task_name}_{name}.tsv', part)
  return sequences


def files_of(directory):
  paths = sorted(path for path in pathlib.Path(directory).rglob('*') if path.is_file())
  return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('data')
  builder = listops.make_builder(SMALL, data_dir=str(data_dir))
  listops.prepare(builder)
  return data_dir, builder


def test_prepared_splits(prepared):
  _, builder = prepared
  texts = {}
  for name, num in [('train', 60), ('validation', 20), ('test', 30)]:
    source = builder.as_data_source(name)
    assert len(source) == builder.info.splits[name].num_examples == num
    examples = [source[i] for i in range(num)]
    for example in examples:
      assert isinstance(example['inputs'], np.ndarray)
      assert example['inputs'].dtype == np.uint8
      assert listops.evaluate(TOKENIZER.decode(example['inputs'])) == example['target']
    texts[name] = {TOKENIZER.decode(example['inputs']) for example in examples}
  assert len(set.union(*texts.values())) == SMALL.num_examples  # Also: the splits are disjoint.


def test_prepared_order_is_that_of_generation(prepared):
  _, builder = prepared
  parts = listops.split(listops.generate(SMALL, SMALL.num_examples), SMALL)
  for name, part in parts.items():
    source = builder.as_data_source(name)
    assert [TOKENIZER.decode(source[i]['inputs']) for i in range(len(part))] == tree_strings(part)


def test_splits_do_not_depend_on_the_size_of_training():
  larger = dataclasses.replace(SMALL, num_train=90)
  first = listops.split(listops.generate(SMALL, SMALL.num_examples), SMALL)
  second = listops.split(listops.generate(larger, larger.num_examples), larger)
  for name in ('validation', 'test'):
    np.testing.assert_array_equal(first[name].tokens, second[name].tokens)
  assert tree_strings(second['train'])[:60] == tree_strings(first['train'])
  with pytest.raises(ValueError, match='expected 140 sequences, got 2'):
    listops.split(second['train'].part(0, 2), larger)


def test_prepared_twice_gives_the_same_bytes(prepared, tmp_path):
  data_dir, _ = prepared
  listops.prepare(listops.make_builder(SMALL, data_dir=str(tmp_path)))
  assert files_of(data_dir) == files_of(tmp_path)


def test_preparing_again_does_nothing(prepared, monkeypatch):
  data_dir, builder = prepared
  monkeypatch.setattr(listops, 'generate', None)
  before = {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')}
  listops.prepare(builder)
  listops.prepare(listops.make_builder(SMALL, data_dir=str(data_dir)))
  assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob('*')}


def test_builder_survives_pickling(prepared):
  _, builder = prepared
  restored = pickle.loads(pickle.dumps(builder))
  assert restored.as_data_source('test')[3]['target'] == builder.as_data_source('test')[3]['target']


def test_console_stays_clean(tmp_path, capsys):
  listops.prepare(listops.make_builder(SMALL, data_dir=str(tmp_path)))
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ('', '')


def test_terminals_see_a_progress_bar(tmp_path, monkeypatch):
  terminal = io.StringIO()
  shown = rich.console.Console(file=terminal, force_terminal=True)
  monkeypatch.setattr('lra_tasks.console.CONSOLE', shown)
  listops.prepare(listops.make_builder(SMALL, data_dir=str(tmp_path)))
  assert 'generating ListOps' in terminal.getvalue()
  assert 'writing ListOps validation' in terminal.getvalue()


def test_logs_of_progress(monkeypatch):
  lines = []
  monkeypatch.setattr(listops, '_SECONDS_PER_LOG', 0)
  monkeypatch.setattr(listops.logger, 'info', lambda text, *args: lines.append(text % args))
  listops.generate(SMALL, 2000, progress=True)
  assert lines[-1] == 'generating ListOps: 2000 of 2000'


@pytest.mark.parametrize('when', ['generating', 'writing'])
def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch, when):
  def interrupt(*args, **kwargs):
    raise KeyboardInterrupt

  def interrupt_later(self, name, examples):
    if name == 'test':
      interrupt()
    yield from enumerate({'inputs': tokens, 'target': target} for tokens, target in examples)

  builder = listops.make_builder(SMALL, data_dir=str(tmp_path))
  with monkeypatch.context() as patch:
    if when == 'generating':
      patch.setattr(listops, 'generate', interrupt)
    else:
      patch.setattr(listops.ListOps, '_generate_examples', interrupt_later)
    with pytest.raises(KeyboardInterrupt):
      listops.prepare(builder)
  assert not files_of(tmp_path)
  listops.prepare(builder)
  assert len(builder.as_data_source('test')) == SMALL.num_test


def test_another_process_is_faster(tmp_path, monkeypatch):
  first = listops.make_builder(SMALL, data_dir=str(tmp_path))
  second = listops.make_builder(SMALL, data_dir=str(tmp_path))
  generate = listops.generate

  def generate_late(*args, **kwargs):
    monkeypatch.setattr(listops, 'generate', generate)
    listops.prepare(second)
    return generate(*args, **kwargs)

  monkeypatch.setattr(listops, 'generate', generate_late)
  listops.prepare(first)
  assert len(first.as_data_source('train')) == SMALL.num_train
  assert not [name for name in files_of(tmp_path) if 'incomplete' in name]


def test_prepared_after_the_builder_was_made(tmp_path):
  first = listops.make_builder(SMALL, data_dir=str(tmp_path))
  listops.prepare(listops.make_builder(SMALL, data_dir=str(tmp_path)))
  listops.prepare(first)
  assert len(first.as_data_source('validation')) == SMALL.num_valid


@pytest.mark.parametrize('lost', ['dataset_info.json', 'listops-test.array_record-00000-of-00001'])
def test_incomplete_data_set(tmp_path, lost):
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path))
  listops.prepare(builder)
  (pathlib.Path(builder.data_dir) / lost).unlink()
  with pytest.raises(FileExistsError, match=f'lacks {lost}; delete the directory'):
    listops.prepare(builder)


def test_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path / 'file'))
  with pytest.raises(OSError, match=r'cannot prepare .*listops.*choose another data_dir'):
    listops.prepare(builder)


def test_full_disk(tmp_path):
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # As near as one gets without root.
  try:
    with pytest.raises(OSError, match='too large.* Make room'):
      listops.prepare(builder)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not files_of(tmp_path)


def test_split_larger_than_the_buffer_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setattr(listops.tfds_shuffle, 'MAX_MEM_BUFFER_SIZE', 100)
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path))
  listops.prepare(builder)
  assert len(builder.as_data_source('train')) == SMALL.num_train
  assert listops.tfds_shuffle.MAX_MEM_BUFFER_SIZE == 100


def test_name_changes_with_every_parameter():
  name = lambda data: listops.ListOpsConfig(data=data).name
  names = {name(SMALL)}
  for field in dataclasses.fields(SMALL):
    changed = {field.name: getattr(SMALL, field.name) + 1}
    names.add(name(dataclasses.replace(SMALL, **changed)))
  assert len(names) == 1 + len(dataclasses.fields(SMALL))
  assert name(ListOpsData()) == 'generated_500_2000_d10_a10_96000_2000_2000_s0'


def test_config_needs_one_origin():
  with pytest.raises(ValueError, match='either data or directory'):
    listops.ListOpsConfig()
  with pytest.raises(ValueError, match='either data or directory'):
    listops.ListOpsConfig(data=SMALL, directory='x', digest='0')


def test_builder_by_itself_is_that_of_lra(tmp_path):
  builder = listops.ListOps(data_dir=str(tmp_path))
  assert builder.builder_config.data == ListOpsData()
  assert builder.info.full_name == f'listops/{builder.builder_config.name}/1.0.0'


@pytest.mark.parametrize('where', ['source', 'data_dir'])
def test_files_of_lra(tmp_path, where):
  data_dir = tmp_path / 'data'
  data_dir.mkdir()
  directory = data_dir if where == 'data_dir' else tmp_path
  sequences = write_lra_files(directory)
  source = str(directory) if where == 'source' else None
  builder = listops.make_builder(SMALL, data_dir=str(data_dir), source=source)
  assert re.fullmatch('tsv_basic_[0-9a-f]{16}', builder.builder_config.name)
  listops.prepare(builder)
  found = [
    example['inputs']
    for name in ('train', 'validation', 'test')
    for example in builder.as_data_source(name)
  ]
  np.testing.assert_array_equal(np.concatenate(found), sequences.tokens)


def test_name_changes_with_the_files(tmp_path):
  write_lra_files(tmp_path)
  write_lra_files(tmp_path, task_name='mine')
  name = lambda **kwargs: (
    listops.make_builder(SMALL, data_dir=str(tmp_path), **kwargs).builder_config.name
  )
  first, mine = name(), name(task_name='mine')
  assert mine.startswith('tsv_mine_')
  (tmp_path / 'basic_val.tsv').write_text('Source\tTarget\n' + ROW)
  assert name() not in (first, mine)
  # Exchanged files are other data as well.
  before = name()
  (tmp_path / 'basic_val.tsv').rename(tmp_path / 'x')
  (tmp_path / 'basic_test.tsv').rename(tmp_path / 'basic_val.tsv')
  (tmp_path / 'x').rename(tmp_path / 'basic_test.tsv')
  assert name() != before


def test_missing_files(tmp_path):
  with pytest.raises(FileNotFoundError, match='lacks basic_train.tsv, basic_val.tsv, basic_test'):
    listops.make_builder(SMALL, data_dir=str(tmp_path), source=str(tmp_path))
  write_lra_files(tmp_path)
  (tmp_path / 'basic_val.tsv').unlink()
  with pytest.raises(FileNotFoundError, match='lacks basic_val.tsv: give the directory'):
    listops.make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='lacks basic_val.tsv: .* use generated data'):
    listops.make_builder(SMALL, data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='lacks basic_train.tsv'):
    listops.make_builder(SMALL, data_dir=str(tmp_path), source=str(tmp_path / 'nowhere'))


@pytest.mark.parametrize('task_name', ['', '../x', 'a b', 'a/b', '.'])
def test_task_name_is_a_prefix_of_a_file_name(tmp_path, task_name):
  with pytest.raises(ValueError, match='task_name=.* must be the prefix'):
    listops.make_builder(SMALL, data_dir=str(tmp_path), task_name=task_name)


def test_other_task_name_without_files_warns(tmp_path, caplog):
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path), task_name='mine')
  assert builder.builder_config.data == SMALL
  assert 'no mine_{train,val,test}.tsv' in caplog.text


def test_damaged_file_fails_to_prepare(tmp_path):
  write_lra_files(tmp_path)
  with open(tmp_path / 'basic_test.tsv', 'a') as file:
    file.write('( ( [MAX 3')
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path))
  with pytest.raises(ValueError, match='basic_test.tsv, line 7: expected 2 columns'):
    listops.prepare(builder)
  assert not pathlib.Path(builder.data_dir).exists()
