"""How long programs take on this machine, and how long they would have to.

Times are those of several calls in a row, so that the host runs ahead of the device; the floor of a
time follows from the copy bandwidth and the rate of matrix products, measured here too.
"""

from __future__ import annotations

import glob
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from lra_tasks.machine import num_cores

# Calls that are timed as one, at most.
_MOST_CALLS = 1000


class Quantity(NamedTuple):
  """What was measured: one value for each repetition."""

  name: str
  unit: str
  values: tuple[float, ...]

  @property
  def median(self) -> float:
    """Return the median of the repetitions."""
    return statistics.median(self.values)

  def to_dict(self) -> dict[str, Any]:
    """Return values, median and spread, as JSON."""
    low, high = min(self.values), max(self.values)
    return self._asdict() | {'median': self.median, 'min': low, 'max': high}


class Machine(NamedTuple):
  """What this machine can do at best.

  Attributes:
    description: devices, or processors, and versions.
    bandwidth: bytes a second, read and written, of a copy in the device's memory.
    matrix_rate: operations a second of a product of large matrices in `dtype`.
    dtype: bfloat16 on accelerators, float32 on CPUs.
  """

  description: str
  bandwidth: float
  matrix_rate: float
  dtype: str

  def floor(self, num_bytes: float, operations: float = 0.0) -> float:
    """Return the seconds that so much traffic, or so many operations, take at least."""
    return max(num_bytes / self.bandwidth, operations / self.matrix_rate)


def measure_machine(repetitions: int = 5) -> Machine:
  """Measure what programs are to be compared with."""
  accelerator = jax.default_backend() != 'cpu'
  dtype = jnp.bfloat16 if accelerator else jnp.float32
  size, side = (2**28, 8192) if accelerator else (2**23, 1024)
  x = jnp.ones(size, jnp.float32)
  # A negative, since XLA would not copy what it can pass on.
  copy = statistics.median(time_calls(jax.jit(jnp.negative), x, repetitions=repetitions))
  a = jnp.ones((side, side), dtype)
  product = statistics.median(time_calls(jax.jit(jnp.matmul), a, a, repetitions=repetitions))
  rates = 2 * x.nbytes / copy, 2 * side**3 / product
  return Machine(describe_machine(), *rates, jnp.dtype(dtype).name)


def describe_machine() -> str:
  """Return for example '1 x NVIDIA H200, jax 0.11.2' or '2 CPU cores (x86_64), load 0.8, ...'."""
  if jax.default_backend() == 'cpu':
    hardware = f'{num_cores()} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}'
  else:
    hardware = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  return f'{hardware}, jax {jax.__version__}'


def time_calls(
  function: Callable[..., Any], *arguments: Any, repetitions: int, seconds: float = 0.2
) -> tuple[float, ...]:
  """Return the seconds that a call takes, one value for each repetition.

  Args:
    function: compiled by its first call, which is not counted.
    *arguments: of the call.
    repetitions: how many values are wanted.
    seconds: that the calls of one repetition are to take in all.
  """
  return time_loop(lambda: function(*arguments), repetitions=repetitions, seconds=seconds)


def time_loop(
  call: Callable[[], Any], *, repetitions: int, seconds: float = 0.2
) -> tuple[float, ...]:
  """Return the same for a call that changes something, such as a training step."""
  jax.block_until_ready(call())
  estimate = _time_once(call, 1)
  count = min(_MOST_CALLS, max(1, math.ceil(seconds / max(estimate, 1e-9))))
  return tuple(_time_once(call, count) for _ in range(repetitions))


def _time_once(call, count):
  start = time.perf_counter()
  for _ in range(count):
    out = call()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / count


def device_time(call: Callable[[], Any], count: int = 3) -> float | None:
  """Return the seconds of all kernels of a call on the first GPU, by JAX's profiler; else None."""
  if jax.default_backend() != 'gpu':
    return None
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(count):
        out = call()
      jax.block_until_ready(out)
    (path,) = glob.glob(f'{directory}/**/*.xplane.pb', recursive=True)
    planes = [
      p for p in jax.profiler.ProfileData.from_file(path).planes if '/device:GPU:0' in p.name
    ]
    events = [e for p in planes for line in p.lines if 'Stream' in line.name for e in line.events]
  return sum(event.duration_ns for event in events) * 1e-9 / count if events else None


class Compiled(NamedTuple):
  """A compiled program and what its compiler says of it.

  Attributes:
    call: takes the arguments that it was compiled for.
    seconds: that tracing and compilation took, beside others where several are compiled at once.
    temporary_bytes: memory beside arguments and results, on one device.
    all_bytes: memory with arguments and results.
    operations: of matrix products, on one device, those inside fused kernels left out.
    traffic_bytes: read and written by the optimised program, by XLA's count.
  """

  call: Callable[..., Any]
  seconds: float
  temporary_bytes: int
  all_bytes: int
  operations: float
  traffic_bytes: float


def compile_program(function: Any, *arguments: Any) -> Compiled:
  """Compile what `jax.jit` or `jax.pmap` returned for these arguments."""
  start = time.perf_counter()
  lowered = function.lower(*arguments)
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  temporary = memory.temp_size_in_bytes
  whole = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  traffic = (compiled.cost_analysis() or {}).get('bytes accessed', 0.0)
  operations = count_operations(jax.make_jaxpr(function)(*arguments).jaxpr)
  return Compiled(compiled, seconds, temporary, whole + temporary, operations, traffic)


def count_operations(jaxpr: jax.extend.core.Jaxpr) -> float:
  """Return the additions and multiplications of a program's matrix products.

  XLA's own count misses those that it leaves to libraries, and whole programs of `jax.pmap`. Loops
  whose length is not known count once, branches as the first of them.

  >>> count_operations(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 5))).jaxpr)
  60.0
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      size = math.prod(shape[axis] for axis in contracted)
      total += 2.0 * size * math.prod(equation.outvars[0].aval.shape)
    inside = sum(map(count_operations, _programs_in(equation)))
    total += inside * (equation.params['length'] if equation.primitive.name == 'scan' else 1)
  return total


def _programs_in(equation):
  """Return the programs among the parameters of an equation; of branches, the first."""
  params = dict(equation.params)
  if equation.primitive.name == 'cond':
    params['branches'] = params['branches'][:1]
  for value in jax.tree.leaves(tuple(params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
    if hasattr(value, 'eqns'):
      yield getattr(value, 'jaxpr', value)


def is_out_of_memory(error: Exception) -> bool:
  """Return whether XLA failed for lack of memory."""
  return isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
