"""Causal kernel attention: query i sees the keys 0 ... i, in O(L), all at once or token by token.

The sums over earlier keys are a running state, `DecodingState`. `causal_sums` walks over chunks of
positions: the past comes out of the state, the chunk itself from its matrix of weights.
`decode_step` is the same walk with chunks of one position.

Positive and softmax features need care. With exponents a_im of queries and b_jm of keys (j ≤ i),
any shift of the keys that the whole chunk shares may belong to a key that query i must not see, and
may exceed its own keys' exponents by hundreds: all of them would vanish. Hence

- The shift is the running maximum per frequency, C_im = max_{j ≤ i} b_jm, and the query's shift is
  s_i = max_m (a_im + C_im): the largest term of every row is exactly 1.
- A chunk is halved again and again, and the later half's queries meet the earlier half's keys at
  R_m, the running maximum where the earlier half ends. exp(a_im + R_m − s_i) · exp(b_jm − R_m) is
  then a product of matrices, and no factor exceeds 1, because b_jm ≤ R_m ≤ C_im. What remains are
  small blocks on the diagonal, whose pairs are taken one by one.

Gradients recompute each chunk; kept are the states between chunks, M·(E+1) numbers each.

Shapes: b batch, l queries, s keys, h heads, d head size, e value size, m frequencies, n features,
c positions of a chunk, g groups of positions in a chunk.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.checks import check_inputs
from kl_flax.features import (
  FEATURE_MAPS,
  SQUARED_NORM_FACTOR,
  FeatureMap,
  log_features,
  plain_features,
)
from kl_flax.numerics import divide, einsum_float32, pad_axis, product_dtype
from kl_flax.sums import (
  common_part,
  denominator_floor,
  less,
  resolve_smoothing,
  smoothing_weight,
  with_ones,
)

# Positions of a chunk, and of a block whose pairs are taken one by one: powers of two. Larger
# chunks mean fewer steps and fewer states kept for gradients, smaller ones less work.
_CHUNK = 128
_BLOCK = 4


class DecodingState(NamedTuple):
  """What earlier positions leave behind; its size does not depend on their number.

  Attributes:
    sums: float32 [b, h, n, e + 1], sum over earlier keys of phi(k) (v, 1), over exp(shift).
    total: float32 [b, h, e + 1], sum over earlier keys of (v, 1).
    shift: float32 [b, h, n], maximum over earlier keys of log phi(k), −inf without any; None
      for features that need no shift ('fourier', 'elu', 'relu').
  """

  sums: Float[Array, 'b h n e+1']
  total: Float[Array, 'b h e+1']
  shift: Float[Array, 'b h n'] | None


def init_decoding(
  batch: int,
  num_heads: int,
  num_frequencies: int,
  value_dim: int,
  *,
  features: FeatureMap = 'positive',
) -> DecodingState:
  """Return the state before the first position.

  Args:
    batch: sequences that are decoded side by side.
    num_heads: heads.
    num_frequencies: M of omega [H, M, D]; with features='elu' and 'relu', which have none, the head
      size D.
    value_dim: size of a value.
    features: the feature map that `decode_step` will be given.

  Raises:
    ValueError: for an unknown feature map.
  """
  if features not in FEATURE_MAPS:
    raise ValueError(f'features must be one of {FEATURE_MAPS}, got {features!r}')
  width = 2 * num_frequencies if features == 'fourier' else num_frequencies
  shift = None
  if features in SQUARED_NORM_FACTOR:
    shift = jnp.full((batch, num_heads, width), -jnp.inf, jnp.float32)
  return DecodingState(
    sums=jnp.zeros((batch, num_heads, width, value_dim + 1), jnp.float32),
    total=jnp.zeros((batch, num_heads, value_dim + 1), jnp.float32),
    shift=shift,
  )


@functools.partial(jax.jit, static_argnames=('features', 'smoothing'))
def decode_step(
  state: DecodingState,
  query: Float[Array, 'b h d'],
  key: Float[Array, 'b h d'],
  value: Float[Array, 'b h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, ' b'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
) -> tuple[DecodingState, Float[Array, 'b h e']]:
  """Return the state after one more position, and the attention output there.

  Step by step this equals `kernel_attention(..., causal=True)` with the same omega, at a cost per
  position that does not grow. Compiled once per set of shapes and options.

  Args:
    state: from `init_decoding` or the step before.
    query: query of the position, any float dtype.
    key: its key, in the same dtype.
    value: its value, in the same dtype.
    omega: see `kernel_attention`, like features, smoothing and log_weight; the same at all steps.
      Those of a module come from `KernelAttention.frequencies`.
    features: as given to `init_decoding`.
    key_mask: False where the position's key takes no part (and leaves the state as it is); None
      means that all do.
    smoothing: see `kernel_attention`.
    log_weight: see `kernel_attention`.

  Raises:
    ValueError: for inconsistent shapes, an unknown option or the state of another set-up.

  >>> import jax.numpy as jnp
  >>> state = init_decoding(1, 2, 8, 3)
  >>> q = k = jnp.ones((1, 2, 4))
  >>> state, out = decode_step(state, q, k, jnp.full((1, 2, 3), 5.0), jnp.ones((2, 8, 4)))
  >>> out.tolist()  # The first position sees its own value alone.
  [[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]]

  Step by step what a module gives all at once, with the frequencies that it draws:

  >>> import jax
  >>> from kl_flax import GaussianMixture, KernelAttention
  >>> attention = KernelAttention(GaussianMixture(8), causal=True)
  >>> x = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
  >>> rngs = {'spectral': jax.random.key(1)}
  >>> variables = attention.init({'params': jax.random.key(2), **rngs}, x, x, x)
  >>> whole = attention.apply(variables, x, x, x, rngs=rngs)
  >>> omega, log_weight = attention.apply(variables, 2, 4, method='frequencies', rngs=rngs)
  >>> state = init_decoding(1, 2, omega.shape[1], 4, features=attention.features)
  >>> options = {'features': attention.features, 'smoothing': attention.smoothing}
  >>> for i in range(5):
  ...   now = x[:, i]
  ...   state, out = decode_step(state, now, now, now, omega, log_weight=log_weight, **options)
  ...   assert jnp.allclose(out, whole[:, i], atol=1e-5)
  """
  query, key, value = (x[:, None] for x in (query, key, value))
  key_mask = None if key_mask is None else key_mask[:, None]
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  _check_state(state, query, value, omega, features)
  state, sums = _attend(
    state,
    query,
    key,
    value,
    _mask_of(key, key_mask),
    omega,
    log_weight,
    features=features,
    smoothing=smoothing,
  )
  return state, _divide(sums[:, 0], omega, features).astype(query.dtype)


@functools.partial(jax.jit, static_argnames=('features', 'smoothing'))
def prefill(
  state: DecodingState,
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b l h d'],
  value: Float[Array, 'b l h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b l'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
) -> tuple[DecodingState, Float[Array, 'b l h e']]:
  """Return the state after a prompt and the causal attention of its positions, in O(L).

  As many calls of `decode_step`, in chunks side by side. A long prompt may come in pieces: each
  goes on with the state of the one before.

  Args:
    state: from `init_decoding`, `prefill` or `decode_step`.
    query: of the prompt's positions, in order.
    key: their keys, in the same dtype.
    value: their values, in the same dtype.
    omega: see `decode_step`, like features, smoothing and log_weight.
    features: as given to `init_decoding`.
    key_mask: False where a key takes no part, as in the padding behind shorter prompts.
    smoothing: see `kernel_attention`.
    log_weight: likewise.

  Raises:
    ValueError: for inconsistent shapes, an unknown option, or a state of other sizes or features.

  >>> state = init_decoding(batch=1, num_heads=2, num_frequencies=8, value_dim=3)
  >>> q = k = jnp.ones((1, 5, 2, 4))
  >>> state, out = prefill(state, q, k, jnp.ones((1, 5, 2, 3)), jnp.ones((2, 8, 4)))
  >>> seven = jnp.full((1, 2, 3), 7.0)
  >>> state, out = decode_step(state, q[:, 0], k[:, 0], seven, jnp.ones((2, 8, 4)))
  >>> out[0, 0].tolist()  # The mean of five values of 1 and one of 7.
  [2.0, 2.0, 2.0]
  """
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  _check_lengths(query, key)
  _check_state(state, query, value, omega, features)
  mask = _mask_of(key, key_mask)
  options = {'features': features, 'smoothing': smoothing}
  state, sums = _scan(state, query, key, value, mask, omega, log_weight, **options)
  return state, _divide(sums, omega, features).astype(query.dtype)


def _divide(sums, omega, features):
  floor = denominator_floor(features, 0 if omega is None else omega.shape[1])
  return divide(sums[..., :-1], sums[..., -1:], floor)


def causal_sums(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
) -> tuple[Float[Array, 'b l h e'], Float[Array, 'b l h 1']]:
  """Return numerator and denominator of causal `kl_flax.kernel_attention`, float32.

  Like `kl_flax.sums.attention_sums`, except that query i sees the keys 0 ... i alone: they are up
  to a common factor of a row, which is positive, and both zero in rows that see no valid key.
  Arguments are those of `kernel_attention`.

  Raises:
    ValueError: for inconsistent shapes, an unknown option or more or fewer queries than keys.
  """
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  _check_lengths(query, key)
  batch, _, num_heads, head_dim = query.shape
  width = head_dim if omega is None else omega.shape[1]
  state = init_decoding(batch, num_heads, width, value.shape[3], features=features)
  mask = _mask_of(key, key_mask)
  options = {'features': features, 'smoothing': smoothing}
  _, sums = _scan(state, query, key, value, mask, omega, log_weight, **options)
  return sums[..., :-1], sums[..., -1:]


def _scan(state, query, key, value, mask, omega, log_weight, *, features, smoothing):
  """Return the state after all positions, and the sums of each with the normaliser last."""
  batch, length = query.shape[:2]
  chunk = min(_CHUNK, 1 << max(length - 1, 0).bit_length())
  chunks = jax.tree.map(lambda x: _in_chunks(x, chunk), (query, key, value, mask))

  def step(state, chunk):
    return _attend(state, *chunk, omega, log_weight, features=features, smoothing=smoothing)

  state, sums = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, chunks)
  sums = jnp.moveaxis(sums, 0, 1).reshape(batch, len(sums) * chunk, *sums.shape[3:])[:, :length]
  return state, sums


def _check_lengths(query, key):
  """Raise a ValueError unless there are as many queries as keys."""
  if query.shape[1] != key.shape[1]:
    raise ValueError(
      f'causal attention needs as many queries as keys, got {query.shape[1]} queries and '
      f'{key.shape[1]} keys'
    )


def _check_state(state, query, value, omega, features):
  """Raise a ValueError if the state is that of other sizes or features."""
  batch, _, num_heads, head_dim = query.shape
  width = head_dim if omega is None else omega.shape[1]
  sizes = batch, num_heads, width, value.shape[3]
  expected = jax.eval_shape(lambda: init_decoding(*sizes, features=features))
  shapes = lambda state: [None if x is None else x.shape for x in state]
  if shapes(state) != shapes(expected):
    raise ValueError(
      f'state must come from init_decoding{sizes} with features={features!r}: '
      f'expected shapes {shapes(expected)}, got {shapes(state)}'
    )


def _mask_of(key, key_mask):
  return jnp.ones(key.shape[:2], bool) if key_mask is None else key_mask


def _in_chunks(x, chunk):
  """Return [b, l, ...] as [chunks, b, chunk, ...], filled up with zeros (False)."""
  x = pad_axis(x, 1, chunk)
  return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // chunk, chunk, *x.shape[2:]), 1, 0)


def _attend(state, query, key, value, mask, omega, log_weight, *, features, smoothing):
  """Return the state after a chunk, and the sums of its queries with the normaliser last."""
  dtype = product_dtype(query.dtype)
  weigh = _weigh_log_features if features in SQUARED_NORM_FACTOR else _weigh_plain_features
  weights, phi_q, phi_k, constant, shift, decay = weigh(
    state, query, key, mask, omega, log_weight, features=features, smoothing=smoothing
  )
  value = jnp.swapaxes(with_ones(value.astype(dtype)), 1, 2)
  visible = jnp.tri(query.shape[1], dtype=bool) & mask[:, None, None]
  weights = jnp.where(visible, weights + constant, 0).astype(dtype)
  # What values have in common is taken from those before the chunk: results must not depend on
  # later ones, not even in rounding.
  center = common_part(state.total[:, :, None]) if dtype == jnp.bfloat16 else None
  shifted = lambda sums: sums if center is None else less(sums, center)
  out = einsum_float32('bhij,bhje->bhie', weights, shifted(value).astype(dtype))
  out += einsum_float32('bhin,bhne->bhie', phi_q.astype(dtype), shifted(state.sums).astype(dtype))
  if smoothing:
    out += constant * shifted(state.total[:, :, None])
  if center is not None:
    out += center * out[..., -1:]
  sums = decay * state.sums + einsum_float32('bhjn,bhje->bhne', phi_k.astype(dtype), value)
  valid = jnp.where(mask[:, None, :, None], value, 0)
  total = state.total + jnp.sum(valid, axis=2, dtype=jnp.float32)
  return DecodingState(sums, total, shift), jnp.swapaxes(out, 1, 2)


def _weigh_plain_features(state, query, key, mask, omega, log_weight, *, features, smoothing):
  """Return what `_weigh_log_features` does, for maps that need no shift."""
  phi_q, phi_k = plain_features(query, key, omega, features=features, log_weight=log_weight)
  phi_q, phi_k = jnp.swapaxes(phi_q, 1, 2), jnp.swapaxes(phi_k, 1, 2)
  phi_k = jnp.where(mask[:, None, :, None], phi_k, 0)
  dtype = product_dtype(query.dtype)
  weights = einsum_float32('bhin,bhjn->bhij', phi_q.astype(dtype), phi_k.astype(dtype))
  return weights, phi_q, phi_k, smoothing_weight(omega, smoothing), None, 1.0


def _weigh_log_features(state, query, key, mask, omega, log_weight, *, features, smoothing):
  """Return weights [b, h, c, c] within a chunk, and features that read and extend the state.

  Also the constant feature's weight, and the state's new shift and the factor it takes for it.
  """
  log_q, log_k = log_features(
    query, key, omega, features=features, log_weight=log_weight, smoothing=smoothing
  )
  log_k = jnp.where(mask[:, :, None, None], log_k, -jnp.inf)
  log_q, log_k = jnp.swapaxes(log_q, 1, 2), jnp.swapaxes(log_k, 1, 2)
  # The ratio does not depend on the shifts, so neither does its gradient.
  running = _running_maximum(jax.lax.stop_gradient(log_k))
  running = jnp.maximum(running, state.shift[:, :, None])
  shift_q = jnp.max(jax.lax.stop_gradient(log_q) + running, axis=-1, keepdims=True)
  constant = 0.0
  if smoothing:
    log_constant = jnp.log(smoothing_weight(omega, smoothing))
    shift_q = jnp.maximum(shift_q, log_constant)
    constant = jnp.exp(log_constant - _finite(shift_q))
  log_q -= _finite(shift_q)

  weights = _weights_of_exponents(log_q, log_k, running, product_dtype(query.dtype))

  shift = running[:, :, -1]
  phi_q = jnp.exp(log_q + state.shift[:, :, None])
  phi_k = jnp.exp(log_k - _finite(shift)[:, :, None])
  decay = jnp.exp(state.shift - _finite(shift))[..., None]
  return weights, phi_q, phi_k, constant, shift, decay


def _weights_of_exponents(log_q, log_k, running, dtype):
  """Return sum_m exp(log_q_im + log_k_jm) for j ≤ i, and zero for other pairs: [b, h, c, c]."""
  batch, heads, chunk, _ = log_q.shape

  # Groups of positions, or of earlier and later halves.
  def group(x, *sizes):
    rows = math.prod(x.shape[2:-1])
    return x.reshape(batch, heads, rows // math.prod(sizes), *sizes, x.shape[-1])

  size = min(_BLOCK, chunk)
  pairs = group(log_q, size)[..., :, None, :] + group(log_k, size)[..., None, :, :]
  pairs = jnp.where(jnp.tri(size, dtype=bool)[..., None], pairs, -jnp.inf)
  weights = jnp.sum(jnp.exp(pairs), axis=-1)
  while size < chunk:
    shift = group(running, 2, size)[:, :, :, 0, -1:]
    across = einsum_float32(
      'bhgim,bhgjm->bhgij',
      jnp.exp(group(log_q, 2, size)[:, :, :, 1] + shift).astype(dtype),
      jnp.exp(group(log_k, 2, size)[:, :, :, 0] - _finite(shift)).astype(dtype),
    )
    earlier, later = (group(weights, 2, size)[:, :, :, half] for half in (0, 1))
    earlier = jnp.concatenate([earlier, jnp.zeros_like(across)], axis=-1)
    weights = jnp.concatenate([earlier, jnp.concatenate([across, later], axis=-1)], axis=-2)
    size *= 2
  return weights[:, :, 0]


def _running_maximum(x):
  """Return the maximum over positions up to each, [b, h, c, m].

  Two levels of all pairs are a few fused operations, where `lax.cummax` compiles to dozens.
  """
  batch, heads, chunk, width = x.shape
  pairs_up_to = lambda x: jnp.where(jnp.tri(x.shape[-2], dtype=bool)[..., None], x, -jnp.inf)
  maximum = lambda x: jnp.max(pairs_up_to(x[..., None, :, :]), axis=-2)
  size = min(8, chunk)  # Both are powers of two.
  within = maximum(x.reshape(batch, heads, chunk // size, size, width))
  before = maximum(within[..., -1, :])[:, :, :-1]
  before = jnp.pad(before, [(0, 0), (0, 0), (1, 0), (0, 0)], constant_values=-jnp.inf)
  return jnp.maximum(within, before[:, :, :, None]).reshape(x.shape)


def _finite(shift):
  """Return the shift, zero where it is −inf because there was no valid key."""
  return jnp.where(jnp.isfinite(shift), shift, 0.0)
