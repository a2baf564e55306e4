"""Softmax attention over parts of the keys, block by block: no matrix of L×L is ever made.

Shapes: b batch, l positions, n blocks, q positions of a block, s keys, h heads, d head size, e
value size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from kl_flax.baselines.shared import cut, join, valid_positions
from kl_flax.checks import check_floating, check_key_mask
from kl_flax.numerics import divide


@dataclasses.dataclass(frozen=True)
class Keys:
  """Keys that queries in blocks attend to, with their values.

  Attributes:
    key: its axes are named by `axes`.
    value: likewise, with e in place of d.
    mask: bool, broadcasts to [b, n, h, q, s]: whether a query attends to a key.
    axes: some of b, n, q, s, h, d. Keys without n are the same for all blocks, keys with q differ
      from query to query.
  """

  key: Shaped[Array, '...']
  value: Shaped[Array, '...']
  mask: Shaped[Array | np.ndarray, '...']
  axes: str = 'bnshd'


@dataclasses.dataclass(frozen=True)
class Blocks:
  """A sequence cut into blocks.

  Attributes:
    key, value: [b, n, s, h, d] and [b, n, s, h, e].
    valid: bool[b or 1, n, s].
  """

  key: Float[Array, 'b n s h d']
  value: Float[Array, 'b n s h e']
  valid: Bool[Array, 'm n s']


def block_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b l h d'],
  value: Float[Array, 'b l h e'],
  key_mask: Bool[Array, 'b l'] | None,
  *,
  block_size: int,
  find_keys: Callable[[Blocks], Sequence[Keys]],
  num_global: int = 0,
  global_inputs: Sequence[Float[Array, 'b l h f']] | None = None,
  drop: Callable[[Array, int], Array] = lambda weights, number: weights,
) -> Float[Array, 'b l h e']:
  """Return attention by a pattern of blocks, with some global positions before them.

  The first positions are global: they attend to all, and all attend to them. The pattern is about
  the others alone and begins behind them. Lengths need not be multiples of the block. For gradients
  everything is computed again: what it saves is many times as large as what it is called with.

  Args:
    query, key, value: of one length.
    key_mask: which keys are valid, None for all.
    block_size: positions of a block.
    find_keys: returns which keys, of blocks behind the global positions, the queries of these
      blocks attend to; none of them twice.
    num_global: number of global positions.
    global_inputs: queries, keys and values for the rows of the global positions, where they are
      others than those above.
    drop: dropout of attention weights as a pure function: `kl_flax.dropout.Dropout.drawn`.

  Raises:
    ValueError: for lengths that differ, arrays that are not floating, or a key_mask that is not
      bool[b, l].
  """
  if query.shape[1] != key.shape[1]:
    raise ValueError(
      f'self-attention alone has blocks: got {query.shape[1]} queries and {key.shape[1]} keys'
    )
  check_floating(query, key, value, *(global_inputs or ()))
  check_key_mask(key_mask, key)
  valid = valid_positions(key_mask, 1, key.shape[1])

  @jax.checkpoint
  def attend(query, key, value, global_inputs):
    shared, outputs, valid_keys = [], [], valid
    if num_global:
      global_query, *others = global_inputs or (query, key, value)
      everything = Keys(*others, valid[:, None, None, None], 'bshd')
      outputs.append(_attend(global_query[:, None, :num_global], [everything], drop)[:, 0])
      first_key, first_value, first_valid = (x[:, :num_global] for x in (key, value, valid))
      shared = [Keys(first_key, first_value, first_valid[:, None, None, None], 'bshd')]
      query, key, value, valid_keys = (x[:, num_global:] for x in (query, key, value, valid))
    if length := query.shape[1]:
      size = min(block_size, length)
      blocks = Blocks(*(cut(x, size) for x in (key, value, valid_keys)))
      out = _attend(cut(query, size), [*shared, *find_keys(blocks)], drop, number=1)
      outputs.append(join(out, length))
    return jnp.concatenate(outputs, axis=1).astype(query.dtype)

  return attend(query, key, value, global_inputs)


def own_block(blocks: Blocks) -> Keys:
  """Return, for every query, the keys of its block."""
  return Keys(blocks.key, blocks.value, blocks.valid[:, :, None, None])


def neighbours(blocks: Blocks, distance: int | None = None) -> Keys:
  """Return, for every query, the keys of its block and of the blocks beside it.

  Args:
    blocks: of keys.
    distance: leaves out keys that are further away than this.
  """
  num, size = blocks.valid.shape[1:]
  beside = min(1, num - 1)  # A single block has none.
  key, value, valid = (_beside(x, beside) for x in (blocks.key, blocks.value, blocks.valid))
  mask = valid[:, :, None, None]
  if distance is not None:
    offset = np.arange((1 + 2 * beside) * size) - beside * size - np.arange(size)[:, None]
    mask = mask & (np.abs(offset) <= distance)
  return Keys(key, value, mask)


def _beside(x, beside):
  """Return [b, n, s, ...] with the blocks around each in one: [b, n, (1 + 2 beside) s, ...]."""
  if not beside:
    return x
  num = x.shape[1]
  x = jnp.pad(x, [(0, 0), (beside, beside)] + [(0, 0)] * (x.ndim - 2))
  return jnp.concatenate([x[:, i : i + num] for i in range(1 + 2 * beside)], axis=2)


def _attend(query, sets, drop, number=0):
  """Return one softmax over several sets of keys, for queries [b, n, q, h, d], float32.

  Rows without valid keys give zeros. Dropout's masks are numbered from `number` on.
  """
  logits = []
  for keys in sets:
    product = _product(f'bnqhd,{keys.axes}->bnhqs', query, keys.key) * query.shape[-1] ** -0.5
    logits.append(jnp.where(keys.mask, product, -jnp.inf))
  largest = [jnp.max(part, axis=-1, keepdims=True) for part in logits]
  largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))
  # Finite, so that a row without any valid key has no NaN.
  largest = jnp.maximum(largest, jnp.finfo(largest.dtype).min)
  out, total = 0, 0
  for i, (keys, part) in enumerate(zip(sets, logits, strict=True)):
    weights = jnp.exp(part - largest)
    total += jnp.sum(weights, axis=-1)
    weights = drop(weights.astype(query.dtype), number + i)
    axes = keys.axes.replace('d', 'e')
    out += _product(f'bnhqs,{axes}->bnqhe', weights, keys.value)
  total = jnp.swapaxes(total, 2, 3)[..., None]
  return divide(out, total)


def _product(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
