"""Kernel attention on NVIDIA Hopper GPUs: Pallas kernels that never write features to memory.

Attention by positive features is softmax attention twice. The keys are averaged once for every
frequency, u_m = softmax_j(b_jm) v_j with exponents b_jm = omega_m·k_j − c|k_j|², as if frequencies
were queries; then every query averages those, out_i = softmax_m(omega_m·q_i + lse_m) u_m, with
lse_m = log sum_j exp(b_jm). Both halves keep a running maximum, and nothing can overflow. By
Fourier features the two sums are those of `kl_flax.sums`, weighted by cosines and sines.

The kernels go over tiles of positions. One kind has positions as rows and writes something for each
of them; the other has frequencies as rows and sums over positions, split over blocks whose partial
sums XLA adds. Features are computed in registers from bfloat16 products accumulated in float32 and
computed again in the backward pass. Exponents are in units of log 2.

Shapes: b batch, l positions, h heads, d head size, m frequencies, s splits of the length. A map has
r branches: 1 (exp) or 2 (cos, sin).
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LOG2E = math.log2(math.e)
# Exponent of what does not count. Finite, so that no difference of two is NaN.
NEVER = -1e30
# Rows of a warpgroup's matrix product, and positions of a tile.
TILE = 64

_ROWS, _COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
_LOAD_TAKES_INDEX = inspect.signature(plgpu.load).parameters['idx'].default is inspect._empty


class Plan(NamedTuple):
  """How the work is cut.

  Attributes:
    fourier: which feature map; False is the positive ones.
    splits: blocks that share the length of one head of one example.
    steps: tiles that are in flight.
    interpret: run in Pallas' interpreter of GPU kernels, on any machine.
  """

  fourier: bool
  splits: int
  steps: int = 2
  interpret: bool = False


# What the kernels are written in. The interpreter knows neither layouts nor products of registers;
# there these are plain operations on arrays.


def _load(ref, layout, plan, *, shared=True):
  """Return what lies in shared, or else in global memory."""
  if plan.interpret:
    return ref[...]
  return plgpu.load(ref, *[()] * _LOAD_TAKES_INDEX, layout=layout, optimized=shared)


def _kernel(function):
  """Trace and lower a kernel once for each plan and shape, and run it in turn under `jax.vmap`."""

  @functools.cache
  def compiled(options):
    return jax.jit(
      jax.custom_batching.sequential_vmap(functools.partial(function, **dict(options)))
    )

  @functools.wraps(function)
  def call(*arrays, **options):
    return compiled(tuple(sorted(options.items())))(*arrays)

  return call


def _full(shape, value, layout, plan):
  x = jnp.full(shape, value, jnp.float32)
  return x if plan.interpret else plgpu.layout_cast(x, layout)


def _products(plan, *pairs, shape):
  """Return a bᵀ of each pair of tiles in shared memory, float32."""
  if plan.interpret:
    return [_wide(a[...]) @ _wide(b[...]).T for a, b in pairs]

  def body(*accumulators):
    for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
      plgpu.wgmma(accumulator, a, b.transpose((1, 0)))
    return [accumulator[...] for accumulator in accumulators]

  return pl.run_scoped(body, *[plgpu.ACC(shape, jnp.float32)] * len(pairs))


def _accumulate(plan, *terms):
  """Return sum + a b of each (sum, a in registers, b in shared memory)."""
  sums = tuple(term[0] for term in terms)
  if plan.interpret:
    return [total + _wide(a.astype(b.dtype)) @ _wide(b[...]) for total, a, b in terms]

  def body(accumulators):
    for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
      plgpu.wgmma(accumulator, a.astype(b.dtype), b)

  return list(pl.run_state(body)(tuple(map(plgpu.ACC.init, sums))))


def _wide(x):
  return x.astype(jnp.float32)


def _rows(x, shape):
  return lax.broadcast_in_dim(x, shape, [0])


def _columns(x, shape):
  return lax.broadcast_in_dim(x, shape, [1])


def _cos_sin(angle):
  """Return cosine and sine. The hardware's are exact to 2^-21 within one turn alone."""
  turns = angle * (1 / (2 * math.pi))
  angle = (turns - lax.round(turns, lax.RoundingMethod.TO_NEAREST_EVEN)) * (2 * math.pi)
  return jnp.cos(angle), jnp.sin(angle)


def _matrix(width, tile=TILE):
  """Return how wgmma wants matrices of 16-bit numbers of this width in shared memory.

  Groups of columns must not be wider than a tile has positions, over which products sum.
  """
  group = min(width, tile)
  return plgpu.TilingTransform((8, group)), plgpu.SwizzleTransform(2 * group)


def _shared(rows, width, dtype, tile=TILE):
  return plgpu.SMEM((rows, width), dtype, transforms=_matrix(width, tile))


def num_tiles(length: int, splits: int) -> int:
  """Return the number of tiles that one of the splits goes over."""
  return -(-length // (TILE * splits))


# Rows of an array in global memory that one copy takes at most.
_LONGEST_COPY = 256


def _fetch(barrier, *copies):
  """Copy from global to shared memory and wait."""
  for source, target in copies:
    for start in range(0, target.shape[0], _LONGEST_COPY):
      rows = pl.ds(start, min(_LONGEST_COPY, target.shape[0] - start))
      plgpu.copy_gmem_to_smem(source.at[rows], target.at[rows], barrier)
  plgpu.barrier_wait(barrier)


def _barrier(*rows):
  """Return the barrier of a `_fetch` of arrays with so many rows."""
  return plgpu.Barrier(num_arrivals=sum(-(-n // _LONGEST_COPY) for n in rows))


def _call(body, plan, *, out_type, grid, scratch, operands):
  options = {}
  if plan.interpret:
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    options['interpret'] = InterpretGPUParams()
  return plgpu.kernel(
    body,
    out_type=out_type,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    scratch_types=scratch,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **options,
  )(*operands)


def _pipeline(body, plan, length, tile, inputs, outputs=(), carry=None):
  """Go over the tiles of this block's share of the positions.

  Args:
    body: called with the tiles in shared memory, then the carry if there is one.
    plan: of the call.
    length: of the sequence.
    tile: positions of a tile.
    inputs: references [l, d] or [l] in global memory.
    outputs: likewise.
    carry: what goes from tile to tile.
  """
  count = num_tiles(length, plan.splits) * TILE // tile
  first = lax.axis_index('s') * count

  def spec(ref):
    if len(ref.shape) == 1:
      return plgpu.BlockSpec((tile,), lambda i: (first + i,))
    width = ref.shape[1]
    return plgpu.BlockSpec((tile, width), lambda i: (first + i, 0), transforms=_matrix(width, tile))

  if plan.interpret:
    return _simple_pipeline(body, first, count, tile, inputs, outputs, carry)
  return plgpu.emit_pipeline(
    lambda index, *tiles: body(*tiles),
    grid=(count,),
    in_specs=[spec(ref) for ref in inputs],
    out_specs=[spec(ref) for ref in outputs],
    max_concurrent_steps=min(plan.steps, count),
    init_carry=carry,
  )(*inputs, *outputs)


def _simple_pipeline(body, first, count, tile, inputs, outputs, carry):
  """Take one tile after the other: the interpreter cannot do what `emit_pipeline` does.

  As on a GPU, an array reads as zeros beyond its end, and takes no writes.
  """
  shared = [plgpu.SMEM((tile, *ref.shape[1:]), ref.dtype) for ref in (*inputs, *outputs)]

  def for_what_exists(ref, start, move):
    length, rest = ref.shape[0], ref.shape[0] % tile
    pl.when(start + tile <= length)(lambda: move(ref.at[pl.ds(start, tile)], tile))
    if rest:
      last = ref.at[pl.ds(length - rest, rest)]
      pl.when(start == length - rest)(lambda: move(last, rest))

  def run(*tiles):
    def step(i, carry):
      start = (first + i) * tile
      for ref, buffer in zip(inputs, tiles, strict=False):
        buffer[...] = jnp.zeros(buffer.shape, buffer.dtype)

        def load(part, size, buffer=buffer):
          buffer.at[pl.ds(0, size)][...] = part[...]

        for_what_exists(ref, start, load)
      carry = body(*tiles, *([] if carry is None else [carry]))
      for ref, buffer in zip(outputs, tiles[len(inputs) :], strict=True):

        def store(part, size, buffer=buffer):
          part[...] = buffer.at[pl.ds(0, size)][...]

        for_what_exists(ref, start, store)
      return carry

    return lax.fori_loop(0, count, step, carry)

  return pl.run_scoped(run, *shared)


def _block(m: int) -> int:
  """Return how many frequencies the kernels with positions as rows take at once."""
  return 128 if m % 128 == 0 else 64


def _float32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


# Sums over keys.


@_kernel
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
  m = omega.shape[1]
  branches, shape = 1 + plan.fourier, (TILE, TILE)

  def positive(x, weight, v_tile, carry):
    (state,), (norm,), peak = carry
    x = x * LOG2E + weight
    new = jnp.maximum(peak, x.max(axis=1))
    decay = jnp.exp2(peak - new)
    p = jnp.exp2(x - _rows(new, shape))
    norm = norm * decay + p.sum(axis=1)
    state = state * _rows(decay, state.shape)
    return _accumulate(plan, (state, p, v_tile)), [norm], new

  def fourier(x, weight, v_tile, carry):
    states, norms, peak = carry
    phis = [phi * weight for phi in _cos_sin(x)]
    norms = [norm + phi.sum(axis=1) for norm, phi in zip(norms, phis, strict=True)]
    terms = [(state, phi, v_tile) for state, phi in zip(states, phis, strict=True)]
    return _accumulate(plan, *terms), norms, peak

  def body_of_block(
    k_ref, v_ref, omega_ref, bias_ref, state_ref, norm_ref, peak_ref, omega_tile, barrier
  ):
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    _fetch(barrier, (omega_ref.at[h, rows], omega_tile))

    def body(k_tile, v_tile, bias_tile, carry):
      (x,) = _products(plan, (omega_tile, k_tile), shape=shape)
      weight = _columns(_load(bias_tile, _COLUMNS, plan), shape)
      return (fourier if plan.fourier else positive)(x, weight, v_tile, carry)

    zero = functools.partial(_full, layout=_ROWS, plan=plan)
    carry = (
      [_full((TILE, dim), 0.0, plgpu.Layout.WGMMA, plan)] * branches,
      [zero((TILE,), 0.0)] * branches,
      zero((TILE,), 2 * NEVER),
    )
    refs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    states, norms, peak = _pipeline(body, plan, length, TILE, refs, carry=carry)
    for r in range(branches):
      state_ref.at[b, h, s, r, rows][...] = states[r]
      norm_ref.at[b, h, s, r, rows][...] = norms[r]
    peak_ref.at[b, h, s, 0, rows][...] = peak

  lead = (batch, heads, plan.splits)
  return _call(
    body_of_block,
    plan,
    out_type=[
      _float32(*lead, branches, m, dim),
      _float32(*lead, branches, m),
      _float32(*lead, 1, m),
    ],
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=[_shared(TILE, dim, key.dtype), plgpu.Barrier()],
    operands=(key, value, omega, bias),
  )


@_kernel
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
  m, block = omega.shape[1], _block(omega.shape[1])
  branches, shape, wide = 1 + plan.fourier, (TILE, _block(omega.shape[1])), (TILE, dim)

  def positive(q_tile, omega_tile, state_tiles, norm_tiles):
    total, norm, peak = None, None, None
    for start in range(0, m, block):
      part = pl.ds(start, block)
      (x,) = _products(plan, (q_tile, omega_tile.at[part]), shape=shape)
      x = x * LOG2E + _columns(_load(norm_tiles[0].at[part], _COLUMNS, plan), shape)
      new = x.max(axis=1) if peak is None else jnp.maximum(peak, x.max(axis=1))
      p = jnp.exp2(x - _rows(new, shape))
      if peak is None:
        norm, total = p.sum(axis=1), _full(wide, 0.0, plgpu.Layout.WGMMA, plan)
      else:
        decay = jnp.exp2(peak - new)
        norm, total = norm * decay + p.sum(axis=1), total * _rows(decay, wide)
      peak = new
      (total,) = _accumulate(plan, (total, p, state_tiles[0].at[part]))
    return total / _rows(norm, wide), peak + jnp.log(norm) * LOG2E

  def fourier(q_tile, omega_tile, state_tiles, norm_tiles, above, below):
    total, norm = _columns(above, wide), below
    for start in range(0, m, block):
      part = pl.ds(start, block)
      (x,) = _products(plan, (q_tile, omega_tile.at[part]), shape=shape)
      for r, phi in enumerate(_cos_sin(x)):
        weight = _columns(_load(norm_tiles[r].at[part], _COLUMNS, plan), shape)
        norm += (phi * weight).sum(axis=1)
        (total,) = _accumulate(plan, (total, phi, state_tiles[r].at[part]))
    return total / _rows(floored(norm, floor), wide), norm

  def body_of_block(q_ref, omega_ref, state_ref, norm_ref, *refs):
    if plan.fourier:
      above_ref, below_ref, *refs = refs
    out_ref, stat_ref, omega_tile, *scratch = refs
    state_tiles, norm_tiles, barrier = scratch[:branches], scratch[branches:-1], scratch[-1]
    b, h = lax.axis_index('b'), lax.axis_index('h')
    states = [(state_ref.at[b, h, r], state_tiles[r]) for r in range(branches)]
    norms = [(norm_ref.at[b, h, r], norm_tiles[r]) for r in range(branches)]
    _fetch(barrier, (omega_ref.at[h], omega_tile), *states, *norms)
    if plan.fourier:
      above = _load(above_ref.at[b, h], _COLUMNS, plan, shared=False)
      below = _load(below_ref.at[b, h], _ROWS, plan, shared=False)

    def body(q_tile, out_tile, stat_tile):
      tiles = (q_tile, omega_tile, state_tiles, norm_tiles)
      out, stat = fourier(*tiles, above, below) if plan.fourier else positive(*tiles)
      out_tile[...] = out.astype(out_tile.dtype)
      stat_tile[...] = stat

    outputs = (out_ref.at[b, :, h], stat_ref.at[b, h])
    _pipeline(body, plan, length, TILE, [q_ref.at[b, :, h]], outputs)

  padded = num_tiles(length, plan.splits) * plan.splits * TILE
  return _call(
    body_of_block,
    plan,
    out_type=[jax.ShapeDtypeStruct(query.shape, query.dtype), _float32(batch, heads, padded)],
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=[
      _shared(m, dim, query.dtype),
      *[_shared(m, dim, query.dtype)] * branches,
      *[plgpu.SMEM((m,), jnp.float32)] * branches,
      _barrier(*[m] * (1 + 2 * branches)),
    ],
    operands=(query, omega, state, norm, *(base if plan.fourier else ())),
  )


def floored(denominator, floor: float):
  """Return the denominator, kept away from 0 where it may cancel."""
  signed = jnp.where(denominator < 0, -floor, floor)
  return jnp.where(jnp.abs(denominator) < floor, signed, denominator)


# Gradients. Those of positions have them as rows, those of frequencies have frequencies as rows.


@_kernel
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
  m, block = omega.shape[1], _block(omega.shape[1])
  branches, shape, wide = 1 + plan.fourier, (TILE, block), (TILE, dim)

  def body_of_block(
    q_ref, g_ref, omega_ref, state_ref, norm_ref, scale_ref, shift_ref, out_ref, *scratch
  ):
    omega_tile, *scratch, barrier = scratch
    state_tiles, norm_tiles = scratch[:branches], scratch[branches:]
    b, h = lax.axis_index('b'), lax.axis_index('h')
    states = [(state_ref.at[b, h, r], state_tiles[r]) for r in range(branches)]
    norms = [(norm_ref.at[b, h, r], norm_tiles[r]) for r in range(branches)]
    _fetch(barrier, (omega_ref.at[h], omega_tile), *states, *norms)

    def body(q_tile, g_tile, scale_tile, shift_tile, out_tile):
      scale = _rows(_load(scale_tile, _ROWS, plan), shape)
      shift = _rows(_load(shift_tile, _ROWS, plan), shape)
      total = _full(wide, 0.0, plgpu.Layout.WGMMA, plan)
      for start in range(0, m, block):
        part = pl.ds(start, block)
        omega_part = omega_tile.at[part]
        pairs = [(g_tile, tile.at[part]) for tile in state_tiles]
        x, *inner = _products(plan, (q_tile, omega_part), *pairs, shape=shape)
        weights = [_columns(_load(tile.at[part], _COLUMNS, plan), shape) for tile in norm_tiles]
        if plan.fourier:
          cos, sin = _cos_sin(x)
          inner = [y * scale + shift * w for y, w in zip(inner, weights, strict=True)]
          slope = cos * inner[1] - sin * inner[0]
        else:
          slope = jnp.exp2(x * LOG2E + weights[0] - scale) * (inner[0] - shift)
        (total,) = _accumulate(plan, (total, slope, omega_part))
      out_tile[...] = total.astype(out_tile.dtype)

    inputs = (q_ref.at[b, :, h], g_ref.at[b, :, h], scale_ref.at[b, h], shift_ref.at[b, h])
    _pipeline(body, plan, length, TILE, inputs, [out_ref.at[b, :, h]])

  return _call(
    body_of_block,
    plan,
    out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=[
      _shared(m, dim, query.dtype),
      *[_shared(m, dim, query.dtype)] * branches,
      *[plgpu.SMEM((m,), jnp.float32)] * branches,
      _barrier(*[m] * (1 + 2 * branches)),
    ],
    operands=(query, grad, omega, state, norm, scale, shift),
  )


@_kernel
def state_gradient(query, grad, omega, state, norm, scale, shift, *, plan: Plan):
  """Return partial gradients of the sums over keys, and of omega through the queries.

  Arguments are those of `query_gradient`.

  Returns:
    float32 [b, h, s, r, m, d], [b, h, s, r, m] and, of omega, [b, h, s, m, d].
  """
  batch, length, heads, dim = query.shape
  m, branches = omega.shape[1], 1 + plan.fourier
  tile = TILE // branches  # Two branches need twice the registers.
  shape = (TILE, tile)

  def body_of_block(q_ref, g_ref, omega_ref, state_ref, norm_ref, scale_ref, shift_ref, *refs):
    d_state_ref, d_norm_ref, d_omega_ref, omega_tile, *state_tiles, barrier = refs
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    states = [(state_ref.at[b, h, r, rows], state_tiles[r]) for r in range(branches)]
    _fetch(barrier, (omega_ref.at[h, rows], omega_tile), *states)
    weights = [
      _load(norm_ref.at[b, h, r, rows], _ROWS, plan, shared=False) for r in range(branches)
    ]

    def body(q_tile, g_tile, scale_tile, shift_tile, carry):
      d_states, d_norms, d_omega = carry
      scale = _columns(_load(scale_tile, _COLUMNS, plan), shape)
      shift = _columns(_load(shift_tile, _COLUMNS, plan), shape)
      x, *inner = _products(
        plan, (omega_tile, q_tile), *[(state, g_tile) for state in state_tiles], shape=shape
      )
      if plan.fourier:
        cos, sin = phis = _cos_sin(x)
        inner = [y * scale + shift * _rows(w, shape) for y, w in zip(inner, weights, strict=True)]
        slope = cos * inner[1] - sin * inner[0]
        d_norms = [d + (phi * shift).sum(axis=1) for d, phi in zip(d_norms, phis, strict=True)]
        phis = [phi * scale for phi in phis]
      else:
        phis = [jnp.exp2(x * LOG2E + _rows(weights[0], shape) - scale)]
        slope = phis[0] * (inner[0] - shift)
        d_norms = [d_norms[0] + slope.sum(axis=1)]
      terms = [(d, phi, g_tile) for d, phi in zip(d_states, phis, strict=True)]
      *d_states, d_omega = _accumulate(plan, *terms, (d_omega, slope, q_tile))
      return d_states, d_norms, d_omega

    zero = _full((TILE, dim), 0.0, plgpu.Layout.WGMMA, plan)
    carry = [zero] * branches, [_full((TILE,), 0.0, _ROWS, plan)] * branches, zero
    inputs = (q_ref.at[b, :, h], g_ref.at[b, :, h], scale_ref.at[b, h], shift_ref.at[b, h])
    d_states, d_norms, d_omega = _pipeline(body, plan, length, tile, inputs, carry=carry)
    for r in range(branches):
      d_state_ref.at[b, h, s, r, rows][...] = d_states[r]
      d_norm_ref.at[b, h, s, r, rows][...] = d_norms[r]
    d_omega_ref.at[b, h, s, rows][...] = d_omega

  lead = (batch, heads, plan.splits)
  return _call(
    body_of_block,
    plan,
    out_type=[
      _float32(*lead, branches, m, dim),
      _float32(*lead, branches, m),
      _float32(*lead, m, dim),
    ],
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=[
      *[_shared(TILE, dim, query.dtype, tile)] * (1 + branches),
      _barrier(*[TILE] * (1 + branches)),
    ],
    operands=(query, grad, omega, state, norm, scale, shift),
  )


@_kernel
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
  m, block = omega.shape[1], _block(omega.shape[1])
  branches, shape, wide = 1 + plan.fourier, (TILE, block), (TILE, dim)

  def body_of_block(k_ref, v_ref, omega_ref, d_state_ref, d_norm_ref, extra_ref, bias_ref, *refs):
    dk_ref, dv_ref, omega_tile, *scratch = refs
    state_tiles, norm_tiles = scratch[:branches], scratch[branches : 2 * branches]
    extra_tile, barrier = scratch[2 * branches :]
    b, h = lax.axis_index('b'), lax.axis_index('h')
    states = [(d_state_ref.at[b, h, r], state_tiles[r]) for r in range(branches)]
    norms = [(d_norm_ref.at[b, h, r], norm_tiles[r]) for r in range(branches)]
    _fetch(
      barrier,
      (omega_ref.at[h], omega_tile),
      (extra_ref.at[b, h], extra_tile),
      *states,
      *norms,
    )

    def body(k_tile, v_tile, bias_tile, dk_tile, dv_tile):
      bias = _load(bias_tile, _ROWS, plan)
      d_key = d_value = _full(wide, 0.0, plgpu.Layout.WGMMA, plan)
      if plan.fourier:
        d_value += _columns(_load(extra_tile.at[pl.ds(0, dim)], _COLUMNS, plan), wide)
      total = None
      for start in range(0, m, block):
        part = pl.ds(start, block)
        omega_part = omega_tile.at[part]
        parts = [tile.at[part] for tile in state_tiles]
        x, *inner = _products(
          plan, (k_tile, omega_part), *[(v_tile, p) for p in parts], shape=shape
        )
        weights = [_columns(_load(tile.at[part], _COLUMNS, plan), shape) for tile in norm_tiles]
        inner = [y + w for y, w in zip(inner, weights, strict=True)]
        if plan.fourier:
          cos, sin = phis = _cos_sin(x)
          slope = cos * inner[1] - sin * inner[0]
        else:
          lse = _columns(_load(extra_tile.at[part], _COLUMNS, plan), shape)
          phis = [jnp.exp2(x * LOG2E + _rows(bias, shape) - lse)]
          slope = phis[0] * inner[0]
          total = slope.sum(axis=1) if total is None else total + slope.sum(axis=1)
        for phi, tile in zip(phis, parts, strict=True):
          (d_value,) = _accumulate(plan, (d_value, phi, tile))
        (d_key,) = _accumulate(plan, (d_key, slope, omega_part))
      if plan.fourier:
        d_key, d_value = (x * _rows(bias, wide) for x in (d_key, d_value))
      else:
        key = _load(k_tile, plgpu.Layout.WGMMA, plan).astype(jnp.float32)
        d_key -= key * _rows(total * slope_norm, wide)
      dk_tile[...] = d_key.astype(dk_tile.dtype)
      dv_tile[...] = d_value.astype(dv_tile.dtype)

    inputs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    _pipeline(body, plan, length, TILE, inputs, [dk_ref.at[b, :, h], dv_ref.at[b, :, h]])

  extra = base if plan.fourier else norm[:, :, 0]
  # Copies have 128 bytes or more.
  extra = jnp.pad(extra, ((0, 0), (0, 0), (0, max(0, 32 - extra.shape[2]))))
  return _call(
    body_of_block,
    plan,
    out_type=[jax.ShapeDtypeStruct(key.shape, key.dtype)] * 2,
    grid={'b': batch, 'h': heads, 's': plan.splits},
    scratch=[
      _shared(m, dim, key.dtype),
      *[_shared(m, dim, key.dtype)] * branches,
      *[plgpu.SMEM((m,), jnp.float32)] * branches,
      plgpu.SMEM(extra.shape[2:], jnp.float32),
      _barrier(extra.shape[2], *[m] * (1 + 2 * branches)),
    ],
    operands=(key, value, omega, d_state, d_norm, extra, bias),
  )


@_kernel
def omega_gradient(key, value, omega, d_state, d_norm, norm, bias, *, plan: Plan):
  """Return partial gradients of omega through the keys, float32 [b, h, s, m, d].

  Arguments are those of `key_gradient`.
  """
  batch, length, heads, dim = key.shape
  m, branches, shape = omega.shape[1], 1 + plan.fourier, (TILE, TILE)

  def body_of_block(k_ref, v_ref, omega_ref, d_state_ref, d_norm_ref, *refs):
    if not plan.fourier:
      norm_ref, *refs = refs
    bias_ref, out_ref, omega_tile, *state_tiles, barrier = refs
    b, h, s, g = (lax.axis_index(name) for name in 'bhsg')
    rows = pl.ds(g * TILE, TILE)
    states = [(d_state_ref.at[b, h, r, rows], state_tiles[r]) for r in range(branches)]
    _fetch(barrier, (omega_ref.at[h, rows], omega_tile), *states)
    weights = [
      _load(d_norm_ref.at[b, h, r, rows], _ROWS, plan, shared=False) for r in range(branches)
    ]
    if not plan.fourier:
      lse = _rows(_load(norm_ref.at[b, h, 0, rows], _ROWS, plan, shared=False), shape)

    def body(k_tile, v_tile, bias_tile, d_omega):
      bias = _columns(_load(bias_tile, _COLUMNS, plan), shape)
      x, *inner = _products(
        plan, (omega_tile, k_tile), *[(state, v_tile) for state in state_tiles], shape=shape
      )
      inner = [y + _rows(w, shape) for y, w in zip(inner, weights, strict=True)]
      if plan.fourier:
        cos, sin = _cos_sin(x)
        slope = (cos * inner[1] - sin * inner[0]) * bias
      else:
        slope = jnp.exp2(x * LOG2E + bias - lse) * inner[0]
      return _accumulate(plan, (d_omega, slope, k_tile))[0]

    zero = _full((TILE, dim), 0.0, plgpu.Layout.WGMMA, plan)
    inputs = (k_ref.at[b, :, h], v_ref.at[b, :, h], bias_ref.at[b, h])
    out_ref.at[b, h, s, rows][...] = _pipeline(body, plan, length, TILE, inputs, carry=zero)

  return _call(
    body_of_block,
    plan,
    out_type=_float32(batch, heads, plan.splits, m, dim),
    grid={'b': batch, 'h': heads, 's': plan.splits, 'g': m // TILE},
    scratch=[
      *[_shared(TILE, dim, key.dtype)] * (1 + branches),
      _barrier(*[TILE] * (1 + branches)),
    ],
    operands=(key, value, omega, d_state, d_norm, *(() if plan.fourier else (norm,)), bias),
  )
