import dataclasses
import hashlib
import itertools
import json
import lzma
import pathlib
import tarfile
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from kl_flax.tokenizers import train_wordpiece
from lra_tasks.data import datasets, sources, wikitext
from lra_tasks.data.wikitext import CORPORA, Text, WikiTextData, clean, make_builder, pack

SMALL = WikiTextData(vocab_size=200, max_length=16)
SPLITS = {'train': 'train', 'validation': 'valid', 'test': 'test'}
WORDS = ['the', 'cat', 'sat', 'on', 'a mat', ',', 'and', '<unk>', '1 @,@ 000', 'well @-@ known']


def make_text(seed, lines):
  """Return a text like WikiText's: titles, empty lines, paragraphs of several lengths."""
  rng = np.random.RandomState(seed)
  text = [f' = Title {seed} = ', ' ']
  for length in rng.randint(1, 40, lines):
    text.append(f' {" ".join(rng.choice(WORDS, length))} ')
    text += [' '] * rng.randint(2)
  return '\n'.join(text) + '\n'


TEXTS = {split: make_text(i, 60 if split == 'train' else 20) for i, split in enumerate(SPLITS)}
LAYOUTS = {'tokens': 'wiki.{}.tokens', 'raw': 'wiki.{}.raw', 'txt': '{}.txt', 'xz': '{}.txt.xz'}


def write(directory, layout='tokens'):
  """Write the three files as they are distributed."""
  directory.mkdir(parents=True)
  for split, stem in SPLITS.items():
    text = TEXTS[split].encode()
    name = LAYOUTS[layout].format(stem)
    (directory / name).write_bytes(lzma.compress(text) if layout == 'xz' else text)
  return directory


def pack_archive(folder, path):
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('__MACOSX/wikitext/wiki.train.tokens', 'of a file manager')
      for file in sorted(folder.iterdir()):
        archive.write(file, f'{folder.name}/{file.name}')
  else:
    with tarfile.open(path, 'w:gz') as archive:
      archive.add(folder, folder.name)
  return path


def prepared(data_dir, source, data=SMALL, **kwargs):
  builder = make_builder(data, data_dir=str(data_dir), source=str(source), **kwargs)
  datasets.prepare(builder)
  return builder


def contents(builder):
  return {file.name: file.read_bytes() for file in pathlib.Path(builder.data_dir).iterdir()}


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  root = tmp_path_factory.mktemp('wikitext')
  return prepared(root / 'data', write(root / 'source/wikitext'))


# What is prepared.


@pytest.mark.parametrize('split', SPLITS)
def test_sequences_hold_all_lines_in_their_order(builder, split):
  lines = [line for line in map(clean, TEXTS[split].split('\n')) if line]
  expected = builder.tokenizer.encode_batch(lines)
  records = list(builder.as_data_source(split))
  assert {record['target'] for record in records} == {0}
  assert records[0]['inputs'].dtype == np.uint16
  sequences = [record['inputs'] for record in records]
  np.testing.assert_array_equal(np.concatenate(sequences), np.concatenate(expected))
  assert max(map(len, sequences)) <= SMALL.max_length - 1


def test_vocabulary_is_that_of_train(builder):
  lines = [line for line in map(clean, TEXTS['train'].split('\n')) if line]
  assert builder.tokenizer == train_wordpiece(lines, SMALL.vocab_size)
  again = make_builder(SMALL, data_dir=builder.root, source=str(builder.builder_config.source))
  assert again.tokenizer == builder.tokenizer
  manifest = json.loads(contents(builder)['manifest.json'])
  assert manifest['tokenizer'] == builder.tokenizer.to_dict()


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(2, 9))
def test_lines_are_whole_where_they_fit(lengths, longest):
  tokenizer = _letters()
  lines = [' '.join('ab'[i % 2] * (n - 1)) for i, n in enumerate(lengths)]
  expected = tokenizer.encode_batch(lines)
  sequences = list(pack(iter(lines), tokenizer, longest))
  joined = [i for ids in sequences for i in ids.tolist()]
  assert joined == [i for ids in expected for i in ids.tolist()]
  assert all(1 <= len(ids) <= longest for ids in sequences)
  borders = set(itertools.accumulate(map(len, sequences)))
  end = 0
  for ids in expected:
    inside = set(range(end + 1, end + len(ids)))
    if len(ids) <= longest:
      assert not borders & inside
    elif end:
      assert end in borders  # What is cut begins a sequence.
    end += len(ids)
  # No two neighbours would have fitted into one, unless a line was too long or is none of either.
  for first, second in itertools.pairwise(sequences):
    line = second[: second.tolist().index(2) + 1] if 2 in second else second
    assert len(first) + len(line) > longest


def _letters():
  return train_wordpiece(['a b'] * 3, 200)


def test_marks_of_wikitext_are_undone():
  line = ' 1 @,@ 000 @,@ 000 or 2 @.@ 5 kinds of <unk> @-@ like <unk> s '
  assert clean(line) == '1,000,000 or 2.5 kinds of [UNK]-like [UNK] s'
  assert clean(' \n') == ''
  ids = _letters().encode(clean('a <unk>'))
  assert ids[1:].tolist() == [1, 2]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', ['folder', 'parent', 'zip', 'tar.gz'])
def test_all_layouts_give_the_same_text(tmp_path, layout, kind):
  folder = write(tmp_path / 'somewhere/wikitext', layout)
  path = {'folder': folder, 'parent': folder.parent}.get(kind)
  text = Text(str(path or pack_archive(folder, tmp_path / f'archive.{kind}')))
  for split, whole in TEXTS.items():
    assert list(text.lines(split)) == [line for line in map(clean, whole.split('\n')) if line]
  digests = [hashlib.sha1(whole.encode()).hexdigest() for whole in TEXTS.values()]
  assert text.contents == tuple(digests)


@pytest.mark.parametrize('ending', ['', '.xz'])
def test_a_single_text_is_split_by_its_lines(tmp_path, ending):
  path = tmp_path / f'novel.txt{ending}'
  text = ''.join(f'line {i}\n\n' for i in range(41)).encode()
  path.write_bytes(b'\xef\xbb\xbf' + text if not ending else lzma.compress(text))
  parts = {split: list(Text(str(path)).lines(split)) for split in SPLITS}
  assert {split: len(part) for split, part in parts.items()} == {
    'train': 36,
    'validation': 2,
    'test': 3,
  }
  assert [line for part in parts.values() for line in part] == [f'line {i}' for i in range(41)]


def test_a_single_text_is_prepared(tmp_path):
  path = tmp_path / 'novel.txt'
  path.write_text(TEXTS['train'])
  builder = prepared(tmp_path / 'data', path)
  assert builder.builder_config.name.startswith('text_v200_l16_')
  assert (wikitext.is_benchmark(builder), builder.variant) == (False, 'text')


# Which text it is.


def test_contents_name_the_data(builder, tmp_path):
  config = builder.builder_config
  assert config.name == f'text_v200_l16_{config.digest}'
  assert (len(config.digest), wikitext.is_benchmark(builder)) == (16, False)
  other = prepared(tmp_path / 'data', write(tmp_path / 'again', 'xz'))
  assert other.builder_config.name == config.name
  assert contents(other) == contents(builder)


def test_known_contents_are_known_in_any_form(monkeypatch, tmp_path):
  digests = tuple(hashlib.sha1(text.encode()).hexdigest() for text in TEXTS.values())
  for name, benchmark in (('wikitext-103', True), ('wikitext-2', False)):
    monkeypatch.setattr(wikitext, 'CORPORA', {
      key: dataclasses.replace(corpus, sha1=digests if key == name else corpus.sha1)
      for key, corpus in CORPORA.items()
    })  # fmt: skip
    source = write(tmp_path / name, 'xz')
    builder = make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(source))
    assert builder.builder_config.name == f'{name}_v200_l16'
    assert wikitext.is_benchmark(builder) == benchmark
    assert builder.variant == ('' if benchmark else name)


def test_without_source_the_archive_is_fetched(monkeypatch, tmp_path):
  folder = write(tmp_path / 'wikitext-2')
  archive = pack_archive(folder, tmp_path / 'data.zip')
  asked = []
  monkeypatch.setattr(sources, 'fetch', lambda *args: asked.append(args) or str(archive))
  data_dir = tmp_path / 'data'
  builder = make_builder(SMALL, data_dir=str(data_dir), task_name='wikitext-2')
  datasets.prepare(builder)
  corpus = CORPORA['wikitext-2']
  assert asked == [(corpus.url, str(data_dir / 'wikitext-2-v1.zip'), corpus.sha256)]
  assert corpus.url == 'https://wikitext.smerity.com/wikitext-2-v1.zip'
  datasets.prepare(make_builder(SMALL, data_dir=str(data_dir), task_name='wikitext-2'))
  assert len(asked) == 1


def test_a_folder_in_data_dir_is_taken(tmp_path):
  write(tmp_path / 'wikitext-2')
  builder = make_builder(SMALL, data_dir=str(tmp_path), task_name='wikitext-2')
  assert builder.builder_config.source == str(tmp_path / 'wikitext-2')


# Errors.


def test_unknown_names_and_sizes_are_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"unknown task_name 'wikitext'.*wikitext-103"):
    make_builder(SMALL, data_dir=str(tmp_path), task_name='wikitext')
  for field, value in (('vocab_size', 199), ('vocab_size', 2**16), ('max_length', 7)):
    with pytest.raises(ValueError, match=rf'{field} must .* got {value}'):
      WikiTextData(**{field: value})


def test_missing_files_are_named(tmp_path):
  open_text = lambda path: Text(str(path))
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    open_text(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match=r'holds neither: expected wiki\.train\.tokens'):
    open_text(tmp_path)
  folder = write(tmp_path / 'a/wikitext', 'raw')
  (folder / 'wiki.valid.raw').unlink()
  with pytest.raises(FileNotFoundError, match=r'wikitext lacks wiki\.valid\.raw: expected'):
    open_text(tmp_path / 'a')


def test_several_texts_are_an_error(tmp_path):
  write(tmp_path / 'a/one')
  write(tmp_path / 'a/two', 'txt')
  with pytest.raises(ValueError, match=r'holds several corpora \(one, two\): name one'):
    Text(str(tmp_path / 'a'))
  folder = write(tmp_path / 'b', 'txt')
  (folder / 'test.txt.xz').write_bytes(lzma.compress(b'a'))
  with pytest.raises(ValueError, match=r'holds test\.txt and test\.txt\.xz: remove one'):
    Text(str(folder))


def test_damaged_text_is_named_and_nothing_stays(tmp_path):
  folder = write(tmp_path / 'source')
  (folder / 'wiki.test.tokens').write_bytes(b'fine\n\xff\n')
  builder = make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(folder))
  with pytest.raises(ValueError, match=r'wiki\.test\.tokens, line 2: expected UTF-8'):
    datasets.prepare(builder)
  (folder / 'wiki.test.tokens').write_bytes(b' \n')
  builder = make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(folder))
  with pytest.raises(ValueError, match='expected text for test, found none'):
    datasets.prepare(builder)
  left = [path.name for path in (tmp_path / 'data').rglob('*') if path.is_file()]
  assert left == ['.lock']


@pytest.mark.parametrize('name', ['cut.zip', 'cut.tar.gz', 'cut.txt.xz'])
def test_damaged_archives_are_an_error(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(b'no archive')
  with pytest.raises(ValueError, match=f'{name} is damaged: .*replace it'):
    list(Text(str(path)).lines('train'))


def test_damaged_members_are_an_error(tmp_path):
  archive = pack_archive(write(tmp_path / 'wikitext'), tmp_path / 'a.zip')
  raw = bytearray(archive.read_bytes())
  place = raw.index(b'Title 0')
  raw[place] ^= 1
  archive.write_bytes(raw)
  with pytest.raises(ValueError, match=r'a\.zip is damaged: Bad CRC'):
    list(Text(str(archive)).lines('train'))


def test_lost_vocabularies_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no prepared data: a vocabulary is trained'):
    _ = make_builder(SMALL, data_dir=str(tmp_path)).tokenizer
  source = write(tmp_path / 'source')
  builder = prepared(tmp_path / 'data', source)
  file = pathlib.Path(builder.data_dir) / 'tokenizer.json'
  again = lambda: make_builder(SMALL, data_dir=str(tmp_path / 'data'), source=str(source))
  file.write_text(file.read_text() + ' ')
  with pytest.raises(ValueError, match='lacks its vocabulary: .* delete the directory'):
    _ = again().tokenizer
  file.unlink()
  with pytest.raises(FileNotFoundError, match='lacks its vocabulary: .* is missing'):
    _ = again().tokenizer
