"""The task registry: everything the trainer must know about a benchmark task.

To add a task, write a module with its data options, its builder and its tokenizer (see
`lra_tasks.data.listops`), add a row to TASKS and a file to `configs/`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import PixelTokenizer, Tokenizer
from lra_tasks.data import image, listops, pathfinder, retrieval, sparse_sum, text
from lra_tasks.data.datasets import Builder


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """One row of the registry.

  Attributes:
    name: the task's name in flags, files and tables.
    num_classes: number of labels, 0 ... num_classes − 1, unless the builder has another.
    tokenizer: raw input to ids.
    data_options: frozen dataclass of what determines the data; its defaults are the benchmark's.
    make_builder: (options, data_dir=, source=, task_name=) -> builder, perhaps not yet prepared;
      its splits are train, validation and test.
    is_benchmark: builder -> whether results on it may stand beside published ones.
    task_name: LRA's default of the flag --task_name.
    base_model: fields of LRA's base Transformer, which the 10 % rule measures against, and which
      LRA's own files take where they leave one out.
    num_inputs: sequences of an example: 1, or 2 for pairs.
    lra_data: data options that LRA's own config files imply, where they are not the defaults.
  """

  name: str
  num_classes: int
  tokenizer: Tokenizer
  data_options: type
  make_builder: Callable[..., Builder]
  is_benchmark: Callable[[Builder], bool]
  task_name: str
  base_model: Mapping[str, Any]
  num_inputs: int = 1
  lra_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _pathfinder(resolution: int, **base_model: Any) -> TaskSpec:
  return TaskSpec(
    name=f'pathfinder{resolution}',
    num_classes=2,
    tokenizer=PixelTokenizer(resolution**2),
    data_options=pathfinder.PathfinderData,
    make_builder=functools.partial(pathfinder.make_builder, resolution=resolution),
    is_benchmark=pathfinder.is_benchmark,
    task_name=f'pathfinder{resolution}_hard',
    base_model={'emb_dim': 32, 'mlp_dim': 32, 'max_length': resolution**2} | base_model,
  )


TASKS: dict[str, TaskSpec] = {
  spec.name: spec
  for spec in [
    TaskSpec(
      name='listops',
      num_classes=10,
      tokenizer=listops.TOKENIZER,
      data_options=listops.ListOpsData,
      make_builder=listops.make_builder,
      is_benchmark=listops.is_benchmark,
      task_name='basic',
      base_model={
        'emb_dim': 512,
        'num_heads': 8,
        'num_layers': 4,
        'qkv_dim': 512,
        'mlp_dim': 1024,
        'max_length': 2000,
        'learn_pos_emb': False,
      },
    ),
    TaskSpec(
      name='text',
      num_classes=2,
      tokenizer=text.TOKENIZER,
      data_options=text.TextData,
      make_builder=text.make_builder,
      is_benchmark=text.is_benchmark,
      task_name='imdb_reviews',
      base_model={
        'emb_dim': 256,
        'num_heads': 4,
        'num_layers': 4,
        'qkv_dim': 256,
        'mlp_dim': 1024,
        'max_length': 1000,
        'learn_pos_emb': False,
      },
      lra_data={'validation': 'test'},
    ),
    TaskSpec(
      name='retrieval',
      num_classes=2,
      num_inputs=2,
      tokenizer=retrieval.TOKENIZER,
      data_options=retrieval.RetrievalData,
      make_builder=retrieval.make_builder,
      is_benchmark=retrieval.is_benchmark,
      task_name='aan',
      base_model={
        'emb_dim': 128,
        'num_heads': 4,
        'num_layers': 4,
        'qkv_dim': 128,
        'mlp_dim': 512,
        'max_length': 4000,
        'learn_pos_emb': False,
      },
    ),
    TaskSpec(
      name='image',
      num_classes=10,
      tokenizer=image.TOKENIZER,
      data_options=image.ImageData,
      make_builder=image.make_builder,
      is_benchmark=image.is_benchmark,
      task_name='cifar10',
      base_model={
        'emb_dim': 128,
        'num_heads': 8,
        'num_layers': 1,
        'qkv_dim': 64,
        'mlp_dim': 128,
        'max_length': 1024,
        'learn_pos_emb': True,
      },
    ),
    _pathfinder(
      32, num_heads=4, num_layers=4, qkv_dim=16, pooling_mode='MEAN', learn_pos_emb=False
    ),
    _pathfinder(64, num_heads=4, num_layers=2, qkv_dim=32, pooling_mode='CLS', learn_pos_emb=True),
    _pathfinder(
      128, num_heads=2, num_layers=1, qkv_dim=16, pooling_mode='MEAN', learn_pos_emb=True
    ),
    _pathfinder(256, num_heads=4, num_layers=2, qkv_dim=32, pooling_mode='CLS', learn_pos_emb=True),
    # Not of LRA: in place of its base Transformer stands the paper's of Appendix E.2.
    TaskSpec(
      name='sparse_sum',
      num_classes=sparse_sum.NUM_CLASSES,
      tokenizer=sparse_sum.TOKENIZER,
      data_options=sparse_sum.SparseSumData,
      make_builder=sparse_sum.make_builder,
      is_benchmark=sparse_sum.is_benchmark,
      task_name='sparse_sum',
      base_model={
        'emb_dim': 64,
        'num_heads': 4,
        'num_layers': 3,
        'qkv_dim': 64,
        'mlp_dim': 64,
        'max_length': 200,
        'learn_pos_emb': True,
      },
    ),
  ]
}


# Where prepared data sets are kept by default.
DATA_DIR = '~/.cache/kl_flax/data'


def define_data_flags(flag_values: flags.FlagValues) -> None:
  """Define the flags that say which data a command is about."""
  define = lambda name, default, text: flags.DEFINE_string(
    name, default, text, flag_values=flag_values
  )
  define('task', None, f'The task, where no config names it: {", ".join(TASKS)}.')
  define('data_dir', DATA_DIR, 'Where prepared data sets are kept (or the raw ones lie).')
  define('source', None, 'Directory or archive of the raw data, if not in data_dir.')
  define('task_name', None, "LRA's name of the data set within the task.")


def get_task(name: str) -> TaskSpec:
  """Return the row of a task.

  Raises:
    ValueError: if there is none; the message lists those that exist.
  """
  if name not in TASKS:
    raise ValueError(unknown_name('task', name, TASKS))
  return TASKS[name]
