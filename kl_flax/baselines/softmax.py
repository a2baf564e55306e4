"""Softmax attention, O(L²): the `transformer` of the Long Range Arena."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.numerics import cuda_capability


class SoftmaxAttention(nn.Module):
  """Scaled dot-product attention (Vaswani et al. 2017).

  On CUDA, in 16-bit types and without dropout of the weights, it runs as cuDNN's fused kernel,
  which never stores the L×L matrix.

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
  """Pick cuDNN's fused kernel where it exists, in 16 bits; XLA's products elsewhere."""
  narrow = query.dtype in (jnp.bfloat16, jnp.float16)
  if narrow and _fused_width(query, value) <= _largest_fused_width():
    return _fused(query, key, value, mask)
  weights = softmax_weights(query, key, mask).astype(value.dtype)
  return jnp.einsum('bhls,bshe->blhe', weights, value)


def _largest_fused_width() -> int:
  """Return the largest head size of cuDNN's kernel on this device; 0 where there is none."""
  capability = cuda_capability()
  return 0 if capability < 8 else 256 if capability >= 9 else 128


def _fused_width(query, value) -> int:
  """Return the head size with the coordinate of the mask, in eights."""
  return -(-max(query.shape[3] + 1, value.shape[3]) // 8) * 8


def _fused(query, key, value, mask):
  """Run cuDNN's kernel, which wants even lengths, head sizes in eights and no L×1 mask.

  So lengths and sizes are padded where need be. Keys that are valid up to a length, as padded
  sequences are, go as lengths, and what lies behind is skipped; any other mask becomes one more
  coordinate of queries and keys.
  """
  if mask is None:
    return _cudnn(query, key, value)
  mask = mask[:, 0, 0]
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  is_prefix = jnp.all(mask == (jnp.arange(mask.shape[1]) < lengths[:, None]))
  by_lengths = lambda *arrays: _cudnn(*arrays, lengths=jnp.maximum(lengths, 1))
  by_coordinate = lambda *arrays: _cudnn_with_coordinate(*arrays, mask)
  return jax.lax.cond(is_prefix, by_lengths, by_coordinate, query, key, value)


def _cudnn(query, key, value, *, scale=None, lengths=None):
  """Attend to the keys up to `lengths`, int32[b]; by default to all."""
  (_, length, _, head_dim), value_dim = query.shape, value.shape[3]
  if lengths is None and key.shape[1] % 8:
    lengths = jnp.full(key.shape[0], key.shape[1], jnp.int32)
  width = -(-max(head_dim, value_dim) // 8) * 8
  out = jax.nn.dot_product_attention(
    *(_pad(x, width) for x in (query, key, value)),
    key_value_seq_lengths=lengths,
    scale=head_dim**-0.5 if scale is None else scale,
    implementation='cudnn',
  )
  return out[:, :length, :, :value_dim]


def _cudnn_with_coordinate(query, key, value, mask):
  """Attend to the keys where the mask is True."""
  head_dim = query.shape[3]
  # exp(−30,000 / D^(1/2)) is 0, and −30,000 is finite, in both 16-bit types.
  penalty = jnp.broadcast_to(jnp.where(mask, 0, -30_000)[:, :, None, None], (*key.shape[:3], 1))
  query = jnp.concatenate([query, jnp.ones((*query.shape[:3], 1), query.dtype)], axis=-1)
  key = jnp.concatenate([key, penalty.astype(key.dtype)], axis=-1)
  return _cudnn(query, key, value, scale=head_dim**-0.5)


def _pad(x, width):
  """Pad [b, l, h, d] with zeros to a length in eights and to the width."""
  missing = -x.shape[1] % 8, width - x.shape[3]
  return jnp.pad(x, ((0, 0), (0, missing[0]), (0, 0), (0, missing[1]))) if any(missing) else x
