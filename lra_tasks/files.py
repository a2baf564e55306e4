"""JSON files that are whole or absent, and locks of directories."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
  """Return JSON, in which infinity and NaN are null: it has no numbers for them.

  >>> to_json({'median': 0.5, 'mean': float('inf')})
  '{"median": 0.5, "mean": null}'
  """
  return json.dumps(_without_infinities(value), indent=indent, allow_nan=False)


def _without_infinities(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {key: _without_infinities(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_infinities(item) for item in value]
  return value


def write_json(path: str, value: Mapping[str, Any]) -> None:
  """Write a file that is either whole or not there; see `to_json`."""
  temporary = f'{path}.tmp'
  with open(temporary, 'w') as file:
    file.write(f'{to_json(value, indent=2)}\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Return the object in a JSON file, or None if there is no such file.

  Raises:
    ValueError: naming the file, if it holds anything else.
  """
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except ValueError as error:  # Not JSON, or not even UTF-8.
    raise ValueError(f'{path}: damaged JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path}: expected a JSON object, got {type(value).__name__}')
  return value


@contextlib.contextmanager
def lock(
  directory: str | os.PathLike[str],
  name: str = '.lock',
  *,
  when_taken: Callable[[], None] = lambda: None,
) -> Iterator[None]:
  """Have a directory for this process alone, on this machine, until the end of the block.

  Args:
    directory: made if it is missing.
    name: of the file in it that is locked. It tells who holds it, and stays, empty.
    when_taken: called before waiting for another process; raises what is not to be waited for.

  Raises:
    OSError: if the directory cannot be written.
  """
  os.makedirs(directory, exist_ok=True)
  with open(os.path.join(directory, name), 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      when_taken()
      fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)  # What a process left that was killed.
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)


def holder(directory: str | os.PathLike[str], name: str = '.lock') -> str | None:
  """Return who holds the lock of a directory, 'process PID on HOST'; None if nobody does."""
  try:
    with open(os.path.join(directory, name), encoding='utf-8') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return file.read() or 'another process'
  except FileNotFoundError:
    pass
  return None
