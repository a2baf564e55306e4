"""The two sums of kernel attention over all keys: numerator and denominator, in O(L).

out_i = sum_j m_j κ(q_i, k_j) v_j / sum_j m_j κ(q_i, k_j), with the kernel
κ(q, k) = c² + (1/M) sum_m w_m phi_m(q) phi_m(k), key mask m_j, smoothing c and weights w_m.

Shapes: b batch, l queries, s keys, h heads, d head size, e value size, m frequencies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.checks import check_inputs
from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap, log_features, plain_features
from kl_flax.numerics import einsum_float32, product_dtype

# c by default: the authors' code smooths Fourier features with 1; positive features need none.
_DEFAULT_SMOOTHING = {'fourier': 1.0}


def attention_sums(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
) -> tuple[Float[Array, 'b l h e'], Float[Array, 'b l h 1']]:
  """Return numerator and denominator of `kl_flax.kernel_attention`, float32.

  They are the sums above up to a common factor, which is positive: the denominator's sign is the
  true one. Arguments are those of `kernel_attention`.
  """
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  mask = None if key_mask is None else key_mask[:, :, None, None]
  if features in SQUARED_NORM_FACTOR:
    log_q, log_k = log_features(
      query, key, omega, features=features, log_weight=log_weight, smoothing=smoothing
    )
    phi_q, phi_k, constant = _stabilise(log_q, log_k, mask, smoothing)
  else:
    phi_q, phi_k = plain_features(query, key, omega, features=features, log_weight=log_weight)
    phi_k = phi_k if mask is None else jnp.where(mask, phi_k, 0)
    constant = smoothing_weight(omega, smoothing)
  # A column of ones beside the values brings the normaliser out of the same two products.
  dtype = product_dtype(query.dtype)
  value = with_ones(value.astype(dtype))
  state = einsum_float32('bshm,bshe->bhme', phi_k.astype(dtype), value)
  total, center = None, None
  if smoothing or dtype == jnp.bfloat16:
    valid = value if mask is None else jnp.where(mask, value, 0)
    total = jnp.sum(valid, axis=1, keepdims=True, dtype=jnp.float32)
  if dtype == jnp.bfloat16:
    center = common_part(total)
    state, total = less(state, jnp.swapaxes(center, 1, 2)), less(total, center)
  sums = einsum_float32('blhm,bhme->blhe', phi_q.astype(dtype), state.astype(dtype))
  if smoothing:
    sums = sums + constant * total
  if center is not None:
    sums += center * sums[..., -1:]
  return sums[..., :-1], sums[..., -1:]


def common_part(total: Float[Array, '*b n']) -> Float[Array, '*b n']:
  """Return the mean c of values with a column of ones, for that column 0, given their sum.

  Weights add up to one: what is left of the sums, see `less`, leaves c out, which comes back as
  c times the sums' last column. What all values have in common would fill the digits that bfloat16
  leaves to the sums; the query's gradient consists of what is left of them, and would be off by a
  tenth where values or weights are much alike. As c cancels, it has no gradient.
  """
  mean = total / jnp.maximum(total[..., -1:], 1)
  return jax.lax.stop_gradient(mean.at[..., -1].set(0))


def less(sums: Float[Array, '... n'], center: Float[Array, '... n']) -> Float[Array, '... n']:
  """Return weighted sums of values v with a column of ones as sums of v − center."""
  return sums - center * sums[..., -1:]


def resolve_smoothing(features: FeatureMap, smoothing: float | None) -> float:
  """Return the smoothing c that is meant: None is what these features take by default.

  >>> resolve_smoothing('fourier', None), resolve_smoothing('positive', None)
  (1.0, 0.0)
  >>> resolve_smoothing('fourier', 0.0)
  0.0
  """
  return _DEFAULT_SMOOTHING.get(features, 0.0) if smoothing is None else smoothing


def denominator_floor(features: FeatureMap, num_frequencies: int) -> float:
  """Return the least denominator that is believed.

  Sums of positive terms are exact down to the smallest of them. Fourier estimates may cancel: what
  is below 1e-6 of a single kernel value of 1 is noise.
  """
  return 1e-6 * num_frequencies if features == 'fourier' else 0.0


def with_ones(value: Float[Array, 'b s h e']) -> Float[Array, 'b s h e+1']:
  """Return the values with a last column of ones."""
  ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
  return jnp.concatenate([value, ones], axis=-1)


def smoothing_weight(omega: Float[Array, 'h m d'] | None, smoothing: float) -> float:
  """Return c² relative to features without their M^(-1/2)."""
  return smoothing**2 * (1 if omega is None else omega.shape[1])


def _stabilise(log_q, log_k, mask, smoothing):
  """Return features that neither overflow nor vanish, and the constant feature beside them.

  The shift of the keys is a maximum per frequency; it is handed over to the queries. Without a
  valid key, or with a weight of 0, it is -inf: the query's feature is then 0, and of no account for
  its shift.
  """
  if mask is not None:
    log_k = jnp.where(mask, log_k, -jnp.inf)
  # The ratio does not depend on the shifts, so neither does its gradient.
  shift_k = jax.lax.stop_gradient(jnp.max(log_k, axis=1, keepdims=True))
  log_q += shift_k
  shift_q = jax.lax.stop_gradient(jnp.max(log_q, axis=-1, keepdims=True))
  shift_k, shift_q = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (shift_k, shift_q))
  constant = None
  if smoothing:
    log_constant = jnp.log(smoothing**2 * log_k.shape[-1])
    shift_q = jnp.maximum(shift_q, log_constant)
    constant = jnp.exp(log_constant - shift_q)
  return jnp.exp(log_q - shift_q), jnp.exp(log_k - shift_k), constant
