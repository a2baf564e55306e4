"""The Long Range Arena: data, training, evaluation and comparison."""

import importlib.util

# Said here, once: everything below needs the extra.
if None in map(importlib.util.find_spec, ('grain', 'ml_collections', 'tensorflow_datasets')):
  raise ImportError(
    "lra_tasks needs what kl_flax does not: pip install -c constraints.txt -e '.[lra]'"
  )
