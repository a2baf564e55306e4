"""Numerics that several parts share: products in float32, ratios that stay finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Below this, a denominator (per frequency) is taken as zero. It can be met only by Fourier
# features with smoothing below 1 and by rows without any valid key.
_TINY = 1e-6


def einsum_float32(
  spec: str, a: Float[Array, '...'], b: Float[Array, '...']
) -> Float[Array, '...']:
  """Return the product, accumulated and returned in float32 whatever the operands' type."""
  if jax.default_backend() == 'cpu':  # It lacks some products from 16 bits to 32.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def divide(numerator: Float[Array, '*b'], denominator: Float[Array, '*#b']) -> Float[Array, '*b']:
  """Return the ratio, with denominators kept away from zero (their sign stays)."""
  floor = jnp.where(denominator < 0, -_TINY, _TINY)
  return numerator / jnp.where(jnp.abs(denominator) < _TINY, floor, denominator)
