"""How good an estimate of its kernel is on given data, measured, beside the closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.closed_forms import closed_form, distribution, scaled
from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap
from kl_flax.spectral import as_weighted


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
    np.array([_typical_norm(q[h] + k[h], sampler, params or {}, h) for h in range(num_heads)]),
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


def _typical_norm(o, sampler, params, head) -> float:
  known = distribution(sampler, params, head, o.shape[-1])
  if known is None:
    return float(np.mean(np.sum(o**2, axis=-1)))
  return float(np.mean(np.sum(scaled(known.scale, o) ** 2, axis=-1)))
