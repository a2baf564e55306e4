"""Tests of what tells rows of one model and preset apart."""

import json
import re

import pytest
from report_helpers import make_report, make_run, rows_of

from lra_tasks.experiments import LATER_FIELDS, REPETITION
from lra_tasks.reporting import text

CONFIG = {
  'preset': 'tiny*', 'random_seed': 0, 'learning_rate': 0.01, 'warmup': 100, 'tied_weights': False,
  'checkpoint_freq': 10, 'attention': {'num_frequencies': 64, 'features': 'positive'},
}  # fmt: skip


@pytest.fixture
def run_with(tmp_path):
  """Returns a function that makes a run, and its config.json, from what is changed of CONFIG."""
  made = []

  def make(*lacking, **changes):
    folder = tmp_path / f'{len(made)}'
    folder.mkdir()
    made.append(folder)
    config_id = f'{len(made)}'.zfill(12)
    config = {k: v for k, v in {**CONFIG, **changes}.items() if k not in lacking}
    description = {'config': config, 'config_id': config_id}
    (folder / 'config.json').write_text(json.dumps(description))
    accuracy = 0.9 - 0.01 * len(made)  # The order of rows.
    return make_run(folder, preset='tiny*', config_id=config_id, accuracy=accuracy)

  return make


def presets(*runs):
  return [row.preset for row in rows_of(make_report(*runs))]


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'learning_rate': 5e-5}, ['learning_rate=0.01', 'learning_rate=5e-05']),
    (
      {'attention': {'num_frequencies': 32, 'features': 'positive'}},
      ['attention.num_frequencies=64', 'attention.num_frequencies=32'],
    ),
    (
      {'warmup': 5, 'tied_weights': True},
      ['tied_weights=false, warmup=100', 'tied_weights=true, warmup=5'],
    ),
    # Repetitions and presets are no difference.
    (
      {'warmup': 5, 'random_seed': 3, 'checkpoint_freq': 7, 'preset': 'tiny'},
      ['warmup=100', 'warmup=5'],
    ),
  ],
)
def test_fields_that_differ_are_shown(run_with, changes, expected):
  assert presets(run_with(), run_with(**changes)) == [f'tiny* {fields}' for fields in expected]


def test_three_rows_show_all_fields_in_which_they_differ(run_with):
  found = presets(run_with(), run_with(warmup=5), run_with(learning_rate=0.1))
  assert found == [
    'tiny* learning_rate=0.01, warmup=100',
    'tiny* learning_rate=0.01, warmup=5',
    'tiny* learning_rate=0.1, warmup=100',
  ]


def test_config_id_where_fields_do_not_tell(run_with):
  of_ids = ['tiny* (000000)'] * 2
  first = run_with()
  assert presets(first, run_with(learning_rate=1, warmup=1, tied_weights=True)) == of_ids
  assert presets(first, run_with()) == of_ids  # Something else must be different.
  assert presets(first, run_with(checkpoint_freq=3)) == of_ids
  assert presets(first, run_with('warmup', learning_rate=1)) == of_ids  # What was it then?
  missing, damaged, other = (run_with(learning_rate=rate) for rate in (1, 2, 3))
  (missing.path.parent / 'config.json').unlink()
  (damaged.path.parent / 'config.json').write_text('{')
  content = {'config': {**CONFIG, 'learning_rate': 3}, 'config_id': 'of another run'}
  (other.path.parent / 'config.json').write_text(json.dumps(content))
  for run in (missing, damaged, other):
    assert presets(first, run) == of_ids


def test_fields_of_later_versions_have_their_defaults_before(run_with):
  first, later = run_with(), run_with(**LATER_FIELDS, learning_rate=0.1)
  assert presets(first, later) == ['tiny* learning_rate=0.01', 'tiny* learning_rate=0.1']
  changed = run_with(**LATER_FIELDS | {'activation': 'tanh'})
  assert presets(first, changed) == ['tiny* activation=relu', 'tiny* activation=tanh']
  assert not {*LATER_FIELDS} & {*REPETITION}


def test_the_legend_explains_what_is_shown(run_with):
  explained = lambda *runs: {
    sign
    for sign in ('FIELD=VALUE: ', '(…) start of config_id')
    if sign in ' '.join(text.render_table(make_report(*runs)).split())
  }
  assert explained(run_with()) == set()
  assert explained(run_with(), run_with(warmup=5)) == {'FIELD=VALUE: '}
  assert explained(run_with(), run_with()) == {'(…) start of config_id'}


def test_rows_that_are_told_apart_are_no_plain_preset(run_with):
  """Neither for comparisons, nor for the mark of changed fields."""
  schedule = {'factors': 'constant * linear_warmup'}
  runs = [run_with(**schedule), run_with(factors='constant')]
  runs = [make_run(run.path.parent, config_id=run.config_id, learning_rate=1) for run in runs]
  other = make_run('runs/rks', model='prf')
  shown = text.render_table(make_report(*runs, other))
  assert re.search(r'paper factors=constant \* linear_warmup ', shown)
  assert '* preset with fields changed' not in shown
  assert 'gmm_prf − prf' not in shown
