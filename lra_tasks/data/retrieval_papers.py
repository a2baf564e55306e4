"""Papers and citations: the files read, and pairs rebuilt from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np

from lra_tasks.data import sources
from lra_tasks.data.retrieval_files import ALL, MAX_BYTES
from lra_tasks.data.retrieval_pairs import make_pairs

logger = logging.getLogger(__name__)

# Parts of all citations that rebuilt splits hold; about 0.7 are left for train.
SHARES = {'test': 0.10, 'validation': 0.05}


def read_documents(path: str) -> dict[str, bytes]:
  """Return the texts, UTF-8 cut at MAX_BYTES, by id, of a file of JSON objects, one a line.

  Raises:
    ValueError: if a line has no id or text, or the id of another; the message names the line.
  """
  texts: dict[str, bytes] = {}
  with sources.open_file(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        paper = json.loads(line)
        if not isinstance(paper, dict):
          raise ValueError(f'found {line[:60]!r}')
        name, text = (paper.get(key) for key in ('id', 'text'))
        if not (isinstance(name, str) and isinstance(text, str) and name and text):
          raise ValueError(f'found {name!r:.60} and {text!r:.60}')
        if name in texts:
          raise ValueError(f'the id {name} is there twice')
        texts[name] = text.encode()[:MAX_BYTES]
      except ValueError as error:
        raise ValueError(
          f"{path}, line {number}: expected a JSON object with a new string 'id' and a string "
          f"'text': {error}; replace the file"
        ) from None
  return texts


def read_citations(path: str) -> Iterator[tuple[str, str]]:
  """Yield citing and cited id of each row of a table between tabs whose header names the two.

  Raises:
    ValueError: if the header or a row is damaged; the message names the line.
  """
  with sources.open_file(path) as file:

    def fail(number: int, expected: str, line: bytes) -> NoReturn:
      found = repr(line[:60]) if line else 'an empty file'
      raise ValueError(
        f'{path}, line {number}: expected {expected}, found {found}; replace the file'
      )

    split = lambda line: line.rstrip(b'\r\n').split(b'\t')
    line = file.readline()
    header = split(line)
    if not {b'citing', b'cited'} <= set(header):
      fail(1, "columns 'citing' and 'cited' between tabs", line)
    citing, cited = header.index(b'citing'), header.index(b'cited')
    for number, line in enumerate(file, start=2):
      columns = split(line)
      if len(columns) != len(header):
        fail(number, f'{len(header)} columns between tabs', line)
      yield columns[citing].decode(errors='replace'), columns[cited].decode(errors='replace')


def rebuild(
  documents: str, citations: str, *, seed: int, sizes: Mapping[str, int]
) -> dict[str, list[tuple[bytes, bytes, int]]]:
  """Return pairs of texts, each with its label, by split.

  Args:
    documents: file of the papers.
    citations: file of who cites whom; papers without text and self-citations are passed over.
    seed: of all that is random.
    sizes: the number of pairs of each split, the first ones, or ALL.

  Raises:
    ValueError: if a file is damaged, or if there are fewer pairs than are asked for.
  """
  texts = read_documents(documents)
  names = sorted(texts)
  numbers = {name: i for i, name in enumerate(names)}
  links = {
    tuple(sorted((numbers[a], numbers[b])))
    for a, b in read_citations(citations)
    if a != b and a in numbers and b in numbers
  }
  logger.info('Retrieval: %d papers, %d pairs of which one cites the other', len(texts), len(links))
  # Of NumPy's generators, the one that gives the same numbers in all versions.
  try:
    pairs = make_pairs(links, SHARES, np.random.RandomState(seed))
  except ValueError as error:
    raise ValueError(f'{citations}: {error}; name a source with more papers') from None
  for split, wanted in sizes.items():
    if wanted > len(pairs[split]):
      raise ValueError(
        f'{citations}: expected citations for {wanted} pairs of {split}, found {len(pairs[split])} '
        f'pairs; ask for fewer, or for all by {ALL}'
      )
    pairs[split] = pairs[split][: None if wanted == ALL else wanted]
  text = lambda number: texts[names[number]]
  return {
    split: [(text(first), text(second), label) for first, second, label in pairs[split]]
    for split in sizes
  }
