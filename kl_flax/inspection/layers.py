"""What the attentions of a model get, draw and return: `capture` runs the model and keeps that.

The model's code does not know of it. Letters of shapes are those of `kl_flax.inspection`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from kl_flax.attention import KernelAttention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.encoder import Encoder, MultiHeadAttention
from kl_flax.models import ignores_padding
from kl_flax.predictor import Predictor
from kl_flax.spectral import as_weighted


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


def capture(
  model: nn.Module,
  params: Mapping[str, Any],
  *inputs: Any,
  spectral_key: jax.Array | None = None,
) -> list[AttentionLayer]:
  """Run a model, as in prediction, and return what each of its attentions saw, first layer first.

  Args:
    model: such as a `kl_flax.Classifier`, or one's own. Layers inside `nn.remat` cannot be seen.
    params: of the model.
    *inputs: what the model is called with, arrays or None. A classifier takes token ids [b, l], of
      pairs [b, 2, l], whose towers become 2b sequences, and bool like these, True at valid
      positions.
    spectral_key: of the frequencies; None is `jax.random.key(0)`.

  Raises:
    ValueError: if the model has no attention that is known here: the package's own classifiers
      have, whatever the mechanism; in others only `KernelAttention` and `SoftmaxAttention` are.
  """
  key = jax.random.key(0) if spectral_key is None else spectral_key
  modules: list[_Found] = []

  def run(params, inputs):
    calls, draws = [], {}
    modules.clear()

    def look(call, args, kwargs, context):
      before, module = len(modules), context.module
      if context.method_name != '__call__':
        return call(*args, **kwargs)
      if isinstance(module, Encoder):
        kwargs.pop('num_outputs', None)  # The last layer is looked into as a whole.
      if (sampler := _sampler(module)) is not None:
        draws[sampler.path] = (None, None)  # It is about to draw.
      out = call(*args, **kwargs)
      if module.path in draws:
        draws[module.path] = as_weighted(out)
      elif _is_attention(module) and len(modules) == before:  # Else it is around one.
        modules.append(_Found.of(module))
        frequencies = (None, None) if sampler is None else draws.pop(sampler.path)
        calls.append((_arguments(*args, **kwargs), out, frequencies))
      return out

    with nn.intercept_methods(look):
      model.apply({'params': params}, *inputs, rngs={'spectral': key})
    return calls

  params = dict(params)
  calls = jax.jit(run)(params, inputs)
  if not calls:
    raise ValueError(
      f'{type(model).__name__} has no attention to look into: no module in it is a KernelAttention '
      'or SoftmaxAttention, or the mechanism of a MultiHeadAttention'
    )
  found = []
  for module, call in zip(modules, calls, strict=True):
    arguments, out, frequencies = _to_numpy(call)
    *inputs_, mask, more = arguments
    mask = np.ones(out.shape[:2], bool) if mask is None else mask
    path, own = '/'.join(module.path), module.params_of(params)
    found.append(
      AttentionLayer(path, module.attention, own, *inputs_, more, mask, out, *frequencies)
    )
  return found


class _Found(NamedTuple):
  """An attention by itself, and where it and its sampler stand in the model.

  A sampler that was made inside of a compact method stands beside the attention, not in it: Flax
  gives a module to whoever makes it.
  """

  attention: nn.Module
  path: tuple[str, ...]
  sampler: tuple[str, ...] | None

  @classmethod
  def of(cls, module):
    if (sampler := _sampler(module)) is None:
      return cls(module.clone(parent=None, name=None), module.path, None)
    alone = module.clone(parent=None, name=None, sampler=sampler.clone(parent=None, name=None))
    return cls(alone, module.path, sampler.path)

  def params_of(self, params):
    """Return what of a model's parameters `attention` takes."""
    own = dict(_subtree(params, self.path))
    if self.sampler is not None and (of_sampler := _subtree(params, self.sampler)):
      own['sampler'] = of_sampler
    return own


def _sampler(module):
  """Return the sampler of an attention; None where it has none, or a mere function."""
  sampler = getattr(module, 'sampler', None) if isinstance(module, KernelAttention) else None
  return sampler if isinstance(sampler, nn.Module) else None


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
