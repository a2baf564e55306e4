"""The expressions of ListOps: random trees, grown as arrays, with their answers.

A random tree has its root at depth 1. A node above `max_depth` is a digit with probability 3/4 and
else one of the operators MIN, MAX, MED (median, truncated) and SM (sum modulo 10), each as likely,
with 2 to `max_args` arguments, each number as likely; a node at `max_depth` is a digit. A tree is
kept if its length (1 for a digit, 2 for an operator and its closing bracket) lies strictly between
`min_length` and `max_length`, and if no tree before it was equal.

Trees are grown in numbered blocks, one array operation for one depth of all trees: first only the
shapes, which decide what is kept, then the tokens and the answers of what was kept. A block is a
pure function of (data, number of the block). It takes nothing from NumPy but the raw output of a
Philox bit generator, which NumPy promises not to change, and integer arithmetic: the same seed
gives the same data everywhere. 100,000 sequences take seconds on one core, so there are no worker
processes; threads were measured and gain nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DIGITS = tuple('0123456789')
OPERATORS = ('[MIN', '[MAX', '[MED', '[SM')
CLOSE = ']'

# Token i stands for SYMBOLS[i - 1]: 0 is padding.
SYMBOLS = (*DIGITS, *OPERATORS, CLOSE)
_FIRST_DIGIT_ID = 1
FIRST_OPERATOR_ID = _FIRST_DIGIT_ID + len(DIGITS)
CLOSE_ID = FIRST_OPERATOR_ID + len(OPERATORS)

# Rarer than this, and drawing by rejection would practically not end.
_MIN_ACCEPTANCE = 1e-6
_MAX_REPEATS = 100_000

# A word of 32 bits decides a node: the two high bits whether it is an operator, the others which.
_CHOICE_BITS = 30


@dataclasses.dataclass(frozen=True)
class ListOpsData:
  """What determines the generated data; the defaults are those of the Long Range Arena.

  Attributes:
    min_length: lengths are above this, at least 1.
    max_length: lengths are below this.
    max_depth: depth of the deepest digits, the root having depth 1.
    max_args: largest number of arguments of an operator.
    num_train: number of training examples.
    num_valid: number of validation examples.
    num_test: number of test examples.
    seed: 0 to 2**63 - 1.

  Raises:
    TypeError: if a field is no integer.
    ValueError: if a field is out of range, or if (next to) no tree has such a length.

  >>> ListOpsData(min_length=500, max_length=501)
  Traceback (most recent call last):
    ...
  ValueError: no length lies strictly between min_length=500 and max_length=501; ...
  """

  min_length: int = 500
  max_length: int = 2000
  max_depth: int = 10
  max_args: int = 10
  num_train: int = 96_000
  num_valid: int = 2_000
  num_test: int = 2_000
  seed: int = 0

  def __post_init__(self):
    """Check the fields."""
    for field, value in dataclasses.asdict(self).items():
      if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{field}={value!r} must be an integer, not {type(value).__name__}')
    least = {'min_length': 1, 'max_depth': 2, 'max_args': 2, 'seed': 0}
    least |= {'num_train': 1, 'num_valid': 1, 'num_test': 1}
    for field, bound in least.items():
      if getattr(self, field) < bound:
        raise ValueError(f'{field}={getattr(self, field)} must be at least {bound}')
    if self.seed >= 2**63:
      raise ValueError(f'seed={self.seed} must be below 2**63')
    if self.max_length - self.min_length < 2:
      raise ValueError(
        f'no length lies strictly between min_length={self.min_length} and '
        f'max_length={self.max_length}; set max_length to at least {self.min_length + 2}'
      )
    acceptance = float(length_probabilities(self)[self.min_length + 1 :].sum())
    if acceptance < _MIN_ACCEPTANCE:
      raise ValueError(
        f'trees of max_depth={self.max_depth} and max_args={self.max_args} have a length '
        f'strictly between min_length={self.min_length} and max_length={self.max_length} '
        f'with a probability below {_MIN_ACCEPTANCE:g}; allow deeper trees or more arguments, '
        'or widen the range of lengths'
      )

  @property
  def num_examples(self) -> int:
    """Number of examples of all splits together."""
    return self.num_train + self.num_valid + self.num_test


@functools.lru_cache(maxsize=16)
def _length_probabilities(max_length: int, max_depth: int, max_args: int) -> np.ndarray:
  # With p_d the generating function of the length of a node at depth d,
  #   q_d = z^2 / (A - 1) * sum_{k=2}^A p_{d+1}^k,   p_d = 3/4 z + 1/4 q_d,   p_D = z.
  size = 2 * max_length

  def operator(child: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(child, size)
    power, total = child, np.zeros(max_length)
    for _ in range(2, max_args + 1):
      power = np.fft.irfft(np.fft.rfft(power, size) * spectrum, size)[:max_length]
      total += power
    shifted = np.zeros(max_length)
    shifted[2:] = total[:-2] / (max_args - 1)
    return shifted

  value = np.zeros(max_length)
  value[1] = 1
  node = value
  for _ in range(max_depth - 2):
    last, node = node, 0.75 * value + 0.25 * operator(node)
    if np.abs(node - last).max() < 1e-15:  # Deeper trees are all too long.
      break
  result = np.clip(operator(node), 0, None)
  result.flags.writeable = False
  return result


def length_probabilities(data: ListOpsData) -> np.ndarray:
  """Return the probability of each length of a tree whose root is an operator.

  Exact up to rounding (1e-15), from the generating function of the tree; what is kept follows
  these probabilities, normalised over the lengths strictly between the bounds.

  Returns:
    float64[max_length], indexed by the length; longer trees have the rest.
  """
  return _length_probabilities(data.max_length, data.max_depth, data.max_args)


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
  """Many sequences and their answers in flat arrays; iterates over (tokens, target).

  Attributes:
    tokens: uint8[total], 1 to 15, sequence after sequence; i stands for `SYMBOLS[i - 1]`.
    offsets: int64[n + 1]; sequence i is `tokens[offsets[i]:offsets[i + 1]]`.
    targets: uint8[n], 0 to 9.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  targets: np.ndarray

  def __len__(self) -> int:
    """Return the number of sequences."""
    return self.targets.size

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    """Return (tokens uint8[length], target) of one sequence."""
    if not 0 <= index < len(self):
      raise IndexError(f'sequence {index} of {len(self)}')
    start, stop = self.offsets[index : index + 2]
    return self.tokens[start:stop], int(self.targets[index])

  @property
  def lengths(self) -> np.ndarray:
    """The lengths, int64[n]."""
    return np.diff(self.offsets)

  def part(self, start: int, stop: int) -> Sequences:
    """Return the sequences `start` to `stop - 1`; the arrays are views."""
    offsets = self.offsets[start : stop + 1]
    tokens = self.tokens[offsets[0] : offsets[-1]]
    return Sequences(tokens, offsets - offsets[0], self.targets[start:stop])


def _from_lengths(tokens: np.ndarray, lengths: np.ndarray, targets: np.ndarray) -> Sequences:
  offsets = np.zeros(lengths.size + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return Sequences(tokens, offsets, targets)


def _concatenate(parts: list[Sequences]) -> Sequences:
  arrays = zip(*((part.tokens, part.lengths, part.targets) for part in parts), strict=True)
  return _from_lengths(*map(np.concatenate, arrays))


# One block of trees. A level is all nodes of one depth of all trees, tree after tree and left to
# right, so the children of a node stand side by side in the next level, in the order of their
# parents, and counting them is enough to find them.


class _Level(NamedTuple):
  digits: np.ndarray  # uint8[n]; means nothing where the node is an operator.
  operators: np.ndarray  # intp[m], the nodes that are operators, ascending.
  kinds: np.ndarray  # intp[m], 0 to 3, index into OPERATORS.
  arguments: np.ndarray  # intp[m], the number of arguments.
  first: np.ndarray  # intp[m], place of the first argument in the next level.


def _draw(stream: np.random.Philox, num: int) -> np.ndarray:
  """Draw uint32[num], independent and uniform, the same on every machine."""
  raw = stream.random_raw((num + 1) // 2)
  return raw.astype('<u8', copy=False).view('<u4')[:num].astype(np.uint32, copy=False)


def _choose(words: np.ndarray, num: int) -> np.ndarray:
  """Map the low bits of uniform words to 0 .. num - 1; uint64, as `words` in shape.

  Each choice has probability 1 / num up to a relative error below num / 2**30: 4e-8 for the 36
  choices of an operator by default, far below what 10**8 nodes could show (1e-4).
  """
  low = words & np.uint32(2**_CHOICE_BITS - 1)
  return (low.astype(np.uint64) * np.uint64(num)) >> np.uint64(_CHOICE_BITS)


def _find_operators(words: np.ndarray, depth: int, max_depth: int) -> np.ndarray:
  """Return which nodes of a level are operators, intp[m]."""
  if depth == 1:  # A tree that is one digit is never kept: condition on that, exactly.
    return np.arange(words.size)
  if depth == max_depth:
    return np.arange(0)
  return np.flatnonzero((words >> np.uint32(_CHOICE_BITS)) == 0)  # Probability 1/4.


def _choose_operators(words: np.ndarray, max_args: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the kinds and the numbers of arguments of operators, two of intp[m]."""
  choice = _choose(words, len(OPERATORS) * (max_args - 1)).astype(np.intp)
  kinds, arguments = np.divmod(choice, max_args - 1)
  return kinds, arguments + 2


def _grow(data: ListOpsData, block: int) -> tuple[list[np.ndarray], np.ndarray]:
  """Grow the trees of a block and keep those of the right length.

  Returns:
    For each level the words of the kept trees' nodes, uint32[n]; and the lengths, int64[trees].
  """
  stream = np.random.Philox(key=np.array([data.seed, block], np.uint64))
  num_trees = min(max(2**21 // data.max_length, 16), 4096)  # Some 10 MB an array.
  counts = np.ones(num_trees, np.int64)  # Nodes of each tree at this depth.
  lengths = np.ones(num_trees, np.int64)  # As if the nodes not yet drawn were digits.
  levels = []
  for depth in range(1, data.max_depth + 1):
    words = _draw(stream, int(counts.sum()))
    levels.append((words, counts))
    operators = _find_operators(words, depth, data.max_depth)
    _, arguments = _choose_operators(words[operators], data.max_args)
    # Sums over the operators of each tree, as differences of running sums (trees may have none).
    stops = np.searchsorted(operators, np.cumsum(counts))
    children = np.diff(np.concatenate([[0], np.cumsum(arguments)])[stops], prepend=0)
    lengths = lengths + children + np.diff(stops, prepend=0)
    # A tree can only become longer: one that is too long already need not grow.
    counts = np.where(lengths < data.max_length, children, 0)
    if not counts.any():
      break
  kept = (lengths > data.min_length) & (lengths < data.max_length)
  return [words[np.repeat(kept, counts)] for words, counts in levels], lengths[kept]


def _read_level(words: np.ndarray, depth: int, data: ListOpsData) -> _Level:
  operators = _find_operators(words, depth, data.max_depth)
  kinds, arguments = _choose_operators(words[operators], data.max_args)
  digits = _choose(words, len(DIGITS)).astype(np.uint8)
  return _Level(digits, operators, kinds, arguments, np.cumsum(arguments) - arguments)


def _measure(levels: list[_Level]) -> list[np.ndarray]:
  """Return the length of every node's expression, for each level intp[n]."""
  sizes: list[np.ndarray] = []
  for level in reversed(levels):
    size = np.ones(level.digits.size, np.intp)
    if level.operators.size:
      size[level.operators] = 2 + np.add.reduceat(sizes[-1], level.first)
    sizes.append(size)
  return sizes[::-1]


def _evaluate_operators(level: _Level, values: np.ndarray) -> np.ndarray:
  """Apply the operators of a level to the values of the next, uint8[n] -> uint8[m]."""
  results = np.empty(level.operators.size, np.uint8)
  for num in np.unique(level.arguments):
    rows = np.flatnonzero(level.arguments == num)
    arguments = np.sort(values[level.first[rows, None] + np.arange(num)], axis=1)
    # Two middle values, which are one if num is odd; halving truncates, as int(median) does.
    median = (arguments[:, (num - 1) // 2] + arguments[:, num // 2]) // 2
    total = arguments.sum(axis=1, dtype=np.int64) % 10
    answers = np.stack([arguments[:, 0], arguments[:, -1], median, total.astype(np.uint8)])
    results[rows] = answers[level.kinds[rows], np.arange(rows.size)]
  return results


def _evaluate_trees(levels: list[_Level]) -> np.ndarray:
  """Return the value of every tree, uint8[trees]."""
  values = np.empty(0, np.uint8)
  for level in reversed(levels):
    below, values = values, level.digits.copy()
    values[level.operators] = _evaluate_operators(level, below)
  return values


def _write_tokens(levels: list[_Level], lengths: np.ndarray) -> np.ndarray:
  """Return the tokens of all trees one after another, uint8[total]."""
  tokens = np.empty(int(lengths.sum()), np.uint8)
  sizes = _measure(levels)
  positions = np.cumsum(lengths) - lengths
  for depth, level in enumerate(levels):
    symbols = level.digits + np.uint8(_FIRST_DIGIT_ID)
    symbols[level.operators] = level.kinds + FIRST_OPERATOR_ID
    tokens[positions] = symbols
    if not level.operators.size:
      break
    starts = positions[level.operators]
    tokens[starts + sizes[depth][level.operators] - 1] = CLOSE_ID
    # An argument starts after its operator and the arguments before it.
    before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
    positions = before + np.repeat(starts + 1 - before[level.first], level.arguments)
  return tokens


def _make_block(data: ListOpsData, block: int) -> Sequences:
  """Return the sequences of a block that have the right length, in order."""
  words, lengths = _grow(data, block)
  levels = [_read_level(words_, depth, data) for depth, words_ in enumerate(words, start=1)]
  return _from_lengths(_write_tokens(levels, lengths), lengths, _evaluate_trees(levels))


def _drop_repeats(sequences: Sequences, seen: set[bytes]) -> Sequences:
  """Drop the sequences that are in `seen` or come twice, and add the others to `seen`."""
  fresh = np.ones(len(sequences), bool)
  for i, (tokens, _) in enumerate(sequences):
    digest = hashlib.blake2b(tokens, digest_size=16).digest()
    fresh[i] = digest not in seen
    seen.add(digest)
  if fresh.all():
    return sequences
  lengths = sequences.lengths
  tokens = sequences.tokens[np.repeat(fresh, lengths)]
  return _from_lengths(tokens, lengths[fresh], sequences.targets[fresh])


def generate(
  data: ListOpsData, num: int, advance: Callable[[int], None] = lambda num: None
) -> Sequences:
  """Generate `num` different sequences and their answers.

  The first n of any number of sequences are the same, so a larger `num` only adds some.

  Args:
    data: bounds and seed; its numbers of examples play no part.
    num: how many.
    advance: called with each number of sequences done.

  Raises:
    ValueError: if there seem to be fewer than `num` different sequences.

  >>> tokens, target = generate(ListOpsData(min_length=4, max_length=10), 1)[0]
  >>> [SYMBOLS[token - 1] for token in tokens], target
  (['[MIN', '4', '7', '6', ']'], 4)
  """
  if num < 1:
    raise ValueError(f'num={num} must be at least 1')
  seen: set[bytes] = set()
  parts: list[Sequences] = []
  missing, repeats = num, 0
  blocks = itertools.count()
  while missing:
    candidates = _make_block(data, next(blocks))
    part = _drop_repeats(candidates, seen)
    part = part.part(0, min(len(part), missing))
    parts.append(part)
    missing -= len(part)
    advance(len(part))
    repeats = 0 if len(part) else repeats + len(candidates)
    if repeats > _MAX_REPEATS:
      raise ValueError(
        f'num={num} sequences asked for, but the last {repeats} drawn repeat the '
        f'{num - missing} found, so {data} allows hardly more; ask for fewer, or allow '
        'more lengths, depth or arguments'
      )
  return _concatenate(parts)


def split(sequences: Sequences, data: ListOpsData) -> dict[str, Sequences]:
  """Cut generated sequences into the splits 'train', 'validation' and 'test'.

  The test split comes first and the training split last: changing `num_train` leaves the other
  two as they are.

  Raises:
    ValueError: if the number of sequences is not that of `data`.
  """
  if len(sequences) != data.num_examples:
    raise ValueError(f'expected {data.num_examples} sequences, got {len(sequences)}')
  valid, train = data.num_test, data.num_test + data.num_valid
  return {
    'train': sequences.part(train, data.num_examples),
    'validation': sequences.part(valid, train),
    'test': sequences.part(0, valid),
  }
