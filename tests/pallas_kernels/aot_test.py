# SPDX-License-Identifier: Apache-2.0
"""Every kernel through the real compilers, without the hardware.

Needs the optional wheels of the extra `aot`: pip install -e '.[aot]'.
"""

import json
import pathlib
import subprocess
import sys

import aot_cases
import pytest

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).with_name('aot_compile.py')
OURS = ('layer_norm', 'vocab', 'attention', 'softmax')  # Not XLA's kernels.


def compiled(target, names):
  """What the script reports, by name of the case."""
  run = subprocess.run(
    [sys.executable, SCRIPT, target, *names], capture_output=True, text=True
  )
  if run.returncode == 77:
    pytest.skip(f'{target}: {run.stdout.strip()}')
  assert run.returncode == 0, run.stderr[-2000:]
  print(run.stdout)  # pytest -rP shows registers, occupancy and seconds.
  reports = {r.pop('name'): r for r in map(json.loads, run.stdout.splitlines())}
  assert list(reports) == list(names)
  errors = {n: r['error'] for n, r in reports.items() if 'error' in r}
  assert not errors
  return reports


@pytest.mark.parametrize('target', ['v5e:2x2', 'v4:2x2x1', 'h200'])
def test_every_kernel_compiles(target):
  reports = compiled(target, aot_cases.cases())
  for name, report in reports.items() if target == 'h200' else ():
    spilled = {
      kernel: size
      for kernel, size in report['spilled_bytes'].items()
      if kernel.startswith(OURS)
    }
    # A case without a kernel of ours would pass the gate unseen.
    assert spilled and not any(spilled.values()), (name, spilled)


@pytest.mark.parametrize('target', ['v5e:2x2', 'h200'])
def test_nothing_large_in_the_compiled_step(target):
  """The limits of a v4 are those of its kernels: their test has them."""
  step, without = compiled(target, aot_cases.STEPS).values()
  assert not step['matrices'] and not step['logits']
  # What a test without these would not see.
  assert without['matrices'] and without['logits']
