"""The kernel of a layer in numbers: the error of its estimates, the spread of its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kl_flax.diagnostics import (
  ApproximationReport,
  approximation_report,
  covariance_eigenvalues,
)
from kl_flax.inspection.layers import AttentionLayer
from kl_flax.profiles import principal_directions, spectral_covariance


def sample_pairs(
  layer: AttentionLayer, num_pairs: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Return queries and keys of random valid positions, [n, h, d] each, before the temperature.

  Both of a pair are of the same sequence; all sequences are drawn alike.
  """
  rng = np.random.default_rng(seed)
  valid = [np.flatnonzero(row) for row in layer.key_mask]
  chosen = rng.choice([i for i, row in enumerate(valid) if len(row)], size=num_pairs)
  return tuple(x[chosen, [rng.choice(valid[i]) for i in chosen]] for x in (layer.query, layer.key))


def error_report(
  layer: AttentionLayer, *, num_pairs: int = 200, num_draws: int = 200, seed: int = 0
) -> ApproximationReport:
  """Return the error of the kernel's estimates on the layer's own queries and keys.

  Args:
    layer: from `capture`.
    num_pairs: of query and key, random valid positions of one sequence.
    num_draws: of all frequencies.
    seed: of pairs and draws.

  Raises:
    ValueError: for an attention without frequencies.
  """
  if layer.sampler is None:
    raise ValueError(f'{layer.path} has no frequencies: it estimates no kernel')
  # Each pair is a sequence of its own, or padding would be among them.
  query, key = (x[:, None] for x in sample_pairs(layer, num_pairs, seed))
  return approximation_report(
    query, key, layer.sampler, layer.params, features=layer.attention.features,
    num_pairs=num_pairs, num_draws=num_draws, seed=seed,
  )  # fmt: skip


class EigenvalueRow(NamedTuple):
  """Eigenvalues of one covariance: a row of the paper's Tables 4 and 9 to 12.

  Attributes:
    layer: from 1.
    head: from 1.
    component: from 1, of the free ones of a mixture; a tied pair has one.
    minimum: of the eigenvalues.
    maximum: likewise.
    mean: likewise.
  """

  layer: int
  head: int
  component: int
  minimum: float
  maximum: float
  mean: float


def eigenvalue_rows(layers: Sequence[AttentionLayer]) -> list[EigenvalueRow]:
  """Return the eigenvalues of the spectral covariances, by layer, head and component.

  Of a Gaussian mixture they are those of S Sᵀ of each component; of another sampler those of the
  covariance of its frequencies, measured over draws.

  Raises:
    ValueError: for layers without frequencies.
  """
  rows = []
  for number, layer in enumerate(layers, start=1):
    if layer.sampler is None:
      raise ValueError(f'{layer.path} has no frequencies, hence no spectral covariance')
    values = covariance_eigenvalues(layer.params).get('')
    if values is None:
      sizes = layer.num_heads, layer.head_dim
      covariance = spectral_covariance(layer.sampler, layer.params, *sizes)
      values = principal_directions(covariance)[0][:, None]
    for head, components in enumerate(values, start=1):
      for component, own in enumerate(components, start=1):
        numbers = (float(f(own)) for f in (np.min, np.max, np.mean))
        rows.append(EigenvalueRow(number, head, component, *numbers))
  return rows
