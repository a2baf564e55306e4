"""What the tests of attention mechanisms with masks have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

STREAMS = ('params', 'dropout')


def make_inputs(length, seed=0, batch=2, heads=2, size=4, value_size=3):
  """Return queries, keys and values, and a mask under which the first position is valid."""
  rng = np.random.default_rng(seed)
  normal = lambda size: rng.normal(size=(batch, length, heads, size)).astype(np.float32)
  inputs = normal(size), normal(size), normal(value_size)
  mask = rng.random((batch, length)) < 0.7
  mask[:, 0] = True
  return inputs, mask


def make_params(module, inputs, seed=0):
  """Return random parameters of the module."""
  rngs = dict.fromkeys(STREAMS, jax.random.key(0))
  shapes = jax.eval_shape(module.init, rngs, *inputs).get('params', {})
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnames=('module', 'deterministic'))
def apply(module, params, inputs, mask=None, seed=0, *, deterministic=True):
  rngs = {'dropout': jax.random.key(seed)}
  variables = {'params': params}
  return module.apply(variables, *inputs, mask, deterministic=deterministic, rngs=rngs)


def _weights(shape):
  return np.cos(np.arange(np.prod(shape))).reshape(shape)


@functools.partial(jax.jit, static_argnames='module')
def output_and_gradients(module, params, inputs, mask=None):
  """Return the output and the gradients of a weighted sum of it, of inputs and parameters."""

  def loss(leaves):
    out = apply(module, leaves['params'], leaves['inputs'], mask)
    return jnp.sum(out.astype(jnp.float32) * _weights(out.shape)), out

  gradients, out = jax.grad(loss, has_aux=True)({'inputs': inputs, 'params': params})
  return out, gradients


def assert_equals_golden(module, golden, length, masked, seed=0):
  """Assert equality with a float64 function of inputs, parameters and mask, in all derivatives.

  The function's gradients are differences along random directions.
  """
  inputs, mask = make_inputs(length, seed)
  params = make_params(module, inputs)
  mask = mask if masked else None
  out, gradients = jax.device_get(output_and_gradients(module, params, inputs, mask))
  mask = np.ones(inputs[0].shape[:2], bool) if mask is None else mask
  wide = jax.tree.map(lambda x: x.astype(np.float64), {'inputs': inputs, 'params': params})
  run = lambda leaves: golden(*leaves['inputs'], leaves['params'], mask)
  np.testing.assert_allclose(out, run(wide), rtol=0, atol=1e-5)
  leaves, tree = jax.tree.flatten(wide)
  rng = np.random.default_rng(seed)
  for i, gradient in enumerate(jax.tree.leaves(gradients)):
    step = 1e-5 * rng.normal(size=leaves[i].shape)
    ends = []
    for sign in (1, -1):
      moved = [leaf + sign * step if i == j else leaf for j, leaf in enumerate(leaves)]
      ends.append(run(jax.tree.unflatten(tree, moved)))
    expected = np.sum(_weights(out.shape) * (ends[0] - ends[1])) / 2
    scale = 1e-5 * max(1.0, np.linalg.norm(gradient))
    np.testing.assert_allclose(np.sum(gradient * step), expected, rtol=0, atol=1e-4 * scale)


def assert_masked_positions_do_not_count(module, length, more):
  """Assert that neither what stands at masked positions nor how many there are counts."""
  inputs, mask = make_inputs(length)
  params = make_params(module, inputs)
  expected = np.asarray(apply(module, params, inputs, mask))
  rng = np.random.default_rng(1)
  others = [np.where(mask[..., None, None], x, 9 * rng.normal(size=x.shape)) for x in inputs]
  others = tuple(x.astype(np.float32) for x in others)
  np.testing.assert_allclose(
    np.asarray(apply(module, params, others, mask))[mask], expected[mask], rtol=1e-5, atol=1e-6
  )
  widths = ((0, 0), (0, more), (0, 0), (0, 0))
  longer = tuple(np.pad(x, widths, constant_values=3.0) for x in others)
  padded = np.asarray(apply(module, params, longer, np.pad(mask, widths[:2])))
  np.testing.assert_allclose(padded[:, :length][mask], expected[mask], rtol=1e-4, atol=1e-5)
  assert np.std(expected[mask]) > 0.05
  # And the mask does count.
  assert not np.allclose(apply(module, params, inputs)[mask], expected[mask], atol=1e-2)


def assert_rows_without_keys_are_zero(module, length):
  inputs, mask = make_inputs(length)
  mask[1] = False
  out, gradients = output_and_gradients(module, make_params(module, inputs), inputs, mask)
  assert np.all(out[1] == 0)
  assert np.any(out[0] != 0)
  for gradient in jax.tree.leaves(gradients):
    assert np.all(np.isfinite(gradient))
  for gradient in gradients['inputs']:
    assert np.all(gradient[1] == 0)
  # Nor do zeros, of which no vector of length 1 can be made, break anything.
  zeros = jax.tree.map(np.zeros_like, inputs)
  for leaf in jax.tree.leaves(
    output_and_gradients(module, make_params(module, inputs), zeros, mask)
  ):
    assert np.all(np.isfinite(leaf))


def assert_bfloat16_is_close(module, length):
  inputs, mask = make_inputs(length)
  params = make_params(module, inputs)
  narrow = tuple(x.astype(jnp.bfloat16) for x in inputs)
  out, gradients = output_and_gradients(module, params, narrow, mask)
  assert out.dtype == jnp.bfloat16
  assert {g.dtype for g in gradients['inputs']} == {jnp.dtype(jnp.bfloat16)}
  wide = tuple(np.asarray(x, np.float32) for x in narrow)
  expected = np.asarray(apply(module, params, wide, mask))[mask]
  np.testing.assert_allclose(np.asarray(out, np.float32)[mask], expected, atol=0.05)


def assert_dropout_averages_to_the_prediction(module, length):
  """`module` drops weights at a rate of 0.5."""
  inputs, mask = make_inputs(length)
  params = make_params(module, inputs)
  expected = apply(module, params, inputs, mask)
  np.testing.assert_array_equal(apply(module, params, inputs, mask, 1), expected)
  run = lambda seed: apply(module, params, inputs, mask, seed, deterministic=False)
  outs = np.asarray(jax.jit(jax.vmap(run))(np.arange(2_000)), np.float64)
  error = np.std(outs, axis=0) / np.sqrt(len(outs))
  assert np.all(error[mask] > 0)
  assert np.all(np.abs(np.mean(outs, axis=0) - expected)[mask] < 5 * error[mask])


def assert_no_square(module, length=512, share=0.5):
  """Assert that no array of either pass has two axes of the length, or a share of its square."""
  shape = jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)
  inputs, mask = (shape,) * 3, jax.ShapeDtypeStruct((1, length), bool)
  params = make_params(module, inputs)
  jaxpr = jax.make_jaxpr(functools.partial(output_and_gradients, module))(params, inputs, mask)
  shapes = list(_shapes(jaxpr.jaxpr))
  assert len(shapes) > 50
  for shape in shapes:
    assert sum(n >= length for n in shape) < 2, shape
    assert np.prod(shape) < share * length**2, shape


def _shapes(jaxpr):
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.shape
    for parameter in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(parameter, 'jaxpr', parameter)
      if hasattr(inner, 'eqns'):
        yield from _shapes(inner)
