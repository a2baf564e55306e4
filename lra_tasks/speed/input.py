"""What the input pipeline delivers by itself, in one process, with nobody else at work on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lra_tasks import configuration, tasks
from lra_tasks.console import show_progress
from lra_tasks.data import pipeline
from lra_tasks.speed.cases import Case, Measurements, Setting
from lra_tasks.speed.timing import Quantity

_WARM_UP = 16  # Batches: more than the pipeline prepares ahead.


def measure_input(setting: Setting) -> Measurements:
  """Measure the batches for training that one process reads, pads and batches in a second."""
  builder, fields = setting.prepare_data(), setting.configs[0]
  spec = tasks.get_task(fields['task'])
  tokenizer = tasks.tokenizer_of(spec, builder)

  def repeat() -> dict[tuple[str, str], float]:
    start = time.perf_counter()
    source = tasks.read(spec, builder, 'train', tokenizer, fields['max_length'])
    memory = _reset_peak_memory()
    batches = pipeline.train_batches(
      source,
      batch_size=fields['batch_size'],
      max_length=fields['max_length'],
      num_inputs=spec.num_inputs,
      masking=configuration.masking(fields, tokenizer),
      seed=fields['random_seed'],
      share=pipeline.Share(),
    )
    (batch,) = next(batches)
    values = {('time to the first batch', 's'): time.perf_counter() - start}
    values |= _measure_rates(batches, setting.seconds, fields['batch_size'], _size(batch))
    if memory is not None:
      # Of this repetition; what an earlier one has freed may be used again, unseen. The system
      # counts by batches of pages: where little was needed, the difference can be below 0.
      values['memory above that of the open data', 'MB'] = max(0, _peak_memory() - memory) / 1e6
    return values

  repeat()  # From here on the files are in the system's cache, and the modules loaded.
  found = []
  with show_progress('measuring', setting.repetitions) as advance:
    for _ in range(setting.repetitions):
      found.append(repeat())
      advance(1)
  shape = f'{fields["batch_size"]} × {fields["max_length"]:,}'
  quantities = [Quantity(*key, tuple(values[key] for values in found)) for key in found[0]]
  examples = len(builder.as_data_source('train'))
  subject = f'{builder.info.full_name}, {examples:,} examples, batches of {shape}'
  return Measurements(subject, (Case({}, tuple(quantities)),))


def _measure_rates(
  batches: Iterator[tuple[pipeline.Batch, ...]], seconds: float, examples: int, size: int
) -> dict[tuple[str, str], float]:
  """Take batches for some seconds and return what comes in a second."""
  for _ in range(_WARM_UP):
    next(batches)
  count, start, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - start < seconds:
    next(batches)
    count += 1
  elapsed = time.perf_counter() - start
  return {
    ('batches', '1/s'): count / elapsed,
    ('examples', '1/s'): count * examples / elapsed,
    ('arrays', 'MB/s'): count * size / elapsed / 1e6,
    ('CPU cores in use', ''): (time.process_time() - cpu) / elapsed,
  }


def _size(batch: pipeline.Batch) -> int:
  return sum(array.nbytes for array in batch.values())


def _reset_peak_memory() -> int | None:
  """Begin to count the peak of resident memory anew, from the value returned, in bytes.

  Returns None where the system cannot do that (others than Linux).
  """
  try:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')
    return _peak_memory()
  except OSError:
    return None


def _peak_memory() -> int:
  with open('/proc/self/status') as file:
    (line,) = (line for line in file if line.startswith('VmHWM:'))
  return int(line.split()[1]) * 1024
