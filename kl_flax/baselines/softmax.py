"""Softmax attention, O(L²): the `transformer` of the Long Range Arena."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.checks import check_floating, check_key_mask
from kl_flax.dropout import Dropout
from kl_flax.numerics import cuda_capability, pad_axis


class SoftmaxAttention(nn.Module):
  """Scaled dot-product attention (Vaswani et al. 2017).

  On CUDA, in 16-bit types and without dropout of the weights, it runs as cuDNN's fused kernel,
  which never stores the L×L matrix.

  Attributes:
    dropout_rate: dropout of the attention weights, in [0, 1); needs the L×L matrix in training.
  """

  dropout_rate: float = 0.0

  takes_fewer_queries: ClassVar[bool] = True

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
    """Return the attention output in the query's dtype; rows without valid keys give zeros.

    Raises:
      ValueError: for arrays that are not floating, or a key_mask that is not bool[b, s].
    """
    check_floating(query, key, value)
    check_key_mask(key_mask, key)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if deterministic or not self.dropout_rate:
      out = _attend(query, key, value, mask)
    else:
      weights = softmax_weights(query, key, mask).astype(query.dtype)
      weights = Dropout(self.dropout_rate)(weights, deterministic=False)
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
  """Pick cuDNN's fused kernel where it exists, in 16 bits; XLA's products elsewhere."""
  # Of one query there is one row of weights, which XLA may as well store.
  narrow = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[1] > 1
  if narrow and _fused_width(query, value) <= _largest_fused_width():
    return _fused(query, key, value, mask)
  weights = softmax_weights(query, key, mask).astype(value.dtype)
  return jnp.einsum('bhls,bshe->blhe', weights, value)


def _largest_fused_width() -> int:
  """Return the largest head size of cuDNN's kernel on this device; 0 where there is none."""
  capability = cuda_capability()
  return 0 if capability < 8 else 256 if capability >= 9 else 128


def _fused_width(query, value) -> int:
  """Return the head size in eights."""
  return -(-max(query.shape[3], value.shape[3]) // 8) * 8


def _fused(query, key, value, mask):
  """Run cuDNN's kernel, which wants even lengths and head sizes in eights.

  Of masks it takes lengths, behind which it skips everything, or else L×L biases. The order of keys
  is free: so those that are valid go to the front, whatever the mask.
  """
  (_, length, _, head_dim), value_dim = query.shape, value.shape[3]
  lengths = None
  if mask is not None:
    mask = mask[:, 0, 0]
    key, value = (_valid_first(x, mask) for x in (key, value))
    lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
  elif key.shape[1] % 8:
    lengths = jnp.full(key.shape[0], key.shape[1], jnp.int32)
  width = _fused_width(query, value)
  out = jax.nn.dot_product_attention(
    *(pad_axis(pad_axis(x, 1, 8), 3, width) for x in (query, key, value)),
    key_value_seq_lengths=lengths,
    scale=head_dim**-0.5,
    implementation='cudnn',
  )
  return out[:, :length, :, :value_dim]


def _valid_first(x, mask):
  """Return [b, s, h, d] with the positions where the mask is True before the others."""
  batch, length = mask.shape
  rank = jnp.where(mask, jnp.cumsum(mask, axis=1), jnp.cumsum(~mask, axis=1)) - 1
  rank += jnp.where(mask, 0, jnp.sum(mask, axis=1, keepdims=True))
  example = jnp.arange(batch)[:, None]
  hints = {'unique_indices': True, 'mode': 'promise_in_bounds'}  # Gradients need no atomics.
  position = jnp.broadcast_to(jnp.arange(length), mask.shape)
  order = jnp.zeros_like(position).at[example, rank].set(position, **hints)
  return x.at[example, order].get(**hints)
