"""Attention through a kernel: the O(L) contraction, its O(L²) twin, and the module around it.

out_i = sum_j m_j κ(q_i, k_j) v_j / sum_j m_j κ(q_i, k_j), with κ(q, k) = phi(q)·phi(k) + c²,
where m is the key mask and c the smoothing. Because κ is an inner product, the sums over keys
are taken once, for all queries: O(L) time and memory (paper, below eq. 3).

Shapes: b batch, l queries, s keys, h heads, d head size, e value size, m frequencies.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.features import einsum_float32, elu_features, project, squared_norm

FeatureMap = Literal['positive', 'fourier', 'elu']
FEATURE_MAPS = ('positive', 'fourier', 'elu')

# Below this, a denominator (per frequency) is taken as zero. It can be met only by Fourier
# features with smoothing below 1 and by rows without any valid key.
_TINY = 1e-6


def kernel_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float = 0.0,
  implementation: Literal['auto', 'xla'] = 'auto',
) -> Float[Array, 'b l h e']:
  """Return kernel attention in O(L) time and memory.

  Queries and keys are divided by the temperature D^(1/4) each ('elu', which has none, excepted).

  Positive features are computed in log space. With exponents a_im of queries and b_jm of keys,
  the shift C_m = max_j b_jm is taken per frequency and moved to the query's side,
  exp(a_im + b_jm) = exp(a_im + C_m) · exp(b_jm − C_m), and the query's shift is
  max_m (a_im + C_m). Both cancel in the ratio, and at least one term of every denominator is
  exactly 1: nothing overflows, and no row can lose all of its keys to underflow, as happens with
  one maximum over all frequencies.

  Args:
    query: any float dtype; features are held in it, exponents and sums in float32.
    key: same dtype as the query.
    value: same dtype as the query.
    omega: frequencies of the kernel; None for features='elu' alone.
    features: 'positive' (eq. 9), 'fourier' (eq. 3) or 'elu' (elu(x) + 1).
    key_mask: True where a key takes part; None means everywhere. A row without any valid key
      gives zeros.
    smoothing: c ≥ 0, a constant feature that adds c² to the kernel. The authors' code uses it
      with Fourier features (the paper does not mention it): for c ≥ 1 no denominator is negative.
    implementation: 'xla' is the only one so far, and what 'auto' selects.

  Returns:
    The attention output, in the query's dtype.

  Raises:
    ValueError: for inconsistent shapes or an unknown option.

  >>> import jax, jax.numpy as jnp
  >>> q = k = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
  >>> omega = jax.random.normal(jax.random.key(1), (2, 8, 4))
  >>> out = kernel_attention(q, k, jnp.ones((1, 5, 2, 3)), omega)
  >>> out.shape, bool(jnp.allclose(out, 1.))  # Weights sum to one.
  ((1, 5, 2, 3), True)
  """
  if implementation not in ('auto', 'xla'):
    raise ValueError(f"implementation must be 'auto' or 'xla', got {implementation!r}")
  sums = attention_sums(
    query, key, value, omega, features=features, key_mask=key_mask, smoothing=smoothing
  )
  return divide(*sums).astype(query.dtype)


def attention_sums(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float = 0.0,
) -> tuple[Float[Array, 'b l h e'], Float[Array, 'b l h 1']]:
  """Return numerator and denominator of `kernel_attention`, float32, up to a common factor.

  The factor is positive, so the denominator's sign is the true one.
  """
  _check(query, key, value, omega, features, key_mask, smoothing)
  mask = None if key_mask is None else key_mask[:, :, None, None]
  if features == 'positive':
    phi_q, phi_k, constant = _positive(query, key, omega, mask, smoothing)
  elif features == 'fourier':
    phi_q, phi_k, constant = _fourier(query, key, omega, mask, smoothing)
  else:
    phi_q, phi_k, constant = _elu(query, key, mask, smoothing)
  # A column of ones beside the values brings the normaliser out of the same two products.
  dtype = query.dtype
  ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
  value = jnp.concatenate([value, ones], axis=-1)
  state = einsum_float32('bshm,bshe->bhme', phi_k.astype(dtype), value)
  sums = einsum_float32('blhm,bhme->blhe', phi_q.astype(dtype), state.astype(dtype))
  if constant is not None:
    total = value if mask is None else jnp.where(mask, value, 0)
    total = jnp.sum(total, axis=1, keepdims=True, dtype=jnp.float32)
    sums = sums + constant * total
  return sums[..., :-1], sums[..., -1:]


def divide(numerator: Float[Array, '*b'], denominator: Float[Array, '*#b']) -> Float[Array, '*b']:
  """Return the ratio, with denominators kept away from zero (their sign stays)."""
  floor = jnp.where(denominator < 0, -_TINY, _TINY)
  return numerator / jnp.where(jnp.abs(denominator) < _TINY, floor, denominator)


def _positive(query, key, omega, mask, smoothing):
  """Return stabilised positive features and the weight of the constant feature."""
  omega, norm = _temper(omega)
  log_q = project(query, omega)
  if smoothing:  # Without it, exp(−|q|²) stands in every term of the ratio.
    log_q -= norm * squared_norm(query)
  log_k = project(key, omega) - norm * squared_norm(key)
  if mask is not None:
    log_k = jnp.where(mask, log_k, -jnp.inf)
  # The ratio does not depend on the shifts, so neither does its gradient.
  shift_k = jax.lax.stop_gradient(jnp.max(log_k, axis=1, keepdims=True))
  shift_k = jnp.where(jnp.isfinite(shift_k), shift_k, 0.0)  # No valid key at all.
  log_q += shift_k
  shift_q = jax.lax.stop_gradient(jnp.max(log_q, axis=-1, keepdims=True))
  constant = None
  if smoothing:
    log_constant = jnp.log(smoothing**2 * omega.shape[1])
    shift_q = jnp.maximum(shift_q, log_constant)
    constant = jnp.exp(log_constant - shift_q)
  return jnp.exp(log_q - shift_q), jnp.exp(log_k - shift_k), constant


def _fourier(query, key, omega, mask, smoothing):
  """Return Fourier features times M^(1/2) and the weight of the constant feature."""
  omega, _ = _temper(omega)

  def features(x):
    angle = project(x, omega)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)

  phi_k = features(key)
  if mask is not None:
    phi_k = jnp.where(mask, phi_k, 0)
  return features(query), phi_k, smoothing**2 * omega.shape[1] if smoothing else None


def _elu(query, key, mask, smoothing):
  phi_k = elu_features(key)
  if mask is not None:
    phi_k = jnp.where(mask, phi_k, 0)
  return elu_features(query), phi_k, smoothing**2 if smoothing else None


def _temper(omega):
  """Return omega and the factor of |x|² that stand for x ← x D^(-1/4): H·M·D, not B·L·H·D work."""
  head_dim = omega.shape[-1]
  return omega * head_dim**-0.25, head_dim**-0.5


def naive_kernel_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float = 0.0,
) -> Float[Array, 'b l h e']:
  """Return `kernel_attention` through the L×L matrix of kernel values: the oracle of tests.

  Independent of the fast path: kernels of pairs by differences and by log-sum-exp, in float32
  (or float64), O(L² M) time and memory.
  """
  weights = naive_attention_weights(
    query, key, omega, features=features, key_mask=key_mask, smoothing=smoothing
  )
  return jnp.einsum('blsh,bshe->blhe', weights, value).astype(query.dtype)


def naive_attention_weights(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float = 0.0,
) -> Float[Array, 'b l s h']:
  """Return the attention matrix that `kernel_attention` applies without building it.

  Rows sum to one; with Fourier features single weights may be negative.
  """
  _check(query, key, key, omega, features, key_mask, smoothing)
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query, key = query.astype(wide), key.astype(wide)
  valid = True if key_mask is None else key_mask[:, None, :, None]
  if features == 'elu':
    kernel = jnp.einsum('blhd,bshd->blsh', elu_features(query), elu_features(key))
  else:
    head_dim, omega = query.shape[-1], omega.astype(wide)
    query, key = query[:, :, None] * head_dim**-0.25, key[:, None] * head_dim**-0.25
    if features == 'positive':
      return _naive_positive_weights(query, key, omega, valid, smoothing)
    angle = jnp.einsum('blshd,hmd->blshm', query - key, omega)
    kernel = jnp.mean(jnp.cos(angle), axis=-1)
  kernel = jnp.where(valid, kernel + smoothing**2, 0)
  return divide(kernel, jnp.sum(kernel, axis=2, keepdims=True))


def _naive_positive_weights(query, key, omega, valid, smoothing):
  """Return softmax over keys of the log of the kernel, never leaving log space."""
  exponent = jnp.einsum('blshd,hmd->blshm', query + key, omega)
  exponent -= jnp.sum(query**2 + key**2, axis=-1)[..., None]
  log_kernel = jax.nn.logsumexp(exponent, axis=-1) - jnp.log(omega.shape[1])
  if smoothing:
    log_kernel = jnp.logaddexp(log_kernel, 2 * jnp.log(smoothing))
  return jax.nn.softmax(log_kernel, axis=2, where=jnp.broadcast_to(valid, log_kernel.shape))


def _check(query, key, value, omega, features, key_mask, smoothing):
  """Raise a ValueError that names the value and the rule it breaks."""
  if features not in FEATURE_MAPS:
    raise ValueError(f'features must be one of {FEATURE_MAPS}, got {features!r}')
  if (features == 'elu') != (omega is None):
    raise ValueError(f'features={features!r} {"takes no" if omega is not None else "needs"} omega')
  if smoothing < 0:
    raise ValueError(f'smoothing must be at least 0, got {smoothing}')
  shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
  if not query.ndim == key.ndim == value.ndim == 4:
    raise ValueError(f'expected [batch, length, heads, size] three times, got {shapes}')
  if query.shape[::2] != key.shape[::2] or query.shape[3] != key.shape[3]:
    raise ValueError(f'query and key must agree in all but length, got {shapes}')
  if key.shape[:3] != value.shape[:3]:
    raise ValueError(f'key and value must agree in batch, length and heads, got {shapes}')
  if omega is not None and (omega.ndim, *omega.shape[::2]) != (3, *query.shape[2:]):
    raise ValueError(
      f'omega must be [heads, frequencies, head size] = '
      f'[{query.shape[2]}, M, {query.shape[3]}], got {omega.shape}'
    )
  if key_mask is not None and key_mask.shape != key.shape[:2]:
    raise ValueError(f'key_mask must be {key.shape[:2]}, got {key_mask.shape}')


class KernelAttention(nn.Module):
  """Attention whose kernel is learned: a sampler of frequencies, a feature map, the contraction.

  Drop it in wherever query, key and value of shape [batch, length, heads, head size] meet. A
  sampler draws its noise from the PRNG stream 'spectral', which every `apply` must then be given.

  Attributes:
    sampler: module that returns omega [H, M, D] when called with H and D, such as
      `kl_flax.GaussianMixture`; None for features='elu' alone.
    features: 'positive', 'fourier' or 'elu'.
    smoothing: see `kernel_attention`.

  >>> import jax, jax.numpy as jnp
  >>> from kl_flax.spectral import GaussianMixture
  >>> attention = KernelAttention(GaussianMixture(8), 'fourier', smoothing=1.0)
  >>> x = jnp.ones((2, 6, 4, 16))
  >>> rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  >>> out, variables = attention.init_with_output(rngs, x, x, x)
  >>> out.shape
  (2, 6, 4, 16)
  """

  sampler: nn.Module | None
  features: FeatureMap = 'positive'
  smoothing: float = 0.0

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'],
    key: Float[Array, 'b s h d'],
    value: Float[Array, 'b s h e'],
    key_mask: Bool[Array, 'b s'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output; there are no weights that dropout could act on."""
    del deterministic
    omega = None
    if self.sampler is not None:
      omega = self.sampler(query.shape[2], query.shape[3])
    options = {'features': self.features, 'smoothing': self.smoothing}
    if self.features != 'fourier':
      return kernel_attention(query, key, value, omega, key_mask=key_mask, **options)
    sums = attention_sums(query, key, value, omega, key_mask=key_mask, **options)
    # Whoever trains should see how often the estimate of a positive quantity is none.
    if not self.is_initializing():
      self.sow('diagnostics', 'nonpositive_denominators', jnp.mean(sums[1] <= 0))
    return divide(*sums).astype(query.dtype)
