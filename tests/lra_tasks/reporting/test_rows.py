"""Tests of rows of several learning rates, of tasks other than GLUE's."""

import csv

import pytest
from report_helpers import make_report, make_run, rows_of

from lra_tasks.reporting import text


def run_of(rate, validation, accuracy, seed=0, preset='tiny*', **changes):
  return make_run(
    f'runs/{rate}_{seed}_{changes}', learning_rate=rate, validation_accuracy=validation,
    accuracy=accuracy, seed=seed, preset=preset, rates_id=changes.pop('rates_id', 'r'),
    config_id=f'{rate}{preset}', **changes,
  )  # fmt: skip


def labels(built):
  return [row.preset for row in rows_of(built)]


def test_the_rate_is_chosen_on_validation_not_on_test():
  built = make_report(run_of(0.1, 0.30, 0.60), run_of(0.01, 0.50, 0.40))
  (table,) = built.tables
  assert labels(built) == ['tiny*, best rate']
  assert rows_of(built)[0].accuracy == 0.40
  assert [row.runs[0].learning_rate for row in table.passed_over] == [0.1]
  lines = [' '.join(line.split()) for line in text.render_table(built).splitlines()]
  header = next(line for line in lines if line.startswith('model'))
  assert ' rate ' in header
  place = lines.index('listops: learning rates')
  assert lines[place + 1] == 'accuracy on validation'
  assert lines[place + 3] == 'model preset 0.1 0.01 seeds'
  assert lines[place + 5] == 'gmm_prf tiny*, best rate 0.300 0.500 0'
  rows = [r for r in csv.DictReader(text.render_csv(built).splitlines()) if r['kind'] == 'run']
  assert [(row['learning_rate'], row['preset'], row['changed']) for row in rows] == [
    ('0.01', 'tiny', 'true'), ('0.1', 'tiny', 'true')
  ]  # fmt: skip


@pytest.mark.parametrize('preset', ['paper', 'tuned', 'lra', 'tiny'])
def test_a_preset_that_was_run_as_it_is_keeps_its_row(preset):
  own = run_of(0.05, 0.4, 0.37, preset=preset)
  starred = [run_of(rate, score, 0.5, preset=f'{preset}*') for rate, score in ((1, 0.45), (2, 0.1))]
  built = make_report(own, *starred)
  best, plain = rows_of(built)
  assert (best.preset, best.runs[0].learning_rate) == (f'{preset}, best rate', 1)
  assert [rate.learning_rate for rate in best.rates] == [2, 1, 0.05]
  assert (plain.preset, plain.rates) == (preset, ())
  assert best.difference is None  # Another experiment than the published one.
  assert (plain.difference is not None) is (preset in ('paper', 'tuned'))  # LRA has no gmm_prf.
  shown = [line.split() for line in text.render_table(built).splitlines() if 'gmm_prf' in line]
  assert '0.05' in shown[1]
  assert len(built.tables[0].passed_over) == 1


def test_a_preset_whose_own_rate_is_the_best_is_one_row():
  own = run_of(0.05, 0.4, 0.37, preset='paper')
  built = make_report(own, run_of(1, 0.3, 0.6, preset='paper*'))
  (row,) = rows_of(built)
  assert (row.preset, row.accuracy) == ('paper', 0.37)
  assert row.difference == pytest.approx(0.37 - 0.3696)
  assert [rate.learning_rate for rate in row.rates] == [1, 0.05]
  words = ' '.join(text.render_table(built).split())
  assert "gmm_prf paper: of the learning rates that were run with most seeds, the preset's" in words
  assert 'listops: learning rates' in words
  assert 'best rate:' not in words


def test_seeds_of_the_chosen_rate_are_one_row():
  """As a sweep with --try makes them: the other rates have the first seed alone."""
  chosen = [run_of(0.01, 0.50 - seed / 10, 0.4, seed) for seed in range(3)]
  built = make_report(run_of(0.1, 0.30, 0.60), run_of(1.0, 0.45, 0.7), *chosen)
  (row,) = rows_of(built)
  assert (row.preset, row.values('seed')) == ('tiny*, best rate', (0, 1, 2))
  assert [rate.score for rate in row.rates] == [0.45, 0.3, 0.5]  # Of the seed that all have.


def test_rates_of_different_experiments_do_not_compete():
  built = make_report(
    run_of(0.1, 0.3, 0.60), run_of(0.01, 0.5, 0.40), run_of(0.2, 0.9, 0.9, rates_id='other')
  )
  assert labels(built) == ['tiny*', 'tiny*, best rate']
  # Nor those without a score on validation: an older results.json.
  built = make_report(run_of(0.1, None, 0.60), run_of(0.01, 0.5, 0.40))
  assert labels(built) == ['tiny* (0.1tin)', 'tiny* (0.01ti)']
