"""The gradients of `kl_flax.kernels.forward`: features are computed once more, and never written.

Gradients of positions have positions as rows, those of frequencies have frequencies as rows.
Shapes are those of `forward`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kl_flax.kernels import TILE, tiles
from kl_flax.kernels.tiles import BY_ROW, LOG2E, MATRIX, Plan, by_row


@tiles.kernel
def query_gradient(query, grad, omega, state, norm, scale, shift, *, plan: Plan):
  """Return the gradient of the queries.

  Args:
    query: bfloat16 [b, l, h, d].
    grad: gradient of the output, bfloat16 [b, l, h, d].
    omega: bfloat16 [h, m, d].
    state: see `mix_queries`.
    norm: see `mix_queries`.
    scale: float32 [b, h, L]; of positive features the log of the denominator (in log 2), with
      Fourier features 1 / denominator.
    shift: float32 [b, h, L]; output · gradient, with Fourier features times −scale.
    plan: how the work is cut.

  Returns:
    bfloat16 [b, l, h, d].
  """
  batch, length, heads, dim = query.shape
  m, block = omega.shape[1], tiles.block_of(omega.shape[1])
  shape, wide = (TILE, block), (TILE, dim)

  def body_of_block(
    q_ref, g_ref, omega_ref, state_ref, norm_ref, scale_ref, shift_ref, out_ref, *scratch
  ):
    b, h = lax.axis_index('b'), lax.axis_index('h')
    omega_tile, states, norms = tiles.fetch_head(
      plan, scratch, b, h, omega_ref, state_ref, norm_ref
    )

    def body(q_tile, g_tile, scale_tile, shift_tile, out_tile):
      scale = tiles.load_by_row(scale_tile, shape, plan)
      shift = tiles.load_by_row(shift_tile, shape, plan)
      total = tiles.full(wide, 0.0, MATRIX, plan)
      for start in range(0, m, block):
        part = pl.ds(start, block)
        omega_part = omega_tile.at[part]
        pairs = [(g_tile, tile.at[part]) for tile in states]
        x, *inner = tiles.products(plan, (q_tile, omega_part), *pairs, shape=shape)
        weights = [tiles.load_by_column(tile.at[part], shape, plan) for tile in norms]
        if plan.fourier:
          inner = [y * scale + shift * w for y, w in zip(inner, weights, strict=True)]
          slope = tiles.angle_gradient(tiles.cos_sin(x), inner)
        else:
          slope = jnp.exp2(x * LOG2E + weights[0] - scale) * (inner[0] - shift)
        (total,) = tiles.accumulate(plan, (total, slope, omega_part))
      out_tile[...] = total.astype(out_tile.dtype)

    inputs = (q_ref.at[b, :, h], g_ref.at[b, :, h], scale_ref.at[b, h], shift_ref.at[b, h])
    tiles.pipeline(body, plan, length, inputs, [out_ref.at[b, :, h]])

  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=tiles.scratch_of_head(plan, m, dim, query.dtype),
    operands=(query, grad, omega, state, norm, scale, shift),
  )


@tiles.kernel
def state_gradient(query, grad, omega, state, norm, scale, shift, *, plan: Plan):
  """Return partial gradients of the sums over keys, and of omega through the queries.

  Arguments are those of `query_gradient`.

  Returns:
    float32 [b, h, s, r, m, d], [b, h, s, r, m] and, of omega, [b, h, s, m, d].
  """
  batch, length, heads, dim = query.shape
  m, branches = omega.shape[1], plan.branches
  tile = TILE // branches  # Two branches need twice the registers.
  shape = (TILE, tile)

  def body_of_block(q_ref, g_ref, omega_ref, state_ref, norm_ref, scale_ref, shift_ref, *refs):
    d_state_ref, d_norm_ref, d_omega_ref, *scratch = refs
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    omega_tile, states, weights = tiles.fetch_rows(
      plan, scratch, b, h, rows, omega_ref, state_ref, norm_ref
    )

    def body(q_tile, g_tile, scale_tile, shift_tile, carry):
      d_states, d_norms, d_omega = carry
      scale = tiles.load_by_column(scale_tile, shape, plan)
      shift = tiles.load_by_column(shift_tile, shape, plan)
      pairs = [(tile, g_tile) for tile in states]
      x, *inner = tiles.products(plan, (omega_tile, q_tile), *pairs, shape=shape)
      if plan.fourier:
        phis = tiles.cos_sin(x)
        inner = [y * scale + shift * by_row(w, shape) for y, w in zip(inner, weights, strict=True)]
        slope = tiles.angle_gradient(phis, inner)
        d_norms = [d + (phi * shift).sum(axis=1) for d, phi in zip(d_norms, phis, strict=True)]
        phis = [phi * scale for phi in phis]
      else:
        phis = [jnp.exp2(x * LOG2E + by_row(weights[0], shape) - scale)]
        slope = phis[0] * (inner[0] - shift)
        d_norms = [d_norms[0] + slope.sum(axis=1)]
      terms = [(d, phi, g_tile) for d, phi in zip(d_states, phis, strict=True)]
      *d_states, d_omega = tiles.accumulate(plan, *terms, (d_omega, slope, q_tile))
      return d_states, d_norms, d_omega

    zero = tiles.full((TILE, dim), 0.0, MATRIX, plan)
    carry = [zero] * branches, [tiles.full((TILE,), 0.0, BY_ROW, plan)] * branches, zero
    inputs = (q_ref.at[b, :, h], g_ref.at[b, :, h], scale_ref.at[b, h], shift_ref.at[b, h])
    d_states, d_norms, d_omega = tiles.pipeline(body, plan, length, inputs, carry=carry, tile=tile)
    for r in range(branches):
      d_state_ref.at[b, h, s, r, rows][...] = d_states[r]
      d_norm_ref.at[b, h, s, r, rows][...] = d_norms[r]
    d_omega_ref.at[b, h, s, rows][...] = d_omega

  lead = (batch, heads, plan.splits)
  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=[
      tiles.float32(*lead, branches, m, dim),
      tiles.float32(*lead, branches, m),
      tiles.float32(*lead, m, dim),
    ],
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=tiles.scratch_of_rows(plan, dim, query.dtype, tile),
    operands=(query, grad, omega, state, norm, scale, shift),
  )


@tiles.kernel
def key_gradient(key, value, omega, d_state, d_norm, norm, bias, base, *, slope_norm, plan: Plan):
  """Return the gradients of keys and values.

  Args:
    key: bfloat16 [b, l, h, d].
    value: bfloat16 [b, l, h, d].
    omega: bfloat16 [h, m, d].
    d_state: gradient of `mix_queries`' state, bfloat16 [b, h, r, m, d].
    d_norm: float32 [b, h, r, m]: with Fourier features the gradient of norm; of positive ones that
      of lse less d_state · state.
    norm: float32 [b, h, 1, m], positive features only: lse (in log 2) without weights.
    bias: see `sum_keys`.
    base: float32 [b, h, d], Fourier features only: what is added to the gradient of every value.
    slope_norm: the exponent's derivative with respect to key is omega − slope_norm key.
    plan: how the work is cut.

  Returns:
    bfloat16 [b, l, h, d], twice.
  """
  batch, length, heads, dim = key.shape
  m, block = omega.shape[1], tiles.block_of(omega.shape[1])
  shape, wide = (TILE, block), (TILE, dim)

  def body_of_block(k_ref, v_ref, omega_ref, d_state_ref, d_norm_ref, extra_ref, bias_ref, *refs):
    dk_ref, dv_ref, *scratch = refs
    b, h = lax.axis_index('b'), lax.axis_index('h')
    omega_tile, d_states, d_norms, extra = tiles.fetch_head(
      plan, scratch, b, h, omega_ref, d_state_ref, d_norm_ref, extra_ref
    )

    def body(k_tile, v_tile, bias_tile, dk_tile, dv_tile):
      bias = tiles.load(bias_tile, BY_ROW, plan)
      d_key = d_value = tiles.full(wide, 0.0, MATRIX, plan)
      if plan.fourier:
        d_value += tiles.load_by_column(extra.at[pl.ds(0, dim)], wide, plan)
      total = None
      for start in range(0, m, block):
        part = pl.ds(start, block)
        omega_part, state_parts = omega_tile.at[part], [tile.at[part] for tile in d_states]
        pairs = [(v_tile, state) for state in state_parts]
        x, *inner = tiles.products(plan, (k_tile, omega_part), *pairs, shape=shape)
        weights = [tiles.load_by_column(tile.at[part], shape, plan) for tile in d_norms]
        inner = [y + w for y, w in zip(inner, weights, strict=True)]
        if plan.fourier:
          phis = tiles.cos_sin(x)
          slope = tiles.angle_gradient(phis, inner)
        else:
          lse = tiles.load_by_column(extra.at[part], shape, plan)
          phis = [jnp.exp2(x * LOG2E + by_row(bias, shape) - lse)]
          slope = phis[0] * inner[0]
          total = slope.sum(axis=1) if total is None else total + slope.sum(axis=1)
        for phi, state in zip(phis, state_parts, strict=True):
          (d_value,) = tiles.accumulate(plan, (d_value, phi, state))
        (d_key,) = tiles.accumulate(plan, (d_key, slope, omega_part))
      if plan.fourier:
        d_key, d_value = (x * by_row(bias, wide) for x in (d_key, d_value))
      else:
        key = tiles.load(k_tile, MATRIX, plan).astype(jnp.float32)
        d_key -= key * by_row(total * slope_norm, wide)
      dk_tile[...] = d_key.astype(dk_tile.dtype)
      dv_tile[...] = d_value.astype(dv_tile.dtype)

    inputs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    tiles.pipeline(body, plan, length, inputs, [dk_ref.at[b, :, h], dv_ref.at[b, :, h]])

  extra = base if plan.fourier else norm[:, :, 0]
  # Copies have 128 bytes or more.
  extra = jnp.pad(extra, ((0, 0), (0, 0), (0, max(0, 32 - extra.shape[2]))))
  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=[jax.ShapeDtypeStruct(key.shape, key.dtype)] * 2,
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=tiles.scratch_of_head(plan, m, dim, key.dtype, extra.shape[2]),
    operands=(key, value, omega, d_state, d_norm, extra, bias),
  )


@tiles.kernel
def omega_gradient(key, value, omega, d_state, d_norm, norm, bias, *, plan: Plan):
  """Return partial gradients of omega through the keys, float32 [b, h, s, m, d].

  Arguments are those of `key_gradient`.
  """
  batch, length, heads, dim = key.shape
  m, shape = omega.shape[1], (TILE, TILE)

  def body_of_block(k_ref, v_ref, omega_ref, d_state_ref, d_norm_ref, *refs):
    if not plan.fourier:
      norm_ref, *refs = refs
    bias_ref, out_ref, *scratch = refs
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    omega_tile, d_states, d_norms = tiles.fetch_rows(
      plan, scratch, b, h, rows, omega_ref, d_state_ref, d_norm_ref
    )
    if not plan.fourier:
      lse = by_row(tiles.load(norm_ref.at[b, h, 0, rows], BY_ROW, plan, shared=False), shape)

    def body(k_tile, v_tile, bias_tile, d_omega):
      bias = tiles.load_by_column(bias_tile, shape, plan)
      pairs = [(tile, v_tile) for tile in d_states]
      x, *inner = tiles.products(plan, (omega_tile, k_tile), *pairs, shape=shape)
      inner = [y + by_row(w, shape) for y, w in zip(inner, d_norms, strict=True)]
      if plan.fourier:
        slope = tiles.angle_gradient(tiles.cos_sin(x), inner) * bias
      else:
        slope = jnp.exp2(x * LOG2E + bias - lse) * inner[0]
      return tiles.accumulate(plan, (d_omega, slope, k_tile))[0]

    zero = tiles.full((TILE, dim), 0.0, MATRIX, plan)
    inputs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    out_ref.at[b, h, s, rows][...] = tiles.pipeline(body, plan, length, inputs, carry=zero)

  return tiles.run_blocks(
    body_of_block,
    plan,
    out_type=tiles.float32(batch, heads, plan.splits, m, dim),
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=tiles.scratch_of_rows(plan, dim, key.dtype),
    operands=(key, value, omega, d_state, d_norm, *(() if plan.fourier else (norm,)), bias),
  )
