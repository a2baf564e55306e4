"""Sums over an evaluation."""

import jax
import numpy as np
import pytest

from lra_tasks import parallel
from lra_tasks.runs.log import means
from lra_tasks.training.evaluation import evaluate


@pytest.mark.parametrize('draws', [1, 5])
def test_cut_sequences_are_counted_once_whatever_the_draws(draws):
  sums = {'weight': 4.0, 'loss': 2.0, 'accuracy': 1.0, 'truncated': 3.0}
  devices = jax.local_device_count()

  def eval_step(state, batch, draw):
    del state, batch, draw
    return parallel.place({name: np.full(devices, x, np.float32) for name, x in sums.items()})

  batches = [{'inputs': np.zeros((devices, 2), np.int32)}] * 2
  found = evaluate(eval_step, None, batches, num_samples=draws)
  assert found['weight'] == 8 * draws
  assert means(found, '') == {'loss': 0.5, 'accuracy': 0.25, 'truncated': 6}
