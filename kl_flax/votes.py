"""Votes: what many draws of the frequencies predict, counted, and how far they agree.

`Predictor.vote` counts them for inputs, and the evaluation of a training for a whole split.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Vote:
  """Answers for n inputs by many draws of the frequencies, and how far the draws agree.

  Attributes:
    labels: int32[n], the class that most draws predict; of equals the more probable one.
    probabilities: float32[n, num_classes], means over the draws.
    votes: int32[n, num_classes], draws that predict each class; rows sum to the number of draws.
    log_odds: float64[n, samples], of the majority's class against all others, for each draw: with
      two classes the model's output before the sigmoid, up to its sign.
    names: of the classes in `labels`, where they are known; else None.
  """

  labels: np.ndarray
  probabilities: np.ndarray
  votes: np.ndarray
  log_odds: np.ndarray
  names: list[str] | None = None

  def __str__(self) -> str:
    """Return a line for each input: the majority, draws for it, and RSD, `relative_deviation`."""
    samples, names = self.votes.sum(axis=1), self.names or [str(label) for label in self.labels]
    return '\n'.join(
      f'{name}: {most} of {of} draws, mean probability {probability:.2f}, RSD {deviation:.2f}'
      for name, most, of, probability, deviation in zip(
        names,
        self.votes.max(axis=1),
        samples,
        self.probabilities[np.arange(len(self.labels)), self.labels],
        self.relative_deviation,
        strict=True,
      )
    )

  @property
  def inconsistency(self) -> np.ndarray:
    """Share of draws that do not predict the majority's class, float64[n] in [0, 1).

    The paper's prediction inconsistency (PI) is that of 100 draws, in percent.
    """
    return 1 - self.votes.max(axis=1) / self.votes.sum(axis=1)

  @property
  def relative_deviation(self) -> np.ndarray:
    """Standard deviation of the log-odds over the absolute value of their mean, float64[n].

    The paper's relative standard deviation (RSD), which it defines for two classes. It is infinite
    where the mean is 0, and NaN where all log-odds are.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
      return self.log_odds.std(axis=1) / np.abs(self.log_odds.mean(axis=1))


def count_votes(logits: np.ndarray) -> Vote:
  """Return the vote on n inputs, computed in float64.

  Args:
    logits: float[samples, n, num_classes], of each draw of the frequencies.
  """
  logits = np.asarray(logits, np.float64)
  _, n, num_classes = logits.shape
  probabilities = _exp_normalised(logits).mean(axis=0)
  votes = np.zeros((n, num_classes), np.int32)
  np.add.at(votes, (np.arange(n), logits.argmax(axis=2)), 1)
  labels = np.lexsort((probabilities, votes), axis=1)[:, -1].astype(np.int32)
  own = np.arange(num_classes) == labels[:, None]
  log_odds = logits[:, own] - _log_sum_exp(np.where(own, -np.inf, logits))
  return Vote(labels, probabilities.astype(np.float32), votes, log_odds.T)


def _exp_normalised(logits: np.ndarray) -> np.ndarray:
  return np.exp(logits - _log_sum_exp(logits)[..., None])


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
  highest = logits.max(axis=-1)
  return highest + np.log(np.exp(logits - highest[..., None]).sum(axis=-1))
