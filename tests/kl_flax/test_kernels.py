"""The fused kernels: their numbers in Pallas' interpreter, their lowering, and who runs them.

Whether they run on a GPU, and how fast, these tests cannot tell.
"""

import functools
import logging
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxlib.mlir import ir

from kl_flax import kernels
from kl_flax.attention import KernelAttention, kernel_attention
from kl_flax.kernels import fused, kernel_info, shared_memory
from kl_flax.kernels.fused import choose_splits, fused_attention
from kl_flax.kernels.tiles import whole_length
from kl_flax.naive import naive_kernel_attention
from kl_flax.numerics import cuda_capability
from kl_flax.spectral import GaussianMixture
from kl_flax.sums import attention_sums


def make_inputs(seed=0, b=1, lq=64, lk=64, h=1, d=16, m=64, frequency=1.0, weighted=False):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
  arrays = {
    'query': draw(b, lq, h, d),
    'key': draw(b, lk, h, d),
    'value': draw(b, lk, h, d),
    'omega': jnp.asarray(frequency * rng.normal(size=(h, m, d)), jnp.float32),
  }
  if weighted:
    arrays['log_weight'] = jnp.asarray(rng.normal(size=(h, m)), jnp.float32)
  mask = rng.random((b, lk)) < 0.7
  mask[:, 0] = True
  return arrays, jnp.asarray(mask)


# On a Hopper GPU these tests run the kernels themselves.
INTERPRET = cuda_capability() != 9.0


def fused_output(*args, **options):
  """Return what `kernel_attention` would, from the kernels."""
  return fused_attention(*args, **options, interpret=INTERPRET)[0]


def wide(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


@functools.partial(jax.jit, static_argnames=('attend', 'features', 'smoothing'))
def compiled_outputs_and_gradients(attend, arrays, key_mask, features, smoothing):
  attend = functools.partial(attend, key_mask=key_mask, features=features, smoothing=smoothing)

  def loss(arrays):
    out = attend(**arrays)
    weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(jnp.bfloat16)
    return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32)), out

  gradients, out = jax.grad(loss, has_aux=True)(arrays)
  return {'out': out, 'out alone': attend(**arrays), **gradients}


def outputs_and_gradients(attend, arrays, *, features, smoothing=0.0, key_mask=None):
  """Return the output, with and without gradients, and those of a fixed projection of it."""
  return wide(compiled_outputs_and_gradients(attend, arrays, key_mask, features, smoothing))


def relative_errors(values, expected):
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  return {name: rms(values[name] - expected[name]) / rms(expected[name]) for name in expected}


# Head sizes, numbers of frequencies that are whole tiles of 64 or blocks of 128 or neither, lengths
# below and beyond a tile of 64, multiples of 8 or not, in which queries and keys differ. Of two
# splits of three tiles one reaches beyond the end.
CASES = {
  'positive, small': {
    'features': 'positive', 'sizes': {'d': 24, 'm': 32, 'b': 2, 'lq': 70, 'lk': 21},
    'masked': True, 'weighted': True,
  },
  'positive, two splits': {
    'features': 'positive', 'sizes': {'d': 64, 'm': 192, 'lq': 24, 'lk': 131}, 'splits': 2,
  },
  'softmax, one split': {
    'features': 'softmax', 'sizes': {'d': 32, 'm': 256, 'lq': 130, 'lk': 64},
    'weighted': True, 'splits': 1,
  },
  'fourier, small': {
    'features': 'fourier', 'sizes': {'d': 16, 'm': 100, 'b': 2, 'lq': 21, 'lk': 70},
    'smoothing': 1.0, 'masked': True, 'weighted': True,
  },
  'fourier, two splits': {
    'features': 'fourier', 'sizes': {'d': 64, 'm': 64, 'h': 2, 'lq': 129, 'lk': 133},
    'frequency': 0.2, 'masked': True, 'splits': 2,
  },
}  # fmt: skip


SLOW = pytest.mark.slow
QUICK = ('fourier, small',)  # Positive features are compared in the next test, too.


@pytest.mark.parametrize(
  'case', [pytest.param(name, marks=[] if name in QUICK else SLOW) for name in CASES]
)
def test_equals_naive_twin_as_well_as_xla_does(case, monkeypatch):
  case = {'smoothing': 0.0, 'masked': False, 'weighted': False, 'frequency': 1.0} | CASES[case]
  arrays, mask = make_inputs(
    **case['sizes'], weighted=case['weighted'], frequency=case['frequency']
  )
  if 'splits' in case:
    monkeypatch.setattr(fused, 'choose_splits', lambda *sizes: case['splits'])
  options = {name: case[name] for name in ('features', 'smoothing')}
  options['key_mask'] = mask if case['masked'] else None
  run = functools.partial(outputs_and_gradients, **options)
  expected = run(naive_kernel_attention, jax.tree.map(lambda x: x.astype(jnp.float32), arrays))
  # Compiled by itself: what is patched tells no programs apart.
  values = run(functools.partial(fused_output), arrays)
  xla = run(functools.partial(kernel_attention, implementation='xla'), arrays)
  errors, limits = relative_errors(values, expected), relative_errors(xla, expected)
  for name, error in errors.items():
    assert error < 2 * limits[name] + 0.01, (name, errors, limits)
  if case['masked']:
    for name in ('key', 'value'):
      assert np.all(values[name][~np.asarray(mask)] == 0)


@pytest.mark.parametrize('features', ['fourier', pytest.param('positive', marks=SLOW)])
def test_what_values_have_in_common_costs_no_digits(features):
  """The query's gradient is a difference of sums that all values add to."""
  arrays, mask = make_inputs(5, b=2, lq=24, lk=72, h=2, frequency=0.4)
  arrays |= {name: 0.5 * arrays[name] for name in ('query', 'key')}
  far = jnp.array([3, -5], jnp.bfloat16)[:, None]  # Each head has its own.
  arrays['value'] = jnp.where(mask[:, :, None, None], arrays['value'] + far, 100)
  options = {'features': features, 'smoothing': float(features == 'fourier'), 'key_mask': mask}
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = outputs_and_gradients(naive_kernel_attention, exact, **options)
  errors = relative_errors(outputs_and_gradients(fused_output, arrays, **options), expected)
  assert errors['out'] < 0.01
  # With the values as they are, the query's is 0.05, of positive features 0.11.
  assert errors['query'] < 0.03
  assert errors['omega'] < 0.03


def test_denominators_that_are_not_believed_have_their_gradients():
  arrays, mask = make_inputs(6, b=2, lq=24, lk=40, h=2)
  arrays |= {'value': arrays['value'] + 3, 'log_weight': jnp.full((2, 64), -20.0)}
  options = {'features': 'fourier', 'key_mask': mask}
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = outputs_and_gradients(naive_kernel_attention, exact, **options)
  values = outputs_and_gradients(fused_output, arrays, **options)
  assert 0 < np.max(np.abs(values['out'])) < 1  # Weights add up to far less than one.
  for name, error in relative_errors(values, expected).items():
    assert error < 0.02, (name, error)


# Compiled once for two tests.
OF_TWO = {'b': 2, 'lq': 20, 'lk': 72, 'weighted': True}


@pytest.mark.parametrize('features', ['positive', pytest.param('fourier', marks=SLOW)])
def test_examples_without_valid_keys_give_zeros_and_finite_gradients(features):
  arrays, mask = make_inputs(1, **OF_TWO)
  options = {'features': features, 'smoothing': float(features == 'fourier')}
  options['key_mask'] = mask.at[1].set(False)
  values = outputs_and_gradients(fused_output, arrays, **options)
  for name, value in values.items():
    assert np.all(np.isfinite(value)), name
  for name in ('out', 'query', 'key', 'value'):
    assert np.all(values[name][1] == 0), name
    assert np.any(values[name][0] != 0), name
  # Nor do they add to what all examples share.
  expected = outputs_and_gradients(
    naive_kernel_attention, jax.tree.map(lambda x: x.astype(jnp.float32), arrays), **options
  )
  errors = relative_errors(values, expected)
  assert max(errors.values()) < 0.03, errors


@pytest.mark.parametrize('features', ['positive', pytest.param('fourier', marks=SLOW)])
def test_large_norms_stay_finite(features):
  arrays, mask = make_inputs(2, **OF_TWO)
  for name in ('query', 'key'):
    x = np.asarray(arrays[name], np.float32)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    arrays[name] = jnp.asarray(50 * unit, jnp.bfloat16)
  options = {'features': features, 'smoothing': float(features == 'fourier'), 'key_mask': mask}
  values = outputs_and_gradients(fused_output, arrays, **options)
  for name, value in values.items():
    assert np.all(np.isfinite(value)), name
    assert np.any(value != 0), name
  if features != 'fourier':  # A mean of values.
    assert np.max(np.abs(values['out'])) <= 1.01 * np.max(np.abs(wide(arrays['value'])))


@SLOW
def test_kernels_may_cut_the_length_differently(monkeypatch):
  """Beyond the end of what one kernel has written, another must not read what counts."""
  arrays, _ = make_inputs(4, lq=70, lk=70, m=128, frequency=20.0)

  def run(splits):
    # One block for the positions of a head, two for its frequencies.
    monkeypatch.setattr(fused, 'choose_splits', lambda blocks, length: splits if blocks == 2 else 1)
    attend = functools.partial(fused_output)  # Another one: another program.
    return outputs_and_gradients(attend, arrays, features='positive')

  expected, values = run(2), run(3)
  for name, value in values.items():
    assert np.all(np.isfinite(value)), name
  assert max(relative_errors(values, expected).values()) < 0.01


@SLOW
def test_frequencies_may_weigh_nothing():
  arrays, _ = make_inputs(5, lq=9, lk=12, m=128)
  weight = jnp.zeros((1, 128)).at[:, :64].set(-jnp.inf)
  out = fused_output(**arrays, features='positive', log_weight=weight)
  arrays['omega'] = arrays['omega'][:, 64:]
  expected = fused_output(**arrays, features='positive')
  assert relative_errors(wide({'out': out}), wide({'out': expected}))['out'] < 4e-3


def test_gradients_have_the_types_of_what_they_belong_to():
  arrays, _ = make_inputs(6, lq=8, lk=8, d=24, weighted=True)
  arrays = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)

  def loss(arrays):  # Frequencies are used twice.
    out = fused_output(**arrays, features='positive')
    again = fused_output(**{**arrays, 'query': out}, features='positive')
    return jnp.sum(again.astype(jnp.float32))

  shapes = jax.eval_shape(jax.grad(loss), arrays)
  assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
    name: (x.shape, x.dtype) for name, x in arrays.items()
  }


@SLOW
@pytest.mark.parametrize('features', ['positive', 'fourier'])
def test_masked_keys_change_nothing(features):
  arrays, mask = make_inputs(3, lq=16, lk=40)
  more = 45
  pad = lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)), constant_values=30.0)
  padded = {**arrays, 'key': pad(arrays['key']), 'value': pad(arrays['value'])}
  options = {'features': features, 'smoothing': float(features == 'fourier')}
  attend = jax.jit(functools.partial(fused_output, **options))
  out = attend(**padded, key_mask=jnp.pad(mask, ((0, 0), (0, more))))
  errors = relative_errors(wide({'out': out}), wide({'out': attend(**arrays, key_mask=mask)}))
  assert errors['out'] < 4e-3


@SLOW
def test_vmap_equals_a_loop():
  examples = []
  for seed in (5, 6):
    arrays, mask = make_inputs(seed, lq=8, lk=9)
    examples.append(arrays | {'value': arrays['value'] + seed, 'key_mask': mask})
  run = lambda arrays: fused_output(**arrays, features='positive')
  values = jax.jit(jax.vmap(run))(jax.tree.map(lambda *x: jnp.stack(x), *examples))
  expected = jnp.stack(list(map(jax.jit(run), examples)))
  np.testing.assert_array_equal(wide(values), wide(expected))


def test_denominators_of_fourier_features_are_those_of_xla():
  """They are what training counts the nonpositive of."""
  arrays, mask = make_inputs(7, lq=13, lk=9, h=2)
  options = {'features': 'fourier', 'key_mask': mask, 'smoothing': 0.5}
  attend = jax.jit(functools.partial(fused_attention, **options, interpret=INTERPRET))
  _, denominator = attend(**arrays)
  _, expected = jax.jit(functools.partial(attention_sums, **options))(**arrays)
  assert denominator.shape == (1, 13, 2, 1)
  np.testing.assert_allclose(denominator, expected, rtol=0.02, atol=0.02 * np.max(expected))


# Programs for a GPU, made without one.


def shapes(d, m, length, b=1, h=2, dtype=jnp.bfloat16):
  x = jax.ShapeDtypeStruct((b, length, h, d), dtype)
  return x, x, x, jax.ShapeDtypeStruct((h, m, d), jnp.float32)


def lowered_for_cuda(function, arguments):
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=('cuda',))


def gradients_of(attend):
  loss = lambda *arrays: jnp.sum(attend(*arrays).astype(jnp.float32))
  return jax.grad(loss, argnums=(0, 1, 2, 3))


def kernels_of(lowered):
  """Return the MLIR of each kernel."""
  found = []

  def visit(operation):
    target = operation.name == 'stablehlo.custom_call' and operation.attributes['call_target_name']
    if target and 'mosaic_gpu' in str(target):
      code = operation.attributes['mhlo.backend_config']['module']
      found.append(ir.Module.parse(ir.StringAttr(code).value_bytes))
    return ir.WalkResult.ADVANCE

  module = lowered.compiler_ir('stablehlo')
  with module.context as context, ir.Location.unknown():
    context.allow_unregistered_dialects = True
    module.operation.walk(visit)
  return found


def allocated(kernel):
  """Return the bytes of shared memory that a kernel is launched with."""
  sizes = []

  def visit(operation):
    if 'gpu.launch"' in f'{operation.name}"':
      sizes.append(operation.operands[-1].owner.attributes['value'])
    return ir.WalkResult.ADVANCE

  kernel.operation.walk(visit)
  (size,) = sizes
  return ir.IntegerAttr(size).value


@pytest.mark.parametrize(
  ('features', 'd', 'm', 'length'),
  [
    pytest.param('positive', 16, 256, 4008, marks=SLOW),
    ('positive', 64, 256, 4096),
    pytest.param('positive', 64, 100, 8, marks=SLOW),
    pytest.param('fourier', 32, 64, 4008, marks=SLOW),
    pytest.param('fourier', 64, 256, 4096, marks=SLOW),
    pytest.param('fourier', 128, 64, 4008, marks=SLOW),
  ],
)
def test_kernels_lower_for_cuda_in_the_memory_that_was_foreseen(features, d, m, length):
  limit = shared_memory(d, m, features)
  assert limit <= kernels._SHARED_MEMORY
  attend = lambda *arrays: fused_attention(*arrays, features=features)[0]
  found = kernels_of(lowered_for_cuda(gradients_of(attend), shapes(d, m, length, b=64, h=8)))
  # Two forward; two by queries and two by keys backward.
  assert len(found) == 6
  assert max(map(allocated, found)) <= limit


@pytest.mark.parametrize(
  ('features', 'd'),
  [
    ('positive', 128),
    pytest.param('fourier', 64, marks=SLOW),
    pytest.param('fourier', 16, marks=SLOW),
  ],
)
def test_the_most_frequencies_that_are_allowed_lower_for_cuda(features, d, capability):
  capability(9.0)
  allowed = lambda m: kernel_info(*shapes(d, m, 64), features=features).implementation == 'fused'
  most = max(m for m in range(64, 1024, 64) if allowed(m))
  assert not allowed(most + 1)
  attend = lambda *arrays: fused_attention(*arrays, features=features)[0]
  found = kernels_of(lowered_for_cuda(gradients_of(attend), shapes(d, most, 64)))
  assert len(found) == 6
  assert max(map(allocated, found)) <= shared_memory(d, most, features)


@pytest.mark.parametrize('features', ['positive', 'softmax', 'fourier'])
def test_a_forward_pass_is_two_kernels(features):
  attend = lambda *arrays: fused_attention(*arrays, features=features)[0]
  assert len(kernels_of(lowered_for_cuda(attend, shapes(32, 100, 200)))) == 2


# Who runs them.


@pytest.fixture
def capability(monkeypatch):
  """Return a function that pretends that this machine's GPU has a compute capability."""

  def pretend(value):
    monkeypatch.setattr(kernels, 'cuda_capability', lambda: value)
    forget()

  def forget():
    kernels._missing.cache_clear()
    kernels._say.cache_clear()

  forget()
  yield pretend
  monkeypatch.undo()
  forget()


OBSTACLES = [
  ({'dtype': jnp.float32}, {}, 'bfloat16, not float32'),
  ({'dtype': jnp.float16}, {}, 'bfloat16, not float16'),
  ({}, {'causal': True}, 'not causal'),
  ({}, {'features': 'elu'}, "features='elu' have none"),
  ({}, {'features': 'relu'}, "features='relu' have none"),
  ({}, {'smoothing': 0.5}, 'smooth Fourier features alone, got smoothing=0.5'),
  ({}, {'features': 'softmax', 'smoothing': 1.0}, 'alone, got smoothing=1.0'),
  ({'b': 0}, {}, 'there is nothing to compute'),
  ({'d': 129}, {}, 'head sizes up to 128, got 129'),
  ({'m': 513}, {}, "at most 512 frequencies at head size 64 with features='positive', got 513"),
  ({'d': 100, 'm': 129}, {}, 'at most 128 frequencies at head size 100 with .*, got 129'),
  ({'d': 128, 'm': 65}, {'features': 'fourier'}, "at most 64 frequencies at .*'fourier', got 65"),
]


@pytest.mark.parametrize(('sizes', 'options', 'reason'), OBSTACLES)
def test_every_obstacle_has_its_reason(sizes, options, reason, capability):
  capability(9.0)
  *qkv, omega = shapes(**{'d': 64, 'm': 128, 'length': 64} | sizes)
  if options.get('features') in ('elu', 'relu'):
    omega = None
  info = kernel_info(*qkv, omega, **options)
  assert info.implementation == 'xla'
  assert re.search(reason, info.reason)
  with pytest.raises(ValueError, match=reason) as error:
    kernel_info(*qkv, omega, **options, implementation='fused')
  assert "implementation='fused' cannot run here" in str(error.value)
  assert "'auto' and 'xla' can" in str(error.value)


@pytest.mark.parametrize('features', ['positive', 'softmax', 'fourier'])
@pytest.mark.parametrize(
  ('d', 'most', 'most_fourier'), [(16, 512, 512), (32, 512, 512), (64, 512, 384), (128, 128, 64)]
)
def test_the_most_frequencies_are_those_of_the_table(features, d, most, most_fourier, capability):
  """In docs/speed.md."""
  capability(9.0)
  m = most_fourier if features == 'fourier' else most
  assert kernel_info(*shapes(d, m, 64), features=features).implementation == 'fused'
  assert f'at most {m} freq' in kernel_info(*shapes(d, m + 1, 64), features=features).reason
  columns = f'| {d} | {most} | {most_fourier} |'
  assert columns in (pathlib.Path(__file__).parents[2] / 'docs/speed.md').read_text()


def test_values_must_be_as_wide_as_keys(capability):
  capability(9.0)
  query, key, _, omega = shapes(64, 128, 64)
  value = jax.ShapeDtypeStruct((1, 64, 2, 32), jnp.bfloat16)
  assert 'values as wide as keys, got 32 and 64' in kernel_info(query, key, value, omega).reason


@pytest.mark.parametrize(
  ('found', 'words'), [(0.0, 'no CUDA GPU'), (8.0, 'capability 8.0'), (10.0, 'capability 10.0')]
)
def test_other_machines_are_told_what_is_missing(found, words, capability):
  capability(found)
  info = kernel_info(*shapes(64, 128, 64))
  assert info.implementation == 'xla'
  assert 'need a Hopper GPU (compute capability 9.0)' in info.reason
  assert words in info.reason


def test_another_pallas_is_told(capability, monkeypatch):
  capability(9.0)

  def fail(name):
    raise ImportError(f'no {name}')

  monkeypatch.setattr(kernels.importlib, 'import_module', fail)
  assert 'this version of JAX has another Pallas (no kl' in kernel_info(*shapes(64, 128, 64)).reason


def test_fused_elsewhere_is_an_error_that_names_the_way_out(capability):
  """In the function and in the module, at trace time."""
  capability(0.0)
  arrays, _ = make_inputs()
  message = "'fused' cannot run here: .*need a Hopper GPU.*'auto' and 'xla' can"
  with pytest.raises(ValueError, match=message):
    kernel_attention(**arrays, implementation='fused')
  attention = KernelAttention(GaussianMixture(8), implementation='fused')
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  with pytest.raises(ValueError, match=message):
    attention.init(rngs, arrays['query'], arrays['key'], arrays['value'])


def test_unknown_implementations_are_errors():
  with pytest.raises(ValueError, match="one of .*'auto', 'xla', 'fused'.*, got 'magic'"):
    kernel_info(*shapes(64, 128, 64), implementation='magic')


@pytest.mark.parametrize('implementation', ['auto', pytest.param('fused', marks=SLOW)])
@pytest.mark.parametrize(
  ('options', 'smoothing'),
  [({}, 0.0), ({'features': 'softmax'}, 0.0), ({'features': 'fourier'}, 1.0)],
)
def test_a_hopper_gpu_runs_the_fused_kernels(implementation, options, smoothing, capability):
  capability(9.0)
  arguments = shapes(64, 128, 64)
  info = kernel_info(*arguments, implementation=implementation, **options)
  assert info == ('fused', 'this GPU has fused kernels')
  assert kernel_info(*arguments, implementation='xla', **options) == ('xla', 'it was asked for')
  attend = functools.partial(kernel_attention, smoothing=smoothing, **options)
  for chosen, count in ((implementation, 2), ('xla', 0)):
    run = lambda *arrays, chosen=chosen: attend(*arrays, implementation=chosen)
    assert len(kernels_of(lowered_for_cuda(run, arguments))) == count


def test_auto_says_once_for_each_reason_what_it_fell_back_to(capability, caplog):
  capability(9.0)
  caplog.set_level(logging.INFO, 'kl_flax.kernels')
  arrays, _ = make_inputs(lq=3, lk=3, m=4)
  wider = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  trace = lambda arrays, **options: jax.eval_shape(lambda: kernel_attention(**arrays, **options))
  for _ in range(2):
    trace(wider)
    trace(arrays, causal=True)
  trace(wider, features='softmax')
  trace(arrays, smoothing=1.0, implementation='xla')
  said = [record.getMessage() for record in caplog.records if record.name == 'kl_flax.kernels']
  assert len(said) == 2
  assert all(line.startswith('Kernel attention is compiled by XLA, not fused: ') for line in said)
  assert 'float32' in said[0]
  assert 'causal' in said[1]


# The cut of the length.


def cost(blocks, length, splits, slots):
  """Return the tiles that the busiest slot goes over if blocks are dealt out in waves."""
  tiles = -(-length // 64)
  waves = -(-(blocks * splits) // slots)
  return waves * (-(-tiles // splits) + 2)


@settings(max_examples=100)
@given(
  blocks=st.integers(1, 5000), length=st.integers(1, 20_000), slots=st.sampled_from([1, 7, 396])
)
def test_splits_are_the_cheapest_there_are(blocks, length, slots):
  splits = choose_splits(blocks, length, slots)
  tiles = -(-length // 64)
  assert 1 <= splits <= tiles
  assert whole_length(length, splits) >= length  # Nothing is left out.
  costs = [cost(blocks, length, s, slots) for s in range(1, min(tiles, slots) + 1)]
  assert cost(blocks, length, splits, slots) == min(costs)
  if blocks >= slots and blocks % slots == 0:
    assert splits == 1  # The device is full already.
  # The same work for more blocks is never done earlier.
  more = choose_splits(blocks + 1, length, slots)
  assert cost(blocks + 1, length, more, slots) >= min(costs)


@pytest.mark.parametrize(
  ('blocks', 'length', 'expected'), [(1, 64, 1), (1, 65, 2), (1, 4096, 64), (396, 4096, 1)]
)
def test_splits_of_a_device_that_is_idle_or_full(blocks, length, expected):
  assert choose_splits(blocks, length) == expected
