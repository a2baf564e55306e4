"""What the devices are to do in a run, compiled before it is needed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lra_tasks import parallel
from lra_tasks.runs.origin import Origin
from lra_tasks.training import compilation, steps
from lra_tasks.training.splits import Splits


class Programs:
  """What the devices are to do in a run.

  Attributes:
    train_step: see `steps.train_step`; over all devices.
    eval_step: likewise.
    init_state: () -> the state before the first step, a function of the config alone.
    state_shapes: of it.
  """

  def __init__(self, fields: Mapping[str, Any], model: nn.Module, adamw: Any) -> None:
    train_step = functools.partial(
      steps.train_step, model=model, optimizer=adamw, resample_every=fields['resample_every']
    )
    eval_step = functools.partial(steps.eval_step, model=model)
    self.train_step = compilation.Step(parallel.over_devices(train_step, donate_state=True))
    self.eval_step = compilation.Step(parallel.over_devices(eval_step))
    init = jax.jit(functools.partial(steps.init_state, model, adamw))
    self.init_state = functools.partial(init, seed=np.uint32(fields['random_seed']))
    self.state_shapes = jax.eval_shape(self.init_state)

  def compile_ahead(self, compilers: compilation.Compilers, splits: Splits, trains: bool) -> None:
    """Begin to compile what a training needs; if nothing is left to train, what the test does."""
    if jax.process_count() > 1:  # All of them must compile in the same order.
      return
    shapes = parallel.replicated_shapes(self.state_shapes)
    rate, draw = parallel.broadcast(np.float32(0)), parallel.broadcast(np.int32(0))
    for size in splits.sizes if trains else []:
      parts = tuple(parallel.split(part) for part in size)
      self.train_step.compile_ahead(compilers, shapes, parts, rate)
    # The test's batches mostly have the sizes of the validation's; they are far off.
    evaluation = splits.validation if trains else splits.test
    for batch in evaluation.empty_batches():
      self.eval_step.compile_ahead(compilers, shapes, parallel.split(batch), draw)

  def first_state(self, origin: Origin) -> steps.TrainState:
    """Return the state before the first step: of the config alone, or with the origin's encoder.

    Raises:
      ValueError: if the origin has another encoder, or its checkpoint is damaged.
      FileNotFoundError: if the origin has no checkpoint.
    """
    state = self.init_state()
    return state.replace(params=origin.start(state.params))
