"""Feature maps: pure functions from inputs and frequencies to phi(x), with kernel phi(q)·phi(k).

Shapes: b batch, l length, h heads, d head size, m frequencies. Equation numbers are those of
Pal Chowdhury et al., "On Learning the Transformer Kernel", TMLR 07/2022.

The maps here are exact: x as given, no temperature, no stabiliser. `kl_flax.sums` applies both,
because a stabiliser is sound only where it cancels, in the ratio of attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kl_flax.numerics import einsum_float32


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
  angle = project(x, omega)
  features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return features / jnp.sqrt(omega.shape[1])


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
  return jnp.exp(project(x, omega) - squared_norm(x)) / jnp.sqrt(omega.shape[1])


def softmax_features(
  x: Float[Array, 'b l h d'], omega: Float[Array, 'h m d']
) -> Float[Array, 'b l h m']:
  """Return Performer's positive features M^(-1/2) exp(Ωx − |x|²/2) (Choromanski et al. 2021).

  For omega ~ N(0, I) they estimate the softmax kernel exp(q·k). Arguments, range and overflow are
  those of `positive_features`.
  """
  return jnp.exp(project(x, omega) - squared_norm(x) / 2) / jnp.sqrt(omega.shape[1])


def elu_features(x: Float[Array, 'b l h d']) -> Float[Array, 'b l h d']:
  """Return elu(x) + 1, the positive map of the linear Transformer (Katharopoulos et al. 2020).

  float32, as e^x where x is negative: elu itself would round to −1 what adding 1 cannot bring back.
  """
  x = x.astype(jnp.float32)
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def relu_features(x: Float[Array, 'b l h d']) -> Float[Array, 'b l h d']:
  """Return relu(x) + 0.001, float32: the "generalized" attention of LRA's Performer."""
  return jax.nn.relu(x.astype(jnp.float32)) + 0.001
