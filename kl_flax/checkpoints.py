"""Reading checkpoints: which one is best, and whether it is what was written.

A checkpoint holds the items `state` (arrays) and `extra` (JSON, with the checksum of the arrays).
`lra_tasks` writes them; here is what a reader needs without it.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# What ranks checkpoints: a validation metric that is stored with those that were evaluated.
METRIC = 'accuracy'


def ranking(metrics: dict[str, float]) -> float:
  """Return the figure by which checkpoints are compared; larger is better."""
  return metrics[METRIC]


def best_step(manager: ocp.CheckpointManager) -> int | None:
  """Return the step with the best validation metric (of equals the last), or None."""
  scores = {}
  for step in manager.all_steps():
    metrics = manager.metrics(step)
    if metrics is not None:
      scores[step] = (ranking(metrics), step)
  return max(scores, key=scores.get) if scores else None


def read(manager: ocp.CheckpointManager, step: int, like: Any = None) -> tuple[Any, dict[str, Any]]:
  """Return state and extra of one step.

  Args:
    manager: of the directory.
    step: one of `manager.all_steps()`.
    like: tree of arrays that gives the state its form; None for plain dictionaries and lists.

  Raises:
    ValueError: if the state does not match its checksum.
    Exception: whatever the storage layers raise on damaged files.
  """
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


def checksum(state: Any) -> int:
  """Return the CRC-32 of all leaves, with their names and shapes, in the order of their names.

  The same whether the state is made of dataclasses and tuples or of dictionaries and lists.
  """
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  value = 0
  for name, leaf in sorted(leaves.items()):
    value = zlib.crc32(f'{name} {leaf.shape} {leaf.dtype}'.encode(), value)
    value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
  return value
