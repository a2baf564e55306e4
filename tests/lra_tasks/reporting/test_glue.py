"""Tests of the tables on GLUE: which runs are shown, beside what."""

import csv
import re

import pytest
from report_helpers import make_report, make_run

from lra_tasks.paper import PAPER_MODELS
from lra_tasks.reporting import glue, text

START = 'wikitext/wikitext-2/gmm_prf/0123456789ab/seed0/step7800'


def run_of(task, model='gmm_prf', rate=1e-4, **changes):
  values = {
    'task': task, 'dataset': f'glue/{task}', 'model': model, 'preset': 'paper*',
    'path': f'{changes}',
    'learning_rate': rate, 'config_id': f'{model}{rate}', 'pretrained': START,
    'rates_id': 'r',
    'validation_is_test': True, 'f1': None, 'matthews': None, **changes,
  }  # fmt: skip
  return make_run(values.pop('path'), **values)


def overview(*runs):
  return glue.make_overview(make_report(*runs).tables, PAPER_MODELS)


def test_the_learning_rate_is_the_best_by_the_metric_of_the_task():
  runs = [
    # CoLA's is Matthews' correlation: the rate with the best accuracy is not shown.
    run_of('cola', rate=1e-4, accuracy=0.69, matthews=0.0, seed=0),
    run_of('cola', rate=1e-4, accuracy=0.69, matthews=0.0, seed=1),
    run_of('cola', rate=5e-4, accuracy=0.66, matthews=0.12, seed=0),
    run_of('cola', rate=5e-4, accuracy=0.68, matthews=0.16, seed=1),
    run_of('sst2', rate=2e-5, accuracy=0.70),
    run_of('sst2', rate=2e-3, accuracy=0.60),
  ]
  found = overview(*runs)
  assert found.models == (('gmm_prf', 'wikitext/wikitext-2'),)
  assert [column.header for column in found.metrics] == ['sst2', 'cola MCC']
  assert found.missing == ('mrpc', 'qqp', 'mnli', 'qnli', 'wnli', 'rte')
  sst2, cola = (found.scores['gmm_prf', 'wikitext/wikitext-2', c] for c in found.metrics)
  assert (sst2.value, sst2.sd, sst2.learning_rate) == (0.70, None, 2e-5)
  assert abs(cola.value - 0.14) < 1e-9
  assert abs(cola.sd - 0.04 / 2**0.5) < 1e-9
  assert cola.learning_rate == 5e-4


def test_only_learning_rates_compete():
  """Other changes do not, nor one lucky seed with the mean of several."""
  found = overview(
    run_of('sst2', rate=1e-4, accuracy=0.70, seed=0, preset='paper'),
    run_of('sst2', rate=1e-4, accuracy=0.72, seed=1, preset='paper'),
    run_of('sst2', rate=5e-4, accuracy=0.80, seed=0),
    run_of('sst2', rate=2e-3, accuracy=0.90, seed=0, rates_id='other'),
    run_of('sst2', rate=5e-6, accuracy=0.91, seed=1, rates_id='other'),
  )
  (score,) = found.scores.values()
  assert (score.value, score.learning_rate) == (0.71, 1e-4)


def test_a_table_shows_the_best_rate_and_another_all_of_them():
  built = make_report(
    run_of('cola', rate=1e-4, accuracy=0.69, matthews=0.0, seed=0, preset='paper'),
    run_of('cola', rate=5e-4, accuracy=0.66, matthews=0.12, seed=0),
    run_of('cola', rate=5e-4, accuracy=0.68, matthews=-0.1, seed=1),
    run_of('cola', model='prf', rate=1e-4, accuracy=0.5, matthews=0.1, rates_id='q'),
    # Of two runs with one rate something else is different.
    run_of('cola', model='rks', rate=1e-4, accuracy=0.5, matthews=0.1, config_id='abcdefgh'),
    run_of('cola', model='rks', rate=1e-4, accuracy=0.4, matthews=0.2, config_id='ijklmnop'),
  )
  (table,) = built.tables
  labels = [row.label for row in table.rows if row.kind == 'run']
  assert labels == ['gmm_prf paper, best rate', 'prf paper*', 'rks paper* (abcdef)',
                    'rks paper* (ijklmn)']  # fmt: skip
  assert [row.label for row in table.passed_over] == ['gmm_prf paper']
  assert table.rows[0].accuracy == pytest.approx(0.67)
  # Of the seed that both rates have.
  assert table.rows[0].rates == ((5e-4, 'paper*', (0,), 0.12), (1e-4, 'paper', (0,), 0.0))
  lines = [' '.join(line.split()) for line in text.render_table(built).splitlines()]
  place = lines.index('cola: learning rates')
  assert lines[place + 1] == 'Matthews correlation on validation, which is the test split'
  assert lines[place + 3] == 'model preset 0.0005 0.0001 seeds'
  assert lines[place + 5] == 'gmm_prf paper, best rate 0.120 0.000 0'
  assert lines[place + 6] == ''
  assert 'best rate: of the learning rates that were run' in ' '.join(lines)
  rows = list(csv.DictReader(text.render_csv(built).splitlines()))
  rates = [(row['model'], row['learning_rate']) for row in rows if row['kind'] == 'run']
  assert rates == [('gmm_prf', '0.0005'), ('prf', '0.0001'), ('rks', '0.0001'), ('rks', '0.0001'),
                   ('gmm_prf', '0.0001')]  # fmt: skip


def test_rates_without_a_common_seed_do_not_compete():
  built = make_report(
    run_of('cola', rate=1e-4, accuracy=0.69, matthews=0.0, seed=0),
    run_of('cola', rate=5e-4, accuracy=0.60, matthews=0.12, seed=0),
    run_of('cola', rate=2e-3, accuracy=0.50, matthews=0.5, seed=7),
  )
  (table,) = built.tables
  ours = [row for row in table.rows if row.kind == 'run']
  assert [row.preset for row in ours] == ['paper*, best rate', 'paper*']
  assert [rate.learning_rate for rate in ours[0].rates] == [5e-4, 1e-4]
  (score,) = overview(
    *(run for row in (*ours, *table.passed_over) for run in row.runs)
  ).scores.values()
  assert score.value == 0.12


def test_revisions_are_compared_among_rows_that_are_shown():
  revision = lambda rate: 'new' if rate == 5e-4 else 'old'
  runs = [
    run_of('sst2', model=model, rate=rate, accuracy=rate, git_revision=revision(rate))
    for model in ('prf', 'rks')
    for rate in (5e-4, 1e-4, 2e-5)
  ]
  (table,) = make_report(*runs).tables
  assert [row.other_revision for row in table.rows if row.kind == 'run'] == [False, False]


def test_elsewhere_rates_without_a_score_on_validation_do_not_compete():
  built = make_report(
    make_run('a', rates_id='r', learning_rate=5e-3),
    make_run('b', rates_id='r', learning_rate=1e-3, preset='paper*', config_id='b', accuracy=0.4),
  )
  (table,) = built.tables
  labels = [(row.preset, row.rates) for row in table.rows if row.kind == 'run']
  assert labels == [('paper*', ()), ('paper', ())]
  assert table.rows[1].difference is not None


def test_metrics_of_one_task_are_those_of_the_same_runs():
  """MRPC's learning rate is that of its F1."""
  found = overview(
    run_of('mrpc', rate=1e-4, accuracy=0.70, f1=0.79),
    run_of('mrpc', rate=5e-4, accuracy=0.69, f1=0.81),
  )
  values = [found.scores['gmm_prf', 'wikitext/wikitext-2', c].value for c in found.metrics]
  assert values == [0.69, 0.81]


def test_published_figures_and_rows_from_scratch():
  # Table 3: gmm_rks 0.8 on SST-2. Table 13: FastFood with nothing learned 0.814.
  built = make_report(
    run_of('sst2', model='gmm_rks', accuracy=0.81),
    run_of('sst2', model='fastfood_fixed_rks', accuracy=0.8, pretrained=None),
    run_of('sst2', model='linformer', accuracy=0.5, comparable=False),
  )
  lines = text.render_table(built).splitlines()
  rows = [' '.join(line.split()) for line in lines[: lines.index('') + 6]]
  assert rows[0] == 'GLUE'
  assert rows[4:7] == [
    'gmm_rks wikitext/wikitext-2 0.81 (0.80)',
    'fastfood_fixed_rks nothing 0.80 (0.81)',
    'linformer wikitext/wikitext-2 0.50',
  ]
  notes = ' '.join(' '.join(lines).split())
  assert 'run with the first seed, the best on the development set' in notes
  assert re.search(r'0\.0001 sst2 \(gmm_rks, fastfood_fixed_rks, linformer\)\.', notes)
  assert 'Not run: mrpc, qqp, mnli, qnli, wnli, rte, cola.' in notes


def test_other_runs_are_not_of_glue():
  assert overview(make_run()) is None
  assert overview(run_of('cola', preset='tiny')) is None
