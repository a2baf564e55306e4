import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lra_tasks.optimizer import FACTORS, make_optimizer, make_schedule

OPTIONS = {
  'learning_rate': 0.05,
  'warmup': 100,
  'decay_factor': 0.5,
  'steps_per_decay': 70,
  'steps_per_cycle': 300,
  'num_train_steps': 400,
}


def expected(factors, step):
  """LRA's rule in plain Python."""
  value, w = 1.0, 100
  for name in factors.split('*'):
    name = name.strip()
    if name == 'constant':
      value *= 0.05
    elif name == 'linear_warmup':
      value *= min(1, step / w)
    elif name == 'rsqrt_decay':
      value /= math.sqrt(max(step, w))
    elif name == 'rsqrt_normalized_decay':
      value *= math.sqrt(w) / math.sqrt(max(step, w))
    elif name == 'decay_every':
      value *= 0.5 ** (step // 70)
    elif name == 'linear_decay':
      value *= min(1, max(0, (400 - step) / (400 - w)))
    else:
      progress = max(0, (step - w) / 300)
      value *= max(0, (1 + math.cos(math.pi * (progress % 1))) / 2)
  return value


@pytest.mark.parametrize('factors', [*FACTORS, 'constant * linear_warmup * rsqrt_decay'])
def test_schedule_follows_lra_rule(factors):
  schedule = make_schedule(factors, **OPTIONS)
  for step in (0, 1, 50, 99, 100, 101, 250, 399, 401, 5000):
    assert schedule(step) == pytest.approx(expected(factors, step), rel=1e-12)


def test_schedule_errors():
  with pytest.raises(ValueError, match=r"'linear_warmpu' \(did you mean 'linear_warmup'"):
    make_schedule('constant * linear_warmpu', **OPTIONS)
  with pytest.raises(ValueError, match='warmup must be at least 1 step, got 0'):
    make_schedule('constant', **OPTIONS | {'warmup': 0})


def test_adamw_takes_lra_steps():
  """Two steps against the update rule written out in NumPy, float64."""
  optimizer = make_optimizer(weight_decay=0.3)
  params = {'w': jnp.array([1.0, -2.0])}
  state = optimizer.init(params)
  w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
  for t, gradient in enumerate([np.array([0.5, -1.0]), np.array([0.2, 3.0])], start=1):
    updates, state = optimizer.update({'w': jnp.array(gradient)}, state, params)
    # As the training step does.
    updates = optax.tree_utils.tree_scale(0.1 * t, updates)
    params = optax.apply_updates(params, updates)
    m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
    direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-9)
    w = w - 0.1 * t * (direction + 0.3 * w)
    np.testing.assert_allclose(params['w'], w, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
  clipped = make_optimizer(weight_decay=0.0, grad_clip_norm=1.0)
  state = clipped.init({'w': jnp.zeros(2)})
  _, state = clipped.update({'w': jnp.array([30.0, 40.0])}, state, {'w': jnp.zeros(2)})
  first_moment = optax.tree_utils.tree_get(state, 'mu')['w']
  np.testing.assert_allclose(first_moment, [0.06, 0.08], rtol=1e-5)
