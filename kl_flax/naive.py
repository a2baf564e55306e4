"""Naive twins: kernel attention through the L×L matrix, the oracle of tests.

Independent of the fast path: kernels of pairs by differences and by log-sum-exp, in float32 (or
float64), with O(L² M) time and memory. Also good for looking at attention maps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.checks import check_inputs
from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap
from kl_flax.numerics import divide
from kl_flax.sums import denominator_floor, resolve_smoothing

# In full precision: the default of GPUs would keep 10 bits of float32.
_einsum = functools.partial(jnp.einsum, precision='highest')


def naive_kernel_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
  causal: bool = False,
) -> Float[Array, 'b l h e']:
  """Return `kl_flax.kernel_attention` through the matrix of weights."""
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  weights = naive_attention_weights(
    query,
    key,
    omega,
    features=features,
    key_mask=key_mask,
    smoothing=smoothing,
    log_weight=log_weight,
    causal=causal,
  )
  return _einsum('blsh,bshe->blhe', weights, value).astype(query.dtype)


def naive_attention_weights(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
  causal: bool = False,
) -> Float[Array, 'b l s h']:
  """Return the attention matrix that `kl_flax.kernel_attention` applies without building it.

  Rows sum to one, or are zero where no key takes part; with Fourier features single weights may
  be negative.
  """
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, key, omega, features, key_mask, smoothing, log_weight)
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query, key = query.astype(wide), key.astype(wide)
  valid = jnp.ones((query.shape[0], query.shape[1], key.shape[1], 1), bool)
  if key_mask is not None:
    valid &= key_mask[:, None, :, None]
  if causal:
    valid &= (jnp.arange(query.shape[1])[:, None] >= jnp.arange(key.shape[1]))[None, :, :, None]
  if features == 'elu':
    phi_q, phi_k = (jnp.where(x > 0, 1 + x, jnp.exp(x)) for x in (query, key))
    kernel = _einsum('blhd,bshd->blsh', phi_q, phi_k)
  elif features == 'relu':
    phi_q, phi_k = (jnp.maximum(x * x.shape[-1] ** -0.25, 0) + 1e-3 for x in (query, key))
    kernel = _einsum('blhd,bshd->blsh', phi_q, phi_k)
  else:
    head_dim, omega = query.shape[-1], omega.astype(wide)
    query, key = query[:, :, None] * head_dim**-0.25, key[:, None] * head_dim**-0.25
    log_weight = 0.0 if log_weight is None else log_weight.astype(wide)
    if features in SQUARED_NORM_FACTOR:
      log_kernel = _log_kernel(query, key, omega, log_weight, SQUARED_NORM_FACTOR[features])
      if smoothing:
        log_kernel = jnp.logaddexp(log_kernel, 2 * jnp.log(smoothing))
      any_valid = jnp.any(valid, axis=2, keepdims=True)
      return jax.nn.softmax(log_kernel, axis=2, where=valid | ~any_valid) * any_valid
    angle = _einsum('blshd,hmd->blshm', query - key, omega)
    kernel = jnp.mean(jnp.exp(log_weight) * jnp.cos(angle), axis=-1)
  kernel = jnp.where(valid, kernel + smoothing**2, 0)
  return divide(kernel, jnp.sum(kernel, axis=2, keepdims=True), denominator_floor(features, 1))


def _log_kernel(query, key, omega, log_weight, norm_factor):
  """Return the log of the kernel of all pairs, [b, l, s, h], never leaving log space."""
  exponent = _einsum('blshd,hmd->blshm', query + key, omega) + log_weight
  exponent -= norm_factor * jnp.sum(query**2 + key**2, axis=-1)[..., None]
  return jax.nn.logsumexp(exponent, axis=-1) - jnp.log(omega.shape[1])
