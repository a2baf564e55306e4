"""How good an estimate of its kernel is: closed forms, and measurements on given data.

The closed forms are those of the paper's Theorem 3, corrected (it prints norms where squared norms
are meant, and 2/m where 1/(2m) is right for an estimate of κ itself) and generalised to any number
of components, shared or independent noise, antithetic draws and stretched draws
(`kl_flax.spectral.widen`). All are in float64 NumPy: nothing is trained through them.

Notation: p = k − q, o = k + q, both at the temperature; n ~ N(0, I); a component has mean mu and
covariance S Sᵀ; m is the number of noise vectors of each component.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.fastfood import FastFood
from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.spectral import GaussianMixture, as_weighted, optimal_stretch


class Estimate(NamedTuple):
  """What an estimator of a kernel gives, for n pairs of query and key.

  Attributes:
    scaled_kernel: float64[n], its expectation, the exact kernel, over exp(log_scale).
    relative_error: float64[n], root mean squared error over |kernel|; it stays meaningful where
      the kernel itself is too small for a float. None where the kernel alone is known.
    log_scale: float64[n]; 0 for Fourier features.
  """

  scaled_kernel: np.ndarray
  relative_error: np.ndarray | None
  log_scale: np.ndarray

  @property
  def kernel(self) -> np.ndarray:
    """The exact kernel, float64[n]; it may underflow."""
    return np.exp(self.log_scale) * self.scaled_kernel

  @property
  def mse(self) -> np.ndarray:
    """Mean squared error, which is the variance, float64[n]."""
    return (self.relative_error * self.kernel) ** 2


def mixture_estimate(
  features: FeatureMap,
  query: np.ndarray,
  key: np.ndarray,
  mean: np.ndarray,
  scale: np.ndarray,
  num_noise: int,
  *,
  shares: np.ndarray | None = None,
  shared_noise: bool = False,
  antithetic: bool = False,
  typical_norm: float = 0.0,
) -> Estimate:
  """Return kernel and error of random features whose frequencies are a Gaussian mixture's.

  With shared noise, two components mu and −mu, and the same S, this is the paper's case: for
  Fourier features MSE = cos²(muᵀp) (1 − exp(−|Sᵀp|²))² / (2m), for positive ones
  exp(−2|q|² − 2|k|²) cosh²(muᵀo) (exp(2|Sᵀo|²) − exp(|Sᵀo|²)) / m.

  Args:
    features: 'fourier', 'positive' or 'softmax'.
    query: [n, D], already divided by D^(1/4).
    key: [n, D], likewise; pairs are formed row by row.
    mean: mu, [C, D].
    scale: S as matrices [C, D, D] or their diagonals [C, D].
    num_noise: m; antithetic draws count both of a pair.
    shares: pi, [C], summing to one; None: equal.
    shared_noise: whether the components share their draws.
    antithetic: whether the draws come in pairs ±n.
    typical_norm: of `kl_flax.spectral.widen`.

  Raises:
    ValueError: for features that have no frequencies.
  """
  query, key, mean, scale = (np.asarray(x, np.float64) for x in (query, key, mean, scale))
  num_components, head_dim = mean.shape
  shares = np.full(num_components, 1 / num_components) if shares is None else np.asarray(shares)
  if features == 'fourier':
    z, log_norm = key - query, np.zeros(len(query))
  elif features in SQUARED_NORM_FACTOR:
    z = key + query
    log_norm = -SQUARED_NORM_FACTOR[features] * np.sum(query**2 + key**2, axis=1)
  else:
    raise ValueError(f'features must be fourier, positive or softmax, got {features!r}')
  # f_c(n) = g(nᵀa_c + b_c), with g the cosine or the exponential.
  if scale.ndim == 3:
    a = np.einsum('cij,ni->cnj', scale, z)
  else:
    a = scale[:, None] * z
  b = np.einsum('ci,ni->cn', mean, z)

  # Exponentials are taken relative to the largest component's mean, or they would overflow.
  reference = np.zeros(len(query))
  if features != 'fourier':
    reference = np.max(b + np.sum(a**2, axis=-1) / 2, axis=0)

  def moment(a, b, stretch=1.0, power=1):
    """Return E g(nᵀa + b) over exp(power · reference), n's covariance multiplied by `stretch`."""
    exponent = stretch * np.sum(a**2, axis=-1) / 2
    if features == 'fourier':
      return np.cos(b) * np.exp(-exponent)
    with np.errstate(over='ignore'):  # An infinite error is what it is.
      return np.exp(b + exponent - power * reference)

  # Stretched draws: E w² g(sqrt(1 − 4A) nᵀa) is a Gaussian expectation too.
  stretch_a = optimal_stretch(typical_norm, head_dim)
  stretch = (1 - 4 * stretch_a) / (1 - 8 * stretch_a)
  weight = (1 - 4 * stretch_a) ** head_dim * (1 - 8 * stretch_a) ** (-head_dim / 2)

  def product(c, d, sign):
    """Return E f_c(n) f_d(sign · n)."""
    together = moment(a[c] + sign * a[d], b[c] + b[d], stretch, power=2)
    if features != 'fourier':
      return weight * together
    apart = moment(a[c] - sign * a[d], b[c] - b[d], stretch)
    return weight * (together + apart) / 2

  means = np.stack([moment(a[c], b[c]) for c in range(num_components)])
  variance = np.zeros(len(query))
  for c in range(num_components):
    for d in range(num_components):
      if c != d and not shared_noise:
        continue
      covariance = product(c, d, 1) - means[c] * means[d]
      if antithetic:
        covariance += product(c, d, -1) - means[c] * means[d]
      variance += shares[c] * shares[d] * covariance
  mean = shares @ means
  relative_error = np.sqrt(np.maximum(variance, 0) / num_noise) / np.abs(mean)
  log_scale = log_norm + reference
  return Estimate(mean, relative_error, log_scale)


def fastfood_estimate(
  features: FeatureMap, query: np.ndarray, key: np.ndarray, num_frequencies: int
) -> Estimate:
  """Return the kernel of FastFood as Le et al. draw it, and a bound of its error.

  Each frequency is N(0, I) by itself, but those of one block depend on each other. For Fourier
  features `mse` is the upper bound of Le et al. 2013 (Theorem 9), (1/M) [(1 − e^(−|p|²))² / 2 +
  6 |p|⁴ (e^(−|p|²) + |p|²/3)]. For positive features `mse` is a lower bound,
  that of M independent frequencies; the error was less than twice as large wherever measured.

  Args:
    features: 'fourier', 'positive' or 'softmax'.
    query: [n, D], already divided by D^(1/4).
    key: [n, D], likewise.
    num_frequencies: M.
  """
  head_dim = np.shape(query)[1]
  mean, scale = np.zeros((1, head_dim)), np.ones((1, head_dim))
  independent = mixture_estimate(features, query, key, mean, scale, num_frequencies)
  if features != 'fourier':
    return independent
  norm = np.sum((np.asarray(key, np.float64) - query) ** 2, axis=1)
  dependence = 6 * norm**2 * (np.exp(-norm) + norm / 3)
  mse = independent.mse + dependence / num_frequencies
  return independent._replace(relative_error=np.sqrt(mse) / independent.kernel)


def covariance_eigenvalues(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Return the eigenvalues of every Gaussian mixture's covariances in a tree of parameters.

  By Theorem 3 they rule the estimators' variance. The paper's Tables 4 and 9 to 12 list them.

  Args:
    params: of a model, a layer or a sampler.

  Returns:
    For each mixture, by the path of its module: float64 [H, C, D], descending; C counts the free
    components (one for a tied pair). Empty if there is no mixture.

  >>> covariance_eigenvalues({'mean': np.zeros((1, 1, 2)), 'scale': np.diag([3., 2.])[None, None]})
  {'': array([[[9., 4.]]])}
  """
  found, leaves = {}, flax.traverse_util.flatten_dict(dict(params))
  for path, leaf in leaves.items():
    if path[-1] == 'scale' and (*path[:-1], 'mean') in leaves:  # Norms have scales too.
      values = np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False) ** 2
    elif path[-1] == 'log_variance':
      values = np.flip(np.sort(np.exp(np.asarray(leaf, np.float64)), axis=-1), axis=-1)
    else:
      continue
    found['/'.join(path[:-1])] = values
  return found


@dataclasses.dataclass(frozen=True)
class ApproximationReport:
  """Errors of a sampler's kernel estimates on given queries and keys; `print` it.

  Attributes:
    kernel: float64 [H, n]: the exact one that the sampler stands for, where that is known (the
      Gaussian kernel for samplers of N(0, I)), else the mean over all draws.
    measured: float64 [H, n], root mean squared error over |kernel|, over the draws.
    predicted: the same from the closed form, or None where there is none.
    num_draws: draws of all frequencies that the measurement took.
    typical_norm: float64 [H], the mean of |Sᵀ(q + k)|² (|q + k|² for other samplers than
      mixtures), which is what the samplers' option of this name wants to know.
  """

  kernel: np.ndarray
  measured: np.ndarray
  predicted: np.ndarray | None
  num_draws: int
  typical_norm: np.ndarray

  def __str__(self) -> str:
    """Return a table with a row for each head."""
    lines = [
      f'relative error of kernel estimates, {self.measured.shape[1]} pairs, {self.num_draws} draws',
      'head  measured: median, 90 %   predicted: median, 90 %   typical_norm',
    ]
    quantiles = lambda values: '{:10.3g} {:10.3g}'.format(*np.quantile(values, [0.5, 0.9]))
    for head, measured in enumerate(self.measured):
      known = self.predicted is not None
      predicted = quantiles(self.predicted[head]) if known else 'no closed form'
      norm = self.typical_norm[head]
      lines.append(f'{head:4d}     {quantiles(measured)}     {predicted:>21s}   {norm:12.3g}')
    return '\n'.join(lines)


def approximation_report(
  query: np.ndarray | jax.Array,
  key: np.ndarray | jax.Array,
  sampler: nn.Module,
  params: Mapping[str, Any] | None = None,
  *,
  features: Literal['fourier', 'positive', 'softmax'] = 'positive',
  num_pairs: int = 200,
  num_draws: int = 200,
  seed: int = 0,
) -> ApproximationReport:
  """Measure a sampler's relative error on given queries and keys, and predict it.

  Args:
    query: [b, l, h, d] as attention gets them; the temperature is applied here.
    key: [b, s, h, d].
    sampler: module that returns omega, such as `kl_flax.GaussianMixture`.
    params: its parameters; None for one that has none.
    features: the feature map.
    num_pairs: of query and key, drawn at random from the batch.
    num_draws: of all frequencies.
    seed: of pairs and draws.

  Raises:
    ValueError: if query and key do not agree in batch, heads and head size.
  """
  if query.ndim != 4 or (*query.shape[::2], query.shape[3]) != (*key.shape[::2], key.shape[3]):
    raise ValueError(f'query and key must agree in all but length, got {query.shape}, {key.shape}')
  num_heads, head_dim = query.shape[2:]
  rng = np.random.default_rng(seed)
  batch = rng.integers(query.shape[0], size=num_pairs)
  rows = [
    np.asarray(x, np.float64)[batch, rng.integers(x.shape[1], size=num_pairs)] for x in (query, key)
  ]
  q, k = (np.swapaxes(x, 0, 1) * head_dim**-0.25 for x in rows)  # [H, n, D]
  log_estimates = draw_estimates(q, k, sampler, params or {}, features, num_draws, seed)
  exact = [closed_form(features, q[h], k[h], sampler, params or {}, h) for h in range(num_heads)]
  if exact[0] is not None:
    log_scale = np.stack([e.log_scale for e in exact])
  else:
    log_scale = np.zeros(q.shape[:2]) if features == 'fourier' else np.max(log_estimates, axis=0)
  estimates = log_estimates if features == 'fourier' else np.exp(log_estimates - log_scale)
  mean = np.mean(estimates, axis=0)
  if exact[0] is not None:
    mean = np.stack([e.scaled_kernel for e in exact])
  return ApproximationReport(
    np.exp(log_scale) * mean,
    np.sqrt(np.mean((estimates / mean - 1) ** 2, axis=0)),
    None
    if exact[0] is None or exact[0].relative_error is None
    else np.stack([e.relative_error for e in exact]),
    num_draws,
    np.array([_typical_norm(q[h] + k[h], params, h) for h in range(num_heads)]),
  )


def draw_estimates(
  query: np.ndarray,
  key: np.ndarray,
  sampler: nn.Module,
  params: Mapping[str, Any],
  features: FeatureMap,
  num_draws: int,
  seed: int,
) -> np.ndarray:
  """Return one estimate of each kernel a draw, float64 [draws, H, n]; its log unless Fourier.

  Args:
    query: [H, n, D], already divided by D^(1/4); pairs are formed row by row.
    key: [H, n, D], likewise.
    sampler: module that returns omega.
    params: its parameters.
    features: 'fourier', 'positive' or 'softmax'.
    num_draws: of all frequencies.
    seed: of the draws.
  """
  num_heads, _, head_dim = query.shape
  z = jnp.asarray(key - query if features == 'fourier' else key + query, jnp.float32)
  norm = -SQUARED_NORM_FACTOR.get(features, 0.0) * np.sum(query**2 + key**2, axis=-1)
  params = jax.tree.map(jnp.asarray, params)

  @jax.jit
  def draw(rng):
    sample = sampler.apply({'params': params}, num_heads, head_dim, rngs={'spectral': rng})
    omega, log_weight = as_weighted(sample)
    log_weight = jnp.zeros(omega.shape[:2]) if log_weight is None else log_weight
    product = jnp.einsum('hnd,hmd->hnm', z, omega, precision='highest')
    if features == 'fourier':
      return jnp.mean(jnp.exp(log_weight)[:, None] * jnp.cos(product), axis=-1)
    return jax.nn.logsumexp(product + log_weight[:, None], axis=-1) - jnp.log(omega.shape[1])

  keys = jax.random.split(jax.random.key(seed), num_draws)
  return np.asarray(jax.lax.map(draw, keys), np.float64) + norm


class Mixture(NamedTuple):
  """A Gaussian mixture that frequencies are drawn from.

  Attributes:
    mean: mu, float64 [C, D].
    scale: S as matrices, float64 [C, D, D], or their diagonals [C, D].
    shares: pi, float64 [C], summing to one.
  """

  mean: np.ndarray
  scale: np.ndarray
  shares: np.ndarray


def spectral_mixture(
  sampler: nn.Module, params: Mapping[str, Any], head: int, head_dim: int
) -> Mixture | None:
  """Return the distribution that the frequencies of one head have, each by itself.

  Weights of stretched draws are taken into account. None where it is no Gaussian mixture; that of
  `StructuredOrthogonal` without learned diagonals is only near to what is returned, N(0, I).
  """
  if isinstance(sampler, Gaussian) or _draws_dependently(sampler):
    return Mixture(np.zeros((1, head_dim)), np.ones((1, head_dim)), np.ones(1))
  if not isinstance(sampler, GaussianMixture):
    return None
  mean, scale = _free_components(params, head)
  if sampler.tied:
    mean, scale = np.concatenate([mean, -mean]), np.concatenate([scale, scale])
  shares = np.full(len(mean), 1 / len(mean))
  if sampler.weights == 'learned':
    logits = np.asarray(params['weight_logits'][head], np.float64)
    shares = np.exp(logits) / np.sum(np.exp(logits))
  return Mixture(mean, scale, shares)


def closed_form(
  features: FeatureMap,
  query: np.ndarray,
  key: np.ndarray,
  sampler: nn.Module,
  params: Mapping[str, Any],
  head: int,
) -> Estimate | None:
  """Return kernel and error of a sampler's estimates, of one head; None without a closed form.

  Where frequencies of N(0, I) depend on each other, as orthogonal ones do, the kernel alone has
  one: `relative_error` is None.

  Args:
    features: 'fourier', 'positive' or 'softmax'.
    query: [n, D], already divided by D^(1/4).
    key: [n, D], likewise.
    sampler: module that returns omega.
    params: its parameters.
    head: which one.
  """
  mixture = spectral_mixture(sampler, params, head, query.shape[1])
  if mixture is None:
    return None
  estimate = functools.partial(
    mixture_estimate, features, query, key, mixture.mean, mixture.scale, shares=mixture.shares
  )
  if _draws_dependently(sampler):
    return estimate(num_noise=1)._replace(relative_error=None)
  options = {'antithetic': sampler.antithetic, 'typical_norm': sampler.typical_norm}
  if isinstance(sampler, GaussianMixture):
    options['shared_noise'] = sampler.tied or sampler.shared_noise
  return estimate(sampler.num_frequencies // getattr(sampler, 'num_components', 1), **options)


def _draws_dependently(sampler) -> bool:
  """Return whether frequencies of N(0, I) (or near) depend on each other."""
  if isinstance(sampler, FastFood):
    return sampler.learned == 'none' and sampler.initial == 'le'
  structured = isinstance(sampler, StructuredOrthogonal) and not sampler.learned
  return structured or isinstance(sampler, OrthogonalGaussian)


def _free_components(params, head) -> tuple[np.ndarray, np.ndarray]:
  """Return mean and scale of one head's free components."""
  mean = np.asarray(params['mean'][head], np.float64)
  if 'scale' in params:
    return mean, np.asarray(params['scale'][head], np.float64)
  return mean, np.exp(np.asarray(params['log_variance'][head], np.float64) / 2)


def _typical_norm(o, params, head) -> float:
  if params and 'mean' in params:
    _, scale = _free_components(params, head)
    a = np.einsum('cij,ni->cnj', scale, o) if scale.ndim == 3 else scale[:, None] * o
    return float(np.mean(np.sum(a**2, axis=-1)))
  return float(np.mean(np.sum(o**2, axis=-1)))
