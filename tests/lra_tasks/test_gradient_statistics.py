import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from breadth import slow_but
from run_helpers import read, run_here

from kl_flax.models import make_classifier
from lra_tasks import gradient_statistics
from lra_tasks.analysis.gradient_figures import learning_curves, table
from lra_tasks.analysis.gradient_measures import (
  Curve,
  Statistics,
  first_to_reach,
  hidden_gradients,
  summarise,
)
from lra_tasks.data import sparse_sum
from lra_tasks.runs.checkpoints import RunCheckpoints

NUM_DRAWS, NUM_EXAMPLES = 3, 4
PERCENTS = (1, 2, 100)


@functools.cache
def make_model(model_type):
  """A small classifier, its parameters, and a batch."""
  attention = {} if model_type == 'transformer' else {'num_frequencies': 8}
  model = make_classifier(
    model_type, num_classes=9, vocab_size=5, emb_dim=8, num_heads=2, qkv_dim=8, mlp_dim=6,
    num_layers=1, max_length=10, attention=attention,
  )  # fmt: skip
  random = np.random.RandomState(0)
  batch = {
    'inputs': jnp.asarray(random.randint(1, 5, (NUM_EXAMPLES, 10))),
    'lengths': jnp.full(NUM_EXAMPLES, 10),
    'targets': jnp.asarray(random.randint(0, 9, NUM_EXAMPLES)),
  }
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  return model, jax.jit(model.init)(rngs, batch['inputs'])['params'], batch


def bias_gradient(model, params):
  """Return (inputs [1, l], target, key) -> derivative of the loss by the hidden layer's bias."""

  def loss(bias, inputs, target, key):
    changed = params | {'hidden': params['hidden'] | {'bias': bias}}
    logits = model.apply({'params': changed}, inputs, rngs={'spectral': key})
    return -jax.nn.log_softmax(logits[0])[target]

  return jax.jit(functools.partial(jax.grad(loss), jnp.asarray(params['hidden']['bias'])))


@pytest.mark.parametrize('model_type', slow_but(['gmm_rks'], ['gmm_rks', 'gmm_prf', 'transformer']))
def test_gradients_are_those_of_the_biases(model_type):
  """Example by example, draw by draw, through the whole model."""
  model, params, batch = make_model(model_type)
  keys = jax.random.split(jax.random.key(7), NUM_DRAWS)
  found = jax.jit(functools.partial(hidden_gradients, model))(params, batch, keys)
  assert found.shape == (NUM_DRAWS, NUM_EXAMPLES, 6)
  gradient = bias_gradient(model, params)
  for draw, key in enumerate(keys):
    for i in range(NUM_EXAMPLES):
      expected = gradient(batch['inputs'][i : i + 1], batch['targets'][i], key)
      np.testing.assert_allclose(found[draw, i], expected, rtol=2e-4, atol=1e-6)
  assert np.abs(found).max() > 1e-3
  differ = not np.allclose(found[0], found[1], rtol=1e-4)
  assert differ == (model_type != 'transformer')


def test_statistics_are_those_of_a_loop():
  gradients = np.random.RandomState(0).randn(5, 4, 3)
  sds, means, sds_of_draws = [], [], []
  for neuron in range(3):
    values = [gradients[d, b, neuron] for d in range(5) for b in range(4)]
    mean = sum(values) / 20
    sds.append((sum((v - mean) ** 2 for v in values) / 19) ** 0.5)
    means.append(sum(map(abs, values)) / 20)
    for example in range(4):
      own = [gradients[d, example, neuron] for d in range(5)]
      mean = sum(own) / 5
      sds_of_draws.append((sum((v - mean) ** 2 for v in own) / 4) ** 0.5)
  expected = [sum(sds) / 3, sum(means) / 3, sum(sds_of_draws) / 12]
  np.testing.assert_allclose(summarise(gradients), expected, rtol=1e-12)


def test_without_draws_examples_alone_differ():
  one = np.random.RandomState(0).randn(1, 4, 3)
  found = summarise(np.repeat(one, 5, axis=0))
  assert found.sd_of_draws == pytest.approx(0, abs=1e-12)
  assert found.sd > 0.1


@pytest.fixture(scope='module')
def run(shared):
  """A run that keeps the first checkpoints which reach accuracies."""
  path = shared / 'gradients'
  fields = {'keep_accuracies': PERCENTS, 'eval_frequency': 10}
  assert run_here(shared, path, task='sparse_sum', **fields) == 0
  return path


def command(*arguments):
  values = flags.FlagValues()
  gradient_statistics.define_flags(values)
  argv = values(['gradient_statistics', *map(str, arguments)])
  return gradient_statistics.main(argv, values)


def test_the_command(shared, run, tmp_path, capsys):
  """Against a loop of its own over examples and draws, from the checkpoint to the table."""
  pytest.importorskip('matplotlib')
  arguments = [f'--data_dir={shared}/data', f'--out={tmp_path}/out', '--accuracies=1,100']
  assert command(run, *arguments, '--examples=4', '--draws=3') == 0
  text = (tmp_path / 'out/gradients.md').read_text()
  assert text in capsys.readouterr().out
  assert (tmp_path / 'out/learning_curves.png').stat().st_size > 1000
  title, _, header, _, reached, missed = text.splitlines()
  assert title == 'sparse_sum/0.5 (sparse_sum/r0.5_32_512_64_64_s0/1.0.0); runs: gmm_prf 1'
  assert header.startswith('| accuracy | step, gmm_prf | sd, gmm_prf |')
  assert missed == '| 100 % | – | – | – | – |'

  description = read(run, 'config.json')
  model = make_classifier(**description['model'])
  checkpoints = RunCheckpoints(run / 'checkpoints')
  params = checkpoints.restore(10, None)['params']
  checkpoints.close()
  data = sparse_sum.SparseSumData(**description['config']['data'])
  tokens, targets = sparse_sum.generate(data, 'validation')
  gradients = np.zeros((3, 4, 64))
  gradient = bias_gradient(model, params)
  for draw, key in enumerate(jax.random.split(jax.random.key(0), 3)):
    for i in range(4):
      gradients[draw, i] = gradient(jnp.asarray(tokens[i : i + 1], jnp.int32), targets[i], key)
  expected = summarise(gradients)
  assert reached == (
    f'| 1 % | 10 | {expected.sd:.3g} | {expected.mean_abs:.3g} | {expected.sd_of_draws:.3g} |'
  )


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_what_was_reached(shared, run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run/results.json').unlink()
  for step in steps_in(run):
    if step > 10:
      shutil.rmtree(tmp_path / f'run/checkpoints/{step}')
  fields = {'keep_accuracies': PERCENTS, 'eval_frequency': 10}
  assert run_here(shared, tmp_path / 'run', task='sparse_sum', **fields) == 0
  assert steps_in(tmp_path / 'run') == steps_in(run)
  assert {10, 30, 40} <= set(steps_in(run))
  assert 20 not in steps_in(run)


def steps_in(run):
  return sorted(int(path.name) for path in (run / 'checkpoints').iterdir())


def test_checkpoints_that_were_not_kept(shared, run, tmp_path, capsys):
  shutil.copytree(run, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints/10')
  arguments = [f'--data_dir={shared}/data', f'--out={tmp_path}/out', '--accuracies=1']
  assert command(tmp_path / 'run', *arguments) == 1
  error = capsys.readouterr().err
  assert 'no checkpoint of step 10' in error
  assert '--config.keep_accuracies=' in error


def test_of_a_run_without_checkpoints_only_the_curve_is_drawn(run, tmp_path, capsys):
  pytest.importorskip('matplotlib')
  shutil.copytree(run, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/checkpoints')
  assert command(tmp_path / 'run', f'--out={tmp_path}/out') == 0
  assert 'run holds no checkpoints to take gradients at' in capsys.readouterr().err
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['learning_curves.png']


def test_a_run_that_has_just_begun(run, tmp_path, capsys):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run/metrics.jsonl').unlink()
  assert command(tmp_path / 'run', f'--out={tmp_path}/out') == 1
  assert f'{tmp_path}/run has no evaluation yet: let it run on' in capsys.readouterr().err


def test_other_data_is_refused(shared, run, tmp_path, capsys):
  shutil.copytree(run, tmp_path / 'run')
  description = read(run, 'config.json') | {'dataset': 'sparse_sum/other'}
  (tmp_path / 'run/config.json').write_text(json.dumps(description))
  arguments = [f'--data_dir={shared}/data', f'--out={tmp_path}/out', '--accuracies=1']
  assert command(tmp_path / 'run', *arguments) == 1
  error = capsys.readouterr().err
  assert 'was trained on sparse_sum/other, here is sparse_sum/r0.5' in error
  assert 'name its data by --source, --task_name and --data_dir' in error
  assert command(run, *arguments, '--examples=65') == 1
  assert '--examples=65, but there are only 64' in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_said_first(run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(gradient_statistics, 'read_run', None)
  (tmp_path / 'file').write_text('')
  assert command(run, f'--out={tmp_path}/file') == 1
  assert f'{tmp_path}/file: File exists' in capsys.readouterr().err
  assert command(run, tmp_path / 'none', f'--out={tmp_path}/out') == 1
  assert 'none holds no run' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_wrong_arguments(tmp_path, capsys):
  assert command(tmp_path) == 1
  assert 'name --out and at least one run' in capsys.readouterr().err
  assert command(tmp_path, f'--out={tmp_path}') == 1
  assert f'{tmp_path} holds no run: it has no config.json' in capsys.readouterr().err
  for percent in (-1, 101):
    assert command(tmp_path, f'--out={tmp_path}/out', f'--accuracies=20,{percent}') == 1
    error = f'--accuracies are percentages from 0 to 100, got {percent}'
    assert error in capsys.readouterr().err


def curve(model, *, accuracies=None, data='sparse_sum/a', **gradients):
  figures = {int(percent[1:]): (step, Statistics(*s)) for percent, (step, *s) in gradients.items()}
  return Curve(data, 'sparse_sum/0.5', model, accuracies or {10: 0.1, 20: 0.3}, figures)


def test_table_has_ratios_of_two_models():
  text = table(
    [
      curve('gmm_prf', p20=(100, 0.5, 0.25, 0.125), p40=(300, 0.5, 0.25, 0.0)),
      curve('gmm_rks', p20=(1000, 1.0, 0.75, 0.25)),
      curve('gmm_rks', p20=(2000, 2.0, 0.25, 0.25)),
    ],
    (20, 40),
  )
  title, _, header, _, first, second = text.splitlines()
  assert title == 'sparse_sum/0.5 (sparse_sum/a); runs: gmm_rks 2, gmm_prf 1'
  assert header.count('gmm_prf / gmm_rks') == 3
  cells = [cell.strip() for cell in first.strip('|').split('|')]
  assert cells == ['20 %', '1,500', '100', '1.5', '0.5', '0.333', '0.5', '0.25', '0.5', '0.25',
                   '0.125', '0.5']  # fmt: skip
  cells = [cell.strip() for cell in second.strip('|').split('|')]
  assert cells == ['40 %', '–', '300', '–', '0.5', '–', '–', '0.25', '–', '–', '0', '–']


def test_curves_are_drawn_for_each_data_set():
  pytest.importorskip('matplotlib')
  curves = [curve('gmm_prf'), curve('gmm_prf', data='sparse_sum/b'), curve('gmm_rks')]
  figure = learning_curves(curves)
  first, second = figure.axes
  assert [len(axis.lines) for axis in (first, second)] == [2, 1]
  np.testing.assert_allclose(first.lines[0].get_xydata(), [[10, 10], [20, 30]])
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ['gmm_rks', 'gmm_prf']


def test_many_evaluations_are_drawn_with_their_mean():
  pytest.importorskip('matplotlib')
  many = curve('gmm_prf')._replace(accuracies={10 * i: 0.01 * i for i in range(60)})
  (axis,) = learning_curves([many]).axes
  raw, mean = (line.get_xydata() for line in axis.lines)
  assert (len(raw), len(mean)) == (60, 58)
  np.testing.assert_allclose(mean, raw[1:-1], atol=1e-9)  # A line is its own running mean.


def test_accuracies_are_reached_exactly():
  assert first_to_reach({5: 0.59999, 10: 0.6, 15: 0.7}, 60) == 10
  assert first_to_reach({}, 60) is None
