"""Windows, global and random blocks, O(L·w): the `bigbird` of the Long Range Arena."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kl_flax.baselines.blocks import Blocks, Keys, block_attention, neighbours
from kl_flax.baselines.shared import check_option
from kl_flax.dropout import Dropout


class BigBirdAttention(nn.Module):
  """Big Bird's attention with internal global tokens, ITC (Zaheer et al. 2020, section 2).

  The tokens of the first blocks are global: they attend to all positions, and all attend to them.
  Behind them, a block attends to itself, to the block on each side and to random blocks, which
  `random_blocks` draws: other ones for every head, the same in every layer, in training and in
  prediction. As published, they are drawn from the whole length: what lies behind a sequence
  counts for nothing, but where it adds a block, other blocks are drawn.

  LRA's code differs in this:

  - Its global blocks are the first and the last one, which is padding wherever there is any.
  - Random blocks are drawn from the first 1,024 positions only, and anew in each layer.
  - It drops no attention weights, whatever the attention's dropout rate.
  - It adds positions up to a multiple of the block, a whole block where none is missing, and takes
    them for valid.

  Attributes:
    block_size: positions of a block, at least 1.
    num_rand_blocks: random blocks that a block attends to, as far as there are any besides global
      and neighbouring ones; at least 0.
    num_global_blocks: at least 0.
    connectivity_seed: at least 0.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for an option out of its range.
  """

  block_size: int = 64
  num_rand_blocks: int = 3
  num_global_blocks: int = 2
  connectivity_seed: int = 0
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    check_option('block_size', self.block_size, 1, 'LRA has 64')
    check_option('num_rand_blocks', self.num_rand_blocks, 0, '0 is without random blocks')
    check_option('num_global_blocks', self.num_global_blocks, 0, '0 is without global blocks')
    check_option('connectivity_seed', self.connectivity_seed, 0, 'it seeds the random blocks')

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
      find_keys=lambda blocks: [neighbours(blocks), *self._random(blocks)],
      num_global=self.num_global_blocks * self.block_size,
      drop=Dropout(self.dropout_rate).drawn(deterministic=deterministic),
    )

  def _random(self, blocks: Blocks) -> list[Keys]:
    """Return the keys of random blocks, if there are any."""
    num_blocks, num_heads = blocks.key.shape[1], blocks.key.shape[3]
    chosen = random_blocks(num_blocks, num_heads, self.num_rand_blocks, self.connectivity_seed)
    if not chosen.shape[2]:
      return []
    key, value = (_gather(x, chosen) for x in (blocks.key, blocks.value))
    mask = blocks.valid[:, chosen] & (chosen >= 0)[..., None]  # [b, h, n, r, s]
    mask = jnp.swapaxes(mask, 1, 2).reshape(mask.shape[0], num_blocks, num_heads, 1, -1)
    return [Keys(key, value, mask, 'bhnsd')]


@functools.lru_cache
def random_blocks(
  num_blocks: int, num_heads: int, num_rand_blocks: int, seed: int
) -> Int[np.ndarray, 'h n r']:
  """Return which blocks each block attends to besides itself and the two beside it.

  They are distinct and uniformly drawn by NumPy's default generator, whose seed is
  (seed, num_blocks), head by head. −1 stands where there are fewer than wanted.

  >>> random_blocks(4, 1, 3, seed=0)[0].tolist()
  [[2, 3], [3, -1], [0, -1], [0, 1]]
  """
  rng = np.random.default_rng((seed, num_blocks))
  width = min(num_rand_blocks, max(0, num_blocks - 2))
  chosen = np.full((num_heads, num_blocks, width), -1)
  for head, block in np.ndindex(num_heads, num_blocks):
    others = np.delete(np.arange(num_blocks), slice(max(0, block - 1), block + 2))
    count = min(width, len(others))
    chosen[head, block, :count] = np.sort(rng.choice(others, count, replace=False))
  chosen.flags.writeable = False  # It is kept for the next call.
  return chosen


def _gather(x, chosen):
  """Return of [b, n, s, h, d] the chosen blocks of each head and block, [b, h, n, r s, d]."""
  x = jnp.moveaxis(x, 3, 1)
  x = x[:, np.arange(x.shape[1])[:, None, None], chosen]
  return x.reshape(*x.shape[:3], -1, x.shape[-1])
