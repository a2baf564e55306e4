"""Sliding windows and global tokens, O(L·w): the `longformer` of the Long Range Arena."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.blocks import block_attention, neighbours
from kl_flax.baselines.shared import check_option
from kl_flax.dropout import Dropout

_GLOBAL_PROJECTIONS = ('global_query', 'global_key', 'global_value')


class LongformerAttention(nn.Module):
  """Longformer's attention (Beltagy et al. 2020, section 3).

  A position attends to w / 2 neighbours on each side, to itself and to the global tokens, which are
  the first ones: CLS, where the encoder has it. Global tokens attend to all positions, by
  projections of their own.

  LRA's code differs in this:

  - It has no global tokens: their mask is never set, and the second set of projections is idle.
  - A window of 512 reaches 255 positions to the left and 256 to the right.
  - It computes and masks all L×L scores, twice.

  Attributes:
    sliding_window_size: w, even, at least 2.
    num_global_tokens: at least 0.
    global_projections: whether global tokens have projections of their own.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for a window that is odd or below 2, or fewer than 0 global tokens.
  """

  sliding_window_size: int = 512
  num_global_tokens: int = 1
  global_projections: bool = True
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    size = self.sliding_window_size
    hint = 'half of it lies on each side; LRA has 512'
    check_option('sliding_window_size', size, 2, hint)
    if size % 2:
      raise ValueError(
        f'sliding_window_size must be even, got {size}: half of it lies on each side of a '
        f'position, which does not count itself; take {size - 1} or {size + 1}'
      )
    check_option('num_global_tokens', self.num_global_tokens, 0, '0 is a window alone')

  @property
  def projections(self) -> tuple[str, ...]:
    """Names of what the mechanism is called with."""
    more = self.global_projections and self.num_global_tokens > 0
    return ('query', 'key', 'value', *(_GLOBAL_PROJECTIONS if more else ()))

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'],
    key: Float[Array, 'b l h d'],
    value: Float[Array, 'b l h e'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    global_query: Float[Array, 'b l h d'] | None = None,
    global_key: Float[Array, 'b l h d'] | None = None,
    global_value: Float[Array, 'b l h e'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output in the query's dtype; rows without valid keys give zeros.

    Without global queries, keys and values global tokens take the others.

    Raises:
      ValueError: for arrays that are not floating, or a key_mask that is not bool[b, l].
    """
    half = self.sliding_window_size // 2
    return block_attention(
      query,
      key,
      value,
      key_mask,
      block_size=half,
      find_keys=lambda blocks: [neighbours(blocks, distance=half)],
      num_global=self.num_global_tokens,
      global_inputs=None if global_query is None else (global_query, global_key, global_value),
      drop=Dropout(self.dropout_rate).drawn(deterministic=deterministic),
    )
