"""Devices and processes: the only file with pmap, replication and multi-host start-up."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from lra_tasks.data.pipeline import Share
from lra_tasks.signals import exit_code_of, handle_signals
from lra_tasks.training.steps import AXIS

logger = logging.getLogger(__name__)

# Steps, or batches of an evaluation, that the host may be ahead of the devices: enough to keep them
# busy.
RUN_AHEAD = 4
# Variable that tells a run how many share its devices: speeds are then no measure of a model.
SHARED_BY = 'KL_FLAX_RUNS_PER_DEVICE'


def start() -> None:
  """Join the other processes, if this one was launched as one of several.

  That is so where JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID are
  set, or under a cluster manager that `jax.distributed` knows (Slurm, Open MPI, TPU pods).
  """
  if jax.distributed.is_initialized():
    return
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  others = ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  if not address and (given := [name for name in others if name in os.environ]):
    raise ValueError(f'{given[0]} is set, but JAX_COORDINATOR_ADDRESS (host:port) is not')
  sizes = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')  # Of the step: what srun started.
  managed = any(int(os.environ.get(name, '1')) > 1 for name in sizes)
  pod = ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
  if address:
    explicit = {}
    for name in others:
      if name not in os.environ:
        raise ValueError(f'JAX_COORDINATOR_ADDRESS={address} is set, but {name} is not')
      if not os.environ[name].isdecimal():
        raise ValueError(f'{name} must be a whole number, got {os.environ[name]!r}')
      explicit[name[4:].lower()] = int(os.environ[name])
    jax.distributed.initialize(address, heartbeat_timeout_seconds=30, **explicit)
  elif managed or pod:
    jax.distributed.initialize(heartbeat_timeout_seconds=30)
  if jax.process_count() > 1:
    logger.info('Process %d of %d.', jax.process_index(), jax.process_count())
    if not is_primary():  # One voice is enough.
      logging.getLogger('lra_tasks').setLevel(logging.WARNING)


def abandon(error: Exception) -> NoReturn:
  """Leave a run of several processes after a failure, without waiting for the others."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    logger.error('A collective operation failed, most likely because another process stopped.')
  logger.error(
    'Process %d stops, and so will the others: %s. Start all of them again with the same command '
    'to go on.', jax.process_index(), error,
  )  # fmt: skip
  logging.shutdown()
  os._exit(1)  # A regular exit would wait for the lost process at a barrier.


def all_agree(ok: bool) -> bool:
  """Return whether `ok` is true in every process; all of them must ask."""
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def is_primary() -> bool:
  """Return whether this process writes files and talks to the user."""
  return jax.process_index() == 0


def share() -> Share:
  """Return this process's part of every batch."""
  return Share(jax.process_index(), jax.process_count())


def check_batch_size(batch_size: int) -> None:
  """Raise a ValueError unless the batch divides evenly over all devices."""
  count = jax.device_count()
  if batch_size < 1 or batch_size % count:
    near = max(count, batch_size // count * count)
    raise ValueError(
      f'batch_size={batch_size} must be a positive multiple of the number of devices ({count}); '
      f'take {near} or {near + count}'
    )


def num_sharing() -> int:
  """Return how many runs share the devices, this one included."""
  return int(os.environ.get(SHARED_BY, '1'))


def describe_devices() -> str:
  """Return for example '2 x NVIDIA H200'."""
  shared = num_sharing()
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}' + (
    f', shared by {shared} runs' if shared > 1 else ''
  )


def default_dtype() -> str:
  """Return the dtype that computation takes by default: bfloat16 on accelerators."""
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def peak_memory_bytes() -> int | None:
  """Return the largest memory in use so far on one device, or None where it is not counted."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use')


def over_devices(step: Callable[..., Any], *, donate_state: bool = False) -> Callable[..., Any]:
  """Return `step` mapped over all devices of all processes."""
  return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
  """Put a copy on every local device."""
  copies = jax.tree.map(lambda x: np.stack([np.asarray(x)] * jax.local_device_count()), tree)
  return place(copies)


def replicated_shapes(tree: Any) -> Any:
  """Return what `replicate` makes of a tree of arrays or shapes, as `jax.ShapeDtypeStruct`."""
  count = jax.local_device_count()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def place(tree: Any) -> Any:
  """Put arrays [local devices, ...] on the local devices."""
  # Through pmap: arrays placed otherwise would compile every step a second time.
  return _identity()(tree)


@functools.cache
def _identity() -> Callable[[Any], Any]:
  return jax.pmap(lambda tree: tree, axis_name=AXIS)


def broadcast(value: np.generic) -> np.ndarray:
  """Return a number for each local device, of the same dtype."""
  return np.full(jax.local_device_count(), value)


def to_host(tree: Any) -> Any:
  """Return the first device's copy of a replicated tree, as NumPy arrays."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)


def split(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Reshape [b, ...] to [local devices, b per device, ...]."""
  count = jax.local_device_count()
  return {k: v.reshape(count, v.shape[0] // count, *v.shape[1:]) for k, v in batch.items()}


def own_signals() -> list[int]:
  """Return the signals by which this process alone is asked to stop."""
  # Of several processes, JAX's runtime listens to SIGTERM: they must stop together.
  return [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)


class Preemption:
  """Tells when the run was asked to stop: SIGTERM (a scheduler) or SIGINT (Ctrl-C).

  The first signal asks; a second Ctrl-C stops at once. With several processes, JAX's runtime
  makes them agree on the step after which all stop.
  """

  def __init__(self) -> None:
    self.signal: int | None = None
    self._listening = contextlib.ExitStack()

  def __enter__(self) -> Preemption:
    """Listen, until the end of the block."""
    self._listening.enter_context(handle_signals(own_signals(), self._note))
    return self

  def __exit__(self, *error: object) -> None:
    """Give the signals back."""
    self._listening.close()

  def _note(self, number: int, frame: Any) -> None:
    del frame
    if self.signal == signal.SIGINT == number:
      raise KeyboardInterrupt
    self.signal = number
    logger.warning('Saving and stopping; Ctrl-C again stops at once.')
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # The runtime tells the other processes.

  def requested(self, step: int) -> bool:
    """Return whether to stop before taking step `step`; asked once per step by every process."""
    if jax.process_count() == 1:
      return self.pending()
    return multihost_utils.reached_preemption_sync_point(step)

  def pending(self) -> bool:
    """Return whether this process was signalled (never True with several processes)."""
    return jax.process_count() == 1 and self.signal is not None

  @property
  def exit_code(self) -> int:
    """Return 130 after Ctrl-C, else 143, as of a process that SIGTERM ended: it is not finished."""
    return exit_code_of(signal.SIGINT if self.signal == signal.SIGINT else signal.SIGTERM)
