"""Attention by patterns of blocks: `local`, `longformer`, `bigbird`, `sparse_transformer`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import assert_equal_twins

from kl_flax.baselines.bigbird import BigBirdAttention, random_blocks
from kl_flax.baselines.blocks import block_attention
from kl_flax.baselines.local import LocalAttention
from kl_flax.baselines.longformer import LongformerAttention
from kl_flax.baselines.sparse_transformer import SparseTransformerAttention
from kl_flax.encoder import MultiHeadAttention
from kl_flax.models import MODELS, get_row

HEADS, SEED = 2, 3


# Which pairs attend, written out from the papers: [h, l, l].


def pairs(length, attends):
  pattern = np.zeros((HEADS, length, length), bool)
  for h, i, j in np.ndindex(*pattern.shape):
    pattern[h, i, j] = attends(h, i, j)
  return pattern


def local_pattern(length, size):
  return pairs(length, lambda h, i, j: i // size == j // size)


def longformer_pattern(length, window, num_global=1):
  return pairs(length, lambda h, i, j: min(i, j) < num_global or 2 * abs(i - j) <= window)


def bigbird_pattern(length, size, num_random, num_global):
  rest = length - size * num_global
  chosen = random_blocks(-(-rest // size), HEADS, num_random, SEED) if rest > 0 else None

  def attends(h, i, j):
    i, j = (x // size - num_global for x in (i, j))
    return min(i, j) < 0 or abs(i - j) <= 1 or j in chosen[h, i]

  return pairs(length, attends)


def fixed_pattern(length, size, num_summary, num_global=1):
  def attends(h, i, j):
    i, j = i - num_global, j - num_global
    summary = j % size in [t % size for t in range(size - num_summary, size + 1)]
    return min(i, j) < 0 or i // size == j // size or summary

  return pairs(length, attends)


def strided_pattern(length, size, num_global=1):
  def attends(h, i, j):
    i, j = i - num_global, j - num_global
    return min(i, j) < 0 or abs(i - j) < size or (i - j) % size == 0

  return pairs(length, attends)


CASES = {
  'local': (LocalAttention(4), functools.partial(local_pattern, size=4)),
  'longformer': (LongformerAttention(6), functools.partial(longformer_pattern, window=6)),
  'window alone': (
    LongformerAttention(4, num_global_tokens=0),
    functools.partial(longformer_pattern, window=4, num_global=0),
  ),
  'bigbird': (
    BigBirdAttention(3, 2, 1, SEED),
    functools.partial(bigbird_pattern, size=3, num_random=2, num_global=1),
  ),
  'bigbird, two global blocks': (
    BigBirdAttention(2, 1, 2, SEED),
    functools.partial(bigbird_pattern, size=2, num_random=1, num_global=2),
  ),
  'fixed': (
    SparseTransformerAttention('fixed', 5, 2),
    functools.partial(fixed_pattern, size=5, num_summary=2),
  ),
  'strided': (
    SparseTransformerAttention('strided', 4, num_global_tokens=2),
    functools.partial(strided_pattern, size=4, num_global=2),
  ),
}
# One of each for what is no matter of patterns.
MODULES = {name: CASES[name][0] for name in ('local', 'longformer', 'bigbird', 'fixed', 'strided')}
SOME = slow_but(('local', 'longformer', 'bigbird', 'fixed'), MODULES)


def naive_attention(query, key, value, allowed, xp=np):
  """Return attention with a matrix of L×L; `allowed` is bool[b, h, l, l]."""
  logits = xp.einsum('blhd,bshd->bhls', query, key) * query.shape[3] ** -0.5
  weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True)) * allowed
  total = xp.sum(weights, axis=-1, keepdims=True)
  weights = weights / xp.where(total == 0, 1, total)
  return xp.einsum('bhls,bshe->blhe', weights, value)


def make_inputs(length, seed=0, batch=2, d=3, e=3):
  rng = np.random.default_rng(seed)
  shapes = [(batch, length, HEADS, size) for size in (d, d, e)]
  inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  mask = rng.random((batch, length)) < 0.7
  return inputs, mask


@functools.partial(jax.jit, static_argnames='module')
def outputs_and_gradients(module, inputs, mask):
  """Return the output and the gradients of a fixed projection of it; without module, the twin's."""

  def loss(inputs):
    if module is None:
      out = naive_attention(*inputs, mask, xp=jnp)
    else:
      out = module.apply({}, *inputs, mask)
    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

  gradients, out = jax.grad(loss, has_aux=True)(inputs)
  return out, *gradients


@functools.partial(jax.jit, static_argnames='module')
def attend(module, query, key, value, key_mask=None, seed=None):
  rngs = {} if seed is None else {'dropout': jax.random.key(seed)}
  return module.apply({}, query, key, value, key_mask, deterministic=seed is None, rngs=rngs)


def allowed_pairs(name, length, mask=True):
  """Return the explicit pattern, bool[b, h, l, l], without keys that are masked."""
  pattern = CASES[name][1](length)[None]
  return pattern if mask is True else pattern & mask[:, None, None]


@pytest.mark.parametrize('name', slow_but(MODULES, CASES))
@pytest.mark.parametrize(('length', 'masked'), slow_but([(23, True)], [(20, False), (23, True)]))
def test_outputs_and_gradients_equal_the_explicit_pattern(name, length, masked):
  """A multiple of some blocks, and of none."""
  module, _ = CASES[name]
  inputs, mask = make_inputs(length, e=length % 2 + 3)
  fast = outputs_and_gradients(module, inputs, mask if masked else None)
  naive = outputs_and_gradients(None, inputs, allowed_pairs(name, length, mask if masked else True))
  assert_equal_twins(fast[0], naive[0], 1e-5)
  assert_equal_twins(fast[1:], naive[1:], 1e-4)


@settings(max_examples=8)
@given(
  name=st.sampled_from(sorted(CASES)),
  length=st.integers(1, 17),
  masked=st.booleans(),
  seed=st.integers(0, 99),
)
def test_blocks_equal_the_explicit_pattern_at_any_length(name, length, masked, seed):
  inputs, mask = make_inputs(length, seed)
  out = attend(CASES[name][0], *inputs, mask if masked else None)
  expected = naive_attention(*inputs, allowed_pairs(name, length, mask if masked else True))
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SOME)
def test_padding_and_what_stands_there_change_nothing(name):
  module = MODULES[name]
  # Of Big Bird the random blocks depend on the number of blocks: 7, and with more padding 7 again.
  length, more = 19, 2 if name == 'bigbird' else 10
  inputs, mask = make_inputs(length)
  expected = attend(module, *inputs, mask)
  others = [x.copy() for x in inputs]
  for x in others[1:]:
    x[~mask] = 30
  # Not a trace of it comes out.
  np.testing.assert_array_equal(attend(module, *others, mask), expected)
  wide = ((0, 0), (0, more), (0, 0), (0, 0))
  padded = [np.pad(x, wide, constant_values=9) for x in inputs]
  out = attend(module, *padded, np.pad(mask, wide[:2]))[:, :length]
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_bigbird_without_random_blocks_does_not_depend_on_the_padding():
  inputs, mask = make_inputs(19)
  module = BigBirdAttention(3, 0, 1)
  wide = ((0, 0), (0, 13), (0, 0), (0, 0))
  out = attend(module, *(np.pad(x, wide) for x in inputs), np.pad(mask, wide[:2]))
  np.testing.assert_allclose(out[:, :19], attend(module, *inputs, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SOME)
def test_rows_without_valid_keys_give_zeros_and_finite_gradients(name):
  module, length = MODULES[name], 26
  inputs, mask = make_inputs(length)
  mask[1] = False
  mask[0] = np.isin(np.arange(length), [22, 23])  # Neither global positions nor summaries.
  out, *gradients = jax.device_get(outputs_and_gradients(module, inputs, mask))
  assert np.all(out[1] == 0)
  empty = ~np.any(allowed_pairs(name, length, mask)[0], axis=-1)
  assert np.all(np.any(empty, axis=1))
  np.testing.assert_array_equal(np.all(out[0] == 0, axis=-1), empty.T)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient[0] != 0)
    assert np.all(gradient[1] == 0)


def shapes_within(jaxpr):
  """Yield the shapes of all values that a program computes, within its parts, too."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for part in jax.tree.leaves(list(equation.params.values())):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield from shapes_within(part)


@pytest.mark.parametrize(
  ('model_type', 'options'),
  [
    ('local', {}),
    pytest.param('longformer', {}, marks=pytest.mark.slow),
    ('longformer', {'sliding_window_size': 128}),
    ('bigbird', {}),
    ('sparse_transformer', {}),
    pytest.param('sparse_transformer', {'pattern': 'strided'}, marks=pytest.mark.slow),
  ],
)
def test_nothing_of_length_by_length_is_made(model_type, options):
  """Neither in the forward nor in the backward pass, with masks and dropout."""
  length = 512
  module = MODELS[model_type].make(**options)
  inputs, mask = make_inputs(length, batch=1)

  loss = lambda *inputs: jnp.sum(attend(module, *inputs, mask, 0))
  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)
  shapes = list(shapes_within(jaxpr.jaxpr))
  assert sum(length in shape for shape in shapes) > 3
  for shape in shapes:
    assert sum(size >= length for size in shape) <= 1, shape
  naive = lambda *inputs: naive_attention(*inputs, True, xp=jnp)
  found = shapes_within(jax.make_jaxpr(naive)(*inputs).jaxpr)
  assert any(shape[-2:] == (length, length) for shape in found)  # It would be noticed.


@pytest.mark.parametrize('name', SOME)
def test_bfloat16_stays_bfloat16(name):
  inputs, mask = make_inputs(17)
  out = attend(MODULES[name], *(x.astype(jnp.bfloat16) for x in inputs), mask)
  assert out.dtype == jnp.bfloat16
  expected = naive_attention(*inputs, allowed_pairs(name, 17, mask))
  np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.05)


@pytest.mark.parametrize('name', slow_but(['longformer'], ['local', 'longformer', 'strided']))
def test_dropped_weights_average_to_the_deterministic_output(name):
  inputs, mask = make_inputs(9, batch=1)
  module = MODULES[name].copy(dropout_rate=0.5)
  expected = naive_attention(*inputs, allowed_pairs(name, 9, mask))
  run = lambda seed: attend(module, *inputs, mask, seed)
  outs = np.asarray(jax.jit(jax.vmap(run))(np.arange(2000)), np.float64)
  error = np.std(outs, axis=0) / np.sqrt(len(outs))
  assert np.mean(error > 0) > 0.9
  assert np.all(np.abs(np.mean(outs, axis=0) - expected) < 4.5 * error + 1e-6)


def test_random_blocks_are_distinct_and_beyond_the_window():
  chosen = random_blocks(40, 3, 4, 1)
  assert chosen.shape == (3, 40, 4)
  for h, i in np.ndindex(3, 40):
    assert len(set(chosen[h, i])) == 4
    assert np.all(np.abs(chosen[h, i] - i) > 1)
    assert np.all((chosen[h, i] >= 0) & (chosen[h, i] < 40))
  assert np.any(chosen[0] != chosen[1])
  assert set(np.unique(chosen)) == set(range(40))
  np.testing.assert_array_equal(chosen, random_blocks.__wrapped__(40, 3, 4, 1))
  assert np.any(chosen != random_blocks(40, 3, 4, 2))
  assert [random_blocks(n, 3, 4, 1).shape[2] for n in (1, 2, 3, 4, 5, 6)] == [0, 0, 1, 2, 3, 4]


def test_global_tokens_of_longformer_have_projections_of_their_own():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 9, 5)), jnp.float32)
  layer = MultiHeadAttention(lambda: LongformerAttention(2), num_heads=HEADS, qkv_dim=6)
  out, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
  kernel = variables['params']['qkv']
  assert kernel.shape == (5, 6, HEADS, 3)
  inputs = [np.einsum('blf,fhd->blhd', x, kernel[:, i]) for i in range(6)]
  expected = np.array(naive_attention(*inputs[:3], longformer_pattern(9, 2)))
  expected[:, 0] = naive_attention(*inputs[3:], np.ones((9, 9), bool))[:, 0]
  expected = np.einsum('blhd,hdf->blf', expected, variables['params']['out']['kernel'])
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  for module in (LongformerAttention(2, 0), LongformerAttention(2, global_projections=False)):
    assert module.projections == ('query', 'key', 'value')


@pytest.mark.parametrize(
  ('model_type', 'options', 'message'),
  [
    ('local', {'block_size': 0}, 'block_size must be an integer of at least 1, got 0: LRA has 50'),
    ('longformer', {'sliding_window_size': 0}, 'sliding_window_size must be .* 2, got 0: half'),
    ('longformer', {'sliding_window_size': 5}, 'must be even, got 5: .* take 4 or 6'),
    ('longformer', {'num_global_tokens': -1}, 'num_global_tokens must be .* 0, got -1: 0 is a'),
    ('bigbird', {'block_size': -3}, 'block_size must be an integer of at least 1, got -3'),
    ('bigbird', {'num_rand_blocks': -1}, 'num_rand_blocks must be .* got -1: 0 is without'),
    ('bigbird', {'num_global_blocks': -1}, 'num_global_blocks must be .* got -1: 0 is without'),
    ('bigbird', {'connectivity_seed': -1}, 'connectivity_seed must be .* at least 0, got -1'),
    ('sparse_transformer', {'block_size': 1}, 'block_size must be .* at least 2, got 1'),
    ('sparse_transformer', {'num_summary': 0}, 'num_summary must be .* at least 1, got 0'),
    ('sparse_transformer', {'num_summary': 50}, 'num_summary must be below block_size=50, got 50'),
    ('sparse_transformer', {'num_global_tokens': -1}, 'num_global_tokens must be .* got -1'),
    ('sparse_transformer', {'pattern': 'stride'}, "unknown pattern .*did you mean 'strided'"),
  ],
)
def test_bad_options_are_named_with_the_rule_and_a_way_out(model_type, options, message):
  with pytest.raises(ValueError, match=message):
    get_row(model_type).make(**options)


def test_masks_and_lengths_are_checked():
  (query, key, value), mask = make_inputs(5)
  find = functools.partial(block_attention, block_size=2, find_keys=lambda blocks: [])
  with pytest.raises((ValueError, TypeError), match='key_mask'):  # Shapes are checked here, too.
    jax.eval_shape(find, query, key, value, jnp.asarray(mask[:, 1:]))
  with pytest.raises((ValueError, TypeError), match='query|key'):
    jax.eval_shape(find, query[:, 1:], key, value, None)
