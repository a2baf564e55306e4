"""Tests of how commands begin and end."""

import pytest
from absl import flags

from lra_tasks import benchmark, gradient_statistics, inspect_run, prepare, sweep, variance
from lra_tasks.console import one_line_errors, parse_flags


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (ValueError('no such task'), 1, 'error: no such task'),
    (OSError('no room'), 1, 'error: no room'),
    (FileNotFoundError(2, 'No such file or directory', 'a/b'), 1, 'error: a/b: No such file or d'),
    (ImportError("No module named 'matplotlib'"), 1, "named 'matplotlib'; pip install matplotlib"),
    (KeyboardInterrupt(), 130, 'interrupted'),
  ],
)
def test_what_a_user_can_mend_is_one_line(capsys, error, code, line):
  @one_line_errors
  def main(argv):
    raise error

  assert main([]) == code
  found = capsys.readouterr().err
  assert line in found
  assert found.count('\n') == 1


@pytest.mark.parametrize('error', [ImportError("No module named 'grain'"), KeyError('a')])
def test_anything_else_shows_where(error):
  @one_line_errors
  def main(argv):
    raise error

  with pytest.raises(type(error)):
    main([])


@pytest.mark.parametrize(('returned', 'code'), [(None, 0), (0, 0), (130, 130)])
def test_exit_codes_pass(returned, code):
  assert one_line_errors(lambda argv: returned)([]) == code


@pytest.mark.parametrize(
  'command',
  [benchmark, gradient_statistics, inspect_run, prepare, sweep, variance],
  ids=lambda command: command.__name__.rpartition('.')[2],
)
def test_help_shows_every_flag(command):
  """Also those that are defined by functions which several commands share."""
  values = flags.FlagValues()
  command.define_flags(values)
  assert {flag.name for flag in values.get_key_flags_for_module(command)} == set(values)


def test_a_wrong_flag_is_one_line(capsys):
  with pytest.raises(SystemExit) as stopped:
    parse_flags(['report', '--nonsense=1'])
  assert stopped.value.code == 1
  message = "error: Unknown command line flag 'nonsense' (--help lists all flags)\n"
  assert capsys.readouterr().err == message
