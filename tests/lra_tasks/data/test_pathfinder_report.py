"""Pictures and statistics of docs/pathfinder.md."""

import numpy as np
import PIL.Image
import pytest
from sklearn.linear_model import LogisticRegression

from lra_tasks.data import pathfinder_report
from lra_tasks.data.pathfinder_images import generate, parameters


def test_probe_is_a_logistic_regression():
  rng = np.random.default_rng(0)
  values, labels = rng.normal(size=(2000, 2)), rng.integers(0, 2, 2000)
  values[:, 0] += labels
  accuracy, error = pathfinder_report.probe(values, labels)
  inputs = np.concatenate([values, values**2], axis=1)
  model = LogisticRegression(C=1e3).fit(inputs[:1000], labels[:1000])
  assert accuracy == pytest.approx(100 * model.score(inputs[1000:], labels[1000:]), abs=0.5)
  assert error == pytest.approx(100 * (accuracy / 100 * (1 - accuracy / 100) / 1000) ** 0.5)
  told = pathfinder_report.probe(labels[:, None].astype(float), labels)
  assert told == (100, 0)


def test_pictures_and_table_of_one_resolution(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(pathfinder_report._NUM_IMAGES, 32, 200)
  pathfinder_report.main([f'--out={tmp_path}', '--side=32', '--seed=3'])
  with PIL.Image.open(tmp_path / 'pathfinder32.png') as picture:
    assert picture.size == (
      3 * 16 * 34,
      3 * 4 * 34,
    )  # 32 of either class, framed, 3 times as large.
  title, _, header, _, *lines = capsys.readouterr().out.strip().splitlines()
  assert title.startswith('32 x 32: 200 images, ')
  assert header == '| | positive | negative | probe, % |'
  images = generate(parameters(32), 3, 0, 200)
  mean = images.pixels[images.labels == 1].mean()
  assert lines[0].startswith(f'| mean intensity | {mean:.2f} ± ')
  assert lines[-1].startswith('| all of these | | | ')
  with pytest.raises(ValueError, match='expected 150 images of label 1, got'):
    pathfinder_report.draw_grid(images, per_class=150)
