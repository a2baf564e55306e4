import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest
import rich.console
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from lra_tasks import console, signals
from lra_tasks.data import datasets

LETTERS = 'fbdeca'
SIZES = {'train': 40, 'test': 10}


class Letters(datasets.Builder, skip_registration=True):
  """Six numbers an example."""

  name = 'letters'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = tfds.core.BuilderConfig(name='small')
  split_rule = 'As counted.'

  def _info(self):
    features = {letter: tfds.features.Scalar(np.int32) for letter in LETTERS}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _make_splits(self, dl_manager):
    make = lambda num: [tuple(range(i, i + 6)) for i in range(num)]
    return {'train': make(SIZES['train']), 'test': iter(make(SIZES['test']))}


def make_builder(data_dir):
  return Letters(data_dir=str(data_dir))


def files_of(directory):
  """The contents of all files but the one that is locked."""
  paths = sorted(path for path in pathlib.Path(directory).rglob('*') if path.is_file())
  return {str(p.relative_to(directory)): p.read_bytes() for p in paths if p.name != '.lock'}


def is_complete(builder):
  return {name: len(builder.as_data_source(name)) for name in SIZES} == SIZES


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  builder = make_builder(tmp_path_factory.mktemp('data'))
  datasets.prepare(builder)
  return builder


def test_examples_are_read_as_they_were_given(builder):
  for name, num in SIZES.items():
    source = builder.as_data_source(name)
    assert len(source) == builder.info.splits[name].num_examples == num
    for i in range(num):
      assert source[i] == dict(zip(LETTERS, range(i, i + 6), strict=True))


def test_default_config(builder):
  assert builder.info.full_name == 'letters/small/1.0.0'
  with pytest.raises(ValueError, match='other'):
    Letters(data_dir=builder.root, config='other')


def test_manifest(builder):
  directory = pathlib.Path(builder.data_dir)
  manifest = json.loads((directory / 'manifest.json').read_text())
  assert manifest['dataset'] == 'letters/small/1.0.0'
  assert manifest['split_rule'] == 'As counted.'
  assert {name: split['examples'] for name, split in manifest['splits'].items()} == SIZES
  files = {name: value for s in manifest['splits'].values() for name, value in s['sha256'].items()}
  assert set(files) == {path.name for path in directory.glob('*.array_record*')}
  for name, value in files.items():
    assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == value


def test_examples_are_read_for_each_iteration():
  examples = datasets.Examples(3, lambda: ((i, -i) for i in range(3)))
  assert len(examples) == 3
  assert list(examples) == list(examples) == [(0, 0), (1, -1), (2, -2)]


def test_prepared_twice_gives_the_same_bytes(builder, tmp_path):
  datasets.prepare(make_builder(tmp_path))
  assert files_of(builder.root) == files_of(tmp_path)


def test_order_of_features_is_not_left_to_chance(builder):
  """Otherwise, it is the same within a process, but may be another in the next."""
  path = next(pathlib.Path(builder.data_dir).glob('*train*'))
  for record in ArrayRecordReader(str(path)).read_all():
    example = tf_example_pb2.Example.FromString(record)
    assert record == example.SerializeToString(deterministic=True)
    assert re.findall(rb'\x01([a-f])', record) == [b'a', b'b', b'c', b'd', b'e', b'f']


def test_prepared_data_may_be_read_only(tmp_path, monkeypatch):
  first = make_builder(tmp_path)
  datasets.prepare(first)
  # Root may write anywhere, but can open no directory as a file.
  (tmp_path / 'letters/.lock').unlink()
  (tmp_path / 'letters/.lock').mkdir()
  monkeypatch.setattr(Letters, '_make_splits', None)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  datasets.prepare(first)
  again = make_builder(tmp_path)
  datasets.prepare(again)
  assert is_complete(again)
  assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


def test_prepared_after_the_builder_was_made(tmp_path):
  first = make_builder(tmp_path)
  datasets.prepare(make_builder(tmp_path))
  datasets.prepare(first)
  assert is_complete(first)


# Progress.


def test_console_stays_clean(tmp_path, capsys):
  datasets.prepare(make_builder(tmp_path))
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ('', '')


def test_terminals_see_a_progress_bar(tmp_path, monkeypatch):
  terminal = io.StringIO()
  shown = rich.console.Console(file=terminal, force_terminal=True)
  monkeypatch.setattr('lra_tasks.console.CONSOLE', shown)
  datasets.prepare(make_builder(tmp_path))
  assert 'writing letters train' in terminal.getvalue()


@pytest.mark.parametrize(('total', 'message'), [(9, 'counting: 7 of 9'), (None, 'counting: 7')])
def test_logs_of_progress(monkeypatch, total, message):
  lines = []
  monkeypatch.setattr(console, '_SECONDS_PER_LOG', 0)
  monkeypatch.setattr(console.logger, 'info', lambda text, *args: lines.append(text % args))
  with console.show_progress('counting', total) as advance:
    advance(3)
    advance(4)
  assert lines[-1] == message


# What goes wrong.


@pytest.mark.parametrize('when', ['generating', 'writing'])
def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch, when):
  def interrupt(*args):
    if when == 'generating':
      raise KeyboardInterrupt
    return {'train': [range(6)], 'test': (interrupt_now() for _ in range(3))}

  def interrupt_now():
    raise KeyboardInterrupt

  builder = make_builder(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(Letters, '_make_splits', interrupt)
    with pytest.raises(KeyboardInterrupt):
      datasets.prepare(builder)
  assert not files_of(tmp_path)
  datasets.prepare(builder)
  assert is_complete(builder)


def test_what_killed_processes_have_left_is_deleted_after_a_day(tmp_path):
  builder = make_builder(tmp_path)
  places = {}
  for name, version, age in (
    ('old', '1.0.0', 25), ('new', '1.0.0', 23), ('other', '0.9.0', 25), ('busy', '1.0.0', 25),
  ):  # fmt: skip
    place = places[name] = pathlib.Path(builder.data_dir).parent / f'incomplete.{name}_{version}'
    place.mkdir(parents=True)
    (place / 'part').write_text('')
    then = time.time() - age * 3600
    os.utime(place / 'part', (time.time(), time.time() if name == 'busy' else then))
    os.utime(place, (then, then))
  datasets.prepare(builder)
  assert [name for name, place in places.items() if place.exists()] == ['new', 'other', 'busy']
  assert is_complete(builder)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_unwind(number):
  def work():
    with datasets.interruptible():
      os.kill(os.getpid(), number)
      time.sleep(10)

  before = signal.getsignal(number)
  with pytest.raises(KeyboardInterrupt) as stopped:
    work()
  assert signals.code_of_interrupt(stopped.value) == 128 + number
  assert signal.getsignal(number) == before


@pytest.mark.parametrize('lost', ['dataset_info.json', 'letters-test.array_record-00000-of-00001'])
def test_incomplete_data_set(tmp_path, lost):
  builder = make_builder(tmp_path)
  datasets.prepare(builder)
  (pathlib.Path(builder.data_dir) / lost).unlink()
  with pytest.raises(FileExistsError, match=f'lacks {lost}; delete the directory'):
    datasets.prepare(builder)


def test_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'locked/letters/.lock').mkdir(parents=True)
  for name in ('file', 'file/below', 'locked'):
    message = r'cannot prepare .*letters.*: .*\. Make room there, see .* another data_dir'
    with pytest.raises(OSError, match=message):
      datasets.prepare(make_builder(tmp_path / name))


def test_full_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(Letters, 'DISK_SPACE', '2 MB')
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # As near as one gets without root.
  try:
    with pytest.raises(OSError, match=r'too large.* Make room .*the default data takes 2 MB'):
      datasets.prepare(make_builder(tmp_path))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not files_of(tmp_path)


@pytest.mark.parametrize('kind', [ConnectionError, ValueError])
def test_other_errors_pass(tmp_path, monkeypatch, kind):
  def fail(*args):
    raise kind('no network: pass --source')

  monkeypatch.setattr(Letters, '_make_splits', fail)
  with pytest.raises(kind, match='^no network'):
    datasets.prepare(make_builder(tmp_path))


class Large(Letters):
  """A megabyte an example."""

  name = 'large'

  def _info(self):
    features = {'inputs': tfds.features.Tensor(shape=(2**20,), dtype=np.uint8, encoding='bytes')}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _make_splits(self, dl_manager):
    return {'train': ([np.full(2**20, i, np.uint8)] for i in range(30))}


def test_a_split_may_be_larger_than_the_memory(tmp_path):
  shuffler = datasets.tfds_shuffle.Shuffler
  builder = Large(data_dir=str(tmp_path))
  tracemalloc.start()
  datasets.prepare(builder)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 15 * 2**20
  assert [record['inputs'][-1] for record in builder.as_data_source('train')] == list(range(30))
  assert datasets.tfds_shuffle.Shuffler is shuffler


# Several processes.


def test_one_process_of_a_machine_prepares_at_a_time(tmp_path, monkeypatch):
  first, second = make_builder(tmp_path), make_builder(tmp_path)
  calls, thread = [], threading.Thread(target=datasets.prepare, args=[second])
  make_splits = Letters._make_splits

  def make_splits_late(self, dl_manager):
    calls.append(self)
    thread.start()
    thread.join(0.3)
    return make_splits(self, dl_manager)

  monkeypatch.setattr(Letters, '_make_splits', make_splits_late)
  datasets.prepare(first)
  thread.join()
  assert calls == [first]
  assert is_complete(first)
  assert is_complete(second)


def test_another_machine_is_faster(tmp_path, monkeypatch):
  first, second = make_builder(tmp_path), make_builder(tmp_path)
  make_splits = Letters._make_splits

  def make_splits_late(self, dl_manager):
    monkeypatch.setattr(Letters, '_make_splits', make_splits)
    datasets.prepare(second)
    return make_splits(self, dl_manager)

  monkeypatch.setattr(datasets, 'lock', contextlib.nullcontext)
  monkeypatch.setattr(Letters, '_make_splits', make_splits_late)
  datasets.prepare(first)
  assert is_complete(first)
  assert not [name for name in files_of(tmp_path) if 'incomplete' in name]
