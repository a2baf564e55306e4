"""Feature maps: pure functions from inputs and frequencies to phi(x), with kernel phi(q)·phi(k).

Shapes: b batch, l length (s of keys), h heads, d head size, m frequencies. Equation numbers are
those of Pal Chowdhury et al., "On Learning the Transformer Kernel", TMLR 07/2022.

`fourier_features` to `relu_features` are exact: x as given, no temperature, no stabiliser.
`log_features` and `plain_features` are what attention takes: at its temperature, and in log space
where a stabiliser is needed, which is sound only where it cancels, in the ratio of attention.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kl_flax.numerics import einsum_float32

FeatureMap = Literal['positive', 'softmax', 'fourier', 'elu', 'relu']
FEATURE_MAPS = get_args(FeatureMap)
# The maps without frequencies.
WITHOUT_FREQUENCIES = ('elu', 'relu')
# The maps that are exponentials, and the factor of |x|² in their exponents.
SQUARED_NORM_FACTOR = {'positive': 1.0, 'softmax': 0.5}


def project(x: Float[Array, 'b l h d'], omega: Float[Array, 'h m d']) -> Float[Array, 'b l h m']:
  """Return omega·x for every head, accumulated and returned in float32.

  Angles and exponents reach tens or hundreds, where bfloat16 has no digit left after the point.
  """
  return einsum_float32('blhd,hmd->blhm', x, omega.astype(x.dtype))


def squared_norm(x: Float[Array, 'b l h d']) -> Float[Array, 'b l h 1']:
  """Return |x|² in float32."""
  return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)


def fourier_features(
  x: Float[Array, 'b l h d'], omega: Float[Array, 'h m d']
) -> Float[Array, 'b l h 2*m']:
  """Return random Fourier features (random kitchen sinks), eq. 3: M^(-1/2) [cos Ωx, sin Ωx].

  phi(q)·phi(k) = (1/M) sum_m cos(omega_m·(q − k)), which estimates the shift-invariant kernel
  whose spectral distribution omega is drawn from (Rahimi & Recht 2007).

  Args:
    x: queries or keys, any float dtype.
    omega: frequencies, in radians per unit of x.

  Returns:
    float32 features in [−M^(-1/2), M^(-1/2)], the cosines first.

  >>> import jax.numpy as jnp
  >>> x = jnp.full((1, 1, 1, 1), jnp.pi / 2)
  >>> [round(float(v), 6) for v in fourier_features(x, jnp.ones((1, 1, 1))).ravel()]
  [-0.0, 1.0]
  """
  return _cos_sin(project(x, omega)) / jnp.sqrt(omega.shape[1])


def positive_features(
  x: Float[Array, 'b l h d'], omega: Float[Array, 'h m d']
) -> Float[Array, 'b l h m']:
  """Return positive random features, eq. 9: M^(-1/2) exp(Ωx − |x|²).

  For omega ~ N(0, I) they estimate the Gaussian kernel exp(−|q − k|²/2), not the softmax kernel:
  see `softmax_features` for that.

  Args:
    x: queries or keys, any float dtype.
    omega: frequencies.

  Returns:
    float32 features, none negative; they overflow once Ωx − |x|² exceeds 88 and vanish below −103.

  >>> import jax.numpy as jnp
  >>> positive_features(jnp.zeros((1, 2, 1, 3)), jnp.ones((1, 4, 3)))[0, 0, 0].tolist()
  [0.5, 0.5, 0.5, 0.5]
  """
  return jnp.exp(_exponent(x, omega, SQUARED_NORM_FACTOR['positive'])) / jnp.sqrt(omega.shape[1])


def softmax_features(
  x: Float[Array, 'b l h d'], omega: Float[Array, 'h m d']
) -> Float[Array, 'b l h m']:
  """Return Performer's positive features M^(-1/2) exp(Ωx − |x|²/2) (Choromanski et al. 2021).

  For omega ~ N(0, I) they estimate the softmax kernel exp(q·k). Arguments, range and overflow are
  those of `positive_features`.
  """
  return jnp.exp(_exponent(x, omega, SQUARED_NORM_FACTOR['softmax'])) / jnp.sqrt(omega.shape[1])


def elu_features(x: Float[Array, 'b l h d']) -> Float[Array, 'b l h d']:
  """Return elu(x) + 1, the positive map of the linear Transformer (Katharopoulos et al. 2020).

  float32, as e^x where x is negative: elu itself would round to −1 what adding 1 cannot bring back.
  """
  x = x.astype(jnp.float32)
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def relu_features(x: Float[Array, 'b l h d']) -> Float[Array, 'b l h d']:
  """Return relu(x) + 0.001, float32: the "generalized" attention of LRA's Performer."""
  return jax.nn.relu(x.astype(jnp.float32)) + 0.001


def log_features(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  omega: Float[Array, 'h m d'],
  *,
  features: FeatureMap,
  log_weight: Float[Array, 'h m'] | None,
  smoothing: float,
) -> tuple[Float[Array, 'b l h m'], Float[Array, 'b s h m']]:
  """Return log(M^(1/2) phi) of queries and keys at the temperature D^(1/4), float32.

  The weights stand with the keys. The query's norm is left out where it cancels in the ratio,
  that is, without smoothing.
  """
  # The temperature is folded into omega: H·M·D work instead of B·L·H·D.
  norm = SQUARED_NORM_FACTOR[features] * omega.shape[-1] ** -0.5
  omega = omega * omega.shape[-1] ** -0.25
  log_q = _exponent(query, omega, norm) if smoothing else project(query, omega)
  log_k = _exponent(key, omega, norm)
  if log_weight is not None:
    log_k += log_weight
  return log_q, log_k


def plain_features(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  omega: Float[Array, 'h m d'] | None,
  *,
  features: FeatureMap,
  log_weight: Float[Array, 'h m'] | None = None,
) -> tuple[Float[Array, 'b l h n'], Float[Array, 'b s h n']]:
  """Return M^(1/2) phi of queries and keys for maps that need no stabiliser.

  They are taken at the temperature D^(1/4); elu alone has none.
  """
  if features == 'elu':
    return elu_features(query), elu_features(key)
  if features == 'relu':
    temperature = query.shape[-1] ** -0.25
    return relu_features(query * temperature), relu_features(key * temperature)
  omega = omega * omega.shape[-1] ** -0.25
  phi_q, phi_k = (_cos_sin(project(x, omega)) for x in (query, key))
  if log_weight is not None:
    phi_k *= jnp.exp(jnp.concatenate([log_weight, log_weight], axis=-1))
  return phi_q, phi_k


def _exponent(x, omega, factor):
  return project(x, omega) - factor * squared_norm(x)


def _cos_sin(angle):
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
