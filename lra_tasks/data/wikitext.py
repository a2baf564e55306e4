"""WikiText: articles of Wikipedia as sequences of word pieces, a TFDS data set to pre-train on.

Merity, Xiong, Bradbury and Socher, "Pointer Sentinel Mixture Models", ICLR 2017. Any other text
takes its place by --source. Nothing is masked here: examples are sequences of ids.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from kl_flax.wordpiece import WordPieceTokenizer
from lra_tasks.data import sources
from lra_tasks.data.file_trees import ENDINGS, FileTree
from lra_tasks.data.tokenized import TokenizedBuilder

logger = logging.getLogger(__name__)

_PUBLISHED = 'wikitext-103'
# Its authors' names of the splits.
_SPLITS = {'train': 'train', 'validation': 'valid', 'test': 'test'}
# How files of the splits are called; the last one by other distributors.
_LAYOUTS = (r'wiki\.{}\.tokens', r'wiki\.{}\.raw', r'{}\.txt')
# Of a single file, by lines that are not empty: where validation and test begin.
_PARTS = (90, 95)

# WikiText separates what stands within a word or number by blanks and marks it.
_JOINED = {' @-@ ': '-', ' @,@ ': ',', ' @.@ ': '.'}
_LINES_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One of WikiText's releases.

  Attributes:
    name: --task_name, the folder in the archive.
    sha256: of the archive, as recorded by MLX Data and by CorpusLoaders.jl, which agree.
    sha1: of the files train, valid and test, as recorded by GluonNLP.
  """

  name: str
  sha256: str
  sha1: tuple[str, str, str]

  @property
  def archive(self) -> str:
    """File name of the archive."""
    stem = self.name.removesuffix('-raw')
    return f'{stem}-raw-v1.zip' if self.name.endswith('-raw') else f'{stem}-v1.zip'

  @property
  def url(self) -> str:
    """Where the first author keeps the archive; Salesforce's own address is gone."""
    return f'https://wikitext.smerity.com/{self.archive}'


CORPORA: dict[str, Corpus] = {
  corpus.name: corpus
  for corpus in [
    Corpus(
      'wikitext-103',
      '242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590',
      (
        'b7497e2dfe77e72cfef5e3dbc61b7b53712ac211',
        'c326ac59dc587676d58c422eb8a03e119582f92b',
        '8a5befc548865cec54ed4273cf87dbbad60d1e47',
      ),
    ),
    Corpus(
      'wikitext-103-raw',
      '91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794',
      (
        '3d06627c15e834408cfee91293f862c11c1cc9ef',
        'db78d4db83700cba1b1bf4a9381087043db2876d',
        '6f1fe2054a940eebfc76b284b09680763b37f5ea',
      ),
    ),
    Corpus(
      'wikitext-2',
      '92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c',
      (
        '863f29c46ef9d167fff4940ec821195882fe29d1',
        '0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422',
        'c7b8ce0aa086fb34dab808c5c49224211eb2b172',
      ),
    ),
    Corpus(
      'wikitext-2-raw',
      'ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11',
      (
        'd33faf256327882db0edc7c67cd098d1051a2112',
        'db78d4db83700cba1b1bf4a9381087043db2876d',
        '6f1fe2054a940eebfc76b284b09680763b37f5ea',
      ),
    ),
  ]
}


@dataclasses.dataclass(frozen=True)
class WikiTextData:
  """What determines the data, within a corpus. Case and accents are always dropped.

  Attributes:
    vocab_size: word pieces at most, see `kl_flax.wordpiece.train_wordpiece`.
    max_length: positions of the model: sequences have one id less at most, as the encoder puts its
      CLS vector before them.

  Raises:
    ValueError: for a number out of its range.
  """

  vocab_size: int = 30_522
  max_length: int = 512

  def __post_init__(self) -> None:
    """Check the values."""
    if not 200 <= self.vocab_size < 2**16:  # Records hold uint16, and masking takes one more id.
      raise ValueError(f'vocab_size must lie in 200 .. 65535, got {self.vocab_size}')
    if self.max_length < 8:
      raise ValueError(f'max_length must be at least 8, got {self.max_length}')


# Texts.


def clean(line: str) -> str:
  """Return a line as it was written, without blanks at its ends; '' if nothing is in it.

  >>> clean(' the 1 @,@ 000 <unk> @-@ like')
  'the 1,000 [UNK]-like'
  """
  for marked, plain in _JOINED.items():
    line = line.replace(marked, plain)
  return line.replace('<unk>', '[UNK]').strip()


class Text:
  """The lines of a corpus, read from files anew whenever they are wanted.

  Args:
    path: a directory that holds, or one of whose directories holds, a file for each split:
      `wiki.train.tokens`, `wiki.train.raw` or `train.txt`, likewise `valid` and `test`, compressed
      or not; an archive of such a directory; or one file of text, compressed or not, whose first
      90 % of lines are train, and the last 5 % test.

  Raises:
    FileNotFoundError: if there are no such files.
    ValueError: if there are several to choose from, or an archive is damaged.
  """

  def __init__(self, path: str) -> None:
    self._path = path
    self._tree: FileTree | None = None
    self._names: dict[str, str] = {}
    if not os.path.exists(path):
      raise FileNotFoundError(f'{path} does not exist: name a text, a directory or an archive')
    if os.path.isdir(path) or path.endswith(ENDINGS):
      self._tree = FileTree(path)
      self._names = _choose(self._tree)

  @functools.cached_property
  def contents(self) -> tuple[str, ...]:
    """SHA-1 of each file, hexadecimal: WikiText's are published."""
    digests = []
    for name in self._names.values() or [None]:
      with self._open(name) as file:
        digests.append(hashlib.file_digest(file, 'sha1').hexdigest())
    return tuple(digests)

  @property
  def corpus(self) -> Corpus | None:
    """The release that this is, whatever its files are called; None of other texts."""
    return next((corpus for corpus in CORPORA.values() if corpus.sha1 == self.contents), None)

  def lines(self, split: str) -> Iterator[str]:
    """Yield the lines of 'train', 'validation' or 'test' that are not empty, cleaned.

    Raises:
      ValueError: if there are none, or a file is damaged or no UTF-8.
    """
    if self._tree is None:
      ends = [0, *(self._count * part // 100 for part in _PARTS), self._count]
      place = list(_SPLITS).index(split)
      lines = itertools.islice(self._read(None), ends[place], ends[place + 1])
    else:
      lines = self._read(self._names[split])
    found = False
    for line in lines:
      found = True
      yield line
    if not found:
      raise ValueError(f'{self._path}: expected text for {split}, found none; name another source')

  @functools.cached_property
  def _count(self) -> int:
    return sum(1 for _ in self._read(None))

  def _read(self, name: str | None) -> Iterator[str]:
    with self._open(name) as file:
      for number, line in enumerate(file, start=1):
        try:
          text = clean(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
        except UnicodeDecodeError as error:
          path = self._path if name is None else self._tree.describe(name)
          raise ValueError(
            f'{path}, line {number}: expected UTF-8: {error}; convert the file'
          ) from None
        if text:
          yield text

  def _open(self, name: str | None):
    return sources.open_file(self._path) if name is None else self._tree.open(name)


def _choose(tree: FileTree) -> dict[str, str]:
  """Return the file of each split; all are in one folder."""
  found: list[dict[str, str]] = []
  missing: list[str] = []
  for layout in _LAYOUTS:
    files: dict[str, dict[str, list[str]]] = {}
    for split, stem in _SPLITS.items():
      for name in tree.find(layout.format(stem)):
        files.setdefault(os.path.dirname(name), {}).setdefault(split, []).append(name)
    for folder, parts in files.items():
      if twice := [names for names in parts.values() if len(names) > 1]:
        raise ValueError(f'{tree.path} holds {" and ".join(twice[0])}: remove one of them')
      if len(parts) == len(_SPLITS):
        found.append({split: parts[split][0] for split in _SPLITS})
      else:
        lacking = [layout.format(_SPLITS[s]).replace('\\', '') for s in _SPLITS if s not in parts]
        missing.append(f'{os.path.join(tree.path, folder)} lacks {", ".join(lacking)}')
  if len(found) > 1:
    folders = ', '.join(os.path.dirname(files['train']) or os.curdir for files in found)
    raise ValueError(f'{tree.path} holds several corpora ({folders}): name one by --source')
  if not found:
    why = '; '.join(missing) or f'{tree.path} holds neither'
    raise FileNotFoundError(
      f'{why}: expected wiki.train.tokens, wiki.train.raw or train.txt, likewise valid and test; '
      'name by --source the directory that holds them, or one file of text'
    )
  return found[0]


def pack(lines: Iterable[str], tokenizer: WordPieceTokenizer, longest: int) -> Iterator[np.ndarray]:
  """Yield sequences of ids, uint16[length], of whole lines, each ended by [SEP].

  A line that the rest of a sequence has no room for begins a new one; a line that is longer than a
  sequence begins one, too, and is cut into pieces, after the last of which others may follow.

  Args:
    lines: texts.
    tokenizer: text to ids.
    longest: ids of a sequence at most.
  """
  parts: list[np.ndarray] = []
  used = 0
  lines = iter(lines)
  while batch := list(itertools.islice(lines, _LINES_AT_ONCE)):
    for ids in tokenizer.encode_batch(batch):
      if used + len(ids) > longest and used:
        yield np.concatenate(parts)
        parts, used = [], 0
      while len(ids) > longest:
        yield ids[:longest]
        ids = ids[longest:]
      parts.append(ids)
      used += len(ids)
  if used:
    yield np.concatenate(parts)


# The data set.


@dataclasses.dataclass(eq=False, kw_only=True)
class WikiTextConfig(tfds.core.BuilderConfig):
  """Which text, and where it comes from.

  The name is derived and encodes all that determines the bytes of the data set.

  Attributes:
    corpus: name of WikiText's release, or 'text'.
    data: what determines the data.
    source: where the text is read from; None downloads it.
    digest: digits that stand for the contents of another text than WikiText, or ''.

  >>> WikiTextConfig(data=WikiTextData()).name
  'wikitext-103_v30522_l512'
  """

  name: str = ''
  corpus: str = _PUBLISHED
  data: WikiTextData = WikiTextData()
  source: str | None = None
  digest: str = ''

  def __post_init__(self):
    """Derive the name."""
    self.name = f'{self.corpus}_v{self.data.vocab_size}_l{self.data.max_length}'
    if self.digest:
      self.name += f'_{self.digest}'


class WikiText(TokenizedBuilder):
  """Sequences of word pieces of WikiText or another text; see `make_builder`.

  Features: 'inputs', uint16[length], ids of `tokenizer`; 'target', 0, which means nothing.
  """

  name = 'wikitext'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = WikiTextConfig()
  DESCRIPTION = 'Articles of Wikipedia, or another text, as sequences of word pieces.'
  HOMEPAGE = 'https://wikitext.smerity.com'
  CITATION = """\
@inproceedings{merity2017pointer,
  title={Pointer Sentinel Mixture Models},
  author={Merity, Stephen and Xiong, Caiming and Bradbury, James and Socher, Richard},
  booktitle={International Conference on Learning Representations},
  year={2017}
}"""
  DISK_SPACE = 'some 300 MB, and the archive 190 MB'
  inputs = {'inputs': tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding='bytes')}

  @property
  def variant(self) -> str:
    """The corpus, unless it is WikiText-103."""
    return '' if is_benchmark(self) else self.builder_config.corpus

  @property
  def split_rule(self) -> str:
    """Which text is in which split, in words."""
    return (
      "The corpus' own files; of a single file, the first 90 % of the lines that are not empty are "
      'train, the next 5 % validation, the last 5 % test. The vocabulary is that of train. Lines '
      'follow each other as in the files.'
    )

  def _make_splits(self, dl_manager) -> Mapping[str, Iterable]:
    del dl_manager
    config = self.builder_config
    text = Text(config.source or _fetch(CORPORA[config.corpus], self.root))
    tokenizer = self._train_tokenizer(text.lines('train'), config.data.vocab_size)
    longest = config.data.max_length - 1
    return {
      split: ((ids, 0) for ids in pack(text.lines(split), tokenizer, longest)) for split in _SPLITS
    }


def _fetch(corpus: Corpus, directory: str) -> str:
  return sources.fetch(corpus.url, os.path.join(directory, corpus.archive), corpus.sha256)


def make_builder(
  data: WikiTextData, *, data_dir: str, source: str | None = None, task_name: str = _PUBLISHED
) -> WikiText:
  """Return the builder of the text in `source`, or else of one of WikiText's releases.

  Without `source`, the text is the one that is prepared already, the one whose folder or archive
  lies in `data_dir`, or is downloaded to there. With it, the contents of the files name the data:
  WikiText is known in whatever form it comes.

  Args:
    data: what determines the data.
    data_dir: where prepared data is, or will be, kept.
    source: a directory, an archive or a file of text; see `Text`.
    task_name: one of `CORPORA`, where no source is named.

  Raises:
    ValueError: if the task name is unknown, there are several texts to choose from, or the source
      is damaged.
    FileNotFoundError: if the source holds no text.
  """
  if task_name not in CORPORA:
    raise ValueError(unknown_name('task_name', task_name, CORPORA))
  original = WikiText(data_dir=data_dir, config=WikiTextConfig(corpus=task_name, data=data))
  if not source:
    source = os.path.join(data_dir, task_name)
    if os.path.exists(original.data_dir) or not os.path.isdir(source):
      return original
  text = Text(source)
  logger.info('WikiText: using the text in %s', source)
  name, digest = 'text', ''
  if text.corpus:
    name = text.corpus.name
  else:
    digest = hashlib.sha256('\n'.join(text.contents).encode()).hexdigest()[:16]
  if name != task_name:
    logger.warning('WikiText: %s holds %s, not %s', source, name, task_name)
  config = WikiTextConfig(corpus=name, data=data, source=source, digest=digest)
  return WikiText(data_dir=data_dir, config=config)


def is_benchmark(builder: WikiText) -> bool:
  """Return whether the data is WikiText-103, as published."""
  return builder.builder_config.corpus == _PUBLISHED
