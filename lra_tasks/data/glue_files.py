"""Files of GLUE's tasks: found, fetched, read, and known by their contents."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lra_tasks.data import sources
from lra_tasks.data.file_trees import ENDINGS, FileTree
from lra_tasks.data.glue_tasks import MRPC_DEV, MRPC_FILES, MRPC_TRAIN, GlueTask

logger = logging.getLogger(__name__)

_MRPC_IDS = ('#1 ID', '#2 ID')


class Example(NamedTuple):
  """One or two texts, UTF-8, and a label, 0 ... num_classes − 1."""

  texts: tuple[bytes, ...]
  label: int


def read_examples(lines: Iterable[bytes], task: GlueTask, path: str) -> Iterator[Example]:
  r"""Yield the examples of a table between tabs; no byte but tab and end of line means anything.

  Args:
    lines: those of the file; the first is the header, unless the task has none.
    task: which of GLUE's.
    path: what to call the file in messages.

  Raises:
    ValueError: if the header lacks a column, or if a row has another number of columns, a label
      that the task does not have, no text or no UTF-8; the message names the line.
  """
  skipped = 0
  for number, row in _read_rows(lines, task, path):
    if row is None or (task.ragged and not row[task.label]):
      skipped += 1
      continue
    label, *texts = (row[name] for name in (task.label, *task.texts))
    expected = ''
    if label.decode(errors='replace') not in task.labels:
      expected = (
        f'a label of {", ".join(task.labels)}, found {label[:40].decode(errors="replace")!r}'
      )
    elif not any(text.strip() for text in texts):  # One of a pair may be empty, as in QQP.
      expected = f'text in {" or ".join(task.texts)}, found none'
    if expected:
      raise ValueError(_damaged(task, path, number, expected))
    for text in texts:
      try:
        text.decode()
      except UnicodeDecodeError as error:
        raise ValueError(_damaged(task, path, number, f'UTF-8: {error}')) from None
    yield Example(tuple(texts), task.labels.index(label.decode()))
  if skipped:
    logger.info('GLUE: skipped %d rows of %s that lack columns', skipped, path)


def _read_rows(
  lines: Iterable[bytes], task: GlueTask, path: str
) -> Iterator[tuple[int, dict[str, bytes] | None]]:
  """Yield number and values by column of each row; None where it lacks some and may."""
  columns = list(task.columns)
  for number, line in enumerate(lines, start=1):
    if number == 1:
      line = line.removeprefix(b'\xef\xbb\xbf')
    values = line.removesuffix(b'\n').removesuffix(b'\r').split(b'\t')
    if not columns:
      columns = [value.decode(errors='replace') for value in values]
      if missing := [name for name in (*task.texts, task.label) if name not in columns]:
        expected = f'columns {", ".join(missing)}, found {", ".join(columns)!r:.100}'
        raise ValueError(_damaged(task, path, number, expected))
      continue
    if len(values) != len(columns) and not task.ragged:
      expected = f'{len(columns)} columns between tabs, found {len(values)}: {line[:60]!r}'
      raise ValueError(_damaged(task, path, number, expected))
    lacking = len(values) < len(columns)
    yield number, None if lacking else dict(zip(columns, values, strict=False))


def _damaged(task: GlueTask, path: str, number: int, expected: str) -> str:
  return f'{path}, line {number}: expected {expected}; replace it, from {task.url}'


def digest_splits(splits: Mapping[str, Sequence[Example]]) -> str:
  """Return hexadecimal digits that stand for texts and labels, whatever files they are from.

  It is the SHA-256 over the name of each split in a line, then a line with label and texts between
  tabs of each example.
  """
  digest = hashlib.sha256()
  for split, examples in splits.items():
    digest.update(f'{split}\n'.encode())
    for example in examples:
      digest.update(b'%d\t%s\n' % (example.label, b'\t'.join(example.texts)))
  return digest.hexdigest()


def read_splits(path: str, task: GlueTask) -> dict[str, list[Example]]:
  """Return the examples of train, test (the development set) and, of MNLI, test_mismatched if any.

  Args:
    path: a directory that holds the task's folder; the folder; or an archive of either. Of MRPC,
      the folder may hold what it is made of instead.
    task: which of GLUE's.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if one is damaged.
  """
  tree = FileTree(path)
  find = lambda name: _find(tree, task, name)
  if task.name == 'mrpc' and not find('train.tsv') and find(MRPC_TRAIN):
    return _split_mrpc(tree, task)
  splits = {}
  for split, stem in task.files.items():
    name = find(f'{stem}.tsv')
    if name is None and stem == task.mismatched:
      continue
    if name is None:
      raise FileNotFoundError(_missing(path, task, f'{stem}.tsv'))
    with tree.open(name) as file:
      splits[split] = list(read_examples(file, task, tree.describe(name)))
  return _checked(splits, path)


def _split_mrpc(tree: FileTree, task: GlueTask) -> dict[str, list[Example]]:
  """Return MRPC's examples from Microsoft's file and GLUE's list, as GLUE's own script does."""
  names = {}
  for name in MRPC_FILES:
    names[name] = _find(tree, task, name)
    if names[name] is None:
      raise FileNotFoundError(_missing(tree.path, task, name))
  path = tree.describe(names[MRPC_TRAIN])
  with tree.open(names[MRPC_DEV]) as file:
    dev = {tuple(line.split()) for line in file}
  with tree.open(names[MRPC_TRAIN]) as file:
    lines = list(file)
  rows = [row for _, row in _read_rows(lines, task, path)]
  splits: dict[str, list[Example]] = {'train': [], 'test': []}
  for row, example in zip(rows, read_examples(lines, task, path), strict=True):
    ids = tuple(row.get(name, b'') for name in _MRPC_IDS)
    splits['test' if ids in dev else 'train'].append(example)
  return _checked(splits, tree.path)


def _checked(splits: dict[str, list[Example]], path: str) -> dict[str, list[Example]]:
  """Return them, if there is enough to train on, to hold out and to test."""
  for split, examples in splits.items():
    least = 10 if split == 'train' else 1
    if len(examples) < least:
      raise ValueError(
        f'{path}: expected at least {least} examples of {split}, found {len(examples)}; '
        'name another source'
      )
  return splits


def _find(tree: FileTree, task: GlueTask, name: str) -> str | None:
  """Return the name of a file in the task's folder, else beside nothing else, or None."""
  found = tree.find(f'{task.folder}/{re.escape(name)}')
  found = found or [path for path in tree.find(re.escape(name)) if '/' not in path]
  if len(found) > 1:
    raise ValueError(f'{tree.path} holds {" and ".join(found)}: remove all but one')
  return found[0] if found else None


def is_there(path: str, task: GlueTask) -> bool:
  """Return whether a directory or archive holds the training examples of a task."""
  return _find(FileTree(path), task, 'train.tsv') is not None


def _missing(path: str, task: GlueTask, name: str) -> str:
  urls = [task.url] if task.archive else [url for url, _ in MRPC_FILES.values()]
  return (
    f'{path} lacks {task.folder}/{name}: fetch {" and ".join(urls)}, put it there'
    f'{"" if task.archive else f" in a folder {task.folder}"}, and name the directory by --source'
  )


def fetch(task: GlueTask, directory: str) -> str:
  """Return where the original data lies; what is not yet in the directory is downloaded to there.

  Raises:
    OSError: if it cannot be downloaded.
    ValueError: if a file is another one than the original.
  """
  if task.archive:
    return sources.fetch(task.url, os.path.join(directory, task.archive), task.sha256)
  folder = os.path.join(directory, task.folder)
  for name, (url, sha256) in MRPC_FILES.items():
    sources.fetch(url, os.path.join(folder, name), sha256)
  return folder


def locate(source: str, task: GlueTask) -> str:
  """Return the directory or archive that holds a task's files: what was named, or an archive in it.

  Raises:
    FileNotFoundError: if nothing is there.
    ValueError: if several archives are.
  """
  if not os.path.exists(source):
    raise FileNotFoundError(f'{source} does not exist: name a directory or an archive')
  if os.path.isfile(source) or not task.archive:
    return source
  if not is_there(source, task):
    stem = os.path.join(source, task.folder)
    names = [os.path.join(source, task.archive), *(f'{stem}{ending}' for ending in ENDINGS)]
    found = [path for path in dict.fromkeys(names) if os.path.isfile(path)]
    return sources.the_only(found, source) or source
  return source


def identify(path: str, task: GlueTask) -> str:
  """Return '' for the original data, else digits that stand for the contents.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if one is damaged.
  """
  if os.path.isfile(path) and task.sha256 and sources.digest(path).hex() == task.sha256:
    return ''
  digest = digest_splits(read_splits(path, task))
  return '' if digest == task.contents else digest[:16]
