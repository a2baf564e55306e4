"""Data sets on disk: what the builders of all tasks share, and how any of them is prepared.

TFDS without TensorFlow: examples come from generators and lie in array_record files.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import hashlib
import http
import http.client
import json
import logging
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, ClassVar, NoReturn

import rich.progress
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle as tfds_shuffle
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.proto import tf_example_pb2

from lra_tasks import console

logger = logging.getLogger(__name__)

_SECONDS_PER_LOG = 10


class _Writer(tfds_writer.ExampleWriter):
  """Writes the same bytes in every process: protobuf leaves the order of features to chance."""

  def write(self, path, examples):
    """Write (key, serialized example) pairs."""
    parse = tf_example_pb2.Example.FromString
    ordered = ((key, parse(item).SerializeToString(deterministic=True)) for key, item in examples)
    return super().write(path, ordered)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the builders of all tasks share.

  A task's builder adds `VERSION`, to be raised whenever the same config gives other bytes than
  before, and the methods `_info` (with `disable_shuffling=True`: Grain shuffles), `_make_splits`
  and `split_rule`. The name of its config encodes all that determines the bytes.

  Attributes:
    DEFAULT_CONFIG: the benchmark's.
    DISK_SPACE: what the benchmark's data takes, in words.
    reading: the split, in TFDS' notation, that is read in another's place; of those on disk.
  """

  DEFAULT_CONFIG: ClassVar[tfds.core.BuilderConfig | None] = None
  DISK_SPACE: ClassVar[str] = ''
  reading: Mapping[str, str] = {}

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

  @property
  def validation_is_test(self) -> bool:
    """Whether the test split serves for validation."""
    return self.reading.get('validation') == 'test'

  def as_data_source(self, split: str | None = None, **kwargs: Any) -> Any:
    """Return the examples of a split, as `reading` has it."""
    return super().as_data_source(self.reading.get(split, split), **kwargs)

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
        'sha256': {file.name: _digest(file).hex() for file in split.filepaths},
      }
      for name, split in self.info.splits.items()
    }
    return {'dataset': self.info.full_name, 'split_rule': self.split_rule, 'splits': splits}

  # TFDS prints these two whatever the level of the log; `prepare` logs as much.
  def _log_download_bytes(self) -> None:
    pass

  def _log_download_done(self) -> None:
    pass


def _digest(path: str | os.PathLike[str]) -> bytes:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def digest_files(paths: Iterable[str]) -> str:
  """Return 16 hexadecimal digits that stand for the contents of files, in this order."""
  return hashlib.sha256(b''.join(map(_digest, paths))).hexdigest()[:16]


def prepare(builder: Builder) -> None:
  """Write the data set to disk, unless that was done before.

  The data set appears under its final name when it is complete: a call that is interrupted
  leaves nothing there. One process of a machine prepares at a time, and of two on different
  machines the second finds what the first has written. Prepared data may be read-only.

  Raises:
    FileExistsError: if the directory of the data set is there but incomplete.
    OSError: if the disk is full or the directory cannot be written.
    ValueError: if a file that the data is made from is damaged.
  """
  if _is_prepared(builder):
    logger.info('%s: already prepared in %s', builder.name, builder.data_path)
    return
  # TFDS writes a split of more than 1000 MiB through temporary files, for which it needs
  # TensorFlow; a split is in memory anyway. Its own progress bars are replaced by one of ours.
  # TODO: leave the limit alone once TFDS' shuffler works without TensorFlow.
  unbounded = _set_temporarily(tfds_shuffle, 'MAX_MEM_BUFFER_SIZE', sys.maxsize)
  try:
    with lock(builder.root), unbounded, _set_temporarily(tqdm_utils, '_active', False):
      if _is_prepared(builder):
        logger.info('%s: another process has prepared %s', builder.name, builder.data_path)
        return
      start = time.monotonic()
      logger.info('%s: preparing %s', builder.name, builder.data_path)
      builder.download_and_prepare()
  except (OSError, RuntimeError) as error:
    if _is_prepared(builder):
      logger.info('%s: another machine has prepared %s', builder.name, builder.data_path)
      return
    # The writer of array_record reports the system's errors as RuntimeError; an OSError without a
    # number is not the system's, and says itself what to do.
    if isinstance(error, OSError):
      of_system = error.errno is not None
    else:
      of_system = re.search('No space|quota|too large', str(error))
    if not of_system:
      raise
    needed = f' (the default data takes {builder.DISK_SPACE})' if builder.DISK_SPACE else ''
    raise OSError(
      f'cannot prepare {builder.data_path}: {error}. Make room there{needed}, see to the '
      'permissions, or choose another data_dir'
    ) from error
  seconds = time.monotonic() - start
  logger.info('%s: prepared %s in %.1f s', builder.name, builder.data_path, seconds)


def fetch(url: str, path: str | os.PathLike[str], sha256: str | None = None) -> str:
  """Download a file, unless it is there, and return its path.

  What an interrupted call has received lies in `path` + '.incomplete'; the next call goes on from
  there if a checksum can tell whether the parts belong together.

  Args:
    url: where it lies.
    path: where it shall lie.
    sha256: its checksum, hexadecimal.

  Raises:
    OSError: if it cannot be downloaded; the message says what to do instead.
    ValueError: if its contents are not those of the checksum.
  """
  path = os.fspath(path)
  if not os.path.exists(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    unfinished = f'{path}.incomplete'
    _download(url, unfinished, path, resume=sha256 is not None)
    try:
      _check_sha256(unfinished, sha256, f'what {url} gave is deleted; try again')
    except ValueError:
      os.remove(unfinished)  # Nothing to go on from.
      raise
    os.replace(unfinished, path)
  else:
    _check_sha256(path, sha256, f'replace it by {url}')
  return path


def _check_sha256(path: str, sha256: str | None, way_out: str) -> None:
  if sha256 is not None and (found := _digest(path).hex()) != sha256:
    raise ValueError(f'{path} is damaged: expected SHA-256 {sha256}, found {found}; {way_out}')


def _download(url: str, unfinished: str, path: str, *, resume: bool) -> None:
  start = os.path.getsize(unfinished) if resume and os.path.exists(unfinished) else 0
  headers = {'User-Agent': 'kl_flax'} | ({'Range': f'bytes={start}-'} if start else {})

  def fail(problem: object, done: int = 0) -> NoReturn:
    again = f' ({done} bytes are there: the same command goes on)' if done and resume else ''
    raise OSError(
      f'cannot download {url}: {problem}{again}. Fetch it by other means and put it there as '
      f'{path}, or name it by --source'
    )

  try:
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
  except urllib.error.HTTPError as error:
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
      error.close()
      os.remove(unfinished)  # No beginning of this file: it is longer, or all of it.
      return _download(url, unfinished, path, resume=resume)
    error.close()
    fail(f'{error.code} {error.reason}', start)
  except (OSError, http.client.HTTPException) as error:
    fail(getattr(error, 'reason', error), start)
  with response:
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
      start = 0  # The server sends the whole file whatever it is asked.
    length = response.headers.get('Content-Length')
    total = None if length is None else start + int(length)
    logger.info('downloading %s to %s', url, path)
    with (
      open(unfinished, 'ab' if start else 'wb') as file,
      show_progress(f'downloading {os.path.basename(path)}', total) as advance,
    ):
      advance(start)
      while True:
        try:
          chunk = response.read1(2**18)
        except http.client.IncompleteRead:
          break  # As some versions of Python report what others end with.
        except (OSError, http.client.HTTPException) as error:
          fail(error, file.tell())
        if not chunk:
          break
        file.write(chunk)  # A full disk is the caller's to report.
        advance(len(chunk))
      if total is not None and file.tell() < total:
        fail(f'the connection ended after {file.tell()} of {total} bytes', file.tell())


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


@contextlib.contextmanager
def lock(directory: str) -> Iterator[None]:
  """Let one process of this machine at a time work in a directory, which is made if missing.

  Raises:
    OSError: if the directory cannot be written.
  """
  os.makedirs(directory, exist_ok=True)
  with open(os.path.join(directory, '.lock'), 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logger.info('Waiting for another process that prepares data in %s.', directory)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _set_temporarily(module: Any, name: str, value: Any) -> Iterator[None]:
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)


@contextlib.contextmanager
def show_progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
  """Yield a function to call with each number of examples done.

  Shows a bar on a terminal, and log lines every few seconds elsewhere.

  >>> with show_progress('counting', 10) as advance:
  ...   advance(10)
  """
  terminal = console.CONSOLE.is_terminal
  seconds = 0.1 if terminal else _SECONDS_PER_LOG
  done, shown = 0, time.monotonic()
  with rich.progress.Progress(console=console.CONSOLE, transient=True, disable=not terminal) as bar:
    task = bar.add_task(title, total=total)

    def advance(num: int) -> None:
      nonlocal done, shown
      done += num
      if time.monotonic() - shown < seconds:
        return
      shown = time.monotonic()
      bar.update(task, completed=done)
      if not terminal:
        logger.info('%s: %d%s', title, done, f' of {total}' if total else '')

    yield advance
