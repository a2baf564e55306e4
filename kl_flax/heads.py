"""Heads: encoded sequences to logits."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kl_flax.encoder import Encoder
from kl_flax.errors import unknown_name

Pooling = Literal['CLS', 'MEAN', 'SUM', 'FLATTEN']
POOLINGS = get_args(Pooling)
Interaction = Literal['NLI']
INTERACTIONS = get_args(Interaction)
Activation = Literal['relu', 'tanh']
ACTIVATIONS = {'relu': nn.relu, 'tanh': nn.tanh}


def pool(
  encoded: Float[Array, 'b l f'], mask: Bool[Array, 'b l'] | None, pooling: Pooling
) -> Float[Array, 'b g']:
  """Reduce a sequence to one vector, ignoring padding.

  MEAN and SUM run over valid positions and FLATTEN zeroes the others; LRA lets padding in.

  Raises:
    ValueError: if the pooling is unknown.
  """
  if pooling == 'CLS':
    return encoded[:, 0]
  if mask is not None:
    encoded = jnp.where(mask[..., None], encoded, 0)
  if pooling == 'FLATTEN':
    return encoded.reshape(encoded.shape[0], -1)
  total = jnp.sum(encoded, axis=1, dtype=jnp.float32)
  if pooling == 'SUM':
    return total
  if pooling == 'MEAN':
    count = encoded.shape[1] if mask is None else jnp.sum(mask, axis=1, keepdims=True)
    return total / jnp.maximum(count, 1)
  raise ValueError(f'pooling must be one of {", ".join(POOLINGS)}, got {pooling!r}')


def _pooled(
  model: Classifier | DualClassifier,
  inputs: Int[Array, 'b l'],
  key_mask: Bool[Array, 'b l'] | None,
  deterministic: bool,
) -> Float[Array, 'b g']:
  """Encode and pool sequences with the encoder and pooling of a classifier."""
  encoder = model.encoder
  if model.pooling == 'FLATTEN' and inputs.shape[1] != encoder.max_length:
    raise ValueError(
      f'pooling FLATTEN needs inputs padded to max_length={encoder.max_length}, '
      f'got {inputs.shape[1]}'
    )
  num_outputs = 1 if model.pooling == 'CLS' else None
  encoded, mask = encoder(inputs, key_mask, num_outputs=num_outputs, deterministic=deterministic)
  return pool(encoded, mask, model.pooling).astype(encoder.dtype)


def _check_pooling(pooling: str, encoder: Encoder) -> None:
  if pooling not in POOLINGS:
    raise ValueError(unknown_name('pooling', str(pooling), POOLINGS))
  if pooling == 'CLS' and not encoder.use_cls:
    raise ValueError('pooling CLS needs an encoder with use_cls=True')


class Classifier(nn.Module):
  """LRA's classifier: encoder, pooling, Dense(mlp_dim), ReLU, logits.

  Attributes:
    encoder: called with token ids and key mask.
    num_classes: number of logits.
    pooling: one of CLS, MEAN, SUM, FLATTEN; CLS needs an encoder with use_cls=True.
    hidden_dim: width between pooling and logits; None is the encoder's mlp_dim.
    activation: 'relu', or 'tanh' as classifiers of pre-trained encoders have it.

  Raises:
    ValueError: if the pooling is unknown or does not go with the encoder, or if the activation is
      unknown.
  """

  encoder: Encoder
  num_classes: int
  pooling: Pooling = 'CLS'
  hidden_dim: int | None = None
  activation: Activation = 'relu'

  num_inputs: ClassVar[int] = 1
  extra_inputs: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    _check_pooling(self.pooling, self.encoder)
    if self.activation not in ACTIVATIONS:
      raise ValueError(unknown_name('activation', str(self.activation), ACTIVATIONS))

  @nn.compact
  def __call__(
    self,
    inputs: Int[Array, 'b l'],
    key_mask: Bool[Array, 'b l'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b c']:
    """Return logits, float32.

    Args:
      inputs: token ids.
      key_mask: True at valid positions; None means everywhere.
      deterministic: no dropout (prediction).

    Raises:
      ValueError: if the pooling does not go with the inputs.
    """
    pooled = _pooled(self, inputs, key_mask, deterministic)
    width = self.hidden_dim or self.encoder.mlp_dim
    hidden = nn.Dense(width, dtype=self.encoder.dtype, name='hidden')(pooled)
    hidden = ACTIVATIONS[self.activation](hidden)
    return nn.Dense(self.num_classes, name='logits')(hidden.astype(jnp.float32))


class DualClassifier(nn.Module):
  """LRA's classifier of pairs: two towers that share one encoder and see nothing of each other.

  The pooled vectors u and v are joined; then Dense(mlp_dim), ReLU, Dense(mlp_dim / 2), ReLU and
  logits.

  Attributes:
    encoder: as in `Classifier`; both towers use the same frequencies.
    num_classes: number of logits.
    pooling: as in `Classifier`.
    interaction: None joins u and v; 'NLI' joins u, v, u·v and u − v (elementwise; LRA's option).

  Raises:
    ValueError: if the pooling is unknown or does not go with the encoder, or if the interaction is
      unknown.
  """

  encoder: Encoder
  num_classes: int
  pooling: Pooling = 'CLS'
  interaction: Interaction | None = None

  num_inputs: ClassVar[int] = 2
  extra_inputs: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self) -> None:
    """Check the options at once, not when the model is first called."""
    super().__post_init__()
    _check_pooling(self.pooling, self.encoder)
    if self.interaction not in (None, *INTERACTIONS):
      raise ValueError(unknown_name('interaction', str(self.interaction), INTERACTIONS))

  @nn.compact
  def __call__(
    self,
    inputs: Int[Array, 'b 2 l'],
    key_mask: Bool[Array, 'b 2 l'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b c']:
    """Return logits, float32.

    Args:
      inputs: token ids of both sequences.
      key_mask: True at valid positions; None means everywhere.
      deterministic: no dropout (prediction).

    Raises:
      ValueError: if the pooling does not go with the inputs.
    """
    size, _, length = inputs.shape
    # One pass over all sequences: both towers then draw the same frequencies.
    if key_mask is not None:
      key_mask = key_mask.reshape(2 * size, length)
    pooled = _pooled(self, inputs.reshape(2 * size, length), key_mask, deterministic)
    pooled = pooled.reshape(size, 2, -1)
    parts = [pooled[:, 0], pooled[:, 1]]
    if self.interaction == 'NLI':
      parts += [parts[0] * parts[1], parts[0] - parts[1]]
    mlp_dim, dtype = self.encoder.mlp_dim, self.encoder.dtype
    hidden = nn.relu(nn.Dense(mlp_dim, dtype=dtype, name='hidden')(jnp.concatenate(parts, axis=1)))
    hidden = nn.relu(nn.Dense(mlp_dim // 2, dtype=dtype, name='hidden2')(hidden))
    return nn.Dense(self.num_classes, name='logits')(hidden.astype(jnp.float32))


class MaskedLanguageModel(nn.Module):
  """Predicts tokens that were masked (Devlin et al. 2019), with the embedding as output matrix.

  Dense(emb_dim), GELU, LayerNorm; logits are products with the rows of the embedding, divided by
  emb_dim^(1/2) as in T5 (Raffel et al. 2020), plus a bias. Rows have standard deviation 1: the
  initial loss is near that of a guess, where undivided logits would make it several times as large.

  Attributes:
    encoder: its vocabulary is that of the data and, as the last id, the mask.
    num_predictions: positions of a sequence that are predicted, at most.
  """

  encoder: Encoder
  num_predictions: int

  num_inputs: ClassVar[int] = 1
  extra_inputs: ClassVar[tuple[str, ...]] = ('positions',)

  @property
  def num_classes(self) -> int:
    """Number of logits: the vocabulary without the mask."""
    return self.encoder.vocab_size - 1

  @nn.compact
  def __call__(
    self,
    inputs: Int[Array, 'b l'],
    key_mask: Bool[Array, 'b l'] | None,
    positions: Int[Array, 'b k'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b k v']:
    """Return logits at some positions, float32.

    Args:
      inputs: token ids, masked ones among them.
      key_mask: True at valid positions; None means everywhere.
      positions: of the sequence, from 0, without the CLS position.
      deterministic: no dropout (prediction).
    """
    encoder = self.encoder
    encoded, _ = encoder(inputs, key_mask, deterministic=deterministic)
    x = jnp.take_along_axis(encoded, (positions + encoder.use_cls)[..., None], axis=1)
    x = nn.Dense(encoder.emb_dim, dtype=encoder.dtype, name='hidden')(x)
    x = nn.LayerNorm(dtype=encoder.dtype, name='norm')(nn.gelu(x)) * encoder.emb_dim**-0.5
    table = encoder.variables['params']['embedding']['table'][:-1].astype(encoder.dtype)
    logits = jnp.einsum('bkf,vf->bkv', x, table, preferred_element_type=jnp.float32)
    return logits + self.param('bias', nn.initializers.zeros, (self.num_classes,))
