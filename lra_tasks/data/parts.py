"""Training batches in parts: rows of like lengths stand together, and are padded to no more.

A review has 1,300 bytes, a batch of them 4,000 columns: two thirds of the work would be padding.
The step over all parts is that over the whole batch: losses are sums over examples, and masked
positions change nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Batch = dict[str, np.ndarray]  # `pipeline` tells its form.

# Shares of the rows, the shortest first.
_SHARES = ((1,), (1 / 2, 1 / 2), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 4, 1 / 4, 1 / 4))
# In multiplications of the forward pass on one device; an H200 trains with 3e13 of them a second.
# A part costs about a millisecond, however small it is, and 12 s to trace and compile: on Text a
# step in three parts takes 11.1 ms, of which some 7.7 are its positions at the rate of whole
# batches, and 37 s before the first.
_OVERHEAD = 3.3e10
_COMPILATION = 3.6e14
# Positions of a part, those that the model adds included, are a multiple of this: fused attention
# works on tiles of it.
_MULTIPLE = 64
# Share of the batches of which a part has room for all its rows; the others stay whole.
_FITTING = 0.99
_SIMULATED = 1000


@dataclasses.dataclass(frozen=True)
class Parts:
  """How the rows of a batch are divided, once they are sorted by their lengths.

  Attributes:
    rows: of each part.
    lengths: what each part is padded to; they rise.
  """

  rows: tuple[int, ...]
  lengths: tuple[int, ...]

  def cut(self, batch: Batch) -> tuple[Batch, ...]:
    """Return the parts of a batch of `pipeline.collate`; the whole of it where a row is too long.

    >>> batch = {'inputs': np.array([[1, 2, 3], [4, 0, 0]]), 'lengths': np.array([3, 1])}
    >>> [part['inputs'].tolist() for part in Parts((1, 1), (1, 3)).cut(batch)]
    [[[4]], [[1, 2, 3]]]
    >>> [part['inputs'].tolist() for part in Parts((1, 1), (1, 2)).cut(batch)]
    [[[1, 2, 3], [4, 0, 0]]]
    """
    lengths = batch['lengths'].reshape(len(batch['lengths']), -1).max(axis=1)  # Of pairs, too.
    order = np.argsort(lengths, kind='stable')
    places = np.split(order, np.cumsum(self.rows)[:-1])
    pairs = list(zip(places, self.lengths, strict=True))
    if any(lengths[rows[-1]] > length for rows, length in pairs):
      return (batch,)
    return tuple(
      {name: value[rows] for name, value in batch.items()}
      | {'inputs': batch['inputs'][rows][..., :length]}
      for rows, length in pairs
    )


def plan(
  lengths: np.ndarray,
  *,
  batch_size: int,
  max_length: int,
  num_steps: int,
  num_weights: int,
  num_added: int = 0,
  num_devices: int = 1,
) -> Parts | None:
  """Return the parts that make a training shortest, compilation included; None for whole batches.

  Args:
    lengths: of a sample of the training examples, of pairs the longer ones, int[n].
    batch_size: rows of a batch.
    max_length: that whole batches are padded to.
    num_steps: of the training.
    num_weights: of the model that each position is multiplied with; of pairs, twice.
    num_added: positions that the model adds to each sequence, as CLS.
    num_devices: that share the rows of each part.
  """
  draws = np.random.RandomState(0).choice(np.minimum(lengths, max_length), (_SIMULATED, batch_size))
  draws.sort(axis=1)
  work = num_weights / num_devices
  whole = batch_size * max_length * work + _OVERHEAD
  costs: dict[Parts | None, float] = {None: num_steps * whole + _COMPILATION}
  for shares in _SHARES:
    rows = tuple(int(share * batch_size) for share in shares)
    if sum(rows) < batch_size or any(count < 1 or count % num_devices for count in rows):
      continue
    longest = draws[:, np.cumsum(rows) - 1]
    needed = np.quantile(longest, _FITTING, axis=0, method='higher')
    tiles = -(-(needed + num_added) // _MULTIPLE)
    padded = np.minimum(tiles * _MULTIPLE - num_added, max_length)
    fitting = np.mean(np.all(longest <= padded, axis=1))
    cost = np.dot(rows, padded) * work + len(rows) * _OVERHEAD
    # Whole batches are another program.
    costs[Parts(rows, tuple(padded.tolist()))] = (
      num_steps * (fitting * cost + (1 - fitting) * whole) + (len(rows) + 1) * _COMPILATION
    )
  return min(costs, key=costs.get)


def describe(parts: Parts, batch_size: int, max_length: int) -> str:
  """Return a line about parts for the log.

  >>> describe(Parts((2, 1), (64, 100)), 3, 100)
  'Batches are computed in parts, 2 x 64 and 1 x 100 positions: 76 % of whole ones, the same steps.'
  """
  text = ' and '.join(
    f'{rows} x {length:,}' for rows, length in zip(parts.rows, parts.lengths, strict=True)
  )
  share = np.dot(parts.rows, parts.lengths) / (batch_size * max_length)
  return (
    f'Batches are computed in parts, {text} positions: {100 * share:.0f} % of whole ones, the same '
    'steps.'
  )
