"""What the kernels for NVIDIA Hopper are written in: tiles, products, copies, loops over positions.

Pallas Mosaic GPU underneath. Its interpreter knows neither layouts nor products of registers; there
the same functions are plain operations on arrays, so that every kernel runs on any machine.

Shapes: b batch, l positions, h heads, d head size, m frequencies, r branches of the feature map:
1 (exp) or 2 (cos, sin).
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

from kl_flax.kernels import TILE

LOG2E = math.log2(math.e)
# Exponent of what does not count. Finite, so that no difference of two is NaN.
NEVER = -1e30

# How registers hold products, and vectors that go with their rows or columns.
MATRIX = plgpu.Layout.WGMMA
BY_ROW, BY_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)
# Rows of an array in global memory that one copy takes at most.
_LONGEST_COPY = 256
_LOAD_TAKES_INDEX = (
  inspect.signature(plgpu.load).parameters['idx'].default is inspect.Parameter.empty
)


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

  @property
  def branches(self) -> int:
    """Return r."""
    return 1 + self.fourier


def num_tiles(length: int, splits: int) -> int:
  """Return the number of tiles that one of the splits goes over."""
  return -(-length // (TILE * splits))


def whole_length(length: int, splits: int) -> int:
  """Return the length in whole tiles, as many in every split.

  >>> whole_length(1000, 3)
  1152
  """
  return num_tiles(length, splits) * splits * TILE


def block_of(num_frequencies: int) -> int:
  """Return how many frequencies the kernels with positions as rows take at once."""
  return 128 if num_frequencies % 128 == 0 else 64


# Kernels and their arguments.


def kernel(function):
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


def run_blocks(body, plan, *, out_type, grid, scratch, operands):
  """Run a block for every index of the grid, a dict from names to sizes."""
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


def float32(*shape):
  """Return the type of a result."""
  return jax.ShapeDtypeStruct(shape, jnp.float32)


# Registers.


def full(shape, value, layout, plan):
  """Return float32 registers that hold one value."""
  x = jnp.full(shape, value, jnp.float32)
  return x if plan.interpret else plgpu.layout_cast(x, layout)


def load(ref, layout, plan, *, shared=True):
  """Return what lies in shared, or else in global memory."""
  if plan.interpret:
    return ref[...]
  return plgpu.load(ref, *[()] * _LOAD_TAKES_INDEX, layout=layout, optimized=shared)


def by_row(x, shape):
  """Return a matrix of which row i is x[i]."""
  return lax.broadcast_in_dim(x, shape, [0])


def by_column(x, shape):
  """Return a matrix of which column j is x[j]."""
  return lax.broadcast_in_dim(x, shape, [1])


def load_by_row(ref, shape, plan):
  """Return a vector in shared memory as `by_row`."""
  return by_row(load(ref, BY_ROW, plan), shape)


def load_by_column(ref, shape, plan):
  """Return a vector in shared memory as `by_column`."""
  return by_column(load(ref, BY_COLUMN, plan), shape)


def products(plan, *pairs, shape):
  """Return a bᵀ of each pair of tiles in shared memory, float32."""
  if plan.interpret:
    return [_wide(a[...]) @ _wide(b[...]).T for a, b in pairs]

  def body(*accumulators):
    for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
      plgpu.wgmma(accumulator, a, b.transpose((1, 0)))
    return [accumulator[...] for accumulator in accumulators]

  return pl.run_scoped(body, *[plgpu.ACC(shape, jnp.float32)] * len(pairs))


def accumulate(plan, *terms):
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


def cos_sin(angle):
  """Return cosine and sine.

  The hardware's, whose error grows by about 2^-24 for every radian of the angle. Angles are
  products of 16-bit numbers, so known to 2^-9 of themselves: reducing them first gains nothing.
  """
  return jnp.cos(angle), jnp.sin(angle)


def angle_gradient(phis, gradients):
  """Return the gradient of an angle from those of its (cosine, sine)."""
  (cos, sin), (d_cos, d_sin) = phis, gradients
  return cos * d_sin - sin * d_cos


# Shared memory.


def matrix(rows, width, dtype, tile=TILE):
  """Return the type of a matrix in shared memory that products take, [rows, width]."""
  return plgpu.SMEM((rows, width), dtype, transforms=_transforms(width, tile))


def _transforms(width, tile=TILE):
  """Return how wgmma wants matrices of 16-bit numbers of this width in shared memory.

  Groups of columns must not be wider than a tile has positions, over which products sum.
  """
  group = min(width, tile)
  return plgpu.TilingTransform((8, group)), plgpu.SwizzleTransform(2 * group)


def scratch_of_head(plan, m, dim, dtype, *extra):
  """Return the scratch that `fetch_head` fills, with vectors of the lengths `extra` besides."""
  return [
    *[matrix(m, dim, dtype)] * (1 + plan.branches),
    *[plgpu.SMEM((length,), jnp.float32) for length in (*[m] * plan.branches, *extra)],
    _barrier(*[m] * (1 + 2 * plan.branches), *extra),
  ]


def fetch_head(plan, scratch, b, h, omega_ref, state_ref, norm_ref, *extra):
  """Copy what one head of one example has of all frequencies.

  Args:
    plan: of the call.
    scratch: see `scratch_of_head`.
    b: example.
    h: head.
    omega_ref: [h, m, d].
    state_ref: [b, h, r, m, d].
    norm_ref: [b, h, r, m].
    *extra: [b, h, n].

  Returns:
    omega, r states, r norms, and the extra ones, in shared memory.
  """
  *tiles, barrier = scratch
  r = plan.branches
  sources = [
    omega_ref.at[h],
    *(state_ref.at[b, h, i] for i in range(r)),
    *(norm_ref.at[b, h, i] for i in range(r)),
    *(ref.at[b, h] for ref in extra),
  ]
  _fetch(barrier, sources, tiles)
  omega, *tiles = tiles
  return omega, tiles[:r], tiles[r : 2 * r], *tiles[2 * r :]


def scratch_of_rows(plan, dim, dtype, tile=TILE, *, with_state=True):
  """Return the scratch that `fetch_rows` fills."""
  count = 1 + with_state * plan.branches
  return [*[matrix(TILE, dim, dtype, tile)] * count, _barrier(*[TILE] * count)]


def fetch_rows(plan, scratch, b, h, rows, omega_ref, state_ref=None, norm_ref=None):
  """Copy what one head of one example has of one tile of frequencies.

  Returns:
    omega and r states in shared memory, r norms in registers, one for each row.
  """
  *tiles, barrier = scratch
  sources = [omega_ref.at[h, rows]]
  norms = []
  if state_ref is not None:
    sources += [state_ref.at[b, h, i, rows] for i in range(plan.branches)]
  _fetch(barrier, sources, tiles)
  if norm_ref is not None:
    refs = [norm_ref.at[b, h, i, rows] for i in range(plan.branches)]
    norms = [load(ref, BY_ROW, plan, shared=False) for ref in refs]
  return tiles[0], tiles[1:], norms


def _fetch(barrier, sources, targets):
  """Copy from global to shared memory and wait."""
  for source, target in zip(sources, targets, strict=True):
    for start in range(0, target.shape[0], _LONGEST_COPY):
      part = pl.ds(start, min(_LONGEST_COPY, target.shape[0] - start))
      plgpu.copy_gmem_to_smem(source.at[part], target.at[part], barrier)
  plgpu.barrier_wait(barrier)


def _barrier(*rows):
  """Return the barrier of a `_fetch` of arrays with so many rows."""
  return plgpu.Barrier(num_arrivals=sum(-(-n // _LONGEST_COPY) for n in rows))


# Positions.


def pipeline(body, plan, length, inputs, outputs=(), carry=None, tile=TILE):
  """Go over the tiles of this block's share of the positions.

  Args:
    body: called with the tiles in shared memory, then the carry if there is one.
    plan: of the call.
    length: of the sequence.
    inputs: references [l, d] or [l] in global memory.
    outputs: likewise.
    carry: what goes from tile to tile.
    tile: positions of a tile.
  """
  count = num_tiles(length, plan.splits) * TILE // tile
  first = lax.axis_index('s') * count

  def spec(ref):
    if len(ref.shape) == 1:
      return plgpu.BlockSpec((tile,), lambda i: (first + i,))
    width = ref.shape[1]
    return plgpu.BlockSpec(
      (tile, width), lambda i: (first + i, 0), transforms=_transforms(width, tile)
    )

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
