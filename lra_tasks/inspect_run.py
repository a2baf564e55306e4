"""Look at the learned kernel of a trained run, beside the one that it began with.

  python -m lra_tasks.inspect_run RUN --out=DIR
  python -m lra_tasks.inspect_run RUN --out=DIR --input='[MIN 3 4 [MAX 2 9 ] ]'

Writes, for each layer N from 1 and for each head, trained and initial:
  eigenvalues.md     of the spectral covariances, as the paper's Tables 4 and 9 to 12
  kernel_layerN.png  the kernel over the displacement, beside the Gaussian and the softmax kernel
  spectrum_layerN.png    the density of the frequencies, beside the normal distribution
  attention_layerN.png   attention maps of one example
  error.md           how far the estimates of the kernel are off, measured and predicted

Queries and keys are those of examples of the run's data, or of --input. The initial parameters are
computed anew from the run's seed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags

from kl_flax import Predictor, inspection
from kl_flax.errors import unknown_name
from kl_flax.inspection import AttentionLayer
from kl_flax.models import make_classifier
from kl_flax.tokenizers import ByteTokenizer, PixelTokenizer
from lra_tasks import data_flags, plotting
from lra_tasks.analysis import inspect_figures
from lra_tasks.console import one_line_errors, parse_flags, set_up_logging
from lra_tasks.data import pipeline
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import read_whole_description
from lra_tasks.runs.origin import NamedOrigin
from lra_tasks.training import compilation, steps

SHOWN = ('eigenvalues', 'kernel', 'spectrum', 'attention', 'error')
# What is left to see where frequencies are drawn, but nothing is learned; and where there are none.
_WITHOUT_PARAMETERS = ('attention', 'error')
_WITHOUT_FREQUENCIES = ('attention',)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the command's flags; not at import, so that commands can share names."""
  number = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
  flags.DEFINE_string(
    'out', None, 'Directory for figures and tables; created if need be.', flag_values=flag_values
  )
  flags.DEFINE_multi_string(
    'input', None, 'Text to look at; of a pair, given twice.', flag_values=flag_values
  )
  number('index', None, 'The first example of the split to look at; 0 by default.', lower_bound=0)
  number('num_examples', 8, 'How many examples, from this one on; the maps show one.', 1)
  flags.DEFINE_enum(
    'split', 'validation', ('train', 'validation', 'test'), 'Where examples are taken from.',
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_list(
    'show', None, f'What to write, of {", ".join(SHOWN)}; all by default.', flag_values=flag_values
  )
  number('step', None, 'Which checkpoint; by default the best one.')
  number('num_draws', 200, 'Draws of all frequencies that errors are measured over.', 2)
  data_flags.define(flag_values, of_run=True)


class Subject(NamedTuple):
  """What is looked at.

  Attributes:
    description: contents of the run's config.json.
    trained: its layers.
    initial: the same layers with the parameters that the run began with.
    names: of the positions of the first example, for each of its sequences.
    what: where the examples come from, in words.
  """

  description: Mapping[str, Any]
  trained: list[AttentionLayer]
  initial: list[AttentionLayer]
  names: list[list[str]]
  what: str


def initial_params(description: Mapping[str, Any]) -> Any:
  """Return the parameters that a run began with, a function of its model and its seed.

  Args:
    description: contents of its config.json.

  Raises:
    FileNotFoundError: if it began with the encoder of a run that is no longer there.
    ValueError: if another run is there.
  """
  model = make_classifier(**description['model'])
  # The optimiser has no part in the parameters.
  init = jax.jit(functools.partial(steps.init_state, model, optax.identity()))
  params = init(seed=np.uint32(description['config']['random_seed'])).params
  if origin := description.get('init_from'):
    pretrained = NamedOrigin(origin)
    if pretrained.label != description['config']['pretrained']:
      raise ValueError(
        f'the run began with {description["config"]["pretrained"]}, but in {origin} there is '
        f'{pretrained.label} now'
      )
    params = pretrained.start(params)
  return params


def check_shown(model_type: str, model: Any, params: Any, shown: Sequence[str]) -> None:
  """Raise a ValueError if something is to be shown that the attention of a model does not have."""
  if not shown:
    raise ValueError(
      f'--show names nothing: give some of {", ".join(SHOWN)}, or leave it out for all'
    )
  for name in shown:
    if name not in SHOWN:
      raise ValueError(unknown_name('thing to --show', name, SHOWN))
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  if getattr(model.encoder.make_attention(), 'sampler', None) is None:
    possible, reason = _WITHOUT_FREQUENCIES, 'its attention has no frequencies'
  elif not any("'sampler'" in jax.tree_util.keystr(path) for path, _ in paths):
    possible, reason = _WITHOUT_PARAMETERS, 'its frequencies are drawn, none of them is learned'
  else:
    return
  if missing := [name for name in shown if name not in possible]:
    raise ValueError(
      f'{model_type} has no learned kernel ({reason}), hence nothing to show of '
      f'{", ".join(missing)}: --show={",".join(possible)} shows what there is'
    )


def load_examples(
  model_dir: str, predictor: Predictor, description: Mapping[str, Any], options: Any
) -> tuple[list[list[np.ndarray]], str]:
  """Return the token ids of examples, for each its sequences, and where they are from.

  Args:
    model_dir: the run's directory.
    predictor: of the run.
    description: contents of its config.json.
    options: the command's flags.

  Raises:
    ValueError: for an input that the model does not take, or an index that is not there.
    OSError: if the data cannot be found or fetched.
  """
  if options.input:
    if options.index is not None:
      raise ValueError(f'--input and --index={options.index} name two examples: leave one out')
    if isinstance(predictor.tokenizer, PixelTokenizer):
      raise ValueError('--input is text, the model takes images: name one of the data by --index')
    # A pair is two sequences, or two sentences in one.
    count = max(predictor.model.num_inputs, predictor.num_texts or 1)
    if len(options.input) != count:
      raise ValueError(f'--input must be given {count} times, got {len(options.input)}')
    text = options.input[0] if count == 1 else tuple(options.input)
    try:
      return predictor.encode([text]), 'input of the command line'
    except ValueError as error:
      raise ValueError(f'--input: {str(error).removeprefix("input 0: ")}') from None
  data = data_flags.read(options)
  source = rundir.read_split(
    model_dir, description, options.split, **data, way_out=', or a text by --input'
  )
  first = options.index or 0
  if first >= len(source):
    raise ValueError(f'--index={first}: the {options.split} split has {len(source)} examples')
  last = min(first + options.num_examples, len(source))
  names = pipeline.input_names(predictor.model.num_inputs)
  records = source.__getitems__(list(range(first, last)))
  what = f'{options.split} examples {first} to {last - 1} of {description["dataset"]}'
  return [[np.asarray(record[name]) for name in names] for record in records], what


def name_positions(model: Any, tokenizer: Any, ids: np.ndarray) -> list[str]:
  """Return what stands at each position: CLS, symbols, characters, intensities."""
  names = ['CLS'] if model.encoder.use_cls else []
  for one in ids[: model.encoder.max_length].tolist():
    if isinstance(tokenizer, ByteTokenizer):
      names.append(ascii(chr(one - 1))[1:-1])
    elif isinstance(tokenizer, PixelTokenizer):
      names.append(str(one))
    else:
      names.append(tokenizer.decode(np.array([one])))
  return names


def inspect(model_dir: str, options: Any) -> list[Path]:
  """Write what the flags ask for; return the files.

  Args:
    model_dir: the run's directory.
    options: the command's flags.

  Raises:
    ValueError: for something that cannot be shown, or a damaged checkpoint.
    OSError: for a run, checkpoint or data that is not there.
    ImportError: without matplotlib, if a figure is asked for.
  """
  predictor = Predictor.restore(model_dir, step=options.step)
  description = read_whole_description(model_dir)
  model_type, model = description['config']['model_type'], predictor.model
  shown = SHOWN if options.show is None else options.show
  # What can be shown is clear before any data is read.
  check_shown(model_type, model, predictor.params, shown)
  rows, what = load_examples(model_dir, predictor, description, options)
  Path(options.out).mkdir(parents=True, exist_ok=True)
  encoded = [parts if model.num_inputs == 2 else parts[0] for parts in rows]
  trained, initial = (
    inspection.capture_inputs(predictor, encoded, params, encoded=True)
    for params in (predictor.params, initial_params(description))
  )
  names = [name_positions(model, predictor.tokenizer, part) for part in rows[0]]
  subject = Subject(description, trained, initial, names, what)
  written = []
  for name in SHOWN:
    if name in shown:
      written += _WRITERS[name](subject, Path(options.out), options)
  return written


def _write_eigenvalues(subject: Subject, out: Path, options: Any) -> list[Path]:
  del options
  rows = [inspection.eigenvalue_rows(layers) for layers in (subject.trained, subject.initial)]
  mixture = 'mean' in subject.trained[0].params
  lines = [
    f'# Eigenvalues of the spectral covariances: {_describe(subject)}',
    '',
    'Of S Sᵀ for each component, as in the Tables 4 and 9 to 12 of the paper.'
    if mixture
    else 'Of the covariance of all frequencies, measured over 200 draws: they are no mixture.',
    'The frequencies of the Gaussian kernel have 1 everywhere.',
  ]
  if mixture and subject.trained[0].attention.features == 'positive':
    lines.append('Along a direction above 2, positive features weigh distant keys up.')
  return [_write_text(out / 'eigenvalues.md', lines, inspection.eigenvalue_table(*rows))]


def _write_error(subject: Subject, out: Path, options: Any) -> list[Path]:
  reports = [
    [inspection.error_report(layer, num_draws=options.num_draws) for layer in layers]
    for layers in (subject.trained, subject.initial)
  ]
  lines = [
    f'# Error of the kernel estimates: {_describe(subject)}',
    '',
    f'Relative error, root mean squared over {options.num_draws} draws of '
    f'{subject.trained[0].omega.shape[1]} frequencies, on 200',
    f'pairs of query and key of {subject.what}:',
    'median over the pairs, and what 90 % of them do not exceed. A measured error far below the',
    'predicted one is not to be trusted: the tail that makes the error was never drawn. Attention',
    'divides by a sum of such estimates, where errors that keys share cancel. typical_norm is the',
    'mean of |Sᵀ(q + k)|² at the temperature, with which the error of positive features grows.',
  ]
  if subject.trained[0].attention.features == 'fourier':
    lines.append('Fourier features err alike everywhere: where κ is near 0, that is without bound.')
  if reports[0][0].predicted is None:
    lines.append('There is no closed form; where no kernel is known, it is the mean of the draws.')
  return [_write_text(out / 'error.md', lines, inspection.error_table(*reports))]


def _write_text(path: Path, lines: Sequence[str], table: str) -> Path:
  path.write_text('\n'.join([*lines, '', table]) + '\n', encoding='utf-8')
  return path


def _write_kernel(subject: Subject, out: Path, options: Any) -> list[Path]:
  del options
  return _draw_layers(subject, out, 'kernel', inspect_figures.draw_kernel)


def _write_spectrum(subject: Subject, out: Path, options: Any) -> list[Path]:
  del options
  return _draw_layers(subject, out, 'spectrum', inspect_figures.draw_spectrum)


def _draw_layers(subject: Subject, out: Path, name: str, draw: Any) -> list[Path]:
  model_type = subject.description['config']['model_type']
  written = []
  for number, pair in enumerate(zip(subject.trained, subject.initial, strict=True), start=1):
    figure = draw(*pair, model_type, f'{_describe(subject)}, layer {number}')
    written.append(_save(figure, out / f'{name}_layer{number}.png'))
  return written


def _write_attention(subject: Subject, out: Path, options: Any) -> list[Path]:
  del options
  written = []
  for number, pair in enumerate(zip(subject.trained, subject.initial, strict=True), start=1):
    for sequence, names in enumerate(subject.names):
      which, title = '', f'{_describe(subject)}, layer {number}'
      if len(subject.names) > 1:
        which, title = f'_sequence{sequence + 1}', f'{title}, sequence {sequence + 1}'
      figure = inspect_figures.draw_attention(*pair, sequence, names, title)
      written.append(_save(figure, out / f'attention_layer{number}{which}.png'))
  return written


def _save(figure: Any, path: Path) -> Path:
  plotting.save(figure, path)
  return path


def _describe(subject: Subject) -> str:
  config = subject.description['config']
  return f'{config["model_type"]} on {subject.description["task"]}, seed {config["random_seed"]}'


_WRITERS = {
  'eigenvalues': _write_eigenvalues,
  'kernel': _write_kernel,
  'spectrum': _write_spectrum,
  'attention': _write_attention,
  'error': _write_error,
}


@one_line_errors
def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Look at the run `argv[1]`."""
  set_up_logging()
  compilation.keep_programs()
  compilation.choose_products()
  if len(argv) != 2 or flag_values.out is None:
    raise ValueError('name the directory of one run, and --out; --help tells more')
  for path in inspect(argv[1], flag_values):
    print(path)


def run() -> None:
  """Run the command."""
  define_flags()
  app.run(main, flags_parser=parse_flags)


if __name__ == '__main__':
  run()
