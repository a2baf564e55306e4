"""Tokenizers: raw inputs to token ids, plain enough to be stored with a model.

A model directory must be readable without the benchmark that trained it, so a tokenizer is data:
`to_dict` goes into config.json, `tokenizer_from_dict` brings it back. The vocabulary of word pieces
(`kl_flax.wordpiece`) is too large for that: it lies beside, as a file. Id 0 is padding, but for
images.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from kl_flax.wordpiece import WordPieceTokenizer, read_wordpiece, train_wordpiece

# Word pieces too: who uses tokenizers finds all of them here.
__all__ = [
  'ByteTokenizer',
  'PixelTokenizer',
  'SymbolTokenizer',
  'Tokenizer',
  'WordPieceTokenizer',
  'tokenizer_from_dict',
  'train_wordpiece',
]


@dataclasses.dataclass(frozen=True)
class SymbolTokenizer:
  """Maps blank-separated symbols to ids 1, 2, ... in the order of `symbols`.

  Args:
    symbols: the known symbols.
    dropped: characters that carry no token, such as the parentheses of ListOps.

  Raises:
    ValueError: if a dropped one is part of a symbol.

  >>> tokenizer = SymbolTokenizer(('a', 'b'), dropped=('(', ')'))
  >>> tokenizer.encode('( b a )').tolist()
  [2, 1]
  >>> tokenizer.vocab_size
  3
  """

  symbols: tuple[str, ...]
  dropped: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    """Check that dropping cannot tear a symbol apart."""
    for part in self.dropped:
      for symbol in self.symbols:
        if part in symbol:
          raise ValueError(f'dropped {part!r} is part of the symbol {symbol!r}')

  @property
  def vocab_size(self) -> int:
    """Number of ids, padding included."""
    return len(self.symbols) + 1

  @property
  def num_special(self) -> int:
    """Ids below this stand for no input: padding."""
    return 1

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate(self.symbols, start=1)}

  def encode(self, text: str) -> np.ndarray:
    """Return the ids of `text`, uint8[length] (uint16 above 255 symbols).

    Raises:
      TypeError: if `text` is no string.
      ValueError: if a symbol is unknown; the message names it and its place.
    """
    if not isinstance(text, str):
      raise TypeError(f'expected a string of symbols, got {type(text).__name__}: {text!r}')
    # Replacing is several times faster than testing every symbol in Python.
    for symbol in self.dropped:
      text = text.replace(symbol, ' ')
    symbols = text.split()
    try:
      ids = [self._ids[symbol] for symbol in symbols]
    except KeyError as error:
      unknown = error.args[0]
      raise ValueError(
        f'unknown symbol {unknown!r} (symbol {symbols.index(unknown) + 1} of {len(symbols)}); '
        f'known are: {" ".join(self.symbols + self.dropped)}'
      ) from None
    return np.array(ids, np.min_scalar_type(len(self.symbols)))

  def decode(self, ids: np.ndarray) -> str:
    """Return the symbols of `ids`, blank-separated; padding is left out."""
    return ' '.join(self.symbols[i - 1] for i in np.asarray(ids).tolist() if i)

  def to_dict(self) -> dict[str, Any]:
    """Return a JSON-able description, the input of `tokenizer_from_dict`."""
    return {'type': 'symbols', 'symbols': list(self.symbols), 'dropped': list(self.dropped)}


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """Maps every byte to its value plus one, as LRA's Text and Retrieval do.

  >>> ByteTokenizer().encode('é!').tolist()
  [196, 170, 34]
  """

  @property
  def vocab_size(self) -> int:
    """Number of ids, padding included."""
    return 257

  @property
  def num_special(self) -> int:
    """Ids below this stand for no input: padding."""
    return 1

  def encode(self, text: str | bytes) -> np.ndarray:
    """Return the ids of `text`, uint16[length], 1 to 256; strings are encoded as UTF-8.

    Raises:
      TypeError: if `text` is neither string nor bytes.
      ValueError: if a string holds a lone surrogate, which UTF-8 cannot express.
    """
    if not isinstance(text, (str, bytes)):
      raise TypeError(f'expected a string or bytes, got {type(text).__name__}: {text!r}')
    if isinstance(text, str):
      text = text.encode()
    return np.frombuffer(text, np.uint8).astype(np.uint16) + np.uint16(1)

  def decode(self, ids: np.ndarray) -> bytes:
    """Return the bytes of `ids`; padding is left out."""
    ids = np.asarray(ids)
    return (ids[ids > 0] - 1).astype(np.uint8).tobytes()

  def to_dict(self) -> dict[str, Any]:
    """Return a JSON-able description, the input of `tokenizer_from_dict`."""
    return {'type': 'bytes'}


@dataclasses.dataclass(frozen=True)
class PixelTokenizer:
  """Maps every pixel of a grey image to its intensity, row by row.

  Black is id 0 and a pixel like any other: images have no padding.

  Args:
    num_pixels: of an image.

  >>> PixelTokenizer(4).encode(np.array([[0, 255], [3, 4]], np.uint8)).tolist()
  [0, 255, 3, 4]
  """

  num_pixels: int

  @property
  def vocab_size(self) -> int:
    """Number of ids, black included."""
    return 256

  @property
  def num_special(self) -> int:
    """Every id stands for an intensity."""
    return 0

  def encode(self, image: np.ndarray | jax.Array) -> np.ndarray:
    """Return the intensities, uint8[num_pixels].

    Args:
      image: integers 0 to 255, such as uint8[height, width] or uint8[height, width, 1].

    Raises:
      TypeError: if `image` holds no integers.
      ValueError: if it has another number of values, or values outside of 0 to 255.
    """
    image = np.asarray(image)
    if not np.issubdtype(image.dtype, np.integer):
      raise TypeError(f'expected an image of integers 0 to 255, got {image.dtype}')
    if image.size != self.num_pixels:
      raise ValueError(
        f'expected a grey image of {self.num_pixels} pixels, got an array of shape {image.shape}'
      )
    if image.min() < 0 or image.max() > 255:
      raise ValueError(f'expected values of 0 to 255, got {image.min()} to {image.max()}')
    return image.reshape(-1).astype(np.uint8)

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Return the intensities, uint8[num_pixels]."""
    return np.asarray(ids).astype(np.uint8)

  def to_dict(self) -> dict[str, Any]:
    """Return a JSON-able description, the input of `tokenizer_from_dict`."""
    return {'type': 'pixels', 'num_pixels': self.num_pixels}


Tokenizer = SymbolTokenizer | ByteTokenizer | PixelTokenizer | WordPieceTokenizer


def tokenizer_from_dict(
  description: dict[str, Any], directory: str | os.PathLike[str] | None = None
) -> Tokenizer:
  """Rebuild the tokenizer that `to_dict` described.

  Args:
    description: what `to_dict` returned.
    directory: where the file of a `WordPieceTokenizer` lies; others need none.

  Raises:
    FileNotFoundError: if the directory lacks the file.
    ImportError: if a library that it needs is missing.
    ValueError: if its type is unknown, the directory is needed and not given, or the file is
      another one than described.
  """
  if description['type'] == 'symbols':
    return SymbolTokenizer(tuple(description['symbols']), tuple(description['dropped']))
  if description['type'] == 'bytes':
    return ByteTokenizer()
  if description['type'] == 'pixels':
    return PixelTokenizer(description['num_pixels'])
  if description['type'] == 'wordpiece':
    return read_wordpiece(description, directory)
  raise ValueError(
    f'unknown tokenizer type {description["type"]!r}; known: symbols, bytes, pixels, wordpiece'
  )
