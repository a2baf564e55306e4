"""Which program computes kernel attention: fused GPU kernels, or what XLA makes of the sums.

The fused kernels are written for NVIDIA's Hopper (H100, H200, GH200) in Pallas; everywhere else XLA
compiles `kl_flax.sums`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from kl_flax.checks import check_inputs
from kl_flax.features import WITHOUT_FREQUENCIES, FeatureMap
from kl_flax.numerics import cuda_capability
from kl_flax.sums import resolve_smoothing

logger = logging.getLogger(__name__)

Implementation = Literal['auto', 'xla', 'fused']
# Bytes of shared memory that one block may have.
_SHARED_MEMORY = 227 * 1024
# Their loops over frequencies are unrolled.
_MOST_FREQUENCIES = 512
# Rows of a warpgroup's matrix product, and positions of a tile; frequencies are padded to it.
TILE = 64
# Sizes that matrix products on Hopper take; others are padded to the next.
_HEAD_DIMS = (16, 32, 64, 128)


class KernelInfo(NamedTuple):
  """Which program runs, and why.

  Attributes:
    implementation: 'fused' or 'xla'.
    reason: a sentence's part.
  """

  implementation: Literal['xla', 'fused']
  reason: str


def kernel_info(
  query: Any,
  key: Any,
  value: Any,
  omega: Any = None,
  *,
  features: FeatureMap = 'positive',
  smoothing: float | None = None,
  causal: bool = False,
  implementation: str = 'auto',
) -> KernelInfo:
  """Return which program `kl_flax.kernel_attention` takes for these arguments, and why.

  Args:
    query: array or `jax.ShapeDtypeStruct` [b, l, h, d].
    key: likewise.
    value: likewise.
    omega: likewise [h, m, d]; None for features without frequencies.
    features: see `kernel_attention`.
    smoothing: likewise.
    causal: likewise.
    implementation: likewise.

  Raises:
    ValueError: for an unknown implementation, or one that cannot run.

  >>> import jax, jax.numpy as jnp
  >>> x = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.float32)
  >>> kernel_info(x, x, x, jax.ShapeDtypeStruct((4, 128, 64), jnp.float32)).implementation
  'xla'
  """
  if implementation not in get_args(Implementation):
    raise ValueError(
      f'implementation must be one of {get_args(Implementation)}, got {implementation!r}'
    )
  if implementation == 'xla':
    return KernelInfo('xla', 'it was asked for')
  smoothing = resolve_smoothing(features, smoothing)
  check_inputs(query, key, value, omega, features, None, smoothing)
  obstacle = _missing(cuda_capability())
  if obstacle is None:
    obstacle = _obstacle(query, key, value, omega, features, smoothing, causal)
  if obstacle is None:
    return KernelInfo('fused', 'this GPU has fused kernels')
  if implementation == 'fused':
    raise ValueError(f"implementation='fused' cannot run here: {obstacle}; 'auto' and 'xla' can")
  return KernelInfo('xla', obstacle)


def runs_fused(implementation: str, *arrays: Any, **options: Any) -> bool:
  """Return whether to run the fused kernels; say once in a log line what 'auto' fell back to."""
  info = kernel_info(*arrays, implementation=implementation, **options)
  if implementation == 'auto' and info.implementation == 'xla':
    _say(info.reason)
  return info.implementation == 'fused'


@functools.cache
def _say(reason: str) -> None:
  logger.info('Kernel attention is compiled by XLA, not fused: %s.', reason)


def _obstacle(query, key, value, omega, features, smoothing, causal) -> str | None:
  """Return what in the arguments keeps the fused kernels from running."""
  if features in WITHOUT_FREQUENCIES:
    return f'the fused kernels have frequencies, and features={features!r} have none'
  if causal:
    return 'the fused kernels are not causal'
  types = {jnp.dtype(x.dtype).name for x in (query, key, value)}
  if types != {'bfloat16'}:
    return f'the fused kernels take bfloat16, not {", ".join(sorted(types - {"bfloat16"}))}'
  if smoothing and features != 'fourier':
    return f'the fused kernels smooth Fourier features alone, got smoothing={smoothing}'
  dim, m = query.shape[3], omega.shape[1]
  if 0 in (*query.shape, *value.shape, m):
    return 'there is nothing to compute'
  if value.shape[3] != dim:
    return f'the fused kernels need values as wide as keys, got {value.shape[3]} and {dim}'
  if dim > _HEAD_DIMS[-1]:
    return f'the fused kernels have head sizes up to {_HEAD_DIMS[-1]}, got {dim}'
  if m > (most := most_frequencies(dim, features)):
    return (
      f'the fused kernels take at most {most} frequencies at head size {dim} with '
      f'features={features!r}, got {m}'
    )
  return None


def padded_head_dim(head_dim: int) -> int:
  """Return the size that the fused kernels work with.

  >>> padded_head_dim(8), padded_head_dim(64)
  (16, 64)
  """
  return next(size for size in _HEAD_DIMS if size >= head_dim)


def most_frequencies(head_dim: int, features: FeatureMap) -> int:
  """Return the most frequencies that the fused kernels take: what fits into shared memory.

  >>> [most_frequencies(64, features) for features in ('positive', 'fourier')]
  [512, 384]
  """
  fits = lambda m: shared_memory(head_dim, m, features) <= _SHARED_MEMORY
  return max(filter(fits, range(TILE, _MOST_FREQUENCIES + 1, TILE)))


def shared_memory(head_dim: int, num_frequencies: int, features: FeatureMap) -> int:
  """Return the bytes of shared memory that the largest of the kernels needs.

  It holds omega and one or two matrices of the same size, and two tiles each of keys, values and
  their gradients.
  """
  m, head_dim = -(-num_frequencies // TILE) * TILE, padded_head_dim(head_dim)
  matrices = 3 if features == 'fourier' else 2
  return 2 * head_dim * (matrices * m + 2 * 4 * TILE) + 4 * matrices * m + 5120


@functools.cache
def _missing(capability: float) -> str | None:
  """Return what a device of this compute capability lacks; 0 is none."""
  if capability != 9.0:
    found = f'compute capability {capability}' if capability else 'no CUDA GPU'
    return f'the fused kernels need a Hopper GPU (compute capability 9.0), found {found}'
  try:
    importlib.import_module('kl_flax.kernels.fused')
  except (ImportError, AttributeError, KeyError) as error:
    return f'this version of JAX has another Pallas ({error})'
  return None
