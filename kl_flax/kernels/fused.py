"""Kernel attention as one differentiable operation around the kernels for NVIDIA Hopper.

What happens between the kernels is small, [b, h, m, d] and less, and left to XLA; but for the mean
of the values, which leaves the sums over keys and comes back to the output where gradients follow:
see `sums.common_part`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.checks import check_inputs
from kl_flax.features import SQUARED_NORM_FACTOR, FeatureMap
from kl_flax.kernels import TILE, backward, forward, padded_head_dim
from kl_flax.kernels.tiles import LOG2E, NEVER, Plan, num_tiles, whole_length
from kl_flax.numerics import floored, pad_axis
from kl_flax.sums import denominator_floor, resolve_smoothing

# Blocks that fit on the device at once, by guess; only the balance of the work depends on it.
_SLOTS = 132 * 3


class Options(NamedTuple):
  """What is fixed when a program is compiled.

  Attributes:
    features: 'positive', 'softmax' or 'fourier'.
    smoothing: of Fourier features.
    head_dim: D, before it was padded.
    interpret: run the kernels in Pallas' interpreter.
  """

  features: FeatureMap
  smoothing: float
  head_dim: int
  interpret: bool

  @property
  def fourier(self) -> bool:
    """Return whether features are cosines and sines."""
    return self.features == 'fourier'

  @property
  def norm_factor(self) -> float:
    """Return the factor of |key|² in the exponent, temperature included."""
    return SQUARED_NORM_FACTOR[self.features] * self.head_dim**-0.5

  def plan(self, blocks: int, length: int) -> Plan:
    """Return how to cut `length` positions, `blocks` times over."""
    return Plan(self.fourier, choose_splits(blocks, length), interpret=self.interpret)


def choose_splits(blocks: int, length: int, slots: int = _SLOTS) -> int:
  """Return in how many parts to cut the length so that the device is evenly busy.

  >>> choose_splits(128, 4008), choose_splits(4096, 128), choose_splits(1, 64)
  (3, 1, 1)
  """
  tiles = num_tiles(length, 1)

  def cost(splits):  # Tiles that the busiest slot goes over; beginning a block costs about two.
    waves = -(-blocks * splits // slots)
    return waves * (num_tiles(length, splits) + 2)

  return min(range(1, min(tiles, slots) + 1), key=cost)


def fused_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h d'],
  omega: Float[Array, 'h m d'],
  *,
  features: FeatureMap,
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
  interpret: bool = False,
) -> tuple[Float[Array, 'b l h d'], Float[Array, 'b l h 1'] | None]:
  """Return the output of `kl_flax.kernel_attention`, and with Fourier features its denominators.

  Arguments are those of `kernel_attention`, within the limits that `kl_flax.kernel_info` names.
  Lengths that are no multiples of 8, and head sizes between those of the kernels, cost a copy of
  queries, keys and values.
  """
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight)
  num_heads, m, head_dim = omega.shape
  omega = omega.astype(jnp.float32)
  if log_weight is None:
    log_weight = jnp.zeros((num_heads, m), jnp.float32)
  log_weight = jnp.maximum(log_weight.astype(jnp.float32), NEVER)  # A weight may be 0.
  if key_mask is None:
    key_mask = jnp.ones(key.shape[:2], bool)
  length, width = query.shape[1], padded_head_dim(head_dim)
  query, key, value = (pad_axis(pad_axis(x, 1, 8), 3, width) for x in (query, key, value))
  omega, key_mask = pad_axis(omega, 2, width), pad_axis(key_mask, 1, 8)
  options = Options(features, smoothing, head_dim, interpret)
  out, stat = _attend(options, query, key, value, omega, log_weight, key_mask)
  out = out[:, :length, :, :head_dim]
  if not options.fourier:
    return out, None
  # The denominators are for looking at: they have no gradient.
  return out, jax.lax.stop_gradient(stat)[:, :, :length].swapaxes(1, 2)[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options, query, key, value, omega, log_weight, key_mask):
  inputs = (query, key, value, omega, log_weight, key_mask)
  return _forward(options, *inputs, centered=False)[0]


def _forward(options, query, key, value, omega, log_weight, key_mask, centered=True):
  """Return output and statistics, and what the backward pass wants.

  It needs sums over values less their mean, `centered`: a pass over the values and one over the
  output, which a call without gradients does without.
  """
  batch, length, heads, dim = query.shape
  m = omega.shape[1]
  # The temperature is folded into omega. Frequencies beyond the last count for nothing.
  omega = pad_axis(omega * options.head_dim**-0.25, 1, TILE).astype(query.dtype)
  rows = batch * heads * omega.shape[1] // TILE
  plan = options.plan(rows, key.shape[1])
  bias = _bias(options, key, key_mask, plan)
  state, norm, peak = forward.sum_keys(key, value, omega, bias, plan=plan)
  valid = jnp.any(key_mask, axis=1).astype(jnp.float32)[:, None, None, None, None]
  total, count = _sum_of_values(value, key_mask)
  center = total / jnp.maximum(count, 1) if centered else jnp.zeros_like(total)
  if options.fourier:
    weight = pad_axis(jnp.exp(log_weight), 1, TILE)[:, None]
    norm = norm.sum(axis=2) * weight
    state = state.sum(axis=2) * weight[..., None] - center[:, :, None, None] * norm[..., None]
    lse = None
  else:
    highest = peak.max(axis=2)
    decay = jnp.exp2(peak - highest[:, :, None])
    norm = jnp.sum(norm * decay, axis=2)
    state = jnp.sum(state * decay[..., None], axis=2) / norm[..., None]
    state = valid * (state - center[:, :, None, None])
    lse = highest + jnp.log2(norm)
    norm = lse + pad_axis(log_weight * LOG2E, 1, TILE, NEVER)[:, None]
  # Values less their mean add up to nothing.
  base = _base(options, jnp.zeros_like(total) if centered else total, count, m)
  floor = denominator_floor(options.features, m)
  rest, stat = forward.mix_queries(
    query,
    omega,
    state.astype(query.dtype),
    norm,
    base,
    floor=floor,
    plan=options.plan(batch * heads, length),
  )
  out = rest
  if centered:
    # What weights add up to: one, but where denominators are too small to be believed.
    weight = (stat / floored(stat, floor))[:, :, :length, None] if options.fourier else 1.0
    out = (rest + (weight * center[:, :, None]).swapaxes(1, 2)).astype(rest.dtype)
  residuals = (
    query, key, value, omega, log_weight, key_mask, bias, center, state, norm, lse, rest, stat
  )  # fmt: skip
  return (out, stat), residuals


def _bias(options, key, key_mask, plan):
  """Return what `forward.sum_keys` wants beside keys and values: float32 [b, h, L]."""
  whole = whole_length(key.shape[1], plan.splits)
  if options.fourier:
    weight = pad_axis(key_mask.astype(jnp.float32), 1, whole)
    return jnp.broadcast_to(weight[:, None], (key.shape[0], key.shape[2], whole))
  norm = jnp.sum(jnp.square(key.astype(jnp.float32)), axis=-1)
  bias = -LOG2E * options.norm_factor * norm
  bias = jnp.where(key_mask[:, :, None], bias, NEVER)
  return pad_axis(bias, 1, whole, NEVER).swapaxes(1, 2)


def _sum_of_values(value, key_mask):
  """Return the sum of the valid values, float32 [b, h, d], and how many there are [b, 1, 1]."""
  weight = key_mask.astype(value.dtype)
  total = jnp.einsum('blhd,bl->bhd', value, weight, preferred_element_type=jnp.float32)
  count = jnp.sum(key_mask, axis=1, dtype=jnp.float32)[:, None, None]
  return total, count


def _base(options, total, count, m):
  """Return the constant feature's part of numerator [b, h, d] and denominator [b, h, rows]."""
  if not options.fourier:
    return None
  factor = options.smoothing**2 * m
  return factor * total, jnp.broadcast_to(factor * count, (*total.shape[:2], TILE))


def _backward(options, residuals, cotangents):
  (
    query, key, value, omega, log_weight, key_mask, bias, center, state, norm, lse, rest, stat
  ) = residuals  # fmt: skip
  grad = cotangents[0].astype(query.dtype)
  batch, length, heads, dim = query.shape
  m, padded = log_weight.shape[1], omega.shape[1]
  rows = options.plan(batch * heads * padded // TILE, length)
  scale, shift, base = _row_terms(options, grad, center, rest, stat, m)
  # Kernels cut the length in different ways, but beyond its end no query may count in any of them.
  missing = max(0, whole_length(length, rows.splits) - stat.shape[2])
  extend = lambda x, value: jnp.pad(x, ((0, 0), (0, 0), (0, missing)), constant_values=value)
  scale, shift = extend(scale, 0.0 if options.fourier else -NEVER), extend(shift, 0.0)
  inputs = (query, grad, omega, state.astype(query.dtype), norm, scale, shift)
  d_query = backward.query_gradient(*inputs, plan=options.plan(batch * heads, length))
  d_state, d_norm, d_omega = (
    jnp.sum(x, axis=2) for x in backward.state_gradient(*inputs, plan=rows)
  )
  inner = jnp.sum(d_state * state, axis=-1)
  if options.fourier:
    d_log_weight = jnp.sum(inner + d_norm * norm, axis=(0, 2))
    weight = pad_axis(jnp.exp(log_weight), 1, TILE)[:, None]
    d_state, d_norm = d_state * weight[..., None], d_norm * weight
  else:
    d_log_weight = jnp.sum(d_norm, axis=(0, 2))
    valid = jnp.any(key_mask, axis=1)[:, None, None, None]
    d_norm = jnp.where(valid, d_norm - inner, 0)
    d_state = jnp.where(valid[..., None], d_state, 0)
  d_state = d_state.astype(key.dtype)
  # Keys meet values less the mean. The kernels multiply by whole ones, with d_state as it is now.
  d_norm -= jnp.sum(d_state * center[:, :, None, None], axis=-1)
  length = key.shape[1]
  rows = options.plan(batch * heads * padded // TILE, length)
  inputs = (key, value, omega, d_state, d_norm, lse, bias)
  slope_norm = 0.0 if options.fourier else 2 * options.norm_factor
  plan = options.plan(batch * heads, length)
  d_key, d_value = backward.key_gradient(*inputs, base, slope_norm=slope_norm, plan=plan)
  d_omega_k = jnp.sum(backward.omega_gradient(*inputs, plan=rows), axis=(0, 2))
  d_omega = (jnp.sum(d_omega, axis=0) + d_omega_k)[:, :m] * options.head_dim**-0.25
  return d_query, d_key, d_value, d_omega, d_log_weight[:, :m], None


def _row_terms(options, grad, center, rest, stat, m):
  """Return what `backward.query_gradient` wants of each query, and what goes to every value."""
  product = jnp.einsum('blhd,blhd->bhl', grad, rest, preferred_element_type=jnp.float32)
  product = pad_axis(product, 2, stat.shape[2])
  if not options.fourier:
    return stat, product, None
  floor = denominator_floor(options.features, m)
  scale = 1 / floored(stat, floor)
  # Weights that do not add up to one take more or less of the mean.
  of_mean = jnp.einsum('blhd,bhd->bhl', grad, center, preferred_element_type=jnp.float32)
  of_mean = pad_axis(of_mean, 2, stat.shape[2])
  shift = scale * jnp.where(jnp.abs(stat) < floor, of_mean, -product)
  weight = scale[:, :, : grad.shape[1]].astype(grad.dtype)
  base = jnp.einsum('blhd,bhl->bhd', grad, weight, preferred_element_type=jnp.float32)
  return scale, shift, base * (options.smoothing**2 * m)


_attend.defvjp(_forward, _backward)
