"""The published scores that runs are compared with: published_results.csv."""

from __future__ import annotations

import collections
import csv
import functools
import importlib.resources
from collections.abc import Iterable
from typing import NamedTuple

# Where a source's scores are shown.
SOURCES = {
  'KL-Transformer paper (TMLR 07/2022)': 'paper',
  'Long Range Arena leaderboard (repository README)': 'lra',
}


class PublishedScore(NamedTuple):
  """One row of published_results.csv.

  Attributes:
    source: paper or leaderboard, a key of `SOURCES`.
    table: of the source.
    model: its name here.
    family: of the model; 'chance' for random guessing.
    task: its name here; of GLUE as 'glue/cola_mcc', with the metric.
    value: accuracy in percent; of GLUE a fraction; None where the source reports a failure.
    regime: whose rules the entry keeps to: 'lra', or 'paper' on GLUE; 'external' is neither.
    note: what else the source says, such as why there is no value.
  """

  source: str
  table: str
  model: str
  family: str
  task: str
  value: float | None
  regime: str
  note: str

  @property
  def fraction(self) -> float | None:
    """An accuracy as a fraction, as those of runs are; not for GLUE, whose values are."""
    return None if self.value is None else round(self.value / 100, 6)


@functools.cache
def load_published(metric: str = 'accuracy') -> tuple[PublishedScore, ...]:
  """Return the published accuracies of published_results.csv, or what it calls `score`: GLUE's."""
  file = importlib.resources.files('lra_tasks').joinpath('published_results.csv')
  rows = csv.DictReader(file.read_text(encoding='utf-8').splitlines())
  return tuple(
    PublishedScore(
      **{name: row[name] for name in PublishedScore._fields if name != 'value'},
      value=float(row['value']) if row['value'] else None,
    )
    for row in rows
    if row['metric'] == metric
  )


def published_for(
  published: Iterable[PublishedScore], task: str, external: bool = False
) -> dict[str, dict[str, PublishedScore]]:
  """Return {model: {'paper' or 'lra': score}} of one task.

  Args:
    published: what to choose from.
    task: the task's name; an unknown one has no scores.
    external: also entries that do not keep to LRA's rules.

  >>> published_for(load_published(), 'listops')['gmm_prf']['paper'].value
  36.96
  """
  regimes = {'lra', 'external'} if external else {'lra'}
  found = collections.defaultdict(dict)
  for score in published:
    if score.task == task and score.regime in regimes:
      found[score.model].setdefault(SOURCES[score.source], score)
  return dict(found)
