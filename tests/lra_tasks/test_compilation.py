import collections
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import run_here

from lra_tasks import compilation, parallel, splits
from lra_tasks.compilation import Compilers, Step
from lra_tasks.data.parts import Parts


@pytest.mark.parametrize(
  ('cuda', 'given', 'expected'),
  [
    (True, '', '--xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_dump_to=d', '--xla_dump_to=d --xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_gpu_enable_triton_gemm=true', '--xla_gpu_enable_triton_gemm=true'),
    (False, '--xla_dump_to=d', '--xla_dump_to=d'),
  ],
)
def test_products_are_left_to_cublas_unless_the_user_says_otherwise(
  monkeypatch, cuda, given, expected
):
  found = lambda name: cuda and name == 'jax_cuda13_plugin'
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if found(name) else None)
  monkeypatch.setenv('XLA_FLAGS', given)
  compilation.set_up()
  assert os.environ['XLA_FLAGS'] == expected


def make_step():
  """Return a step, and where it notes how often it was traced."""
  traces = []

  def step(state, batch, rate):
    traces.append(batch['x'].shape)
    return state + rate * jnp.sum(batch['x']), jax.lax.pmean(state, 'batch')

  return Step(parallel.over_devices(step, donate_state=True)), traces


def arguments(length):
  batch = {'x': np.ones((jax.local_device_count(), length), np.float32)}
  return batch, parallel.broadcast(np.float32(2))


def test_what_was_compiled_ahead_is_not_compiled_again():
  step, traces = make_step()
  state = parallel.replicate(np.float32(1))
  with Compilers() as compilers:
    for length in (3, 4, 3):
      step.compile_ahead(compilers, parallel.replicated_shapes(np.float32(1)), *arguments(length))
    for length in (3, 4, 3):
      state, mean = step(state, *arguments(length))
  assert sorted(traces) == [(3,), (4,)]
  assert (parallel.to_host(state), parallel.to_host(mean)) == (21, 15)
  # The batch of the host, or one that lies on the devices: the same program.
  placed = parallel.place(arguments(4)[0])
  state, _ = step(state, placed, parallel.broadcast(np.float32(2)))
  # What nobody foresaw is compiled when it comes.
  state, _ = step(state, *arguments(5))
  assert sorted(traces) == [(3,), (4,), (5,)]
  assert parallel.to_host(state) == 39


def test_a_program_that_cannot_be_compiled_fails_where_it_is_needed():
  step, _ = make_step()
  with Compilers() as compilers:
    batch, rate = {'y': np.ones((2, 3))}, parallel.broadcast(np.float32(2))
    step.compile_ahead(compilers, parallel.replicated_shapes(np.float32(1)), batch, rate)
    with pytest.raises(KeyError, match='x'):
      step(parallel.replicate(np.float32(1)), batch, rate)


def test_a_run_compiles_all_that_it_needs_ahead(shared, tmp_path, monkeypatch):
  # Some batches are in two parts, others, with a longer row among the first, are not.
  monkeypatch.setattr(
    splits, 'plan', lambda *_, **options: Parts((4, 4), (14, options['max_length']))
  )
  forms = collections.Counter()
  call = Step.__call__

  def watched(self, state, *arguments):
    kind = 'train' if arguments[-1].dtype == np.float32 else 'evaluate'
    ahead = compilation._shapes_of(arguments) in self._programs
    forms[kind, len(jax.tree.leaves(arguments[0])), ahead] += 1
    return call(self, state, *arguments)

  monkeypatch.setattr(Step, '__call__', watched)
  fields = {'batch_size': 8, 'num_train_steps': 20, 'eval_frequency': 20}
  assert run_here(shared, tmp_path, **fields) == 0
  assert run_here(shared, tmp_path, test_only=True, **fields) == 0
  assert set(forms) == {('train', 10, True), ('train', 5, True), ('evaluate', 5, True)}
