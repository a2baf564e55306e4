"""Spectral samplers: where the frequencies omega of a learned kernel come from.

Each sampler is a pure function (noise and parameters in, omega [H, M, D] out) under a thin module
that owns the parameters and draws the noise from the PRNG stream 'spectral'. Who passes that
stream decides how long a draw lives; the benchmark passes a function of the training step.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Covariance = Literal['full', 'diagonal']


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
    scaled = jnp.einsum('hcde,hcne->hcnd', scale, noise)
  else:
    scaled = scale[:, :, None, :] * noise
  omega = scaled + mean[:, :, None, :]
  return omega.reshape(num_heads, -1, head_dim)


class GaussianMixture(nn.Module):
  """Gaussian mixture with equal weights as spectral distribution (GMM-RKS and GMM-PRF).

  `tied=True` is what the paper's experiments use: two components with mu_2 = −mu_1, S_2 = S_1 and
  the same noise. Means start uniform in ±D^(-1/2); S (full) or the log-variances (diagonal)
  start Xavier-uniform for a D×D matrix, which makes the expected initial covariance near I.

  Attributes:
    num_frequencies: M, all components together; a multiple of num_components.
    num_components: C.
    covariance: 'full' (S a matrix) or 'diagonal' (S = exp(log_variance / 2)).
    tied: whether the two components mirror each other (C must be 2).

  Raises:
    ValueError: for an impossible combination.
  """

  num_frequencies: int
  num_components: int = 2
  covariance: Covariance = 'full'
  tied: bool = True

  def __post_init__(self) -> None:
    """Check the combination at once, not when the model is first called."""
    super().__post_init__()
    self._check()

  def _check(self) -> None:
    if self.covariance not in ('full', 'diagonal'):
      raise ValueError(f"covariance must be 'full' or 'diagonal', got {self.covariance!r}")
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
    if self.num_frequencies % self.num_components:
      raise ValueError(
        f'num_frequencies={self.num_frequencies} must be a multiple of '
        f'num_components={self.num_components}: every component draws equally many'
      )

  @nn.compact
  def __call__(
    self,
    num_heads: int,
    head_dim: int,
    noise: Float[Array, 'h #c n d'] | None = None,  # noqa: F821
  ) -> Float[Array, 'h m d']:
    """Return omega, float32; `noise` replaces the draw from the stream 'spectral'."""
    free = 1 if self.tied else self.num_components
    mean = self.param('mean', _uniform(head_dim**-0.5), (num_heads, free, head_dim))
    if self.covariance == 'full':
      # Heads and components are batch axes: each S is Xavier-uniform by itself.
      init = nn.initializers.xavier_uniform(batch_axis=(0, 1))
      scale = self.param('scale', init, (num_heads, free, head_dim, head_dim))
    else:
      init = _uniform(math.sqrt(3 / head_dim))
      log_variance = self.param('log_variance', init, (num_heads, free, head_dim))
      scale = jnp.exp(log_variance / 2)
    if noise is None:
      num_noise = self.num_frequencies // self.num_components
      shape = (num_heads, free, num_noise, head_dim)
      noise = jax.random.normal(self.make_rng('spectral'), shape)
    if self.tied:
      mean = jnp.concatenate([mean, -mean], axis=1)
      scale = jnp.concatenate([scale, scale], axis=1)
    return gmm_frequencies(noise, mean, scale)


def _uniform(bound: float) -> nn.initializers.Initializer:
  """Return an initialiser uniform in [−bound, bound]."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
