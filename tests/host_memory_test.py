# SPDX-License-Identifier: Apache-2.0
"""Whether a step's memory is asked of the kernel once, or at every step."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from metro_jax import host_memory, hosts

# Blocks beyond 32 MiB are mapped one by one, whatever glibc has learnt; here in
# the first thread and in one that starts later.
PROGRAM = """
import resource, sys, threading
from metro_jax import host_memory
if sys.argv[1] == 'kept':
  assert host_memory.keep_pages()

def step():
  b"1" * (2**26 + len(sys.argv))

def faults(run):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  run()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def elsewhere():
  thread = threading.Thread(target=step)
  thread.start()
  thread.join()

step(), elsewhere()
print(max(faults(step), faults(elsewhere)) * resource.getpagesize())
"""


def _bytes_faulted_in(how):
  ran = subprocess.run(
    [sys.executable, '-c', PROGRAM, how],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  return int(ran.stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='needs mallopt of glibc'
)
def test_the_pages_of_the_last_step_are_used_again():
  assert _bytes_faulted_in('as it is') >= 2**26
  assert _bytes_faulted_in('kept') < 2**22


@pytest.mark.parametrize(
  ('wanted', 'gpu', 'cpu'),
  [
    (None, False, True),
    (None, True, False),
    ('cpu', True, True),
    ('cuda,cpu', True, False),
  ],
)
def test_only_where_steps_run_on_the_cpu(monkeypatch, wanted, gpu, cpu):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(hosts, 'on_gpu_host', lambda: gpu)
  monkeypatch.setattr(hosts, 'on_tpu_host', lambda: False)
  before = jax.config.jax_platforms
  jax.config.update('jax_platforms', wanted)
  try:
    assert host_memory.runs_on_cpu() == cpu
  finally:
    jax.config.update('jax_platforms', before)
