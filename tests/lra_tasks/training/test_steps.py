import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from breadth import slow_but

from kl_flax.models import make_classifier
from lra_tasks import parallel
from lra_tasks.data.parts import Parts
from lra_tasks.training import evaluation, steps

SIZES = {
  'num_classes': 4, 'vocab_size': 8, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 1, 'qkv_dim': 8,
  'mlp_dim': 8, 'max_length': 6,
}  # fmt: skip


@functools.cache
def make(model_type='gmm_prf', num_layers=1, **options):
  """Return model, optimiser and state; nothing is dropped, so that steps can be compared."""
  attention = {'num_frequencies': 4} | options
  if model_type == 'transformer':
    attention = {'attention_dropout_rate': 0.0}
  sizes = SIZES | {'num_layers': num_layers}
  model = make_classifier(model_type, attention=attention, dropout_rate=0.0, **sizes)
  optimizer = optax.sgd(1.0)
  state = jax.jit(functools.partial(steps.init_state, model, optimizer, seed=0))()
  return model, optimizer, state


def make_batch(rows=4, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'inputs': rng.integers(1, 8, (rows, 6)).astype(np.int32),
    'lengths': rng.integers(1, 7, rows).astype(np.int32),
    'targets': rng.integers(0, 4, rows).astype(np.int32),
    'weights': np.ones(rows, np.float32),
    'truncated': np.zeros(rows, np.float32),
  }


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch, rngs):
  mask = steps.key_mask(batch)
  return model.apply({'params': params}, batch['inputs'], mask, rngs=rngs)


@functools.cache
def mapped(step, devices, **options):
  """Return the step over so many devices; the same one is compiled once."""
  return jax.pmap(
    functools.partial(step, **options), axis_name=steps.AXIS, devices=jax.devices()[:devices]
  )


def run(function, state, batch, devices, number):
  """Return what a step makes of a batch, or of its parts, with a learning rate or of a draw."""
  divide = lambda x: x.reshape(devices, -1, *x.shape[1:])
  batch, number = jax.tree.map(divide, batch), np.full(devices, number)
  copies = jax.tree.map(lambda x: np.stack([x] * devices), state)
  return jax.tree.map(lambda x: np.asarray(x[0]), function(copies, batch, number))


@pytest.mark.parametrize('model_type', slow_but(['transformer'], ['gmm_prf', 'transformer']))
def test_two_devices_take_the_step_of_one(model_type):
  model, optimizer, state = make(model_type)
  options = {'model': model, 'optimizer': optimizer, 'resample_every': 100}
  one = run(mapped(steps.train_step, 1, **options), state, [make_batch()], 1, 0.1)
  two = run(mapped(steps.train_step, 2, **options), state, [make_batch()], 2, 0.1)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), one, two)


def test_step_is_gradient_descent_on_the_mean_loss():
  model, optimizer, state = make('transformer')
  batch = make_batch()

  def loss(params):
    logits = forward(model, params, batch, None)
    return jnp.mean(-jax.nn.log_softmax(logits)[jnp.arange(4), batch['targets']])

  gradient = jax.jit(jax.grad(loss))(state.params)
  expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), state.params, gradient)
  options = {'model': model, 'optimizer': optimizer, 'resample_every': 100}
  after, sums = run(mapped(steps.train_step, 1, **options), state, [batch], 1, 0.1)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after.params, expected
  )
  assert after.step == 1
  assert sums['loss'] / sums['weight'] == pytest.approx(float(loss(state.params)), rel=1e-5)


@pytest.mark.parametrize('model_type', slow_but(['gmm_prf'], ['gmm_prf', 'gmm_rks', 'transformer']))
@pytest.mark.parametrize('devices', slow_but([2], [1, 2]))
def test_parts_of_a_batch_make_the_step_of_the_whole(model_type, devices):
  model, optimizer, state = make(model_type)
  batch = make_batch(8)
  batch['lengths'] = np.array([6, 2, 1, 4, 3, 2, 5, 1], np.int32)
  batch['inputs'] *= np.arange(6) < batch['lengths'][:, None]
  train = mapped(steps.train_step, devices, model=model, optimizer=optimizer, resample_every=100)
  parts = Parts((4, 2, 2), (2, 4, 6)).cut(batch)
  assert [part['inputs'].shape for part in parts] == [(4, 2), (2, 4), (2, 6)]
  one, many = (run(train, state, x, devices, 0.1) for x in ((batch,), parts))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), one, many)


def test_diagnostics_of_parts_are_those_of_the_whole():
  """Without smoothing some denominators are not positive, more so in some sequences.

  The last layer has one for each sequence and head, the first one for each position.
  """
  model, optimizer, state = make('gmm_rks', num_layers=2, smoothing=0.0)
  batch = make_batch(8)
  batch['lengths'] = np.array([6, 2, 1, 4, 3, 2, 5, 1], np.int32)
  batch['inputs'] *= np.arange(6) < batch['lengths'][:, None]
  train = mapped(steps.train_step, 1, model=model, optimizer=optimizer, resample_every=100)
  parts = Parts((4, 2, 2), (2, 4, 6)).cut(batch)
  (_, one), (_, many) = (run(train, state, x, 1, 0.1) for x in ((batch,), parts))
  assert one['nonpositive_denominators'] > 0
  for name, value in one.items():
    assert many[name] == pytest.approx(value, rel=1e-5), name


def test_rows_of_weight_zero_do_not_count():
  model, optimizer, state = make('transformer')
  batch, filled = make_batch(4), make_batch(4)
  batch['weights'][2:] = 0
  filled['weights'][2:] = 0
  filled['inputs'][2:], filled['lengths'][2:] = 0, 0
  evaluate = mapped(steps.eval_step, 2, model=model)
  a, b = run(evaluate, state, batch, 2, 0), run(evaluate, state, filled, 2, 0)
  del a['examples'], b['examples']
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), a, b)
  assert a['weight'] == 2
  np.testing.assert_array_equal(a['labels'], np.bincount(batch['targets'][:2], minlength=4))


def test_frequencies_change_exactly_at_multiples_of_resample_every():
  _, _, state = make()
  keys = [
    steps.step_keys(state.replace(step=jnp.int32(step)), 10, device)
    for step, device in [(0, 0), (9, 0), (9, 1), (10, 0), (19, 1), (20, 0)]
  ]
  spectral = [jax.random.key_data(k['spectral']).tolist() for k in keys]
  assert spectral[0] == spectral[1] == spectral[2]
  assert spectral[3] == spectral[4]
  assert len({str(k) for k in spectral}) == 3
  dropout = {str(jax.random.key_data(k['dropout'])) for k in keys}
  assert len(dropout) == len(keys)


def test_evaluation_averages_over_independent_draws():
  model, _, state = make('gmm_rks')
  batch = make_batch()
  step = mapped(steps.eval_step, 2, model=model)
  sums = {
    n: evaluation.evaluate(step, parallel.replicate(state), [batch], num_samples=n) for n in (1, 3)
  }
  key = jax.random.wrap_key_data(state.keys['evaluation'])
  losses, correct = [], []
  for sample in range(3):
    rngs = {'spectral': jax.random.fold_in(key, sample)}
    logits = forward(model, state.params, batch, rngs)
    of_draw = jax.jit(steps.example_sums)(logits, batch)
    losses.append(of_draw['loss'])
    correct.append(of_draw['accuracy'])
  np.testing.assert_array_equal(sums[3]['accuracy_by_draw'], correct)
  np.testing.assert_array_equal(sums[1]['accuracy_by_draw'], correct[:1])
  assert sums[1]['loss'] == pytest.approx(float(losses[0]), rel=1e-5)
  assert sums[3]['loss'] == pytest.approx(float(sum(losses)), rel=1e-5)
  assert len({float(x) for x in losses}) == 3
  assert sums[3]['weight'] == 12
  assert 'nonpositive_denominators' in sums[1]


def test_votes_of_an_evaluation_are_those_of_its_draws():
  """Over two devices, with rows that do not count: a plain loop over examples and draws."""
  model, _, state = make('gmm_rks')
  batches = [make_batch(seed=seed) for seed in (3, 4)]
  batches[1]['weights'][1:] = 0
  one, two = (mapped(steps.eval_step, n, model=model) for n in (1, 2))
  answers = [run(step, state, batches[0], n, 2)['examples'] for n, step in ((1, one), (2, two))]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *answers)
  votes = evaluation.evaluate(two, parallel.replicate(state), batches, num_samples=3)['votes']

  key = jax.random.wrap_key_data(state.keys['evaluation'])
  right, inconsistency, deviation = [], [], []
  for batch, rows in zip(batches, (4, 1), strict=True):
    logits = np.array([
      forward(model, state.params, batch, {'spectral': jax.random.fold_in(key, sample)})
      for sample in range(3)
    ], np.float64)  # fmt: skip
    for row in range(rows):
      odds = np.exp(logits[:, row])
      probabilities = odds / odds.sum(axis=1, keepdims=True)
      ballots = np.bincount(odds.argmax(axis=1), minlength=4)
      best = max(range(4), key=lambda c: (ballots[c], probabilities[:, c].mean()))
      chance = probabilities[:, best]
      output = np.log(chance / (1 - chance))
      right.append(best == batch['targets'][row])
      inconsistency.append(np.mean(odds.argmax(axis=1) != best))
      deviation.append(np.std(output) / abs(np.mean(output)))
  expected = np.mean(right), np.mean(inconsistency), np.median(deviation), np.mean(deviation)
  assert votes == pytest.approx(expected, rel=1e-3)
  assert 0 < votes.inconsistency < 1


def test_a_single_draw_is_no_vote():
  model, _, state = make('transformer')
  step = mapped(steps.eval_step, 2, model=model)
  assert evaluation.evaluate(step, parallel.replicate(state), [make_batch()])['votes'] is None


def test_evaluations_with_one_draw_and_with_several_share_a_program():
  model, _, state = make('gmm_rks')
  traces = []

  def step(*arguments):
    traces.append(1)
    return steps.eval_step(*arguments, model=model)

  over_devices, state = parallel.over_devices(step), parallel.replicate(state)
  for num_samples in (1, 3):
    assert evaluation.evaluate(over_devices, state, [make_batch()], num_samples=num_samples)
  assert len(traces) == 1


def test_running_sums_accumulate():
  model, optimizer, state = make('gmm_rks')
  train = mapped(steps.train_step, 1, model=model, optimizer=optimizer, resample_every=100)
  first, a = run(train, state, [make_batch(seed=1)], 1, 0.1)
  second, b = run(train, first, [make_batch(seed=2)], 1, 0.1)
  for name, value in second.sums.items():
    np.testing.assert_allclose(value, a[name] + b[name], rtol=1e-6)


def test_state_is_a_function_of_the_seed():
  model, optimizer, state = make()
  init = jax.jit(functools.partial(steps.init_state, model, optimizer))
  jax.tree.map(np.testing.assert_array_equal, state, init(seed=0))
  other = init(seed=1)
  assert np.any(other.keys['dropout'] != state.keys['dropout'])
  assert np.any(
    other.params['encoder']['embedding']['table'] != state.params['encoder']['embedding']['table']
  )


def test_batch_size_must_be_a_multiple_of_the_devices():
  parallel.check_batch_size(4)
  with pytest.raises(ValueError, match=r'batch_size=7 must be .* devices \(2\); take 6 or 8'):
    parallel.check_batch_size(7)


def test_a_step_is_compiled_once():
  """Whether the state comes from the host, from the last step, or in parts from both."""
  model, optimizer, state = make('transformer')
  traces = []

  def step(state, batch, learning_rate):
    traces.append(1)
    options = {'model': model, 'optimizer': optimizer, 'resample_every': 100}
    return steps.train_step(state, batch, learning_rate, **options)

  train = parallel.over_devices(step, donate_state=True)
  batch = parallel.split(make_batch())
  state = parallel.replicate(state)
  for rate in (0.1, 0.2):
    state, _ = train(state, (batch,), parallel.broadcast(np.float32(rate)))
  zeros = jax.tree.map(np.zeros_like, parallel.to_host(state.sums))
  rate = parallel.broadcast(np.float32(0.3))
  state, _ = train(state.replace(sums=parallel.replicate(zeros)), (batch,), rate)
  state, _ = train(state, (batch,), rate)
  assert len(traces) == 1
  assert parallel.to_host(state.step) == 4
