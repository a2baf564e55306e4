"""Spectral samplers: where the frequencies omega of a learned kernel come from.

Each sampler is a pure function (noise and parameters in, omega [H, M, D] out) under a thin module
that owns the parameters and draws the noise from the PRNG stream 'spectral'. Who passes that
stream decides how long a draw lives; the benchmark passes a function of the training step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

Covariance = Literal['full', 'diagonal']


class Frequencies(NamedTuple):
  """What a sampler returns whose frequencies do not count equally.

  Attributes:
    omega: float32 [H, M, D].
    log_weight: float32 [H, M]; the kernel is the mean of exp(log_weight) phi(q) phi(k).
  """

  omega: Float[Array, 'h m d']
  log_weight: Float[Array, 'h m']


class Distribution(NamedTuple):
  """What the frequencies of one head are, each by itself: a Gaussian mixture.

  Attributes:
    mean: mu, float64 [C, D].
    scale: S as matrices, float64 [C, D, D], or their diagonals [C, D].
    shares: pi, float64 [C], summing to one.
    draws: how many there are and how they go together, as `closed_forms.mixture_estimate` takes it;
      None where they depend on each other in other ways.
  """

  mean: np.ndarray
  scale: np.ndarray
  shares: np.ndarray
  draws: Mapping[str, Any] | None = None


def standard_normal(head_dim: int, **draws: Any) -> Distribution:
  """Return N(0, I) in D dimensions; without `draws` these depend on each other."""
  one = (np.zeros((1, head_dim)), np.ones((1, head_dim)), np.ones(1))
  return Distribution(*one, draws or None)


def as_weighted(
  sample: Float[Array, 'h m d'] | Frequencies,
) -> tuple[Float[Array, 'h m d'], Float[Array, 'h m'] | None]:
  """Return omega and the log-weights, None where all frequencies count equally."""
  return sample if isinstance(sample, Frequencies) else (sample, None)


def gmm_frequencies(
  noise: Float[Array, 'h #c n d'],  # noqa: F821
  mean: Float[Array, 'h c d'],
  scale: Float[Array, 'h c d d'] | Float[Array, 'h c d'],
) -> Float[Array, 'h c*n d']:
  """Return frequencies of a Gaussian mixture, eq. 5: omega = S n + mu.

  Args:
    noise: draws of N(0, I); an axis of size 1 in place of the components shares them.
    mean: mu of each component.
    scale: S of each component, a matrix or the diagonal of one; the covariance is S Sᵀ.

  Returns:
    omega, component by component: the first n rows belong to component 0.

  >>> import jax.numpy as jnp
  >>> noise, mean = jnp.ones((1, 1, 1, 2)), jnp.array([[[3., 0.], [-3., 0.]]])
  >>> gmm_frequencies(noise, mean, jnp.full((1, 2, 2), 2.)).tolist()
  [[[5.0, 2.0], [-1.0, 2.0]]]
  """
  num_heads, num_components, head_dim = mean.shape
  noise = jnp.broadcast_to(noise, (num_heads, num_components, *noise.shape[2:]))
  if scale.ndim == 4:
    scaled = jnp.einsum('hcde,hcne->hcnd', scale, noise, precision='highest')
  else:
    scaled = scale[:, :, None, :] * noise
  omega = scaled + mean[:, :, None, :]
  return omega.reshape(num_heads, -1, head_dim)


class GaussianMixture(nn.Module):
  """Gaussian mixture as spectral distribution (GMM-RKS and GMM-PRF), eqs. 4, 5, 10.

  `tied=True` is what the paper's experiments use: two components with mu_2 = −mu_1, S_2 = S_1 and
  the same noise. Means start uniform in ±D^(-1/2); S (full) or the log-variances (diagonal)
  start Xavier-uniform for a D×D matrix, which makes the expected initial covariance near I.

  `initial='authors'` starts as the released code does. It, too, calls S Xavier-uniform, but of all
  heads as one array [H, D, D], for which PyTorch reckons with D² inputs and H·D outputs: the
  expected covariance is 2 / (D + H) I, means lie in ±1/D, and the kernel starts broad. Of the
  log-variances [H, D] it reckons with D inputs and H outputs, which is nearly the start of 'unit'.

  Shared noise applies the means deterministically: with tied components a Fourier estimate is
  cos(muᵀp) times one that knows no means, so that they add no variance of their own.

  The attributes weights, shared_noise, antithetic and typical_norm go beyond the paper. README has
  their measured effect on the error.

  Attributes:
    num_frequencies: M, all components together; a multiple of num_components.
    num_components: C.
    covariance: 'full' (S a matrix) or 'diagonal' (S = exp(log_variance / 2)).
    tied: whether the two components mirror each other (C must be 2).
    weights: 'equal' (pi_c = 1 / C, as in the paper) or 'learned' (softmax of free logits, which
      start at 0); tied components cannot but weigh the same.
    shared_noise: whether all components take the same draws of N(0, I); tied ones always do.
    antithetic: whether the draws come in pairs ±n.
    typical_norm: |Sᵀ(q + k)|², at the temperature, for which `widen` makes the positive estimate's
      variance least; 0 leaves the draws as they are.
    initial: 'unit' (covariance near I) or 'authors', see above.

  Raises:
    ValueError: for an impossible combination.
  """

  num_frequencies: int
  num_components: int = 2
  covariance: Covariance = 'full'
  tied: bool = True
  weights: Literal['equal', 'learned'] = 'equal'
  shared_noise: bool = False
  antithetic: bool = False
  typical_norm: float = 0.0
  initial: Literal['unit', 'authors'] = 'unit'

  def __post_init__(self) -> None:
    """Check the combination at once, not when the model is first called."""
    super().__post_init__()
    self._check()

  def _check(self) -> None:
    if self.covariance not in get_args(Covariance):
      raise ValueError(f"covariance must be 'full' or 'diagonal', got {self.covariance!r}")
    if self.weights not in ('equal', 'learned'):
      raise ValueError(f"weights must be 'equal' or 'learned', got {self.weights!r}")
    if self.num_components < 1 or self.num_frequencies < 1:
      raise ValueError(
        'num_frequencies and num_components must be at least 1, got '
        f'{self.num_frequencies} and {self.num_components}'
      )
    if self.tied and self.num_components != 2:
      raise ValueError(
        f'tied components come in a mirrored pair, got num_components={self.num_components}: '
        'set num_components=2 or tied=False'
      )
    if self.tied and self.weights == 'learned':
      raise ValueError("tied components weigh the same: weights='learned' needs tied=False")
    if self.num_frequencies % self.num_components:
      raise ValueError(
        f'num_frequencies={self.num_frequencies} must be a multiple of '
        f'num_components={self.num_components}: every component draws equally many'
      )
    if self.typical_norm < 0:
      raise ValueError(f'typical_norm must be at least 0, got {self.typical_norm}')
    if self.initial not in ('unit', 'authors'):
      raise ValueError(f"initial must be 'unit' or 'authors', got {self.initial!r}")
    check_pairs(self.num_frequencies // self.num_components, self.antithetic, 'of each component')

  def _initial_bounds(self, num_heads: int, head_dim: int) -> tuple[float, float]:
    """Return the bounds between which means and S, or log-variances, start uniform."""
    fan_in = fan_out = head_dim
    if self.initial == 'authors':
      width = head_dim if self.covariance == 'full' else 1
      fan_in, fan_out = head_dim * width, num_heads * width
    return fan_in**-0.5, math.sqrt(6 / (fan_in + fan_out))

  @nn.compact
  def __call__(
    self,
    num_heads: int,
    head_dim: int,
    noise: Float[Array, 'h #c n d'] | None = None,  # noqa: F821
  ) -> Float[Array, 'h m d'] | Frequencies:
    """Return omega, float32; with its weights where frequencies do not count equally.

    Args:
      num_heads: H.
      head_dim: D.
      noise: replaces the draw from the stream 'spectral'.
    """
    free = 1 if self.tied else self.num_components
    mean_bound, bound = self._initial_bounds(num_heads, head_dim)
    mean = self.param('mean', _uniform(mean_bound), (num_heads, free, head_dim))
    if self.covariance == 'full':
      scale = self.param('scale', _uniform(bound), (num_heads, free, head_dim, head_dim))
    else:
      log_variance = self.param('log_variance', _uniform(bound), (num_heads, free, head_dim))
      scale = jnp.exp(log_variance / 2)
    if noise is None:
      shared = self.tied or self.shared_noise
      num_noise = self.num_frequencies // self.num_components
      shape = (num_heads, 1 if shared else self.num_components, num_noise, head_dim)
      noise = draw_normal(self.make_rng('spectral'), shape, antithetic=self.antithetic)
    log_weight = None
    if self.typical_norm:
      noise, log_weight = widen(noise, self.typical_norm)
      log_weight = jnp.broadcast_to(log_weight, (num_heads, self.num_components, noise.shape[2]))
    if self.weights == 'learned':
      logits = self.param('weight_logits', nn.initializers.zeros, (num_heads, free))
      log_share = jax.nn.log_softmax(logits) + math.log(free)
      log_share = jnp.repeat(log_share[:, :, None], noise.shape[2], axis=2)
      log_weight = log_share if log_weight is None else log_weight + log_share
    if self.tied:
      mean = jnp.concatenate([mean, -mean], axis=1)
      scale = jnp.concatenate([scale, scale], axis=1)
    omega = gmm_frequencies(noise, mean, scale)
    if log_weight is None:
      return omega
    return Frequencies(omega, log_weight.reshape(num_heads, -1))

  def distribution(self, params: Mapping[str, Any], head: int, head_dim: int) -> Distribution:
    """Return what the frequencies of one head are, each by itself.

    Args:
      params: of this sampler.
      head: which one.
      head_dim: D, which the parameters have, too.
    """
    of_head = lambda name: np.asarray(params[name][head], np.float64)
    mean = of_head('mean')
    full = self.covariance == 'full'
    scale = of_head('scale') if full else np.exp(of_head('log_variance') / 2)
    if self.tied:
      mean, scale = np.concatenate([mean, -mean]), np.concatenate([scale, scale])
    learned = self.weights == 'learned'
    shares = np.exp(of_head('weight_logits')) if learned else np.ones(len(mean))
    draws = {
      'num_noise': self.num_frequencies // self.num_components,
      'shared_noise': self.tied or self.shared_noise,
      'antithetic': self.antithetic,
      'typical_norm': self.typical_norm,
    }
    return Distribution(mean, scale, shares / np.sum(shares), draws)


class Generator(nn.Module):
  """A network that turns noise into frequencies (GENERATIVE-RKS and -PRF), eqs. 7, 8, 11.

  Four times Dense(D), batch normalisation, LeakyReLU, then Dense(D) and tanh: frequencies lie in
  (−1, 1). Normalisation is by the statistics of the M draws at hand, in prediction as in training,
  so nothing is kept between calls. Heads share the network and, as they do in the paper, differ
  in their projections alone: they share the draw too, unless `shared_noise` is False.

  Attributes:
    num_frequencies: M, at least 2 (the normalisation needs a spread).
    num_layers: Dense layers before the last.
    shared_noise: whether all heads take the same draws.

  Raises:
    ValueError: for fewer than 2 frequencies.
  """

  num_frequencies: int
  num_layers: int = 4
  shared_noise: bool = True

  def __post_init__(self) -> None:
    """Check the number of frequencies at once."""
    super().__post_init__()
    if self.num_frequencies < 2:
      raise ValueError(
        f'num_frequencies={self.num_frequencies} must be at least 2: the generator normalises '
        'over the draws'
      )

  @nn.compact
  def __call__(
    self,
    num_heads: int,
    head_dim: int,
    noise: Float[Array, '#h m d'] | None = None,
  ) -> Float[Array, 'h m d']:
    """Return omega, float32; `noise` replaces the draw from the stream 'spectral'."""
    if noise is None:
      shape = (1 if self.shared_noise else num_heads, self.num_frequencies, head_dim)
      noise = jax.random.normal(self.make_rng('spectral'), shape)
    x = noise
    for i in range(self.num_layers):
      x = nn.Dense(head_dim, precision='highest', name=f'dense_{i}')(x)
      x = nn.leaky_relu(SampleNorm(name=f'norm_{i}')(x))
    omega = jnp.tanh(nn.Dense(head_dim, precision='highest', name='out')(x))
    return jnp.broadcast_to(omega, (num_heads, *omega.shape[1:]))


class SampleNorm(nn.Module):
  """Batch normalisation over the draws, axis −2, by their own statistics (ε = 1e-5)."""

  @nn.compact
  def __call__(self, x: Float[Array, '*h m d']) -> Float[Array, '*h m d']:
    """Return the normalised, scaled and shifted draws."""
    mean = jnp.mean(x, axis=-2, keepdims=True)
    variance = jnp.var(x, axis=-2, keepdims=True)
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias


def draw_normal(
  key: PRNGKeyArray, shape: tuple[int, ...], *, antithetic: bool = False
) -> Float[Array, '...']:
  """Return draws of N(0, I) along axis −2, the second half mirroring the first if antithetic."""
  if not antithetic:
    return jax.random.normal(key, shape)
  half = jax.random.normal(key, (*shape[:-2], shape[-2] // 2, shape[-1]))
  return jnp.concatenate([half, -half], axis=-2)


def check_pairs(num_frequencies: int, antithetic: bool, what: str) -> None:
  """Raise a ValueError if antithetic draws cannot be paired."""
  if antithetic and num_frequencies % 2:
    raise ValueError(
      f'antithetic draws come in pairs: the {num_frequencies} frequencies {what} must be even'
    )


def widen(
  noise: Float[Array, '*h m d'], typical_norm: float
) -> tuple[Float[Array, '*h m d'], Float[Array, '*h m']]:
  """Stretch draws of N(0, I) and weigh them so that expectations stay as they are.

  These are the variance-optimal positive random features (OPRF) of Likhosherstov et al., "Chefs'
  Random Tables", NeurIPS 2022, seen as importance sampling: n becomes sqrt(1 − 4A) n with weight
  (1 − 4A)^(D/2) exp(2A |n|²). For exp(nᵀz), the factor that varies in positive features with
  z = Sᵀ(q + k), the variance is least at the A of `optimal_stretch`.

  Args:
    noise: draws of N(0, I).
    typical_norm: |z|², at least 0; 0 changes nothing.

  Returns:
    The stretched draws and the log of their weights.
  """
  a = optimal_stretch(typical_norm, noise.shape[-1])
  norm = jnp.sum(noise**2, axis=-1)
  log_weight = 2 * a * norm + noise.shape[-1] / 2 * math.log(1 - 4 * a)
  return math.sqrt(1 - 4 * a) * noise, log_weight


def optimal_stretch(typical_norm: float, head_dim: int) -> float:
  """Return A ≤ 0, which minimises the second moment of `widen`'s estimate of E exp(nᵀz).

  Its log is D log(1 − 4A) − D/2 log(1 − 8A) + 2 |z|² (1 − 4A) / (1 − 8A). Setting the derivative
  to 0 gives, with r = 1 / (1 − 8A), the quadratic 2 |z|² r² + (2 |z|² + D) r − D = 0.

  >>> optimal_stretch(0.0, 64), round(optimal_stretch(16.0, 64), 4)
  (0.0, -0.0976)
  """
  if typical_norm < 0:
    raise ValueError(f'typical_norm must be at least 0, got {typical_norm}')
  if typical_norm == 0:
    return 0.0
  b = 2 * typical_norm + head_dim
  r = 2 * head_dim / (math.sqrt(b**2 + 8 * typical_norm * head_dim) + b)
  return (1 - 1 / r) / 8


def _uniform(bound: float) -> nn.initializers.Initializer:
  """Return an initialiser uniform in [−bound, bound]."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
