"""Text: reviews and news, byte by byte, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., ICLR 2021) on the Large Movie Review Dataset
(Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011), known as IMDB: is a review
positive (1) or negative (0)? LRA's code also takes Yelp's reviews and AG's news, for which nothing
was published; its class map has no entry for them, and so it stops before it trains.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import ByteTokenizer
from lra_tasks.data import datasets, sources
from lra_tasks.data.text_sources import CORPORA, Corpus, Example, Rows

logger = logging.getLogger(__name__)

TOKENIZER = ByteTokenizer()

VALIDATIONS = ('holdout', 'test')
_PUBLISHED = 'imdb_reviews'  # What LRA's figures for Text are about.


@dataclasses.dataclass(frozen=True)
class TextData:
  """What determines the data, within a data set.

  Attributes:
    validation: 'holdout': the last 10 % of a seeded shuffle of the training examples; 'test': the
      test split, as LRA does for want of another, and all training examples are trained on.
    seed: of the shuffle.
    num_train: training examples, validation included; -1 for all. Of a source that holds more, the
      first ones; of film reviews, half of either class.
    num_test: the same of the test split.

  Raises:
    ValueError: for an unknown rule, or a size that is too small.
  """

  validation: str = 'holdout'
  seed: int = 0
  num_train: int = -1
  num_test: int = -1

  def __post_init__(self) -> None:
    """Check the values; the data set says how many there are."""
    if self.validation not in VALIDATIONS:
      raise ValueError(unknown_name('validation', str(self.validation), VALIDATIONS))
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed must lie in 0 .. 2**32 - 1, got {self.seed}')
    for name, least in (('num_train', 10), ('num_test', 2)):
      value = getattr(self, name)
      if value != -1 and value < least:
        raise ValueError(f'{name} must be at least {least}, or -1 for all, got {value}')


@dataclasses.dataclass(eq=False, kw_only=True)
class TextConfig(tfds.core.BuilderConfig):
  """Which texts, and where they come from.

  The name is derived and encodes all that determines the bytes of the data set. The rule of
  validation is not part of it: both rules read the same files.

  Attributes:
    corpus: the data set.
    data: what determines the data.
    source: where the texts are read from; None downloads them.
    digest: digits that stand for the contents of the source, or '' of the original data.
    num_train, num_test: examples of the corpus that are taken; derived.

  >>> TextConfig(data=TextData()).name
  'imdb_reviews_25000_25000_s0'
  """

  name: str = ''
  corpus: Corpus = CORPORA[_PUBLISHED]
  data: TextData = TextData()
  source: str | None = None
  digest: str = ''

  def __post_init__(self):
    """Derive name and sizes."""
    self.num_train = self.corpus.count('train', self.data.num_train)
    self.num_test = self.corpus.count('test', self.data.num_test)
    self.name = f'{self.corpus.name}_{self.num_train}_{self.num_test}_s{self.data.seed}'
    if self.digest:
      self.name += f'_{self.digest}'

  @property
  def is_complete(self) -> bool:
    """Whether all examples are taken."""
    return (self.num_train, self.num_test) == (self.corpus.num_train, self.corpus.num_test)


class Text(datasets.Builder):
  """Texts as the Long Range Arena reads them; see `make_builder`.

  Features: 'inputs', uint16[length], ids of `TOKENIZER`; 'target', 0 ... num_classes − 1.
  """

  name = 'text'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = TextConfig()
  # Byte 255 has id 256, no uint8. Ids, not bytes, as of every task: readers need not know.
  inputs = {'inputs': tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding='bytes')}

  @property
  def DESCRIPTION(self) -> str:
    """What the texts are."""
    return self.builder_config.corpus.description

  @property
  def HOMEPAGE(self) -> str:
    """Address of the original data."""
    return self.builder_config.corpus.homepage

  @property
  def CITATION(self) -> str:
    """BibTeX."""
    return self.builder_config.corpus.citation

  @property
  def num_classes(self) -> int:
    """Number of labels."""
    return self.builder_config.corpus.num_classes

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the labels."""
    return self.builder_config.corpus.class_names

  @property
  def variant(self) -> str:
    """LRA's name of the data set, unless it is the one that figures were published for."""
    name = self.builder_config.corpus.name
    return '' if name == _PUBLISHED else name

  @property
  def DISK_SPACE(self) -> str:
    """What the whole data set takes, in words."""
    return self.builder_config.corpus.disk_space

  @property
  def reading(self) -> dict[str, str]:
    """What LRA's rule of validation reads in place of the splits on disk."""
    if self.builder_config.data.validation == 'holdout':
      return {}
    return {'train': 'train+validation', 'validation': 'test'}

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    config = self.builder_config
    return (
      f"{config.corpus.split_rule(config.data.seed)} With data.validation='test', train and "
      'validation are trained on, and test serves for both.'
    )

  def _make_splits(self, dl_manager) -> dict[str, datasets.Examples]:
    del dl_manager
    config = self.builder_config
    source = config.source or config.corpus.fetch(self.root)
    splits = config.corpus.split(source, config.num_train, config.num_test, config.data.seed)
    return {
      name: datasets.Examples(len(part), functools.partial(_encode, part))
      for name, part in splits.items()
    }


def _encode(examples: Sequence[Example] | Rows) -> Iterator[tuple[np.ndarray, int]]:
  """Yield (ids, label), one by one: ids take twice the memory of bytes."""
  return ((TOKENIZER.encode(text), label) for text, label in examples)


def make_builder(
  data: TextData, *, data_dir: str, source: str | None = None, task_name: str = _PUBLISHED
) -> Text:
  """Return the builder of the texts in `source`, or else of the original ones.

  Without `source`, the texts are those that are prepared already, those that lie in `data_dir`,
  or are downloaded to there.

  Args:
    data: what determines the data.
    data_dir: where prepared data is, or will be, kept.
    source: the data set's folder or a tar archive of it, or a directory that holds either.
    task_name: LRA's name of the data set, one of `CORPORA`.

  Raises:
    ValueError: if the task name is unknown, the data set has fewer examples than asked for, or the
      source is damaged or a file that is no archive.
    FileNotFoundError: if the source holds no such data.
  """
  if task_name not in CORPORA:
    raise ValueError(unknown_name('task_name', task_name, CORPORA))
  corpus = CORPORA[task_name]
  original = Text(data_dir=data_dir, config=TextConfig(corpus=corpus, data=data))
  if source:
    path = corpus.find(source) if os.path.isdir(source) else source
    if not path or not os.path.exists(path):
      raise FileNotFoundError(
        f'{source} holds neither a directory {corpus.folder} with {", ".join(corpus.members)} nor '
        f'an archive such as {corpus.archive}: fetch {corpus.url} and name the file by --source'
      )
    sources.check_archive(path, ', '.join(corpus.members))
  else:
    path = None if os.path.exists(original.data_dir) else corpus.find(data_dir)
    if path is None:
      return original
  config = TextConfig(corpus=corpus, data=data, source=path, digest=corpus.identify(path))
  logger.info('Text: using the texts in %s', path)
  if config.digest and config.is_complete:
    logger.warning('Text: %s is not known to be the original: its contents name the data', path)
  return Text(data_dir=data_dir, config=config)


def is_benchmark(builder: Text) -> bool:
  """Return whether the data is all of IMDB, as published, whatever seed and validation rule."""
  config = builder.builder_config
  return config.corpus.name == _PUBLISHED and not config.digest and config.is_complete
