"""Linformer, O(L·k): keys and values are projected along the sequence to k mixtures of them."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.shared import check_length, check_option
from kl_flax.baselines.softmax import softmax_weights
from kl_flax.checks import check_floating, check_key_mask
from kl_flax.dropout import Dropout
from kl_flax.numerics import einsum_float32


class LinformerAttention(nn.Module):
  """Linformer's attention (Wang et al. 2020): softmax(q·(E K) / D^(1/2)) E V.

  E is [k, L] with a column for every position: of a shorter sequence the first columns are used.
  One E serves keys, values and all heads of a layer, which the paper calls key-value sharing.
  Masked positions are zero before they are projected, so that no result depends on the padding. All
  k mixtures take part in the softmax, however many keys are valid.

  Nothing larger than [b, h, l, k] is stored.

  Unlike the Long Range Arena's code: it mixes padding into keys and values, as it has no mask. Its
  file for Text asks for k = 32 in a field that its code does not read, which leaves k at 16; here
  the file is taken at its word.

  Attributes:
    num_positions: the largest length; E has so many columns.
    projected_length: k, at least 1.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for k below 1.
  """

  num_positions: int
  projected_length: int = 16
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    check_option('projected_length', self.projected_length, 1, 'LRA has 16')

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
      ValueError: for a sequence longer than num_positions, arrays that are not floating, or a
        key_mask that is not bool[b, l].
    """
    check_length(key.shape[1], self.num_positions)
    check_floating(query, key, value)
    check_key_mask(key_mask, key)
    shape = (self.num_positions, self.projected_length)
    projection = self.param('projection', nn.initializers.xavier_uniform(), shape)
    projection = projection[: key.shape[1]]
    if key_mask is not None:
      mask = key_mask[:, :, None, None]
      key, value = (jnp.where(mask, x, 0) for x in (key, value))
    key, value = (project_positions(x, projection) for x in (key, value))
    weights = softmax_weights(query, key).astype(value.dtype)
    weights = Dropout(self.dropout_rate)(weights, deterministic=deterministic)
    # Without valid keys all projected values are zero, and so is the output.
    return jnp.einsum('bhlk,bkhe->blhe', weights, value).astype(query.dtype)


def project_positions(
  x: Float[Array, 'b l h d'], projection: Float[Array, 'l k']
) -> Float[Array, 'b k h d']:
  """Return k weighted sums over the positions, accumulated in float32, in the dtype of x."""
  return einsum_float32('blhd,lk->bkhd', x, projection.astype(x.dtype)).astype(x.dtype)
