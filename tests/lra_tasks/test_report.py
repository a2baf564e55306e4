"""Tests of lra_tasks.report: rows by hand, every mark, every format read back, the command."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_helpers import RUN, make_report, make_run, rows_of

from lra_tasks import report
from lra_tasks.reporting import cells as report_cells
from lra_tasks.reporting import rows as report_rows
from lra_tasks.reporting import text as report_text
from lra_tasks.reporting.published import load_published
from lra_tasks.runs.finding import KEPT, load_results
from lra_tasks.runs.finished import Unfinished

ROOT = Path(report.__file__).parents[1]


# Rows.


def test_three_seeds_by_hand():
  # Mean of 36, 37, 38 is 37; squared deviations 1 + 0 + 1 over n - 1 = 2: sd 1.
  [row] = rows_of(
    make_report(
      make_run(seed=2, accuracy=0.36, steps_per_second=10.0, peak_memory_bytes=1),
      make_run(seed=0, accuracy=0.37, steps_per_second=20.0, peak_memory_bytes=3),
      make_run(seed=1, accuracy=0.38, steps_per_second=12.0, peak_memory_bytes=2),
    )
  )
  assert row.accuracy == pytest.approx(0.37)
  assert row.accuracy_sd == pytest.approx(0.01)
  assert row.difference == pytest.approx(0.0004)  # 37 - 36.96
  assert row.values('seed') == (0, 1, 2)
  assert row.steps_per_second == pytest.approx(14)
  assert row.peak_memory_bytes == 3


def test_a_single_draw_is_shown_beside_the_mean_of_several():
  draws = {'eval_samples': 10, 'accuracy_sd_of_draws': 0.002}
  built = make_report(
    make_run(seed=0, accuracy_of_one_draw=0.35, **draws),
    make_run(seed=1, accuracy_of_one_draw=0.36, **draws),
    make_run('runs/b', model='transformer', accuracy_of_one_draw=0.37),
  )
  assert [row.accuracy_of_one_draw for row in rows_of(built)] == pytest.approx([0.355, 0.37])
  header, *cells = [line.split() for line in report_text.render_table(built).splitlines()[3:6]]
  assert header[-2:] == ['one', 'draw']
  text = report_text.render_table(built)
  assert 'one draw: accuracy with a single draw' in text
  assert re.search(r'gmm_prf .* 10     35\.50\n', text)
  assert re.search(r'transformer .* 1         –\n', text)  # It has no draws.
  (line, _, *_) = csv.DictReader(io.StringIO(report_text.render_csv(built)))
  assert (line['accuracy_of_one_draw'], line['accuracy_sd_of_draws']) == ('0.355', '0.002')
  # Older files do not have it: then neither has the mean.
  assert make_run().accuracy_of_one_draw is None
  [row] = rows_of(make_report(make_run(seed=0, accuracy_of_one_draw=0.3), make_run(seed=1)))
  assert row.accuracy_of_one_draw is None


def test_votes_have_a_column_where_a_run_has_them():
  voting = {'eval_samples': 10, 'voting_accuracy': 0.38}
  built = make_report(
    make_run(seed=0, **voting),
    make_run(seed=1, **voting | {'voting_accuracy': 0.4}),
    make_run('runs/b', model='transformer', seed=2),  # No seed in common: no comparison.
  )
  text = report_text.render_table(built)
  assert 'voting %: accuracy of the class that most' in text
  header, ours, other, *_ = read_markdown(report_text.render_markdown(built))
  assert header[2:5] == ['ours %', '± sd', 'voting %']
  assert (ours[4], other[4]) == ('39.00', '–')
  lines = csv.DictReader(io.StringIO(report_text.render_csv(built)))
  assert [line['voting_accuracy'] for line in lines][:2] == ['0.39', '']
  # Older runs lack it: then so does their mean.
  built = make_report(make_run(seed=0, **voting), make_run(seed=1))
  assert 'voting %' not in report_text.render_table(built)


def test_what_was_not_measured_is_left_out():
  names = ['preset', 'base_parameters', 'steps_per_second', 'peak_memory_bytes', 'git_revision']
  built = make_report(make_run(model='mine', task='chess', **dict.fromkeys(names)))
  text = report_text.render_table(built)
  assert not re.search(r'preset|paper %|LRA %|Δ|published|/ base|steps/s|peak|±', text)
  assert rows_of(built)[0].breaks_lra_rule is None


def test_another_data_set_of_a_task_has_no_published_figures():
  other = make_run(task='text/agnews', dataset='text/agnews_1', comparable=False)
  built = make_report(make_run(task='image'), other, make_run(task='text'), which='all')
  assert [table.task for table in built.tables] == ['text', 'text/agnews', 'image']
  assert [row.kind for row in built.tables[1].rows] == ['run', 'majority']


@pytest.mark.parametrize('changes', [{'comparable': False}, {'split': 'validation'}])
def test_not_comparable_shows_figures_without_difference(changes):
  built = make_report(make_run(**changes))
  text = report_text.render_table(built)
  assert '36.96§' in text
  assert '10.00§' in text  # Random guessing, too, is published for the full task.
  assert 'Δ' not in text
  assert ('NOT the benchmark' in text) is ('comparable' in changes)
  built = make_report(make_run(**changes | {'comparable': True, 'validation_is_test': True}))
  assert rows_of(built)[0].difference == pytest.approx(0.37 - 0.3696)


def test_different_numbers_of_examples_get_a_column():
  built = make_report(make_run(), make_run(model='transformer', examples=320, majority_class=0.2))
  assert [row.accuracy for row in rows_of(built, 'majority')] == [0.2, 0.171]
  assert 'examples' in [
    column.header for column in report_cells.task_sheet(built.tables[0]).columns
  ]
  assert report_cells.title_lines(built.tables[0])[0] == 'listops: accuracy on the test split'


def test_which_published_rows():
  models = lambda **options: [
    row.model for row in rows_of(make_report(make_run(), **options), 'published')
  ]
  assert models() == ['random']
  none = report_text.render_table(make_report(make_run(comparable=False), which='none'))
  assert not re.search(r'published|paper %|LRA %|§|Δ|KL-Transformer', none)
  everything = models(which='all')
  assert len(everything) == 17  # 18 rows of Table 2 without gmm_prf.
  assert everything[:3] == ['generative_prf', 'bigbird', 'fastfood_prf']
  assert everything[-1] == 'random'
  external = set(models(which='all', external=True))
  assert external - set(everything) == {'igloo', 'transformer_tlb'}


def test_order_of_tables_and_rows():
  built = make_report(
    make_run(task='chess'),
    make_run(task='text'),
    make_run(task='listops'),
    make_run(task='text', model='transformer', accuracy=0.6),
  )
  assert [table.task for table in built.tables] == ['listops', 'text', 'chess']
  models = [row.model for row in built.tables[1].rows]
  assert models == ['transformer', 'gmm_prf', 'majority', 'random']


# Notes and marks.

MARKED = {
  '†': [make_run(parameters=11_000_001)],
  '‡': [make_run(validation_is_test=True)],
  '§': [make_run(comparable=False)],
  '¶': [make_run(), make_run(seed=1, device='cpu')],
  '◊': [make_run(), make_run(seed=1, git_revision='def')],
  '‖': [make_run(), make_run(model='rks'), make_run(model='transformer', git_revision='def')],
  '*': [make_run(preset='paper*')],
  '(…)': [make_run(config_id='aaaa01ff'), make_run(config_id='aaaa02ff')],
}


@pytest.mark.parametrize('render', [report_text.render_table, report_text.render_markdown])
@pytest.mark.parametrize('mark', ['', *MARKED])
def test_each_mark_is_explained_and_no_other(mark, render):
  text = render(make_report(*MARKED.get(mark, [make_run(parameters=11_000_000)])))
  legend = re.findall(r'^(?:- )?\\?([†‡§¶‖◊*]|\(…\)) ', text, re.MULTILINE)
  assert legend == [mark] * bool(mark)
  assert set(text) & set('†‡§¶‖◊') == set(mark) - set('*(…)')


def test_rows_of_another_revision_than_most_are_marked():
  revisions = lambda *of_rows: [
    make_run(f'{i}/{j}', model=f'm{i}', seed=j, git_revision=revision, accuracy=0.9 - i / 10)
    for i, row in enumerate(of_rows)
    for j, revision in enumerate(row)
  ]
  marked = lambda *of_rows: [r.other_revision for r in rows_of(make_report(*revisions(*of_rows)))]
  assert marked('a', 'b', 'a') == [False, True, False]
  assert marked('aa', 'ab', 'a') == [False, True, False]  # A row of two revisions.
  assert marked([None], [None]) == [False, False]
  assert marked('a', 'a', [None]) == [False, False, True]
  assert marked('a', 'b') == [True, True]  # Neither is that of most.
  assert marked('a') == [False]
  text = report_text.render_table(make_report(*revisions('a', 'b', 'a')))
  assert re.search(r'm1 .* 18\.00‖ +3\.00‖ ', text)
  assert re.search(r'm0 .* 18\.00 +3\.00 ', text)


def test_presets_are_told_apart():
  runs = [*MARKED['(…)'], make_run(preset='paper*', accuracy=0.1), make_run(model='transformer')]
  labels = [row.label for row in rows_of(make_report(*runs))]
  first = ['gmm_prf paper (aaaa01)', 'gmm_prf paper (aaaa02)', 'transformer paper']
  assert labels == [*first, 'gmm_prf paper*']


def test_notes_name_sources_hardware_and_repeated_seeds():
  built = make_report(
    make_run(),
    make_run(path='old', seed=1, accuracy=0.9, device='cpu'),
    make_run(path='new', seed=1, modified=1.0, device='cpu'),
    make_run(seed=2),
    make_run(model='transformer', accuracy=0.1, device='cpu'),
  )
  assert report_cells.table_notes(built.tables[0]) == [
    'paper %: KL-Transformer paper (TMLR 07/2022), Table 2; test split; KL rows averaged over 100 '
    'stochastic evaluations.',
    'LRA %: Long Range Arena leaderboard (repository README), current results.',
    'Hardware 1 x NVIDIA H200: gmm_prf paper (seeds 0, 2).',
    'Hardware cpu: gmm_prf paper (seeds 1); transformer paper.',
    'gmm_prf paper: seed 1 was run again, which is no independent run. Kept the newest '
    'results.json, in new; left out old (90.00 %).',
  ]
  assert rows_of(built)[0].accuracy == pytest.approx(0.37)
  assert 'left out old' in report_text.render_csv(built)


def test_published_failure_is_shown_and_explained():
  text = report_text.render_table(make_report(make_run(task='pathfinder128', model='performer')))
  assert re.search(r'performer .* FAIL ', text)
  assert 'FAIL: no better than chance' in ' '.join(text.split())


# Formats.

GOLDEN = """\
listops: accuracy on the test split (2,000 examples)
data: listops/1.0.0

model        preset     ours %    ± sd  runs  seeds  paper %              Δ  LRA %  params  / base   steps  steps/s  peak GiB  samples
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
gmm_prf      paper       37.00  ± 1.00     3  0–2      36.96  +0.04 ± 1.5 ≈      –  12.00M  1.200†  10,000    18.00      3.00        1
transformer  lra         36.38       –     1  0        36.38  +0.01 ± 1.5 ≈  36.37  999.9k  1.000    5,000    18.00         –        1

majority                 17.10

random       published                                 10.00

paper %: KL-Transformer paper (TMLR 07/2022), Table 2; test split; KL rows
  averaged over 100 stochastic evaluations.
LRA %: Long Range Arena leaderboard (repository README), current results.
Hardware of our rows: 1 x NVIDIA H200.

majority: always answering the commonest class of the split.
± sd: sample standard deviation over the runs of a row.
Δ: our mean minus the published figure, in percentage points: the paper's for
  the presets paper and tuned, LRA's for lra; ± its standard error, in which the
  published figure has that of so many examples. Ours is the largest of that
  over the seeds, that of so many examples and, where evaluations chose the
  checkpoint, that of the last five; of one seed it says nothing of others.
LRA %: with LRA's own sizes and schedules; rows of the preset lra alone are held
  against it.
/ base: parameters over those of the base Transformer.
samples: draws of the random features per example in the evaluation.
† more than 10 % larger than the base Transformer: outside LRA's rule for
  like-for-like comparison.
≈ not told apart from the published figure: within 1 point or two standard
  errors of the difference.
Not finished, left out: runs/b (evaluated up to step 4,000 of 10,000).
"""  # noqa: E501


def golden_report():
  ours = [make_run(seed=s, accuracy=0.36 + s / 100, parameters=12_000_000) for s in range(3)]
  transformer = make_run(
    model='transformer', preset='lra', accuracy=0.363799, steps=5000, parameters=999_900,
    base_parameters=999_900, peak_memory_bytes=None,
  )  # fmt: skip
  pending = Unfinished(Path('runs/b'), 4000, 10_000)
  return make_report(*ours, transformer, unfinished=[pending])


def test_golden_text():
  assert report_text.render_table(golden_report()) == GOLDEN


def read_markdown(text):
  """Cells of the one table, as GitHub divides them."""
  [block] = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
  header, rule, *body = [
    [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()
  ]
  assert all(re.fullmatch(r':-{2,}|-{2,}:', cell) for cell in rule)
  assert {len(line) for line in (rule, *body)} == {len(header)}
  assert f'\n\n{block}\n' in text  # A table begins and ends with a blank line, or it is none.
  return [header, *body]


def test_markdown_has_the_cells_of_the_text():
  cells = lambda line: re.split(r' {2,}', line.strip())
  header, first, second, *_ = read_markdown(report_text.render_markdown(golden_report()))
  lines = GOLDEN.splitlines()
  assert (header, first, second) == (cells(lines[3]), cells(lines[5]), cells(lines[6]))


@pytest.mark.parametrize('name', ['a|b', 'a\\', 'a\n\n| b', '<b>`*[', ''])
def test_markdown_and_text_survive_any_name(name):
  built = make_report(make_run(model=f'm{name}', dataset=name), which='none')
  assert len(read_markdown(report_text.render_markdown(built))) == 3
  assert report_text.render_table(built)


def test_csv_read_back():
  built = golden_report()
  lines = list(csv.DictReader(io.StringIO(report_text.render_csv(built))))
  first, second, majority, *published = lines
  assert [line['kind'] for line in lines] == ['run'] * 2 + ['majority'] + ['published'] * 4
  for line, row in zip((first, second), rows_of(built), strict=True):
    names = ('accuracy', 'parameter_ratio', 'steps_per_second')
    assert [float(line[name]) for name in names] == [getattr(row, name) for name in names]
    assert (line['task'], line['model'], line['config_id']) == (
      'listops',
      row.model,
      'a1b2c3d4e5f6',
    )
  assert (first['runs'], first['seeds'], first['breaks_lra_rule']) == ('3', '0 1 2', 'true')
  assert float(first['accuracy_sd']) == pytest.approx(0.01)
  differences = lambda line: (line['difference_to_paper'], line['difference_to_lra'])
  assert differences(first) == (str(rows_of(built)[0].difference), '')
  assert differences(second) == ('', str(rows_of(built)[1].difference))
  assert (second['accuracy_sd'], second['peak_memory_bytes'], second['seeds']) == ('', '', '0')
  assert (second['published_paper'], second['published_lra']) == ('0.3638', '0.3637')
  assert (second['comparable'], second['preset']) == ('true', 'lra')
  assert [line['changed'] for line in (first, second, majority)] == ['false', 'false', '']
  assert second['source'] == 'runs/a/results.json'
  assert (majority['accuracy'], majority['comparable'], majority['runs']) == ('0.171', '', '')
  paper = 'KL-Transformer paper (TMLR 07/2022), Table 2'
  leaderboard = 'Long Range Arena leaderboard (repository README), current results'
  assert [(line['model'], line['accuracy'], line['source']) for line in published] == [
    ('gmm_prf', '0.3696', paper),
    ('transformer', '0.3638', paper),
    ('transformer', '0.3637', leaderboard),
    ('random', '0.1', paper),
  ]


@pytest.mark.parametrize('changes', [{'comparable': False}, {'preset': 'paper*'}])
def test_csv_has_no_difference_where_figures_do_not_compare(changes):
  built = make_report(make_run(**changes))
  line = next(csv.DictReader(io.StringIO(report_text.render_csv(built))))
  assert (line['published_paper'], line['preset']) == ('0.3696', 'paper')
  assert (line['difference_to_paper'], line['difference_to_lra']) == ('', '')
  assert (line['comparable'], line['changed']) == (
    ('true', 'true') if 'preset' in changes else ('false', 'false')
  )


def test_differing_values_are_kept():
  built = make_report(make_run(steps=100), make_run(seed=1, steps=90, device='cpu'))
  line = next(csv.DictReader(io.StringIO(report_text.render_csv(built))))
  assert (line['steps'], line['device']) == ('90 100', '1 x NVIDIA H200; cpu')
  assert '90–100' in report_text.render_table(built)


# The command.


@pytest.fixture
def folder(tmp_path):
  """One finished run and one that is not."""
  for name, file in ('a', 'results.json'), ('b', 'config.json'):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text(json.dumps(RUN))
  return tmp_path


def command(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'lra_tasks.report', *map(str, arguments)], cwd=ROOT,
    capture_output=True, text=True, encoding='utf-8', check=False,
    env={**os.environ, 'PYTHONIOENCODING': 'utf-8', **environment},
  )  # fmt: skip


def test_command_where_the_encoding_lacks_characters(folder):
  done = command(folder, PYTHONIOENCODING='ascii')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('listops: accuracy on the test split (2,000 examples)\n')
  assert f'Not finished, left out: {folder}/b (not' in ' '.join(done.stdout.split())


def test_command_help():
  text = command('--help').stdout
  assert 'beside the published figures' in text
  assert 'published figures do not compare, and differences are empty' in ' '.join(text.split())
  assert all(f'--{name}' in text for name in ('format', 'output', 'published', '[no]external'))


def test_errors_are_one_line(capsys):
  assert report.main(['report', 'nowhere']) == 1
  out, err = capsys.readouterr()
  assert out == ''
  assert re.fullmatch(r'error: nowhere: No such file or dir.*\n', err)


def test_the_runs_of_the_package_are_the_default():
  title = r'^(\S+): accuracy on the (?:test split|development set)'
  assert set(re.findall(title, command().stdout, re.M)) == {
    run.task for run in load_results([KEPT]).runs
  }


def test_damaged_runs_are_named_beside_the_others(folder):
  (folder / 'c').mkdir()
  (folder / 'c' / 'config.json').write_text('')
  done = command(folder)
  words = ' '.join(done.stdout.split())
  assert (done.returncode, done.stderr) == (0, '')
  assert f'Damaged, left out: {folder}/c/config.json: damaged JSON: ' in words
  assert words.endswith('; move the run away, or restore the file.')
  done = command(folder, '--format=csv')
  assert f'note: damaged, left out: {folder}/c/config.json: damaged JSON: ' in done.stderr
  assert done.stdout.count('\nrun,') == 1
  done = command(folder / 'c')
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr.startswith(f'error: {folder}/c/config.json: damaged JSON: ')


def test_output_file_and_unfinished_runs_beside_csv(folder):
  done = command(folder, '--format=csv', f'--output={folder}/report.csv')
  note = f'note: not finished, left out: {folder}/b (not evaluated yet)\n'
  assert (done.returncode, done.stdout, done.stderr) == (0, '', note)
  assert (folder / 'report.csv').read_text().startswith('kind,task,')
  done = command(folder, f'--output={folder}/no/report')
  error = f'error: {folder}/no/report: No such file or directory\n'
  assert (done.returncode, done.stdout, done.stderr) == (1, '', error)


def test_starts_without_jax():
  code = 'import sys, lra_tasks.report; print({"jax", "numpy", "tensorboardX"} & set(sys.modules))'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == 'set()\n'


# The pages that show the results that come with the package.


def test_pages_show_the_results_that_come_with_the_package():
  """After new ones: `python -m lra_tasks.report --format=markdown --output=docs/results.md`."""
  built = report_rows.build_report(
    load_results([KEPT]), load_published(), 'matching', external=False
  )
  text = report_text.render_markdown(built)
  assert (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8') == text
  overview = next(part for part in text.split('\n\n') if part.startswith('| model'))
  assert overview in (ROOT / 'README.md').read_text(encoding='utf-8')
