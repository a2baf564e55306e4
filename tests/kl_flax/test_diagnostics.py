import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but

from kl_flax.closed_forms import closed_form, fastfood_estimate, mixture_estimate
from kl_flax.diagnostics import approximation_report, covariance_eigenvalues
from kl_flax.fastfood import FastFood
from kl_flax.features import fourier_features, positive_features, softmax_features
from kl_flax.models import make_classifier
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.spectral import Distribution, GaussianMixture, as_weighted, optimal_stretch, widen

MAPS = {
  'fourier': fourier_features, 'positive': positive_features, 'softmax': softmax_features
}  # fmt: skip
DRAWS = 40_000


def normal(seed, *shape, scale=1.0):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames='sampler')
def estimates(sampler, params, pairs):
  """Return independent estimates of κ(q, k) for each feature map: heads are the repetitions."""
  ((d, *_),) = {q.shape for q, _ in pairs.values()}
  params = jax.tree.map(lambda x: jnp.broadcast_to(x, (DRAWS, *x.shape[1:])), params)
  rngs = {'spectral': jax.random.key(3)}
  sample = sampler.apply({'params': params}, DRAWS, d, rngs=rngs)
  omega, log_weight = as_weighted(sample)

  def estimate(features, q, k):
    phi = lambda x: MAPS[features](jnp.broadcast_to(x, (1, 1, DRAWS, d)), omega)
    products = phi(q) * phi(k)
    if log_weight is not None:
      repeats = 2 if features == 'fourier' else 1
      products *= jnp.tile(jnp.exp(log_weight), (1, repeats))
    return jnp.sum(products, axis=(0, 1, 3))

  return {features: estimate(features, *pair) for features, pair in pairs.items()}


def assert_bias_and_error(samples, kernel, mse):
  """Assert mean and mean squared error of estimates, both within 4.5 standard errors."""
  deviation = np.asarray(samples, np.float64) - kernel
  root = math.sqrt(len(deviation))
  assert abs(np.mean(deviation)) < 4.5 * np.std(deviation) / root
  standard_error = np.std(deviation**2) / root
  assert abs(np.mean(deviation**2) - mse) < 4.5 * standard_error
  assert standard_error < 0.06 * mse  # The test must be able to fail.


def params_of(sampler, d, seed=0):
  """Return parameters of a mixture that are not its initial ones, for one head."""
  free = 1 if sampler.tied else sampler.num_components
  params = {'mean': normal(seed, 1, free, d, scale=0.7)}
  if sampler.covariance == 'full':
    params['scale'] = normal(seed + 1, 1, free, d, d, scale=0.5)
  else:
    params['log_variance'] = normal(seed + 1, 1, free, d, scale=0.5) - 1
  if sampler.weights == 'learned':
    params['weight_logits'] = normal(seed + 2, 1, free)
  return params


SAMPLERS = {
  'tied': GaussianMixture(8),
  'tied diagonal': GaussianMixture(8, covariance='diagonal'),
  'one component': GaussianMixture(4, 1, tied=False),
  'three': GaussianMixture(6, 3, tied=False),
  'three with shared noise': GaussianMixture(6, 3, tied=False, shared_noise=True),
  'learned weights': GaussianMixture(6, 3, 'diagonal', tied=False, weights='learned'),
  'antithetic': GaussianMixture(8, antithetic=True),
  'antithetic, untied': GaussianMixture(8, 2, tied=False, antithetic=True),
  'stretched': GaussianMixture(8, typical_norm=1.0),
  'everything': GaussianMixture(
    12, 3, tied=False, weights='learned', shared_noise=True, antithetic=True, typical_norm=0.5
  ),
}


# All options are in these.
_FAST = ('tied', 'learned weights', 'antithetic', 'everything')


@pytest.mark.parametrize('name', slow_but(_FAST, SAMPLERS))
def test_estimates_are_unbiased_and_err_as_the_closed_form_says(name):
  sampler, d = SAMPLERS[name], 3
  params = params_of(sampler, d)
  # Small for positive features: the tails of larger ones are too heavy to measure.
  pairs = {
    features: tuple(normal(5, 2, d, scale=scale))
    for features, scale in (('fourier', 1.0), ('positive', 0.35))
  }
  samples = estimates(sampler, params, pairs)
  for features, (q, k) in pairs.items():
    report = approximation_report(
      q[None, None, None] * d**0.25, k[None, None, None] * d**0.25, sampler, params,
      features=features, num_pairs=1, num_draws=2,
    )  # fmt: skip
    kernel, relative = report.kernel[0, 0], report.predicted[0, 0]
    assert_bias_and_error(samples[features], kernel, (relative * kernel) ** 2)


@pytest.mark.parametrize('dependent', [OrthogonalGaussian(8), StructuredOrthogonal(8)])
def test_of_dependent_frequencies_the_kernel_alone_has_a_closed_form(dependent):
  """Their errors are not those of independent ones, nor of a single frequency."""
  pair = normal(0, 2, 3, 4, scale=0.5)
  for features in ('fourier', 'positive', 'softmax'):
    exact = closed_form(features, *pair, Gaussian(8), {}, 0)
    found = closed_form(features, *pair, dependent, {}, 0)
    assert found.relative_error is None
    np.testing.assert_array_equal(found.kernel, exact.kernel)
    assert exact.relative_error.shape == (3,)


def test_samplers_may_say_what_their_frequencies_are():
  class Wide(nn.Module):
    @nn.compact
    def __call__(self, num_heads, head_dim):
      return 2 * jax.random.normal(self.make_rng('spectral'), (num_heads, 64, head_dim))

  class Named(Wide):
    distribution: str = 'a field of this name'

  class Known(Wide):
    def distribution(self, params, head, head_dim):
      ones = np.ones((1, head_dim))
      return Distribution(0 * ones, 2 * ones, np.ones(1), {'num_noise': 64})

  x = np.random.default_rng(0).normal(size=(2, 1, 9, 2, 4)) / 3
  for unknown in (Wide(), Named()):
    assert approximation_report(*x, unknown, features='fourier').predicted is None
  known = approximation_report(*x, Known(), features='fourier', num_draws=2000)
  np.testing.assert_allclose(known.measured, known.predicted, rtol=0.15)


def test_closed_forms_of_the_paper():
  """Theorem 3 for a mirrored pair with shared noise, corrected: as derived by hand."""
  q, k = normal(0, 2, 5, 4, scale=0.5).astype(np.float64)
  mean, scale = normal(1, 4), normal(2, 4, 4)
  for m in (1, 7):
    pair = (np.stack([mean, -mean]), np.stack([scale, scale]), m)
    p, o = k - q, k + q
    variance, a = np.sum((p @ scale) ** 2, 1), p @ mean
    found = mixture_estimate('fourier', q, k, *pair, shared_noise=True)
    np.testing.assert_allclose(found.kernel, np.exp(-variance / 2) * np.cos(a), rtol=1e-9)
    expected = np.cos(a) ** 2 * (1 - np.exp(-variance)) ** 2 / (2 * m)
    np.testing.assert_allclose(found.mse, expected, rtol=1e-9)
    variance, a = np.sum((o @ scale) ** 2, 1), o @ mean
    norms = np.sum(q**2 + k**2, 1)
    spread = np.exp(2 * variance) - np.exp(variance)
    found = mixture_estimate('positive', q, k, *pair, shared_noise=True)
    np.testing.assert_allclose(found.mse, np.exp(-2 * norms) * np.cosh(a) ** 2 * spread / m)
    one = mixture_estimate('positive', q, k, mean[None], scale[None], m)
    np.testing.assert_allclose(one.mse, np.exp(-2 * norms + 2 * a) * spread / m)
    np.testing.assert_allclose(one.relative_error, np.sqrt((np.exp(variance) - 1) / m))


def test_softmax_features_estimate_the_softmax_kernel():
  q, k = normal(0, 2, 5, 4, scale=0.5).astype(np.float64)
  found = mixture_estimate('softmax', q, k, np.zeros((1, 4)), np.ones((1, 4)), 3)
  np.testing.assert_allclose(found.kernel, np.exp(np.sum(q * k, axis=1)), rtol=1e-9)


def test_the_stretch_is_the_best_one():
  """Against a scan over A of the error itself."""
  d, z = 16, normal(0, 16)
  norm = float(z @ z)
  log_error = lambda a: (
    d * np.log(1 - 4 * a) - d / 2 * np.log(1 - 8 * a) + 2 * norm * (1 - 4 * a) / (1 - 8 * a)
  )
  scan = -np.exp(np.linspace(-9, 1, 20_001))
  best = scan[np.argmin(log_error(scan))]
  assert optimal_stretch(norm, d) == pytest.approx(best, rel=1e-3)
  found = [
    mixture_estimate('positive', z[None] / 2, z[None] / 2, np.zeros((1, d)), np.ones((1, d)), 4,
                     typical_norm=t).mse[0]
    for t in (norm / 2, norm, norm * 2)
  ]  # fmt: skip
  assert found[1] < min(found[0], found[2])


def test_no_stretch_changes_nothing():
  noise = normal(0, 4, 3)
  stretched, log_weight = widen(jnp.asarray(noise), 0.0)
  np.testing.assert_array_equal(stretched, noise)
  np.testing.assert_array_equal(log_weight, 0)
  with pytest.raises(ValueError, match='typical_norm must be at least 0, got -1'):
    optimal_stretch(-1.0, 3)


def test_fastfood_errs_within_its_bounds():
  d, m = 8, 16
  pairs = {
    features: tuple(normal(3, 2, d, scale=scale))
    for features, scale in (('fourier', 0.25), ('positive', 0.12))
  }
  samples = estimates(FastFood(m, learned='none'), {}, pairs)
  for features, (q, k) in pairs.items():
    found = fastfood_estimate(features, q[None], k[None], m)
    deviation = np.asarray(samples[features], np.float64) - found.kernel[0]
    error = 4.5 / math.sqrt(DRAWS)
    assert abs(np.mean(deviation)) < error * np.std(deviation)
    measured, spread = np.mean(deviation**2), np.std(deviation**2) * error
    if features == 'fourier':
      assert measured - spread < found.mse[0]
    else:
      assert measured > found.mse[0] - spread
      assert measured < 2 * found.mse[0]


@pytest.mark.slow
@pytest.mark.parametrize('features', ['fourier', 'positive'])
def test_error_falls_with_the_root_of_the_frequencies(features):
  """Measured, for a sampler whose error has no closed form."""
  q, k = normal(3, 2, 1, 200, 2, 8, scale=0.5)
  errors = [
    np.median(approximation_report(q, k, FastFood(m, learned='none'), features=features,
                                   num_pairs=60, num_draws=400).measured)
    for m in (8, 32, 128)
  ]  # fmt: skip
  slopes = np.diff(np.log(errors)) / math.log(4)
  np.testing.assert_allclose(slopes, -0.5, atol=0.12)


def test_eigenvalues_are_those_of_the_covariances():
  full, diagonal = normal(0, 2, 1, 4, 4), normal(1, 2, 3, 4)
  found = covariance_eigenvalues(
    {
      'a': {'sampler': {'mean': normal(2, 2, 1, 4), 'scale': full}},
      'b': {'mean': normal(3, 2, 3, 4), 'log_variance': diagonal},
      'norm': {'scale': np.ones(4), 'bias': np.zeros(4)},
    }
  )
  assert found.keys() == {'a/sampler', 'b'}
  expected = np.linalg.eigvalsh(full @ np.swapaxes(full, -1, -2))[..., ::-1]
  np.testing.assert_allclose(found['a/sampler'], expected, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found['b'], np.sort(np.exp(diagonal), -1)[..., ::-1], rtol=1e-6)


def test_eigenvalues_of_a_model_are_found_by_layer():
  model = make_classifier(
    'gmm_prf', num_classes=2, vocab_size=5, emb_dim=8, num_heads=2, qkv_dim=8, mlp_dim=8,
    num_layers=2, max_length=4, attention={'num_frequencies': 4},
  )  # fmt: skip
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  params = jax.eval_shape(model.init, rngs, jnp.zeros((1, 4), int))['params']
  params = jax.tree.map(lambda x: np.ones(x.shape), params)
  found = covariance_eigenvalues(params)
  assert len(found) == 2
  for i, (path, values) in enumerate(found.items()):
    assert f'block_{i}' in path
    assert values.shape == (2, 1, 4)


def test_report_prints_a_row_for_each_head():
  q, k = normal(0, 2, 2, 9, 3, 4)
  sampler = GaussianMixture(8)
  init = jax.jit(sampler.init, static_argnums=(1, 2))
  params = init({'params': jax.random.key(0), 'spectral': jax.random.key(1)}, 3, 4)
  text = str(approximation_report(q, k, sampler, params['params'], num_draws=5, num_pairs=4))
  assert len(text.splitlines()) == 5
  assert '4 pairs, 5 draws' in text
  text = str(approximation_report(q, k, FastFood(8, learned='none'), num_draws=5, num_pairs=4))
  assert text.count('no closed form') == 3


def test_large_norms_are_told_in_logs():
  """exp(|o|²) is beyond float32 and the kernel below it: the error is not."""
  q, k = normal(0, 2, 1, 5, 1, 16, scale=6.0)
  report = approximation_report(q, k, GaussianMixture(8, 1, tied=False),
    {'mean': np.zeros((1, 1, 16), np.float32), 'scale': np.eye(16, dtype=np.float32)[None, None]},
    num_pairs=20, num_draws=50)  # fmt: skip
  norm = report.typical_norm[0]
  assert norm > 150
  assert np.all(np.isfinite(report.measured))
  assert (
    np.exp(norm / 2) / 10
    < np.exp(np.mean(np.log(report.predicted))) * 8**0.5
    < 10 * np.exp(norm / 2)
  )
  # Tails that heavy are not met by any draw: nearly all estimates are far too small.
  assert 0.9 < np.median(report.measured) < 1.1


def test_report_names_what_does_not_fit():
  unchecked = getattr(approximation_report, '__wrapped__', approximation_report)
  with pytest.raises(ValueError, match=r'query and key must agree in all but length'):
    unchecked(np.ones((1, 3, 2, 4)), np.ones((1, 3, 2, 5)), GaussianMixture(4))
  with pytest.raises(ValueError, match="features must be fourier, positive or softmax, got 'elu'"):
    mixture_estimate('elu', *np.ones((2, 1, 2)), np.ones((1, 2)), np.ones((1, 2)), 1)
