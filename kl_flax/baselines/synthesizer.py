"""Synthesizer, O(L²): attention whose logits are learned, or synthesized from queries alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.shared import check_length, check_option
from kl_flax.checks import check_floating, check_key_mask
from kl_flax.dropout import Dropout
from kl_flax.errors import unknown_name
from kl_flax.numerics import divide, einsum_float32

# What a mode is made of, joined by '+'.
COMPONENTS = ('random', 'factorized_random', 'dense')
# Exponentials of logits that are lower would not be normal numbers of bfloat16 or float32.
_DEEPEST = 80.0


class SynthesizerAttention(nn.Module):
  """Synthesizer's attention (Tay et al. 2020): softmax(sum_n a_n S_n) V.

  The logits S_n of a head are [l, l], by component:

    random             R, a parameter [L, L]
    factorized_random  R_1 R_2', of parameters [L, rank]
    dense              relu(q) W for a query q, with W [D, L]; the query's projection is the first
                       of the two layers
    the dot product    q·k / D^(1/2), if `dot_product`

  Parameters have a row or column for every position: of a shorter sequence the first are used. Of
  several components the learned weights a_n are positive and add up to 1; they are equal at first.
  What no component reads has no projection: random logits alone need neither queries nor keys.

  Logits that read no input are the same for all examples: random modes take memory for [h, l, l].
  There logits more than 80 below the row's largest, among keys that are valid in any example, count
  as 80 below. All others, and dropout of the weights, take that of softmax attention, [b, h, l, l].
  Factors save parameters alone, H·L·rank·2 instead of H·L², since the softmax is over L keys.

  Unlike the Long Range Arena's code: it masks nothing without the dot product, and lets padding in.
  Its dense logits are reshaped from [l, h, L] to [h, l, L], which mixes heads with positions, and
  all heads share W. It adds components up with equal weights of 1. With the dot product, its dense
  logits have a first layer of their own. Its file for Text asks for factors of rank 32 without the
  dot product in fields that its code does not read; here the file is taken at its word.

  Attributes:
    num_positions: the largest length.
    mode: a component, or several joined by '+', such as 'dense+random'.
    dot_product: whether q·k is one more component.
    rank: of factorized_random, at least 1.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for an unknown component, one that is named twice, or a rank below 1.
  """

  num_positions: int
  mode: str = 'factorized_random'
  dot_product: bool = False
  rank: int = 32
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    check_option('rank', self.rank, 1, 'LRA has 32')
    for name in self.components:
      if name not in COMPONENTS:
        raise ValueError(unknown_name('component of mode', name, COMPONENTS))
    if len(set(self.components)) < len(self.components):
      raise ValueError(f'mode must name each component once, got {self.mode!r}')

  @property
  def components(self) -> tuple[str, ...]:
    """The components of the mode."""
    return tuple(self.mode.split('+'))

  @property
  def projections(self) -> tuple[str, ...]:
    """What the mechanism reads."""
    if self.dot_product:
      return ('query', 'key', 'value')
    return ('query', 'value') if 'dense' in self.components else ('value',)

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'] | None,
    key: Float[Array, 'b l h d'] | None,
    value: Float[Array, 'b l h e'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output in the value's dtype; rows without valid keys give zeros.

    Raises:
      ValueError: for a sequence longer than num_positions, arrays that are not floating, or a
        key_mask that is not bool[b, l].
    """
    check_length(value.shape[1], self.num_positions)
    check_floating(query, key, value)
    check_key_mask(key_mask, value)
    length, heads = value.shape[1:3]
    logits = [self._synthesize(name, query, length, heads) for name in self.components]
    if self.dot_product:
      dots = jnp.einsum('blhd,bshd->bhls', query, key, preferred_element_type=jnp.float32)
      logits.append(dots * query.shape[-1] ** -0.5)
    logits = self._mix(logits)
    if key_mask is None:
      key_mask = jnp.ones(value.shape[:2], bool)
    if len(logits) == 1 and (deterministic or not self.dropout_rate):
      return attend_alike(logits[0], value, key_mask)
    # Finite, so that a row without any valid key has no NaN in its gradient.
    logits = jnp.where(key_mask[:, None, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    weights = Dropout(self.dropout_rate)(weights, deterministic=deterministic)
    out = jnp.einsum('bhls,bshe->blhe', weights, value)
    return jnp.where(jnp.any(key_mask, axis=-1)[:, None, None, None], out, 0)

  def _synthesize(self, component, query, length, heads):
    """Return the logits of a component, float32[b or 1, h, l, l]."""
    # Xavier's bounds are those of each head's matrix.
    init = nn.initializers.xavier_uniform(batch_axis=0)
    if component == 'random':
      shape = (heads, self.num_positions, self.num_positions)
      return self.param('random', init, shape)[None, :, :length, :length]
    if component == 'factorized_random':
      shape = (heads, self.num_positions, self.rank)
      rows, columns = (self.param(n, init, shape)[:, :length] for n in ('rows', 'columns'))
      return jnp.einsum('hlr,hsr->hls', rows, columns)[None]
    shape = (heads, query.shape[-1], self.num_positions)
    kernel = self.param('dense', init, shape)[:, :, :length].astype(query.dtype)
    return einsum_float32('blhd,hds->bhls', nn.relu(query), kernel)

  def _mix(self, logits):
    """Return the weighted sum of the components' logits."""
    if len(logits) == 1:
      return logits[0]
    weights = self.param('mixture', nn.initializers.zeros, (len(logits),))
    return sum(w * x for w, x in zip(jax.nn.softmax(weights), logits, strict=True))


def attend_alike(
  logits: Float[Array, 'h l s'], value: Float[Array, 'b s h e'], key_mask: Bool[Array, 'b s']
) -> Float[Array, 'b l h e']:
  """Return softmax(logits) V where only the mask tells examples apart; without valid keys, zeros.

  The exponentials of a row are those of all examples, and so is what they are scaled by: the row's
  largest logit among keys that are valid in any of them. Where an example lacks these keys, its own
  must not vanish beside them, hence the bound.
  """
  anywhere = jnp.any(key_mask, axis=0)
  largest = jnp.max(jnp.where(anywhere, logits, -jnp.inf), axis=-1, keepdims=True)
  below = logits - jax.lax.stop_gradient(largest)
  # No clipping, which would halve the gradient of the largest.
  below = jnp.where(anywhere & (below > -_DEEPEST), below, -_DEEPEST)
  exponentials = jnp.exp(below).astype(value.dtype)
  mask = key_mask.astype(value.dtype)
  total = einsum_float32('hls,bs->blh', exponentials, mask)
  valid = jnp.where(key_mask[..., None, None], value, 0)
  sums = einsum_float32('hls,bshe->blhe', exponentials, valid)
  return divide(sums, total[..., None]).astype(value.dtype)
