"""Reformer's attention: each position attends to those near it in an order by hashes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from kl_flax.baselines.shared import check_option, valid_positions
from kl_flax.checks import check_floating, check_key_mask
from kl_flax.numerics import pad_axis

# Subtracted from the logit of a position with itself (Kitaev et al. 2020, Appendix A).
_SELF = 1e5
# On |q|², so that a zero query has a gradient.
_EPSILON = 1e-12


class ReformerAttention(nn.Module):
  """Attention by locality-sensitive hashing (Kitaev et al. 2020, Section 2 and Appendix A).

  Keys are the queries, scaled to length 1. In each round the positions are sorted by the bucket
  that their query falls into and cut into chunks. A position attends to those of its bucket in its
  chunk and in the one before, and to itself only if there is nothing else. Rounds are joined into
  one softmax over all positions found, in which one that several rounds have found counts once.
  Buckets are those of angular hashing: argmax of [x R, -x R], R with independent normal entries.

  With 0 for one of them, `num_buckets` and `chunk_length` follow from the other and the largest
  length: num_buckets · chunk_length = 2 · num_positions, a bucket then fills half of a chunk on
  average. Masked positions stand behind the last bucket. So the result of a sequence does not
  depend on how far it is padded, though it does on the largest length of its model.

  R is drawn by a fixed seed, the same for all layers and heads, as in the Long Range Arena: drawn
  anew, it would make predictions random. Nothing is learned here, and no gradient goes through the
  buckets.

  Memory is O(L·num_hashes·(chunk_length + D)) for each head, and O(L·num_buckets) for the buckets.

  Unlike the Long Range Arena's code: it multiplies logits by D^(1/2) in place of dividing, leaves
  keys as long as they are, attends to positions of other buckets and to the own one, wraps around
  from the first chunk to the last, counts positions once in each round that finds them, and lets
  padding in. It has as many chunks in a round as buckets, whatever its chunk_len, to a multiple of
  which it pads. It mixes heads with positions where it joins them, has no projection behind, and is
  as wide as the residual stream, whatever qkv_dim. Of the 10 buckets that its files leave, chunks
  get twice as long here as there, as the paper has them.

  Attributes:
    num_positions: the largest length.
    num_hashes: rounds of hashing, at least 1.
    num_buckets: in each round: an even number, 1 for no hashing at all, or 0 for the rule above.
    chunk_length: at least 1, or 0 for the rule above.

  Raises:
    ValueError: for numbers of hashes, buckets or positions in a chunk that cannot be.
  """

  num_positions: int
  num_hashes: int = 1
  num_buckets: int = 0
  chunk_length: int = 64
  projections = ('query', 'value')

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    check_option('num_hashes', self.num_hashes, 1, 'LRA has 1')
    check_option('num_buckets', self.num_buckets, 0, '0 follows from chunk_length')
    check_option('chunk_length', self.chunk_length, 0, '0 follows from num_buckets')
    buckets = self.num_buckets
    if not buckets and not self.chunk_length:
      raise ValueError(
        'num_buckets=0 and chunk_length=0 leave both to each other: set one, such as '
        'chunk_length=64'
      )
    if buckets > 1 and buckets % 2:
      raise ValueError(
        f'num_buckets must be even, 1 or 0, got {buckets}: half of them are the opposites of the '
        'others'
      )

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'],
    key: Float[Array, 'b l h d'] | None,
    value: Float[Array, 'b l h e'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output in the query's dtype; masked queries give zeros.

    Args:
      query: also the keys, once normalised.
      key: is not read.
      value: any size.
      key_mask: where positions are valid, as queries and as keys.
      deterministic: has no effect: weights are not dropped.

    Raises:
      ValueError: for arrays that are not floating, or a key_mask that is not bool[b, l].
    """
    num_buckets, chunk_length = self._sizes()
    check_floating(query, value)
    check_key_mask(key_mask, query)
    batch, length, heads, _ = query.shape
    # One chunk holds a sequence that is shorter.
    size = min(chunk_length, length)
    valid = pad_axis(valid_positions(key_mask, batch, length), 1, size)
    query, value = (pad_axis(x, 1, size) for x in (query, value))
    rotations = fixed_rotations(query.shape[-1], self.num_hashes, num_buckets)
    buckets = hash_vectors(query, rotations, num_buckets)
    buckets = jnp.where(valid[:, None, None], buckets, num_buckets)
    ranks, orders = _sort(buckets)
    # From here on one sequence of one head, one round at a time.
    inputs = (query.swapaxes(1, 2), value.swapaxes(1, 2), valid, buckets, ranks, orders)
    by_head = jax.vmap(_attend, in_axes=(0, 0, None, 0, 0, 0, None))
    out = jax.vmap(by_head, in_axes=(0,) * 6 + (None,))(*inputs, size)
    return out.swapaxes(1, 2)[:, :length].astype(query.dtype)

  def _sizes(self) -> tuple[int, int]:
    """Return number of buckets and length of chunks, the one that is 0 by the paper's rule."""
    buckets, length = self.num_buckets, self.chunk_length
    if not length:
      return buckets, -(-2 * self.num_positions // buckets)
    return buckets or 2 * -(-self.num_positions // length), length


def fixed_rotations(head_dim: int, num_hashes: int, num_buckets: int) -> np.ndarray:
  """Return R, float32[head_dim, num_hashes, num_buckets // 2]: the same in every process.

  >>> fixed_rotations(4, 2, 6).shape
  (4, 2, 3)
  """
  # NumPy promises that this generator's numbers never change: a trained model keeps its hashes.
  normal = np.random.RandomState(0).standard_normal((head_dim, num_hashes, num_buckets // 2))
  return normal.astype(np.float32)


def hash_vectors(
  x: Float[Array, 'b l h d'], rotations: Float[np.ndarray, 'd r n'], num_buckets: int
) -> Int[Array, 'b h r l']:
  """Return the bucket of each vector in each round, in 0 .. num_buckets − 1."""
  if num_buckets == 1:
    return jnp.zeros((x.shape[0], x.shape[2], rotations.shape[1], x.shape[1]), jnp.int32)
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  # As they are: in TF32 or bfloat16 near ties would fall into other buckets on other platforms.
  scores = jnp.einsum('blhd,drn->bhrln', x, rotations, precision=jax.lax.Precision.HIGHEST)
  # The largest of scores and their opposites, which are not made.
  best = jnp.argmax(jnp.abs(scores), axis=-1, keepdims=True)
  opposite = jnp.take_along_axis(scores, best, axis=-1) < 0
  return (best + jnp.where(opposite, num_buckets // 2, 0))[..., 0].astype(jnp.int32)


def _sort(buckets: Int[Array, '*b l']) -> tuple[Int[Array, '*b l'], Int[Array, '*b l']]:
  """Return the rank of each position in the order by bucket, then position; and that order."""
  order = jnp.argsort(buckets, axis=-1, stable=True).astype(jnp.int32)
  return jnp.argsort(order, axis=-1).astype(jnp.int32), order


def _attend(query, value, valid, buckets, ranks, orders, size):
  """Return the attention output of one sequence of one head, float32[l, e].

  Args:
    query, value: [l, d] and [l, e]; l is a multiple of `size`.
    valid: bool[l].
    buckets, ranks, orders: int32[rounds, l].
    size: of a chunk.
  """
  one_round = jax.vmap(_attend_in_round, in_axes=(None,) * 5 + (0, 0, 0, None))
  chunks = ranks // size
  out, log_sum = one_round(query, value, valid, buckets.T, chunks.T, buckets, ranks, orders, size)
  # A round's share of the softmax over all that the rounds have found.
  return jnp.einsum('rl,rle->le', jax.nn.softmax(log_sum, axis=0), out)


def _attend_in_round(query, value, valid, buckets, chunks, bucket, rank, order, size):
  """Return the output of one round, float32[l, e], and the logarithm of its normaliser [l].

  Args:
    query, value, valid, size: as above.
    buckets, chunks: int32[l, rounds], where the rounds put each position.
    bucket, rank, order: int32[l], of this round.
  """
  take = lambda x, places: x.at[places].get(unique_indices=True, mode='promise_in_bounds')
  cut = lambda x: take(x, order).reshape(-1, size, *x.shape[1:])
  position = cut(jnp.arange(len(order), dtype=jnp.int32))
  query, bucket, buckets, chunks = (cut(x) for x in (query, bucket, buckets, chunks))
  key, value, valid = (_with_previous(x) for x in (_normalise(query), cut(value), cut(valid)))
  logits = jnp.einsum('cqd,csd->cqs', query, key, preferred_element_type=jnp.float32)
  logits = logits * query.shape[-1] ** -0.5 - jnp.log(_times_found(buckets, chunks))
  logits -= jnp.where(_pairs(position), _SELF, 0)
  # Before the first chunk stand zeros, which are not valid.
  allowed = valid[:, None, :] & _pairs(bucket)
  # Finite, so that a row without any valid key has no NaN in its gradient.
  logits = jnp.where(allowed, logits, jnp.finfo(logits.dtype).min)
  log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  weights = jnp.where(allowed, jnp.exp(logits - log_sum), 0).astype(value.dtype)
  out = jnp.einsum('cqs,cse->cqe', weights, value, preferred_element_type=jnp.float32)
  return take(out.reshape(len(order), -1), rank), take(log_sum.reshape(-1), rank)


def _times_found(
  buckets: Int[Array, 'c m r'], chunks: Int[Array, 'c m r']
) -> Float[Array, 'c m n'] | float:
  """Return in how many rounds each key of a chunk is found by each of its queries, at least 1."""
  num_rounds = buckets.shape[-1]
  if num_rounds == 1:
    return 1.0
  count = 0
  for r in range(num_rounds):
    steps = chunks[:, :, None, r] - _with_previous(chunks[..., r])[:, None, :]
    count += _pairs(buckets[..., r]) & ((steps == 0) | (steps == 1))
  return jnp.maximum(count, 1).astype(jnp.float32)


def _pairs(x: Int[Array, 'c m']) -> Bool[Array, 'c m n']:
  """Return where a query and a key of its chunk, or of the one before, are equal."""
  return x[:, :, None] == _with_previous(x)[:, None, :]


def _with_previous(x: Shaped[Array, 'c m *f']) -> Shaped[Array, 'c n *f']:
  """Return each chunk behind the one before it; before the first stand zeros, or False."""
  previous = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
  return jnp.concatenate([previous, x], axis=1)


def _normalise(x: Float[Array, '*b d']) -> Float[Array, '*b d']:
  """Return vectors of length 1 in the dtype of x; zero stays zero."""
  wide = x.astype(jnp.float32)
  norm = jnp.sum(wide**2, axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(norm + _EPSILON)).astype(x.dtype)
