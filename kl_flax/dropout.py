"""Dropout whose mask is never stored, but computed from a counter wherever it is used.

`jax.random.bernoulli` would cost a fifth of a training step on an H200: its generator takes about a
hundred instructions for 64 bits, and the mask is kept for the backward pass. Dropout needs neither
such quality nor the memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray


class Dropout(nn.Module):
  """Sets elements to zero with probability `rate` and scales the others up, as flax's Dropout.

  The key is drawn from the PRNG stream 'dropout'.

  Attributes:
    rate: in [0, 1].

  >>> x = jnp.ones((2, 3))
  >>> Dropout(0.5).apply({}, x).tolist()  # Deterministic unless told otherwise.
  [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
  """

  rate: float

  @nn.compact
  def __call__(self, x: Float[Array, '*n'], *, deterministic: bool = True) -> Float[Array, '*n']:
    """Return x with dropout, or x as it is."""
    return self.drawn(deterministic=deterministic)(x)

  def drawn(self, *, deterministic: bool = True) -> Callable[..., Array]:
    """Return the same as a pure function (x, number=0) -> x, whose key is drawn now.

    For use inside of transformations such as `jax.checkpoint`, where modules cannot be called.
    Arrays that need masks of their own have different numbers.
    """
    if not 0 <= self.rate <= 1:
      raise ValueError(f'the dropout rate must be in [0, 1], got {self.rate}')
    if deterministic or not self.rate:
      return lambda x, number=0: x
    if self.rate == 1:
      return lambda x, number=0: jnp.zeros_like(x)
    key = self.make_rng('dropout')
    numbered = lambda number: jax.random.fold_in(key, number) if number else key
    return lambda x, number=0: dropout(x, numbered(number), self.rate)


def keep_mask(key: PRNGKeyArray, shape: tuple[int, ...], rate: float) -> Bool[Array, '...']:
  """Return True with probability 1 − rate (to 2^-32), for every element by itself.

  An integer hash of the element's index and the 64 bits of the key: the two rounds of Wellons'
  "lowbias32", of which the last shift is left out, as it does not reach the high bits that decide.
  Good enough for dropout; nothing else should be drawn from it.

  Args:
    key: of any of JAX's generators, of whose bits the last 64 are taken.
    shape: up to 2^32 elements.
    rate: in [0, 1).

  Raises:
    ValueError: for more elements.
  """
  size = math.prod(shape)
  if size > 2**32:
    raise ValueError(f'dropout of {shape}: {size:,} elements are more than the 2^32 it can count')
  # Both words decide both numbers: of related keys one word may be the same.
  low, high = jax.random.key_data(key).ravel()[-2:]
  low = _mix(_mix(low) ^ high)
  high = _mix(low ^ high)
  x = jax.lax.iota(jnp.uint32, size).reshape(shape) ^ low
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15) ^ high) * jnp.uint32(0x846CA68B)
  return x >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x):
  """Return lowbias32(x), a permutation of 32-bit numbers; 0 would stay 0 but for the sum."""
  x = x + jnp.uint32(0x9E3779B9)
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: Float[Array, '*n'], key: PRNGKeyArray, rate: float) -> Float[Array, '*n']:
  """Return x, kept and scaled by 1 / (1 − rate) where `keep_mask` is True, zero elsewhere.

  The gradient's mask is computed again. Scaling is done in float32, since 1 / 0.9 in bfloat16 would
  be off by 0.2 %, and by a product, since GPUs divide in ten instructions.
  """
  scaled = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * (1 / (1 - rate))
  return jnp.where(keep_mask(key, x.shape, rate), scaled, 0).astype(x.dtype)


def _forward(x, key, rate):
  return dropout(x, key, rate), key


def _backward(rate, key, gradient):
  # Without the barrier XLA would find that it has this mask already, and keep it until here.
  data = jax.lax.optimization_barrier(jax.random.key_data(key))
  key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
  return dropout(gradient, key, rate), None


dropout.defvjp(_forward, _backward)
