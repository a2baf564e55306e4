import dataclasses
import json
import pathlib
import re
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import read, run_here
from tensorflow_datasets.datasets.ag_news_subset import ag_news_subset_dataset_builder

from lra_tasks.data import datasets, text, text_sources
from lra_tasks.data.text import TOKENIZER, TextData, make_builder

YELP, NEWS = (text.CORPORA[name] for name in ('yelp_reviews', 'agnews'))
CSV = [YELP, NEWS]
SMALL = TextData(num_train=30, num_test=10)


def quote(value):
  return '"' + value.replace('"', '""') + '"'


def row(corpus, label, body):
  title = ['A title, "quoted"'] if corpus is NEWS else []
  return ','.join(map(quote, [str(label), *title, body])) + '\n'


def write(directory, corpus, num_train=40, num_test=12):
  """Write made-up texts in the layout of the data set, classes in turn."""
  root = pathlib.Path(directory) / corpus.folder
  root.mkdir(parents=True)
  for name, num in (('train', num_train), ('test', num_test)):
    rows = [
      row(corpus, 1 + i % corpus.num_classes, f' {name} {i}: a "fine" caf\xe9\\nand, ' + 'so ' * i)
      for i in range(num)
    ]
    (root / f'{name}.csv').write_bytes(''.join(rows).encode())
  (root / 'readme.txt').write_text('about')
  return root


def pack(root, path):
  with tarfile.open(path, 'w:xz' if path.suffix == '.xz' else 'w:gz') as archive:
    archive.add(root, root.name)
  return path


def prepare(corpus, source, data_dir, data=SMALL):
  builder = make_builder(data, data_dir=str(data_dir), source=str(source), task_name=corpus.name)
  datasets.prepare(builder)
  return builder


def texts(builder, split):
  records = builder.as_data_source(split)
  return [(TOKENIZER.decode(record['inputs']), record['target']) for record in records]


def read_as_tfds(corpus, path):
  """Return what TFDS' own builders, which LRA reads, make of a file."""
  if corpus is YELP:
    examples = tfds.text.YelpPolarityReviews._generate_examples(None, path)
    return [(e['text'].encode(), int(e['label']) - 1) for _, e in examples]
  examples = ag_news_subset_dataset_builder.Builder._generate_examples(None, path)
  return [(e['description'].encode(), e['label']) for _, e in examples]


@pytest.fixture(params=CSV, ids=lambda corpus: corpus.name)
def corpus(request):
  return request.param


@given(
  corpus=st.sampled_from(CSV),
  # TFDS' reader takes \r for the end of a line where TensorFlow is missing.
  bodies=st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\r\n')), min_size=1),
)
def test_texts_are_those_of_tfds(tmp_path_factory, corpus, bodies):
  folder = tmp_path_factory.mktemp('csv')
  lines = [row(corpus, 1 + i % corpus.num_classes, body) for i, body in enumerate(bodies)]
  (folder / 'test.csv').write_bytes(''.join(lines).encode())
  assert list(corpus.read(str(folder), 'test')) == read_as_tfds(corpus, folder / 'test.csv')


def test_escapes_stay_where_tfds_leaves_them(corpus, tmp_path):
  root = write(tmp_path, corpus)
  first = next(corpus.read(str(root), 'train'))
  stays = rb'train 0: a ""fine"" caf\xc3\xa9\nand,' if corpus is YELP else rb' train 0: a "fine" '
  assert first[0].startswith(stays.replace(rb'\xc3\xa9', b'\xc3\xa9'))
  assert (rb'\nand,' in first[0], first[1]) == (True, 0)


def test_splits_are_the_rows_of_the_files(corpus, tmp_path):
  root = write(tmp_path, corpus)
  builder = prepare(corpus, root, tmp_path / 'data')
  train = read_as_tfds(corpus, root / 'train.csv')[:30]
  held_out = sorted(np.random.RandomState(0).permutation(30)[27:].tolist())
  kept = [i for i in range(30) if i not in held_out]
  assert texts(builder, 'train') == [train[i] for i in kept]
  assert texts(builder, 'validation') == [train[i] for i in held_out]
  assert texts(builder, 'test') == read_as_tfds(corpus, root / 'test.csv')[:10]
  manifest = json.loads((pathlib.Path(builder.data_dir) / 'manifest.json').read_text())
  assert 'shuffle of train.csv by seed 0 puts into the last 10 %' in manifest['split_rule']
  lra = dataclasses.replace(SMALL, validation='test')
  lra = prepare(corpus, root, tmp_path / 'data', lra)
  assert (lra.data_dir, lra.validation_is_test) == (builder.data_dir, True)
  assert sorted(texts(lra, 'train')) == sorted(train)
  assert texts(lra, 'validation') == texts(lra, 'test') == texts(builder, 'test')


@pytest.mark.parametrize('ending', ['.tgz', '.tar.gz', '.tar.xz'])
def test_archives_give_the_data_of_the_folder(corpus, tmp_path, ending):
  root = write(tmp_path / 'folder', corpus)
  archive = pack(root, tmp_path / f'{corpus.folder}{ending}')
  builders = [
    prepare(corpus, source, tmp_path / f'data{i}')
    for i, source in enumerate((root, root.parent, archive, tmp_path))
  ]
  assert len({builder.info.full_name for builder in builders}) == 1
  assert texts(builders[0], 'train') == texts(builders[-1], 'train')


def test_known_archives_need_no_digits(corpus, tmp_path, monkeypatch):
  root = write(tmp_path, corpus)
  archive = pack(root, tmp_path / f'{corpus.folder}.tgz')
  known = dataclasses.replace(corpus, sha256=text_sources.sources.digest(archive).hex())
  monkeypatch.setitem(text.CORPORA, corpus.name, known)
  builder = prepare(known, archive, tmp_path / 'data')
  assert builder.builder_config.name == f'{corpus.name}_30_10_s0'
  again = make_builder(SMALL, data_dir=str(tmp_path / 'data'), task_name=corpus.name)
  assert again.data_dir == builder.data_dir
  (root / 'test.csv').write_bytes((root / 'test.csv').read_bytes().replace(b'0', b'1', 1))
  other = make_builder(SMALL, data_dir=str(tmp_path), source=str(root), task_name=corpus.name)
  assert re.fullmatch(rf'{corpus.name}_30_10_s0_[0-9a-f]{{16}}', other.builder_config.name)


def test_complete_data_has_its_size(corpus, tmp_path, monkeypatch, caplog):
  root = write(tmp_path, corpus)
  for num_train, found in ((41, '40'), (39, 'more')):
    known = dataclasses.replace(corpus, num_train=num_train, num_test=12)
    monkeypatch.setitem(text.CORPORA, corpus.name, known)
    message = f'train.csv: expected {num_train} rows, found {found}; replace it, from http'
    with pytest.raises(ValueError, match=message):
      prepare(known, root, tmp_path / 'data', TextData())
  known = dataclasses.replace(corpus, num_train=40, num_test=12)
  monkeypatch.setitem(text.CORPORA, corpus.name, known)
  builder = prepare(known, root, tmp_path / 'data', TextData())
  assert len(builder.as_data_source('train')) == 36
  assert not text.is_benchmark(builder)  # Nothing was published for it.
  assert (builder.variant, builder.num_classes) == (corpus.name, corpus.num_classes)


DAMAGES = {
  YELP: {
    '"3","class"\n': 'line 7: expected a class from 1 to 2, found .3.',
    '1,unquoted\n': 'line 7: expected "CLASS","TEXT", found .1,unquoted',
    '"1","text"\r\n': r'line 7: expected "CLASS","TEXT", found ..1.,.text.\\r',
    '"1","a\nb"\n': 'line 7: expected "CLASS","TEXT", found ..1.,.a',
  },
  NEWS: {
    '"5","title","class"\n': 'line 7: expected a class from 1 to 4, found .5.',
    '"x","title","class"\n': 'line 7: expected a class from 1 to 4, found .x.',
    '"1","title only"\n': 'line 7: expected 3 columns, found 2: ',
    '"1","a","b"c"\n': "line 7: expected CSV, found: ',' expected after '\"'",
    '"1","a","never closed': 'line 10: expected CSV, found: unexpected end of data',
  },
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(
  ('corpus', 'line', 'message'),
  [(c, *damage) for c, damages in DAMAGES.items() for damage in damages.items()],
)
def test_damaged_rows_are_named(tmp_path, corpus, line, message, packed):
  root = write(tmp_path, corpus)
  lines = (root / 'test.csv').read_text().splitlines(keepends=True)
  end = lines[7:] if line.endswith('\n') else ['plain text\n'] * 4
  (root / 'test.csv').write_text(''.join([*lines[:6], line, *end]), newline='')
  source = pack(root, tmp_path / f'{corpus.folder}.tgz') if packed else root
  with pytest.raises(ValueError, match=f'^{re.escape(str(source))}: test.csv: {message}'):
    prepare(corpus, source, tmp_path / 'data')
  assert not list((tmp_path / 'data').rglob('*.array_record*'))


def test_bytes_that_are_no_text_are_named(corpus, tmp_path):
  root = write(tmp_path, corpus)
  lines = (root / 'train.csv').read_bytes().splitlines(keepends=True)
  lines[4] = lines[4].replace(b'fine', b'\xff')
  (root / 'train.csv').write_bytes(b''.join(lines))
  with pytest.raises(ValueError, match='train.csv: line 5: expected UTF-8: .* 0xff'):
    prepare(corpus, root, tmp_path / 'data')


def test_missing_and_damaged_files_are_named(corpus, tmp_path):
  root = write(tmp_path, corpus)
  (root / 'test.csv').unlink()
  archive = pack(root, tmp_path / 'a.tgz')
  with pytest.raises(ValueError, match=r'a.tgz: expected a file test.csv, found none'):
    prepare(corpus, archive, tmp_path / 'data')
  archive.write_bytes(archive.read_bytes()[:-40])
  with pytest.raises(ValueError, match=r'a.tgz is damaged or no tar archive: .*replace it, from'):
    prepare(corpus, archive, tmp_path / 'data')
  with pytest.raises(ValueError, match=r'train.csv is no archive .* holds train.csv, test.csv, or'):
    prepare(corpus, root / 'train.csv', tmp_path / 'data')
  archive.write_text('<html>not found</html>\n' * 100)
  message = r'a.tgz is damaged or no tar archive: [^\n]*successfully \(after 0 files\); replace it'
  with pytest.raises(ValueError, match=message):
    prepare(corpus, archive, tmp_path / 'data')
  expected = rf'holds neither a directory {corpus.folder} with train.csv, test.csv nor an archive '
  with pytest.raises(FileNotFoundError, match=f'{expected}such as {corpus.archive}: fetch http'):
    prepare(corpus, root, tmp_path / 'data')


def test_where_no_download_is_possible_the_place_is_named(corpus, tmp_path, monkeypatch):
  closed = dataclasses.replace(corpus, url='http://127.0.0.1:1/uc?id=1')
  monkeypatch.setitem(text.CORPORA, corpus.name, closed)
  builder = make_builder(SMALL, data_dir=str(tmp_path), task_name=corpus.name)
  place = tmp_path / corpus.archive
  message = re.escape(f'put it there as {place}, or name it by --source')
  with pytest.raises(OSError, match=rf'cannot download http://127.*refused.*{message}'):
    datasets.prepare(builder)


@pytest.mark.slow
def test_a_run_has_the_classes_of_its_data(shared, tmp_path):
  root = write(tmp_path, NEWS)
  fields = {
    'data': dataclasses.asdict(SMALL), 'batch_size': 2, 'num_train_steps': 1, 'max_length': 16,
    'emb_dim': 4, 'qkv_dim': 4, 'mlp_dim': 4,
  }  # fmt: skip
  assert run_here(
    shared, tmp_path / 'run', task='text', argument='linear_transformer,tiny', source=str(root),
    task_name='agnews', **fields,
  ) == 0  # fmt: skip
  results = read(tmp_path / 'run', 'results.json')
  assert results['task'] == 'text/agnews'  # No published figure is for it.
  assert (results['comparable'], results['examples']) == (False, 10)
  assert read(tmp_path / 'run', 'config.json')['model']['num_classes'] == 4
