"""Look into a trained model: queries, keys and attention maps of each layer, numbers as tables.

`capture` runs the model and keeps what every attention gets, draws and returns; the model's code
does not know of it. The tables have the form of the paper's Tables 4 and 9 to 12.

Shapes: b sequences, l positions (CLS first, padding included), h heads, d head size, m frequencies.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.attention import KernelAttention
from kl_flax.baselines.softmax import SoftmaxAttention, softmax_weights
from kl_flax.diagnostics import (
  ApproximationReport,
  approximation_report,
  closed_form,
  covariance_eigenvalues,
  spectral_mixture,
)
from kl_flax.encoder import MultiHeadAttention
from kl_flax.models import ignores_padding
from kl_flax.naive import naive_attention_weights
from kl_flax.predictor import Predictor
from kl_flax.profiles import principal_directions, spectral_covariance
from kl_flax.spectral import as_weighted

# Values that the naive twin may hold at a time: 256 MB in float32.
_VALUES_AT_ONCE = 2**26
_naive_weights = jax.jit(naive_attention_weights, static_argnames=('features', 'smoothing'))


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
  """What one attention of a model got, drew and returned; arrays are float32 NumPy.

  Attributes:
    path: of the module in the tree of parameters, separated by slashes.
    attention: the module by itself: `KernelAttention`, `SoftmaxAttention` or another mechanism.
    attention_params: of that module, those of its sampler included.
    query: [b, l, h, d], before the temperature; None where the mechanism has none.
    key: [b, l, h, d], likewise.
    value: [b, l, h, d].
    more: what else the mechanism got, by name, [b, l, h, d]: Longformer's global projections.
    key_mask: bool [b, l], True at valid positions.
    output: [b, l, h, d].
    omega: [h, m, d], the frequencies of this call; None without any.
    log_weight: [h, m], where they do not count equally, else None.
  """

  path: str
  attention: nn.Module
  attention_params: Mapping[str, Any]
  query: np.ndarray | None
  key: np.ndarray | None
  value: np.ndarray
  more: Mapping[str, np.ndarray]
  key_mask: np.ndarray
  output: np.ndarray
  omega: np.ndarray | None
  log_weight: np.ndarray | None

  @property
  def num_heads(self) -> int:
    """H."""
    return self.value.shape[2]

  @property
  def head_dim(self) -> int:
    """D."""
    return self.value.shape[3]

  @property
  def sampler(self) -> nn.Module | None:
    """Where frequencies come from; None without any."""
    return getattr(self.attention, 'sampler', None)

  @property
  def params(self) -> Mapping[str, Any]:
    """Parameters of the sampler; empty without any."""
    return self.attention_params.get('sampler', {})

  @property
  def is_learned(self) -> bool:
    """Whether the frequencies have parameters."""
    return bool(self.params)


def capture(
  model: nn.Module,
  params: Mapping[str, Any],
  inputs: np.ndarray | jax.Array,
  key_mask: np.ndarray | jax.Array | None = None,
  *,
  spectral_key: jax.Array | None = None,
) -> list[AttentionLayer]:
  """Run a model, as in prediction, and return what each of its attentions saw, first layer first.

  Args:
    model: such as a `kl_flax.Classifier`, called with inputs and mask. Layers inside `nn.remat`
      cannot be seen.
    params: of the model.
    inputs: token ids [b, l]; of pairs [b, 2, l], whose towers become 2b sequences.
    key_mask: bool like the inputs, True at valid positions; None means everywhere.
    spectral_key: of the frequencies; None is `jax.random.key(0)`.

  Raises:
    ValueError: if the model has no attention that is known here: the package's own classifiers
      have, whatever the mechanism; in others only `KernelAttention` and `SoftmaxAttention` are.
  """
  key = jax.random.key(0) if spectral_key is None else spectral_key
  modules: list[tuple[str, nn.Module]] = []

  def run(params, inputs, key_mask):
    calls, draws = [], []
    modules.clear()

    def look(call, args, kwargs, context):
      before = len(modules)
      out, module = call(*args, **kwargs), context.module
      if context.method_name != '__call__':
        return out
      if isinstance(module.parent, KernelAttention):  # The sampler, its only submodule.
        draws.append(as_weighted(out))
      elif _is_attention(module) and len(modules) == before:  # Else it is around one.
        modules.append(('/'.join(module.path), module.clone(parent=None, name=None)))
        frequencies = draws.pop() if draws else (None, None)
        calls.append((_arguments(*args, **kwargs), out, frequencies))
      return out

    with nn.intercept_methods(look):
      model.apply({'params': params}, inputs, key_mask, rngs={'spectral': key})
    return calls

  params = dict(params)
  calls = jax.jit(run)(params, inputs, key_mask)
  if not calls:
    raise ValueError(
      f'{type(model).__name__} has no attention to look into: no module in it is a KernelAttention '
      'or SoftmaxAttention, or the mechanism of a MultiHeadAttention'
    )
  found = []
  for (path, attention), (arguments, out, frequencies) in zip(modules, calls, strict=True):
    arguments, out, frequencies = _to_numpy((arguments, out, frequencies))
    *inputs_, mask, more = arguments
    mask = np.ones(out.shape[:2], bool) if mask is None else mask
    own = _subtree(params, path.split('/'))
    found.append(AttentionLayer(path, attention, own, *inputs_, more, mask, out, *frequencies))
  return found


def _is_attention(module):
  """Return whether a module is an attention mechanism; beside it stands the output's product."""
  known = isinstance(module, (KernelAttention, SoftmaxAttention))
  return known or (isinstance(module.parent, MultiHeadAttention) and module.name != 'out')


def _to_numpy(tree):
  """Return NumPy arrays in place of JAX', float32 but for masks."""
  return jax.tree.map(lambda x: np.asarray(x, None if x.dtype == bool else np.float32), tree)


def capture_inputs(
  predictor: Predictor,
  inputs: Any,
  params: Mapping[str, Any] | None = None,
  *,
  draw: int = 0,
  encoded: bool = False,
) -> list[AttentionLayer]:
  """Return what `capture` does for raw inputs, with the frequencies of the predictor's answers.

  Args:
    predictor: see `Predictor.restore`.
    inputs: as `Predictor.predict` takes them; at least one. They are padded to the longest.
    params: in place of the predictor's, such as the initial ones.
    draw: which draw of `Predictor.vote`; 0 is that of `Predictor.predict`.
    encoded: see `Predictor.predict`.

  Raises:
    TypeError: for an input of the wrong type.
    ValueError: for no input at all, an empty one, or one that the tokenizer does not understand.
  """
  tokens = predictor.encode(inputs, 'capture_inputs', encoded=encoded)
  model = predictor.model
  length = max(len(ids) for parts in tokens for ids in parts)
  if not ignores_padding(model):
    length = model.encoder.max_length
  batch = np.zeros((len(tokens), model.num_inputs, length), np.int32)
  mask = np.zeros(batch.shape, bool)
  for row, parts in enumerate(tokens):
    for column, ids in enumerate(parts):
      batch[row, column, : len(ids)] = ids
      mask[row, column, : len(ids)] = True
  if model.num_inputs == 1:
    batch, mask = batch[:, 0], mask[:, 0]
  params = predictor.params if params is None else params
  key = jax.random.fold_in(predictor.spectral_key, draw)
  return capture(model, params, batch, mask, spectral_key=key)


def _arguments(query, key, value, key_mask=None, *, deterministic=True, **more):
  """Return what an attention was called with, however it was."""
  del deterministic
  return query, key, value, key_mask, more


def _subtree(tree, path):
  for name in path:
    tree = tree.get(name, {})
  return tree


def attention_map(
  layer: AttentionLayer, sequence: int = 0, rows: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
  """Return the weights that positions of one sequence give to its keys, float32 [h, r, s].

  They are those of the captured call. Only valid positions are there: r and s count these.

  Of kernel attention, with its frequencies, they come from the naive twin: O(L) in memory for each
  row. Of other mechanisms than softmax they are what each value adds to the output: the mechanism
  itself is run, in float32, on unit vectors for values, head size of them at a time, which takes
  L / D times as long as a call.

  Args:
    layer: from `capture`.
    sequence: which of the batch.
    rows: of which valid positions the weights are wanted; None is all of them.

  Returns:
    Rows sum to one, of Sinkhorn's about; but Linformer mixes keys by weights of any sign and sum.
    With Fourier features, too, single weights may be negative.

  Raises:
    ValueError: for a sequence or row that is not there, or a mechanism that is not linear in its
      values and so has no weights.
  """
  valid, rows = _positions(layer, sequence, rows)
  attention = layer.attention
  if not isinstance(attention, (KernelAttention, SoftmaxAttention)):
    return _measured_map(layer, sequence, valid, rows)
  query, key = (jnp.asarray(x[sequence][valid]) for x in (layer.query, layer.key))
  if isinstance(attention, SoftmaxAttention):
    return np.asarray(softmax_weights(query[rows][None], key[None])[0])

  def weights(chunk):
    # Each row is a sequence of one query: causal rows then differ in their keys alone.
    seen = np.ones((len(chunk), len(valid)), bool)
    if attention.causal:
      seen = np.arange(len(valid)) <= chunk[:, None]
    return _naive_weights(
      query[chunk][:, None],
      jnp.broadcast_to(key, (len(chunk), *key.shape)),
      None if layer.omega is None else jnp.asarray(layer.omega),
      features=attention.features,
      key_mask=jnp.asarray(seen),
      smoothing=attention.effective_smoothing,
      log_weight=None if layer.log_weight is None else jnp.asarray(layer.log_weight),
    )[:, 0]

  width = layer.head_dim if layer.omega is None else max(layer.omega.shape[1:])
  size = max(1, _VALUES_AT_ONCE // (len(valid) * layer.num_heads * width))
  parts = [np.asarray(weights(rows[i : i + size])) for i in range(0, len(rows), size)]
  return np.moveaxis(np.concatenate(parts), -1, 0)


def _measured_map(layer, sequence, valid, rows):
  """Return how much each value counts in each output, float32 [h, r, s], from unit vectors.

  Where there are several kinds of values, as for Longformer's global tokens, each output takes its
  own: they get the same vectors.
  """
  one = slice(sequence, sequence + 1)
  inputs = [None if x is None else x[one] for x in (layer.query, layer.key, layer.key_mask)]
  inputs.append({name: x[one] for name, x in layer.more.items()})

  @jax.jit
  def mix(params, inputs, value):
    query, key, mask, more = inputs
    more = {name: value if name.endswith('value') else x for name, x in more.items()}
    out = layer.attention.apply({'params': params}, query, key, value, mask, **more)
    return out[0, valid[rows]]

  mix = functools.partial(mix, layer.attention_params, inputs)
  shape = (1, *layer.value.shape[1:])
  columns = []
  for start in range(0, len(valid), layer.head_dim):
    chosen = valid[start : start + layer.head_dim]
    value = np.zeros(shape, np.float32)
    value[0, chosen, :, np.arange(len(chosen))] = 1
    columns.append(np.asarray(mix(value))[..., : len(chosen)])
  weights = np.moveaxis(np.concatenate(columns, axis=-1), 0, 1)
  # Unit vectors do not tell whether the mechanism is linear; others do.
  value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  value *= layer.key_mask[sequence][:, None, None]
  expected = np.einsum('hrs,shd->rhd', weights, value[0, valid])
  if not np.allclose(mix(value), expected, rtol=1e-3, atol=1e-3):
    raise ValueError(
      f'{layer.path}: {type(layer.attention).__name__} is not linear in its values, hence has no '
      'weights to show'
    )
  return weights


def exact_map(
  layer: AttentionLayer, sequence: int = 0, rows: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
  """Return the weights that infinitely many frequencies would give, float64 [h, r, s].

  That is what the random features of `attention_map` estimate.

  Args:
    layer: see `attention_map`, as the other arguments.
    sequence: likewise.
    rows: likewise.

  Raises:
    ValueError: for a sequence or row that is not there, or an attention whose kernel has no closed
      form: any but those with Gaussian mixtures and N(0, I).
  """
  valid, rows = _positions(layer, sequence, rows)
  sampler, attention = layer.sampler, layer.attention
  if not has_closed_form(layer):
    raise ValueError(f'{layer.path}: the kernel has no closed form, see attention_map')
  smoothing = attention.effective_smoothing
  found = np.zeros((layer.num_heads, len(rows), len(valid)))
  for head in range(layer.num_heads):
    query, key = (
      np.float64(x[sequence, valid, head]) * layer.head_dim**-0.25 for x in (layer.query, layer.key)
    )
    for i, row in enumerate(rows):
      repeated = np.broadcast_to(query[row], key.shape)
      exact = closed_form(attention.features, repeated, key, sampler, layer.params, head)
      # Relative to the largest term of the row, which may be far from 1.
      log_scale = np.max(exact.log_scale)
      kernel = exact.scaled_kernel * np.exp(exact.log_scale - log_scale)
      kernel += smoothing**2 * np.exp(-log_scale)
      if attention.causal:
        kernel[row + 1 :] = 0
      found[head, i] = kernel / np.sum(kernel)
  return found


def has_closed_form(layer: AttentionLayer) -> bool:
  """Return whether the kernel of a layer is known in closed form: see `exact_map`."""
  if layer.sampler is None:
    return False
  return spectral_mixture(layer.sampler, layer.params, 0, layer.head_dim) is not None


def _positions(layer, sequence, rows):
  """Return the valid positions of a sequence, and which of them are rows of a map."""
  if not 0 <= sequence < len(layer.value):
    raise ValueError(f'sequence must be in 0 to {len(layer.value) - 1}, got {sequence}')
  valid = np.flatnonzero(layer.key_mask[sequence])
  rows = np.arange(len(valid)) if rows is None else np.asarray(rows, int)
  if np.any((rows < 0) | (rows >= len(valid))):
    raise ValueError(f'rows must be in 0 to {len(valid) - 1}, got {rows.min()} to {rows.max()}')
  return valid, rows


def sample_pairs(
  layer: AttentionLayer, num_pairs: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Return queries and keys of random valid positions, [n, h, d] each, before the temperature.

  Both of a pair are of the same sequence; all sequences are drawn alike.
  """
  rng = np.random.default_rng(seed)
  valid = [np.flatnonzero(row) for row in layer.key_mask]
  chosen = rng.choice([i for i, row in enumerate(valid) if len(row)], size=num_pairs)
  return tuple(x[chosen, [rng.choice(valid[i]) for i in chosen]] for x in (layer.query, layer.key))


def error_report(
  layer: AttentionLayer, *, num_pairs: int = 200, num_draws: int = 200, seed: int = 0
) -> ApproximationReport:
  """Return the error of the kernel's estimates on the layer's own queries and keys.

  Args:
    layer: from `capture`.
    num_pairs: of query and key, random valid positions of one sequence.
    num_draws: of all frequencies.
    seed: of pairs and draws.

  Raises:
    ValueError: for an attention without frequencies.
  """
  if layer.sampler is None:
    raise ValueError(f'{layer.path} has no frequencies: it estimates no kernel')
  # Each pair is a sequence of its own, or padding would be among them.
  query, key = (x[:, None] for x in sample_pairs(layer, num_pairs, seed))
  return approximation_report(
    query, key, layer.sampler, layer.params, features=layer.attention.features,
    num_pairs=num_pairs, num_draws=num_draws, seed=seed,
  )  # fmt: skip


class EigenvalueRow(NamedTuple):
  """Eigenvalues of one covariance: a row of the paper's Tables 4 and 9 to 12.

  Attributes:
    layer: from 1.
    head: from 1.
    component: from 1, of the free ones of a mixture; a tied pair has one.
    minimum: of the eigenvalues.
    maximum: likewise.
    mean: likewise.
  """

  layer: int
  head: int
  component: int
  minimum: float
  maximum: float
  mean: float


def eigenvalue_rows(layers: Sequence[AttentionLayer]) -> list[EigenvalueRow]:
  """Return the eigenvalues of the spectral covariances, by layer, head and component.

  Of a Gaussian mixture they are those of S Sᵀ of each component; of another sampler those of the
  covariance of its frequencies, measured over draws.

  Raises:
    ValueError: for layers without frequencies.
  """
  rows = []
  for number, layer in enumerate(layers, start=1):
    if layer.sampler is None:
      raise ValueError(f'{layer.path} has no frequencies, hence no spectral covariance')
    values = covariance_eigenvalues(layer.params).get('')
    if values is None:
      sizes = layer.num_heads, layer.head_dim
      covariance = spectral_covariance(layer.sampler, layer.params, *sizes)
      values = principal_directions(covariance)[0][:, None]
    for head, components in enumerate(values, start=1):
      for component, own in enumerate(components, start=1):
        numbers = (float(f(own)) for f in (np.min, np.max, np.mean))
        rows.append(EigenvalueRow(number, head, component, *numbers))
  return rows


def eigenvalue_table(
  trained: Sequence[EigenvalueRow], initial: Sequence[EigenvalueRow] | None = None
) -> str:
  """Return the rows as a Markdown table; where they are given, the initial ones stand beside.

  >>> print(eigenvalue_table([EigenvalueRow(1, 2, 1, 0.25, 4.0, 1.5)]))
  | layer | head | minimum | maximum | mean |
  |---|---|---|---|---|
  | 1 | 2 | 0.25 | 4 | 1.5 |
  """
  names, columns = ['layer', 'head'], ['layer', 'head']
  if any(row.component > 1 for row in trained):
    names, columns = [*names, 'component'], [*columns, 'component']
  numbers = ['minimum', 'maximum', 'mean']
  header = [*names, *numbers]
  if initial is not None:
    header = [*names, *(f'{name}, {n}' for name in ('trained', 'initial') for n in numbers)]
  lines = []
  for i, row in enumerate(trained):
    sides = [row] if initial is None else [row, initial[i]]
    cells = [str(getattr(row, name)) for name in columns]
    lines.append(cells + [f'{getattr(side, n):.3g}' for side in sides for n in numbers])
  return markdown(header, lines)


def error_table(
  trained: Sequence[ApproximationReport], initial: Sequence[ApproximationReport] | None = None
) -> str:
  """Return the reports of all layers as a Markdown table, medians over pairs and the 90 % points.

  '–' stands where there is no closed form.
  """
  sides = {'': trained} if initial is None else {'trained': trained, 'initial': initial}
  header = ['layer', 'head', 'kernel of', 'measured, median', '90 %', 'predicted, median', '90 %']
  header = [*header, 'typical_norm']
  if initial is None:
    header.remove('kernel of')
  lines = []
  for number in range(len(trained)):
    for head in range(len(trained[number].measured)):
      for name, reports in sides.items():
        report = reports[number]
        cells = [str(number + 1), str(head + 1), *([name] if name else [])]
        for errors in (report.measured, report.predicted):
          known = errors is not None
          cells += [f'{np.quantile(errors[head], q):.3g}' if known else '–' for q in (0.5, 0.9)]
        lines.append([*cells, f'{report.typical_norm[head]:.3g}'])
  return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Return a table, without a newline at its end."""
  rows = [header, ['---'] * len(header), *lines]
  text = [f'| {" | ".join(row)} |' for row in rows]
  text[1] = text[1].replace(' ', '')
  return '\n'.join(text)
