"""The Sparse Transformer's patterns: the `sparse_transformer` of the Long Range Arena."""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.blocks import Blocks, Keys, block_attention, neighbours, own_block
from kl_flax.baselines.shared import check_option
from kl_flax.dropout import Dropout
from kl_flax.errors import unknown_name

Pattern = Literal['fixed', 'strided']


class SparseTransformerAttention(nn.Module):
  """Attention of the Sparse Transformer (Child et al. 2019, sections 4.3 and 5.2), not causal.

  Each head attends to the union of both parts of a pattern ("merged"). With blocks of l positions,
  counted from 0, the query at i attends to the key at j,

      fixed:    if ⌊i / l⌋ = ⌊j / l⌋, or j mod l is one of l − c, ..., l (l being 0 as well)
      strided:  if |i − j| < l, or l divides i − j

  which takes L·(l + c·L / l) or L·(l + L / l) scores: L^1.5 where l grows as L^(1/2). The first
  tokens are global, which covers CLS as in LRA: they attend to all, all attend to them, and the
  pattern begins behind them.

  LRA's code differs in this:

  - Its patterns are causal. So are the paper's, which generates sequences; LRA classifies them.
  - The first position is global only where it is CLS; here it is whatever it holds.
  - It computes and masks all L×L scores.

  Attributes:
    pattern: 'fixed' or 'strided'; LRA's is fixed.
    block_size: l, at least 2.
    num_summary: c, from 1 to l − 1; of the fixed pattern.
    num_global_tokens: at least 0.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for an unknown pattern, or another option out of its range.
  """

  pattern: str = 'fixed'
  block_size: int = 50
  num_summary: int = 10
  num_global_tokens: int = 1
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    patterns = get_args(Pattern)
    if self.pattern not in patterns:
      raise ValueError(unknown_name('pattern of sparse_transformer', str(self.pattern), patterns))
    check_option('block_size', self.block_size, 2, 'LRA has 50')
    check_option('num_summary', self.num_summary, 1, 'LRA has 10')
    if self.pattern == 'fixed' and self.num_summary >= self.block_size:
      raise ValueError(
        f'num_summary must be below block_size={self.block_size}, got {self.num_summary}: '
        'raise block_size, or take the pattern strided, which has no summaries'
      )
    check_option('num_global_tokens', self.num_global_tokens, 0, '0 is the pattern alone')

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'],
    key: Float[Array, 'b l h d'],
    value: Float[Array, 'b l h e'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output in the query's dtype; rows without valid keys give zeros.

    Raises:
      ValueError: for arrays that are not floating, or a key_mask that is not bool[b, l].
    """
    return block_attention(
      query,
      key,
      value,
      key_mask,
      block_size=self.block_size,
      find_keys=self._fixed if self.pattern == 'fixed' else self._strided,
      num_global=self.num_global_tokens,
      drop=Dropout(self.dropout_rate).drawn(deterministic=deterministic),
    )

  def _fixed(self, blocks: Blocks) -> list[Keys]:
    """Return a query's own block, and the summaries of all others."""
    num, size = blocks.valid.shape[1:]
    if num == 1:
      return [own_block(blocks)]
    places = np.array([0, *range(size - self.num_summary, size)])
    key, value = (_flat(x[:, :, places]) for x in (blocks.key, blocks.value))
    mask = blocks.valid[:, None, :, places] & _others(num)[:, :, None]
    mask = mask.reshape(mask.shape[0], num, 1, 1, -1)
    return [own_block(blocks), Keys(key, value, mask, 'bshd')]

  def _strided(self, blocks: Blocks) -> list[Keys]:
    """Return a query's neighbours, and the keys at its place in all other blocks."""
    num, size = blocks.valid.shape[1:]
    near = neighbours(blocks, distance=size - 1)
    if num == 1:
      return [near]
    mask = jnp.swapaxes(blocks.valid, 1, 2)[:, None, None] & _others(num)[:, None, None]
    return [near, Keys(blocks.key, blocks.value, mask, 'bsqhd')]


def _others(num):
  """Return bool[n, n], False for a block and itself."""
  return ~np.eye(num, dtype=bool)


def _flat(x):
  return x.reshape(x.shape[0], -1, *x.shape[3:])
