"""Metrics of classification, from confusion matrices and from votes.

A confusion matrix is int[c, c]: row i holds the examples of class i by the class that was
predicted. It is a sum over examples, so that batches and processes add up. The names are those of
GLUE (Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019).

A vote is what several draws of the frequencies predict. Its metrics are those of the KL-Transformer
paper, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from kl_flax.votes import Vote


def accuracy(confusion: np.ndarray) -> float:
  """Return the share of examples that are predicted right, in [0, 1]; 0.0 without examples.

  Args:
    confusion: int[c, c], rows are the true classes.

  Raises:
    ValueError: if it is not square.

  >>> accuracy(np.array([[3, 1], [0, 4]]))
  0.875
  """
  confusion = _checked(confusion)
  return _ratio(np.trace(confusion), confusion.sum())


def f1(confusion: np.ndarray) -> float:
  """Return the harmonic mean of precision and recall of class 1 of two, in [0, 1].

  It is 0.0 where class 1 neither occurs nor is predicted.

  Args:
    confusion: int[2, 2], rows are the true classes.

  Raises:
    ValueError: if there are not two classes.

  >>> f1(np.array([[3, 1], [1, 3]]))
  0.75
  """
  confusion = _checked(confusion)
  if len(confusion) != 2:
    raise ValueError(f'F1 is that of class 1 of two classes, got {len(confusion)} classes')
  (_, false_positive), (false_negative, true_positive) = confusion
  return _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative)


def matthews(confusion: np.ndarray) -> float:
  """Return Matthews' correlation of true and predicted classes, in [-1, 1].

  It is 0.0 where it is not defined: all examples are of one class, or are predicted as one. With
  more than two classes it is that of Gorodkin, "Comparing two K-category assignments by a
  K-category correlation coefficient", Computational Biology and Chemistry 2004.

  Args:
    confusion: int[c, c], rows are the true classes.

  Raises:
    ValueError: if it is not square.

  >>> matthews(np.array([[4, 0], [0, 2]])), matthews(np.array([[0, 4], [0, 2]]))
  (1.0, 0.0)
  """
  confusion = _checked(confusion)
  count = confusion.sum()
  true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  covariance = count * np.trace(confusion) - true @ predicted
  variances = (count**2 - true @ true) * (count**2 - predicted @ predicted)
  return _ratio(covariance, np.sqrt(variances))


METRICS: dict[str, Callable[[np.ndarray], float]] = {
  'accuracy': accuracy,
  'f1': f1,
  'matthews': matthews,
}


def mean_of_draws(name: str, confusions: np.ndarray) -> float:
  """Return a metric averaged over draws of the frequencies.

  Args:
    name: a key of `METRICS`.
    confusions: int[num_draws, c, c].
  """
  return float(np.mean([METRICS[name](confusion) for confusion in confusions]))


class VoteMetrics(NamedTuple):
  """How far the draws of the frequencies agree on a split; fractions, not percentages.

  Attributes:
    voting_accuracy: of the class that most draws predict (VA).
    inconsistency: share of draws that do not predict it, mean over the examples (PI).
    median_deviation: standard deviation over the draws by |mean| of the log-odds (RSD), median over
      the examples.
    mean_deviation: its mean. Both are infinite or NaN where deviations of examples are, see
      `Vote.relative_deviation`; in files they are null then.
  """

  voting_accuracy: float
  inconsistency: float
  median_deviation: float
  mean_deviation: float


class Votes:
  """Votes on a split, batch by batch.

  Each example leaves three numbers: the median over all of them is exact.
  """

  def __init__(self) -> None:
    self._voted: list[np.ndarray] = []
    self._inconsistency: list[np.ndarray] = []
    self._deviation: list[np.ndarray] = []

  def add(self, vote: Vote, targets: np.ndarray) -> None:
    """Add the vote on n examples whose true classes are int[n]."""
    self._voted.append(vote.labels == targets)
    self._inconsistency.append(vote.inconsistency)
    self._deviation.append(vote.relative_deviation)

  def metrics(self) -> VoteMetrics | None:
    """Return the metrics of all examples; None if there was none."""
    if not sum(map(len, self._voted)):
      return None
    deviation = np.concatenate(self._deviation)
    return VoteMetrics(
      voting_accuracy=float(np.mean(np.concatenate(self._voted))),
      inconsistency=float(np.mean(np.concatenate(self._inconsistency))),
      median_deviation=float(np.median(deviation)),
      mean_deviation=float(np.mean(deviation)),
    )


def _checked(confusion: np.ndarray) -> np.ndarray:
  """Return a matrix whose products of counts neither overflow nor lose more than rounding."""
  confusion = np.asarray(confusion)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(f'expected a confusion matrix int[c, c], got shape {confusion.shape}')
  return confusion.astype(np.float64)


def _ratio(numerator: float, denominator: float) -> float:
  return float(numerator / denominator) if denominator else 0.0
