"""What the kernel of a sampler looks like: its spectrum, and its course along a direction.

Exact where frequencies are a Gaussian mixture's, else means over many draws. All is about queries
and keys at the temperature, divided by D^(1/4), which is where frequencies are taken; all results
are float64 NumPy.

Shapes: h heads, n points, d head size; directions are of unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.closed_forms import closed_form, distribution, scaled
from kl_flax.diagnostics import draw_estimates
from kl_flax.features import FeatureMap
from kl_flax.spectral import as_weighted

Params = Mapping[str, Any]


class Profile(NamedTuple):
  """A kernel along a line, over its value at the origin.

  Attributes:
    kernel: float64 [h, n].
    error: float64 [h, n], the standard error of the mean over draws; 0 for a closed form.
  """

  kernel: np.ndarray
  error: np.ndarray


def kernel_profile(
  features: FeatureMap,
  sampler: nn.Module,
  params: Params,
  direction: np.ndarray,
  displacement: np.ndarray,
  *,
  origin: np.ndarray | None = None,
  num_draws: int = 400,
  seed: int = 0,
) -> Profile:
  """Return κ(q, q + t u) / κ(q, q) for displacements t: how a query at q weighs keys on a line.

  For Fourier features it is E cos(t ωᵀu) (eq. 3) whatever q is. Positive features have no kernel of
  the displacement alone: E exp(ωᵀ(q + k) − |q|² − |k|²) is one only for omega ~ N(0, I), where it
  is exp(−t²/2). Along a direction in which a component's variance is above 2 it grows with t.

  Args:
    features: 'fourier', 'positive' or 'softmax'; the smoothing of attention is left out.
    sampler: module that returns omega.
    params: its parameters; empty for one that has none.
    direction: u, [h, d].
    displacement: t, [n].
    origin: q, [h, d]; None is 0.
    num_draws: of all frequencies, where there is no closed form.
    seed: of the draws.

  Raises:
    ValueError: for features that have no frequencies.

  >>> from kl_flax.orthogonal import Gaussian
  >>> profile = kernel_profile('positive', Gaussian(8), {}, np.eye(1, 4), np.array([0.0, 1.0]))
  >>> profile.kernel.round(4).tolist(), profile.error.tolist()
  ([[1.0, 0.6065]], [[0.0, 0.0]])
  """
  if features not in ('fourier', 'positive', 'softmax'):
    raise ValueError(f'features must be fourier, positive or softmax, got {features!r}')
  direction = np.asarray(direction, np.float64)
  origin = np.zeros(direction.shape) if origin is None else np.asarray(origin, np.float64)
  steps = np.concatenate([[0.0], displacement])  # What all are divided by comes first.
  query = np.repeat(origin[:, None], len(steps), axis=1)
  key = query + steps[:, None] * direction[:, None]
  exact = [closed_form(features, query[h], key[h], sampler, params, h) for h in range(len(query))]
  if exact[0] is not None:
    scaled = np.stack([e.scaled_kernel for e in exact])
    log_scale = np.stack([e.log_scale for e in exact])
    kernel = scaled / scaled[:, :1] * np.exp(log_scale - log_scale[:, :1])
    return Profile(kernel[:, 1:], np.zeros(kernel[:, 1:].shape))
  estimates = draw_estimates(query, key, sampler, params, features, num_draws, seed)
  if features != 'fourier':
    estimates = np.exp(estimates - np.max(estimates[:, :, :1], axis=0))
  at_origin = np.mean(estimates[:, :, :1], axis=0)
  kernel = np.mean(estimates, axis=0) / at_origin
  # Of a ratio of means over the same draws, to first order.
  deviation = (estimates - kernel * estimates[:, :, :1]) / at_origin
  error = np.std(deviation, axis=0, ddof=1) / np.sqrt(num_draws)
  return Profile(kernel[:, 1:], error[:, 1:])


def gaussian_profile(displacement: np.ndarray) -> np.ndarray:
  """Return the Gaussian kernel exp(−t²/2), [n]: that of omega ~ N(0, I), in all directions."""
  return np.exp(-(np.asarray(displacement, np.float64) ** 2) / 2)


def softmax_profile(
  direction: np.ndarray, displacement: np.ndarray, origin: np.ndarray
) -> np.ndarray:
  """Return the softmax kernel exp(qᵀk) over its value at k = q, exp(t qᵀu), [h, n]."""
  slope = np.sum(np.asarray(origin, np.float64) * direction, axis=-1)
  return np.exp(slope[:, None] * displacement)


def spectral_covariance(
  sampler: nn.Module,
  params: Params,
  num_heads: int,
  head_dim: int,
  *,
  num_draws: int = 200,
  seed: int = 0,
) -> np.ndarray:
  """Return the covariance of all frequencies of each head, [h, d, d].

  Of a mixture it is that of the whole: the spread of the means adds to the components' own.
  """
  mixtures = [distribution(sampler, params, h, head_dim) for h in range(num_heads)]
  if mixtures[0] is None:
    omega, weight = draw_frequencies(
      sampler, params, num_heads, head_dim, num_draws=num_draws, seed=seed
    )
    centred = omega - np.einsum('hn,hnd->hd', weight, omega)[:, None]
    return np.einsum('hn,hnd,hne->hde', weight, centred, centred)
  found = []
  for mean, scale, shares, _ in mixtures:
    matrices = scale if scale.ndim == 3 else np.stack([np.diag(row) for row in scale])
    centred = mean - shares @ mean
    own = np.einsum('c,cij,ckj->ik', shares, matrices, matrices)
    found.append(own + np.einsum('c,ci,cj->ij', shares, centred, centred))
  return np.stack(found)


def principal_directions(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return eigenvalues [h, d], descending, and as rows the directions that belong to them.

  The largest entry of a direction is positive.

  Args:
    covariance: [h, d, d], symmetric.
  """
  values, vectors = np.linalg.eigh(covariance)
  directions = np.flip(np.swapaxes(vectors, -1, -2), axis=-2)
  largest = np.argmax(np.abs(directions), axis=-1, keepdims=True)
  directions = directions * np.sign(np.take_along_axis(directions, largest, axis=-1))
  return np.flip(values, axis=-1), directions


def spectral_density(
  sampler: nn.Module, params: Params, direction: np.ndarray, points: np.ndarray
) -> np.ndarray | None:
  """Return the density of ωᵀu at given points, [h, n]; None where it is not a Gaussian mixture's.

  A component adds N(muᵀu, |Sᵀu|²). Then only draws are left: see `draw_frequencies`.

  Args:
    sampler: module that returns omega.
    params: its parameters.
    direction: u, [h, d].
    points: [n].
  """
  found = []
  for head, u in enumerate(np.asarray(direction, np.float64)):
    mixture = distribution(sampler, params, head, len(u))
    if mixture is None:
      return None
    mean, scale, shares, _ = mixture
    width = np.linalg.norm(scaled(scale, u[None])[:, 0], axis=1)
    z = (np.asarray(points)[:, None] - mean @ u) / width
    found.append(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / width @ shares)
  return np.stack(found)


def draw_frequencies(
  sampler: nn.Module,
  params: Params,
  num_heads: int,
  head_dim: int,
  *,
  num_draws: int = 200,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Return frequencies of many draws, [h, n, d], and weights [h, n] that sum to one."""
  params = jax.tree.map(jnp.asarray, dict(params))

  @jax.jit
  def draw(rng):
    sample = sampler.apply({'params': params}, num_heads, head_dim, rngs={'spectral': rng})
    omega, log_weight = as_weighted(sample)
    return omega, jnp.zeros(omega.shape[:2]) if log_weight is None else log_weight

  omega, log_weight = jax.lax.map(draw, jax.random.split(jax.random.key(seed), num_draws))
  omega = np.swapaxes(np.asarray(omega, np.float64), 0, 1).reshape(num_heads, -1, head_dim)
  weight = np.exp(np.swapaxes(np.asarray(log_weight, np.float64), 0, 1).reshape(num_heads, -1))
  return omega, weight / np.sum(weight, axis=1, keepdims=True)
