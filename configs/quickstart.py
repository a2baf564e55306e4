"""Short ListOps expressions: `--config=configs/quickstart.py:MODEL`.

A learned kernel and the softmax Transformer under one budget, a minute each on two CPU cores. The
expressions have 8 to 64 tokens instead of 500 to 2,000, so published figures stand beside these
results only for orientation.
"""

from lra_tasks.configuration import new_config
from lra_tasks.presets import parse_argument


def get_config(argument='gmm_prf'):
  model, preset = parse_argument(argument, ('quickstart',))
  return new_config(
    'listops',
    model,
    preset,
    batch_size=32,
    num_train_steps=800,
    eval_frequency=200,
    checkpoint_freq=200,
    learning_rate=0.05,
    warmup=200,
    num_layers=2,
    emb_dim=64,
    num_heads=4,
    qkv_dim=64,
    mlp_dim=128,
    max_length=64,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    weight_decay=0.01,
    attention={'num_frequencies': 32},
    data={
      'min_length': 8, 'max_length': 64, 'max_depth': 4,
      'num_train': 20_000, 'num_valid': 1000, 'num_test': 2000,
    },
  )  # fmt: skip
