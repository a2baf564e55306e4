"""The Long Range Arena's learning-rate schedule and optimiser, on optax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optax

from kl_flax.errors import unknown_name

Schedule = Callable[[int], float]


def _linear_warmup(step, options):
  return min(1.0, step / options['warmup'])


def _rsqrt_decay(step, options):
  return 1 / math.sqrt(max(step, options['warmup']))


def _rsqrt_normalized_decay(step, options):
  return math.sqrt(options['warmup']) * _rsqrt_decay(step, options)


def _decay_every(step, options):
  return options['decay_factor'] ** (step // options['steps_per_decay'])


def _cosine_decay(step, options):
  progress = max(0.0, (step - options['warmup']) / options['steps_per_cycle'])
  return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (progress % 1.0))))


def _linear_decay(step, options):
  warmup, total = options['warmup'], options['num_train_steps']
  return min(1.0, max(0.0, (total - step) / max(total - warmup, 1)))


# Fields of a config that `make_schedule` takes.
_SCHEDULE = (
  'factors', 'learning_rate', 'warmup', 'steps_per_cycle', 'decay_factor', 'steps_per_decay',
  'num_train_steps',
)  # fmt: skip
FACTORS = {
  'constant': lambda step, options: options['learning_rate'],
  'linear_warmup': _linear_warmup,
  'rsqrt_decay': _rsqrt_decay,
  'rsqrt_normalized_decay': _rsqrt_normalized_decay,
  'decay_every': _decay_every,
  'cosine_decay': _cosine_decay,
  'linear_decay': _linear_decay,
}


def make_schedule(
  factors: str,
  *,
  learning_rate: float,
  warmup: int = 1000,
  decay_factor: float = 0.5,
  steps_per_decay: int = 20_000,
  steps_per_cycle: int = 100_000,
  num_train_steps: int = 100_000,
) -> Schedule:
  """Return LRA's schedule: the product of the named factors at a step, the first being step 0.

  It is computed on the host: no program depends on it.

  One factor is not LRA's: linear_decay, of pre-training and fine-tuning (the paper's Table 8).

  Args:
    factors: names joined by '*', such as 'constant * linear_warmup * rsqrt_decay'.
      constant: learning_rate. linear_warmup: min(1, step / warmup). rsqrt_decay:
      1 / sqrt(max(step, warmup)). rsqrt_normalized_decay: sqrt(warmup / max(step, warmup)).
      decay_every: decay_factor^(step // steps_per_decay). cosine_decay: half a cosine over every
      steps_per_cycle steps after warm-up. linear_decay: from 1 at the end of warm-up to 0 after
      num_train_steps.
    learning_rate: the constant.
    warmup: steps, at least 1.
    decay_factor: of decay_every.
    steps_per_decay: of decay_every.
    steps_per_cycle: of cosine_decay.
    num_train_steps: of linear_decay.

  Raises:
    ValueError: for an unknown factor or warmup < 1.

  >>> schedule = make_schedule('constant * linear_warmup * rsqrt_decay', learning_rate=0.05)
  >>> [round(schedule(step), 6) for step in (0, 500, 1000, 4000)]
  [0.0, 0.000791, 0.001581, 0.000791]
  """
  names = [name.strip() for name in factors.split('*')]
  for name in names:
    if name not in FACTORS:
      raise ValueError(unknown_name('schedule factor', name, FACTORS))
  if warmup < 1:
    raise ValueError(f'warmup must be at least 1 step, got {warmup}; drop the factor instead')
  options = {
    'learning_rate': learning_rate,
    'warmup': warmup,
    'decay_factor': decay_factor,
    'steps_per_decay': steps_per_decay,
    'steps_per_cycle': steps_per_cycle,
    'num_train_steps': num_train_steps,
  }

  def schedule(step):
    return math.prod(FACTORS[name](step, options) for name in names)

  return schedule


def make_optimizer(
  *,
  weight_decay: float,
  grad_clip_norm: float | None = None,
  adam_b2: float = 0.98,
) -> optax.GradientTransformation:
  """Return LRA's AdamW: β 0.9 and 0.98, ε 1e-9, decoupled weight decay on every parameter.

  Its updates are those of a learning rate of 1, which `steps.train_step` multiplies: with the rate
  outside, one compiled program serves all schedules, as those of a search for the best one.

  Args:
    weight_decay: relative to the learning rate.
    grad_clip_norm: largest global norm of the gradient; None or 0 do not clip.
    adam_b2: the second β; 0.999 for pre-training and fine-tuning (the paper's Table 8).
  """
  # A schedule of one value, for the sake of its counter: older checkpoints have one.
  unit = optax.constant_schedule(1.0)
  adamw = optax.adamw(unit, b1=0.9, b2=adam_b2, eps=1e-9, weight_decay=weight_decay)
  if not grad_clip_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(grad_clip_norm), adamw)


def of_config(fields: Mapping[str, Any]) -> tuple[Schedule, optax.GradientTransformation]:
  """Return the schedule and the optimiser of a resolved config.

  Raises:
    ValueError: see `make_schedule`.
  """
  schedule = make_schedule(**{name: fields[name] for name in _SCHEDULE})
  options = {name: fields[name] for name in ('weight_decay', 'grad_clip_norm', 'adam_b2')}
  return schedule, make_optimizer(**options)
