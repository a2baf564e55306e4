"""Tests of command lines with a --config."""

import os
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from run_helpers import ROOT

from lra_tasks import command_line

# A file that, as LRA's own do, names no more than what its model changes.
LRA_FILE = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({'model_type': 'transformer', 'batch_size': 32})
"""
# For commands that start in another directory.
PATH_HERE = {'PYTHONPATH': str(ROOT)}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('listops.py:gmm_prf,papper', "unknown preset 'papper' (did you mean 'paper'?); known: lra,"),
    ('pathfinder64.py:gmm_prf,papper', "unknown preset 'papper'"),
    ('listops.py:gmm_rpf', "unknown model_type 'gmm_rpf' (did you mean 'gmm_prf'"),
    ('listops.py:gmm_rpf --config.attention.x=1', "unknown model_type 'gmm_rpf'"),
    ('listops.py:gmm_prf --config.batchsize=1', "did you mean 'batch_size'"),
    ('listops.py:gmm_prf --config.batch_size=x', '--config.batch_size=x: invalid literal for int'),
    ('listops.py:gmm_prf --config.attention.tide=1', "attention option of gmm_prf 'tide' (did you"),
    ('listops.py:gmm_prf --config.attention=1', '--config.attention=1: Failed to parse'),
    (
      'listops.py:gmm_prf --config.data.num_trian=3',
      "unknown data option of listops 'num_trian' (did you mean 'num_train'?); known: ",
    ),
    (
      'quickstart.py:gmm_prf --config.data.num_trian=3',
      "unknown data option 'num_trian' (did you mean 'num_train'?); known: ",
    ),
    ('listops.py:gmm_prf --config.task.x=3', "config field 'task' is one value"),
    ('listops.py:gmm_prf --sauce=3', "flag 'sauce' (--help lists all flags)"),
  ],
)
@pytest.mark.filterwarnings('ignore:.*load_module:DeprecationWarning')  # In ml_collections.
def test_wrong_command_lines_are_one_line(arguments, message, monkeypatch, capsys):
  argv = ['train', *f'--config={ROOT}/configs/{arguments}'.split()]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  monkeypatch.setattr(flags, 'FLAGS', values)
  monkeypatch.setattr(sys, 'argv', argv)  # Where config_flags looks for --config.FIELD.
  with pytest.raises(SystemExit) as stop:
    command_line.parse_flags(argv)
  error = capsys.readouterr().err
  assert stop.value.code == 1
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert message in error


@pytest.mark.slow
def test_the_command_ends_with_one_line():
  command = [sys.executable, '-m', 'lra_tasks.train', '--config=configs/image.py:gmm_prf,papper']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr.startswith("error: unknown preset 'papper'")
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=configs/listop.py:gmm_prf'], "unknown file of configs 'listop.py' (did you mean"),
    (['--config=nowhere/x.py'], '--config: nowhere/x.py does not exist, seen from '),
    (['--config=bad.py'], 'bad.py, line 1: invalid syntax'),
    (['--config=lra.py', '--config.data.num_train=2'], 'the config has no field data, add it to'),
    (
      ['--config=lra.py', '--task=text', '--config.evalsamples=2'],
      "unknown config field 'evalsamples' (did you",
    ),
    ([], '--config is required, such as --config=configs/listops.py:gmm_prf'),
  ],
)
def test_command_lines_that_cannot_be(arguments, message, tmp_path, capsys, monkeypatch):
  (tmp_path / 'configs').symlink_to(f'{ROOT}/configs')
  (tmp_path / 'bad.py').write_text('def get_config(:')
  (tmp_path / 'lra.py').write_text(LRA_FILE)
  monkeypatch.chdir(tmp_path)
  command = [sys.executable, '-m', 'lra_tasks.train', '--model_dir=run', *arguments]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ | PATH_HERE)
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr.startswith(f'error: {message}')
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()


@pytest.mark.filterwarnings('ignore:.*load_module:DeprecationWarning')  # In ml_collections.
def test_the_command_line_tells_what_it_changed(tmp_path, monkeypatch):
  (tmp_path / 'lra.py').write_text(LRA_FILE)
  argv = ['train', f'--config={tmp_path}/lra.py', '--config.batch_size=8']
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  monkeypatch.setattr(sys, 'argv', argv)  # Where config_flags looks for --config.FIELD.
  values(argv)
  assert config_flags.get_override_values(values['config']) == {'batch_size': 8}


def test_colons_are_for_configs_alone():
  config = f'--config={ROOT}/configs/text.py:gmm_prf'
  words = ['--model_dir=runs/2026-11-23T10:00', '--source=gs://bucket/x', config]
  assert command_line._missing_file(['nowhere:train', *words]) is None
  assert 'nowhere/x.py' in command_line._missing_file(['train', '--config', 'nowhere/x.py:x'])


def test_a_config_is_loaded_and_changed():
  file = f'{ROOT}/configs/listops.py:gmm_prf,tiny'
  config = command_line.load(file, {'warmup': 7, 'attention.tied': False})
  assert (config.warmup, config.attention.tied) == (7, False)
  with pytest.raises(ValueError, match="unknown config field 'warm'"):
    command_line.load(file, {'warm': 7})
  with pytest.raises(ValueError, match='warmup=x: invalid literal'):
    command_line.load(file, {'warmup': 'x'})
  # As the training command reads them, not as Python does.
  with pytest.raises(ValueError, match='hidden_dim=None: invalid literal'):
    command_line.load(file, {'hidden_dim': 'None'})
  other = f'{ROOT}/configs/listops.py:transformer'
  with pytest.raises(ValueError, match="option of transformer 'num_frequencies'; known: none"):
    command_line.load(other, {'attention.num_frequencies': 64})
