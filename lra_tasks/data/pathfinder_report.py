"""Show Pathfinder's generated images, their statistics by class, and what gives the class away.

  python -m lra_tasks.data.pathfinder_report --out=docs

Writes `pathfinder<side>.png`, 32 images of either class, and prints tables in Markdown. A probe is
a logistic regression on one number of an image and its square, fitted on one half of the images;
its accuracy on the other should be near 50 %.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image

from lra_tasks.data.pathfinder_images import Images, generate, parameters

# Images for the statistics: some seconds to half a minute on one core.
_NUM_IMAGES = {32: 20_000, 64: 2000, 128: 2000, 256: 4000}
_FRAME = 96  # Grey level between images.
_MAGNIFIED = {32: 3, 64: 2}
_NEWTON_STEPS = 20


def draw_grid(images: Images, per_class: int = 32, columns: int = 16) -> np.ndarray:
  """Return the first images of either class, positive ones above, framed; uint8[height, width].

  Raises:
    ValueError: if there are too few of a class.
  """
  rows = []
  for label in (1, 0):
    pixels = images.pixels[images.labels == label][:per_class]
    if len(pixels) < per_class:
      raise ValueError(f'expected {per_class} images of label {label}, got {len(pixels)}')
    framed = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), constant_values=_FRAME)
    rows += [np.concatenate(list(part), axis=1) for part in np.split(framed, per_class // columns)]
  return np.concatenate(rows)


def describe(images: Images) -> dict[str, np.ndarray]:
  """Return numbers of each image by name, float64[n]; the last three are not in its pixels."""
  paths = images.paths.astype(float)
  steps = np.linalg.norm(np.diff(paths, axis=2), axis=-1)
  markers = images.markers.astype(float)
  return {
    'mean intensity': images.pixels.mean(axis=(1, 2)),
    'lit pixels': (images.pixels > 0).sum(axis=(1, 2)).astype(float),
    'bright pixels (> 128)': (images.pixels > 128).sum(axis=(1, 2)).astype(float),
    'distance of markers': np.linalg.norm(markers[:, 0] - markers[:, 1], axis=-1),
    'length of the marked path': steps.sum(axis=-1)[np.arange(len(images)), images.marked],
    'distractors': (images.distractors[:, :, 0, 0] >= 0).sum(axis=1).astype(float),
  }


def probe(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  """Return how often a logistic regression tells labels, on the second half, and its error.

  Args:
    values: float64[n, k], what it sees, besides the squares.
    labels: integers[n], 0 or 1.

  Returns:
    Accuracy in per cent and its standard error.
  """
  values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
  inputs = np.concatenate([np.ones((len(values), 1)), values, values**2], axis=1)
  half = len(inputs) // 2
  weights = np.zeros(inputs.shape[1])
  for _ in range(_NEWTON_STEPS):
    seen = inputs[:half]
    chances = 1 / (1 + np.exp(-np.clip(seen @ weights, -30, 30)))
    slope = seen.T @ (labels[:half] - chances) - 1e-3 * weights
    curvature = (seen.T * (chances * (1 - chances))) @ seen + 1e-3 * np.eye(len(weights))
    weights += np.linalg.solve(curvature, slope)
  right = (inputs[half:] @ weights > 0) == labels[half:]
  return 100 * right.mean(), 100 * float(right.std()) / len(right) ** 0.5


def tabulate(images: Images) -> str:
  """Return the statistics of images as a table in Markdown."""
  lines = ['| | positive | negative | probe, % |', '|---|---|---|---|']
  numbers = describe(images)
  for name, values in numbers.items():
    cells = []
    for label in (1, 0):
      part = values[images.labels == label]
      cells.append(f'{part.mean():.2f} ± {part.std() / len(part) ** 0.5:.2f}')
    accuracy, error = probe(values[:, None], images.labels)
    lines.append(f'| {name} | {" | ".join(cells)} | {accuracy:.1f} ± {error:.1f} |')
  accuracy, error = probe(np.stack(list(numbers.values()), axis=1), images.labels)
  lines.append(f'| all of these | | | {accuracy:.1f} ± {error:.1f} |')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Run the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--out', default='docs', help='directory of the pictures')
  parser.add_argument('--seed', type=int, default=0, help='of the images')
  parser.add_argument('--side', type=int, choices=_NUM_IMAGES, help='one resolution alone')
  arguments = parser.parse_args(argv)
  os.makedirs(arguments.out, exist_ok=True)
  for side in [arguments.side] if arguments.side else _NUM_IMAGES:
    images = generate(parameters(side), arguments.seed, 0, _NUM_IMAGES[side])
    grid = PIL.Image.fromarray(draw_grid(images))
    if side == 256:  # At half its size it still shows the dashes.
      grid = grid.reduce(2)
    factor = _MAGNIFIED.get(side, 1)
    grid = grid.resize((factor * grid.width, factor * grid.height), PIL.Image.Resampling.NEAREST)
    grid.save(os.path.join(arguments.out, f'pathfinder{side}.png'), optimize=True)
    attempts = images.attempts.mean()
    print(f'\n{side} x {side}: {len(images)} images, {attempts:.1f} attempts an image\n')
    print(tabulate(images), flush=True)


if __name__ == '__main__':
  main()
