"""Tests of what is known of the machine."""

import os

from lra_tasks.machine import num_cores


def test_cores_are_counted_on_any_system(monkeypatch):
  assert num_cores() == len(os.sched_getaffinity(0))
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert num_cores() == os.cpu_count()
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  assert num_cores() == 1
