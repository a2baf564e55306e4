"""A trained kernel as figures: its course, its spectrum, its attention maps, for one layer each.

Columns are heads. The largest and the smallest principal direction are those of the trained
spectral covariance, which the initial kernel is shown along too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kl_flax import inspection, profiles
from kl_flax.inspection import AttentionLayer
from lra_tasks.plotting import SOFTMAX, color, new_grid

_DIRECTIONS = {'largest variance': 0, 'smallest variance': -1}
_INITIAL, _REFERENCE, _DATA = '#888888', '#222222', '#bbbbbb'
# Pixels of a map on each side: longer sequences have rows left out, and means of several keys.
_MOST_PIXELS = 256
# Positions that are named at the axes.
_MOST_NAMES = 40


def draw_kernel(trained: AttentionLayer, initial: AttentionLayer, model: str, title: str) -> Any:
  """Return the kernel over the displacement, seen from the mean query, trained and initial.

  Behind it stands how often the displacements of queries and keys occur.
  """
  features = trained.attention.features
  directions = _principal(trained)
  query, key = inspection.sample_pairs(trained, 2000)
  query, key = (x.astype(np.float64) * trained.head_dim**-0.25 for x in (query, key))
  origin = query.mean(axis=0)
  figure, axes = new_grid(2, trained.num_heads, 2.6, 2.5, sharey='row')
  for (name, u), row in zip(directions.items(), axes, strict=True):
    along = np.einsum('nhd,hd->nh', key - query, u)
    reach = max(2.0, float(np.quantile(np.abs(along), 0.99)))
    t = np.linspace(-reach, reach, 121)
    learned, before = (
      profiles.kernel_profile(features, layer.sampler, layer.params, u, t, origin=origin)
      for layer in (trained, initial)
    )
    softmax = profiles.softmax_profile(u, t, origin)
    bottom, top = _limits(features, learned.kernel, before.kernel)
    for head, axis in enumerate(row):
      _fill_histogram(axis, along[:, head], reach)
      axis.fill_between([], [], color=_DATA, alpha=0.35, label='displacements in the data')
      axis.plot(
        t, profiles.gaussian_profile(t), ':', color=_REFERENCE, label='Gaussian, exp(−t²/2)'
      )
      axis.plot(t, softmax[head], '--', color=color(SOFTMAX), lw=1, label='softmax, exp(q·k)')
      axis.plot(t, before.kernel[head], color=_INITIAL, label='initial')
      axis.plot(t, learned.kernel[head], color=color(model), lw=2, label='trained')
      for found, shade in ((before, _INITIAL), (learned, color(model))):
        _fill_error(axis, t, found.kernel[head], found.error[head], shade)
      axis.set_yscale('linear' if features == 'fourier' else 'log')
      axis.set(xlim=(-reach, reach), ylim=(bottom, top))
      axis.grid(alpha=0.3)
    row[0].set_ylabel(f'u of the {name}\nκ(q, q + t·u) / κ(q, q)')
  x_label = 'displacement t of a key along u from q, the mean query, in units of $D^{1/4}$'
  if smoothing := trained.attention.effective_smoothing:
    x_label += f'; attention adds {smoothing**2:g} to κ'
  return _finish(figure, axes, title, x_label)


def _limits(features: str, *kernels: np.ndarray) -> tuple[float, float]:
  values = np.concatenate([kernel.ravel() for kernel in kernels])
  if features == 'fourier':
    return min(-0.1, 1.05 * float(values.min())), max(1.1, 1.05 * float(values.max()))
  return max(1e-6, float(values.min()) / 2), 2 * max(1.5, float(values.max()))


def _fill_histogram(axis: Any, values: np.ndarray, reach: float) -> None:
  behind = axis.twinx()
  behind.hist(values, bins=40, range=(-reach, reach), color=_DATA, alpha=0.35)
  behind.set_yticks([])
  axis.set_zorder(behind.get_zorder() + 1)
  axis.patch.set_visible(False)


def _fill_error(axis: Any, t: np.ndarray, kernel: np.ndarray, error: np.ndarray, shade: str):
  if np.any(error):
    axis.fill_between(t, kernel - 2 * error, kernel + 2 * error, color=shade, alpha=0.25, lw=0)


def draw_spectrum(trained: AttentionLayer, initial: AttentionLayer, model: str, title: str) -> Any:
  """Return the density of frequencies along the principal directions, trained and initial.

  Bars are drawn frequencies; lines are exact, where the distribution is a mixture.
  """
  directions = _principal(trained)
  figure, axes = new_grid(2, trained.num_heads, 2.6, 2.5, sharey='row')
  sizes = trained.num_heads, trained.head_dim
  omega, weight = profiles.draw_frequencies(trained.sampler, trained.params, *sizes)
  before, weight_before = profiles.draw_frequencies(initial.sampler, initial.params, *sizes)
  for (name, u), row in zip(directions.items(), axes, strict=True):
    along, along_before = (np.einsum('hnd,hd->hn', x, u) for x in (omega, before))
    reach = max(3.0, float(np.quantile(np.abs(along), 0.999)))
    points = np.linspace(-reach, reach, 241)
    exact, exact_before = (
      profiles.spectral_density(layer.sampler, layer.params, u, points)
      for layer in (trained, initial)
    )
    bars = {'bins': 48, 'range': (-reach, reach), 'density': True}
    for head, axis in enumerate(row):
      normal = np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
      axis.plot(points, normal, ':', color=_REFERENCE, label='N(0, 1)')
      shown = {'color': color(model), 'label': 'trained'}
      if exact is None:
        axis.hist(
          along_before[head], weights=weight_before[head], histtype='step', color=_INITIAL,
          label='initial', **bars,
        )  # fmt: skip
      else:
        axis.plot(points, exact_before[head], color=_INITIAL, label='initial')
        axis.plot(points, exact[head], lw=2, **shown)
        shown['label'] = 'trained, drawn'
      axis.hist(along[head], weights=weight[head], alpha=0.35, **shown, **bars)
      axis.set_xlim(-reach, reach)
      axis.grid(alpha=0.3)
    row[0].set_ylabel(f'u of the {name}\ndensity')
  return _finish(figure, axes, title, 'frequency along u, ωᵀu')


def draw_attention(
  trained: AttentionLayer,
  initial: AttentionLayer,
  sequence: int,
  names: Sequence[str],
  title: str,
) -> Any:
  """Return the attention maps of one sequence: rows are queries, columns of a map keys.

  Below the maps that the model applied stand, where it is known, those of its kernel itself, which
  infinitely many frequencies would give, and the initial ones.

  Args:
    trained: the layer.
    initial: the same with initial parameters.
    sequence: which of the batch.
    names: of all positions, padding included or not.
    title: of the figure.
  """
  valid = np.flatnonzero(trained.key_mask[sequence])
  names = [names[i] for i in valid]
  step = -(-len(valid) // _MOST_PIXELS)
  rows = np.arange(0, len(valid), step)
  maps = {'trained': inspection.attention_map(trained, sequence, rows)}
  if inspection.has_exact_kernel(trained):
    maps['trained, exact kernel'] = inspection.exact_map(trained, sequence, rows)
  maps['initial'] = inspection.attention_map(initial, sequence, rows)
  size = 2.6 if len(valid) > _MOST_NAMES or len(valid) <= 16 else 3.6
  figure, axes = new_grid(len(maps), trained.num_heads, size, size)
  for (name, heads), row in zip(maps.items(), axes, strict=True):
    for weights, axis in zip(heads, row, strict=True):
      pooled = _pool(weights, step)
      extent = (-0.5, len(valid) - 0.5, len(valid) - 0.5, -0.5)
      low, high = min(0.0, pooled.min()), pooled.max()  # Fourier features give negative ones too.
      axis.imshow(
        pooled, vmin=low, vmax=high, aspect='auto', interpolation='nearest', extent=extent
      )
      axis.set_title(f'{low:.2g} to {high:.2g}', fontsize=8)
      if len(valid) <= _MOST_NAMES:
        axis.set_xticks(range(len(valid)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(valid)), names, fontsize=6)
    row[0].set_ylabel(f'{name}\nquery')
  for head, axis in enumerate(axes[0], start=1):
    axis.set_title(f'head {head}: {axis.get_title()}', fontsize=8)
  figure.suptitle(title, fontsize=10)
  weight = 'weight' if step == 1 else f'mean weight of {step} keys'
  text = f'key; a colour is a {weight}, on a scale of its own for each map: its title has the ends'
  figure.supxlabel(text, fontsize=8)
  return figure


def _pool(weights: np.ndarray, step: int) -> np.ndarray:
  """Return means over `step` neighbouring keys: all bins alike, or there would be stripes."""
  starts = np.arange(0, weights.shape[1], step)
  counts = np.diff([*starts, weights.shape[1]])
  return np.add.reduceat(weights, starts, axis=1) / counts


def _principal(layer: AttentionLayer) -> dict[str, np.ndarray]:
  covariance = profiles.spectral_covariance(
    layer.sampler, layer.params, layer.num_heads, layer.head_dim
  )
  _, directions = profiles.principal_directions(covariance)
  return {name: directions[:, place] for name, place in _DIRECTIONS.items()}


def _finish(figure: Any, axes: Any, title: str, x_label: str) -> Any:
  for head, axis in enumerate(axes[0], start=1):
    axis.set_title(f'head {head}', fontsize=9)
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right upper', frameon=False)
  figure.suptitle(title, fontsize=10)
  figure.supxlabel(x_label, fontsize=9)
  return figure
