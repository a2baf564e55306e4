"""The task registry: everything the trainer must know about a benchmark task.

To add a task, write a module with its data options, its builder and its tokenizer (see
`lra_tasks.data.listops`), add a row to TASKS and a file to `configs/`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kl_flax.errors import unknown_name
from kl_flax.tokenizers import PixelTokenizer, Tokenizer
from kl_flax.wordpiece import WordPieceTokenizer
from lra_tasks.data import glue, image, listops, pathfinder, retrieval, sparse_sum, text, wikitext
from lra_tasks.data.datasets import Builder
from lra_tasks.data.glue_tasks import GLUE_TASKS
from lra_tasks.data.tokenized import Tokenized


@dataclasses.dataclass(frozen=True)
class TrainedVocabulary:
  """Sizes of the tokenizer that each data set of a task brings along (`Builder.tokenizer`).

  Attributes:
    vocab_size: at most.
    num_special: ids that stand for no part of a text.
    separator: id between sentences.
  """

  vocab_size: int = 30_522
  num_special: int = 3
  separator: int = 2


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """One row of the registry.

  Attributes:
    name: the task's name in flags, files and tables.
    num_classes: number of labels, 0 ... num_classes − 1, unless the builder has another; 0 where
      there are none, but tokens to predict.
    tokenizer: raw input to ids; `TrainedVocabulary` where each data set has its own.
    data_options: frozen dataclass of what determines the data; its defaults are the benchmark's.
    make_builder: (options, data_dir=, source=, task_name=) -> builder, perhaps not yet prepared;
      its splits are train, validation and test.
    is_benchmark: builder -> whether results on it may stand beside published ones.
    task_name: LRA's default of the flag --task_name.
    base_model: fields of LRA's base Transformer, which the 10 % rule measures against, and which
      LRA's own files take where they leave one out.
    config_file: stem of the file in configs; where it is not the task's name, the file's argument
      names the task behind the model.
    metrics: what is reported, names in `lra_tasks.metrics.METRICS`; accuracy is in any case. The
      last one is what checkpoints and settings are chosen by.
    num_texts: texts of an example that make one sequence of ids: 1, or 2 for pairs of sentences;
      None where inputs are no texts of a trained vocabulary.
    num_inputs: sequences of an example: 1, or 2 for pairs.
    view: (records, tokenizer, max_length) -> records of ids, where those on disk are raw text.
    lra_data: data options that LRA's own config files imply, where they are not the defaults.
  """

  name: str
  num_classes: int
  tokenizer: Tokenizer | TrainedVocabulary
  data_options: type
  make_builder: Callable[..., Builder]
  is_benchmark: Callable[[Builder], bool]
  task_name: str
  base_model: Mapping[str, Any]
  config_file: str = ''
  metrics: tuple[str, ...] = ()
  num_texts: int | None = None
  num_inputs: int = 1
  view: Callable[[Sequence[Any], Tokenizer, int], Sequence[Any]] | None = None
  lra_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def judged_by(self) -> str:
    """Name of the metric that checkpoints and settings are chosen by."""
    return ('accuracy', *self.metrics)[-1]


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


# The paper's Table 8; its sequences of 512 have CLS at their front.
_SHORT_TRANSFORMER: Mapping[str, Any] = {
  'emb_dim': 300,
  'num_heads': 10,
  'num_layers': 3,
  'qkv_dim': 640,
  'mlp_dim': 512,
  'learn_pos_emb': False,
}
# Word pieces that all texts of a task of GLUE have room for.
_GLUE_LENGTHS = {'cola': 63, 'sst2': 127, 'mrpc': 127, 'wnli': 127}


def _glue(name: str) -> TaskSpec:
  row = GLUE_TASKS[name]
  sizes = {'hidden_dim': 128, 'activation': 'tanh', 'max_length': _GLUE_LENGTHS.get(name, 511)}
  return TaskSpec(
    name=name,
    num_classes=len(row.labels),
    tokenizer=TrainedVocabulary(),
    data_options=glue.GlueData,
    make_builder=functools.partial(glue.make_builder, task=name),
    is_benchmark=glue.is_benchmark,
    task_name=name,
    base_model=_SHORT_TRANSFORMER | sizes,
    config_file='glue',
    num_texts=len(row.texts),
    view=Tokenized,
    metrics=row.metrics,
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
    # Not of LRA: in place of its base Transformer stand those of the paper.
    TaskSpec(
      name='wikitext',
      num_classes=0,
      tokenizer=TrainedVocabulary(),
      data_options=wikitext.WikiTextData,
      make_builder=wikitext.make_builder,
      is_benchmark=wikitext.is_benchmark,
      task_name='wikitext-103',
      base_model=_SHORT_TRANSFORMER | {'max_length': 511},
    ),
    *map(_glue, GLUE_TASKS),
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


def tokenizer_of(
  spec: TaskSpec, builder: Builder, pretrained: Tokenizer | None = None
) -> Tokenizer:
  """Return the tokenizer of a run.

  Args:
    spec: the task.
    builder: of its data, which is prepared.
    pretrained: that of the run that this one starts from.

  Raises:
    ValueError: if the data consists of the ids of another tokenizer than the pre-trained one.
  """
  own = builder.tokenizer or spec.tokenizer
  check_tokenizer(spec, pretrained, own)
  return pretrained or own


def check_tokenizer(
  spec: TaskSpec, pretrained: Tokenizer | None, own: Tokenizer | None = None
) -> None:
  """Raise the ValueError of `tokenizer_of`, as far as it shows without the data: without `own`."""
  own = own or spec.tokenizer
  if isinstance(own, TrainedVocabulary):  # Which ids there are is known with the data.
    return
  takes_word_pieces = spec.view is not None
  if pretrained in (None, own) or (
    takes_word_pieces and isinstance(pretrained, WordPieceTokenizer)
  ):
    return
  needed = f'{type(own).__name__} ({own.vocab_size} ids)'
  raise ValueError(
    f'the tokenizer of the run that --init_from names does not fit {spec.name}: it is '
    f'{type(pretrained).__name__} ({pretrained.vocab_size} ids), needed is '
    + ('any with word pieces' if takes_word_pieces else needed)
  )


def read(
  spec: TaskSpec, builder: Builder, split: str, tokenizer: Tokenizer, max_length: int
) -> Sequence[Any]:
  """Return the records of a split, whose sequences are ids."""
  records = builder.as_data_source(split)
  return records if spec.view is None else spec.view(records, tokenizer, max_length)


def get_task(name: str) -> TaskSpec:
  """Return the row of a task.

  Raises:
    ValueError: if there is none; the message lists those that exist.
  """
  if name not in TASKS:
    raise ValueError(unknown_name('task', name, TASKS))
  return TASKS[name]
