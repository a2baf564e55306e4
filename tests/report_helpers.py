"""Make runs and reports out of numbers: what tests of the report share."""

from pathlib import Path

from lra_tasks.reporting import rows as report_rows
from lra_tasks.reporting.published import load_published
from lra_tasks.runs.finding import Results
from lra_tasks.runs.finished import parse_run

RUN = {
  'task': 'listops', 'dataset': 'listops/1.0.0', 'comparable': True, 'model': 'gmm_prf',
  'preset': 'paper', 'split': 'test', 'accuracy': 0.37, 'examples': 2000, 'majority_class': 0.171,
  'seed': 0, 'steps': 10_000, 'validation_is_test': False, 'eval_samples': 1,
  'parameters': 10_000_000, 'base_parameters': 10_000_000, 'steps_per_second': 18.0,
  'peak_memory_bytes': 3 * 2**30, 'device': '1 x NVIDIA H200', 'config_id': 'a1b2c3d4e5f6',
  'git_revision': 'abc',
}  # fmt: skip


def make_run(path='runs/a', modified=0.0, **changes):
  return parse_run({**RUN, **changes}, Path(path, 'results.json'), modified)


def make_report(*runs, unfinished=(), **options):
  found = Results(tuple(runs), tuple(unfinished))
  return report_rows.build_report(found, load_published(), **options)


def rows_of(built, kind='run'):
  return [row for row in built.tables[0].rows if row.kind == kind]
