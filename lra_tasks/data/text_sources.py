"""Raw data of the Text task: where each data set comes from, and how it is read.

Texts are taken as the Long Range Arena has them, which reads TFDS' data sets imdb_reviews,
yelp_polarity_reviews and ag_news_subset. `CORPORA` is the table of them.
"""

from __future__ import annotations

import abc
import contextlib
import csv
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lra_tasks.console import show_progress
from lra_tasks.data import sources
from lra_tasks.data.datasets import hold_out

Example = tuple[bytes, int]  # Text and label.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(abc.ABC):
  """A data set in the form that its authors distribute: a folder, or a tar archive of it.

  Attributes:
    name: LRA's --task_name.
    class_names: of the labels 0 ... num_classes − 1.
    num_train, num_test: examples of either split.
    folder: name of the folder in the archive.
    archive: file name of the archive.
    url: where the archive lies.
    sha256: its checksum, as TFDS records it.
    contents_sha256: what `digest` gives for the original, or '' where that is not known.
    description: what the texts are, and the classes.
    homepage, citation: of the data set.
    disk_space: what it takes, in words.
    members: what the folder must hold.
    multiple: of what the number of examples must be a multiple.
  """

  name: str
  class_names: tuple[str, ...]
  num_train: int
  num_test: int
  folder: str
  archive: str
  url: str
  sha256: str
  contents_sha256: str = ''
  description: str
  homepage: str
  citation: str
  disk_space: str
  members: ClassVar[tuple[str, ...]]
  multiple: ClassVar[int] = 1

  @property
  def num_classes(self) -> int:
    """Number of labels."""
    return len(self.class_names)

  def find(self, directory: str) -> str | None:
    """Return where the data lies: the folder or an archive of it in `directory`, or itself.

    Raises:
      ValueError: if there are several archives.
    """
    for path in (directory, os.path.join(directory, self.folder)):
      if all(os.path.exists(os.path.join(path, member)) for member in self.members):
        return path
    found = sources.find_archives(directory, f'{self.folder}*')
    # IMDB's unlabelled reviews come as an archive of their own, too.
    found = [path for path in found if 'unsup' not in os.path.basename(path)]
    return sources.the_only(found, directory)

  def fetch(self, directory: str) -> str:
    """Return the path of the archive, which is downloaded unless it lies in `directory`."""
    return sources.fetch(self.url, os.path.join(directory, self.archive), self.sha256)

  def identify(self, path: str) -> str:
    """Return '' for the original data, else digits that stand for the contents."""
    if os.path.isfile(path) and sources.digest(path).hex() == self.sha256:
      return ''
    digest = self.digest(path)
    return '' if digest == self.contents_sha256 else digest[:16]

  def count(self, split: str, number: int) -> int:
    """Return the number of examples of 'train' or 'test' that are meant; negative means all.

    Raises:
      ValueError: if there are not as many.
    """
    available = getattr(self, f'num_{split}')
    if number < 0:
      return available
    if number % self.multiple or number > available:
      of = f'a multiple of {self.multiple} and ' if self.multiple > 1 else ''
      raise ValueError(
        f'num_{split} of {self.name} must be {of}at most {available}, or -1 for all, got {number}'
      )
    return number

  @abc.abstractmethod
  def digest(self, path: str) -> str:
    """Return hexadecimal digits that stand for the contents of a folder or archive."""

  @abc.abstractmethod
  def split(
    self, path: str, num_train: int, num_test: int, seed: int
  ) -> Mapping[str, Sequence[Example] | Rows]:
    """Return the examples of the splits train, validation (a tenth of train) and test.

    Args:
      path: folder or archive.
      num_train: the first examples for training, validation included.
      num_test: the first examples for the test.
      seed: of the shuffle whose last 10 % are held out.

    Raises:
      ValueError: if the data is damaged, now or as examples are read.
    """

  @abc.abstractmethod
  def split_rule(self, seed: int) -> str:
    """Return in words what `split` does."""


# IMDB: a file for each review.


class Review(NamedTuple):
  """One file: its folder (`train/pos`), its name (`0_9.txt`: number and rating), its bytes."""

  folder: str
  name: str
  text: bytes

  @property
  def path(self) -> str:
    """The path below aclImdb."""
    return f'{self.folder}/{self.name}'

  @property
  def example(self) -> Example:
    """Text and label: 1 if positive."""
    return self.text, int(self.folder.endswith('pos'))


class FilmReviews(Corpus):
  """The Large Movie Review Dataset, to the byte; of fewer than all, half are of either class."""

  members = ('train/pos', 'train/neg', 'test/pos', 'test/neg')
  multiple = 2

  _MEMBER = re.compile(r'(?:.*/)?((?:train|test)/(?:pos|neg))/([^/.][^/]*\.txt)')
  _FILE_NAME = re.compile(r'(\d+)_(\d+)\.txt')

  def read(self, path: str) -> list[Review]:
    """Return all labelled reviews: train before test, positive before negative, by number.

    Args:
      path: the directory aclImdb, or a tar archive of it, compressed or not.

    Raises:
      ValueError: if a file is empty, has no name such as `0_9.txt` or a number that another has, or
        if the archive is damaged; the message names the file.
    """
    reviews: dict[tuple[str, int], Review] = {}
    with show_progress(f'reading {os.path.basename(path)}') as advance:
      for review in self._read_folder(path) if os.path.isdir(path) else self._read_archive(path):
        match = self._FILE_NAME.fullmatch(review.name)
        if not match:
          raise ValueError(
            f'{path}: {review.path}: expected a name like 0_9.txt, number and rating'
          )
        if not review.text.strip():
          raise ValueError(f'{path}: {review.path}: expected a review, found an empty file')
        key = review.folder, int(match[1])
        if key in reviews:
          raise ValueError(f'{path}: {review.path} has the number of {reviews[key].path}')
        reviews[key] = review
        advance(1)
    rank = {folder: i for i, folder in enumerate(self.members)}
    return [reviews[key] for key in sorted(reviews, key=lambda key: (rank[key[0]], key[1]))]

  def _read_folder(self, path: str) -> Iterator[Review]:
    for folder in self.members:
      if not os.path.isdir(os.path.join(path, folder)):
        raise ValueError(f'{path}: expected a directory {folder}, found none')
      for name in os.listdir(os.path.join(path, folder)):
        if self._MEMBER.fullmatch(f'{folder}/{name}'):
          with open(os.path.join(path, folder, name), 'rb') as file:
            yield Review(folder, name, file.read())

  def _read_archive(self, path: str) -> Iterator[Review]:
    for name, text in sources.read_archive(path, self._MEMBER, self.url):
      match = self._MEMBER.fullmatch(name)
      yield Review(match[1], match[2], text)

  def digest(self, path: str) -> str:
    """Return the SHA-256 over path, a zero byte and SHA-256 of the bytes of each review."""
    digest = hashlib.sha256()
    for review in self.read(path):
      digest.update(review.path.encode() + b'\0' + hashlib.sha256(review.text).digest())
    return digest.hexdigest()

  def split(
    self, path: str, num_train: int, num_test: int, seed: int
  ) -> dict[str, Sequence[Example]]:
    """Return the examples of each split; they are in memory (65 MB)."""
    reviews = self.read(path)
    train = self._take(reviews, path, 'train', num_train)
    kept, held_out = hold_out(num_train, seed)
    return {
      'train': [train[i] for i in kept],
      'validation': [train[i] for i in held_out],
      'test': self._take(reviews, path, 'test', num_test),
    }

  def _take(self, reviews: list[Review], path: str, split: str, number: int) -> list[Example]:
    wanted, complete = number // 2, number == self.count(split, -1)
    taken = []
    for label in ('pos', 'neg'):
      found = [review.example for review in reviews if review.folder == f'{split}/{label}']
      if len(found) < wanted or (complete and len(found) > wanted):
        at_least = '' if complete else 'at least '
        raise ValueError(
          f'{path}: {split}/{label}: expected {at_least}{wanted} reviews, found {len(found)}; '
          f'fetch it anew, from {self.url}'
        )
      taken += found[:wanted]
    return taken

  def split_rule(self, seed: int) -> str:
    """Return in words what `split` does."""
    return (
      f'The folders train (positive before negative, by number, then shuffled by seed {seed}) and '
      'test; validation is the last 10 % of train.'
    )


# Yelp and AG's news: two CSV files, larger than one would hold in memory.

# Yields (number of the line where it ends, class, text) of each row of a file's lines.
Parser = Callable[[Iterable[str]], Iterator[tuple[int, str, str]]]

_QUOTED = re.compile(r'"(\d+)","(.*)"\n?', re.DOTALL)


def parse_escaped(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
  r"""Parse rows `"class","text"` as TFDS' yelp_polarity_reviews does.

  A row is a line. Of its text, white space at either end is dropped, and nothing is unescaped:
  `\n` and `""` stay two characters each.

  Raises:
    ValueError: naming the line.

  >>> list(parse_escaped([r'"2"," so ""good""\n!"']))
  [(1, '2', 'so ""good""\\n!')]
  """
  for number, line in enumerate(lines, 1):
    match = _QUOTED.fullmatch(line)
    if not match:
      raise ValueError(f'line {number}: expected "CLASS","TEXT", found {line[:60]!r}')
    yield number, match[1], match[2].strip()


def parse_titled(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
  r"""Parse CSV rows class, title, description as TFDS' ag_news_subset does.

  The text is the description. `""` in quotes stands for `"`; a backslash for itself.

  Raises:
    ValueError: naming the line.

  >>> list(parse_titled([r'"3","A title","A ""dull""\day"']))
  [(1, '3', 'A "dull"\\day')]
  """
  reader = csv.reader(lines, strict=True)
  try:
    for row in reader:
      if len(row) != 3:
        raise ValueError(
          f'line {reader.line_num}: expected 3 columns, found {len(row)}: {row!r:.60}'
        )
      yield reader.line_num, row[0], row[2]
  except csv.Error as error:
    raise ValueError(f'line {reader.line_num}: expected CSV, found: {error}') from error


def _decode(lines: Iterable[bytes]) -> Iterator[str]:
  for number, line in enumerate(lines, 1):
    try:
      yield line.decode()
    except UnicodeDecodeError as error:
      raise ValueError(f'line {number}: expected UTF-8: {error}') from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvCorpus(Corpus):
  """Rows of train.csv and test.csv, read as they are needed; classes there count from 1.

  Attributes:
    parse: the form of the rows.
  """

  parse: Parser
  members = ('train.csv', 'test.csv')

  def read(self, path: str, split: str) -> Iterator[Example]:
    """Yield the examples of one file.

    Raises:
      ValueError: if a row is not as expected; the message names file and line.
    """
    name = f'{split}.csv'
    with self._open(path, name) as file:
      try:
        for number, label, text in self.parse(_decode(file)):
          if not (label.isdecimal() and 1 <= int(label) <= self.num_classes):
            raise ValueError(
              f'line {number}: expected a class from 1 to {self.num_classes}, found {label!r}'
            )
          yield text.encode(), int(label) - 1
      except ValueError as error:
        raise ValueError(f'{path}: {name}: {error}; replace it, from {self.url}') from error

  @contextlib.contextmanager
  def _open(self, path: str, name: str) -> Iterator[Any]:
    if os.path.isdir(path):
      with open(os.path.join(path, name), 'rb') as file:
        yield file
      return
    wanted = re.compile(rf'(?:.*/)?{re.escape(name)}')
    with sources.open_archive(path, wanted, self.url) as files:
      found = next(files, None)
      if found is None:
        raise ValueError(f'{path}: expected a file {name}, found none; replace it, from {self.url}')
      yield found[1]
      for _ in files:  # To the end, where damage to what was read may show.
        pass

  def digest(self, path: str) -> str:
    """Return the SHA-256 over those of the two files."""
    digests = []
    for name in self.members:
      with self._open(path, name) as file:
        digests.append(hashlib.file_digest(file, 'sha256').digest())
    return hashlib.sha256(b''.join(digests)).hexdigest()

  def split(self, path: str, num_train: int, num_test: int, seed: int) -> dict[str, Rows]:
    """Return the examples of each split in the order of the files, which are read anew for each."""
    _, held_out = hold_out(num_train, seed)
    is_held_out = np.zeros(num_train, bool)
    is_held_out[held_out] = True
    return {
      'train': Rows(self, path, 'train', ~is_held_out),
      'validation': Rows(self, path, 'train', is_held_out),
      'test': Rows(self, path, 'test', np.ones(num_test, bool)),
    }

  def split_rule(self, seed: int) -> str:
    """Return in words what `split` does."""
    return (
      'The files train.csv and test.csv, in their order; validation is what a shuffle of train.csv '
      f'by seed {seed} puts into the last 10 %.'
    )


class Rows:
  """Some rows of a file, as examples.

  Args:
    corpus: the data set.
    path: folder or archive.
    split: 'train' or 'test', the file.
    wanted: bool[rows of the file that are looked at].
  """

  def __init__(self, corpus: CsvCorpus, path: str, split: str, wanted: np.ndarray) -> None:
    self._corpus, self._path, self._split, self._wanted = corpus, path, split, wanted

  def __len__(self) -> int:
    """Return the number of examples."""
    return int(np.count_nonzero(self._wanted))

  def __iter__(self) -> Iterator[Example]:
    """Read the file.

    Raises:
      ValueError: if a row is damaged, or there are fewer or, of all, more rows than expected.
    """
    expected = len(self._wanted)
    complete = expected == self._corpus.count(self._split, -1)
    found = 0
    for found, example in enumerate(self._corpus.read(self._path, self._split), 1):
      if found > expected:
        break
      if self._wanted[found - 1]:
        yield example
    if found < expected or (complete and found > expected):
      raise ValueError(
        f'{self._path}: {self._split}.csv: expected {"" if complete else "at least "}{expected} '
        f'rows, found {"more" if found > expected else found}; replace it, from {self._corpus.url}'
      )


# The table.

_ZHANG = """\
@inproceedings{zhang2015character,
  title={Character-level Convolutional Networks for Text Classification},
  author={Zhang, Xiang and Zhao, Junbo and LeCun, Yann},
  booktitle={Advances in Neural Information Processing Systems},
  year={2015}
}"""

CORPORA: dict[str, Corpus] = {
  corpus.name: corpus
  for corpus in [
    FilmReviews(
      name='imdb_reviews',
      class_names=('negative', 'positive'),
      num_train=25_000,
      num_test=25_000,
      folder='aclImdb',
      archive='aclImdb_v1.tar.gz',
      url='https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz',
      sha256='c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe',
      contents_sha256='62c7f67af7737cd358433cd717a53e2797ac65c989fe1e2a96329ebfec0cee26',
      description='Film reviews as bytes, classified as negative or positive.',
      homepage='https://ai.stanford.edu/~amaas/data/sentiment/',
      citation="""\
@inproceedings{maas2011learning,
  title={Learning Word Vectors for Sentiment Analysis},
  author={Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and Ng, Andrew Y.
    and Potts, Christopher},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2011}
}""",
      disk_space='53 MB, and the archive 84 MB',
    ),
    CsvCorpus(
      name='yelp_reviews',
      class_names=('negative', 'positive'),
      num_train=560_000,
      num_test=38_000,
      folder='yelp_review_polarity_csv',
      archive='yelp_review_polarity_csv.tgz',
      url='https://s3.amazonaws.com/fast-ai-nlp/yelp_review_polarity_csv.tgz',
      sha256='528f22e286cad085948acbc3bea7e58188416546b0e364d0ae4ca0ce666abe35',
      parse=parse_escaped,
      description='Reviews of businesses as bytes, classified as negative or positive.',
      homepage='https://course.fast.ai/datasets',
      citation=_ZHANG,
      disk_space='some 400 MB, 1 GB more while it is written, and the archive 166 MB',
    ),
    CsvCorpus(
      name='agnews',
      class_names=('World', 'Sports', 'Business', 'Sci/Tech'),
      num_train=120_000,
      num_test=7600,
      folder='ag_news_csv',
      archive='ag_news_csv.tar.gz',
      url='https://drive.google.com/uc?export=download&id=0Bz8a_Dbh9QhbUDNpeUdjb0wxRms',
      sha256='4e2fc37d369e6e317a8b62d0d2f11d379f8c3dde60c07c35a46b069a246498ad',
      parse=parse_titled,
      description='News as bytes, classified as World, Sports, Business or Sci/Tech.',
      homepage='https://arxiv.org/abs/1509.01626',
      citation=_ZHANG,
      disk_space='some 40 MB, and the archive 12 MB',
    ),
  ]
}
