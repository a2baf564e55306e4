"""Local attention, O(L·w): the `local` of the Long Range Arena."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.blocks import block_attention, own_block
from kl_flax.baselines.shared import check_option
from kl_flax.dropout import Dropout


class LocalAttention(nn.Module):
  """Softmax attention within blocks (Liu et al. 2018, "Local attention"; Tay et al. 2021).

  The sequence is cut into blocks, and each position attends to the positions of its own block
  alone. So nothing, CLS included, ever learns of another block; only pooling brings them together.

  LRA's code differs in this:

  - It reshapes a sequence of n blocks into [block_size, n] and attends along the first axis: the
    groups are the positions that are equal modulo n, not blocks of neighbours.
  - Its mask is cut into blocks of neighbours, and so hides other positions than those it is about.
  - It adds positions up to a multiple of the block, a whole block where none is missing, and takes
    them for valid.

  Attributes:
    block_size: positions of a block, at least 1.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for a block size below 1.
  """

  block_size: int = 50
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    check_option('block_size', self.block_size, 1, 'LRA has 50, for images 64')

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
      find_keys=lambda blocks: [own_block(blocks)],
      drop=Dropout(self.dropout_rate).drawn(deterministic=deterministic),
    )
