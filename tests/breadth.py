"""Parametrisations of which the default run takes a part."""

import pytest


def slow_but(fast, values):
  """Return all values for `pytest.mark.parametrize`; those that are not in `fast` are slow."""
  values = list(values)
  assert all(value in values for value in fast), 'a name that is no value'
  return [
    pytest.param(
      *(value if isinstance(value, tuple) else (value,)),
      marks=[] if value in fast else pytest.mark.slow,
    )
    for value in values
  ]
