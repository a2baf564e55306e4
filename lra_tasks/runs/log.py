"""What a run writes while it goes on: metrics.jsonl and TensorBoard summaries."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lra_tasks.files import to_json

if TYPE_CHECKING:
  import numpy as np


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Return the records of a metrics.jsonl, whose last line a kill may have cut."""
  if not os.path.exists(path):
    return []
  records = []
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        record = json.loads(line)
      except json.JSONDecodeError:
        break
      if not isinstance(record, dict):  # A part of a line may be JSON, such as a number.
        break
      records.append(record)
  return records


# Sums that stand for themselves, and what is none.
_NO_MEANS = ('weight', 'labels', 'accuracy_by_draw', 'confusion_by_draw', 'votes')


def means(sums: Mapping[str, np.ndarray], prefix: str) -> dict[str, float]:
  """Return per-example means of summed metrics; 'truncated' stays a count.

  >>> import numpy as np
  >>> means({'loss': np.float32(6), 'truncated': np.float32(1), 'weight': np.float32(4)}, 'eval_')
  {'eval_loss': 1.5, 'eval_truncated': 1.0}
  """
  weight = max(float(sums['weight']), 1.0)  # Of masked ids there may be none.
  values = {}
  for name, value in sums.items():
    if name not in _NO_MEANS:
      values[prefix + name] = float(value) / (1.0 if name == 'truncated' else weight)
  return values


class RunLog:
  """metrics.jsonl and summary/ of a run: one record per evaluation.

  Args:
    directory: the run's.
    resume_step: records of later steps are dropped, for they will be made again.
    started: when this process started, by `time.monotonic`.
    write: False in all processes but one.
  """

  def __init__(
    self, directory: str, resume_step: int, started: float, *, write: bool = True
  ) -> None:
    self._path = os.path.join(directory, 'metrics.jsonl')
    self.records = [r for r in read_records(self._path) if r['step'] <= resume_step]
    # The wall time of earlier processes counts too, as far as it was recorded.
    before = self.records[-1]['wall_time_seconds'] if self.records else 0.0
    self._origin = started - before
    self._summary = None
    if write:
      with open(f'{self._path}.tmp', 'w') as file:
        file.writelines(f'{to_json(record)}\n' for record in self.records)
      os.replace(f'{self._path}.tmp', self._path)
      # Not above: the report reads with this module, and starts without TensorBoard and NumPy.
      import tensorboardX

      self._summary = tensorboardX.SummaryWriter(os.path.join(directory, 'summary'))

  def add(self, record: dict[str, Any]) -> None:
    """Append a record, which has a 'step'; the wall time of the run in seconds is added."""
    record = record | {'wall_time_seconds': time.monotonic() - self._origin}
    self.records.append(record)
    if self._summary is None:
      return
    with open(self._path, 'a') as file:
      file.write(f'{to_json(record)}\n')
    for name, value in record.items():
      if name != 'step' and value is not None:
        self._summary.add_scalar(name, value, record['step'])
    self._summary.flush()

  def close(self) -> None:
    """Close the files."""
    if self._summary is not None:
      self._summary.close()
