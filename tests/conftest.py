"""Set-up of all tests: two simulated devices, shapes checked at run time."""

import atexit
import gc
import importlib.metadata
import logging
import os
import shutil
import tempfile

# Before JAX is imported anywhere: parallel code is tested on two devices of this machine, and small
# programs compile four times as fast without optimisers. XLA dies of flags that it does not know.
_FLAGS = [
  '--xla_force_host_platform_device_count=2',
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']
os.environ.setdefault('XLA_FLAGS', ' '.join(_FLAGS))

# Where the operations of a program come from is for those who read it: a tenth of making it.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

# Runs of the same model, also those in other processes, compile once.
_COMPILED = tempfile.mkdtemp(prefix='kl_flax_compiled_')
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _COMPILED)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook('kl_flax', 'beartype.beartype')

import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
  'default', deadline=None, max_examples=10, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile('default')


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """A directory for the data that all runs share."""
  return tmp_path_factory.mktemp('shared')


@pytest.fixture(scope='session')
def reference(shared):
  """An uninterrupted run on two devices, by the command that README shows."""
  import run_helpers  # Not where the workers are only distributed to.

  output = run_helpers.finish(run_helpers.start(shared, shared / 'reference', devices=2))
  (shared / 'reference.log').write_text(output)
  return shared / 'reference'


@pytest.fixture(autouse=True)
def logging_as_it_was():
  """Commands set up logging to a stream that is that of one test alone."""
  ours = [logging.getLogger(name) for name in ('lra_tasks', 'kl_flax')]
  before = [(list(logger.handlers), logger.propagate, logger.level) for logger in ours]
  yield
  for logger, (handlers, propagate, level) in zip(ours, before, strict=True):
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def unannotated():
  """Annotations are not checked, as for users: what is wrong meets the checks behind them."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


# Files that share a run, or what Numba compiles in 15 seconds, are for one worker.
_TOGETHER = {
  'tests/lra_tasks/test_inspect_run.py': 'tests/lra_tasks/test_train.py',
  'tests/lra_tasks/test_parallel_runs.py': 'tests/lra_tasks/test_train.py',
  'tests/lra_tasks/test_variance.py': 'tests/lra_tasks/test_train.py',
  'tests/test_docs.py': 'tests/lra_tasks/test_train.py',
  'tests/lra_tasks/data/test_pathfinder.py': 'tests/lra_tasks/data/test_pathfinder_images.py',
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Distribute whole files, and some of them together; another --dist is left as it is."""
  if config.getoption('dist') != 'loadfile':
    return None
  from xdist.scheduler import LoadFileScheduling

  class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid):
      path = super()._split_scope(nodeid)
      return _TOGETHER.get(path, path)

  return Scheduling(config, log)


def pytest_collection_finish():
  """What is there stays: do not look through it for garbage again and again."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items):
  """Whole runs first: two workers then end at about the same time."""
  items.sort(key=lambda item: item.path.name not in ('test_train.py', 'test_parallel_runs.py'))
