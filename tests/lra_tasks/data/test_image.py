import gzip
import io
import json
import lzma
import pathlib
import pickle
import re
import shutil
import struct
import tarfile
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from run_helpers import extract, read, run_here

from kl_flax import Predictor
from lra_tasks.data import datasets, image, image_files, sources
from lra_tasks.data.image import ImageData, make_builder, tfds_positions
from lra_tasks.data.image_files import BATCHES_SHA256, to_grey

# 260 pictures of CIFAR-10 as JPEG files: of every class, the first 20 and the first 6.
FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures/image'
COPY = ImageData(num_train=200, num_test=60)
SMALL = ImageData(num_train=50, num_test=10)
STEMS = list(BATCHES_SHA256)


def string(text):
  return b'T' + struct.pack('<I', len(text)) + text


def pickle_batch(rows, name=b'u1'):
  """Return a batch as Python 2 pickled it: its strings are none of Python 3."""
  labels, pixels = rows[:, 0], np.ascontiguousarray(rows[:, 1:])
  dtype = b'cnumpy\ndtype\n' + string(name) + b'K\0K\1\x87R'
  dtype += b'(K\3' + string(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'
  shape = b'J' + struct.pack('<i', len(rows)) + b'J' + struct.pack('<i', 3072) + b'\x86'
  array = (
    b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85' + string(b'b') + b'\x87R'
  )
  array += b'(K\1' + shape + dtype + b'\x89' + string(pixels.tobytes()) + b'tb'
  listed = b''.join(b'K' + bytes([label]) for label in labels.tolist())
  items = string(b'batch_label') + string(b'a batch') + string(b'data') + array
  return b'\x80\2}(' + items + string(b'labels') + b'](' + listed + b'eu.'


def write_batches(directory, batches, form='bin'):
  """Write rows of batches in the layout of CIFAR-10."""
  root = pathlib.Path(directory) / f'cifar-10-batches-{form}'
  root.mkdir(parents=True)
  for stem, rows in batches.items():
    if form == 'bin':
      (root / f'{stem}.bin').write_bytes(rows.tobytes())
    else:
      (root / stem).write_bytes(pickle_batch(rows))
  (root / ('batches.meta.txt' if form == 'bin' else 'batches.meta')).write_text('of no account')
  return root


def pack(root, path):
  """Write an archive; its ending names the compression."""
  with tarfile.open(path, f'w:{path.suffix[1:].replace("tar", "")}') as archive:
    archive.add(root, root.name)
  return path


@pytest.fixture(scope='module')
def batches():
  """Ten random pictures a batch, whose label is the digit of their place."""
  random = np.random.default_rng(0)
  rows = random.integers(0, 256, (6, 10, 3073), np.uint8)
  rows[:, :, 0] = np.arange(10)
  return dict(zip(STEMS, rows, strict=True))


@pytest.fixture(scope='module')
def sourced(batches, tmp_path_factory):
  """The official files, small, for C and for Python, and archives of them."""
  root = tmp_path_factory.mktemp('sources')
  for form, name in (('bin', 'binary'), ('py', 'python')):
    (root / name).mkdir()
    pack(write_batches(root, batches, form), root / name / f'cifar-10-{name}.tar.gz')
  return root


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  """The data set of the fixtures."""
  made = make_builder(COPY, data_dir=str(tmp_path_factory.mktemp('data')), source=str(FIXTURES))
  datasets.prepare(made)
  return made


@pytest.fixture
def copy(tmp_path):
  """A copy of the fixtures to do harm to."""
  return pathlib.Path(shutil.copytree(FIXTURES, tmp_path / 'copy'))


def prepared(source, data_dir, data=SMALL):
  made = make_builder(data, data_dir=str(data_dir), source=str(source))
  datasets.prepare(made)
  return made


def contents(builder):
  return {path.name: path.read_bytes() for path in pathlib.Path(builder.data_dir).iterdir()}


def is_empty(directory):
  return [p.name for p in pathlib.Path(directory).rglob('*') if p.is_file()] in ([], ['.lock'])


def rows_of(path):
  return [line.split('\t') for line in path.read_text().splitlines()]


# Grey.


def test_primary_colours_are_weighted():
  # By hand, cut: 255.5 · (0.2989 r + 0.5870 g + 0.1140 b) with channels 0 or 1.
  expected = {
    (0, 0, 0): 0, (1, 0, 0): 76, (0, 1, 0): 149, (0, 0, 1): 29,
    (1, 1, 0): 226, (0, 1, 1): 179, (1, 0, 1): 105, (1, 1, 1): 255,
  }  # fmt: skip
  colours = 255 * np.array(list(expected), np.uint8).T
  np.testing.assert_array_equal(to_grey(*colours), list(expected.values()))


def test_greys_stay_as_they_are():
  greys = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(to_grey(greys, greys, greys), greys)


def test_sums_are_rounded_as_float32():
  """Exactly, these are 92.999996 and 127.99999: integers in float32."""
  assert to_grey(*np.uint8([[0, 5], [122, 171], [186, 227]])).tolist() == [93, 128]


@hypothesis.given(st.tuples(*[st.integers(0, 255)] * 3))
def test_grey_is_the_exact_value_cut(colour):
  weighted = sum(w * x for w, x in zip((2989, 5870, 1140), colour, strict=True))
  exact = weighted * 511 / 5_100_000  # 255.5 / (255 · 10,000)
  value = int(to_grey(*np.uint8(colour)))
  assert value in (int(exact), int(exact + 5e-5), int(max(exact - 5e-5, 0)))


# Order.


def test_order_is_the_one_published_with_cifar_10n():
  rows = [row for row in rows_of(FIXTURES / 'index.tsv')[1:] if row[0] == 'train']
  indices, published = np.array([row[3:] for row in rows], int).T
  assert len(indices) == 200
  np.testing.assert_array_equal(tfds_positions('train')[indices], published)
  assert tfds_positions('train')[16399] == 0
  for split, size in image_files.SIZES.items():
    np.testing.assert_array_equal(np.sort(tfds_positions(split)), np.arange(size))


def test_splits_are_cut_in_that_order(sourced, batches, tmp_path):
  made = prepared(sourced / 'cifar-10-batches-bin', tmp_path)
  train = np.concatenate([batches[stem] for stem in STEMS[:5]])
  train = train[np.argsort(tfds_positions('train')[:50])]
  test = batches['test_batch'][np.argsort(tfds_positions('test')[:10])]
  expected = {'train': train[:45], 'validation': train[45:], 'test': test}
  for name, rows in expected.items():
    found = list(made.as_data_source(name))
    assert [int(e['target']) for e in found] == rows[:, 0].tolist()
    grey = to_grey(*rows[:, 1:].reshape(-1, 3, 1024).swapaxes(0, 1))
    np.testing.assert_array_equal([e['inputs'] for e in found], grey)
    assert found[0]['inputs'].dtype == np.uint8
  smaller = prepared(sourced / 'cifar-10-batches-bin', tmp_path, ImageData(20, 4))
  labels = [int(e['target']) for e in smaller.as_data_source('validation')]
  assert labels == train[18:20, 0].tolist()


# What is prepared.


def test_image_files_are_read_pixel_by_pixel(builder):
  images = {}
  for split in ('train', 'test'):
    with tarfile.open(FIXTURES / f'{split}.tar.xz') as archive:
      for member in archive:
        with PIL.Image.open(io.BytesIO(archive.extractfile(member).read())) as opened:
          images[member.name] = np.asarray(opened)
  rows = {row[1]: int(row[2]) for row in rows_of(FIXTURES / 'index.tsv')[1:]}
  theirs = sorted(
    (rows[name], bytes(to_grey(*np.moveaxis(pixels, 2, 0)).ravel()))
    for name, pixels in images.items()
  )
  splits = [list(builder.as_data_source(name)) for name in ('train', 'validation', 'test')]
  assert [len(part) for part in splits] == [180, 20, 60]
  ours = sorted((int(e['target']), e['inputs'].tobytes()) for part in splits for e in part)
  assert ours == theirs


def test_copies_say_what_they_are(builder):
  name, manifest = builder.info.full_name, json.loads(contents(builder)['manifest.json'])
  decoder = image_files.decoder()
  assert name.startswith('image/cifar10_jpeg_200_60_')
  assert f'_{decoder}/' in name
  assert manifest['dataset'] == name
  assert f'decoded by {decoder}: not the original pixels' in manifest['split_rule']
  assert not image.is_benchmark(builder)
  assert builder.variant == 'cifar10_jpeg'


@pytest.mark.parametrize('ending', ['', '.xz', '.gz'])
def test_image_files_may_lie_loose(builder, copy, tmp_path, ending):
  for archive in copy.glob('*.tar.xz'):
    with tarfile.open(archive) as opened:
      extract(opened, copy)
    archive.unlink()
  index = copy / 'index.tsv'
  write = {'': open, '.xz': lzma.open, '.gz': gzip.open}[ending]
  text = index.read_bytes()
  index.unlink()
  with write(f'{index}{ending}', 'wb') as file:
    file.write(text)
  (copy / 'train/frog/other.jpg').write_text('not in the table')
  again = prepared(copy, tmp_path / 'data', COPY)
  for name in ('train', 'validation', 'test'):
    for ours, theirs in zip(again.as_data_source(name), builder.as_data_source(name), strict=True):
      np.testing.assert_array_equal(ours['inputs'], theirs['inputs'])


def test_png_copies_have_a_name_of_their_own(batches, tmp_path):
  lines = ['\t'.join(['split', 'member', 'label', 'original_index', 'tfds_position'])]
  for number, stem in enumerate(STEMS):
    for i, row in enumerate(batches[stem]):
      name, split = f'{stem}_{i}.png', 'test' if stem == 'test_batch' else 'train'
      pixels = np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
      PIL.Image.fromarray(pixels).save(tmp_path / name)
      lines.append(f'{split}\t{name}\t{row[0]}\t{number * 10 % 50 + i}\t-1')
  (tmp_path / 'index.tsv').write_text('\n'.join(lines))
  made = prepared(tmp_path / 'index.tsv', tmp_path / 'data')
  # Without a decoder: what is lossless does not depend on one.
  assert re.fullmatch('cifar10_png_50_10_[0-9a-f]{16}', made.builder_config.name)
  assert made.split_rule.endswith('From PNG files, which keep the pixels that they were made of.')
  originals = prepared(write_batches(tmp_path, batches), tmp_path / 'data')
  assert (made.variant, originals.variant) == ('cifar10_png', '')
  for name in ('train', 'validation', 'test'):
    pairs = zip(made.as_data_source(name), originals.as_data_source(name), strict=True)
    assert all(a['inputs'].tobytes() == b['inputs'].tobytes() for a, b in pairs)


def test_all_forms_of_the_batches_are_one(sourced, tmp_path):
  names = (
    'cifar-10-batches-bin', 'cifar-10-batches-py', 'binary', 'python',
    'binary/cifar-10-binary.tar.gz', 'python/cifar-10-python.tar.gz',
  )  # fmt: skip
  made = [prepared(sourced / name, tmp_path / name) for name in names]
  assert len({each.info.full_name for each in made}) == 1
  for each in made[1:]:
    assert contents(each) == contents(made[0])


def test_pickles_of_the_tests_are_those_of_numpy(batches):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # The module has moved.
    batch = pickle.loads(pickle_batch(batches['test_batch']), encoding='bytes')
  np.testing.assert_array_equal(batch[b'data'], batches['test_batch'][:, 1:])
  assert batch[b'labels'] == list(range(10))


def test_only_original_batches_are_the_benchmark(sourced, batches, tmp_path, monkeypatch):
  own = {stem: image_files.hashlib.sha256(rows).hexdigest() for stem, rows in batches.items()}
  monkeypatch.setattr(image_files, 'BATCHES_SHA256', own)
  make = lambda source, **options: make_builder(
    ImageData(**options), data_dir=str(tmp_path), source=source and str(source)
  )
  for name in ('cifar-10-batches-bin', 'python'):
    assert image.is_benchmark(make(sourced / name))
  assert image.is_benchmark(make(sourced / 'binary', mask_zero=True))
  assert image.is_benchmark(make(None))
  assert not image.is_benchmark(make(sourced / 'binary', num_train=50))
  altered = batches | {'data_batch_3': batches['data_batch_4']}
  other = make(write_batches(tmp_path / 'altered', altered))
  assert not image.is_benchmark(other)
  assert other.info.full_name != make(None).info.full_name
  assert make(None, mask_zero=True).data_dir == make(None).data_dir


def test_raw_data_may_lie_in_data_dir(sourced, tmp_path, monkeypatch):
  def fetch(url, path, sha256):
    assert url.endswith('/cifar-10-binary.tar.gz')
    assert sha256 == image_files.ARCHIVE_SHA256
    return shutil.copy(sourced / 'binary/cifar-10-binary.tar.gz', path)

  monkeypatch.setattr(sources, 'fetch', fetch)
  downloaded = prepared('', tmp_path)
  assert downloaded.info.full_name == 'image/cifar10_50_10/1.0.0'
  monkeypatch.setattr(sources, 'fetch', None)
  prepared('', tmp_path)
  there = make_builder(ImageData(20, 4), data_dir=str(tmp_path))
  assert there.builder_config.source == str(tmp_path / 'cifar-10-binary.tar.gz')


# Bad input.


class Bomb:
  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path('exploded'),)


def damage_label(rows):
  rows[7, 0] = 10
  return rows.tobytes()


DAMAGES = {
  'cut': (
    'data_batch_2.bin', lambda rows: rows.tobytes()[:-1],
    'expected rows of 3073 bytes, found 9 and 3072 bytes behind them',
  ),
  'empty': ('data_batch_2.bin', lambda rows: b'', 'expected rows of 3073 bytes, found 0 and 0'),
  'label': (
    'data_batch_2.bin', damage_label,
    r'picture 7: expected a label of 0 to 9, found 10 \(1 of 10 are none\)',
  ),
  'pickled label': (
    'data_batch_2', lambda rows: pickle_batch(rows).replace(b'K\x09e', b'M\0\1e'),
    'picture 9: expected a label of 0 to 9, found 256',
  ),
  'bomb': (
    'data_batch_2', lambda rows: pickle.dumps(Bomb()),
    r'expected a pickled batch .*pathlib\S* ?.*Path.*no batch of CIFAR-10 does; do not trust it',
  ),
  'objects': (
    'data_batch_2', lambda rows: pickle_batch(rows, b'O8'), "holds an array of b'O8', not of bytes"
  ),
  'cut pickle': ('data_batch_2', lambda rows: pickle_batch(rows)[:5000], 'UnpicklingError'),
  'no pickle': ('data_batch_2', lambda rows: b'<html>', 'UnpicklingError'),
  'other pickle': ('data_batch_2', lambda rows: b'\x80\2}.', 'KeyError'),
  'labels': (
    'data_batch_2', lambda rows: pickle_batch(rows).replace(b'K\x08K\x09e', b'K\x08e'),
    r'expected pixels \[n, 3072\] and labels \[n\], found \[10, 3072\] and \[9\]',
  ),
}  # fmt: skip


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_batches_are_named(batches, tmp_path, monkeypatch, damage, packed):
  monkeypatch.chdir(tmp_path)
  name, alter, problem = DAMAGES[damage]
  root = write_batches(tmp_path, batches)
  (root / 'data_batch_2.bin').unlink()
  (root / name).write_bytes(alter(batches['data_batch_2'].copy()))
  source = pack(root, tmp_path / 'cifar-10-binary.tar.gz') if packed else root
  place = f'{source}: {root.name}/{name}' if packed else f'{source}: {name}'
  with pytest.raises(ValueError, match=f'^{re.escape(place)}: .*{problem}') as error:
    prepared(source, tmp_path / 'data')
  assert str(error.value).endswith(f'fetch it anew, from {image_files.URL}')
  assert is_empty(tmp_path / 'data')
  assert not (tmp_path / 'exploded').exists()


def test_batches_that_are_there_twice_are_named(sourced, tmp_path):
  root = pathlib.Path(shutil.copytree(sourced / 'cifar-10-batches-py', tmp_path / 'batches'))
  shutil.copy(sourced / 'cifar-10-batches-bin/data_batch_1.bin', root)
  with pytest.raises(
    ValueError, match=r'batch_1\.bin: another file holds data_batch_1, too; fetch'
  ):
    prepared(root, tmp_path)


def test_missing_batches_are_named(sourced, tmp_path):
  root = pathlib.Path(shutil.copytree(sourced / 'cifar-10-batches-py', tmp_path / 'batches'))
  for stem in ('data_batch_3', 'test_batch'):
    (root / stem).unlink()
  with pytest.raises(ValueError, match=f'{root} lacks data_batch_3, test_batch; fetch it anew'):
    prepared(root, tmp_path)


@pytest.mark.parametrize('how', ['cut', 'altered', 'text'])
def test_damaged_archives_are_named(sourced, copy, tmp_path, how):
  def damage(path):
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(255 - byte for byte in whole[middle : middle + 2])
    damaged = {
      'cut': whole[:middle],
      'altered': whole[:middle] + flipped + whole[middle + 2 :],
      'text': b'<html>not found</html>' * 1000,
    }
    path.write_bytes(damaged[how])

  official = pathlib.Path(shutil.copy(sourced / 'binary/cifar-10-binary.tar.gz', tmp_path))
  for path, source, data in (
    (official, official, SMALL),
    (copy / 'test.tar.xz', copy, COPY),
  ):
    damage(path)
    with pytest.raises(ValueError, match=f'^{re.escape(str(path))}(:| is damaged or no tar)'):
      prepared(source, tmp_path / 'data', data)
    assert is_empty(tmp_path / 'data')


def test_the_benchmark_has_exactly_its_size(sourced, tmp_path):
  source = sourced / 'cifar-10-batches-bin'
  for data, problem in (
    (ImageData(), 'expected 50000 pictures of train, found 50'),
    (ImageData(50, 11), 'expected 11 to 10000 pictures of test, found 10'),
  ):
    with pytest.raises(ValueError, match=f'{source}: {problem}; fetch it anew, .* --config.data'):
      prepared(source, tmp_path, data)
  many = image_files.Pictures(*(np.zeros(50_001, np.int64) for _ in range(3)))
  with pytest.raises(ValueError, match='expected 10 to 50000 pictures of train, found 50001'):
    image.split_pictures({'train': many, 'test': many}, ImageData(10, 1))


def test_missing_sources_are_named(sourced, tmp_path):
  for source in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(FileNotFoundError, match=f'{source} holds neither official batches'):
      prepared(source, tmp_path)
  batch = sourced / 'cifar-10-batches-bin/data_batch_1.bin'
  with pytest.raises(ValueError, match=f'{batch} is no archive by its ending .*: name the direct'):
    prepared(batch, tmp_path)
  with pytest.raises(ValueError, match='several copies, name one: .*batches-bin, .*batches-py'):
    prepared(sourced, tmp_path)
  with pytest.raises(ValueError, match="unknown task_name 'mnist' of image: only 'cifar10'"):
    make_builder(SMALL, data_dir=str(tmp_path), task_name='mnist')


ROW = ('train', 'train/frog/0000.jpg', '6', '0', '28677')


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    (ROW[:4], 'expected 5 columns, found 4'),
    ((*ROW, ''), 'expected 5 columns, found 6'),
    (('valid', *ROW[1:]), "expected the split 'train' or 'test', found 'valid'"),
    (('train', '../0000.jpg', *ROW[2:]), "expected a path to a file .jpg or .png, found '../"),
    (('train', '/0000.jpg', *ROW[2:]), "expected a path to a file .jpg or .png, found '/0"),
    (('train', 'a.gif', *ROW[2:]), "expected a path to a file .jpg or .png, found 'a.gif'"),
    ((*ROW[:2], '10', *ROW[3:]), "expected label in 0 .. 9, found '10'"),
    ((*ROW[:2], 'frog', *ROW[3:]), "expected label in 0 .. 9, found 'frog'"),
    ((*ROW[:3], '50000', '-1'), "expected original_index in 0 .. 49999, found '50000'"),
    ((*ROW[:4], '-2'), "expected tfds_position in -1 .. 49999, found '-2'"),
    ((*ROW[:4], '28678'), 'expected tfds_position 28677 of original_index 0, found 28678'),
    (('train', 'train/frog/0001.jpg', *ROW[2:]), 'its original_index 0 is in a row above, too'),
    (('test', *ROW[1:4], '-1'), 'train/frog/0000.jpg or its original_index 0 is in a row above'),
  ],
)
def test_bad_rows_of_the_table_are_named(copy, tmp_path, row, problem):
  index = copy / 'index.tsv'
  index.write_text('\n'.join([*index.read_text().splitlines()[:3], '\t'.join(row)]))
  with pytest.raises(ValueError, match=f'^{re.escape(str(index))}, line 4: .*{problem}'):
    prepared(copy, tmp_path, COPY)


def test_damaged_tables_are_named(copy, tmp_path):
  index = copy / 'index.tsv'
  whole = index.read_text()
  index.write_text('')
  with pytest.raises(ValueError, match='line 1: expected a header and rows, found none'):
    prepared(copy, tmp_path, COPY)
  index.write_text(whole.replace('label', 'class'))
  with pytest.raises(ValueError, match='line 1: expected the header split member label'):
    prepared(copy, tmp_path, COPY)
  for ending, compress in (('.xz', lzma.compress), ('.gz', gzip.compress)):
    packed = copy / f'other.tsv{ending}'
    for content in (compress(whole.encode())[:-20], whole.encode()):
      packed.write_bytes(content)
      with pytest.raises(ValueError, match=rf'other.tsv{ending} is damaged: .*; replace it'):
        prepared(packed, tmp_path, COPY)


def encode(mode='RGB', size=(32, 32), **options):
  file = io.BytesIO()
  PIL.Image.new(mode, size).save(file, **options)
  return file.getvalue()


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'no image', r'expected an image, found none that can be decoded \(cannot identify'),
    (encode(format='JPEG')[:500], 'expected an image, found none that can be decoded'),
    (encode(format='GIF'), 'expected an image, found none that can be decoded'),
    (encode(size=(28, 32), format='JPEG'), 'of 32 x 32 pixels in RGB, found 28 x 32 RGB'),
    (encode('L', format='JPEG'), 'of 32 x 32 pixels in RGB, found 32 x 32 L'),
    (encode('RGBA', format='PNG'), 'of 32 x 32 pixels in RGB, found 32 x 32 RGBA'),
  ],
)
def test_bad_images_are_named(copy, tmp_path, content, problem):
  path = copy / 'train.tar.xz'
  with tarfile.open(path) as archive:
    files = [(member, archive.extractfile(member).read()) for member in archive]
  with tarfile.open(path, 'w:xz') as archive:
    for member, original in files:
      kept = content if member.name == 'train/frog/0003.jpg' else original
      member.size = len(kept)
      archive.addfile(member, io.BytesIO(kept))
  with pytest.raises(ValueError, match=f'^{path}: train/frog/0003.jpg: .*{problem}.*fetch it anew'):
    prepared(copy, tmp_path / 'data', COPY)
  assert is_empty(tmp_path / 'data')


def test_missing_images_are_named(copy, tmp_path):
  shutil.copy(copy / 'test.tar.xz', copy / 'more.tar.xz')
  with pytest.raises(ValueError, match=r'test.tar.xz: test/\S+ is there twice; leave one archive'):
    prepared(copy, tmp_path, COPY)
  for name in ('test.tar.xz', 'more.tar.xz'):
    (copy / name).unlink()
  with pytest.raises(
    ValueError, match=f'none of the archives in {copy} holds test/.*60 of the 260'
  ):
    prepared(copy, tmp_path, COPY)
  (copy / 'train.tar.xz').unlink()
  with pytest.raises(ValueError, match=f'{copy} lacks train/frog/0000.jpg .*260 of the 260'):
    prepared(copy, tmp_path, COPY)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_train': 9}, 'num_train must lie in 10 .. 50000, got 9'),
    ({'num_test': 10_001}, 'num_test must lie in 1 .. 10000, got 10001'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(ValueError, match=message):
    ImageData(**options)


# Whole runs.


@pytest.mark.slow
def test_the_tiny_preset_trains_on_image_files(shared, tmp_path):
  # Fewer steps than the preset's, and narrower ones: each goes over 1,024 positions.
  fields = {'num_train_steps': 2, 'batch_size': 20, 'emb_dim': 8, 'qkv_dim': 8, 'mlp_dim': 8}
  fields['argument'] = 'linear_transformer,tiny'
  assert run_here(shared, tmp_path, task='image', source=str(FIXTURES), **fields) == 0
  results = read(tmp_path, 'results.json')
  assert results['task'] == 'image/cifar10_jpeg'  # No published figure is for it.
  assert (results['examples'], results['comparable']) == (60, False)
  assert results['validation_is_test'] is False
  assert results['majority_class'] == 0.1
  assert 'cifar10_jpeg' in read(tmp_path, 'config.json')['dataset']
  pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
  assert Predictor.restore(str(tmp_path)).predict(pictures).probabilities.shape == (3, 10)
