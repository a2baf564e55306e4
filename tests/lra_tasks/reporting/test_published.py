import pytest

from lra_tasks.reporting.published import SOURCES, load_published, published_for


@pytest.mark.parametrize(
  ('task', 'model', 'paper', 'lra'),
  [
    # Checked against the text of the paper (Tables 2 and 5) and LRA's README.
    ('listops', 'gmm_prf', 36.96, None),
    ('listops', 'performer', 36.00, 18.01),
    ('listops', 'random', 10.00, None),
    ('text', 'generative_rks', 66.50, None),
    ('text', 'transformer', 64.27, 64.27),
    ('retrieval', 'fastfood_prf', 71.13, None),
    ('image', 'sparse_transformer', 44.24, 44.24),
    ('pathfinder32', 'performer', None, 77.05),
  ],
)
def test_published_figures(task, model, paper, lra):
  found = published_for(load_published(), task)[model]
  values = {name: figure.value for name, figure in found.items()}
  assert (values.get('paper'), values.get('lra')) == (paper, lra)


def test_published_sources_are_known_and_unique():
  published = load_published()
  assert {score.source for score in published} == set(SOURCES)
  keys = [(score.source, score.task, score.model) for score in published]
  assert len(keys) == len(set(keys))


def test_published_failure_external_and_unknown():
  published = load_published()
  failure = published_for(published, 'pathfinder128')['local']['lra']
  assert (failure.value, failure.fraction) == (None, None)
  assert 'igloo' not in published_for(published, 'listops')
  assert published_for(published, 'listops', external=True)['igloo']['lra'].value == 39.23
  assert published_for(published, 'chess') == {}
