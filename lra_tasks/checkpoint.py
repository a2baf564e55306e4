"""Checkpoints of a run, on Orbax: train state, data iterator, validation metrics, checksum.

A step directory appears only when it is complete, so a killed run never leaves half of one. Two
newest checkpoints are kept, and the best on validation. A checkpoint whose contents do not match
the checksum that was stored with it counts as damaged.
"""

from __future__ import annotations

import logging
import os
import zlib
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from kl_flax.predictor import best_step, ranking

logger = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints under one directory.

  Args:
    directory: created if it is missing; any path, made absolute here (Orbax needs that).
  """

  def __init__(self, directory: str) -> None:
    self.directory = os.path.abspath(directory)
    options = ocp.CheckpointManagerOptions(
      best_fn=ranking,
      preservation_policy=managers.AnyPreservationPolicy(
        [
          managers.LatestN(2),
          managers.BestN(get_metric_fn=ranking, n=1, keep_checkpoints_without_metrics=False),
        ]
      ),
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  def save(
    self, step: int, state: Any, data: grain.DatasetIterator, metrics: dict[str, float] | None
  ) -> None:
    """Start saving in the background.

    Args:
      step: number of finished updates.
      state: tree of NumPy arrays.
      data: the iterator before the next batch is drawn.
      metrics: of the validation at this step; None if there was none.
    """
    if step in self._manager.all_steps():
      self._manager.delete(step)  # Saved before its evaluation, at a preemption.
    items = {
      'state': ocp.args.StandardSave(state),
      'data': grain.checkpoint.CheckpointSave(data),
      'checksum': ocp.args.JsonSave({'crc32': checksum(state)}),
    }
    self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

  def restore_newest(self, like: Any, data: grain.DatasetIterator) -> tuple[int, Any] | None:
    """Return step and state of the newest sound checkpoint, and set `data` to its place.

    A damaged one is reported and removed, and the one before is tried.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      ValueError: if there are checkpoints, but every one is damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        state = self.restore(step, like)
        item = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(data))
        self._manager.restore(step, args=item)
        return step, state
      except Exception as error:  # Whatever the storage layers raise on damaged files.
        logger.warning(
          'Checkpoint %d in %s is damaged and left out: %s',
          step,
          self.directory,
          str(error).splitlines()[0],
        )
        self._manager.delete(step)
    if steps:
      raise ValueError(
        f'every checkpoint in {self.directory} is damaged; remove the run or name another '
        '--model_dir'
      )
    return None

  def restore(self, step: int, like: Any) -> Any:
    """Return the state of a step, as NumPy arrays in the form of `like`.

    Raises:
      ValueError: if the contents do not match their checksum.
    """
    abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), checksum=ocp.args.JsonRestore()
      ),
    )
    state = jax.tree.map(np.asarray, items['state'])
    if checksum(state) != items['checksum']['crc32']:
      raise ValueError('its contents do not match their checksum')
    return state

  def best_step(self) -> int | None:
    """Return the step with the best validation accuracy (of equals the last), or None."""
    return best_step(self._manager)

  def wait(self) -> None:
    """Return once everything is on disk; raises what went wrong in the background."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait and release threads."""
    self._manager.close()


def checksum(state: Any) -> int:
  """Return the CRC-32 of all leaves, names and shapes included."""
  value = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    header = f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'
    value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), zlib.crc32(header.encode(), value))
  return value
