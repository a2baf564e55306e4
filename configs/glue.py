"""GLUE: `--config=configs/glue.py:MODEL,TASK[,PRESET] --init_from=MODEL_DIR`.

TASK is one of cola, sst2, mrpc, qqp, mnli, qnli, wnli, rte. `--init_from` names a run of
configs/wikitext.py with the same model; without it the encoder is trained from scratch, with a
vocabulary of the task's own. The development set is validation and test, as is usual with GLUE
(`--config.data.validation=holdout` holds a tenth of the training examples out).

  paper   Table 8 of the paper. It lists several learning rates, of which reports show the
          best on the development set:
          `lra_tasks.sweep --try=learning_rate=2e-3,5e-4,1e-4,2e-5,5e-6`; 1e-4 stands here
  tiny    the same code path in under a minute on two CPU cores, but for the largest sets
"""

from kl_flax.errors import unknown_name
from lra_tasks.data.glue_tasks import GLUE_TASKS
from lra_tasks.presets import SHORT_FREQUENCIES, TINY, task_config
from lra_tasks.tasks import get_task

_BATCH_SIZE, _EPOCHS = 64, 10


def _presets(task):
  base = dict(get_task(task).base_model)
  epoch = max(GLUE_TASKS[task].num_train) // _BATCH_SIZE
  paper = {
    'batch_size': _BATCH_SIZE,
    'num_train_steps': _EPOCHS * epoch,
    'eval_frequency': epoch,
    # What is best on the development set is saved besides: with a large vocabulary, saving takes
    # longer than an epoch of the smallest tasks.
    'checkpoint_freq': _EPOCHS // 2 * epoch,
    'learning_rate': 1e-4,
    'factors': 'constant * linear_warmup * linear_decay',
    'warmup': _EPOCHS * epoch // 10,
    'weight_decay': 0.01,
    'adam_b2': 0.999,
    'dropout_rate': 0.1,
    'attention_dropout_rate': 0.0,
    'eval_samples': 10,
    **base,
  }
  tiny = TINY | {'max_length': 63, 'hidden_dim': 16, 'activation': 'tanh'}
  return {'paper': paper, 'tiny': tiny}


def get_config(argument='gmm_prf,cola'):
  model, _, rest = argument.partition(',')
  task, _, preset = rest.partition(',')
  if task not in GLUE_TASKS:
    raise ValueError(
      unknown_name('task behind the model, as in glue.py:gmm_prf,cola,', task, GLUE_TASKS)
    )
  return task_config(
    task,
    f'{model},{preset or "paper"}',
    _presets(task),
    num_frequencies=SHORT_FREQUENCIES,
    data={'tiny': {'vocab_size': 1000}},
  )
