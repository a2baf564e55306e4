"""Notebooks run, and their two forms are the same."""

import os
import pathlib
import subprocess
import sys

import jupytext
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / 'notebooks').glob('*.py'))


def cells(path):
  return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook_has_the_cells_of_its_source(name):
  found = cells(ROOT / f'notebooks/{name}.ipynb')
  assert found == cells(ROOT / f'notebooks/{name}.py'), (
    f'jupytext --sync, or: jupytext --to ipynb --set-kernel python3 --execute notebooks/{name}.py'
  )


# The others compile for half a minute each.
_QUICK = {'lra_results'}


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[] if n in _QUICK else pytest.mark.slow) for n in NOTEBOOKS]
)
def test_notebook_runs(name, tmp_path):
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', 'device_count=1')
  environment = {**os.environ, 'MPLBACKEND': 'agg', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  command = [sys.executable, '-W', 'ignore:FigureCanvasAgg', ROOT / f'notebooks/{name}.py']
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'Warning' not in done.stderr
