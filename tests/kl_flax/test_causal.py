import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twins import assert_equal_twins

from kl_flax import causal
from kl_flax.attention import KernelAttention, kernel_attention
from kl_flax.causal import causal_sums, decode_step, init_decoding
from kl_flax.features import FEATURE_MAPS, WITHOUT_FREQUENCIES
from kl_flax.naive import naive_kernel_attention

# Feature map, smoothing, batch and length of all that is compared in small: each row is compiled
# once. Ratios of Fourier sums near zero have no digits to compare, hence 1.1.
CASES = [
  ('positive', 0.0, 2, 19),
  pytest.param('softmax', 0.36, 1, 18, marks=pytest.mark.slow),
  ('fourier', 1.1, 2, 19),
  ('elu', 0.0, 2, 19),
  pytest.param('relu', 0.0, 2, 19, marks=pytest.mark.slow),
]
SMALL = {'h': 2, 'd': 4, 'e': 3, 'm': 6}


@pytest.fixture(autouse=True, scope='module')
def _small_chunks():
  """Three chunks, and halves of halves in a chunk, at lengths that compile and run in no time."""
  with mock.patch.multiple(causal, _CHUNK=8, _BLOCK=2):
    yield


def make_inputs(seed, b, length, h, d, e, m, scale=1.0, weighted=False):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    'query': scale * normal(b, length, h, d),
    'key': scale * normal(b, length, h, d),
    'value': normal(b, length, h, e),
    'omega': normal(h, m, d),
    # Weights of at most 1: otherwise the Fourier kernel may be negative in spite of smoothing.
    'log_weight': -weighted * np.abs(normal(h, m)),
  }


def changed(array, index, new):
  array = array.copy()
  array[index] = new
  return array


@functools.partial(jax.jit, static_argnames=('attend', 'features', 'smoothing'))
def outputs_and_gradients(attend, arrays, key_mask, features, smoothing):
  """Return the output and the gradient of a fixed projection of it by every array."""

  def loss(arrays):
    if features in WITHOUT_FREQUENCIES:
      arrays = {**arrays, 'omega': None, 'log_weight': None}
    out = attend(**arrays, key_mask=key_mask, features=features, smoothing=smoothing, causal=True)
    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

  gradients, out = jax.grad(loss, has_aux=True)(arrays)
  return out, gradients


def everywhere(inputs):
  return np.ones(inputs['key'].shape[:2], bool)


def assert_all_finite(tree):
  for array in jax.tree.leaves(tree):
    assert np.all(np.isfinite(np.asarray(array, np.float32)))


@pytest.mark.parametrize(('features', 'smoothing', 'b', 'length'), CASES)
@settings(max_examples=8)
@given(
  seed=st.integers(0, 999),
  scale=st.sampled_from([0.1, 1.0, 3.0]),
  weighted=st.booleans(),
  masked=st.lists(st.integers(0, 37), max_size=20),
)
@example(seed=0, scale=1.0, weighted=False, masked=[])
@example(seed=1, scale=1.0, weighted=True, masked=list(range(10)))  # All of a chunk, and one row.
def test_equals_naive_twin(features, smoothing, b, length, seed, scale, weighted, masked):
  inputs = make_inputs(seed, b, length, **SMALL, scale=scale, weighted=weighted)
  mask = np.ones(b * length, bool)
  mask[[i for i in masked if i < mask.size]] = False
  mask = mask.reshape(b, length)
  fast = outputs_and_gradients(kernel_attention, inputs, mask, features, smoothing)
  naive = outputs_and_gradients(naive_kernel_attention, inputs, mask, features, smoothing)
  assert_equal_twins(fast, naive)


@settings(max_examples=2)
@given(
  features=st.sampled_from(FEATURE_MAPS),
  b=st.integers(1, 3),
  length=st.integers(1, 40),
  sizes=st.fixed_dictionaries({k: st.integers(1, 5) for k in SMALL}),
  chunk=st.sampled_from([1, 4, 16]),
)
@example('positive', 1, 131, SMALL, 128)
def test_any_shape_equals_naive_twin(features, b, length, sizes, chunk):
  inputs = make_inputs(length, b, length, **sizes)
  if features in WITHOUT_FREQUENCIES:
    inputs |= {'omega': None, 'log_weight': None}
  options = {'features': features, 'smoothing': 1.0, 'causal': True}
  with mock.patch.multiple(causal, _CHUNK=chunk, _BLOCK=min(chunk, 4)):
    out = jax.jit(functools.partial(kernel_attention, **options))(**inputs)
  naive = jax.jit(functools.partial(naive_kernel_attention, **options))(**inputs)
  np.testing.assert_allclose(out, naive, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(('features', 'smoothing', 'b', 'length'), CASES)
def test_later_keys_change_nothing(features, smoothing, b, length):
  inputs = make_inputs(2, b, length, **SMALL)
  attend = lambda inputs: np.asarray(
    outputs_and_gradients(kernel_attention, inputs, everywhere(inputs), features, smoothing)[0]
  )
  out = attend(inputs)
  assert np.all(np.any(out[:, 1:] != out[:, :-1], axis=(2, 3)))
  for now in (1, 3, length - 1):  # In a block, across halves, across chunks.
    later = np.s_[:, now:]
    key, value = inputs['key'][later], inputs['value'][later]
    key = 50 * key / np.linalg.norm(key, axis=-1, keepdims=True)
    new = {'key': changed(inputs['key'], later, key)}
    new |= {'value': changed(inputs['value'], later, value + 1e6)}
    np.testing.assert_array_equal(attend({**inputs, **new})[:, :now], out[:, :now])


@pytest.mark.parametrize('now', [1, 2, 3, 4, 7, 8, 17])
def test_exponents_larger_by_hundreds_do_not_bury_what_earlier_queries_see(now):
  # The key at `now` and those after it exceed earlier ones by exp(400) in every frequency.
  inputs = make_inputs(3, 2, 19, **SMALL, scale=0.3)
  inputs['omega'][..., 0] = 400 * 4**0.25
  inputs['query'][..., 0] = 0
  inputs['key'][..., 0] = np.arange(19)[:, None] >= now
  mask = everywhere(inputs)
  fast = outputs_and_gradients(kernel_attention, inputs, mask, 'positive', 0.0)
  naive = outputs_and_gradients(naive_kernel_attention, inputs, mask, 'positive', 0.0)
  # Exponents of 400 have four digits after the point, and gradients are multiplied by 400.
  for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(naive), strict=True):
    largest = np.max(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=max(2e-4, 1e-5 * largest))
  # No early query has been left with a single key.
  assert np.all(np.any(np.asarray(fast[1]['query'][:, 1:now]) != 0, axis=-1))


def test_frequencies_that_other_keys_rule_are_read_where_nothing_else_is_seen():
  # Every third key rules three frequencies by a factor exp(400); queries see the other three.
  inputs = make_inputs(4, 2, 19, **SMALL)
  inputs['omega'][:, :3, :2], inputs['omega'][:, 3:, :2] = (400, 0), (0, 400)
  inputs['query'][..., :2] = (-1, 1)
  inputs['key'] *= 0.1
  inputs['key'][..., 0] = np.where(np.arange(19) % 3 == 1, 1, -1)[:, None]
  mask = everywhere(inputs)
  fast, _ = outputs_and_gradients(kernel_attention, inputs, mask, 'positive', 0.0)
  naive, _ = outputs_and_gradients(naive_kernel_attention, inputs, mask, 'positive', 0.0)
  np.testing.assert_allclose(fast, naive, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(('features', 'smoothing', 'b', 'length'), CASES)
def test_rows_without_valid_keys_give_zeros_and_finite_gradients(features, smoothing, b, length):
  inputs = make_inputs(5, b, length, **SMALL)
  mask = changed(everywhere(inputs), 0, False)
  out, gradients = outputs_and_gradients(kernel_attention, inputs, mask, features, smoothing)
  assert np.all(np.asarray(out)[0] == 0)
  assert np.all(np.any(np.asarray(out)[1:] != 0, axis=(2, 3)))
  assert_all_finite(gradients)


@pytest.mark.parametrize(('features', 'smoothing', 'b', 'length'), CASES)
def test_token_by_token_equals_all_at_once(features, smoothing, b, length):
  inputs = make_inputs(7, b, length, **SMALL, weighted=True)
  mask = (np.arange(b * length) % 4 != 0).reshape(b, length)  # Nor at the first position.
  expected, _ = outputs_and_gradients(kernel_attention, inputs, mask, features, smoothing)
  options = {'features': features, 'smoothing': smoothing}
  if features not in WITHOUT_FREQUENCIES:
    options |= {'omega': inputs['omega'], 'log_weight': inputs['log_weight']}
  width = SMALL['d'] if features in WITHOUT_FREQUENCIES else SMALL['m']
  state = start = init_decoding(b, SMALL['h'], width, SMALL['e'], features=features)
  for i in range(length):
    now = (inputs[name][:, i] for name in ('query', 'key', 'value'))
    state, out = decode_step(state, *now, key_mask=mask[:, i], **options)
    np.testing.assert_allclose(out, np.asarray(expected)[:, i], rtol=2e-4, atol=1e-5)
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)


def test_decoding_survives_keys_of_any_size():
  state = init_decoding(1, 1, 1, 1)
  one = np.ones((1, 1, 1), np.float32)
  outs = []
  # Exponents of −40² rule while they are alone, are buried by 0.25 and 0, and change nothing then.
  for i, k in enumerate((40.0, 40.0, 0.5, 0.0, 40.0)):
    state, out = decode_step(state, 0 * one, k * one, i * one, one)
    outs.append(float(out[0, 0, 0]))
  late = (2 * np.exp(0.25) + 3) / (np.exp(0.25) + 1)
  np.testing.assert_allclose(outs, [0, 0.5, 2, late, late], rtol=1e-6)


def test_large_norms_stay_finite_in_bfloat16_and_memory_is_linear():
  def compiled(length):
    inputs = make_inputs(8, 1, length, 1, 16, 16, 16)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    inputs |= {name: 50 * unit(inputs[name]) for name in ('query', 'key')}
    inputs |= {name: inputs[name].astype(jnp.bfloat16) for name in ('query', 'key', 'value')}
    arguments = inputs, everywhere(inputs)
    with mock.patch.multiple(causal, _CHUNK=16, _BLOCK=8):
      lowered = outputs_and_gradients.lower(kernel_attention, *arguments, 'positive', 0.0)
      return lowered.compile(), arguments

  program, arguments = compiled(4096)
  out, gradients = program(*arguments)
  assert out.dtype == gradients['key'].dtype == jnp.bfloat16
  assert_all_finite((out, gradients))
  memory = lambda program: program.memory_analysis().temp_size_in_bytes
  assert memory(program) < 4096 * 4096
  assert memory(program) < 4.5 * memory(compiled(1024)[0])


def test_module_is_causal():
  attention = KernelAttention(None, 'elu', causal=True)
  x = np.random.default_rng(0).normal(size=(1, 6, 2, 8)).astype(np.float32)
  out = jax.jit(attention.apply)({}, x, x, x)
  np.testing.assert_allclose(out[:, 0], x[:, 0], rtol=1e-5, atol=1e-6)
  assert np.all(np.any(np.asarray(out)[:, 1:] != x[:, 1:], axis=(2, 3)))


def test_errors_name_the_value_and_the_rule():
  inputs = make_inputs(9, 2, 5, **SMALL)
  more = {**inputs, 'query': np.ones((2, 7, 2, 4), np.float32)}
  with pytest.raises(ValueError, match='got 7 queries and 5 keys'):
    jax.eval_shape(lambda: causal_sums(**jax.tree.map(jnp.asarray, more)))
  with pytest.raises(ValueError, match='smoothing must be finite and at least 0'):
    jax.eval_shape(lambda: causal_sums(**jax.tree.map(jnp.asarray, inputs), smoothing=-1.0))
  with pytest.raises((ValueError, TypeError), match='cosine'):
    init_decoding(2, 2, 6, 3, features='cosine')


@pytest.mark.parametrize(
  ('sizes', 'features'),
  [((1, 2, 6, 3), 'positive'), ((2, 2, 5, 3), 'positive'), ((2, 2, 6, 3), 'fourier')],
)
def test_states_of_other_sizes_are_refused(sizes, features):
  inputs = make_inputs(9, 2, 5, **SMALL)
  now = (inputs[name][:, 0] for name in ('query', 'key', 'value'))
  with pytest.raises(ValueError, match='state must come from'):
    decode_step(init_decoding(*sizes, features=features), *now, inputs['omega'])


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_an_empty_batch_gives_an_empty_output(features):
  omega = None if features in WITHOUT_FREQUENCIES else jnp.ones((2, 8, 4))
  x = jnp.ones((0, 300, 2, 4))
  assert kernel_attention(x, x, x, omega, features=features, causal=True).shape == x.shape


@pytest.mark.usefixtures('unannotated')  # The messages are those of the code.
@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_a_prompt_in_pieces_then_steps_are_one_causal_pass(features):
  rng = np.random.default_rng(7)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, k, v = normal(2, 150, 2, 4), normal(2, 150, 2, 4), normal(2, 150, 2, 3)
  omega = None if features in WITHOUT_FREQUENCIES else normal(2, 8, 4)
  mask = jnp.asarray(rng.random((2, 150)) < 0.8)
  options = {'features': features, 'smoothing': 0.5}
  whole = kernel_attention(q, k, v, omega, key_mask=mask, causal=True, **options)
  state = init_decoding(2, 2, 4 if omega is None else 8, 3, features=features)
  for piece in (slice(0, 3), slice(3, 140), slice(140, 148)):
    part = [x[:, piece] for x in (q, k, v)]
    state, out = causal.prefill(state, *part, omega, key_mask=mask[:, piece], **options)
    np.testing.assert_allclose(out, whole[:, piece], rtol=2e-3, atol=2e-4)
  for i in (148, 149):
    now = [x[:, i] for x in (q, k, v)]
    state, out = decode_step(state, *now, omega, key_mask=mask[:, i], **options)
    np.testing.assert_allclose(out, whole[:, i], rtol=2e-3, atol=2e-4)
  with pytest.raises(ValueError, match='as many queries as keys, got 2 queries and 3 keys'):
    causal.prefill(state, q[:, :2], k[:, :3], v[:, :3], omega, **options)
  with pytest.raises(ValueError, match='state must come from init_decoding'):
    causal.prefill(state, q[:1], k[:1], v[:1], omega, **options)


@pytest.mark.parametrize('features', ['elu', 'fourier', 'positive'])
def test_what_values_have_in_common_costs_no_digits_of_bfloat16(features):
  """As without the order of positions; and what is in common is that of earlier values alone."""
  inputs = make_inputs(11, b=1, length=64, h=2, d=16, e=16, m=64, scale=0.5)
  inputs['value'] += 3
  omega = None if features in WITHOUT_FREQUENCIES else 0.4 * jnp.asarray(inputs['omega'])
  arrays = [jnp.asarray(inputs[name], jnp.bfloat16) for name in ('query', 'key', 'value')]

  @functools.partial(jax.jit, static_argnames='dtype')
  def run(arrays, dtype):
    def loss(*arrays):
      out = kernel_attention(*arrays, omega, features=features, causal=True)
      weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
      return jnp.sum(out.astype(jnp.float32) * weights), out

    return jax.grad(loss, has_aux=True)(*(x.astype(dtype) for x in arrays))

  (found, out), (wanted, expected) = run(arrays, jnp.bfloat16), run(arrays, jnp.float32)
  error = lambda a, b: float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
  assert error(out, expected) < 0.01
  assert error(found, wanted) < 0.02
  for start in (3, 37):  # In the first chunk, too.
    later = [x.at[:, start:].set(100.0) for x in arrays]
    np.testing.assert_array_equal(run(later, jnp.bfloat16)[1][:, :start], out[:, :start])


@pytest.mark.parametrize('features', ['fourier', 'positive'])
def test_steps_and_pieces_in_bfloat16(features):
  """What was seen is their mean, too; the first key is masked."""
  inputs = make_inputs(12, b=2, length=20, h=2, d=8, e=4, m=16, scale=0.5)
  arrays = [jnp.asarray(inputs[name], jnp.bfloat16) for name in ('query', 'key', 'value')]
  arrays[2] += 3
  omega, mask = jnp.asarray(inputs['omega']), jnp.ones((2, 20), bool).at[:, 0].set(False)
  options = {'features': features}
  whole = kernel_attention(*arrays, omega, key_mask=mask, causal=True, **options)
  exact = [x.astype(jnp.float32) for x in arrays]
  expected = kernel_attention(*exact, omega, key_mask=mask, causal=True, **options)
  state = init_decoding(2, 2, 16, 4, **options)
  state, first = causal.prefill(
    state, *(x[:, :11] for x in arrays), omega, key_mask=mask[:, :11], **options
  )
  outs = [first]
  for i in range(11, 20):
    state, out = decode_step(state, *(x[:, i] for x in arrays), omega, **options)
    outs.append(out[:, None])
  for found in (whole, jnp.concatenate(outs, axis=1)):
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.02, atol=0.02)
