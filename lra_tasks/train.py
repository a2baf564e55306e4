"""Train and evaluate one model on one task.

  python -m lra_tasks.train --config=configs/listops.py:gmm_prf --model_dir=runs/gmm_prf

Any field of the config can be changed: --config.batch_size=64. The same command continues a run
that was stopped, at the step that it had reached.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from kl_flax.models import make_model
from kl_flax.parameters import parameter_shapes
from lra_tasks import command_line, configuration, data_flags, machine, optimizer, parallel, tasks
from lra_tasks.console import set_up_logging
from lra_tasks.data import datasets, pipeline
from lra_tasks.files import write_json
from lra_tasks.runs import results, rundir
from lra_tasks.runs.checkpoints import RunCheckpoints
from lra_tasks.runs.finished import Run, read_folder
from lra_tasks.runs.log import RunLog
from lra_tasks.runs.origin import Origin, find_origin
from lra_tasks.signals import code_of_interrupt
from lra_tasks.tasks import get_task
from lra_tasks.training import compilation
from lra_tasks.training.evaluation import evaluate
from lra_tasks.training.loop import Loop, NonFiniteLossError
from lra_tasks.training.programs import Programs
from lra_tasks.training.splits import read_splits

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/TASK.py:MODEL[,PRESET], or an original LRA file.', lock_config=True
)
_MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'Directory of the run; a run that lies there is continued.'
)
data_flags.define(flags.FLAGS)
_INIT_FROM = flags.DEFINE_string(
  'init_from', None, 'Directory of a run whose encoder this one starts with; the head is new.'
)
_TEST_ONLY = flags.DEFINE_bool('test_only', False, 'Only evaluate the run on the test split.')

# Not __name__: this file runs as __main__.
logger = logging.getLogger('lra_tasks.train')

_NOTHING_TO_TEST = '--test_only: {} holds no checkpoint to evaluate'


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
    task_name: name of the data set within the task.
    init_from: directory of a run whose encoder this one starts with; need not be named again.
    test_only: only evaluate the best checkpoint on the test split.

  Returns:
    The exit code: 0 when finished, 143 when preempted (SIGTERM), 130 after Ctrl-C.

  Raises:
    ValueError: for impossible settings, or a model_dir that holds another run.
    OSError: for directories that cannot be used.
    NonFiniteLossError: when the loss is no longer finite; the last good checkpoint stays.
  """
  started = time.monotonic()
  parallel.start()
  # All that the config tells comes before any data is prepared, which may take hours.
  fields, origin = _check(fields, model_dir, source, task_name, init_from, test_only)
  if not test_only and _is_finished(fields, model_dir):
    return 0
  fields = _with_dtype(fields, model_dir)
  _check_model(fields, origin)

  task_name = task_name or rundir.stored_task_name(model_dir)
  builder = _prepare_data(fields, data_dir, source, task_name)
  tokenizer = tasks.tokenizer_of(get_task(fields['task']), builder, origin.tokenizer)
  arguments = configuration.model_arguments(fields, builder.num_classes, tokenizer)
  model = make_model(**arguments)
  splits = read_splits(fields, builder, tokenizer, model, test_only)
  description = rundir.describe(
    fields,
    arguments,
    builder,
    tokenizer,
    from_source=source is not None,
    task_name=task_name,
    init_from=origin.model_dir,
  )

  with contextlib.ExitStack() as stack:
    # From here on a signal asks to save and stop; before, there is nothing to save.
    preemption = stack.enter_context(parallel.Preemption())
    schedule, adamw = optimizer.of_config(fields)
    programs = Programs(fields, model, adamw)
    resume, write = _may_resume(fields, test_only), not test_only
    description = stack.enter_context(
      rundir.open_run(
        model_dir, description, programs.state_shapes, tokenizer, resume=resume, write=write
      )
    )
    checkpoints = RunCheckpoints(os.path.join(model_dir, 'checkpoints'), fields['keep_accuracies'])
    stack.callback(checkpoints.close)
    restored = checkpoints.restore_newest(programs.state_shapes, splits.train)
    if restored is None:
      if test_only:
        raise ValueError(_NOTHING_TO_TEST.format(model_dir))
      origin.check_start()
    # All but an unreadable origin was refused by now: what is needed may be compiled.
    compilers = stack.enter_context(
      compilation.Compilers(machine.num_cores() // parallel.num_sharing())
    )
    trains = not test_only and (restored is None or restored[0] < fields['num_train_steps'])
    programs.compile_ahead(compilers, splits, trains)
    step, state = restored or (0, programs.first_state(origin))
    if step:
      logger.info('Continuing at step %d of %d.', step, fields['num_train_steps'])
    log = RunLog(model_dir, step, started, write=parallel.is_primary() and write)
    stack.callback(log.close)
    state = parallel.replicate(state)

    loop = Loop(
      fields=fields,
      train_step=programs.train_step,
      validate=functools.partial(
        evaluate,
        programs.eval_step,
        batches=splits.validation,
        stop=preemption.pending,
        num_samples=_num_draws(fields, 'validation_samples'),
      ),
      schedule=schedule,
      checkpoints=checkpoints,
      log=log,
      preemption=preemption,
      compiling=compilation.is_busy,
      judged_by=configuration.judged_by(fields),
    )
    if not test_only:
      step, state, at_end = loop.run(step, state, splits.train)
      if not at_end:
        logger.info('Stopped at step %d; the same command goes on from there.', step)
        return preemption.exit_code
    return _test(loop, step, state, splits.test, programs.eval_step, description, model_dir)


def _check(
  fields: dict[str, Any],
  model_dir: str,
  source: str | None,
  task_name: str | None,
  init_from: str | None,
  test_only: bool,
) -> tuple[dict[str, Any], Origin]:
  """Refuse what cannot run, as far as the config tells; return the config and what it starts from.

  Raises:
    ValueError: see `train`.
    OSError: if the run that it starts from is not there.
  """
  if test_only and not os.path.exists(os.path.join(model_dir, 'config.json')):
    raise ValueError(_NOTHING_TO_TEST.format(model_dir))
  parallel.check_batch_size(fields['batch_size'])
  origin = find_origin(init_from, model_dir)
  fields = fields | {'pretrained': origin.label}
  resume = _may_resume(fields, test_only)
  rundir.check_run(model_dir, fields, source, task_name, resume=resume, write=not test_only)
  return fields, origin


def _check_model(fields: dict[str, Any], origin: Origin) -> None:
  """Refuse a model that cannot be made, or cannot start with the encoder of the origin."""
  tasks.check_tokenizer(get_task(fields['task']), origin.tokenizer)
  arguments = configuration.model_arguments(fields, tokenizer=origin.tokenizer)
  parameter_shapes(make_model(**arguments))  # What cannot be traced cannot be made.
  origin.check(arguments)


def _may_resume(fields: dict[str, Any], test_only: bool) -> bool:
  return fields['restore_checkpoints'] or test_only


def _is_finished(fields: dict[str, Any], model_dir: str) -> bool:
  """Return whether nothing is left to do, and say so."""
  run = read_folder(Path(model_dir))
  if not isinstance(run, Run):
    return False
  logger.info('This run is finished; its results are in %s.', run.path)
  if configuration.is_stochastic(fields) and run.eval_samples != fields['eval_samples']:
    logger.warning(
      'It was evaluated with eval_samples=%d; --test_only evaluates it with %d.',
      run.eval_samples, fields['eval_samples'],
    )  # fmt: skip
  return True


def _with_dtype(fields: dict[str, Any], model_dir: str) -> dict[str, Any]:
  """Return the config with a dtype: a run goes on as it began, on any device."""
  if fields['dtype'] != 'auto':
    return fields
  return fields | {'dtype': rundir.stored_dtype(model_dir) or parallel.default_dtype()}


def _prepare_data(
  fields: dict[str, Any], data_dir: str, source: str | None, task_name: str | None
) -> datasets.Builder:
  """Return the builder of the data, prepared: once per machine, for all of its processes."""
  with datasets.interruptible(parallel.own_signals()):
    builder = configuration.open_data(fields, data_dir=data_dir, source=source, task_name=task_name)
    datasets.prepare(builder)
  return builder


def _num_draws(fields: dict[str, Any], name: str) -> int:
  """Return how many draws of the frequencies an evaluation takes."""
  return fields[name] if configuration.is_stochastic(fields) else 1


def _test(
  loop: Loop,
  step: int,
  state: Any,
  test: pipeline.Evaluation,
  eval_step: Callable[..., Any],
  description: dict[str, Any],
  model_dir: str,
) -> int:
  """Read the test split, once, with the parameters that were best on validation.

  Args:
    loop: of the run; it has the checkpoints, the log and the signals.
    step: number of steps taken.
    state: after them, replicated.
    test: batches of the split.
    eval_step: of the evaluation, over all devices.
    description: contents of config.json.
    model_dir: where results.json is written.

  Returns:
    The exit code: 0, or that of a signal that came meanwhile.
  """
  best = loop.checkpoints.best_step()
  if best is not None:
    state = parallel.replicate(loop.checkpoints.restore(best, parallel.to_host(state)))
  samples = _num_draws(loop.fields, 'eval_samples')
  sums = evaluate(eval_step, state, test, loop.preemption.pending, num_samples=samples)
  if sums is None:
    logger.info('Stopped before the test; the same command goes on from there.')
    return loop.preemption.exit_code
  found = results.collect(
    description,
    sums,
    loop.log.records,
    split='test',
    steps=step,
    best_step=best,
    eval_samples=samples,
  )
  path = os.path.join(model_dir, 'results.json')
  # Said before it is written, which may fail.
  logger.info('%s: %s', results.one_line(found), path)
  if parallel.is_primary():
    write_json(path, found)
  return 0


def main(argv: list[str]) -> int:
  """Parse the flags, run, and turn errors into messages and exit codes."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  for flag, example in ((_CONFIG, 'configs/listops.py:gmm_prf'), (_MODEL_DIR, 'runs/gmm_prf')):
    if flag.value is None:
      print(f'error: --{flag.name} is required, such as --{flag.name}={example}', file=sys.stderr)
      return 1
  set_up_logging()
  compilation.keep_programs()
  compilation.choose_products()
  return compilation.leave(_train_by_flags())


def _train_by_flags() -> int:
  """Run what the flags say; return the exit code."""
  values = flags.FLAGS
  try:
    return train(
      configuration.resolve(
        _CONFIG.value, values.task, config_flags.get_override_values(values['config'])
      ),
      model_dir=_MODEL_DIR.value,
      **data_flags.read(values),
      init_from=_INIT_FROM.value,
      test_only=_TEST_ONLY.value,
    )
  except KeyboardInterrupt as error:
    print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
    return code_of_interrupt(error)
  except Exception as error:
    if jax.process_count() > 1:
      parallel.abandon(error)
    expected = isinstance(error, (ValueError, OSError, NonFiniteLossError))
    if not expected or flags.FLAGS.verbosity > 0:
      raise
    print(f'error: {error} (--verbosity=1 shows where)', file=sys.stderr)
    return 1


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_flags)
