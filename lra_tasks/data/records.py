"""Prepared data as a sequence of examples, read from disk on demand.

TFDS' own source starts threads for every batch that it reads, and decodes for longer than it reads.
The features of our tasks are of three kinds only, so each gets a function that gives the same
values at once.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

_parse = tf_example_pb2.Example.FromString


class Records(Sequence):
  """The examples of a split, decoded as TFDS does: a dictionary of arrays and integers each.

  Nothing but the place of each example is held in memory. Threads may share one object.

  Args:
    files: `filename`, `skip` and `take` of each array_record file.
    features: of the data set: integers, tensors of integers, tensors stored as bytes.

  Raises:
    OSError: if a file cannot be read.
    TypeError: for any other feature.
  """

  def __init__(self, files: Sequence[Any], features: Mapping[str, Any]) -> None:
    self._decoders = {name: _make_decoder(name, feature) for name, feature in features.items()}
    self._readers = [_open(file.filename) for file in files]
    self._ends = list(itertools.accumulate(file.take for file in files))
    # What to add to the index of an example for its place in its file.
    self._shifts = [
      file.skip + file.take - end for file, end in zip(files, self._ends, strict=True)
    ]

  def __len__(self) -> int:
    """Return the number of examples."""
    return self._ends[-1]

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Return one example."""
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return several examples, which are read together.

    Raises:
      IndexError: for an index below 0 or beyond the end.
    """
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(f'there is no example {index}: there are {len(self)}, counted from 0')
      rows.setdefault(bisect.bisect_right(self._ends, index), []).append(row)
    found: list[Any] = [None] * len(indices)
    for file, members in rows.items():
      places = [indices[row] + self._shifts[file] for row in members]
      for row, record in zip(members, self._readers[file].read(places), strict=True):
        found[row] = self._decode(record)
    return found

  def __iter__(self) -> Iterator[dict[str, Any]]:
    """Return one example after the other."""
    return (self[i] for i in range(len(self)))

  def _decode(self, record: bytes) -> dict[str, Any]:
    values = _parse(record).features.feature
    return {name: decode(values[name]) for name, decode in self._decoders.items()}


def _open(path: str) -> Any:
  # Nothing beyond what is asked for is read: the order is random.
  reader = array_record_module.ArrayRecordReader(
    path, options='readahead_buffer_size:0,max_parallelism:0', file_reader_buffer_size=2**15
  )
  if not reader.ok():
    raise OSError(f'{path} cannot be read, or is no array_record file')
  return reader


def _make_decoder(name: str, feature: Any) -> Callable[[Any], Any]:
  """Return the function from a protobuf value to what TFDS decodes it to."""
  # Not `isinstance`: derived classes decode in ways of their own.
  plain = type(feature) in (tfds.features.Tensor, tfds.features.Scalar)
  if plain and feature.shape.count(None) <= 1:
    dtype, encoding = np.dtype(feature.np_dtype), feature.to_json_content().encoding
    shape = tuple(-1 if size is None else size for size in feature.shape)
    if encoding == 'bytes' and shape == (-1,):
      return lambda value: np.frombuffer(value.bytes_list.value[0], dtype)
    if encoding == 'bytes':
      return lambda value: np.frombuffer(value.bytes_list.value[0], dtype).reshape(shape)
    if encoding == 'none' and dtype.kind in 'iu' and not shape:
      return lambda value: value.int64_list.value[0]
    if encoding == 'none' and dtype.kind in 'iu':
      return lambda value: np.array(value.int64_list.value, dtype).reshape(shape)
  raise TypeError(
    f'feature {name}: expected integers or a tensor of encoding bytes, found {feature}'
  )
