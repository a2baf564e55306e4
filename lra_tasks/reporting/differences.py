"""In which fields of their configs rows of one model and preset differ, in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lra_tasks.experiments import LATER_FIELDS, REPETITION
from lra_tasks.runs.finished import Run, read_description

# More fields than these are no label.
_MOST = 2
# The label has it already.
_SHOWN = ('preset',)


def different_fields(rows: Sequence[Iterable[Run]], besides: Collection[str] = ()) -> list[str]:
  """Return 'field=value, ...' of each row, the fields in which they differ; '' for each if unclear.

  It is unclear without the config.json of a row, with more than two such fields, or where a config
  lacks one: what an earlier version took for it is not known here.

  Args:
    rows: the runs of each, of one config.
    besides: fields that are left out, besides those of repetitions.

  Returns:
    Texts that differ from row to row, or as many empty ones.
  """
  unclear = [''] * len(rows)
  configs = [_flat_config(runs, {*REPETITION, *_SHOWN, *besides}) for runs in rows]
  if None in configs:
    return unclear
  names = sorted({name for config in configs for name in config})
  names = [name for name in names if len({config.get(name) for config in configs}) > 1]
  if len(names) > _MOST or any(name not in config for name in names for config in configs):
    return unclear
  texts = [', '.join(f'{name}={config[name]}' for name in names) for config in configs]
  return texts if len(set(texts)) == len(texts) else unclear


def _flat_config(runs: Iterable[Run], left_out: Collection[str]) -> dict[str, str] | None:
  """Return {'attention.num_frequencies': '64'} and so on, from the first config.json there is."""
  for run in runs:
    try:
      description = read_description(run.path.parent) or {}
    except (OSError, ValueError):  # Damaged: no reason to show no figures.
      continue
    config = description.get('config')
    # Beside results.json, the config of another run may lie.
    if isinstance(config, Mapping) and description.get('config_id') == run.config_id:
      rest = {
        name: value for name, value in (LATER_FIELDS | config).items() if name not in left_out
      }
      return dict(_flatten(rest))
  return None


def _flatten(values: Mapping[str, Any], prefix: str = '') -> Iterable[tuple[str, str]]:
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value if isinstance(value, str) else json.dumps(value)
