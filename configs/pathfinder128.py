"""Path-X, Pathfinder at 128 x 128 pixels (LRA): `--config=configs/pathfinder128.py:MODEL[,PRESET]`.

Published test accuracy: `python -m lra_tasks.report --published=all` beside ours. LRA's Transformer
takes black pixels for padding, `--config.data.mask_zero=True`; here every pixel counts.

  lra     LRA's released base config (default)
  tuned   ours, within LRA's rule: LRA's sizes, at most 10 % more parameters; a first guess, not
          yet selected on validation data
  tiny    the same code path on a few images: under a minute on two CPU cores
"""

from lra_tasks.presets import block_frequencies, pathfinder_presets, task_config

_PRESETS = pathfinder_presets(
  'pathfinder128',
  batch_size=64,
  num_epochs=200,
  dropout_rate=0.1,
  grad_clip_norm=1.0,
  tiny={'batch_size': 4, 'num_train_steps': 10, 'eval_frequency': 5, 'checkpoint_freq': 5},
)
_DATA = {'tiny': {'num_train': 32, 'num_valid': 8, 'num_test': 8}}


def get_config(argument='gmm_prf'):
  return task_config(
    'pathfinder128',
    argument,
    _PRESETS,
    num_frequencies=block_frequencies('pathfinder128'),
    data=_DATA,
  )
