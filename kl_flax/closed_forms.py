"""Kernels and errors of their estimates in closed form.

They are those of the paper's Theorem 3, corrected (it prints norms where squared norms are meant,
and 2/m where 1/(2m) is right for an estimate of κ itself) and generalised to any number of
components, shared or independent noise, antithetic draws and stretched draws
(`kl_flax.spectral.widen`). All are in float64 NumPy: nothing is trained through them.

Notation: p = k − q, o = k + q, both at the temperature; n ~ N(0, I); a component has mean mu and
covariance S Sᵀ; m is the number of noise vectors of each component.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap
from kl_flax.spectral import Distribution, optimal_stretch


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
  a = scaled(scale, z)
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


def scaled(scale: np.ndarray, z: np.ndarray) -> np.ndarray:
  """Return Sᵀz, [C, n, D], of z [n, D] and S as matrices [C, D, D] or their diagonals [C, D]."""
  return np.einsum('cij,ni->cnj', scale, z) if scale.ndim == 3 else scale[:, None] * z


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


def distribution(
  sampler: nn.Module, params: Mapping[str, Any], head: int, head_dim: int
) -> Distribution | None:
  """Return what the frequencies of one head are, each by itself; None where that is not known.

  It is for samplers to say, by a method of this name. Weights of stretched draws are taken into
  account; that of `StructuredOrthogonal` without learned diagonals, N(0, I), is only near.

  Args:
    sampler: module that returns omega.
    params: its parameters.
    head: which one.
    head_dim: D.
  """
  known = getattr(sampler, 'distribution', None)
  return known(params, head, head_dim) if callable(known) else None


def closed_form(
  features: FeatureMap,
  query: np.ndarray,
  key: np.ndarray,
  sampler: nn.Module,
  params: Mapping[str, Any],
  head: int,
) -> Estimate | None:
  """Return kernel and error of a sampler's estimates, of one head; None without a closed form.

  Where frequencies depend on each other, as orthogonal ones do, the kernel alone has one:
  `relative_error` is None.

  Args:
    features: 'fourier', 'positive' or 'softmax'.
    query: [n, D], already divided by D^(1/4).
    key: [n, D], likewise.
    sampler: module that returns omega.
    params: its parameters.
    head: which one.
  """
  found = distribution(sampler, params, head, query.shape[1])
  if found is None:
    return None
  mixture = (found.mean, found.scale)
  if found.draws is None:
    alone = mixture_estimate(features, query, key, *mixture, num_noise=1, shares=found.shares)
    return alone._replace(relative_error=None)
  return mixture_estimate(features, query, key, *mixture, shares=found.shares, **found.draws)
