import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from hypothesis import given
from hypothesis import strategies as st

from kl_flax.fastfood import FastFood, fastfood_frequencies, fastfood_project
from kl_flax.features import fourier_features, positive_features, project

LEARNED = {'none': set(), 's': {'S'}, 'sgb': {'S', 'G', 'B'}}
NUM_DRAWS = 20_000

frequencies = jax.jit(fastfood_frequencies)
transformed = jax.jit(fastfood_project)


def make_factors(seed, num_heads, num_blocks, head_dim):
  """Return B, G, S, all of them arbitrary numbers, and the permutations."""
  rng = np.random.default_rng(seed)
  shape = (num_heads, num_blocks, head_dim)
  diagonals = rng.normal(size=(3, *shape)).astype(np.float32)
  permutation = rng.permuted(np.broadcast_to(np.arange(head_dim), shape), axis=-1)
  return (*diagonals, permutation.astype(np.int32))


def sylvester(n):
  if n == 1:
    return np.ones((1, 1))
  half = sylvester(n // 2)
  return np.block([[half, half], [half, -half]])


def golden(B, G, S, permutation):
  """Return the dense product of the explicit matrices, float64."""
  num_heads, num_blocks, head_dim = B.shape
  H, blocks = sylvester(head_dim), []
  for head, block in np.ndindex(num_heads, num_blocks):
    b, g, s = (np.diag(x[head, block].astype(np.float64)) for x in (B, G, S))
    permute = np.eye(head_dim)[permutation[head, block]]
    blocks.append(s @ H @ g @ permute @ H @ b / math.sqrt(head_dim))
  return np.reshape(blocks, (num_heads, num_blocks * head_dim, head_dim))


@given(
  seed=st.integers(0, 10**6),
  bits=st.integers(0, 6),
  num_heads=st.integers(1, 3),
  num_blocks=st.integers(1, 3),
)
def test_golden_product_of_matrices(seed, bits, num_heads, num_blocks):
  factors = make_factors(seed, num_heads, num_blocks, 2**bits)
  omega = frequencies(*factors)
  assert omega.dtype == jnp.float32
  np.testing.assert_allclose(omega, golden(*factors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('head_dim', 'dtype'), [(4, jnp.float32), (64, jnp.bfloat16)])
def test_projecting_by_transforms_is_projecting(head_dim, dtype):
  factors = make_factors(0, 2, 3, head_dim)
  x = np.random.default_rng(1).normal(size=(2, 5, 2, head_dim)).astype(dtype)
  out = transformed(x, *factors)
  assert out.dtype == jnp.float32
  expected = np.einsum('blhd,hmd->blhm', x.astype(np.float64), golden(*factors))
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)


def test_both_ways_have_the_same_gradients():
  x, weight = np.random.default_rng(3).normal(size=(2, 1, 4, 2, 16)).astype(np.float32)
  factors = make_factors(2, 2, 2, 8)

  def by_transforms(x, *factors):
    return jnp.sum(weight * jnp.sin(fastfood_project(x, *factors)))

  def dense(x, *factors):
    return jnp.sum(weight * jnp.sin(project(x, fastfood_frequencies(*factors))))

  gradients = [
    jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(x[..., :8], *factors)
    for loss in (by_transforms, dense)
  ]
  for found, expected in zip(*gradients, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def omega_and_gradient(module, params, seed):
  def loss(params):
    omega = module.apply({'params': params}, 2, 8, rngs={'spectral': jax.random.key(seed)})
    weight = jnp.arange(omega.size, dtype=jnp.float32).reshape(omega.shape)
    return jnp.sum(jnp.sin(omega) * weight), omega

  (_, omega), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  return omega, gradient


@pytest.mark.parametrize('learned', LEARNED)
def test_what_is_learned_has_gradients_and_the_rest_is_redrawn(learned):
  module = FastFood(16, learned)
  keys = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  variables = jax.eval_shape(lambda: module.init(keys, 2, 8))
  shapes = {name: leaf.shape for name, leaf in variables.get('params', {}).items()}
  assert shapes == dict.fromkeys(LEARNED[learned], (2, 2, 8))
  params = dict(zip('BGS', make_factors(0, 2, 2, 8), strict=False))
  params = {name: params[name] for name in shapes}

  (first, gradient), (again, _), (other, _) = (
    jax.device_get(omega_and_gradient(module, params, seed)) for seed in (5, 5, 6)
  )
  for leaf in gradient.values():
    assert np.all(np.isfinite(leaf))
    assert np.all(leaf != 0)
  # A function of the key of the stream, and heads and blocks have draws of their own.
  np.testing.assert_array_equal(first, again)
  for a, b in [(first, other), (first[0], first[1]), (first[:, :8], first[:, 8:])]:
    assert not np.any(np.all(a == b, axis=-1))
  lengths = [np.linalg.norm(omega, axis=-1) for omega in (first, other)]
  if learned == 's':  # They belong to the parameters, whatever G is drawn.
    expected = np.abs(params['S']).reshape(2, 16)
    np.testing.assert_allclose(lengths, [expected, expected], rtol=1e-4)
  elif learned == 'none':
    assert np.all(lengths[0] != lengths[1])


def test_permutations_are_uniform():
  num_heads, head_dim = 4000, 4
  ones = jnp.ones((num_heads, 1, head_dim))
  params = {'B': ones, 'G': ones * jnp.array([1, 0, 0, 0]), 'S': ones}
  sample = functools.partial(FastFood(head_dim).apply, {'params': params}, num_heads, head_dim)
  omega = jax.jit(lambda key: sample(rngs={'spectral': key}))(jax.random.key(0))
  # The first element that Π takes is seen: with G = diag(1, 0, 0, 0), a row of H, halved.
  hits = 2 * np.asarray(omega)[:, 0] @ sylvester(head_dim) / head_dim
  np.testing.assert_array_equal(np.sort(hits), np.broadcast_to([0, 0, 0, 1], hits.shape))
  error = math.sqrt(3 / 16 / num_heads)
  assert np.all(np.abs(np.mean(hits, axis=0) - 1 / 4) < 4.5 * error)


@functools.partial(jax.jit, static_argnums=0)
def initial(module):
  """Return omega [NUM_DRAWS, M, 4] and parameters; heads are the independent repetitions."""
  keys = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  omega, variables = module.init_with_output(keys, NUM_DRAWS, 4)
  return omega, variables.get('params', {})


@jax.jit
def estimates(omega, q, k):
  """Return estimates of κ(q, k) by Fourier and by positive features, one a head."""
  repeat = lambda x: jnp.broadcast_to(x, (1, 1, len(omega), len(x)))
  phi = lambda features, x: features(repeat(x), omega)[0, 0]
  return [
    jnp.sum(phi(features, q) * phi(features, k), axis=-1)
    for features in (fourier_features, positive_features)
  ]


def assert_mean(samples, expected, precision=math.inf):
  """Assert the mean over axis 0 within 4.5 standard errors, which are below the precision."""
  samples = np.asarray(samples, np.float64)
  error = np.std(samples, axis=0) / math.sqrt(len(samples))
  assert np.all(np.abs(np.mean(samples, axis=0) - expected) < 4.5 * error)
  assert np.all(error < precision)  # The test must be able to fail.


@pytest.mark.parametrize('learned', slow_but(['sgb'], LEARNED))
def test_initial_frequencies_are_normal_one_by_one(learned):
  omega, params = initial(FastFood(8, learned))
  # |q − k|² = 1 and |q + k|² = 0.75: estimates of the Gaussian kernel are unbiased.
  q, k = np.array([[0.2, 0.5, -0.1, 0.3], [-0.1, 0.0, 0.4, -0.3]], np.float32)
  kernel = math.exp(-np.sum((q - k) ** 2) / 2)
  for samples in estimates(omega, q, k):
    assert_mean(samples, kernel, 0.01 * kernel)
  omega, head_dim = np.asarray(omega, np.float64), 4
  assert_mean(omega, 0)
  assert_mean(omega**2, 1)
  assert_mean(omega**4, 3)
  lengths = np.sum(omega**2, axis=-1)  # χ²_D
  assert_mean(lengths, head_dim)
  assert_mean(lengths**2, head_dim * (head_dim + 2))
  # Blocks are independent, in their squares too.
  assert_mean(omega[:, :4] * omega[:, 4:], 0)
  assert_mean((omega[:, :4] ** 2 - 1) * (omega[:, 4:] ** 2 - 1), 0)
  if learned == 'sgb':
    np.testing.assert_array_equal(np.abs(params['B']), 1)
    assert_mean(params['B'], 0)
    assert_mean(params['G'] ** 2, 1)


@pytest.mark.parametrize('learned', slow_but(['sgb'], ['s', 'sgb']))
def test_initial_values_of_the_authors(learned):
  omega, params = initial(FastFood(8, learned, initial='authors'))
  for leaf in params.values():
    assert_mean(leaf, 0)
    assert_mean(leaf**2, 1 / 4)
  assert_mean(omega**2, 1 / 4**3)


def test_unknown_options_are_errors_at_once():
  with pytest.raises(ValueError, match=r"learned must be one of \('none', .*, got 'all'"):
    FastFood(8, 'all')
  with pytest.raises(ValueError, match=r"initial must be one of \('le', .*, got 'zeros'"):
    FastFood(8, initial='zeros')
  with pytest.raises(ValueError, match='num_frequencies must be at least 1, got 0'):
    FastFood(0)


def test_head_sizes_that_do_not_fit_are_errors():
  for num_frequencies, head_dim, message in [
    (12, 8, 'num_frequencies=12 must be a multiple of the head size 8'),
    (4, 8, 'num_frequencies=4 must be a multiple of the head size 8'),
    (24, 6, 'FastFood needs .* power of two, got 6: make it 8, or take .* GaussianMixture'),
  ]:
    with pytest.raises(ValueError, match=message):
      FastFood(num_frequencies).init(jax.random.key(0), 2, head_dim)
  factors = make_factors(0, 1, 1, 6)
  with pytest.raises(ValueError, match='power of two, got 6'):
    frequencies(*factors)
  with pytest.raises(ValueError, match='power of two, got 6'):
    transformed(np.zeros((1, 2, 1, 6), np.float32), *factors)
