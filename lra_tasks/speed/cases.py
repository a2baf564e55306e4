"""What can be measured of models: attention alone, whole training steps, predictions.

Each kind is a function from a `Setting` to `Measurements`. Inputs are random: frequent and rare
tokens, sequences from a quarter to the whole of the length.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kl_flax.attention import KernelAttention, kernel_attention
from kl_flax.kernels import kernel_info
from kl_flax.models import AttentionFactory, make_classifier, make_model
from kl_flax.parameters import init_params
from kl_flax.predictor import Predictor
from kl_flax.spectral import as_weighted
from lra_tasks import configuration, optimizer, parallel
from lra_tasks.console import show_progress
from lra_tasks.data import datasets
from lra_tasks.machine import num_cores
from lra_tasks.speed.timing import (
  Compiled,
  Machine,
  Quantity,
  compile_program,
  device_time,
  is_out_of_memory,
  time_calls,
  time_loop,
)
from lra_tasks.tasks import TrainedVocabulary, get_task
from lra_tasks.training import steps


class Case(NamedTuple):
  """One thing that was measured.

  Attributes:
    labels: what tells it from the others.
    quantities: what was found; none if it failed.
    note: why it failed.
  """

  labels: dict[str, Any]
  quantities: tuple[Quantity, ...]
  note: str = ''

  def median(self, name: str) -> float | None:
    """Return the median of a quantity, None if there is none of that name."""
    return next((q.median for q in self.quantities if q.name == name), None)


class Measurements(NamedTuple):
  """Cases, and what they have in common."""

  subject: str
  cases: tuple[Case, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is to be measured, and how long.

  Attributes:
    configs: the resolved config of each model; the first one is that of the input pipeline.
    lengths: of sequences; the configs' own if there are none.
    batch_sizes: likewise.
    tokens: in a batch, if no batch sizes are given; attention alone is measured on as many as the
      first config has, by default.
    dtypes: of the computation.
    data_dir, source, task_name: where the data is, as for training.
    repetitions: of each measurement.
    seconds: that one repetition takes.
    keep: called with all that was found after each case.

  Raises:
    ValueError: if there is nothing to repeat, or a size is not positive.
  """

  configs: Sequence[Mapping[str, Any]]
  lengths: Sequence[int] = ()
  batch_sizes: Sequence[int] = ()
  tokens: int | None = None
  dtypes: Sequence[str] = ('float32',)
  data_dir: str = ''
  source: str | None = None
  task_name: str | None = None
  repetitions: int = 5
  seconds: float = 0.5
  keep: Callable[[Measurements], None] = lambda found: None

  def __post_init__(self) -> None:
    """Check the values."""
    if self.repetitions < 1 or not self.seconds > 0:
      raise ValueError(
        'repetitions must be at least 1 and seconds above 0, got '
        f'{self.repetitions} and {self.seconds}'
      )
    sizes = {'lengths': self.lengths, 'batch_sizes': self.batch_sizes, 'tokens': [self.tokens or 1]}
    for name, values in sizes.items():
      if any(value < 1 for value in values):
        raise ValueError(f'{name} must be at least 1, got {", ".join(map(str, values))}')
    for dtype in self.dtypes:
      if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtypes must be 'float32' or 'bfloat16', got {dtype!r}")

  def prepare_data(self) -> datasets.Builder:
    """Return the builder of the data, which is on disk."""
    builder = configuration.open_data(
      self.configs[0], data_dir=self.data_dir, source=self.source, task_name=self.task_name
    )
    datasets.prepare(builder)
    return builder

  def cases(self) -> Iterator[dict[str, Any]]:
    """Return the config of each case; of what differs, the model comes last."""
    lengths, sizes = self.lengths or [None], self.batch_sizes or [None]
    for dtype, length, size in itertools.product(self.dtypes, lengths, sizes):
      for fields in self.configs:
        whole = length or fields['max_length']
        default = max(1, self.tokens // whole) if self.tokens else fields['batch_size']
        yield dict(fields, dtype=dtype, max_length=whole, batch_size=size or default)


def _measure_cases(
  setting: Setting,
  prepare: Callable[[Setting, dict[str, Any]], Callable[[], list[Quantity]]],
  subject: str,
) -> Measurements:
  """Measure all cases, one by one; one that cannot run is a result like the others.

  Args:
    setting: has the cases.
    prepare: compiles what a case needs and returns what measures it. Programs are compiled ahead,
      several at a time: a training step takes half a minute.
    subject: of the measurements.

  Raises:
    ValueError: if none can run.
  """
  found: dict[str, Case] = {}
  todo, errors = _distinct(setting.cases()), []
  prepared = _prepare_all(functools.partial(prepare, setting), todo)
  with show_progress('measuring', len(todo)) as advance:
    for name, fields in todo.items():
      labels = {}
      try:
        labels = labels_of(fields)
        measure = prepared.pop(name).result()
        found[name] = Case(labels, tuple(measure()))
      except ValueError as error:
        errors.append(error)
        labels = labels or {name: fields[name] for name in _LABELS}
        found[name] = Case(labels, (), str(error))
      except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
          raise
        found[name] = Case(labels, (), 'out of memory')
      setting.keep(Measurements(subject, tuple(found.values())))
      advance(1)
  if errors and not any(case.quantities for case in found.values()):
    raise errors[0]
  return Measurements(subject, tuple(found.values()))


def _prepare_all(prepare, todo):
  """Compile all cases before any is measured, which wants the machine for itself."""
  pool = concurrent.futures.ThreadPoolExecutor(max(1, num_cores() // 4))
  try:
    prepared = {name: pool.submit(prepare, fields) for name, fields in todo.items()}
    with show_progress('compiling', len(todo)) as advance:
      for _ in concurrent.futures.as_completed(prepared.values()):
        advance(1)
  finally:
    pool.shutdown(cancel_futures=True)
  return prepared


def _distinct(cases: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Return the cases by name, those that are one program once."""
  found = {}
  for fields in cases:
    try:
      name = str(labels_of(fields))
    except ValueError:  # Of an implementation that cannot run.
      name = str(fields)
    found.setdefault(name, fields)
  return found


_LABELS = ('model_type', 'max_length', 'batch_size', 'dtype')
# Cases that differ in these are different models, whatever they mix positions with.
_SIZES = ('num_layers', 'emb_dim', 'num_heads', 'qkv_dim', 'mlp_dim')


def labels_of(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Return what tells a case from others: its config, and the program that attention is.

  Raises:
    ValueError: if the implementation that was asked for cannot run.
  """
  labels = {name: fields[name] for name in _LABELS}
  labels['sizes'] = {name: fields[name] for name in _SIZES}
  module = _attention(fields)
  if not isinstance(module, KernelAttention):
    return labels
  heads, dim = fields['num_heads'], fields['qkv_dim'] // fields['num_heads']
  x = jax.ShapeDtypeStruct(
    (fields['batch_size'], fields['max_length'], heads, dim), fields['dtype']
  )
  omega, options = None, {'features': module.features, 'smoothing': module.effective_smoothing}
  if module.sampler is not None:
    labels['num_frequencies'] = module.sampler.num_frequencies
    omega = jax.ShapeDtypeStruct((heads, module.sampler.num_frequencies, dim), jnp.float32)
  info = kernel_info(
    x, x, x, omega, causal=module.causal, implementation=module.implementation, **options
  )
  return labels | {'program': info.implementation}


def _attention(fields: Mapping[str, Any]) -> Any:
  """Return the mechanism of a config, a module."""
  arguments = configuration.model_arguments(fields)
  length, options = fields['max_length'], arguments['attention']
  return AttentionFactory.of(arguments['model_type'], length, options)()


def _milliseconds(name: str, seconds: Sequence[float]) -> Quantity:
  return Quantity(name, 'ms', tuple(1e3 * value for value in seconds))


def _single(name: str, unit: str, value: float | None) -> list[Quantity]:
  return [] if value is None else [Quantity(name, unit, (value,))]


# Attention alone.


def measure_op(setting: Setting, machine: Machine) -> Measurements:
  """Measure attention without its projections, forward and with all gradients.

  Frequencies are drawn beforehand; the gradient is taken with respect to them too. No position is
  masked, so that softmax attention can show what it can do.
  """
  fields = setting.configs[0]
  heads, width = fields['num_heads'], fields['qkv_dim'] // fields['num_heads']
  if not setting.batch_sizes:
    tokens = setting.tokens or fields['batch_size'] * fields['max_length']
    setting = dataclasses.replace(setting, tokens=tokens)
  prepare = functools.partial(_prepare_op, machine=machine)
  return _measure_cases(setting, prepare, f'attention alone, {heads} heads of {width}')


def _prepare_op(setting, fields, machine):
  heads, length, batch = fields['num_heads'], fields['max_length'], fields['batch_size']
  dim = fields['qkv_dim'] // heads
  shape = (batch, length, heads, dim)
  attend, parameters = _operation(fields, heads, dim)

  def both(parameters, query, key, value, gradient):
    out, pull = jax.vjp(attend, parameters, query, key, value)
    return out, pull(gradient)

  x = jax.ShapeDtypeStruct(shape, fields['dtype'])
  forward = compile_program(jax.jit(attend), parameters, x, x, x)
  backward = compile_program(jax.jit(both), parameters, x, x, x, x)
  return lambda: _measure_op(
    setting, shape, fields['dtype'], forward, backward, parameters, machine
  )


def _measure_op(setting, shape, dtype, forward, backward, parameters, machine):
  keys = jax.random.split(jax.random.key(0), 4)
  draw = jax.jit(lambda key: jax.random.normal(key, shape, dtype))
  query, key, value, gradient = map(draw, keys)
  inputs = (parameters, query, key, value)
  timing = {'repetitions': setting.repetitions, 'seconds': setting.seconds}
  quantities = [
    _milliseconds('forward', time_calls(forward.call, *inputs, **timing)),
    _milliseconds('forward + backward', time_calls(backward.call, *inputs, gradient, **timing)),
  ]
  # Queries, keys, values, output; with gradients the output's and three more.
  traffic = 4 * query.nbytes, 8 * query.nbytes
  for program, name, least, call in (
    (forward, 'forward', traffic[0], lambda: forward.call(*inputs)),
    (backward, 'forward + backward', traffic[1], lambda: backward.call(*inputs, gradient)),
  ):
    quantities += _of_program(name, program, machine.floor(least), device_time(call))
  return quantities


def _of_program(
  name: str, program: Compiled, floor: float, on_device: float | None
) -> list[Quantity]:
  """Return what there is to say of a program beside its time."""
  return [
    *_single(f'{name}, kernels', 'ms', None if on_device is None else 1e3 * on_device),
    *_single(f'{name}, floor', 'ms', 1e3 * floor),
    *_single(f'{name}, temporary memory', 'MiB', program.temporary_bytes / 2**20),
    *_single(f'{name}, compilation', 's', program.seconds),
  ]


def _operation(fields, heads, dim):
  """Return attention as a function of parameters and inputs, and its parameters."""
  module = _attention(fields)
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  if not isinstance(module, KernelAttention):
    small = jnp.zeros((1, 8, heads, dim), fields['dtype'])
    variables = module.init(rngs, small, small, small)
    return lambda v, *inputs: module.apply(v, *inputs), variables
  omega, log_weight = None, None
  if module.sampler is not None:
    sampler = module.sampler.clone(parent=None, name=None)
    drawn, _ = sampler.init_with_output(rngs, heads, dim)
    omega, log_weight = as_weighted(drawn)

  def attend(parameters, query, key, value):
    omega, log_weight = parameters
    return kernel_attention(
      query,
      key,
      value,
      omega,
      features=module.features,
      smoothing=module.effective_smoothing,
      log_weight=log_weight,
      implementation=module.implementation,
    )

  return attend, (omega, log_weight)


# Training steps.


def measure_step(setting: Setting, machine: Machine) -> Measurements:
  """Measure training steps over all devices, from a batch in host memory to the new state."""
  prepare = functools.partial(_prepare_step, machine=machine)
  devices = parallel.describe_devices()
  return _measure_cases(
    setting, prepare, f'training steps of {setting.configs[0]["task"]}, {devices}'
  )


def _prepare_step(setting, fields, machine):
  parallel.check_batch_size(fields['batch_size'])
  model = make_model(**configuration.model_arguments(fields))
  _, adamw = optimizer.of_config(fields)
  init_state = functools.partial(steps.init_state, model, adamw, seed=fields['random_seed'])
  init = jax.jit(init_state).lower().compile()
  function = parallel.over_devices(
    functools.partial(
      steps.train_step, model=model, optimizer=adamw, resample_every=fields['resample_every']
    ),
    donate_state=True,
  )
  batch = parallel.split(random_batch(fields))
  one = jax.eval_shape(init_state)
  rate = parallel.broadcast(np.float32(fields['learning_rate']))
  program = compile_program(function, parallel.replicated_shapes(one), (batch,), rate)
  return lambda: _measure_step(
    setting, fields['batch_size'], program, init, ((batch,), rate), machine
  )


def _measure_step(setting, num_examples, program, init, arguments, machine):
  held = [parallel.replicate(init())]

  def step():
    held[0], sums = program.call(held[0], *arguments)
    return sums

  times = time_loop(step, repetitions=setting.repetitions, seconds=setting.seconds)
  examples = tuple(num_examples / value for value in times)
  floor = machine.floor(program.traffic_bytes, program.operations)
  peak = parallel.peak_memory_bytes()
  quantities = [
    _milliseconds('step', times),
    Quantity('examples', '1/s', examples),
    *_of_program('step', program, floor, device_time(step)),
    *_single('step, whole memory', 'MiB', program.all_bytes / 2**20),
    *_single('step, memory traffic', 'GB', program.traffic_bytes / 1e9),
    *_single('step, operations', 'TFLOP', program.operations / 1e12),
    # Of the process: only a case that needs more than all before it shows.
    *_single('peak of the process', 'MiB', peak and peak / 2**20),
  ]
  return quantities


def random_batch(fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Return a batch of the config's sizes in the form of `lra_tasks.data.pipeline`.

  Token i of the vocabulary is drawn in proportion to 1 / i (Zipf's law): the gradient of a table is
  slow where few tokens are frequent.
  """
  random = np.random.default_rng(0)
  spec, size, length = get_task(fields['task']), fields['batch_size'], fields['max_length']
  lead = (size,) if spec.num_inputs == 1 else (size, spec.num_inputs)
  ids = np.arange(1, spec.tokenizer.vocab_size)
  weights = 1 / ids
  lengths = random.integers(math.ceil(length / 4), length, lead, endpoint=True, dtype=np.int32)
  inputs = random.choice(ids, (*lead, length), p=weights / weights.sum()).astype(np.int32)
  inputs *= np.arange(length) < lengths[..., None]
  targets = random.integers(0, max(spec.num_classes, 1), size, dtype=np.int32)
  ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
  batch = {
    'inputs': inputs, 'lengths': lengths, 'targets': targets, 'weights': ones, 'truncated': zeros,
  }  # fmt: skip
  masking = configuration.masking(fields)
  return masking(batch, 0, slice(None), size) if masking else batch


# Predictions.


def measure_inference(setting: Setting, machine: Machine) -> Measurements:
  """Measure calls of `kl_flax.Predictor.predict`, from raw documents of the full length on.

  Where the vocabulary comes with the data, documents are ids.
  """
  del machine
  sizes = setting.batch_sizes or (1, 256)
  setting = dataclasses.replace(setting, batch_sizes=sizes)
  prepare = lambda setting, fields: functools.partial(_measure_inference, setting, fields)
  return _measure_cases(setting, prepare, 'Predictor.predict, documents of full length')


def _measure_inference(setting, fields):
  if fields['objective'] == 'masked':
    raise ValueError("--what=inference is about classifiers, and the config's objective is masked")
  model = make_classifier(**configuration.model_arguments(fields))
  key = jax.random.key(0)
  params = jax.jit(functools.partial(init_params, model))(key, key)
  spec, size = get_task(fields['task']), fields['batch_size']
  predictor = Predictor(model, params, spec.tokenizer, key)
  shape = (size, spec.num_inputs, fields['max_length'])
  ids = np.random.default_rng(0).integers(1, spec.tokenizer.vocab_size, shape)
  # Where the vocabulary comes with the data, there is nothing to tokenise by.
  encoded = isinstance(spec.tokenizer, TrainedVocabulary)
  decode = np.asarray if encoded else spec.tokenizer.decode
  documents = [tuple(map(decode, parts)) for parts in ids]
  documents = [parts[0] if spec.num_inputs == 1 else parts for parts in documents]
  predict = functools.partial(predictor.predict, documents, encoded=encoded)
  start = time.perf_counter()
  predict()
  first = time.perf_counter() - start
  latencies = _latencies(predict, setting)
  return [
    Quantity('documents', '1/s', tuple(size / value for value in latencies)),
    *_single('latency, p50', 'ms', 1e3 * float(np.percentile(latencies, 50))),
    *_single('latency, p99', 'ms', 1e3 * float(np.percentile(latencies, 99))),
    *_single('first call', 's', first),
  ]


def _latencies(call, setting) -> list[float]:
  """Return the seconds of each of the calls that fit into the time, ten or more."""
  found, start = [], time.perf_counter()
  limit = setting.seconds * setting.repetitions
  while len(found) < 10 or time.perf_counter() - start < limit:
    before = time.perf_counter()
    call()
    found.append(time.perf_counter() - before)
  return found
