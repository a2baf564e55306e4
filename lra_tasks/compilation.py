"""When programs are compiled: never twice, and before they are needed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from lra_tasks import machine


def set_up() -> None:
  """Keep compiled programs on disk, so that a restarted run starts at once; compile them sooner.

  JAX_COMPILATION_CACHE_DIR names another place. What XLA_FLAGS says stays. To be called before JAX
  is used for the first time.
  """
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    path = os.path.expanduser('~/.cache/kl_flax/compilation')
    jax.config.update('jax_compilation_cache_dir', path)
  flags, name = os.environ.get('XLA_FLAGS', ''), 'xla_gpu_enable_triton_gemm'
  # A step on Text compiles in 28 s instead of 45 s, and takes 11.1 ms instead of 11.5, where matrix
  # products are cuBLAS's (H200, jax 0.11.2). Others than GPUs have no use for the flag.
  cuda = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
  if cuda and name not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} --{name}=false'.strip()


class Compilers:
  """Threads that compile; several where there are cores for them.

  A context manager: at its end what has not begun is given up.
  """

  def __init__(self) -> None:
    # XLA uses several cores for one program. On two, the program that comes first comes soonest.
    self._threads = ThreadPoolExecutor(max(1, machine.num_cores() // 4), 'compiler')

  def __enter__(self) -> Compilers:
    """Return itself."""
    return self

  def __exit__(self, *error: object) -> None:
    """Give up what has not begun."""
    self._threads.shutdown(wait=False, cancel_futures=True)

  def begin(self, function: Any, *arguments: Any) -> Future[Any]:
    """Begin to compile a function, of `jax.jit` or `jax.pmap`, for such arguments."""
    return self._threads.submit(lambda: function.lower(*arguments).compile())


class Step:
  """A step over all devices that may be compiled before its arguments are there.

  Args:
    function: (state, *arguments) -> results, of `parallel.over_devices`. All states have the same
      shapes.
  """

  def __init__(self, function: Callable[..., Any]) -> None:
    self._function = function
    self._programs: dict[Any, Future[Any]] = {}

  def compile_ahead(self, compilers: Compilers, state: Any, *arguments: Any) -> None:
    """Begin to compile for arguments of such shapes, unless that was done: in the background."""
    shapes = _shapes_of(arguments)
    if shapes not in self._programs:
      self._programs[shapes] = compilers.begin(self._function, state, *arguments)

  def __call__(self, state: Any, *arguments: Any) -> Any:
    """Take the step: with a program that was compiled ahead, once it is there, if there is one."""
    program = self._programs.get(_shapes_of(arguments))
    function = self._function if program is None else program.result()
    return function(state, *arguments)


def _shapes_of(arguments: Any) -> tuple[tuple[int, ...], ...]:
  return tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
