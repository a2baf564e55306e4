"""Train and evaluate one model on one task.

  python -m lra_tasks.train --config=configs/listops.py:gmm_prf --model_dir=runs/gmm_prf

The same command continues a run that was stopped, at the step that it had reached.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from kl_flax.models import get_row, ignores_padding, make_model
from lra_tasks import configuration, optimizer, parallel, rundir, steps, tasks
from lra_tasks.checkpoint import Checkpoints
from lra_tasks.console import set_up_logging
from lra_tasks.data import datasets, pipeline
from lra_tasks.files import write_json
from lra_tasks.finished import Run, read_folder
from lra_tasks.loop import Loop, NonFiniteLossError, evaluate
from lra_tasks.pretrained import Pretrained
from lra_tasks.run_log import RunLog
from lra_tasks.tasks import get_task

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/TASK.py:MODEL[,PRESET], or an original LRA file.', lock_config=True
)
_MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'Directory of the run; a run that lies there is continued.'
)
tasks.define_data_flags(flags.FLAGS)
flags.adopt_module_key_flags(tasks)  # For --help.
_INIT_FROM = flags.DEFINE_string(
  'init_from', None, 'Directory of a run whose encoder this one starts with; the head is new.'
)
_TEST_ONLY = flags.DEFINE_bool('test_only', False, 'Only evaluate the run on the test split.')

# Not __name__: this file runs as __main__.
logger = logging.getLogger('lra_tasks.train')


def train(
  fields: dict[str, Any],
  *,
  model_dir: str,
  data_dir: str,
  source: str | None = None,
  task_name: str | None = None,
  init_from: str | None = None,
  test_only: bool = False,
) -> int:
  """Run, or continue, the training that a resolved config defines.

  Args:
    fields: from `configuration.resolve`.
    model_dir: the run's directory; README lists its files.
    data_dir: where prepared data sets are kept.
    source: raw data to prepare from.
    task_name: LRA's name of the data set within the task.
    init_from: directory of a run whose encoder this one starts with; need not be named again.
    test_only: only evaluate the best checkpoint on the test split.

  Returns:
    The exit code: 0 when finished or preempted while training, 130 after Ctrl-C.

  Raises:
    ValueError: for impossible settings, or a model_dir that holds another run.
    OSError: for directories that cannot be used.
    NonFiniteLossError: when the loss is no longer finite; the last good checkpoint stays.
  """
  started = time.monotonic()
  # All that the config tells, before any data is prepared, which may take hours.
  if test_only and not os.path.exists(os.path.join(model_dir, 'config.json')):
    raise ValueError(f'--test_only: {model_dir} holds no checkpoint to evaluate')
  parallel.start()
  parallel.check_batch_size(fields['batch_size'])
  resume = fields['restore_checkpoints'] or test_only
  task_name = task_name or rundir.stored_task_name(model_dir)
  origin = Pretrained(init_from) if init_from else rundir.stored_origin(model_dir)
  fields = fields | {'pretrained': origin.label if origin else ''}
  rundir.check_run(model_dir, fields, source, resume=resume)
  finished = read_folder(Path(model_dir))
  if isinstance(finished, Run) and not test_only:
    _say_finished(finished, fields)
    return 0
  if fields['dtype'] == 'auto':  # A run goes on as it began, on any device.
    dtype = rundir.stored_dtype(model_dir) or parallel.default_dtype()
    fields = fields | {'dtype': dtype}
  spec = get_task(fields['task'])
  tokenizer = origin.tokenizer if origin else None
  steps.count_parameters(make_model(**configuration.model_arguments(fields, tokenizer=tokenizer)))

  # Data: prepared once per machine, then read in equal shares by all processes.
  with datasets.interruptible(parallel.own_signals()):
    builder = configuration.open_data(fields, data_dir=data_dir, source=source, task_name=task_name)
    datasets.prepare(builder)
  tokenizer = tasks.tokenizer_of(spec, builder, tokenizer)
  read = lambda split: tasks.read(spec, builder, split, tokenizer, fields['max_length'])
  shapes = {name: fields[name] for name in ('batch_size', 'max_length')}
  shapes |= {'num_inputs': spec.num_inputs, 'masking': configuration.masking(fields, tokenizer)}
  shapes['share'] = parallel.share()
  data = pipeline.train_batches(read('train'), seed=fields['random_seed'], **shapes)
  arguments = configuration.model_arguments(fields, builder.num_classes, tokenizer)
  model = make_model(**arguments)
  shapes['trim'] = ignores_padding(model)
  validation = pipeline.Evaluation(
    read('validation'), num_batches=fields['num_eval_steps'], **shapes
  )
  test = pipeline.Evaluation(read('test'), **shapes)

  with contextlib.ExitStack() as stack:
    # From here on a signal asks to save and stop; before, there is nothing to save.
    preemption = stack.enter_context(parallel.Preemption())

    # Optimiser and state: a function of the config alone, as the model.
    schedule, adamw = optimizer.of_config(fields)
    init = jax.jit(functools.partial(steps.init_state, model, adamw))
    state = init(seed=np.uint32(fields['random_seed']))

    # The run's directory, and what lies there.
    description = rundir.describe(
      fields,
      arguments,
      spec,
      builder,
      tokenizer,
      from_source=source is not None,
      task_name=task_name,
      init_from=origin.model_dir if origin else None,
    )
    description = stack.enter_context(
      rundir.open_run(model_dir, description, state, tokenizer, resume=resume, write=not test_only)
    )
    checkpoints = Checkpoints(os.path.join(model_dir, 'checkpoints'), fields['keep_accuracies'])
    stack.callback(checkpoints.close)
    restored = checkpoints.restore_newest(state, data)
    if restored is None and test_only:
      raise ValueError(f'--test_only: {model_dir} holds no checkpoint to evaluate')
    if restored is None and origin:
      if not isinstance(origin, Pretrained):
        raise ValueError(f'{model_dir} holds no checkpoint to go on from: give --init_from again')
      state = state.replace(params=origin.start(state.params, fields['max_length']))
    step, state = restored or (0, state)
    if step:
      logger.info('Continuing at step %d of %d.', step, fields['num_train_steps'])
    log = RunLog(model_dir, step, started, write=parallel.is_primary() and not test_only)
    stack.callback(log.close)
    state = parallel.replicate(state)

    # Training.
    train_step = parallel.over_devices(
      functools.partial(
        steps.train_step, model=model, optimizer=adamw, resample_every=fields['resample_every']
      ),
      donate_state=True,
    )
    eval_step = lambda samples: parallel.over_devices(
      functools.partial(steps.eval_step, model=model, num_samples=samples)
    )
    validation_step = eval_step(1)
    loop = Loop(
      fields=fields,
      train_step=train_step,
      validate=lambda state: evaluate(validation_step, state, validation, preemption.pending),
      schedule=schedule,
      checkpoints=checkpoints,
      log=log,
      preemption=preemption,
    )
    if not test_only:
      step, state, at_end = loop.run(step, state, data)
      if not at_end:
        logger.info('Stopped at step %d; the same command goes on from there.', step)
        return preemption.exit_code

    # The test split is read here, once, with the parameters that were best on validation.
    best = checkpoints.best_step()
    if best is not None:
      state = parallel.replicate(checkpoints.restore(best, parallel.to_host(state)))
    samples = fields['eval_samples'] if _is_stochastic(fields) else 1
    step_fn = validation_step if samples == 1 else eval_step(samples)
    sums = evaluate(step_fn, state, test, preemption.pending)
    if sums is None:
      logger.info('Stopped before the test; the same command goes on from there.')
      return preemption.exit_code
    found = rundir.results(
      description, sums, log.records, split='test', steps=step, best_step=best, eval_samples=samples
    )
    path = os.path.join(model_dir, 'results.json')
    if parallel.is_primary():
      write_json(path, found)
    logger.info(
      'Test accuracy %.2f %% on %d examples (%.2f %% by always answering the commonest class): %s',
      100 * found['accuracy'], found['examples'], 100 * found['majority_class'], path,
    )  # fmt: skip
    return 0


def _is_stochastic(fields: dict[str, Any]) -> bool:
  options = configuration.model_arguments(fields)['attention']
  return get_row(fields['model_type']).is_stochastic(options)


def _say_finished(run: Run, fields: dict[str, Any]) -> None:
  logger.info('This run is finished; its results are in %s.', run.path)
  if _is_stochastic(fields) and run.eval_samples != fields['eval_samples']:
    logger.warning(
      'It was evaluated with eval_samples=%d; --test_only evaluates it with %d.',
      run.eval_samples, fields['eval_samples'],
    )  # fmt: skip


def main(argv: list[str]) -> int:
  """Parse the flags, run, and turn errors into messages and exit codes."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  for flag in (_CONFIG, _MODEL_DIR):
    if flag.value is None:
      raise app.UsageError(f'--{flag.name} is required')
  set_up_logging()
  parallel.enable_compilation_cache()
  values = flags.FLAGS
  try:
    return train(
      configuration.resolve(_CONFIG.value, values.task),
      model_dir=_MODEL_DIR.value,
      data_dir=values.data_dir,
      source=values.source,
      task_name=values.task_name,
      init_from=_INIT_FROM.value,
      test_only=_TEST_ONLY.value,
    )
  except KeyboardInterrupt:
    print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
    return 130
  except Exception as error:
    if jax.process_count() > 1:
      parallel.abandon(error)
    expected = isinstance(error, (ValueError, OSError, NonFiniteLossError))
    if not expected or flags.FLAGS.verbosity > 0:
      raise
    print(f'error: {error} (--verbosity=1 shows where)', file=sys.stderr)
    return 1


if __name__ == '__main__':
  app.run(main, flags_parser=configuration.parse_flags)
