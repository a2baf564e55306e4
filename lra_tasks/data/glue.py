"""GLUE: sentences and pairs of sentences to classify, as TFDS data sets.

Wang, Singh, Michael, Hill, Levy and Bowman, "GLUE: A Multi-Task Benchmark and Analysis Platform for
Natural Language Understanding", ICLR 2019: all of its tasks but STS-B, which is no classification.
The labels of its test sets are not public, so the test split here is the development set, as is
usual where GLUE is not submitted to. The table of them is `lra_tasks.data.glue_tasks`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from lra_tasks.data import datasets, glue_files
from lra_tasks.data.glue_files import Example
from lra_tasks.data.glue_tasks import GLUE_TASKS, GlueTask
from lra_tasks.data.tokenized import TokenizedBuilder

logger = logging.getLogger(__name__)

VALIDATIONS = ('test', 'holdout')


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


_CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
    Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""


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
  def task(self) -> GlueTask:
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
    splits = glue_files.read_splits(
      config.source or glue_files.fetch(self.task, self.root), self.task
    )
    train = splits.pop('train')
    texts = (text.decode() for example in train for text in example.texts)
    self._train_tokenizer(texts, config.data.vocab_size)
    kept, held_out = datasets.hold_out(len(train), config.data.seed)
    splits = {
      'train': [train[i] for i in kept],
      'validation': [train[i] for i in held_out],
    } | splits
    return {name: list(map(_to_values, part)) for name, part in splits.items()}


def _to_values(example: Example) -> tuple:
  return *(np.frombuffer(text, np.uint8) for text in example.texts), example.label


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
  make = lambda **values: Glue(data_dir=data_dir, config=GlueConfig(task=task, data=data, **values))
  original = make()
  if source:
    path = glue_files.locate(source, row)
  else:
    if os.path.exists(original.data_dir):
      return original
    if prepared := datasets.find_prepared(original):
      return make(digest=prepared)
    path = os.path.join(data_dir, row.folder)
    if not os.path.isdir(path) or not glue_files.is_there(path, row):
      return original
  logger.info('GLUE: using the %s examples in %s', task, path)
  digest = glue_files.identify(path, row)
  if digest:
    logger.warning('GLUE: %s is not known to be the original: its contents name the data', path)
  return make(source=path, digest=digest)


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
    sizes = {name: len(part) for name, part in glue_files.read_splits(config.source, task).items()}
    train = sizes['train']
  return train in task.num_train and sizes['test'] == task.num_dev
