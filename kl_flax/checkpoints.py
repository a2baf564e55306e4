"""Reading checkpoints: which one is best, and whether it is what was written.

A checkpoint holds the items `state` (arrays) and `extra` (JSON, with the checksum of the arrays).
`lra_tasks.runs.checkpoints` writes them; here is what a reader needs without it.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kl_flax.parameters import named_leaves


def ranking(metrics: dict[str, float]) -> tuple[bool, float]:
  """Return by what checkpoints are compared; larger is better.

  Args:
    metrics: of the validation, stored with the checkpoint: 'accuracy', and 'score' where the task
      is judged by something else. Of such a task, checkpoints of earlier versions have no score:
      they come last.

  >>> ranking({'accuracy': 0.7, 'loss': 0.6}) < ranking({'accuracy': 0.7, 'score': 0.1})
  True
  """
  return 'score' in metrics, metrics.get('score', metrics['accuracy'])


def best_step(manager: ocp.CheckpointManager) -> int | None:
  """Return the step with the best validation metric (of equals the last), or None."""
  scores = {}
  for step in manager.all_steps():
    metrics = manager.metrics(step)
    if metrics is not None:
      scores[step] = (ranking(metrics), step)
  return max(scores, key=scores.get) if scores else None


def quiet_storage() -> None:
  """Have Python leave out what comes of a read or write after it has failed; once is enough.

  The storage library closes its event loop at the first error. Each answer that is still under way
  would then be a traceback, and each other error that came meanwhile: hundreds of lines before
  ours, which no one can catch.
  """
  known = sys.unraisablehook
  if getattr(known, 'leaves_out_answers', False):
    return

  def hook(unraisable: Any) -> None:
    error = unraisable.exc_value
    # Of an object that was never closed, Python says the same, and which.
    closed = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
    if not closed or unraisable.object is not None:
      known(unraisable)

  hook.leaves_out_answers = True
  sys.unraisablehook = hook
  logging.getLogger('asyncio').addFilter(_is_not_of_storage)


def _is_not_of_storage(record: logging.LogRecord) -> bool:
  message = record.getMessage()
  return 'never retrieved' not in message or 'OCDBT database' not in message


def read(manager: ocp.CheckpointManager, step: int, like: Any = None) -> tuple[Any, dict[str, Any]]:
  """Return state and extra of one step.

  Args:
    manager: of the directory.
    step: one of `manager.all_steps()`.
    like: tree of arrays, or shapes, that gives the state its form; None for plain dictionaries and
      lists.

  Raises:
    ValueError: if the state does not match its checksum.
    Exception: whatever the storage layers raise on damaged files.
  """
  quiet_storage()
  if like is not None:
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
  items = manager.restore(
    step,
    args=ocp.args.Composite(state=ocp.args.StandardRestore(like), extra=ocp.args.JsonRestore()),
  )
  state = jax.tree.map(np.asarray, items['state'])
  if checksum(state) != items['extra']['crc32']:
    raise ValueError('its contents do not match their checksum')
  return state, items['extra']


def restore(model_dir: str, step: int | None = None) -> tuple[int, Any]:
  """Return step and state of a run's checkpoint, as plain dictionaries of NumPy arrays.

  Args:
    model_dir: the run's directory.
    step: which checkpoint; by default the best on validation, of equals the last.

  Raises:
    FileNotFoundError: if there is no checkpoint, or none of that step.
    ValueError: if the checkpoint is damaged.
  """
  directory = os.path.abspath(os.path.join(model_dir, 'checkpoints'))
  options = ocp.CheckpointManagerOptions(best_fn=ranking, create=False)
  with ocp.CheckpointManager(directory, options=options) as manager:
    steps = sorted(manager.all_steps()) if os.path.isdir(directory) else []
    if not steps:
      raise FileNotFoundError(
        f'{model_dir} holds no checkpoint: a training that has not ended writes one if it runs on; '
        'of one that has, they were deleted, or not copied with its other files'
      )
    step = step if step is not None else best_step(manager) or steps[-1]
    if step not in steps:
      raise FileNotFoundError(f'{model_dir} has no checkpoint of step {step}, only {steps}')
    try:
      return step, read(manager, step)[0]
    except Exception as error:  # Whatever the storage layers raise on damaged files.
      others = [other for other in steps if other != step]
      hint = f'; there are others, of the steps {others}' if others else ''
      raise ValueError(f'checkpoint {step} of {model_dir} cannot be read: {error}{hint}') from error


def has_checkpoint(model_dir: str | os.PathLike[str]) -> bool:
  """Return whether a run's directory holds a complete checkpoint; nothing of it is read."""
  try:
    return any(name.isdigit() for name in os.listdir(os.path.join(model_dir, 'checkpoints')))
  except (FileNotFoundError, NotADirectoryError):
    return False


def checksum(state: Any) -> int:
  """Return the CRC-32 of all leaves, with their names and shapes, in the order of their names.

  The same whether the state is made of dataclasses and tuples or of dictionaries and lists.
  """
  value = 0
  for name, leaf in sorted(named_leaves(state).items()):
    leaf = np.asarray(leaf)
    value = zlib.crc32(f'{name} {leaf.shape} {leaf.dtype}'.encode(), value)
    value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
  return value
