"""Heads: encoded sequences to logits."""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kl_flax.encoder import Encoder
from kl_flax.errors import unknown_name

Pooling = Literal['CLS', 'MEAN', 'SUM', 'FLATTEN']
POOLINGS = get_args(Pooling)


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


class Classifier(nn.Module):
  """LRA's classifier: encoder, pooling, Dense(mlp_dim), ReLU, logits.

  Attributes:
    encoder: called with token ids and key mask.
    num_classes: number of logits.
    pooling: one of CLS, MEAN, SUM, FLATTEN; CLS needs an encoder with use_cls=True.

  Raises:
    ValueError: if the pooling is unknown or does not go with the encoder.
  """

  encoder: Encoder
  num_classes: int
  pooling: Pooling = 'CLS'

  def __post_init__(self) -> None:
    """Check the pooling at once, not when the model is first called."""
    super().__post_init__()
    if self.pooling not in POOLINGS:
      raise ValueError(unknown_name('pooling', str(self.pooling), POOLINGS))
    if self.pooling == 'CLS' and not self.encoder.use_cls:
      raise ValueError('pooling CLS needs an encoder with use_cls=True')

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
    if self.pooling == 'FLATTEN' and inputs.shape[1] != self.encoder.max_length:
      raise ValueError(
        f'pooling FLATTEN needs inputs padded to max_length={self.encoder.max_length}, '
        f'got {inputs.shape[1]}'
      )
    encoded, mask = self.encoder(inputs, key_mask, deterministic=deterministic)
    dtype = self.encoder.dtype
    pooled = pool(encoded, mask, self.pooling).astype(dtype)
    hidden = nn.relu(nn.Dense(self.encoder.mlp_dim, dtype=dtype, name='hidden')(pooled))
    return nn.Dense(self.num_classes, name='logits')(hidden.astype(jnp.float32))
