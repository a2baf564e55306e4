"""Pathfinder, 64 x 64 pixels (Long Range Arena): `--config=configs/pathfinder64.py:MODEL[,PRESET]`.

Published test accuracy: `python -m lra_tasks.report --published=all` beside ours. LRA's Transformer
takes black pixels for padding, `--config.data.mask_zero=True`; here every pixel counts.

  lra     LRA's released base config (default)
  tuned   ours, within LRA's rule: LRA's sizes, at most 10 % more parameters; a first guess, not
          yet selected on validation data
  tiny    the same code path on a few images: under a minute on two CPU cores
"""

from lra_tasks.presets import block_frequencies, pathfinder_presets, task_config

_PRESETS = pathfinder_presets(
  'pathfinder64',
  batch_size=256,
  num_epochs=200,
  dropout_rate=0.1,
)
_DATA = {'tiny': {'num_train': 64, 'num_valid': 16, 'num_test': 16}}


def get_config(argument='gmm_prf'):
  return task_config(
    'pathfinder64',
    argument,
    _PRESETS,
    num_frequencies=block_frequencies('pathfinder64'),
    data=_DATA,
  )
