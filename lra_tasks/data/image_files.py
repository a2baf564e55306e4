"""CIFAR-10 in the forms in which it lies about: official batches, or image files with a table.

Whatever the form, pictures come out grey, as LRA has them, with the places that they have in the
original data.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import PIL
import PIL.features
import PIL.Image

from lra_tasks.console import show_progress
from lra_tasks.data import sources

SIDE = 32
LENGTH = SIDE * SIDE
SIZES = {'train': 50_000, 'test': 10_000}
# The names of labels 0 to 9.
CLASSES = (
  'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
)  # fmt: skip

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
# As TFDS records it for its own cifar10.
ARCHIVE_SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
# Of the files in that archive, as published: any other copy, in whatever form, shows as such.
BATCHES_SHA256 = {
  'data_batch_1': 'cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5',
  'data_batch_2': 'a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed',
  'data_batch_3': 'bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67',
  'data_batch_4': '014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48',
  'data_batch_5': '755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add',
  'test_batch': '8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b',
}

_ROW_BYTES = 1 + 3 * LENGTH  # A label, then all red, all green and all blue intensities.
_DIRECTORIES = ('cifar-10-batches-bin', 'cifar-10-batches-py')
_BATCH = re.compile(rf'(?:.*/)?(?P<stem>{"|".join(BATCHES_SHA256)})(?:\.bin)?')
_IMAGE = re.compile(r'(?:\./)?(?P<member>.*\.(?:jpe?g|png))', re.IGNORECASE)
_INDEX_NAMES = ('index.tsv', 'index.tsv.xz', 'index.tsv.gz')
_INDEX_COLUMNS = ('split', 'member', 'label', 'original_index', 'tfds_position')


class Pictures(NamedTuple):
  """The pictures of one split.

  Attributes:
    grey: uint8[n, 1024], intensities, row by row.
    labels: uint8[n], 0 .. 9.
    indices: int64[n], places in the original data, from 0 in each split.
  """

  grey: np.ndarray
  labels: np.ndarray
  indices: np.ndarray

  def take(self, selected: np.ndarray | slice) -> Pictures:
    """Return the selected ones."""
    return Pictures(*(values[selected] for values in self))


def to_grey(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
  """Return intensities as `tf.image.rgb_to_grayscale` makes them of uint8: what LRA reads.

  In float32, each channel x counts as x · (1/255), with weight 0.2989, 0.5870 or 0.1140; the sum is
  taken from left to right, multiplied by 255.5 and cut to an integer. All greys stay as they are,
  white included. Of the 2^24 colours, 47 get a neighbouring intensity if the sum is taken the other
  way round, 31 with fused multiply-add: in these, builds of TensorFlow may differ.

  Args:
    red: uint8 of any shape.
    green: likewise.
    blue: likewise.

  >>> channels = np.uint8([255, 255]), np.uint8([0, 255]), np.uint8([0, 255])
  >>> to_grey(*channels).tolist()
  [76, 255]
  """
  scale = np.float32(1 / 255)
  channels = zip((red, green, blue), (0.2989, 0.5870, 0.1140), strict=True)
  red, green, blue = (x.astype(np.float32) * scale * np.float32(w) for x, w in channels)
  return ((red + green + blue) * np.float32(255.5)).astype(np.uint8)


# Finding.


def find_batches(directory: str) -> str | None:
  """Return where the official batches lie: a directory or an archive in `directory`, or itself.

  Raises:
    ValueError: if there are several.
  """
  if any(_BATCH.fullmatch(name) for name in os.listdir(directory)):
    return directory
  inside = lambda name: os.path.join(directory, name)
  found = [inside(name) for name in _DIRECTORIES if os.path.isdir(inside(name))]
  # An archive beside a directory is what that was unpacked from.
  return sources.the_only(found or sources.find_archives(directory, 'cifar-10-*'), directory)


def find_index(directory: str) -> str | None:
  """Return the table that says what the image files in a directory show.

  Raises:
    ValueError: if there are several.
  """
  paths = [os.path.join(directory, name) for name in _INDEX_NAMES]
  return sources.the_only([path for path in paths if os.path.isfile(path)], directory)


def is_index(path: str) -> bool:
  """Return whether a path is that of such a table, by its ending."""
  return path.endswith(('.tsv', '.tsv.xz', '.tsv.gz'))


# Official batches.


class _PickledDtype:
  """Stands in for numpy.dtype: keeps the name."""

  def __init__(self, name: bytes, *_: Any):
    self.name = name

  def __setstate__(self, state: Any) -> None:
    pass


class _PickledArray:
  """Stands in for numpy.ndarray: takes bytes alone."""

  def __init__(self, *_: Any):
    self.values = np.zeros((0, 0), np.uint8)

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, is_fortran, content = state
    if dtype.name != b'u1':
      raise pickle.UnpicklingError(f'it holds an array of {dtype.name!r}, not of bytes')
    order = 'F' if is_fortran else 'C'
    self.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
  """Reads what the batches hold and nothing else: a pickle can name any code to be run."""

  _ALLOWED = {
    ('numpy.core.multiarray', '_reconstruct'): _PickledArray,
    ('numpy', 'ndarray'): None,  # An argument of the one above, which does not need it.
    ('numpy', 'dtype'): _PickledDtype,
  }

  def find_class(self, module: str, name: str) -> Any:
    """Return the stand-in of a class or function."""
    if (module, name) not in self._ALLOWED:
      raise pickle.UnpicklingError(
        f'it asks for {module}.{name}, which no batch of CIFAR-10 does; do not trust it'
      )
    return self._ALLOWED[module, name]


def _parse_binary(content: bytes) -> np.ndarray:
  """Return rows, uint8[n, 3073], of a file such as data_batch_1.bin."""
  rows, rest = divmod(len(content), _ROW_BYTES)
  if rest or not rows:
    raise ValueError(
      f'expected rows of {_ROW_BYTES} bytes, found {rows} and {rest} bytes behind them'
    )
  return np.frombuffer(content, np.uint8).reshape(rows, _ROW_BYTES)


def _parse_python(content: bytes) -> np.ndarray:
  """Return the same of a file such as data_batch_1."""
  try:
    batch = _Unpickler(io.BytesIO(content), encoding='bytes').load()
    pixels = batch[b'data'].values
    labels = np.array(batch[b'labels'], np.int64)
  except Exception as error:  # A damaged pickle may raise any.
    problem = f'{type(error).__name__}: {error}'
    raise ValueError(f'expected a pickled batch of pictures, found none ({problem})') from error
  if not labels.size or pixels.shape != (*labels.shape, _ROW_BYTES - 1):
    raise ValueError(
      f'expected pixels [n, {_ROW_BYTES - 1}] and labels [n], '
      f'found {list(pixels.shape)} and {list(labels.shape)}'
    )
  _check_labels(labels)  # Before they become bytes.
  return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)


def _check_labels(labels: np.ndarray) -> None:
  wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
  if wrong.size:
    raise ValueError(
      f'picture {wrong[0]}: expected a label of 0 to 9, found {labels[wrong[0]]} '
      f'({wrong.size} of {labels.size} are none)'
    )


def read_batches(path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yield name and rows, uint8[n, 3073], of the six batches, in the order of the source.

  A row is a label, 0 to 9, and the intensities of 32 x 32 pixels: all red, all green, all blue.

  Args:
    path: a directory of batches or a tar archive of it, in the form for C (`data_batch_1.bin`)
      or for Python (`data_batch_1`, a pickle, of which nothing is run).

  Raises:
    ValueError: if a batch is missing, there twice or damaged, or if the archive is damaged.
  """
  path = os.fspath(path)
  files = _read_directory if os.path.isdir(path) else _read_archive
  seen: set[str] = set()
  for name, content in files(path):
    stem = _BATCH.fullmatch(name)['stem']
    parse = _parse_binary if name.endswith('.bin') else _parse_python
    try:
      if stem in seen:
        raise ValueError(f'another file holds {stem}, too')
      rows = parse(content)
      _check_labels(rows[:, 0])
    except ValueError as error:
      raise ValueError(f'{path}: {name}: {error}; fetch it anew, from {URL}') from error
    seen.add(stem)
    yield stem, rows
  missing = [stem for stem in BATCHES_SHA256 if stem not in seen]
  if missing:
    raise ValueError(f'{path} lacks {", ".join(missing)}; fetch it anew, from {URL}')


def _read_directory(path: str) -> Iterator[tuple[str, bytes]]:
  for name in sorted(os.listdir(path)):
    if _BATCH.fullmatch(name):
      with open(os.path.join(path, name), 'rb') as file:
        yield name, file.read()


def _read_archive(path: str) -> Iterator[tuple[str, bytes]]:
  return sources.read_archive(path, _BATCH, URL)


def digest_batches(path: str) -> str:
  """Return '' for the original batches, else 16 hexadecimal digits that stand for the contents."""
  found = {stem: hashlib.sha256(rows).hexdigest() for stem, rows in _show(read_batches(path), path)}
  if found == BATCHES_SHA256:
    return ''
  return hashlib.sha256(''.join(found[stem] for stem in BATCHES_SHA256).encode()).hexdigest()[:16]


def read_originals(path: str) -> dict[str, Pictures]:
  """Return the pictures of 'train' and 'test' from official batches; see `read_batches`."""
  batches = {}
  for stem, rows in _show(read_batches(path), path):
    batches[stem] = _grey_rows(rows), rows[:, 0].copy()
  parts = {}
  for split in SIZES:
    stems = [stem for stem in BATCHES_SHA256 if (stem == 'test_batch') == (split == 'test')]
    grey, labels = map(np.concatenate, zip(*(batches[stem] for stem in stems), strict=True))
    parts[split] = Pictures(grey, labels, np.arange(len(labels)))
  return parts


def _grey_rows(rows: np.ndarray) -> np.ndarray:
  grey = np.empty((len(rows), LENGTH), np.uint8)
  for start in range(0, len(rows), 1000):  # As float32, all would take hundreds of MB.
    pixels = rows[start : start + 1000, 1:].reshape(-1, 3, LENGTH)
    grey[start : start + 1000] = to_grey(*pixels.swapaxes(0, 1))
  return grey


# Copies as image files.


class Entry(NamedTuple):
  """What a row of the table says of an image file; index is its place in the original split."""

  split: str
  label: int
  index: int


def read_index(
  path: str | os.PathLike[str], positions: Callable[[str], np.ndarray]
) -> dict[str, Entry]:
  """Return what a table says of image files, by their names.

  The table has the header `split member label original_index tfds_position`, separated by tabs,
  and one row for each file: 'train' or 'test'; its path, beside the table or in an archive there;
  0 to 9; its place in that split of the original data; where TFDS stores it, -1 if not known.

  Args:
    path: the table, compressed or not, as its ending says (.tsv, .tsv.xz, .tsv.gz).
    positions: split -> where TFDS stores its pictures, int[n].

  Raises:
    ValueError: if the table is damaged; the message names file and line, what was expected and
      what was found.
  """
  path = os.fspath(path)
  entries: dict[str, Entry] = {}
  places: set[tuple[str, int]] = set()

  def fail(line: int, problem: object) -> NoReturn:
    raise ValueError(f'{path}, line {line}: {problem}; mend it or fetch the table anew')

  number = 0
  with sources.open_file(path) as file:
    # What is no UTF-8 turns up in a message, with its line.
    lines = io.TextIOWrapper(file, 'utf-8', errors='backslashreplace', newline='')
    for number, line in enumerate(lines, start=1):
      columns = line.rstrip('\r\n').split('\t')
      if number == 1:
        if columns != list(_INDEX_COLUMNS):
          fail(1, f'expected the header {" ".join(_INDEX_COLUMNS)}, found {line[:80]!r}')
        continue
      try:
        member, entry = _parse_row(columns, positions)
      except ValueError as error:
        fail(number, error)
      place = entry.split, entry.index
      if member in entries or place in places:
        fail(number, f'{member} or its original_index {entry.index} is in a row above, too')
      places.add(place)
      entries[member] = entry
  if not entries:
    fail(number + 1, 'expected a header and rows, found none')
  return entries


def _parse_row(columns: list[str], positions: Callable[[str], np.ndarray]) -> tuple[str, Entry]:
  if len(columns) != len(_INDEX_COLUMNS):
    raise ValueError(f'expected {len(_INDEX_COLUMNS)} columns, found {len(columns)}')
  split, member, *numbers = columns
  if split not in SIZES:
    raise ValueError(f"expected the split 'train' or 'test', found {split!r}")
  if not _IMAGE.fullmatch(member) or os.path.isabs(member) or '..' in member.split('/'):
    raise ValueError(f'expected a path to a file .jpg or .png, found {member!r}')
  names, limits = _INDEX_COLUMNS[2:], (len(CLASSES), SIZES[split], SIZES[split])
  for name, number, limit, least in zip(names, numbers, limits, (0, 0, -1), strict=True):
    if not re.fullmatch(r'-?\d{1,9}', number) or not least <= int(number) < limit:
      raise ValueError(f'expected {name} in {least} .. {limit - 1}, found {number!r}')
  label, index, position = map(int, numbers)
  expected = positions(split)[index]
  if position not in (-1, expected):
    raise ValueError(
      f'expected tfds_position {expected} of original_index {index}, found {position}'
    )
  return member, Entry(split, label, index)


def read_images(path: str, entries: dict[str, Entry]) -> Iterator[tuple[str, Entry, bytes]]:
  """Yield where it lies, entry and contents of each image file in a table.

  Args:
    path: the table. The files lie in the tar archives beside it, compressed or not, or, if there
      are none, as files; what the table does not name is left out.
    entries: of the table.

  Raises:
    ValueError: if a file is missing or there twice, or if an archive is damaged.
  """
  directory = os.path.dirname(path)
  archives = sources.find_archives(directory)
  seen = set()
  for place, member, content in (
    _read_packed(archives) if archives else _read_loose(directory, entries)
  ):
    if member in entries:
      if member in seen:
        raise ValueError(f'{place} is there twice; leave one archive that holds it')
      seen.add(member)
      yield place, entries[member], content
  if missing := [member for member in entries if member not in seen]:
    where = f'none of the archives in {directory} holds' if archives else f'{directory} lacks'
    raise ValueError(
      f'{where} {missing[0]} ({len(missing)} of the {len(entries)} files in {path} are missing); '
      'fetch them anew'
    )


def _read_packed(archives: list[str]) -> Iterator[tuple[str, str, bytes]]:
  for archive in archives:
    for name, content in sources.read_archive(archive, _IMAGE, 'where this copy came from'):
      yield f'{archive}: {name}', _IMAGE.fullmatch(name)['member'], content


def _read_loose(directory: str, entries: dict[str, Entry]) -> Iterator[tuple[str, str, bytes]]:
  for member in entries:
    file = os.path.join(directory, member)
    if os.path.isfile(file):
      with open(file, 'rb') as opened:
        yield file, member, opened.read()


def decode(content: bytes) -> np.ndarray:
  """Return the pixels of a JPEG or PNG file, uint8[32, 32, 3].

  Raises:
    ValueError: if it cannot be decoded or is not of this size, in RGB.
  """
  try:
    with PIL.Image.open(io.BytesIO(content), formats=('JPEG', 'PNG')) as image:
      found = f'{image.size[0]} x {image.size[1]} {image.mode}'
      pixels = np.asarray(image) if found == f'{SIDE} x {SIDE} RGB' else None
  except Exception as error:  # Pillow raises all sorts.
    raise ValueError(f'expected an image, found none that can be decoded ({error})') from error
  if pixels is None:
    raise ValueError(f'expected an image of {SIDE} x {SIDE} pixels in RGB, found {found}')
  return pixels


def file_format(entries: dict[str, Entry]) -> str:
  """Return 'jpeg' if any of the files is one, else 'png'."""
  return 'png' if all(member.lower().endswith('.png') for member in entries) else 'jpeg'


def decoder() -> str:
  """Return name and version of what decodes JPEG: pixels depend on it.

  >>> decoder().startswith('pillow')
  True
  """
  turbo = PIL.features.version('libjpeg_turbo')
  library = f'turbo{turbo}' if turbo else f'jpeg{PIL.features.version("jpg")}'
  return f'pillow{PIL.__version__}_{library}'


def digest_images(path: str, entries: dict[str, Entry]) -> str:
  """Return 16 hexadecimal digits that stand for a table and its image files as they are packed."""
  if archives := sources.find_archives(os.path.dirname(path)):
    return sources.digest_files([path, *archives])
  contents = hashlib.sha256(sources.digest(path))
  for _, _, content in _show(read_images(path, entries), path, len(entries)):
    contents.update(hashlib.sha256(content).digest())
  return contents.hexdigest()[:16]


def read_copies(path: str, entries: dict[str, Entry]) -> dict[str, Pictures]:
  """Return the pictures of 'train' and 'test' from image files; see `read_images`.

  Raises:
    ValueError: also if one is no image, or not of the size of a picture.
  """
  rows: dict[str, list[tuple[np.ndarray, int, int]]] = {split: [] for split in SIZES}
  for place, entry, content in _show(read_images(path, entries), path, len(entries)):
    try:
      pixels = decode(content)
    except ValueError as error:
      raise ValueError(f'{place}: {error}; fetch it anew') from error
    grey = to_grey(*pixels.reshape(LENGTH, 3).T)
    rows[entry.split].append((grey, entry.label, entry.index))
  parts = {}
  for split, found in rows.items():
    grey, labels, indices = zip(*found, strict=True) if found else ((), (), ())
    parts[split] = Pictures(
      np.array(grey, np.uint8).reshape(-1, LENGTH), np.uint8(labels), np.int64(indices)
    )
  return parts


def _show(items: Iterator[Any], path: str, total: int | None = None) -> Iterator[Any]:
  with show_progress(f'reading {os.path.basename(path)}', total) as advance:
    for item in items:
      yield item
      advance(1)
