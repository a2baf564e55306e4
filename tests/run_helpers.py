"""Start, kill and compare runs: what tests of whole runs share."""

import functools
import importlib.util
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from kl_flax.checkpoints import ranking
from lra_tasks import configuration
from lra_tasks.train import train

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40  # Of the preset tiny: evaluations at 20 and 40, checkpoints at 10, 20, 30, 40.


@functools.cache
def load_config_file(task):
  """Return the module `configs/TASK.py`."""
  spec = importlib.util.spec_from_file_location(f'{task}_config', ROOT / f'configs/{task}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load_config(task, argument):
  """Return the config that `--config=configs/TASK.py:ARGUMENT` names."""
  return load_config_file(task).get_config(argument)


def extract(archive, directory):
  """Unpack a tar archive; Python 3.11.4 brought the filter that later versions want named."""
  archive.extractall(directory, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))


def environment(devices=1, **extra):
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', f'device_count={devices}')
  return {**os.environ, 'XLA_FLAGS': flags, 'PYTHONUNBUFFERED': '1', **extra}


def start(shared, model_dir, *flags, config='listops.py:gmm_prf,tiny', devices=1, **extra):
  """Start the command that README shows."""
  command = [
    sys.executable, '-m', 'lra_tasks.train', f'--config={ROOT}/configs/{config}',
    f'--model_dir={model_dir}', f'--data_dir={shared}/data', *flags,
  ]  # fmt: skip
  return subprocess.Popen(
    command, cwd=ROOT, env=environment(devices, **extra), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip


def finish(process, code=0, timeout=120):
  output, _ = process.communicate(timeout=timeout)
  assert process.returncode == code, output
  return output


def wait_for(process, condition):
  """Wait until the condition holds; fail if the process ends before."""
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.002)


def read(model_dir, name):
  return json.loads((model_dir / name).read_text())


def save_altered(directory, step, alter=lambda state: None):
  """Save a checkpoint again, soundly, its arrays altered in place and its checksum as it was."""
  options = ocp.CheckpointManagerOptions(best_fn=ranking, create=False)
  items = ocp.args.Composite(state=ocp.args.StandardRestore(), extra=ocp.args.JsonRestore())
  with ocp.CheckpointManager(directory, options=options) as manager:
    found, metrics = manager.restore(step, args=items), manager.metrics(step)
    state = jax.tree.map(np.array, found['state'])
    alter(state)
    manager.delete(step)
    items = {'state': ocp.args.StandardSave(state), 'extra': ocp.args.JsonSave(found['extra'])}
    # By force, since there may be later ones.
    assert manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


def final_state(model_dir):
  with ocp.CheckpointManager(model_dir / 'checkpoints') as manager:
    return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))


def leaves(tree, prefix=''):
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from leaves(value, f'{prefix}/{key}')
  elif isinstance(tree, list | tuple):
    for i, value in enumerate(tree):
      yield from leaves(value, f'{prefix}/{i}')
  elif tree is not None:
    yield prefix, np.asarray(tree)


TIMINGS = {'wall_time_seconds', 'steps_per_second', 'peak_memory_bytes'}


def assert_same_run(model_dir, reference, exact=True):
  """Compare parameters, optimiser state, metrics and results of two runs."""
  compare = np.testing.assert_array_equal
  if not exact:
    compare = lambda a, b, msg: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=msg)
  states = [dict(leaves(dict(final_state(d))['state'])) for d in (model_dir, reference)]
  assert states[0].keys() == states[1].keys()
  for name, value in states[0].items():
    compare(value, states[1][name], name)
  for name in ('metrics.jsonl', 'results.json'):
    lines = [
      [json.loads(line) for line in (d / name).read_text().splitlines()]
      if name.endswith('l')
      else [read(d, name)]
      for d in (model_dir, reference)
    ]
    assert len(lines[0]) == len(lines[1])
    for ours, theirs in zip(*lines, strict=True):
      for key in theirs.keys() - TIMINGS:
        if isinstance(theirs[key], float):
          compare(ours[key], theirs[key], key)
        elif exact:
          assert ours[key] == theirs[key], key


def kill_at(process, condition):
  wait_for(process, condition)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def run_here(
  shared, model_dir, *, task='listops', argument='gmm_prf,tiny', source=None, task_name=None,
  init_from=None, test_only=False, **fields,
):  # fmt: skip
  """Run in this process, on its two simulated devices."""
  resolved = configuration.resolve(load_config(task, argument))
  logging.getLogger('lra_tasks').propagate = True  # For caplog.
  logging.getLogger('lra_tasks').setLevel(logging.INFO)
  return train(
    resolved | fields,
    model_dir=str(model_dir),
    data_dir=str(shared / 'data'),
    source=source,
    task_name=task_name,
    init_from=init_from,
    test_only=test_only,
  )
