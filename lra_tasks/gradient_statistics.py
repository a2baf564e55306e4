r"""How much redrawn frequencies shake the gradient, and learning curves: the paper's 4.2 from runs.

  python -m lra_tasks.gradient_statistics RUN... --out=DIR [--accuracies=20,40,60,80]
                                          [--examples=50] [--draws=50] [--source=DATA]

The runs of the paper, six of 200,000 steps:

  for m in gmm_rks gmm_prf; do for r in 0.1 0.5 0.9; do
    python -m lra_tasks.train --config=configs/sparse_sum.py:$m --config.data.relevance=$r \
      --model_dir=runs/sparse_sum/$m-$r
  done; done
  python -m lra_tasks.gradient_statistics runs/sparse_sum/* --out=runs/sparse_sum_figures

Each RUN is the --model_dir of a run of lra_tasks.train that kept the checkpoints which first
reached these validation accuracies (`keep_accuracies`), as the presets paper and tuned of
configs/sparse_sum.py do. Writes and prints gradients.md, the rows of the paper's Table 14, and
draws learning_curves.png, its Figure 6, with a panel for each data set. In the table, runs of one
model on the same data are averaged. An evaluation that reaches several accuracies at once stands in
several rows. Of a run without checkpoints, as in docs/analysis, only the curve is drawn.

Appendix E.3 records "the gradients on the classifier layer" with 64 neurons, for the first 50
validation examples and 50 draws of the frequencies. Taken here: the derivative of each example's
cross entropy with respect to what each neuron of the hidden layer is given, before the ReLU, which
is that with respect to its bias; in float32, without dropout. An accuracy counts as reached when an
evaluation of the run has it, the mean over `validation_samples` draws, alike in all evaluations.
The ratio of two models is that of the second to the first, so of positive to Fourier features:
the paper's columns "GMM-RKS/GMM-PRF" hold it, too, as the figures beside them show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from lra_tasks import data_flags
from lra_tasks.analysis.gradient_figures import learning_curves, table
from lra_tasks.analysis.gradient_measures import read_run
from lra_tasks.console import define_integers, one_line_errors, parse_flags, set_up_logging
from lra_tasks.plotting import save
from lra_tasks.runs.finished import read_whole_description


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  flags.DEFINE_string(
    'out', None, 'Directory of the table and the figure; created if need be.',
    flag_values=flag_values,
  )  # fmt: skip
  data_flags.define(flag_values, of_run=True)
  number = lambda name, default, text, least: flags.DEFINE_integer(
    name, default, text, lower_bound=least, flag_values=flag_values
  )
  number('examples', 50, 'The first examples of the validation split.', 1)
  number('draws', 50, 'Draws of the frequencies.', 2)
  define_integers('accuracies', (20, 40, 60, 80), 'Validation accuracies, 0 to 100 %.', flag_values)


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Write table and figure of the runs `argv[1:]`."""
  set_up_logging()
  if len(argv) < 2 or flag_values.out is None:
    raise ValueError('name --out and at least one run; --help tells more')
  for percent in flag_values.accuracies:
    if not 0 <= percent <= 100:
      raise ValueError(f'--accuracies are percentages from 0 to 100, got {percent}')
  for run in argv[1:]:  # Before the work, which may take long.
    read_whole_description(run)
  directory = Path(flag_values.out)
  directory.mkdir(parents=True, exist_ok=True)
  curves = [
    read_run(
      run,
      percents=flag_values.accuracies,
      examples=flag_values.examples,
      draws=flag_values.draws,
      **data_flags.read(flag_values),
    )
    for run in argv[1:]
  ]
  if any(curve.has_checkpoints for curve in curves):
    text = table(curves, flag_values.accuracies)
    (directory / 'gradients.md').write_text(text, encoding='utf-8')
    print(text, end='')
  path = directory / 'learning_curves.png'
  save(learning_curves(curves), path)
  print(path)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
