"""Batches: data source -> Grain -> padded arrays, the share of one process.

A batch is a dictionary of NumPy arrays with leading axis b, the process's share:
  inputs int32[b, max_length]   ids, 0 behind the end; of pairs, int32[b, 2, max_length]; shorter
                                where all of a batch fit (`Evaluation`, `parts.Parts`)
  lengths int32[b]              valid positions; of pairs, int32[b, 2]
  targets int32[b]              labels
  weights float32[b]            0 where a row only fills up the last batch
  truncated float32[b]          1 where a sequence was longer than max_length and was cut

Batches to predict masked tokens (`Masking`) have b rows of k predictions instead:
  positions int32[b, k]         what is to be predicted, in the sequence
  targets int32[b, k]           the ids that stood there
  weights float32[b, k]         0 where a sequence has fewer predictions, or fills up the last batch

Global batch k has the same rows for any number of processes: process p of P holds the p-th of P
equal, contiguous parts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from lra_tasks.data.parts import Batch, Parts

# Examples of one length, in batches of the longest, that make it worth a program of its own.
_LEAST_BATCHES = 32

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


@dataclasses.dataclass(frozen=True)
class Masking:
  """Masks tokens of a batch for a model to predict, as BERT does (Devlin et al. 2019).

  Of the ids of each sequence a share is chosen, at least one, special ones excepted. 80 % of the
  chosen ids become the mask, 10 % another id, drawn from all that are not special, 10 % stay.

  Attributes:
    vocab_size: ids of the data; the mask is the next one.
    num_special: ids 0 ... num_special − 1 are padding, separators and the like.
    max_length: of the sequences.
    rate: share that is chosen, in (0, 1).
    seed: what is chosen is a function of the seed and the number of the batch.
  """

  vocab_size: int
  num_special: int
  max_length: int
  rate: float = 0.15
  seed: int = 0

  @property
  def num_predictions(self) -> int:
    """Predictions of a row.

    >>> Masking(vocab_size=9, num_special=1, max_length=512).num_predictions
    77
    """
    return math.ceil(self.rate * self.max_length)

  def __call__(self, batch: Batch, number: int, rows: slice, batch_size: int) -> Batch:
    """Return a batch of `collate` with masked inputs, and what to predict.

    Args:
      batch: rows of a global batch; its labels are left out.
      number: of the global batch.
      rows: which ones of the global batch.
      batch_size: rows of the global batch.
    """
    inputs, lengths = batch['inputs'].copy(), batch['lengths']
    # Of NumPy's generators, the one that gives the same numbers in all versions. Numbers for all
    # rows, so that those of a process do not depend on how many processes there are.
    draw = np.random.RandomState([self.seed, number])
    predictions = batch_size, self.num_predictions
    places = draw.random_sample((batch_size, self.max_length))[rows, : inputs.shape[1]]
    kinds = draw.random_sample(predictions)[rows]
    others = draw.randint(self.num_special, self.vocab_size, predictions)[rows]
    valid = np.arange(inputs.shape[1]) < lengths[:, None]
    places[~valid | (inputs < self.num_special)] = 2
    candidates = np.sum(places < 2, axis=1, keepdims=True)
    count = np.minimum(np.maximum(np.round(self.rate * candidates), 1), candidates)
    positions = np.argsort(places, axis=1, kind='stable')[:, : self.num_predictions]
    missing = self.num_predictions - positions.shape[1]
    positions = np.pad(positions, ((0, 0), (0, missing)))
    chosen = np.arange(self.num_predictions) < count
    positions = np.where(chosen, positions, 0).astype(np.int32)
    targets = np.take_along_axis(inputs, positions, axis=1)
    replaced = np.where(kinds < 0.8, self.vocab_size, np.where(kinds < 0.9, others, targets))
    row, _ = np.nonzero(chosen)
    inputs[row, positions[chosen]] = replaced[chosen]
    weights = (chosen * batch['weights'][:, None]).astype(np.float32)
    predicted = {
      'positions': positions,
      'targets': np.where(chosen, targets, 0),
      'weights': weights,
    }
    return batch | {'inputs': inputs} | predicted


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
  masking: Masking | None = None,
  parts: Parts | None = None,
) -> grain.DatasetIterator:
  """Return an endless iterator, shuffled anew in every epoch, whose state can be saved.

  It yields the parts of each batch, a tuple.

  Args:
    source: records with `inputs` (of pairs, `inputs1` and `inputs2`) and `target`, read by
      `__getitems__`.
    batch_size: of the global batch.
    max_length: longer sequences are cut, as LRA does.
    seed: of the order.
    share: this process's part.
    num_inputs: 1, or 2 for pairs.
    masking: None trains on labels.
    parts: how batches are divided; None leaves them whole, one part.

  Raises:
    ValueError: if the source is smaller than one batch.
  """
  if len(source) < batch_size:
    raise ValueError(
      f'batch_size={batch_size} is larger than the training split ({len(source)} examples)'
    )
  rows, order = share.of(batch_size), Order(len(source), seed)

  def load(batch: int) -> tuple[Batch, ...]:
    # Records are read only for the rows of this process.
    indices = order[batch * batch_size + rows.start : batch * batch_size + rows.stop]
    whole = collate(source, indices.tolist(), max_length, num_inputs)
    if masking:
      whole = masking(whole, batch, rows, batch_size)
    return parts.cut(whole) if parts else (whole,)

  dataset = grain.MapDataset.range(sys.maxsize // batch_size).map(load)
  return iter(dataset.to_iter_dataset(_READ))


class Evaluation:
  """One pass over a split, as often as it is iterated over; every example counts once.

  Short sequences stand together in batches that are padded to a half or a quarter of `max_length`,
  and have two or four times the rows, where those are many: most reviews have a third of the
  positions that a batch of LRA has. Batches that are not full are filled up with rows of weight 0.

  Args:
    source: as in `train_batches`.
    batch_size: of the global batch.
    max_length: as in `train_batches`.
    share: this process's part.
    num_inputs: as in `train_batches`.
    num_batches: only the examples of so many batches, the first in the source's order; negative
      means all.
    trim: False pads all batches to max_length.
    masking: None evaluates labels.
  """

  def __init__(
    self,
    source: Sequence[Any],
    *,
    batch_size: int,
    max_length: int,
    share: Share,
    num_inputs: int = 1,
    num_batches: int = -1,
    trim: bool = True,
    masking: Masking | None = None,
  ) -> None:
    self._source, self._max_length, self._num_inputs = source, max_length, num_inputs
    self._share, self._batch_size, self._trim = share, batch_size, trim
    self._masking = masking
    self._count = len(source) if num_batches < 0 else min(len(source), num_batches * batch_size)

  def __iter__(self) -> Iterator[Batch]:
    """Return the batches."""
    return iter(grain.MapDataset.range(len(self._plan)).map(self._load).to_iter_dataset(_READ))

  def empty_batches(self) -> list[Batch]:
    """Return a batch of padding alone for each size that batches of all processes have."""
    sizes = dict.fromkeys((len(indices), length) for indices, length in self._plan)
    return [empty_batch(*size, self._num_inputs, self._masking) for size in sizes]

  def _load(self, batch: int) -> Batch:
    indices, length = self._plan[batch]
    rows = self._share.of(len(indices))
    found = collate(self._source, indices[rows], length, self._num_inputs)
    return self._masking(found, batch, rows, len(indices)) if self._masking else found

  @functools.cached_property
  def _plan(self) -> list[tuple[list[int | None], int]]:
    """Indices of the examples of each global batch, and what it is padded to."""
    groups = {self._max_length: list(range(self._count))}
    if self._trim and self._count >= 2 * _LEAST_BATCHES * self._batch_size:
      lengths = _read_lengths(self._source, range(self._count), self._num_inputs)
      groups = _by_length(lengths, self._max_length, _LEAST_BATCHES * self._batch_size)
    # Of masked ids the logits over a vocabulary are the larger part: no more of them.
    more = lambda length: 1 if self._masking else self._max_length // length
    sizes = {length: self._batch_size * more(length) for length in groups}
    return [
      (_filled(members[start : start + sizes[length]], sizes[length]), length)
      for length, members in groups.items()
      for start in range(0, len(members), sizes[length])
    ]


def empty_batch(
  batch_size: int, max_length: int, num_inputs: int = 1, masking: Masking | None = None
) -> Batch:
  """Return a batch of padding alone: arrays of the shapes and dtypes that real ones have."""
  found = collate((), [None] * batch_size, max_length, num_inputs)
  return masking(found, 0, slice(batch_size), batch_size) if masking else found


def sample_lengths(source: Sequence[Any], num_inputs: int, size: int = 4096) -> np.ndarray:
  """Return the lengths of some examples, always the same ones, int64[at most size]."""
  indices = Order(len(source), seed=0)[0 : min(size, len(source))]
  return _read_lengths(source, indices.tolist(), num_inputs)


def _read_lengths(source: Sequence[Any], indices: Sequence[int], num_inputs: int) -> np.ndarray:
  """Return the length of each example, of pairs the larger one, int64[n]."""
  names, lengths = input_names(num_inputs), []
  for start in range(0, len(indices), 1000):
    records = source.__getitems__(indices[start : start + 1000])
    lengths += [max(len(record[name]) for name in names) for record in records]
  return np.array(lengths)


def _by_length(lengths: np.ndarray, max_length: int, least: int) -> dict[int, list[int]]:
  """Return what to pad to -> examples that fit into it, but not into the next smaller one.

  A group of fewer than `least` joins the next longer one: each length is a program to compile.

  >>> _by_length(np.array([9, 3, 100, 2, 4, 3]), 10, least=2)
  {3: [1, 3, 5], 10: [0, 2, 4]}
  """
  groups, done = {}, np.zeros(len(lengths), bool)
  for length in (-(-max_length // 4), -(-max_length // 2)):
    fitting = (lengths <= length) & ~done
    if fitting.sum() >= least:
      groups[length] = np.flatnonzero(fitting).tolist()
      done |= fitting
  if not done.all():
    groups[max_length] = np.flatnonzero(~done).tolist()
  return groups


def _filled(indices: list[int], size: int) -> list[int | None]:
  return indices + [None] * (size - len(indices))


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
  # Views of texts have cut them themselves.
  batch['truncated'][rows] += [record.get('truncated', False) for record in records]
  batch['weights'][rows] = 1
  if num_inputs == 1:
    batch |= {name: batch[name][:, 0] for name in ('inputs', 'lengths')}
  return batch
