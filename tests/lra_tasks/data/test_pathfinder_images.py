import dataclasses
import hashlib
import math
import threading

import numpy as np
import pytest

from lra_tasks.data import pathfinder_images
from lra_tasks.data.pathfinder_images import (
  draw_dash,
  generate,
  make_tables,
  parameters,
  stream,
)

# Straight, thin paths in wide images: quick, and their dashes stay apart.
EASY = dataclasses.replace(parameters(64, 'easy'), distractor_length=2, num_distractors=3)
SIDES = (32, 64, 128, 256)


@pytest.fixture(scope='module')
def images():
  return generate(parameters(32), 0, 0, 200)


def test_bytes_are_those_of_this_version():
  """If this fails, `Pathfinder.VERSION` must rise."""
  digest = hashlib.sha256()
  for side, num in ((32, 40), (64, 2), (128, 2), (256, 2)):
    digest.update(generate(parameters(side), 1, 0, num).pixels)
  assert digest.hexdigest()[:16] == 'cf23e35579682a40'


def test_an_image_depends_on_its_number_alone(images):
  part = generate(parameters(32), 0, 7, 19)
  np.testing.assert_array_equal(part.pixels, images.pixels[7:19])
  np.testing.assert_array_equal(part.labels, images.labels[7:19])
  other = generate(parameters(32), 1, 7, 19)
  assert (other.pixels != part.pixels).any(axis=(1, 2)).all()


def test_threads_change_nothing_but_time(images):
  for num_threads in (1, 3):
    parts = list(stream(parameters(32), 0, 3, 190, num_threads))
    pixels = np.concatenate([part.pixels for part in parts])
    np.testing.assert_array_equal(pixels, images.pixels[3:190])


def test_an_abandoned_stream_ends_its_threads():
  parts = stream(parameters(32), 0, 0, 10**6, 2)
  next(parts)
  parts.close()
  assert not [t for t in threading.enumerate() if 'ThreadPoolExecutor' in t.name]


def test_half_of_any_even_range_is_positive(images):
  assert (images.labels.reshape(-1, 2).sum(axis=1) == 1).all()
  assert 30 < images.labels[::2].sum() < 70  # In either order.
  assert generate(parameters(32), 0, 4, 10).labels.sum() == 3


# By side: frame, distance of tips, distractors; length, thickness, margins of dashes; continuity,
# contrasts, radius of markers.
OF_LRA = {
  32: (1, 7, 5, 2, 0.5, (1,), 1.0, 150, 200, 1.5),
  64: (1, 12, 5, 5, 1.0, (1,), 1.8, 80, 80, 2.5),
  128: (1, 20, 8, 5, 1.5, (2, 3), 1.8, 90, 90, 3.0),
  256: (22, 27, 7, 5, 2.0, (3,), 1.8, 100, 100, 5.0),
}


@pytest.mark.parametrize('side', SIDES)
def test_parameters_are_those_of_lra(side):
  found = dataclasses.asdict(parameters(side))
  lengths = found.pop('side'), found.pop('contour_length'), found.pop('distractor_length')
  assert lengths == (side, 14, 4)
  names = (
    'padding', 'seed_distance', 'num_distractors', 'paddle_length', 'paddle_thickness',
    'paddle_margins', 'continuity', 'target_contrast', 'distractor_contrast', 'marker_radius',
  )  # fmt: skip
  assert found == dict(zip(names, OF_LRA[side], strict=True))
  for difficulty, length in (('easy', 6), ('inter', 9)):
    params = parameters(side, difficulty)
    assert (params.contour_length, params.distractor_length) == (length, length // 3)


@pytest.mark.parametrize('side', SIDES)
def test_intensities_span_all_levels(side):
  made = generate(parameters(side), 0, 0, 4)
  assert made.pixels.dtype == np.uint8
  assert (made.pixels.max(axis=(1, 2)) == 255).all()
  assert ((made.pixels == 0).mean(axis=(1, 2)) > 0.5).all()
  assert set(made.margins.tolist()) <= set(parameters(side).paddle_margins)


@pytest.mark.slow
def test_margins_come_equally_often():
  params = dataclasses.replace(parameters(128, 'easy'), num_distractors=0)
  made = generate(params, 0, 0, 60)
  assert 15 < (made.margins == 2).sum() < 45


# What a path is.


@pytest.mark.parametrize('side', [32, 256])
def test_paths_start_at_the_seed_distance_and_keep_away_from_the_frame(side):
  params = parameters(side)
  made = generate(params, 0, 0, 20)
  tips = made.paths[:, :, 0].astype(float)
  distances = np.linalg.norm(tips[:, 0] - tips[:, 1], axis=-1)
  np.testing.assert_allclose(distances, params.seed_distance, atol=1)
  assert made.paths.min() >= params.padding
  assert made.paths.max() < side - params.padding


@pytest.mark.parametrize('side', [32, 128])
def test_dashes_follow_each_other_at_the_length_of_a_step(side):
  params = parameters(side)
  made = generate(params, 0, 0, 20)
  # Between ends: a dash and the gap before it, twice the margin when straight, less in curves.
  steps = np.linalg.norm(np.diff(made.paths.astype(float), axis=2), axis=-1)[:, :, 1:]
  longest = params.paddle_length + 2 * made.margins[:, None, None] + 2.5
  assert (steps <= longest).all()
  assert steps.mean() > params.paddle_length + 0.5 * np.mean(params.paddle_margins)


def test_markers_stand_on_both_tips_of_a_path_or_on_tips_of_two(images):
  rows = np.arange(len(images))
  markers = images.markers
  own = images.paths[rows, images.marked, -1]
  other = images.paths[rows, 1 - images.marked, -1]
  positive = images.labels == 1
  np.testing.assert_array_equal(markers[:, 0], images.paths[rows, images.marked, 0])
  np.testing.assert_array_equal(markers[positive, 1], own[positive])
  np.testing.assert_array_equal(markers[~positive, 1], other[~positive])
  assert (own != other).any(axis=1).mean() > 0.95


def test_markers_are_drawn_where_they_are_said_to_be():
  made = generate(parameters(256), 0, 0, 6)
  for pixels, markers in zip(made.pixels, made.markers, strict=True):
    for y, x in markers:
      part = pixels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
      assert part.min() > 240


def _joined(lit, start, end):
  """Return whether lit pixels join two points: a flood fill."""
  reached, found = [tuple(start)], {tuple(start)}
  while reached:
    y, x = reached.pop()
    for point in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
      if point in found or not all(0 <= c < len(lit) for c in point) or not lit[point]:
        continue
      found.add(point)
      reached.append(point)
  return tuple(end) in found


def test_a_path_joins_the_markers_of_positive_images_alone():
  """Gaps closed by as much as a gap is wide, a fill gets along a path, and no further."""
  params = dataclasses.replace(EASY, num_distractors=0)
  made = generate(params, 0, 0, 40)
  right = 0
  for i in range(len(made)):
    lit = np.zeros((params.side, params.side), bool)
    # The marked path alone, as the returned geometry has it: the picture has it lit, too.
    for a, b in zip(made.paths[i, made.marked[i]], made.paths[i, made.marked[i], 1:], strict=False):
      for t in np.linspace(0, 1, 20):
        lit[tuple(np.round(a + t * (b - a)).astype(int))] = True
    on_path = made.pixels[i][lit]
    assert (on_path > 0).mean() > 0.5
    right += _joined(lit, *made.markers[i]) == made.labels[i]
  assert right == len(made)


def test_the_picture_holds_the_dashes_of_the_geometry():
  params = parameters(256)
  made = generate(params, 0, 0, 6)
  for i in range(len(made)):
    for y, x in made.paths[i].reshape(-1, 2):
      assert made.pixels[i, y - 1 : y + 2, x - 1 : x + 2].max() > 150
    for y, x in made.distractors[i][made.distractors[i, :, 0, 0] >= 0].reshape(-1, 2):
      assert made.pixels[i, y - 1 : y + 2, x - 1 : x + 2].max() > 150


def test_turns_are_limited_by_continuity():
  table = make_tables(parameters(256), 3)
  angles = np.arctan2(*table.circle.T)
  for direction in range(0, 360, 15):
    turn = np.abs((angles - np.radians(direction - 180) + np.pi) % (2 * np.pi) - np.pi)
    allowed = table.weights[direction] > 0
    assert (turn[allowed] <= np.pi / 2 / 1.8 + 1e-6).all()
    assert allowed[turn < np.pi / 2 / 1.8 - 1e-2].all()
    assert table.weights[direction].argmax() == turn.argmin()


@pytest.mark.parametrize('side', SIDES)
def test_dashes_have_their_length_and_thickness(side):
  params = parameters(side)
  for degree in range(-180, 180, 30):
    dash, occupied = draw_dash(params, params.paddle_margins[0], math.radians(degree))
    assert dash.shape == occupied.shape
    # Drawn with whole corners at twice the resolution, dashes come out up to one pixel longer.
    area = dash.sum() / 255
    exact = params.paddle_length * params.paddle_thickness
    assert 0.7 * exact <= area <= (params.paddle_length + 1.1) * (params.paddle_thickness + 0.55)
    assert (occupied[dash > 100] > 200).all()
    assert occupied.sum() > 2 * dash.sum()


# What cannot be.


def test_impossible_parameters_say_what_to_do():
  with pytest.raises(ValueError, match=r'unknown resolution 48 of Pathfinder; known: 32, 64'):
    parameters(48)
  with pytest.raises(ValueError, match=r"unknown difficulty 'hart' \(did you mean 'hard'"):
    parameters(32, 'hart')
  with pytest.raises(
    ValueError, match=r'no two paths of 40 dashes found in 50 attempts at image 3'
  ):
    generate(dataclasses.replace(parameters(32), contour_length=40), 0, 3, 5, max_attempts=50)
  with pytest.raises(ValueError, match='no path can start 24 pixels'):
    make_tables(dataclasses.replace(parameters(32), seed_distance=12), 1)


def test_a_failing_thread_ends_the_stream(monkeypatch):
  monkeypatch.setattr(pathfinder_images, '_PART', 2)
  impossible = dataclasses.replace(parameters(32), seed_distance=12)
  with pytest.raises(ValueError, match='no path can start'):
    next(stream(impossible, 0, 0, 100, 2))
