"""The training loop: nothing in it waits for the devices but evaluations and checkpoints."""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lra_tasks import parallel
from lra_tasks.console import Progress
from lra_tasks.metrics import mean_of_draws
from lra_tasks.runs.checkpoints import RunCheckpoints
from lra_tasks.runs.finished import METRIC_LABELS
from lra_tasks.runs.log import RunLog, means

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
  """The loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Loop:
  """The loop of one run: steps, evaluations, checkpoints, until the end or a signal.

  The host is never more than a few steps ahead of the devices, and looks at every loss a few
  steps late: no step waits for it.

  Attributes:
    fields: the resolved config.
    train_step: (state, parts of a batch, learning rate) -> (state, sums), over all devices; takes
      over the state's memory.
    validate: state -> sums of the validation split, or None when asked to stop meanwhile.
    schedule: learning rate of each step.
    checkpoints: of the run.
    log: of the run.
    preemption: tells when to stop.
    compiling: tells whether programs are being compiled meanwhile: no time to measure speed.
    judged_by: the metric, a key of `metrics.METRICS`, by which checkpoints are chosen.
  """

  fields: dict[str, Any]
  train_step: Callable[..., Any]
  validate: Callable[..., Any]
  schedule: Callable[..., Any]
  checkpoints: RunCheckpoints
  log: RunLog
  preemption: parallel.Preemption
  compiling: Callable[[], bool]
  judged_by: str

  def run(self, step: int, state: Any, data: Any) -> tuple[int, Any, bool]:
    """Train until the end or until asked to stop.

    Args:
      step: number of updates that `state` has behind it.
      state: replicated over the local devices.
      data: iterator over the batches of this process, in parts; its place is saved too.

    Returns:
      The step reached, its state, and whether that is the end (False: asked to stop).

    Raises:
      NonFiniteLossError: when a loss is not finite; no checkpoint holds that state.
    """
    total = self.fields['num_train_steps']
    pending: collections.deque[tuple[int, Any]] = collections.deque()
    begin, saved, clock = step, step, None
    # An evaluation takes the sums since the last one: there are none right after it.
    evaluated = step if parallel.to_host(state.sums['weight']) == 0 else 0
    with Progress(total, start=step, show=parallel.is_primary()) as progress:
      while True:
        if _is_due(step, self.fields['eval_frequency'], total) and evaluated < step:
          _settle(pending, 0)
          metrics = self._report(step, state, clock)
          if metrics is not None:
            zeros = jax.tree.map(np.zeros_like, parallel.to_host(state.sums))
            state = state.replace(sums=parallel.replicate(zeros))
            evaluated = step
            is_due = _is_due(step, self.fields['checkpoint_freq'], total)
            if is_due or self.checkpoints.is_wanted(metrics):
              self._save(step, state, data, metrics)
              saved = step
          clock = step, time.monotonic()
        elif _is_due(step, self.fields['checkpoint_freq'], total) and saved < step:
          _settle(pending, 0)
          self._save(step, state, data)
          saved = step
        if step == total or self.preemption.requested(step):
          break
        rate = parallel.broadcast(np.float32(self.schedule(step)))
        parts = tuple(parallel.split(part) for part in next(data))
        state, sums = self.train_step(state, parts, rate)
        step += 1
        pending.append((step, sums))
        latest = _settle(pending, parallel.RUN_AHEAD)
        if latest is not None and progress.due():
          values = means(parallel.to_host(latest[1]), '')
          progress.update(latest[0], loss=values['loss'], accuracy=values['accuracy'])
        if clock is None and (step == begin + 1 or not self.compiling()):
          # The first step waits for its program, those that follow share the machine with others.
          jax.block_until_ready(sums)
          progress.restart_clock(step)
          clock = None if self.compiling() else (step, time.monotonic())
      _settle(pending, 0)
      if saved < step:
        self._save(step, state, data)
      self.checkpoints.wait()
    return step, state, evaluated == total

  def _save(
    self, step: int, state: Any, data: Any, metrics: dict[str, float] | None = None
  ) -> None:
    host_state = parallel.to_host(state)
    # The loss of a step is that of the parameters before it.
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(host_state.params)):
      raise _non_finite('parameters are not finite', step)
    if self.fields['save_checkpoints']:
      self.checkpoints.save(step, host_state, data, metrics)

  def _report(
    self, step: int, state: Any, clock: tuple[int, float] | None
  ) -> dict[str, float] | None:
    """Evaluate on the validation split and record it; None if asked to stop meanwhile."""
    now = time.monotonic()
    rate = (step - clock[0]) / (now - clock[1]) if clock and step > clock[0] else None
    train = means(parallel.to_host(state.sums), 'train_')
    sums = self.validate(state)
    if sums is None:
      return None
    metrics = means(sums, 'eval_')
    own = ''
    if self.judged_by != 'accuracy':
      score = mean_of_draws(self.judged_by, sums['confusion_by_draw'])
      metrics[f'eval_{self.judged_by}'] = score
      own = f', {METRIC_LABELS[self.judged_by]} {score:.4f}'
    if not np.isfinite(metrics['eval_loss']):
      raise _non_finite(f'validation loss is {metrics["eval_loss"]}', step)
    self.log.add(
      {
        'step': step,
        **train,
        **metrics,
        'learning_rate': self.schedule(step - 1),
        'steps_per_second': rate,
        'peak_memory_bytes': parallel.peak_memory_bytes(),
      }
    )
    logger.info(
      'step %d/%d: training loss %.4f, accuracy %.4f; validation loss %.4f, accuracy %.4f%s; %s',
      step, self.fields['num_train_steps'], train['train_loss'], train['train_accuracy'],
      metrics['eval_loss'], metrics['eval_accuracy'], own, f'{rate:.2f} steps/s' if rate else '-',
    )  # fmt: skip
    if train['train_truncated'] or metrics['eval_truncated']:
      logger.warning(
        '%d training and %d validation sequences were longer than max_length=%d and were cut.',
        train['train_truncated'], metrics['eval_truncated'], self.fields['max_length'],
      )  # fmt: skip
    found = {name: metrics[f'eval_{name}'] for name in ('accuracy', 'loss')}
    if self.judged_by != 'accuracy':
      found['score'] = metrics[f'eval_{self.judged_by}']
    return found


def _is_due(step: int, every: int, total: int) -> bool:
  return step > 0 and (step % every == 0 or step == total)


def _settle(pending: collections.deque[tuple[int, Any]], keep: int) -> tuple[int, Any] | None:
  """Wait for all but the `keep` newest steps and check their loss; return the newest of them."""
  latest = None
  while len(pending) > keep:
    step, sums = latest = pending.popleft()
    weight = max(float(parallel.to_host(sums['weight'])), 1.0)  # There may be nothing to predict.
    loss = float(parallel.to_host(sums['loss'])) / weight
    if not np.isfinite(loss):
      raise _non_finite(f'loss is {loss}', step)
  return latest


def _non_finite(what: str, step: int) -> NonFiniteLossError:
  return NonFiniteLossError(
    f'the {what} at step {step}; no checkpoint holds it. Try a smaller learning_rate, a longer '
    'warmup or grad_clip_norm=1.0 (in a new --model_dir)'
  )
