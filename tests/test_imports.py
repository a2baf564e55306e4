import subprocess
import sys

from run_helpers import ROOT, environment

OF_LRA = {
  'array_record', 'grain', 'ml_collections', 'numba', 'optax', 'PIL', 'tensorboardX',
  'tensorflow_datasets', 'tokenizers',
}  # fmt: skip


def run(code):
  return subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, env=environment(), capture_output=True, text=True
  )


def test_the_library_needs_nothing_of_the_benchmark():
  modules = 'kl_flax, kl_flax.comparison, kl_flax.inspection, kl_flax.profiles, kl_flax.turing'
  done = run(f'import sys, {modules}; print(*{{name.partition(".")[0] for name in sys.modules}})')
  assert done.returncode == 0, done.stderr
  loaded = set(done.stdout.split())
  assert 'kl_flax' in loaded
  assert not loaded & {*OF_LRA, 'lra_tasks'}


def test_the_benchmark_says_what_it_needs():
  done = run(
    'import importlib.util as util\n'
    'find = util.find_spec\n'
    'util.find_spec = lambda name: None if name == "grain" else find(name)\n'
    'import lra_tasks.train'
  )
  assert done.returncode == 1
  assert done.stderr.endswith("pip install -c constraints.txt -e '.[lra]'\n")
