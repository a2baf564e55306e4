import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data.records import Records

FEATURES = tfds.features.FeaturesDict(
  {
    'tokens': tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding='bytes'),
    'pixels': tfds.features.Tensor(shape=(2, 3), dtype=np.uint8, encoding='bytes'),
    'numbers': tfds.features.Tensor(shape=(2,), dtype=np.int32),
    'target': tfds.features.Scalar(dtype=np.int32),
  }
)


def write(path, examples, features=FEATURES):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for example in examples:
    writer.write(features.serialize_example(example))
  writer.close()
  return types.SimpleNamespace(filename=str(path), skip=0, take=len(examples))


def example(i, tokens=()):
  return {
    'tokens': np.array(tokens, np.uint16),
    'pixels': np.full((2, 3), i % 256, np.uint8),
    'numbers': np.array([i, -i], np.int32),
    'target': i,
  }


@given(tokens=st.lists(st.integers(0, 2**16 - 1)), target=st.integers(-(2**31), 2**31 - 1))
def test_values_are_those_of_tfds(tmp_path_factory, tokens, target):
  made = example(target % 100, tokens) | {'target': target}
  path = tmp_path_factory.mktemp('records') / 'one'
  (ours,) = Records([write(path, [made])], FEATURES)
  theirs = FEATURES.deserialize_example_np(FEATURES.serialize_example(made))
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value)
    assert type(ours[name]) is type(value)
    assert getattr(ours[name], 'dtype', None) == getattr(value, 'dtype', None)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Two files, read as examples 2 ... 6 of the first and 0 ... 2 of the second."""
  directory = tmp_path_factory.mktemp('records')
  first = write(directory / 'a', [example(i) for i in range(9)])
  second = write(directory / 'b', [example(100 + i) for i in range(4)])
  first.skip, first.take, second.take = 2, 5, 3
  return [first, second]


EXPECTED = [2, 3, 4, 5, 6, 100, 101, 102]


def test_files_are_one_sequence(files):
  records = Records(files, FEATURES)
  assert len(records) == 8
  assert [record['target'] for record in records] == EXPECTED
  assert records[5]['target'] == 100
  assert records.__getitems__([]) == []


@given(indices=st.lists(st.integers(0, 7)))
def test_examples_come_in_the_order_asked_for(files, indices):
  found = Records(files, FEATURES).__getitems__(indices)
  assert [record['target'] for record in found] == [EXPECTED[i] for i in indices]


@pytest.mark.parametrize('index', [-1, 8])
def test_no_example_beyond_the_ends(files, index):
  with pytest.raises(IndexError, match=f'no example {index}: there are 8'):
    Records(files, FEATURES)[index]


def test_bad_files_are_named(tmp_path):
  (tmp_path / 'text').write_text('no records' * 10_000)
  for name in ('text', 'nowhere'):
    file = types.SimpleNamespace(filename=str(tmp_path / name), skip=0, take=1)
    with pytest.raises(OSError, match=f'{name} cannot be read'):
      Records([file], FEATURES)


@pytest.mark.parametrize(
  'feature',
  [
    tfds.features.Text(),
    tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='zlib'),
    tfds.features.Tensor(shape=(2,), dtype=np.float32),
    tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding='bytes'),
  ],
)
def test_other_features_are_refused(files, feature):
  with pytest.raises(TypeError, match='feature x: expected integers or a tensor of encoding bytes'):
    Records(files, {'x': feature})
