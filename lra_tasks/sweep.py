"""Train many models on many tasks, one run after another or several at once, as time allows.

  python -m lra_tasks.sweep --tasks=listops,text --models=gmm_prf,fastfood_prf --seeds=0,1,2 \\
      --runs=runs --minutes=25

Every run is the command `python -m lra_tasks.train`, which the log shows, in a process of its own:
its memory is its own too, and a crash ends nothing else. Runs that are finished are skipped, one
that was stopped goes on where it was: the same command, given again, makes the table grow. One
whose files are damaged counts as failed, until it is moved away or restored. When time is up, the
run that is under way saves its state, for which it has the last 20 seconds.

  python -m lra_tasks.sweep --tasks=cola --models=gmm_prf --seeds=0,1,2 --runs=runs \\
      --try=learning_rate=2e-3,5e-4,1e-4

makes the runs of the first seed with each of the values, and those of the others with the value
that was best on validation. A value with which the run fails takes no part.

Seeds come last, and before them the values that are tried, so that a first run of everything is
there early. --gpus=0,1 makes runs on two GPUs at the same time, --runs_per_gpu several on each;
command and output of a training are then in train.log in its directory. Several sweeps of one
machine may share --runs, too: each takes what no other has taken.

--results_dir keeps the small files of finished runs (config, metrics, results) apart from
checkpoints; what is there counts as finished. With --delete_checkpoints finished runs lose theirs:
those of a hundred runs with a large vocabulary take 50 GB. Such runs predict no more, and none can
start from them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from absl import app, flags

from lra_tasks import command_line, data_flags, tasks
from lra_tasks.console import define_integers, one_line_errors, set_up_logging
from lra_tasks.paper import PAPER_MODELS
from lra_tasks.sweeps.jobs import Job, make_jobs
from lra_tasks.sweeps.running import START_SECONDS, Outcome, Sweep, make_workers

# Not __name__: this file runs as __main__.
logger = logging.getLogger('lra_tasks.sweep')


def render(found: Mapping[Job, Outcome]) -> str:
  """Return a table of what became of the runs, and a line that counts them."""
  found = {job: outcome for job, outcome in found.items() if outcome.state != 'passed over'}
  width = max(len(job.name) for job in found)
  column = max(8, *(len(outcome.state) for outcome in found.values()))
  lines = [
    f'{job.name:<{width}}  {outcome.state:<{column}}  {outcome.remark}'.rstrip()
    for job, outcome in found.items()
  ]
  states = [outcome.state for outcome in found.values()]
  counts = [f'{states.count(state)} {state}' for state in dict.fromkeys(states)]
  return '\n'.join([*lines, '─' * max(map(len, lines)), ', '.join(counts)])


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda kind, *arguments: kind(*arguments, flag_values=flag_values)
  define(flags.DEFINE_list, 'tasks', None, 'Tasks, each of which has a file in --configs.')
  define(flags.DEFINE_list, 'models', list(PAPER_MODELS), 'Models; those of the paper by default.')
  define(define_integers, 'seeds', [0], 'Seeds; the first one of everything comes first.')
  define(
    flags.DEFINE_string, 'preset', None,
    'Preset of all configs; by default that of the models, or paper if theirs differ.',
  )  # fmt: skip
  define(
    flags.DEFINE_multi_string, 'set', [],
    'FIELD=VALUE: a field of all configs, such as learning_rate=0.001 or, if all --models have '
    'it, attention.num_frequencies=64. May be repeated. Part of the names of runs.',
  )  # fmt: skip
  define(
    flags.DEFINE_string, 'try', None,
    'FIELD=VALUE,VALUE...: the first seed takes each of the values, the others the one that had '
    "the best accuracy on validation, or what else the task is judged by: cola by Matthews' "
    'correlation, mrpc and qqp by F1.',
  )  # fmt: skip
  define(
    flags.DEFINE_string, 'init_from', None,
    'Directory of the run whose encoder each starts with; {model} in it stands for the model.',
  )  # fmt: skip
  define(flags.DEFINE_string, 'configs', 'configs', 'Directory of the files TASK.py.')
  define(flags.DEFINE_string, 'runs', 'runs', 'Directory of the runs: TASK/MODEL_PRESET_seedN.')
  define(
    flags.DEFINE_string, 'results_dir', None,
    'Directory where the small files of finished runs are kept; what is there is finished.',
  )  # fmt: skip
  define(
    flags.DEFINE_bool, 'delete_checkpoints', False,
    'Delete the checkpoints of finished runs whose results are kept in --results_dir. Not for runs '
    'that others are to start from.',
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'gpus', [],
    'GPUs, as in CUDA_VISIBLE_DEVICES, such as 0,1: each makes runs of its own at the same time.',
  )  # fmt: skip
  define(
    flags.DEFINE_integer, 'runs_per_gpu', 1,
    'Runs at once on each GPU (without --gpus, on this machine), for models too small to fill it. '
    'Results tell that speeds were shared.',
  )  # fmt: skip
  define(flags.DEFINE_float, 'minutes', None, 'Time for all of it, saving included.')
  define(flags.DEFINE_bool, 'dry_run', False, 'Only show what there is and what is to be done.')
  define(
    flags.DEFINE_string, 'data_dir', data_flags.DATA_DIR, 'Where prepared data sets are kept.'
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'sources', [],
    'TASK=PATH of raw data, where a task does not generate or download its own.',
  )  # fmt: skip
  define(
    flags.DEFINE_list, 'task_names', [],
    'TASK=NAME of a data set within a task, such as wikitext=wikitext-2.',
  )  # fmt: skip


def _by_task(name: str, flag_values: flags.FlagValues) -> dict[str, str]:
  """Return {task: value} of a flag that lists TASK=VALUE."""
  found = {}
  for value in flag_values[name].value:
    task, _, rest = value.partition('=')
    if not rest or task not in flag_values.tasks:
      raise ValueError(f'--{name} must be TASK=VALUE with one of --tasks, got {value!r}')
    found[task] = rest
  return found


def _options(flag_values: flags.FlagValues) -> dict[str, list[str]]:
  """Return further flags of the training command for each task."""
  options = {task: [f'--data_dir={flag_values.data_dir}'] for task in flag_values.tasks}
  for task, source in _by_task('sources', flag_values).items():
    options[task].append(f'--source={source}')
  return options


def _warn_of_test_splits(jobs: Sequence[Job]) -> None:
  """Say where settings will be chosen on the split that is reported."""
  found = {job.task for job in jobs if job.fields()['data'].get('validation') == 'test'}
  if found:
    logger.warning(
      '--try chooses on the test split of %s, which is its validation split too: as is usual with '
      'GLUE, but optimistic. --set=data.validation=holdout holds training examples out.',
      ', '.join(sorted(found)),
    )


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Run what the flags say; return 0, 1 after an error or a failed run, 128 + that of a signal."""
  set_up_logging()
  started = time.monotonic()
  if len(argv) > 1:
    raise ValueError(f'unknown arguments: {" ".join(argv[1:])}; --help tells more')
  if not flag_values.tasks:
    raise ValueError(f'--tasks is required, some of: {", ".join(tasks.TASKS)}')
  if flag_values.minutes is not None and not 60 * flag_values.minutes > START_SECONDS:
    raise ValueError(
      f'--minutes must be above {START_SECONDS / 60}, got {flag_values.minutes}: no run is begun '
      f'with less than {START_SECONDS} s left'
    )
  if flag_values.delete_checkpoints and flag_values.results_dir is None:
    raise ValueError('--delete_checkpoints needs --results_dir, which keeps what is left of a run')
  jobs = make_jobs(
    flag_values.tasks,
    flag_values.models,
    flag_values.seeds,
    preset=flag_values.preset,
    changes=flag_values.set,
    tried=flag_values['try'].value,
    configs=flag_values.configs,
    init_from=flag_values.init_from,
    data_sets=_by_task('task_names', flag_values),
  )
  if flag_values['try'].value:
    _warn_of_test_splits(jobs)
  sweep = Sweep(
    jobs,
    runs=flag_values.runs,
    results_dir=flag_values.results_dir,
    options=_options(flag_values),
    deadline=flag_values.minutes and started + 60 * flag_values.minutes,
    delete_checkpoints=flag_values.delete_checkpoints,
    workers=make_workers(flag_values.gpus, flag_values.runs_per_gpu),
  )
  found = sweep.outcomes() if flag_values.dry_run else sweep.run()
  print(render(found))
  return sweep.exit_code or int(any(outcome.state == 'failed' for outcome in found.values()))


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)


if __name__ == '__main__':
  run()
