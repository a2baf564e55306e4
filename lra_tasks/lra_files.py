"""What the Long Range Arena's own config files call the options of its attention mechanisms.

LRA's files name options in the dictionary `model_kwargs`, some of them beside it. A mechanism that
is not listed here has the same names in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kl_flax.errors import unknown_name

# Models that LRA has config files of.
MODELS = frozenset(
  {
    'bigbird', 'linear_transformer', 'linformer', 'local', 'longformer', 'performer', 'reformer',
    'sinkhorn', 'sparse_transformer', 'synthesizer', 'transformer',
  }
)  # fmt: skip
# Options that stand beside `model_kwargs`, by LRA's names.
FLAT_FIELDS: Mapping[str, tuple[str, ...]] = {
  'bigbird': ('block_size',),
  'linformer': ('low_rank_features',),
  'local': ('block_size',),
  'sinkhorn': ('block_size', 'sort_activation'),
  'synthesizer': ('ignore_dot_product', 'k', 'synthesizer_mode'),
}


def read_options(model_type: str, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """Return the options of a mechanism for the `model_kwargs` of one of LRA's files.

  What the file leaves out has the value of LRA's code, where that is another than ours. Unknown
  names stay, for an error that names them.

  Raises:
    ValueError: for a value that LRA's code knows and the mechanism here does not.

  >>> read_options('sinkhorn', {'block_size': 64})
  {'sorting': 'softmax', 'block_size': 64}
  """
  return _READERS.get(model_type, dict)(model_kwargs)


def _performer(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  kernels = {'softmax': 'softmax', 'generalized': 'relu'}
  given = dict(model_kwargs)
  details = dict(given.pop('attention_fn_kwargs', {}))
  kernel = given.pop('attention_fn_cls', 'generalized')
  if kernel not in kernels:
    raise ValueError(unknown_name('attention_fn_cls', str(kernel), kernels))
  if details.pop('ortho_scaling', 0.0) != 0.0:
    raise ValueError(
      'ortho_scaling must be 0.0: lengths of frequencies are drawn, as for a Gaussian'
    )
  options = {'kernel': kernels[kernel]}
  if 'nb_features' in details:
    options['num_frequencies'] = details.pop('nb_features')
  return options | given | details  # What is left will be named as unknown.


def _linformer(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  return _renamed(model_kwargs, {'low_rank_features': 'projected_length'})


def _reformer(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  names = {'n_hashes': 'num_hashes', 'n_buckets': 'num_buckets'}
  # Its chunk_len is no length of chunks: that follows from the number of buckets.
  return {'num_buckets': 10, 'chunk_length': 0} | _renamed(model_kwargs, names)


def _sinkhorn(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  return {'sorting': 'softmax'} | _renamed(model_kwargs, {'sort_activation': 'sorting'})


def _synthesizer(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
  given = dict(model_kwargs)
  # The defaults of its encoder; those of its attention module are ours.
  options = {'mode': 'random', 'dot_product': not given.pop('ignore_dot_product', False)}
  return options | _renamed(given, {'synthesizer_mode': 'mode', 'k': 'rank'})


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
  return {names.get(name, name): value for name, value in options.items()}


_READERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
  'linformer': _linformer,
  'performer': _performer,
  'reformer': _reformer,
  'sinkhorn': _sinkhorn,
  'synthesizer': _synthesizer,
}
