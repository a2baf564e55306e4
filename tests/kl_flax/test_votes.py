import dataclasses

import numpy as np

from kl_flax.votes import count_votes


def test_a_vote_by_hand():
  # Four draws of one input; log 2 against 1 and 1 is a probability of one half.
  two, three = np.log(2), np.log(3)
  vote = count_votes(np.array([[[two, 0, 0]], [[two, 0, 0]], [[0, two, 0]], [[three, 0, 0]]]))
  assert (vote.labels.tolist(), vote.votes.tolist()) == ([0], [[3, 1, 0]])
  np.testing.assert_allclose(vote.probabilities, [[1.85 / 4, 1.2 / 4, 0.95 / 4]], rtol=1e-6)
  np.testing.assert_allclose(vote.inconsistency, [0.25])
  # Odds of class 0 against both others: 2 / 2, 2 / 2, 1 / 3, 3 / 2.
  odds = np.log([1, 1, 1 / 3, 1.5])
  np.testing.assert_allclose(vote.log_odds, [odds], atol=1e-12)
  np.testing.assert_allclose(vote.relative_deviation, [odds.std() / abs(odds.mean())])
  deviation = odds.std() / abs(odds.mean())
  assert str(vote) == f'0: 3 of 4 draws, mean probability 0.46, RSD {deviation:.2f}'
  assert str(dataclasses.replace(vote, names=['cat'])).startswith('cat: 3 of 4 draws, mean')
  # Of equals, the more probable; far from 0 and 1, too.
  tie = count_votes(np.array([[[0.0, 900.0]], [[1000.0, 0.0]]]) / 1000)
  assert tie.labels.tolist() == [0]
  certain = count_votes(np.full((2, 1, 2), [0.0, 900.0]))
  np.testing.assert_allclose(certain.log_odds, [[900, 900]])
