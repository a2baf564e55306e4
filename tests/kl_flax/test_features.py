import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.features import elu_features, fourier_features, positive_features, project

MAPS = {'fourier': fourier_features, 'positive': positive_features}
JITTED = {name: jax.jit(function) for name, function in MAPS.items()}


@jax.jit
def kernels(q, k, omega):
  """Return phi(q)·phi(k) for every draw of omega [R, M, D]: each draw is a 'head'."""
  repeat = lambda x: jnp.broadcast_to(x, (1, 1, len(omega), x.shape[-1]))
  return {
    name: jnp.sum(function(repeat(q), omega) * function(repeat(k), omega), axis=(0, 1, 3))
    for name, function in MAPS.items()
  }


def normal(seed, *shape, scale=1.0):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def golden_features(name, x, omega):
  """Return the features in float64, one scalar at a time."""
  num_frequencies = omega.shape[1]
  rows = []
  for index in np.ndindex(x.shape[:3]):
    row = [float(value) for value in x[index]]
    products = [sum(float(w) * v for w, v in zip(o, row, strict=True)) for o in omega[index[2]]]
    if name == 'fourier':
      phi = [math.cos(p) for p in products] + [math.sin(p) for p in products]
    else:
      phi = [math.exp(p - sum(v * v for v in row)) for p in products]
    rows.append([p / math.sqrt(num_frequencies) for p in phi])
  return np.array(rows).reshape(*x.shape[:3], -1)


def assert_mean(samples, expected):
  """Assert that the mean of independent samples is the expected one, within 4 standard errors."""
  samples = np.asarray(samples, np.float64)
  standard_error = np.std(samples) / math.sqrt(len(samples))
  assert abs(np.mean(samples) - expected) < 4 * standard_error
  assert standard_error < 0.03 * abs(expected)  # The test must be able to fail.


@pytest.mark.parametrize('name', MAPS)
def test_golden_values_in_float64(name):
  x, omega = normal(0, 2, 5, 2, 3), normal(1, 2, 4, 3)
  phi = JITTED[name](x, omega)
  assert phi.dtype == jnp.float32
  np.testing.assert_allclose(phi, golden_features(name, x, omega), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', MAPS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_inputs_give_float32_exponents(name, dtype):
  # Products reach tens: of such an angle bfloat16 keeps no digit after the point.
  x, omega = normal(2, 1, 4, 2, 16, scale=1.2), normal(3, 2, 6, 16, scale=4.0)
  x, omega = np.asarray(x, dtype), np.asarray(omega, dtype)
  exact = np.einsum('blhd,hmd->blhm', x.astype(np.float64), omega.astype(np.float64))
  assert np.max(np.abs(exact)) > 30
  products = jax.jit(project)(x, omega.astype(np.float32))
  assert products.dtype == jnp.float32
  np.testing.assert_allclose(products, exact, atol=1e-4)
  phi = JITTED[name](x, omega.astype(np.float32))
  assert phi.dtype == jnp.float32
  np.testing.assert_allclose(phi, golden_features(name, x, omega), rtol=2e-4, atol=2e-5)


@given(seed=st.integers(0, 10**6), log_scale=st.floats(-2, 0.5))
def test_products_of_features_are_means_over_frequencies(seed, log_scale):
  q, k = normal(seed, 2, 3, scale=10**log_scale)
  omega = normal(seed + 1, 2, 4, 3)
  estimate = kernels(q, k, omega)
  wide = np.asarray(omega, np.float64)
  fourier = np.mean(np.cos(wide @ (q - k)), axis=1)
  positive = np.mean(np.exp(wide @ (q + k) - q @ q - k @ k), axis=1)
  np.testing.assert_allclose(estimate['fourier'], fourier, atol=2e-5)
  np.testing.assert_allclose(estimate['positive'], positive, rtol=2e-4)


@given(seed=st.integers(0, 10**6))
def test_fourier_features_have_norm_one_and_positive_ones_are_positive(seed):
  x, omega = normal(seed, 2, 5, 2, 3, scale=2.0), normal(seed + 1, 2, 4, 3)
  phi = JITTED['fourier'](x, omega)
  np.testing.assert_allclose(np.linalg.norm(phi, axis=-1), 1, rtol=1e-5)
  assert np.all(np.asarray(JITTED['positive'](x, omega)) > 0)


@pytest.mark.parametrize('name', MAPS)
def test_estimates_of_the_gaussian_kernel_are_unbiased(name):
  q, k = np.float32([0.5, -0.2, 0.3]), np.float32([-0.1, 0.4, 0.6])
  estimates = kernels(q, k, normal(4, 20_000, 2, 3))[name]
  assert_mean(estimates, math.exp(-float(np.sum((q - k) ** 2)) / 2))


@pytest.mark.parametrize('name', MAPS)
def test_error_falls_as_the_inverse_root_of_the_number_of_frequencies(name):
  q, k = np.float32([0.5, -0.2, 0.3]), np.float32([-0.1, 0.4, 0.6])
  exact = math.exp(-float(np.sum((q - k) ** 2)) / 2)
  omega = normal(5, 4_000, 64, 3)
  errors = [
    np.sqrt(np.mean((np.asarray(kernels(q, k, omega[:, :m])[name]) - exact) ** 2))
    for m in (4, 16, 64)
  ]
  np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.1)


@pytest.mark.parametrize('name', MAPS)
def test_estimates_of_the_kernel_of_a_mixture_are_unbiased(name):
  q, k = np.float32([0.5, -0.2]), np.float32([-0.1, 0.4])
  mean, scale = np.float32([0.7, -0.4]), np.float32([[0.8, 0.3], [-0.2, 0.6]])
  sign = np.where(np.random.default_rng(6).random((20_000, 3, 1)) < 0.5, 1, -1)
  omega = normal(7, 20_000, 3, 2) @ scale.T + sign.astype(np.float32) * mean
  if name == 'fourier':  # The characteristic function of the mixture.
    p = q - k
    expected = math.exp(-np.sum((scale.T @ p) ** 2) / 2) * math.cos(mean @ p)
  else:  # Its moment generating function.
    o = q + k
    expected = math.exp(np.sum((scale.T @ o) ** 2) / 2 - q @ q - k @ k) * math.cosh(mean @ o)
  assert_mean(kernels(q, k, omega)[name], expected)


def test_gradients_by_the_frequencies_are_analytic():
  q, k, omega = normal(8, 3), normal(9, 3, scale=0.5), normal(10, 2, 4, 3)
  total = lambda omega, name: jnp.sum(kernels(q, k, omega)[name])
  gradient = jax.jit(jax.grad(total), static_argnums=1)
  fourier = -np.sin(omega @ (q - k))[..., None] * (q - k) / 4
  positive = np.exp(omega @ (q + k) - q @ q - k @ k)[..., None] * (q + k) / 4
  np.testing.assert_allclose(gradient(omega, 'fourier'), fourier, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(gradient(omega, 'positive'), positive, rtol=1e-4, atol=1e-6)


def test_elu_features_are_positive_and_golden():
  x = np.float32([-50, -2, -0.5, 0, 0.5, 3]).reshape(1, 1, 1, 6)
  expected = [math.exp(v) if v < 0 else v + 1 for v in x.ravel().tolist()]
  phi = jax.jit(elu_features)(x).ravel()
  np.testing.assert_allclose(phi, expected, rtol=1e-6, atol=1e-7)
  assert np.all(np.asarray(phi) >= 0)
