"""The registry: model_type -> attention mechanism, and the one encoder around all of them.

To add a mechanism, write a function from options to a module (see `kl_flax.baselines`) and add
a row to MODELS. Its keyword arguments are its options, in configs under `attention`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kl_flax.attention import FeatureMap, KernelAttention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.encoder import Encoder
from kl_flax.errors import unknown_name
from kl_flax.heads import Classifier
from kl_flax.spectral import Covariance, GaussianMixture


@dataclasses.dataclass(frozen=True)
class AttentionRow:
  """One row of the registry.

  Attributes:
    make: returns the mechanism; its keyword arguments are the options of the model.
    learned_kernel: a model of the KL-Transformer paper (it chooses the default preset).
    stochastic: draws from the PRNG stream 'spectral', in prediction too.
  """

  make: Callable[..., nn.Module]
  learned_kernel: bool = False
  stochastic: bool = False

  @property
  def options(self) -> dict[str, Any]:
    """Names and defaults of the mechanism's options."""
    return {p.name: p.default for p in inspect.signature(self.make).parameters.values()}


def _gmm(features: FeatureMap, covariance: Covariance, default_smoothing: float):
  def make(
    num_frequencies: int = 128,
    num_components: int = 2,
    tied: bool = True,
    smoothing: float = default_smoothing,
  ) -> KernelAttention:
    sampler = GaussianMixture(num_frequencies, num_components, covariance, tied, parent=None)
    return KernelAttention(sampler, features, smoothing)

  return AttentionRow(make, learned_kernel=True, stochastic=True)


def _softmax(attention_dropout_rate: float = 0.1) -> SoftmaxAttention:
  return SoftmaxAttention(attention_dropout_rate)


def _linear() -> KernelAttention:
  return KernelAttention(None, 'elu')


MODELS: dict[str, AttentionRow] = {
  'transformer': AttentionRow(_softmax),
  'linear_transformer': AttentionRow(_linear),
  # The authors' code smooths Fourier features with c = 1; positive features need none.
  'gmm_rks': _gmm('fourier', 'full', default_smoothing=1.0),
  'gmm_prf': _gmm('positive', 'diagonal', default_smoothing=0.0),
}


def get_row(model_type: str) -> AttentionRow:
  """Return the row of a model.

  Raises:
    ValueError: if there is none; the message lists those that exist.
  """
  if model_type not in MODELS:
    raise ValueError(unknown_name('model_type', model_type, MODELS))
  return MODELS[model_type]


@dataclasses.dataclass(frozen=True)
class AttentionFactory:
  """Makes the mechanism of a model; equal for equal options, so that programs are shared.

  Attributes:
    model_type: a key of MODELS.
    options: pairs of name and value, sorted by name.
  """

  model_type: str
  options: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, model_type: str, options: Mapping[str, Any]) -> AttentionFactory:
    """Check the names of the options.

    Raises:
      ValueError: for an unknown model_type or option, with the nearest known name.
    """
    known = get_row(model_type).options
    for name in options:
      if name not in known:
        raise ValueError(unknown_name(f'attention option of {model_type}', name, known))
    return cls(model_type, tuple(sorted(options.items())))

  def __call__(self) -> nn.Module:
    """Return a new module."""
    return get_row(self.model_type).make(**dict(self.options))


def make_classifier(
  model_type: str,
  *,
  num_classes: int,
  pooling: str = 'CLS',
  attention: Mapping[str, Any] | None = None,
  dtype: Any = 'float32',
  **encoder: Any,
) -> Classifier:
  """Return a classifier of the zoo.

  Args:
    model_type: a key of MODELS.
    num_classes: number of logits.
    pooling: 'CLS', 'MEAN', 'SUM' or 'FLATTEN'.
    attention: options of the mechanism; those of other mechanisms are errors.
    dtype: of the computation, 'float32' or 'bfloat16'.
    **encoder: sizes and switches of `kl_flax.encoder.Encoder`.

  Raises:
    ValueError: for an unknown model_type or option, with the nearest known name.

  >>> model = make_classifier('gmm_prf', num_classes=10, vocab_size=16, emb_dim=32,
  ...                         num_heads=4, qkv_dim=32, mlp_dim=64, num_layers=2,
  ...                         max_length=100, attention={'num_frequencies': 64})
  >>> model.encoder.make_attention().features
  'positive'
  """
  make_attention = AttentionFactory.of(model_type, attention or {})
  return Classifier(
    Encoder(make_attention, use_cls=pooling == 'CLS', dtype=jnp.dtype(dtype), **encoder),
    num_classes,
    pooling,
  )
