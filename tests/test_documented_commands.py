"""Command lines in pages, docstrings and messages are such as the commands take; none is run."""

import ast
import contextlib
import functools
import importlib
import io
import itertools
import pathlib
import re
from unittest import mock

import pytest
from absl import flags

from kl_flax.models import get_row
from lra_tasks import command_line, configuration
from lra_tasks.paper import PAPER_MODELS
from lra_tasks.sweeps.jobs import Job, make_jobs
from lra_tasks.tasks import TASKS, get_task

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
  str(path.relative_to(ROOT)): path
  for pattern in ('*.md', 'docs/*.md', 'configs/*.py', 'kl_flax/**/*.py', 'lra_tasks/**/*.py')
  for path in sorted(ROOT.glob(pattern))
  if re.search(r'python3? -m |--[a-z]|configs/', path.read_text(encoding='utf-8'))
}
OURS = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts)
  for folder in ('kl_flax', 'lra_tasks')
  for path in ROOT.glob(f'{folder}/**/*.py')
  if "__name__ == '__main__'" in path.read_text(encoding='utf-8')
}
OTHERS = {'pytest', 'venv'}
# Of jupytext, absl and git.
FLAGS_OF_OTHERS = {'to', 'set-kernel', 'execute', 'verbosity', 'always', 'dirty', 'abbrev', 'error'}
# A word of a command line; what stands between quotes belongs to it.
WORD = r"(?:'[^']*'|[^\s'`;])+"
COMMAND = re.compile(rf'(?:python3? -m |`(?=\w+\.[\w.]+ --))([a-z][\w.]*)((?: +{WORD})*)')
FLAGS_ALONE = re.compile(rf'`(--\w{WORD}(?: +{WORD})*)`')
CONFIG = re.compile(r'(?<!/)configs/([a-z]\w*)\.py(?::([a-z][\w,]*))?')
# DIR, TASK=PATH, variables that are set elsewhere, and the model that a page adds.
STANDS_FOR_OTHERS = re.compile(r'\.\.\.|\$|\b[A-Z]|\bwindow_mean\b')


# What is documented.


def strings(path):
  """Yield a page without its fences, or the strings of a source: docstrings and messages."""
  text = path.read_text(encoding='utf-8')
  if path.suffix == '.md':
    yield re.sub(r'^ *```.*$', '', text, flags=re.M)
  else:
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


@functools.cache
def paragraphs(name):
  """Return what stands between empty lines in a file, each command in a line of its own."""
  found = []
  for string in strings(FILES[name]):
    for paragraph in re.split(r'\n[ \t]*\n', string):
      # Lines go on behind a backslash, before an option in brackets and within inline code.
      paragraph = re.sub(r' *\\\n\s*|\n\s+(?=\[--)', ' ', paragraph)
      found.append(re.sub('`[^`]+`', lambda code: ' '.join(code[0].split()), paragraph))
  return found


def substituted(line, paragraph):
  """Yield a line with each value of the shell variables that the same paragraph sets."""
  values = {name: [value] for name, value in re.findall(r'^ *(\w+)=(\S+)$', paragraph, re.M)}
  values |= {name: v.split() for name, v in re.findall(r'\bfor (\w+) in ([^;]+);', paragraph)}
  variable = re.compile(r'\$\{?(\w+)\}?')
  names = sorted(set(variable.findall(line)) & values.keys())
  for chosen in itertools.product(*(values[name] for name in names)):
    known = dict(zip(names, chosen, strict=True))
    yield variable.sub(lambda match, known=known: known.get(match[1], match[0]), line)


@functools.cache
def commands(name):
  """Return module and words of a file's command lines; of flags without a command, None."""
  found = []
  for paragraph in paragraphs(name):
    lines = [match.groups() for match in COMMAND.finditer(paragraph)]
    lines += [(None, match[1]) for match in FLAGS_ALONE.finditer(paragraph)]
    for module, rest in lines:
      rest = re.split(r' (?:&&|\|\|?) ', rest)[0]
      for line in substituted(rest, paragraph):
        # '[--seed=N]' is an option that may be left out; a comma belongs to the sentence.
        words = [re.sub(r'^\[(--.*)\]$', r'\1', word).rstrip(',') for word in line.split()]
        found.append((module, tuple(words)))
  return [(module, words) for module, words in dict.fromkeys(found) if module not in OTHERS]


# What the commands take.


def require(condition, message):
  if not condition:
    raise ValueError(message)


@functools.cache
def flags_of(module):
  """Return the flags of a command by name; for those of argparse None."""
  require(module in OURS, f'there is no command {module}')
  command = importlib.import_module(module)
  if hasattr(command, 'define_flags'):
    values = flags.FlagValues()
    command.define_flags(values)
    return {name: values[name] for name in values}
  if own := flags.FLAGS.get_key_flags_for_module(module):
    return {flag.name: flag for flag in own}
  with (
    mock.patch('sys.argv', [module, '--help']),
    contextlib.redirect_stdout(io.StringIO()) as text,
    contextlib.suppress(SystemExit),
  ):
    command.main()
  return dict.fromkeys(re.findall(r'--(\w+)', text.getvalue()))


def parse(module, words, alone):
  """Return {flag: texts of its values} and {field: text} of the config's changes.

  Values that stand for others are left out; of op|step each counts.
  """
  known, given, changes = flags_of(module), {}, {}
  for word in words:
    if not word.startswith('--'):
      continue
    name, equals, value = word[2:].partition('=')
    require(name.partition('.')[0] in known, f'{module} has no --{name}')
    flag, choices = known.get(name), value.strip("'").split('|')
    require(equals or alone or flag is None or flag.boolean, f'--{name} wants a value')
    if not equals or STANDS_FOR_OTHERS.search(word):
      continue
    if name.startswith('config.'):
      changes[name.removeprefix('config.')] = value
      continue
    given.setdefault(name, []).extend(choices)
    if flag is not None and name != 'config':
      for choice in choices:
        flag.parser.parse(choice)
  return given, changes


@functools.cache
def load(config, changes=()):
  """Return the resolved config that --config=FILE:ARGUMENT and --config.FIELD=VALUE mean."""
  return Job('', str(ROOT / config), '', 0, changes).fields()


def check(module, words, alone=False):
  """Check a command line, or flags that are mentioned alone, perhaps without their values.

  Raises:
    ValueError: for flags, tasks, models, presets, fields, data and files that are not there.
  """
  given, changes = parse(module, words, alone)
  listed = lambda name: [part for value in given.get(name, ()) for part in value.split(',')]
  tasks, models = listed('task'), listed('models')
  for task in tasks:
    get_task(task)
  for model in models:
    get_row(model)
  for config in given.get('config', ()):
    tasks.append(load(config, tuple(changes.items()))['task'])
    for model in models:  # As the benchmark names them.
      load(re.sub(r':\w+', f':{model}', config))
  problem = command_line.find_unknown_field(f'--config.{field}=' for field in changes)
  require(problem is None, problem)
  for name in listed('task_name'):
    check_data_set(name, tasks)
  if 'tasks' in given:
    make_jobs(
      listed('tasks'), models or PAPER_MODELS, [0], preset=given.get('preset', [None])[0],
      changes=given.get('set', ()), tried=given.get('try', [None])[0],
      configs=str(ROOT / 'configs'),
    )  # fmt: skip
  for value in (*words, *given.get('out', ()), *given.get('output', ())):
    require(not value.startswith('docs/') or any(ROOT.glob(value)), f'there is no {value}')


def check_data_set(name, tasks):
  """Raise a ValueError unless a task has a data set of this name; ListOps takes any for a file."""
  for task in tasks or TASKS.keys() - {'listops'}:
    with contextlib.suppress(ValueError):
      fields = {'task': task, 'data': {}}
      configuration.open_data(fields, data_dir='nowhere', source=None, task_name=name)
      return
  raise ValueError(f'no task has a data set {name}')


def problem_of(module, words):
  """Return what is wrong with a command line, or None; flags alone must fit some command."""
  names = {word[2:].partition('=')[0].partition('.')[0] for word in words if word[:2] == '--'}
  having = [command for command in sorted(OURS) if names <= flags_of(command).keys()]
  problem = 'no command has these flags'
  for candidate in [module] if module else having:
    try:
      check(candidate, words, alone=module is None)
      return None
    except (ValueError, OSError) as error:
      problem = error
  return f'{module or ""} {" ".join(words)}: {problem}'


def all_problems():
  """Yield what is wrong in all files: command lines, flags in running text, named configs."""
  known = FLAGS_OF_OTHERS.union(*map(flags_of, OURS))
  for name in FILES:
    yield from ((name, problem_of(*command)) for command in commands(name))
    for text in paragraphs(name):
      found = re.findall(r'(?<![\w-])--([a-z]\w*)', text)
      yield from ((name, f'no command has --{flag}') for flag in found if flag not in known)
      for file, argument in CONFIG.findall(text):
        yield name, problem_of_config(f'configs/{file}.py', argument)


def problem_of_config(file, argument):
  """Return what is wrong with a config that is named, or None."""
  if argument and not STANDS_FOR_OTHERS.search(argument):
    return problem_of('lra_tasks.train', (f'--config={file}:{argument}',))
  return None if (ROOT / file).exists() else f'there is no {file}'


def test_commands_take_what_is_documented():
  assert not [(name, problem) for name, problem in all_problems() if problem]


# What is read, and what is refused.


def test_every_command_is_documented():
  assert {module for name in FILES for module, _ in commands(name)} == {None, *OURS}


def test_variables_have_the_values_of_their_block():
  found = {words[0] for _, words in commands('README.md') if 'quickstart.py' in str(words)}
  models = ('gmm_prf', 'transformer')
  assert found == {f'--config=configs/quickstart.py:{model}' for model in models}
  found = [words for _, words in commands('docs/mechanisms.md') if '--tasks=listops' in words]
  assert [word.count(',') for words in found for word in words if 'models' in word] == [12]
  assert list(substituted('$c/${d}', 'e=3\nfor d in 1 2; do')) == ['$c/1', '$c/2']


MISTAKES = {
  'lra_tasks.sweep --tasks=cola --models=gmm_prf --try=learningrate=1,2': 'learning_rate',
  'lra_tasks.trains --test_only': 'there is no command',
  'lra_tasks.tasks --task=listops': 'there is no command',
  'lra_tasks.report --test_only': 'has no --test_only',
  'lra_tasks.report --output': 'wants a value',
  'lra_tasks.report --format=table|tables': 'should be one of',
  'lra_tasks.benchmark --lengths=1k': 'invalid literal',
  'lra_tasks.data.pathfinder_report --sides=32': 'has no --sides',
  'lra_tasks.speed_plots --out=docs/speed docs/speed/none*.json': 'there is no docs/speed/none',
  'lra_tasks.prepare --task=listop': "unknown task 'listop'",
  'lra_tasks.train --config=configs/listops.py:gmm': "unknown model_type 'gmm'",
  'lra_tasks.train --config=configs/listops.py:gmm_prf,papers': "unknown preset 'papers'",
  'lra_tasks.train --config=configs/listop.py:gmm_prf': 'No such file',
  'lra_tasks.train --config=configs/text.py:gmm_prf --config.batchsize=1': "field 'batchsize'",
  'lra_tasks.train --config=configs/text.py:gmm_prf --config.warmup=a': 'warmup=a: invalid literal',
  'lra_tasks.train --config=configs/text.py:gmm_prf --config.warmup=0': 'warmup must be',
  'lra_tasks.train --config=configs/text.py:gmm_prf --task_name=agnew': 'no task has a data set',
  'lra_tasks.benchmark --config=configs/text.py:gmm_prf,paper --models=gmm': "model_type 'gmm'",
  'lra_tasks.sweep --tasks=listop': "unknown task 'listop'",
  'lra_tasks.sweep --tasks=text --models=gmm_prf --preset=papers': "unknown preset 'papers'",
  'lra_tasks.sweep --tasks=text --models=gmm_prf --set=warm_up=1': "field 'warm_up'",
}


@pytest.mark.parametrize('line', MISTAKES)
def test_mistakes_are_found(line):
  module, *words = line.split()
  assert MISTAKES[line] in problem_of(module, tuple(words))


@pytest.mark.parametrize('line', ['--nothing', '--config.batchsize=1', '--test_only --format=csv'])
def test_mistakes_in_flags_alone_are_found(line):
  assert problem_of(None, tuple(line.split()))
