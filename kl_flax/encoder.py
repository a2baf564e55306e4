"""The Long Range Arena's encoder: embeddings, pre-LN blocks, any attention mechanism.

Sizes, initialisers, order of operations and dropout places are LRA's (Tay et al. 2021). Where LRA
ignores padding (its kernel-based models) this encoder masks it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from kl_flax.dropout import Dropout
from kl_flax.numerics import einsum_float32

Dtype = Any

# Up to this vocabulary the embedding is a product with one-hot vectors. The gradient of a gather
# serialises on a GPU when few tokens are frequent: 56 ms against 11 ms a step on real bytes.
_ONE_HOT_VOCAB = 512
# Inside, sequences are padded to a multiple of this: products on GPUs want even sizes, and fused
# attention would otherwise copy its inputs.
_LENGTH_MULTIPLE = 8
# What mechanisms are called with, in this order.
PROJECTIONS = ('query', 'key', 'value')
# What `EncoderBlock` keeps of an `Mlp` for the backward pass.
_HIDDEN = 'mlp_hidden'


class MultiHeadAttention(nn.Module):
  """Self-attention: projections without bias around a mechanism that mixes positions.

  Attributes:
    make_attention: returns the mechanism, a module called with query, key, value
      [b, l, h, d], key_mask [b, l] and deterministic. One that needs fewer of the three says so by
      its attribute `projections`, such as ('query', 'value'): it gets None for the others, which
      have no parameters. Further names are projections, too, and are passed as keywords. One with
      a true attribute `takes_fewer_queries` may be called with fewer queries than keys.
    num_heads: H.
    qkv_dim: H·D, the width of queries, keys and values; a multiple of num_heads.
    dtype: of the computation; parameters are float32.
  """

  make_attention: Callable[[], nn.Module]
  num_heads: int
  qkv_dim: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l f'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    num_queries: int | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'b q f']:
    """Return the mixed sequence, of num_queries only the first positions."""
    if self.qkv_dim % self.num_heads:
      raise ValueError(f'qkv_dim={self.qkv_dim} must be a multiple of num_heads={self.num_heads}')
    features, head_dim = x.shape[-1], self.qkv_dim // self.num_heads
    attention = self.make_attention()
    names = getattr(attention, 'projections', PROJECTIONS)
    asking = x[:, :num_queries] if getattr(attention, 'takes_fewer_queries', False) else x
    # Each keeps the Xavier bounds of a matrix of its own. A product for each: what one for all
    # returns would have to be cut up, which costs more than reading x three times. XLA would
    # merge them again, had not each to wait for the one before.
    init = nn.initializers.xavier_uniform(in_axis=0, out_axis=(2, 3), batch_axis=1)
    shape = (features, len(names), self.num_heads, head_dim)
    kernel = self.param('qkv', init, shape).astype(self.dtype)
    inputs, last = dict.fromkeys(PROJECTIONS), None
    for i, name in enumerate(names):
      matrix = kernel[:, i]
      if last is not None:
        inputs[last], matrix = jax.lax.optimization_barrier((inputs[last], matrix))
      source = asking if name == 'query' else x
      inputs[name], last = jnp.einsum('blf,fhd->blhd', source, matrix), name
    first = [inputs.pop(name) for name in PROJECTIONS]
    out = attention(*first, key_mask, deterministic=deterministic, **inputs)[:, :num_queries]
    return nn.DenseGeneral(
      features,
      axis=(-2, -1),
      use_bias=False,
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name='out',
    )(out)


class Mlp(nn.Module):
  """Position-wise feed-forward block: Dense, GELU, dropout, Dense, dropout."""

  mlp_dim: int
  dropout_rate: float = 0.1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b l f'], *, deterministic: bool = True
  ) -> Float[Array, 'b l f']:
    """Return the transformed positions."""
    drop = Dropout(self.dropout_rate)
    y, bias = Affine(self.mlp_dim, self.dtype, name='Dense_0')(x)
    # Named where the product leaves it: what follows is one pass over memory, bias included.
    y = gelu(checkpoint_name(y, _HIDDEN).astype(jnp.float32) + bias)
    y = drop(y, deterministic=deterministic).astype(self.dtype)
    y, bias = Affine(x.shape[-1], self.dtype, name='Dense_1')(y)
    return drop(y + bias.astype(self.dtype), deterministic=deterministic)


class Affine(nn.Module):
  """A dense layer that leaves it to others to add its bias."""

  size: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b f']) -> tuple[Float[Array, '*b g'], Float[Array, ' g']]:
    """Return the product, and the bias in float32."""
    shape = (x.shape[-1], self.size)
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape)
    bias = self.param('bias', nn.initializers.normal(1e-6), (self.size,))
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)), bias


@jax.custom_jvp
def gelu(x: Float[Array, '*n']) -> Float[Array, '*n']:
  """Return the GELU in its tanh form, as LRA's (flax's) is, float32.

  (1 + tanh z) / 2 = sigmoid(2z), written in what GPUs do in one instruction each.

  >>> [round(float(y), 4) for y in gelu(jnp.array([-1.0, 0.0, 2.0]))]
  [-0.1588, 0.0, 1.9546]
  """
  x = x.astype(jnp.float32)
  return x * _gate(x)


def _gate(x):
  """Return sigmoid((8 / π)^(1/2) (x + 0.044715 x³)); 1 / y as rsqrt(y)², since division is slow."""
  minus_z = x * (-math.sqrt(8 / math.pi) - math.sqrt(8 / math.pi) * 0.044715 * x**2)
  return jax.lax.rsqrt(1 + jnp.exp(minus_z)) ** 2


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (t,) = primals, tangents
  x = x.astype(jnp.float32)
  gate = _gate(x)
  slope = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x**2)
  return x * gate, (gate + x * gate * (1 - gate) * slope) * t.astype(jnp.float32)


class EncoderBlock(nn.Module):
  """Pre-LN Transformer layer: x + attention(LN(x)), then x + mlp(LN(x))."""

  make_attention: Callable[[], nn.Module]
  num_heads: int
  qkv_dim: int
  mlp_dim: int
  dropout_rate: float = 0.1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l f'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    num_queries: int | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'b q f']:
    """Return the layer's output, of num_queries only the first positions."""
    # What is inside a normalisation is computed again, rather than kept in float32.
    y = nn.remat(nn.LayerNorm)(dtype=self.dtype, name='attention_norm')(x)
    y = MultiHeadAttention(
      self.make_attention, self.num_heads, self.qkv_dim, self.dtype, name='attention'
    )(y, key_mask, num_queries=num_queries, deterministic=deterministic)
    x = x[:, :num_queries] + Dropout(self.dropout_rate)(y, deterministic=deterministic)

    def feed_forward(block, x):
      y = nn.LayerNorm(dtype=block.dtype, name='mlp_norm')(x)
      mlp = Mlp(block.mlp_dim, block.dropout_rate, block.dtype, name='mlp')
      return mlp(y, deterministic=deterministic)

    # For the backward pass only x and the hidden layer are kept. All else is computed again.
    policy = jax.checkpoint_policies.save_only_these_names(_HIDDEN)
    return x + nn.remat(feed_forward, policy=policy)(self, x)


class Encoder(nn.Module):
  """Token ids to one vector per position.

  Attributes:
    make_attention: see `MultiHeadAttention`; called once per layer.
    vocab_size: number of ids, padding included.
    emb_dim: width of the residual stream.
    num_heads: H.
    num_layers: number of blocks.
    qkv_dim: H·D.
    mlp_dim: hidden width of the feed-forward blocks.
    max_length: the longest sequence, without the CLS position.
    use_cls: whether a learned CLS vector (initially zero) is put before the sequence.
    dropout_rate: in [0, 1).
    learn_pos_emb: learned positions (normal, std 0.02) instead of sinusoids.
    tied_weights: all blocks share their parameters.
    separator: id that ends a segment, as the first of two sentences; positions of the first and
      the second segment get learned vectors (normal, std 0.02) of their own. 0: no segments.
    mask_zero: take id 0 for padding wherever it stands, as LRA's Transformer does: black pixels of
      images, too.
    dtype: of the computation; parameters and normalisation statistics are float32.
  """

  make_attention: Callable[[], nn.Module]
  vocab_size: int
  emb_dim: int = 512
  num_heads: int = 8
  num_layers: int = 6
  qkv_dim: int = 512
  mlp_dim: int = 2048
  max_length: int = 512
  use_cls: bool = True
  dropout_rate: float = 0.1
  learn_pos_emb: bool = False
  tied_weights: bool = False
  separator: int = 0
  mask_zero: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    inputs: Int[Array, 'b l'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    num_outputs: int | None = None,
    deterministic: bool = True,
  ) -> tuple[Float[Array, 'b p f'], Bool[Array, 'b p'] | None]:
    """Return the encoded positions and their mask, CLS (always valid) first.

    Args:
      inputs: token ids.
      key_mask: True at valid positions; None means everywhere.
      num_outputs: return the first positions alone, and spare the last layer the others: all that
        they are good for there is their keys and values.
      deterministic: no dropout.

    Raises:
      ValueError: if the sequence is longer than max_length, or num_outputs is less than 1.
    """
    if num_outputs is not None and num_outputs < 1:
      raise ValueError(f'num_outputs must be at least 1, got {num_outputs}')
    if inputs.shape[1] > self.max_length:
      raise ValueError(f'sequences of length {inputs.shape[1]} exceed max_length={self.max_length}')
    if self.mask_zero:
      key_mask = inputs > 0 if key_mask is None else key_mask & (inputs > 0)
    length, mask = inputs.shape[1] + self.use_cls, key_mask
    if missing := -length % _LENGTH_MULTIPLE:
      key_mask = jnp.ones(inputs.shape, bool) if key_mask is None else key_mask
      inputs, key_mask = (jnp.pad(a, ((0, 0), (0, missing))) for a in (inputs, key_mask))
    x = TokenEmbedding(self.vocab_size, self.emb_dim, self.dtype, name='embedding')(inputs)
    if self.separator:
      init = nn.initializers.normal(0.02)
      vectors = self.param('segments', init, (2, self.emb_dim)).astype(x.dtype)
      x = x + jnp.where(_is_second(inputs, self.separator)[..., None], vectors[1], vectors[0])
    if self.use_cls:
      cls = self.param('cls', nn.initializers.zeros, (1, 1, self.emb_dim))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.emb_dim)).astype(x.dtype)
      x = jnp.concatenate([cls, x], axis=1)
      key_mask, mask = map(_with_cls, (key_mask, mask))
    x = x + self._positions(x.shape[1]).astype(x.dtype)
    x = Dropout(self.dropout_rate)(x, deterministic=deterministic)
    block = None
    for i in range(self.num_layers):
      if block is None or not self.tied_weights:
        block = EncoderBlock(
          self.make_attention,
          self.num_heads,
          self.qkv_dim,
          self.mlp_dim,
          self.dropout_rate,
          self.dtype,
          name='block' if self.tied_weights else f'block_{i}',
        )
      wanted = num_outputs if i == self.num_layers - 1 else None
      x = block(x, key_mask, num_queries=wanted, deterministic=deterministic)
    kept = length if num_outputs is None else min(num_outputs, length)
    mask = None if mask is None else mask[:, :kept]
    return nn.LayerNorm(dtype=self.dtype, name='norm')(x[:, :kept]), mask

  @property
  def num_positions(self) -> int:
    """Return the largest length that attention mechanisms are called with."""
    return -(-(self.max_length + self.use_cls) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

  def _positions(self, length: int) -> Float[Array, 'l f']:
    table_length = self.max_length + self.use_cls
    if self.learn_pos_emb:
      init = nn.initializers.normal(0.02)
      table = self.param('positions', init, (table_length, self.emb_dim))
      return jnp.pad(table, ((0, max(0, length - table_length)), (0, 0)))[:length]
    return jnp.asarray(sinusoidal_positions(length, self.emb_dim))


def _is_second(inputs: Int[Array, 'b l'], separator: int) -> Bool[Array, 'b l']:
  """Return True behind the first separator."""
  ends = inputs == separator
  return (jnp.cumsum(ends, axis=1) - ends) > 0


def _with_cls(mask: Bool[Array, 'b l'] | None) -> Bool[Array, 'b p'] | None:
  """Return the mask with the CLS position, which is always valid."""
  return None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


class TokenEmbedding(nn.Module):
  """Embedding table, normal with standard deviation 1.

  Gradients are summed up in float32. Of small tables in 16 bits there are no derivatives in forward
  mode (`jax.jvp`).
  """

  vocab_size: int
  emb_dim: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Int[Array, 'b l']) -> Float[Array, 'b l f']:
    """Return the rows of the table; an id outside of it gives zeros or NaN, never an error."""
    init = nn.initializers.normal(1.0)
    table = self.param('table', init, (self.vocab_size, self.emb_dim))
    if self.vocab_size > _ONE_HOT_VOCAB:
      # Rounded afterwards: the gradients of a frequent token are summed up in float32.
      return jnp.take(table, inputs, axis=0).astype(self.dtype)
    if jnp.dtype(self.dtype).itemsize > 2:
      return _rows(table, inputs, self.dtype)
    # Adds nothing: under `shard_map` the table must vary over devices as its custom gradient does.
    table = table + jnp.zeros_like(inputs, table.dtype, shape=())
    return _rows_of_16_bits(table, inputs, self.dtype)


def _rows(table, inputs, dtype):
  """Return the rows [b, l, f] of table [v, f] at inputs [b, l], as a product."""
  one_hot = jax.nn.one_hot(inputs, len(table), dtype=dtype)
  # Highest precision: the product must return the rows as they are.
  return jnp.einsum(
    'blv,vf->blf', one_hot, table.astype(dtype), precision=jax.lax.Precision.HIGHEST
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows_of_16_bits(table, inputs, dtype):
  """Return `_rows`; the gradient is summed up in float32, JAX's in 16 bits on some backends."""
  return _rows(table, inputs, dtype)


def _rows_forward(table, inputs, dtype):
  return _rows(table, inputs, dtype), (table, inputs)


def _rows_backward(dtype, kept, gradient):
  table, inputs = kept
  one_hot = jax.nn.one_hot(inputs, len(table), dtype=dtype)
  return einsum_float32('blv,blf->vf', one_hot, gradient).astype(table.dtype), None


_rows_of_16_bits.defvjp(_rows_forward, _rows_backward)


def sinusoidal_positions(length: int, features: int) -> np.ndarray:
  """Return the table of Vaswani et al. (2017), float32[length, features].

  Column 2i is sin(p · 10000^(−2i/features)), column 2i + 1 its cosine, positions from 0.

  >>> sinusoidal_positions(2, 4).round(3).tolist()[0]
  [0.0, 1.0, 0.0, 1.0]
  """
  position = np.arange(length)[:, None]
  rate = 10000.0 ** (-np.arange(0, features, 2) / features)
  table = np.zeros((length, features), np.float32)
  table[:, 0::2] = np.sin(position * rate)
  table[:, 1::2] = np.cos(position * rate)[:, : features // 2]
  return table
