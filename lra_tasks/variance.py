"""How much the draws of the frequencies change what trained models predict.

  python -m lra_tasks.variance DIR [DIR ...] [--split=test] [--samples=N] [--out=DIR]

Each DIR is the --model_dir of a run of `lra_tasks.train`, or a folder with finished runs anywhere
below it. The KL-Transformer paper's section 4.1 is measured on the whole split:

  accuracy   mean over the draws
  voting     accuracy of the class that most draws predict (VA)
  gain       voting / accuracy (AGV)
  PI         prediction inconsistency: draws that do not predict that class, %, mean over examples
  RSD        standard deviation over draws / |mean| of the log-odds, median over examples; the mean,
             which a few examples near the border decide, is in the file

Where results.json has these metrics, of the split and the number of draws that are asked for, they
are taken from there: no checkpoint is needed, and by default any number will do. It has those of
the test split if the run was evaluated with eval_samples above 1. Otherwise every example is
predicted with N draws (100 by default) and the best checkpoint. Below a folder, runs that cannot be
measured in either way are left out and counted, as are those of models that draw nothing, and
damaged ones, which are named too.

The table has the learning rate where runs differ in nothing else; the file, directories too.

--out gets variance.json, a figure of each task with two runs or more (variance_TASK.png, the
paper's Figure 5), and with three or more how the metrics go together (correlations_TASK.png,
Figures 9 and 10).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from kl_flax.checkpoints import has_checkpoint
from kl_flax.models import get_row
from kl_flax.predictor import Predictor
from lra_tasks import command_line, data_flags
from lra_tasks.analysis.variance_figures import draw_correlations, draw_metrics
from lra_tasks.analysis.variance_measures import Variance, measure_run, read_result
from lra_tasks.console import one_line_errors, set_up_logging, table_lines
from lra_tasks.files import write_json
from lra_tasks.plotting import save
from lra_tasks.runs.finding import load_results
from lra_tasks.runs.finished import Run, read_description, read_folder, read_whole_description

# Draws of the frequencies, if no number is asked for.
_SAMPLES = 100
_WAY_OUT = (
  'name runs with checkpoints, or add the metrics to results.json where those are: '
  'python -m lra_tasks.train --test_only, with eval_samples above 1'
)


# The runs.


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which runs are to be measured; see `choose`.

  Attributes:
    runs: directory -> what its results.json has, or None where it is to be predicted with.
    named: those of them that were named themselves, not found below a folder.
    left_out: directory -> what keeps a run from being measured.
    damaged: directory -> why a run is left out, where that is worth a sentence.
  """

  runs: dict[Path, Variance | None]
  named: set[Path]
  left_out: dict[Path, str]
  damaged: dict[Path, str]

  @property
  def notes(self) -> list[str]:
    """Return a sentence on the results that were read, and those on runs that are left out."""
    notes, read = [], sum(found is not None for found in self.runs.values())
    if read:
      notes.append(f'Read from results.json, not predicted again: {read} of {len(self.runs)} runs.')
    if self.left_out:
      counts = collections.Counter(self.left_out.values())
      reasons = ', '.join(f'{count} {reason}' for reason, count in counts.items())
      notes.append(f'Runs left out: {reasons}.')
    return notes + [f'Left out: {reason}.' for reason in self.damaged.values()]


def choose(directories: Sequence[str], **wanted: Any) -> Choice:
  """Return the runs in and below directories; nothing is predicted yet.

  Args:
    directories: of runs, or of folders with finished runs below them.
    **wanted: split, samples and limit as in `read_result`.

  Raises:
    OSError: if a run that was named has neither the metrics nor a checkpoint.
    ValueError: if there is no run to measure, or one that was named is damaged.
  """
  choice = Choice({}, set(), {}, {})
  for top in map(Path, directories):
    run = read_folder(top)
    if run is None and top.is_dir():
      _choose_below(top, choice, wanted)
    else:  # Of other runs than finished ones, `measure_runs` says what is wrong.
      choice.runs[top] = _choose_named(run, wanted) if isinstance(run, Run) else None
      choice.named.add(top)
  if not choice.runs:
    raise _nothing_to_measure(choice)
  return choice


def _nothing_to_measure(choice: Choice) -> ValueError:
  return ValueError(f'no run to measure. {" ".join(choice.notes)} To have some, {_WAY_OUT}')


def measure_runs(choice: Choice, **options: Any) -> list[Variance]:
  """Return what was found of each run, predicting where need be.

  A run below a folder that is damaged joins those that are left out.

  Args:
    choice: of runs; of what is left out it is told.
    **options: of `measure_run`.

  Raises:
    OSError: if data cannot be had.
    ValueError: if a run that was named is damaged, or all are; if the data is another.
  """
  found = []
  for folder, known in choice.runs.items():
    if known is None:
      try:
        predictor = Predictor.restore(str(folder))
        description = read_whole_description(folder)
      except (ValueError, FileNotFoundError) as error:  # The latter: of one of its files.
        if folder in choice.named:
          raise
        choice.left_out[folder], choice.damaged[folder] = 'damaged', str(error)
        continue
      known = measure_run(predictor, str(folder), description, **options)
    found.append(known)
  if not found:
    raise _nothing_to_measure(choice)
  return found


def _choose_named(run: Run, wanted: Mapping[str, Any]) -> Variance | None:
  found, folder = read_result(run, **wanted), run.path.parent
  if found or has_checkpoint(folder):
    return found
  if _draws_nothing(folder):
    raise ValueError(f'{folder} is of a model that draws nothing: its predictions do not vary')
  lacking, way_out = 'its results.json lacks the metrics of several draws', _WAY_OUT
  if run.voting_accuracy is not None:
    lacking = f'its results.json is of {run.eval_samples} draws on the whole {run.split} split'
    way_out = 'leave --split, --samples and --limit out to take those'
  raise FileNotFoundError(f'{folder} holds no checkpoint to predict with, and {lacking}: {way_out}')


def _choose_below(top: Path, choice: Choice, wanted: Mapping[str, Any]) -> None:
  found = load_results([top])
  choice.left_out.update({run.path: 'not finished' for run in found.unfinished})
  choice.left_out.update({run.path: 'damaged' for run in found.damaged})
  choice.damaged.update({run.path: run.reason for run in found.damaged})
  for run in found.runs:
    folder, known = run.path.parent, read_result(run, **wanted)
    try:
      obstacle = '' if known else _obstacle(folder)
    except ValueError as error:
      obstacle, choice.damaged[folder] = 'damaged', str(error)
    if obstacle:
      choice.left_out[folder] = obstacle
    else:
      choice.runs[folder] = known


def _obstacle(folder: Path) -> str:
  """Return what keeps a finished run from being predicted with; empty if nothing does."""
  if 'num_predictions' in _model_arguments(folder):
    return 'that predict masked tokens'
  if _draws_nothing(folder):
    return 'of models that draw nothing'
  missing = 'with neither a checkpoint nor these metrics in results.json'
  return '' if has_checkpoint(folder) else missing


def _model_arguments(folder: Path) -> Mapping[str, Any]:
  """Return those of config.json; none where results.json lies there alone."""
  return (read_description(folder) or {}).get('model', {})


def _draws_nothing(folder: Path) -> bool:
  """Return whether the model of a run is known to draw nothing.

  Raises:
    ValueError: if config.json names no model that this version knows.
  """
  model = _model_arguments(folder)
  try:
    return bool(model) and not get_row(model['model_type']).is_stochastic(model['attention'])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{folder}/config.json is of another version: {error}') from error


# What is written.


def render(found: Sequence[Variance]) -> str:
  """Return a table of all runs; numbers in which they differ are columns, others in the title."""
  header = ('model', 'preset', 'seed', 'task', 'accuracy', 'voting', 'gain', 'PI %', 'RSD')
  sizes = {(v.samples, v.examples) for v in found}
  rates: dict[tuple[Any, ...], set[float | None]] = {}
  for v in found:
    rates.setdefault((v.model, v.preset, v.seed, v.task), set()).add(v.learning_rate)
  by_rate = any(len(values) > 1 for values in rates.values())
  rows = [header + ('rate',) * by_rate + ('draws', 'examples') * (len(sizes) > 1)]
  for v in found:
    rows.append(
      (
        v.model,
        v.preset,
        str(v.seed),
        v.task,
        f'{100 * v.accuracy:.2f}',
        f'{100 * v.voting_accuracy:.2f}',
        f'{v.gain:.4f}',
        f'{100 * v.inconsistency:.2f}',
        f'{v.median_deviation:.3f}',
        *((f'{v.learning_rate:g}' if v.learning_rate else '',) if by_rate else ()),
        *((f'{v.samples}', f'{v.examples:,}') if len(sizes) > 1 else ()),
      )
    )
  first = found[0]
  title = f'{first.samples} draws of each of {first.examples:,} examples ({first.split} split)'
  if len(sizes) > 1:
    title = f'{first.split} split'
  return '\n'.join([title, '', *table_lines(rows, left=(0, 1, 3))])


def write(found: Sequence[Variance], out: str) -> list[Path]:
  """Write variance.json and the figures that the runs make into a directory; return the files."""
  directory = Path(out)
  directory.mkdir(parents=True, exist_ok=True)
  paths = [directory / 'variance.json']
  write_json(str(paths[0]), {'runs': [v._asdict() | {'gain': v.gain} for v in found]})
  by_task: Mapping[str, list[Variance]] = {v.task: [] for v in found}
  for v in found:
    by_task[v.task].append(v)
  for task, own in by_task.items():
    drawings = [('variance', draw_metrics, 2), ('correlations', draw_correlations, 3)]
    for name, draw, least in drawings:
      if len(own) >= least:
        paths.append(directory / f'{name}_{task.replace("/", "_")}.png')
        save(draw(own), paths[-1])
  return paths


# The command.


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  define = lambda kind, *arguments: kind(*arguments, flag_values=flag_values)
  define(flags.DEFINE_string, 'split', 'test', 'train, validation or test.')
  define(
    flags.DEFINE_integer, 'samples', None,
    'Draws of the frequencies for each example; by default as many as the metrics in results.json '
    'are of, or 100 where it has none.',
  )  # fmt: skip
  define(flags.DEFINE_integer, 'limit', None, 'Examples, the first of the split; by default all.')
  define(flags.DEFINE_string, 'out', None, 'Directory for variance.json and figures.')
  data_flags.define(flag_values, of_run=True)


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Measure the runs in and below `argv[1:]`."""
  set_up_logging()
  if len(argv) < 2:
    raise ValueError('name the directory of at least one run; --help tells more')
  if flag_values.split not in ('train', 'validation', 'test'):
    raise ValueError(f'--split must be train, validation or test, got {flag_values.split!r}')
  for name, least in (('samples', 2), ('limit', 1)):
    value = flag_values[name].value
    if value is not None and value < least:
      raise ValueError(f'--{name} must be at least {least}, got {value}')
  wanted = {name: flag_values[name].value for name in ('split', 'samples', 'limit')}
  if flag_values.out == '':
    raise ValueError('--out= names no directory: leave it out to write nothing')
  choice = choose(argv[1:], **wanted)
  if flag_values.out:  # Before anything is predicted, which may take long.
    Path(flag_values.out).mkdir(parents=True, exist_ok=True)
  data = data_flags.read(flag_values)
  options = wanted | data | {'samples': flag_values.samples or _SAMPLES}
  found = measure_runs(choice, **options)
  print('\n'.join([render(found), *([''] if choice.notes else []), *choice.notes]))
  if flag_values.out:
    for path in write(found, flag_values.out):
      print(path)


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)


if __name__ == '__main__':
  run()
