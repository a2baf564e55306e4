"""What arrays and options of attention must be; errors name the value and the rule it breaks."""

from __future__ import annotations

import math

import jax.numpy as jnp

from kl_flax.features import FEATURE_MAPS, WITHOUT_FREQUENCIES


def check_inputs(query, key, value, omega, features, key_mask, smoothing, log_weight=None):
  """Raise a ValueError that names the value and the rule it breaks."""
  if features not in FEATURE_MAPS:
    raise ValueError(f'features must be one of {FEATURE_MAPS}, got {features!r}')
  if (features in WITHOUT_FREQUENCIES) != (omega is None):
    raise ValueError(f'features={features!r} {"takes no" if omega is not None else "needs"} omega')
  if not 0 <= smoothing < math.inf:  # Nor NaN.
    raise ValueError(f'smoothing must be finite and at least 0, got {smoothing}')
  check_arrays(query, key, value)
  if omega is not None and (omega.ndim, *omega.shape[::2]) != (3, *query.shape[2:]):
    raise ValueError(
      f'omega must be [heads, frequencies, head size] = '
      f'[{query.shape[2]}, M, {query.shape[3]}], got {omega.shape}'
    )
  if omega is not None and not omega.shape[1]:
    raise ValueError(f'omega must hold at least one frequency of each head, got {omega.shape}')
  if log_weight is not None and (omega is None or log_weight.shape != omega.shape[:2]):
    raise ValueError(
      'log_weight must be [heads, frequencies] like omega, got '
      f'{log_weight.shape} and {None if omega is None else omega.shape}'
    )
  check_key_mask(key_mask, key)


def check_arrays(query, key, value):
  """Raise a ValueError unless these are queries, keys and values of one attention."""
  shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
  if not query.ndim == key.ndim == value.ndim == 4:
    raise ValueError(f'expected [batch, length, heads, size] three times, got {shapes}')
  if query.shape[::2] != key.shape[::2] or query.shape[3] != key.shape[3]:
    raise ValueError(f'query and key must agree in all but length, got {shapes}')
  if key.shape[:3] != value.shape[:3]:
    raise ValueError(f'key and value must agree in batch, length and heads, got {shapes}')
  if not key.shape[1]:
    raise ValueError(
      f'at least one key is needed, got {shapes}: a row that is to attend to nothing has a '
      'key_mask of False'
    )
  types = [jnp.dtype(x.dtype).name for x in (query, key, value)]
  if len(set(types)) > 1:
    raise ValueError(f'query, key and value must have one dtype, got {", ".join(types)}')
  check_floating(query, key, value)


def check_floating(*arrays):
  """Raise a ValueError unless queries, keys and values are floating; None is left out.

  Of integers the result would be truncated to integers.

  >>> check_floating(None, None, jnp.ones(3, jnp.int32))
  Traceback (most recent call last):
  ValueError: query, key and value must be floating, got int32: convert by x.astype(jnp.float32)
  """
  types = dict.fromkeys(jnp.dtype(x.dtype) for x in arrays if x is not None)
  if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in types):
    raise ValueError(
      f'query, key and value must be floating, got {", ".join(t.name for t in types)}: convert by '
      'x.astype(jnp.float32)'
    )


def check_key_mask(key_mask, key):
  """Raise a ValueError unless the mask has a truth value for each key, or is None."""
  if key_mask is not None and (key_mask.shape != key.shape[:2] or key_mask.dtype != bool):
    raise ValueError(
      f'key_mask must be bool{list(key.shape[:2])}, got {key_mask.dtype}{list(key_mask.shape)}'
    )
