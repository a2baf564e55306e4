"""A pass over a split, with one draw of the frequencies or several: sums, metrics, votes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kl_flax.votes import count_votes
from lra_tasks import parallel
from lra_tasks.data.pipeline import Batch
from lra_tasks.metrics import Votes


def evaluate(
  eval_step: Callable[..., Any],
  state: Any,
  batches: Iterable[Batch],
  stop: Callable[[], bool] = lambda: False,
  *,
  num_samples: int = 1,
) -> dict[str, Any] | None:
  """Return the sums over all batches, in float64; None if asked to stop meanwhile.

  Each example is evaluated with `num_samples` independent draws of the frequencies (the paper
  averages the accuracy over 100), and sums run over them all. 'accuracy_by_draw' [num_samples] has
  the correct answers of each draw, 'confusion_by_draw' [num_samples, c, c] the counts of
  `steps.eval_step`; 'votes' are the `VoteMetrics` of all examples where there are several draws,
  else None.

  Args:
    eval_step: (state, batch, draw) -> sums, over all devices.
    state: replicated over the local devices.
    batches: of one pass over a split.
    stop: asked before each draw of each batch.
    num_samples: draws, from 1.
  """
  totals = [collections.defaultdict(float) for _ in range(num_samples)]
  pending: collections.deque[list[Any]] = collections.deque()
  votes = Votes()

  def take(keep: int) -> None:
    while len(pending) > keep:
      draws = pending.popleft()
      examples = [sums.pop('examples', None) for sums in draws]
      for total, sums in zip(totals, draws, strict=True):
        for name, value in parallel.to_host(sums).items():
          total[name] = total[name] + value.astype(np.float64)
      if num_samples > 1 and examples[0]:
        _count_votes(votes, parallel.to_host(examples))

  for batch in batches:
    # Once for all draws; of one alone, too, as arrays of the host would compile another program.
    split, draws = parallel.place(parallel.split(batch)), []
    for draw in range(num_samples):
      if stop():
        return None
      draws.append(eval_step(state, split, parallel.broadcast(np.int32(draw))))
    pending.append(draws)
    take(parallel.RUN_AHEAD)
  take(0)
  by_draw = {
    f'{name}_by_draw': np.array([total[name] for total in totals])
    for name in ('accuracy', 'confusion')
    if name in totals[0]
  }
  sums = {name: sum(total[name] for total in totals) for name in totals[0] if name != 'confusion'}
  if 'truncated' in sums:  # A count of sequences, which are the same in all draws.
    sums['truncated'] /= num_samples
  return sums | by_draw | {'votes': votes.metrics()}


def _count_votes(votes: Votes, draws: list[dict[str, np.ndarray]]) -> None:
  """Count the votes of a batch, which several draws have answered."""
  real = draws[0]['weights'] > 0  # The others fill up the batch.
  logits = np.stack([draw['logits'][real] for draw in draws])
  votes.add(count_votes(logits), draws[0]['targets'][real])
