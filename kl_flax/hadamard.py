"""The fast Walsh–Hadamard transform, as a few products with small Hadamard matrices.

A Hadamard matrix of Sylvester's kind is a Kronecker product of smaller ones, H_ab = H_a ⊗ H_b. So
the transform of length n is one product per factor of n, each along an axis of its own:
n (a + b + ...) operations instead of n², with as few passes over memory as there are factors.
Factors of 2 are the textbook's butterflies; larger ones do more arithmetic and read memory less
often, and which is faster depends on the platform.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

# Measured on CPU with 2^20 elements: factors up to 64 are the fastest for n = 8 ... 64, and within
# 30 % of the fastest up to 8,192. Butterflies of radix 2 take 1.1 to 3 times as long, in the
# gradient 1.4 to 6 times; those of radix 4 are as fast from n = 1,024 on.
_RADIX_CPU = 64
# Measured on an H200 with 2^26 elements, ms (a copy takes 0.14 in float32, 0.09 in bfloat16): one
# product takes 0.18 to 0.46 in float32 and 0.09 in bfloat16 up to n = 128; two factors beyond that
# take 0.7 to 0.95 and 0.6; butterflies of radix 4, 0.5 to 1.6 and 0.5 to 1.5. (Products that rotate
# the axes save a third for n >= 512, which no head size reaches.)
_RADIX = 128


def walsh_hadamard(x: Num[Array, '...'], axis: int = -1) -> Num[Array, '...']:
  """Return the unnormalised Walsh–Hadamard transform H x along an axis, in natural order.

  H_1 = 1, H_2n = [[H_n, H_n], [H_n, −H_n]] (Sylvester): H_ij = (−1)^(number of bits in i & j).
  H is symmetric and H H = n I: the transform is its own transpose, and n times its own inverse.

  Args:
    x: floats, integers or complex numbers. Floats of 16 bits or fewer are summed in float32 and
      rounded once, at the end; integers overflow as their sums do (values grow up to n-fold).
    axis: the axis to transform, whose length n is a power of two (1 included).

  Returns:
    An array of the shape and dtype of x.

  Raises:
    ValueError: if n is not a power of two, or x has no such axis.

  >>> import jax.numpy as jnp
  >>> walsh_hadamard(jnp.array([1., 0., 2., 0.])).tolist()
  [3.0, 3.0, -1.0, -1.0]
  """
  if not -x.ndim <= axis < x.ndim:
    raise ValueError(f'axis={axis} does not exist in an array of shape {x.shape}')
  n = x.shape[axis]
  if not _is_power_of_two(n):
    raise ValueError(
      f'the length of axis {axis} must be a power of two, got {n} (shape {x.shape}): '
      f'pad it with zeros to {_next_power_of_two(n)}'
    )
  if n == 1 or not x.size:
    return x
  # By the platform that the program is compiled for, which need not be the default one.
  return jax.lax.platform_dependent(
    x,
    cpu=functools.partial(_transform, axis=axis, radix=_RADIX_CPU, narrow_products=False),
    default=functools.partial(_transform, axis=axis, radix=_RADIX, narrow_products=True),
  )


def hadamard_rows(rows: Int[Array, '*b'], n: int) -> Float[Array, '*b n']:
  """Return the given rows of the Hadamard matrix of order n, float32, without storing the matrix.

  Args:
    rows: indices in [0, n).
    n: a power of two.

  >>> import jax.numpy as jnp
  >>> hadamard_rows(jnp.array([1, 2]), 4).tolist()
  [[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]
  """
  shared_bits = jax.lax.population_count(rows[..., None] & jnp.arange(n, dtype=rows.dtype))
  return (1 - 2 * (shared_bits & 1)).astype(jnp.float32)


def check_head_dim(head_dim: int, what: str) -> None:
  """Raise a ValueError that names the ways out, unless the head size is a power of two."""
  if not _is_power_of_two(head_dim):
    raise ValueError(
      f'{what} needs a head size that is a power of two, got {head_dim}: make it '
      f'{_next_power_of_two(head_dim)}, or take a sampler for any size, such as GaussianMixture '
      'or OrthogonalGaussian'
    )


def _is_power_of_two(n: int) -> bool:
  """Return whether n is 1, 2, 4, 8, ..."""
  return n >= 1 and n & (n - 1) == 0


def _next_power_of_two(n: int) -> int:
  """Return the smallest power of two that is at least n."""
  return 1 << max(n - 1, 0).bit_length()


def _transform(x, *, axis, radix, narrow_products):
  """Transform an axis by products with Hadamard matrices of at most `radix` rows.

  `narrow_products`: whether the platform multiplies 16-bit operands into float32 sums.
  """
  shape, dtype = x.shape, x.dtype
  narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
  sums = jnp.dtype(jnp.float32) if narrow else dtype
  if not (narrow_products and dtype in (jnp.bfloat16, jnp.float16)):
    x = x.astype(sums)
  inner = math.prod(shape[axis % len(shape) + 1 :])
  for factor in _factors(shape[axis], radix):
    # A last axis of 1 would make XLA's product several times slower.
    x = x.reshape(-1, factor) if inner == 1 else x.reshape(-1, factor, inner)
    hadamard = _hadamard(factor).astype(x.dtype)  # Entries of ±1 are exact in any type.
    # TF32, the default of GPUs, would keep 10 bits of x.
    x = jnp.einsum('af...,fg->ag...', x, hadamard, precision='highest', preferred_element_type=sums)
    inner *= factor
  return x.reshape(shape).astype(dtype)


def _factors(n: int, radix: int) -> list[int]:
  """Return the fewest factors of n that are at most the radix, as equal as can be, largest first.

  Equal factors need the least arithmetic.

  >>> _factors(2048, 32), _factors(2048, 64)
  ([16, 16, 8], [64, 32])
  """
  bits = n.bit_length() - 1
  count = -(-bits // (radix.bit_length() - 1))
  return [2 ** (bits // count + (i < bits % count)) for i in range(count)]


def _hadamard(n: int) -> np.ndarray:
  """Return the Hadamard matrix of order n, int8."""
  index = np.arange(n)
  odd = np.bitwise_count(index[:, None] & index) & 1
  return 1 - 2 * odd.astype(np.int8)
