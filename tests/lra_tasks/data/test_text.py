import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import tarfile
import threading

import numpy as np
import pytest
from run_helpers import extract, read, run_here

from kl_flax import Predictor
from lra_tasks.data import datasets, sources, text
from lra_tasks.data.text import TOKENIZER, TextData, make_builder
from lra_tasks.data.text_sources import FilmReviews

SMALL = TextData(num_train=80, num_test=40)
SIZES = {'train': 72, 'validation': 8, 'test': 40}
FIXTURE = pathlib.Path(__file__).parents[2] / 'fixtures/text/aclImdb_short.tar.gz'
IMDB = text.CORPORA['imdb_reviews']


def unpack(directory):
  """Unpack 120 real reviews, and add what else may lie there."""
  with tarfile.open(FIXTURE) as archive:
    extract(archive, directory)
  root = pathlib.Path(directory) / 'aclImdb'
  some_file(root, 'train/pos').write_bytes(b'\xff\x00 not UTF-8, taken as it is\r\n')
  (root / 'train/unsup').mkdir()
  (root / 'train/unsup/0_0.txt').write_text('no label')
  (root / 'train/pos/.DS_Store').write_text('of a file manager')
  (root / 'README').write_text('about')
  return root


def some_file(root, folder):
  return min((root / folder).glob('*.txt'))


def replace(monkeypatch, **values):
  """Alter what is known of the original reviews."""
  monkeypatch.setitem(text.CORPORA, IMDB.name, dataclasses.replace(IMDB, **values))


def pack(root, path, names=None):
  """Write an archive; its ending names the compression."""
  with tarfile.open(path, f'w:{path.suffix[1:].replace("tar", "")}') as archive:
    for file in sorted(root.rglob('*')) if names is None else names:
      archive.add(file, file.relative_to(root.parent), recursive=False)
  return path


@pytest.fixture(scope='module')
def reviews(tmp_path_factory):
  """The directory aclImdb, small."""
  return unpack(tmp_path_factory.mktemp('reviews'))


@pytest.fixture
def copy(reviews, tmp_path):
  """A copy to do harm to."""
  return pathlib.Path(shutil.copytree(reviews, tmp_path / 'copy/aclImdb'))


@pytest.fixture(scope='module')
def builder(reviews, tmp_path_factory):
  builder = make_builder(SMALL, data_dir=str(tmp_path_factory.mktemp('data')), source=str(reviews))
  datasets.prepare(builder)
  return builder


def contents(builder):
  path = pathlib.Path(builder.data_dir)
  return {file.name: file.read_bytes() for file in path.iterdir()}


def is_empty(directory):
  return [p.name for p in pathlib.Path(directory).rglob('*') if p.is_file()] in ([], ['.lock'])


# What is prepared.


def test_reviews_are_read_to_the_byte(builder, reviews):
  found = {name: list(builder.as_data_source(name)) for name in SIZES}
  assert {name: len(part) for name, part in found.items()} == SIZES
  for parts, folder in ((('train', 'validation'), 'train'), (('test',), 'test')):
    ours = sorted(
      (int(e['target']), TOKENIZER.decode(e['inputs'])) for part in parts for e in found[part]
    )
    files = [(f, (reviews / folder / f).glob('*.txt')) for f in ('neg', 'pos')]
    assert ours == sorted((int(f == 'pos'), p.read_bytes()) for f, paths in files for p in paths)
  example = found['train'][0]
  assert example['inputs'].dtype == np.uint16
  assert {int(e['target']) for e in found['train'][:20]} == {0, 1}  # Shuffled.


def test_manifest_states_the_rule(builder):
  manifest = json.loads(contents(builder)['manifest.json'])
  assert {name: part['examples'] for name, part in manifest['splits'].items()} == SIZES
  assert 'validation is the last 10 %' in manifest['split_rule']


def test_lras_rule_validates_on_the_test_split(builder, reviews):
  lra = make_builder(
    dataclasses.replace(SMALL, validation='test'), data_dir=builder.root, source=str(reviews)
  )
  assert lra.data_dir == builder.data_dir  # Prepared once for both.
  assert (builder.validation_is_test, lra.validation_is_test) == (False, True)
  sizes = {name: len(lra.as_data_source(name)) for name in SIZES}
  assert sizes == {'train': 80, 'validation': 40, 'test': 40}
  everything = lambda source: sorted(e['inputs'].tobytes() for e in source.__getitems__(range(40)))
  assert everything(lra.as_data_source('validation')) == everything(lra.as_data_source('test'))
  parts = [e for name in ('train', 'validation') for e in builder.as_data_source(name)]
  for ours, part in zip(lra.as_data_source('train'), parts, strict=True):
    np.testing.assert_array_equal(ours['inputs'], part['inputs'])


def test_the_seed_decides_what_is_held_out(reviews):
  splits = lambda seed: IMDB.split(str(reviews), 80, 40, seed)
  assert splits(0) == splits(0)
  assert set(splits(0)['validation']) != set(splits(1)['validation'])
  assert splits(0)['test'] == splits(1)['test']


@pytest.mark.parametrize('ending', ['tar', 'tar.gz', 'tar.xz'])
def test_archives_give_the_bytes_of_the_directory(builder, reviews, tmp_path, ending):
  archive = pack(reviews, tmp_path / f'aclImdb_v1.{ending}')
  (tmp_path / 'aclImdb_unsup.tar.gz').write_text('not looked at')
  for source in (archive, tmp_path):
    again = make_builder(SMALL, data_dir=str(tmp_path / 'data' / source.name), source=str(source))
    datasets.prepare(again)
    assert contents(again) == contents(builder)


def test_order_of_members_does_not_matter(reviews, tmp_path):
  files = sorted(reviews.rglob('*.txt'), reverse=True)
  archive = pack(reviews, tmp_path / 'a.tar', files)
  assert IMDB.read(str(archive)) == IMDB.read(str(reviews))


def test_raw_data_may_lie_in_data_dir(builder, reviews, tmp_path):
  shutil.copytree(reviews, tmp_path / 'aclImdb')
  again = make_builder(SMALL, data_dir=str(tmp_path))
  datasets.prepare(again)
  assert contents(again) == contents(builder)


def test_names_encode_what_determines_the_bytes(builder, reviews, copy, tmp_path):
  some_file(copy, 'test/pos').write_text('altered')
  names = {
    make_builder(data, data_dir=str(tmp_path), source=str(source)).info.full_name
    for source in (reviews, copy)
    for data in (SMALL, dataclasses.replace(SMALL, num_test=38), dataclasses.replace(SMALL, seed=1))
  }
  assert len(names) == 6
  assert builder.info.full_name in names


def test_only_original_reviews_are_the_benchmark(reviews, copy, tmp_path, monkeypatch):
  make = lambda source, **options: make_builder(
    TextData(**options), data_dir=str(tmp_path), source=str(source)
  )
  sizes = {'num_train': 80, 'num_test': 40}
  replace(monkeypatch, contents_sha256=IMDB.digest(str(reviews)), **sizes)
  assert text.is_benchmark(make(reviews))
  assert text.is_benchmark(make(reviews, seed=3, validation='test'))
  assert text.is_benchmark(make_builder(TextData(), data_dir=str(tmp_path)))
  assert text.is_benchmark(make(reviews, **sizes))
  assert not text.is_benchmark(make(reviews, num_train=78))
  some_file(copy, 'test/pos').write_text('altered')
  assert not text.is_benchmark(make(copy))


def test_prepared_original_data_needs_no_source(reviews, tmp_path, monkeypatch):
  replace(monkeypatch, contents_sha256=IMDB.digest(str(reviews)))
  datasets.prepare(make_builder(SMALL, data_dir=str(tmp_path), source=str(reviews)))
  monkeypatch.setattr(FilmReviews, 'read', None)
  datasets.prepare(again := make_builder(SMALL, data_dir=str(tmp_path)))
  assert len(again.as_data_source('test')) == 40


# Downloads.


class _Server(http.server.BaseHTTPRequestHandler):
  data = b''
  cut = None  # Close the connection after so many bytes.
  ranges = True
  seen: list = []

  def do_GET(self):
    type(self).seen.append(self.headers.get('Range'))
    if self.path != '/aclImdb_v1.tar.gz':
      return self.send_error(404)
    start = 0
    if self.ranges and (asked := re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')):
      start = int(asked[1])
      if start >= len(self.data):
        return self.send_error(416)
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(self.data) - start))
    self.end_headers()
    self.wfile.write(self.data[start : self.cut])

  def log_message(self, *args):
    pass


@pytest.fixture
def server(reviews, tmp_path, monkeypatch):
  """A server of the archive, which `text` takes for the official address."""
  archive = pack(reviews, tmp_path / 'original.tar.gz').read_bytes()
  handler = type('Handler', (_Server,), {'data': archive, 'seen': []})
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    address = f'http://127.0.0.1:{running.server_port}/aclImdb_v1.tar.gz'
    replace(monkeypatch, url=address, sha256=hashlib.sha256(archive).hexdigest())
    yield handler
    running.shutdown()


def download(tmp_path):
  builder = make_builder(SMALL, data_dir=str(tmp_path / 'data'))
  datasets.prepare(builder)
  return builder


@pytest.mark.parametrize('ranges', [True, False])
def test_downloads_go_on_where_they_were_cut(server, builder, tmp_path, ranges):
  server.cut, server.ranges = 1000, ranges
  with pytest.raises(OSError, match=r'connection ended after 1000 of .* same command goes on'):
    download(tmp_path)
  unfinished = tmp_path / 'data/aclImdb_v1.tar.gz.incomplete'
  assert unfinished.stat().st_size == 1000
  server.cut = None
  ours = download(tmp_path)
  assert server.seen == [None, 'bytes=1000-']
  assert not unfinished.exists()
  for name in SIZES:
    pairs = zip(ours.as_data_source(name), builder.as_data_source(name), strict=True)
    assert all(np.array_equal(a['inputs'], b['inputs']) for a, b in pairs)
  download(tmp_path)  # Neither prepared nor downloaded again.
  make_builder(dataclasses.replace(SMALL, seed=2), data_dir=str(tmp_path / 'data'))
  assert len(server.seen) == 2


def test_altered_downloads_are_deleted(server, tmp_path):
  right, server.data = server.data, server.data[:-1] + b'x'
  with pytest.raises(ValueError, match=r'is damaged: expected SHA-256 .*, found .*; what http'):
    download(tmp_path)
  assert is_empty(tmp_path / 'data')
  server.data = right
  download(tmp_path)


def test_a_remainder_that_is_too_long_is_dropped(server, tmp_path):
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data/aclImdb_v1.tar.gz.incomplete').write_bytes(b'x' * 10**6)
  download(tmp_path)
  assert server.seen == ['bytes=1000000-', None]


@pytest.mark.parametrize(
  ('url', 'problem'),
  [
    ('http://127.0.0.1:1/aclImdb_v1.tar.gz', 'Connection refused'),
    (None, '404 Not Found'),
  ],
)
def test_where_no_download_is_possible_the_way_out_is_named(
  server, tmp_path, monkeypatch, url, problem
):
  url = url or text.CORPORA[IMDB.name].url.replace('aclImdb_v1', 'gone_v1')
  replace(monkeypatch, url=url)
  place = tmp_path / 'data/aclImdb_v1.tar.gz'
  with pytest.raises(OSError, match=rf'cannot download {url}: .*{problem}') as error:
    download(tmp_path)
  assert f'put it there as {place}, or name it by --source' in str(error.value)
  assert is_empty(tmp_path / 'data')


def test_without_checksum_nothing_is_resumed(server, tmp_path):
  path = tmp_path / 'file'
  (tmp_path / 'file.incomplete').write_bytes(b'other')
  url = text.CORPORA[IMDB.name].url
  assert sources.fetch(url, path) == str(path)
  assert path.read_bytes() == server.data
  sources.fetch('http://127.0.0.1:1/', path)  # It is there.
  with pytest.raises(ValueError, match='file is damaged: expected SHA-256 00, .* replace it by'):
    sources.fetch(url, path, '00')
  assert path.exists()


# Bad input.


def damage_name(root):
  (root / 'test/neg/x.txt').write_text('a')


def damage_empty(root):
  some_file(root, 'test/neg').write_text(' \n')


def damage_count(root):
  some_file(root, 'test/neg').unlink()


def damage_twice(root):
  path = some_file(root, 'test/neg')
  path.with_name(path.name.replace('_', '_9')).write_text('a')


DAMAGES = {
  damage_name: r'test/neg/x.txt: expected a name like 0_9.txt',
  damage_empty: r'test/neg/[0-9_]+.txt: expected a review, found an empty file',
  damage_count: r'test/neg: expected at least 20 reviews, found 19; fetch it anew, from https',
  damage_twice: r'test/neg/([0-9]+)_[0-9]+.txt has the number of test/neg/\1_',
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_sources_are_named(copy, tmp_path, damage, packed):
  damage(copy)
  source = pack(copy, tmp_path / 'a.tar.gz') if packed else copy
  with pytest.raises(ValueError, match=f'^{re.escape(str(source))}: {DAMAGES[damage]}'):
    datasets.prepare(make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(source)))
  assert is_empty(tmp_path / 'data')


@pytest.mark.parametrize('ending', ['tar', 'tar.gz', 'tar.xz', 'tar.bz2'])
@pytest.mark.parametrize('how', ['cut', 'altered', 'text'])
def test_damaged_archives_are_named(reviews, tmp_path, ending, how):
  whole = pack(reviews, tmp_path / f'a.{ending}').read_bytes()
  # Of an archive without compression, only the headers have checksums.
  middle = whole.index(b'aclImdb/test/neg/20_1') + 150 if ending == 'tar' else len(whole) // 2
  path = tmp_path / f'b.{ending}'
  flipped = bytes(255 - byte for byte in whole[middle : middle + 2])
  path.write_bytes(
    {
      'cut': whole[:middle],
      'altered': whole[:middle] + flipped + whole[middle + 2 :],
      'text': b'<html>not found</html>' * 1000,
    }[how]
  )
  with pytest.raises(ValueError, match=f'^{re.escape(str(path))}(:| is damaged or no tar)'):
    datasets.prepare(make_builder(SMALL, data_dir=str(tmp_path / 'd'), source=str(path)))
  assert is_empty(tmp_path / 'd')


def test_the_benchmark_has_exactly_its_size(reviews, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'train/pos: expected 12500 reviews, found 40'):
    datasets.prepare(make_builder(TextData(), data_dir=str(tmp_path), source=str(reviews)))
  replace(monkeypatch, num_train=78)
  with pytest.raises(ValueError, match=r'train/pos: expected 39 reviews, found 40'):
    datasets.prepare(make_builder(TextData(), data_dir=str(tmp_path), source=str(reviews)))


def test_missing_sources_are_named(tmp_path):
  for source in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(FileNotFoundError, match=rf'{source} holds neither a directory aclImdb'):
      make_builder(SMALL, data_dir=str(tmp_path), source=str(source))
  for name in ('aclImdb.tar', 'aclImdb_v1.tar.gz'):
    (tmp_path / name).write_bytes(b'')
  with pytest.raises(ValueError, match='several copies, name one: .*aclImdb.tar, .*v1.tar.gz'):
    make_builder(SMALL, data_dir=str(tmp_path), source=str(tmp_path))
  with pytest.raises(ValueError, match=r"unknown task_name 'agnew' \(did you mean 'agnews'"):
    make_builder(SMALL, data_dir=str(tmp_path), task_name='agnew')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'validation': 'tset'}, r"unknown validation 'tset' \(did you mean 'test'"),
    ({'num_train': 9}, 'num_train must be at least 10, or -1 for all, got 9'),
    ({'num_train': 81}, 'num_train of imdb_reviews must be a multiple of 2 and at most 25000'),
    ({'num_test': 26_000}, 'num_test of imdb_reviews must be .*, or -1 for all, got 26000'),
    ({'seed': -1}, 'seed must lie in'),
  ],
)
def test_impossible_options(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    make_builder(TextData(**options), data_dir=str(tmp_path))


# Whole runs.


@pytest.mark.slow
def test_the_tiny_preset_trains_from_real_reviews(shared, tmp_path):
  fields = {'data': dataclasses.asdict(dataclasses.replace(SMALL, validation='test'))}
  options = {'task': 'text', 'source': str(FIXTURE), 'num_train_steps': 2}
  model = 'linear_transformer,tiny'
  assert run_here(shared, tmp_path, argument=model, **options, **fields) == 0
  results = read(tmp_path, 'results.json')
  assert results['validation_is_test'] is True
  assert (results['task'], results['examples'], results['comparable']) == ('text', 40, False)
  assert results['majority_class'] == 0.5
  prediction = Predictor.restore(str(tmp_path)).predict(['a dull film', 'é' * 200])
  assert prediction.probabilities.shape == (2, 2)
