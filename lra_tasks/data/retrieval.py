"""Retrieval: does one of two papers cite the other? Byte by byte, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., ICLR 2021), which calls it matching, on the
ACL Anthology Network (Radev et al., "The ACL Anthology Network Corpus", 2013), AAN. Its pairs are
LRA's files. Who has no more than papers and citations can have pairs drawn from them: another data
set, which has another name.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import ByteTokenizer
from lra_tasks.data import datasets, retrieval_files, sources
from lra_tasks.data.retrieval_files import ALL, SIZE_OPTIONS
from lra_tasks.data.retrieval_papers import SHARES, rebuild

logger = logging.getLogger(__name__)

TOKENIZER = ByteTokenizer()

PAIRS = ('auto', 'lra', 'rebuilt')


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
    for name in SIZE_OPTIONS.values():
      value = getattr(self, name)
      if value < 2 and value != ALL:
        raise ValueError(f'{name} must be at least 2, or {ALL} for all, got {value}')

  @property
  def sizes(self) -> dict[str, int]:
    """The number of pairs of each split, or ALL."""
    return {split: getattr(self, name) for split, name in SIZE_OPTIONS.items()}


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
    benchmark = retrieval_files.BENCHMARK_SIZES
    every = dict.fromkeys(benchmark, 'all') if rebuilt else benchmark
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
      f'other until they hold {SHARES["test"]:.0%} and {SHARES["validation"]:.0%} of all '
      'citations; the other papers are train. Half of the pairs of a split are all its '
      'citations; the other half pairs the same papers, each as often, without citation. Drawn by '
      f'seed {self.builder_config.data.seed}; of a smaller number, the first pairs.'
    )

  def _make_splits(self, dl_manager) -> dict[str, Iterable]:
    del dl_manager
    config = self.builder_config
    if not config.files:
      raise FileNotFoundError(f'{self.data_path} is gone: name the source anew by --source')
    data, files = config.data, config.files
    if data.pairs == 'rebuilt':
      splits = rebuild(**files, seed=data.seed, sizes=data.sizes)
    elif 'archive' in files:
      splits = retrieval_files.read_archive(files['archive'], self.root, data.sizes)
    else:
      splits = retrieval_files.open_files(files, data.sizes)
    return {
      split: datasets.Examples(len(rows), functools.partial(_encode, rows))
      for split, rows in splits.items()
    }


def _encode(
  rows: Iterable[tuple[bytes, bytes, int]],
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yield (ids, ids, label), one by one."""
  for first, second, label in rows:
    yield TOKENIZER.encode(first), TOKENIZER.encode(second), label


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
  if source:
    config = _choose_in_source(source, data)
  else:
    config = _choose_in_data_dir(data_dir, data)
  builder = Retrieval(data_dir=data_dir, config=config)
  if not is_benchmark(builder):
    logger.warning("Retrieval: %s is not the benchmark's data", config.name)
  return builder


def _choose_in_source(source: str, data: RetrievalData) -> RetrievalConfig:
  kinds = ('lra', 'rebuilt') if data.pairs == 'auto' else (data.pairs,)
  if retrieval_files.is_archive(source) and 'lra' in kinds:
    return _make_config(data, 'lra', {'archive': source})
  if found := retrieval_files.find(source, kinds):
    return _make_config(data, *found)
  raise retrieval_files.not_found(source, kinds)


def _choose_in_data_dir(data_dir: str, data: RetrievalData) -> RetrievalConfig:
  kind = 'lra' if data.pairs == 'auto' else data.pairs
  config = RetrievalConfig(data=dataclasses.replace(data, pairs=kind))
  if digest := datasets.find_prepared(Retrieval(data_dir=data_dir, config=config)):
    prepared = dataclasses.replace(config, digest=digest)
    logger.info('Retrieval: using %s, which is prepared', prepared.name)
    return prepared
  if found := retrieval_files.find(data_dir, [kind]):
    return _make_config(data, *found)
  if kind == 'rebuilt':
    raise retrieval_files.not_found(data_dir, [kind])
  return _make_config(data, kind, {'archive': retrieval_files.fetch_archive(data_dir)})


def _make_config(data: RetrievalData, kind: str, files: Mapping[str, str]) -> RetrievalConfig:
  logger.info('Retrieval: using %s', ', '.join(files.values()))
  digest = sources.digest_files(files.values())
  return RetrievalConfig(data=dataclasses.replace(data, pairs=kind), files=files, digest=digest)


def is_benchmark(builder: Retrieval) -> bool:
  """Return whether the data is all of LRA's pairs."""
  data = builder.builder_config.data
  all_of = lambda split, size: size in (ALL, retrieval_files.BENCHMARK_SIZES[split])
  return data.pairs == 'lra' and all(all_of(*item) for item in data.sizes.items())
