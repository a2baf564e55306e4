import collections
import functools
import json
import os
import re

import numpy as np
import pytest

from kl_flax.tokenizers import ByteTokenizer
from lra_tasks.files import read_json
from lra_tasks.runs import rundir
from lra_tasks.runs.finished import DamagedRun
from lra_tasks.runs.origin import find_origin

STATE = {'w': np.zeros(2**18, np.float32)}  # 1 MiB


def description(**config):
  return {
    'config': {'warmup': 10, **config}, 'config_id': 'abc', 'dataset': 'd', 'model': {'dtype': 'f'},
    'task': 'text', 'tokenizer': {'type': 'bytes'}, 'x': 1,
  }  # fmt: skip


def open_run(model_dir, about, state, **options):
  """Take a directory and give it back."""
  with rundir.open_run(model_dir, about, state, **options) as found:
    return found


def test_a_run_can_be_continued(tmp_path):
  open_run(str(tmp_path / 'a/b'), description(), STATE, resume=True)
  open_run(str(tmp_path / 'a/b'), {**description(), 'x': 2}, STATE, resume=True)
  found = read_json(str(tmp_path / 'a/b/config.json'))
  assert found == {**description(), 'x': 2, 'sessions': [{}]}
  assert rundir.stored_dtype(str(tmp_path / 'a/b')) == 'f'
  assert rundir.stored_dtype(str(tmp_path)) is None


def test_fields_that_do_not_touch_parameters_may_change(tmp_path):
  open_run(str(tmp_path), description(eval_samples=1), STATE, resume=True)
  open_run(str(tmp_path), description(eval_samples=100), STATE, resume=True)


def test_another_run_is_refused_and_the_difference_shown(tmp_path):
  open_run(str(tmp_path), description(), STATE, resume=True)
  with pytest.raises(ValueError, match=r'(?s)holds another run.*config\.warmup: 10 there, 20 now'):
    open_run(str(tmp_path), description(warmup=20), STATE, resume=True)


def test_restore_checkpoints_false_wants_an_empty_directory(tmp_path):
  open_run(str(tmp_path), description(), STATE, resume=False)
  with pytest.raises(ValueError, match='restore_checkpoints is False'):
    open_run(str(tmp_path), description(), STATE, resume=False)


def test_directories_that_cannot_be_made_are_refused_before_data_is_read(tmp_path):
  (tmp_path / 'file').write_text('')
  check = functools.partial(rundir.check_run, fields={}, source=None, resume=True)
  with pytest.raises(OSError, match=r'--model_dir=.*file/run cannot be written: Not a directory'):
    check(f'{tmp_path}/file/run')
  check(f'{tmp_path}/file/run', write=False)
  check(f'{tmp_path}/deep/run')
  assert [path.name for path in tmp_path.iterdir()] == ['file']  # Nothing was made.


def test_unwritable_directories_are_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'--model_dir=.*file/run cannot be written'):
    open_run(str(tmp_path / 'file/run'), description(), STATE, resume=True)


def test_a_full_disk_is_said_at_the_start(tmp_path, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr('shutil.disk_usage', lambda path: usage(10, 10, 3 * 2**20))
  with pytest.raises(OSError, match='has 3 MiB free; the checkpoints of this run need 4 MiB: make'):
    open_run(str(tmp_path), description(), STATE, resume=True)
  assert not (tmp_path / 'config.json').exists()
  # What is there already, in a run that is continued, need not fit once more.
  (tmp_path / 'checkpoints/10').mkdir(parents=True)
  (tmp_path / 'checkpoints/10/state').write_bytes(bytes(2**20))
  open_run(str(tmp_path), description(), STATE, resume=True)


def test_a_run_without_checkpoints_needs_no_room(tmp_path, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr('shutil.disk_usage', lambda path: usage(10, 10, 0))
  open_run(str(tmp_path), description(save_checkpoints=False), STATE, resume=True)


def test_what_the_config_tells_is_said_before_there_is_data(tmp_path):
  check = lambda source, resume=True, **fields: rundir.check_run(
    str(tmp_path), {'warmup': 10, 'dtype': 'auto'} | fields, source, resume=resume
  )
  check(None)
  stored = description(dtype='float32') | {'dataset': 'image/x/1.0.0', 'from_source': True}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  check('there')
  with pytest.raises(ValueError, match='a run on image/x/1.0.0, .* give the same --source again'):
    check(None)
  with pytest.raises(ValueError, match=r'(?s)holds another run.*config\.warmup: 10 there, 20 now'):
    check('there', warmup=20)
  with pytest.raises(ValueError, match="config.dtype: 'float32' there, 'bfloat16' now"):
    check('there', dtype='bfloat16')
  with pytest.raises(ValueError, match='restore_checkpoints is False'):
    check('there', resume=False)


def test_a_run_is_for_one_process_at_a_time(tmp_path):
  options = {'resume': True}
  with rundir.open_run(str(tmp_path), description(), STATE, **options):
    words = f'another process is at work on this run, process {os.getpid()} on'
    with (
      pytest.raises(ValueError, match=words),
      rundir.open_run(str(tmp_path), description(), STATE, **options),
    ):
      pass
    with rundir.open_run(str(tmp_path), description(), STATE, write=False, **options):
      pass  # To read is free.
  open_run(str(tmp_path), description(), STATE, **options)


def test_a_run_knows_all_that_it_was_made_by(tmp_path):
  revisions = ['a', 'a', 'b', 'b', 'a']
  for revision in revisions:
    about = {**description(), 'git_revision': revision, 'device': 'x', 'versions': {'jax': '0'}}
    found = open_run(str(tmp_path), about, STATE, resume=True)
  assert [session['git_revision'] for session in found['sessions']] == ['a', 'b', 'a']
  assert read_json(str(tmp_path / 'config.json')) == found


@pytest.mark.parametrize('name', ['4de9781', '5e32c67e1683', 'ab' * 20, '4de9781664bc-dirty'])
def test_the_environment_names_the_revision(monkeypatch, name):
  monkeypatch.setenv('GIT_REVISION', name)
  assert rundir._git_revision() == name


@pytest.mark.parametrize(
  'name', ['4de978', 'ab' * 20 + 'a', 'main', 'HEAD~1', '4de9781 ', 'v1.0.0']
)
def test_what_is_no_revision_is_refused(monkeypatch, name):
  monkeypatch.setenv('GIT_REVISION', name)
  with pytest.raises(
    ValueError, match=f'^GIT_REVISION={name!r} names no revision: it must be 7 to'
  ):
    rundir._git_revision()


def test_what_a_run_was_told_at_its_start_is_stored(tmp_path):
  assert rundir.stored_task_name(str(tmp_path)) is None
  assert find_origin(None, str(tmp_path)).label == ''
  about = description(pretrained='wikitext/m/id/seed0/step1')
  about |= {'task_name': 'agnews', 'init_from': '/a'}
  open_run(str(tmp_path), about, STATE, resume=True)
  assert rundir.stored_task_name(str(tmp_path)) == 'agnews'
  found = find_origin(None, str(tmp_path))
  assert (found.label, found.model_dir) == ('wikitext/m/id/seed0/step1', '/a')
  assert found.tokenizer == ByteTokenizer()
  with pytest.raises(ValueError, match='give --init_from again .it was /a.'):
    found.check_start()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': None, 'task': None}, 'missing: model, task'),
    ({'config': 'of something else'}, 'config is "of something else": expected an object'),
    ({'dataset': 7}, 'dataset is 7: expected a string'),
  ],
)
def test_a_config_of_something_else_is_named(tmp_path, changes, message):
  found = {**description(), **changes}
  found = {name: value for name, value in found.items() if value is not None}
  (tmp_path / 'config.json').write_text(json.dumps(found))
  match = re.escape(f'{tmp_path}/config.json: {message}; move the run away, or restore the file')
  stored_origin = functools.partial(find_origin, None)
  for ask in (rundir.stored_dtype, stored_origin, rundir.stored_task_name):
    with pytest.raises(DamagedRun, match=match):
      ask(str(tmp_path))
  with pytest.raises(DamagedRun, match=match):
    rundir.check_run(str(tmp_path), {'dtype': 'auto'}, None, resume=True)


def test_another_data_set_is_another_run(tmp_path):
  config = {'task': 'text', 'dtype': 'auto'}
  check = lambda name: rundir.check_run(str(tmp_path), config, None, name, resume=True)
  for stored, other in ((None, 'agnews'), ('agnews', 'imdb_reviews')):
    about = {**description(), 'config': config | {'dtype': 'float32'}, 'task_name': stored}
    (tmp_path / 'config.json').write_text(json.dumps(about))
    check(None)
    check(stored or 'imdb_reviews')
    own = stored or 'imdb_reviews'
    with pytest.raises(ValueError, match=f"task_name: '{own}' there, '{other}' now"):
      check(other)
