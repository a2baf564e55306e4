import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kl_flax.features import fourier_features, positive_features
from kl_flax.orthogonal import (
  Gaussian,
  OrthogonalGaussian,
  StructuredOrthogonal,
  draw_lengths,
  random_rotation,
  structured_frequencies,
)
from kl_flax.spectral import as_weighted

SAMPLERS = (Gaussian, OrthogonalGaussian, StructuredOrthogonal)
NUM_DRAWS = 20_000


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def sample(module, num_heads, head_dim, seed=0):
  return module.apply({}, num_heads, head_dim, rngs={'spectral': jax.random.key(seed)})


def draw(module, num_heads, head_dim, seed=0):
  """Return omega, float64; heads are the independent repetitions."""
  return np.asarray(sample(module, num_heads, head_dim, seed), np.float64)


def sylvester(n):
  if n == 1:
    return np.ones((1, 1))
  half = sylvester(n // 2)
  return np.block([[half, half], [half, -half]])


def assert_mean(samples, expected, precision=math.inf):
  """Assert the mean over axis 0 within 4.5 standard errors, which are below the precision."""
  samples = np.asarray(samples, np.float64)
  error = np.std(samples, axis=0) / math.sqrt(len(samples))
  assert np.all(np.abs(np.mean(samples, axis=0) - expected) < 4.5 * error)
  assert np.all(error < precision)  # The test must be able to fail.


@jax.jit
def _estimates(omega, log_weight, q, k):
  repeat = lambda x: jnp.broadcast_to(x, (1, 1, len(omega), len(x)))
  results = []
  for features in (fourier_features, positive_features):
    products = (features(repeat(q), omega) * features(repeat(k), omega))[0, 0]
    products = products.reshape(len(omega), -1, omega.shape[1])  # Cosines and sines apart.
    results.append(jnp.sum(products * jnp.exp(log_weight)[:, None], axis=(1, 2)))
  return results


def estimates(module, q, k):
  """Return estimates of κ(q, k) by Fourier and by positive features, one a head."""
  omega, log_weight = as_weighted(sample(module, NUM_DRAWS, len(q), 3))
  log_weight = jnp.zeros(omega.shape[:2]) if log_weight is None else log_weight
  return _estimates(omega, log_weight, q, k)


# |q − k|² = 1 and |q + k|² = 0.75, in directions of no symmetry.
Q = np.array([0.2, 0.5, -0.1, 0.3], np.float32)
K = np.array([-0.1, 0.0, 0.4, -0.3], np.float32)
KERNEL = math.exp(-np.sum((Q - K) ** 2) / 2)


@pytest.mark.parametrize(
  'module',
  [
    pytest.param(Gaussian(8), marks=pytest.mark.slow),
    Gaussian(8, antithetic=True, typical_norm=1.0),
    pytest.param(OrthogonalGaussian(8), marks=pytest.mark.slow),
    OrthogonalGaussian(8, antithetic=True),
    OrthogonalGaussian(8, typical_norm=1.0),
  ],
)
def test_estimates_of_kernels_are_unbiased(module):
  for samples in estimates(module, Q, K):
    assert_mean(samples, KERNEL, 0.01 * KERNEL)


def test_orthogonal_directions_and_antithetic_pairs_lower_the_variance():
  variances = lambda module: np.var(np.asarray(estimates(module, Q, K), np.float64), axis=1)
  fourier, positive = variances(Gaussian(8))
  orthogonal = variances(OrthogonalGaussian(8))
  assert np.all(orthogonal < [0.9 * fourier, positive])
  # Both of a pair are the same Fourier feature.
  paired = variances(OrthogonalGaussian(8, antithetic=True))
  assert paired[0] > 1.5 * orthogonal[0]
  assert paired[1] < 0.5 * positive


def test_blocks_of_orthogonal_frequencies():
  head_dim = 4
  omega = draw(OrthogonalGaussian(10), NUM_DRAWS, head_dim, seed=1)
  assert omega.shape == (NUM_DRAWS, 10, head_dim)
  lengths = np.linalg.norm(omega, axis=-1)
  directions = omega / lengths[..., None]
  for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
    block = directions[:, rows]
    products = block @ np.swapaxes(block, 1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(block.shape[1]), products.shape),
                               atol=1e-5)  # fmt: skip
  # χ_D lengths, each by itself, and independent of direction.
  assert_mean(lengths**2, head_dim)
  assert_mean(lengths**4, head_dim * (head_dim + 2))
  assert_mean((lengths**2 - head_dim)[:, 1:] * (lengths**2 - head_dim)[:, :1], 0)
  assert_mean((lengths**2 - head_dim)[..., None] * directions**2, 0)
  # Uniform rotations have no preferred sign; QR's own do.
  assert_mean(directions, 0)
  assert_mean(directions**2, 1 / head_dim)
  assert_mean(directions[:, :4] * directions[:, 4:8], 0)  # Blocks are independent.


def test_random_rotation_is_the_product_of_its_reflections():
  noise = np.random.default_rng(0).normal(size=(2, 3, 7, 7)).astype(np.float32)
  noise[0, 0, 6, 6] = 0.0  # Has no direction.
  rotations = jax.jit(random_rotation)(noise)
  assert rotations.dtype == jnp.float32
  for index in np.ndindex(2, 3):
    expected, signs = np.eye(7), []
    for i, column in enumerate(noise[index].T.astype(np.float64)):
      x = np.where(np.arange(7) < i, 0, column)
      sign = -1 if x[i] < 0 else 1
      v = x + sign * max(np.linalg.norm(x), 1e-9) * np.eye(7)[i]
      expected = expected @ (np.eye(7) - 2 * np.outer(v, v) / (v @ v))
      signs.append(-sign)
    np.testing.assert_allclose(rotations[index], expected * signs, atol=2e-6)


def test_random_rotations_are_uniformly_distributed():
  """Second and fourth moments of the Haar measure (Collins & Śniady 2006)."""
  n = 4
  q = np.asarray(jax.jit(random_rotation)(jax.random.normal(jax.random.key(2), (40_000, n, n))))
  assert_mean(q, 0)
  assert_mean(q**2, 1 / n)
  assert_mean(q**4, 3 / (n * (n + 2)))
  assert_mean(q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2, (n + 1) / (n * (n - 1) * (n + 2)), 1e-3)
  assert_mean(q[:, 0, 0] * q[:, 1, 1] * q[:, 0, 1] * q[:, 1, 0], -1 / (n * (n - 1) * (n + 2)), 1e-3)
  assert_mean(np.linalg.det(q), 0)  # Reflections are as frequent as rotations.


def test_moments_of_independent_frequencies():
  omega = draw(Gaussian(3), NUM_DRAWS, 5)
  assert_mean(omega, 0)
  assert_mean(omega**2, 1)
  assert_mean(omega[:, 1:] * omega[:, :1], 0)
  assert_mean(omega[1:] * omega[:-1], 0)


def test_structured_frequencies_are_the_product_of_their_matrices():
  num_heads, num_blocks, head_dim = 2, 3, 8
  shape = (num_heads, num_blocks, 3, head_dim)
  diagonals = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  rotations = sylvester(head_dim) * diagonals[..., None, :].astype(np.float64) / head_dim**0.5
  expected = head_dim**0.5 * (rotations[:, :, 2] @ rotations[:, :, 1] @ rotations[:, :, 0])
  omega = jax.jit(structured_frequencies)(diagonals)
  assert omega.dtype == jnp.float32
  expected = expected.reshape(num_heads, -1, head_dim)
  np.testing.assert_allclose(omega, expected, rtol=1e-4, atol=1e-4)


def test_blocks_of_structured_frequencies():
  omega = draw(StructuredOrthogonal(20), 3, 8)
  assert omega.shape == (3, 20, 8)
  for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
    block = omega[:, rows]
    products = block @ np.swapaxes(block, 1, 2)
    expected = np.broadcast_to(8 * np.eye(block.shape[1]), products.shape)
    np.testing.assert_allclose(products, expected, atol=1e-4)
  assert not np.allclose(np.abs(omega[:, :8]), np.abs(omega[:, 8:16]))
  assert not np.allclose(np.abs(omega[0]), np.abs(omega[1]))


def test_bias_of_structured_frequencies_is_the_known_one():
  """About −r⁴/(4D) of the kernel; exactly the mean over all signs."""
  head_dim = len(Q)
  matrix = sylvester(head_dim) / head_dim**0.5
  signs = np.array(list(itertools.product([-1, 1], repeat=head_dim)))
  # z = (H D_2 / √D)(H D_1 / √D) x; the last signs leave E cos(omega·x) = Π cos(z_j).
  rotate = lambda x: ((x[..., None, :] * signs) @ matrix).reshape(-1, head_dim)
  expect = lambda function, x: np.mean(np.prod(function(rotate(rotate(x))), axis=1))
  q, k = Q.astype(np.float64), K.astype(np.float64)
  factor = math.exp(-q @ q - k @ k)
  exact = [expect(np.cos, q - k), factor * expect(np.cosh, q + k)]
  for samples, mean, r in zip(
    estimates(StructuredOrthogonal(8), Q, K), exact, (q - k, q + k), strict=True
  ):
    assert_mean(samples, mean, 0.005 * KERNEL)
    bias = mean / KERNEL - 1
    assert abs(np.mean(samples) / KERNEL - 1) > abs(bias) / 2  # It can be measured,
    leading = -((r @ r) ** 2) / (4 * head_dim)
    assert leading * 1.4 < bias < leading * 0.6  # and is near its leading term.


def test_learned_diagonals_are_parameters_and_nothing_is_drawn():
  module = StructuredOrthogonal(12, learned=True)
  params = jax.jit(lambda: module.init(jax.random.key(0), 2, 4))()['params']
  assert {name: leaf.shape for name, leaf in params.items()} == {'diagonals': (2, 3, 3, 4)}
  np.testing.assert_array_equal(np.abs(params['diagonals']), 1)
  assert -1 < np.mean(params['diagonals']) < 1

  @jax.jit
  def omega_and_gradient(params):
    omega = lambda params: module.apply({'params': params}, 2, 4)  # Without any stream.
    weight = jnp.arange(2 * 12 * 4.0).reshape(2, 12, 4)
    return omega(params), jax.grad(lambda params: jnp.sum(jnp.sin(omega(params)) * weight))(params)

  # Away from the signs, where some derivatives cancel.
  noise = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
  params = {'diagonals': params['diagonals'] + noise}
  omega, gradient = omega_and_gradient(params)
  np.testing.assert_allclose(
    omega, structured_frequencies(params['diagonals']), rtol=1e-4, atol=1e-5
  )
  assert np.all(np.isfinite(gradient['diagonals']))
  assert np.all(gradient['diagonals'] != 0)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_antithetic_frequencies_are_exact_pairs(sampler):
  omega = draw(sampler(12, antithetic=True), 2, 4)
  assert omega.shape == (2, 12, 4)
  np.testing.assert_array_equal(omega[:, :6], -omega[:, 6:])
  assert len(np.unique(np.abs(omega[0, :6]).round(4), axis=0)) > 1


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_draws_are_a_function_of_the_spectral_key(sampler):
  module = sampler(8)
  omega, again, other = (np.asarray(sample(module, 2, 8, seed)) for seed in (5, 5, 6))
  assert omega.dtype == np.float32
  np.testing.assert_array_equal(omega, again)
  assert not np.any(np.all(omega == other, axis=-1))
  assert not np.any(np.all(omega[0] == omega[1], axis=-1))  # Heads differ.
  variables = jax.eval_shape(lambda: module.init({'spectral': jax.random.key(0)}, 2, 8))
  assert 'params' not in variables


def test_lengths_have_the_moments_of_chi():
  lengths = np.asarray(draw_lengths(jax.random.key(0), (NUM_DRAWS,), 3), np.float64)
  assert_mean(lengths, math.sqrt(8 / math.pi), 0.01)
  assert_mean(lengths**2, 3, 0.03)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_errors_name_the_value_and_the_rule(sampler):
  with pytest.raises(ValueError, match='num_frequencies must be at least 1, got 0'):
    sampler(0)
  with pytest.raises(ValueError, match='pairs: the 7 frequencies .* must be even'):
    sampler(7, antithetic=True)
  with pytest.raises(ValueError, match='typical_norm must be at least 0, got -1.0'):
    sampler(8, typical_norm=-1.0)


def test_structured_frequencies_know_their_limits():
  with pytest.raises(ValueError, match='typical_norm=2.0 .* take OrthogonalGaussian'):
    StructuredOrthogonal(8, typical_norm=2.0)
  with pytest.raises(ValueError, match='StructuredOrthogonal needs .* got 6: make it 8'):
    sample(StructuredOrthogonal(8), 2, 6)
