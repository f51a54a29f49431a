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


def compiled(target):
  """What the script reports, by name of the case."""
  run = subprocess.run(
    [sys.executable, SCRIPT, target], capture_output=True, text=True
  )
  if run.returncode == 77:
    pytest.skip(f'{target}: {run.stdout.strip()}')
  assert run.returncode == 0, run.stderr[-2000:]
  lines = [json.loads(line) for line in run.stdout.splitlines()]
  return {line.pop('name'): line for line in lines}


@pytest.mark.parametrize('target', ['v5e:2x2', 'v4:2x2x1', 'h200'])
def test_every_kernel_compiles(target):
  reports = compiled(target)
  assert set(reports) == set(
    aot_cases.cases('gpu' if target == 'h200' else 'tpu')
  )
  errors = {n: r['error'] for n, r in reports.items() if 'error' in r}
  assert not errors
  step, without = (reports.pop(f'train step, {k}') for k in ('pallas', 'xla'))
  assert not step['matrices'] and not step['logits']
  # What a test without these would not see.
  assert without['matrices'] and without['logits']
  for name, report in reports.items() if target == 'h200' else ():
    spilled = {
      kernel: size
      for kernel, size in report['spilled_bytes'].items()
      if kernel.startswith(OURS)
    }
    # A case without a kernel of ours would pass the gate unseen.
    assert spilled and not any(spilled.values()), (name, spilled)
