"""The loops of `lra_tasks.data.pathfinder_images`, compiled.

A path of 14 dashes rarely fits: at a side of 64, one image in several thousand attempts succeeds.
Attempts are loops over few pixels with many ways out, which array operations do badly and compiled
code does well; Numba compiles it on first use, in seconds, and it runs in threads, without Python's
global lock.
"""

from __future__ import annotations

import numba
import numpy as np

# The original's bounds, of 256 levels. Free enough for a first dash, 0.3; occupied twice over, 1.8.
_FREE = 76
_CROSSING = 459
# And the least total weight that a path goes on with, 1e-4.
_LEAST_TOTAL = int(1e-4 * 255 * 2**16)
# Trials for a dash, and attempts for a distractor.
_TRIALS = 3
_DISTRACTOR_ATTEMPTS = 5
# Random places tried before all are looked at.
_PICKS = 64


def _compile(function):
  """Compile on first use, and keep the result, beside this file or in the user's cache."""
  options = {'nogil': True, 'error_model': 'numpy'}
  try:
    return numba.njit(function, cache=True, **options)
  except RuntimeError:  # Neither can be written.
    return numba.njit(function, **options)


@_compile
def _next(state):
  """Draw 32 random bits: xoshiro256** (Blackman and Vigna 2018), its upper half."""
  product = state[1] * np.uint64(5)
  result = ((product << np.uint64(7)) | (product >> np.uint64(57))) * np.uint64(9)
  shifted = state[1] << np.uint64(17)
  state[2] ^= state[0]
  state[3] ^= state[1]
  state[1] ^= state[2]
  state[0] ^= state[3]
  state[2] ^= shifted
  state[3] = (state[3] << np.uint64(45)) | (state[3] >> np.uint64(19))
  return result >> np.uint64(32)


@_compile
def _below(state, bound):
  """Draw an integer from 0 to bound - 1, bound being below 2**32."""
  return np.int64((_next(state) * np.uint64(bound)) >> np.uint64(32))


# Assignments to slices, and `max` of an array, would do, but took ten of 23 seconds to compile.


@_compile
def _clear(array, value):
  """Set all pixels to a value."""
  for i in range(array.shape[0]):
    for j in range(array.shape[1]):
      array[i, j] = value


@_compile
def _copy(array, source):
  """Set all pixels to those of another array."""
  for i in range(array.shape[0]):
    for j in range(array.shape[1]):
      array[i, j] = source[i, j]


@_compile
def _inside(canvas, y, x):
  return 0 <= y < canvas.shape[0] and 0 <= x < canvas.shape[1]


@_compile
def _overlap(canvas, stamps, boxes, number, y, x):
  """Return the parts of a canvas and of a stamp around (y, x) that lie upon each other."""
  reach = stamps.shape[1] // 2
  top, bottom = max(0, y + boxes[number, 0]), min(canvas.shape[0], y + boxes[number, 1])
  left, right = max(0, x + boxes[number, 2]), min(canvas.shape[1], x + boxes[number, 3])
  dy, dx = reach - y, reach - x
  return canvas[top:bottom, left:right], stamps[
    number, top + dy : bottom + dy, left + dx : right + dx
  ]


@_compile
def _add(canvas, stamps, boxes, number, level, y, x):
  """Draw a stamp around (y, x): the canvas keeps what is brighter."""
  below, above = _overlap(canvas, stamps, boxes, number, y, x)
  for i in range(below.shape[0]):
    for j in range(below.shape[1]):
      below[i, j] = max(below[i, j], above[i, j] * level)


@_compile
def _occupy(mask, stamps, boxes, number, y, x):
  """Do the same for what is occupied, in integers of 8 bits alone."""
  below, above = _overlap(mask, stamps, boxes, number, y, x)
  for i in range(below.shape[0]):
    for j in range(below.shape[1]):
      if above[i, j] > below[i, j]:
        below[i, j] = above[i, j]


@_compile
def _crosses(mask, stamps, boxes, number, y, x):
  """Return whether a stamp around (y, x) meets what is occupied."""
  below, above = _overlap(mask, stamps, boxes, number, y, x)
  most = 0
  for i in range(below.shape[0]):
    for j in range(below.shape[1]):
      most = max(most, np.int32(below[i, j]) + np.int32(above[i, j]))
  return most >= _CROSSING


@_compile
def _occupation(mask, near, y, x):
  """Return how much of the surroundings of a pixel is occupied, 0 to 255."""
  most = 0
  for i in range(near.shape[0]):
    row, column = y + near[i, 0], x + near[i, 1]
    if _inside(mask, row, column):
      most = max(most, mask[row, column])
      if most == 255:
        break
  return most


@_compile
def _may_start(mask, cores, num, degree, y, x):
  for i in range(num):
    row, column = y + cores[degree, i, 0], x + cores[degree, i, 1]
    if _inside(mask, row, column) and mask[row, column] > _FREE:
      return False
  return True


@_compile
def _find_start(mask, cores, num, degree, state):
  """Return a pixel where a dash may start, each as likely, or (-1, -1)."""
  side = mask.shape[0]
  if num == 0:
    return -1, -1
  for _ in range(_PICKS):
    y, x = _below(state, side), _below(state, side)
    if _may_start(mask, cores, num, degree, y, x):
      return y, x
  count, chosen_y, chosen_x = 0, -1, -1
  for y in range(side):
    for x in range(side):
      if _may_start(mask, cores, num, degree, y, x):
        count += 1
        if _below(state, count) == 0:
          chosen_y, chosen_x = y, x
  return chosen_y, chosen_x


@_compile
def _move(y, x, moves, number):
  """Return the pixel that a displacement leads to; the original rounds up."""
  # In doubles, at this place: near 0 what is lost of 1e-16 elsewhere leads to the next pixel.
  return int(np.ceil(y + moves[number, 0])), int(np.ceil(x + moves[number, 1]))


@_compile
def _end_first(mask, heads, backs, degree, y, x):
  """Return the pivot of a first dash that starts at (y, x), and whether it lies in the image."""
  head_y, head_x = _move(y, x, heads, degree)
  y, x = _move(head_y, head_x, backs, degree)
  return y, x, _inside(mask, head_y, head_x) and _inside(mask, y, x)


@_compile
def _extend(
  mask, advances, circle, weights, near, occupied, boxes, direction, y, x, chances, state
):
  """Find the next dash.

  Args:
    direction: of the last dash.
    y: of its pivot.
    x: of its pivot.
    chances: int64[k], scratch.

  Returns:
    The pixel of `circle` around the next pivot where it ends, or -1; and that pivot, y and x.
  """
  y, x = _move(y, x, advances, direction)
  total = 0
  for k in range(circle.shape[0]):
    chances[k] = 0
    row, column = y + circle[k, 0], x + circle[k, 1]
    if weights[direction, k] > 0 and _inside(mask, row, column):
      chances[k] = weights[direction, k] * (255 - _occupation(mask, near, row, column))
      total += chances[k]
  if total < _LEAST_TOTAL:
    return -1, y, x
  for _ in range(_TRIALS):
    place = _below(state, total)
    k = 0
    while place >= chances[k]:
      place -= chances[k]
      k += 1
    if not _crosses(mask, occupied, boxes, 360 + k, y + circle[k, 0], x + circle[k, 1]):
      return k, y, x
  return -1, y, x


@_compile
def _start_two(table, mask, paths, directions, pivots, state):
  """Place the first dashes of the long paths; return whether that worked."""
  part = _below(state, table.start_offsets.shape[0] - 1)
  first, last = table.start_offsets[part], table.start_offsets[part + 1]
  start = first + _below(state, last - first)
  directions[0, 0] = table.starts[start, 0]
  paths[0, 0, 0], paths[0, 0, 1] = table.starts[start, 1], table.starts[start, 2]
  for _ in range(_TRIALS):
    directions[1, 0] = _below(state, 360)
    angle = _below(state, 360)
    for axis in range(2):
      paths[1, 0, axis] = int(np.rint(paths[0, 0, axis] + table.around[angle, axis]))
    inside = True
    for s in range(2):
      pivots[s, 0], pivots[s, 1], fits = _end_first(
        mask, table.heads, table.backs, directions[s, 0], paths[s, 0, 0], paths[s, 0, 1]
      )
      inside &= fits
    if inside:
      return True
  return False


@_compile
def _grow_two(table, mask, paths, directions, pivots, chances, state):
  """Make one attempt at the long paths; return whether it succeeded.

  Args:
    table: `Tables`.
    mask: uint8[side, side], becomes what is occupied, in levels of 255.
    paths: int16[2, contour_length, 2], becomes the tips and ends of dashes, (y, x).
    directions: int64[2, contour_length], becomes their directions.
    pivots: int64[2, 2], scratch.
    chances: int64[k], scratch.
    state: uint64[4].
  """
  advances, circle, weights = table.advances, table.circle, table.weights
  near, occupied, boxes = table.near, table.occupied, table.boxes
  for y in range(table.side):
    for x in range(table.side):
      nearest = min(y, x, table.side - 1 - y, table.side - 1 - x)
      mask[y, x] = 255 if nearest < table.padding else 0
  if not _start_two(table, mask, paths, directions, pivots, state):
    return False
  # The newest dash of a path is in nobody's way, until the next one of the same path is drawn.
  for i in range(1, table.contour_length):
    for s in range(2):
      last = directions[s, i - 1]
      k, y, x = _extend(
        mask, advances, circle, weights, near, occupied, boxes, last, pivots[s, 0], pivots[s, 1],
        chances, state,
      )  # fmt: skip
      if k < 0:
        return False
      _occupy(mask, occupied, boxes, last, paths[s, i - 1, 0], paths[s, i - 1, 1])
      directions[s, i] = 360 + k
      pivots[s, 0], pivots[s, 1] = y, x
      paths[s, i, 0], paths[s, i, 1] = y + circle[k, 0], x + circle[k, 1]
  # Of the two last dashes, only the second's place is taken: the original forgets the other's.
  last = table.contour_length - 1
  _occupy(mask, occupied, boxes, directions[1, last], paths[1, last, 0], paths[1, last, 1])
  return True


@_compile
def _grow_distractor(table, mask, path, directions, chances, state):
  """Make one attempt at a distractor, in `mask`; return whether it succeeded."""
  advances, circle, weights = table.advances, table.circle, table.weights
  near, occupied, boxes = table.near, table.occupied, table.boxes
  y, x, fits = -1, -1, False
  for _ in range(_TRIALS):
    degree = _below(state, 360)
    y, x = _find_start(mask, table.cores, table.core_sizes[degree], degree, state)
    if y < 0:
      return False
    path[0, 0], path[0, 1], directions[0] = y, x, degree
    y, x, fits = _end_first(mask, table.heads, table.backs, degree, y, x)
    if fits:
      break
  if not fits:
    return False
  for i in range(1, path.shape[0]):
    last = directions[i - 1]
    k, y, x = _extend(
      mask, advances, circle, weights, near, occupied, boxes, last, y, x, chances, state
    )
    if k < 0:
      return False
    _occupy(mask, occupied, boxes, last, path[i - 1, 0], path[i - 1, 1])
    directions[i] = 360 + k
    path[i, 0], path[i, 1] = y + circle[k, 0], x + circle[k, 1]
  last = path.shape[0] - 1
  _occupy(mask, occupied, boxes, directions[last], path[last, 0], path[last, 1])
  return True


@_compile
def _draw_path(canvas, dashes, boxes, path, directions, level):
  for i in range(path.shape[0]):
    _add(canvas, dashes, boxes, directions[i], level, path[i, 0], path[i, 1])


@_compile
def _compose(table, state, label, max_attempts, image, paths, distractors, canvas, mask):
  """Compose an image.

  Args:
    table: `Tables` of its margin.
    state: uint64[4], of the random numbers, not all 0.
    label: 1 if the markers lie on one path.
    max_attempts: at the long paths.
    image: uint8[side, side], is overwritten.
    paths: int16[2, contour_length, 2], becomes the tip and the ends of dashes of the long paths.
    distractors: int16[num_distractors, distractor_length, 2], the same; -1 where there is none.
    canvas: int32[side, side], scratch.
    mask: uint8[side, side], scratch.

  Returns:
    The number of attempts, or -1 if none succeeded; and the path whose tip is marked, 0 or 1.
  """
  chances = np.empty(table.circle.shape[0], np.int64)
  directions = np.empty((2, table.contour_length), np.int64)
  pivots = np.empty((2, 2), np.int64)
  attempts = 1
  while not _grow_two(table, mask, paths, directions, pivots, chances, state):
    if attempts == max_attempts:
      return -1, 0
    attempts += 1
  _clear(canvas, 0)
  for s in range(2):
    _draw_path(canvas, table.dashes, table.boxes, paths[s], directions[s], table.target_contrast)
  trial, turns = np.empty_like(mask), np.empty(table.distractor_length, np.int64)
  for i in range(table.num_distractors):
    found = False
    for _ in range(_DISTRACTOR_ATTEMPTS):
      _copy(trial, mask)
      found = _grow_distractor(table, trial, distractors[i], turns, chances, state)
      if found:
        _copy(mask, trial)
        _draw_path(
          canvas, table.dashes, table.boxes, distractors[i], turns, table.distractor_contrast
        )
        break
    if not found:
      _clear(distractors[i], -1)
  origin = _below(state, 2)
  end = origin if label else 1 - origin
  last = table.contour_length - 1
  _add(canvas, table.marker, table.marker_box, 0, 100, paths[origin, 0, 0], paths[origin, 0, 1])
  _add(canvas, table.marker, table.marker_box, 0, 100, paths[end, last, 0], paths[end, last, 1])
  # The brightest pixel becomes 255, as where the original saves an image; halves are rounded up.
  brightest = 0
  for y in range(table.side):
    for x in range(table.side):
      brightest = max(brightest, canvas[y, x])
  for y in range(table.side):
    for x in range(table.side):
      image[y, x] = (2 * 255 * canvas[y, x] + brightest) // (2 * brightest)
  return attempts, origin


@_compile
def compose(
  table, rows, states, labels, max_attempts, pixels, paths, distractors, marked, attempts
):
  """Compose images, each from random numbers of its own.

  Args:
    table: `Tables` of their margin.
    rows: int64[m], which of the n images.
    states: uint64[n, 4], of the random numbers, not all 0; are advanced.
    labels: uint8[n], 1 where the markers lie on one path.
    max_attempts: at the long paths of an image.
    pixels: uint8[n, side, side], becomes the images.
    paths: int16[n, 2, contour_length, 2], becomes tips and ends of dashes of the long paths.
    distractors: int16[n, num_distractors, distractor_length, 2], the same; -1 where there is none.
    marked: uint8[n], becomes the path whose tip is marked, 0 or 1.
    attempts: int64[n], becomes the number of attempts, or -1 where none succeeded: the last.
  """
  canvas = np.empty((table.side, table.side), np.int32)
  mask = np.empty((table.side, table.side), np.uint8)
  for i in rows:
    attempts[i], marked[i] = _compose(
      table, states[i], labels[i], max_attempts, pixels[i], paths[i], distractors[i], canvas, mask
    )
    if attempts[i] < 0:
      break
