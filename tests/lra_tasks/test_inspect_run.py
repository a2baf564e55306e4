import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from absl import flags
from breadth import slow_but
from run_helpers import read

from kl_flax import Predictor, covariance_eigenvalues
from kl_flax.models import make_classifier
from kl_flax.tokenizers import ByteTokenizer, PixelTokenizer, train_wordpiece
from lra_tasks import inspect_run

FAST = ['--num_draws=5', '--num_examples=2']


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
  monkeypatch.setattr(inspect_run, 'set_up_logging', lambda: None)


def run(capsys, *arguments):
  """Exit code, files and errors of the command with these arguments."""
  values = flags.FlagValues()
  inspect_run.define_flags(values)
  code = inspect_run.main(values(['inspect_run', *map(str, arguments)]), values)
  output, errors = capsys.readouterr()
  return code, output.split(), errors


def numbers(path):
  """Return the rows of the table in a file."""
  lines = [line for line in path.read_text().splitlines() if line.startswith('|')]
  return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def test_shows_a_trained_run(shared, reference, tmp_path, capsys):
  out = tmp_path / 'look/at'
  code, files, errors = run(
    capsys, reference, f'--out={out}', f'--data_dir={shared}/data', '--index=3', *FAST
  )
  assert (code, errors) == (0, '')
  description = read(reference, 'config.json')
  num_layers, num_heads = (description['model'][name] for name in ('num_layers', 'num_heads'))
  figures = [
    f'{kind}_layer{i + 1}.png'
    for kind in ('attention', 'kernel', 'spectrum')
    for i in range(num_layers)
  ]
  expected = sorted([*figures, 'eigenvalues.md', 'error.md'])
  assert sorted(path.name for path in out.iterdir()) == expected
  assert sorted(files) == [str(out / name) for name in expected]
  for name in figures:
    with PIL.Image.open(out / name) as image:
      assert np.asarray(image.convert('L')).std() > 10  # There is something on it.

  # The tables: trained beside initial, as the parameters say.
  trained = covariance_eigenvalues(Predictor.restore(str(reference)).params)
  rows = numbers(out / 'eigenvalues.md')
  assert len(rows) == num_layers * num_heads
  for row in rows:
    own = trained[f'encoder/block_{int(row[0]) - 1}/attention/KernelAttention_0/sampler']
    own = own[int(row[1]) - 1]
    np.testing.assert_allclose(
      [float(cell) for cell in row[2:5]], [own.min(), own.max(), own.mean()], rtol=0.01
    )
    assert row[2:5] != row[5:8]
  errors = numbers(out / 'error.md')
  assert len(errors) == 2 * len(rows)
  assert {row[2] for row in errors} == {'trained', 'initial'}
  assert 'validation examples 3 to 4 of listops/' in (out / 'error.md').read_text()


def test_text_of_ones_own(reference, tmp_path, capsys):
  code, files, errors = run(
    capsys, reference, f'--out={tmp_path}', '--input=( [MAX 1 ) 2 )', '--show=attention', *FAST
  )
  assert (code, errors) == (0, '')
  assert all('attention' in name for name in files)


def test_initial_parameters_are_those_of_the_seed(reference):
  """Near the trained ones, which took 40 steps; those of another seed are not."""
  description = read(reference, 'config.json')
  trained = jax.tree.leaves(Predictor.restore(str(reference)).params)
  other = description | {'config': description['config'] | {'random_seed': 1}}
  distance = [
    sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(trained, jax.tree.leaves(params), strict=True))
    for params in map(inspect_run.initial_params, (description, other))
  ]
  assert 0 < distance[0] < 0.2 * distance[1]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--out=OUT', '--show=kernels'], "unknown thing to --show 'kernels'.* 'kernel'.*; known: att"),
    (['--out=OUT', '--show='], '--show names nothing: give some of eigenvalues, kernel, spectrum'),
    (['--out=OUT', '--input=[MAX 1 7 X ]'], r"--input: unknown symbol 'X' \(symbol 4 of 5\)"),
    (['--out=OUT', '--input='], "--input: no tokens in ''"),
    (['--out=OUT', '--input=1', '--input=2'], '--input must be given 1 times, got 2'),
    (['--out=OUT', '--input=1', '--index=2'], '--input and --index=2 name two examples'),
    (['--out=OUT', '--index=1000'], '--index=1000: the validation split has 64 examples'),
    (['--out=OUT', '--step=7'], r'has no checkpoint of step 7, only \['),
    ([], 'name the directory of one run, and --out'),
  ],
)
def test_impossible_command_lines(shared, reference, tmp_path, capsys, arguments, message):
  arguments = [argument.replace('OUT', str(tmp_path / 'out')) for argument in arguments]
  code, files, errors = run(capsys, reference, f'--data_dir={shared}/data', *arguments)
  assert (code, files) == (1, [])
  assert errors.startswith('error: ')
  assert re.search(message, errors), errors
  assert not (tmp_path / 'out').exists()


def test_no_run_and_no_checkpoint(reference, tmp_path, capsys):
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}')
  assert code == 1
  assert 'holds no trained model' in errors
  (tmp_path / 'config.json').write_text((reference / 'config.json').read_text())
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}')
  assert code == 1
  assert 'holds no checkpoint: a training that has not ended writes one if it runs on' in errors


def make_run(directory, monkeypatch, model_type, tokenizer, num_texts=None, **options):
  """Have the command find an untrained model there."""
  arguments = {
    'model_type': model_type, 'num_classes': 2, 'vocab_size': tokenizer.vocab_size, 'emb_dim': 8,
    'num_heads': 2, 'qkv_dim': 8, 'num_layers': 1, 'mlp_dim': 8, 'max_length': 400,
  } | options  # fmt: skip
  config = {'model_type': model_type, 'random_seed': 0, 'task': 'text', 'data': {}}
  description = {'config': config, 'model': arguments, 'task': 'text', 'from_source': True}
  description |= {'dataset': 'text/elsewhere', 'tokenizer': tokenizer.to_dict(), 'config_id': 'abc'}
  (directory / 'config.json').write_text(json.dumps(description))
  model = make_classifier(**arguments)
  predictor = Predictor(
    model, inspect_run.initial_params(description), tokenizer, jax.random.key(0),
    num_texts=num_texts,
  )  # fmt: skip
  monkeypatch.setattr(inspect_run.Predictor, 'restore', lambda *_, **__: predictor)


WITHOUT_LEARNED_KERNEL = {
  'transformer': ('has no frequencies', 'attention'),
  'synthesizer': ('has no frequencies', 'attention'),
  'prf': ('none of them is learned', 'attention,error'),
}


@pytest.mark.parametrize('model_type', slow_but(['prf'], WITHOUT_LEARNED_KERNEL))
def test_model_without_learned_kernel(tmp_path, monkeypatch, capsys, model_type):
  reason, possible = WITHOUT_LEARNED_KERNEL[model_type]
  make_run(tmp_path, monkeypatch, model_type, ByteTokenizer())
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}')
  assert code == 1
  assert f'{model_type} has no learned kernel' in errors
  assert reason in errors
  assert f'--show={possible} shows what there is' in errors
  code, files, errors = run(
    capsys, tmp_path, f'--out={tmp_path}', f'--show={possible}', '--input=abc def', *FAST
  )
  assert (code, errors) == (0, '')
  assert str(tmp_path / 'attention_layer1.png') in files


@pytest.mark.slow
def test_long_pairs_without_closed_form(tmp_path, monkeypatch, capsys):
  """Each tower has a figure; there are more positions than pixels; kernels come from draws."""
  make_run(
    tmp_path, monkeypatch, 'fastfood_rks', ByteTokenizer(), num_inputs=2,
    attention={'num_frequencies': 4},
  )  # fmt: skip
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}', '--input=one')
  assert (code, errors) == (1, 'error: --input must be given 2 times, got 1\n')
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}')
  assert code == 1
  assert 'was trained on text/elsewhere, here is text/imdb_reviews' in errors
  assert 'by --source, --task_name and --data_dir, or a text by --input' in errors
  code, files, errors = run(
    capsys, tmp_path, f'--out={tmp_path}', '--input=a b\n', f'--input={"xyz" * 110}', *FAST
  )
  assert (code, errors) == (0, '')
  assert [name for name in files if 'attention' in name] == [
    f'{tmp_path}/attention_layer1_sequence{i}.png' for i in (1, 2)
  ]
  assert 'measured over 200 draws' in (tmp_path / 'eigenvalues.md').read_text()
  assert all('–' in row for row in numbers(tmp_path / 'error.md'))


def test_two_sentences_are_one_sequence(tmp_path, monkeypatch, capsys):
  tokenizer = train_wordpiece(['the dog sees the cat .'] * 9, 200)
  make_run(
    tmp_path, monkeypatch, 'local', tokenizer, num_texts=2, separator=tokenizer.separator,
    max_length=15, attention={'block_size': 4},
  )  # fmt: skip
  show = (tmp_path, f'--out={tmp_path}', '--show=attention')
  code, _, errors = run(capsys, *show, '--input=the dog')
  assert (code, errors) == (1, 'error: --input must be given 2 times, got 1\n')
  shown = []
  draw = lambda *arguments: shown.append(arguments[3]) or original(*arguments)
  original = inspect_run.inspect_figures.draw_attention
  monkeypatch.setattr(inspect_run.inspect_figures, 'draw_attention', draw)
  code, _, errors = run(capsys, *show, '--input=the dog', '--input=a cat')
  assert (code, errors) == (0, '')
  assert shown == [['CLS', 'the', 'dog', '[SEP]', 'a', 'cat', '[SEP]']]


def test_images_have_no_text(tmp_path, monkeypatch, capsys):
  make_run(
    tmp_path, monkeypatch, 'gmm_prf', PixelTokenizer(16), max_length=16,
    attention={'num_frequencies': 4},
  )  # fmt: skip
  code, _, errors = run(capsys, tmp_path, f'--out={tmp_path}', '--input=3 4')
  assert code == 1
  assert 'the model takes images: name one of the data by --index' in errors
