"""Raw data: files that are downloaded, archives that are read, and what their contents are."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import hashlib
import http
import http.client
import logging
import lzma
import os
import re
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NoReturn

from lra_tasks.console import show_progress

logger = logging.getLogger(__name__)

COMPRESSED = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
ARCHIVE_ENDINGS = ('.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2')
# What reading raises; gzip and bz2 raise OSError, without a number.
_DAMAGES = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


def digest(path: str | os.PathLike[str]) -> bytes:
  """Return the SHA-256 of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def digest_files(paths: Iterable[str]) -> str:
  """Return 16 hexadecimal digits that stand for the contents of files, in this order."""
  return hashlib.sha256(b''.join(map(digest, paths))).hexdigest()[:16]


def fetch(url: str, path: str | os.PathLike[str], sha256: str | None = None) -> str:
  """Download a file, unless it is there, and return its path.

  What an interrupted call has received lies in `path` + '.incomplete'. The next call goes on from
  there, if a checksum can tell whether the parts belong together, or the server by its ETag.

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
    _download(url, unfinished, path, checked=sha256 is not None)
    try:
      way_out = f'try again, or fetch it by other means and put it there as {path}'
      _check_sha256(unfinished, sha256, f'what {url} gave is deleted; {way_out}')
    except ValueError:
      os.remove(unfinished)  # Nothing to go on from.
      raise
    os.replace(unfinished, path)
    _write_etag(unfinished, None)
  else:
    _check_sha256(path, sha256, f'replace it by {url}')
  return path


def _check_sha256(path: str, sha256: str | None, way_out: str) -> None:
  if sha256 is not None and (found := digest(path).hex()) != sha256:
    raise ValueError(f'{path} is damaged: expected SHA-256 {sha256}, found {found}; {way_out}')


def _write_etag(unfinished: str, etag: str | None) -> None:
  """Note which version of a file the beginning is of; None if that cannot be told."""
  if etag and not etag.startswith('W/'):  # Weak ones do not promise the same bytes.
    with open(f'{unfinished}.etag', 'w') as file:
      file.write(etag)
  else:
    with contextlib.suppress(FileNotFoundError):
      os.remove(f'{unfinished}.etag')


def _read_etag(unfinished: str) -> str | None:
  with contextlib.suppress(FileNotFoundError), open(f'{unfinished}.etag') as file:
    return file.read()
  return None


def _download(url: str, unfinished: str, path: str, *, checked: bool) -> None:
  etag = _read_etag(unfinished)
  resume = (checked or etag is not None) and os.path.exists(unfinished)
  start = os.path.getsize(unfinished) if resume else 0
  headers = {'User-Agent': 'kl_flax'}
  if start:
    headers['Range'] = f'bytes={start}-'
    if not checked:
      headers['If-Range'] = etag  # Of another version, all is sent.

  def fail(problem: object, done: int = 0) -> NoReturn:
    resumable = checked or _read_etag(unfinished) is not None
    again = f' ({done} bytes are there: the same command goes on)' if done and resumable else ''
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
      return _download(url, unfinished, path, checked=checked)
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
      if not start:  # Not before the beginning of another version is gone.
        _write_etag(unfinished, None if checked else response.headers.get('ETag'))
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


def find_archives(directory: str, pattern: str = '*') -> list[str]:
  """Return the tar archives in a directory, by their endings, whose names match a glob pattern."""
  found = glob.glob(os.path.join(glob.escape(directory), pattern))
  return sorted(path for path in found if path.endswith(ARCHIVE_ENDINGS))


def the_only(found: list[str], directory: str) -> str | None:
  """Return the path that was found in a directory, None if there is none.

  Raises:
    ValueError: if there are several.
  """
  if len(found) > 1:
    raise ValueError(f'{directory} holds several copies, name one: {", ".join(found)}')
  return found[0] if found else None


def check_archive(path: str, wanted: str) -> None:
  """Raise ValueError if a file is no archive by its ending.

  Args:
    path: whatever was named as source.
    wanted: what it should be or hold, for the message.
  """
  if os.path.isfile(path) and not path.endswith(ARCHIVE_ENDINGS):
    raise ValueError(
      f'{path} is no archive by its ending ({", ".join(ARCHIVE_ENDINGS)}): name the directory that '
      f'holds {wanted}, or an archive of it'
    )


def read_archive(
  path: str | os.PathLike[str], wanted: re.Pattern[str], url: str
) -> Iterator[tuple[str, bytes]]:
  """Yield name and contents of the files of a tar archive, compressed or not, in their order.

  Args:
    path: the archive.
    wanted: what the whole name of a file must match; others are skipped.
    url: where the archive comes from, for the message.

  Raises:
    ValueError: if the archive is damaged, also behind the last file.
  """
  with open_archive(path, wanted, url) as files:
    for name, file in files:
      yield name, file.read()


@contextlib.contextmanager
def open_archive(
  path: str | os.PathLike[str], wanted: re.Pattern[str], url: str
) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
  """Do the same for files that may be larger than the memory; each is read before the next.

  Args:
    path: as in `read_archive`.
    wanted: as in `read_archive`.
    url: as in `read_archive`.

  Raises:
    ValueError: as `read_archive`, within the context.
  """
  count = 0

  def walk(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    nonlocal count
    while (member := archive.next()) is not None:
      archive.members.clear()  # Some archives have millions.
      if member.isfile() and wanted.fullmatch(member.name):
        yield member.name, archive.extractfile(member)
        count += 1
    while archive.fileobj.read(2**20):  # Checksums of compressed files stand at the end.
      pass

  try:
    with tarfile.open(path) as archive:
      yield walk(archive)
  except _DAMAGES as error:
    raise ValueError(
      f'{path} is damaged or no tar archive: {_problem(error)} (after {count} files); replace it, '
      f'from {url}'
    ) from None


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
  """Open a file for reading; what ends as `COMPRESSED` says is decompressed.

  Raises:
    ValueError: if it is damaged, within the context.
  """
  path = os.fspath(path)
  open_it = COMPRESSED.get(os.path.splitext(path)[1], open)
  with damages(path), open_it(path, 'rb') as file:
    yield file


@contextlib.contextmanager
def damages(path: str) -> Iterator[None]:
  """Turn what reading a damaged file raises into a ValueError that names it.

  Args:
    path: of the file that is read within the context.

  Raises:
    ValueError: see above.
  """
  try:
    yield
  except _DAMAGES as error:
    raise ValueError(f'{path} is damaged: {_problem(error)}; replace it') from None


def _problem(error: Exception) -> str:
  """Return what damage an error reports, in a line; it is raised again where it does not."""
  if getattr(error, 'errno', None) is not None:
    raise error  # The system's, which is no damage.
  # Of an unknown form, tarfile lists in further lines why it is none of those it knows.
  return (str(error).splitlines() or [type(error).__name__])[0].rstrip(':')
