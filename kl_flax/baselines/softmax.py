"""Softmax attention, O(L²): the `transformer` of the Long Range Arena."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class SoftmaxAttention(nn.Module):
  """Scaled dot-product attention (Vaswani et al. 2017).

  Without dropout of the weights it runs through `jax.nn.dot_product_attention`, which never
  stores the L×L matrix where the platform has a fused kernel (cuDNN, in 16-bit types).

  Attributes:
    dropout_rate: dropout of the attention weights, in [0, 1); needs the L×L matrix in training.
  """

  dropout_rate: float = 0.0

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
    """Return the attention output in the query's dtype; rows without valid keys give zeros."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if deterministic or not self.dropout_rate:
      out = _attend(query, key, value, mask)
    else:
      weights = softmax_weights(query, key, mask).astype(query.dtype)
      weights = nn.Dropout(self.dropout_rate)(weights, deterministic=False)
      out = jnp.einsum('bhls,bshe->blhe', weights, value)
    if key_mask is None:
      return out
    return jnp.where(jnp.any(mask, axis=-1, keepdims=True), out, 0)


def softmax_weights(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  mask: Bool[Array, 'b 1 1 s'] | None = None,
) -> Float[Array, 'b h l s']:
  """Return softmax(q·k / D^(1/2)) over the valid keys, float32."""
  logits = jnp.einsum('blhd,bshd->bhls', query, key, preferred_element_type=jnp.float32)
  logits = logits * query.shape[-1] ** -0.5
  if mask is not None:
    # Finite, so that a row without any valid key has no NaN in its gradient.
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  return jax.nn.softmax(logits, axis=-1)


def _attend(query, key, value, mask):
  """Pick cuDNN's fused kernel where it exists: CUDA, 16 bits; XLA's product elsewhere."""
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return _plain(query, key, value, mask)
  return jax.lax.platform_dependent(query, key, value, mask, cuda=_fused, default=_plain)


def _plain(query, key, value, mask):
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation='xla')


def _fused(query, key, value, mask):
  """Run cuDNN's kernel, which wants even lengths, head sizes in eights and no L×1 mask.

  So lengths are padded, and the mask becomes one more coordinate of queries and keys.
  """
  length, head_dim = query.shape[1], query.shape[3]
  if mask is None:
    mask = jnp.ones((1, 1, 1, key.shape[1]), bool)
  pad = 8 + -head_dim % 8
  widen = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, pad)))
  query, key, value = widen(query), widen(key), widen(value)
  # exp(−30,000 / D^(1/2)) is 0, and −30,000 is finite, in both 16-bit types.
  penalty = jnp.where(mask[:, 0, 0, :, None], 0, -30_000).astype(key.dtype)
  penalty = jnp.pad(penalty, ((0, 0), (0, -penalty.shape[1] % 8), (0, 0)), constant_values=-30_000)
  query = query.at[..., head_dim].set(1)
  key = key.at[..., head_dim].set(penalty)
  out = jax.nn.dot_product_attention(
    query, key, value, scale=head_dim**-0.5, implementation='cudnn'
  )
  return out[:, :length, :, :head_dim]
