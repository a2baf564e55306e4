import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from absl import flags
from report_helpers import RUN
from run_helpers import ROOT, environment

from lra_tasks import files, sweep
from lra_tasks.runs.finished import parse_run
from lra_tasks.sweep import render
from lra_tasks.sweeps import running as sweep_runs
from lra_tasks.sweeps.jobs import make_jobs
from lra_tasks.sweeps.running import Sweep, make_workers

CONFIGS = str(ROOT / 'configs')

# Stands for the training command: what it does goes by the model.
TRAINER = """
import json, os, pathlib, signal, sys, time
flags = dict(argument[2:].split('=', 1) for argument in sys.argv[1:])
folder = pathlib.Path(flags['model_dir'])
setting = json.loads(pathlib.Path(os.environ['SETTING']).read_text())
with open(os.environ['CALLS'], 'a') as file:
  file.write(json.dumps(sys.argv[1:]) + '\\n')
fields = setting['fields'][str(folder.relative_to(setting['runs']))]
if fields['model_type'] == 'prf':
  sys.exit(1)
partial = folder / 'config.json.tmp'  # Other workers read it meanwhile.
partial.write_text(json.dumps({'config': fields}))
partial.rename(folder / 'config.json')
if fields['model_type'] == 'rks' and not (folder / 'metrics.jsonl').exists():
  stopped = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: stopped.append(number))
  (folder / 'ready').touch()
  while not stopped:
    time.sleep(0.01)
  (folder / 'metrics.jsonl').write_text(json.dumps({'step': 7}) + '\\n')
  sys.exit(128 + stopped[0])
(folder / 'metrics.jsonl').write_text(json.dumps({'step': 9}) + '\\n')
result = setting['result'] | {'model': fields['model_type'], 'steps': fields['num_train_steps']}
result |= {'validation_accuracy': 1 - abs(fields['learning_rate'] - 0.2)}
partial.write_text(json.dumps(result))
partial.rename(folder / 'results.json')
"""
RESULT = {
  'task': 'listops', 'dataset': 'listops/x/1.0.0', 'comparable': True, 'preset': 'tiny',
  'split': 'test', 'accuracy': 0.375, 'examples': 8, 'majority_class': 0.25, 'seed': 0,
  'validation_is_test': False, 'eval_samples': 1, 'parameters': 10, 'base_parameters': 10,
  'steps_per_second': 1.0, 'peak_memory_bytes': None, 'device': '1 x cpu', 'config_id': 'c',
  'git_revision': None,
}  # fmt: skip


class Trial:
  """A folder of runs, and the trainer above."""

  def __init__(self, path, monkeypatch):
    self.runs, self._path = path / 'runs', path
    self._script, self._calls = path / 'trainer.py', path / 'calls'
    self._script.write_text(TRAINER)
    monkeypatch.setenv('SETTING', str(path / 'setting.json'))
    monkeypatch.setenv('CALLS', str(self._calls))

  def sweep(self, jobs, **options):
    fields = {job.name: job.fields() | {'dtype': 'bfloat16'} for job in jobs}
    setting = {'fields': fields, 'result': RESULT, 'runs': str(self.runs)}
    (self._path / 'setting.json').write_text(json.dumps(setting))
    command = (sys.executable, '-S', str(self._script))
    return Sweep(jobs, runs=str(self.runs), command=command, **options)

  def states(self, jobs, **options):
    return [outcome.state for outcome in self.sweep(jobs, **options).run().values()]

  def calls(self):
    """Models that were trained since this was asked last."""
    lines = self._calls.read_text().splitlines() if self._calls.exists() else []
    self._calls.unlink(missing_ok=True)
    return [json.loads(line)[0].partition(':')[2].partition(',')[0] for line in lines]


@pytest.fixture
def trial(tmp_path, monkeypatch):
  monkeypatch.setattr(sweep_runs, 'START_SECONDS', 0)
  monkeypatch.setattr(sweep_runs, '_SAVING', 0)
  return Trial(tmp_path, monkeypatch)


def jobs_of(*models, seeds=(0,), **options):
  return make_jobs(['listops'], models, seeds, preset='tiny', configs=CONFIGS, **options)


def test_jobs_take_one_seed_of_everything_first():
  jobs = make_jobs(['listops', 'text'], ['gmm_prf', 'prf'], [3, 1], configs=CONFIGS)
  assert [job.name for job in jobs] == [
    'listops/gmm_prf_paper_seed3', 'listops/prf_paper_seed3',
    'text/gmm_prf_paper_seed3', 'text/prf_paper_seed3',
    'listops/gmm_prf_paper_seed1', 'listops/prf_paper_seed1',
    'text/gmm_prf_paper_seed1', 'text/prf_paper_seed1',
  ]  # fmt: skip
  assert jobs[0].flags() == [
    f'--config={CONFIGS}/listops.py:gmm_prf,paper',
    '--config.random_seed=3',
  ]
  assert jobs[0].fields()['random_seed'] == 3


def test_models_of_a_task_have_one_preset():
  models = ['gmm_prf', 'transformer', 'prf']
  presets = lambda tasks, models, preset=None: {
    (job.task, job.fields()['preset'])
    for job in make_jobs(tasks, models, [0], preset=preset, configs=CONFIGS)
  }
  assert presets(['listops'], models, 'tiny') == {('listops', 'tiny')}
  assert presets(['listops'], ['transformer']) == {('listops', 'lra')}
  assert presets(['listops'], models) == {('listops', 'paper')}  # Their own differ.
  # Of one task: Pathfinder has no preset paper.
  both = {('listops', 'paper'), ('pathfinder32', 'lra')}
  assert presets(['listops', 'pathfinder32'], ['gmm_prf', 'prf']) == both
  assert presets(['pathfinder32', 'cola'], models) == {('pathfinder32', 'lra'), ('cola', 'paper')}


def rates_of(jobs, found):
  """Return (seed, rate, state) of each job."""
  return [
    (job.seed, job.changes[-1][1], outcome.state)
    for job, outcome in zip(jobs, found.values(), strict=True)
  ]


def test_later_seeds_take_the_value_that_was_best_with_the_first(trial):
  jobs = jobs_of('gmm_prf', seeds=(3, 1), changes=['warmup=5'], tried='learning_rate=0.9,2e-1,0.4')
  assert [job.name for job in jobs[:2]] == [
    'listops/gmm_prf_tiny_warmup=5_learning_rate=0.9_seed3',
    'listops/gmm_prf_tiny_warmup=5_learning_rate=2e-1_seed3',
  ]
  sweep = trial.sweep(jobs)
  assert rates_of(jobs, sweep.outcomes()) == [
    (3, '0.9', 'waiting'), (3, '2e-1', 'waiting'), (3, '0.4', 'waiting'),
    (1, '0.9', 'undecided'), (1, '2e-1', 'undecided'), (1, '0.4', 'undecided'),
  ]  # fmt: skip
  found = sweep.run()
  assert rates_of(jobs, found) == [
    (3, '0.9', 'finished'), (3, '2e-1', 'finished'), (3, '0.4', 'finished'),
    (1, '0.9', 'passed over'), (1, '2e-1', 'finished'), (1, '0.4', 'passed over'),
  ]  # fmt: skip
  assert len(trial.calls()) == 4
  text = render(found)
  assert 'seed1' in text
  assert 'passed over' not in text
  assert text.endswith('\n4 finished')
  # Again, and where only what is kept is left.
  assert trial.sweep(jobs).run() == found
  assert trial.calls() == []


def test_models_are_tried_apart_and_wait_for_a_value_that_does_not_fail(trial):
  # The second model's runs fail.
  jobs = jobs_of('gmm_prf', 'prf', seeds=(0, 1), tried='learning_rate=0.1,0.2')
  own = trial.sweep(jobs)
  assert 'until seed 0 has learning_rate=0.1, learning_rate=0.2' in render(own.outcomes())
  found = own.run()
  assert [outcome.state for outcome in found.values()] == [
    'finished', 'failed', 'finished', 'failed',
    'passed over', 'undecided', 'finished', 'undecided',
  ]  # fmt: skip
  assert 'until seed 0 has a value that does not fail' in render(found)
  assert len(trial.calls()) == 5  # None was tried twice.


def test_a_value_that_fails_takes_no_part(trial):
  """0.9 is as a training that diverges."""
  jobs = jobs_of('gmm_prf', seeds=(0, 1), tried='learning_rate=0.9,0.1,0.3')
  own = trial.sweep(jobs)
  (trial.runs / jobs[0].name).parent.mkdir(parents=True)
  (trial.runs / jobs[0].name).write_text('no directory can be made here')
  assert rates_of(jobs, own.run()) == [
    (0, '0.9', 'failed'), (0, '0.1', 'finished'), (0, '0.3', 'finished'),
    (1, '0.9', 'passed over'), (1, '0.1', 'finished'), (1, '0.3', 'passed over'),
  ]  # fmt: skip


def test_a_sweep_waits_for_what_another_one_makes(trial, monkeypatch):
  jobs = jobs_of('gmm_prf', seeds=(0, 1), tried='learning_rate=0.1,0.2')
  own, naps = trial.sweep(jobs), []
  with files.lock(trial.runs / jobs[0].name, sweep_runs._LOCK):

    def nap(seconds):
      naps.append(seconds)
      if len(naps) == 2:  # The other sweep has finished it.
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_runs.time, 'sleep', nap)
    with pytest.raises(KeyboardInterrupt):
      own.run()
  states = [outcome.state for outcome in own.outcomes().values()]
  assert states == ['waiting', 'finished', 'undecided', 'undecided']
  assert [outcome.state for outcome in own.run().values()][:2] == ['finished', 'finished']


def test_what_is_judged_by_a_metric_of_its_own_is_chosen_by_it():
  results = {
    'task': 'cola',
    'validation_is_test': True,
    'accuracy': 0.5,
    'validation_accuracy': 0.6,
  }
  score = lambda **more: sweep_runs._score(
    parse_run(RESULT | {'model': 'prf', 'steps': 9} | results | more, 'file')
  )
  assert score(matthews=0.25) == 0.25
  assert score(f1=0.75) == 0.75
  assert score(f1=0.75, judged_by='accuracy') == 0.5
  assert score() == 0.5
  # Of a split that was held out, what was found there.
  assert score(validation_is_test=False) == 0.6
  assert score(validation_is_test=False, validation_score=-0.1, matthews=0.25) == -0.1
  for lacking in ({'validation_accuracy': None}, {'f1': 0.75}, {'judged_by': 'f1'}):
    with pytest.raises(ValueError, match='file has no score on the validation split'):
      score(validation_is_test=False, **lacking)


def test_changes_are_in_names_flags_and_fields():
  changes = ['learning_rate=0.25', 'attention.tied=false', 'attention.num_frequencies=24']
  (job,) = jobs_of('gmm_prf', changes=changes)
  name = 'learning_rate=0.25_attention.tied=false_attention.num_frequencies=24'
  assert job.name == f'listops/gmm_prf_tiny_{name}_seed0'
  assert job.flags()[2:] == [f'--config.{change}' for change in changes]
  fields = job.fields()
  assert (fields['learning_rate'], fields['preset']) == (0.25, 'tiny*')
  assert (fields['attention']['tied'], fields['attention']['num_frequencies']) == (False, 24)


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((['listop'], ['gmm_prf'], [0]), {}, "unknown task 'listop'"),
    ((['listops'], ['gmm'], [0]), {}, "unknown model_type 'gmm'"),
    ((['listops'], ['gmm_prf'], [-1]), {}, 'random_seed must be'),
    ((['listops'], ['gmm_prf'], [0]), {'preset': 'papers'}, "unknown preset 'papers'"),
    (
      (['listops', 'pathfinder32'], ['gmm_prf'], [0]),
      {'preset': 'paper'},
      "^pathfinder32: unknown preset 'paper'.*known: ",
    ),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['warmup']}, 'must be FIELD=VALUE'),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['warmup=1', 'warmup=2']}, 'one value of each'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'warmup=3'}, '--try must be FIELD=VALUE,VALUE'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'warmup=3,3'}, 'each value once .*warmup=3,3'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'weight_decay=0.1,1e-1'}, 'each value once'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'warmup=[5],[5]'}, 'each value once'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'warmup'}, '--try must be FIELD=VALUE'),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'warm=3,4'}, "unknown config field 'warm'"),
    ((['listops'], ['gmm_prf'], [0]), {'tried': 'random_seed=3,4'}, '--try=random_seed=3: --seeds'),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['warm=3']}, "unknown config field 'warm'"),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['warmup=x']}, 'warmup=x: invalid literal'),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['warmup=0']}, 'warmup must be'),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['attention.tie=1']}, 'did you mean .tied.'),
    ((['listops'], [], [0]), {}, '--models must name some, each once'),
    ((['listops'], ['gmm_prf'], [0, 1, 0]), {}, "--seeds must name some, each once, got '0,1,0'"),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['random_seed=5']}, '--seeds has the seeds'),
    ((['listops'], ['gmm_prf'], [0]), {'changes': ['preset=a/b']}, 'part of a directory name'),
    ((['listops'], ['gmm_prf'], [0]), {'configs': 'nowhere'}, 'nowhere/listops.py does not exist'),
  ],
)
def test_wrong_jobs_are_named(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    make_jobs(*arguments, **{'configs': CONFIGS} | options)


def test_finished_runs_are_skipped_and_failed_ones_tried_again(trial):
  jobs = jobs_of('gmm_prf', 'prf', 'transformer')
  assert trial.states(jobs) == ['finished', 'failed', 'finished']
  assert trial.calls() == ['gmm_prf', 'prf', 'transformer']
  found = trial.sweep(jobs).run()
  assert trial.calls() == ['prf']
  assert found[jobs[0]] == ('finished', '37.50 % on test')
  text = sweep.render(found)
  assert 'listops/prf_tiny_seed0          failed    with exit code 1, see above' in text
  assert text.endswith('2 finished, 1 failed')


def test_time_is_up(trial, monkeypatch):
  jobs = jobs_of('gmm_prf', 'rks', 'transformer')
  found = trial.sweep(jobs, deadline=time.monotonic() + 2).run()
  assert [outcome.state for outcome in found.values()] == ['finished', 'stopped', 'waiting']
  assert found[jobs[1]].remark == 'at step 7'
  assert trial.calls() == ['gmm_prf', 'rks']
  assert trial.states(jobs) == ['finished'] * 3
  assert trial.calls() == ['rks', 'transformer']
  # What would have no time to begin is not begun.
  monkeypatch.setattr(sweep_runs, 'START_SECONDS', 30)
  more = jobs_of('linear_transformer')
  assert trial.states(more, deadline=time.monotonic() + 20) == ['waiting']
  assert trial.calls() == []


def test_what_does_not_stop_is_killed(trial, monkeypatch):
  monkeypatch.setattr(sweep_runs, '_PATIENCE', 0.2)
  script = 'import signal, time; signal.signal(signal.SIGTERM, lambda *_: 0); time.sleep(60)'
  jobs = jobs_of('gmm_prf')
  own = Sweep(
    jobs,
    runs=str(trial.runs),
    deadline=time.monotonic() + 1,
    command=(sys.executable, '-c', script),
  )
  start = time.monotonic()
  assert own.run()[jobs[0]].state == 'waiting'
  assert time.monotonic() - start < 20


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_run_and_end_the_sweep(trial, number):
  jobs = jobs_of('rks', 'gmm_prf')
  own = trial.sweep(jobs)
  ready = trial.runs / jobs[0].name / 'ready'

  def interrupt():
    while not ready.exists():
      time.sleep(0.01)
    os.kill(os.getpid(), number)

  threading.Thread(target=interrupt).start()
  found = own.run()
  assert own.exit_code == 128 + number
  assert [outcome.state for outcome in found.values()] == ['stopped', 'waiting']
  assert trial.calls() == ['rks']


def test_several_runs_at_once(trial, monkeypatch):
  """Each training waits for the other one, and says what it was given."""
  script = (
    'import json, os, pathlib, sys, time\n'
    'flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])\n'
    'folder = pathlib.Path(flags["model_dir"])\n'
    'names = ["CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION"]\n'
    'names += ["KL_FLAX_RUNS_PER_DEVICE"]\n'
    '(folder / "given").write_text(" ".join(os.environ.get(name, "-") for name in names))\n'
    'print("some output")\n'
    'while len(list(folder.parent.glob("*/given"))) < 2: time.sleep(0.01)\n'
    'sys.exit("prf" in folder.name and 3)\n'
  )
  for name in ('CUDA_VISIBLE_DEVICES', *sweep_runs._MEMORY):
    monkeypatch.delenv(name, raising=False)
  jobs = jobs_of('gmm_rks', 'prf')
  own = Sweep(
    jobs,
    runs=str(trial.runs),
    workers=make_workers(['3'], 2),
    command=(sys.executable, '-c', script),
  )
  found = own.run()
  assert found[jobs[1]] == (
    'failed', f'with exit code 3, see {trial.runs / jobs[1].name / "train.log"}'
  )  # fmt: skip
  assert found[jobs[0]].state == 'waiting'
  for job in jobs:
    assert (trial.runs / job.name / 'given').read_text() == '3 0.450 2'
  assert 'some output' in (trial.runs / jobs[1].name / 'train.log').read_text()


def test_several_workers_make_each_run_once(trial):
  jobs = jobs_of('gmm_prf', 'gmm_rks', 'transformer', 'prf', seeds=(0, 1))
  workers = make_workers(['0', '1'], 2)
  found = trial.sweep(jobs, workers=workers).run()
  assert [outcome.state for outcome in found.values()] == 2 * (3 * ['finished'] + ['failed'])
  assert sorted(trial.calls()) == sorted(2 * ['gmm_prf', 'gmm_rks', 'transformer', 'prf'])
  # A choice waits until all that decides it is there.
  jobs = jobs_of('gmm_prf', seeds=(2, 3), tried='learning_rate=0.1,0.2,0.3')
  found = trial.sweep(jobs, workers=workers).run()
  assert rates_of(jobs, found)[3:] == [
    (3, '0.1', 'passed over'), (3, '0.2', 'finished'), (3, '0.3', 'passed over'),
  ]  # fmt: skip


def test_a_run_that_fails_is_made_by_one_worker(trial, monkeypatch):
  original = Sweep._outcome

  def late(self, job):
    found = original(self, job)
    time.sleep(0.05)  # Meanwhile the other worker has made it.
    return found

  monkeypatch.setattr(Sweep, '_outcome', late)
  monkeypatch.setattr(sweep_runs, '_POLL', 0.05)
  jobs = jobs_of('prf', seeds=(0, 1), tried='learning_rate=0.1,0.2')
  found = trial.sweep(jobs, workers=make_workers([], 2)).run()
  assert [outcome.state for outcome in found.values()] == 2 * ['failed'] + 2 * ['undecided']
  assert trial.calls() == ['prf', 'prf']


def test_time_and_signals_are_for_all_workers(trial, monkeypatch, caplog):
  monkeypatch.setattr(sweep_runs, '_REPORT', 0.5)
  caplog.set_level('INFO')
  jobs = jobs_of('rks', seeds=(0, 1))
  workers = make_workers([], 2)
  found = trial.sweep(jobs, workers=workers, deadline=time.monotonic() + 2).run()
  assert [outcome.state for outcome in found.values()] == ['stopped'] * 2
  line = max((text for text in caplog.messages if 'under way' in text), key=len)
  assert line.startswith('0 of 2 runs are finished; under way: listops/rks_tiny_seed')
  assert line.count('before an evaluation') == 2
  for job in jobs:
    (trial.runs / job.name / 'metrics.jsonl').unlink()
  own = trial.sweep(jobs, workers=workers)
  ready = [trial.runs / job.name / 'ready' for job in jobs]
  for path in ready:
    path.unlink()

  def interrupt():
    while not all(path.exists() for path in ready):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  assert [outcome.state for outcome in own.run().values()] == ['stopped'] * 2
  assert own.exit_code == 130


def test_workers_of_gpus():
  (only,) = make_workers([], 1)
  assert only == ('', {})
  assert [w.environment for w in make_workers(['0', '2'], 1)] == [
    {'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '2'},
  ]  # fmt: skip
  assert [w.label for w in make_workers([], 2)] == ['1', '2']
  with pytest.raises(ValueError, match='runs_per_gpu must be at least 1, got 0'):
    make_workers([], 0)
  with pytest.raises(ValueError, match="each once, got '0,0'"):
    make_workers(['0', '0'], 1)


def test_small_files_are_kept_and_count_as_finished(trial, tmp_path):
  kept = tmp_path / 'results'
  jobs = jobs_of('gmm_prf', 'prf')
  assert trial.states(jobs, results_dir=str(kept)) == ['finished', 'failed']
  folder = kept / jobs[0].name
  assert sorted(file.name for file in folder.iterdir()) == sorted(sweep_runs.KEPT_FILES)
  assert list(kept.rglob('results.json')) == [folder / 'results.json']
  trial.calls()
  elsewhere = Trial.__new__(Trial)
  elsewhere.__dict__ |= vars(trial) | {'runs': tmp_path / 'other'}
  assert elsewhere.states(jobs, results_dir=str(kept)) == ['finished', 'failed']
  assert trial.calls() == ['prf']


def test_checkpoints_of_what_is_kept_can_be_deleted(trial, tmp_path):
  kept = tmp_path / 'results'
  jobs = jobs_of('gmm_prf', 'prf')
  checkpoints = [trial.runs / job.name / 'checkpoints' for job in jobs]
  for path in checkpoints:
    path.mkdir(parents=True)
  trial.states(jobs)
  assert [path.exists() for path in checkpoints] == [True, True]
  trial.states(jobs, results_dir=str(kept), delete_checkpoints=True)
  assert [path.exists() for path in checkpoints] == [False, True]  # The second one has failed.
  assert (trial.runs / jobs[0].name / 'results.json').exists()


def test_checkpoints_of_a_run_that_is_not_the_kept_one_stay(trial, tmp_path):
  (job,) = jobs_of('gmm_prf')
  kept = {'results_dir': str(tmp_path / 'results')}
  assert trial.states([job], **kept) == ['finished']
  path = trial.runs / job.name / 'results.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'accuracy': 0.5}))
  (path.parent / 'checkpoints').mkdir()
  assert trial.states([job], delete_checkpoints=True, **kept) == ['finished']
  assert (path.parent / 'checkpoints').exists()


def test_what_was_finished_before_is_kept_too(trial, tmp_path):
  (job,) = jobs_of('gmm_prf')
  trial.states([job])
  kept = tmp_path / 'results'
  # What a copy that was cut short has left is no result.
  (kept / job.name).mkdir(parents=True)
  shutil.copyfile(trial.runs / job.name / 'config.json', kept / job.name / 'config.json')
  trial.calls()
  assert trial.states([job], results_dir=str(kept)) == ['finished']
  assert trial.calls() == []
  assert sorted(file.name for file in (kept / job.name).iterdir()) == sorted(sweep_runs.KEPT_FILES)
  assert [folder.name for folder in (kept / 'listops').iterdir()] == [job.name.partition('/')[2]]


def test_a_signal_before_the_run_listens_does_not_make_it_fail(trial):
  jobs = jobs_of('gmm_prf')
  command = (sys.executable, '-c', 'import time; time.sleep(60)')  # Dies of any signal.
  own = Sweep(jobs, runs=str(trial.runs), deadline=time.monotonic() + 1, command=command)
  assert own.run()[jobs[0]] == ('waiting', '')


def test_another_run_in_the_way_stops_everything_at_the_start(trial):
  first, second = jobs_of('gmm_prf', 'transformer')
  trial.states([second])
  trial.calls()
  path = trial.runs / second.name / 'config.json'
  config = json.loads(path.read_text())
  config['config']['learning_rate'] = 7.0
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match='transformer_tiny_seed0 holds another run.*\n.*7.0 there'):
    trial.sweep([first, second]).run()
  assert trial.calls() == []


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('config.json', '', 'damaged JSON'),
    ('config.json', '{}', 'lacks the config'),
    ('results.json', '{"task": "li', 'damaged JSON'),
  ],
)
def test_what_is_damaged_at_the_start_fails_alone(trial, name, content, words):
  jobs = jobs_of('gmm_prf', 'transformer', seeds=(0, 1), tried='learning_rate=0.1,0.2')
  first = jobs[0]
  trial.states([first])
  path = trial.runs / first.name / name
  path.write_text(content)
  own = trial.sweep(jobs)
  states = [outcome.state for outcome in own.outcomes().values()]
  assert states == ['failed'] + 3 * ['waiting'] + 4 * ['undecided']
  found = own.run()
  assert found[first].state == 'failed'
  assert words in found[first].remark
  assert '; move the run away, or restore ' in found[first].remark
  assert path.read_text() == content
  # As a value that fails: the other one is chosen.
  assert [outcome.state for outcome in found.values()] == [
    'failed', 'finished', 'finished', 'finished',
    'passed over', 'passed over', 'finished', 'finished',
  ]  # fmt: skip
  shutil.rmtree(path.parent)
  assert trial.sweep([first]).run()[first].state == 'finished'


def test_one_that_gets_in_the_way_later_fails_alone(trial, monkeypatch):
  jobs = jobs_of('gmm_prf', 'transformer')
  own = trial.sweep(jobs)
  original = own._train

  def train(job, worker):
    ended = original(job, worker)
    path = trial.runs / jobs[0].name / 'config.json'
    path.write_text('{')
    return ended

  monkeypatch.setattr(own, '_train', train)
  found = own.run()
  assert [outcome.state for outcome in found.values()] == ['failed', 'finished']
  assert 'damaged JSON' in found[jobs[0]].remark


def test_what_is_damaged_at_the_end_leaves_the_others(trial, monkeypatch):
  jobs = jobs_of('gmm_prf', 'transformer')
  own = trial.sweep(jobs)
  original = own._work

  def work(worker):
    original(worker)
    (trial.runs / jobs[0].name / 'config.json').write_text('{')

  monkeypatch.setattr(own, '_work', work)
  assert [outcome.state for outcome in own.run().values()] == ['failed', 'finished']


@pytest.mark.parametrize('name', ['.lock', '.sweep_lock'])
def test_sweeps_share_the_runs(trial, name):
  jobs = jobs_of('gmm_prf', 'transformer')
  with files.lock(trial.runs / jobs[0].name, name):
    taken, finished = trial.sweep(jobs).run().values()
    assert taken == sweep_runs.Outcome(
      'taken', f'by process {os.getpid()} on {socket.gethostname()}'
    )
    assert finished.state == 'finished'
  assert trial.states(jobs) == ['finished'] * 2


def test_what_another_sweep_has_made_meanwhile_is_not_made_again(trial, monkeypatch):
  jobs = jobs_of('gmm_prf', 'transformer')
  own, original, made = trial.sweep(jobs), sweep_runs.lock, []
  other = Sweep(jobs[:1], runs=str(trial.runs), command=own._command)

  def lock(*arguments, **options):
    if not made:  # This sweep has seen that the run is waiting, and is about to take it.
      made.append(True)
      assert [outcome.state for outcome in other.run().values()] == ['finished']
    return original(*arguments, **options)

  monkeypatch.setattr(sweep_runs, 'lock', lock)
  assert [outcome.state for outcome in own.run().values()] == ['finished'] * 2
  assert trial.calls() == ['gmm_prf', 'transformer']


def run(capsys, *arguments):
  """Exit code, output and errors of the command with these arguments."""
  values = flags.FlagValues()
  sweep.define_flags(values)
  code = sweep.main(values(['sweep', f'--configs={CONFIGS}', *arguments]), values)
  return code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
  monkeypatch.setattr(sweep, 'set_up_logging', lambda: None)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--tasks is required, some of: listops'),
    (['--tasks=listops', '--minutes=0.4'], '--minutes must be above 0.5, got 0.4: no run is begun'),
    (
      ['--tasks=listops', '--preset=tiny', '--sources=text=x'],
      '--sources must be TASK=VALUE with one of --tasks',
    ),
    (['--tasks=listops', '--preset=tiny', '--sources=x'], 'got .x.'),
    (['--tasks=listops', 'text'], 'unknown arguments: text'),
    (
      ['--tasks=listops', '--preset=tiny', '--delete_checkpoints'],
      '--delete_checkpoints needs --results_dir',
    ),
    (['--tasks=listops', '--preset=tiny', '--gpus=1,1'], "--gpus must .* each once, got '1,1'"),
  ],
)
def test_wrong_flags_are_named(capsys, arguments, message):
  code, out, err = run(capsys, *arguments)
  assert (code, out) == (1, '')
  assert err.startswith('error: ')
  assert re.search(message, err)


def test_dry_run_runs_nothing(capsys, tmp_path):
  code, out, _ = run(
    capsys, '--tasks=listops', '--preset=paper', '--dry_run', f'--runs={tmp_path}/runs'
  )
  assert code == 0
  assert out.endswith(f'{len(sweep.PAPER_MODELS)} waiting\n')
  assert not (tmp_path / 'runs').exists()


def test_a_choice_on_the_test_split_is_said(capsys, caplog, tmp_path):
  flags = ['--models=prf', '--preset=paper', '--dry_run', f'--runs={tmp_path}']
  tried = '--try=learning_rate=1e-3,1e-4'
  for more in (
    ['--tasks=cola,listops'],
    ['--tasks=listops', tried],
    ['--tasks=cola', tried, '--set=data.validation=holdout'],
  ):
    assert run(capsys, *flags, *more)[0] == 0
    assert 'chooses on the test split' not in caplog.text
  assert run(capsys, *flags, '--tasks=text,cola,listops', tried)[0] == 0
  assert '--try chooses on the test split of cola, text,' in caplog.text


@pytest.mark.slow
def test_models_are_trained(capsys, shared, tmp_path, monkeypatch):
  for name, value in environment(devices=1).items():
    monkeypatch.setenv(name, value)
  arguments = [
    '--tasks=listops', '--models=gmm_prf', '--preset=tiny', '--set=num_train_steps=4',
    f'--runs={tmp_path}/runs', f'--results_dir={tmp_path}/results', f'--data_dir={shared}/data',
  ]  # fmt: skip
  code, out, _ = run(capsys, *arguments)
  assert (code, out.splitlines()[-1]) == (0, '1 finished')
  name = 'listops/gmm_prf_tiny_num_train_steps=4_seed0'
  result = json.loads((tmp_path / 'results' / name / 'results.json').read_text())
  assert (result['steps'], result['preset'], result['seed']) == (4, 'tiny*', 0)
  assert run(capsys, *arguments, '--dry_run')[1] == out


@pytest.mark.slow
def test_the_sweep_itself_takes_no_device():
  code = (
    'from lra_tasks.sweep import make_jobs; from jax._src import xla_bridge\n'
    f'make_jobs(["listops"], ["gmm_prf"], [0], configs={CONFIGS!r})\n'
    'assert not xla_bridge.backends_are_initialized()'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment(), check=True)


def test_runs_on_glue_start_with_a_run_of_their_model(tmp_path, monkeypatch):
  monkeypatch.setattr('lra_tasks.runs.origin.tokenizer_from_dict', lambda *_: None)
  for model in ('prf', 'rks'):
    folder = tmp_path / f'{model}_paper'
    folder.mkdir()
    config = {'model_type': model, 'random_seed': 3, 'num_train_steps': 40}
    description = {
      'task': 'wikitext/wikitext-2', 'config': config, 'config_id': 'abc', 'model': {},
      'dataset': 'wikitext/2', 'tokenizer': {},
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(description))
    (folder / 'results.json').write_text(json.dumps({**RUN, 'best_step': 20, 'steps': 40}))
  make = lambda init_from: make_jobs(
    ['cola', 'listops'], ['prf', 'rks'], [0], changes=['learning_rate=0.002'], configs=CONFIGS,
    init_from=init_from,
  )  # fmt: skip
  first, *_, last = make(f'{tmp_path}/{{model}}_paper')
  assert first.config == f'{CONFIGS}/glue.py:prf,cola,paper'
  assert first.name == 'cola/prf_paper_learning_rate=0.002_seed0'
  assert first.flags()[-1] == f'--init_from={tmp_path}/prf_paper'
  assert first.fields()['pretrained'] == 'wikitext/wikitext-2/prf/abc/seed3/step20'
  assert last.init_from == f'{tmp_path}/rks_paper'
  assert make(None)[0].fields()['pretrained'] == ''
  with pytest.raises(FileNotFoundError, match='--init_from=.*nowhere holds no run'):
    make('nowhere')


def test_runs_on_another_data_set_are_not_taken_for_finished(tmp_path):
  make = lambda **options: make_jobs(['text'], ['gmm_prf'], [0], configs=CONFIGS, **options)
  (own,), (named,) = make(), make(data_sets={'text': 'yelp_reviews'})
  assert own.name == named.name
  assert named.flags() == [*own.flags(), '--task_name=yelp_reviews']
  folder = tmp_path / own.name
  folder.mkdir(parents=True)
  config = own.fields() | {'dtype': 'float32'}
  description = {'config': config, 'dataset': 'text/imdb_reviews/1.0.0', 'task_name': None}
  (folder / 'config.json').write_text(json.dumps(description))
  assert sweep_runs.outcome_of(own, [tmp_path]).state == 'stopped'
  with pytest.raises(ValueError, match="task_name: 'imdb_reviews' there, 'yelp_reviews' now"):
    sweep_runs.outcome_of(named, [tmp_path])
  (folder / 'config.json').write_text(json.dumps(description | {'task_name': 'yelp_reviews'}))
  assert sweep_runs.outcome_of(named, [tmp_path]).state == 'stopped'
  with pytest.raises(ValueError, match="task_name: 'yelp_reviews' there, 'imdb_reviews' now"):
    sweep_runs.outcome_of(own, [tmp_path])
