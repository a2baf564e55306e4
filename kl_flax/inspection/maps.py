"""Attention maps of a layer: as the model applied them, and of its kernel itself.

r of s valid positions are the rows of a map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.attention import KernelAttention
from kl_flax.baselines.softmax import SoftmaxAttention, softmax_weights
from kl_flax.closed_forms import closed_form, distribution
from kl_flax.inspection.layers import AttentionLayer
from kl_flax.naive import naive_attention_weights

# Values that the naive twin may hold at a time: 256 MB in float32.
_VALUES_AT_ONCE = 2**26
_naive_weights = jax.jit(naive_attention_weights, static_argnames=('features', 'smoothing'))


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
  if not has_exact_kernel(layer):
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


def has_exact_kernel(layer: AttentionLayer) -> bool:
  """Return whether the kernel of a layer is known in closed form: see `exact_map`."""
  if layer.sampler is None:
    return False
  return distribution(layer.sampler, layer.params, 0, layer.head_dim) is not None


def _positions(layer, sequence, rows):
  """Return the valid positions of a sequence, and which of them are rows of a map."""
  if not 0 <= sequence < len(layer.value):
    raise ValueError(f'sequence must be in 0 to {len(layer.value) - 1}, got {sequence}')
  valid = np.flatnonzero(layer.key_mask[sequence])
  rows = np.arange(len(valid)) if rows is None else np.asarray(rows, int)
  if np.any((rows < 0) | (rows >= len(valid))):
    raise ValueError(f'rows must be in 0 to {len(valid) - 1}, got {rows.min()} to {rows.max()}')
  return valid, rows
