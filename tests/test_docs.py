"""The Python code in README and documentation runs, block after block of a page; links lead on."""

import pathlib
import re

import pytest
from breadth import slow_but

from kl_flax.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
ALL_PAGES = [*sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('docs/*.md'))]
PAGES = [path for path in ALL_PAGES if '```python' in path.read_text(encoding='utf-8')]


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


def anchors(page):
  """Return the fragments by which the headings of a page are linked to."""
  headings = re.findall(r'^#+ (.+)$', page.read_text(encoding='utf-8'), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', ALL_PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
    if not link.startswith('http'):
      path, _, fragment = link.partition('#')
      target = page.parent / path if path else page
      assert target.exists(), link
      assert not fragment or fragment in anchors(target), link
