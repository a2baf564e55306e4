"""Pathfinder, 256 x 256 pixels (LRA): `--config=configs/pathfinder256.py:MODEL[,PRESET]`.

Published test accuracy: `python -m lra_tasks.report --published=all` beside ours. LRA's Transformer
takes black pixels for padding, `--config.data.mask_zero=True`; here every pixel counts.

  lra     LRA's released base config (default)
  tuned   ours, within LRA's rule: LRA's sizes, at most 10 % more parameters; a first guess, not
          yet selected on validation data
  tiny    the same code path on a few images: under a minute on two CPU cores
"""

from lra_tasks.presets import block_frequencies, pathfinder_presets, task_config

_PRESETS = pathfinder_presets(
  'pathfinder256',
  batch_size=32,
  num_epochs=100,
  dropout_rate=0.1,
  tiny={'batch_size': 2, 'num_train_steps': 4, 'eval_frequency': 2, 'checkpoint_freq': 2},
)
_DATA = {'tiny': {'num_train': 16, 'num_valid': 4, 'num_test': 4}}


def get_config(argument='gmm_prf'):
  return task_config(
    'pathfinder256',
    argument,
    _PRESETS,
    num_frequencies=block_frequencies('pathfinder256'),
    data=_DATA,
  )
