import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kl_flax.dropout import Dropout, dropout, keep_mask

KEY = jax.random.fold_in(jax.random.key(5), 3)
MASK_32 = 2**32 - 1
# Standard deviations. Nothing here is random: what passes once passes always.
FAR = 5


def golden_rounds(x, shift, factor):
  return (((x & MASK_32) ^ ((x & MASK_32) >> shift)) * factor) & MASK_32


def golden_mask(words, count, rate):
  """Return the mask, by plain integers."""
  scramble = lambda x: golden_rounds(golden_rounds(x + 0x9E3779B9, 16, 0x7FEB352D), 15, 0x846CA68B)
  mix = lambda x: scramble(x & MASK_32) ^ (scramble(x & MASK_32) >> 16)
  low = mix(mix(words[0]) ^ words[1])
  high = mix(low ^ words[1])
  mask = []
  for i in range(count):
    x = i ^ low
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15) ^ high) * 0x846CA68B) & MASK_32
    mask.append(x >= round(rate * 2**32))
  return np.array(mask)


@functools.partial(jax.jit, static_argnums=(1, 2))
def masks_of(words, shape, rate):
  """Return the masks of many keys, each of them given by its two words."""
  return jax.vmap(lambda w: keep_mask(jax.random.wrap_key_data(w), shape, rate))(words)


def deviations(a, b, rate):
  """Return in standard deviations how correlated two masks are along their last axis."""
  a, b = (np.asarray(x, np.float64) - (1 - rate) for x in (a, b))
  return np.mean(a * b, axis=-1) / (rate * (1 - rate)) * math.sqrt(a.shape[-1])


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
@pytest.mark.parametrize('rate', [0.0, 0.1, 0.5, 0.999])
def test_mask_is_the_hash_that_it_says(rate, impl):
  key = jax.random.fold_in(jax.random.key(1, impl=impl), 2)
  words = [int(word) for word in jax.random.key_data(key)[-2:]]
  mask = keep_mask(key, (3, 5, 7), rate)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, golden_mask(words, 105, rate).reshape(3, 5, 7))


@pytest.mark.parametrize('shape', [(100_003,), (64, 128, 32), (2, 3, 5, 7, 11, 13)])
@pytest.mark.parametrize('rate', [1e-3, 0.1, 0.3, 0.5, 0.9])
def test_rate_is_kept(rate, shape):
  count = math.prod(shape)
  kept = int(np.sum(keep_mask(KEY, shape, rate)))
  assert abs(kept - (1 - rate) * count) < FAR * math.sqrt(count * rate * (1 - rate))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('rate', [0.1, 0.25, 0.5])
def test_kept_elements_are_scaled_in_float32_and_rounded_once(rate, dtype):
  x = jax.random.normal(jax.random.key(0), (50, 40)).astype(dtype)
  out = dropout(x, KEY, rate)
  assert out.dtype == dtype
  scaled = np.asarray(x, np.float32) * np.float32(1 / (1 - rate))
  expected = jnp.asarray(np.where(keep_mask(KEY, x.shape, rate), scaled, 0)).astype(dtype)
  np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(expected, np.float32))
  assert 0 < np.sum(np.asarray(out, np.float32) == 0) < x.size


def test_mean_is_kept():
  x, rate = jnp.ones((200, 1000)), 0.3
  sigma = math.sqrt(rate / (1 - rate) / x.size)
  assert abs(float(jnp.mean(dropout(x, KEY, rate))) - 1) < FAR * sigma


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_gradients_have_the_mask_of_the_values(dtype):
  x = jax.random.normal(jax.random.key(0), (30, 50)).astype(dtype)
  gradient = jax.random.normal(jax.random.key(1), (30, 50)).astype(dtype)
  out, vjp = jax.vjp(lambda x: dropout(x, KEY, 0.4), x)
  (given,) = vjp(gradient)
  assert given.dtype == dtype
  np.testing.assert_array_equal(given == 0, out == 0)
  np.testing.assert_array_equal(given, dropout(gradient, KEY, 0.4))


# Correlations, against what independent masks would show.


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_masks_of_different_keys_are_independent(rate):
  """Keys split from one key, and those of consecutive steps and layers."""
  split = jax.random.split(jax.random.key(0), 40)
  folded = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(1)))(jnp.arange(40))
  words = jnp.concatenate([jax.random.key_data(split), jax.random.key_data(folded)])
  masks = np.asarray(masks_of(words, (1 << 15,), rate))
  for distance in (1, 2, 7, 40):
    far = np.abs(deviations(masks, np.roll(masks, distance, axis=0), rate))
    assert np.max(far) < FAR


@pytest.mark.parametrize('rate', [0.1, 0.5])
@pytest.mark.parametrize('word', [0, 1])
def test_masks_of_keys_that_differ_by_one_bit_are_independent(word, rate):
  data = jax.random.key_data(KEY)
  flips = np.zeros((32, 2), np.uint32)
  flips[:, word] = 1 << np.arange(32)
  mask = keep_mask(KEY, (1 << 15,), rate)
  far = np.abs(deviations(mask, masks_of(data ^ flips, mask.shape, rate), rate))
  assert np.max(far) < FAR


def test_masks_of_consecutive_seeds_are_independent():
  words = jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in range(16)])
  masks = np.asarray(masks_of(words, (1 << 15,), 0.5))
  assert np.max(np.abs(deviations(masks, np.roll(masks, 1, axis=0), 0.5))) < FAR


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_positions_are_independent(rate):
  """Neighbours, elements of neighbouring rows, and all at distances 2^k."""
  words = jax.random.key_data(jax.random.split(KEY, 8))
  for mask in np.asarray(masks_of(words, (1 << 17,), rate)):
    for distance in (*(1 << k for k in range(17)), 3, 5, 100, 511, 513):
      assert abs(deviations(mask[:-distance], mask[distance:], rate)) < FAR, distance
    rows = mask.reshape(256, 512)
    first, second = np.triu_indices(64, 1)
    assert np.max(np.abs(deviations(rows[first], rows[second], rate))) < FAR + 1  # 2016 pairs.
    # No row and no column is dropped more than others.
    for axis in (0, 1):
      count = rows.shape[axis]
      dropped = np.sum(~rows, axis=axis)
      statistic = np.sum((dropped - rate * count) ** 2) / (rate * (1 - rate) * count)
      assert abs(statistic - dropped.size) < FAR * math.sqrt(2 * dropped.size)


@pytest.mark.parametrize('rate', [0.2, 0.5])
def test_patterns_of_eight_adjacent_elements_are_as_frequent_as_they_should_be(rate):
  words = jax.random.key_data(jax.random.split(jax.random.key(11), 4))
  ones = np.array([bin(pattern).count('1') for pattern in range(256)])
  for mask in np.asarray(masks_of(words, (1 << 20,), rate)):
    patterns = np.packbits(mask.reshape(-1, 8), axis=1)[:, 0]
    found = np.bincount(patterns, minlength=256)
    expected = patterns.size * (1 - rate) ** ones * rate ** (8 - ones)
    frequent = expected > 10
    found = np.append(found[frequent], np.sum(found[~frequent]))
    expected = np.append(expected[frequent], max(np.sum(expected[~frequent]), 1e-9))
    statistic = np.sum((found - expected) ** 2 / expected)
    freedom = np.sum(frequent)
    assert abs(statistic - freedom) < FAR * math.sqrt(2 * freedom)


# The module.


def run(rate, x, deterministic=False, key=KEY):
  return Dropout(rate).apply({}, x, deterministic=deterministic, rngs={'dropout': key})


def test_rates_of_zero_and_one():
  x = jnp.arange(12.0).reshape(3, 4)
  assert run(0.0, x) is x
  np.testing.assert_array_equal(run(1.0, x), 0 * x)
  gradient = jax.grad(lambda x: jnp.sum(run(1.0, x)))(x)
  np.testing.assert_array_equal(gradient, 0 * x)


@pytest.mark.parametrize('rate', [-0.1, 1.5, math.nan])
@pytest.mark.parametrize('deterministic', [False, True])
def test_other_rates_are_errors(rate, deterministic):
  with pytest.raises(ValueError, match=rf'must be in \[0, 1\], got {rate}'):
    run(rate, jnp.ones(3), deterministic)


def test_without_dropout_x_is_returned_itself():
  x = jnp.ones((3, 4))
  assert run(0.5, x, True) is x
  assert Dropout(0.5).apply({}, x) is x  # The default, which needs no key.


def test_module_draws_from_the_stream_dropout():
  x = jnp.ones((40, 50))
  out = np.asarray(run(0.5, x))
  assert set(np.unique(out)) == {0.0, 2.0}
  np.testing.assert_array_equal(run(0.5, x), out)
  assert np.any(np.asarray(run(0.5, x, key=jax.random.key(8))) != out)

  class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
      return [Dropout(0.5)(x, deterministic=False) for _ in range(2)]

  first, second = Two().apply({}, x, rngs={'dropout': KEY})
  assert np.any(np.asarray(first) != np.asarray(second))  # Each place has a mask of its own.


def test_masks_are_equal_under_jit_vmap_and_checkpoint():
  x = jax.random.normal(jax.random.key(0), (3, 20, 10))
  drop = lambda x, key: dropout(x, key, 0.3)
  expected = drop(x, KEY)
  compiled = jax.jit(drop)
  np.testing.assert_array_equal(compiled(x, KEY), expected)
  # One mask for all examples of a vmap, as jax.random gives, or one for each key.
  one = compiled(x[0], KEY)
  np.testing.assert_array_equal(jax.jit(jax.vmap(lambda x: drop(x, KEY)))(x)[0], one)
  keys = jax.random.split(KEY, 3)
  each = np.asarray(jax.jit(jax.vmap(drop))(x, keys))
  for i in range(3):
    np.testing.assert_array_equal(each[i], compiled(x[i], keys[i]))
  square = lambda x: jnp.sum(drop(x, KEY) ** 2)
  gradient = 2 * np.asarray(expected) / 0.7
  for function in (square, jax.checkpoint(square), jax.jit(jax.checkpoint(square))):
    np.testing.assert_allclose(jax.grad(function)(x), gradient, rtol=1e-6)
  batched = jax.jit(jax.vmap(jax.grad(lambda x, key: jnp.sum(drop(x, key) ** 2))))(x, keys)
  np.testing.assert_allclose(batched, 2 * each / 0.7, rtol=1e-6)


def test_nothing_of_the_size_of_x_is_kept_for_the_gradient():
  x = jnp.ones((40, 50))
  for drop in (lambda x: dropout(x, KEY, 0.3), functools.partial(run, 0.3)):
    _, vjp = jax.vjp(drop, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) < 10
  # In contrast to what it replaces, which shows that this test sees a mask.
  flax_dropout = lambda x: nn.Dropout(0.3, deterministic=False).apply({}, x, rngs={'dropout': KEY})
  _, vjp = jax.vjp(flax_dropout, x)
  assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) >= x.size


def test_the_compiled_gradient_computes_the_mask_again():
  """XLA would merge both computations, and keep the mask, if nothing stood between them."""
  x = jax.ShapeDtypeStruct((40, 50), jnp.float32)
  loss = lambda x, key: jnp.sum(jnp.sin(dropout(x, key, 0.3)))
  text = jax.jit(jax.grad(loss)).lower(x, KEY).as_text()
  assert 'optimization_barrier' in text
