"""The Python code in README and documentation runs, block after block of a page."""

import pathlib
import re

import pytest
from breadth import slow_but

from kl_flax.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
  path for path in (ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')))
  if '```python' in path.read_text(encoding='utf-8')
]  # fmt: skip


@pytest.mark.parametrize('page', slow_but([ROOT / 'README.md'], PAGES), ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, reference, tmp_path, monkeypatch):
  """A run of the same task lies where README's quick start has put its own."""
  (tmp_path / 'runs/quickstart').mkdir(parents=True)
  (tmp_path / 'runs/quickstart/gmm_prf').symlink_to(reference)
  monkeypatch.chdir(tmp_path)
  before = dict(MODELS)  # What a page adds ends with its test.
  try:
    namespace = {}
    for block in re.findall(r'```python\n(.*?)```', page.read_text(encoding='utf-8'), re.S):
      exec(compile(block, str(page), 'exec'), namespace)
  finally:
    MODELS.clear()
    MODELS.update(before)
