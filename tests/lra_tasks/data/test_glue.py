import dataclasses
import json
import lzma
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest

from lra_tasks import metrics
from lra_tasks.data import datasets, glue, sources
from lra_tasks.data.glue import GlueData, make_builder
from lra_tasks.data.glue_files import digest_splits, read_splits
from lra_tasks.data.glue_tasks import GLUE_TASKS
from lra_tasks.data.pipeline import collate
from lra_tasks.data.tokenized import Tokenized, read_text

SMALL = GlueData(vocab_size=200)
# Columns of the official files, in their order.
HEADERS = {
  'sst2': ['sentence', 'label'],
  'mrpc': ['Quality', '#1 ID', '#2 ID', '#1 String', '#2 String'],
  'qqp': ['id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate'],
  'mnli': ['index', 'promptID', 'genre', 'sentence1', 'sentence2', 'label1', 'gold_label'],
  'qnli': ['index', 'question', 'sentence', 'label'],
  'wnli': ['index', 'sentence1', 'sentence2', 'label'],
  'rte': ['index', 'sentence1', 'sentence2', 'label'],
  'cola': ['source', 'label', 'mark', 'sentence'],
}
SIZES = {'train': 30, 'dev': 8}


def make_rows(name, count, shift=0):
  """Return rows by column; quotation marks, blanks and accents are part of the texts."""
  task, rows = GLUE_TASKS[name], []
  for i in range(shift, shift + count):
    row = dict.fromkeys(HEADERS[name], str(i))
    for k, column in enumerate(task.texts):
      row[column] = f'"The {i}th café, text {k} of {name} '
    row[task.label] = task.labels[i % len(task.labels)]
    rows.append(row)
  return rows


def write(root, name, *, sizes=SIZES, ending='', bom=b'', folder=None):
  """Write the files of a task as GLUE distributes them, and return their folder."""
  task = GLUE_TASKS[name]
  directory = pathlib.Path(root) / (folder or task.folder)
  directory.mkdir(parents=True, exist_ok=True)
  files = {'train': 'train', 'dev': task.dev}
  for shift, (part, stem) in enumerate(files.items()):
    write_table(directory / f'{stem}.tsv', name, sizes[part], 100 * shift, ending=ending, bom=bom)
  (directory / 'test.tsv').write_text('index\tsentence\n0\twithout label\n')
  return directory


def write_table(path, name, count, shift=0, *, ending='', bom=b''):
  rows = make_rows(name, count, shift)
  lines = [] if GLUE_TASKS[name].columns else ['\t'.join(HEADERS[name])]
  lines += ['\t'.join(row.values()) for row in rows]
  text = bom + '\n'.join(lines).encode()  # CoLA's ends without a newline.
  if ending:
    path.with_name(path.name + ending).write_bytes(lzma.compress(text))
  else:
    path.write_bytes(text)


def expected(name, count, shift=0):
  task = GLUE_TASKS[name]
  return [
    (tuple(row[c].encode() for c in task.texts), task.labels.index(row[task.label]))
    for row in make_rows(name, count, shift)
  ]


def prepared(data_dir, source, name, data=SMALL):
  builder = make_builder(data, task=name, data_dir=str(data_dir), source=str(source))
  datasets.prepare(builder)
  return builder


def replace(monkeypatch, name, **values):
  """Alter what is known of the original."""
  monkeypatch.setitem(GLUE_TASKS, name, dataclasses.replace(GLUE_TASKS[name], **values))


def contents(builder):
  return {file.name: file.read_bytes() for file in pathlib.Path(builder.data_dir).iterdir()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A GLUE folder with all tasks."""
  root = tmp_path_factory.mktemp('glue')
  for name in GLUE_TASKS:
    write(root, name)
  return root


@pytest.fixture(scope='module')
def builder(folder, tmp_path_factory):
  return prepared(tmp_path_factory.mktemp('data'), folder, 'mrpc')


# What is read.


@pytest.mark.parametrize('name', GLUE_TASKS)
def test_official_files_are_read(folder, name):
  splits = read_splits(str(folder), GLUE_TASKS[name])
  assert splits == {'train': expected(name, 30), 'test': expected(name, 8, 100)}
  assert read_splits(str(folder / GLUE_TASKS[name].folder), GLUE_TASKS[name]) == splits


def test_marks_line_ends_and_compression_are_undone(tmp_path):
  write(tmp_path, 'mrpc', ending='.xz', bom=b'\xef\xbb\xbf')
  assert read_splits(str(tmp_path), GLUE_TASKS['mrpc'])['train'] == expected('mrpc', 30)
  path = write(tmp_path, 'cola', bom=b'\xef\xbb\xbf') / 'train.tsv'
  path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
  assert read_splits(str(tmp_path), GLUE_TASKS['cola'])['train'] == expected('cola', 30)


@pytest.mark.parametrize('ending', ['zip', 'tar.gz'])
def test_archives_are_read(folder, tmp_path, ending):
  path = tmp_path / f'SST-2.{ending}'
  if ending == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for file in sorted((folder / 'SST-2').iterdir()):
        archive.write(file, f'SST-2/{file.name}')
      archive.writestr('SST-2/original/train.tsv.txt', 'of no account')
      archive.writestr('__MACOSX/SST-2/._train.tsv', 'of a file manager')
  else:
    with tarfile.open(path, 'w:gz') as archive:
      archive.add(folder / 'SST-2', 'glue_data/SST-2')
  assert read_splits(str(path), GLUE_TASKS['sst2'])['train'] == expected('sst2', 30)
  builder = make_builder(SMALL, task='sst2', data_dir=str(tmp_path / 'd'), source=str(tmp_path))
  assert builder.builder_config.source == str(path)


def mrpc_sources():
  """Return the files that MRPC is made of, and the rows of the first one."""
  rows = make_rows('mrpc', 30) + make_rows('mrpc', 8, 100)
  rows = [rows[i] for i in np.random.RandomState(0).permutation(len(rows))]
  table = ['\t'.join(line) for line in [HEADERS['mrpc'], *(row.values() for row in rows)]]
  ids = [f'{row["#1 ID"]}\t{row["#2 ID"]}' for row in make_rows('mrpc', 8, 100)]
  files = {
    'msr_paraphrase_train.txt': '\ufeff' + '\r\n'.join(table),
    'mrpc_dev_ids.tsv': '\n'.join(ids),
  }
  return {name: text.encode() for name, text in files.items()}, rows


def test_mrpc_is_made_of_its_sources(folder, tmp_path):
  files, rows = mrpc_sources()
  for name, text in files.items():
    (tmp_path / name).write_bytes(text)
  splits = read_splits(str(tmp_path), GLUE_TASKS['mrpc'])
  whole = read_splits(str(folder), GLUE_TASKS['mrpc'])
  assert {name: sorted(part) for name, part in splits.items()} == {
    name: sorted(part) for name, part in whole.items()
  }
  assert [example.texts[0] for example in splits['train'][:2]] == [
    row['#1 String'].encode() for row in rows if int(row['#1 ID']) < 100
  ][:2]
  (tmp_path / 'mrpc_dev_ids.tsv').unlink()
  with pytest.raises(FileNotFoundError, match=r'lacks MRPC/mrpc_dev_ids\.tsv: fetch .*senteval'):
    read_splits(str(tmp_path), GLUE_TASKS['mrpc'])


def test_incomplete_rows_of_qqp_are_skipped(tmp_path):
  path = write(tmp_path, 'qqp') / 'train.tsv'
  with path.open('ab') as file:
    file.write(b'\n1\t2\t3\tbroken\n1\t2\t3\tno label\tsecond\t\n1\t2\t3\t\tonly one\t1')
  train = read_splits(str(tmp_path), GLUE_TASKS['qqp'])['train']
  assert train == [*expected('qqp', 30), ((b'', b'only one'), 1)]
  builder = prepared(tmp_path / 'data', tmp_path, 'qqp')
  parts = [record for part in ('train', 'test') for record in builder.as_data_source(part)]
  assert ('', 'only one') in list(map(read_text, parts))


def test_mnli_may_have_a_second_development_set(folder, tmp_path):
  directory = write(tmp_path, 'mnli')
  write_table(directory / 'dev_mismatched.tsv', 'mnli', 5, 200)
  builder = prepared(tmp_path / 'data', tmp_path, 'mnli')
  assert len(builder.as_data_source('test')) == 8
  found = builder.as_data_source('test_mismatched')
  assert [read_text(r) for r in found] == [
    tuple(text.decode() for text in texts) for texts, _ in expected('mnli', 5, 200)
  ]
  assert builder.num_classes == 3


# What is prepared.


def test_records_hold_text(builder, folder):
  assert list(builder.info.features) == ['inputs1', 'inputs2', 'target']
  records = list(builder.as_data_source('test'))
  assert records[0]['inputs1'].dtype == np.uint8
  found = [((r['inputs1'].tobytes(), r['inputs2'].tobytes()), r['target']) for r in records]
  assert found == expected('mrpc', 8, 100)


def test_development_set_is_validated_on(builder, folder):
  holdout = make_builder(
    GlueData(vocab_size=200, validation='holdout'),
    task='mrpc',
    data_dir=builder.root,
    source=str(folder),
  )
  assert holdout.data_dir == builder.data_dir  # Prepared once for both.
  assert (builder.validation_is_test, holdout.validation_is_test) == (True, False)
  sizes = lambda b: {s: len(b.as_data_source(s)) for s in ('train', 'validation', 'test')}
  assert sizes(builder) == {'train': 30, 'validation': 8, 'test': 8}
  assert sizes(holdout) == {'train': 27, 'validation': 3, 'test': 8}
  texts = sorted(r['inputs1'].tobytes() for r in builder.as_data_source('train'))
  assert texts == sorted(texts for (texts, _), _ in expected('mrpc', 30))
  first = [r['inputs1'].tobytes() for r in builder.as_data_source('train')]
  assert first != sorted(first)  # Shuffled.


def test_the_seed_decides_what_is_held_out(builder, folder, tmp_path):
  other = prepared(tmp_path, folder, 'mrpc', GlueData(vocab_size=200, seed=1))
  read = lambda b: sorted(map(read_text, b.as_data_source('validation')))
  assert other.builder_config.name != builder.builder_config.name
  held_out = lambda b: {read_text(r) for r in b.as_data_source('train').__getitems__(range(27, 30))}
  assert held_out(other) != held_out(builder)
  assert read(other) == read(builder)  # The development set.


def test_vocabulary_is_that_of_train(builder):
  assert builder.tokenizer.vocab_size <= 200
  text = 'the 3th cafe , text 1 of mrpc [SEP]'
  assert builder.tokenizer.decode(builder.tokenizer.encode('The 3th café, text 1 of MRPC')) == text
  manifest = json.loads(contents(builder)['manifest.json'])
  assert manifest['tokenizer'] == builder.tokenizer.to_dict()
  assert "GLUE's dev set" in manifest['split_rule']


def test_other_forms_are_the_same_data(builder, tmp_path):
  write(tmp_path, 'mrpc', ending='.xz', bom=b'\xef\xbb\xbf')
  again = prepared(tmp_path / 'data', tmp_path, 'mrpc')
  assert again.builder_config.name == builder.builder_config.name
  assert contents(again) == contents(builder)


def test_prepared_data_needs_no_source(builder, tmp_path):
  found = make_builder(SMALL, task='mrpc', data_dir=builder.root)
  assert found.data_dir == builder.data_dir
  datasets.prepare(found)
  (tmp_path / f'glue/mrpc_v200_s0_{"0" * 16}/1.0.0').mkdir(parents=True)
  (tmp_path / f'glue/mrpc_v200_s0_{"1" * 16}/1.0.0').mkdir(parents=True)
  with pytest.raises(ValueError, match='prepared from several sources: name one by --source'):
    make_builder(SMALL, task='mrpc', data_dir=str(tmp_path))


# Whether it is the benchmark.


def test_known_contents_have_no_digest(monkeypatch, folder, tmp_path):
  digest = digest_splits(read_splits(str(folder), GLUE_TASKS['cola']))
  make = lambda: make_builder(
    SMALL, task='cola', data_dir=str(tmp_path / 'data'), source=str(folder)
  )
  assert make().builder_config.name == f'cola_v200_s0_{digest[:16]}'
  assert not glue.is_benchmark(make())
  replace(monkeypatch, 'cola', contents=digest)
  assert make().builder_config.name == 'cola_v200_s0'
  assert glue.is_benchmark(make())


def test_unknown_contents_are_counted(monkeypatch, folder, tmp_path):
  builder = make_builder(SMALL, task='qnli', data_dir=str(tmp_path), source=str(folder))
  assert not glue.is_benchmark(builder)
  replace(monkeypatch, 'qnli', num_train=(30,), num_dev=8)
  assert glue.is_benchmark(builder)
  datasets.prepare(builder)
  assert glue.is_benchmark(make_builder(SMALL, task='qnli', data_dir=str(tmp_path)))


def test_without_source_the_archive_is_fetched(monkeypatch, folder, tmp_path):
  asked = []
  place = lambda *args: asked.append(args) or str(folder)
  monkeypatch.setattr(sources, 'fetch', place)
  builder = make_builder(SMALL, task='rte', data_dir=str(tmp_path))
  assert glue.is_benchmark(builder)
  datasets.prepare(builder)
  url = 'https://dl.fbaipublicfiles.com/glue/data/RTE.zip'
  assert asked == [(url, str(tmp_path / 'RTE.zip'), GLUE_TASKS['rte'].sha256)]
  datasets.prepare(make_builder(SMALL, task='rte', data_dir=str(tmp_path)))
  assert len(asked) == 1


def test_mrpc_is_fetched_in_parts(monkeypatch, tmp_path):
  asked = []

  def fetch(url, path, sha256):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_bytes(mrpc_sources()[0][pathlib.Path(path).name])
    asked.append((url, len(sha256)))
    if len(asked) == 1:
      raise OSError('the connection ended')

  monkeypatch.setattr(sources, 'fetch', fetch)
  with pytest.raises(OSError, match='the connection ended'):
    datasets.prepare(make_builder(SMALL, task='mrpc', data_dir=str(tmp_path)))
  builder = make_builder(SMALL, task='mrpc', data_dir=str(tmp_path))
  datasets.prepare(builder)
  assert (builder.builder_config.name, len(builder.as_data_source('test'))) == ('mrpc_v200_s0', 8)
  root = 'https://dl.fbaipublicfiles.com'
  train = f'{root}/senteval/senteval_data/msr_paraphrase_train.txt'
  assert asked == [(train, 64), (train, 64), (f'{root}/glue/data/mrpc_dev_ids.tsv', 64)]


def test_a_folder_in_data_dir_is_taken(tmp_path):
  write(tmp_path, 'mrpc')
  builder = make_builder(SMALL, task='mrpc', data_dir=str(tmp_path))
  assert builder.builder_config.source == str(tmp_path / 'MRPC')


def test_the_table_is_that_of_glue():
  assert {name: (task.num_train[0], task.num_dev) for name, task in GLUE_TASKS.items()} == {
    'sst2': (67_349, 872),
    'mrpc': (3668, 408),
    'qqp': (363_846, 40_430),
    'mnli': (392_702, 9815),
    'qnli': (104_743, 5463),
    'wnli': (635, 71),
    'rte': (2490, 277),
    'cola': (8551, 1043),
  }
  assert {name for task in GLUE_TASKS.values() for name in task.metrics} == set(metrics.METRICS)
  assert [name for name, task in GLUE_TASKS.items() if len(task.texts) == 1] == ['sst2', 'cola']


# Errors.


@pytest.mark.parametrize(
  ('name', 'line', 'message'),
  [
    ('sst2', b'one\ttoo\tmany', 'line 32: expected 2 columns between tabs, found 3'),
    ('sst2', b'good\t2', "line 32: expected a label of 0, 1, found '2'"),
    ('rte', b'1\ta\tb\tneutral', "a label of entailment, not_entailment, found 'neutral'"),
    ('rte', b'1\t \t\tentailment', 'text in sentence1 or sentence2, found none'),
    ('cola', b'x\t1\t\t\xff', 'line 31: expected UTF-8'),
    ('cola', b'x\t1\ta sentence', 'line 31: expected 4 columns'),
  ],
)
def test_damaged_rows_are_named(tmp_path, name, line, message):
  path = write(tmp_path, name) / 'train.tsv'
  path.write_bytes(path.read_bytes() + b'\n' + line)
  with pytest.raises(ValueError, match=rf'train\.tsv, {message}|{message}.*') as error:
    read_splits(str(tmp_path), GLUE_TASKS[name])
  assert 'replace it, from https://dl.fbaipublicfiles.com' in str(error.value)


def test_other_headers_are_an_error(tmp_path):
  write(tmp_path, 'wnli', folder='SST-2')
  with pytest.raises(ValueError, match=r"line 1: expected columns sentence, found 'index, sen"):
    read_splits(str(tmp_path), GLUE_TASKS['sst2'])


def test_missing_files_are_named(folder, tmp_path):
  make = lambda source: make_builder(SMALL, task='qnli', data_dir=str(tmp_path), source=str(source))
  with pytest.raises(FileNotFoundError, match='nowhere does not exist: name a directory'):
    make(tmp_path / 'nowhere')
  directory = write(tmp_path, 'qnli')
  (directory / 'train.tsv').unlink()
  with pytest.raises(FileNotFoundError, match=r'lacks QNLI/train\.tsv: fetch .*QNLIv2\.zip'):
    make(tmp_path)
  write(tmp_path, 'qnli')
  write(tmp_path / 'again', 'qnli')
  with pytest.raises(ValueError, match=r'holds QNLI/train\.tsv and again/QNLI/train\.tsv'):
    make(tmp_path)
  write(tmp_path / 'few', 'qnli', sizes={'train': 9, 'dev': 1})
  with pytest.raises(ValueError, match='at least 10 examples of train, found 9'):
    make(tmp_path / 'few')


def test_unknown_names_are_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"unknown GLUE task 'stsb'.*known: cola, mnli"):
    make_builder(SMALL, task='stsb', data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="unknown task_name 'mrpc' of rte: only 'rte' exists"):
    make_builder(SMALL, task='rte', data_dir=str(tmp_path), task_name='mrpc')
  with pytest.raises(ValueError, match="unknown validation 'dev'"):
    GlueData(validation='dev')
  for field, value in (('seed', -1), ('vocab_size', 199)):
    with pytest.raises(ValueError, match=f'{field} must lie in .* got {value}'):
      GlueData(**{field: value})


# The view of token ids.


@pytest.mark.parametrize('name', ['mrpc', 'cola'])
def test_texts_are_seen_as_ids(builder, folder, tmp_path, name):
  if name != 'mrpc':
    builder = prepared(tmp_path, folder, name)
  source, tokenizer = builder.as_data_source('test'), builder.tokenizer
  view = Tokenized(source, tokenizer, max_length=12)
  assert len(view) == len(source) == 8
  records = view.__getitems__([3, 0, 3])
  for index, record in zip([3, 0, 3], records, strict=True):
    ids = tokenizer.encode(read_text(source[index]), 12)
    np.testing.assert_array_equal(record['inputs'], ids)
    assert record['target'] == source[index]['target']
    assert record['truncated'] == (len(tokenizer.encode(read_text(source[index]))) > 12)
  assert len(records[0]['inputs']) == 12
  batch = collate(view, [3, 0], 12)
  assert batch['truncated'].tolist() == [records[0]['truncated'], records[1]['truncated']]
  separators = [np.count_nonzero(record['inputs'] == tokenizer.separator) for record in view]
  assert separators == [2 if name == 'mrpc' else 1] * 8
  np.testing.assert_array_equal(view[3]['inputs'], records[0]['inputs'])
  with pytest.raises(IndexError, match='there is no example 8'):
    view[8]
  whole = Tokenized(source, tokenizer)[0]['inputs']
  np.testing.assert_array_equal(whole, tokenizer.encode(read_text(source[0])))
