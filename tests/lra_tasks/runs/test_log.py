import json
import logging
import math
import time

import numpy as np
import pytest

from lra_tasks.console import Progress
from lra_tasks.files import read_json, write_json
from lra_tasks.runs.log import RunLog


def test_records_behind_the_resumed_step_are_dropped(tmp_path):
  log = RunLog(str(tmp_path), 0, time.monotonic())
  for step in (10, 20, 30):
    log.add({'step': step, 'train_loss': 1.0, 'steps_per_second': None})
  log.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 40, "train_lo')  # A kill may cut a line.
  log = RunLog(str(tmp_path), 20, time.monotonic())
  assert [r['step'] for r in log.records] == [10, 20]
  log.add({'step': 30})
  log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [10, 20, 30]
  assert list((tmp_path / 'summary').iterdir())


def test_wall_time_goes_on_across_processes(tmp_path):
  log = RunLog(str(tmp_path), 0, time.monotonic() - 100)
  log.add({'step': 1})
  log.close()
  log = RunLog(str(tmp_path), 1, time.monotonic() - 10)
  log.add({'step': 2})
  log.close()
  assert log.records[1]['wall_time_seconds'] == pytest.approx(110, abs=1)


def test_other_processes_write_nothing(tmp_path):
  log = RunLog(str(tmp_path), 0, time.monotonic(), write=False)
  log.add({'step': 1})
  log.close()
  assert [r['step'] for r in log.records] == [1]
  assert not list(tmp_path.iterdir())


def test_json_is_whole_or_absent(tmp_path):
  path = str(tmp_path / 'results.json')
  assert read_json(path) is None
  write_json(path, {'a': 1})
  assert read_json(path) == {'a': 1}
  with pytest.raises(TypeError):
    write_json(path, {'a': object()})
  assert read_json(path) == {'a': 1}


def test_files_are_json_whatever_the_numbers(tmp_path):
  """JSON has neither infinity nor NaN; other readers than Python's refuse them."""
  bad = [math.inf, -math.inf, math.nan]
  values = {'x': bad[0], 'deep': [{'y': np.float64(bad[1])}, (1.5, bad[2])], 'n': 3, 'none': None}
  read = lambda text: json.loads(text, parse_constant=pytest.fail)
  write_json(str(tmp_path / 'results.json'), values)
  found = read((tmp_path / 'results.json').read_text())
  assert found == {'x': None, 'deep': [{'y': None}, [1.5, None]], 'n': 3, 'none': None}
  for step in (1, 2):  # What is taken over from the file, too.
    log = RunLog(str(tmp_path), step, time.monotonic())
    log.add({'step': step, 'train_norm': bad[0]})
    log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [read(line)['train_norm'] for line in lines] == [None, None]


def test_progress_logs_lines_where_there_is_no_terminal(caplog):
  logging.getLogger('lra_tasks').propagate = True
  with caplog.at_level(logging.INFO, 'lra_tasks'), Progress(100, log_seconds=0) as progress:
    progress.restart_clock(1)
    assert progress.due()
    progress.update(1, loss=2.5)  # No step was timed yet.
    progress.update(40, loss=1.25)
  first, message = caplog.messages
  assert first == 'step 1/100  loss 2.5000'
  assert message.startswith('step 40/100  loss 1.2500')
  assert 'steps/s' in message
  assert message.endswith('s left')
