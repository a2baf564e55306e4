import collections
import json
import math
import shutil
import statistics

import jax
import numpy as np
import pytest
from absl import flags
from report_helpers import RUN
from run_helpers import read, run_here, save_altered

from kl_flax.predictor import Predictor
from kl_flax.votes import Vote
from lra_tasks import variance
from lra_tasks.analysis import variance_measures
from lra_tasks.analysis.variance_figures import draw_correlations, draw_metrics, r_squared
from lra_tasks.analysis.variance_measures import Variance, measure
from lra_tasks.data import listops


class Scripted:
  """Votes that are known beforehand: example i has row i of them."""

  def __init__(self, votes, log_odds):
    self.votes, self.log_odds = np.array(votes, np.int32), np.array(log_odds, float)

  def vote(self, inputs, samples, *, encoded):
    assert encoded
    rows = np.array(inputs)
    votes = self.votes[rows]
    assert (votes.sum(axis=1) == samples).all()
    probabilities = np.zeros(votes.shape, np.float32)
    return Vote(votes.argmax(axis=1), probabilities, votes, self.log_odds[rows])


def test_metrics_by_hand():
  votes = [[4, 0], [1, 3], [3, 1], [2, 2]]
  log_odds = [[1, 1, 1, 1], [3, 1, 1, -1], [1, 1, 1, -1], [2, 2, -1, 1]]
  predictor = Scripted(votes, log_odds)
  found = measure(predictor, zip(range(4), [0, 1, 1, 0], strict=True), 4)
  # Right draws: 4, 3, 1, 2 of 4; majorities 0, 1, 0 and, of equals, 0.
  assert found['accuracy'] == pytest.approx(10 / 16)
  assert found['voting_accuracy'] == pytest.approx(3 / 4)
  assert found['inconsistency'] == pytest.approx((0 + 1 + 1 + 2) / 16)
  # Standard deviations 0, 2^(1/2), 3^(1/2) / 2, 1.5^(1/2); means 1, 1, 1/2, 1.
  deviations = [0, 2**0.5, 3**0.5, 1.5**0.5]
  assert found['mean_deviation'] == pytest.approx(np.mean(deviations))
  assert found['median_deviation'] == pytest.approx((1.5**0.5 + 2**0.5) / 2)


def test_chunks_make_no_difference(monkeypatch):
  random = np.random.default_rng(0)
  first = random.integers(0, 6, 11)
  predictor = Scripted(np.stack([first, 5 - first], 1), random.normal(size=(11, 5)))
  examples = list(zip(range(11), random.integers(0, 2, 11), strict=True))
  whole = measure(predictor, examples, 5)
  monkeypatch.setattr(variance_measures, '_CHUNK', 4)
  parts = measure(predictor, examples, 5)
  assert parts == pytest.approx(whole)
  with pytest.raises(ValueError, match='there is no example'):
    measure(predictor, [], 5)


def result(model, seed, rsd, pi, gain, task='text'):
  return Variance(model, 'paper', seed, task, 'test', 9, 100, 0.6, 0.6 * gain, pi, rsd, 2 * rsd)


FOUND = [
  result('gmm_prf', 0, 0.1, 0.02, 1.01),
  result('gmm_rks', 0, 0.2, 0.04, 1.02),
  result('fastfood_prf', 1, 0.3, 0.06, 1.04),
]


def test_correlations_by_hand():
  # Of 1, 2, 3 and 1, 2, 4: covariance 1.5, variances 1 and 7/3: 2.25 / (7/3).
  assert r_squared([1, 2, 3], [1, 2, 4]) == pytest.approx(2.25 * 3 / 7)
  assert np.isnan(r_squared([1, 1], [1, 2]))
  titles = [axis.get_title() for axis in draw_correlations(FOUND).axes]
  assert titles == ['R² = 0.96', 'R² = 0.96', 'R² = 1.00']


def test_points_are_the_metrics():
  heights = [[line.get_ydata()[0] for line in axis.lines] for axis in draw_metrics(FOUND).axes]
  assert heights == [
    pytest.approx([0.1, 0.2, 0.3]),
    pytest.approx([2, 4, 6]),
    pytest.approx([1.01, 1.02, 1.04]),
    pytest.approx([60.6, 61.2, 62.4]),
  ]


def test_the_most_accurate_run_of_a_model_is_filled():
  worse = result('gmm_prf', 1, 0.1, 0.02, 1.0)
  axis = draw_metrics([*FOUND, worse]).axes[3]
  filled = [line.get_markerfacecolor() != 'none' for line in axis.lines]
  assert filled == [True, True, True, False]
  places = [line.get_xdata()[0] for line in axis.lines]
  assert places == pytest.approx([0.175, 1, 2, -0.175])


def test_files_of_each_task(tmp_path):
  others = [result('gmm_prf', 0, 0.1, 0.02, 1.0, task='listops')]
  paths = variance.write(FOUND + others, str(tmp_path / 'out'))
  assert [path.name for path in paths] == [
    'variance.json', 'variance_text.png', 'correlations_text.png'
  ]  # fmt: skip
  runs = json.loads(paths[0].read_text())['runs']
  assert len(runs) == 4
  assert runs[2]['gain'] == pytest.approx(1.04)


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
  monkeypatch.setattr(variance, 'set_up_logging', lambda: None)


def run(capsys, *arguments):
  """Exit code, output and errors of the command with these arguments."""
  values = flags.FlagValues()
  variance.define_flags(values)
  code = variance.main(values(['variance', *map(str, arguments)]), values)
  return code, *capsys.readouterr()


def test_a_trained_run_is_measured(capsys, shared, reference, tmp_path):
  options = ['--samples=3', '--limit=40', f'--data_dir={shared}/data', f'--out={tmp_path}']
  code, out, err = run(capsys, reference, *options)
  assert code == 0, err
  assert '3 draws of each of 40 examples (test split)' in out
  (found,) = read(tmp_path, 'variance.json')['runs']
  assert (found['examples'], found['samples']) == (40, 3)
  names = ['accuracy', 'voting_accuracy', 'inconsistency', 'median_deviation', 'mean_deviation']
  predictor = Predictor.restore(str(reference))
  data = listops.ListOpsData(**read(reference, 'config.json')['config']['data'])
  builder = listops.make_builder(data, data_dir=f'{shared}/data')
  records = [builder.as_data_source('test')[i] for i in range(40)]
  draws = draws_of(predictor, 3)
  rows = [by_hand(draws(record['inputs']), record['target']) for record in records]
  right, voted, inconsistent, deviations = zip(*rows, strict=True)
  expected = [statistics.fmean(values) for values in (right, voted, inconsistent, deviations)]
  expected.append(statistics.median(deviations))
  names = ['accuracy', 'voting_accuracy', 'inconsistency', 'mean_deviation', 'median_deviation']
  assert [found[name] for name in names] == pytest.approx(expected, rel=1e-3)


def draws_of(predictor, num_draws):
  """Return a function from ids to probabilities of each draw, from the model as it is."""
  apply, length = jax.jit(predictor.model.apply), predictor.model.encoder.max_length

  def draws(ids):
    padded = np.pad(ids.astype(np.int32), (0, length - len(ids)))[None]
    mask, found = np.arange(length)[None] < len(ids), []
    for draw in range(num_draws):
      key = jax.random.fold_in(predictor.spectral_key, draw)
      (logits,) = apply({'params': predictor.params}, padded, mask, rngs={'spectral': key})
      odds = [math.exp(logit) for logit in logits.tolist()]
      found.append([value / sum(odds) for value in odds])
    return found

  return draws


def by_hand(probabilities, target):
  """Return share of right draws, right vote, PI and RSD of an example, as the paper has them."""
  predicted = [row.index(max(row)) for row in probabilities]
  counts = collections.Counter(predicted)
  # Of equals, the class that is more probable on average.
  winner = max(counts, key=lambda c: (counts[c], sum(row[c] for row in probabilities)))
  log_odds = [math.log(row[winner] / (1 - row[winner])) for row in probabilities]
  return (
    predicted.count(target) / len(predicted),
    winner == target,
    1 - counts[winner] / len(predicted),
    statistics.pstdev(log_odds) / abs(statistics.fmean(log_odds)),
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'name the directory of at least one run'),
    (['x', '--split=all'], "--split must be train, validation or test, got 'all'"),
    (['x', '--samples=1'], '--samples must be at least 2, got 1'),
    (['x', '--limit=0'], '--limit must be at least 1, got 0'),
    (['nowhere'], 'nowhere holds no trained model'),
  ],
)
def test_errors_name_the_value_and_the_rule(capsys, arguments, message):
  code, out, err = run(capsys, *arguments)
  assert (code, out) == (1, '')
  assert err.startswith(f'error: {message}')


def test_the_evaluation_of_a_run_tells_the_same(capsys, shared, reference, tmp_path):
  """From its results alone, as they are kept, and by predicting with its checkpoint."""
  shutil.copytree(reference, tmp_path / 'run')
  assert run_here(shared, tmp_path / 'run', test_only=True, eval_samples=3) == 0
  kept = tmp_path / 'kept'
  kept.mkdir()
  for name in ('config.json', 'results.json'):
    shutil.copy(tmp_path / 'run' / name, kept)
  found = []
  for folder, more in ((kept, []), (reference, ['--samples=3', f'--data_dir={shared}/data'])):
    code, out, err = run(capsys, folder, f'--out={tmp_path}', *more)
    assert code == 0, err
    assert '3 draws of each of 64 examples (test split)' in out
    assert ('results.json, not predicted again: 1 of 1 runs.' in out) is (folder is kept)
    found += read(tmp_path, 'variance.json')['runs']
  numbers = lambda values: {k: v for k, v in values.items() if not isinstance(v, str)}
  assert numbers(found[0]) == pytest.approx(numbers(found[1]), rel=1e-3)
  assert found[0].keys() == found[1].keys()


def test_a_damaged_checkpoint_below_a_folder_costs_that_run_alone(
  capsys, shared, reference, tmp_path
):
  for name in ('bad', 'good'):
    shutil.copytree(reference, tmp_path / 'runs' / name)

  def alter(state):
    state['params']['logits']['bias'][3] += 1

  bad = tmp_path / 'runs' / 'bad'
  save_altered(bad / 'checkpoints', read(reference, 'results.json')['best_step'], alter)
  options = ['--samples=3', '--limit=4', f'--data_dir={shared}/data', f'--out={tmp_path}/out']
  code, out, err = run(capsys, tmp_path / 'runs', *options)
  assert code == 0, err
  assert 'Runs left out: 1 damaged.' in out
  assert f'Left out: checkpoint {read(reference, "results.json")["best_step"]} of {bad} can' in out
  (kept,) = read(tmp_path / 'out', 'variance.json')['runs']
  assert kept['directory'] == f'{tmp_path}/runs/good'
  assert kept['learning_rate'] == read(reference, 'config.json')['config']['learning_rate']
  code, _, err = run(capsys, bad, *options)
  assert code == 1
  assert 'cannot be read: its contents do not match' in err


def test_a_vocabulary_that_is_missing_below_a_folder_costs_that_run_alone(
  capsys, shared, reference, tmp_path
):
  for name in ('bad', 'good'):
    shutil.copytree(reference, tmp_path / 'runs' / name)
  bad = tmp_path / 'runs/bad'
  tokenizer = {'type': 'wordpiece', 'file': 'tokenizer.json', 'sha256': '0', 'pair': False}
  description = read(reference, 'config.json') | {'tokenizer': tokenizer}
  (bad / 'config.json').write_text(json.dumps(description))
  options = ['--samples=3', '--limit=4', f'--data_dir={shared}/data', f'--out={tmp_path}/out']
  code, out, err = run(capsys, tmp_path / 'runs', *options)
  assert code == 0, err
  assert 'Runs left out: 1 damaged.' in out
  assert 'tokenizer.json' in out
  code, _, err = run(capsys, bad, *options)
  assert code == 1
  assert 'tokenizer.json' in err


def test_a_config_of_another_version_below_a_folder_costs_that_run_alone(capsys, tmp_path):
  keep(tmp_path / 'runs/good', **VOTES)
  keep(tmp_path / 'runs/gone', 'gone')
  code, out, err = run(capsys, tmp_path / 'runs')
  assert code == 0, err
  assert f"{tmp_path}/runs/gone/config.json is of another version: unknown model_type 'gone'" in out


def test_runs_that_differ_in_the_rate_alone_show_it(capsys, tmp_path):
  for rate in (0.05, 0.01):
    keep(tmp_path / f'runs/{rate}', learning_rate=rate, **VOTES)
  code, out, err = run(capsys, tmp_path / 'runs')
  assert code == 0, err
  header, _, *rows = out.splitlines()[2:6]
  assert header.split()[-1] == 'rate'
  assert sorted(row.split()[-1] for row in rows) == ['0.01', '0.05']


VOTES = {
  'eval_samples': 10, 'voting_accuracy': 0.4, 'inconsistency': 0.02, 'median_deviation': 0.1,
  'mean_deviation': 0.2,
}  # fmt: skip


def keep(folder, model='gmm_prf', attention=(), planned=10_000, **changes):
  """Make a folder of a run as it is kept, without its checkpoints."""
  folder.mkdir(parents=True)
  about = {
    'config': {'num_train_steps': planned},
    'model': {'model_type': model, 'attention': dict(attention)},
  }
  (folder / 'config.json').write_text(json.dumps(about))
  (folder / 'results.json').write_text(json.dumps({**RUN, 'model': model, **changes}))


def test_kept_results_make_the_figures(capsys, tmp_path):
  runs, out_dir = tmp_path / 'runs', tmp_path / 'out'
  for seed in range(3):
    keep(runs / f'listops/gmm_prf_seed{seed}', seed=seed, accuracy=0.36 + seed / 100, **VOTES)
  keep(runs / 'text/gmm_rks', 'gmm_rks', task='text', examples=25_000, **VOTES)
  keep(runs / 'text/old', 'gmm_rks', seed=1)
  keep(runs / 'text/transformer', 'transformer')
  keep(runs / 'text/performer', 'performer', attention={'kernel': 'relu'})
  keep(runs / 'text/stopped', planned=20_000)
  keep(runs / 'text/damaged')
  (runs / 'text/damaged/results.json').write_text('')
  code, out, err = run(capsys, runs, f'--out={out_dir}')
  assert code == 0, err
  title, _, header, _, first, *_ = out.splitlines()
  assert (title, header.split()[-2:]) == ('test split', ['draws', 'examples'])
  assert first.split()[-7:] == ['36.00', '40.00', '1.1111', '2.00', '0.100', '10', '2,000']
  assert 'Read from results.json, not predicted again: 4 of 4 runs.' in out
  (line,) = [line for line in out.splitlines() if line.startswith('Runs left out: ')]
  assert '1 not finished, 1 damaged' in line
  assert f'\nLeft out: {runs}/text/damaged/results.json: damaged JSON: ' in out
  assert '2 of models that draw nothing' in line
  assert '1 with neither a checkpoint nor these metrics in results.json' in line
  assert sorted(path.name for path in out_dir.iterdir()) == [
    'correlations_listops.png', 'variance.json', 'variance_listops.png'
  ]  # fmt: skip
  code, _, err = run(capsys, runs, '--samples=100')
  assert code == 1
  assert 'no run to measure. Runs left out: ' in err
  assert '5 with neither' in err


@pytest.mark.parametrize('draw', [draw_metrics, draw_correlations])
def test_legends_name_each_model_once(draw):
  of = lambda model, seed: Variance(
    model, 'paper', seed, 'text', 'test', 9, 10, 0.5 + 0.01 * seed, 0.6, 0.1, 0.2 + seed, 0.3
  )
  names = lambda figure: [text.get_text() for text in figure.legends[0].get_texts()]
  several = [of('gmm_prf', seed) for seed in range(3)]
  assert names(draw([*several, of('prf', 7)])) == ['gmm_prf, 3 runs', 'prf, paper, seed 7']


def test_infinite_deviations_of_kept_results(capsys, tmp_path):
  for seed in range(3):
    deviation = None if seed == 1 else 0.1 * (seed + 1)
    changes = VOTES | {'seed': seed, 'accuracy': 0.36 + seed / 100, 'median_deviation': deviation}
    keep(tmp_path / f'runs/seed{seed}', **changes)
  code, out, err = run(capsys, tmp_path / 'runs', f'--out={tmp_path}')
  assert code == 0, err
  assert [line.split()[-1] for line in out.splitlines()[4:7]] == ['0.100', 'inf', '0.300']
  runs = json.loads((tmp_path / 'variance.json').read_text(), parse_constant=pytest.fail)['runs']
  assert [v['median_deviation'] for v in runs] == pytest.approx([0.1, None, 0.3])
  assert (tmp_path / 'correlations_listops.png').exists()


def test_a_damaged_run_that_is_named_is_an_error(capsys, tmp_path):
  keep(tmp_path / 'run', **VOTES)
  keep(tmp_path / 'damaged', **VOTES)
  (tmp_path / 'damaged/config.json').write_text('{')
  code, out, err = run(capsys, tmp_path / 'run', tmp_path / 'damaged')
  assert (code, out) == (1, '')
  assert err.startswith(f'error: {tmp_path}/damaged/config.json: damaged JSON: ')


@pytest.mark.parametrize(
  ('model', 'values', 'flag', 'message'),
  [
    ('gmm_prf', {}, '--split=test', 'lacks the metrics of several draws: name runs with checkpoi'),
    ('gmm_prf', VOTES, '--samples=100', 'is of 10 draws on the whole test split: leave --split, '),
    ('gmm_prf', VOTES, '--split=validation', 'is of 10 draws on the whole test split: leave --sp'),
    ('gmm_prf', VOTES, '--limit=1999', 'is of 10 draws on the whole test split: leave --split, '),
    ('transformer', {}, '--split=test', 'is of a model that draws nothing: its predictions do no'),
  ],
)
def test_a_run_without_checkpoint_says_what_is_lacking(
  capsys, tmp_path, model, values, flag, message
):
  keep(tmp_path / 'run', model, **values)
  code, out, err = run(capsys, tmp_path / 'run', flag)
  assert (code, out) == (1, '')
  assert err.startswith(f'error: {tmp_path}/run ')
  assert message in err


def test_as_many_draws_and_examples_as_were_evaluated_are_read(capsys, tmp_path):
  keep(tmp_path / 'run', **VOTES)
  code, out, _ = run(capsys, tmp_path / 'run', '--samples=10', '--limit=2000')
  assert code == 0
  assert out.startswith('10 draws of each of 2,000 examples (test split)\n')


def test_other_data_is_refused(capsys, shared, reference, tmp_path):
  other = tmp_path / 'run'
  other.mkdir()
  (other / 'checkpoints').symlink_to(reference / 'checkpoints')
  config = json.loads((reference / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(config | {'dataset': 'listops/other/1.0.0'}))
  code, _, err = run(capsys, other, f'--data_dir={shared}/data', '--samples=2')
  assert code == 1
  assert 'was trained on listops/other/1.0.0, here is listops/generated' in err
