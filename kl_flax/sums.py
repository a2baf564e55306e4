"""The two sums of kernel attention over all keys: numerator and denominator, in O(L).

out_i = sum_j m_j κ(q_i, k_j) v_j / sum_j m_j κ(q_i, k_j), with the kernel
κ(q, k) = c² + (1/M) sum_m w_m phi_m(q) phi_m(k), key mask m_j, smoothing c and weights w_m.

Shapes: b batch, l queries, s keys, h heads, d head size, e value size, m frequencies.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.features import elu_features, project, relu_features, squared_norm
from kl_flax.numerics import einsum_float32, product_dtype

FeatureMap = Literal['positive', 'softmax', 'fourier', 'elu', 'relu']
FEATURE_MAPS = get_args(FeatureMap)
# c by default: the authors' code smooths Fourier features with 1; positive features need none.
_DEFAULT_SMOOTHING = {'fourier': 1.0}
# The maps without frequencies.
WITHOUT_FREQUENCIES = ('elu', 'relu')
# The maps that are computed in log space, and the factor of |x|² in their exponent.
SQUARED_NORM_FACTOR = {'positive': 1.0, 'softmax': 0.5}


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
    center, state, total = _center(state, total)
  sums = einsum_float32('blhm,bhme->blhe', phi_q.astype(dtype), state.astype(dtype))
  if smoothing:
    sums = sums + constant * total
  numerator, denominator = sums[..., :-1], sums[..., -1:]
  if center is not None:
    numerator += center * denominator
  return numerator, denominator


def _center(state, total):
  """Return a vector c [b, 1, h, e], and both sums of values v as sums of v − c.

  Weights add up to one, so that c comes back when it is added to the output. What all values have
  in common would fill the digits that bfloat16 leaves to the sums; the query's gradient consists of
  what is left of them, and would be off by a tenth where values or weights are much alike.
  """
  count = jnp.maximum(total[..., -1:], 1)
  center = jax.lax.stop_gradient(total[..., :-1] / count)
  # The last column, of ones, keeps its sums.
  columns = jnp.append(center, jnp.zeros_like(count), axis=-1)
  shifted = lambda sums, c: sums - c * sums[..., -1:]
  return center, shifted(state, jnp.swapaxes(columns, 1, 2)), shifted(total, columns)


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
  log_q = project(query, omega)
  if smoothing:
    log_q -= norm * squared_norm(query)
  log_k = project(key, omega) - norm * squared_norm(key)
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


def _cos_sin(angle):
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


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


def check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight=None):
  """Raise a ValueError that names the value and the rule it breaks."""
  if features not in FEATURE_MAPS:
    raise ValueError(f'features must be one of {FEATURE_MAPS}, got {features!r}')
  if (features in WITHOUT_FREQUENCIES) != (omega is None):
    raise ValueError(f'features={features!r} {"takes no" if omega is not None else "needs"} omega')
  if not 0 <= smoothing < math.inf:  # Nor NaN.
    raise ValueError(f'smoothing must be finite and at least 0, got {smoothing}')
  check_arrays(query, key, value)
  if omega is not None and (omega.ndim, *omega.shape[::2]) != (3, *query.shape[2:]):
    raise ValueError(
      f'omega must be [heads, frequencies, head size] = '
      f'[{query.shape[2]}, M, {query.shape[3]}], got {omega.shape}'
    )
  if omega is not None and not omega.shape[1]:
    raise ValueError(f'omega must hold at least one frequency of each head, got {omega.shape}')
  if log_weight is not None and (omega is None or log_weight.shape != omega.shape[:2]):
    raise ValueError(
      'log_weight must be [heads, frequencies] like omega, got '
      f'{log_weight.shape} and {None if omega is None else omega.shape}'
    )
  check_key_mask(key_mask, key)


def check_arrays(query, key, value):
  """Raise a ValueError unless these are queries, keys and values of one attention."""
  shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
  if not query.ndim == key.ndim == value.ndim == 4:
    raise ValueError(f'expected [batch, length, heads, size] three times, got {shapes}')
  if query.shape[::2] != key.shape[::2] or query.shape[3] != key.shape[3]:
    raise ValueError(f'query and key must agree in all but length, got {shapes}')
  if key.shape[:3] != value.shape[:3]:
    raise ValueError(f'key and value must agree in batch, length and heads, got {shapes}')
  if not key.shape[1]:
    raise ValueError(
      f'at least one key is needed, got {shapes}: a row that is to attend to nothing has a '
      'key_mask of False'
    )
  types = [jnp.dtype(x.dtype).name for x in (query, key, value)]
  if len(set(types)) > 1:
    raise ValueError(f'query, key and value must have one dtype, got {", ".join(types)}')
  check_floating(query, key, value)


def check_floating(*arrays):
  """Raise a ValueError unless queries, keys and values are floating; None is left out.

  Of integers the result would be truncated to integers.

  >>> check_floating(None, None, jnp.ones(3, jnp.int32))
  Traceback (most recent call last):
  ValueError: query, key and value must be floating, got int32: convert by x.astype(jnp.float32)
  """
  types = dict.fromkeys(jnp.dtype(x.dtype) for x in arrays if x is not None)
  if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in types):
    raise ValueError(
      f'query, key and value must be floating, got {", ".join(t.name for t in types)}: convert by '
      'x.astype(jnp.float32)'
    )


def check_key_mask(key_mask, key):
  """Raise a ValueError unless the mask has a truth value for each key, or is None."""
  if key_mask is not None and (key_mask.shape != key.shape[:2] or key_mask.dtype != bool):
    raise ValueError(
      f'key_mask must be bool{list(key.shape[:2])}, got {key_mask.dtype}{list(key_mask.shape)}'
    )
