"""Pre-training on WikiText: `--config=configs/wikitext.py:MODEL[,PRESET]`.

The model predicts masked word pieces (Devlin et al. 2019). Runs of configs/glue.py start with its
encoder: `--init_from=MODEL_DIR`. The text is WikiText-103; `--task_name=wikitext-2` takes the small
one, `--source` any other.

  paper   Table 8 of the paper: 5 epochs of WikiText-103
  small   the same model on WikiText-2 (`--task_name=wikitext-2`): 100 epochs, in the steps of which
          warm-up is a tenth
  tiny    the same code path in under a minute on two CPU cores, once the text is prepared: for
          WikiText-103 that takes minutes, for `--task_name=wikitext-2` seconds
"""

from lra_tasks.presets import SHORT_FREQUENCIES, TINY, task_config
from lra_tasks.tasks import get_task

_PAPER = {
  'objective': 'masked',
  'batch_size': 64,
  # 270,000 sequences in an epoch of WikiText-103, as many as its 103 million words fill.
  'num_train_steps': 21_000,
  'eval_frequency': 2100,
  'checkpoint_freq': 2100,
  'learning_rate': 5e-4,
  'factors': 'constant * linear_warmup * linear_decay',
  'warmup': 10_000,
  'weight_decay': 0.01,
  'adam_b2': 0.999,
  'dropout_rate': 0.1,
  'attention_dropout_rate': 0.0,
  **get_task('wikitext').base_model,
}
_SMALL = {'num_train_steps': 7800, 'eval_frequency': 780, 'checkpoint_freq': 780, 'warmup': 780}
_PRESETS = {
  'paper': _PAPER,
  'small': _PAPER | _SMALL,
  'tiny': TINY | {'objective': 'masked', 'max_length': 63},
}


def get_config(argument='gmm_prf'):
  return task_config(
    'wikitext',
    argument,
    _PRESETS,
    num_frequencies=SHORT_FREQUENCIES,
    data={'tiny': {'vocab_size': 1000, 'max_length': 64}},
  )
