"""Numerics that several parts share: products in float32, ratios that stay finite, sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def einsum_float32(
  spec: str, a: Float[Array, '...'], b: Float[Array, '...']
) -> Float[Array, '...']:
  """Return the product, accumulated and returned in float32 whatever the operands' type.

  Operands of 32 bits are taken as they are: TF32, the default of GPUs, would keep 10 of their bits.
  """
  if _default_device().platform == 'cpu':  # It lacks some products from 16 bits to 32.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  wide = a.dtype == b.dtype == jnp.float32
  precision = jax.lax.Precision.HIGHEST if wide else None
  return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def cuda_capability() -> float:
  """Return the compute capability of the default device, such as 9.0; 0 where it is no CUDA GPU.

  >>> cuda_capability() >= 0
  True
  """
  device = _default_device()
  if device.platform != 'gpu' or 'cuda' not in device.client.platform_version.lower():
    return 0.0
  return float(device.compute_capability)


def _default_device():
  device = jax.config.jax_default_device or jax.local_devices()[0]
  return jax.local_devices(backend=device)[0] if isinstance(device, str) else device


def product_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """Return the type that features and sums are held in between products.

  bfloat16 stays. float16 does not: sums over thousands of keys exceed its largest value.
  """
  return dtype if dtype == jnp.bfloat16 else jnp.promote_types(dtype, jnp.float32)


def divide(
  numerator: Float[Array, '*b'], denominator: Float[Array, '*c'], floor: float = 0.0
) -> Float[Array, '*b']:
  """Return the ratio; zero where both are zero, as in rows without any valid key.

  Args:
    numerator: any shape.
    denominator: broadcasts against it.
    floor: denominators below it in absolute value are replaced by it; their sign stays.
  """
  if floor:
    return _ratio(numerator, floored(denominator, floor))
  return _ratio(numerator, jnp.where(denominator == 0, 1, denominator))


@jax.custom_jvp
def _ratio(numerator, denominator):
  """Return the ratio, without the square in JAX's derivative: 1 / b² overflows below 1e-19."""
  return numerator / denominator


@_ratio.defjvp
def _ratio_derivative(inputs, tangents):
  ratio = _ratio(*inputs)
  return ratio, (tangents[0] - ratio * tangents[1]) / inputs[1]


def floored(denominator: Float[Array, '*b'], floor: float) -> Float[Array, '*b']:
  """Return the denominator, kept at least `floor` away from 0; its sign stays.

  >>> floored(jnp.array([-0.1, 0.0, 2.0]), 0.5).tolist()
  [-0.5, 0.5, 2.0]
  """
  signed = jnp.where(denominator < 0, -floor, floor)
  return jnp.where(jnp.abs(denominator) < floor, signed, denominator)


def pad_axis(
  x: Shaped[Array, '*b'], axis: int, multiple: int, value: float = 0
) -> Shaped[Array, '*c']:
  """Pad the end of an axis up to a multiple of a number.

  >>> pad_axis(jnp.ones((2, 5)), 1, 4).shape
  (2, 8)
  """
  missing = -x.shape[axis] % multiple
  if not missing:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, missing)
  return jnp.pad(x, widths, constant_values=value)
