import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.tokenizers import (
  ByteTokenizer,
  PixelTokenizer,
  SymbolTokenizer,
  tokenizer_from_dict,
)

TOKENIZER = SymbolTokenizer(('[MIN', '[MAX', ']', '7', '10'), dropped=('(', ')'))


@given(st.lists(st.sampled_from(TOKENIZER.symbols + TOKENIZER.dropped)))
def test_decoding_brings_back_all_but_what_is_dropped(symbols):
  kept = [symbol for symbol in symbols if symbol not in TOKENIZER.dropped]
  ids = TOKENIZER.encode(' '.join(symbols))
  assert ids.dtype == np.uint8
  assert ids.shape == (len(kept),)
  assert np.all(ids > 0)
  assert np.all(ids < TOKENIZER.vocab_size)
  assert TOKENIZER.decode(ids) == ' '.join(kept)
  assert TOKENIZER.decode(np.pad(ids, (1, 3))) == ' '.join(kept)  # Padding is no symbol.


def test_golden_ids_follow_the_order_of_the_symbols():
  assert TOKENIZER.vocab_size == 6
  assert TOKENIZER.encode('( ( [MAX 7 ) \t10 )\n ]').tolist() == [2, 4, 5, 3]
  assert TOKENIZER.encode('').tolist() == []
  assert TOKENIZER.encode('( )').tolist() == []


def test_unknown_symbols_are_named_with_their_place():
  with pytest.raises(ValueError, match=r"unknown symbol '8' \(symbol 3 of 4\)") as error:
    TOKENIZER.encode('( [MAX 7 ) 8 ]')
  assert 'known are: [MIN [MAX ] 7 10 ( )' in str(error.value)


@pytest.mark.parametrize('text', [b'7', ['7'], 7, None])
def test_only_strings_are_encoded(text):
  # Without the run-time check of annotations, which only tests switch on.
  encode = getattr(SymbolTokenizer.encode, '__wrapped__', SymbolTokenizer.encode)
  with pytest.raises(TypeError, match=f'expected a string of symbols, got {type(text).__name__}'):
    encode(TOKENIZER, text)


def test_description_survives_json():
  description = json.loads(json.dumps(TOKENIZER.to_dict()))
  rebuilt = tokenizer_from_dict(description)
  assert rebuilt == TOKENIZER
  assert rebuilt.encode('( [MIN 10 ) ]').tolist() == [1, 5, 3]


def test_unknown_types_are_an_error():
  with pytest.raises(
    ValueError, match="unknown tokenizer type 'words'; known: symbols, bytes, pixels, wordpiece"
  ):
    tokenizer_from_dict({'type': 'words', 'symbols': [], 'dropped': []})


def test_more_symbols_than_bytes_have_values():
  symbols = tuple(f's{i}' for i in range(300))
  tokenizer = SymbolTokenizer(symbols)
  assert tokenizer.decode(tokenizer.encode(' '.join(symbols))) == ' '.join(symbols)


def test_dropped_characters_must_not_tear_symbols_apart():
  with pytest.raises(ValueError, match="dropped 's' is part of the symbol 'sin'"):
    SymbolTokenizer(('sin', 'cos'), dropped=('s',))


@given(st.binary())
def test_bytes_come_back(text):
  ids = ByteTokenizer().encode(text)
  assert (ids.dtype, ids.shape) == (np.uint16, (len(text),))
  assert np.all((ids >= 1) & (ids < ByteTokenizer().vocab_size))
  assert ByteTokenizer().decode(np.pad(ids, (0, 3))) == text


def test_golden_ids_of_bytes():
  assert ByteTokenizer().encode(b'\x00a\xff').tolist() == [1, 98, 256]
  assert ByteTokenizer().encode('aé').tolist() == ByteTokenizer().encode(b'a\xc3\xa9').tolist()


def test_byte_tokenizer_survives_json():
  assert tokenizer_from_dict(json.loads(json.dumps(ByteTokenizer().to_dict()))) == ByteTokenizer()


def test_byte_tokenizer_takes_text_alone():
  encode = getattr(ByteTokenizer.encode, '__wrapped__', ByteTokenizer.encode)
  with pytest.raises(TypeError, match='expected a string or bytes, got int: 7'):
    encode(ByteTokenizer(), 7)
  with pytest.raises(ValueError, match='surrogates not allowed'):
    ByteTokenizer().encode('\ud800')


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_pixels_come_back_row_by_row(height, width, data):
  values = data.draw(
    st.lists(st.integers(0, 255), min_size=height * width, max_size=height * width)
  )
  image = np.array(values).reshape(height, width)
  tokenizer = PixelTokenizer(height * width)
  ids = tokenizer.encode(image)
  assert (ids.dtype, ids.tolist()) == (np.uint8, values)
  assert tokenizer.encode(image.astype(np.uint8)[..., None]).tolist() == values
  np.testing.assert_array_equal(tokenizer.decode(ids).reshape(height, width), image)
  assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


@pytest.mark.parametrize(
  ('image', 'error', 'message'),
  [
    (np.zeros((2, 2)), TypeError, 'expected an image of integers 0 to 255, got float64'),
    (np.zeros((2, 2, 3), np.uint8), ValueError, r'grey image of 4 pixels, got .* \(2, 2, 3\)'),
    (np.array([[0, 1], [2, 256]]), ValueError, 'values of 0 to 255, got 0 to 256'),
    (np.array([[0, 1], [-2, 6]]), ValueError, 'values of 0 to 255, got -2 to 6'),
  ],
)
def test_what_is_no_grey_image_is_an_error(image, error, message):
  with pytest.raises(error, match=message):
    PixelTokenizer(4).encode(image)
