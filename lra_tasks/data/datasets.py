"""Data sets on disk: what the builders of all tasks share, and how any of them is prepared.

TFDS without TensorFlow: examples come from generators and lie in array_record files.
"""

from __future__ import annotations

import abc
import array
import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle as tfds_shuffle
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.proto import tf_example_pb2

from kl_flax.tokenizers import Tokenizer
from lra_tasks import files
from lra_tasks.console import show_progress
from lra_tasks.data import records, sources
from lra_tasks.signals import handle_signals, raise_interrupted

logger = logging.getLogger(__name__)

_LEFT_AFTER_SECONDS = 24 * 60 * 60


class _Writer(tfds_writer.ExampleWriter):
  """Writes the same bytes in every process: protobuf leaves the order of features to chance."""

  def write(self, path, examples):
    """Write (key, serialized example) pairs."""
    parse = tf_example_pb2.Example.FromString
    ordered = ((key, parse(item).SerializeToString(deterministic=True)) for key, item in examples)
    return super().write(path, ordered)


class _Spool:
  """Stands in for TFDS' shuffler: a file without name, from which examples come as they went in.

  Splits may be larger than the memory. TFDS asks for all examples before it writes any, as their
  number and size decide on the number of files.
  """

  def __init__(self, dirpath: os.PathLike[str], **_: Any):
    self._file = tempfile.TemporaryFile(dir=dirpath)  # noqa: SIM115 (TFDS has no end to hook on)
    weakref.finalize(self, self._file.close)
    self._lengths = array.array('Q')

  def add(self, key: int, data: bytes) -> None:
    """Append an example; keys count from 0."""
    del key
    self._file.write(data)
    self._lengths.append(len(data))

  @property
  def num_examples(self) -> int:
    """How many were added."""
    return len(self._lengths)

  @property
  def size(self) -> int:
    """Bytes that were added."""
    return self._file.tell()

  @property
  def bucket_lengths(self) -> list[int]:
    """All are in one bucket."""
    return [len(self._lengths)]

  def __iter__(self) -> Iterator[tuple[int, bytes]]:
    end = self._file.tell()
    self._file.seek(0)
    for key, length in enumerate(self._lengths):
      yield key, self._file.read(length)
    assert self._file.tell() == end


class Examples:
  """Examples of a split whose number is known, and which may be larger than the memory.

  Args:
    size: how many there are.
    read: yields them; is called for each iteration.
  """

  def __init__(self, size: int, read: Callable[[], Iterable[Iterable[Any]]]) -> None:
    self._size, self._read = size, read

  def __len__(self) -> int:
    """Return how many there are."""
    return self._size

  def __iter__(self) -> Iterator[Iterable[Any]]:
    """Read them."""
    return iter(self._read())


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the builders of all tasks share.

  A task's builder adds `VERSION`, to be raised whenever the same config gives other bytes than
  before, the other attributes in capitals, `inputs`, `split_rule` and the method `_make_splits`.
  What depends on the config is a property. The name of the config encodes all that determines the
  bytes.

  Attributes:
    DESCRIPTION: what the examples are, in a sentence.
    HOMEPAGE: address of the original data.
    CITATION: BibTeX.
    RELEASE_NOTES: what was new in each version.
    DEFAULT_CONFIG: the benchmark's.
    DISK_SPACE: what the benchmark's data takes, in words.
    inputs: features of the inputs by name; the label's, 'target', an int32, follows them.
    num_classes: number of labels, where it is not the task's.
    class_names: of the labels 0, 1, ..., in the order that the data set's authors or its readers
      give them; empty where they have none.
    tokenizer: of the data set, where the task has none; known once it is prepared.
    reading: the split, in TFDS' notation, that is read in another's place; of those on disk.
    variant: names the data set where it is not the one that the task's figures were published for;
      its results are kept apart from them.
  """

  DEFAULT_CONFIG: ClassVar[tfds.core.BuilderConfig | None] = None
  DESCRIPTION: ClassVar[str] = ''
  HOMEPAGE: ClassVar[str] = ''
  CITATION: ClassVar[str] = ''
  DISK_SPACE: ClassVar[str] = ''
  RELEASE_NOTES: ClassVar[Mapping[str, str]] = {'1.0.0': 'First version.'}
  inputs: Mapping[str, tfds.features.FeatureConnector] = {}
  num_classes: int | None = None
  class_names: tuple[str, ...] = ()
  tokenizer: Tokenizer | None = None
  reading: Mapping[str, str] = {}
  variant: str = ''

  def __init__(self, *, file_format: Any = 'array_record', **kwargs: Any):
    """Build; array_record can be written and read without TensorFlow."""
    super().__init__(file_format=file_format, **kwargs)

  @property
  @abc.abstractmethod
  def split_rule(self) -> str:
    """Which example is in which split, in words."""

  @abc.abstractmethod
  def _make_splits(self, dl_manager: Any) -> Mapping[str, Iterable[Iterable[Any]]]:
    """Return the examples of each split; an example is its values in the order of the features."""

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {**self.inputs, 'target': tfds.features.Scalar(dtype=np.int32)}
      ),
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      disable_shuffling=True,  # Grain shuffles.
    )

  @property
  def validation_is_test(self) -> bool:
    """Whether the test split serves for validation."""
    return self.reading.get('validation') == 'test'

  def as_data_source(self, split: str) -> records.Records:
    """Return the examples of a split, as `reading` has it."""
    files = self.info.splits[self.reading.get(split, split)].file_instructions
    return records.Records(files, self.info.features)

  @property
  def root(self) -> str:
    """The directory that the data sets of all tasks share."""
    return os.fspath(self._data_dir_root)

  def _create_builder_config(self, builder_config, version):
    config = builder_config or self.DEFAULT_CONFIG
    if isinstance(config, tfds.core.BuilderConfig):
      return config  # TFDS warns of any that the class does not list.
    return super()._create_builder_config(config, version)

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    splits = self._make_splits(dl_manager)
    return {name: self._generate_examples(name, part) for name, part in splits.items()}

  def _generate_examples(self, split: str, examples: Iterable[Iterable[Any]]) -> Iterator:
    total = len(examples) if isinstance(examples, Sized) else None
    names = list(self.info.features)
    with show_progress(f'writing {self.name} {split}', total) as advance:
      for i, values in enumerate(examples):
        yield i, dict(zip(names, values, strict=True))
        advance(1)

  def _example_writer(self) -> tfds_writer.ExampleWriter:
    return _Writer(file_format=self.info.file_format)

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    # The directory does not have its final name yet: the manifest is there if the data is.
    manifest = json.dumps(self._make_manifest(), indent=2)
    (pathlib.Path(self.data_dir) / 'manifest.json').write_text(f'{manifest}\n')

  def _make_manifest(self) -> dict[str, Any]:
    """Return what the data set holds, for people and other machines to compare."""
    splits = {
      name: {
        'examples': split.num_examples,
        'sha256': {file.name: sources.digest(file).hex() for file in split.filepaths},
      }
      for name, split in self.info.splits.items()
    }
    return {'dataset': self.info.full_name, 'split_rule': self.split_rule, 'splits': splits}

  # TFDS prints these two whatever the level of the log; `prepare` logs as much.
  def _log_download_bytes(self) -> None:
    pass

  def _log_download_done(self) -> None:
    pass


def hold_out(count: int, seed: int) -> list[np.ndarray]:
  """Return which of `count` examples to train on, and which tenth of them to validate on, shuffled.

  >>> [part.tolist() for part in hold_out(10, seed=0)]
  [[2, 8, 4, 9, 1, 6, 7, 3, 0], [5]]
  """
  # Of NumPy's generators, the one that gives the same numbers in all versions.
  order = np.random.RandomState(seed).permutation(count)
  return np.split(order, [count - count // 10])


def find_prepared(original: Builder) -> str:
  """Return the digest of prepared data that has the name of `original` and a digest behind it.

  So data is named that was prepared from a source; where the source is not named again, it is what
  is meant.

  Args:
    original: builder of the data without a digest.

  Returns:
    16 hexadecimal digits, '' if there is no such data.

  Raises:
    ValueError: if there are several.
  """
  start = f'{original.builder_config.name}_'
  folders = pathlib.Path(original.root, original.name).glob(f'{start}*/{original.VERSION}')
  found = [folder.parent.name.removeprefix(start) for folder in folders]
  found = sorted(digest for digest in found if re.fullmatch('[0-9a-f]{16}', digest))
  if len(found) > 1:
    names = ', '.join(start + digest for digest in found)
    raise ValueError(
      f'{original.root} holds {names}, prepared from several sources: name one by --source, or '
      'delete the others'
    )
  return found[0] if found else ''


def prepare(builder: Builder) -> None:
  """Write the data set to disk, unless that was done before.

  The data set appears under its final name when it is complete: a call that is interrupted
  (see `interruptible`) leaves nothing there. One process of a machine prepares a task at a time,
  and of two on different machines the second finds what the first has written. Prepared data may
  be read-only.

  Raises:
    FileExistsError: if the directory of the data set is there but incomplete.
    OSError: if the disk is full or the directory cannot be written.
    ValueError: if a file that the data is made from is damaged.
  """
  if _is_prepared(builder):
    logger.info('%s: already prepared in %s', builder.name, builder.data_path)
    return
  # TODO: take TFDS' own shuffler once it works without TensorFlow above 1000 MiB. Its progress bars
  # are replaced by ours.
  spooled = _set_temporarily(tfds_shuffle, 'Shuffler', _Spool)
  try:
    with (
      lock(os.path.join(builder.root, builder.name)),
      spooled,
      _set_temporarily(tqdm_utils, '_active', False),
    ):
      if _is_prepared(builder):
        logger.info('%s: another process has prepared %s', builder.name, builder.data_path)
        return
      _delete_leftovers(builder)
      start = time.monotonic()
      logger.info('%s: preparing %s', builder.name, builder.data_path)
      builder.download_and_prepare()
  except (OSError, RuntimeError) as error:
    if _is_prepared(builder):
      logger.info('%s: another machine has prepared %s', builder.name, builder.data_path)
      return
    # An OSError without a number is not the system's, and says itself what to do; but TFDS and the
    # writer of array_record take the system's number away.
    of_system = getattr(error, 'errno', None) is not None
    of_system = of_system or re.search('No space|quota|too large', str(error))
    if not of_system:
      raise
    needed = f' (the default data takes {builder.DISK_SPACE})' if builder.DISK_SPACE else ''
    raise OSError(
      f'cannot prepare {builder.data_path}: {error}. Make room there{needed}, see to the '
      'permissions, or choose another data_dir'
    ) from error
  seconds = time.monotonic() - start
  logger.info('%s: prepared %s in %.1f s', builder.name, builder.data_path, seconds)


def _delete_leftovers(builder: Builder) -> None:
  """Delete what killed processes have left of this data set.

  What changed within a day may be another machine's, which is still at work.
  """
  final = pathlib.Path(builder.data_dir)
  for path in final.parent.glob(f'incomplete.*_{final.name}'):
    newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
    if time.time() - newest > _LEFT_AFTER_SECONDS:
      logger.info('%s: deleting %s, which a killed process has left', builder.name, path)
      shutil.rmtree(path)


def interruptible(
  signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
) -> contextlib.AbstractContextManager[None]:
  """Let signals raise `Interrupted`, a KeyboardInterrupt, so that nothing half-prepared stays.

  By itself, SIGTERM ends a process as it stands, and SIGINT is ignored in a shell's background.
  """
  return handle_signals(signals, raise_interrupted)


def _is_prepared(builder: Builder) -> bool:
  """Return whether the data set is on disk, and have `builder` know it."""
  path = pathlib.Path(builder.data_dir)
  if not path.exists():
    return False
  if (path / 'dataset_info.json').is_file():
    if not builder.info.splits:  # It was prepared after `builder` was made.
      builder.info.read_from_directory(builder.data_dir)
    splits = builder.info.splits.values()
    missing = [file for split in splits for file in split.filepaths if not file.exists()]
  else:
    missing = [path / 'dataset_info.json']
  if missing:
    raise FileExistsError(
      f'{path} is incomplete: it lacks {", ".join(file.name for file in missing)}; '
      'delete the directory to have it prepared again'
    )
  return True


def lock(directory: str) -> contextlib.AbstractContextManager[None]:
  """Let one process of this machine at a time work in a directory, which is made if missing.

  Raises:
    OSError: if the directory cannot be written.
  """
  waiting = 'Waiting for another process that prepares data in %s.'
  return files.lock(directory, when_taken=lambda: logger.info(waiting, directory))


@contextlib.contextmanager
def _set_temporarily(module: Any, name: str, value: Any) -> Iterator[None]:
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)
