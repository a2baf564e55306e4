"""Predictions of a trained model: restore a run's directory, compile once, predict, vote."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from kl_flax.checkpoints import restore
from kl_flax.heads import Classifier, DualClassifier, MaskedLanguageModel
from kl_flax.models import AttentionFactory, get_row, ignores_padding, make_model
from kl_flax.parameters import named_leaves, parameter_shapes
from kl_flax.tokenizers import PixelTokenizer, Tokenizer, tokenizer_from_dict
from kl_flax.votes import Vote, count_votes
from kl_flax.wordpiece import WordPieceTokenizer

logger = logging.getLogger(__name__)

_SHORTEST_BUCKET = 32
# That programs are compiled for, largest first. On CPUs a batch of long inputs takes as long as
# they do one by one, so that filling it up costs as much as inputs do; GPUs want few calls.
_BATCH_SIZES = (32, 8, 4, 1)
_LARGEST_BATCH = _BATCH_SIZES[0]
# That exported models run on.
PLATFORMS = ('cpu', 'cuda', 'tpu')


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Answers for n inputs.

  Attributes:
    labels: int32[n], the most probable classes.
    probabilities: float32[n, num_classes], rows sum to one.
    names: of these classes, where they are known; else None.
  """

  labels: np.ndarray
  probabilities: np.ndarray
  names: list[str] | None = None


class Predictor:
  """A trained classifier with its tokenizer.

  Inputs are padded to the next power of two, so that a handful of programs is compiled whatever
  their lengths and number: for each length bucket at most four, for batches of 1, 4, 8 and 32.
  Other numbers are made of these; at most a quarter of a batch is filling.

  Models with a learned kernel draw their frequencies once, as the run's own evaluation does:
  the same input gives the same answer. `vote` draws them many times.

  Args:
    model: the classifier.
    params: its parameters.
    tokenizer: raw input to ids.
    spectral_key: PRNG key of the frequencies; draw i is made with `fold_in(spectral_key, i)`, and
      `predict` takes draw 0. It may be set anew.
    stochastic: whether the model draws anything in prediction.
    num_texts: of an input that becomes one sequence of word pieces: 1, or 2 for pairs of sentences;
      None does not check it.
    class_names: of the classes 0 ... num_classes − 1; None where they have none.

  Raises:
    ValueError: for more or fewer names than classes.
  """

  def __init__(
    self,
    model: Classifier | DualClassifier,
    params: Any,
    tokenizer: Tokenizer,
    spectral_key: jax.Array,
    *,
    stochastic: bool = True,
    num_texts: int | None = None,
    class_names: Sequence[str] | None = None,
  ) -> None:
    if class_names is not None and len(class_names) != model.num_classes:
      raise ValueError(f'{model.num_classes} classes need as many names, got {class_names!r:.200}')
    self.model, self.params, self.tokenizer = model, params, tokenizer
    self.stochastic, self.num_texts = stochastic, num_texts
    self.class_names = None if class_names is None else tuple(class_names)
    self.spectral_key = spectral_key
    self._predict = jax.jit(self._probabilities)
    self._draw = jax.jit(self._logits_of_draws)

  @classmethod
  def restore(cls, model_dir: str, *, step: int | None = None) -> Predictor:
    """Load a run of `lra_tasks.train`.

    Args:
      model_dir: the run's directory; it needs no data set and no config file.
      step: which checkpoint; by default the best on validation, of equals the last.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint, or none of that step.
      ValueError: if the checkpoint is damaged, or is not of the model that config.json describes.
    """
    path = os.path.join(model_dir, 'config.json')
    if not os.path.exists(path):
      raise FileNotFoundError(f'{model_dir} holds no trained model: it has no config.json')
    model, tokenizer, more = _describe(path)
    _, state = restore(model_dir, step)
    _check_params(model, state['params'], model_dir)
    key = jax.random.wrap_key_data(jnp.asarray(state['keys']['evaluation']))
    params = jax.device_put(state['params'])
    return cls(model, params, tokenizer, key, **more)

  def predict(self, inputs: str | bytes | Iterable[Any], *, encoded: bool = False) -> Prediction:
    """Return labels and probabilities, in the order of the inputs.

    Args:
      inputs: raw inputs, any number: strings, bytes, images, or pairs of them for a model of pairs;
        or one string, bytes or image array alone. Longer ones than the model takes are cut, as in
        training, and counted in the log.
      encoded: whether inputs are token ids already, int[length], several or one alone (for a model
        of pairs, tuples of two).

    Raises:
      TypeError: for an input of the wrong type.
      ValueError: for no input at all, an empty one, one that is no pair where pairs are needed, or
        one that the tokenizer does not understand.
    """
    tokens = self.encode(inputs, 'predict', encoded=encoded)
    probabilities = np.zeros((len(tokens), self.model.num_classes), np.float32)
    for rows, batch, lengths in self._batches(tokens):
      found = self._predict(self.params, self.spectral_key, batch, lengths)
      probabilities[rows] = found[: len(rows)]
    labels = np.argmax(probabilities, axis=1).astype(np.int32)
    return Prediction(labels, probabilities, self._names(labels))

  def vote(
    self, inputs: str | bytes | Iterable[Any], samples: int = 100, *, encoded: bool = False
  ) -> Vote:
    """Return what most of several draws of the frequencies predict, and how far they agree.

    Draws are independent of each other and the same for all inputs, and in every call; the first
    is that of `predict`. It costs about `samples` times as much: 32 inputs at once, or of a single
    one 32 draws, so that memory is that of a batch. Where nothing is drawn, one pass counts as all.

    Args:
      inputs: see `predict`.
      samples: number of draws, at least 1.
      encoded: see `predict`.

    Raises:
      TypeError: see `predict`.
      ValueError: likewise; for samples that are no integer or fewer than 1.
    """
    if not _is_count(samples):
      raise ValueError(f'samples must be an integer of at least 1, got {samples!r}')
    tokens = self.encode(inputs, 'vote', encoded=encoded)
    draws = np.arange(samples)
    if not self.stochastic:
      logger.warning('This model draws nothing: a vote is %d times the same prediction.', samples)
      draws = draws[:1]
    logits = np.zeros((len(draws), len(tokens), self.model.num_classes), np.float64)
    for rows, batch, lengths in self._batches(tokens, (_LARGEST_BATCH, 1)):
      drawn = self._draw(self.params, self.spectral_key, batch, lengths, draws)
      logits[:, rows] = drawn[:, : len(rows)]
    vote = count_votes(np.broadcast_to(logits, (samples, *logits.shape[1:])))
    return dataclasses.replace(vote, names=self._names(vote.labels))

  def _names(self, labels: np.ndarray) -> list[str] | None:
    names = self.class_names
    return None if names is None else [names[label] for label in labels]

  def warm_up(
    self, lengths: Iterable[int] | None = None, batch_sizes: Iterable[int] = _BATCH_SIZES
  ) -> dict[tuple[int, int], float]:
    """Compile what `predict` runs for inputs of these lengths; return how long a batch then takes.

    Args:
      lengths: in tokens; by default the longest that the model takes.
      batch_sizes: how many inputs of a length there will be in a call; by default any number.

    Returns:
      Seconds of a batch, the median of five, by (length that is computed, batch size), sizes being
      those that calls are made of: 1, 4, 8 and 32.

    Raises:
      ValueError: for a batch size or a length that is no integer, or below 1.
    """
    lengths = [self.model.encoder.max_length] if lengths is None else list(lengths)
    batch_sizes = list(batch_sizes)
    for name, values in (('batch_sizes', batch_sizes), ('lengths', lengths)):
      if not all(map(_is_count, values)):
        raise ValueError(f'{name} must be integers of at least 1, got {values}')
    found = {}
    for bucket in sorted({self._bucket(length) for length in lengths}):
      for size in sorted({size for count in batch_sizes for size in _divide(count)}):
        row = [np.ones(bucket, np.int32)] * self.model.num_inputs
        batch = self._pad([row] * size, bucket)
        times = []
        for _ in range(6):
          start = time.perf_counter()
          jax.block_until_ready(self._predict(self.params, self.spectral_key, *batch))
          times.append(time.perf_counter() - start)
        found[bucket, size] = statistics.median(times[1:])  # The first one compiles.
    return found

  def export(
    self, path: str | os.PathLike[str], *, platforms: str | Iterable[str] = PLATFORMS
  ) -> None:
    """Write the model as a file that runs with JAX alone, without this package.

    The file is a `jax.export` artifact of a function from token ids int32[b, max_length] (of pairs
    [b, 2, max_length]), padded with zeros behind each length, and lengths int32[b] ([b, 2]) to
    probabilities float32[b, num_classes], for any b; parameters and the frequencies of draw 0 are
    inside. It computes in float32. Beside it, PATH.json tells the tokenizer ('first_id' is the id
    of the first symbol, of byte 0, or of a black pixel), the shapes and the names of the classes,
    null where they have none. Ids and lengths are not checked. To run it:

        exported = jax.export.deserialize(bytearray(open(path, 'rb').read()))
        probabilities = exported.call(ids, lengths)

    Args:
      path: of the file.
      platforms: that it is to run on, several or one.

    Raises:
      OSError: if a file cannot be written.
      ValueError: for an unknown platform, or none.
    """
    platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    unknown = set(platforms).difference(PLATFORMS)
    if unknown or not platforms:
      raise ValueError(f'platforms must be some of {PLATFORMS}, got {sorted(unknown)}')
    longest, num_inputs = self.model.encoder.max_length, self.model.num_inputs
    (size,) = jax.export.symbolic_shape('b')
    shape = (size, longest) if num_inputs == 1 else (size, num_inputs, longest)
    arguments = (
      jax.ShapeDtypeStruct(shape, jnp.int32),
      jax.ShapeDtypeStruct(shape[:-1], jnp.int32),
    )
    portable = Predictor(_portable(self.model), self.params, self.tokenizer, self.spectral_key)
    function = functools.partial(portable._probabilities, self.params, self.spectral_key)
    with jax.default_device(jax.local_devices(backend='cpu')[0]):  # No program of this GPU.
      exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    about = {
      'inputs': ['b', *shape[1:]],
      'lengths': ['b', *shape[1:-1]],
      'num_classes': self.model.num_classes,
      'class_names': self.class_names,
      'platforms': platforms,
      'tokenizer': self.tokenizer.to_dict(),
    }
    if isinstance(self.tokenizer, WordPieceTokenizer):  # Its definition has the ids.
      about['tokenizer']['definition'] = json.loads(self.tokenizer.definition)
    else:
      about['tokenizer']['first_id'] = self.tokenizer.num_special
    with open(path, 'wb') as file:
      file.write(exported.serialize())
    with open(f'{os.fspath(path)}.json', 'w') as file:
      json.dump(about, file, indent=2)

  def encode(
    self, inputs: str | bytes | Iterable[Any], caller: str = 'encode', *, encoded: bool = False
  ) -> list[list[np.ndarray]]:
    """Return the token ids of inputs, cut to what the model takes: one array each, of pairs two.

    Args:
      inputs: see `predict`.
      caller: that errors name.
      encoded: see `predict`.

    Raises:
      TypeError: see `predict`.
      ValueError: likewise.
    """
    if self._is_one(inputs, encoded):
      inputs = [inputs]
    elif not isinstance(inputs, Iterable):
      raise TypeError(f'{caller} needs inputs, or one of them; got {inputs!r:.80}')
    inputs = list(inputs)
    if not inputs:
      raise ValueError(f'{caller} needs at least one input')
    tokens = [self._encode(i, raw, encoded) for i, raw in enumerate(inputs)]
    longest = self.model.encoder.max_length
    if cut := sum(any(len(ids) > longest for ids in parts) for parts in tokens):
      logger.warning('%d of %d inputs were cut at max_length=%d.', cut, len(inputs), longest)
    if isinstance(self.tokenizer, WordPieceTokenizer) and not encoded:
      # Of two sentences the longer one is cut, as in training.
      return [
        parts if len(parts[0]) <= longest else [self.tokenizer.encode(raw, longest)]
        for raw, parts in zip(inputs, tokens, strict=True)
      ]
    return [[ids[:longest] for ids in parts] for parts in tokens]

  def _is_one(self, inputs: Any, encoded: bool) -> bool:
    """Return whether this is a single input: a text, token ids, or an array that is an image."""
    if isinstance(inputs, (str, bytes)):
      return True
    if encoded:
      return self.model.num_inputs == 1 and _is_flat(inputs)
    if not isinstance(self.tokenizer, PixelTokenizer):
      return False
    if not isinstance(inputs, (np.ndarray, jax.Array)) or inputs.dtype == object:
      return False
    # One that is no row of images has the wrong size as a whole, and is to be told as such.
    count = self.tokenizer.num_pixels
    no_rows = inputs.ndim <= 2 and inputs.shape[-1:] != (count,)
    return inputs.size == count or (inputs.size > 0 and no_rows)

  def _batches(
    self, tokens: list[list[np.ndarray]], sizes: tuple[int, ...] = _BATCH_SIZES
  ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield rows of the result, ids and lengths of batches, inputs of like lengths together."""
    groups: dict[int, list[int]] = {}
    for i, parts in enumerate(tokens):
      groups.setdefault(self._bucket(max(map(len, parts))), []).append(i)
    for bucket, members in groups.items():
      start = 0
      for size in _divide(len(members), sizes):
        rows = members[start : start + size]
        yield rows, *self._pad([tokens[i] for i in rows], bucket)
        start += size

  def _encode(self, index: int, raw: Any, encoded: bool = False) -> list[np.ndarray]:
    """Return the ids of an input: of one sequence, or of two."""
    parts = [raw]
    if self.model.num_inputs == 2:
      parts = raw if isinstance(raw, (tuple, list)) else ()
      if len(parts) != 2:
        raise ValueError(
          f'input {index}: expected a pair (first, second), got {raw!r:.80}; a single one is given '
          'as [(first, second)]'
        )
    texts = 2 if isinstance(raw, tuple) else 1
    if self.num_texts is not None and not encoded and texts != self.num_texts:
      kind = 'a pair of texts (first, second)' if self.num_texts == 2 else 'one text'
      raise ValueError(f'input {index}: expected {kind}, got {raw!r:.80}')
    try:
      tokens = [self._check_ids(part) if encoded else self.tokenizer.encode(part) for part in parts]
    except TypeError as error:
      raise TypeError(f'input {index}: {error}') from None
    except ValueError as error:  # Not of its own type: a UnicodeError is made of other things.
      raise ValueError(f'input {index}: {error}') from None
    # Separators are no tokens of a text.
    separator = self.model.encoder.separator
    if not all(np.any(ids != separator) if separator else len(ids) for ids in tokens):
      raise ValueError(f'input {index}: no tokens in {raw!r:.80}')
    return tokens

  def _check_ids(self, ids: Any) -> np.ndarray:
    ids, size = np.asarray(ids), self.tokenizer.vocab_size
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
      raise TypeError(f'expected token ids int[length], got {ids.dtype}{list(ids.shape)}')
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
      raise ValueError(f'token ids must lie in 0 .. {size - 1}, got {ids.min()} .. {ids.max()}')
    return ids

  def _pad(self, tokens: list[list[np.ndarray]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and lengths of a batch, filled up to one of the sizes."""
    size = min(size for size in _BATCH_SIZES if size >= len(tokens))
    num_inputs = self.model.num_inputs
    batch = np.zeros((size, num_inputs, length), np.int32)
    lengths = np.zeros((size, num_inputs), np.int32)
    for row, parts in enumerate(tokens):
      for column, ids in enumerate(parts):
        lengths[row, column] = len(ids)
        batch[row, column, : len(ids)] = ids
    return (batch, lengths) if num_inputs == 2 else (batch[:, 0], lengths[:, 0])

  def _bucket(self, length: int) -> int:
    longest = self.model.encoder.max_length
    if not ignores_padding(self.model):
      return longest
    return min(longest, max(_SHORTEST_BUCKET, 1 << max(length - 1, 0).bit_length()))

  def _logits(self, params, spectral_key, inputs, lengths, draw):
    mask = jnp.arange(inputs.shape[-1]) < lengths[..., None]
    rngs = {'spectral': jax.random.fold_in(spectral_key, draw)}
    return self.model.apply({'params': params}, inputs, mask, rngs=rngs)

  def _probabilities(self, params, spectral_key, inputs, lengths):
    return jax.nn.softmax(self._logits(params, spectral_key, inputs, lengths, 0))

  def _logits_of_draws(self, params, spectral_key, inputs, lengths, draws):
    """Return logits [draws, b, c]; what does not depend on the draw is computed once a chunk."""
    function = functools.partial(self._logits, params, spectral_key, inputs, lengths)
    chunk = max(1, _LARGEST_BATCH // len(inputs))
    return jax.lax.map(function, draws, batch_size=min(chunk, len(draws)))


def _divide(count: int, sizes: tuple[int, ...] = _BATCH_SIZES) -> list[int]:
  """Return the sizes of batches for so many inputs: the largest of which three quarters are used.

  >>> _divide(2), _divide(7), _divide(45)
  ([1, 1], [8], [32, 8, 4, 1])
  """
  found = []
  while count > 0:
    found.append(next(size for size in sizes if 4 * count >= 3 * size))
    count -= found[-1]
  return found


def _is_flat(ids: Any) -> bool:
  """Return whether these are the ids of one sequence, not of several."""
  if isinstance(ids, (list, tuple)):
    return bool(ids) and isinstance(ids[0], (int, np.integer))
  return isinstance(ids, (np.ndarray, jax.Array)) and ids.ndim == 1 and ids.dtype != object


def _is_count(value: Any) -> bool:
  """Return whether this is an integer of at least 1; a truth value is none."""
  return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1


def _describe(path: str) -> tuple[Classifier | DualClassifier, Tokenizer, dict[str, Any]]:
  """Return model, tokenizer, and further arguments of the predictor, as config.json tells."""
  try:
    with open(path) as file:
      description = json.load(file)
    for name in ('model', 'tokenizer'):
      if name not in description:
        raise ValueError(f'it lacks {name!r}')
    options = description['model']
    # Later options have defaults that are what older runs had; the number was told always, and no
    # parameter has it as a size.
    row, given = get_row(options['model_type']), options.get('attention', {})
    if 'num_frequencies' in row.options and 'num_frequencies' not in given:
      raise ValueError("its attention lacks 'num_frequencies'")
    tokenizer = tokenizer_from_dict(description['tokenizer'], os.path.dirname(path))
    stochastic = row.is_stochastic(options['attention'])
    more = {'stochastic': stochastic}  # And what runs of older versions do not tell.
    more |= {name: description.get(name) for name in ('num_texts', 'class_names')}
    model = make_model(**options)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} describes no model that this version knows: {error}') from error
  if isinstance(model, MaskedLanguageModel):
    raise ValueError(
      f'{path} is of a run that predicts masked tokens, not labels: start a run on a task with its '
      'encoder, by --init_from'
    )
  return model, tokenizer, more


def _check_params(model: Classifier | DualClassifier, params: Any, model_dir: str) -> None:
  """Raise a ValueError unless these are the parameters that the model has, by name and shape."""
  try:
    expected = parameter_shapes(model)
  except (TypeError, ValueError, ZeroDivisionError) as error:  # Sizes that do not go together.
    raise ValueError(
      f'config.json of {model_dir} describes an impossible model: {error}'
    ) from error
  shapes = lambda tree: {name: leaf.shape for name, leaf in named_leaves(tree).items()}
  wanted, found = shapes(expected), shapes(params)
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise ValueError(
        f'config.json of {model_dir} describes another model than its checkpoint is of: {name} is '
        f'{wanted.get(name, "absent")} by the one, {found.get(name, "absent")} in the other'
      )


def _portable(model: Classifier | DualClassifier) -> Classifier | DualClassifier:
  """Return the model in float32, its attention compiled by XLA."""
  encoder = model.encoder
  make = encoder.make_attention
  if isinstance(make, AttentionFactory):
    options = dict(make.options)
    if 'implementation' in get_row(make.model_type).options:
      options['implementation'] = 'xla'
    make = AttentionFactory.of(make.model_type, make.num_positions, options)
  encoder = encoder.clone(make_attention=make, dtype=jnp.float32, parent=None)
  return model.clone(encoder=encoder, parent=None)
