"""Find the results of runs, and the published scores that they are compared with."""

from __future__ import annotations

import collections
import csv
import functools
import importlib.resources
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lra_tasks.finished import Damaged, Run, Unfinished, read_folder, with_late_evaluations

# Where a source's scores are shown.
SOURCES = {
  'KL-Transformer paper (TMLR 07/2022)': 'paper',
  'Long Range Arena leaderboard (repository README)': 'lra',
}
# The runs that this package comes with.
KEPT = Path(__file__).parents[1] / 'results'
# Runs that share these differ in their seed alone.
_SAME = ('task', 'dataset', 'split', 'model', 'preset', 'config_id')


class Results(NamedTuple):
  """What `load_results` found."""

  runs: tuple[Run, ...]
  unfinished: tuple[Unfinished, ...] = ()
  damaged: tuple[Damaged, ...] = ()


def load_results(directories: Iterable[str | os.PathLike[str]]) -> Results:
  """Read every results.json in and below `directories`, each file once.

  Of runs below a directory, those that cannot be read are left out, and named in what is returned.

  Raises:
    OSError: if a directory does not exist, or it or a file of a run that lies right in it cannot be
      read.
    ValueError: if there is no finished run in or below a directory, or one that lies right in it is
      damaged.
  """
  runs: dict[str, Run] = {}
  unfinished: dict[str, Unfinished] = {}
  damaged: dict[str, Damaged] = {}
  for top in map(Path, directories):
    found = [_read(folder, top) for folder in _walk(top)]
    pending = [run for run in found if isinstance(run, Unfinished)]
    broken = [run for run in found if isinstance(run, Damaged)]
    finished = [run for run in found if isinstance(run, Run)]
    if not finished:
      raise ValueError(
        f'{top}: no finished run here or below'
        + (f': {"; ".join(map(str, pending + broken))}' if pending or broken else '')
        + '; python -m lra_tasks.train --config=... --model_dir=... writes results.json at the '
        'end of its run, and goes on with a run that was stopped'
      )
    for run in finished:
      runs.setdefault(os.path.realpath(run.path), run)
    for run in pending:
      unfinished.setdefault(os.path.realpath(run.path), run)
    for run in broken:
      damaged.setdefault(os.path.realpath(run.path), run)
  return Results(tuple(runs.values()), tuple(unfinished.values()), tuple(damaged.values()))


def _read(folder: Path, top: Path) -> Run | Unfinished | Damaged | None:
  """Return the run that lies in `folder`, if one does; damage is an error in `top` alone."""
  try:
    found = read_folder(folder)
    return with_late_evaluations(found) if isinstance(found, Run) else found
  except (OSError, ValueError) as error:
    if folder == top:  # It was named: a report without it is not what was asked for.
      raise
    return Damaged(folder, str(error))


def _walk(top: Path) -> Iterator[Path]:
  """Yield the folder and those below, following links but entering no folder twice."""
  seen = set()
  for folder, subfolders, _ in os.walk(top, followlinks=True, onerror=_raise):
    real = os.path.realpath(folder)
    if real in seen:
      subfolders.clear()
      continue
    seen.add(real)
    # A run's own subfolders hold many files and no results.
    skipped = ('checkpoints', 'summary')
    subfolders[:] = sorted(n for n in subfolders if n not in skipped and n[0] != '.')
    yield Path(folder)


def _raise(error: OSError) -> None:
  raise error


# -------------------------------------------------------------------------- repeated seeds


class Group(NamedTuple):
  """The runs of one config, one for each seed, and older runs of the same seeds."""

  runs: tuple[Run, ...]
  repeated: tuple[Run, ...] = ()


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Gather the runs of one config; of a repeated seed, no independent run, the newest stays."""
  groups = collections.defaultdict(list)
  for run in sorted(runs, key=lambda run: (run.modified, str(run.path))):
    groups[tuple(getattr(run, name) for name in _SAME)].append(run)
  gathered = []
  for members in groups.values():
    newest = {run.seed: run for run in members}
    repeated = tuple(run for run in members if run is not newest[run.seed])
    gathered.append(Group(tuple(newest[seed] for seed in sorted(newest)), repeated))
  return gathered


# ------------------------------------------------------------------------ published scores


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
