"""Sparse Sinkhorn attention: a block attends to itself and to one that is sorted to it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.baselines.shared import check_length, check_option, cut, join, valid_positions
from kl_flax.checks import check_floating, check_key_mask
from kl_flax.dropout import Dropout
from kl_flax.errors import unknown_name

SORTINGS = ('sinkhorn', 'gumbel_sinkhorn', 'softmax')
# Places of sorted blocks with a smaller share of valid keys are masked: its square, which gradients
# divide by, must not underflow.
_LEAST_SHARE = 1e-9


class SinkhornAttention(nn.Module):
  """Sparse Sinkhorn attention (Tay et al. 2020).

  The sequence is cut into N blocks of size B. A linear sorting network maps the sum of a block's
  valid keys to logits of the N blocks, R [N, N]; `sorting` makes of R / temperature a matrix S
  whose row i says which block is sorted to place i. A query attends to the keys of its own block
  and to those of the block sorted there, sum_j S_ij K_j, by one softmax over all 2·B of them;
  values are sorted in the same way.

  A masked key has no part in the mixtures: at place s of a sorted block stands the sum of the valid
  keys, divided by their share of the weights S_ij, and it counts in the softmax by this share.
  Where all keys are valid the share is 1, and this is the paper's formula. Blocks without a valid
  key can not be chosen, and are no rows or columns of S. So the result of a sequence does not
  depend on how far it is padded. The network has an output for every block there may be: of a
  shorter sequence the first are used.

  Memory is O(B·L + (L/B)²) for each head; sorting takes O(L²·D/B) operations.

  Unlike the Long Range Arena's code: its blocks are no stretches of the sequence but every N-th
  position, its product sums over all blocks before it weights them, so that each place gets the
  same sum of all keys, and it adds up two attentions, each normalised by itself. It sorts by a
  softmax of each row unless told otherwise, clips the logarithms of S to [-1, 1], has no Gumbel
  noise, and its network has 25 outputs, whatever the length, which must be a multiple of B. Sums of
  keys include the padding.

  Attributes:
    num_positions: the largest length.
    block_size: B, at least 1.
    sorting: 'sinkhorn' normalises rows and columns in turn; 'gumbel_sinkhorn' adds Gumbel noise to
      R in training, drawn from the PRNG stream 'dropout'; 'softmax' normalises rows alone.
    num_iterations: how often rows and columns are normalised, at least 1.
    temperature: above 0; the lower, the closer S is to a permutation.
    dropout_rate: dropout of the attention weights, in [0, 1).

  Raises:
    ValueError: for an unknown sorting, a size or number of iterations below 1, or a temperature
      that is not above 0.
  """

  num_positions: int
  block_size: int = 50
  sorting: str = 'sinkhorn'
  num_iterations: int = 7
  temperature: float = 1.0
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    if self.sorting not in SORTINGS:
      raise ValueError(unknown_name('sorting', str(self.sorting), SORTINGS))
    check_option('block_size', self.block_size, 1, 'LRA has 50')
    check_option('num_iterations', self.num_iterations, 1, 'LRA has 7')
    if not self.temperature > 0:
      raise ValueError(
        f'temperature must be above 0, got {self.temperature}: the closer to 0, the harder the '
        'sorting'
      )

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
    batch, length = key.shape[:2]
    check_length(length, self.num_positions)
    check_floating(query, key, value)
    check_key_mask(key_mask, key)
    mask = cut(valid_positions(key_mask, batch, length), self.block_size)
    query, key, value = (cut(x, self.block_size) for x in (query, key, value))
    key, value = (jnp.where(mask[..., None, None], x, 0) for x in (key, value))
    sorting = self._sort(key, mask, deterministic)
    share = _sorted_share(sorting, mask)
    sorted_key, sorted_value = (_sorted_mean(sorting, share, x) for x in (key, value))
    own = jnp.broadcast_to(mask[:, None], share.shape)
    weights = attention_weights(query, (key, sorted_key), (own.astype(share.dtype), share))
    weights = Dropout(self.dropout_rate)(weights.astype(value.dtype), deterministic=deterministic)
    out = jnp.einsum('bhnqs,bnshe->bnqhe', weights[..., : self.block_size], value)
    out += jnp.einsum('bhnqs,bnshe->bnqhe', weights[..., self.block_size :], sorted_value)
    return join(out.astype(query.dtype), length)

  def _sort(self, key, mask, deterministic):
    """Return S, float32[b, h, i, j]; zero in rows and columns of blocks without a valid key."""
    max_blocks = -(-self.num_positions // self.block_size)
    shape = (key.shape[-1], max_blocks)
    kernel = self.param('sorting', nn.initializers.xavier_uniform(), shape)
    sums = jnp.sum(key, axis=2, dtype=jnp.float32)
    logits = jnp.einsum('bihd,dj->bhij', sums, kernel[:, : key.shape[1]])
    if self.sorting == 'gumbel_sinkhorn' and not deterministic:
      logits += jax.random.gumbel(self.make_rng('dropout'), logits.shape)
    chosen = jnp.any(mask, axis=2)[:, None]
    chosen = chosen[..., :, None] & chosen[..., None, :]
    num_iterations = 0 if self.sorting == 'softmax' else self.num_iterations
    return balance(logits / self.temperature, chosen, num_iterations)


def balance(
  logits: Float[Array, 'b h n n'], mask: Bool[Array, 'b 1 n n'], num_iterations: int
) -> Float[Array, 'b h n n']:
  """Return exp(logits) after Sinkhorn's iterations over the entries where the mask is True.

  Each divides rows, then columns, by their sums, in log space. With 0 iterations rows alone are
  divided. Other entries are 0.
  """
  lowest = jnp.finfo(logits.dtype).min

  def divide(log_s, axis):
    normalised = log_s - jax.nn.logsumexp(log_s, axis=axis, keepdims=True)
    # Masked again: in rows that are masked as a whole it would have become the largest.
    return jnp.where(mask, normalised, lowest)

  log_s = jnp.where(mask, logits, lowest)
  if num_iterations:
    step = lambda _, log_s: divide(divide(log_s, -1), -2)
    log_s = jax.lax.fori_loop(0, num_iterations, step, log_s)
  else:
    log_s = divide(log_s, -1)
  return jnp.where(mask, jnp.exp(log_s), 0)


def _sorted_share(
  sorting: Float[Array, 'b h n n'], mask: Bool[Array, 'b n s']
) -> Float[Array, 'b h n s']:
  """Return how much of the weight at each place of a sorted block is of valid keys, in [0, 1].

  What is next to nothing is 0.
  """
  valid = jnp.einsum('bhij,bjs->bhis', sorting, mask.astype(sorting.dtype))
  total = jnp.sum(sorting, axis=-1)[..., None]
  share = valid / jnp.where(total > 0, total, 1)
  return jnp.where(share < _LEAST_SHARE, 0, jnp.minimum(share, 1))


def _sorted_mean(
  sorting: Float[Array, 'b h n n'], share: Float[Array, 'b h n s'], x: Float[Array, 'b n s h d']
) -> Float[Array, 'b n s h d']:
  """Return the sorted blocks of x, which is 0 where it is masked, by their shares; its dtype."""
  mixed = jnp.einsum('bhij,bjshd->bishd', sorting.astype(x.dtype), x)
  share = jnp.where(share > 0, share, 1).transpose(0, 2, 3, 1)[..., None]
  return (mixed / share).astype(x.dtype)


def attention_weights(
  query: Float[Array, 'b n q h d'],
  keys: tuple[Float[Array, 'b n s h d'], ...],
  shares: tuple[Float[Array, 'b h n s'], ...],
) -> Float[Array, 'b h n q t']:
  """Return the softmax over several blocks of keys, each key by its share, float32.

  Shares of 0 are masked; rows without any other are 0.
  """
  logits = [
    jnp.einsum('bnqhd,bnshd->bhnqs', query, key, preferred_element_type=jnp.float32) for key in keys
  ]
  logits = jnp.concatenate(logits, axis=-1) * query.shape[-1] ** -0.5
  share = jnp.concatenate(shares, axis=-1)[..., None, :]
  valid = share > 0
  logits += jnp.log(jnp.where(valid, share, 1))
  # Finite, so that a row without any valid key has no NaN in its gradient.
  logits = jnp.where(valid, logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.where(jnp.any(valid, axis=-1, keepdims=True), weights, 0)
