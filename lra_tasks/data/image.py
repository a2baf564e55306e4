"""Image: what a small grey picture shows, pixel by pixel, as a TFDS data set.

The task is that of the Long Range Arena (Tay et al., ICLR 2021) on CIFAR-10 (Krizhevsky, "Learning
Multiple Layers of Features from Tiny Images", 2009): a picture of 32 x 32 grey pixels is read as a
sequence of 1,024 intensities, row by row; which of ten classes does it belong to?
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from kl_flax.tokenizers import PixelTokenizer
from lra_tasks.data import datasets, image_files, sources
from lra_tasks.data.image_files import LENGTH, SIZES, Pictures

logger = logging.getLogger(__name__)

TOKENIZER = PixelTokenizer(LENGTH)


@dataclasses.dataclass(frozen=True)
class ImageData:
  """What determines the data, and how the model sees it.

  Attributes:
    num_train: pictures of the training batches, validation included; of a source that holds more,
      the first in TFDS' order.
    num_test: the same of the test batch.
    mask_zero: hide black pixels from the model, as LRA does, which takes them for padding. Nothing
      on disk depends on it.

  Raises:
    ValueError: if a size is too small or too large.
  """

  num_train: int = SIZES['train']
  num_test: int = SIZES['test']
  mask_zero: bool = False

  def __post_init__(self) -> None:
    """Check the values."""
    for split, least in (('train', 10), ('test', 1)):
      value = getattr(self, f'num_{split}')
      if not least <= value <= SIZES[split]:
        raise ValueError(f'num_{split} must lie in {least} .. {SIZES[split]}, got {value}')

  @property
  def is_whole(self) -> bool:
    """Whether these are all pictures."""
    return {'train': self.num_train, 'test': self.num_test} == SIZES


# The order.


@functools.cache
def tfds_positions(split: str) -> np.ndarray:
  """Return where TFDS' cifar10 stores each picture of 'train' or 'test', int64[n].

  TFDS sorts by a hash of a picture's index, salted with the name of the split, and reads in this
  order. For train it is the order that was published with CIFAR-10N (Wei et al., ICLR 2022).
  """
  order = sorted(range(SIZES[split]), key=hashing.Hasher(split).hash_key)
  return np.argsort(order)


def split_pictures(
  parts: dict[str, Pictures], data: ImageData, path: str = 'the source'
) -> dict[str, Pictures]:
  """Return train (90 %), validation (the rest of train) and test, each in TFDS' order, as LRA does.

  Args:
    parts: the pictures of 'train' and 'test', in any order.
    data: how many of them.
    path: where they come from, for the message.

  Raises:
    ValueError: if there are fewer than `data` asks for, or more than the benchmark has.
  """
  kept = {}
  for split, most in SIZES.items():
    found, wanted = len(parts[split].labels), getattr(data, f'num_{split}')
    if not wanted <= found <= most:
      expected = wanted if wanted == most else f'{wanted} to {most}'
      raise ValueError(
        f'{path}: expected {expected} pictures of {split}, found {found}; fetch it anew, from '
        f'{image_files.URL}, or set --config.data.num_{split} to take fewer'
      )
    order = np.argsort(tfds_positions(split)[parts[split].indices])
    kept[split] = parts[split].take(order[:wanted])
  num_kept = data.num_train - data.num_train // 10
  return {
    'train': kept['train'].take(slice(num_kept)),
    'validation': kept['train'].take(slice(num_kept, None)),
    'test': kept['test'],
  }


# The data set.


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageConfig(tfds.core.BuilderConfig):
  """Which pictures, and where they come from.

  The name is derived and encodes all that determines the bytes of the data set.

  Attributes:
    data: what determines the data.
    source: official batches or the table of image files, read from there; None downloads them.
    digest: digits that stand for the contents, or '' of the original batches.
    kind: 'cifar10' of batches, 'cifar10_jpeg' or 'cifar10_png' of image files.
    decoder: what decoded JPEG files, on which their pixels depend; '' of all else.

  >>> ImageConfig(data=ImageData()).name
  'cifar10_50000_10000'
  """

  name: str = ''
  data: ImageData = ImageData()
  source: str | None = None
  digest: str = ''
  kind: str = 'cifar10'
  decoder: str = ''

  def __post_init__(self):
    """Derive the name."""
    parts = (self.kind, self.data.num_train, self.data.num_test, self.digest, self.decoder)
    self.name = '_'.join(str(part) for part in parts if part)


_CITATION = """\
@techreport{krizhevsky2009learning,
  title={Learning Multiple Layers of Features from Tiny Images},
  author={Krizhevsky, Alex},
  institution={University of Toronto},
  year={2009}
}"""


class Image(datasets.Builder):
  """Pictures as the Long Range Arena reads them; see `make_builder`.

  Features: 'inputs', uint8[1024], ids of `TOKENIZER`; 'target', 0 to 9.
  """

  name = 'image'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = ImageConfig()
  DESCRIPTION = 'Grey pictures as intensities, row by row, of ten classes.'
  HOMEPAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'
  CITATION = _CITATION
  class_names = image_files.CLASSES
  inputs = {'inputs': tfds.features.Tensor(shape=(LENGTH,), dtype=np.uint8, encoding='bytes')}
  DISK_SPACE = '66 MB, and the archive 170 MB'

  @property
  def variant(self) -> str:
    """The kind of the copies, '' of official batches."""
    kind = self.builder_config.kind
    return '' if kind == 'cifar10' else kind

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    config = self.builder_config
    rule = (
      f'The first {config.data.num_train} training pictures in the order of TFDS, of which the '
      f'last 10 % are validation, and the first {config.data.num_test} test pictures.'
    )
    if config.decoder:
      rule += f' From image files, decoded by {config.decoder}: not the original pixels.'
    elif self.variant:
      rule += ' From PNG files, which keep the pixels that they were made of.'
    return rule

  def _make_splits(self, dl_manager: Any) -> dict[str, datasets.Examples]:
    del dl_manager
    source = self.builder_config.source or _fetch_archive(self.root)
    if image_files.is_index(source):
      entries = image_files.read_index(source, tfds_positions)
      parts = image_files.read_copies(source, entries)
    else:
      parts = image_files.read_originals(source)
    splits = split_pictures(parts, self.builder_config.data, source)
    return {
      name: datasets.Examples(len(part.labels), functools.partial(zip, part.grey, part.labels))
      for name, part in splits.items()
    }


def _fetch_archive(directory: str) -> str:
  path = os.path.join(directory, os.path.basename(image_files.URL))
  return sources.fetch(image_files.URL, path, image_files.ARCHIVE_SHA256)


def make_builder(
  data: ImageData, *, data_dir: str, source: str | None = None, task_name: str = 'cifar10'
) -> Image:
  """Return the builder of the pictures in `source`, or else of the original ones.

  Without `source`, the pictures are those that are prepared already, official batches that lie in
  `data_dir`, or are downloaded to there.

  Args:
    data: what determines the data.
    data_dir: where prepared data is, or will be, kept.
    source: official batches (for C or Python; a directory or a tar archive), the table of image
      files (see `image_files.read_index`), or a directory that holds one of these.
    task_name: LRA's name of the data set: 'cifar10'.

  Raises:
    ValueError: if the task name is unknown, or the source is damaged, or a file that is neither
      archive nor table.
    FileNotFoundError: if the source holds no pictures.
  """
  if task_name != 'cifar10':
    raise ValueError(f"unknown task_name {task_name!r} of image: only 'cifar10' exists")
  original = Image(data_dir=data_dir, config=ImageConfig(data=data))
  if source:
    path = _find(source)
  else:
    there = os.path.isdir(data_dir) and not os.path.exists(original.data_dir)
    path = image_files.find_batches(data_dir) if there else None
    if path is None:
      return original
  config = _identify(path, data)
  logger.info('Image: using the pictures in %s', path)
  if config.digest and data.is_whole:
    logger.warning('Image: %s differs from the original batches: this is not the benchmark', path)
  return Image(data_dir=data_dir, config=config)


def _find(source: str) -> str:
  path: str | None = source
  if os.path.isdir(source):
    path = image_files.find_batches(source) or image_files.find_index(source)
  if not path or not os.path.exists(path):
    raise FileNotFoundError(
      f'{source} holds neither official batches (cifar-10-batches-bin, cifar-10-batches-py, or an '
      'archive cifar-10-*.tar.gz) nor a table index.tsv of image files: fetch '
      f'{image_files.URL} and name the file by --source'
    )
  if not image_files.is_index(path):
    sources.check_archive(path, 'the batches, or index.tsv and image files')
  return path


def _identify(path: str, data: ImageData) -> ImageConfig:
  if not image_files.is_index(path):
    return ImageConfig(data=data, source=path, digest=image_files.digest_batches(path))
  entries = image_files.read_index(path, tfds_positions)
  form = image_files.file_format(entries)
  return ImageConfig(
    data=data,
    source=path,
    digest=image_files.digest_images(path, entries),
    kind=f'cifar10_{form}',
    decoder=image_files.decoder() if form == 'jpeg' else '',
  )


def is_benchmark(builder: Image) -> bool:
  """Return whether the data is all of the original pictures."""
  config = builder.builder_config
  return not config.digest and config.data.is_whole
