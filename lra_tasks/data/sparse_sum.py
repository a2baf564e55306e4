"""Sums over relevant positions: the sparsity experiment of the KL-Transformer paper.

The task of section 4.2 and Appendix E.1 (Chowdhury et al., "On Learning the Transformer Kernel",
TMLR 2022): of pairs (v, a), value v of -1 or 1 and relevance a of 0 or 1, classify the sum of
v · a, which lies in -4 ... 4. The share of relevant positions says how sparse attention must be.

The paper biases values so "that no prefix has an absolute sum of more than 4". Here: wherever both
steps stay within ±4 a relevant value is a fair coin, and at ±4 it is the one that leads back.
Values of irrelevant positions, which change no sum, are fair coins. ±4 are then half as frequent as
the other sums in the long run; examples are drawn until there are equally many of all nine, as in
the paper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import SymbolTokenizer
from lra_tasks.data import datasets

LARGEST = 4
NUM_CLASSES = 2 * LARGEST + 1
# Value and relevance, ids 1 to 4. The paper embeds many-hot vectors (v = 1, v = -1, a) linearly, a
# vector for v plus one for a; a vector for each pair is that, and in each of its dimensions one
# degree of freedom more.
TOKENIZER = SymbolTokenizer(('+1', '-1', '+0', '-0'))

_BLOCK = 2**14  # Walks drawn at a time; another number gives other data.
_STREAMS = {'test': 0, 'validation': 1, 'train': 2}
_LEAST_PROBABILITY = 1e-4


@dataclasses.dataclass(frozen=True)
class SparseSumData:
  """What determines the data; by default the paper's, of medium sparsity.

  The paper has 200,000 examples, 80 % for training and the rest for validation. The test split is
  drawn beside them.

  Attributes:
    relevance: probability that a position counts, above 0, at most 1; the paper's are 0.1, 0.5 and
      0.9.
    length: of every sequence.
    num_train: number of training examples.
    num_valid: number of validation examples.
    num_test: number of test examples.
    seed: 0 to 2**63 - 1.

  Raises:
    TypeError: if a field is no number.
    ValueError: if a field is out of range, or if (next to) no sequence has one of the sums.

  >>> SparseSumData(relevance=1.0)
  Traceback (most recent call last):
    ...
  ValueError: of sequences with relevance=1.0 and length=200 fewer than 1 in 10,000 sum to -3; ...
  """

  relevance: float = 0.5
  length: int = 200
  num_train: int = 160_000
  num_valid: int = 40_000
  num_test: int = 20_000
  seed: int = 0

  def __post_init__(self):
    """Check the fields."""
    for field, value in dataclasses.asdict(self).items():
      kinds, kind = ((int, float), 'a number') if field == 'relevance' else (int, 'an integer')
      if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f'{field}={value!r} must be {kind}, not {type(value).__name__}')
    if not 0 < self.relevance <= 1:
      raise ValueError(f'relevance={self.relevance} must be above 0 and at most 1')
    for field in ('length', 'num_train', 'num_valid', 'num_test', 'seed'):
      least = 0 if field == 'seed' else 1
      if getattr(self, field) < least:
        raise ValueError(f'{field}={getattr(self, field)} must be at least {least}')
    if self.seed >= 2**63:
      raise ValueError(f'seed={self.seed} must be below 2**63')
    probabilities = sum_probabilities(self.relevance, self.length)
    if probabilities.min() < _LEAST_PROBABILITY:
      raise ValueError(
        f'of sequences with relevance={self.relevance} and length={self.length} fewer than 1 in '
        f'{1 / _LEAST_PROBABILITY:,.0f} sum to {probabilities.argmin() - LARGEST}; '
        'change relevance or length'
      )

  @property
  def sizes(self) -> dict[str, int]:
    """Number of examples by split."""
    return {'train': self.num_train, 'validation': self.num_valid, 'test': self.num_test}


def sum_probabilities(relevance: float, length: int) -> np.ndarray:
  """Return the probabilities of the sums -4 ... 4 before balancing, float64[9].

  >>> sum_probabilities(1.0, 2).tolist()
  [0.0, 0.0, 0.25, 0.0, 0.5, 0.0, 0.25, 0.0, 0.0]
  """
  found = np.zeros(NUM_CLASSES)
  found[LARGEST] = 1
  for _ in range(length):
    half = found[1:-1] / 2
    moved = np.concatenate([half, [0, 0]]) + np.concatenate([[0, 0], half])
    moved[[1, -2]] += found[[0, -1]]
    found = (1 - relevance) * found + relevance * moved
  return found


def draw(
  relevance: float, length: int, num: int, stream: np.random.Philox
) -> tuple[np.ndarray, np.ndarray]:
  """Return sequences as the walk makes them, not balanced.

  Raw words of Philox, which NumPy promises not to change, and integer arithmetic: the same stream
  gives the same sequences on every machine.

  Args:
    relevance: probability that a position counts, in [0, 1].
    length: of the sequences.
    num: how many.
    stream: of random words; one is taken for each position.

  Returns:
    Tokens, uint8[num, length], ids of `TOKENIZER`; and their sums, int8[num], in -4 ... 4.
  """
  # One position of all sequences is contiguous: the walk goes position by position.
  words = stream.random_raw(length * num).reshape(length, num)
  relevant = words >> np.uint64(1) < np.uint64(int(relevance * 2**63))
  negative = (words & np.uint64(1)).astype(bool)
  sums = np.zeros(num, np.int8)
  for counts, down in zip(relevant, negative, strict=True):
    down[counts & (sums == LARGEST)] = True
    down[counts & (sums == -LARGEST)] = False
    sums += np.where(counts, 1 - 2 * down.view(np.int8), 0).astype(np.int8)
  tokens = 1 + negative.view(np.uint8) + 2 * (~relevant).view(np.uint8)
  return np.ascontiguousarray(tokens.T), sums


def generate(data: SparseSumData, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Return the examples of a split, shuffled, of every class equally many up to one.

  Each split has a stream of its own: the size of one leaves the others as they are.

  Args:
    data: what determines them.
    split: 'train', 'validation' or 'test'.

  Returns:
    Tokens, uint8[n, length], and targets, int32[n]: the sum plus 4, 0 ... 8.
  """
  num = data.sizes[split]
  stream = np.random.Philox(key=np.array([data.seed, _STREAMS[split]], np.uint64))
  order = np.argsort(stream.random_raw(num), kind='stable')
  targets = (order % NUM_CLASSES).astype(np.int32)
  tokens = np.empty((num, data.length), np.uint8)
  # Sequences of a class take its places in the order in which they are drawn.
  missing = {target: np.flatnonzero(targets == target) for target in range(NUM_CLASSES)}
  while any(places.size for places in missing.values()):
    drawn, sums = draw(data.relevance, data.length, _BLOCK, stream)
    for target, places in missing.items():
      found = drawn[sums == target - LARGEST][: places.size]
      tokens[places[: len(found)]] = found
      missing[target] = places[len(found) :]
  return tokens, targets


def evaluate(source: str) -> int:
  """Return the sum of a sequence in the symbols of `TOKENIZER`, the oracle of the generator.

  Raises:
    ValueError: for an unknown symbol.

  >>> evaluate('+1 -0 +1 -1 +0 +1')
  2
  """
  values = {'+1': 1, '-1': -1, '+0': 0, '-0': 0}
  for symbol in source.split():
    if symbol not in values:
      raise ValueError(unknown_name('symbol', symbol, values))
  return sum(values[symbol] for symbol in source.split())


# The data set.


@dataclasses.dataclass(eq=False, kw_only=True)
class SparseSumConfig(tfds.core.BuilderConfig):
  """The data set of some parameters, all of which its name holds.

  Attributes:
    data: the parameters.

  >>> SparseSumConfig(data=SparseSumData()).name
  'r0.5_200_160000_40000_20000_s0'
  """

  name: str = ''
  data: SparseSumData = SparseSumData()

  def __post_init__(self):
    """Derive the name."""
    d = self.data
    self.name = (
      f'r{float(d.relevance)!r}_{d.length}_{d.num_train}_{d.num_valid}_{d.num_test}_s{d.seed}'
    )


_CITATION = """\
@article{chowdhury2022learning,
  title={On Learning the Transformer Kernel},
  author={Chowdhury, Sankalan Pal and Solomou, Adamos and Dubey, Avinava and Sachan, Mrinmaya},
  journal={Transactions on Machine Learning Research},
  year={2022}
}"""


class SparseSum(datasets.Builder):
  """Sums over relevant positions; see `make_builder`.

  Features: 'inputs', uint8[length], ids of `TOKENIZER`; 'target', an integer 0 to 8.
  """

  name = 'sparse_sum'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = SparseSumConfig()
  DESCRIPTION = 'Signs, some of which count, classified by the sum of those.'
  HOMEPAGE = 'https://arxiv.org/abs/2110.08323'
  CITATION = _CITATION
  class_names = tuple(str(total) for total in range(-LARGEST, LARGEST + 1))
  inputs = {'inputs': tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes')}
  DISK_SPACE = '47 MB'

  @property
  def variant(self) -> str:
    """The relevance: figures of different sparsities are not of one data set."""
    return f'{self.builder_config.data.relevance:g}'

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    return 'Every split is drawn by itself, with as many examples of each sum, up to one.'

  def _make_splits(self, dl_manager) -> dict[str, datasets.Examples]:
    del dl_manager
    data = self.builder_config.data
    return {
      split: datasets.Examples(size, functools.partial(_read, data, split))
      for split, size in data.sizes.items()
    }


def _read(data: SparseSumData, split: str) -> Iterator[Iterable]:
  return zip(*generate(data, split), strict=True)


def make_builder(
  data: SparseSumData,
  *,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
) -> SparseSum:
  """Return the builder of generated data; there are no files that it could be read from.

  Args:
    data: what determines the data.
    data_dir: where prepared data is, or will be, kept.
    source: must be None.
    task_name: 'sparse_sum' or None.

  Raises:
    ValueError: if a source or another task name is given.
  """
  if source:
    raise ValueError(f'--source={source}: sparse_sum is generated, leave --source out')
  if task_name not in (None, 'sparse_sum'):
    raise ValueError(unknown_name('task_name', task_name, ['sparse_sum']))
  return SparseSum(data_dir=data_dir, config=SparseSumConfig(data=data))


def is_benchmark(builder: SparseSum) -> bool:
  """Return False: the paper shows curves of the accuracy on this task, and no figures."""
  del builder
  return False
