import importlib.util
import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import ROOT, run_here

from lra_tasks import parallel
from lra_tasks.data.parts import Parts
from lra_tasks.training import compilation, splits
from lra_tasks.training.compilation import Compilers, Step
from lra_tasks.training.programs import Programs


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
  compilation.choose_products()
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


def test_what_was_compiled_ahead_is_not_compiled_again(monkeypatch):
  begun, begin = [], Compilers.begin
  monkeypatch.setattr(Compilers, 'begin', lambda *given: begun.append(given) or begin(*given))
  step, traces = make_step()
  state = parallel.replicate(np.float32(1))
  with Compilers(8) as compilers:
    for length in (3, 4, 3):
      step.compile_ahead(compilers, parallel.replicated_shapes(np.float32(1)), *arguments(length))
    assert len(begun) == 2
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
  with Compilers(1) as compilers:
    batch, rate = {'y': np.ones((2, 3))}, parallel.broadcast(np.float32(2))
    step.compile_ahead(compilers, parallel.replicated_shapes(np.float32(1)), batch, rate)
    with pytest.raises(KeyError, match='x'):
      step(parallel.replicate(np.float32(1)), batch, rate)


class Slow:
  """A function that is being compiled until it may end."""

  def __init__(self):
    self.begun, self.may_end = threading.Event(), threading.Event()

  def lower(self):
    self.begun.set()
    assert self.may_end.wait(60)
    return self

  def compile(self):
    return 'program'


def test_what_has_not_begun_is_given_up(monkeypatch):
  codes = []
  monkeypatch.setattr(os, '_exit', codes.append)
  first, second = Slow(), Slow()
  with Compilers(7) as compilers:  # One thread.
    programs = [compilers.begin(function) for function in (first, second)]
    first.begun.wait(60)
  assert compilation.is_busy()
  compilation.leave(143)
  assert codes == [143]
  first.may_end.set()
  assert programs[0].result(60) == 'program'
  assert programs[1].cancelled()
  assert not compilation.is_busy()
  assert compilation.leave(130) == 130
  assert codes == [143]


def test_a_process_ends_while_it_compiles():
  program = """
import logging, sys, time
from lra_tasks.training import compilation
class Slow:
  def lower(self):
    time.sleep(120)
with compilation.Compilers(4) as compilers:
  compilers.begin(Slow())
print('said')
sys.exit(compilation.leave(143))
"""
  found = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT, timeout=60
  )
  assert (found.returncode, found.stdout, found.stderr) == (143, 'said\n', '')


def test_several_processes_compile_in_one_order(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  # Nothing of a run is looked at.
  assert Programs.compile_ahead(None, compilers=None, splits=None, trains=True) is None


def watch(monkeypatch):
  """Return what is compiled ahead and what is taken, as they come: kind, rows and lengths."""
  ahead, taken = [], []
  begin, call = Step.compile_ahead, Step.__call__

  def form(batch, number):
    parts = batch if isinstance(batch, tuple) else (batch,)
    kind = 'train' if number.dtype == np.float32 else 'evaluate'
    sizes = [part['inputs'].shape for part in parts]
    return kind, *((devices * rows, length) for devices, rows, length in sizes)

  def watched_begin(self, compilers, state, *arguments):
    ahead.append(form(*arguments))
    begin(self, compilers, state, *arguments)

  def watched_call(self, state, *arguments):
    taken.append(form(*arguments))
    return call(self, state, *arguments)

  monkeypatch.setattr(Step, 'compile_ahead', watched_begin)
  monkeypatch.setattr(Step, '__call__', watched_call)
  return ahead, taken


def test_a_run_compiles_ahead_what_it_needs_and_nothing_else(shared, tmp_path, monkeypatch):
  # Some batches are in two parts, others, with a longer row among the first, are not.
  monkeypatch.setattr(
    splits, 'plan', lambda *_, **options: Parts((4, 4), (14, options['max_length']))
  )
  fields = {'batch_size': 8, 'num_train_steps': 20, 'eval_frequency': 20}
  ahead, taken = watch(monkeypatch)
  assert run_here(shared, tmp_path, **fields) == 0
  trained = [('train', (4, 14), (4, 64)), ('train', (8, 64))]
  assert ahead == [*trained, ('evaluate', (8, 64))]
  assert set(taken) == set(ahead)
  # The test alone is left, of a finished run or of one that was stopped before it.
  ahead.clear()
  assert run_here(shared, tmp_path, test_only=True, **fields) == 0
  (tmp_path / 'results.json').unlink()
  assert run_here(shared, tmp_path, **fields) == 0
  assert ahead == [('evaluate', (8, 64))] * 2


@pytest.mark.parametrize('busy', [False, True])
def test_speed_is_measured_when_nothing_is_compiled(shared, tmp_path, monkeypatch, busy):
  monkeypatch.setattr(compilation, 'is_busy', lambda: busy)
  assert run_here(shared, tmp_path, num_train_steps=20, eval_frequency=10) == 0
  first, second = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
  assert (first['steps_per_second'] is None) == busy
  assert second['steps_per_second'] > 0
