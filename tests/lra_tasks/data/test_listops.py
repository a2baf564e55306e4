import dataclasses
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra_tasks.data import datasets, listops
from lra_tasks.data.listops import TOKENIZER, ListOpsData

SMALL = ListOpsData(
  min_length=15, max_length=80, max_depth=5, max_args=5, num_train=60, num_valid=20, num_test=30
)
ROW = '( ( ( [MAX 2 ) 9 ) ] )\t9\r\n'


@pytest.fixture(scope='module')
def sequences():
  return listops.generate(SMALL, SMALL.num_examples)


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


def text_of(tree):
  return tree if isinstance(tree, str) else ' '.join([*map(text_of, tree), ']'])


def value_of(tree):
  if isinstance(tree, str):
    return int(tree)
  values = [value_of(argument) for argument in tree[1:]]
  if tree[0] == '[SM':
    return sum(values) % 10
  return int({'[MIN': min, '[MAX': max, '[MED': np.median}[tree[0]](values))


trees = st.recursive(
  st.integers(0, 9).map(str),
  lambda tree: st.builds(
    lambda operator, arguments: [operator, *arguments],
    st.sampled_from(['[MIN', '[MAX', '[MED', '[SM']),
    st.lists(tree, min_size=1, max_size=6),
  ),
  max_leaves=40,
)


def source_of(tree):
  """An operator takes its arguments one by one, then the bracket, each in parentheses."""
  if isinstance(tree, str):
    return tree
  text = tree[0]
  for argument in [*map(source_of, tree[1:]), ']']:
    text = f'( {text} {argument} )'
  return text


@settings(max_examples=150)
@given(trees)
def test_source_tokens_and_value_agree(tree):
  text, source = text_of(tree), source_of(tree)
  np.testing.assert_array_equal(TOKENIZER.encode(source), TOKENIZER.encode(text))
  assert listops.to_source(TOKENIZER.encode(text)) == source
  assert listops.evaluate(text) == listops.evaluate(source) == value_of(tree)


# LRA's files.


def test_tsv_round_trip(tmp_path, sequences):
  listops.write_tsv(tmp_path / 'x.tsv', sequences)
  rows = list(listops.read_tsv(tmp_path / 'x.tsv'))
  np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in rows]), sequences.tokens)
  assert [target for _, target in rows] == sequences.targets.tolist()
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


def write_lra_files(directory, sequences, task_name='basic', num=5):
  for i, name in enumerate(['train', 'val', 'test']):
    part = sequences.part(i * num, (i + 1) * num)
    listops.write_tsv(directory / f'{task_name}_{name}.tsv', part)
  return sequences.part(0, 3 * num)


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  builder = listops.make_builder(SMALL, data_dir=str(tmp_path_factory.mktemp('data')))
  datasets.prepare(builder)
  return builder


def test_prepared_splits(builder, sequences):
  for name, part in listops.split(sequences, SMALL).items():
    source = builder.as_data_source(name)
    assert len(source) == builder.info.splits[name].num_examples == len(part)
    for i, (tokens, target) in enumerate(part):
      assert isinstance(source[i]['inputs'], np.ndarray)
      assert source[i]['inputs'].dtype == np.uint8
      np.testing.assert_array_equal(source[i]['inputs'], tokens)
      assert source[i]['target'] == target


def test_splits_are_described(builder):
  assert 'the first 30 are test, the next 20 validation, the last 60 train' in builder.split_rule


def test_builder_survives_pickling(builder):
  restored = pickle.loads(pickle.dumps(builder))
  assert restored.as_data_source('test')[3]['target'] == builder.as_data_source('test')[3]['target']


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
def test_files_of_lra(tmp_path, where, sequences):
  data_dir = tmp_path / 'data'
  data_dir.mkdir()
  directory = data_dir if where == 'data_dir' else tmp_path
  written = write_lra_files(directory, sequences)
  source = str(directory) if where == 'source' else None
  builder = listops.make_builder(ListOpsData(), data_dir=str(data_dir), source=source)
  assert re.fullmatch('tsv_basic_[0-9a-f]{16}', builder.builder_config.name)
  datasets.prepare(builder)
  found = [
    example['inputs']
    for name in ('train', 'validation', 'test')
    for example in builder.as_data_source(name)
  ]
  np.testing.assert_array_equal(np.concatenate(found), written.tokens)
  assert 'release' in builder.split_rule


@pytest.mark.parametrize('name', ['num_train', 'num_valid', 'num_test'])
def test_sizes_of_files_cannot_be_chosen(tmp_path, sequences, name):
  write_lra_files(tmp_path, sequences)
  data = dataclasses.replace(ListOpsData(), **{name: 3})
  with pytest.raises(ValueError, match=f'{name}=3 has no effect .* leave --config.data.{name} at'):
    listops.make_builder(data, data_dir=str(tmp_path))


def test_name_changes_with_the_files(tmp_path, sequences):
  write_lra_files(tmp_path, sequences)
  write_lra_files(tmp_path, sequences, task_name='mine')
  name = lambda **kwargs: (
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path), **kwargs).builder_config.name
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


def test_missing_files(tmp_path, sequences):
  with pytest.raises(FileNotFoundError, match='lacks basic_train.tsv, basic_val.tsv, basic_test'):
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path), source=str(tmp_path))
  write_lra_files(tmp_path, sequences)
  (tmp_path / 'basic_val.tsv').unlink()
  with pytest.raises(FileNotFoundError, match='lacks basic_val.tsv: give the directory'):
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path / 'data'), source=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='lacks basic_val.tsv: .* use generated data'):
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='lacks basic_train.tsv'):
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path), source=str(tmp_path / 'nowhere'))


@pytest.mark.parametrize('task_name', ['', '../x', 'a b', 'a/b', '.'])
def test_task_name_is_a_prefix_of_a_file_name(tmp_path, task_name):
  with pytest.raises(ValueError, match='task_name=.* must be the prefix'):
    listops.make_builder(ListOpsData(), data_dir=str(tmp_path), task_name=task_name)


def test_other_task_name_without_files_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no mine_{train,val,test}.tsv in .*--source'):
    listops.make_builder(SMALL, data_dir=str(tmp_path), task_name='mine')


def test_damaged_file_fails_to_prepare(tmp_path, sequences):
  write_lra_files(tmp_path, sequences)
  with open(tmp_path / 'basic_test.tsv', 'a') as file:
    file.write('( ( [MAX 3')
  builder = listops.make_builder(ListOpsData(), data_dir=str(tmp_path))
  with pytest.raises(ValueError, match='basic_test.tsv, line 7: expected 2 columns'):
    datasets.prepare(builder)
  assert not pathlib.Path(builder.data_dir).exists()
