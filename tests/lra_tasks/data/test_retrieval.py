import bz2
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import re
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest
from run_helpers import read, run_here

from lra_tasks import command_line, configuration
from lra_tasks.data import datasets, pipeline, retrieval, retrieval_files, retrieval_papers, sources
from lra_tasks.data.retrieval import TOKENIZER, RetrievalData, make_builder
from lra_tasks.tasks import get_task

PAPERS = pathlib.Path(__file__).parents[2] / 'fixtures/retrieval'
SPLITS = {'train': 'train', 'validation': 'eval', 'test': 'test'}
SIZES = {'train': 12, 'validation': 4, 'test': 6}
SMALL = RetrievalData(num_train=12, num_valid=4, num_test=6)
ALL_SMALL = RetrievalData()  # With `benchmark`, which is as small.


def real_texts():
  return list(retrieval_papers.read_documents(str(PAPERS / 'documents.jsonl.xz')).values())


def write_pairs(directory):
  """Write real texts in the form of LRA's files, some with bytes that mean much elsewhere."""
  directory.mkdir(parents=True, exist_ok=True)
  texts = [text.replace(b'\n', b' ').replace(b'\t', b' ') for text in real_texts()]
  texts[0] = b'"quoted" and not" \x00\xff\'\\n, caf\xe9'
  texts[1] = b'long ' * 2100 + b'tail'
  for number, (split, infix) in enumerate(SPLITS.items()):
    rows = [
      b'%d.0\tA00-%d\tB00\t%s\t%s\n' % (i % 2, i, texts[2 * i + 7 * number], texts[2 * i + 1])
      for i in range(SIZES[split])
    ]
    (directory / f'new_aan_pairs.{infix}.tsv').write_bytes(b''.join(rows))
  return directory


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """A directory of files like LRA's, small."""
  return write_pairs(tmp_path_factory.mktemp('pairs') / 'tsv_data')


@pytest.fixture
def copy(pairs, tmp_path):
  """A copy to do harm to."""
  return pathlib.Path(shutil.copytree(pairs, tmp_path / 'copy'))


@pytest.fixture
def papers(tmp_path):
  """Papers and citations, not compressed, to do harm to."""
  directory = tmp_path / 'papers'
  directory.mkdir()
  (directory / 'documents.jsonl').write_bytes(
    lzma.decompress((PAPERS / 'documents.jsonl.xz').read_bytes())
  )
  shutil.copy(PAPERS / 'citations.tsv', directory)
  return directory


@pytest.fixture
def benchmark(monkeypatch):
  """Have the benchmark be as small as the files."""
  monkeypatch.setattr(retrieval_files, 'BENCHMARK_SIZES', SIZES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  monkeypatch.setattr(retrieval_files, 'URL', 'http://127.0.0.1:1/lra_release.gz')


@pytest.fixture(scope='module')
def builder(pairs, tmp_path_factory):
  data_dir = str(tmp_path_factory.mktemp('data'))
  builder = make_builder(SMALL, data_dir=data_dir, source=str(pairs))
  datasets.prepare(builder)
  return builder


@pytest.fixture(scope='module')
def rebuilt(tmp_path_factory):
  data_dir = str(tmp_path_factory.mktemp('rebuilt'))
  builder = make_builder(RetrievalData(), data_dir=data_dir, source=str(PAPERS))
  datasets.prepare(builder)
  return builder


def prepare(data, data_dir, source=None):
  builder = make_builder(data, data_dir=str(data_dir), source=source and str(source))
  datasets.prepare(builder)
  return builder


def records(builder):
  """All that is read, as bytes: first text, second text, label."""
  return {
    name: [
      (TOKENIZER.decode(e['inputs1']), TOKENIZER.decode(e['inputs2']), int(e['target']))
      for e in builder.as_data_source(name)
    ]
    for name in SPLITS
  }


def pack(directory, path, names=None, repeat=1):
  """Write LRA's files below `lra_release`, in this order, with others between them."""
  names = names or sorted(file.name for file in directory.iterdir())
  with tarfile.open(path, f'w:{path.suffix[1:].replace("tar", "")}') as archive:
    for name in names * repeat:
      archive.add(directory / name, f'lra_release/tsv_data/{name}')
      other = tarfile.TarInfo(f'lra_release/pathfinder/{name}.png')
      archive.addfile(other, io.BytesIO())
  return path


def is_empty(directory):
  return [p.name for p in pathlib.Path(directory).rglob('*') if p.is_file()] in ([], ['.lock'])


# LRA's pairs.


def test_pairs_are_read_to_the_byte(builder, pairs):
  found = records(builder)
  assert {name: len(part) for name, part in found.items()} == SIZES
  for split, infix in SPLITS.items():
    lines = (pairs / f'new_aan_pairs.{infix}.tsv').read_bytes().split(b'\n')[:-1]
    rows = [line.split(b'\t') for line in lines]
    theirs = [(row[3][:10_000], row[4][:10_000], int(float(row[0]))) for row in rows]
    assert found[split] == theirs
  assert found['train'][0][0] == b'"quoted" and not" \x00\xff\'\\n, caf\xe9'
  assert len(found['train'][0][1]) == 10_000
  example = builder.as_data_source('train')[0]
  assert example['inputs1'].dtype == example['inputs2'].dtype == np.uint16
  assert example['inputs1'].max() == 256


def test_batches_hold_both_texts(builder):
  spec = get_task('retrieval')
  evaluation = pipeline.Evaluation(
    builder.as_data_source('validation'),
    batch_size=4,
    max_length=900,
    share=pipeline.Share(),
    num_inputs=spec.num_inputs,
  )
  batch = next(iter(evaluation))
  for row, (first, second, label) in enumerate(records(builder)['validation']):
    assert TOKENIZER.decode(batch['inputs'][row, 0]) == first[:900]
    assert TOKENIZER.decode(batch['inputs'][row, 1]) == second[:900]
    assert batch['targets'][row] == label
  assert spec.tokenizer.vocab_size > batch['inputs'].max()


@pytest.mark.parametrize('ending', ['.gz', '.tar', '.tar.xz', '.tgz', '.tar.bz2'])
def test_archives_give_the_pairs_of_the_directory(builder, pairs, tmp_path, ending):
  names = [f'new_aan_pairs.{infix}.tsv' for infix in ('test', 'train', 'eval')]
  archive = pack(pairs, tmp_path / 'packed.tar', names).read_bytes()
  compress = {'.gz': gzip, '.tgz': gzip, '.tar.xz': lzma, '.tar.bz2': bz2}.get(ending)
  path = tmp_path / f'lra_release{ending}'
  path.write_bytes(compress.compress(archive) if compress else archive)
  for number, source in enumerate((path, tmp_path)):
    again = prepare(SMALL, tmp_path / f'data{number}', source)
    assert records(again) == records(builder)
    assert not [p for p in (tmp_path / f'data{number}').iterdir() if p.suffix == '.tsv']


def test_archives_are_not_held_in_memory(tmp_path):
  directory = tmp_path / 'large'
  directory.mkdir()
  row = b'1\ta\tb\t' + b'x' * 500_000 + b'\t' + b'y' * 500_000 + b'\n'
  for infix in SPLITS.values():
    (directory / f'new_aan_pairs.{infix}.tsv').write_bytes(row * 12)
  archive = pack(directory, tmp_path / 'lra_release.tar')
  tracemalloc.start()
  prepare(SMALL, tmp_path / 'data', archive)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 12 * 2**20  # Of 36.


def test_what_is_not_wanted_is_not_copied(pairs, tmp_path, benchmark):
  archive = pack(pairs, tmp_path / 'lra_release.tar.gz')
  for wanted, most in ((5, 5), (12, 13)):
    sizes = {'train': wanted, 'validation': 2, 'test': 2}
    rows = retrieval_files.read_archive(str(archive), str(tmp_path), sizes)['train']
    assert (len(list(rows)), rows.most) == (wanted, most)
  rows = retrieval_files.read_archive(str(archive), str(tmp_path), SIZES | {'train': 5})['train']
  with rows._open() as spool:
    assert len(spool.readlines()) == 5


@pytest.mark.parametrize('label', [b'0', b'1', b'0.0', b'1.0'])
@pytest.mark.parametrize('end', [b'\n', b'\r\n', b''])
def test_forms_of_rows(label, end):
  (row,) = retrieval_files.read_pairs([label + b'\t1\t2\ta "b\t\xff' + end], 'file')
  assert row == (int(label[:1]), b'a "b', b'\xff')


def test_raw_data_may_lie_in_data_dir_or_below(builder, pairs, tmp_path):
  for place in ('flat', 'deep/tsv_data'):
    shutil.copytree(pairs, tmp_path / place)
    again = prepare(SMALL, tmp_path / place.partition('/')[0])
    assert records(again) == records(builder)
    assert again.info.full_name == builder.info.full_name


def test_prepared_pairs_need_no_source(builder, pairs, copy, tmp_path, monkeypatch):
  data_dir = tmp_path / 'data'
  first = prepare(SMALL, data_dir, pairs)
  monkeypatch.setattr(retrieval_files, 'read_pairs', None)
  again = prepare(SMALL, data_dir)
  assert again.info.full_name == first.info.full_name
  assert records(again) == records(builder)
  monkeypatch.undo()
  (copy / 'new_aan_pairs.test.tsv').write_bytes(b'0\t1\t2\tother\ttexts\n' * 6)
  other = prepare(SMALL, data_dir, copy)
  assert other.info.full_name != first.info.full_name
  with pytest.raises(ValueError, match='prepared from several sources: name one by --source'):
    make_builder(SMALL, data_dir=str(data_dir))
  shutil.rmtree(pathlib.Path(other.data_dir).parent)
  gone = make_builder(SMALL, data_dir=str(data_dir))
  shutil.rmtree(gone.data_dir)
  with pytest.raises(FileNotFoundError, match='is gone: name the source anew by --source'):
    datasets.prepare(gone)


def test_only_all_of_lras_pairs_are_the_benchmark(pairs, builder, rebuilt, tmp_path, benchmark):
  make = lambda **options: make_builder(
    RetrievalData(**options), data_dir=str(tmp_path), source=str(pairs)
  )
  assert retrieval.is_benchmark(make())
  assert retrieval.is_benchmark(make(pairs='lra', seed=3, num_test=6))
  assert make().builder_config.name == make(num_test=6).builder_config.name
  assert not retrieval.is_benchmark(make(num_test=4))
  assert not retrieval.is_benchmark(rebuilt)
  assert (make().variant, rebuilt.variant) == ('', 'aan_rebuilt')
  datasets.prepare(make())
  assert retrieval.is_benchmark(make_builder(RetrievalData(), data_dir=str(tmp_path)))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(('infix', 'keep'), [('train', 11), ('eval', 3), ('test', 0)])
def test_truncated_files_are_not_the_benchmark(copy, tmp_path, benchmark, infix, keep, packed):
  path = copy / f'new_aan_pairs.{infix}.tsv'
  rows = path.read_bytes().splitlines(keepends=True)
  for altered, found in ((rows[:keep], keep), ([*rows, *rows[:2]], 'more')):
    path.write_bytes(b''.join(altered))
    source = pack(copy, tmp_path / 'lra_release.tar.gz') if packed else copy
    message = (
      rf'{path.name}: expected {len(rows)} pairs, found {found}; fetch it anew from http.* '
      r'or ask for fewer by --config.data.num_'
    )
    with pytest.raises(ValueError, match=message):
      prepare(ALL_SMALL, tmp_path / 'data', source)
    assert is_empty(tmp_path / 'data')


def test_fewer_pairs_are_the_first_ones(builder, pairs, tmp_path):
  fewer = prepare(RetrievalData(num_train=5, num_valid=2, num_test=2), tmp_path, pairs)
  assert records(fewer)['train'] == records(builder)['train'][:5]
  with pytest.raises(ValueError, match=r'eval.tsv: expected at least 5 pairs, found 4; fetch'):
    prepare(dataclasses.replace(SMALL, num_valid=5), tmp_path, pairs)


# Bad input.

DAMAGES = {
  b'0.0\t1\t2\tonly one text': r'expected label, id, id, text, text between tabs, found columns: 4',
  b'0.0\t1\t2\ta\tb\tc': r'found columns: 6',
  b'': r'found columns: 1',
  b'label\tid1\tid2\ttext1\ttext2': r"expected a label '0.0' or '1.0', found 'label'",
  b'0.5\t1\t2\ta\tb': r"found '0.5'",
  b'1.0\t1\t2\t\tb': r'expected a first text, found nothing',
  b'1.0\t1\t2\ta\t': r'expected a second text, found nothing',
  b'1.0\t1\t2\ta\rb\tc': r'expected the end of the line after a carriage return, in the first',
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('row', DAMAGES)
def test_damaged_rows_are_named(copy, tmp_path, row, packed):
  path = copy / 'new_aan_pairs.eval.tsv'
  rows = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join([rows[0], row + b'\n', *rows[2:]]))
  source = pack(copy, tmp_path / 'lra_release.tar.gz') if packed else copy
  message = f'new_aan_pairs.eval.tsv, line 2: .*{DAMAGES[row]}.*; replace the file'
  with pytest.raises(ValueError, match=f'^{re.escape(str(source))}.*{message}'):
    prepare(SMALL, tmp_path / 'data', source)
  assert is_empty(tmp_path / 'data')


@pytest.mark.parametrize('how', ['cut', 'altered', 'text', 'twice', 'lacking'])
def test_damaged_archives_are_named(pairs, tmp_path, how):
  path = tmp_path / 'lra_release.gz'
  names = ['new_aan_pairs.train.tsv', 'new_aan_pairs.eval.tsv'] if how == 'lacking' else None
  packed = pack(pairs, tmp_path / 'a.tar.gz', names, repeat=1 + (how == 'twice')).read_bytes()
  middle = len(packed) // 2
  flipped = bytes(255 - byte for byte in packed[middle : middle + 2])
  path.write_bytes(
    {
      'cut': packed[:middle],
      'altered': packed[:middle] + flipped + packed[middle + 2 :],
      'text': b'<html>not found</html>' * 1000,
    }.get(how, packed)
  )
  message = {
    'twice': 'holds lra_release/tsv_data/new_aan_pairs.eval.tsv twice',
    'lacking': 'lacks new_aan_pairs.test.tsv: name an archive that has them, from http',
  }.get(how, r'is damaged or no tar archive: [^\n]*replace it, from http|(eval|train).tsv, line')
  with pytest.raises(ValueError, match=f'(?s)^{re.escape(str(path))}.*({message})'):
    prepare(SMALL, tmp_path / 'data', path)
  assert is_empty(tmp_path / 'data')


def test_missing_sources_are_named(pairs, copy, tmp_path):
  for source in (tmp_path / 'nowhere', tmp_path / 'empty'):
    (tmp_path / 'empty').mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match=r'does not hold new_aan_pairs.*nor documents.jso'):
      make_builder(SMALL, data_dir=str(tmp_path), source=str(source))
  (copy / 'new_aan_pairs.eval.tsv').unlink()
  with pytest.raises(FileNotFoundError, match=r'copy lacks new_aan_pairs.eval.tsv: give the direc'):
    make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(copy))
  for name in ('documents.jsonl.xz', 'documents.jsonl.gz'):
    other = tmp_path / name
    shutil.copy(PAPERS / 'documents.jsonl.xz', other)
    message = f'{other} does not hold new_aan_pairs.* name by --source the directory that holds'
    with pytest.raises(FileNotFoundError, match=message):
      make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(other))
  for name in ('lra_release.gz', 'lra_release.tar'):
    (tmp_path / 'empty' / name).write_bytes(b'')
  with pytest.raises(ValueError, match=r'several sources of pairs: .*release.gz; .*release.tar. N'):
    make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(tmp_path / 'empty'))
  with pytest.raises(ValueError, match="'imdb' of retrieval: only 'aan' exists"):
    make_builder(SMALL, data_dir=str(tmp_path), task_name='imdb')


def test_where_no_download_is_possible_the_way_out_is_named(tmp_path):
  with pytest.raises(OSError, match=r'cannot download http.*put it there as .*lra_release.gz, or'):
    make_builder(SMALL, data_dir=str(tmp_path / 'data'))
  assert is_empty(tmp_path / 'data')
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'cannot download .* to .*file: .* Make room there \(7.7 GB'):
    make_builder(SMALL, data_dir=str(tmp_path / 'file'))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pairs': 'lar'}, r"unknown pairs 'lar' \(did you mean 'lra'"),
    ({'num_train': 1}, 'num_train must be at least 2, or -1 for all, got 1'),
    ({'num_test': -2}, 'num_test must be at least 2'),
    ({'seed': -1}, 'seed must lie in'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(ValueError, match=message):
    RetrievalData(**options)


# Rebuilt pairs.


def test_rebuilt_pairs_are_citations(rebuilt):
  ids = {text: name for name, text in retrieval_papers.read_documents(
    str(PAPERS / 'documents.jsonl.xz')).items()}  # fmt: skip
  citations = set(retrieval_papers.read_citations(str(PAPERS / 'citations.tsv')))
  papers = {}
  for split, part in records(rebuilt).items():
    assert len(part) > 10
    assert sum(label for _, _, label in part) == len(part) / 2
    for first, second, label in part:
      a, b = ids[first], ids[second]
      assert label == ((a, b) in citations or (b, a) in citations)
      papers.setdefault(split, set()).update((a, b))
  assert sum(map(len, papers.values())) == len(set.union(*papers.values()))


def test_rebuilt_pairs_say_so(rebuilt, tmp_path, caplog):
  assert rebuilt.builder_config.name.startswith('aan_rebuilt_all_all_all_s0_')
  manifest = json.loads((pathlib.Path(rebuilt.data_dir) / 'manifest.json').read_text())
  assert 'No paper is in two splits' in manifest['split_rule']
  make_builder(SMALL, data_dir=str(tmp_path), source=str(PAPERS))
  assert 'aan_rebuilt_12_4_6_s0_' in caplog.text
  assert "is not the benchmark's data" in caplog.text


def test_rebuilding_is_repeatable(rebuilt, papers, tmp_path):
  """Other order, compression and digest of the files, the same pairs; another seed, others."""
  lines = (papers / 'documents.jsonl').read_bytes().splitlines(keepends=True)
  (papers / 'documents.jsonl').unlink()
  with gzip.open(papers / 'documents.jsonl.gz', 'wb') as file:
    file.writelines(reversed(lines))
  again = prepare(RetrievalData(pairs='rebuilt'), tmp_path / 'data', papers.parent)
  assert again.builder_config.name != rebuilt.builder_config.name
  assert records(again) == records(rebuilt)
  other = prepare(RetrievalData(seed=1), tmp_path / 'data', papers)
  assert records(other) != records(rebuilt)
  fewer = prepare(SMALL, tmp_path / 'data', papers)
  assert records(fewer)['test'] == records(rebuilt)['test'][:6]


def test_what_lies_in_data_dir_never_mixes_the_two(pairs, papers, rebuilt, tmp_path):
  explicit = RetrievalData(pairs='rebuilt')
  with pytest.raises(OSError, match='cannot download'):  # Papers are used if asked for alone.
    make_builder(RetrievalData(), data_dir=str(papers))
  assert records(prepare(explicit, papers)) == records(rebuilt)
  with pytest.raises(OSError, match='cannot download'):  # Prepared ones, too.
    make_builder(RetrievalData(), data_dir=str(papers))
  assert prepare(explicit, papers).builder_config.name.startswith('aan_rebuilt_')
  lra = prepare(SMALL, papers, pairs)
  assert lra.builder_config.name.startswith('aan_12_4_6_')
  assert prepare(SMALL, papers).builder_config.name == lra.builder_config.name

  with pytest.raises(FileNotFoundError, match=r'does not hold documents.jsonl and citations.tsv'):
    make_builder(explicit, data_dir=str(tmp_path / 'd'), source=str(pairs))
  with pytest.raises(FileNotFoundError, match=r'does not hold documents.jsonl and citations.tsv'):
    make_builder(explicit, data_dir=str(tmp_path / 'd'))
  with pytest.raises(FileNotFoundError, match=r'does not hold new_aan_pairs'):
    make_builder(RetrievalData(pairs='lra'), data_dir=str(tmp_path / 'd'), source=str(papers))
  shutil.copytree(pairs, papers, dirs_exist_ok=True)
  with pytest.raises(ValueError, match="Name one by --source, or the kind by data.pairs, 'lra'"):
    make_builder(RetrievalData(), data_dir=str(tmp_path / 'd'), source=str(papers))


@pytest.mark.parametrize(
  ('name', 'line', 'message'),
  [
    ('documents.jsonl', b'{"id": "A"}', "new string 'id' and a string 'text': found 'A' and None"),
    ('documents.jsonl', b'{"id": "A", "text": ""}', "found 'A' and ''"),
    ('documents.jsonl', b'{"id": 3, "text": "x"}', "found 3 and 'x'"),
    ('documents.jsonl', b'["A", "text"]', r"found b'\[\"A\""),
    ('documents.jsonl', b'{"id": "A", "te', 'Invalid control character|Unterminated string'),
    ('documents.jsonl', b'{"id": "A", "text": "\xff"}', "can't decode byte 0xff"),
    ('documents.jsonl', b'{"id": "A", "text": "\\ud800"}', "can't encode"),
    ('documents.jsonl', None, 'the id .* is there twice'),
    ('citations.tsv', b'A00-1001', "2 columns between tabs, found b'A00-1001"),
  ],
)
def test_damaged_papers_are_named(papers, tmp_path, name, line, message):
  lines = (papers / name).read_bytes().splitlines()
  lines[4] = lines[3] if line is None else line
  (papers / name).write_bytes(b'\n'.join(lines))
  with pytest.raises(ValueError, match=f'{name}, line 5: expected .*({message}).*; replace the f'):
    prepare(RetrievalData(), tmp_path / 'data', papers)
  assert is_empty(tmp_path / 'data')


def test_damaged_tables_and_archives_are_named(papers, tmp_path):
  citations = (papers / 'citations.tsv').read_bytes()
  for header, found in ((b'from\tto\n', r"b'from\\tto"), (b'', 'an empty file')):
    (papers / 'citations.tsv').write_bytes(header)
    with pytest.raises(ValueError, match=f"line 1: expected columns 'citing' and .*found {found}"):
      prepare(RetrievalData(), tmp_path / 'data', papers)
  (papers / 'citations.tsv').write_bytes(citations[:40])
  with pytest.raises(ValueError, match=r'citations.tsv: \d citations are too few .* more papers'):
    prepare(RetrievalData(), tmp_path / 'data', papers)
  (papers / 'citations.tsv').write_bytes(citations)
  with pytest.raises(ValueError, match=r'expected citations for 900 pairs of test, found \d+ '):
    prepare(RetrievalData(num_test=900), tmp_path / 'data', papers)
  (papers / 'documents.jsonl').rename(papers / 'documents.jsonl.gz')
  with pytest.raises(ValueError, match=r'documents.jsonl.gz is damaged: Not a gzipped file'):
    prepare(RetrievalData(), tmp_path / 'data', papers)
  assert is_empty(tmp_path / 'data')


@pytest.mark.parametrize('ending', sources.COMPRESSED)
def test_cut_files_are_named(tmp_path, ending):
  path = tmp_path / f'file{ending}'
  with sources.COMPRESSED[ending](path, 'wb') as file:
    file.write(bytes(np.random.RandomState(0).bytes(10_000)))
  path.write_bytes(path.read_bytes()[:-100])
  with (
    pytest.raises(ValueError, match=f'file{ending} is damaged: .*; replace it'),
    sources.open_file(path) as file,
  ):
    file.read()
  with pytest.raises(FileNotFoundError), sources.open_file(tmp_path / 'nowhere.gz'):
    pass


# Whole runs.


def test_a_run_on_rebuilt_pairs_is_not_compared(shared, tmp_path):
  fields = {'num_train_steps': 2, 'argument': 'linear_transformer,tiny'}
  assert run_here(shared, tmp_path, task='retrieval', source=str(PAPERS), **fields) == 0
  results = read(tmp_path, 'results.json')
  assert results['dataset'].startswith('retrieval/aan_rebuilt_64_16_32_s0_')
  assert results['task'] == 'retrieval/aan_rebuilt'  # No published figure is for it.
  assert (results['examples'], results['comparable']) == (32, False)
  assert results['majority_class'] == 0.5


@pytest.mark.slow
def test_two_towers_learn_how_texts_relate(shared, tmp_path):
  """Pairs of one alphabet or of two: neither text by itself tells which."""
  rng, sizes = np.random.default_rng(0), {'train': 2000, 'eval': 32, 'test': 500}
  alphabets = [list(letters) for letters in ('abcd', 'efgh', 'ijkl', 'mnop')]
  for infix, size in sizes.items():
    with open(tmp_path / f'new_aan_pairs.{infix}.tsv', 'w') as file:
      for i in range(size):
        first, is_same = rng.integers(4), rng.integers(2)
        second = first if is_same else (first + rng.integers(1, 4)) % 4
        texts = [''.join(rng.choice(alphabets[k], 24)) for k in (first, second)]
        file.write('\t'.join([f'{is_same}.0', f'A00-{i}', f'B00-{i}', *texts]) + '\n')
  data = {'num_train': 2000, 'num_valid': 32, 'num_test': 500}
  fields = {
    'max_length': 25, 'batch_size': 32, 'learning_rate': 0.02, 'warmup': 100,
    'num_train_steps': 250, 'eval_frequency': 250, 'checkpoint_freq': 250,
  }  # fmt: skip
  resolved = configuration.resolve(command_line.load('configs/retrieval.py:gmm_prf,tiny'))
  fields['data'] = resolved['data'] | data
  directory = tmp_path / 'run'
  assert run_here(shared, directory, task='retrieval', source=str(tmp_path), **fields) == 0
  results = read(directory, 'results.json')
  assert results['majority_class'] < 0.6
  assert results['accuracy'] > 0.95
