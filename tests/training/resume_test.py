# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, again and again, equals one that is not, to the bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name('toy_run.py')


def run(model_dir, devices=1, **options):
  flags = f'--xla_force_host_platform_device_count={devices}'
  return subprocess.run(
    [sys.executable, SCRIPT, model_dir, json.dumps(options)],
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def finish(model_dir, **options):
  done = run(model_dir, **options)
  assert done.returncode == 0, done.stderr
  return done.stdout


def results(model_dir):
  """Final parameters, and all logged values but times."""
  params = dict(np.load(model_dir / 'final.npz'))
  logs = {}
  for path in sorted(model_dir.rglob('metrics.jsonl')):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
      for key in [key for key in line if key.startswith('timing/')]:
        del line[key]
    logs[str(path.relative_to(model_dir))] = lines
  return params, logs


def assert_same(left, right):
  (params, logs), (other_params, other_logs) = results(left), results(right)
  assert params.keys() == other_params.keys()
  for name, value in params.items():
    np.testing.assert_array_equal(value, other_params[name], err_msg=name)
  assert logs == other_logs


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """24 steps on one device: 9.6 epochs, 5 log lines, 4 evaluations."""
  folder = tmp_path_factory.mktemp('runs') / 'unbroken'
  finish(folder, train_steps=24)
  return folder


def test_killed_at_random_steps_and_in_a_save(unbroken, tmp_path):
  # 7: before the first log line after the checkpoint of step 4, so the
  # metrics of steps 5 come partly from the checkpoint. Then in the middle of a
  # save, twice, and between two log lines in another epoch.
  for accident in (
    {'kill_at': 7},
    {'kill_in_save': 8},
    {'kill_in_save': 12},
    {'kill_at': 18},
  ):
    killed = run(tmp_path, train_steps=24, **accident)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
  output = finish(tmp_path, train_steps=24)
  assert 'resuming' in output and 'epoch' in output
  assert_same(tmp_path, unbroken)
  assert not list(tmp_path.glob('*tmp*')), 'unfinished saves stay behind'


def test_killed_before_the_first_save(unbroken, tmp_path):
  assert run(tmp_path, train_steps=24, kill_at=3).returncode < 0
  assert 'from scratch' in finish(tmp_path, train_steps=24)
  assert_same(tmp_path, unbroken)


def test_eight_devices_zero_2_and_microbatches(tmp_path):
  options = {
    'devices': 8,
    'train_steps': 14,
    'num_microbatches': 2,
    'partitioner': {'zero_stage': 2},
  }
  finish(tmp_path / 'whole', **options)
  assert run(tmp_path / 'cut', kill_at=11, **options).returncode < 0
  finish(tmp_path / 'cut', **options)
  assert_same(tmp_path / 'cut', tmp_path / 'whole')


def test_sigterm_saves_and_the_same_command_goes_on(unbroken, tmp_path):
  stopped = run(tmp_path, train_steps=24, terminate_at=9)
  assert stopped.returncode == 0, stopped.stderr
  last = stopped.stdout.splitlines()[-1]
  assert 'stopped by SIGTERM at step' in last and 'is saved' in last
  saved = max(int(p.name.split('_')[1]) for p in tmp_path.glob('checkpoint_*'))
  assert f'step {saved} of 24' in last
  assert 6 <= saved <= 10  # The step being run; batches are asked for earlier.
  finish(tmp_path, train_steps=24)
  assert_same(tmp_path, unbroken)


def test_a_longer_run_goes_on_from_a_shorter_one(unbroken, tmp_path):
  finish(tmp_path, train_steps=12)
  output = finish(tmp_path, train_steps=24)
  assert 'at step 12 of 24' in output
  params, _ = results(tmp_path)
  for name, value in results(unbroken)[0].items():
    np.testing.assert_array_equal(value, params[name])


def test_full_disk_leaves_the_previous_checkpoint_good(tmp_path):
  # A limit on file size stands for the full disk: writing fails part-way. The
  # state of width 256 is several megabytes, and less than a limit of 1 MB.
  finish(tmp_path, train_steps=4, width=256)
  full = run(tmp_path, train_steps=12, width=256, largest_file=1_000_000)
  assert full.returncode == 2
  lines = full.stderr.splitlines()
  assert [x for x in lines if x.startswith('error: checkpoint_12')] == lines, (
    full.stderr
  )
  warnings = [x for x in full.stdout.splitlines() if x.startswith('warning')]
  assert len(warnings) == 2  # Steps 8 and 12.
  assert 'checkpoint_8 was not saved' in warnings[0]
  assert 'File too large' in warnings[0]
  assert 'checkpoint_4 stays good' in warnings[0]
  output = finish(tmp_path, train_steps=12, width=256)
  assert 'at step 4 of 12' in output
