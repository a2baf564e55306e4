"""Pathfinder: are two marked tips joined by one dashed path? As a TFDS data set.

The task is that of the Long Range Arena (Tay et al., ICLR 2021), at sides of 32, 64, 128 (Path-X)
and 256 pixels, after Linsley et al. (NeurIPS 2018) and Kim et al. (ICLR 2020). Images are generated
(see `lra_tasks.data.pathfinder_images`), or read from LRA's release.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from kl_flax.errors import unknown_name
from lra_tasks.data import datasets, pathfinder_images, sources
from lra_tasks.data.pathfinder_images import PathfinderParameters

logger = logging.getLogger(__name__)

# Of LRA's release, by difficulty.
_DIRECTORIES = {
  'easy': 'curv_baseline',
  'inter': 'curv_contour_length_9',
  'hard': 'curv_contour_length_14',
}
_RELEASED = 200_000


@dataclasses.dataclass(frozen=True)
class PathfinderData:
  """What determines the data, besides resolution and difficulty.

  Attributes:
    num_train: number of training examples, even: of generated images, half of either class; of
      LRA's, the first in shuffled order, and all of the split by default.
    num_valid: the same for validation.
    num_test: the same for test.
    seed: 0 to 2**32 - 1, of generated images, or of the order of LRA's.
    mask_zero: whether the model takes black pixels for padding, as LRA's Transformer does; the data
      on disk does not depend on it.

  Raises:
    ValueError: if a number is out of range, or a size odd.
  """

  num_train: int = 160_000
  num_valid: int = 20_000
  num_test: int = 20_000
  seed: int = 0
  mask_zero: bool = False

  def __post_init__(self) -> None:
    """Check the values."""
    for name in ('num_train', 'num_valid', 'num_test'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 2 or value % 2:
        raise ValueError(f'{name} must be an even integer of at least 2, got {value!r}')
    if isinstance(self.seed, bool) or not isinstance(self.seed, int):
      raise ValueError(f'seed must be an integer, got {self.seed!r}')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed must lie in 0 .. 2**32 - 1, got {self.seed}')
    if not isinstance(self.mask_zero, bool):
      raise ValueError(f'mask_zero must be True or False, got {self.mask_zero!r}')

  @property
  def sizes(self) -> tuple[int, int, int]:
    """The numbers of training, validation and test examples."""
    return self.num_train, self.num_valid, self.num_test


# LRA's release.


class Sample(NamedTuple):
  """One row of the metadata.

  Attributes:
    path: of the image.
    label: 1 if both markers lie on one path.
    size: of the image file, in bytes.
    place: file and line of the row.
  """

  path: str
  label: int
  size: int
  place: str


def find_release(directory: str, resolution: int, difficulty: str) -> str | None:
  """Return where LRA's images lie: in `directory`/pathfinder32 or in itself, if they do.

  A directory with the name of another resolution is passed over.
  """
  folder, name = _DIRECTORIES[difficulty], f'pathfinder{resolution}'
  paths = [os.path.join(directory, name)]
  own = os.path.basename(os.path.normpath(directory))
  if own == name or not re.fullmatch(r'pathfinder\d+', own):
    paths.append(directory)
  for path in paths:
    if os.path.isdir(os.path.join(path, folder, 'metadata')):
      return os.path.join(path, folder)
  return None


def _metadata_files(directory: str) -> list[pathlib.Path]:
  """Return the files of metadata in the order of their numbers."""
  paths = list((pathlib.Path(directory) / 'metadata').glob('*.npy'))
  if not paths:
    raise ValueError(f'{directory}/metadata holds no files *.npy; unpack the release anew')
  return sorted(paths, key=lambda path: (len(path.stem), path.stem))


def _read_row(line: bytes) -> tuple[str, str, int]:
  try:
    columns = line.decode('ascii').split()
  except UnicodeDecodeError:
    raise ValueError(f'expected text, found {line[:40]!r}') from None
  if len(columns) < 4:
    raise ValueError(
      f'expected 4 or more columns (directory, file, number, label, ...), found {len(columns)}'
    )
  if columns[3] not in ('0', '1'):
    raise ValueError(f'expected label 0 or 1 in column 4, found {columns[3]!r}')
  return columns[0], columns[1], int(columns[3])


def read_release(directory: str) -> list[Sample]:
  """Return the samples of LRA's release, by metadata file and line; empty image files are left out.

  Args:
    directory: such as `pathfinder32/curv_contour_length_14`, with `metadata/<k>.npy`, which are
      lines of text in spite of their names, and `imgs/<k>/sample_<n>.png`.

  Raises:
    ValueError: if a row is malformed, or its image is missing; the message names file and line.
  """
  samples, num_empty = [], 0
  for file in _metadata_files(directory):
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
      place = f'{file}, line {number}'
      try:
        folder, name, label = _read_row(line)
        path = os.path.join(directory, folder, name)
        if not os.path.isfile(path):
          raise ValueError(f'its image {path} is missing')
      except ValueError as error:
        raise ValueError(f'{place}: {error}; unpack the release anew') from None
      if size := os.path.getsize(path):
        samples.append(Sample(path, label, size, place))
      else:
        num_empty += 1
  if not samples:
    raise ValueError(f'{directory}: expected images, found none that is not empty')
  if num_empty:
    logger.warning('Pathfinder: left out %d empty images of %s, as LRA does', num_empty, directory)
  return samples


def digest_release(directory: str, samples: Sequence[Sample]) -> str:
  """Return 16 hexadecimal digits that stand for LRA's files.

  They are of the contents of the metadata and of name and size of each image, not of its contents,
  as reading 200,000 files at every start would take minutes: an image that is replaced by another
  of the same size in bytes goes unnoticed.
  """
  digest = hashlib.sha256()
  for file in _metadata_files(directory):
    digest.update(sources.digest(file))
  for sample in samples:
    name = os.path.relpath(sample.path, directory)
    digest.update(f'{name}\0{sample.size}\n'.encode())
  return digest.hexdigest()[:16]


def read_image(path: str, side: int) -> np.ndarray:
  """Return a grey PNG image as uint8[side, side].

  Raises:
    ValueError: if it cannot be decoded, or has another size or colours.
  """
  way_out = 'unpack the release anew'
  try:
    with PIL.Image.open(path) as image:
      image.load()
      found = f'{image.width} x {image.height}, mode {image.mode}'
      if image.mode == 'L' and image.width == image.height and image.width in _DISK_SPACE:
        size = image.width
        way_out = f'these are images of {size} x {size}: use --task=pathfinder{size}'
      if (image.width, image.height, image.mode) == (side, side, 'L'):
        return np.asarray(image)
  except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Pillow raises each.
    if getattr(error, 'errno', None) is not None:
      raise
    found = f'no image that can be decoded ({error})'
  raise ValueError(
    f'{path}: expected a grey image of {side} x {side} pixels (mode L), found {found}; {way_out}'
  )


def _read_images(samples: Sequence[Sample], side: int) -> Iterator[tuple[np.ndarray, int]]:
  for sample in samples:
    try:
      yield read_image(sample.path, side).reshape(-1), sample.label
    except ValueError as error:
      raise ValueError(f'{sample.place}: {error}') from None


def split_release(samples: Sequence[Sample], data: PathfinderData) -> dict[str, list[Sample]]:
  """Return the samples of train (80 %), validation and test (10 % each), shuffled by `data.seed`.

  Raises:
    ValueError: if `data` asks for more than a split holds; the default size means all of it.
  """
  # Of NumPy's generators, the one that gives the same numbers in all versions.
  order = np.random.RandomState(data.seed).permutation(len(samples)).tolist()
  shuffled = [samples[i] for i in order]
  first, second = len(samples) * 8 // 10, len(samples) * 9 // 10
  parts = {
    'num_train': shuffled[:first],
    'num_valid': shuffled[first:second],
    'num_test': shuffled[second:],
  }
  for name, part in parts.items():
    wanted, default = getattr(data, name), getattr(PathfinderData, name)
    if wanted == default:
      continue
    if wanted > len(part):
      raise ValueError(
        f'{name}={wanted} is more than the {len(part)} images that are there: set '
        f'--config.data.{name} to fewer, or to {default} for all'
      )
    parts[name] = part[:wanted]
  return dict(zip(('train', 'validation', 'test'), parts.values(), strict=True))


# The data set.


def _make_images(
  params: PathfinderParameters, seed: int, start: int, stop: int
) -> Iterator[tuple[np.ndarray, int]]:
  for images in pathfinder_images.stream(params, seed, start, stop):
    yield from zip(images.pixels.reshape(len(images), -1), images.labels.tolist(), strict=True)


@dataclasses.dataclass(eq=False, kw_only=True)
class PathfinderConfig(tfds.core.BuilderConfig):
  """Which images, and where they come from: generated, or read from `directory`.

  The name is derived and encodes all that determines the bytes of the data set.

  Attributes:
    resolution: 32, 64, 128 or 256.
    difficulty: 'easy', 'inter' or 'hard'.
    data: sizes and seed.
    directory: of LRA's images.
    digest: what `digest_release` gives for them.

  >>> PathfinderConfig().name
  'pathfinder32_hard_160000_20000_20000_s0'
  """

  name: str = ''
  resolution: int = 32
  difficulty: str = 'hard'
  data: PathfinderData = PathfinderData()
  directory: str | None = None
  digest: str = ''

  def __post_init__(self):
    """Derive the name."""
    parts = [f'pathfinder{self.resolution}', self.difficulty]
    sizes = self.data.sizes
    if self.directory:
      parts += ['png', self.digest]
      default = PathfinderData().sizes
      if sizes == default:
        sizes = ()
      else:
        sizes = ['all' if n == m else n for n, m in zip(sizes, default, strict=True)]
    self.name = '_'.join(map(str, [*parts, *sizes, f's{self.data.seed}']))


_CITATION = """\
@inproceedings{kim2020disentangling,
  title={Disentangling neural mechanisms for perceptual grouping},
  author={Junkyung Kim and Drew Linsley and Kalpit Thakkar and Thomas Serre},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""


class Pathfinder(datasets.Builder):
  """Pathfinder of the Long Range Arena; see `make_builder`.

  Features: 'inputs', uint8[side * side], intensities row by row; 'target', 0 or 1.
  """

  name = 'pathfinder'
  VERSION = tfds.core.Version('1.0.0')
  DEFAULT_CONFIG = PathfinderConfig()
  DESCRIPTION = 'Images of dashed paths, classified by whether one path joins two markers.'
  HOMEPAGE = 'https://github.com/google-research/long-range-arena'
  CITATION = _CITATION
  class_names = ('negative', 'positive')

  @property
  def DISK_SPACE(self) -> str:
    """What the benchmark's data takes, in words."""
    return _DISK_SPACE[self.builder_config.resolution]

  @property
  def inputs(self) -> dict[str, tfds.features.Tensor]:
    """Features of the inputs."""
    shape = (self.builder_config.resolution**2,)
    return {'inputs': tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding='bytes')}

  @property
  def variant(self) -> str:
    """The difficulty, '' if it is 'hard'."""
    difficulty = self.builder_config.difficulty
    return '' if difficulty == 'hard' else difficulty

  @property
  def split_rule(self) -> str:
    """Which example is in which split, in words."""
    data = self.builder_config.data
    if self.builder_config.directory:
      return (
        "LRA's images by metadata file and line, without empty ones, shuffled by seed "
        f'{data.seed}: the first 80 % are train, the next 10 % validation, the last 10 % test; '
        'of a smaller number, the first of the split.'
      )
    return (
      f'Of the images in the order of generation the first {data.num_test} are test, the next '
      f'{data.num_valid} validation, the last {data.num_train} train.'
    )

  def _make_splits(self, dl_manager) -> dict[str, datasets.Examples]:
    del dl_manager
    config, data = self.builder_config, self.builder_config.data
    if config.directory:
      parts = split_release(read_release(config.directory), data)
      return {
        name: datasets.Examples(len(part), functools.partial(_read_images, part, config.resolution))
        for name, part in parts.items()
      }
    params = pathfinder_images.parameters(config.resolution, config.difficulty)
    valid, train = data.num_test, data.num_test + data.num_valid
    ranges = {'train': (train, train + data.num_train), 'validation': (valid, train)}
    ranges['test'] = 0, valid
    return {
      name: datasets.Examples(
        stop - start, functools.partial(_make_images, params, data.seed, start, stop)
      )
      for name, (start, stop) in ranges.items()
    }


_DISK_SPACE = {32: '0.1 GB', 64: '0.6 GB', 128: '0.9 GB', 256: '0.7 GB'}


def make_builder(
  data: PathfinderData,
  *,
  resolution: int,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
) -> Pathfinder:
  """Return the builder of LRA's images, if there are any, or else of generated ones.

  LRA's lie in `pathfinder32/curv_contour_length_14` (or another resolution or difficulty) in
  `source`; without `source`, in `data_dir`.

  Args:
    data: sizes and seed.
    resolution: 32, 64, 128 or 256.
    data_dir: where prepared data is, or will be, kept.
    source: directory that must hold LRA's images.
    task_name: LRA's name, 'pathfinder32_hard' or the like: 'easy', 'inter' or 'hard' (the default).

  Raises:
    ValueError: if the task name is unknown, or LRA's metadata is damaged.
    FileNotFoundError: if `source` holds no such images.
  """
  names = {f'pathfinder{resolution}_{difficulty}': difficulty for difficulty in _DIRECTORIES}
  task_name = task_name or f'pathfinder{resolution}_hard'
  if task_name not in names:
    raise ValueError(unknown_name('task_name', task_name, names))
  difficulty = names[task_name]
  where = source or data_dir
  directory = find_release(where, resolution, difficulty)
  if source and not directory:
    raise FileNotFoundError(
      f'{where} holds no pathfinder{resolution}/{_DIRECTORIES[difficulty]}/metadata: name the '
      "directory that LRA's release was unpacked to, or leave --source out to have images generated"
    )
  digest = ''
  if directory:
    logger.info('Pathfinder: using the images in %s', directory)
    digest = digest_release(directory, read_release(directory))
  config = PathfinderConfig(
    resolution=resolution, difficulty=difficulty, data=data, directory=directory, digest=digest
  )
  return Pathfinder(data_dir=data_dir, config=config)


def is_benchmark(builder: Pathfinder) -> bool:
  """Return whether the data has LRA's size and difficulty, whatever the seed or the files."""
  config = builder.builder_config
  if config.difficulty != 'hard' or config.data.sizes != PathfinderData().sizes:
    return False
  if config.directory:
    # Some of the release's files are empty.
    total = sum(split.num_examples for split in builder.info.splits.values())
    return 0.99 * _RELEASED <= total <= _RELEASED
  return True
