import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kl_flax.features import fourier_features, positive_features
from kl_flax.spectral import GaussianMixture, Generator, gmm_frequencies

COVARIANCES = ('full', 'diagonal')


def normal(seed, *shape, scale=1.0):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def make_params(seed, covariance, h=2, c=1, d=3):
  """Return parameters of a GaussianMixture with c free components."""
  mean = normal(seed, h, c, d)
  if covariance == 'full':
    return {'mean': mean, 'scale': normal(seed + 1, h, c, d, d)}
  return {'mean': mean, 'log_variance': normal(seed + 1, h, c, d)}


def scale_of(params):
  """Return S of every head and component as matrices, float64."""
  if 'scale' in params:
    return params['scale'].astype(np.float64)
  deviation = np.exp(params['log_variance'].astype(np.float64) / 2)
  return deviation[..., None] * np.eye(deviation.shape[-1])


@functools.partial(jax.jit, static_argnames='module')
def sample(module, params, key=None, noise=None):
  rngs = None if key is None else {'spectral': key}
  num_heads, _, head_dim = params['mean'].shape
  return module.apply({'params': params}, num_heads, head_dim, noise, rngs=rngs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def initial(module, num_heads, head_dim):
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  return module.init(rngs, num_heads, head_dim)['params']


@pytest.mark.parametrize('diagonal', [False, True])
@pytest.mark.parametrize('shared', [False, True])
def test_golden_frequencies_in_float64(diagonal, shared):
  num_heads, num_components, num_noise, head_dim = 2, 3, 4, 5
  noise = normal(0, num_heads, 1 if shared else num_components, num_noise, head_dim)
  mean = normal(1, num_heads, num_components, head_dim)
  scale = normal(2, num_heads, num_components, head_dim, *([] if diagonal else [head_dim]))
  expected = np.zeros((num_heads, num_components * num_noise, head_dim))
  for h, c, n, i in np.ndindex(num_heads, num_components, num_noise, head_dim):
    draw = noise[h, 0 if shared else c, n].astype(np.float64)
    if diagonal:
      product = scale[h, c, i] * draw[i]
    else:
      product = sum(float(scale[h, c, i, j]) * draw[j] for j in range(head_dim))
    expected[h, c * num_noise + n, i] = product + mean[h, c, i]
  omega = jax.jit(gmm_frequencies)(noise, mean, scale)
  np.testing.assert_allclose(omega, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('covariance', 'tied'), [('full', True), ('diagonal', False)])
def test_moments_of_samples_are_those_of_the_parameters(covariance, tied):
  num_noise = 50_000
  params = make_params(0, covariance, c=1 if tied else 2)
  module = GaussianMixture(2 * num_noise, 2, covariance, tied)
  omega = np.asarray(sample(module, params, jax.random.key(0)), np.float64)
  omega = omega.reshape(2, 2, num_noise, 3)
  scale = scale_of(params)
  mean = params['mean']
  if tied:
    scale, mean = np.repeat(scale, 2, axis=1), np.concatenate([mean, -mean], axis=1)
  expected = scale @ np.swapaxes(scale, -1, -2)
  variance = np.einsum('hcii->hci', expected)
  error = np.sqrt(variance / num_noise)
  assert np.all(np.abs(np.mean(omega, axis=2) - mean) < 4.5 * error)
  centred = omega - mean[:, :, None]
  covariances = np.einsum('hcni,hcnj->hcij', centred, centred) / num_noise
  error = np.sqrt((variance[..., None] * variance[..., None, :] + expected**2) / num_noise)
  assert np.all(np.abs(covariances - expected) < 4.5 * error + 1e-9)
  # Heads share no noise, nor do components that are not tied.
  whitened = np.linalg.solve(scale[:, :, None], centred[..., None])[..., 0]
  streams = [whitened[0, 0], whitened[1, 0]] + ([] if tied else [whitened[0, 1]])
  for a, b in itertools.combinations(streams, 2):
    assert np.max(np.abs(a.T @ b / num_noise)) < 4.5 / math.sqrt(num_noise)


@pytest.mark.parametrize('covariance', COVARIANCES)
def test_tied_components_mirror_each_other_exactly(covariance):
  params, noise = make_params(2, covariance), normal(4, 2, 1, 4, 3)
  omega = np.asarray(sample(GaussianMixture(8, 2, covariance), params, noise=noise))
  shape_name = 'scale' if covariance == 'full' else 'log_variance'
  mirrored = {
    'mean': np.concatenate([params['mean'], -params['mean']], axis=1),
    shape_name: np.repeat(params[shape_name], 2, axis=1),
  }
  untied = sample(GaussianMixture(8, 2, covariance, tied=False), mirrored, noise=noise)
  np.testing.assert_allclose(omega, untied, rtol=1e-6, atol=1e-6)
  negated = np.asarray(sample(GaussianMixture(8, 2, covariance), params, noise=-noise))
  np.testing.assert_array_equal(omega[:, :4], -negated[:, 4:])


@pytest.mark.parametrize('covariance', COVARIANCES)
def test_injected_noise_replaces_the_draw(covariance):
  params, noise = make_params(5, covariance, c=3), normal(7, 2, 3, 4, 3)
  module = GaussianMixture(12, 3, covariance, tied=False)
  omega = sample(module, params, noise=noise)  # No stream is needed then.
  expected = np.einsum('hcij,hcnj->hcni', scale_of(params), noise) + params['mean'][:, :, None]
  np.testing.assert_allclose(omega, expected.reshape(2, 12, 3), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(omega, sample(module, params, jax.random.key(0), noise))


def test_noise_is_a_function_of_the_spectral_key():
  module, params = GaussianMixture(8), make_params(8, 'full')
  run = lambda seed: np.asarray(sample(module, params, jax.random.key(seed)))
  np.testing.assert_array_equal(run(5), run(5))
  assert np.all(run(5) != run(6))


def test_initial_values_are_within_their_bounds_and_fill_them():
  head_dim = 8
  full = jax.device_get(initial(GaussianMixture(8), 64, head_dim))
  diagonal = jax.device_get(initial(GaussianMixture(8, covariance='diagonal'), 64, head_dim))
  assert {k: v.shape for k, v in full.items()} == {'mean': (64, 1, 8), 'scale': (64, 1, 8, 8)}
  assert {k: v.shape for k, v in diagonal.items()} == {
    'mean': (64, 1, 8),
    'log_variance': (64, 1, 8),
  }
  for values, bound in [
    (full['mean'], head_dim**-0.5),
    (diagonal['mean'], head_dim**-0.5),
    # Xavier's sqrt(6 / (fan_in + fan_out)) for one D×D matrix: heads are no part of the fans.
    (full['scale'], math.sqrt(6 / (2 * head_dim))),
    (diagonal['log_variance'], math.sqrt(6 / (2 * head_dim))),
  ]:
    assert values.dtype == jnp.float32
    assert np.max(values) <= bound
    assert np.min(values) >= -bound
    assert np.max(values) > 0.97 * bound
    assert np.min(values) < -0.97 * bound


@pytest.mark.parametrize(
  ('covariance', 'name', 'mean_bound', 'bound'),
  # By hand for D = 8, H = 64. torch.nn.init takes the second axis for inputs and the first for
  # outputs, each times the third: 64 and 512 of [64, 8, 8], 8 and 64 of [64, 8].
  [
    ('full', 'scale', 1 / 8, 0.1020621),  # (6 / 576)^(1/2)
    ('diagonal', 'log_variance', 0.3535534, 0.2886751),  # 8^(-1/2), (6 / 72)^(1/2)
  ],
)
def test_the_authors_initial_values(covariance, name, mean_bound, bound):
  module = GaussianMixture(8, covariance=covariance, initial='authors')
  params = jax.device_get(initial(module, 64, 8))
  for values, limit in [(params['mean'], mean_bound), (params[name], bound)]:
    assert 0.97 * limit < np.max(values) <= limit + 1e-6
    assert 0.97 * limit < -np.min(values) <= limit + 1e-6


def test_the_authors_mixture_starts_broad():
  num_heads, head_dim = 2048, 8
  scale = initial(GaussianMixture(2, initial='authors'), num_heads, head_dim)['scale'][:, 0]
  covariance = np.asarray(scale @ np.swapaxes(scale, 1, 2))
  error = np.std(covariance, axis=0) / math.sqrt(num_heads)
  expected = np.eye(head_dim) * 2 / (head_dim + num_heads)
  assert np.all(np.abs(np.mean(covariance, axis=0) - expected) < 4.5 * error)


def test_expected_initial_covariance_is_near_the_identity():
  num_heads, head_dim = 2048, 8
  scale = np.asarray(initial(GaussianMixture(2), num_heads, head_dim)['scale'])[:, 0]
  covariance = scale @ np.swapaxes(scale, 1, 2)
  error = np.std(covariance, axis=0) / math.sqrt(num_heads)
  # Exactly I: D entries a row, each of variance bound²/3 = 1/D.
  assert np.all(np.abs(np.mean(covariance, axis=0) - np.eye(head_dim)) < 4.5 * error)
  module = GaussianMixture(2, covariance='diagonal')
  variance = np.exp(initial(module, num_heads, head_dim)['log_variance'])
  bound = math.sqrt(3 / head_dim)
  np.testing.assert_allclose(np.mean(variance), math.sinh(bound) / bound, rtol=0.01)
  np.testing.assert_allclose(np.mean(variance), 1, rtol=0.08)


@pytest.mark.parametrize(('covariance', 'tied'), [('full', True), ('diagonal', False)])
def test_gradients_reach_every_parameter(covariance, tied):
  params = make_params(9, covariance, c=1 if tied else 2)
  module = GaussianMixture(6, 2, covariance, tied)

  def loss(params):
    omega = sample(module, params, jax.random.key(0))
    return jnp.sum(jnp.sin(omega) * jnp.arange(omega.size).reshape(omega.shape))

  gradients = jax.device_get(jax.jit(jax.grad(loss))(params))
  assert gradients.keys() == params.keys()
  for gradient in gradients.values():
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient != 0)


@functools.partial(jax.jit, static_argnames=('module', 'features'))
def estimates(module, features, params, q, k):
  """Return one estimate of κ(q, k) a head; heads are the independent repetitions."""
  num_heads = 40_000
  repeat = lambda x: jnp.broadcast_to(x, (num_heads, *x.shape[1:]))
  omega = sample(module, jax.tree.map(repeat, params), jax.random.key(3))
  phi = lambda x: features(jnp.broadcast_to(x, (1, 1, num_heads, x.shape[-1])), omega)
  return jnp.sum(phi(q) * phi(k), axis=(0, 1, 3))


def assert_bias_and_error(samples, kernel, mse):
  """Assert mean and mean squared error of estimates, both within 4.5 standard errors."""
  deviation = np.asarray(samples, np.float64) - kernel
  root = math.sqrt(len(deviation))
  assert abs(np.mean(deviation)) < 4.5 * np.std(deviation) / root
  standard_error = np.std(deviation**2) / root
  assert abs(np.mean(deviation**2) - mse) < 4.5 * standard_error
  assert standard_error < 0.05 * mse  # The test must be able to fail.


@pytest.mark.parametrize(('covariance', 'num_noise'), [('full', 4), ('diagonal', 1)])
def test_error_of_fourier_estimates_is_the_closed_form(covariance, num_noise):
  params = make_params(20, covariance, h=1)
  q, k = normal(21, 2, 3, scale=0.6)
  p, scale, mean = k - q, scale_of(params)[0, 0], params['mean'][0, 0]
  variance, a = np.sum((scale.T @ p) ** 2), mean @ p
  samples = estimates(GaussianMixture(2 * num_noise, 2, covariance), fourier_features, params, q, k)
  mse = math.cos(a) ** 2 * (1 - math.exp(-variance)) ** 2 / (2 * num_noise)
  assert_bias_and_error(samples, math.exp(-variance / 2) * math.cos(a), mse)


@pytest.mark.parametrize(('covariance', 'num_components'), [('full', 2), ('diagonal', 1)])
def test_error_of_positive_estimates_is_the_closed_form(covariance, num_components):
  num_noise = 4
  params = make_params(20, covariance, h=1)
  q, k = normal(22, 2, 3, scale=0.3)
  scale, mean = scale_of(params)[0, 0], params['mean'][0, 0]
  # Shrunk until Ω(q + k) has variance 1/4, else the estimates' tails are too heavy to measure.
  q, k = (np.float32(x / (2 * np.linalg.norm(scale.T @ (q + k)))) for x in (q, k))
  o = q + k
  variance, a, norms = np.sum((scale.T @ o) ** 2), mean @ o, q @ q + k @ k
  module = GaussianMixture(
    num_components * num_noise, num_components, covariance, tied=num_components == 2
  )
  # One component estimates with e^a, a mirrored pair with its mean over ±a.
  factor = math.exp(a) if num_components == 1 else math.cosh(a)
  samples = estimates(module, positive_features, params, q, k)
  spread = math.exp(2 * variance) - math.exp(variance)
  mse = math.exp(-2 * norms) * factor**2 * spread / num_noise
  assert_bias_and_error(samples, math.exp(variance / 2 - norms) * factor, mse)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ((8, 2, 'spherical'), "covariance must be 'full' or 'diagonal', got 'spherical'"),
    ((0, 2), 'must be at least 1, got 0 and 2'),
    ((8, 0), 'must be at least 1, got 8 and 0'),
    ((8, 3), 'mirrored pair, got num_components=3: set num_components=2 or tied=False'),
    ((8, 1), 'mirrored pair, got num_components=1: set num_components=2 or tied=False'),
    ((7, 2), 'num_frequencies=7 must be a multiple of num_components=2'),
    ((8, 3, 'full', False), 'num_frequencies=8 must be a multiple of num_components=3'),
  ],
)
def test_errors_name_the_value_and_the_rule(fields, message):
  with pytest.raises(ValueError, match=message):
    initial(GaussianMixture(*fields), 2, 4)


def test_mixtures_beyond_the_paper_get_gradients_and_weights():
  module = GaussianMixture(12, 3, tied=False, weights='learned', antithetic=True, typical_norm=1.0)
  params = make_params(9, 'full', c=3) | {'weight_logits': normal(1, 2, 3)}

  def loss(params):
    omega, log_weight = sample(module, params, jax.random.key(0))
    assert omega.shape == (2, 12, 3)
    assert log_weight.shape == (2, 12)
    phase = jnp.arange(omega.size).reshape(omega.shape)
    return jnp.sum(jnp.sin(omega) * phase * jnp.exp(log_weight)[..., None])

  gradients = jax.device_get(jax.jit(jax.grad(loss))(params))
  assert gradients.keys() == params.keys()
  for gradient in gradients.values():
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient != 0)
  # Draws and their mirror images stand for one component; weights of components average to one.
  plain = GaussianMixture(12, 3, tied=False, weights='learned', antithetic=True)
  omega, log_weight = sample(plain, params, jax.random.key(0))
  centred = np.asarray(omega).reshape(2, 3, 4, 3) - params['mean'][:, :, None]
  np.testing.assert_allclose(centred[:, :, :2], -centred[:, :, 2:], atol=1e-5)
  np.testing.assert_allclose(np.mean(np.exp(log_weight), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'weights': 'learned'}, "weights='learned' needs tied=False"),
    ({'weights': 'free'}, "weights must be 'equal' or 'learned', got 'free'"),
    ({'initial': 'le'}, "initial must be 'unit' or 'authors', got 'le'"),
    ({'num_frequencies': 6, 'antithetic': True}, '3 frequencies of each component must be even'),
  ],
)
def test_errors_of_options_beyond_the_paper(fields, message):
  with pytest.raises(ValueError, match=message):
    GaussianMixture(**({'num_frequencies': 8} | fields))


def golden_generator(params, noise, num_layers):
  """Return the generator's output in float64 NumPy."""
  x = noise.astype(np.float64)
  for i in range(num_layers):
    dense, norm = params[f'dense_{i}'], params[f'norm_{i}']
    x = x @ dense['kernel'] + dense['bias']
    x = (x - x.mean(axis=-2, keepdims=True)) / np.sqrt(x.var(axis=-2, keepdims=True) + 1e-5)
    x = x * norm['scale'] + norm['bias']
    x = np.where(x > 0, x, 0.01 * x)
  return np.tanh(x @ params['out']['kernel'] + params['out']['bias'])


@pytest.mark.parametrize('shared', [True, False])
def test_generator_is_the_network_of_the_paper(shared):
  module = Generator(7, shared_noise=shared)
  noise = normal(0, 1 if shared else 3, 7, 4)
  params = jax.device_get(initial(module, 3, 4))
  params = jax.tree.map(lambda x: x + normal(x.size, *x.shape, scale=0.3), params)
  run = jax.jit(lambda params: module.apply({'params': params}, 3, 4, jnp.asarray(noise)))
  omega = np.asarray(run(params))
  expected = np.broadcast_to(golden_generator(params, noise, 4), (3, 7, 4))
  np.testing.assert_allclose(omega, expected, rtol=1e-4, atol=1e-5)
  # 4 + 1 layers, as the paper counts: 5 d² + 5 d, and 2 d for each normalisation.
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5 * (16 + 4) + 4 * 8


def test_generator_draws_for_all_heads_and_all_parameters_get_gradients():
  params = initial(Generator(6), 2, 4)

  @functools.partial(jax.jit, static_argnames='shared')
  def draw(params, shared=True, seed=0):
    module = Generator(6, shared_noise=shared)
    return module.apply({'params': params}, 2, 4, rngs={'spectral': jax.random.key(seed)})

  omega = np.asarray(draw(params))
  np.testing.assert_array_equal(omega[0], omega[1])
  assert np.all(np.abs(omega) < 1)
  assert np.all(draw(params, seed=1) != omega)
  separate = np.asarray(draw(params, shared=False))
  assert np.all(separate[0] != separate[1])
  loss = lambda params: jnp.sum(jnp.sin(3 * draw(params)) * jnp.arange(6.0)[:, None])
  gradients = jax.device_get(jax.jit(jax.grad(loss))(params))
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(gradient))
    # A bias before a normalisation cancels.
    cancels = path[-1].key == 'bias' and 'dense' in path[0].key
    assert np.allclose(gradient, 0, atol=1e-5) == cancels, path


def test_generator_needs_a_spread():
  with pytest.raises(ValueError, match='num_frequencies=1 must be at least 2'):
    Generator(1)
