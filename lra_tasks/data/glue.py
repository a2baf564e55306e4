"""GLUE: sentences and pairs of sentences to classify, as TFDS data sets.

Wang, Singh, Michael, Hill, Levy and Bowman, "GLUE: A Multi-Task Benchmark and Analysis Platform for
Natural Language Understanding", ICLR 2019: all of its tasks but STS-B, which is no classification.
The labels of its test sets are not public, so the test split here is the development set, as is
usual where GLUE is not submitted to. `GLUE_TASKS` is the table of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from lra_tasks.data import sources
from lra_tasks.data.tokenized import TokenizedBuilder
from lra_tasks.data.trees import ENDINGS, Tree

logger = logging.getLogger(__name__)

VALIDATIONS = ('test', 'holdout')
_URL = 'https://dl.fbaipublicfiles.com/glue/data'
_ENTAILMENT = ('entailment', 'not_entailment')

# Microsoft's own file of MRPC, which SentEval hosts, and GLUE's list of what of it is for
# development.
_MRPC_TRAIN, _MRPC_DEV = 'msr_paraphrase_train.txt', 'mrpc_dev_ids.tsv'
_MRPC_FILES = {
  _MRPC_TRAIN: (
    f'https://dl.fbaipublicfiles.com/senteval/senteval_data/{_MRPC_TRAIN}',
    '60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89',
  ),
  _MRPC_DEV: (
    f'{_URL}/{_MRPC_DEV}',
    '971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7',
  ),
}
_MRPC_IDS = ('#1 ID', '#2 ID')


class Example(NamedTuple):
  """One or two texts, UTF-8, and a label, 0 ... num_classes − 1."""

  texts: tuple[bytes, ...]
  label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One of GLUE's tasks.

  Attributes:
    name: of the task.
    folder: of its files, train.tsv and dev.tsv.
    texts: columns of the text or of both.
    label: column of the label.
    labels: what stands there, class 0 first.
    names: of the classes, where numbers stand there.
    columns: all columns, where the files have no header.
    num_train: examples of the original, or the numbers that readers count.
    num_dev: the same of the development set.
    metrics: GLUE's, names in `lra_tasks.metrics.METRICS`.
    archive: file name at GLUE's address; '' of MRPC, which is made of `_MRPC_FILES`.
    sha256: of the archive, as TFDS records it.
    contents: what `digest_splits` gives for the original, or '' where that is not known.
    dev: name of the development set.
    mismatched: name of a second development set, or ''.
    ragged: whether the original has rows without some of the columns, which all readers skip.
    description: what is to be told.
    citation: BibTeX, beside GLUE's.
  """

  name: str
  folder: str
  texts: tuple[str, ...]
  label: str = 'label'
  labels: tuple[str, ...] = ('0', '1')
  names: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  num_train: tuple[int, ...]
  num_dev: int
  metrics: tuple[str, ...] = ('accuracy',)
  archive: str = ''
  sha256: str = ''
  contents: str = ''
  dev: str = 'dev'
  mismatched: str = ''
  ragged: bool = False
  description: str
  citation: str

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, class 0 first."""
    return self.names or self.labels

  @property
  def files(self) -> dict[str, str]:
    """Names of the files of the splits, without ending."""
    files = {'train': 'train', 'test': self.dev}
    return files | ({'test_mismatched': self.mismatched} if self.mismatched else {})

  @property
  def url(self) -> str:
    """Where the data comes from."""
    return f'{_URL}/{self.archive}' if self.archive else _MRPC_FILES[_MRPC_TRAIN][0]

  @property
  def inputs(self) -> list[str]:
    """Names of the texts in records: inputs1, and of pairs inputs2."""
    return [f'inputs{k + 1}' for k in range(len(self.texts))]


@dataclasses.dataclass(frozen=True)
class GlueData:
  """What determines the data, within a task.

  Attributes:
    validation: 'test': the development set, which is also the test split, as is usual with GLUE;
      'holdout': the last 10 % of a seeded shuffle of the training examples.
    seed: of the shuffle.
    vocab_size: word pieces at most of the data set's own vocabulary, for models that are not
      pre-trained; see `kl_flax.wordpiece.train_wordpiece`.

  Raises:
    ValueError: for an unknown rule or a number out of its range.
  """

  validation: str = 'test'
  seed: int = 0
  vocab_size: int = 30_522

  def __post_init__(self) -> None:
    """Check the values."""
    if self.validation not in VALIDATIONS:
      raise ValueError(unknown_name('validation', str(self.validation), VALIDATIONS))
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed must lie in 0 .. 2**32 - 1, got {self.seed}')
    if not 200 <= self.vocab_size < 2**16:
      raise ValueError(f'vocab_size must lie in 200 .. 65535, got {self.vocab_size}')


# Files.


def read_examples(lines: Iterable[bytes], task: Task, path: str) -> Iterator[Example]:
  r"""Yield the examples of a table between tabs; no byte but tab and end of line means anything.

  Args:
    lines: those of the file; the first is the header, unless the task has none.
    task: which of GLUE's.
    path: what to call the file in messages.

  Raises:
    ValueError: if the header lacks a column, or if a row has another number of columns, a label
      that the task does not have, no text or no UTF-8; the message names the line.
  """
  skipped = 0
  for number, row in _read_rows(lines, task, path):
    if row is None or (task.ragged and not row[task.label]):
      skipped += 1
      continue
    label, *texts = (row[name] for name in (task.label, *task.texts))
    expected = ''
    if label.decode(errors='replace') not in task.labels:
      expected = (
        f'a label of {", ".join(task.labels)}, found {label[:40].decode(errors="replace")!r}'
      )
    elif not any(text.strip() for text in texts):  # One of a pair may be empty, as in QQP.
      expected = f'text in {" or ".join(task.texts)}, found none'
    if expected:
      raise ValueError(_damaged(task, path, number, expected))
    for text in texts:
      try:
        text.decode()
      except UnicodeDecodeError as error:
        raise ValueError(_damaged(task, path, number, f'UTF-8: {error}')) from None
    yield Example(tuple(texts), task.labels.index(label.decode()))
  if skipped:
    logger.info('GLUE: skipped %d rows of %s that lack columns', skipped, path)


def _read_rows(
  lines: Iterable[bytes], task: Task, path: str
) -> Iterator[tuple[int, dict[str, bytes] | None]]:
  """Yield number and values by column of each row; None where it lacks some and may."""
  columns = list(task.columns)
  for number, line in enumerate(lines, start=1):
    if number == 1:
      line = line.removeprefix(b'\xef\xbb\xbf')
    values = line.removesuffix(b'\n').removesuffix(b'\r').split(b'\t')
    if not columns:
      columns = [value.decode(errors='replace') for value in values]
      if missing := [name for name in (*task.texts, task.label) if name not in columns]:
        expected = f'columns {", ".join(missing)}, found {", ".join(columns)!r:.100}'
        raise ValueError(_damaged(task, path, number, expected))
      continue
    if len(values) != len(columns) and not task.ragged:
      expected = f'{len(columns)} columns between tabs, found {len(values)}: {line[:60]!r}'
      raise ValueError(_damaged(task, path, number, expected))
    lacking = len(values) < len(columns)
    yield number, None if lacking else dict(zip(columns, values, strict=False))


def _damaged(task: Task, path: str, number: int, expected: str) -> str:
  return f'{path}, line {number}: expected {expected}; replace it, from {task.url}'


def digest_splits(splits: Mapping[str, Sequence[Example]]) -> str:
  """Return hexadecimal digits that stand for texts and labels, whatever files they are from.

  It is the SHA-256 over the name of each split in a line, then a line with label and texts between
  tabs of each example.
  """
  digest = hashlib.sha256()
  for split, examples in splits.items():
    digest.update(f'{split}\n'.encode())
    for example in examples:
      digest.update(b'%d\t%s\n' % (example.label, b'\t'.join(example.texts)))
  return digest.hexdigest()


def read_splits(path: str, task: Task) -> dict[str, list[Example]]:
  """Return the examples of train, test (the development set) and, of MNLI, test_mismatched if any.

  Args:
    path: a directory that holds the task's folder; the folder; or an archive of either. Of MRPC,
      the folder may hold what it is made of instead.
    task: which of GLUE's.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if one is damaged.
  """
  tree = Tree(path)
  find = lambda name: _find(tree, task, name)
  if task.name == 'mrpc' and not find('train.tsv') and find(_MRPC_TRAIN):
    return _split_mrpc(tree, task)
  splits = {}
  for split, stem in task.files.items():
    name = find(f'{stem}.tsv')
    if name is None and stem == task.mismatched:
      continue
    if name is None:
      raise FileNotFoundError(_missing(path, task, f'{stem}.tsv'))
    with tree.open(name) as file:
      splits[split] = list(read_examples(file, task, tree.describe(name)))
  return _checked(splits, path)


def _split_mrpc(tree: Tree, task: Task) -> dict[str, list[Example]]:
  """Return MRPC's examples from Microsoft's file and GLUE's list, as GLUE's own script does."""
  names = {}
  for name in _MRPC_FILES:
    names[name] = _find(tree, task, name)
    if names[name] is None:
      raise FileNotFoundError(_missing(tree.path, task, name))
  path = tree.describe(names[_MRPC_TRAIN])
  with tree.open(names[_MRPC_DEV]) as file:
    dev = {tuple(line.split()) for line in file}
  with tree.open(names[_MRPC_TRAIN]) as file:
    lines = list(file)
  rows = [row for _, row in _read_rows(lines, task, path)]
  splits: dict[str, list[Example]] = {'train': [], 'test': []}
  for row, example in zip(rows, read_examples(lines, task, path), strict=True):
    ids = tuple(row.get(name, b'') for name in _MRPC_IDS)
    splits['test' if ids in dev else 'train'].append(example)
  return _checked(splits, tree.path)


def _checked(splits: dict[str, list[Example]], path: str) -> dict[str, list[Example]]:
  """Return them, if there is enough to train on, to hold out and to test."""
  for split, examples in splits.items():
    least = 10 if split == 'train' else 1
    if len(examples) < least:
      raise ValueError(
        f'{path}: expected at least {least} examples of {split}, found {len(examples)}; '
        'name another source'
      )
  return splits


def _find(tree: Tree, task: Task, name: str) -> str | None:
  """Return the name of a file in the task's folder, else beside nothing else, or None."""
  found = tree.find(f'{task.folder}/{re.escape(name)}')
  found = found or [path for path in tree.find(re.escape(name)) if '/' not in path]
  if len(found) > 1:
    raise ValueError(f'{tree.path} holds {" and ".join(found)}: remove all but one')
  return found[0] if found else None


def _missing(path: str, task: Task, name: str) -> str:
  urls = [task.url] if task.archive else [url for url, _ in _MRPC_FILES.values()]
  return (
    f'{path} lacks {task.folder}/{name}: fetch {" and ".join(urls)}, put it there'
    f'{"" if task.archive else f" in a folder {task.folder}"}, and name the directory by --source'
  )


# The data sets.


@dataclasses.dataclass(eq=False, kw_only=True)
class GlueConfig(tfds.core.BuilderConfig):
  """Which examples, and where they come from.

  The name is derived and encodes all that determines the bytes of the data set. The rule of
  validation is not part of it: both rules read the same files.

  Attributes:
    task: which of GLUE's.
    data: what determines the data.
    source: where the examples are read from; None downloads them.
    digest: digits that stand for their contents, or '' of the original data.

  >>> GlueConfig(data=GlueData()).name
  'cola_v30522_s0'
  """

  name: str = ''
  task: str = 'cola'
  data: GlueData = GlueData()
  source: str | None = None
  digest: str = ''

  def __post_init__(self):
    """Derive the name."""
    self.name = f'{self.task}_v{self.data.vocab_size}_s{self.data.seed}'
    if self.digest:
      self.name += f'_{self.digest}'


class Glue(TokenizedBuilder, skip_registration=True):
  """Sentences or pairs of one of GLUE's tasks; see `make_builder`.

  Features: 'inputs1' and, of pairs, 'inputs2', uint8[length], UTF-8; 'target', 0 ...
  num_classes − 1. `lra_tasks.data.tokenized.Tokenized` makes ids of them.
  """

  # TFDS has a data set of this name, hence not registered.
  name = 'glue'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = GlueConfig()
  HOMEPAGE = 'https://gluebenchmark.com'

  @property
  def task(self) -> Task:
    """The row of the table."""
    return GLUE_TASKS[self.builder_config.task]

  @property
  def DESCRIPTION(self) -> str:
    """What is to be told of the texts."""
    return self.task.description

  @property
  def CITATION(self) -> str:
    """BibTeX."""
    return f'{self.task.citation}\n{_CITATION}'

  @property
  def DISK_SPACE(self) -> str:
    """What the data takes, in words."""
    return 'at most 70 MB, and the archive at most 313 MB'

  @property
  def inputs(self) -> dict[str, tfds.features.FeatureConnector]:
    """Features of the texts."""
    feature = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes')
    return dict.fromkeys(self.task.inputs, feature)

  @property
  def num_classes(self) -> int:
    """Number of labels."""
    return len(self.task.labels)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the labels."""
    return self.task.class_names

  @property
  def reading(self) -> dict[str, str]:
    """What GLUE's usual protocol reads in place of the splits on disk."""
    if self.builder_config.data.validation == 'holdout':
      return {}
    return {'train': 'train+validation', 'validation': 'test'}

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    return (
      "train and validation are GLUE's train set, shuffled by seed "
      f"{self.builder_config.data.seed}; validation is the last 10 % of it. test is GLUE's "
      f"{self.task.dev} set. With data.validation='test', train and validation are trained on, and "
      'test serves for both. The vocabulary is that of train and validation.'
    )

  def _make_splits(self, dl_manager) -> Mapping[str, Iterable]:
    del dl_manager
    config = self.builder_config
    splits = read_splits(config.source or _fetch(self.task, self.root), self.task)
    train = splits.pop('train')
    texts = (text.decode() for example in train for text in example.texts)
    self._train_tokenizer(texts, config.data.vocab_size)
    # Of NumPy's generators, the one that gives the same numbers in all versions.
    order = np.random.RandomState(config.data.seed).permutation(len(train))
    kept, held_out = np.split(order, [len(train) - len(train) // 10])
    splits = {
      'train': [train[i] for i in kept],
      'validation': [train[i] for i in held_out],
    } | splits
    return {name: list(map(_to_values, part)) for name, part in splits.items()}


def _to_values(example: Example) -> tuple:
  return *(np.frombuffer(text, np.uint8) for text in example.texts), example.label


def _fetch(task: Task, directory: str) -> str:
  """Return where the original data lies after it was downloaded, unless it is there."""
  if task.archive:
    return sources.fetch(task.url, os.path.join(directory, task.archive), task.sha256)
  folder = os.path.join(directory, task.folder)
  for name, (url, sha256) in _MRPC_FILES.items():
    sources.fetch(url, os.path.join(folder, name), sha256)
  return folder


def make_builder(
  data: GlueData,
  *,
  task: str,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
) -> Glue:
  """Return the builder of a task's examples in `source`, or else of the original ones.

  Without `source`, the examples are those that are prepared already, those whose folder or archive
  lies in `data_dir`, or are downloaded to there.

  Args:
    data: what determines the data.
    task: one of `GLUE_TASKS`.
    data_dir: where prepared data is, or will be, kept.
    source: a directory that holds the task's folder (such as CoLA) or archive; the folder; or an
      archive of either.
    task_name: the task again, for commands that name data sets by a flag.

  Raises:
    ValueError: if the task is unknown, several sources are there, or the source is damaged.
    FileNotFoundError: if the source lacks a file.
  """
  if task not in GLUE_TASKS:
    raise ValueError(unknown_name('GLUE task', task, GLUE_TASKS))
  if task_name not in (None, task):
    raise ValueError(f'unknown task_name {task_name!r} of {task}: only {task!r} exists')
  row = GLUE_TASKS[task]
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  make = lambda **values: Glue(data_dir=data_dir, config=GlueConfig(task=task, data=data, **values))
  original = make()
  if source:
    path = _locate(os.path.abspath(os.path.expanduser(source)), row)
  else:
    if os.path.exists(original.data_dir):
      return original
    if prepared := _find_prepared(original):
      return make(digest=prepared)
    path = os.path.join(data_dir, row.folder)
    if not os.path.isdir(path) or _find(Tree(path), row, 'train.tsv') is None:
      return original
  logger.info('GLUE: using the %s examples in %s', task, path)
  digest = _identify(path, row)
  if digest:
    logger.warning('GLUE: %s is not known to be the original: its contents name the data', path)
  return make(source=path, digest=digest)


def _locate(source: str, task: Task) -> str:
  """Return the directory or archive that holds a task's files."""
  if not os.path.exists(source):
    raise FileNotFoundError(f'{source} does not exist: name a directory or an archive')
  if os.path.isfile(source) or not task.archive:
    return source
  if _find(Tree(source), task, 'train.tsv') is None:
    stem = os.path.join(source, task.folder)
    names = [os.path.join(source, task.archive), *(f'{stem}{ending}' for ending in ENDINGS)]
    found = [path for path in dict.fromkeys(names) if os.path.isfile(path)]
    return sources.the_only(found, source) or source
  return source


def _identify(path: str, task: Task) -> str:
  """Return '' for the original data, else digits that stand for the contents."""
  if os.path.isfile(path) and task.sha256 and sources.digest(path).hex() == task.sha256:
    return ''
  digest = digest_splits(read_splits(path, task))
  return '' if digest == task.contents else digest[:16]


def _find_prepared(original: Glue) -> str:
  """Return the digest of data that was prepared from a source; '' if there is none.

  Raises:
    ValueError: if there are several.
  """
  prefix = f'{original.builder_config.name}_'
  pattern = f'{prefix}*/{original.VERSION}'
  names = [path.parent.name for path in pathlib.Path(original.root, original.name).glob(pattern)]
  found = [name for name in names if re.fullmatch('[0-9a-f]{16}', name.removeprefix(prefix))]
  if len(found) > 1:
    raise ValueError(
      f'{original.root} holds {", ".join(sorted(found))}, prepared from several sources: name one '
      'by --source, or delete the others'
    )
  return found[0].removeprefix(prefix) if found else ''


def is_benchmark(builder: Glue) -> bool:
  """Return whether the data is all of the original, whatever seed and validation rule.

  Where only the checksum of the archive is on record, other files of as many examples pass.

  Raises:
    FileNotFoundError: if such data is neither prepared nor there.
  """
  config, task = builder.builder_config, builder.task
  if not config.digest:
    return True
  if task.contents:
    return False
  if builder.info.splits:
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    train = sizes['train'] + sizes['validation']
  else:
    sizes = {name: len(part) for name, part in read_splits(config.source, task).items()}
    train = sizes['train']
  return train in task.num_train and sizes['test'] == task.num_dev


# The table.

_CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
    Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""


def _cite(key: str, kind: str, **fields: str | int) -> str:
  lines = [f'  {name}={{{value}}}' for name, value in fields.items()]
  return '\n'.join([f'@{kind}{{{key},', ',\n'.join(lines), '}'])


GLUE_TASKS: dict[str, Task] = {
  task.name: task
  for task in [
    Task(
      name='sst2',
      folder='SST-2',
      names=('negative', 'positive'),
      texts=('sentence',),
      num_train=(67_349,),
      num_dev=872,
      archive='SST-2.zip',
      sha256='d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa',
      contents='39192d9d20ffef36ce2228d0482327ff9d870e6601ce977fc79d626956f97c62',
      description='Phrases of film reviews: negative (0) or positive (1)?',
      citation=_cite(
        'socher2013recursive',
        'inproceedings',
        title='Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank',
        author='Socher, Richard and Perelygin, Alex and Wu, Jean and Chuang, Jason and Manning, '
        'Christopher D. and Ng, Andrew Y. and Potts, Christopher',
        booktitle='Empirical Methods in Natural Language Processing',
        year=2013,
      ),
    ),
    Task(
      name='mrpc',
      folder='MRPC',
      texts=('#1 String', '#2 String'),
      label='Quality',
      names=('not_equivalent', 'equivalent'),
      num_train=(3668,),
      num_dev=408,
      metrics=('accuracy', 'f1'),
      contents='7a2d0bba146473fcc112a3d5ca6ecfadc92a6a2135c2a382701b248c63a1c667',
      description='Pairs of sentences from news: do they mean the same (1)?',
      citation=_cite(
        'dolan2005automatically',
        'inproceedings',
        title='Automatically Constructing a Corpus of Sentential Paraphrases',
        author='Dolan, William B. and Brockett, Chris',
        booktitle='International Workshop on Paraphrasing',
        year=2005,
      ),
    ),
    Task(
      name='qqp',
      folder='QQP',
      texts=('question1', 'question2'),
      label='is_duplicate',
      names=('not_duplicate', 'duplicate'),
      # Readers that take a carriage return for the end of a line lose three rows.
      num_train=(363_846, 363_849),
      num_dev=40_430,
      metrics=('accuracy', 'f1'),
      archive='QQP-clean.zip',
      sha256='40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0',
      ragged=True,
      description='Pairs of questions that users of Quora asked: do they mean the same (1)?',
      citation=_cite(
        'iyer2017first',
        'misc',
        title='First Quora Dataset Release: Question Pairs',
        author="Iyer, Shankar and Dandekar, Nikhil and Csernai, Korn{\\'e}l",
        year=2017,
      ),
    ),
    Task(
      name='mnli',
      folder='MNLI',
      texts=('sentence1', 'sentence2'),
      label='gold_label',
      labels=('entailment', 'neutral', 'contradiction'),
      num_train=(392_702,),
      num_dev=9815,
      archive='MNLI.zip',
      sha256='e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633',
      dev='dev_matched',
      mismatched='dev_mismatched',
      description='Premise and hypothesis: entailment (0), neutral (1) or contradiction (2)?',
      citation=_cite(
        'williams2018broad',
        'inproceedings',
        title='A Broad-Coverage Challenge Corpus for Sentence Understanding through Inference',
        author='Williams, Adina and Nangia, Nikita and Bowman, Samuel R.',
        booktitle='North American Chapter of the Association for Computational Linguistics',
        year=2018,
      ),
    ),
    Task(
      name='qnli',
      folder='QNLI',
      texts=('question', 'sentence'),
      labels=_ENTAILMENT,
      num_train=(104_743,),
      num_dev=5463,
      archive='QNLIv2.zip',
      sha256='e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5',
      description='Question and sentence: does the sentence hold the answer (0)?',
      citation=_cite(
        'rajpurkar2016squad',
        'inproceedings',
        title='{SQuAD}: 100,000+ Questions for Machine Comprehension of Text',
        author='Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy',
        booktitle='Empirical Methods in Natural Language Processing',
        year=2016,
      ),
    ),
    Task(
      name='wnli',
      folder='WNLI',
      names=_ENTAILMENT[::-1],
      texts=('sentence1', 'sentence2'),
      num_train=(635,),
      num_dev=71,
      archive='WNLI.zip',
      sha256='ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46',
      contents='295c8b55e6b8abd522a997186f6840e2d2ba7bff1bd21b9a46a2ca8daeb6d5a3',
      description='Two sentences: does the second one resolve the pronoun of the first right (1)?',
      citation=_cite(
        'levesque2012winograd',
        'inproceedings',
        title='The {W}inograd Schema Challenge',
        author='Levesque, Hector J. and Davis, Ernest and Morgenstern, Leora',
        booktitle='Principles of Knowledge Representation and Reasoning',
        year=2012,
      ),
    ),
    Task(
      name='rte',
      folder='RTE',
      texts=('sentence1', 'sentence2'),
      labels=_ENTAILMENT,
      num_train=(2490,),
      num_dev=277,
      archive='RTE.zip',
      sha256='6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee',
      contents='71852d25316afd13e5a9d04a103c034b05fbe85ea76b165002b05996a878749d',
      description='Premise and hypothesis: does the first entail the second (0)?',
      citation=_cite(
        'bentivogli2009fifth',
        'inproceedings',
        title='The Fifth {PASCAL} Recognizing Textual Entailment Challenge',
        author='Bentivogli, Luisa and Dagan, Ido and Dang, Hoa Trang and Giampiccolo, Danilo and '
        'Magnini, Bernardo',
        booktitle='Text Analysis Conference',
        year=2009,
      ),
    ),
    Task(
      name='cola',
      folder='CoLA',
      names=('unacceptable', 'acceptable'),
      texts=('sentence',),
      columns=('source', 'label', 'mark', 'sentence'),
      num_train=(8551,),
      num_dev=1043,
      metrics=('matthews',),
      archive='CoLA.zip',
      sha256='f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff',
      contents='757d55efc200c50838b47342e8d43ef84d49b9e9d72b4b1aad7949a823378f53',
      description='Sentences of linguistic literature: is it acceptable English (1)?',
      citation=_cite(
        'warstadt2019neural',
        'article',
        title='Neural Network Acceptability Judgments',
        author='Warstadt, Alex and Singh, Amanpreet and Bowman, Samuel R.',
        journal='Transactions of the Association for Computational Linguistics',
        year=2019,
      ),
    ),
  ]
}
