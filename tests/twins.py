"""How fast paths are compared with their naive twins."""

import jax
import numpy as np


def assert_equal_twins(fast, naive, tolerance=1e-5):
  """Assert equality of outputs and gradients up to 1e-5 of the largest value (at least 1)."""
  for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(naive), strict=True):
    largest = max(1.0, float(np.max(np.abs(theirs))))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)
