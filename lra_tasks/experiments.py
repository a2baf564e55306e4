"""Which fields of a config make two runs the same experiment; needs no JAX, as the report has none.

`lra_tasks.configuration` makes digests by them, the report tells rows apart by them.
"""

from typing import Any

# What a run keeps, and whether it goes on from that: no part of what it learns. (A run that keeps
# no checkpoint has no best one to evaluate: its figure is that of the last step.)
STORAGE = ('save_checkpoints', 'restore_checkpoints', 'checkpoint_freq', 'keep_accuracies')
# Two runs that differ in these alone are repetitions of one experiment.
REPETITION = ('random_seed', 'trial', *STORAGE)
# ... and in these, trials of one experiment with different learning rates.
RATE_SEARCH = ('learning_rate', 'preset')
# Fields that earlier versions did not have: at these defaults, they tell no runs apart.
LATER_FIELDS: dict[str, Any] = {
  'interaction': None,
  'objective': 'classify',
  'mask_rate': 0.15,
  'hidden_dim': None,
  'activation': 'relu',
  'adam_b2': 0.98,
  'pretrained': '',
  'validation_samples': 1,
}
