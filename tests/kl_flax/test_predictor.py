import functools
import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import slow_but

from kl_flax.models import make_classifier
from kl_flax.predictor import Predictor, _check_params
from kl_flax.tokenizers import (
  ByteTokenizer,
  PixelTokenizer,
  WordPieceTokenizer,
  train_wordpiece,
)
from kl_flax.votes import count_votes

SIZES = {
  'num_classes': 3, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 1, 'qkv_dim': 8, 'mlp_dim': 8,
  'attention': {'num_frequencies': 4},
}  # fmt: skip


def make(tokenizer, max_length, model_type='gmm_prf', **options):
  settings = SIZES if model_type != 'transformer' else SIZES | {'attention': {}}
  model = make_classifier(
    model_type, vocab_size=tokenizer.vocab_size, max_length=max_length, **settings | options
  )
  shape = (1, max_length) if model.num_inputs == 1 else (1, 2, max_length)
  rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  params = jax.jit(model.init)(rngs, jnp.zeros(shape, jnp.int32))['params']
  return Predictor(model, params, tokenizer, jax.random.key(2))


@pytest.fixture(scope='module')
def pairs():
  return make(ByteTokenizer(), 64, num_inputs=2, interaction='NLI')


def test_pairs(pairs, caplog):
  inputs = [('one', 'two'), (b'two', 'o' * 40), ('x' * 99, 'y'), ('one', 'two')]
  prediction = pairs.predict(inputs)
  assert prediction.probabilities.shape == (4, 3)
  assert '1 of 4 inputs were cut' in caplog.text
  np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-5)
  for i, pair in enumerate(inputs):  # Alone, and padded otherwise: the same.
    alone = pairs.predict([pair]).probabilities[0]
    np.testing.assert_allclose(alone, prediction.probabilities[i], rtol=1e-4)
  swapped = pairs.predict([('two', 'one')]).probabilities[0]
  assert np.abs(swapped - prediction.probabilities[0]).max() > 1e-4


@pytest.mark.parametrize(
  ('inputs', 'error', 'message'),
  [
    (['ab'], ValueError, r"input 0: expected a pair \(first, second\), got 'ab'"),
    (('a', 'b'), ValueError, r"got 'a'; a single one is given as \[\(first, second\)\]"),
    ([('a', 'b', 'c')], ValueError, 'input 0: expected a pair'),
    ([('a', 'b'), ('a', '')], ValueError, 'input 1: no tokens'),
    ([], ValueError, 'at least one input'),
  ],
)
def test_what_is_no_pair_is_an_error(pairs, inputs, error, message):
  with pytest.raises(error, match=message):
    pairs.predict(inputs)


@pytest.fixture(scope='module')
def image_model():
  return make(PixelTokenizer(16), 16)


def test_images(image_model):
  images = np.arange(48).reshape(3, 4, 4).astype(np.uint8)
  whole = image_model.predict(images)
  assert whole.labels.shape == (3,)
  black = image_model.predict([np.zeros((4, 4), np.uint8)])
  assert np.all(np.isfinite(black.probabilities))


@pytest.mark.parametrize('shape', [(4, 4), (4, 4, 1), (16,), (1, 4, 4), (1, 16)])
def test_a_single_image_is_one_input(shape, image_model):
  images = np.arange(48).reshape(3, 4, 4).astype(np.uint8)
  one = image_model.predict(images[1].reshape(shape))
  expected = image_model.predict(images[1:2]).probabilities
  np.testing.assert_array_equal(one.probabilities, expected)
  assert image_model.vote(images[1], 2).labels.shape == (1,)
  on_device = image_model.predict(jnp.asarray(images[1].reshape(shape)))
  np.testing.assert_array_equal(on_device.probabilities, one.probabilities)


@pytest.mark.parametrize(
  ('inputs', 'message'),
  [
    (np.zeros((4, 5), np.uint8), r'input 0: .* of 16 pixels, got an array of shape \(4, 5\)'),
    (np.zeros(5, np.uint8), r'input 0: .* of 16 pixels, got an array of shape \(5,\)'),
    (np.zeros((2, 4, 5), np.uint8), r'input 0: .* got an array of shape \(4, 5\)'),
    (np.zeros((4, 4)), 'input 0: expected an image of integers 0 to 255, got float64'),
    (np.zeros((0, 4, 4), np.uint8), 'predict needs at least one input'),
  ],
)
def test_what_is_no_image_is_an_error(inputs, message, image_model):
  with pytest.raises((TypeError, ValueError), match=message):
    image_model.predict(inputs)


def test_predictions_have_the_names_of_their_classes(texts, tmp_path):
  assert texts.class_names is texts.predict('a').names is texts.vote('a', 2).names is None
  names = ('x', 'y')
  named = Predictor(
    texts.model, texts.params, texts.tokenizer, texts.spectral_key, class_names=list(names)
  )
  assert named.class_names == names
  for found in (named.predict(INPUTS), named.vote(INPUTS, 2)):
    assert found.names == [names[label] for label in found.labels]
  named.export(tmp_path / 'model', platforms=['cpu'])
  assert json.loads((tmp_path / 'model.json').read_text())['class_names'] == list(names)
  with pytest.raises(ValueError, match=r"2 classes need as many names, got \('x',\)"):
    Predictor(texts.model, texts.params, texts.tokenizer, texts.spectral_key, class_names=names[:1])


def test_of_two_sentences_the_longer_one_is_cut(caplog, tmp_path):
  words = [f'{a}{b}' for a in 'abcdefgh' for b in 'klmnop']
  tokenizer = train_wordpiece([' '.join(words)] * 3, 300)
  predictor = make(tokenizer, 16, 'transformer', separator=tokenizer.separator)
  long, short = ' '.join(words[:30]), ' '.join(words[30:34])
  tokens = predictor.encode([(long, short), short, (short, long)])
  assert '2 of 3 inputs were cut at max_length=16.' in caplog.text
  for (ids,), text in zip(tokens, [(long, short), short, (short, long)], strict=True):
    np.testing.assert_array_equal(ids, tokenizer.encode(text, 16))
  assert [len(ids) for (ids,) in tokens] == [16, 5, 16]
  assert [int(np.sum(ids == tokenizer.separator)) for (ids,) in tokens] == [2, 1, 2]
  # Ids are what they are.
  (ids,) = predictor.encode([np.arange(3, 40)], encoded=True)[0]
  np.testing.assert_array_equal(ids, np.arange(3, 19))
  predictor.export(tmp_path / 'model.jax')
  about = json.loads((tmp_path / 'model.jax.json').read_text())
  assert WordPieceTokenizer(json.dumps(about['tokenizer']['definition'])).encode(short).size == 5


def test_lengths_that_matter_are_those_of_training():
  """Big Bird's random blocks depend on how far a sequence is padded."""
  options = {'attention': {'block_size': 2, 'num_rand_blocks': 1, 'num_global_blocks': 1}}
  predictor = make(ByteTokenizer(), 100, 'bigbird', **options)
  assert predictor._bucket(3) == predictor._bucket(70) == 100
  assert make(ByteTokenizer(), 100, 'transformer')._bucket(3) < 100


# Votes.


@pytest.fixture(scope='module')
def texts():
  return make(ByteTokenizer(), 32, num_classes=2)


INPUTS = [f'input {i} {"x" * (i % 7)}' for i in range(35)]


@functools.partial(jax.jit, static_argnums=0)
def logits_of_draw(model, params, ids, draw):
  rngs = {'spectral': jax.random.fold_in(jax.random.key(2), draw)}
  return model.apply({'params': params}, ids, rngs=rngs)


def logits_of(predictor, text, draw):
  """The logits of one input, without padding, by one of the draws."""
  ids = jnp.asarray(predictor.tokenizer.encode(text), jnp.int32)[None]
  return np.asarray(logits_of_draw(predictor.model, predictor.params, ids, draw))[0]


def test_votes_are_those_of_separate_draws(texts):
  vote = texts.vote(INPUTS, samples=5)
  assert (vote.votes.sum(axis=1) == 5).all()
  for i in (0, 34):  # In a batch of 32, and alone.
    logits = np.stack([logits_of(texts, INPUTS[i], draw) for draw in range(5)])
    expected = count_votes(logits[:, None])
    np.testing.assert_array_equal(vote.votes[i], expected.votes[0])
    np.testing.assert_allclose(vote.probabilities[i], expected.probabilities[0], rtol=1e-4)
    # With two classes the log-odds are the difference of the logits: the paper's output.
    output = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(np.abs(vote.log_odds[i]), np.abs(output), rtol=1e-2, atol=1e-4)
    assert vote.relative_deviation[i] == pytest.approx(output.std() / abs(output.mean()), rel=1e-2)
  assert np.any(vote.probabilities != texts.predict(INPUTS).probabilities)


def test_the_first_draw_is_that_of_predictions(texts):
  vote = texts.vote(INPUTS[:3], samples=1)
  prediction = texts.predict(INPUTS[:3])
  np.testing.assert_array_equal(vote.labels, prediction.labels)
  np.testing.assert_allclose(vote.probabilities, prediction.probabilities, rtol=1e-4)
  assert (vote.inconsistency == 0).all()


def test_the_key_of_the_frequencies_may_be_set_anew(texts):
  other = Predictor(texts.model, texts.params, texts.tokenizer, jax.random.key(5))
  one = Predictor(texts.model, texts.params, texts.tokenizer, texts.spectral_key)
  before = one.predict(['a text']).probabilities
  one.vote(['a text'], 3)
  one.spectral_key = other.spectral_key
  expected = other.predict(['a text']).probabilities
  assert np.abs(before - expected).max() > 1e-6
  np.testing.assert_array_equal(one.predict(['a text']).probabilities, expected)
  votes, expected = (p.vote(['a text'], 3).probabilities for p in (one, other))
  np.testing.assert_array_equal(votes, expected)


def test_a_model_that_draws_nothing_says_so(caplog):
  predictor = make(ByteTokenizer(), 32, 'transformer')
  predictor.stochastic = False
  vote = predictor.vote(INPUTS[:2], samples=7)
  assert 'draws nothing: a vote is 7 times the same prediction' in caplog.text
  prediction = predictor.predict(INPUTS[:2])
  np.testing.assert_allclose(vote.probabilities, prediction.probabilities, rtol=1e-5)
  assert vote.votes.max(axis=1).tolist() == [7, 7]
  assert (vote.relative_deviation < 1e-12).all()


@pytest.mark.usefixtures('unannotated')
def test_votes_need_samples_and_inputs(texts):
  for samples in (0, 2.5):
    with pytest.raises(
      ValueError, match=f'samples must be an integer of at least 1, got {samples}'
    ):
      texts.vote('text', samples=samples)
  assert texts.vote('text', samples=np.int64(2)).votes.sum() == 2
  with pytest.raises(ValueError, match='vote needs at least one input'):
    texts.vote([])


def test_inputs_may_be_encoded_already(texts, pairs):
  ids = [texts.tokenizer.encode(text) for text in INPUTS[:3]]
  np.testing.assert_array_equal(
    texts.predict(ids, encoded=True).probabilities, texts.predict(INPUTS[:3]).probabilities
  )
  np.testing.assert_array_equal(
    texts.vote(ids, 2, encoded=True).votes, texts.vote(INPUTS[:3], 2).votes
  )
  both = pairs.predict([(ids[0], ids[1])], encoded=True).probabilities
  np.testing.assert_array_equal(both, pairs.predict([(INPUTS[0], INPUTS[1])]).probabilities)
  with pytest.raises(TypeError, match=r'input 0: expected token ids int\[length\], got float64'):
    texts.predict([[0.5]], encoded=True)
  with pytest.raises(TypeError, match=r'input 0: expected token ids int\[length\], got float32'):
    texts.predict(np.ones(3, np.float32), encoded=True)
  with pytest.raises(ValueError, match=r'input 1: token ids must lie in 0 .. 256, got 3 .. 257'):
    texts.predict([[1], [3, 257]], encoded=True)


@pytest.mark.parametrize('of', [np.asarray, jnp.asarray, np.ndarray.tolist, tuple])
def test_ids_of_one_input_are_taken_alone(texts, of):
  ids = texts.tokenizer.encode('one')
  alone = texts.predict(of(ids), encoded=True).probabilities
  np.testing.assert_array_equal(alone, texts.predict('one').probabilities)
  rows = texts.encode(np.stack([ids, ids]), encoded=True)  # Of a matrix each row is an input.
  assert [len(parts[0]) for parts in rows] == [3, 3]


@pytest.mark.parametrize('of', [lambda a, b: a, lambda a, b: (a, b), lambda a, b: np.stack([a, b])])
def test_ids_of_a_pair_alone_are_told_to_be_put_in_a_list(pairs, of):
  inputs = of(*(pairs.tokenizer.encode(text) for text in ('one', 'two')))
  with pytest.raises(ValueError, match=r'; a single one is given as \[\(first, second\)\]'):
    pairs.predict(inputs, encoded=True)


def test_a_lone_surrogate_is_named_with_its_input(texts):
  for inputs in ('\ud800', ['\ud800']):
    with pytest.raises(ValueError, match=r"input 0: .*'\\ud800' in position 0: surrogates not"):
      texts.predict(inputs)
  with pytest.raises(ValueError, match="input 1: 'utf-8' codec can't encode"):
    texts.vote(['a', 'b\ud800'], 2)


@pytest.mark.parametrize(
  ('count', 'sizes'),
  [
    (1, [1]), (2, [1, 1]), (3, [4]), (5, [4, 1]), (6, [8]), (14, [8, 8]), (21, [8, 8, 4, 1]),
    (24, [32]), (69, [32, 32, 4, 1]),
  ],
)  # fmt: skip
def test_batches_are_hardly_filled_up(texts, count, sizes):
  tokens = texts.encode(['ab'] * count)
  rows, ids, lengths = zip(*texts._batches(tokens), strict=True)
  assert sum(rows, []) == list(range(count))
  assert [x.shape for x in ids] == [(size, 32) for size in sizes]
  assert [np.count_nonzero(x) for x in lengths] == [len(x) for x in rows]


def test_answers_do_not_depend_on_the_batches(texts):
  whole = texts.predict(INPUTS).probabilities  # 32 of them at once, 3 in a batch of 4.
  for some in (slice(7), slice(11, 16), slice(2)):
    found = texts.predict(INPUTS[some]).probabilities
    np.testing.assert_allclose(found, whole[some], rtol=1e-4)


def test_warm_up_compiles_what_predict_runs():
  predictor = make(ByteTokenizer(), 64)
  found = predictor.warm_up([3, 33, 20], batch_sizes=[1, 7, 5])
  assert found.keys() == {(length, size) for length in (32, 64) for size in (1, 4, 8)}
  assert all(seconds > 0 for seconds in found.values())
  size = predictor._predict._cache_size()
  for count in (1, 2, 3, 5, 7):
    predictor.predict(['a', *['b' * 40] * count])
  assert predictor._predict._cache_size() == size == 6
  assert predictor.warm_up(batch_sizes=[1]).keys() == {(64, 1)}
  assert predictor.warm_up([9]).keys() == {(32, size) for size in (1, 4, 8, 32)}
  size = predictor._predict._cache_size()
  for count in (4, 20, 33, 63):
    predictor.predict(['a'] * count)
  assert predictor._predict._cache_size() == size == 7
  with pytest.raises(ValueError, match=r'batch_sizes must be integers of at least 1, got \[4, 0\]'):
    predictor.warm_up(batch_sizes=[4, 0])


@pytest.mark.usefixtures('unannotated')
@pytest.mark.parametrize('length', [-4, 10.5, True])
def test_warm_up_refuses_what_is_no_length(texts, length):
  with pytest.raises(ValueError, match=r'lengths must be integers of at least 1, got \[9, '):
    texts.warm_up([9, length])


# Files.

LOADER = """
import sys, json, numpy as np, jax
exported = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
ids = np.array(json.loads(sys.argv[2]), np.int32)
lengths = np.array(json.loads(sys.argv[3]), np.int32)
print(json.dumps(np.asarray(exported.call(ids, lengths), np.float64).tolist()))
assert not any(name.startswith(('kl_flax', 'flax', 'lra_tasks')) for name in sys.modules)
"""


@pytest.mark.parametrize(
  'changes', [{}, {'pooling': 'FLATTEN'}, {'num_inputs': 2, 'pooling': 'MEAN'}, {'max_length': 5}]
)
@pytest.mark.parametrize('model_type', ['gmm_prf', 'linformer', 'synthesizer', 'transformer'])
def test_the_parameters_of_a_model_are_its_own(model_type, changes):
  sizes = {'num_classes': 3, 'vocab_size': 9, 'emb_dim': 8, 'num_heads': 2, 'num_layers': 1}
  sizes |= {'qkv_dim': 8, 'mlp_dim': 8, 'max_length': 300}
  model = make_classifier(model_type, **sizes | changes)
  shape = (1, model.encoder.max_length) if model.num_inputs == 1 else (1, 2, 300)
  keys = {name: jax.random.key(0) for name in ('params', 'spectral')}
  ids = jnp.ones(shape, jnp.int32)
  params = jax.eval_shape(model.init, keys, ids, ids > 0)['params']
  _check_params(model, params, 'run')
  with pytest.raises(ValueError, match='config.json of run describes another model'):
    _check_params(model.clone(num_classes=4, parent=None), params, 'run')


@pytest.mark.parametrize('kind', slow_but(['pairs'], ['bfloat16', 'pairs']))
def test_an_exported_model_runs_without_this_package(tmp_path, pairs, kind):
  if kind == 'pairs':
    predictor, inputs = pairs, [('one', 'two'), ('three', 'x')]
  else:
    predictor = make(ByteTokenizer(), 32, dtype='bfloat16')
    inputs = ['one', 'another']
  path = tmp_path / 'model'
  predictor.export(path)
  about = json.loads((tmp_path / 'model.json').read_text())
  length = predictor.model.encoder.max_length
  assert about['inputs'] == (['b', 2, length] if kind == 'pairs' else ['b', length])
  assert (about['num_classes'], about['platforms']) == (3, ['cpu', 'cuda', 'tpu'])
  assert about['tokenizer'] == ByteTokenizer().to_dict() | {'first_id': 1}
  ids, lengths = predictor._pad([predictor._encode(0, raw) for raw in inputs], length)
  arguments = [json.dumps(x[:2].tolist()) for x in (ids, lengths)]
  command = [sys.executable, '-c', 'import jax.export\n' + LOADER, path, *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
  found = np.array(json.loads(done.stdout))
  expected = predictor.predict(inputs).probabilities
  np.testing.assert_allclose(found, expected, atol=0.02 if kind == 'bfloat16' else 1e-5)


@pytest.mark.parametrize(
  ('platforms', 'got'),
  [(['gpu'], r"\['gpu'\]"), ('gpu', r"\['gpu'\]"), ([], r'\[\]'), ('', r"\[''\]")],
)
def test_unknown_platforms_are_named(texts, tmp_path, platforms, got):
  with pytest.raises(ValueError, match=f'platforms must be some of .*, got {got}'):
    texts.export(tmp_path / 'model', platforms=platforms)
  assert list(tmp_path.iterdir()) == []


def test_one_platform_is_given_by_its_name(texts, tmp_path):
  texts.export(tmp_path / 'model', platforms='cpu')
  assert json.loads((tmp_path / 'model.json').read_text())['platforms'] == ['cpu']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{', 'describes no model that this version knows: '),
    ('{}', "this version knows: it lacks 'model'"),
    ('{"model": {"model_type": "gmm_abc"}, "tokenizer": {}}', 'this version knows'),
  ],
)
def test_what_another_version_wrote_is_named(tmp_path, text, message):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=message):
    Predictor.restore(str(tmp_path))
