import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from breadth import slow_but
from run_helpers import ROOT, environment, finish, start, wait_for

from lra_tasks import command_line, configuration, prepare
from lra_tasks.data import datasets, listops, text

COMMAND = [sys.executable, '-m', 'lra_tasks.prepare']
SMALL = listops.ListOpsData(min_length=4, max_length=20, num_train=60, num_valid=20, num_test=30)


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
  monkeypatch.setattr(prepare, 'set_up_logging', lambda: None)


@pytest.fixture(scope='module')
def tsv(tmp_path_factory):
  """LRA's three files, small."""
  directory = tmp_path_factory.mktemp('tsv')
  sequences = listops.generate(SMALL, SMALL.num_examples)
  for split, part in listops.split(sequences, SMALL).items():
    listops.write_tsv(directory / f'basic_{split.replace("validation", "val")}.tsv', part)
  return directory


def run(capsys, *arguments):
  """Exit code, output and errors of the command with these arguments."""
  values = flags.FlagValues()
  prepare.define_flags(values)
  code = prepare.main(values(['prepare', *arguments]), values)
  return code, *capsys.readouterr()


def test_says_where_the_data_lies(tsv, tmp_path, capsys):
  arguments = ['--task=listops', f'--data_dir={tmp_path}', f'--source={tsv}']
  first = run(capsys, *arguments)
  code, output, errors = first
  assert (code, errors) == (0, '')
  path, *lines = output.splitlines()
  assert pathlib.Path(path).is_relative_to(tmp_path / 'listops')
  assert (pathlib.Path(path) / 'manifest.json').exists()
  assert [re.split(r'\s+', line.strip()) for line in lines] == [
    ['train', '60', 'examples'],
    ['validation', '20', 'examples'],
    ['test', '30', 'examples'],
    ['size', '0.4', 'MB'],
  ]
  assert run(capsys, *arguments) == first


def uses(output):
  """Lines about what a config reads, as words."""
  lines = output.splitlines()
  assert lines[1] == '  this config'
  return [' '.join(line.split()) for line in lines[2:-1]]


def test_of_a_config_it_says_what_that_reads(tmp_path):
  """The test split serves for validation, and what is held out is trained on."""
  place = {'source': f'{ROOT}/tests/fixtures/text/aclImdb_short.tar.gz', 'data_dir': str(tmp_path)}
  config, size = (
    f'{ROOT}/configs/text.py:gmm_prf,paper',
    {'data.num_train': 80, 'data.num_test': 40},
  )

  def use(**changes):
    fields = configuration.resolve(command_line.load(config, size | changes))
    builder = configuration.open_data(fields, task_name=None, **place)
    datasets.prepare(builder)
    return uses(prepare.describe(builder, fields))

  done = subprocess.run(
    [*COMMAND, f'--config={config}', *(f'--config.{name}={value}' for name, value in size.items()),
     *(f'--{name}={value}' for name, value in place.items())],
    cwd=ROOT, capture_output=True, text=True, env=environment(), check=True,
  )  # fmt: skip
  data = text.TextData(validation='test', num_train=80, num_test=40)
  builder = text.make_builder(data, **place)  # What training reads.
  read = [len(builder.as_data_source(split)) for split in ('train', 'validation', 'test')]
  assert read == [80, 40, 40]
  assert uses(done.stdout) == use() == [
    'trains on 80 examples: train+validation',
    'validates on 40 examples: test',
    'tests on 40 examples: test',
  ]  # fmt: skip
  assert use(**{'data.validation': 'holdout'})[:2] == [
    'trains on 72 examples: train', 'validates on 8 examples: validation'
  ]  # fmt: skip
  few = use(num_eval_steps=2, batch_size=8)
  assert few[1] == 'validates on 16 examples: the first of test'
  assert use(num_eval_steps=99) == use()


@pytest.mark.slow
def test_data_of_a_config(tmp_path):
  config = f'--config={ROOT}/configs/listops.py:gmm_prf,tiny'
  sizes = [f'--config.data.num_{name}={size}' for name, size in (('train', 30), ('valid', 20))]
  done = subprocess.run(
    [*COMMAND, config, *sizes, f'--data_dir={tmp_path}'],
    cwd=ROOT, capture_output=True, text=True, env=environment(), check=True,
  )  # fmt: skip
  assert 'generated_8_64_d4_a5_30_20_64_s0' in done.stdout


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--task is required, one of: listops'),
    (['--task=listop'], r"unknown task 'listop' \(did you mean 'listops'\?\)"),
    (['--task=listops', 'x'], 'unknown arguments: x'),
    (['--task=listops', '--source={empty}'], 'lacks basic_train.tsv'),
    (['--task=listops', '--source={tsv}', '--task_name=mine'], 'lacks mine_train.tsv'),
    (['--task=listops', '--task_name=../x'], 'task_name=.* must be the prefix'),
    (['--task=listops', '--source={tsv}', '--data_dir={file}'], 'cannot prepare .* data_dir'),
  ],
)
def test_errors_are_one_line(tsv, tmp_path, capsys, arguments, message):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'empty').mkdir()
  places = {'tsv': tsv, 'empty': tmp_path / 'empty', 'file': tmp_path / 'file'}
  data_dir = f'--data_dir={tmp_path}/data'
  code, output, errors = run(capsys, data_dir, *(text.format(**places) for text in arguments))
  assert (code, output) == (1, '')
  assert re.match(f'error: .*{message}', errors)
  assert errors.count('\n') == 1


@pytest.mark.parametrize('number', slow_but([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]))
def test_interruption_leaves_nothing(tmp_path, number):
  process = subprocess.Popen(
    [*COMMAND, '--task=listops', f'--data_dir={tmp_path}'],
    cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  wait_for(process, lambda: list(tmp_path.glob('listops/*/*incomplete*')))
  time.sleep(0.5)  # TFDS minds the directory from shortly after it is there.
  process.send_signal(number)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number, output
  assert output.endswith('interrupted: nothing was prepared\n')
  assert not list(tmp_path.glob('listops/*/*'))


@pytest.mark.slow
def test_a_run_that_is_stopped_while_its_data_is_prepared_leaves_nothing(tmp_path):
  process = start(tmp_path, tmp_path / 'run', config='listops.py:gmm_prf')
  wait_for(process, lambda: list(tmp_path.glob('data/listops/*/*incomplete*')))
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  assert 'interrupted: the same command goes on' in finish(process, 143)
  assert not list(tmp_path.glob('data/listops/*/*'))


@pytest.mark.slow
def test_help():
  done = subprocess.run(
    [*COMMAND, '--help'], cwd=ROOT, capture_output=True, text=True, env=environment(), check=False
  )
  for flag in ('--task', '--data_dir', '--source', '--task_name'):
    assert f'{flag}:' in done.stdout
  assert 'python -m lra_tasks.prepare --task=listops' in done.stdout
