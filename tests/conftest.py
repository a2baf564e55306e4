"""Set-up of all tests: two simulated devices, shapes checked at run time."""

import os

# Before JAX is imported anywhere: parallel code is tested on two devices of this machine, and small
# programs compile twice as fast without LLVM's optimiser.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true',
)

from jaxtyping import install_import_hook

install_import_hook('kl_flax', 'beartype.beartype')

import hypothesis  # noqa: E402

hypothesis.settings.register_profile(
  'default', deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile('default')
