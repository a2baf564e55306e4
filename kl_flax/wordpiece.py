"""Word pieces: their tokenizer, its file, and training a vocabulary.

The library `tokenizers` does the work; it is imported when a tokenizer is made, as only models that
read word pieces need it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

TOKENIZER_FILE = 'tokenizer.json'

# Of word pieces, in the order of their ids.
_PAD, _UNKNOWN, _SEPARATOR = '[PAD]', '[UNK]', '[SEP]'
_CONTINUED = '##'
# What may be known of a text's characters; the others make a word unknown.
_LARGEST_ALPHABET = 1000
_SMALLEST_VOCABULARY = 200
# Whose pieces are kept in memory: some 150 MB.
_MOST_WORDS = 500_000


@dataclasses.dataclass(frozen=True, repr=False)
class WordPieceTokenizer:
  """Splits words into the longest known pieces from the left, as BERT's uncased tokenizer does.

  Schuster and Nakajima, "Japanese and Korean Voice Search", ICASSP 2012; Devlin et al., "BERT",
  NAACL 2019. Texts are lower-cased and lose their accents; words end at white space and
  punctuation. Id 0 is [PAD], 1 is [UNK] for words that cannot be split, 2 is [SEP].

  There is no [CLS], as the encoder puts a learned vector before each sequence, and no [MASK]:
  masking takes the id `vocab_size`, one beyond the vocabulary.

  In texts, '[UNK]' stands for an unknown word; '[PAD]' and '[SEP]' mean nothing.

  Two of them are equal if their definitions are. Threads may share one.

  Args:
    definition: JSON text of the library `tokenizers`; see `train_wordpiece`.

  Raises:
    ImportError: if that library is missing.
    ValueError: if it is no such definition, or ids 0 to 2 have other meanings.
  """

  definition: str

  def __post_init__(self) -> None:
    """Build the library's object and check the first ids."""
    try:
      library = _library().Tokenizer.from_str(self.definition)
    except Exception as error:  # The library raises no class of its own.
      if isinstance(error, ImportError):
        raise
      raise ValueError(
        f'expected the JSON text of a tokenizer of the library tokenizers: {error}'
      ) from None
    found = tuple(map(library.id_to_token, range(3)))
    if found != (_PAD, _UNKNOWN, _SEPARATOR):
      raise ValueError(
        f'ids 0, 1, 2 must be {_PAD}, {_UNKNOWN}, {_SEPARATOR}, found '
        f'{", ".join(map(str, found))}; make the tokenizer by train_wordpiece'
      )
    if type(library.model).__name__ != 'WordPiece':
      raise ValueError(
        f'expected a tokenizer of word pieces, found {type(library.model).__name__}; make it by '
        'train_wordpiece'
      )
    library.no_truncation()
    library.no_padding()
    object.__setattr__(self, '_tokenizer', library)
    object.__setattr__(self, '_pieces', {})

  def __reduce__(self) -> tuple[Any, ...]:
    """Copy and pickle the definition alone."""
    return WordPieceTokenizer, (self.definition,)

  def __repr__(self) -> str:
    """Return a name without the definition, which is long."""
    return f'WordPieceTokenizer(vocab_size={self.vocab_size}, sha256={self._sha256[:16]})'

  @functools.cached_property
  def vocab_size(self) -> int:
    """Number of ids, padding included; the id `vocab_size` itself is left to masking."""
    return self._tokenizer.get_vocab_size()

  @property
  def num_special(self) -> int:
    """Ids below this stand for no word piece: padding, [UNK] and [SEP]."""
    return 3

  @property
  def separator(self) -> int:
    """Id of [SEP], which ends every text."""
    return 2

  @functools.cached_property
  def _sha256(self) -> str:
    return hashlib.sha256(self.definition.encode()).hexdigest()

  @functools.cached_property
  def _dtype(self) -> np.dtype:
    return np.dtype(np.uint16 if self.vocab_size < 2**16 else np.uint32)  # The mask's id fits, too.

  def encode(self, text: str | tuple[str, str], max_length: int | None = None) -> np.ndarray:
    """Return the ids of `text [SEP]`, or of `first [SEP] second [SEP]`.

    Args:
      text: a string, or a pair of strings.
      max_length: of all ids; what is too much is taken off the ends of the texts, always from the
        longer one, of equal ones from the second. [SEP] stays.

    Returns:
      uint16[length], uint32 of a vocabulary of 65,536 or more.

    Raises:
      TypeError: if `text` is neither a string nor a tuple of two.
      ValueError: if `max_length` leaves no room for a token of each text, or if a string holds a
        lone surrogate, which UTF-8 cannot express.
    """
    return self.encode_batch([text], max_length)[0]

  def encode_batch(
    self, texts: Sequence[str | tuple[str, str]], max_length: int | None = None
  ) -> list[np.ndarray]:
    """Return the ids of several texts, some of which may be pairs; faster than one by one.

    Args:
      texts: strings and pairs of strings.
      max_length: as in `encode`.

    Raises:
      TypeError: as `encode`.
      ValueError: likewise.
    """
    parts = [_parts(text, max_length) for text in texts]
    words = [[part.split(' ') for part in pair] for pair in parts]
    pieces = self._split({word for pair in words for part in pair for word in part})
    return [
      self._join([[i for word in part for i in pieces[word]] for part in pair], max_length)
      for pair in words
    ]

  def _split(self, words: set[str]) -> dict[str, list[int]]:
    """Return the ids of words; a blank ends a word wherever it stands, so each stands for itself.

    The library takes some microseconds for every word, whether it has seen it or not: texts are
    encoded in a quarter of the time when it is asked once.
    """
    known = self._pieces
    missing = sorted(words.difference(known))
    if not missing:
      return known
    try:
      found = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)
    except TypeError:  # Strings they are: this one cannot be written in UTF-8.
      for word in missing:
        word.encode()
      raise
    new = dict(zip(missing, (encoding.ids for encoding in found), strict=True))
    if len(known) + len(new) <= _MOST_WORDS:
      known.update(new)
      return known
    return {word: known[word] if word in known else new[word] for word in words}

  def _join(self, ids: list[list[int]], max_length: int | None) -> np.ndarray:
    if max_length is not None:
      room = max_length - len(ids)
      if len(ids) == 1:
        ids = [ids[0][:room]]
      elif sum(map(len, ids)) > room:
        first, second = ids
        # Where taking from the longer one ends: both have half, or the shorter one all it had.
        kept = min(len(second), max(room // 2, room - len(first)))
        ids = [first[: room - kept], second[:kept]]
    return np.array([i for part in ids for i in (*part, self.separator)], self._dtype)

  def decode(self, ids: np.ndarray) -> str:
    """Return words, blank-separated, with [UNK] and [SEP]; padding is left out.

    The id that masking takes is written [MASK]. Case, accents and blanks do not come back.

    Raises:
      ValueError: for any other id beyond the vocabulary.
    """
    words: list[str] = []
    for i in np.asarray(ids).tolist():
      piece = '[MASK]' if i == self.vocab_size else self._tokenizer.id_to_token(i) if i > 0 else ''
      if piece is None or i < 0:
        raise ValueError(f'token ids must lie in 0 .. {self.vocab_size}, got {i}')
      if piece.startswith(_CONTINUED) and words:
        words[-1] += piece.removeprefix(_CONTINUED)
      elif i:
        words.append(piece)
    return ' '.join(words)

  def to_dict(self) -> dict[str, Any]:
    """Return a JSON-able description, the input of `tokenizer_from_dict`.

    It names the file that `save` writes, and tells its checksum; the vocabulary is only there.
    """
    return {
      'type': 'wordpiece',
      'file': TOKENIZER_FILE,
      'sha256': self._sha256,
      'vocab_size': self.vocab_size,
    }

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Write the definition to tokenizer.json in a directory, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    path = os.path.join(directory, TOKENIZER_FILE)
    temporary = f'{path}.tmp'
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      file.write(self.definition)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)


def _library() -> Any:
  """Return the library of word pieces, which only models that use them need."""
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      'word pieces need the library tokenizers: pip install "tokenizers>=0.20"'
    ) from error
  return tokenizers


def _parts(text: Any, max_length: int | None) -> tuple[str, ...]:
  """Return the one or two strings of an input, checked."""
  parts = text if isinstance(text, tuple) else (text,)
  if (isinstance(text, tuple) and len(parts) != 2) or not all(
    isinstance(part, str) for part in parts
  ):
    raise TypeError(f'expected a string or a tuple of two, got {type(text).__name__}: {text!r:.80}')
  if max_length is not None and max_length < 2 * len(parts):
    raise ValueError(
      f'max_length must be at least {2 * len(parts)}, a token and [SEP] of each text, '
      f'got {max_length}'
    )
  return parts


def read_wordpiece(
  description: dict[str, Any], directory: str | os.PathLike[str] | None
) -> WordPieceTokenizer:
  """Return the tokenizer that `WordPieceTokenizer.to_dict` described and `save` wrote.

  Args:
    description: what `to_dict` returned.
    directory: where the file lies.

  Raises:
    FileNotFoundError: if the directory lacks the file.
    ImportError: if the library is missing.
    ValueError: if no directory is given, or the file is another one than described.
  """
  name, sha256 = description['file'], description['sha256']
  if directory is None:
    raise ValueError(f'a tokenizer of word pieces lies in a file: name the directory of {name}')
  path = os.path.join(directory, name)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'{path} is missing, the vocabulary: copy {name} with SHA-256 {sha256} to there'
    )
  with open(path, 'rb') as file:
    text = file.read()
  found = hashlib.sha256(text).hexdigest()
  if found != sha256:
    raise ValueError(
      f'{path} is not the vocabulary that is described: expected SHA-256 {sha256}, found {found}; '
      'replace it'
    )
  return WordPieceTokenizer(text.decode())


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> WordPieceTokenizer:
  """Return a tokenizer whose word pieces are those that occur most often in texts.

  Pieces are merged as in byte-pair encoding, the most frequent pair first, which is how the
  library `tokenizers` makes vocabularies for BERT; pairs must occur twice. Equal texts, in whatever
  order, give the same tokenizer. '[UNK]' in a text counts for nothing.

  Known are the 1000 most frequent characters, or those that a quarter of the vocabulary has room
  for; words with others are [UNK].

  Args:
    texts: lines or documents; they are read once, and their characters and words are counted.
    vocab_size: ids at most, special ones included, at least 200; few words have fewer pieces.

  Raises:
    ImportError: if the library is missing.
    ValueError: if vocab_size is too small, or there are no words.
  """
  if vocab_size < _SMALLEST_VOCABULARY:
    raise ValueError(f'vocab_size must be at least {_SMALLEST_VOCABULARY}, got {vocab_size}')
  library = _library()
  normalizer = library.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
  splitter = library.pre_tokenizers.BertPreTokenizer()
  words = _count_words(texts, normalizer, splitter)
  if not words:
    raise ValueError('expected texts with words, found none; name other texts')
  characters = collections.Counter()
  for word, count in words.items():
    for character in word:
      characters[character] += count
  size = min(_LARGEST_ALPHABET, vocab_size // 4)
  alphabet = sorted(characters, key=lambda character: (-characters[character], character))[:size]
  # By itself, the library breaks ties by numbers that differ from process to process: which of
  # equally frequent characters are known, and the ids of the continued ones. Both are given.
  special = [
    _PAD,
    _UNKNOWN,
    _SEPARATOR,
    *(_CONTINUED + character for character in sorted(alphabet)),
  ]
  trainer = library.trainers.WordPieceTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    special_tokens=special,
    initial_alphabet=alphabet,
    limit_alphabet=len(alphabet),
    continuing_subword_prefix=_CONTINUED,
    show_progress=False,
  )
  trained = library.Tokenizer(library.models.WordPiece(unk_token=_UNKNOWN))
  trained.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  trained.train_from_iterator(_repeat(words), trainer)
  # Another one, in whose texts continued characters are none of the special words.
  tokenizer = library.Tokenizer(
    library.models.WordPiece(
      trained.get_vocab(), unk_token=_UNKNOWN, continuing_subword_prefix=_CONTINUED
    )
  )
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
  tokenizer.decoder = library.decoders.WordPiece(prefix=_CONTINUED)
  tokenizer.add_special_tokens([_UNKNOWN])
  return WordPieceTokenizer(tokenizer.to_str())


def _count_words(texts: Iterable[str], normalizer: Any, splitter: Any) -> collections.Counter[str]:
  """Return how often each word occurs, normalised and without white space or punctuation."""
  raw = collections.Counter()
  for text in texts:
    raw.update(text.replace(_UNKNOWN, ' ').split())
  words = collections.Counter()
  for word, count in raw.items():  # Much fewer than words of the texts.
    for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
      words[part] += count
  return words


def _repeat(words: collections.Counter[str]) -> Iterator[str]:
  """Yield texts in which every word is as often as counted: the library takes no counts."""
  for word in sorted(words):
    for start in range(0, words[word], 1000):
      yield ' '.join([word] * min(1000, words[word] - start))
