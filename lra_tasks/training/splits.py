"""What a run reads of its data: batches of the three splits, and the sizes that they have."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from kl_flax.models import ignores_padding
from kl_flax.tokenizers import Tokenizer
from lra_tasks import configuration, parallel, tasks
from lra_tasks.data import datasets, pipeline
from lra_tasks.data.parts import Parts, describe, plan
from lra_tasks.tasks import get_task

logger = logging.getLogger(__name__)


class Splits(NamedTuple):
  """What is read of the data.

  Attributes:
    train: this process's share of the batches, each in parts; endless.
    sizes: a batch of padding alone, in parts, for each way in which those of train may be cut, the
      commonest first; rows are those of all processes.
    validation: this process's share of a pass over the split.
    test: likewise.
  """

  train: Iterator[Any]
  sizes: list[tuple[pipeline.Batch, ...]]
  validation: pipeline.Evaluation
  test: pipeline.Evaluation


def read_splits(
  fields: dict[str, Any],
  builder: datasets.Builder,
  tokenizer: Tokenizer,
  model: nn.Module,
  test_only: bool,
) -> Splits:
  """Return the splits of a run.

  Args:
    fields: the resolved config.
    builder: of the data, which is prepared.
    tokenizer: of the run.
    model: to be trained.
    test_only: whether nothing is to be trained.
  """
  spec = get_task(fields['task'])
  read = lambda split: tasks.read(spec, builder, split, tokenizer, fields['max_length'])
  shapes = {name: fields[name] for name in ('batch_size', 'max_length')}
  shapes |= {'num_inputs': spec.num_inputs, 'masking': configuration.masking(fields, tokenizer)}
  whole = pipeline.empty_batch(**shapes)
  shapes['share'] = parallel.share()
  trim, train = ignores_padding(model), read('train')
  # Several processes run one program: the parts of one may not be those of another.
  may_cut = trim and jax.process_count() == 1 and not test_only
  parts = _plan_parts(fields, train, spec, model) if may_cut else None
  evaluation = functools.partial(pipeline.Evaluation, trim=trim, **shapes)
  return Splits(
    pipeline.train_batches(train, seed=fields['random_seed'], parts=parts, **shapes),
    [parts.cut(whole), (whole,)] if parts else [(whole,)],
    evaluation(read('validation'), num_batches=fields['num_eval_steps']),
    evaluation(read('test')),
  )


def _plan_parts(
  fields: dict[str, Any], source: Any, spec: tasks.TaskSpec, model: nn.Module
) -> Parts | None:
  """Return how training batches are divided to be padded less, None for not at all."""
  sizes = {name: fields[name] for name in ('batch_size', 'max_length')}
  attention, mlp = 4 * fields['qkv_dim'], 2 * fields['mlp_dim']
  found = plan(
    pipeline.sample_lengths(source, spec.num_inputs),
    num_steps=fields['num_train_steps'],
    num_weights=spec.num_inputs * fields['num_layers'] * fields['emb_dim'] * (attention + mlp),
    num_added=int(model.encoder.use_cls),
    num_devices=jax.device_count(),
    **sizes,
  )
  if found:
    logger.info('%s', describe(found, **sizes))
  return found
