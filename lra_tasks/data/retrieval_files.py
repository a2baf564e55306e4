"""Files of Retrieval: LRA's pairs found, fetched and read; papers and citations found."""

from __future__ import annotations

import functools
import glob
import itertools
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO

from lra_tasks.console import show_progress
from lra_tasks.data import datasets, sources

logger = logging.getLogger(__name__)

# 7.7 GB, all of LRA's tasks. Its checksum is not published: what is read is checked by gzip's own,
# and the pairs are counted.
URL = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
BENCHMARK_SIZES = {'train': 147_086, 'validation': 18_090, 'test': 17_437}
# LRA cuts texts before anything else.
MAX_BYTES = 10_000
# In place of a number of pairs.
ALL = -1
# Fields of `lra_tasks.data.retrieval.RetrievalData` with the number of pairs of each split.
SIZE_OPTIONS = {'train': 'num_train', 'validation': 'num_valid', 'test': 'num_test'}

_LRA_FILES = {
  'train': 'new_aan_pairs.train.tsv',
  'validation': 'new_aan_pairs.eval.tsv',
  'test': 'new_aan_pairs.test.tsv',
}
_MEMBER = re.compile(r'(?:.*/)?(new_aan_pairs\.(?:train|eval|test)\.tsv)')
# Of LRA's, a tar archive in spite of its ending.
_ARCHIVE = re.compile(r'lra_release.*\.gz')
# TensorFlow's reader, which LRA uses, takes labels for floats.
_LABELS = {b'0': 0, b'1': 1, b'0.0': 0, b'1.0': 1}


def read_pairs(file: Iterable[bytes], path: str) -> Iterator[tuple[int, bytes, bytes]]:
  r"""Yield label 0 or 1 and both texts, cut at MAX_BYTES, of each row of one of LRA's files.

  Rows are label, id, id, text, text between tabs, without header. As in TensorFlow's reader, which
  LRA uses, no byte but tab and end of line (\n, \r\n) means anything, and no text may be empty.

  Args:
    file: the lines.
    path: what to call it in messages.

  Raises:
    ValueError: if a row is damaged; the message names the line, what was expected and found.
  """
  for number, line in enumerate(file, start=1):
    try:
      yield _parse_row(line.removesuffix(b'\n').removesuffix(b'\r'))
    except ValueError as error:
      raise ValueError(
        f"{path}, line {number}: {error}; replace the file, it is damaged or none of LRA's"
      ) from None


def _parse_row(row: bytes) -> tuple[int, bytes, bytes]:
  columns = row.split(b'\t')
  if len(columns) != 5:
    found = f'{len(columns)}: {row[:60]!r}'
    raise ValueError(f'expected label, id, id, text, text between tabs, found columns: {found}')
  label, _, _, first, second = columns
  if label not in _LABELS:
    raise ValueError(
      f"expected a label '0.0' or '1.0', found {label[:20].decode(errors='replace')!r}"
    )
  for name, text in (('first', first), ('second', second)):
    if not text:
      raise ValueError(f'expected a {name} text, found nothing')
    if b'\r' in text:
      raise ValueError(f'expected the end of the line after a carriage return, in the {name} text')
  return _LABELS[label], first[:MAX_BYTES], second[:MAX_BYTES]


class Rows:
  """The pairs of a file as (text, text, label), read when they are wanted; there must be enough.

  Args:
    open_file: opens it.
    path: what to call it in messages.
    split: which of the splits it is.
    wanted: how many of its pairs, or ALL.
  """

  def __init__(self, open_file: Callable[[], IO[bytes]], path: str, split: str, wanted: int):
    self._open, self._path, self._split = open_file, path, split
    self._wanted = BENCHMARK_SIZES[split] if wanted == ALL else wanted
    self._exact = self._wanted == BENCHMARK_SIZES[split]
    self.most = self._wanted + self._exact  # Rows that are looked at: one too many is noticed.

  def __len__(self) -> int:
    """Return how many are wanted."""
    return self._wanted

  def __iter__(self) -> Iterator[tuple[bytes, bytes, int]]:
    """Read them.

    Raises:
      ValueError: if a row is damaged, or if there are fewer, or more where all are wanted.
    """
    count = 0
    with self._open() as file:
      rows = itertools.islice(read_pairs(file, self._path), self.most)
      for count, (label, first, second) in enumerate(rows, start=1):
        if count <= self._wanted:
          yield first, second, label
    if count != self._wanted:
      at_least = '' if self._exact else 'at least '
      found = count if count < self._wanted else 'more'
      option = f'--config.data.{SIZE_OPTIONS[self._split]}'
      raise ValueError(
        f'{self._path}: expected {at_least}{self._wanted} pairs, found {found}; fetch it anew from '
        f'{URL}, or ask for fewer by {option}: results are then not compared with published ones'
      )


def open_files(paths: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, Rows]:
  """Return the pairs of LRA's files; both arguments are by split."""
  return {
    split: Rows(functools.partial(open, path, 'rb'), path, split, sizes[split])
    for split, path in paths.items()
  }


def _spool(file: IO[bytes], path: str, split: str, directory: str, wanted: int) -> Rows:
  """Return the pairs of a file that can be read but once, having copied what is wanted of them."""
  spool = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed with the rows)

  def rewind() -> IO[bytes]:
    spool.seek(0)
    return spool

  rows = Rows(rewind, path, split, wanted)
  weakref.finalize(rows, spool.close)
  with show_progress(f'unpacking {os.path.basename(path)}') as advance:
    # What follows is skipped, but decompressed, as the archive is read to its end.
    for label, first, second in itertools.islice(read_pairs(file, path), rows.most):
      spool.write(b'%d\t\t\t%s\t%s\n' % (label, first, second))
      advance(1)
  return rows


def read_archive(path: str, directory: str, sizes: Mapping[str, int]) -> dict[str, Rows]:
  """Return the pairs of LRA's archive, which is read once, in whatever order its files are.

  What is wanted of it lies in files without names in `directory` meanwhile.

  Raises:
    ValueError: if the archive is damaged, lacks a file or has it twice.
  """
  splits = {file: split for split, file in _LRA_FILES.items()}
  found: dict[str, Rows] = {}
  logger.info('Retrieval: reading %s from beginning to end', path)
  with sources.open_archive(path, _MEMBER, URL) as members:
    for name, member in members:
      split = splits[_MEMBER.fullmatch(name)[1]]
      if split in found:
        raise ValueError(f'{path} holds {name} twice: name an archive that has each file once')
      found[split] = _spool(member, f'{path}: {name}', split, directory, sizes[split])
  missing = [file for split, file in _LRA_FILES.items() if split not in found]
  if missing:
    raise ValueError(
      f'{path} lacks {", ".join(missing)}: name an archive that has them, from {URL}'
    )
  return {split: found[split] for split in sizes}


# What lies where.


def is_archive(path: str) -> bool:
  """Return whether a file is an archive, by its name."""
  named = path.endswith(sources.ARCHIVE_ENDINGS) or _ARCHIVE.fullmatch(os.path.basename(path))
  return bool(named) and os.path.isfile(path)


def find(place: str, kinds: Sequence[str]) -> tuple[str, dict[str, str]] | None:
  """Return kind and files of the pairs in a directory, or in one right below it.

  Raises:
    ValueError: if there are several.
    FileNotFoundError: if only some of the files are there.
  """
  if not os.path.isdir(place):
    return None
  below = sorted(entry.path for entry in os.scandir(place) if entry.is_dir())
  for directories in ([place], below):
    found = [pairs for path in directories for pairs in _look_into(path, kinds)]
    if len(found) > 1:
      names = '; '.join(', '.join(files.values()) for _, files in found)
      raise ValueError(
        f'{place} holds several sources of pairs: {names}. Name one by --source, or the kind by '
        "data.pairs, 'lra' or 'rebuilt'"
      )
    if found:
      return found[0]
  return None


def _look_into(directory: str, kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
  matching = lambda pattern: sorted(glob.glob(os.path.join(glob.escape(directory), pattern)))
  if 'lra' in kinds:
    files = {split: os.path.join(directory, file) for split, file in _LRA_FILES.items()}
    missing = [os.path.basename(path) for path in files.values() if not os.path.isfile(path)]
    if not missing:
      yield 'lra', files
    elif len(missing) < len(files):
      raise FileNotFoundError(
        f'{directory} lacks {", ".join(missing)}: give the directory that holds all three, or move '
        'the others away'
      )
    else:
      archives = filter(is_archive, matching('lra_release*'))
      yield from (('lra', {'archive': path}) for path in archives)
  if 'rebuilt' in kinds:
    documents, citations = (
      [path for ending in ('', *sources.COMPRESSED) for path in matching(name + ending)]
      for name in ('documents.jsonl', 'citations.tsv')
    )
    for first, second in itertools.product(documents, citations):
      yield 'rebuilt', {'documents': first, 'citations': second}


def fetch_archive(data_dir: str) -> str:
  """Return where LRA's archive lies; if it is not yet in the directory, it is downloaded to there.

  Raises:
    OSError: if it cannot be.
  """
  try:
    with datasets.lock(data_dir):
      return sources.fetch(URL, os.path.join(data_dir, os.path.basename(URL)))
  except OSError as error:
    if error.errno is None:  # It says itself what to do.
      raise
    raise OSError(
      f'cannot download {URL} to {data_dir}: {error}. Make room there (7.7 GB), see to the '
      'permissions, or choose another data_dir'
    ) from error


def not_found(place: str, kinds: Sequence[str]) -> FileNotFoundError:
  """Return the error that says what was looked for in vain."""
  wanted = {
    'lra': f'new_aan_pairs.{{train,eval,test}}.tsv or the archive of them, {URL}',
    'rebuilt': 'documents.jsonl and citations.tsv, which pairs are rebuilt from',
  }
  return FileNotFoundError(
    f'{place} does not hold {"; nor ".join(wanted[kind] for kind in kinds)}: name by '
    '--source the directory that holds them'
  )
