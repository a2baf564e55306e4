"""What mechanisms with blocks, or with parameters for every position, have in common."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from kl_flax.numerics import pad_axis


def check_option(name: str, value: int, least: int, hint: str) -> None:
  """Raise a ValueError that says what to do unless the value is an integer and not too small.

  >>> check_option('block_size', 0, 1, 'LRA has 64')
  Traceback (most recent call last):
  ValueError: block_size must be an integer of at least 1, got 0: LRA has 64
  """
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}: {hint}')


def check_length(length: int, num_positions: int) -> None:
  """Raise a ValueError for a sequence that is longer than there are parameters for.

  >>> check_length(9, 8)
  Traceback (most recent call last):
  ValueError: sequences of length 9 exceed num_positions=8: make the model with a larger max_length
  """
  if length > num_positions:
    raise ValueError(
      f'sequences of length {length} exceed num_positions={num_positions}: make the model with a '
      'larger max_length'
    )


def valid_positions(
  key_mask: Bool[Array, 'b l'] | None, batch: int, length: int
) -> Bool[Array, 'm l']:
  """Return the mask, or one for `batch` examples that is True everywhere."""
  return jnp.ones((batch, length), bool) if key_mask is None else key_mask


def cut(x: Shaped[Array, 'b l *f'], size: int) -> Shaped[Array, 'b n s *f']:
  """Return the sequence in blocks; the last is filled up with zeros, or False.

  >>> cut(jnp.arange(1, 6)[None], 3).tolist()
  [[[1, 2, 3], [4, 5, 0]]]
  """
  x = pad_axis(x, 1, size)
  return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def join(x: Shaped[Array, 'b n s *f'], length: int) -> Shaped[Array, 'b l *f']:
  """Return the sequence of which `cut` made blocks.

  >>> join(cut(jnp.arange(1, 6)[None], 3), 5).tolist()
  [[1, 2, 3, 4, 5]]
  """
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
