"""Batches: data source -> Grain -> padded arrays, the share of one process.

A batch is a dictionary of NumPy arrays with leading axis b, the process's share:
  inputs int32[b, max_length]   ids, 0 behind the end; of pairs, int32[b, 2, max_length]
  lengths int32[b]              valid positions; of pairs, int32[b, 2]
  targets int32[b]              labels
  weights float32[b]            0 where a row only fills up the last batch
  truncated float32[b]          1 where a sequence was longer than max_length and was cut

Global batch k has the same rows for any number of processes: process p of P holds the p-th of P
equal, contiguous parts.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

Batch = dict[str, np.ndarray]

# Threads, not worker processes: the state of the iterator must not depend on their number.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


@dataclasses.dataclass(frozen=True)
class Share:
  """The part of every global batch that this process reads: index of count."""

  index: int = 0
  count: int = 1

  def of(self, batch_size: int) -> slice:
    """Return the rows of a global batch; batch_size is a multiple of count."""
    size = batch_size // self.count
    return slice(self.index * size, (self.index + 1) * size)


class Order:
  """The endless order in which examples are trained on: every epoch is a shuffle of its own.

  A slice of it is that of the whole, wherever one begins: nothing is drawn one after the other.

  Args:
    size: number of examples.
    seed: of all shuffles, 0 to 2**32 - 1.

  >>> order = Order(3, seed=0)
  >>> sorted(order[3:6].tolist()), order[2:5].tolist() == order[0:5].tolist()[2:]
  ([0, 1, 2], True)
  """

  def __init__(self, size: int, seed: int) -> None:
    self._size, self._seed = size, seed
    # Threads read ahead at the border of two epochs.
    self._epoch = functools.lru_cache(maxsize=2)(self._shuffle)

  def __getitem__(self, places: slice) -> np.ndarray:
    """Return the indices of examples at places `start` to `stop`, int64[stop - start]."""
    epochs = range(places.start // self._size, -(-places.stop // self._size))
    first = epochs.start * self._size
    indices = np.concatenate([self._epoch(epoch) for epoch in epochs])
    return indices[places.start - first : places.stop - first]

  def _shuffle(self, epoch: int) -> np.ndarray:
    # Of NumPy's generators, the one that gives the same numbers in all versions.
    return np.random.RandomState([self._seed, epoch]).permutation(self._size)


def train_batches(
  source: Sequence[Any],
  *,
  batch_size: int,
  max_length: int,
  seed: int,
  share: Share,
  num_inputs: int = 1,
) -> grain.DatasetIterator:
  """Return an endless iterator, shuffled anew in every epoch, whose state can be saved.

  Args:
    source: records with `inputs` (of pairs, `inputs1` and `inputs2`) and `target`, read by
      `__getitems__`.
    batch_size: of the global batch.
    max_length: longer sequences are cut, as LRA does.
    seed: of the order.
    share: this process's part.
    num_inputs: 1, or 2 for pairs.

  Raises:
    ValueError: if the source is smaller than one batch.
  """
  if len(source) < batch_size:
    raise ValueError(
      f'batch_size={batch_size} is larger than the training split ({len(source)} examples)'
    )
  rows, order = share.of(batch_size), Order(len(source), seed)

  def load(batch: int) -> Batch:
    # Records are read only for the rows of this process.
    indices = order[batch * batch_size + rows.start : batch * batch_size + rows.stop]
    return collate(source, indices.tolist(), max_length, num_inputs)

  dataset = grain.MapDataset.range(sys.maxsize // batch_size).map(load)
  return iter(dataset.to_iter_dataset(_READ))


def eval_batches(
  source: Sequence[Any],
  *,
  batch_size: int,
  max_length: int,
  share: Share,
  num_inputs: int = 1,
  num_batches: int = -1,
) -> Iterator[Batch]:
  """Return one pass in order; the last batch is filled up with rows of weight 0.

  Args:
    source: as in `train_batches`.
    batch_size: of the global batch.
    max_length: as in `train_batches`.
    share: this process's part.
    num_inputs: as in `train_batches`.
    num_batches: stop after so many; negative means all.
  """
  needed = -(-len(source) // batch_size)
  if num_batches >= 0:
    needed = min(needed, num_batches)
  rows = share.of(batch_size)

  def load(batch: int) -> Batch:
    indices = range(batch * batch_size + rows.start, batch * batch_size + rows.stop)
    present = [i if i < len(source) else None for i in indices]
    return collate(source, present, max_length, num_inputs)

  return iter(grain.MapDataset.range(needed).map(load).to_iter_dataset(_READ))


def input_names(num_inputs: int) -> list[str]:
  """Return what the sequences of a record are called.

  >>> input_names(1), input_names(2)
  (['inputs'], ['inputs1', 'inputs2'])
  """
  return ['inputs'] if num_inputs == 1 else [f'inputs{k + 1}' for k in range(num_inputs)]


def collate(
  source: Sequence[Any], indices: Sequence[int | None], max_length: int, num_inputs: int = 1
) -> Batch:
  """Read records and pad them to one array; None stands for a row of weight 0."""
  size = len(indices)
  rows = np.array([row for row, index in enumerate(indices) if index is not None], np.intp)
  records = source.__getitems__([indices[row] for row in rows]) if rows.size else []
  names = input_names(num_inputs)
  inputs = np.zeros((size, num_inputs, max_length), np.int32)
  lengths = np.zeros((size, num_inputs), np.int32)
  for column, name in enumerate(names):
    sequences = [record[name] for record in records]
    lengths[rows, column] = [len(tokens) for tokens in sequences]
    for row, tokens in zip(rows, sequences, strict=True):
      inputs[row, column, : len(tokens)] = tokens[:max_length]
  batch = {
    'inputs': inputs,
    'lengths': np.minimum(lengths, max_length),
    'targets': np.zeros(size, np.int32),
    'weights': np.zeros(size, np.float32),
    'truncated': np.any(lengths > max_length, axis=1).astype(np.float32),
  }
  batch['targets'][rows] = [record['target'] for record in records]
  batch['weights'][rows] = 1
  if num_inputs == 1:
    batch |= {name: batch[name][:, 0] for name in ('inputs', 'lengths')}
  return batch
