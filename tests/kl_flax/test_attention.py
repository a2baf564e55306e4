import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from hypothesis import given
from hypothesis import strategies as st
from twins import assert_equal_twins

from kl_flax.attention import KernelAttention, kernel_attention
from kl_flax.causal import causal_sums, decode_step, init_decoding
from kl_flax.checks import check_inputs
from kl_flax.features import FEATURE_MAPS, WITHOUT_FREQUENCIES, project
from kl_flax.naive import naive_attention_weights, naive_kernel_attention
from kl_flax.spectral import GaussianMixture
from kl_flax.sums import attention_sums


def make_inputs(seed, b=2, lq=5, lk=7, h=2, d=4, e=3, m=6, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  inputs = {
    'query': normal(b, lq, h, d),
    'key': normal(b, lk, h, d),
    'value': normal(b, lk, h, e),
    'omega': jnp.asarray(rng.normal(size=(h, m, d)), jnp.float32),
  }
  mask = rng.random((b, lk)) < 0.7
  mask[:, 0] = True
  return inputs, jnp.asarray(mask)


def options_for(features, inputs):
  return {**inputs, 'omega': None} if features in WITHOUT_FREQUENCIES else inputs


attend = jax.jit(kernel_attention, static_argnames=('features', 'smoothing'))


@functools.partial(jax.jit, static_argnames=('function', 'features', 'smoothing'))
def outputs_and_gradients(function, inputs, key_mask, *, features, smoothing):
  """Return the output and the gradient of a fixed projection of it by every array."""

  def loss(arrays):
    out = function(**arrays, key_mask=key_mask, features=features, smoothing=smoothing)
    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

  gradients, out = jax.grad(loss, has_aux=True)(inputs)
  return out, gradients


def assert_twins(features, smoothing, seed, sizes, frequencies, masked, weighted):
  b, lq, lk = sizes
  inputs, mask = make_inputs(seed, b=b, lq=lq, lk=lk, m=frequencies)
  inputs = options_for(features, inputs)
  if features == 'fourier' and not smoothing:
    smoothing = 1.1  # Ratios of sums near zero have no digits to compare.
  options = {'features': features, 'smoothing': smoothing, 'key_mask': mask if masked else None}
  if weighted and features not in WITHOUT_FREQUENCIES:
    inputs['log_weight'] = jax.random.normal(jax.random.key(seed), inputs['omega'].shape[:2])
  fast = outputs_and_gradients(kernel_attention, inputs, **options)
  naive = outputs_and_gradients(naive_kernel_attention, inputs, **options)
  assert_equal_twins(fast, naive)


@pytest.mark.parametrize('features', FEATURE_MAPS)
@pytest.mark.parametrize(
  ('sizes', 'frequencies', 'smoothing', 'masked', 'weighted'),
  [
    pytest.param((1, 1, 1), 1, 0.0, False, False, marks=pytest.mark.slow),
    ((3, 9, 5), 12, 0.0, True, True),
    ((2, 5, 7), 6, 1.0, True, False),
  ],
)
def test_equals_naive_twin(features, smoothing, sizes, frequencies, masked, weighted):
  assert_twins(features, smoothing, 0, sizes, frequencies, masked, weighted)


@pytest.mark.slow
@pytest.mark.parametrize('features', FEATURE_MAPS)
@given(
  smoothing=st.sampled_from([0.0, 1.0]),
  seed=st.integers(0, 99),
  sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
  frequencies=st.integers(1, 12),
  masked=st.booleans(),
  weighted=st.booleans(),
)
def test_any_sizes_equal_naive_twin(
  features, smoothing, seed, sizes, frequencies, masked, weighted
):
  assert_twins(features, smoothing, seed, sizes, frequencies, masked, weighted)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('features', ['positive', 'softmax', 'fourier'])
def test_frequencies_of_weight_zero_count_for_nothing(features, causal):
  """Neither by their features nor by the shifts that keep those of others from vanishing."""
  inputs, mask = make_inputs(3, lq=40, lk=40, d=16, m=12)
  inputs |= {name: 5 * inputs[name] for name in ('query', 'key')}
  mask = mask.at[1].set(False)  # No valid key at all.
  options = {'features': features, 'key_mask': mask, 'causal': causal}
  weight = jnp.where(jnp.arange(12) % 2, 0.0, -jnp.inf) * jnp.ones((2, 1))
  without = inputs | {'omega': inputs['omega'][:, 1::2]}
  if features == 'fourier':  # Its constant feature counts as many times as there are frequencies.
    options['smoothing'] = 0.0

  def loss(arrays, weight):
    return jnp.sum(kernel_attention(**arrays, log_weight=weight, **options) ** 2)

  expected = kernel_attention(**without, **options)
  found = kernel_attention(**inputs, log_weight=weight, **options)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
  assert np.any(np.abs(np.asarray(expected[0])) > 0.1)
  for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(inputs, weight)):
    assert np.all(np.isfinite(leaf))


def test_gradients_of_tiny_denominators_are_finite():
  """elu has no stabiliser: its features are e^x far below zero."""
  inputs, _ = make_inputs(4, d=8)
  inputs |= {name: inputs[name] / 100 - 25 for name in ('query', 'key')}
  inputs['omega'] = None
  loss = lambda q, k, v: jnp.sum(kernel_attention(q, k, v, None, features='elu') ** 2)
  arrays = [inputs[name] for name in ('query', 'key', 'value')]
  for gradient in jax.grad(loss, (0, 1, 2))(*arrays):
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_what_values_have_in_common_costs_no_digits_of_bfloat16(features):
  """The query's gradient is a difference of sums that all values add to."""
  inputs, mask = make_inputs(5, lq=64, lk=64, d=16, e=16, m=64)
  inputs = options_for(features, inputs)
  inputs |= {name: 0.5 * inputs[name] for name in ('query', 'key')}
  inputs['value'] += 3
  if inputs['omega'] is not None:
    inputs['omega'] *= 0.4
  options = {'features': features, 'smoothing': None, 'key_mask': mask}
  narrow = {
    name: x if name == 'omega' or x is None else x.astype(jnp.bfloat16)
    for name, x in inputs.items()
  }
  exact = {k: v if v is None else v.astype(jnp.float32) for k, v in narrow.items()}
  (out, gradients), (expected, wanted) = (
    outputs_and_gradients(kernel_attention, arrays, **options) for arrays in (narrow, exact)
  )
  error = lambda a, b: float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
  assert error(out, expected) < 0.01
  assert error(gradients['query'], wanted['query']) < 0.03


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_padding_changes_nothing_in_bfloat16(features):
  """What values have in common is that of the valid ones, whatever stands behind them."""
  inputs, mask = make_inputs(6, lq=9, lk=9, d=8, dtype=jnp.bfloat16)
  inputs = options_for(features, inputs)
  pad = lambda x, value: jnp.pad(x, [(0, 0), (0, 7), (0, 0), (0, 0)], constant_values=value)
  padded = inputs | {name: pad(inputs[name], 5.0) for name in ('query', 'key', 'value')}
  longer = jnp.pad(mask, [(0, 0), (0, 7)])
  options = {'features': features, 'smoothing': None}
  expected, gradients = outputs_and_gradients(kernel_attention, inputs, mask, **options)
  # The rows of padded queries take no part in the loss.
  weights = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)

  def loss(arrays):
    out = kernel_attention(**arrays, key_mask=longer, **options)[:, :9]
    return jnp.sum(out * weights), out

  found_gradients, found = jax.grad(loss, has_aux=True)(padded)
  close = functools.partial(np.testing.assert_allclose, rtol=0.05, atol=0.02)
  wide = lambda x: np.asarray(x, np.float32)
  close(wide(found), wide(expected))
  for name in ('query', 'key', 'value'):
    close(wide(found_gradients[name][:, :9]), wide(gradients[name]))
    assert not np.any(wide(found_gradients[name][:, 9:]))


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_golden_values_in_float64_numpy(features):
  inputs, mask = make_inputs(3)
  q, k, v, omega = (np.asarray(inputs[n], np.float64) for n in inputs)
  temperature = 1.0 if features == 'elu' else q.shape[-1] ** -0.25
  smoothing = 0.36
  expected = np.zeros((2, 5, 2, 3))
  for b, i, h in np.ndindex(2, 5, 2):
    weights = []
    for j in range(7):
      x, y = q[b, i, h] * temperature, k[b, j, h] * temperature
      if features == 'elu':
        elu = lambda z: np.where(z > 0, z, np.exp(z) - 1) + 1
        kernel = elu(x) @ elu(y)
      elif features == 'relu':
        kernel = (np.maximum(x, 0) + 1e-3) @ (np.maximum(y, 0) + 1e-3)
      elif features == 'fourier':
        kernel = np.mean(np.cos(omega[h] @ (x - y)))
      else:
        norm = (x @ x + y @ y) * (0.5 if features == 'softmax' else 1.0)
        kernel = np.mean(np.exp(omega[h] @ (x + y) - norm))
      weights.append((kernel + smoothing**2) * mask[b, j])
    expected[b, i, h] = np.array(weights) @ v[b, :, h] / np.sum(weights)
  out = attend(
    **options_for(features, inputs), features=features, key_mask=mask, smoothing=smoothing
  )
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('features', FEATURE_MAPS)
@pytest.mark.parametrize('smoothing', slow_but([1.0], [0.0, 1.0]))
def test_padding_changes_nothing(features, smoothing):
  inputs, mask = make_inputs(1)
  inputs = options_for(features, inputs)
  run = functools.partial(attend, features=features, smoothing=smoothing)
  out = run(**inputs, key_mask=mask)
  pad = lambda x: np.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=30.0)
  padded = {**inputs, 'key': pad(inputs['key']), 'value': pad(inputs['value'])}
  np.testing.assert_allclose(
    run(**padded, key_mask=np.pad(mask, ((0, 0), (0, 4)))), out, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_permuting_keys_and_splitting_the_batch_change_nothing(features):
  inputs, mask = make_inputs(2)
  inputs = options_for(features, inputs)
  run = functools.partial(attend, features=features, smoothing=1.0)
  out = run(**inputs, key_mask=mask)
  order = np.array([3, 0, 6, 2, 5, 1, 4])
  permuted = {**inputs, **{n: np.asarray(inputs[n])[:, order] for n in ('key', 'value')}}
  mask = np.asarray(mask)
  np.testing.assert_allclose(run(**permuted, key_mask=mask[:, order]), out, rtol=1e-5, atol=1e-6)
  first = {k: v if k == 'omega' else np.asarray(v)[:1] for k, v in inputs.items()}
  np.testing.assert_allclose(run(**first, key_mask=mask[:1]), out[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('features', FEATURE_MAPS)
@pytest.mark.parametrize('smoothing', slow_but([1.0], [0.0, 1.0]))
def test_rows_without_valid_keys_give_zeros_and_finite_gradients(features, smoothing):
  inputs, mask = make_inputs(4)
  options = {'features': features, 'smoothing': smoothing, 'key_mask': mask.at[1].set(False)}
  out, gradients = outputs_and_gradients(kernel_attention, options_for(features, inputs), **options)
  assert np.all(out[1] == 0)
  assert np.any(out[0] != 0)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('features', ['positive', 'softmax', 'fourier'])
@pytest.mark.parametrize('length', slow_but([16_384], [16, 16_384]))
def test_large_norms_and_masked_examples_stay_finite_in_bfloat16(features, length):
  inputs, _ = make_inputs(5, b=2, lq=length, lk=length, h=1, d=64, m=16, dtype=jnp.bfloat16)
  mask = np.ones((2, length), bool)
  mask[1] = False
  for name in ('query', 'key'):
    x = np.asarray(inputs[name], np.float32)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    inputs[name] = jnp.asarray(50 * unit, jnp.bfloat16)
  out, gradients = outputs_and_gradients(
    kernel_attention,
    inputs,
    features=features,
    key_mask=mask,
    smoothing=float(features == 'fourier'),
  )
  assert np.all(out[1] == 0)
  assert out.dtype == jnp.bfloat16
  assert np.all(np.isfinite(np.asarray(out, np.float32)))
  for gradient in jax.tree.leaves(gradients):
    assert np.all(np.isfinite(np.asarray(gradient, np.float32)))


def test_query_whose_frequencies_meet_only_underflowed_keys_gets_a_sensible_row():
  # Frequency 0 rules the keys by a factor exp(400); the query sees frequency 1 alone.
  omega = jnp.array([[[400.0, 0.0], [0.0, 400.0]]])
  key = jnp.array([[[[1.0, 0.0]], [[-1.0, 0.0]], [[-1.0, 0.1]]]])
  query = jnp.array([[[[-1.0, 1.0]]]])
  value = jnp.array([[[[1.0]], [[2.0]], [[3.0]]]])
  out = attend(query, key, value, omega)
  naive = jax.jit(naive_kernel_attention)(query, key, value, omega)
  np.testing.assert_allclose(out, naive, rtol=1e-4)
  assert 2.9 < float(out[0, 0, 0, 0]) <= 3.0


@pytest.mark.parametrize('features', FEATURE_MAPS)
def test_weights_of_the_naive_twin_sum_to_one(features):
  inputs, mask = make_inputs(6)
  weights = jax.jit(naive_attention_weights, static_argnames=('features', 'smoothing'))(
    inputs['query'],
    inputs['key'],
    options_for(features, inputs)['omega'],
    features=features,
    key_mask=mask,
    smoothing=1.0,
  )
  np.testing.assert_allclose(np.sum(weights, axis=2), 1, rtol=1e-5)
  assert np.all(
    np.asarray(weights)[np.broadcast_to(~np.asarray(mask)[:, None, :, None], weights.shape)] == 0
  )


@pytest.mark.parametrize('features', ['positive', 'fourier'])
def test_work_and_memory_are_linear_in_the_length(features):
  def cost(length):
    sizes = {'b': 1, 'lq': length, 'lk': length, 'h': 1, 'd': 8, 'm': 8}
    inputs = jax.eval_shape(lambda: make_inputs(7, **sizes)[0])
    loss = lambda inputs: jnp.sum(kernel_attention(**inputs, features=features))
    compiled = jax.jit(jax.grad(loss)).lower(inputs).compile()
    return compiled.cost_analysis()['flops'], compiled.memory_analysis().temp_size_in_bytes

  (flops, memory), (flops_of_two, memory_of_two) = cost(4096), cost(8192)
  assert flops_of_two / flops == pytest.approx(2, rel=0.02)
  assert memory_of_two / memory == pytest.approx(2, rel=0.02)
  assert memory < 4096 * 4096


@pytest.mark.slow
def test_is_faster_than_softmax_at_length_4096():
  """Forward and with gradients; without this file's optimisers off it is 19 and 22 times."""
  inputs, _ = make_inputs(8, b=1, lq=4096, lk=4096, h=1, d=64, e=64, m=128)
  qkv = tuple(inputs[name] for name in ('query', 'key', 'value'))
  kernel = lambda *qkv: kernel_attention(*qkv, inputs['omega'])
  softmax = lambda *qkv: jax.nn.dot_product_attention(*qkv)
  gradient = lambda f: jax.grad(lambda *qkv: jnp.sum(f(*qkv) ** 2), argnums=(0, 1, 2))

  def seconds(function, repetitions):
    function = jax.jit(function)
    jax.block_until_ready(function(*qkv))
    times = []
    for _ in range(repetitions):
      start = time.perf_counter()
      jax.block_until_ready(function(*qkv))
      times.append(time.perf_counter() - start)
    return min(times)

  # What is slow is measured once.
  assert seconds(kernel, 3) < seconds(softmax, 1)
  assert seconds(gradient(kernel), 3) < seconds(gradient(softmax), 1)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'features': 'cosine'}, 'must be one of'),
    ({'features': 'elu'}, 'takes no omega'),
    ({'omega': None}, 'needs omega'),
    ({'smoothing': -1.0}, 'smoothing must be finite and at least 0'),
    ({'omega': jnp.ones((2, 6, 5))}, 'omega must be'),
    ({'log_weight': jnp.ones((2, 5))}, 'log_weight must be'),
    ({'key': jnp.ones((2, 7, 3, 4))}, 'query and key must agree'),
    ({'value': jnp.ones((2, 6, 2, 3))}, 'key and value must agree'),
    ({'key_mask': jnp.ones((2, 6), bool)}, r'key_mask must be bool\[2, 7\], got bool\[2, 6\]'),
    (
      {'key_mask': jnp.ones((2, 7), jnp.int32)},
      r'bool\[2, 7\], got int32\[2, 7\]',
    ),
    ({'smoothing': float('nan')}, 'smoothing must be finite and at least 0, got nan'),
    ({'omega': jnp.ones((2, 0, 4))}, r'at least one frequency of each head, got \(2, 0, 4\)'),
    ({'value': jnp.ones((2, 7, 2, 3), jnp.bfloat16)}, 'one dtype, got float32, float32, bfloat16'),
    ({'query': jnp.ones((2, 5, 4))}, r'expected \[batch, length, heads, size\] three times, got '),
    (
      {'key': jnp.ones((2, 0, 2, 4)), 'value': jnp.ones((2, 0, 2, 3))},
      r'at least one key is needed, got query \(2, 5, 2, 4\), key \(2, 0, 2, 4\)',
    ),
  ],
)
def test_errors_name_the_value_and_the_rule(change, message):
  # The check itself: in tests, annotations of public functions catch some of these before.
  inputs, _ = make_inputs(0)
  options = {'features': 'positive', 'key_mask': None, 'smoothing': 0.0}
  with pytest.raises(ValueError, match=message):
    check_inputs(**{**inputs, **options, **change})


@pytest.mark.parametrize('dtype', [jnp.int32, bool])
@pytest.mark.parametrize(
  'attend',
  [
    kernel_attention,
    functools.partial(kernel_attention, implementation='xla'),
    functools.partial(kernel_attention, causal=True),
    naive_kernel_attention,
    lambda q, k, v, omega: naive_attention_weights(q, k, omega),
    lambda *arrays: KernelAttention(Given(arrays[-1])).apply({}, *arrays[:-1]),
    lambda *arrays: decode_step(
      init_decoding(2, 2, 6, 3), *(x[:, 0] for x in arrays[:3]), arrays[3]
    ),
  ],
)
@pytest.mark.usefixtures('unannotated')
def test_integers_are_refused(attend, dtype):
  """Outputs have the dtype of queries: they would be truncated."""
  inputs, _ = make_inputs(0, lk=5)
  query, key, value = (inputs[name].astype(dtype) for name in ('query', 'key', 'value'))
  name = jnp.dtype(dtype).name
  with pytest.raises(ValueError, match=f'query, key and value must be floating, got {name}: '):
    attend(query, key, value, inputs['omega'])


@pytest.mark.usefixtures('unannotated')
def test_integer_values_are_refused_where_queries_are_floating():
  inputs, _ = make_inputs(0)
  inputs['value'] = inputs['value'].astype(jnp.int32)
  for attend in (kernel_attention, naive_kernel_attention):
    with pytest.raises(ValueError, match='one dtype, got float32, float32, int32'):
      attend(**inputs)


@pytest.mark.parametrize('sampler', [GaussianMixture(8), None])
@pytest.mark.usefixtures('unannotated')
def test_the_module_tells_what_is_wrong_with_arrays_before_it_draws(sampler):
  attention = KernelAttention(sampler, 'positive' if sampler else 'elu')
  for shape, message in (
    ((2, 6, 16), r'expected \[batch, length, heads, size\] three times, got query \(2, 6, 16\)'),
    ((2, 0, 4, 16), r'at least one key is needed, got query \(2, 0, 4, 16\)'),
  ):
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=message):
      attention.init({'params': jax.random.key(0), 'spectral': jax.random.key(1)}, x, x, x)


@pytest.mark.usefixtures('unannotated')
def test_a_class_is_no_sampler():
  message = (
    r'sampler must be an instance, such as GaussianMixture\(128\), got the class GaussianMixture'
  )
  with pytest.raises(ValueError, match=message):
    KernelAttention(GaussianMixture)


def test_no_queries_are_no_error():
  inputs, _ = make_inputs(0, lq=0)
  assert kernel_attention(**inputs).shape == (2, 0, 2, 3)


class Around(nn.Module):
  """A model with the attention somewhere inside, of which it is asked by a method."""

  attention: KernelAttention

  def __call__(self, *arrays):
    return self.attention(*arrays)

  def frequencies(self, *sizes):
    return self.attention.frequencies(*sizes)


@pytest.mark.parametrize(
  ('sampler', 'options'),
  [
    (GaussianMixture(8), {'features': 'fourier', 'causal': True}),
    (GaussianMixture(8, typical_norm=1.0), {}),
    (None, {'features': 'relu'}),
  ],
)
@pytest.mark.parametrize('inside', [False, True])
def test_frequencies_are_those_of_a_call(sampler, options, inside):
  x = jax.random.normal(jax.random.key(0), (2, 5, 2, 4))
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  module = KernelAttention(sampler, **options)
  module = Around(module) if inside else module
  variables = jax.jit(module.init)(rngs, x, x, x)
  variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
  found = []
  for seed in (3, 4):
    rngs = {'spectral': jax.random.key(seed)}
    expected = module.apply({'params': variables.get('params', {})}, x, x, x, rngs=rngs)
    omega, log_weight = module.apply(variables, 2, 4, method='frequencies', rngs=rngs)
    out = kernel_attention(x, x, x, omega, log_weight=log_weight, **options)
    np.testing.assert_array_equal(out, expected)
    found.append(omega)
  assert sampler is None or np.all(found[0] != found[1])


def test_unknown_implementations_are_named():
  inputs, _ = make_inputs(0)
  with pytest.raises((ValueError, TypeError), match='implementation'):
    kernel_attention(**inputs, implementation='magic')


def test_module_counts_nonpositive_denominators_of_fourier_features():
  attention = KernelAttention(GaussianMixture(4), 'fourier', 0.0)
  x = 10 * jax.random.normal(jax.random.key(0), (2, 9, 2, 8))
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  params = {'params': jax.jit(attention.init)(rngs, x, x, x)['params']}
  run = jax.jit(functools.partial(attention.apply, mutable=['diagnostics']))
  _, sown = run(params, x, x, x, rngs=rngs)
  (fraction,) = sown['diagnostics']['nonpositive_denominators']
  assert 0 < fraction < 1


@pytest.mark.parametrize('causal', [False, True])
def test_padding_is_no_part_of_the_nonpositive_denominators(causal):
  attention = KernelAttention(GaussianMixture(2), 'fourier', 0.0, causal)
  x = 10 * jax.random.normal(jax.random.key(0), (2, 24, 2, 8))
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  params = {'params': jax.jit(attention.init)(rngs, x, x, x)['params']}

  @jax.jit
  def counted(query, x, mask=None):
    _, sown = attention.apply(params, query, x, x, mask, rngs=rngs, mutable=['diagnostics'])
    return sown['diagnostics']['nonpositive_denominators'] + sown['diagnostics']['denominators']

  fraction = lambda *args: counted(*args)[0]

  first, second = x[:1, :12], x[1:, :20]
  alone = fraction(first, first), fraction(second, second)
  assert min(alone) > 0
  assert max(alone) < 1
  mask = np.arange(24) < np.array([[12], [20]])
  expected = float(12 * alone[0] + 20 * alone[1]) / 32
  assert counted(x, x, mask) == pytest.approx((expected, 2 * 32))  # Of two heads.
  if not causal:  # Queries of another sequence have no mask: all of them count.
    query = x[:1, :23]
    assert fraction(query, x[:1], mask[:1]) == pytest.approx(fraction(query, first))


def test_causal_rows_that_see_no_key_yet_estimate_nothing():
  attention = KernelAttention(GaussianMixture(16), 'fourier', causal=True)
  x = jax.random.normal(jax.random.key(0), (2, 8, 1, 4))
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  variables = jax.jit(attention.init)(rngs, x, x, x)
  mask = np.arange(8) >= np.array([[3], [0]])
  run = jax.jit(functools.partial(attention.apply, mutable=['diagnostics']))
  _, sown = run(variables, x, x, x, mask, rngs=rngs)
  assert sown['diagnostics']['nonpositive_denominators'] == (0,)


def test_module_noise_is_a_function_of_the_spectral_key():
  attention = KernelAttention(GaussianMixture(4), 'positive')
  x = jax.random.normal(jax.random.key(0), (2, 9, 2, 8))
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  variables = jax.jit(attention.init)(rngs, x, x, x)
  apply = jax.jit(attention.apply)
  run = lambda seed: apply(variables, x, x, x, rngs={'spectral': jax.random.key(seed)})
  np.testing.assert_array_equal(run(5), run(5))
  assert np.any(np.asarray(run(5)) != np.asarray(run(6)))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('features', ['elu', 'relu', 'positive'])
def test_one_key_gives_its_value_however_small_its_features(features, dtype):
  """elu(−10) + 1 is 5e-5; rounded to bfloat16 before the 1 is added it would be 0."""
  x = jnp.full((1, 1, 1, 64), -10.0, dtype)
  omega = None if features in WITHOUT_FREQUENCIES else jnp.ones((1, 4, 64))
  out = attend(x, x, jnp.full((1, 1, 1, 3), 2.0, dtype), omega, features=features)
  np.testing.assert_allclose(
    np.asarray(out, np.float32), 2.0, rtol=1e-2 if dtype != jnp.float32 else 1e-5
  )


def test_float16_sums_do_not_overflow():
  x = jnp.ones((1, 16_384, 1, 4), jnp.float16)
  for features in ('fourier', 'elu'):
    omega = jnp.ones((1, 4, 4)) if features == 'fourier' else None
    out = attend(x, x, 10 * x, omega, features=features)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(out, np.float32), 10, rtol=1e-2)


def test_fourier_features_of_the_module_are_smoothed_by_default():
  x = 2 * jax.random.normal(jax.random.key(0), (2, 50, 1, 8))
  attention = KernelAttention(GaussianMixture(16), 'fourier')
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  mask = np.ones((2, 50), bool)
  mask[1] = False
  y = x[::-1]
  state = jax.jit(attention.init)(rngs, x, y, x)
  run = lambda module: np.asarray(jax.jit(module.apply)(state, x, y, x, rngs=rngs))
  out = run(attention)
  assert np.max(np.abs(out)) < 1e3
  explicit = KernelAttention(GaussianMixture(16), 'fourier', smoothing=1.0)
  np.testing.assert_array_equal(run(explicit), out)
  # An example without any valid key is no estimate that failed.
  count = jax.jit(functools.partial(attention.apply, mutable=['diagnostics']))
  _, sown = count(state, x, y, x, mask, rngs=rngs)
  assert sown['diagnostics']['nonpositive_denominators'] == (0,)


class Given(nn.Module):
  """A sampler whose frequencies are known."""

  omega: Any

  def __call__(self, num_heads, head_dim):
    return self.omega


@pytest.mark.parametrize(('features', 'default'), [('fourier', 1.0), ('positive', 0.0)])
def test_functions_and_module_have_one_default_smoothing(features, default):
  inputs, _ = make_inputs(3, lk=5)
  arrays = query, key, value, omega = list(inputs.values())

  def run(**smoothing):
    options = {'features': features} | smoothing
    state = init_decoding(2, 2, omega.shape[1], value.shape[3], features=features)
    for i in range(2):
      state, out = decode_step(state, query[:, i], key[:, i], value[:, i], omega, **options)
    return {
      'kernel_attention': kernel_attention(*arrays, **options),
      'naive_kernel_attention': naive_kernel_attention(*arrays, **options),
      'naive_attention_weights': naive_attention_weights(query, key, omega, **options),
      'attention_sums': attention_sums(*arrays, **options)[1],
      'causal_sums': causal_sums(*arrays, **options)[1],
      'decode_step': out,
      'KernelAttention': KernelAttention(Given(omega), **options).apply({}, query, key, value),
    }

  found, explicit, other = run(), run(smoothing=default), run(smoothing=default + 0.5)
  for name, out in found.items():
    np.testing.assert_array_equal(out, explicit[name], err_msg=name)
    assert np.any(np.abs(out - other[name]) > 1e-3), name


@pytest.mark.parametrize('name', ['project', 'sums'])
def test_float32_products_ask_for_full_precision(name):
  """On GPUs the default is TF32."""
  inputs, _ = make_inputs(0)
  if name == 'project':
    text = jax.jit(project).lower(inputs['query'], inputs['omega']).as_text()
  else:
    text = jax.jit(kernel_attention).lower(**inputs).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert products
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)
