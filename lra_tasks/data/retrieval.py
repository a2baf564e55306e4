"""Retrieval: does one of two papers cite the other? Byte by byte, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., ICLR 2021), which calls it matching, on the
ACL Anthology Network (Radev et al., "The ACL Anthology Network Corpus", 2013), AAN. Its pairs are
LRA's files. Who has no more than papers and citations can have pairs drawn from them: another data
set, which has another name.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import json
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, NoReturn

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import ByteTokenizer
from lra_tasks.console import show_progress
from lra_tasks.data import datasets, sources
from lra_tasks.data.retrieval_pairs import Pair, make_pairs

logger = logging.getLogger(__name__)

TOKENIZER = ByteTokenizer()

# 7.7 GB, all of LRA's tasks. Its checksum is not published: what is read is checked by gzip's own,
# and the pairs are counted.
URL = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
BENCHMARK_SIZES = {'train': 147_086, 'validation': 18_090, 'test': 17_437}
# LRA cuts texts before anything else.
MAX_BYTES = 10_000

PAIRS = ('auto', 'lra', 'rebuilt')
ALL = -1
_OPTIONS = {'train': 'num_train', 'validation': 'num_valid', 'test': 'num_test'}
_LRA_FILES = {
  'train': 'new_aan_pairs.train.tsv',
  'validation': 'new_aan_pairs.eval.tsv',
  'test': 'new_aan_pairs.test.tsv',
}
_MEMBER = re.compile(r'(?:.*/)?(new_aan_pairs\.(?:train|eval|test)\.tsv)')
# Of LRA's, a tar archive in spite of its ending.
_ARCHIVE = re.compile(r'lra_release.*\.gz')
# TensorFlow's reader, which LRA uses, takes labels for floats.
_LABELS = {b'0': 0, b'1': 1, b'0.0': 0, b'1.0': 1}
# Parts of all citations that rebuilt splits hold; about 0.7 are left for train.
_SHARES = {'test': 0.10, 'validation': 0.05}


@dataclasses.dataclass(frozen=True)
class RetrievalData:
  """What determines the data.

  Attributes:
    pairs: 'lra': LRA's files; 'rebuilt': pairs drawn from papers and citations; 'auto': what the
      source holds, and LRA's where none is named.
    seed: of rebuilt pairs.
    num_train: pairs of training, the first of the split; -1 means all. Of LRA's files, all must be
      as many as the benchmark has.
    num_valid: the same of validation.
    num_test: the same of the test split.

  Raises:
    ValueError: for an unknown kind of pairs or an impossible number.
  """

  pairs: str = 'auto'
  seed: int = 0
  num_train: int = ALL
  num_valid: int = ALL
  num_test: int = ALL

  def __post_init__(self) -> None:
    """Check the values."""
    if self.pairs not in PAIRS:
      raise ValueError(unknown_name('pairs', str(self.pairs), PAIRS))
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed must lie in 0 .. 2**32 - 1, got {self.seed}')
    for name in _OPTIONS.values():
      value = getattr(self, name)
      if value < 2 and value != ALL:
        raise ValueError(f'{name} must be at least 2, or {ALL} for all, got {value}')

  @property
  def sizes(self) -> dict[str, int]:
    """The number of pairs of each split, or ALL."""
    return {split: getattr(self, name) for split, name in _OPTIONS.items()}


# LRA's files.


def read_pairs(file: Iterable[bytes], path: str) -> Iterator[tuple[int, bytes, bytes]]:
  r"""Yield label 0 or 1 and both texts, cut at MAX_BYTES, of each row of one of LRA's files.

  Rows are label, id, id, text, text between tabs, without header. As in TensorFlow's reader, which
  LRA uses, no byte but tab and end of line (\n, \r\n) means anything, and no text may be empty.

  Args:
    file: the lines.
    path: what to call it in messages.

  Raises:
    ValueError: if a row is damaged; the message names the line, what was expected and found.
  """
  for number, line in enumerate(file, start=1):
    try:
      yield _parse_row(line.removesuffix(b'\n').removesuffix(b'\r'))
    except ValueError as error:
      raise ValueError(
        f"{path}, line {number}: {error}; replace the file, it is damaged or none of LRA's"
      ) from None


def _parse_row(row: bytes) -> tuple[int, bytes, bytes]:
  columns = row.split(b'\t')
  if len(columns) != 5:
    found = f'{len(columns)}: {row[:60]!r}'
    raise ValueError(f'expected label, id, id, text, text between tabs, found columns: {found}')
  label, _, _, first, second = columns
  if label not in _LABELS:
    raise ValueError(
      f"expected a label '0.0' or '1.0', found {label[:20].decode(errors='replace')!r}"
    )
  for name, text in (('first', first), ('second', second)):
    if not text:
      raise ValueError(f'expected a {name} text, found nothing')
    if b'\r' in text:
      raise ValueError(f'expected the end of the line after a carriage return, in the {name} text')
  return _LABELS[label], first[:MAX_BYTES], second[:MAX_BYTES]


class _Rows:
  """The pairs of a file as (ids, ids, label), read when they are wanted; there must be enough.

  Args:
    open_file: opens it.
    path: what to call it in messages.
    split: which of the splits it is.
    wanted: how many of its pairs, or ALL.
  """

  def __init__(self, open_file: Callable[[], IO[bytes]], path: str, split: str, wanted: int):
    self._open, self._path, self._split = open_file, path, split
    self._wanted = BENCHMARK_SIZES[split] if wanted == ALL else wanted
    self._exact = self._wanted == BENCHMARK_SIZES[split]
    self.most = self._wanted + self._exact  # Rows that are looked at: one too many is noticed.

  def __len__(self) -> int:
    return self._wanted

  def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    count = 0
    with self._open() as file:
      rows = itertools.islice(read_pairs(file, self._path), self.most)
      for count, (label, first, second) in enumerate(rows, start=1):
        if count <= self._wanted:
          yield TOKENIZER.encode(first), TOKENIZER.encode(second), label
    if count != self._wanted:
      at_least = '' if self._exact else 'at least '
      found = count if count < self._wanted else 'more'
      raise ValueError(
        f'{self._path}: expected {at_least}{self._wanted} pairs, found {found}; fetch it anew from '
        f'{URL}, or ask for fewer by --config.data.{_OPTIONS[self._split]}: results are then not '
        'compared with published ones'
      )


def _spool(file: IO[bytes], path: str, split: str, directory: str, wanted: int) -> _Rows:
  """Return the pairs of a file that can be read but once, having copied what is wanted of them."""
  spool = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed with the rows)

  def rewind() -> IO[bytes]:
    spool.seek(0)
    return spool

  rows = _Rows(rewind, path, split, wanted)
  weakref.finalize(rows, spool.close)
  with show_progress(f'unpacking {os.path.basename(path)}') as advance:
    # What follows is skipped, but decompressed, as the archive is read to its end.
    for label, first, second in itertools.islice(read_pairs(file, path), rows.most):
      spool.write(b'%d\t\t\t%s\t%s\n' % (label, first, second))
      advance(1)
  return rows


def _read_archive(path: str, directory: str, sizes: Mapping[str, int]) -> dict[str, _Rows]:
  """Return the pairs of LRA's archive, which is read once, in whatever order its files are.

  What is wanted of it lies in files without names in `directory` meanwhile.
  """
  splits = {file: split for split, file in _LRA_FILES.items()}
  found: dict[str, _Rows] = {}
  logger.info('Retrieval: reading %s from beginning to end', path)
  with sources.open_archive(path, _MEMBER, URL) as members:
    for name, member in members:
      split = splits[_MEMBER.fullmatch(name)[1]]
      if split in found:
        raise ValueError(f'{path} holds {name} twice: name an archive that has each file once')
      found[split] = _spool(member, f'{path}: {name}', split, directory, sizes[split])
  missing = [file for split, file in _LRA_FILES.items() if split not in found]
  if missing:
    raise ValueError(
      f'{path} lacks {", ".join(missing)}: name an archive that has them, from {URL}'
    )
  return {split: found[split] for split in sizes}


# Papers and citations.


def read_documents(path: str) -> dict[str, bytes]:
  """Return the texts, UTF-8 cut at MAX_BYTES, by id, of a file of JSON objects, one a line.

  Raises:
    ValueError: if a line has no id or text, or the id of another; the message names the line.
  """
  texts: dict[str, bytes] = {}
  with sources.open_file(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        paper = json.loads(line)
        if not isinstance(paper, dict):
          raise ValueError(f'found {line[:60]!r}')
        name, text = (paper.get(key) for key in ('id', 'text'))
        if not (isinstance(name, str) and isinstance(text, str) and name and text):
          raise ValueError(f'found {name!r:.60} and {text!r:.60}')
        if name in texts:
          raise ValueError(f'the id {name} is there twice')
        texts[name] = text.encode()[:MAX_BYTES]
      except ValueError as error:
        raise ValueError(
          f"{path}, line {number}: expected a JSON object with a new string 'id' and a string "
          f"'text': {error}; replace the file"
        ) from None
  return texts


def read_citations(path: str) -> Iterator[tuple[str, str]]:
  """Yield citing and cited id of each row of a table between tabs whose header names the two.

  Raises:
    ValueError: if the header or a row is damaged; the message names the line.
  """
  with sources.open_file(path) as file:

    def fail(number: int, expected: str, line: bytes) -> NoReturn:
      found = repr(line[:60]) if line else 'an empty file'
      raise ValueError(
        f'{path}, line {number}: expected {expected}, found {found}; replace the file'
      )

    split = lambda line: line.rstrip(b'\r\n').split(b'\t')
    line = file.readline()
    header = split(line)
    if not {b'citing', b'cited'} <= set(header):
      fail(1, "columns 'citing' and 'cited' between tabs", line)
    citing, cited = header.index(b'citing'), header.index(b'cited')
    for number, line in enumerate(file, start=2):
      columns = split(line)
      if len(columns) != len(header):
        fail(number, f'{len(header)} columns between tabs', line)
      yield columns[citing].decode(errors='replace'), columns[cited].decode(errors='replace')


def rebuild(
  documents: str, citations: str, data: RetrievalData
) -> tuple[dict[str, list[Pair]], list[bytes]]:
  """Return pairs by split, and the texts of the papers that they number, by rising id.

  Args:
    documents: file of the papers.
    citations: file of who cites whom; papers without text and self-citations are passed over.
    data: seed and sizes.

  Raises:
    ValueError: if a file is damaged, or if there are fewer pairs than `data` asks for.
  """
  texts = read_documents(documents)
  numbers = {name: i for i, name in enumerate(sorted(texts))}
  links = {
    tuple(sorted((numbers[a], numbers[b])))
    for a, b in read_citations(citations)
    if a != b and a in numbers and b in numbers
  }
  logger.info('Retrieval: %d papers, %d pairs of which one cites the other', len(texts), len(links))
  # Of NumPy's generators, the one that gives the same numbers in all versions.
  try:
    pairs = make_pairs(links, _SHARES, np.random.RandomState(data.seed))
  except ValueError as error:
    raise ValueError(f'{citations}: {error}; name a source with more papers') from None
  for split, wanted in data.sizes.items():
    if wanted > len(pairs[split]):
      raise ValueError(
        f'{citations}: expected citations for {wanted} pairs of {split}, found {len(pairs[split])} '
        f'pairs; ask for fewer, or for all by {ALL}'
      )
    pairs[split] = pairs[split][: None if wanted == ALL else wanted]
  return {split: pairs[split] for split in data.sizes}, [texts[name] for name in sorted(texts)]


def _encode(
  pairs: Sequence[Pair], texts: Sequence[bytes]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yield (ids, ids, label), one by one."""
  for first, second, label in pairs:
    yield TOKENIZER.encode(texts[first]), TOKENIZER.encode(texts[second]), label


# The data set.


@dataclasses.dataclass(eq=False, kw_only=True)
class RetrievalConfig(tfds.core.BuilderConfig):
  """Which pairs, and where they come from.

  The name is derived and encodes all that determines the bytes of the data set.

  Attributes:
    data: what determines the data; `pairs` is not 'auto'.
    files: what is read: LRA's files by split; or its archive as 'archive'; or 'documents' and
      'citations'. Nothing where the data is known to be prepared.
    digest: of the contents of the files.

  >>> RetrievalConfig(data=RetrievalData(pairs='lra'), digest='0f').name
  'aan_147086_18090_17437_0f'
  >>> RetrievalConfig(data=RetrievalData(pairs='rebuilt', num_test=8), digest='0f').name
  'aan_rebuilt_all_all_8_s0_0f'
  """

  name: str = ''
  data: RetrievalData = RetrievalData(pairs='lra')
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  digest: str = ''

  def __post_init__(self):
    """Derive the name."""
    if self.data.pairs == 'auto':
      raise ValueError("a RetrievalConfig needs data.pairs 'lra' or 'rebuilt'")
    rebuilt = self.data.pairs == 'rebuilt'
    every = dict.fromkeys(BENCHMARK_SIZES, 'all') if rebuilt else BENCHMARK_SIZES
    sizes = [every[s] if size == ALL else size for s, size in self.data.sizes.items()]
    parts = ['aan_rebuilt' if rebuilt else 'aan', *sizes]
    parts += [f's{self.data.seed}'] if rebuilt else []
    parts += [self.digest] if self.digest else []
    self.name = '_'.join(map(str, parts))


_CITATION = """\
@article{radev2013acl,
  title={The ACL Anthology Network Corpus},
  author={Radev, Dragomir R. and Muthukrishnan, Pradeep and Qazvinian, Vahed and
    Abu-Jbara, Amjad},
  journal={Language Resources and Evaluation},
  volume={47},
  number={4},
  pages={919--944},
  year={2013}
}"""


class Retrieval(datasets.Builder):
  """Pairs of papers as the Long Range Arena reads them; see `make_builder`.

  Features: 'inputs1', 'inputs2', uint16[length], ids of `TOKENIZER`; 'target', 1 if one cites the
  other, else 0.
  """

  name = 'retrieval'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = RetrievalConfig()
  DESCRIPTION = 'Pairs of papers as bytes, classified by whether one cites the other.'
  HOMEPAGE = 'https://github.com/google-research/long-range-arena'
  CITATION = _CITATION
  class_names = ('not_citing', 'citing')
  inputs = dict.fromkeys(
    ('inputs1', 'inputs2'),
    tfds.features.Tensor(shape=(None,), dtype=np.uint16, encoding='bytes'),
  )
  DISK_SPACE = '2 GB, meanwhile 11 GB more, and the archive 7.7 GB'

  @property
  def variant(self) -> str:
    """'aan_rebuilt' of rebuilt pairs, '' of LRA's."""
    return 'aan_rebuilt' if self.builder_config.data.pairs == 'rebuilt' else ''

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    if self.builder_config.data.pairs == 'lra':
      return "The three files of LRA's release, as they are; of a smaller number, the first rows."
    return (
      'No paper is in two splits. Test and validation grow in clusters of papers that cite each '
      f'other until they hold {_SHARES["test"]:.0%} and {_SHARES["validation"]:.0%} of all '
      'citations; the other papers are train. Half of the pairs of a split are all its '
      'citations; the other half pairs the same papers, each as often, without citation. Drawn by '
      f'seed {self.builder_config.data.seed}; of a smaller number, the first pairs.'
    )

  def _make_splits(self, dl_manager) -> dict[str, Iterable]:
    del dl_manager
    config = self.builder_config
    if not config.files:
      raise FileNotFoundError(f'{self.data_path} is gone: name the source anew by --source')
    if config.data.pairs == 'rebuilt':
      splits, texts = rebuild(**config.files, data=config.data)
      return {
        split: datasets.Examples(len(pairs), functools.partial(_encode, pairs, texts))
        for split, pairs in splits.items()
      }
    if 'archive' in config.files:
      return _read_archive(config.files['archive'], self.root, config.data.sizes)
    return {
      split: _Rows(functools.partial(open, path, 'rb'), path, split, config.data.sizes[split])
      for split, path in config.files.items()
    }


def make_builder(
  data: RetrievalData, *, data_dir: str, source: str | None = None, task_name: str = 'aan'
) -> Retrieval:
  """Return the builder of the pairs in `source`, or else of LRA's.

  Without `source`, the pairs are those that are prepared already, those that lie in `data_dir`, or
  LRA's, whose archive is downloaded to there. Papers and citations that lie in `data_dir` are used
  with data.pairs='rebuilt' alone.

  Args:
    data: what determines the data.
    data_dir: where prepared data is, or will be, kept.
    source: a directory, or the one above it, with new_aan_pairs.{train,eval,test}.tsv, with an
      archive lra_release* of them, or with documents.jsonl and citations.tsv, compressed or not; or
      an archive itself.
    task_name: LRA's name of the data set: 'aan'.

  Raises:
    ValueError: if the task name is unknown, or if there are several data sets to choose from.
    FileNotFoundError: if the source holds no pairs.
    OSError: if LRA's archive cannot be downloaded.
  """
  if task_name != 'aan':
    raise ValueError(f"unknown task_name {task_name!r} of retrieval: only 'aan' exists")
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  if source:
    config = _choose_in_source(os.path.abspath(os.path.expanduser(source)), data)
  else:
    config = _choose_in_data_dir(data_dir, data)
  builder = Retrieval(data_dir=data_dir, config=config)
  if not is_benchmark(builder):
    logger.warning("Retrieval: %s is not the benchmark's data", config.name)
  return builder


def _choose_in_source(source: str, data: RetrievalData) -> RetrievalConfig:
  kinds = ('lra', 'rebuilt') if data.pairs == 'auto' else (data.pairs,)
  if _is_archive(source) and 'lra' in kinds:
    return _make_config(data, 'lra', {'archive': source})
  if found := _find(source, kinds):
    return _make_config(data, *found)
  raise _missing(source, kinds)


def _is_archive(path: str) -> bool:
  named = path.endswith(sources.ARCHIVE_ENDINGS) or _ARCHIVE.fullmatch(os.path.basename(path))
  return bool(named) and os.path.isfile(path)


def _choose_in_data_dir(data_dir: str, data: RetrievalData) -> RetrievalConfig:
  kind = 'lra' if data.pairs == 'auto' else data.pairs
  config = RetrievalConfig(data=dataclasses.replace(data, pairs=kind))
  if digest := datasets.find_prepared(Retrieval(data_dir=data_dir, config=config)):
    prepared = dataclasses.replace(config, digest=digest)
    logger.info('Retrieval: using %s, which is prepared', prepared.name)
    return prepared
  if found := _find(data_dir, [kind]):
    return _make_config(data, *found)
  if kind == 'rebuilt':
    raise _missing(data_dir, [kind])
  return _make_config(data, kind, {'archive': _fetch_archive(data_dir)})


def _make_config(data: RetrievalData, kind: str, files: Mapping[str, str]) -> RetrievalConfig:
  logger.info('Retrieval: using %s', ', '.join(files.values()))
  digest = sources.digest_files(files.values())
  return RetrievalConfig(data=dataclasses.replace(data, pairs=kind), files=files, digest=digest)


def _fetch_archive(data_dir: str) -> str:
  try:
    with datasets.lock(data_dir):
      return sources.fetch(URL, os.path.join(data_dir, os.path.basename(URL)))
  except OSError as error:
    if error.errno is None:  # It says itself what to do.
      raise
    raise OSError(
      f'cannot download {URL} to {data_dir}: {error}. Make room there (7.7 GB), see to the '
      'permissions, or choose another data_dir'
    ) from error


def _find(place: str, kinds: Sequence[str]) -> tuple[str, dict[str, str]] | None:
  """Return kind and files of the pairs in a directory, or in one right below it.

  Raises:
    ValueError: if there are several.
    FileNotFoundError: if only some of the files are there.
  """
  if not os.path.isdir(place):
    return None
  below = sorted(entry.path for entry in os.scandir(place) if entry.is_dir())
  for directories in ([place], below):
    found = [pairs for path in directories for pairs in _look_into(path, kinds)]
    if len(found) > 1:
      names = '; '.join(', '.join(files.values()) for _, files in found)
      raise ValueError(
        f'{place} holds several sources of pairs: {names}. Name one by --source, or the kind by '
        "data.pairs, 'lra' or 'rebuilt'"
      )
    if found:
      return found[0]
  return None


def _look_into(directory: str, kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
  matching = lambda pattern: sorted(glob.glob(os.path.join(glob.escape(directory), pattern)))
  if 'lra' in kinds:
    files = {split: os.path.join(directory, file) for split, file in _LRA_FILES.items()}
    missing = [os.path.basename(path) for path in files.values() if not os.path.isfile(path)]
    if not missing:
      yield 'lra', files
    elif len(missing) < len(files):
      raise FileNotFoundError(
        f'{directory} lacks {", ".join(missing)}: give the directory that holds all three, or move '
        'the others away'
      )
    else:
      archives = filter(_is_archive, matching('lra_release*'))
      yield from (('lra', {'archive': path}) for path in archives)
  if 'rebuilt' in kinds:
    documents, citations = (
      [path for ending in ('', *sources.COMPRESSED) for path in matching(name + ending)]
      for name in ('documents.jsonl', 'citations.tsv')
    )
    for first, second in itertools.product(documents, citations):
      yield 'rebuilt', {'documents': first, 'citations': second}


def _missing(place: str, kinds: Sequence[str]) -> FileNotFoundError:
  wanted = {
    'lra': f'new_aan_pairs.{{train,eval,test}}.tsv or the archive of them, {URL}',
    'rebuilt': 'documents.jsonl and citations.tsv, which pairs are rebuilt from',
  }
  return FileNotFoundError(
    f'{place} does not hold {"; nor ".join(wanted[kind] for kind in kinds)}: name by '
    '--source the directory that holds them'
  )


def is_benchmark(builder: Retrieval) -> bool:
  """Return whether the data is all of LRA's pairs."""
  data = builder.builder_config.data
  all_of = lambda split, size: size in (ALL, BENCHMARK_SIZES[split])
  return data.pairs == 'lra' and all(all_of(*item) for item in data.sizes.items())
