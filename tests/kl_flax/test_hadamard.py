import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.hadamard import _factors, _transform, check_head_dim, hadamard_rows, walsh_hadamard

jitted = jax.jit(walsh_hadamard, static_argnums=1)


def sylvester(n):
  """Return the Hadamard matrix of order n by its recursion, float64."""
  if n == 1:
    return np.ones((1, 1))
  half = sylvester(n // 2)
  return np.block([[half, half], [half, -half]])


def golden(x, axis=-1):
  moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
  return np.moveaxis(moved @ sylvester(moved.shape[-1]), -1, axis)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('n', [1, 2, 32, 64, 2048])
def test_golden_values(n):
  x = normal(0, 3, n)
  np.testing.assert_allclose(jitted(x), golden(x), rtol=1e-5, atol=1e-6 * n)


@given(
  shape=st.lists(st.integers(1, 3), max_size=2),
  bits=st.integers(0, 7),
  place=st.integers(0, 2),
  negative=st.booleans(),
)
def test_any_axis_of_any_shape(shape, bits, place, negative):
  axis = min(place, len(shape))
  shape = (*shape[:axis], 2**bits, *shape[axis:])
  x = normal(bits, *shape)
  out = jitted(x, axis - len(shape) if negative else axis)
  np.testing.assert_allclose(out, golden(x, axis), rtol=1e-5, atol=1e-4)


def test_twice_is_n_times_the_identity():
  x = normal(1, 5, 128)
  twice = jax.jit(lambda x: walsh_hadamard(walsh_hadamard(x)))(x)
  np.testing.assert_allclose(twice, 128 * x, rtol=1e-5, atol=1e-4)


def test_its_transpose_is_itself():
  x, cotangent = normal(2, 2, 3, 64)

  @jax.jit
  def both(x, cotangent):
    out, pull = jax.vjp(walsh_hadamard, x)
    _, tangent = jax.jvp(walsh_hadamard, (x,), (cotangent,))
    return out, pull(cotangent)[0], tangent

  out, gradient, tangent = both(x, cotangent)
  np.testing.assert_allclose(out, golden(x), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, golden(cotangent), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(tangent, golden(cotangent), rtol=1e-5, atol=1e-5)


def test_transformations_of_jax():
  x = normal(3, 2, 4, 64)
  energy = lambda x: jnp.sum(x * walsh_hadamard(x)) / 2  # Its gradient is H x.
  inside_out = jax.jit(jax.vmap(functools.partial(walsh_hadamard, axis=0), in_axes=1, out_axes=1))
  for function, x_of, back in [
    (walsh_hadamard, lambda x: x, lambda x: x),  # Without jit.
    (jax.jit(jax.vmap(jax.grad(energy))), lambda x: x, lambda x: x),
    (inside_out, lambda x: np.moveaxis(x, 2, 0), lambda x: np.moveaxis(x, 0, 2)),
    (jax.pmap(jax.grad(jax.checkpoint(energy))), lambda x: x, lambda x: x),
  ]:
    out = back(np.asarray(function(jnp.asarray(x_of(x)))))
    np.testing.assert_allclose(out, golden(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_rounded_once(dtype):
  x = normal(4, 16, 256).astype(dtype)
  out = jitted(x)
  assert out.dtype == dtype
  exact = golden(x)
  # Half a unit in the last place, and a little for sums in float32.
  tolerance = float(jnp.finfo(dtype).eps) / 2 * np.abs(exact) * (1 + 1e-3) + 1e-4
  assert np.all(np.abs(np.asarray(out, np.float64) - exact) <= tolerance)


def test_integers_stay_integers():
  x = np.random.default_rng(5).integers(-1000, 1000, (3, 64), np.int32)
  out = jitted(x)
  assert out.dtype == jnp.int32
  np.testing.assert_array_equal(out, golden(x))


@pytest.mark.parametrize('radix', [2, 8, 64])
def test_every_radix_gives_the_same(radix):
  """Other platforms take another one."""
  x = normal(6, 2, 128, 3)
  transform = functools.partial(_transform, axis=1, radix=radix, narrow_products=False)
  np.testing.assert_allclose(jax.jit(transform)(x), golden(x, 1), rtol=1e-5, atol=1e-5)


def test_factors_multiply_to_n_within_the_radix():
  for bits in range(1, 14):
    for radix in (2, 16, 32, 64, 128):
      factors = _factors(2**bits, radix)
      assert np.prod(factors) == 2**bits
      assert max(factors) <= radix


@pytest.mark.parametrize(('dtype', 'operand'), [('float32', 'f32'), ('bfloat16', 'bf16')])
def test_programs_for_gpus_keep_all_digits(dtype, operand):
  """Lowered here, not run: float32 not by TF32, and bfloat16 as it is, in float32 sums."""
  exported = jax.export.export(jax.jit(walsh_hadamard), platforms=['cuda'])
  text = exported(jax.ShapeDtypeStruct((4, 64), dtype)).mlir_module()
  (product,) = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
  assert 'precision = [HIGHEST, HIGHEST]' in product
  assert f'(tensor<4x64x{operand}>, tensor<64x64x{operand}>) -> tensor<4x64xf32>' in product


def test_rows_of_the_matrix():
  rows = np.array([[3, 0], [7, 5]], np.int32)
  np.testing.assert_array_equal(
    jax.jit(hadamard_rows, static_argnums=1)(rows, 8), sylvester(8)[rows]
  )


def test_errors_name_the_way_out():
  with pytest.raises(ValueError, match=r'axis 0 must be a power of two, got 5 .*zeros to 8'):
    walsh_hadamard(jnp.zeros((5, 4)), axis=0)
  with pytest.raises(ValueError, match='axis -1 must be a power of two, got 0 .*zeros to 1'):
    walsh_hadamard(jnp.zeros((4, 0)))
  with pytest.raises(ValueError, match=r'axis=2 does not exist in an array of shape \(4, 4\)'):
    walsh_hadamard(jnp.zeros((4, 4)), axis=2)
  with pytest.raises(ValueError, match='FastFood needs .* got 48: make it 64, or take a sampler'):
    check_head_dim(48, 'FastFood')
  assert walsh_hadamard(jnp.zeros((0, 4))).shape == (0, 4)
