"""Compare samplers by the error of their kernel estimates, at the same number of frequencies.

  python -m kl_flax.comparison

For each sampler: root mean squared relative error of the kernel of random pairs, by closed form
where there is one and measured over many draws everywhere. The first rows of a table estimate the
Gaussian kernel, the last ones a mixture's (with unequal weights another one). 'closed form' is of
the variance: the structured frequencies alone have a bias too, which is part of what is measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from kl_flax.diagnostics import approximation_report
from kl_flax.fastfood import FastFood
from kl_flax.inspection import markdown
from kl_flax.orthogonal import Gaussian, OrthogonalGaussian, StructuredOrthogonal
from kl_flax.spectral import GaussianMixture


def gaussian_samplers(num_frequencies: int, features: str, norm: float) -> Mapping[str, nn.Module]:
  """Return samplers of N(0, I): the Gaussian kernel, by its name in the table.

  Args:
    num_frequencies: M.
    features: 'fourier' or 'positive'; for Fourier features pairs ±omega are one feature.
    norm: |q + k|², which stretched draws are tuned to.
  """
  m = num_frequencies
  samplers = {
    'independent draws': Gaussian(m),
    'orthogonal': OrthogonalGaussian(m),
    'structured orthogonal (three rotations)': StructuredOrthogonal(m),
    'FastFood, as Le et al. draw it': FastFood(m, 'none'),
  }
  if features == 'positive':
    samplers |= {
      'antithetic pairs': Gaussian(m, antithetic=True),
      'stretched (OPRF)': Gaussian(m, typical_norm=norm),
      'antithetic, stretched': Gaussian(m, antithetic=True, typical_norm=norm),
      'orthogonal, antithetic': OrthogonalGaussian(m, antithetic=True),
      'orthogonal, stretched': OrthogonalGaussian(m, typical_norm=norm),
      'orthogonal, antithetic, stretched': OrthogonalGaussian(
        m, antithetic=True, typical_norm=norm
      ),
    }
  return samplers


def mixture_samplers(num_frequencies: int) -> Mapping[str, nn.Module]:
  """Return samplers of one mixture of a mirrored pair: means drawn along, or deterministic."""
  m = num_frequencies
  return {
    'mixture, own noise per component': GaussianMixture(m, tied=False),
    'mixture, shared noise (means deterministic)': GaussianMixture(
      m, tied=False, shared_noise=True
    ),
    'mixture, own noise, learned weights 0.9 and 0.1': GaussianMixture(
      m, tied=False, weights='learned'
    ),
  }


def errors(
  sampler: nn.Module, params, features: str, norm: float, head_dim: int, num_draws: int
) -> tuple[float, float | None]:
  """Return measured and predicted relative error, root mean squared over pairs.

  Pairs have |q + k|² = |q − k|² = `norm` (queries and keys are then orthogonal, equally long).
  """
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(2, 64, head_dim))
  k -= q * np.sum(q * k, axis=1, keepdims=True) / np.sum(q * q, axis=1, keepdims=True)
  q, k = (
    x / np.linalg.norm(x, axis=1, keepdims=True) * math.sqrt(norm / 2) * head_dim**0.25
    for x in (q, k)
  )
  shape = lambda x: x[:, None, None].astype(np.float32)  # Each pair is a batch of its own.
  report = approximation_report(
    shape(q), shape(k), sampler, params, features=features, num_pairs=64, num_draws=num_draws
  )
  mean = lambda values: float(np.sqrt(np.mean(values**2)))
  return mean(report.measured), None if report.predicted is None else mean(report.predicted)


def table(
  features: str, *, num_frequencies: int, head_dim: int, norm: float, num_draws: int
) -> str:
  """Return one Markdown table."""
  title = f'{features} features, M = {num_frequencies}, D = {head_dim}, (q ± k)² = {norm:g}'
  lines = []
  rng = np.random.default_rng(1)
  mean = rng.normal(size=head_dim)
  mean *= 1 / np.linalg.norm(mean) * math.sqrt(head_dim / norm)  # muᵀ(q ± k) is about N(0, 1).
  pair = {
    'mean': np.stack([mean, -mean])[None].astype(np.float32),
    'scale': np.broadcast_to(np.eye(head_dim, dtype=np.float32), (1, 2, head_dim, head_dim)),
    'weight_logits': np.log([[0.9, 0.1]]).astype(np.float32),
  }
  groups = [
    (gaussian_samplers(num_frequencies, features, norm), {}),
    (mixture_samplers(num_frequencies), pair),
  ]
  for samplers, params in groups:
    base = None
    for name, sampler in samplers.items():
      measured, predicted = errors(sampler, params, features, norm, head_dim, num_draws)
      base = base or measured
      closed = '' if predicted is None else f'{predicted:.3f}'
      lines.append([name, f'{measured:.3f}', closed, f'{measured / base:.2f}'])
  return markdown([title, 'measured', 'closed form', '/ independent'], lines)


def main() -> None:
  """Print the tables."""
  parser = argparse.ArgumentParser(
    description='Errors of kernel estimates by sampler, as Markdown tables.'
  )
  parser.add_argument('--num_frequencies', type=int, default=64, help='M')
  parser.add_argument('--head_dim', type=int, default=32, help='D, a power of two')
  parser.add_argument('--norms', type=float, nargs='+', default=[1.0, 4.0], help='|q ± k|²')
  parser.add_argument('--num_draws', type=int, default=2000, help='of all frequencies')
  options = parser.parse_args()
  for features in ('fourier', 'positive'):
    for norm in options.norms:
      text = table(
        features,
        num_frequencies=options.num_frequencies,
        head_dim=options.head_dim,
        norm=norm,
        num_draws=options.num_draws,
      )
      print(text, end='\n\n', flush=True)


if __name__ == '__main__':
  main()
