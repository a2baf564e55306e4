"""ListOps: nested list operations, generated, or read from LRA's files, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., "Long Range Arena: A Benchmark for Efficient
Transformers", ICLR 2021), a longer form of ListOps (Nangia and Bowman, "ListOps: A Diagnostic
Dataset for Latent Tree Learning", NAACL-SRW 2018): evaluate `[MAX 4 [MIN 2 3 ] 1 ]`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.tokenizers import SymbolTokenizer
from lra_tasks.console import show_progress
from lra_tasks.data import datasets, sources
from lra_tasks.data.listops_trees import (
  CLOSE,
  CLOSE_ID,
  DIGITS,
  FIRST_OPERATOR_ID,
  OPERATORS,
  SYMBOLS,
  ListOpsData,
  generate,
  split,
)

logger = logging.getLogger(__name__)

TOKENIZER = SymbolTokenizer(SYMBOLS, dropped=('(', ')'))

# The name of each split in LRA's files.
_TSV_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_TSV_HEADER = 'Source\tTarget'


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
    if not 1 <= ids[place] <= CLOSE_ID:
      raise ValueError(f'unknown token {ids[place]} at position {place + 1} of {len(ids)}')
    symbol = TOKENIZER.symbols[ids[place] - 1]
    if symbol in OPERATORS:
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
    if symbol == CLOSE:
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
    elif symbol in DIGITS:
      stack[-1][1].append(int(symbol))
    elif symbol != CLOSE:
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
  if target not in DIGITS:
    raise ValueError(f'expected a target of 0 to 9, found {target!r}')
  closed = np.count_nonzero(tokens == CLOSE_ID)
  opened = np.count_nonzero(tokens >= FIRST_OPERATOR_ID) - closed
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


_CITATION = """\
@inproceedings{tay2021long,
  title={Long Range Arena: A Benchmark for Efficient Transformers},
  author={Tay, Yi and Dehghani, Mostafa and Abnar, Samira and Shen, Yikang and Bahri, Dara and
    Pham, Philip and Rao, Jinfeng and Yang, Liu and Ruder, Sebastian and Metzler, Donald},
  booktitle={International Conference on Learning Representations},
  year={2021}
}"""


class ListOps(datasets.Builder):
  """ListOps of the Long Range Arena; see `make_builder`.

  Features: 'inputs', uint8[length], ids of `TOKENIZER`; 'target', an integer 0 to 9.
  """

  name = 'listops'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = ListOpsConfig(data=ListOpsData())
  DESCRIPTION = 'Nested list operations in prefix notation, classified by their result.'
  HOMEPAGE = 'https://github.com/google-research/long-range-arena'
  CITATION = _CITATION
  class_names = DIGITS
  # As bytes: half the time of TFDS' default, which makes each token a Python integer.
  inputs = {'inputs': tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes')}
  DISK_SPACE = '67 MB'

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    data = self.builder_config.data
    if data is None:
      return "The three files of LRA's release, as they are."
    return (
      f'Of the expressions in the order of generation, all different, the first {data.num_test} '
      f'are test, the next {data.num_valid} validation, the last {data.num_train} train.'
    )

  def _make_splits(self, dl_manager) -> dict[str, Iterable[tuple[np.ndarray, int]]]:
    del dl_manager
    config, data = self.builder_config, self.builder_config.data
    if data is None:
      paths, _ = _find_tsv(config.directory, config.task_name)
      return {name: read_tsv(path) for name, path in paths.items()}
    with show_progress('generating ListOps', data.num_examples) as advance:
      return split(generate(data, data.num_examples, advance), data)


def make_builder(
  data: ListOpsData, *, data_dir: str, source: str | None = None, task_name: str = 'basic'
) -> ListOps:
  """Return the builder of LRA's files, if there are any, or else of generated data.

  The files are `{task_name}_{train,val,test}.tsv` in `source`; without `source`, in `data_dir`
  itself, where LRA looks for them.

  Args:
    data: parameters of generated data; with the files, which are taken whole, sizes must be the
      default ones.
    data_dir: where prepared data is, or will be, kept.
    source: directory that must hold the files.
    task_name: prefix of the files; letters, digits and `._-`.

  Raises:
    ValueError: if the task name could not stand in a file name, or if there are files and `data`
      asks for other sizes than the default ones.
    FileNotFoundError: if one of the files is missing in `source`; if `data_dir` holds some but not
      all of them, or none of a `task_name` other than 'basic'.
  """
  if not re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]*', task_name):
    raise ValueError(
      f'task_name={task_name!r} must be the prefix of a file name, of letters, digits, '
      "'.', '_' and '-', such as 'basic'"
    )
  directory = source or data_dir
  paths, missing = _find_tsv(directory, task_name)
  if missing and (source or len(missing) < len(paths)):
    names = ', '.join(map(os.path.basename, missing))
    way_out = 'give the directory that holds all three'
    if not source:
      way_out += ', or move the others away to use generated data'
    raise FileNotFoundError(f'{directory} lacks {names}: {way_out}')
  if missing and task_name != 'basic':
    raise FileNotFoundError(
      f'there is no {task_name}_{{train,val,test}}.tsv in {data_dir}: name their directory by '
      '--source, or leave --task_name out to use generated data'
    )
  if missing:
    config = ListOpsConfig(data=data)
  else:
    _refuse_sizes(data, directory, task_name)
    digest = sources.digest_files(paths.values())
    config = ListOpsConfig(directory=directory, task_name=task_name, digest=digest)
    logger.info('ListOps: using the files %s_*.tsv in %s', task_name, directory)
  return ListOps(data_dir=data_dir, config=config)


def _refuse_sizes(data: ListOpsData, directory: str, task_name: str) -> None:
  """Raise ValueError if sizes are asked for that the files, taken whole, may not have."""
  for name in ('num_train', 'num_valid', 'num_test'):
    value, default = getattr(data, name), getattr(ListOpsData, name)
    if value != default:
      raise ValueError(
        f'{name}={value} has no effect on the files {task_name}_*.tsv in {directory}, which are '
        f'taken whole: leave --config.data.{name} at {default}, or name a directory without these '
        'files by --data_dir, and no --source, to use generated data'
      )


def is_benchmark(builder: ListOps) -> bool:
  """Return whether the data has LRA's size and lengths, whatever the seed or the files."""
  default, data = ListOpsData(), builder.builder_config.data
  if data is not None:
    return dataclasses.replace(data, seed=default.seed) == default
  sizes = [builder.info.splits[name].num_examples for name in ('train', 'validation', 'test')]
  return sizes == [default.num_train, default.num_valid, default.num_test]
