import importlib.util
import os

import pytest

from lra_tasks import parallel


@pytest.mark.parametrize(
  ('cuda', 'given', 'expected'),
  [
    (True, '', '--xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_dump_to=d', '--xla_dump_to=d --xla_gpu_enable_triton_gemm=false'),
    (True, '--xla_gpu_enable_triton_gemm=true', '--xla_gpu_enable_triton_gemm=true'),
    (False, '--xla_dump_to=d', '--xla_dump_to=d'),
  ],
)
def test_products_are_left_to_cublas_unless_the_user_says_otherwise(
  monkeypatch, cuda, given, expected
):
  found = lambda name: cuda and name == 'jax_cuda13_plugin'
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if found(name) else None)
  monkeypatch.setenv('XLA_FLAGS', given)
  parallel.set_up_compilation()
  assert os.environ['XLA_FLAGS'] == expected
