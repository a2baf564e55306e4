import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but
from flax.traverse_util import flatten_dict

from kl_flax import inspection
from kl_flax.attention import KernelAttention
from kl_flax.encoder import MultiHeadAttention, sinusoidal_positions
from kl_flax.inspection import capture, capture_inputs, maps
from kl_flax.models import MODELS, make_classifier
from kl_flax.orthogonal import Gaussian
from kl_flax.predictor import Predictor
from kl_flax.spectral import GaussianMixture
from kl_flax.tokenizers import ByteTokenizer

SIZES = {
  'num_classes': 3, 'vocab_size': 257, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 2, 'qkv_dim': 8,
  'mlp_dim': 8, 'max_length': 16,
}  # fmt: skip
IDS = np.array([[5, 9, 2, 7, 7, 3], [4, 4, 8, 0, 0, 0]])
MASK = IDS > 0


def make(model_type='gmm_prf', attention=None, **options):
  if attention is None:
    attention = {'num_frequencies': 8} if 'num_frequencies' in MODELS[model_type].options else {}
  model = make_classifier(model_type, attention=attention, **SIZES | options)
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  shape = (1, 4) if model.num_inputs == 1 else (1, 2, 16)
  return model, jax.jit(model.init)(rngs, jnp.zeros(shape, jnp.int32))['params']


@pytest.fixture(scope='module')
def layers():
  return capture(*make(), IDS, MASK)


def test_queries_and_keys_are_the_projections(layers):
  """Embedding, position, normalisation and product by hand, for the first layer."""
  _, params = make()
  encoder = params['encoder']
  x = np.asarray(encoder['embedding']['table'])[IDS]
  x = np.concatenate([np.broadcast_to(encoder['cls'], (2, 1, 8)), x], axis=1)
  x = x + sinusoidal_positions(7, 8)
  x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
  norm = encoder['block_0']['attention_norm']
  x = x * norm['scale'] + norm['bias']
  kernel = np.asarray(encoder['block_0']['attention']['qkv'])
  found = layers[0]
  for i, ours in enumerate((found.query, found.key, found.value)):
    expected = np.einsum('blf,fhd->blhd', x, kernel[:, i])
    np.testing.assert_allclose(ours[:, :7], expected, rtol=1e-4, atol=1e-5)
  # CLS first, then the sequence; the encoder pads to a multiple of 8.
  np.testing.assert_array_equal(found.key_mask.sum(axis=1), [7, 4])
  assert found.key_mask.shape == (2, 8)
  assert found.path == 'encoder/block_0/attention/KernelAttention_0'
  assert found.params.keys() == {'mean', 'log_variance'}
  assert (found.num_heads, found.head_dim) == (2, 4)


MAPS = {
  'gmm_prf': {},
  'gmm_rks': {},
  'weighted': {'model_type': 'gmm_prf', 'attention': {
    'num_frequencies': 8, 'tied': False, 'weights': 'learned', 'typical_norm': 1.0}},
  'fastfood_rks': {},
  'performer': {},
  'linear_transformer': {},
  'transformer': {},
  'local': {'attention': {'block_size': 4}},
  'longformer': {'attention': {'sliding_window_size': 4, 'global_projections': False}},
  'bigbird': {'attention': {'block_size': 2, 'num_global_blocks': 1, 'num_rand_blocks': 1}},
  'sparse_transformer': {'attention': {'block_size': 4, 'num_summary': 1}},
  'linformer': {'attention': {'projected_length': 3}},
  'reformer': {'attention': {'chunk_length': 4}},
  'sinkhorn': {'attention': {'block_size': 4}},
  'synthesizer': {},
}  # fmt: skip


# Of each kind: from frequencies, with weights, by unit vectors, with sums that are not one.
_FAST = ('gmm_prf', 'transformer', 'sinkhorn')
# About one, or anything.
_SUMS = {'sinkhorn': 0.1, 'linformer': 99}


@pytest.mark.parametrize('name', slow_but(_FAST, MAPS))
def test_maps_are_what_the_model_applied(name):
  """Rows sum to one, and with the values they give the output."""
  options = {'model_type': name} | MAPS[name]
  (layer,) = capture(*make(**options, num_layers=1), IDS, MASK)
  for sequence, count in enumerate((7, 4)):
    weights = inspection.attention_map(layer, sequence)
    assert weights.shape == (2, count, count)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=_SUMS.get(name, 1e-5))
    valid = layer.key_mask[sequence]
    expected = np.einsum('hrs,shd->rhd', weights, layer.value[sequence, valid])
    np.testing.assert_allclose(layer.output[sequence, valid], expected, rtol=1e-3, atol=1e-4)


def test_unit_vectors_for_values_give_the_weights_of_softmax():
  (layer,) = capture(*make('transformer', num_layers=1), IDS, MASK)
  for sequence, count in enumerate((7, 4)):
    rows = np.array([2, 0])
    found = maps._measured_map(layer, sequence, np.arange(count), rows)
    expected = inspection.attention_map(layer, sequence, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_global_tokens_weigh_values_of_their_own():
  (layer,) = capture(*make('longformer', {'sliding_window_size': 2}, num_layers=1), IDS, MASK)
  assert layer.more.keys() == {'global_query', 'global_key', 'global_value'}
  weights = inspection.attention_map(layer, 1)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
  seen = np.abs(np.subtract.outer(range(4), range(4))) <= 1
  seen[0] = seen[:, 0] = True
  np.testing.assert_array_equal(weights > 0, np.broadcast_to(seen, weights.shape))
  dots = np.einsum('hd,shd->hs', layer.more['global_query'][1, 0], layer.more['global_key'][1, :4])
  np.testing.assert_allclose(weights[:, 0], jax.nn.softmax(dots / 2), rtol=1e-5)


def test_mechanisms_without_weights_say_so():
  class Largest(nn.Module):
    projections = ('value',)

    def __call__(self, query, key, value, key_mask=None, *, deterministic=True):
      return jnp.broadcast_to(value.max(axis=1, keepdims=True), value.shape)

  model = MultiHeadAttention(Largest, num_heads=2, qkv_dim=8)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 6)), jnp.float32)
  (layer,) = capture(model, model.init(jax.random.key(0), x)['params'], x)
  assert (layer.query, layer.key, layer.num_heads, layer.head_dim) == (None, None, 2, 4)
  with pytest.raises(ValueError, match='Largest is not linear in its values'):
    inspection.attention_map(layer)


def test_rows_of_maps_do_not_depend_on_others(layers, monkeypatch):
  whole = inspection.attention_map(layers[1])
  monkeypatch.setattr(maps, '_VALUES_AT_ONCE', 300)  # Two rows at a time.
  some = inspection.attention_map(layers[1], rows=[3, 0, 6])
  np.testing.assert_allclose(some, whole[:, [3, 0, 6]], rtol=1e-5, atol=1e-6)


class SelfAttention(nn.Module):
  """Attention of a model that is none of the package's; the sampler stands where Flax puts it."""

  where: str

  def setup(self):
    if self.where == 'setup':
      self.attention = KernelAttention(GaussianMixture(8))

  @nn.compact
  def __call__(self, x):
    query, key, value = (nn.DenseGeneral((2, 4))(x) for _ in range(3))
    if self.where == 'setup':
      return x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1))(self.attention(query, key, value))
    sampler = GaussianMixture(8)
    attended = KernelAttention(sampler)(query, key, value)
    if self.where == 'shared':
      attended += KernelAttention(sampler, 'fourier')(query, key, value)
    return x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1))(attended)


@pytest.mark.parametrize('where', ['setup', 'compact', 'shared'])
def test_samplers_inside_and_beside_their_attention(where):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x, key_mask=None):
      return SelfAttention(where)(SelfAttention(where)(x))

  model, x = Model(), np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
  params = model.init({'params': jax.random.key(0), 'spectral': jax.random.key(1)}, x)['params']
  layers = capture(model, params, x)
  assert len(layers) == (4 if where == 'shared' else 2)
  means = [x for path, x in flatten_dict(params).items() if path[-1] == 'mean']
  assert len(means) == 2
  for layer in layers:
    assert any(np.array_equal(layer.params['mean'], mean) for mean in means)
    weights = inspection.attention_map(layer, 1)
    expected = np.einsum('hrs,shd->rhd', weights, layer.value[1])
    np.testing.assert_allclose(layer.output[1], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inspection.exact_map(layer, 1).sum(axis=-1), 1, rtol=1e-5)
    assert inspection.error_report(layer, num_draws=9).measured.min() > 0
  assert len(inspection.eigenvalue_rows(layers)) == 2 * len(layers)
  assert not np.array_equal(layers[0].omega, layers[-1].omega)


def test_a_function_for_a_sampler_is_no_obstacle():
  omega = jnp.ones((1, 3, 4))

  class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs, key_mask=None):
      return KernelAttention(lambda num_heads, head_dim: omega)(*inputs)

  x = np.random.default_rng(0).normal(size=(3, 2, 5, 1, 4)).astype(np.float32)
  (layer,) = capture(Model(), {}, x)
  assert layer.omega is None
  assert layer.output.shape == x.shape[1:]


def test_causal_maps_see_no_later_key():
  x = np.random.default_rng(0).normal(size=(3, 2, 5, 1, 4)).astype(np.float32)

  class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs, key_mask=None):
      return KernelAttention(Gaussian(8, parent=None), causal=True)(*inputs)

  (layer,) = capture(Model(), {}, x, spectral_key=jax.random.key(2))
  assert layer.params == {}
  for found in (inspection.attention_map(layer, 1), inspection.exact_map(layer, 1)):
    assert np.all(np.triu(found[0], 1) == 0)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
  expected = np.einsum('hrs,shd->rhd', inspection.attention_map(layer, 1), layer.value[1])
  np.testing.assert_allclose(layer.output[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('model_type', slow_but(['gmm_prf'], ['gmm_prf', 'gmm_rks']))
def test_many_frequencies_approach_the_exact_map(model_type):
  model, params = make(model_type, {'num_frequencies': 20_000}, num_layers=1)
  layer = capture(model, params, IDS, MASK)[0]
  # Nearer to zero, where tails are light enough to be drawn.
  layer = dataclasses.replace(layer, query=layer.query / 2, key=layer.key / 2)
  exact = inspection.exact_map(layer, 0)
  np.testing.assert_allclose(exact.sum(axis=-1), 1)
  np.testing.assert_allclose(inspection.exact_map(layer, 0, rows=[2]), exact[:, [2]])
  off = np.abs(inspection.attention_map(layer, 0) - exact).max()
  few = dataclasses.replace(layer, omega=layer.omega[:, :8])
  assert off < 0.01
  assert np.abs(inspection.attention_map(few, 0) - exact).max() > 4 * off


def test_capture_has_the_frequencies_of_predictions(monkeypatch):
  model, params = make(num_layers=1)
  predictor = Predictor(model, params, ByteTokenizer(), jax.random.key(3))
  found = capture_inputs(predictor, 'kernel')
  drawn = []

  def look(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if (context.module.name, context.method_name) == ('sampler', '__call__'):
      drawn.append(np.asarray(out))
    return out

  # Without compilation, or nothing but tracers would be seen.
  predict = lambda params, *batch: predictor._probabilities(params, *map(jnp.asarray, batch))
  monkeypatch.setattr(predictor, '_predict', predict)
  with nn.intercept_methods(look):
    predictor.predict('kernel')
  for layer, omega in zip(found, drawn, strict=True):
    np.testing.assert_allclose(layer.omega, omega, rtol=1e-5, atol=1e-6)
  ids = ByteTokenizer().encode('kernel')
  others = capture_inputs(predictor, [ids], draw=1, encoded=True)
  assert np.abs(others[0].omega - found[0].omega).max() > 0.1
  np.testing.assert_allclose(others[0].query, found[0].query, rtol=1e-5)
  with pytest.raises(ValueError, match='capture_inputs needs at least one input'):
    capture_inputs(predictor, [])


def test_pairs_and_shared_layers():
  model, params = make(num_inputs=2, tied_weights=True, pooling='FLATTEN')
  predictor = Predictor(model, params, ByteTokenizer(), jax.random.key(3))
  found = capture_inputs(predictor, [('one', 'four'), ('a', 'b')])
  assert [layer.path for layer in found] == ['encoder/block/attention/KernelAttention_0'] * 2
  assert found[0].key_mask.sum(axis=1).tolist() == [3, 4, 1, 1]
  assert np.abs(found[0].query - found[1].query).max() > 1e-3
  assert found[0].params is not None
  assert [row.layer for row in inspection.eigenvalue_rows(found)] == [1, 1, 2, 2]


def test_pairs_of_positions_are_valid_ones(layers):
  query, key = inspection.sample_pairs(layers[1], 300)
  assert query.shape == key.shape == (300, 2, 4)
  layer = layers[1]
  for x, whole in ((query, layer.query), (key, layer.key)):
    rows = {row.tobytes() for row in whole[layer.key_mask]}
    assert {row.tobytes() for row in x} == rows  # All valid ones, and no padding.


def test_error_report_is_of_the_layer(layers):
  layer = layers[0]  # Nearer to zero, where tails are light enough to be drawn.
  layer = dataclasses.replace(layer, query=layer.query / 4, key=layer.key / 4)
  report = inspection.error_report(layer, num_pairs=30, num_draws=50)
  assert report.measured.shape == report.predicted.shape == (2, 30)
  assert 0.7 < np.median(report.measured) / np.median(report.predicted) < 1.4
  text = inspection.error_table([report], [report]).splitlines()
  assert len(text) == 2 + 4
  assert text[2].startswith('| 1 | 1 | trained | ')
  assert '–' not in text[2]
  fastfood = capture(*make('fastfood_prf', num_layers=1), IDS, MASK)[0]
  report = inspection.error_report(fastfood, num_pairs=5, num_draws=5)
  assert '| – | – |' in inspection.error_table([report])


def test_eigenvalue_tables():
  model, params = make('gmm_rks', {'num_frequencies': 8, 'tied': False}, num_layers=1)
  layer = capture(model, params, IDS, MASK)[0]
  scale = np.random.default_rng(0).normal(size=(2, 2, 4, 4))
  layer.params['scale'] = scale
  rows = inspection.eigenvalue_rows([layer])
  assert [row[:3] for row in rows] == [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2)]
  for row in rows:
    s = scale[row.head - 1, row.component - 1]
    values = np.linalg.eigvalsh(s @ s.T)
    expected = [values.min(), values.max(), values.mean()]
    np.testing.assert_allclose(row[3:], expected, rtol=1e-5, atol=1e-9)
  header = inspection.eigenvalue_table(rows, rows).splitlines()[0]
  assert header.startswith('| layer | head | component | trained, minimum |')
  assert header.endswith('| initial, mean |')


@pytest.mark.slow
def test_eigenvalues_of_other_samplers_are_measured():
  layer = capture(*make('performer', num_layers=1), IDS, MASK)[0]
  for row in inspection.eigenvalue_rows([layer]):
    assert row[3:] == (1, 1, 1)
  layer = capture(*make('generative_prf', num_layers=1), IDS, MASK)[0]
  for row in inspection.eigenvalue_rows([layer]):
    assert 0 < row.minimum < row.mean < row.maximum < 1  # Frequencies lie in (−1, 1).


def test_what_cannot_be_shown_is_named(layers):
  with pytest.raises(ValueError, match='sequence must be in 0 to 1, got 2'):
    inspection.attention_map(layers[0], 2)
  with pytest.raises(ValueError, match='rows must be in 0 to 3, got 1 to 4'):
    inspection.attention_map(layers[0], 1, rows=[1, 4])
  softmax = capture(*make('transformer', num_layers=1), IDS, MASK)
  for function in (inspection.error_report, inspection.exact_map):
    with pytest.raises(ValueError, match='SoftmaxAttention_0'):
      function(softmax[0])
  with pytest.raises(ValueError, match='has no frequencies, hence no spectral covariance'):
    inspection.eigenvalue_rows(softmax)
  fastfood = capture(*make('fastfood_prf', num_layers=1), IDS, MASK)[0]
  with pytest.raises(ValueError, match='no closed form, see attention_map'):
    inspection.exact_map(fastfood)

  class Nothing(nn.Module):
    def __call__(self, inputs, key_mask=None):
      return inputs

  with pytest.raises(ValueError, match='Nothing has no attention to look into'):
    capture(Nothing(), {}, IDS)
