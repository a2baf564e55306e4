import json
import subprocess
import sys

import pytest
from run_helpers import ROOT

from lra_tasks import speed_plots

WHERE = 'a device, jax 0.0'


def write(path, what, cases, task='text'):
  """Write a file of the benchmark with these (model, length, values), values in its own units."""
  record = {'what': what, 'task': task, 'machine': {'description': WHERE}, 'cases': []}
  for model, length, values in cases:
    quantities = [{'name': name, 'median': value} for name, value in values.items()]
    labels = {'model_type': model, 'max_length': length, 'batch_size': 4, 'dtype': 'float32'}
    record['cases'].append(labels | {'quantities': quantities})
  path.write_text(json.dumps(record))
  return path


def op(time):
  return {'forward': time, 'forward + backward': 3 * time}


def step(time, gib):
  return {'step': time, 'examples': 4e3 / time, 'step, whole memory': 1024 * gib}


@pytest.fixture
def op_file(tmp_path):
  cases = [
    ('transformer', 2048, op(8.192)),
    ('gmm_prf', 2048, op(2.048)),
    ('gmm_prf', 1024, op(1.024)),
    ('transformer', 1024, op(2.048)),
    ('transformer', 4096, {}),  # Out of memory.
  ]
  return write(tmp_path / 'op.json', 'op', cases)


@pytest.fixture
def step_file(tmp_path):
  cases = [
    ('gmm_prf', 1024, step(1.0, 1)),
    ('transformer', 1024, step(2.0, 4)),
    ('gmm_prf', 2048, step(2.0, 2)),
    ('transformer', 2048, step(8.0, 16)),
    ('gmm_prf', 4096, step(4.0, 4)),
  ]
  return write(tmp_path / 'step.json', 'step', cases)


def lines_of(axis):
  return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines()}


def test_crossover_shows_time_per_token(op_file):
  figure = speed_plots.crossover(speed_plots.load([op_file]))
  forward, both = figure.axes
  found = lines_of(forward)
  assert list(found) == ['gmm_prf', 'softmax']
  # 1.024 ms for 4 × 1,024 positions are 250 ns each.
  assert found['gmm_prf'] == [(1024, pytest.approx(250)), (2048, pytest.approx(250))]
  assert found['softmax'] == [(1024, pytest.approx(500)), (2048, pytest.approx(1000))]
  assert lines_of(both)['softmax'][1] == (2048, pytest.approx(3000))
  assert [text.get_text() for text in forward.get_xticklabels()] == ['1K', '2K']
  assert WHERE in figure.get_supxlabel()


def test_xla_has_a_line_of_its_own(tmp_path):
  path = write(tmp_path / 'op.json', 'op', [('gmm_prf', n, op(1.0)) for n in (8, 16)])
  record = json.loads(path.read_text())
  for case in list(record['cases']):
    record['cases'].append(case | {'program': 'xla'})
    case['program'] = 'fused'
  path.write_text(json.dumps(record))
  figure = speed_plots.crossover(speed_plots.load([path]))
  assert list(lines_of(figure.axes[0])) == ['gmm_prf', 'gmm_prf (XLA)']


def test_memory_over_length_is_in_gib(step_file):
  (axis,) = speed_plots.memory_over_length(speed_plots.load([step_file])).axes
  assert lines_of(axis) == {
    'gmm_prf': [(1024, 1), (2048, 2), (4096, 4)],
    'softmax': [(1024, 4), (2048, 16)],
  }


def test_memory_over_tasks_takes_the_longest_sequences(tmp_path, step_file):
  other = write(tmp_path / 'image.json', 'step', [('gmm_prf', 64, step(1.0, 0.5))], task='image')
  (axis,) = speed_plots.memory_over_tasks(speed_plots.load([step_file, other])).axes
  assert [text.get_text() for text in axis.get_xticklabels()] == ['text', 'image']
  # At 2,048: at 4,096 there is one model alone.
  assert sorted(bar.get_height() for bar in axis.patches) == [0.5, 2, 16]


def test_speed_table_is_relative_to_softmax(step_file):
  lines = speed_plots.speed_table(speed_plots.load([step_file])).splitlines()
  assert WHERE in lines[0]
  assert [cell.strip() for cell in lines[-2].strip('|').split('|')] == [
    'gmm_prf', '1,000 (2.00)', '500 (4.00)', '250', '1 (0.25)', '2 (0.12)', '4',
  ]  # fmt: skip
  assert lines[-1].endswith('| 500 (1.00) | 125 (1.00) | – | 4 (1.00) | 16 (1.00) | – |')


def test_the_command_writes_what_the_files_make(op_file, step_file, tmp_path):
  out = tmp_path / 'figures'
  command = [sys.executable, '-m', 'lra_tasks.speed_plots', f'--out={out}']
  done = subprocess.run([*command, op_file, step_file], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  names = ['crossover_text.png', 'memory_over_length_text.png', 'speed_text.md']
  assert [line.rpartition('/')[2] for line in done.stdout.splitlines()] == names
  assert all((out / name).stat().st_size > 100 for name in names)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{', 'is no file of lra_tasks.benchmark --out'),
    ('{"what": "op"}', 'is no file of lra_tasks.benchmark --out'),
    ('[1]', 'is no file of lra_tasks.benchmark --out'),
  ],
)
def test_other_files_are_refused(tmp_path, content, message):
  path = tmp_path / 'x.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    speed_plots.load([path])


def test_what_was_measured_differently_is_not_drawn_together(tmp_path, op_file):
  record = json.loads(op_file.read_text())
  other = tmp_path / 'other.json'
  for change in ({'machine': {'description': 'another'}}, {'cases': record['cases'][:1]}):
    other.write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match='another|measured twice: op, text, transformer, 2048'):
      speed_plots.load([op_file, other])
  record['cases'][0]['dtype'] = 'bfloat16'
  other.write_text(json.dumps(record))
  with pytest.raises(ValueError, match='measured alike, got bfloat16; float32'):
    speed_plots.load([other])


def test_too_little_to_draw_is_an_error(tmp_path):
  path = write(tmp_path / 'op.json', 'op', [('gmm_prf', 8, op(1.0))])
  with pytest.raises(ValueError, match='a figure needs two lengths or two tasks'):
    speed_plots.draw(speed_plots.load([path]), str(tmp_path / 'out'))
