"""The machine that a process runs on, as far as the system knows it."""

from __future__ import annotations

import os


def num_cores() -> int:
  """Return the number of cores that this process may use; where unknown, that of the machine."""
  if hasattr(os, 'sched_getaffinity'):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
