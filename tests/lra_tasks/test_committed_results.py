"""Tests of the runs that lie in the repository: what they say of themselves holds."""

import functools
import json
import subprocess

import pytest
from run_helpers import ROOT

from lra_tasks import configuration
from lra_tasks.experiments import RATE_SEARCH

FOLDERS = ('lra_tasks/results', 'docs/short_trainings', 'docs/analysis')


def descriptions(folder, name):
  """Return {path: contents} of all files of a name in and below a folder."""
  found = {path: json.loads(path.read_text()) for path in (ROOT / folder).rglob(name)}
  assert found, f'{folder} has no {name}'
  return found


def git(*arguments):
  return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@functools.cache
def is_a_revision(name):
  return git('cat-file', '-e', f'{name}^{{commit}}').returncode == 0


def has_history():
  """Whether ROOT is a checkout with all revisions: no installed copy, no shallow clone."""
  try:
    return git('rev-parse', '--show-prefix', '--is-shallow-repository').stdout == '\nfalse\n'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize('folder', FOLDERS)
def test_results_have_the_digests_of_their_configs(folder):
  for path, description in descriptions(folder, 'config.json').items():
    assert configuration.config_id(description['config']) == description['config_id'], path


@pytest.mark.parametrize('name', ['config.json', 'results.json'])
@pytest.mark.parametrize('folder', FOLDERS)
def test_results_are_of_revisions_that_there_are(folder, name):
  if not has_history():
    pytest.skip('there is no git history')
  for path, contents in descriptions(folder, name).items():
    of_sessions = [session['git_revision'] for session in contents.get('sessions', [])]
    # That of a run which several revisions made has all of them.
    for revision in {*(contents['git_revision'] or 'none').split(', '), *of_sessions}:
      assert is_a_revision(revision), f'{path}: there is no revision {revision}'


@pytest.mark.parametrize('folder', FOLDERS)
def test_results_have_the_ids_of_their_configs(folder):
  """New seeds of a row stand in it, as long as fields that came later are in `LATER_FIELDS`."""
  for path, found in descriptions(folder, 'config.json').items():
    assert configuration.config_id(found['config']) == found['config_id'], path
    if path.parent.parent.name == 'stopped':  # Before the test, which results.json tells of.
      assert not (path.parent / 'results.json').exists(), path
      continue
    results = json.loads((path.parent / 'results.json').read_text())
    assert results['config_id'] == found['config_id'], path
    if results.get('rates_id'):
      rates = configuration.config_id(found['config'], RATE_SEARCH)
      assert results['rates_id'] == rates, path
