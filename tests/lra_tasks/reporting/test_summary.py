"""Tests of what the report says of several tasks and models together."""

import csv
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import pytest
from report_helpers import make_report, make_run, rows_of

from lra_tasks.paper import PAPER_TASKS
from lra_tasks.reporting import cells as report_cells
from lra_tasks.reporting import figures as report_figures
from lra_tasks.reporting import html as report_html
from lra_tasks.reporting import summary as report_summary
from lra_tasks.reporting import text as report_text
from lra_tasks.reporting.rows import STAND_INS
from lra_tasks.reporting.summary import make_comparisons, make_overviews


def image_run(**changes):
  return make_run(task='image', dataset='image/1.0.0', **changes)


def run_of(model, accuracy, **changes):
  """A run of 10,000 examples in a folder of its own."""
  path = f'runs/{model}_{changes}'
  return make_run(path, model=model, accuracy=accuracy, examples=10_000, **changes)


@pytest.mark.parametrize(
  ('accuracy', 'sign'),
  # 36.96 is published; one point below and above still reproduces it.
  [(0.3596, '≈'), (0.3595, '▼'), (0.3796, '≈'), (0.3797, '▲'), (0.3696, '≈')],
)
def test_verdicts_by_hand(accuracy, sign):
  many = {'accuracy': accuracy, 'examples': 100_000}  # A standard error of 0.15 points.
  (row,) = rows_of(make_report(make_run(**many)))
  assert report_summary.verdict(row) == sign
  (row,) = rows_of(make_report(make_run(**many, comparable=False)))
  assert report_summary.verdict(row) == ''


def verdict_of(*accuracies, examples=2000):
  runs = [make_run(seed=i, accuracy=a, examples=examples) for i, a in enumerate(accuracies)]
  return report_summary.verdict(rows_of(make_report(*runs))[0])


def test_verdicts_go_by_two_standard_errors():
  # Of 2,000 examples: 100 (0.40 · 0.60 / 2000)^(1/2) = 1.0954 points, and of the published figure
  # 100 (0.3696 · 0.6304 / 2000)^(1/2) = 1.0793, together 1.5379, and twice that 3.076.
  assert verdict_of(0.4003) == '≈'  # 3.07 points above 36.96.
  assert verdict_of(0.4005) == '▲'
  assert verdict_of(0.3396) == '≈'  # 3.00 points below, where twice the error is 3.024.
  assert verdict_of(0.3392) == '▼'
  # More seeds do not make more examples.
  assert verdict_of(0.40, 0.40, 0.40) == '≈'
  # Three seeds whose standard deviation is 3 points: 3 / 3^(1/2) = 1.732, and twice that 3.46.
  assert verdict_of(0.37, 0.40, 0.43, examples=100_000) == '≈'
  assert verdict_of(0.38, 0.41, 0.44, examples=100_000) == '▲'
  # Of 8 points 4.62, and twice that 9.24: what is within says nothing.
  assert verdict_of(0.29, 0.37, 0.45, examples=100_000) == '?'
  assert verdict_of(0.42, 0.50, 0.58, examples=100_000) == '▲'


@pytest.mark.parametrize(
  ('preset', 'difference'),
  [('paper', 0.4 - 0.3638), ('tuned', 0.4 - 0.3638), ('lra', 0.4 - 0.3637), ('tiny', None),
   ('paper*', None), ('tuned*', None), ('lra*', None), (None, None)],
)  # fmt: skip
def test_presets_are_held_against_the_figure_that_is_theirs(preset, difference):
  built = make_report(make_run(model='transformer', accuracy=0.4, preset=preset))
  (row,) = rows_of(built)
  assert row.difference == (difference and pytest.approx(difference))
  assert bool(report_summary.verdict(row)) is (difference is not None)
  text = ' '.join(report_text.render_table(built).split())
  assert ('no difference is given' in text) is ('*' in (preset or ''))
  assert re.search(r' 36\.38 (.* )?36\.37 ', text)  # Both figures are shown all the same.
  line = next(csv.DictReader(io.StringIO(report_text.render_csv(built))))
  columns = {'lra': 'difference_to_lra', 'paper': 'difference_to_paper'}
  filled = [name for name in columns.values() if line[name]]
  of_lra = preset == 'lra'
  assert filled == ([] if difference is None else [columns['lra' if of_lra else 'paper']])


def test_text_of_another_length_is_not_held_against_lras_figure():
  text_run = lambda **changes: make_run(
    'b', task='text', dataset='text/1.0.0', model='transformer', accuracy=0.7, **changes
  )
  built = make_report(make_run(model='transformer', preset='lra'), text_run(preset='lra'))
  assert rows_of(built)[0].difference is not None
  (row, *_) = built.tables[1].rows
  assert (row.difference, report_summary.verdict(row)) == (None, '')
  text = ' '.join(report_text.render_table(built).split())
  assert "transformer 37.00 (36.37)≈ 70.00 (64.27) In brackets the figure of LRA's" in text
  reason = 'Text are of inputs of 4,000 bytes; the preset lra has the 1,000'
  assert text.count(reason) == 2  # Under the overview and under the table.
  built = make_report(text_run(preset='paper'))
  assert rows_of(built)[0].difference == pytest.approx(0.7 - 0.6427)
  assert reason not in report_text.render_table(built)


def test_overview_has_the_benchmarks_own_data_and_names_what_was_not_run():
  built = make_report(
    make_run('a', seed=0, accuracy=0.36),
    make_run('b', seed=1, accuracy=0.38),
    image_run(accuracy=0.4),
    make_run('c', model='transformer', accuracy=0.33),
    make_run('d', dataset='other', comparable=False, accuracy=0.9),
    image_run(path='e', model='gmm_rks', preset='tuned'),
  )
  (overview,) = make_overviews(built.tables)
  assert (overview.preset, overview.tasks) == ('paper', ('listops', 'image'))
  assert overview.models == ('gmm_prf', 'transformer')
  assert overview.rows['gmm_prf', 'listops'].accuracy == pytest.approx(0.37)
  assert len(overview.missing) == 4 * 11 - 3
  text = report_text.render_table(built)
  assert re.search(r'gmm_prf +37\.00 ± 1\.41 \(36\.96\)≈ +40\.00 \(39\.94\)≈\n', text)
  assert re.search(r'transformer +33\.00 \(36\.38\)▼ +–\n', text)
  missing = ' '.join(text.split()).partition('Not run: ')[2]
  assert missing.startswith('listops: gmm_rks, fastfood_rks, generative_rks, fastfood_prf, gen')
  assert '; text: gmm_rks, ' in missing
  assert '▼ worse than the published' in text
  assert '± se: standard error' in text


JPEG = {'task': 'image/cifar10_jpeg', 'dataset': 'image/cifar10_jpeg_1', 'comparable': False}


@pytest.mark.parametrize('comparable', [False, True])  # They are not, whatever a file says.
@pytest.mark.parametrize(('task', 'published'), [
  ('image/cifar10_jpeg', 39.94), ('image/cifar10_png', 39.94), ('retrieval/aan_rebuilt', 65.27),
])  # fmt: skip
def test_all_that_stands_in_is_shown_beside_published_figures(task, published, comparable):
  assert task in STAND_INS
  built = make_report(make_run(task=task, dataset=task, comparable=comparable))
  (row,) = rows_of(built)
  assert (row.paper.value, row.difference) == (published, None)
  assert report_summary.verdict(row) == ''
  of_run, *_, of_paper, _ = csv.DictReader(io.StringIO(report_text.render_csv(built)))
  assert (of_run['task'], of_run['comparable'], of_run['difference_to_paper']) == (
    task,
    'false',
    '',
  )
  assert (of_paper['task'], of_paper['dataset']) == (STAND_INS[task], '')


def test_means_are_of_data_of_their_own():
  own = [
    make_run(f'{task}_{model}', task=task, dataset=task, model=model)
    for task in PAPER_TASKS
    for model in ('gmm_prf', 'transformer')
  ]
  (overview,) = make_overviews(make_report(*own, make_run('b', accuracy=0.9, **JPEG)).tables)
  assert len(overview.tasks) == 5
  assert overview.mean('gmm_prf') == overview.mean('transformer') == pytest.approx(0.37)
  assert overview.stood_in == ()
  figure = report_figures.mean_trade_off(overview)
  assert figure.axes[0].get_title() == 'means over listops, text, retrieval, image'
  assert len(circles_of(figure)) == 2
  # Two data sets of one task are no table of several.
  assert make_overviews(make_report(image_run(), make_run('b', **JPEG)).tables) == []


def test_data_that_stand_in_have_a_column_beside_published_figures():
  built = make_report(make_run('a'), make_run('b', accuracy=0.4, **JPEG), image_run(path='c'))
  (overview,) = make_overviews(built.tables)
  assert overview.tasks == ('listops', 'image', 'image/cifar10_jpeg')
  row = built.tables[2].rows[0]
  assert (row.paper.value, row.difference) == (39.94, None)
  assert ' 40.00 (39.94)§\n' in report_text.render_table(built)
  # Alone, they are what was run of the task; means are of the benchmarks' own data.
  (overview,) = make_overviews(make_report(make_run('a'), make_run('b', **JPEG)).tables)
  assert ('gmm_prf', 'image') not in overview.missing
  assert overview.stood_in == (('gmm_prf', 'image'),)
  assert report_figures.mean_trade_off(overview) is None
  assert ('gmm_rks', 'image') in overview.missing
  everywhere = [make_run(task, task=task, dataset=task) for task in PAPER_TASKS if task != 'image']
  (overview,) = make_overviews(make_report(*everywhere, make_run('b', **JPEG)).tables)
  assert len(overview.tasks) == 4
  assert overview.mean('gmm_prf') is None


def test_means_are_of_all_tasks_of_the_paper():
  runs = [
    make_run(f'{task}_{model}', task=task, dataset=f'{task}/1.0.0', model=model, accuracy=accuracy)
    for task, accuracy in zip(PAPER_TASKS, (0.3, 0.6, 0.8, 0.5), strict=True)
    for model in ('gmm_prf', 'transformer')
  ]
  (overview,) = make_overviews(make_report(*runs[:-1]).tables)
  assert overview.mean('gmm_prf') == pytest.approx(0.55)
  assert overview.mean('transformer') is None
  (overview,) = make_overviews(make_report(*runs[:-2]).tables)  # None comes out better so.
  assert overview.mean('gmm_prf') is None


def test_overviews_are_of_presets_as_they_are():
  """Which models have a best rate besides, depends on which rate won."""
  built = make_report(make_run('a'), image_run())
  best = lambda row: dataclasses.replace(row, preset=f'{row.preset}, best rate')
  change = lambda table: dataclasses.replace(table, rows=tuple(map(best, table.rows)))
  tables = list(map(change, built.tables))
  assert len(make_overviews(built.tables)) == 1
  assert make_overviews(tables) == []


def test_one_task_has_no_overview():
  assert make_overviews(make_report(make_run()).tables) == []


def test_comparisons_by_hand():
  built = make_report(
    run_of('gmm_prf', 0.40, seed=0), run_of('prf', 0.37, seed=0),
    run_of('gmm_prf', 0.42, seed=1), run_of('prf', 0.38, seed=1),
    run_of('gmm_prf', 0.47, seed=2), run_of('prf', 0.42, seed=2),
    run_of('gmm_prf', 0.99, seed=3), run_of('prf', 0.10, seed=4),  # Without partners.
    run_of('gmm_rks', 0.30, seed=0, preset='tuned'),
  )  # fmt: skip
  (found,) = make_comparisons(built.tables)
  assert (found.first, found.second, found.task, found.seeds) == (
    'gmm_prf', 'prf', 'listops', (0, 1, 2)
  )  # fmt: skip
  # Differences of 3, 4 and 5 points: mean 4, standard deviation 1, standard error 0.577. That of
  # 10,000 examples is larger: 100 (0.47 · 0.53 / 10⁴ + 0.42 · 0.58 / 10⁴)^(1/2) = 0.702.
  assert found.difference == pytest.approx(4)
  assert found.error == pytest.approx(0.7020, abs=1e-4)
  assert found.answer == 'yes'
  text = report_text.render_table(built)
  assert 'Is a learned kernel better than the Gaussian one?' in text
  assert re.search(r'gmm_prf − prf +listops +paper +accuracy +\+4\.00 +± 0\.70 +0–2 +yes\n', text)


def test_changed_presets_are_not_compared():
  runs = [run_of('gmm_prf', 0.5), run_of('prf', 0.1, preset='paper*')]
  assert make_comparisons(make_report(*runs).tables) == []
  starred = [run_of('gmm_prf', 0.5, preset='paper*'), run_of('prf', 0.1, preset='paper*')]
  assert make_comparisons(make_report(*starred).tables) == []
  assert make_overviews(make_report(*starred, image_run(preset='paper*')).tables) == []


def test_figures_of_rows_with_different_splits():
  built = make_report(make_run(), make_run(model='rks', examples=320, majority_class=0.2))
  (axis,) = report_figures.accuracies(built.tables[0]).axes
  lines = {float(line.get_xdata()[0]) for line in axis.get_lines() if line.get_linestyle() == ':'}
  assert lines == {20.0, 17.1}


def test_seeds_that_disagree_leave_it_open():
  runs = []
  for seed, (a, b) in enumerate([(0.40, 0.30), (0.30, 0.36), (0.40, 0.37)]):
    runs += [run_of('gmm_rks', a, seed=seed), run_of('rks', b, seed=seed)]
  found = make_comparisons(make_report(*runs).tables)[0]
  # Differences of 10, −6 and 3: mean 7 / 3, standard deviation 8.02, standard error 4.63.
  assert (found.difference, found.error) == (pytest.approx(7 / 3), pytest.approx(4.6308, abs=1e-3))
  assert found.answer == 'not clear'
  runs = [run_of(m, a, seed=s) for m, a in (('gmm_rks', 0.2), ('rks', 0.4)) for s in range(3)]
  assert make_comparisons(make_report(*runs).tables)[0].answer == 'no'


@pytest.mark.parametrize(('seeds', 'answer'), [(1, 'one seed'), (2, 'two seeds'), (3, 'yes')])
def test_few_seeds_give_no_answer(seeds, answer):
  models = (('gmm_prf', 0.6), ('prf', 0.4))
  runs = [run_of(model, a, seed=seed) for model, a in models for seed in range(seeds)]
  assert make_comparisons(make_report(*runs).tables)[0].answer == answer


def test_comparisons_say_whose_checkpoint_was_chosen_on_the_test_split():
  for chosen, mark in ((True, '‡'), (False, '')):
    runs = [run_of('gmm_prf', 0.6), run_of('prf', 0.4, validation_is_test=chosen)]
    (sheet,) = report_cells.make_sheets(make_report(*runs)).questions
    assert sheet.rows[0][4] == ('+20.00', mark)


def test_comparisons_are_of_what_the_task_is_judged_by():
  cola = {'task': 'cola', 'judged_by': 'matthews'}
  runs = [
    run_of('gmm_prf', 0.65, seed=seed, matthews=0.12 + seed / 100, **cola) for seed in range(3)
  ] + [run_of('transformer', 0.69, seed=seed, matthews=0.1, **cola) for seed in range(3)]
  (found,) = make_comparisons(make_report(*runs).tables)
  # Two, three and four points. A correlation of 10,000 examples has an error of 1 point at most.
  assert (found.metric, found.difference) == ('matthews', pytest.approx(3))
  assert found.error == pytest.approx(2**0.5)
  assert found.answer == 'yes'
  (sheet,) = report_cells.make_sheets(make_report(*runs)).questions
  assert sheet.rows[0][3].text == 'Matthews correlation'


@pytest.mark.parametrize('chosen', [True, False])
def test_figures_that_evaluations_chose_have_their_error(chosen):
  values = (0.60, 0.62, 0.63, 0.60, 0.60)
  run = run_of('gmm_prf', 0.63, validation_is_test=chosen, judged_by='accuracy')
  first = dataclasses.replace(run, late=tuple(enumerate(values)))
  second = dataclasses.replace(first, path=Path('runs/b/results.json'), model='prf')
  # Of 10,000 examples 0.483 points; the evaluations have a standard deviation of 1.414.
  error = 1.4142 if chosen else 0.4828
  assert report_summary.standard_error(rows_of(make_report(first))[0]) == pytest.approx(
    error, abs=1e-4
  )
  (found,) = make_comparisons(make_report(first, second).tables)
  assert found.error == pytest.approx(2**0.5 * error, abs=1e-4)


@pytest.mark.parametrize(('last', 'mark'), [(0.5, '↘'), (0.58, '')])
def test_runs_that_lost_what_they_had_learnt_have_a_mark(last, mark):
  late = {
    'late': ((2, 0.59), (4, 0.52), (6, last)), 'best_step': 2, 'validation_accuracy': 0.592
  }  # fmt: skip
  built = make_report(dataclasses.replace(run_of('gmm_prf', 0.6), **late), run_of('prf', 0.4))
  sheets = report_cells.make_sheets(built)
  headers = [column.header for column in sheets.tasks[0].columns]
  first = sheets.tasks[0].rows[0]
  assert first[headers.index('ours %')].mark == mark
  assert first[headers.index('last five')].text == f'{100 * (0.59 + 0.52 + last) / 3:.2f}'
  assert sheets.questions[0].rows[0][4].mark == mark
  notes = ' '.join(report_cells.report_notes(built, sheets))
  assert ('accuracy fell after' in notes) == bool(mark)


def test_few_examples_and_other_metrics_are_no_fall():
  run = run_of('gmm_prf', 0.6, validation_accuracy=0.6)
  late = {'late': ((2, 0.6), (4, 0.5)), 'best_step': 2}
  assert dataclasses.replace(run, **late).has_fallen
  # Of 90: 2 (0.6 · 0.4 / 90)^(1/2) = 0.103.
  assert not dataclasses.replace(run, examples=90, **late).has_fallen
  assert not dataclasses.replace(run, judged_by='matthews', matthews=0.1, **late).has_fallen
  assert not run.has_fallen


@pytest.mark.parametrize('best_step', [8, None])  # None: no checkpoint, the last step.
def test_a_training_that_rises_to_its_end_has_not_fallen(best_step):
  late = tuple(enumerate((0.1, 0.2, 0.3, 0.4, 0.6), start=4))
  changes = {'late': late, 'best_step': best_step, 'steps': 8}
  run = run_of('gmm_prf', 0.6, validation_accuracy=0.6)
  assert not dataclasses.replace(run, **changes).has_fallen


@pytest.mark.parametrize(('accuracy', 'mark'), [(0.16, '○'), (0.187, '○'), (0.189, '')])
def test_guesses_have_a_mark(accuracy, mark):
  # The commonest class has 0.171; two standard errors of 2,000 examples are 1.7 points.
  sheets = report_cells.make_sheets(make_report(make_run(accuracy=accuracy)))
  assert sheets.tasks[0].rows[0][2].mark == mark


def circles_of(figure):
  (axis,) = figure.axes
  return {
    c.get_label(): (*map(float, c.get_offsets()[0]), float(c.get_sizes()[0]))
    for c in axis.collections
  }


def two_tasks():
  gib = 2**30
  return make_report(
    make_run('a', accuracy=0.3, peak_memory_bytes=gib, steps_per_second=40.0),
    make_run('b', model='transformer', accuracy=0.4, peak_memory_bytes=3 * gib,
             steps_per_second=10.0),
    image_run(path='c', accuracy=0.5, peak_memory_bytes=2 * gib, steps_per_second=20.0),
    image_run(path='d', model='transformer', accuracy=0.6, peak_memory_bytes=4 * gib,
              steps_per_second=20.0),
    make_run('e', model='rks', accuracy=0.2, peak_memory_bytes=None),
  )  # fmt: skip


def test_circles_are_as_large_as_steps_are_fast():
  built = two_tasks()
  figure = report_figures.trade_off(built.tables[0], 'paper')
  assert circles_of(figure) == {
    'gmm_prf, 4.0 ×': pytest.approx((30, 1, 600)),
    'softmax, 1.0 ×': pytest.approx((40, 3, 150)),
  }
  (overview,) = make_overviews(built.tables)
  assert circles_of(report_figures.mean_trade_off(overview)) == {
    'gmm_prf, 2.0 ×': pytest.approx((40, 1.5, 300)),
    'softmax, 1.0 ×': pytest.approx((50, 3.5, 150)),
  }
  assert report_figures.trade_off(built.tables[0], 'tuned') is None


def test_speeds_of_another_revision_are_in_no_figure():
  run = lambda path, model, **changes: make_run(path, model=model, examples=10_000, **changes)
  runs = [run('a', 'gmm_prf'), run('b', 'transformer'), run('c', 'rks', git_revision='0')]
  others = [
    run(f'{path}2', model, task='image', dataset='image/1.0.0')
    for path, model in (('a', 'gmm_prf'), ('b', 'transformer'), ('c', 'rks'))
  ]
  built = make_report(*runs, *others)
  shown = {'gmm_prf, 1.0 ×', 'softmax, 1.0 ×'}
  assert set(circles_of(report_figures.trade_off(built.tables[0], 'paper'))) == shown
  assert len(circles_of(report_figures.trade_off(built.tables[1], 'paper'))) == 3
  (overview,) = make_overviews(built.tables)
  assert set(circles_of(report_figures.mean_trade_off(overview))) == shown
  built = make_report(*runs[:1], *runs[2:])
  assert report_figures.trade_off(built.tables[0], 'paper') is None


def test_accuracies_stand_beside_published_ones():
  (axis,) = report_figures.accuracies(two_tasks().tables[0]).axes
  assert [text.get_text() for text in axis.get_yticklabels()] == [
    'rks, paper', 'gmm_prf, paper', 'softmax, paper'
  ]  # fmt: skip
  points = {(x, y) for line in axis.get_lines() for x, y in zip(*line.get_data(), strict=True)}
  assert {(30.0, 1), (36.96, 1), (40.0, 2), (36.38, 2), (36.37, 2), (17.1, 0)} <= points


def test_figures_say_what_is_published_for_other_data():
  names = lambda built: [
    text.get_text() for text in report_figures.accuracies(built.tables[0]).legends[0].get_texts()
  ]
  assert names(make_report(make_run())) == ['commonest class', 'ours', 'paper']
  other = make_report(make_run(model='transformer', comparable=False))
  expected = ['commonest class', 'ours', 'paper, § other data', 'LRA, § other data']
  assert names(other) == expected


class Page(html.parser.HTMLParser):
  """Checks that elements are closed, and collects texts and tags."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ('meta',):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_data(self, data):
    self.texts.append(data)


def test_page_has_every_cell_and_figure_and_needs_nothing_else():
  built = two_tasks()
  text = report_html.render_html(built)
  page = Page(text)
  sheets = report_cells.make_sheets(built)
  assert page.tags.count('table') == len(sheets.all) == 4
  assert page.tags.count('svg') == 5  # Figure 1; of each task two.
  for sheet in sheets.all:
    for cell in (cell for row in sheet.rows for cell in row):
      assert not cell.text or cell.text in page.texts
  assert not re.search(r'(src|href)="(?!#)', text)
  assert text == report_html.render_html(built)


def test_page_survives_any_name():
  name = '<b>&"'
  text = report_html.render_html(make_report(make_run(model=name, dataset=name), which='none'))
  assert '<b>' not in text
  assert name in Page(text).texts


def test_a_missing_library_is_named(monkeypatch, capsys):
  from lra_tasks import report

  def missing(_):
    raise ImportError("No module named 'matplotlib'")

  monkeypatch.setitem(report.RENDERERS, 'html', missing)
  for name, value in (('_FORMAT', 'html'), ('_PUBLISHED', 'all'), ('_EXTERNAL', False)):
    monkeypatch.setattr(report, name, type('Flag', (), {'value': value}))
  assert report.main(['report']) == 1
  assert capsys.readouterr().err.endswith('pip install matplotlib\n')
  assert isinstance(report.KEPT, Path)


@pytest.mark.parametrize(('first', 'second', 'mark'), [(0.16, 0.17, '○'), (0.16, 0.4, '')])
def test_two_guesses_do_not_compare(first, second, mark):
  runs = [make_run(model='gmm_prf', accuracy=first), make_run(model='prf', accuracy=second)]
  sheets = report_cells.make_sheets(make_report(*runs))
  assert sheets.questions[0].rows[0][4].mark == mark
