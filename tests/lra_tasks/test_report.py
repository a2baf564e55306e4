"""Tests of lra_tasks.report: figures by hand, every error, every format read back."""

import csv
import doctest
import errno
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from lra_tasks import report

RUN = {
  'task': 'listops',
  'dataset': 'listops/generated:1.0.0',
  'comparable': True,
  'model': 'gmm_prf',
  'preset': 'paper',
  'split': 'test',
  'accuracy': 0.37,
  'loss': 1.7,
  'examples': 2000,
  'majority_class': 0.171,
  'seed': 0,
  'steps': 10_000,
  'best_step': 8000,
  'validation_accuracy': 0.37,
  'validation_is_test': False,
  'eval_samples': 1,
  'parameters': 10_000_000,
  'base_parameters': 10_000_000,
  'parameter_ratio': 1.0,
  'wall_time_seconds': 700.1,
  'steps_per_second': 18.0,
  'peak_memory_bytes': 3 * 2**30,
  'device': '1 x NVIDIA H200',
  'config_id': 'a1b2c3d4e5f6',
  'git_revision': 'abc',
  'versions': {},
}
ROOT = Path(report.__file__).parents[1]


def make_run(**changes):
  """A run as if read from a results.json."""
  path = changes.pop('path', Path(f'runs/{changes.get("seed", 0)}/results.json'))
  modified = changes.pop('modified', 0.0)
  return report.parse_run({**RUN, **changes}, path, modified)


def make_report(*runs, which='matching', external=False, unfinished=()):
  results = report.Results(tuple(runs), tuple(unfinished))
  return report.build_report(results, report.load_published(), which, external)


def write_run(folder, **changes):
  """A finished run on disk; a value of ... leaves the key out."""
  folder.mkdir(parents=True, exist_ok=True)
  values = {key: value for key, value in {**RUN, **changes}.items() if value is not ...}
  path = folder / 'results.json'
  path.write_text(json.dumps(values), encoding='utf-8')
  return path


def make_flags(*arguments):
  values = flags.FlagValues()
  report.define_flags(values)
  values(['report', *map(str, arguments)])
  return values


def run_main(*arguments):
  """Exit code of the command with these arguments, flags among them."""
  values = flags.FlagValues()
  report.define_flags(values)
  argv = values(['report', *map(str, arguments)])
  return report.main(argv, values)


def error_of(capsys, *arguments):
  """The one line that the command leaves when it fails."""
  assert run_main(*arguments) == 1
  out, err = capsys.readouterr()
  assert out == ''
  assert err.count('\n') == 1
  assert err.startswith('error: ')
  return err


def only_row(built):
  rows = [row for row in built.tables[0].rows if row.kind == 'run']
  assert len(rows) == 1
  return rows[0]


# Published figures.


@pytest.mark.parametrize(
  ('task', 'model', 'paper', 'lra'),
  [
    # Checked against the text of the paper (Tables 2 and 5) and LRA's README.
    ('listops', 'gmm_prf', 36.96, None),
    ('listops', 'performer', 36.00, 18.01),
    ('listops', 'random', 10.00, None),
    ('text', 'generative_rks', 66.50, None),
    ('text', 'transformer', 64.27, 64.27),
    ('retrieval', 'fastfood_prf', 71.13, None),
    ('image', 'sparse_transformer', 44.24, 44.24),
    ('pathfinder32', 'performer', None, 77.05),
  ],
)
def test_published_figures(task, model, paper, lra):
  found = report.published_for(report.load_published(), task)[model]
  values = {name: figure.value for name, figure in found.items()}
  assert (values.get('paper'), values.get('lra')) == (paper, lra)


def test_published_failure_has_no_value():
  figure = report.published_for(report.load_published(), 'pathfinder128')['local']['lra']
  assert (figure.value, figure.text) == (None, 'FAIL')


def test_published_sources_are_known_and_unique():
  figures = report.load_published()
  assert {f.source for f in figures} == set(report._COLUMN_OF_SOURCE)
  keys = [(f.source, f.task, f.model) for f in figures]
  assert len(keys) == len(set(keys))


def test_published_external_only_when_asked():
  figures = report.load_published()
  assert 'igloo' not in report.published_for(figures, 'listops')
  found = report.published_for(figures, 'listops', external=True)
  assert found['igloo']['lra'].value == 39.23


def test_published_unknown_task_has_none():
  assert report.published_for(report.load_published(), 'chess') == {}


# Groups and rows.


def test_three_seeds_by_hand():
  # Mean of 36, 37, 38 is 37; squared deviations 1 + 0 + 1 over n - 1 = 2: sd 1.
  row = only_row(
    make_report(
      make_run(seed=2, accuracy=0.36, steps_per_second=10.0, peak_memory_bytes=1),
      make_run(seed=0, accuracy=0.37, steps_per_second=20.0, peak_memory_bytes=3),
      make_run(seed=1, accuracy=0.38, steps_per_second=12.0, peak_memory_bytes=2),
    )
  )
  assert row.accuracy == pytest.approx(0.37)
  assert row.accuracy_sd == pytest.approx(0.01)
  assert row.difference == pytest.approx(0.0004)  # 37 - 36.96
  assert row.seeds == (0, 1, 2)
  assert row.steps_per_second == pytest.approx(14)
  assert row.peak_memory_bytes == 3


def test_one_run_has_no_deviation():
  row = only_row(make_report(make_run()))
  assert row.accuracy_sd is None
  assert '±' not in report.render_table(make_report(make_run()))


@pytest.mark.parametrize('key', ['task', 'dataset', 'split', 'model', 'preset', 'config_id'])
def test_runs_of_different_configs_stay_apart(key):
  groups = report.group_runs([make_run(), make_run(seed=1, **{key: 'other'})])
  assert [len(group.runs) for group in groups] == [1, 1]


def test_repeated_seed_keeps_the_newest_and_says_so():
  built = make_report(
    make_run(path=Path('old/results.json'), modified=1.0, accuracy=0.9),
    make_run(path=Path('new/results.json'), modified=2.0, accuracy=0.3),
    make_run(path=Path('other/results.json'), seed=1, accuracy=0.4),
  )
  assert only_row(built).accuracy == pytest.approx(0.35)
  for text in report.render_table(built), report.render_markdown(built):
    text = ' '.join(text.split())
    assert (
      'gmm_prf paper: seed 0 was run again, which is no independent run. Kept the '
      'newest results.json, in new; left out old (90.00 %).'
    ) in text
  assert 'left out old' in report.render_csv(built)


@pytest.mark.parametrize(('parameters', 'broken'), [(11_000_000, False), (11_000_001, True)])
def test_rule_of_ten_percent(parameters, broken):
  built = make_report(make_run(parameters=parameters))
  assert only_row(built).breaks_rule is broken
  assert ('†' in report.render_table(built)) is broken
  assert ('more than 10 % larger' in report.render_table(built)) is broken


def test_ratio_is_unknown_without_base():
  row = only_row(make_report(make_run(base_parameters=None)))
  assert row.parameter_ratio is None
  assert not row.breaks_rule


@pytest.mark.parametrize('changes', [{'comparable': False}, {'split': 'validation'}])
def test_not_comparable_shows_figures_without_difference(changes):
  built = make_report(make_run(**changes))
  row = only_row(built)
  assert row.paper.value == 36.96
  assert row.difference is None
  text = report.render_table(built)
  assert '36.96§' in text
  assert '10.00§' in text  # Random guessing, too, is published for the full task.
  assert 'Δ' not in text
  assert ('NOT the benchmark' in text) is ('comparable' in changes)


def test_validation_split_that_is_the_test_split_is_comparable():
  row = only_row(make_report(make_run(split='validation', validation_is_test=True)))
  assert row.difference == pytest.approx(0.37 - 0.3696)


def test_unknown_model_and_task_have_no_figures():
  text = report.render_table(make_report(make_run(model='mine', task='chess')))
  assert 'mine' in text
  assert not re.search(r'paper %|LRA %|Δ|published', text)


def test_majority_row():
  built = make_report(make_run(), make_run(model='transformer'))
  rows = [row for row in built.tables[0].rows if row.kind == 'majority']
  assert [(row.accuracy, row.examples) for row in rows] == [(0.171, (2000,))]


def test_different_numbers_of_examples_get_a_column():
  built = make_report(make_run(), make_run(model='transformer', examples=320, majority_class=0.2))
  majority = [row.accuracy for row in built.tables[0].rows if row.kind == 'majority']
  assert majority == [0.171, 0.2]
  assert 'examples' in [c.header for c in report.make_grid(built.tables[0]).columns]
  assert built.tables[0].title == 'listops: accuracy on the test split'


def published_models(built):
  return [row.model for row in built.tables[0].rows if row.kind == 'published']


def test_which_published_rows():
  run = make_run()
  assert published_models(make_report(run)) == ['random']
  assert published_models(make_report(run, which='none')) == []
  everything = published_models(make_report(run, which='all'))
  assert len(everything) == 17  # 18 rows of Table 2 without gmm_prf.
  assert everything[:3] == ['generative_prf', 'bigbird', 'fastfood_prf']
  assert everything[-1] == 'random'
  external = make_report(run, which='all', external=True)
  assert set(published_models(external)) - set(everything) == {'igloo', 'transformer_tlb'}
  assert re.search(r'igloo +external', report.render_table(external))


def test_no_published_figure_with_none():
  text = report.render_table(make_report(make_run(comparable=False), which='none'))
  assert not re.search(r'paper %|LRA %|§|Δ|KL-Transformer', text)


def test_order_of_tables_and_rows():
  built = make_report(
    make_run(task='chess'),
    make_run(task='text'),
    make_run(task='listops'),
    make_run(task='text', model='transformer', accuracy=0.6),
  )
  assert [table.task for table in built.tables] == ['listops', 'text', 'chess']
  assert [row.model for row in built.tables[1].rows] == [
    'transformer',
    'gmm_prf',
    'majority',
    'random',
  ]


def test_configs_of_one_preset_are_told_apart():
  built = make_report(
    make_run(config_id='aaaa01ff'), make_run(config_id='aaaa02ff'), make_run(model='transformer')
  )
  labels = {row.label for row in built.tables[0].rows if row.kind == 'run'}
  assert labels == {'gmm_prf paper (aaaa01)', 'gmm_prf paper (aaaa02)', 'transformer paper'}
  assert 'the start of config_id' in report.render_table(built)


# Notes and marks.

MARKED = {
  '†': [make_run(parameters=12_000_000)],
  '‡': [make_run(validation_is_test=True)],
  '§': [make_run(comparable=False)],
  '¶': [make_run(), make_run(seed=1, device='cpu')],
  '◊': [make_run(), make_run(seed=1, git_revision='def')],
}


@pytest.mark.parametrize('render', [report.render_table, report.render_markdown])
@pytest.mark.parametrize('mark', ['', *MARKED])
def test_each_mark_is_explained_and_no_other(mark, render):
  assert set(MARKED) == set(report._MARKS)
  text = render(make_report(*MARKED.get(mark, [make_run()])))
  assert set(text) & set(MARKED) == set(mark)
  assert not mark or re.search(rf'^(- )?{mark} ', text, re.MULTILINE)


def test_hardware_of_all_rows():
  assert 'Hardware of our rows: 1 x NVIDIA H200.' in report.render_table(make_report(make_run()))


def test_mixed_hardware_is_named_per_row():
  table = make_report(
    make_run(),
    make_run(seed=1, device='cpu'),
    make_run(seed=2),
    make_run(model='transformer', accuracy=0.1, device='cpu'),
  ).tables[0]
  notes = report.table_notes(table)
  assert 'Hardware 1 x NVIDIA H200: gmm_prf paper (seeds 0, 2).' in notes
  assert 'Hardware cpu: gmm_prf paper (seed 1); transformer paper.' in notes


def test_sources_are_named():
  notes = report.table_notes(make_report(make_run(model='transformer')).tables[0])
  assert any(
    note.startswith('paper %: KL-Transformer paper (TMLR 07/2022), Table 2;') for note in notes
  )
  assert 'LRA %: Long Range Arena leaderboard (repository README), current results.' in notes


def test_published_failure_is_shown_and_explained():
  text = report.render_table(make_report(make_run(task='pathfinder128', model='performer')))
  assert re.search(r'performer .* FAIL ', text)
  assert 'FAIL: no better than chance' in ' '.join(text.split())


# Text.

GOLDEN = """\
listops: accuracy on the test split (2,000 examples)
data: listops/generated:1.0.0

model        preset     ours %    ± sd  runs  seeds  paper %      Δ  LRA %
──────────────────────────────────────────────────────────────────────────
gmm_prf      paper       37.00  ± 1.00     3  0–2      36.96  +0.04      –
transformer  lra         35.00             1  0        36.38  -1.38  36.37

majority                 17.10

random       published                                 10.00

model        preset  params  / base   steps  steps/s  peak GiB  samples
───────────────────────────────────────────────────────────────────────
gmm_prf      paper   12.00M  1.200†  10,000    18.00      3.00        1
transformer  lra     999.9k  1.000    5,000    18.00         –        1

paper %: KL-Transformer paper (TMLR 07/2022), Table 2; test split; KL rows
  averaged over 100 stochastic evaluations.
LRA %: Long Range Arena leaderboard (repository README), current results.
Hardware of our rows: 1 x NVIDIA H200.

majority: always answering the commonest class of the split.
± sd: sample standard deviation over the runs of a row.
Δ: our mean minus the paper's figure, in percentage points.
/ base: parameters over those of the base Transformer.
samples: draws of the random features per example in the evaluation.
† more than 10 % larger than the base Transformer: outside LRA's rule for
  like-for-like comparison.
Not finished, left out: runs/b (evaluated up to step 4,000 of 10,000).
"""


def golden_report():
  runs = [
    make_run(seed=seed, accuracy=0.36 + seed / 100, parameters=12_000_000) for seed in range(3)
  ]
  transformer = make_run(
    model='transformer',
    preset='lra',
    accuracy=0.35,
    steps=5000,
    parameters=999_900,
    base_parameters=999_900,
    peak_memory_bytes=None,
  )
  return make_report(
    *runs, transformer, unfinished=[report.Unfinished(Path('runs/b'), 4000, 10_000)]
  )


def test_golden_text():
  assert report.render_table(golden_report(), width=80) == GOLDEN


def test_wide_terminal_gets_one_table():
  text = report.render_table(golden_report(), width=160)
  assert text.count('\nmodel ') == 1
  assert max(map(len, text.splitlines())) <= 160
  assert text == report.render_table(golden_report(), width=160)


def shown_texts(built):
  return {
    cell.text
    for table in built.tables
    for cells in report.make_grid(table).cells
    for cell in cells
    if cell.text
  }


@settings(max_examples=25, deadline=None)
@given(width=st.one_of(st.none(), st.integers(1, 200)))
def test_nothing_is_cut_off_at_any_width(width):
  built = golden_report()
  text = report.render_table(built, width)
  assert '…' not in text
  assert all(cell in text for cell in shown_texts(built))
  if width is not None and width >= 80:
    assert max(map(len, text.splitlines())) <= width


def test_no_control_codes_unless_asked(monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  assert '\x1b' not in report.render_table(golden_report())
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.delenv('NO_COLOR', raising=False)
  assert '\x1b' in report.render_table(golden_report(), 80, color=True)


def test_digits_stay_aligned_beside_marks():
  built = make_report(make_run(validation_is_test=True), make_run(model='transformer'))
  lines = report.render_table(built, 80).splitlines()
  first = next(line for line in lines if line.startswith('gmm_prf'))
  second = next(line for line in lines if line.startswith('transformer'))
  assert first.index('37.00') == second.index('37.00')


@pytest.mark.parametrize(
  ('seeds', 'text'), [([], ''), ([3], '3'), ([1, 0], '0, 1'), ([0, 1, 2, 5], '0–2, 5')]
)
def test_compact_seeds(seeds, text):
  assert report.compact_seeds(seeds) == text


def test_no_negative_zero():
  assert '+0.00' in report.render_table(make_report(make_run(accuracy=0.369599)))


def test_split_columns_by_topic_then_by_width():
  built = golden_report()
  columns = report.make_grid(built.tables[0]).columns
  for most in range(3, 20):
    fits = lambda some, most=most: len(some) <= most
    blocks = report.split_columns(columns, fits)
    values = [[c for c in block if c.block != 'label'] for block in blocks]
    assert list(itertools.chain(*values)) == [c for c in columns if c.block != 'label']
    assert all(block[:2] == list(columns[:2]) for block in blocks)
    assert all(fits(block) for block in blocks)
    assert len(blocks) == 1 or all(len({c.block for c in v}) == 1 for v in values)


# Markdown.


def markdown_tables(text):
  """Cells of the tables, as GitHub divides them."""
  for block in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
    yield [
      [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()
    ]


def check_markdown(text, count):
  tables = list(markdown_tables(text))
  assert len(tables) == count
  for header, rule, *body in tables:
    assert all(re.fullmatch(r':-{2,}|-{2,}:', cell) for cell in rule)
    assert {len(line) for line in (header, rule, *body)} == {len(header)}
  # A table begins and ends with a blank line, or it is none.
  assert all(
    block.startswith('|') == block.rpartition('\n')[2].startswith('|')
    for block in text.strip().split('\n\n')
  )
  return tables


def test_markdown_is_valid_and_complete():
  built = golden_report()
  [table] = check_markdown(report.render_markdown(built), 1)
  assert table[2] == [
    'gmm_prf',
    'paper',
    '37.00',
    '± 1.00',
    '3',
    '0–2',
    '36.96',
    '+0.04',
    '–',
    '12.00M',
    '1.200 †',
    '10,000',
    '18.00',
    '3.00',
    '1',
  ]
  assert [line[0] for line in table[2:]] == ['gmm_prf', 'transformer', 'majority', 'random']


@settings(max_examples=25, deadline=None)
@given(model=st.text(min_size=1), dataset=st.text())
def test_markdown_and_text_survive_any_name(model, dataset):
  built = make_report(make_run(model=model, dataset=dataset), which='none')
  check_markdown(report.render_markdown(built), 1)
  report.render_table(built, 80)


# CSV.


def test_csv_read_back():
  built = golden_report()
  rows = list(csv.DictReader(io.StringIO(report.render_csv(built))))
  ours = [row for row in rows if row['kind'] == 'run']
  expected = [row for row in built.tables[0].rows if row.kind == 'run']
  assert len(ours) == len(expected) == 2
  for got, want in zip(ours, expected, strict=True):
    assert (got['model'], got['preset'], got['config_id']) == (
      want.model,
      want.preset,
      want.config_id,
    )
    assert float(got['accuracy']) == want.accuracy
    assert float(got['difference_to_paper']) == want.difference
    assert int(got['parameters']) == want.parameters[0]
    assert float(got['parameter_ratio']) == want.parameter_ratio
    assert got['breaks_lra_rule'] == ('true' if want.breaks_rule else 'false')
  assert ours[0]['seeds'] == '0 1 2'
  assert float(ours[0]['accuracy_sd']) == pytest.approx(0.01)
  assert ours[1]['accuracy_sd'] == ours[1]['peak_memory_bytes'] == ''
  assert float(ours[1]['published_paper']) == 0.3638
  assert ours[1]['source'] == 'runs/0/results.json'


def test_csv_has_each_published_figure_with_its_source():
  rows = csv.DictReader(io.StringIO(report.render_csv(golden_report())))
  published = [
    (row['model'], row['accuracy'], row['source']) for row in rows if row['kind'] == 'published'
  ]
  paper = 'KL-Transformer paper (TMLR 07/2022), Table 2'
  assert published == [
    ('gmm_prf', '0.3696', paper),
    ('transformer', '0.3638', paper),
    ('transformer', '0.3637', 'Long Range Arena leaderboard (repository README), current results'),
    ('random', '0.1', paper),
  ]


def test_csv_keeps_differing_values():
  built = make_report(make_run(steps=100), make_run(seed=1, steps=90, device='cpu'))
  [row] = [
    row for row in csv.DictReader(io.StringIO(report.render_csv(built))) if row['kind'] == 'run'
  ]
  assert row['steps'] == '90 100'
  assert row['device'] == '1 x NVIDIA H200; cpu'
  assert '90–100' in report.render_table(built)


# Reading, and its errors.


def test_load_finds_runs_below_and_counts_each_once(tmp_path):
  write_run(tmp_path / 'a' / 'seed0')
  write_run(tmp_path / 'a' / 'seed1', seed=1)
  write_run(tmp_path / 'a' / 'seed0' / 'checkpoints' / '10', seed=9)
  (tmp_path / 'link').symlink_to(tmp_path / 'a')
  (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
  found = report.load_results([tmp_path / 'a', tmp_path / 'a/seed1', tmp_path / 'link', tmp_path])
  assert [run.seed for run in found.runs] == [0, 1]
  assert [run.path.parent.name for run in found.runs] == ['seed0', 'seed1']


def test_values_that_may_be_null_or_absent(tmp_path):
  write_run(
    tmp_path,
    preset=None,
    base_parameters=None,
    steps_per_second=None,
    peak_memory_bytes=None,
    git_revision=...,
  )
  text = report.render_table(build_from(tmp_path))
  assert not re.search(r'steps/s|peak|/ base', text)


def build_from(*folders):
  return report.build_report(report.load_results(folders), report.load_published())


def test_no_directory_named(capsys):
  assert 'name the directory of at least one run' in error_of(capsys)


def test_directory_does_not_exist(capsys, tmp_path):
  assert f'{tmp_path}/x: no such directory' in error_of(capsys, tmp_path / 'x')


def test_file_in_place_of_directory(capsys, tmp_path):
  path = write_run(tmp_path)
  assert f'{path}: not a directory' in error_of(capsys, path)


def test_empty_directory_says_where_results_come_from(capsys, tmp_path):
  error = error_of(capsys, tmp_path)
  assert f'{tmp_path}: no results.json' in error
  assert f'lra_tasks.train --config=... --model_dir={tmp_path}' in error


@pytest.mark.parametrize(
  ('metrics', 'config', 'words'),
  [
    (
      '{"step": 200}\n{"step": 400}\n',
      '{"config": {"num_train_steps": 5000}}',
      '(evaluated up to step 400 of 5,000)',
    ),
    ('{"step": 200}\n{"st', '{"num_train_steps": 5000}', '(evaluated up to step 200 of 5,000)'),
    ('{"step": 200}\n[]\n{"x": 1}\n', '{damaged', '(evaluated up to step 200)'),
    ('', '{}', '(not evaluated yet)'),
    (None, '{}', '(not evaluated yet)'),
    ('{"step": 1}', None, '(evaluated up to step 1)'),
  ],
)
def test_unfinished_run_says_how_far_it_got(capsys, tmp_path, metrics, config, words):
  folder = tmp_path / 'runs' / 'a'
  folder.mkdir(parents=True)
  if metrics is not None:
    (folder / 'metrics.jsonl').write_text(metrics)
  if config is not None:
    (folder / 'config.json').write_text(config)
  error = error_of(capsys, tmp_path / 'runs')
  assert f'no finished run: {folder} {words}; results.json is written at the end' in error


def test_unfinished_run_beside_finished_ones_is_a_note(capsys, tmp_path):
  write_run(tmp_path / 'a')
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'config.json').write_text('{}')
  assert run_main(tmp_path) == 0
  assert 'Not finished, left out:' in capsys.readouterr().out
  assert run_main(tmp_path, '--format=csv') == 0
  out, err = capsys.readouterr()
  assert err == f'note: not finished, left out: {tmp_path}/b (not evaluated yet)\n'
  assert 'not finished' not in out


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'damaged JSON: the file is empty'),
    (b'{"task": "listops",', 'damaged JSON: '),
    (b'\xff\xfe', 'damaged: not UTF-8 text'),
    (b'[1]', 'expected a JSON object, got list'),
  ],
)
def test_damaged_file(capsys, tmp_path, content, words):
  path = tmp_path / 'results.json'
  path.write_bytes(content)
  assert f'{path}: {words}' in error_of(capsys, tmp_path)


def test_damaged_json_says_where(capsys, tmp_path):
  (tmp_path / 'results.json').write_text('{\n"task" "listops"}')
  assert "Expecting ':' delimiter: line 2 column 8" in error_of(capsys, tmp_path)


def test_missing_keys_are_named(capsys, tmp_path):
  path = write_run(tmp_path, seed=..., steps=...)
  assert f'{path}: missing keys seed, steps' in error_of(capsys, tmp_path)
  write_run(tmp_path, model=...)
  assert f'{path}: missing key model\n' in error_of(capsys, tmp_path)


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('accuracy', 36.96, 'accuracy is 36.96: expected a fraction between 0 and 1'),
    ('accuracy', float('nan'), 'accuracy is NaN: expected a fraction'),
    ('accuracy', True, 'accuracy is true: expected a fraction'),
    ('accuracy', None, 'accuracy is null: expected a fraction'),
    ('seed', '0', 'seed is "0": expected an integer, not negative'),
    ('seed', 1.5, 'seed is 1.5: expected an integer'),
    ('comparable', 1, 'comparable is 1: expected true or false'),
    ('model', ['gmm'], 'model is ["gmm"]: expected a string'),
    ('base_parameters', 0, 'base_parameters is 0: expected a positive integer'),
    ('steps_per_second', -1, 'steps_per_second is -1: expected a number, not negative'),
    ('peak_memory_bytes', 1.5, 'peak_memory_bytes is 1.5: expected an integer'),
  ],
)
def test_wrong_values_are_named(capsys, tmp_path, key, value, words):
  path = write_run(tmp_path, **{key: value})
  assert f'{path}: {words}' in error_of(capsys, tmp_path)


def test_unreadable_file(capsys, tmp_path):
  (tmp_path / 'results.json').symlink_to(tmp_path / 'gone')
  assert 'results.json: cannot be read: No such file' in error_of(capsys, tmp_path)


def test_unreadable_directory(capsys, tmp_path, monkeypatch):
  def deny(path):
    raise PermissionError(errno.EACCES, 'Permission denied', path)

  monkeypatch.setattr(os, 'scandir', deny)  # File modes do not stop root.
  assert f'{tmp_path}: cannot be read: Permission denied' in error_of(capsys, tmp_path)


# The command.


def test_output_file(capsys, tmp_path, monkeypatch):
  monkeypatch.delenv('COLUMNS', raising=False)
  write_run(tmp_path / 'a')
  target = tmp_path / 'report.md'
  assert run_main(tmp_path, '--format=markdown', f'--output={target}') == 0
  assert capsys.readouterr().out == ''
  check_markdown(target.read_text(encoding='utf-8'), 1)


def test_output_cannot_be_written(capsys, tmp_path):
  write_run(tmp_path / 'a')
  target = tmp_path / 'no' / 'report.md'
  error = error_of(capsys, tmp_path, f'--output={target}')
  assert f'{target}: cannot be written: No such file or directory' in error


@pytest.mark.parametrize('argument', ['--format=html', '--published=some'])
def test_wrong_flag(argument):
  with pytest.raises(flags.IllegalFlagValueError):
    make_flags(argument)


def command(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'lra_tasks.report', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    encoding='utf-8',
    check=False,
    env={**os.environ, 'PYTHONIOENCODING': 'utf-8', **environment},
  )


def test_command_prints_plain_text(tmp_path):
  write_run(tmp_path / 'a')
  done = command(tmp_path, '--published=none', COLUMNS='80')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('listops: accuracy on the test split (2,000 examples)\n')
  assert '\x1b' not in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80


def test_command_where_the_encoding_lacks_characters(tmp_path):
  write_run(tmp_path / 'a')
  done = command(tmp_path, PYTHONIOENCODING='ascii')
  assert (done.returncode, done.stderr) == (0, '')


def test_command_fails_without_traceback(tmp_path):
  done = command(tmp_path)
  assert done.returncode == 1
  assert done.stdout == ''
  assert re.fullmatch(r'error: .*\n', done.stderr)


def test_command_help():
  text = command('--help').stdout
  assert 'beside the published figures' in text
  assert all(f'--{name}' in text for name in ('format', 'output', 'published'))


def test_starts_without_jax():
  code = (
    'import sys, lra_tasks.report; '
    'print({"jax", "numpy", "tensorflow", "matplotlib"} & set(sys.modules))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == 'set()\n'


def test_doctests():
  assert doctest.testmod(report).failed == 0
