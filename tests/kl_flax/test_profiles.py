import jax
import numpy as np
import pytest
from breadth import slow_but

from kl_flax.fastfood import FastFood
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.profiles import (
  draw_frequencies,
  gaussian_profile,
  kernel_profile,
  principal_directions,
  softmax_profile,
  spectral_covariance,
  spectral_density,
)
from kl_flax.spectral import GaussianMixture, Generator

T = np.array([-1.5, -0.5, 0.3, 1.2])


def normal(seed, *shape, scale=1.0):
  return np.random.default_rng(seed).normal(0, scale, shape)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mixture(num_heads=2, d=3, components=3, seed=0):
  """Return a mixture whose parameters are not its initial ones, full and with learned weights."""
  sampler = GaussianMixture(components * 4, components, tied=False, weights='learned')
  params = {
    'mean': normal(seed, num_heads, components, d, scale=0.6),
    'scale': normal(seed + 1, num_heads, components, d, d, scale=0.4),
    'weight_logits': normal(seed + 2, num_heads, components),
  }
  return sampler, {name: x.astype(np.float32) for name, x in params.items()}


@pytest.mark.parametrize('features', slow_but(['positive'], ['fourier', 'positive', 'softmax']))
def test_profile_is_what_many_frequencies_give(features):
  """The closed form against a plain mean over 80,000 frequencies, from the definition."""
  sampler, params = mixture()
  u, q = unit(normal(5, 2, 3)), normal(6, 2, 3, scale=0.3)
  found = kernel_profile(features, sampler, params, u, T, origin=q)
  assert np.all(found.error == 0)
  omega, weight = draw_frequencies(sampler, params, 2, 3, num_draws=6667)
  for head in range(2):
    kernel = []
    for t in (0.0, *T):
      k = q[head] + t * u[head]
      if features == 'fourier':
        values = np.cos(omega[head] @ (k - q[head]))
      else:
        norm = (1 if features == 'positive' else 0.5) * (q[head] @ q[head] + k @ k)
        values = np.exp(omega[head] @ (k + q[head]) - norm)
      kernel.append(weight[head] @ values)
    expected = np.array(kernel[1:]) / kernel[0]
    np.testing.assert_allclose(found.kernel[head], expected, rtol=0.03, atol=0.01)


@pytest.mark.parametrize('covariance', ['full', 'diagonal'])
def test_profile_in_one_dimension_is_an_integral_over_the_spectrum(covariance):
  """∫ cos(t ω) p(ω) dω, and ∫ exp(t ω − t²) p(ω) dω, by the trapezoidal rule."""
  mean, width = 1.3, 0.7
  params = {'mean': np.full((1, 1, 1), mean)}
  if covariance == 'full':
    params['scale'] = np.full((1, 1, 1, 1), width)
  else:
    params['log_variance'] = np.full((1, 1, 1), 2 * np.log(width))
  sampler, u = GaussianMixture(4, covariance=covariance), np.ones((1, 1))
  omega = np.linspace(-12, 12, 20_001)
  pair = [np.exp(-(((omega - m) / width) ** 2) / 2) for m in (mean, -mean)]
  density = sum(pair) / (2 * width * np.sqrt(2 * np.pi))
  np.testing.assert_allclose(spectral_density(sampler, params, u, omega)[0], density, atol=1e-7)
  for features in ('fourier', 'positive'):
    found = kernel_profile(features, sampler, params, u, T).kernel[0]
    for t, value in zip(T, found, strict=True):
      term = np.cos(t * omega) if features == 'fourier' else np.exp(t * omega - t**2)
      assert value == pytest.approx(np.trapezoid(term * density, omega), rel=1e-6)


def test_profiles_of_the_normal_distribution_are_the_known_kernels():
  u, q = unit(normal(0, 2, 4)), normal(1, 2, 4)
  expected = np.broadcast_to(gaussian_profile(T), (2, 4))
  for features in ('fourier', 'positive'):
    for sampler in (Gaussian(4), OrthogonalGaussian(4, typical_norm=2.0)):
      found = kernel_profile(features, sampler, {}, u, T, origin=q)
      np.testing.assert_allclose(found.kernel, expected, rtol=1e-9)
  found = kernel_profile('softmax', Gaussian(4), {}, u, T, origin=q)
  np.testing.assert_allclose(found.kernel, softmax_profile(u, T, q), rtol=1e-9)


@pytest.mark.parametrize('features', slow_but(['positive'], ['fourier', 'positive']))
def test_profile_without_closed_form_errs_as_it_says(features):
  """Learned FastFood at its first values: near the Gaussian kernel, over draws of permutations."""
  u, q = unit(normal(0, 1, 4)), normal(1, 1, 4, scale=0.2)
  rng = np.random.default_rng(0)
  blocks = 256  # So many that the fixed diagonals say little by themselves.
  G = rng.normal(size=(1, blocks, 4))
  lengths = np.linalg.norm(rng.normal(size=(1, blocks, 4, 4)), axis=-1)
  S = lengths / np.linalg.norm(G, axis=-1, keepdims=True)
  params = {'B': rng.choice([-1.0, 1.0], (1, blocks, 4)), 'G': G, 'S': S}
  params = {name: x.astype(np.float32) for name, x in params.items()}
  few, many = (
    kernel_profile(features, FastFood(4 * blocks), params, u, T, origin=q, num_draws=n, seed=n)
    for n in (50, 800)
  )
  assert np.all(few.error > 0)
  np.testing.assert_allclose(few.error / many.error, 4, rtol=0.5)
  assert np.all(np.abs(few.kernel - many.kernel) < 5 * few.error)
  np.testing.assert_allclose(many.kernel, np.exp(-(T**2) / 2)[None], atol=0.15)


def test_profile_of_what_draws_nothing_has_no_error():
  sampler = StructuredOrthogonal(8, learned=True)
  diagonals = normal(0, 1, 2, 3, 4).astype(np.float32)
  u = unit(normal(1, 1, 4))
  found = kernel_profile('fourier', sampler, {'diagonals': diagonals}, u, T, num_draws=3)
  np.testing.assert_allclose(found.error, 0, atol=1e-7)
  omega, _ = draw_frequencies(sampler, {'diagonals': diagonals}, 1, 4, num_draws=1)
  expected = np.cos(T[:, None] * (omega[0] @ u[0])).mean(axis=1)
  np.testing.assert_allclose(found.kernel[0], expected, atol=1e-5)


def test_positive_kernels_grow_along_variances_above_two():
  """What the tables of eigenvalues say of them."""
  sampler = GaussianMixture(4, covariance='diagonal')
  params = {'mean': np.zeros((1, 1, 2)), 'log_variance': np.log([[[2.2, 1.8]]])}
  for u, sign in (([1.0, 0.0], 1), ([0.0, 1.0], -1)):
    found = kernel_profile('positive', sampler, params, np.array([u]), np.array([1.0, 2.0]))
    assert np.all(sign * np.log(found.kernel) > 0)


def test_covariance_and_density_are_those_of_the_draws():
  sampler, params = mixture()
  exact = spectral_covariance(sampler, params, 2, 3)
  omega, weight = draw_frequencies(sampler, params, 2, 3, num_draws=4000)
  np.testing.assert_allclose(weight.sum(axis=1), 1)
  for head in range(2):
    measured = np.cov(omega[head].T, aweights=weight[head])
    np.testing.assert_allclose(exact[head], measured, atol=0.06 * exact[head].max())
  u, points = unit(normal(9, 2, 3)), np.linspace(-15, 15, 3001)
  density = spectral_density(sampler, params, u, points)
  np.testing.assert_allclose(np.trapezoid(density, points), 1, rtol=1e-6)
  along = np.einsum('hnd,hd->hn', omega, u)
  edges = points[::100]
  for head in range(2):
    bars, _ = np.histogram(along[head], edges, weights=weight[head])
    share = [np.trapezoid(density[head, i : i + 101], points[i : i + 101])
             for i in range(0, 3000, 100)]  # fmt: skip
    np.testing.assert_allclose(bars, share, atol=0.01)


def test_covariance_of_other_samplers_is_measured():
  sampler = Generator(64)
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  params = jax.jit(sampler.init, static_argnums=(1, 2))(rngs, 2, 3)['params']
  found = spectral_covariance(sampler, params, 2, 3, num_draws=300)
  again = spectral_covariance(sampler, params, 2, 3, num_draws=300, seed=1)
  np.testing.assert_allclose(found, again, atol=0.05)
  assert spectral_density(sampler, params, np.eye(2, 3), T) is None
  np.testing.assert_allclose(found[0], found[1])  # Heads share the draws.


def test_principal_directions_are_those_of_numpy():
  scale = normal(0, 2, 3, 3)
  covariance = scale @ np.swapaxes(scale, -1, -2)
  values, directions = principal_directions(covariance)
  assert np.all(np.diff(values) <= 0)
  for head in range(2):
    np.testing.assert_allclose(
      covariance[head] @ directions[head].T, directions[head].T * values[head], atol=1e-9
    )
    np.testing.assert_allclose(directions[head] @ directions[head].T, np.eye(3), atol=1e-9)


def test_unknown_features_are_named():
  with pytest.raises(ValueError, match="fourier, positive or softmax, got 'elu'"):
    kernel_profile('elu', Gaussian(4), {}, np.eye(1, 4), T)
