"""The registry: model_type -> attention mechanism, and the one encoder around all of them.

To add a mechanism, write a module (see `kl_flax.baselines`) and add a row to MODELS. Its fields are
its options, in configs under `attention`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kl_flax.attention import KernelAttention
from kl_flax.baselines.bigbird import BigBirdAttention
from kl_flax.baselines.linformer import LinformerAttention
from kl_flax.baselines.local import LocalAttention
from kl_flax.baselines.longformer import LongformerAttention
from kl_flax.baselines.reformer import ReformerAttention
from kl_flax.baselines.sinkhorn import SinkhornAttention
from kl_flax.baselines.softmax import SoftmaxAttention
from kl_flax.baselines.sparse_transformer import SparseTransformerAttention
from kl_flax.baselines.synthesizer import SynthesizerAttention
from kl_flax.encoder import Encoder
from kl_flax.errors import unknown_name
from kl_flax.fastfood import FastFood
from kl_flax.features import FeatureMap
from kl_flax.heads import Classifier, DualClassifier, MaskedLanguageModel
from kl_flax.kernels import Implementation
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.spectral import GaussianMixture, Generator
from kl_flax.sums import resolve_smoothing

# The argument of `AttentionRow.make` that is no option.
_NUM_POSITIONS = 'num_positions'
# The option for a mechanism's field `dropout_rate`, which the encoder has too; LRA's default.
_DROPOUT, _DROPOUT_RATE = 'attention_dropout_rate', 0.1


@dataclasses.dataclass(frozen=True)
class AttentionRow:
  """One row of the registry; see `of` for mechanisms whose options are the fields of a module.

  Attributes:
    make: returns the mechanism; its keyword arguments are the options of the model. One of the name
      `num_positions` is none: it gets the largest length that the mechanism is called with, on
      which its parameters or its blocks depend.
    stochastic: draws from the PRNG stream 'spectral', in prediction too; see `is_stochastic`.
    ignores_padding: False where results change with the length that sequences are padded to.
  """

  make: Callable[..., nn.Module]
  stochastic: bool = False
  ignores_padding: bool = True

  @classmethod
  def of(cls, mechanism: type[nn.Module], *, ignores_padding: bool = True) -> AttentionRow:
    """Return the row of a module whose fields are the options.

    Dropout of attention weights, its field `dropout_rate`, is the option `attention_dropout_rate`,
    whose default is 0.1.
    """
    options = _fields(mechanism)
    if 'dropout_rate' in options:
      options[_DROPOUT] = _DROPOUT_RATE
      del options['dropout_rate']

    def make(**given: Any) -> nn.Module:
      settings = options | given
      if _DROPOUT in settings:
        settings['dropout_rate'] = settings.pop(_DROPOUT)
      return mechanism(**settings)

    return cls(_with_signature(make, options), ignores_padding=ignores_padding)

  @property
  def options(self) -> dict[str, Any]:
    """Names and defaults of the mechanism's options."""
    return {name: p.default for name, p in self._arguments().items() if name != _NUM_POSITIONS}

  @property
  def depends_on_positions(self) -> bool:
    """Return whether the largest length makes a difference."""
    return _NUM_POSITIONS in self._arguments()

  def __call__(self, num_positions: int, **options: Any) -> nn.Module:
    """Return the mechanism."""
    if self.depends_on_positions:
      options[_NUM_POSITIONS] = num_positions
    return self.make(**options)

  def _arguments(self) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(self.make).parameters

  def is_stochastic(self, options: Mapping[str, Any]) -> bool:
    """Return whether the model with these options draws anything in prediction.

    >>> MODELS['performer'].is_stochastic({'kernel': 'relu'})
    False
    """
    return self.stochastic and getattr(self(1, **options), 'sampler', self) is not None


_SMOOTHING = {name: resolve_smoothing(name, None) for name in ('positive', 'fourier')}


_NUM_FREQUENCIES = 128


def _learned(
  features: FeatureMap, sampler: type[nn.Module], *, stochastic: bool = True, **fixed: Any
) -> AttentionRow:
  """Return the row of a learned sampler, whose fields that are not fixed are the options."""
  options = {k: v for k, v in _fields(sampler).items() if k not in fixed}
  options |= {'num_frequencies': _NUM_FREQUENCIES}
  # Of the module around the sampler.
  outer = {'smoothing': _SMOOTHING[features], 'implementation': 'auto'}
  options |= outer

  def make(**given: Any) -> KernelAttention:
    settings = options | given
    around = {name: settings.pop(name) for name in outer}
    if features == 'fourier':
      _check_fourier(settings)
    return KernelAttention(sampler(**settings, **fixed, parent=None), features, **around)

  return AttentionRow(_with_signature(make, options), stochastic)


def _fields(module: type[nn.Module]) -> dict[str, Any]:
  """Return names and defaults of a module's own fields."""
  fields = {f.name: f.default for f in dataclasses.fields(module) if f.init}
  return {k: v for k, v in fields.items() if k not in ('parent', 'name')}


def _with_signature(make: Callable[..., nn.Module], options: Mapping[str, Any]) -> Callable:
  """Return a function that takes any keywords as one that takes these."""
  empty = inspect.Parameter.empty
  make.__signature__ = inspect.Signature(
    [
      inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=empty if default is dataclasses.MISSING else default,
      )
      for name, default in options.items()
    ]
  )
  return make


def _check_fourier(settings: Mapping[str, Any]) -> None:
  """Refuse options of samplers that Fourier features gain nothing from."""
  if settings.get('tied') and settings.get('antithetic'):
    raise ValueError(
      'antithetic=True repeats what tied components have: cos is even, so (n, mu) and '
      '(−n, −mu) are one Fourier feature; set tied=False or antithetic=False'
    )
  if settings.get('typical_norm'):
    raise ValueError('typical_norm stretches draws for positive features; it hurts Fourier ones')


def _rks(
  num_frequencies: int = _NUM_FREQUENCIES,
  directions: str = 'independent',
  smoothing: float = _SMOOTHING['fourier'],
  implementation: Implementation = 'auto',
) -> KernelAttention:
  sampler = _fixed(directions, num_frequencies)
  return KernelAttention(sampler, 'fourier', smoothing, implementation=implementation)


def _prf(
  num_frequencies: int = _NUM_FREQUENCIES,
  directions: str = 'independent',
  antithetic: bool = False,
  typical_norm: float = 0.0,
  smoothing: float = _SMOOTHING['positive'],
  implementation: Implementation = 'auto',
) -> KernelAttention:
  sampler = _fixed(directions, num_frequencies, antithetic, typical_norm)
  return KernelAttention(sampler, 'positive', smoothing, implementation=implementation)


def _performer(
  num_frequencies: int = 256,
  kernel: str = 'softmax',
  directions: str = 'orthogonal',
  antithetic: bool = False,
  typical_norm: float = 0.0,
  implementation: Implementation = 'auto',
) -> KernelAttention:
  """FAVOR+ (Choromanski et al. 2021): orthogonal positive features of the softmax kernel, masked.

  LRA's own files leave the kernel at its code's default, 'relu': features relu(x) + 0.001 without
  any frequencies, which is no estimate of softmax. (ListOps' file asks for softmax, with two.)
  """
  if kernel == 'relu':
    return KernelAttention(None, 'relu', implementation=implementation)
  if kernel != 'softmax':
    raise ValueError(unknown_name('kernel of performer', str(kernel), ('softmax', 'relu')))
  sampler = _fixed(directions, num_frequencies, antithetic, typical_norm)
  return KernelAttention(sampler, 'softmax', implementation=implementation)


def _fixed(directions: str, num_frequencies: int, *options: Any) -> nn.Module:
  """Return a sampler of the standard normal distribution, nothing of which is learned."""
  samplers = {
    'independent': Gaussian,
    'orthogonal': OrthogonalGaussian,
    'structured': StructuredOrthogonal,
  }
  if directions not in samplers:
    raise ValueError(unknown_name('directions', str(directions), samplers))
  return samplers[directions](num_frequencies, *options, parent=None)


def _linear() -> KernelAttention:
  """Linear attention (Katharopoulos et al. 2020), elu(x) + 1; unlike LRA's it masks padding."""
  return KernelAttention(None, 'elu')


# Learned diagonals, of which nothing is drawn that could be paired or stretched.
_ROTATIONS = {'learned': True, 'antithetic': False, 'typical_norm': 0.0}

MODELS: dict[str, AttentionRow] = {
  # The paper's six.
  'gmm_rks': _learned('fourier', GaussianMixture, covariance='full'),
  'gmm_prf': _learned('positive', GaussianMixture, covariance='diagonal'),
  'fastfood_rks': _learned('fourier', FastFood, learned='sgb'),
  'fastfood_prf': _learned('positive', FastFood, learned='sgb'),
  'generative_rks': _learned('fourier', Generator),
  'generative_prf': _learned('positive', Generator),
  # Its ablations of FastFood: less is learned.
  'fastfood_s_rks': _learned('fourier', FastFood, learned='s'),
  'fastfood_s_prf': _learned('positive', FastFood, learned='s'),
  'fastfood_fixed_rks': _learned('fourier', FastFood, learned='none'),
  'fastfood_fixed_prf': _learned('positive', FastFood, learned='none'),
  # Beyond the paper: three rotations with learned diagonals.
  'structured_rks': _learned('fourier', StructuredOrthogonal, stochastic=False, **_ROTATIONS),
  'structured_prf': _learned('positive', StructuredOrthogonal, stochastic=False, **_ROTATIONS),
  # Controls: the Gaussian kernel, nothing learned.
  'rks': AttentionRow(_rks, stochastic=True),
  'prf': AttentionRow(_prf, stochastic=True),
  # Baselines.
  'bigbird': AttentionRow.of(BigBirdAttention, ignores_padding=False),
  'linear_transformer': AttentionRow(_linear),
  'linformer': AttentionRow.of(LinformerAttention),
  'local': AttentionRow.of(LocalAttention),
  'longformer': AttentionRow.of(LongformerAttention),
  'performer': AttentionRow(_performer, stochastic=True),
  'reformer': AttentionRow.of(ReformerAttention),
  'sinkhorn': AttentionRow.of(SinkhornAttention),
  'sparse_transformer': AttentionRow.of(SparseTransformerAttention),
  'synthesizer': AttentionRow.of(SynthesizerAttention),
  'transformer': AttentionRow.of(SoftmaxAttention),
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
    num_positions: the largest length that the mechanism is called with.
    options: pairs of name and value, sorted by name.
  """

  model_type: str
  num_positions: int
  options: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, model_type: str, num_positions: int, options: Mapping[str, Any]) -> AttentionFactory:
    """Check the options.

    Raises:
      ValueError: for an unknown model_type or option, with the nearest known name; for a value that
        the mechanism refuses. What depends on the head size shows when it is called.
    """
    known = get_row(model_type).options
    for name in options:
      if name not in known:
        raise ValueError(unknown_name(f'attention option of {model_type}', name, known))
    factory = cls(model_type, num_positions, tuple(sorted(options.items())))
    # In a thread of its own: a module that is being set up here would adopt it, and count it among
    # those that it names.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      pool.submit(factory).result()
    return factory

  def __call__(self) -> nn.Module:
    """Return a new module."""
    return get_row(self.model_type)(self.num_positions, **dict(self.options))


def make_attention(
  model_type: str, *, num_positions: int | None = None, **options: Any
) -> nn.Module:
  """Return the attention of a model of the zoo, for a model of one's own.

  It is called with queries, keys and values [b, l, h, d] and, if not all are valid, a key mask
  [b, l]. Where frequencies are drawn, as by learned kernels, every `apply` needs a key of the
  stream 'spectral'; where weights are dropped, one of 'dropout' if `deterministic=False`.

  Args:
    model_type: a key of `kl_flax.models.MODELS`.
    num_positions: the longest sequence, for mechanisms that depend on it, such as `linformer` with
      its parameters for every position.
    **options: of the mechanism, as `config.attention` has them.

  Raises:
    ValueError: for an unknown model_type or option, with the nearest known name; for a value that
      the mechanism refuses; for `num_positions` below 1, or none where it is needed.

  >>> make_attention('gmm_rks', num_frequencies=64).features
  'fourier'
  """
  if num_positions is None:
    if get_row(model_type).depends_on_positions:
      raise ValueError(f'{model_type} depends on the longest length: name num_positions')
    num_positions = 1
  if num_positions < 1:
    raise ValueError(f'num_positions must be at least 1, got {num_positions}')
  return AttentionFactory.of(model_type, num_positions, options)()


def make_classifier(
  model_type: str,
  *,
  num_classes: int,
  pooling: str = 'CLS',
  num_inputs: int = 1,
  interaction: str | None = None,
  hidden_dim: int | None = None,
  activation: str = 'relu',
  attention: Mapping[str, Any] | None = None,
  dtype: Any = 'float32',
  **encoder: Any,
) -> Classifier | DualClassifier:
  """Return a classifier of the zoo.

  Args:
    model_type: a key of MODELS.
    num_classes: number of logits.
    pooling: 'CLS', 'MEAN', 'SUM' or 'FLATTEN'.
    num_inputs: 1, or 2 for a classifier of pairs in two towers.
    interaction: of pairs, None or 'NLI'.
    hidden_dim: see `Classifier`; of single inputs.
    activation: likewise.
    attention: options of the mechanism; those of other mechanisms are errors.
    dtype: of the computation, 'float32' or 'bfloat16'.
    **encoder: sizes and switches of `kl_flax.encoder.Encoder`.

  Raises:
    ValueError: for an unknown model_type, argument or option, with the nearest known name; for a
      value out of its range; for another number of inputs, or an option that the number of inputs
      does not have.

  >>> model = make_classifier('gmm_prf', num_classes=10, vocab_size=16, emb_dim=32,
  ...                         num_heads=4, qkv_dim=32, mlp_dim=64, num_layers=2,
  ...                         max_length=100, attention={'num_frequencies': 64})
  >>> model.encoder.make_attention().features
  'positive'
  """
  _check_names(make_classifier, encoder, {'use_cls'})
  module = make_encoder(model_type, attention, dtype, use_cls=pooling == 'CLS', **encoder)
  if num_inputs == 2:
    if hidden_dim is not None or activation != 'relu':
      raise ValueError('hidden_dim and activation are for single inputs: num_inputs=1')
    return DualClassifier(module, num_classes, pooling, interaction)
  if num_inputs != 1:
    raise ValueError(f'num_inputs must be 1 or 2, got {num_inputs}')
  if interaction is not None:
    raise ValueError(f'interaction={interaction!r} needs pairs: num_inputs=2')
  return Classifier(module, num_classes, pooling, hidden_dim, activation)


def make_masked_lm(
  model_type: str,
  *,
  num_predictions: int,
  attention: Mapping[str, Any] | None = None,
  dtype: Any = 'float32',
  **encoder: Any,
) -> MaskedLanguageModel:
  """Return a model that predicts masked tokens.

  Args:
    model_type: a key of MODELS.
    num_predictions: positions of a sequence that are predicted, at most.
    attention: see `make_classifier`.
    dtype: likewise.
    **encoder: likewise; vocab_size counts the mask, which is the last id.

  Raises:
    ValueError: for an unknown model_type, argument or option, with the nearest known name.
  """
  _check_names(make_masked_lm, encoder)
  return MaskedLanguageModel(make_encoder(model_type, attention, dtype, **encoder), num_predictions)


def _check_names(
  make: Callable[..., Any], given: Collection[str], settled: Collection[str] = ()
) -> None:
  """Refuse keywords that neither a function nor the encoder knows; some of these it settles."""
  own = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
  known = {*own, *_fields(Encoder)}.difference({'make_attention', *settled})
  for name in given:
    if name not in known:
      raise ValueError(unknown_name('argument of a model', name, known))


def make_model(**arguments: Any) -> Classifier | DualClassifier | MaskedLanguageModel:
  """Return the masked language model of arguments with num_predictions, else the classifier."""
  return (make_masked_lm if 'num_predictions' in arguments else make_classifier)(**arguments)


def ignores_padding(model: Classifier | DualClassifier | MaskedLanguageModel) -> bool:
  """Return whether a model's results are the same, however far its inputs are padded.

  Mechanisms that are not of the registry are taken to be.
  """
  make = model.encoder.make_attention
  row = get_row(make.model_type) if isinstance(make, AttentionFactory) else None
  return getattr(model, 'pooling', '') != 'FLATTEN' and (row is None or row.ignores_padding)


def make_encoder(
  model_type: str, attention: Mapping[str, Any] | None = None, dtype: Any = 'float32', **sizes: Any
) -> Encoder:
  """Return the encoder of a model; see `make_classifier`."""
  module = Encoder(None, dtype=jnp.dtype(dtype), **sizes)
  make_attention = AttentionFactory.of(model_type, module.num_positions, attention or {})
  return module.copy(make_attention=make_attention)
