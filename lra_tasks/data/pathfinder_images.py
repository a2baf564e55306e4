"""Pathfinder images: two long dashed paths, short ones between them, markers on two of the tips.

An image is positive if both markers lie on one path, negative if they lie on two. This is the
generator of Linsley et al. ("Learning long-range spatial dependencies with horizontal gated
recurrent units", NeurIPS 2018; github.com/drewlinsley/pathfinder), which made the images of the
Long Range Arena, written anew. What it draws is drawn here with the same distribution:

- A path is a chain of dashes. Its first dash starts at its tip; the next ends on a circle around a
  point some pixels behind the end of the last, chosen among the pixels of the circle with weights
  cos² of the angle to the last dash, times how free the pixel is. A dash may not cross what is
  occupied: earlier dashes, each with a margin around it, and a frame.
- The two long paths start at a fixed distance from each other and grow by turns. If one cannot go
  on, both are dropped, and others are drawn.
- Then come the distractors, one by one. One that finds no place after five attempts is left out.
- Markers are discs on the tip of one path and the end of the same or of the other.

Dashes are drawn at twice the resolution and reduced by a Lanczos filter of 8 bits, as the original
does; they are precomputed, as there are only so many directions. What is random is integer
arithmetic, coordinates are doubles rounded at once: a seed gives the same bytes everywhere.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kl_flax.errors import unknown_name
from lra_tasks.machine import num_cores

# Number of dashes of the long paths, for each of LRA's three difficulties.
CONTOUR_LENGTHS = {'easy': 6, 'inter': 9, 'hard': 14}

# Angles of first dashes are whole degrees.
_NUM_DEGREES = 360
# Probabilities of next pixels are multiples of 2**-16.
_WEIGHT = 2**16
_OVERSAMPLING = 2
_LANCZOS = 3
# An image that takes more attempts than this is a matter of impossible parameters; LRA's take up to
# some hundred thousand.
_MAX_ATTEMPTS = 2**26
# Images of a part: what a thread makes at a time, in a second at most.
_PART = 64


@dataclasses.dataclass(frozen=True)
class PathfinderParameters:
  """What an image is made of; lengths in pixels. `parameters` has those of LRA.

  Attributes:
    side: of the image.
    padding: width of the frame that nothing may touch.
    seed_distance: of the tips of the long paths from each other; they stay twice as far from the
      edge, up to the dash.
    contour_length: dashes of a long path.
    distractor_length: dashes of a distractor.
    num_distractors: the most there may be.
    paddle_length: length of a dash.
    paddle_thickness: thickness of a dash, a multiple of 1/2.
    paddle_margins: distance between dashes; each image has one of these, equally often.
    continuity: how straight paths are; angles are multiplied by it.
    target_contrast: brightness of the long paths, in hundredths of the markers'.
    distractor_contrast: brightness of the distractors, likewise.
    marker_radius: of the discs.
  """

  side: int
  padding: int
  seed_distance: int
  contour_length: int
  distractor_length: int
  num_distractors: int
  paddle_length: int
  paddle_thickness: float
  paddle_margins: tuple[int, ...]
  continuity: float
  target_contrast: int
  distractor_contrast: int
  marker_radius: float


def parameters(resolution: int, difficulty: str = 'hard') -> PathfinderParameters:
  """Return the parameters that LRA's images were made with.

  Args:
    resolution: 32, 64, 128 or 256.
    difficulty: 'easy', 'inter' or 'hard'.

  Raises:
    ValueError: if there is no such resolution or difficulty.

  >>> parameters(32).num_distractors, parameters(32, 'easy').contour_length
  (5, 6)
  """
  if resolution not in _OF_RESOLUTION:
    known = ', '.join(map(str, _OF_RESOLUTION))
    raise ValueError(f'unknown resolution {resolution!r} of Pathfinder; known: {known}')
  if difficulty not in CONTOUR_LENGTHS:
    raise ValueError(unknown_name('difficulty', str(difficulty), CONTOUR_LENGTHS))
  fields = dict(_OF_RESOLUTION[resolution])
  length = CONTOUR_LENGTHS[difficulty] // 3
  return PathfinderParameters(
    side=resolution,
    contour_length=CONTOUR_LENGTHS[difficulty],
    distractor_length=length,
    num_distractors=fields.pop('distractor_dashes') // length,
    **fields,
  )


# LRA's docstrings, and the original's defaults where they leave one out. Dashes of half a pixel
# come out at half their brightness, which the contrasts above 100 make up for.
_OF_RESOLUTION = {
  32: {
    'padding': 1, 'seed_distance': 7, 'distractor_dashes': 20, 'paddle_length': 2,
    'paddle_thickness': 0.5, 'paddle_margins': (1,), 'continuity': 1.0, 'target_contrast': 150,
    'distractor_contrast': 200, 'marker_radius': 1.5,
  },
  64: {
    'padding': 1, 'seed_distance': 12, 'distractor_dashes': 22, 'paddle_length': 5,
    'paddle_thickness': 1.0, 'paddle_margins': (1,), 'continuity': 1.8, 'target_contrast': 80,
    'distractor_contrast': 80, 'marker_radius': 2.5,
  },
  128: {
    'padding': 1, 'seed_distance': 20, 'distractor_dashes': 35, 'paddle_length': 5,
    'paddle_thickness': 1.5, 'paddle_margins': (2, 3), 'continuity': 1.8, 'target_contrast': 90,
    'distractor_contrast': 90, 'marker_radius': 3.0,
  },
  256: {
    'padding': 22, 'seed_distance': 27, 'distractor_dashes': 30, 'paddle_length': 5,
    'paddle_thickness': 2.0, 'paddle_margins': (3,), 'continuity': 1.8, 'target_contrast': 100,
    'distractor_contrast': 100, 'marker_radius': 5.0,
  },
}  # fmt: skip


# Drawing: once for every direction.


def _disc(radius: float, size: int) -> np.ndarray:
  """Return which pixels lie within `radius` of the centre, bool[2 size + 1, 2 size + 1]."""
  y, x = np.ogrid[-size : size + 1, -size : size + 1]
  return x**2 + y**2 <= radius**2


def _dilate(image: np.ndarray, disc: np.ndarray) -> np.ndarray:
  """Widen what is lit by a disc; bool, the shape of `image`."""
  size = len(disc) // 2
  padded = np.pad(image, size)
  result = np.zeros_like(image)
  for y, x in np.argwhere(disc):
    result |= padded[y : y + image.shape[0], x : x + image.shape[1]]
  return result


def _reduction(before: int, after: int) -> np.ndarray:
  """Return the matrix that reduces a line of pixels by a Lanczos filter, float64[after, before]."""
  scale = before / after
  support = _LANCZOS * scale
  matrix = np.zeros((after, before))
  for i in range(after):
    centre = (i + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    last = min(int(centre + support + 0.5), before)
    x = (np.arange(first, last) + 0.5 - centre) / scale
    weights = np.where(np.abs(x) < _LANCZOS, np.sinc(x) * np.sinc(x / _LANCZOS), 0)
    matrix[i, first:last] = weights / weights.sum()
  return matrix


def _reduce(image: np.ndarray, size: int) -> np.ndarray:
  """Reduce a square image, bool, to uint8[size, size], rounded after each axis."""
  matrix = _reduction(len(image), size)
  to_bytes = lambda values: np.floor(np.clip(values, 0, 255) + 0.5)
  rows = to_bytes((255.0 * image) @ matrix.T)
  return to_bytes(matrix @ rows).astype(np.uint8)


def _displace(angles: np.ndarray, distance: float) -> np.ndarray:
  """Return displacements (y, x), float64[n, 2]."""
  return distance * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _fill(corners: list[tuple[int, int]], size: int) -> np.ndarray:
  """Fill a convex polygon, edges included; bool[size, size]. Corners are (y, x)."""
  image = np.zeros((size, size), bool)
  edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
  for y in range(min(corners)[0], max(corners)[0] + 1):
    crossings = []
    for (y0, x0), (y1, x1) in edges:
      if y0 == y1 == y:
        crossings += [x0, x1]
      elif min(y0, y1) <= y <= max(y0, y1):
        crossings.append(x0 + (x1 - x0) * (y - y0) / (y1 - y0))
    image[y, math.floor(min(crossings) + 0.5) : math.ceil(max(crossings) - 0.5) + 1] = True
  return image


def _thin_line(start: tuple[int, int], end: tuple[int, int], size: int) -> np.ndarray:
  """Draw a line of one pixel, as Bresenham does; bool[size, size]."""
  image = np.zeros((size, size), bool)
  dy, dx = abs(end[0] - start[0]), abs(end[1] - start[1])
  sy, sx = (1 if b > a else -1 for a, b in zip(start, end, strict=True))
  (y, x), steps = start, max(dy, dx)
  # Twice the distance from the true line, along the shorter side.
  error = 2 * min(dy, dx) - steps
  for _ in range(steps + 1):
    image[y, x] = True
    if error >= 0:
      y, x = (y + sy, x) if dx > dy else (y, x + sx)
      error -= 2 * steps
    y, x = (y, x + sx) if dx > dy else (y + sy, x)
    error += 2 * min(dy, dx)
  return image


def _half_up(value: float) -> int:
  return math.floor(value + 0.5) if value >= 0 else -math.floor(-value + 0.5)


def _half_down(value: float) -> int:
  return math.ceil(value - 0.5) if value >= 0 else -math.ceil(-value - 0.5)


def _line(start: tuple[int, int], end: tuple[int, int], width: int, size: int) -> np.ndarray:
  """Draw a line of some pixels' width, a rectangle of whole corners; bool[size, size]."""
  if width == 1:
    return _thin_line(start, end, size)
  dy, dx = end[0] - start[0], end[1] - start[1]
  length = math.hypot(dy, dx)
  # An even width has one pixel more on one side.
  wide, narrow = _half_up((width - 1) / 2) / length, _half_down((width - 1) / 2) / length
  y_plus, y_minus = _half_down(wide * dx), _half_down(narrow * dx)
  x_plus, x_minus = _half_down(wide * dy), _half_down(narrow * dy)
  (y0, x0), (y1, x1) = start, end
  corners = [
    (y0 + y_plus, x0 - x_minus),
    (y1 + y_plus, x1 - x_minus),
    (y1 - y_minus, x1 + x_plus),
    (y0 - y_minus, x0 + x_plus),
  ]
  return _fill(corners, size)


def draw_dash(params: PathfinderParameters, margin: int, angle: float) -> tuple[np.ndarray, ...]:
  """Draw a dash that starts in the centre, and what it occupies: itself and its margin.

  Args:
    params: of the image.
    margin: distance to others.
    angle: radians, from the x-axis towards larger y.

  Returns:
    Two of uint8[2 r + 1, 2 r + 1], r = length + thickness, rounded up, + margin.
  """
  reach = params.paddle_length + math.ceil(params.paddle_thickness) + margin
  centre, size = reach * _OVERSAMPLING, 2 * reach * _OVERSAMPLING + 1
  step = _displace(np.array([angle]), params.paddle_length * _OVERSAMPLING)[0]
  end_y, end_x = np.ceil(centre + step).astype(int).tolist()
  width = round(params.paddle_thickness * _OVERSAMPLING)
  line = _line((centre, centre), (end_y, end_x), width, size)
  wide = margin * _OVERSAMPLING
  occupied = _dilate(line, _disc(wide, wide))
  return _reduce(line, 2 * reach + 1), _reduce(occupied, 2 * reach + 1)


def _draw_marker(params: PathfinderParameters) -> np.ndarray:
  """Draw a marker in the centre of uint8[2 r + 1, 2 r + 1]."""
  reach = math.ceil(params.marker_radius) + _LANCZOS
  # Around the first of the fine pixels that become the central one.
  square = (np.arange((2 * reach + 1) * _OVERSAMPLING) - reach * _OVERSAMPLING) ** 2
  disc = square[:, None] + square <= (params.marker_radius * _OVERSAMPLING) ** 2
  return _reduce(disc, 2 * reach + 1)


# What the compiled loops need to know.


class Tables(NamedTuple):
  """The geometry of images of one margin, as the compiled loops read it.

  Directions are numbered: 0 .. 359 are degrees (of first dashes, from -180), those above are the
  pixels of the circle that next dashes end on. `weights[d, k]` counts for a dash in direction d
  followed by one that ends on pixel k.
  """

  side: int
  padding: int
  seed_distance: int
  contour_length: int
  distractor_length: int
  num_distractors: int
  target_contrast: int
  distractor_contrast: int
  dashes: np.ndarray  # uint8[directions, 2 r + 1, 2 r + 1], around the point a dash is placed by.
  occupied: np.ndarray  # uint8, the same shape: the dash with its margin.
  boxes: np.ndarray  # int64[directions, 4], what of `occupied` is lit; see `_find_box`.
  marker: np.ndarray  # uint8[1, 2 s + 1, 2 s + 1]
  marker_box: np.ndarray  # int64[1, 4]
  heads: np.ndarray  # float64[360, 2], from the start of a first dash to its end.
  backs: np.ndarray  # float64[360, 2], from there to its pivot.
  advances: np.ndarray  # float64[directions, 2], from the pivot of a dash to that of the next.
  around: np.ndarray  # float64[360, 2], from the tip of one long path to that of the other.
  circle: np.ndarray  # int64[k, 2], from a pivot to the pixels that a dash may end on.
  weights: np.ndarray  # int64[directions, k], 0 to 2**16.
  near: np.ndarray  # int64[n, 2], the disc around a pixel that must be free.
  cores: np.ndarray  # int64[360, n, 2], from a start to the pixels that must be free.
  core_sizes: np.ndarray  # int64[360], how many of them there are; 0: no dash starts so.
  starts: np.ndarray  # int64[n, 3], degree and point of possible starts of the first long path,
  start_offsets: np.ndarray  # int64[m + 1], which lie by degree between these.


def _circle(distance: int) -> np.ndarray:
  """Return the pixels at some distance from pixel (0, 0), int64[k, 2] of (y, x), in order."""
  step = 360.0 / (2 * distance * np.pi)  # One pixel along the circle.
  angles = np.arange(0, 360, step) * np.pi / 180
  return np.unique(np.floor(_displace(angles, distance)).astype(np.int64), axis=0)


def _find_cores(params: PathfinderParameters, margin: int) -> list[np.ndarray]:
  """Return for each degree the offsets that must be free for a dash to start, int64[n, 2].

  The original looks at the pixels that the dash surely occupies, one further down and to the right.
  Where a dash could be placed so that all of them lie outside of the image, at a corner, its search
  finds no place at all; at small margins that leaves few degrees, of all first dashes.
  """
  reach = params.paddle_length + margin
  cores = []
  for degree in range(-_NUM_DEGREES // 2, _NUM_DEGREES // 2):
    _, occupied = draw_dash(params, margin, degree * np.pi / 180)
    offsets = np.argwhere(occupied == 255) - len(occupied) // 2 + 1
    offsets = offsets[(np.abs(offsets) <= reach).all(axis=1)]
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * (params.side - 1)
    points = corners[:, None] + offsets
    inside = ((points >= 0) & (points < params.side)).all(axis=2)
    cores.append(offsets if inside.any(axis=1).all() else offsets[:0])
  return cores


def _find_starts(params: PathfinderParameters, cores: list[np.ndarray]) -> list[np.ndarray]:
  """Return for each degree that has any where the first long path may start, int64[n, 3]."""
  far = 2 * params.seed_distance
  allowed = np.zeros((params.side, params.side), bool)
  allowed[far : params.side - far, far : params.side - far] = True
  starts = []
  for degree, core in enumerate(cores):
    padded = np.pad(allowed, params.side, constant_values=True)
    free = np.full_like(allowed, len(core) > 0)
    for y, x in core + params.side:
      free &= padded[y : y + params.side, x : x + params.side]
    points = np.argwhere(free)
    if len(points):
      starts.append(np.insert(points, 0, degree, axis=1))
  return starts


def _find_box(stamp: np.ndarray) -> np.ndarray:
  """Return first row, row behind the last, and columns likewise, from the centre; int64[4]."""
  lit = np.argwhere(stamp) - len(stamp) // 2
  (top, left), (bottom, right) = lit.min(axis=0), lit.max(axis=0)
  return np.array([top, bottom + 1, left, right + 1])


@functools.lru_cache(maxsize=8)
def make_tables(params: PathfinderParameters, margin: int) -> Tables:
  """Compute the geometry of images.

  Raises:
    ValueError: if the image is too small for the seed distance.
  """
  length = params.paddle_length
  degrees = np.arange(-_NUM_DEGREES // 2, _NUM_DEGREES // 2) * np.pi / 180
  circle = _circle(length + margin)
  angles = np.arctan2(circle[:, 0], circle[:, 1])
  directions = np.concatenate([degrees, angles])
  delta = np.abs(directions[:, None] - angles)
  delta = np.minimum(np.minimum(delta, 2 * np.pi - delta) * params.continuity, np.pi / 2)
  weights = np.round(np.cos(delta) ** 2 * _WEIGHT).astype(np.int64)
  # A first dash is drawn from its start; the next ones from their end back to the pivot.
  back = np.where(angles < 0, angles + np.pi, angles - np.pi)
  drawn = [draw_dash(params, margin, angle) for angle in (*degrees, *back)]
  marker = _draw_marker(params)
  behind = np.where(degrees + np.pi < np.pi, degrees + np.pi, degrees - np.pi)
  cores = _find_cores(params, margin)
  starts = _find_starts(params, cores)
  if not starts:
    raise ValueError(
      f'no path can start {2 * params.seed_distance} pixels (twice seed_distance) from the edge '
      f'of an image of side {params.side}'
    )
  most = max(map(len, cores))
  return Tables(
    **{
      name: getattr(params, name)
      for name in Tables._fields
      if name in {field.name for field in dataclasses.fields(params)}
    },
    dashes=np.stack([dash for dash, _ in drawn]),
    occupied=np.stack([occupied for _, occupied in drawn]),
    boxes=np.stack([_find_box(occupied) for _, occupied in drawn]),
    marker=marker[None],
    marker_box=_find_box(marker)[None],
    heads=_displace(degrees, length),
    backs=_displace(behind, length + margin),
    advances=_displace(directions, length + 2 * margin),
    around=_displace(np.arange(_NUM_DEGREES) * np.pi / 180, params.seed_distance),
    circle=circle,
    weights=weights,
    near=np.argwhere(_disc(margin, margin)) - margin,
    cores=np.stack([np.pad(core, ((0, most - len(core)), (0, 0))) for core in cores]),
    core_sizes=np.array([len(core) for core in cores]),
    starts=np.concatenate(starts),
    start_offsets=np.cumsum([0, *map(len, starts)]),
  )


# Images.


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Images and how they came about.

  Attributes:
    pixels: uint8[n, side, side]; the background is 0, the brightest pixel of an image 255.
    labels: uint8[n], 1 if both markers lie on one path.
    paths: int16[n, 2, contour_length, 2], tip and ends of the dashes of both long paths, (y, x).
    distractors: int16[n, num_distractors, distractor_length, 2], likewise; -1 where there is none.
    marked: uint8[n], the path whose tip is marked: the other marker is at the end of this path in
      positive images, at that of the other in negative ones.
    margins: uint8[n], distance between dashes.
    attempts: int64[n], at the pair of long paths.
  """

  pixels: np.ndarray
  labels: np.ndarray
  paths: np.ndarray
  distractors: np.ndarray
  marked: np.ndarray
  margins: np.ndarray
  attempts: np.ndarray

  def __len__(self) -> int:
    """Return the number of images."""
    return len(self.labels)

  @property
  def markers(self) -> np.ndarray:
    """The points that are marked, int16[n, 2, 2]."""
    rows = np.arange(len(self))
    ends = np.where(self.labels, self.marked, 1 - self.marked)
    return np.stack([self.paths[rows, self.marked, 0], self.paths[rows, ends, -1]], axis=1)


def _draw_words(seed: int, stream: int, start: int, stop: int) -> np.ndarray:
  """Draw uint64[stop - start, 4]: row i depends on (seed, stream, i) alone."""
  key = np.array([seed, stream], np.uint64)
  generator = np.random.Philox(key=key, counter=np.array([start, 0, 0, 0], np.uint64))
  return generator.random_raw(4 * (stop - start)).reshape(-1, 4)


def generate(
  params: PathfinderParameters, seed: int, start: int, stop: int, max_attempts: int = _MAX_ATTEMPTS
) -> Images:
  """Generate the images `start` to `stop - 1` of a seed.

  Image i depends on `params`, `seed` and i alone. Of images 2 i and 2 i + 1 one is positive and one
  negative, in random order.

  Args:
    params: of the images.
    seed: 0 to 2**63 - 1.
    start: number of the first image.
    stop: number behind the last one.
    max_attempts: at the long paths of an image.

  Raises:
    ValueError: if no attempt at an image succeeds.

  >>> int(generate(parameters(32), 0, 0, 2).labels.sum())
  1
  """
  # Numba takes half a second to import, which no run on prepared data should spend.
  from lra_tasks.data import pathfinder_snakes

  num, side = stop - start, params.side
  states = _draw_words(seed, 0, start, stop)
  choices = _draw_words(seed, 1, start, stop)
  pairs = _draw_words(seed, 2, start // 2, (stop + 1) // 2)[:, 0] & np.uint64(1)
  labels = np.repeat(pairs, 2)[start % 2 :][:num] ^ (np.arange(start, stop) % 2).astype(np.uint64)
  margins = np.array(params.paddle_margins)[choices[:, 0] % np.uint64(len(params.paddle_margins))]
  result = Images(
    pixels=np.empty((num, side, side), np.uint8),
    labels=labels.astype(np.uint8),
    paths=np.empty((num, 2, params.contour_length, 2), np.int16),
    distractors=np.empty((num, params.num_distractors, params.distractor_length, 2), np.int16),
    marked=np.empty(num, np.uint8),
    margins=margins.astype(np.uint8),
    attempts=np.zeros(num, np.int64),
  )
  for margin in params.paddle_margins:
    rows = np.flatnonzero(margins == margin)
    pathfinder_snakes.compose(
      make_tables(params, margin), rows, states, result.labels, max_attempts, result.pixels,
      result.paths, result.distractors, result.marked, result.attempts,
    )  # fmt: skip
    failed = rows[result.attempts[rows] < 0]
    if failed.size:
      raise ValueError(
        f'no two paths of {params.contour_length} dashes found in {max_attempts} attempts at image '
        f'{start + failed[0]}: {params} leaves (next to) no room for them; take shorter paths'
      )
  return result


def stream(
  params: PathfinderParameters, seed: int, start: int, stop: int, num_threads: int | None = None
) -> Iterator[Images]:
  """Yield what `generate` returns, in parts, in order, made by threads a little ahead.

  Closing the iterator ends the threads, within the time of a part: a second.

  Args:
    params: of the images.
    seed: 0 to 2**63 - 1.
    start: number of the first image.
    stop: number behind the last one.
    num_threads: by default as many as there are cores; the images do not depend on it.
  """
  num_threads = num_threads or num_cores()
  parts = ((i, min(i + _PART, stop)) for i in range(start, stop, _PART))
  executor = concurrent.futures.ThreadPoolExecutor(num_threads)
  submit = lambda part: executor.submit(generate, params, seed, *part)
  try:
    waiting = collections.deque(map(submit, itertools.islice(parts, 2 * num_threads)))
    while waiting:
      images = waiting.popleft().result()
      waiting.extend(map(submit, itertools.islice(parts, 1)))
      yield images
  finally:
    executor.shutdown(cancel_futures=True)
