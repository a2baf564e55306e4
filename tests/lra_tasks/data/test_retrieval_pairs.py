from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data.retrieval_pairs import make_pairs, match_negatives, partition

SHARES = {'test': 0.2, 'validation': 0.1}
LINKS = st.sets(
  st.tuples(st.integers(0, 29), st.integers(0, 29)).filter(lambda link: link[0] < link[1]),
  min_size=30,
  max_size=120,
)


def communities(number=30, size=12, inside=0.5, across=60, seed=0):
  """Links of groups of papers that cite each other more than others; returns them sorted."""
  rng = np.random.RandomState(seed)
  total = number * size
  near = lambda a, b: a // size == b // size and rng.rand() < inside
  links = {(a, b) for b in range(total) for a in range(b) if near(a, b)}
  while across:
    a, b = sorted(rng.randint(total, size=2).tolist())
    across -= a // size != b // size
    links |= {(a, b)} if a // size != b // size else set()
  return sorted(links)


def degrees(pairs, label):
  return Counter(paper for pair in pairs if pair.label == label for paper in pair[:2])


@given(links=LINKS, seed=st.integers(0, 100))
def test_pairs_of_any_graph(links, seed):
  try:
    splits = make_pairs(links, SHARES, np.random.RandomState(seed))
  except ValueError:
    return  # Some graphs are too dense.
  papers = [{paper for pair in pairs for paper in pair[:2]} for pairs in splits.values()]
  assert list(splits) == ['test', 'validation', 'train']
  assert sum(map(len, papers)) == len(set.union(*papers))  # No paper is in two splits.
  for pairs in splits.values():
    assert [pair.label for pair in pairs] == [1, 0] * (len(pairs) // 2)
    assert len({frozenset(pair[:2]) for pair in pairs}) == len(pairs)
    for first, second, label in pairs:
      assert first != second
      assert label == ((first, second) in links or (second, first) in links)
  again = make_pairs(sorted(links, reverse=True), SHARES, np.random.RandomState(seed))
  assert again == splits


def test_papers_occur_as_often_in_negatives_as_in_positives():
  splits = make_pairs(communities(), SHARES, np.random.RandomState(0))
  for pairs in splits.values():
    assert degrees(pairs, 0) == degrees(pairs, 1)
    swapped = np.mean([first > second for first, second, _ in pairs])
    assert 0.35 < swapped < 0.65


def test_splits_hold_their_share_of_the_links_and_few_are_lost():
  links = communities()
  splits = make_pairs(links, SHARES, np.random.RandomState(0))
  kept = {name: len(pairs) / 2 / len(links) for name, pairs in splits.items()}
  assert 0.2 <= kept['test'] < 0.22
  assert 0.1 <= kept['validation'] < 0.12
  # Papers drawn at random would have to be 45 and 32 in 100, and would leave 5 in 100 of the links.
  assert kept['train'] > 0.55


def test_the_seed_decides_about_the_splits():
  links = communities(10)
  groups = lambda seed: partition(links, [0.2], np.random.RandomState(seed))
  assert groups(0) == groups(0) != groups(1)


def test_papers_that_are_linked_with_nearly_all_lose_links():
  """Paper 0 is linked with half of the others; in a complete graph, there are no negatives."""
  links = sorted({(0, b) for b in range(1, 11)} | {(b, b + 1) for b in range(1, 20)})
  positives, negatives = match_negatives(links, np.random.RandomState(0))
  assert len(positives) == len(negatives)
  assert not set(negatives) & set(links)
  count = lambda pairs: Counter(paper for pair in pairs for paper in pair)
  assert max(abs(count(positives)[p] - count(negatives)[p]) for p in range(21)) <= 1

  complete = [(a, b) for b in range(6) for a in range(b)]
  assert match_negatives(complete, np.random.RandomState(0)) == ([], [])


@pytest.mark.parametrize('links', [[], [(0, 1)], [(0, 1), (2, 3)]])
def test_too_few_links(links):
  with pytest.raises(ValueError, match=f'{len(links)} citations are too few for the splits: none'):
    make_pairs(links, SHARES, np.random.RandomState(0))
