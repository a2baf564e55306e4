"""Word pieces of data sets: builders that train a vocabulary, and texts seen as token ids."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kl_flax.tokenizers import tokenizer_from_dict
from kl_flax.wordpiece import WordPieceTokenizer, train_wordpiece
from lra_tasks import files
from lra_tasks.data import datasets

logger = logging.getLogger(__name__)


class Tokenized(Sequence):
  """Records of texts as records of token ids; each is encoded when it is read.

  A record is {'inputs': ids, 'target': label, 'truncated': whether it was cut}. Ids are those of
  `text [SEP]`, of two texts `first [SEP] second [SEP]`; uint16[length] or uint32[length].

  Args:
    source: records with 'inputs1' and, of pairs, 'inputs2', uint8[length] of UTF-8, and 'target';
      read by `__getitems__`.
    tokenizer: text to ids.
    max_length: what is too much is taken off the longer text, see `WordPieceTokenizer.encode`.
  """

  def __init__(
    self, source: Sequence[Any], tokenizer: WordPieceTokenizer, max_length: int | None = None
  ) -> None:
    self._source, self._tokenizer, self._max_length = source, tokenizer, max_length

  def __len__(self) -> int:
    """Return the number of examples."""
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Return one example.

    Raises:
      IndexError: for an index below 0 or beyond the end.
    """
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return several examples, which are read and encoded together.

    Raises:
      IndexError: for an index below 0 or beyond the end.
    """
    records = self._source.__getitems__(indices)
    texts = list(map(read_text, records))
    encoded = self._tokenizer.encode_batch(texts)
    return [
      self._record(text, ids, int(record['target']))
      for text, ids, record in zip(texts, encoded, records, strict=True)
    ]

  def _record(self, text: str | tuple[str, str], ids: np.ndarray, target: int) -> dict[str, Any]:
    cut = self._max_length is not None and len(ids) > self._max_length
    if cut:
      ids = self._tokenizer.encode(text, self._max_length)
    return {'inputs': ids, 'target': target, 'truncated': cut}

  def __iter__(self) -> Iterator[dict[str, Any]]:
    """Return one example after the other."""
    return (self[i] for i in range(len(self)))


def read_text(record: dict[str, Any]) -> str | tuple[str, str]:
  """Return the text of a record, or the two of a pair.

  Args:
    record: 'inputs1' and perhaps 'inputs2', uint8[length] of UTF-8.
  """
  first = record['inputs1'].tobytes().decode()
  return (first, record['inputs2'].tobytes().decode()) if 'inputs2' in record else first


class TokenizedBuilder(datasets.Builder):
  """A builder whose data set comes with a vocabulary of its own texts.

  The vocabulary lies in tokenizer.json beside the examples; the manifest tells its checksum.
  `_make_splits` calls `_train_tokenizer`.
  """

  _tokenizer: WordPieceTokenizer | None = None

  @property
  def tokenizer(self) -> WordPieceTokenizer:
    """Text to ids; of prepared data.

    Raises:
      FileNotFoundError: if the data is not prepared, or lacks its vocabulary.
      ValueError: if the vocabulary is not the one that the data was prepared with.
    """
    if self._tokenizer is None:
      manifest = files.read_json(os.path.join(self.data_dir, 'manifest.json'))
      if manifest is None:
        raise FileNotFoundError(
          f'{self.data_dir} holds no prepared data: a vocabulary is trained when it is prepared'
        )
      try:
        self._tokenizer = tokenizer_from_dict(manifest['tokenizer'], self.data_dir)
      except (FileNotFoundError, KeyError, ValueError) as error:
        kind = ValueError if isinstance(error, KeyError) else type(error)
        raise kind(
          f'{self.data_dir} lacks its vocabulary: {error}; delete the directory to have it '
          'prepared again'
        ) from error
    return self._tokenizer

  def _train_tokenizer(self, texts: Iterable[str], vocab_size: int) -> WordPieceTokenizer:
    """Train a vocabulary and write it to the directory, which has no final name yet."""
    start = time.monotonic()
    self._tokenizer = train_wordpiece(texts, vocab_size)
    self._tokenizer.save(self.data_dir)
    logger.info(
      '%s: trained a vocabulary of %d word pieces in %.1f s',
      self.name, self._tokenizer.vocab_size, time.monotonic() - start,
    )  # fmt: skip
    return self._tokenizer

  def _make_manifest(self) -> dict[str, Any]:
    return super()._make_manifest() | {'tokenizer': self.tokenizer.to_dict()}
