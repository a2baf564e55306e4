import hashlib
import json
import pickle
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from hypothesis import given

from kl_flax.tokenizers import tokenizer_from_dict
from kl_flax.wordpiece import WordPieceTokenizer, train_wordpiece

VOCABULARY = ['[PAD]', '[UNK]', '[SEP]', 'a', 'b', '##b', 'cat', '##s', 'un', '.', '[', ']', 'sep']


def define(vocabulary):
  """Return the definition of a tokenizer with the ids of a list."""
  library = tokenizers.Tokenizer(
    tokenizers.models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token='[UNK]')
  )
  library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
  library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  library.add_special_tokens(['[UNK]'])
  return library.to_str()


TOKENIZER = WordPieceTokenizer(define(VOCABULARY))
# Of as many letters as are asked for, a token each.
TEXTS = st.integers(0, 9).map(lambda length: ' '.join('ab'[i % 2] for i in range(length)))


def unchecked(function):
  """Return a function without the run-time check of annotations, which only tests switch on."""
  return getattr(function, '__wrapped__', function)


@pytest.mark.parametrize(
  ('text', 'ids'),
  [
    ('A cats. dog', [3, 6, 7, 9, 1, 2]),
    ('ább\tun\n', [3, 5, 5, 8, 2]),  # Accents go, blanks of any kind end words.
    ('[UNK] [SEP]', [1, 10, 12, 11, 2]),  # No text can forge a separator.
    (('a', 'cat'), [3, 2, 6, 2]),
    (('', 'a'), [2, 3, 2]),
    ('', [2]),
  ],
)
def test_golden_ids(text, ids):
  found = TOKENIZER.encode(text)
  assert (found.dtype, found.tolist()) == (np.uint16, ids)
  assert (TOKENIZER.separator, TOKENIZER.vocab_size) == (2, len(VOCABULARY))


@given(st.lists(st.text('ab\u0301É cats.\t\x0b\x1c\u3000戦[UNK]', max_size=20), max_size=4))
def test_words_are_split_as_the_library_splits_texts(texts):
  library = tokenizers.Tokenizer.from_str(TOKENIZER.definition)
  expected = [[*e.ids, 2] for e in library.encode_batch(texts, add_special_tokens=False)]
  assert [ids.tolist() for ids in TOKENIZER.encode_batch(texts)] == expected
  assert [TOKENIZER.encode(text).tolist() for text in texts] == expected


@given(TEXTS, TEXTS, st.integers(4, 24))
def test_tokens_are_taken_off_the_longer_text(first, second, max_length):
  parts = [TOKENIZER.encode(text).tolist()[:-1] for text in (first, second)]
  while len(parts[0]) + len(parts[1]) + 2 > max_length:
    parts[0 if len(parts[0]) > len(parts[1]) else 1].pop()
  expected = [*parts[0], 2, *parts[1], 2]
  assert TOKENIZER.encode((first, second), max_length).tolist() == expected
  assert TOKENIZER.encode_batch([(first, second)], max_length)[0].tolist() == expected


def test_single_texts_are_cut_at_their_end():
  assert TOKENIZER.encode('a b cats', 3).tolist() == [3, 4, 2]
  assert TOKENIZER.encode('a', 3).tolist() == [3, 2]
  mixed = TOKENIZER.encode_batch(['a b cats', ('a b', 'a b')], 4)
  assert [ids.tolist() for ids in mixed] == [[3, 4, 6, 2], [3, 2, 3, 2]]


def test_decoding_joins_pieces():
  assert TOKENIZER.decode(np.array([3, 5, 0, 6, 7, 2, 1, 0])) == 'ab cats [SEP] [UNK]'
  assert TOKENIZER.decode(np.array([TOKENIZER.vocab_size, 7])) == '[MASK]s'
  with pytest.raises(ValueError, match=r'lie in 0 \.\. 13, got 14'):
    TOKENIZER.decode(np.array([14]))
  with pytest.raises(ValueError, match='got -1'):
    TOKENIZER.decode(np.array([-1]))


@pytest.mark.parametrize('text', [b'a', ['a', 'b'], ('a',), ('a', 'b', 'a'), ('a', 3), None])
def test_only_strings_and_pairs_of_them_are_encoded(text):
  with pytest.raises(TypeError, match='expected a string or a tuple of two, got'):
    unchecked(WordPieceTokenizer.encode_batch)(TOKENIZER, [text])


def test_impossible_inputs_are_an_error():
  with pytest.raises(ValueError, match='max_length must be at least 2, a token and .SEP. of each'):
    TOKENIZER.encode('a', 1)
  with pytest.raises(ValueError, match='max_length must be at least 4'):
    TOKENIZER.encode(('a', 'b'), 3)
  with pytest.raises(ValueError, match='surrogates not allowed'):
    TOKENIZER.encode('a \ud800')


def test_definitions_are_checked():
  with pytest.raises(ValueError, match='expected the JSON text of a tokenizer'):
    WordPieceTokenizer('{}')
  with pytest.raises(ValueError, match='ids 0, 1, 2 must be .* found .PAD., .SEP., .UNK.'):
    WordPieceTokenizer(define(['[PAD]', '[SEP]', '[UNK]']))
  with pytest.raises(ValueError, match='found .UNK., None, None'):
    WordPieceTokenizer(define(['[UNK]']))
  words = {word: i for i, word in enumerate(VOCABULARY)}
  other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='[UNK]'))
  with pytest.raises(ValueError, match='expected a tokenizer of word pieces, found WordLevel'):
    WordPieceTokenizer(other.to_str())


def test_definitions_do_not_pad_or_cut():
  library = tokenizers.Tokenizer.from_str(TOKENIZER.definition)
  library.enable_padding(length=5)
  library.enable_truncation(1)
  assert WordPieceTokenizer(library.to_str()).encode('cats').tolist() == [6, 7, 2]


def test_equal_definitions_are_one_tokenizer():
  again = WordPieceTokenizer(TOKENIZER.definition)
  again.encode('something that is remembered')
  other = WordPieceTokenizer(define([*VOCABULARY, 'other']))
  assert again == TOKENIZER == pickle.loads(pickle.dumps(again))
  assert hash(again) == hash(TOKENIZER)
  assert other != TOKENIZER
  assert repr(TOKENIZER).startswith('WordPieceTokenizer(vocab_size=13, sha256=')


def test_files_bring_it_back(tmp_path):
  TOKENIZER.save(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']
  description = json.loads(json.dumps(TOKENIZER.to_dict()))
  digest = hashlib.sha256((tmp_path / 'tokenizer.json').read_bytes()).hexdigest()
  assert description == {
    'type': 'wordpiece',
    'file': 'tokenizer.json',
    'sha256': digest,
    'vocab_size': 13,
  }
  assert tokenizer_from_dict(description, tmp_path) == TOKENIZER


def test_missing_and_other_files_are_an_error(tmp_path):
  description = TOKENIZER.to_dict()
  with pytest.raises(ValueError, match=r'lies in a file: name the directory of tokenizer\.json'):
    tokenizer_from_dict(description)
  with pytest.raises(FileNotFoundError, match=r'is missing, the vocabulary: copy tokenizer\.json'):
    tokenizer_from_dict(description, tmp_path)
  WordPieceTokenizer(define([*VOCABULARY, 'other'])).save(tmp_path)
  with pytest.raises(ValueError, match='not the vocabulary that is described: expected SHA-256'):
    tokenizer_from_dict(description, tmp_path)


# Training.

# Many words and characters that are equally frequent: ties decide on the vocabulary.
LINES = [
  ' '.join(f'{chr(97 + i % 26)}{chr(97 + j % 26)}{chr(0x3041 + (i * j) % 80)}' for j in range(20))
  for i in range(40)
]


def test_training_finds_frequent_words():
  texts = ['The unhappy cats, the happy CATS [UNK] <s>'] * 5 + ['once']
  tokenizer = train_wordpiece(iter(texts), 200)
  assert tokenizer.vocab_size <= 200
  assert TOKENIZER.separator == tokenizer.separator
  text = 'the unhappy cats , [UNK] < s > [SEP]'
  assert tokenizer.decode(tokenizer.encode('The unhappy CATS,[UNK] <s>')) == text
  # A word of five occurrences is a piece; letters of others are known wherever they stand.
  assert len(tokenizer.encode('cats')) == 2
  assert len(tokenizer.encode('taht')) == 5
  assert tokenizer.decode(tokenizer.encode('cats q')) == 'cats [UNK] [SEP]'
  assert tokenizer.encode('[unk').tolist() == [1, 1, 2]  # What '[UNK]' consists of is not known.


def test_training_gives_the_same_in_every_process():
  script = (
    'import sys, json; from kl_flax.tokenizers import train_wordpiece;'
    'sys.stdout.write(train_wordpiece(json.load(sys.stdin), 260).definition)'
  )
  here = train_wordpiece(LINES, 260)
  there = subprocess.run(
    [sys.executable, '-c', script],
    input=json.dumps(LINES),
    capture_output=True,
    text=True,
    check=True,
    encoding='utf-8',
  )
  assert there.stdout == here.definition
  assert train_wordpiece(LINES[::-1], 260) == here  # Words are counted: their order is none.
  assert here.vocab_size == 260


def test_training_needs_words_and_room():
  with pytest.raises(ValueError, match='vocab_size must be at least 200, got 50'):
    train_wordpiece(['a'], 50)
  with pytest.raises(ValueError, match='expected texts with words, found none'):
    train_wordpiece(['', ' [UNK] '], 200)


def test_large_vocabularies_take_larger_ids():
  words = [f'{i:x}' for i in range(2**16 - 3)]
  large = WordPieceTokenizer(define([*VOCABULARY[:3], *words]))
  assert large.vocab_size == 2**16
  assert large.encode('0').dtype == np.uint32
