"""Find the runs in and below directories; gather those that differ in their seed alone."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lra_tasks.runs.finished import Damaged, Run, Unfinished, read_folder, with_late_evaluations

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
