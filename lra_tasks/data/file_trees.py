"""Files of raw data by their paths, whether they lie in a directory or in an archive."""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO

from lra_tasks.data import sources

ENDINGS = ('.zip', *sources.ARCHIVE_ENDINGS)

# Below a directory: its files, and those of two levels of directories in it.
_DEPTH = 2


class FileTree:
  """The files of a directory, of a zip archive or of a tar archive.

  Attributes:
    path: of the directory or archive.
    names: paths of the files in it, sorted; of a directory, those at most two levels below.

  Args:
    path: see above.

  Raises:
    ValueError: if it is a file that is no archive, or a damaged one.
  """

  def __init__(self, path: str) -> None:
    self.path = path
    self.names = sorted(name for name in self._list() if not _is_hidden(name))

  def find(self, pattern: str) -> list[str]:
    """Return the names that match a regular expression, compressed or not, from a `/` on.

    Args:
      pattern: of a file's path without the ending of its compression.
    """
    endings = '|'.join(map(re.escape, sources.COMPRESSED))
    wanted = re.compile(f'(?:.*/)?(?:{pattern})(?:{endings})?')
    return [name for name in self.names if wanted.fullmatch(name)]

  @contextlib.contextmanager
  def open(self, name: str) -> Iterator[IO[bytes]]:
    """Open a file for reading; what ends as `sources.COMPRESSED` says is decompressed.

    Raises:
      ValueError: if it is damaged, within the context.
    """
    if os.path.isdir(self.path):
      with sources.open_file(os.path.join(self.path, name)) as file:
        yield file
      return
    decompress = sources.COMPRESSED.get(os.path.splitext(name)[1])
    with self._damages(), contextlib.ExitStack() as stack:
      if self._is_zip:
        file = stack.enter_context(zipfile.ZipFile(self.path)).open(name)
      else:
        file = stack.enter_context(tarfile.open(self.path)).extractfile(name)
      stack.callback(file.close)
      yield stack.enter_context(decompress(file, 'rb')) if decompress else file

  def describe(self, name: str) -> str:
    """Return what to call a file in messages."""
    joined = os.path.join(self.path, name)
    return joined if os.path.isdir(self.path) else f'{self.path}: {name}'

  @property
  def _is_zip(self) -> bool:
    return self.path.endswith('.zip')

  def _list(self) -> list[str]:
    if os.path.isdir(self.path):
      return list(_walk(self.path))
    if not self.path.endswith(ENDINGS):
      raise ValueError(
        f'{self.path} is no archive by its ending ({", ".join(ENDINGS)}): name a directory or an '
        'archive'
      )
    with self._damages():
      if self._is_zip:
        with zipfile.ZipFile(self.path) as archive:
          return [item.filename for item in archive.infolist() if not item.is_dir()]
      with tarfile.open(self.path) as archive:
        return [member.name for member in archive if member.isfile()]

  @contextlib.contextmanager
  def _damages(self) -> Iterator[None]:
    try:
      with sources.damages(self.path):
        yield
    except (zipfile.BadZipFile, NotImplementedError) as error:
      raise ValueError(f'{self.path} is damaged: {error}; replace it') from None


def _walk(directory: str) -> Iterator[str]:
  for folder, below, files in os.walk(directory):
    relative = os.path.relpath(folder, directory)
    parts = [] if relative == os.curdir else relative.split(os.sep)
    if len(parts) >= _DEPTH:
      below.clear()
    yield from ('/'.join([*parts, name]) for name in files)


def _is_hidden(name: str) -> bool:
  """Return whether a file is one that file managers add."""
  return '__MACOSX/' in name or os.path.basename(name).startswith('.')
