"""Checkpoints of a training run, written and gone on from by Orbax.

They hold train state, place in the data, validation metrics and a checksum; what reads them without
a training is `kl_flax.checkpoints`.

A step directory appears only when it is complete, so a killed run never leaves half of one. Two
newest checkpoints are kept, and the best on validation; besides, the first to reach each accuracy
that the config names. A checkpoint whose contents do not match the checksum that was stored with it
counts as damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from kl_flax.checkpoints import best_step, checksum, quiet_storage, ranking, read
from lra_tasks import parallel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _FirstToReach(managers.PreservationPolicy):
  """Keeps, for each of some figures, the first checkpoint whose accuracy is at least as high.

  It is the first of the run, too: the loop saves what `RunCheckpoints.is_wanted`. When a run goes
  on from an earlier step, the steps behind it are saved again.
  """

  figures: tuple[float, ...]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Return a flag for each checkpoint; they come in the order of their steps."""
    del context
    kept = [False] * len(checkpoints)
    for figure in self.figures:
      for i, checkpoint in enumerate(checkpoints):
        if checkpoint.metrics is not None and checkpoint.metrics['accuracy'] >= figure:
          kept[i] = True
          break
    return kept


class RunCheckpoints:
  """The checkpoints under one directory.

  Args:
    directory: created if it is missing; any path, made absolute here (Orbax needs that).
    keep_accuracies: validation accuracies in per cent; of each, the first checkpoint that reaches
      it is kept.
  """

  def __init__(self, directory: str, keep_accuracies: Sequence[float] = ()) -> None:
    quiet_storage()
    self.directory = os.path.abspath(directory)
    self._figures = tuple(percent / 100 for percent in keep_accuracies)
    options = ocp.CheckpointManagerOptions(
      best_fn=ranking,
      preservation_policy=managers.AnyPreservationPolicy(
        [
          managers.LatestN(2),
          managers.BestN(get_metric_fn=ranking, n=1, keep_checkpoints_without_metrics=False),
          _FirstToReach(self._figures),
        ]
      ),
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    # Here, as files are written in the background: all processes must decide alike.
    self._metrics = self._read_metrics()

  def save(
    self, step: int, state: Any, data: grain.DatasetIterator, metrics: dict[str, float] | None
  ) -> None:
    """Start saving in the background.

    Args:
      step: number of finished updates.
      state: tree of NumPy arrays.
      data: the iterator before the next batch is drawn.
      metrics: of the validation at this step; None if there was none.

    Raises:
      OSError: if this one, or the one before, cannot be written.
    """
    if step in self._manager.all_steps():
      self._manager.delete(step)  # Saved before its evaluation, at a preemption.
    items = {
      'state': ocp.args.StandardSave(state),
      'extra': ocp.args.JsonSave({'crc32': checksum(state), 'data': data.get_state()}),
    }
    with self._writing():
      self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
    self._metrics[step] = metrics

  def restore_newest(self, like: Any, data: grain.DatasetIterator) -> tuple[int, Any] | None:
    """Return step and state of the newest sound checkpoint, and set `data` to its place.

    Those that cannot be read are reported and, once a sound one is found, put aside under another
    name: their steps will be saved again.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      ValueError: if there are checkpoints, but none can be read; nothing is changed then.
    """
    unreadable = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      state, place, reason = None, None, ''
      try:
        state, place = self._read(step, like)
      except Exception as error:  # Whatever the storage layers raise on damaged files.
        reason = (str(error) or repr(error)).splitlines()[0]
      if parallel.all_agree(not reason):
        data.set_state(place)
        self._put_aside(unreadable)
        return step, state
      reason = reason or 'another process could not read it'
      logger.warning('Checkpoint %d in %s is left out: %s', step, self.directory, reason)
      unreadable.append(step)
    if unreadable:
      raise ValueError(
        f'no checkpoint in {self.directory} can be read (reasons above); restore the files, or '
        'name another --model_dir'
      )
    return None

  def restore(self, step: int, like: Any) -> Any:
    """Return the state of a step, as NumPy arrays in the form of `like`.

    Raises:
      ValueError: if it cannot be read, or does not match its checksum.
    """
    try:
      return self._read(step, like)[0]
    except Exception as error:
      raise ValueError(
        f'checkpoint {step} in {self.directory} cannot be read: {error}. Remove its directory to '
        'go without it'
      ) from error

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Return state and place in the data."""
    state, extra = read(self._manager, step, like)
    return state, extra['data']

  def _put_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if parallel.is_primary():
      for step in steps:
        path = os.path.join(self.directory, str(step))
        os.rename(path, f'{path}.unreadable-{time.time_ns()}')
    parallel.all_agree(True)  # Nobody looks before this is done.
    self._manager.reload()
    self._metrics = self._read_metrics()

  def _read_metrics(self) -> dict[int, dict[str, float] | None]:
    return {step: self._manager.metrics(step) for step in self._manager.all_steps()}

  def best_step(self) -> int | None:
    """Return the step with the best validation metric (of equals the last), or None."""
    return best_step(self._manager)

  def is_wanted(self, metrics: dict[str, float]) -> bool:
    """Return whether a checkpoint would be kept as the best, or as the first to reach a figure."""
    found = [of_step for of_step in self._metrics.values() if of_step is not None]
    is_best = all(ranking(metrics) >= ranking(of_step) for of_step in found)
    reached = max((of_step['accuracy'] for of_step in found), default=0.0)
    return is_best or any(reached < figure <= metrics['accuracy'] for figure in self._figures)

  def wait(self) -> None:
    """Return once everything is on disk.

    Raises:
      OSError: if that cannot be.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError) as error:  # The storage's own are ValueErrors.
      free = shutil.disk_usage(self.directory).free / 2**20
      # Behind the names of its files.
      reason = (str(error) or repr(error)).splitlines()[0].split('": ')[-1]
      raise OSError(
        f'a checkpoint cannot be written to {self.directory}, where {free:.0f} MiB are free: '
        f'{reason}. Make room there; the same command goes on from the last one that was'
      ) from error

  def close(self) -> None:
    """Wait and release threads; raises what `wait` does."""
    with self._writing():
      self._manager.close()
