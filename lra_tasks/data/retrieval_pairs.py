"""Pairs of papers from a citation graph: which papers are in which split, and which are no pair.

Papers are numbered 0, 1, ...; a link is a pair (a, b), a < b, of which one cites the other. All
functions are deterministic: they draw from the generator that they are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Link = tuple[int, int]

# Of a split: more lose more links and are linked more tightly, fewer hold fewer topics.
CLUSTERS = 4
# Random exchanges that are tried before a pair of papers is given up.
_EXCHANGES = 1000


class Pair(NamedTuple):
  """Two papers in the order in which they are read, and whether one cites the other."""

  first: int
  second: int
  label: int


def make_pairs(
  links: Iterable[Link], shares: Mapping[str, float], rng: np.random.RandomState
) -> dict[str, list[Pair]]:
  """Return the pairs of each split, of which no two share a paper.

  Half of the pairs of a split are links, half are not, and a paper occurs as often in these as in
  those (but where a split is too dense for that). Positive and negative pairs take turns.

  Args:
    links: all of them.
    shares: what part of the links each split but 'train' shall hold, by name.
    rng: decides about everything random.

  Raises:
    ValueError: if there are too few links for the splits.
  """
  links = sorted(set(links))
  groups = partition(links, list(shares.values()), rng)
  pairs = {}
  for number, name in enumerate([*shares, 'train']):
    inside = [link for link in links if groups[link[0]] == groups[link[1]] == number]
    positives, negatives = match_negatives(inside, rng)
    if not positives:
      raise ValueError(
        f'{len(links)} citations are too few for the splits: none was left for {name}'
      )
    pairs[name] = [
      Pair(*(link if rng.randint(2) else link[::-1]), label)
      for both in zip(_shuffle(positives, rng), _shuffle(negatives, rng), strict=True)
      for label, link in zip((1, 0), both, strict=True)
    ]
  return pairs


def partition(
  links: Sequence[Link], shares: Sequence[float], rng: np.random.RandomState
) -> dict[int, int]:
  """Return the group of each paper that has links: 0, 1, ... for the shares, then the rest.

  A group grows in clusters until it holds its share of all links. A cluster begins with a random
  paper and takes, one by one, the paper that has the largest part of its links in it.
  """
  neighbours: dict[int, set[int]] = {}
  for a, b in links:
    neighbours.setdefault(a, set()).add(b)
    neighbours.setdefault(b, set()).add(a)
  groups = dict.fromkeys(sorted(neighbours), len(shares))
  for number, share in enumerate(shares):
    wanted, held = max(1, round(share * len(links))), 0
    members: set[int] = set()
    while held < wanted:
      free = {paper for paper, group in groups.items() if group == len(shares)}
      first = [paper for paper in sorted(free) if neighbours[paper] & free]
      if not first:
        break  # `make_pairs` reports what is missing.
      size = min(-(-wanted // CLUSTERS), wanted - held)
      for paper in _grow(first[rng.randint(len(first))], neighbours, free, size):
        held += len(neighbours[paper] & members)
        members.add(paper)
        groups[paper] = number
  return groups


def _grow(start: int, neighbours: Mapping[int, set[int]], free: set[int], size: int) -> list[int]:
  """Return the papers of a cluster of at least `size` links, where so many can be had."""
  papers, kept = [start], 0
  outside = free - {start}
  inwards = Counter(neighbours[start] & outside)  # Links to the cluster, of papers beside it.
  while kept < size and inwards:
    paper = max(inwards, key=lambda p: (inwards[p] / len(neighbours[p]), inwards[p], -p))
    kept += inwards.pop(paper)
    papers.append(paper)
    outside.remove(paper)
    inwards.update(neighbours[paper] & outside)
  return papers


def match_negatives(
  links: Sequence[Link], rng: np.random.RandomState
) -> tuple[list[Link], list[Link]]:
  """Return links, and as many pairs without link in which each paper occurs as often.

  The ends of all links are joined at random; a pair that is no negative, or drawn twice, exchanges
  an end with another. Where that fails, because papers are linked with nearly all others, as many
  links of these papers are left out.

  Args:
    links: all links between the papers of a split.
    rng: decides about everything random.
  """
  ends = _shuffle([paper for link in links for paper in link], rng)
  taken = set(links)
  negatives: list[Link] = []
  unmatched = []
  for a, b in zip(ends[::2], ends[1::2], strict=True):
    if a != b and _link(a, b) not in taken:
      negatives.append(_link(a, b))
      taken.add(_link(a, b))
    else:
      unmatched.append((a, b))
  unmatched = [pair for pair in unmatched if not _exchange(*pair, negatives, taken, rng)]
  missing = Counter(paper for pair in unmatched for paper in pair)
  positives = _shuffle(links, rng)
  for _ in unmatched:
    link = max(positives, key=lambda link: missing[link[0]] + missing[link[1]])
    positives.remove(link)
    missing.subtract(link)
  return positives, negatives


def _exchange(
  a: int, b: int, negatives: list[Link], taken: set[Link], rng: np.random.RandomState
) -> bool:
  """Turn a negative (c, d) into (a, c) and (b, d); return whether one was found that allows it."""
  for _ in range(_EXCHANGES if negatives else 0):
    index = rng.randint(len(negatives))
    c, d = negatives[index] if rng.randint(2) else negatives[index][::-1]
    first, second = _link(a, c), _link(b, d)
    if a != c and b != d and first != second and taken.isdisjoint((first, second)):
      taken.remove(negatives[index])
      taken.update((first, second))
      negatives[index] = first
      negatives.append(second)
      return True
  return False


def _link(a: int, b: int) -> Link:
  return (a, b) if a < b else (b, a)


def _shuffle(items: Sequence, rng: np.random.RandomState) -> list:
  return [items[i] for i in rng.permutation(len(items)).tolist()]
