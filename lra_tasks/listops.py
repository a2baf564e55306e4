"""ListOps: nested list operations, generated, or read from LRA's files, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., "Long Range Arena: A Benchmark for Efficient
Transformers", ICLR 2021), a longer form of ListOps (Nangia and Bowman, "ListOps: A Diagnostic
Dataset for Latent Tree Learning", NAACL-SRW 2018): evaluate `[MAX 4 [MIN 2 3 ] 1 ]`.

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

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle as tfds_shuffle
from tensorflow_datasets.core.utils import tqdm_utils

from kl_flax.tokenizers import SymbolTokenizer
from lra_tasks import console

logger = logging.getLogger(__name__)

_DIGITS = tuple('0123456789')
_OPERATORS = ('[MIN', '[MAX', '[MED', '[SM')
_CLOSE = ']'

TOKENIZER = SymbolTokenizer((*_DIGITS, *_OPERATORS, _CLOSE), dropped=('(', ')'))

_FIRST_DIGIT_ID = 1
_FIRST_OPERATOR_ID = _FIRST_DIGIT_ID + len(_DIGITS)
_CLOSE_ID = _FIRST_OPERATOR_ID + len(_OPERATORS)

# The name of each split in LRA's files.
_TSV_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_TSV_HEADER = 'Source\tTarget'

# Rarer than this, and drawing by rejection would practically not end.
_MIN_ACCEPTANCE = 1e-6
_MAX_REPEATS = 100_000

# A word of 32 bits decides a node: the two high bits whether it is an operator, the others which.
_CHOICE_BITS = 30

_SECONDS_PER_LOG = 10


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
    tokens: uint8[total], ids 1 to 15 of `TOKENIZER`, sequence after sequence.
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
  kinds: np.ndarray  # intp[m], 0 to 3, index into _OPERATORS.
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
  choice = _choose(words, len(_OPERATORS) * (max_args - 1)).astype(np.intp)
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
  digits = _choose(words, len(_DIGITS)).astype(np.uint8)
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
    symbols[level.operators] = level.kinds + _FIRST_OPERATOR_ID
    tokens[positions] = symbols
    if not level.operators.size:
      break
    starts = positions[level.operators]
    tokens[starts + sizes[depth][level.operators] - 1] = _CLOSE_ID
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


def generate(data: ListOpsData, num: int, *, progress: bool = False) -> Sequences:
  """Generate `num` different sequences and their answers.

  The first n of any number of sequences are the same, so a larger `num` only adds some.

  Args:
    data: bounds and seed; its numbers of examples play no part.
    num: how many.
    progress: whether to show a progress bar, or to log if stderr is no terminal.

  Raises:
    ValueError: if there seem to be fewer than `num` different sequences.

  >>> tokens, target = generate(ListOpsData(min_length=4, max_length=10), 1)[0]
  >>> TOKENIZER.decode(tokens), target
  ('[MIN 4 7 6 ]', 4)
  """
  if num < 1:
    raise ValueError(f'num={num} must be at least 1')
  seen: set[bytes] = set()
  parts: list[Sequences] = []
  missing, repeats = num, 0
  blocks = itertools.count()
  with _show_progress('generating ListOps', num, progress) as advance:
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


# The written form.


def to_source(tokens: np.ndarray) -> str:
  """Write tokens in the form of LRA's files, with parentheses.

  An operator takes its arguments one by one, then the closing bracket, each such step in
  parentheses.

  Args:
    tokens: ids of `TOKENIZER`, integers [length]; no padding.

  Raises:
    ValueError: if the tokens are no ListOps expression.

  >>> to_source(TOKENIZER.encode('[MAX 2 [SM 3 4 ] ]'))
  '( ( ( [MAX 2 ) ( ( ( [SM 3 ) 4 ) ] ) ) ] )'
  """
  ids = np.asarray(tokens).tolist()
  # From the right, as the number of opening parentheses is that of the arguments to come.
  written: list[str] = []
  arguments: list[int] = []  # Of the operators that are open.
  for place in range(len(ids) - 1, -1, -1):
    if not 1 <= ids[place] <= _CLOSE_ID:
      raise ValueError(f'unknown token {ids[place]} at position {place + 1} of {len(ids)}')
    symbol = TOKENIZER.symbols[ids[place] - 1]
    if symbol in _OPERATORS:
      if not arguments or not arguments[-1]:
        missing = 'arguments' if arguments else 'closing bracket'
        raise ValueError(f'{symbol!r} at position {place + 1} of {len(ids)} has no {missing}')
      written.append(symbol)
      written.extend('(' * (arguments.pop() + 1))
      continue
    if arguments:
      arguments[-1] += 1
      written.append(')')
    elif written:
      raise ValueError(
        f'{symbol!r} at position {place + 1} of {len(ids)} stands before a complete expression'
      )
    if symbol == _CLOSE:
      arguments.append(0)
      written.append(')')
    written.append(symbol)
  if arguments or not written:
    raise ValueError(f'{len(arguments)} closing brackets without operator' if ids else 'no tokens')
  return ' '.join(reversed(written))


def _median(values: list[int]) -> int:
  ordered = sorted(values)
  return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


_FUNCTIONS: dict[str, Callable[[list[int]], int]] = {
  '[MIN': min,
  '[MAX': max,
  '[MED': _median,
  '[SM': lambda values: sum(values) % 10,
}


def evaluate(source: str) -> int:
  """Evaluate a written expression, with or without parentheses, to 0 .. 9.

  A stack machine in plain Python that shares nothing with the generator: its oracle.

  Raises:
    ValueError: if the expression is malformed; the message names the symbol and its position.

  >>> evaluate('( ( ( [MAX 2 ) ( ( ( [SM 8 ) 4 ) ] ) ) ] )')
  2
  >>> evaluate('[MED 1 4 ]')
  2
  """
  symbols = source.split()
  stack: list[tuple[str, list[int]]] = [('', [])]  # The last holds what the expression gives.
  parentheses = 0

  def fail(position: int, problem: str):
    symbol = repr(symbols[position - 1]) if symbols else 'nothing'
    raise ValueError(f'{symbol} at position {position} of {len(symbols)}: {problem}')

  for position, symbol in enumerate(symbols, start=1):
    if symbol in ('(', ')'):
      parentheses += 1 if symbol == '(' else -1
      if parentheses < 0:
        fail(position, 'closes a parenthesis that was not opened')
      continue
    if len(stack) == 1 and stack[0][1]:
      fail(position, 'the expression is already complete')
    if symbol in _FUNCTIONS:
      stack.append((symbol, []))
    elif symbol in _DIGITS:
      stack[-1][1].append(int(symbol))
    elif symbol != _CLOSE:
      fail(position, f'unknown symbol; known are: {" ".join(TOKENIZER.symbols)} ( )')
    elif len(stack) == 1:
      fail(position, 'closes an operator that was not opened')
    else:
      operator, values = stack.pop()
      if not values:
        fail(position, f'{operator} has no arguments')
      stack[-1][1].append(_FUNCTIONS[operator](values))
  if len(stack) > 1:
    fail(len(symbols), f'the expression ends within {stack[-1][0]}')
  if not stack[0][1]:
    fail(len(symbols), 'expected an expression')
  if parentheses:
    fail(len(symbols), f'{parentheses} parentheses are not closed')
  return stack[0][1][0]


# LRA's files.


def _parse_row(line: str) -> tuple[np.ndarray, int]:
  columns = line.split('\t')
  if len(columns) != 2:
    raise ValueError(f'expected 2 columns separated by a tab, found {len(columns)}: {line[:60]!r}')
  source, target = columns
  tokens = TOKENIZER.encode(source)
  if target not in _DIGITS:
    raise ValueError(f'expected a target of 0 to 9, found {target!r}')
  closed = np.count_nonzero(tokens == _CLOSE_ID)
  opened = np.count_nonzero(tokens >= _FIRST_OPERATOR_ID) - closed
  if not tokens.size or opened != closed:
    raise ValueError(
      'expected an expression with as many operators as closing brackets, '
      f'found {opened} and {closed} in {tokens.size} symbols'
    )
  return tokens, int(target)


def read_tsv(path: str | os.PathLike[str]) -> Iterator[tuple[np.ndarray, int]]:
  """Yield (tokens uint8[length], target 0 .. 9) of each row of one of LRA's files.

  Such a file (`basic_train.tsv`) has the header `Source`, tab, `Target`, and one row for each
  expression, in parentheses; the parentheses are dropped.

  Raises:
    ValueError: if the file is damaged; the message names file and line, what was expected and
      what was found.
  """
  path = os.fspath(path)

  def fail(line: int, problem: str):
    raise ValueError(
      f"{path}, line {line}: {problem}; replace the file, it is damaged or none of LRA's"
    )

  # What is no UTF-8 turns up as an unknown symbol, with its line.
  with open(path, encoding='utf-8', errors='backslashreplace', newline='') as file:
    header = file.readline()
    if header.rstrip('\r\n') != _TSV_HEADER:
      found = repr(header[:60]) if header else 'an empty file'
      fail(1, f'expected the header {_TSV_HEADER!r}, found {found}')
    number = 1
    for number, line in enumerate(file, start=2):
      try:
        yield _parse_row(line.rstrip('\r\n'))
      except ValueError as error:
        fail(number, str(error))
    if number == 1:
      fail(2, 'expected rows after the header, found none')


def write_tsv(path: str | os.PathLike[str], examples: Iterable[tuple[np.ndarray, int]]) -> None:
  """Write (tokens, target) pairs in the form of LRA's files, which `read_tsv` reads.

  An interrupted call leaves no file at `path`.

  Raises:
    ValueError: if tokens are no expression or a target is not in 0 .. 9.
  """
  path = os.fspath(path)
  unfinished = f'{path}.incomplete'
  with open(unfinished, 'w', encoding='ascii', newline='') as file:
    file.write(f'{_TSV_HEADER}\r\n')  # Python's csv.writer, which wrote LRA's files, ends so.
    for tokens, target in examples:
      if not 0 <= target <= 9:
        raise ValueError(f'expected a target of 0 to 9, got {target}')
      file.write(f'{to_source(tokens)}\t{target}\r\n')
  os.replace(unfinished, path)


def _find_tsv(directory: str, task_name: str) -> tuple[dict[str, str], list[str]]:
  """Return the paths of the three files by split, and which of them are missing."""
  paths = {
    name: os.path.join(directory, f'{task_name}_{infix}.tsv') for name, infix in _TSV_SPLITS.items()
  }
  return paths, [path for path in paths.values() if not os.path.isfile(path)]


def _digest_files(paths: Iterable[str]) -> str:
  """Return 16 hexadecimal digits that stand for the contents of the files."""
  digest = hashlib.sha256()
  for path in paths:
    with open(path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:16]


# The data set.


@dataclasses.dataclass(eq=False, kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
  """Where a data set comes from: generated from `data`, or read from files in `directory`.

  The name is derived and encodes all that determines the bytes of the data set, so changed
  parameters or files never meet data prepared from others.

  Attributes:
    data: parameters of generated data.
    directory: directory of LRA's files, instead of `data`.
    task_name: prefix of the files.
    digest: hexadecimal digest of the files' contents.

  >>> ListOpsConfig(data=ListOpsData()).name
  'generated_500_2000_d10_a10_96000_2000_2000_s0'
  """

  name: str = ''
  data: ListOpsData | None = None
  directory: str | None = None
  task_name: str = 'basic'
  digest: str = ''

  def __post_init__(self):
    """Derive the name."""
    if (self.data is None) == (self.directory is None):
      raise ValueError('a ListOpsConfig needs either data or directory')
    if self.data is None:
      self.name = f'tsv_{self.task_name}_{self.digest}'
    else:
      d = self.data
      self.name = (
        f'generated_{d.min_length}_{d.max_length}_d{d.max_depth}_a{d.max_args}'
        f'_{d.num_train}_{d.num_valid}_{d.num_test}_s{d.seed}'
      )


class ListOps(tfds.core.GeneratorBasedBuilder):
  """ListOps of the Long Range Arena; see `make_builder` and `prepare`.

  Features: 'inputs', uint8[length], ids of `TOKENIZER`; 'target', an integer 0 to 9.
  """

  name = 'listops'
  # To be raised whenever the same parameters give other bytes than before.
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}

  def __init__(self, *, file_format: Any = 'array_record', **kwargs: Any):
    """Build; array_record can be written and read without TensorFlow."""
    super().__init__(file_format=file_format, **kwargs)

  def _create_builder_config(self, builder_config, version):
    if builder_config is None:
      return ListOpsConfig(data=ListOpsData())
    if isinstance(builder_config, ListOpsConfig):
      return builder_config  # TFDS warns of any that the class does not list.
    return super()._create_builder_config(builder_config, version)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Nested list operations in prefix notation, classified by their result.',
      features=tfds.features.FeaturesDict(
        {
          # As bytes: half the time of TFDS' default, which makes each token a Python integer.
          'inputs': tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes'),
          'target': tfds.features.Scalar(dtype=np.int32),
        }
      ),
      homepage='https://github.com/google-research/long-range-arena',
      citation=_CITATION,
      disable_shuffling=True,  # Generated examples are independent; Grain shuffles.
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    config = self.builder_config
    if config.directory is None:
      sequences = generate(config.data, config.data.num_examples, progress=True)
      splits = split(sequences, config.data)
      return {name: self._generate_examples(name, part) for name, part in splits.items()}
    paths, _ = _find_tsv(config.directory, config.task_name)
    return {name: self._generate_examples(name, read_tsv(path)) for name, path in paths.items()}

  def _generate_examples(self, name: str, examples: Iterable[tuple[np.ndarray, int]]):
    total = len(examples) if isinstance(examples, Sequences) else None
    with _show_progress(f'writing ListOps {name}', total) as advance:
      for i, (tokens, target) in enumerate(examples):
        yield i, {'inputs': tokens, 'target': target}
        if i % 500 == 499:
          advance(500)

  # TFDS prints these two whatever the level of the log; `prepare` logs as much.
  def _log_download_bytes(self) -> None:
    pass

  def _log_download_done(self) -> None:
    pass


_CITATION = """\
@inproceedings{tay2021long,
  title={Long Range Arena: A Benchmark for Efficient Transformers},
  author={Tay, Yi and Dehghani, Mostafa and Abnar, Samira and Shen, Yikang and Bahri, Dara and
    Pham, Philip and Rao, Jinfeng and Yang, Liu and Ruder, Sebastian and Metzler, Donald},
  booktitle={International Conference on Learning Representations},
  year={2021}
}"""


def make_builder(
  data: ListOpsData, *, data_dir: str, source: str | None = None, task_name: str = 'basic'
) -> ListOps:
  """Return the builder of LRA's files, if there are any, or else of generated data.

  The files are `{task_name}_{train,val,test}.tsv` in `source`; without `source`, in `data_dir`
  itself, where LRA looks for them.

  Args:
    data: parameters of generated data.
    data_dir: where prepared data is, or will be, kept.
    source: directory that must hold the files.
    task_name: prefix of the files; letters, digits and `._-`.

  Raises:
    ValueError: if the task name could not stand in a file name.
    FileNotFoundError: if one of the files is missing in `source`, or if `data_dir` holds some
      but not all of them.
  """
  if not re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]*', task_name):
    raise ValueError(
      f'task_name={task_name!r} must be the prefix of a file name, of letters, digits, '
      "'.', '_' and '-', such as 'basic'"
    )
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  directory = os.path.abspath(os.path.expanduser(source)) if source else data_dir
  paths, missing = _find_tsv(directory, task_name)
  if missing and (source or len(missing) < len(paths)):
    names = ', '.join(map(os.path.basename, missing))
    way_out = 'give the directory that holds all three'
    if not source:
      way_out += ', or move the others away to use generated data'
    raise FileNotFoundError(f'{directory} lacks {names}: {way_out}')
  if missing:
    if task_name != 'basic':
      logger.warning(
        'ListOps: no %s_{train,val,test}.tsv in %s: generated data is used', task_name, data_dir
      )
    config = ListOpsConfig(data=data)
  else:
    digest = _digest_files(paths.values())
    config = ListOpsConfig(directory=directory, task_name=task_name, digest=digest)
    logger.info('ListOps: using the files %s_*.tsv in %s', task_name, directory)
  return ListOps(data_dir=data_dir, config=config)


def prepare(builder: ListOps) -> None:
  """Generate or read the data and write it to disk, unless that was done before.

  The data set appears under its final name when it is complete: a call that is interrupted
  leaves nothing there, and of two at a time the second finds what the first has written.

  Raises:
    FileExistsError: if the directory of the data set is there but incomplete.
    OSError: if the disk is full or the directory cannot be written.
    ValueError: if one of LRA's files is damaged.
  """
  if _is_prepared(builder):
    logger.info('ListOps: already prepared in %s', builder.data_path)
    return
  start = time.monotonic()
  logger.info('ListOps: preparing %s', builder.data_path)
  # TFDS writes a split of more than 1000 MiB through temporary files, for which it needs
  # TensorFlow; a split is in memory anyway. Its own progress bars are replaced by one of ours.
  # TODO: leave the limit alone once TFDS' shuffler works without TensorFlow.
  unbounded = _set_temporarily(tfds_shuffle, 'MAX_MEM_BUFFER_SIZE', sys.maxsize)
  try:
    with unbounded, _set_temporarily(tqdm_utils, '_active', False):
      builder.download_and_prepare()
  except (OSError, RuntimeError) as error:
    if _is_prepared(builder):
      logger.info('ListOps: another process has prepared %s', builder.data_path)
      return
    # The writer of array_record reports the system's errors as RuntimeError.
    if not isinstance(error, OSError) and not re.search('No space|quota|too large', str(error)):
      raise
    raise OSError(
      f'cannot prepare {builder.data_path}: {error}. Make room there (the '
      'default data takes 65 MB), see to the permissions, or choose another data_dir'
    ) from error
  seconds = time.monotonic() - start
  logger.info('ListOps: prepared %s in %.1f s', builder.data_path, seconds)


def is_benchmark(builder: ListOps) -> bool:
  """Return whether the data has LRA's size and lengths, whatever the seed or the files."""
  default, data = ListOpsData(), builder.builder_config.data
  if data is not None:
    return dataclasses.replace(data, seed=default.seed) == default
  sizes = [builder.info.splits[name].num_examples for name in ('train', 'validation', 'test')]
  return sizes == [default.num_train, default.num_valid, default.num_test]


def _is_prepared(builder: ListOps) -> bool:
  """Return whether the data set is on disk, and have `builder` know it."""
  path = pathlib.Path(builder.data_dir)
  if not path.exists():
    return False
  if (path / 'dataset_info.json').is_file():
    if not builder.info.splits:  # It was prepared after `builder` was made.
      builder.info.read_from_directory(builder.data_dir)
    splits = builder.info.splits.values()
    missing = [file for split_ in splits for file in split_.filepaths if not file.exists()]
  else:
    missing = [path / 'dataset_info.json']
  if missing:
    raise FileExistsError(
      f'{path} is incomplete: it lacks {", ".join(file.name for file in missing)}; '
      'delete the directory to have it prepared again'
    )
  return True


@contextlib.contextmanager
def _set_temporarily(module: Any, name: str, value: Any) -> Iterator[None]:
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)


@contextlib.contextmanager
def _show_progress(
  title: str, total: int | None, shown: bool = True
) -> Iterator[Callable[[int], None]]:
  """Yield a function to call with each number of examples done."""
  if not shown:
    yield lambda num: None
  elif console.CONSOLE.is_terminal:
    import rich.progress  # Only here: neither generating nor training needs it.

    with rich.progress.Progress(console=console.CONSOLE, transient=True) as bar:
      task = bar.add_task(title, total=total)
      yield lambda num: bar.advance(task, num)
  else:
    yield _make_logger(title, total)


def _make_logger(title: str, total: int | None) -> Callable[[int], None]:
  """Return a function that logs how far the work is, every few seconds."""
  done, logged = 0, time.monotonic()

  def advance(num: int) -> None:
    nonlocal done, logged
    done += num
    if time.monotonic() - logged >= _SECONDS_PER_LOG:
      logged = time.monotonic()
      logger.info('%s: %d%s', title, done, f' of {total}' if total else '')

  return advance
