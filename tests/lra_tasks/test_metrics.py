import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import example, given

from kl_flax.votes import count_votes
from lra_tasks.metrics import METRICS, Votes, accuracy, f1, matthews


@st.composite
def matrices(draw):
  size = draw(st.integers(2, 4))
  counts = st.integers(0, 20)
  rows = st.lists(counts, min_size=size, max_size=size)
  return np.array(draw(st.lists(rows, min_size=size, max_size=size)), np.int64)


def labels_of(confusion):
  """Return true and predicted labels that a matrix counts."""
  places = np.indices(confusion.shape).reshape(2, -1)
  return np.repeat(places, confusion.reshape(-1), axis=1)


@given(matrices())
@example(np.array([[0, 0], [0, 5]]))
@example(np.array([[0, 3], [0, 5]]))
@example(np.array([[7, 0], [4, 0]]))
def test_metrics_are_those_of_scikit_learn(confusion):
  true, predicted = labels_of(confusion)
  if not len(true):
    return
  assert accuracy(confusion) == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
  if len(set(true)) > 1 and len(set(predicted)) > 1:
    expected = sklearn.metrics.matthews_corrcoef(true, predicted)
    assert matthews(confusion) == pytest.approx(expected, abs=1e-12)
  else:
    assert matthews(confusion) == 0
  if len(confusion) == 2:
    expected = sklearn.metrics.f1_score(true, predicted, zero_division=0)
    assert f1(confusion) == pytest.approx(expected)


def test_what_is_not_defined_is_zero():
  for metric in METRICS.values():
    assert metric(np.zeros((2, 2), np.int32)) == 0.0
  assert f1(np.array([[9, 0], [0, 0]])) == 0.0
  assert matthews(np.array([[9, 0], [3, 0]])) == 0.0


def test_many_examples_do_not_overflow():
  confusion = np.array([[2**30, 0], [2**30, 2**30]], np.int32)
  assert matthews(confusion) == pytest.approx(0.5)


def test_other_matrices_are_an_error():
  with pytest.raises(ValueError, match=r'confusion matrix int\[c, c\], got shape \(2, 3\)'):
    accuracy(np.zeros((2, 3)))
  with pytest.raises(ValueError, match='class 1 of two classes, got 3 classes'):
    f1(np.zeros((3, 3)))


def test_votes_of_all_batches_have_one_median():
  # Log-odds of class 1, by example and draw, and what they give: deviations 1/3, 2/4, infinity.
  odds = np.array([[2.0, 4.0], [6.0, 2.0], [-1.0, 1.0]])
  logits = np.stack([np.zeros_like(odds), odds], axis=2).transpose(1, 0, 2)
  votes = Votes()
  assert votes.metrics() is None
  votes.add(count_votes(logits[:, :2]), np.array([1, 0]))
  votes.add(count_votes(logits[:, :0]), np.array([], int))  # All of it was padding.
  assert votes.metrics() == pytest.approx((0.5, 0, 5 / 12, 5 / 12))
  votes.add(count_votes(logits[:, 2:]), np.array([2]))
  assert votes.metrics() == pytest.approx((1 / 3, 1 / 6, 1 / 2, np.inf))
  votes.add(count_votes(np.zeros((2, 1, 2))), np.array([0]))  # Nothing to deviate from.
  assert np.isnan(votes.metrics().median_deviation)
