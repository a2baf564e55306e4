"""Kernel attention on NVIDIA Hopper GPUs: the sums over keys, and what queries make of them.

Attention by positive features is softmax attention twice. The keys are averaged once for every
frequency, u_m = softmax_j(b_jm) v_j with exponents b_jm = omega_m·k_j − c|k_j|², as if frequencies
were queries; then every query averages those, out_i = softmax_m(omega_m·q_i + lse_m) u_m, with
lse_m = log sum_j exp(b_jm). Both halves keep a running maximum, and nothing can overflow. By
Fourier features the two sums are those of `kl_flax.sums`, weighted by cosines and sines.

The kernels go over tiles of positions. One kind has positions as rows and writes something for each
of them; the other has frequencies as rows and sums over positions, split over blocks whose partial
sums XLA adds. Features are computed in registers, from bfloat16 products accumulated in float32,
and never written. Exponents are in units of log 2.

Shapes: b batch, l positions, h heads, d head size, m frequencies, s splits of the length, r
branches of the feature map.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kl_flax.kernels import TILE, tiles
from kl_flax.kernels.tiles import BY_COLUMN, BY_ROW, LOG2E, MATRIX, NEVER, Plan, by_row
from kl_flax.numerics import floored


@tiles.kernel
def sum_keys(key, value, omega, bias, *, plan: Plan):
  """Return partial sums over keys for every frequency.

  Args:
    key: bfloat16 [b, l, h, d].
    value: bfloat16 [b, l, h, d].
    omega: bfloat16 [h, m, d].
    bias: float32 [b, h, L], L the length in whole tiles: what is added to the exponents (in log 2)
      of positive features; the weight of each key with Fourier features.
    plan: how the work is cut.

  Returns:
    state float32 [b, h, s, r, m, d], norm float32 [b, h, s, r, m], and for positive features the
    maximum float32 [b, h, s, 1, m] that both are relative to.
  """
  batch, length, heads, dim = key.shape
  m, shape = omega.shape[1], (TILE, TILE)

  def positive(x, weight, v_tile, carry):
    (state,), (norm,), peak = carry
    x = x * LOG2E + weight
    new = jnp.maximum(peak, x.max(axis=1))
    decay = jnp.exp2(peak - new)
    p = jnp.exp2(x - by_row(new, shape))
    norm = norm * decay + p.sum(axis=1)
    state = state * by_row(decay, state.shape)
    return tiles.accumulate(plan, (state, p, v_tile)), [norm], new

  def fourier(x, weight, v_tile, carry):
    states, norms, peak = carry
    phis = [phi * weight for phi in tiles.cos_sin(x)]
    norms = [norm + phi.sum(axis=1) for norm, phi in zip(norms, phis, strict=True)]
    terms = [(state, phi, v_tile) for state, phi in zip(states, phis, strict=True)]
    return tiles.accumulate(plan, *terms), norms, peak

  def body_of_block(k_ref, v_ref, omega_ref, bias_ref, state_ref, norm_ref, peak_ref, *scratch):
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    omega_tile, *_ = tiles.fetch_rows(plan, scratch, b, h, rows, omega_ref)

    def body(k_tile, v_tile, bias_tile, carry):
      (x,) = tiles.products(plan, (omega_tile, k_tile), shape=shape)
      weight = tiles.load_by_column(bias_tile, shape, plan)
      return (fourier if plan.fourier else positive)(x, weight, v_tile, carry)

    zero = functools.partial(tiles.full, (TILE,), layout=BY_ROW, plan=plan)
    carry = (
      [tiles.full((TILE, dim), 0.0, MATRIX, plan)] * plan.branches,
      [zero(0.0)] * plan.branches,
      zero(2 * NEVER),
    )
    inputs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    states, norms, peak = tiles.pipeline(body, plan, length, inputs, carry=carry)
    for r in range(plan.branches):
      state_ref.at[b, h, s, r, rows][...] = states[r]
      norm_ref.at[b, h, s, r, rows][...] = norms[r]
    peak_ref.at[b, h, s, 0, rows][...] = peak

  lead = (batch, heads, plan.splits)
  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=[
      tiles.float32(*lead, plan.branches, m, dim),
      tiles.float32(*lead, plan.branches, m),
      tiles.float32(*lead, 1, m),
    ],
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=tiles.scratch_of_rows(plan, dim, key.dtype, with_state=False),
    operands=(key, value, omega, bias),
  )


@tiles.kernel
def mix_queries(query, omega, state, norm, base, *, floor: float, plan: Plan):
  """Return the attention output.

  Args:
    query: bfloat16 [b, l, h, d].
    omega: bfloat16 [h, m, d].
    state: bfloat16 [b, h, r, m, d]: u, or the sums over keys of cosines and of sines.
    norm: float32 [b, h, r, m]: lse (in log 2), or the sums over keys without the values.
    base: Fourier features only: what is added to the numerator, float32 [b, h, d], and to the
      denominator, float32 [b, h, rows of a tile].
    floor: least denominator that is believed.
    plan: how the work is cut.

  Returns:
    out bfloat16 [b, l, h, d], and float32 [b, h, L] the denominator: of positive features its log
    (in log 2).
  """
  batch, length, heads, dim = query.shape
  m, block = omega.shape[1], tiles.block_of(omega.shape[1])
  shape, wide = (TILE, block), (TILE, dim)

  def positive(q_tile, omega_tile, states, norms):
    total, norm, peak = None, None, None
    for start in range(0, m, block):
      part = pl.ds(start, block)
      (x,) = tiles.products(plan, (q_tile, omega_tile.at[part]), shape=shape)
      x = x * LOG2E + tiles.load_by_column(norms[0].at[part], shape, plan)
      new = x.max(axis=1) if peak is None else jnp.maximum(peak, x.max(axis=1))
      p = jnp.exp2(x - by_row(new, shape))
      if peak is None:
        norm, total = p.sum(axis=1), tiles.full(wide, 0.0, MATRIX, plan)
      else:
        decay = jnp.exp2(peak - new)
        norm, total = norm * decay + p.sum(axis=1), total * by_row(decay, wide)
      peak = new
      (total,) = tiles.accumulate(plan, (total, p, states[0].at[part]))
    return total / by_row(norm, wide), peak + jnp.log(norm) * LOG2E

  def fourier(q_tile, omega_tile, states, norms, above, below):
    total, norm = tiles.by_column(above, wide), below
    for start in range(0, m, block):
      part = pl.ds(start, block)
      (x,) = tiles.products(plan, (q_tile, omega_tile.at[part]), shape=shape)
      for r, phi in enumerate(tiles.cos_sin(x)):
        weight = tiles.load_by_column(norms[r].at[part], shape, plan)
        norm += (phi * weight).sum(axis=1)
        (total,) = tiles.accumulate(plan, (total, phi, states[r].at[part]))
    return total / by_row(floored(norm, floor), wide), norm

  def body_of_block(q_ref, omega_ref, state_ref, norm_ref, *refs):
    if plan.fourier:
      above_ref, below_ref, *refs = refs
    out_ref, stat_ref, *scratch = refs
    b, h = lax.axis_index('b'), lax.axis_index('h')
    head = tiles.fetch_head(plan, scratch, b, h, omega_ref, state_ref, norm_ref)
    if plan.fourier:
      above = tiles.load(above_ref.at[b, h], BY_COLUMN, plan, shared=False)
      below = tiles.load(below_ref.at[b, h], BY_ROW, plan, shared=False)

    def body(q_tile, out_tile, stat_tile):
      out, stat = fourier(q_tile, *head, above, below) if plan.fourier else positive(q_tile, *head)
      out_tile[...] = out.astype(out_tile.dtype)
      stat_tile[...] = stat

    outputs = (out_ref.at[b, :, h], stat_ref.at[b, h])
    tiles.pipeline(body, plan, length, [q_ref.at[b, :, h]], outputs)

  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=[
      jax.ShapeDtypeStruct(query.shape, query.dtype),
      tiles.float32(batch, heads, tiles.whole_length(length, plan.splits)),
    ],
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=tiles.scratch_of_head(plan, m, dim, query.dtype),
    operands=(query, omega, state, norm, *(base if plan.fourier else ())),
  )
