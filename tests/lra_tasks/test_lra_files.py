"""Options in LRA's own files: names, places and defaults."""

import functools

import pytest

from kl_flax.models import MODELS, get_row
from lra_tasks import lra_files


def test_lras_options_of_the_performer():
  """Its ListOps file asks for softmax with two features, its other files leave it at relu."""
  read = functools.partial(lra_files.read_options, 'performer')
  details = {'ortho_scaling': 0.0, 'nb_features': 2}
  given = {'attention_fn_cls': 'softmax', 'attention_fn_kwargs': details}
  assert read(given) == {'kernel': 'softmax', 'num_frequencies': 2}
  assert read({}) == {'kernel': 'relu'}
  with pytest.raises(ValueError, match='ortho_scaling must be 0.0'):
    read({'attention_fn_kwargs': {'ortho_scaling': 1.0}})
  with pytest.raises(ValueError, match='known: generalized, softmax'):
    read({'attention_fn_cls': 'dot_product'})


def test_lras_options_have_other_names_and_defaults():
  """What its files leave out has the values of its encoders."""
  read = lambda model_type, **given: lra_files.read_options(model_type, given)
  assert read('linformer') == {}
  assert read('linformer', low_rank_features=32) == {'projected_length': 32}
  assert read('reformer') == {'num_buckets': 10, 'chunk_length': 0}
  assert read('reformer', n_hashes=2, n_buckets=8) == {
    'num_hashes': 2, 'num_buckets': 8, 'chunk_length': 0
  }  # fmt: skip
  assert read('sinkhorn', block_size=64) == {'sorting': 'softmax', 'block_size': 64}
  assert read('sinkhorn', sort_activation='sinkhorn') == {'sorting': 'sinkhorn'}
  assert read('synthesizer') == {'mode': 'random', 'dot_product': True}
  given = {'synthesizer_mode': 'dense', 'ignore_dot_product': True, 'k': 8}
  assert read('synthesizer', **given) == {'mode': 'dense', 'dot_product': False, 'rank': 8}
  assert read('synthesizer', kk=8)['kk'] == 8  # To be named as unknown.


def test_what_is_listed_exists():
  assert lra_files.MODELS.issubset(MODELS)
  for model_type, names in lra_files.FLAT_FIELDS.items():
    found = lra_files.read_options(model_type, dict.fromkeys(names))
    assert set(found) <= set(get_row(model_type).options), model_type
