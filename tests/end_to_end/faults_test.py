# SPDX-License-Identifier: Apache-2.0
"""Faults, one after another: the same curve to the bit, or one clear line.

  make fault-test

prints a table of what was tried, here on a toy model whose steps cost nothing,
and in recipe_faults_test.py on the recipes. `kills.py` is the long form.
"""

import functools
import random
import re
import shutil
import signal
import subprocess
import time

import fault_runs as runs
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('toy')


@pytest.fixture(scope='module')
def unbroken(place):
  """24 steps: 9.6 epochs, 6 checkpoints, 5 log lines, 4 evaluations."""
  runs.run(runs.toy, place / 'unbroken')
  return place / 'unbroken'


@pytest.fixture(scope='module')
def killed_late(place):
  """A run that was killed before batch 18, with two checkpoints."""
  folder = place / 'killed_late'
  runs.run(runs.toy, folder, code=-signal.SIGKILL, kill_at=18)
  assert len(runs.saved_steps(folder)) == 2
  return folder


# ----------------------------------------------------------------------
# Processes that end.
# ----------------------------------------------------------------------


def test_sigkill_at_random_moments(tmp_path, unbroken, note):
  """Of the clock, counted from the first line of output."""
  draw, folder = random.Random(1), tmp_path / 'run'
  kills, killed, lost = 3, 0, 0
  while killed < kills:
    process = runs.start(runs.toy, folder)
    while process.poll() is None and 'compiled' not in runs.printed(folder):
      time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.8))
    process.kill()
    if process.wait() == 0:  # It was faster; once more from the start.
      runs.assert_same(folder, unbroken)
      shutil.rmtree(folder)
      runs.state.cache_clear()
      continue
    killed += 1
    lost += runs.steps_lost(folder)
  runs.run(runs.toy, folder)
  runs.assert_same(folder, unbroken)
  note('SIGKILL at a random moment', kills, lost)


def test_sigkill_inside_a_save(unbroken, tmp_path, note):
  folder = tmp_path / 'run'
  for step in (8, 16):
    killed = functools.partial(runs.run, runs.toy, folder, -signal.SIGKILL)
    killed(kill_in_save=step)
  runs.run(runs.toy, folder)
  runs.assert_same(folder, unbroken)
  note('SIGKILL inside a save', 2, 8)


def test_second_resume_before_anything_is_saved(unbroken, tmp_path, note):
  """Killed in epoch 3, and twice more; an epoch is two and a half batches."""
  folder, lost = tmp_path / 'run', 0
  for plan in ({'kill_in_save': 8}, {'kill_at': 7}, {'kill_at': 6}):
    runs.run(runs.toy, folder, code=-signal.SIGKILL, **plan)
    assert runs.saved_steps(folder) == [4]
    lost += runs.steps_lost(folder)
  assert 'epoch 1' in runs.printed(folder)
  text = runs.run(runs.toy, folder)
  assert runs.resumed_at(text) == 4
  runs.assert_same(folder, unbroken)
  note('second and third resume, across epochs', 3, lost)


@pytest.mark.parametrize('deadline', [60.0, 0.02])
def test_sigterm_with_a_deadline(unbroken, tmp_path, note, deadline):
  """Time enough to save, or killed on the way there."""
  folder = tmp_path / 'run'
  process = runs.start(runs.toy, folder, terminate_at=10, deadline=deadline)
  code = process.wait(runs.LIMIT)
  at = re.search(r'SIGTERM at step (\d+) of', runs.printed(folder))
  if deadline > 1:
    assert code == 0, runs.printed(folder)
    lost = 0
    assert runs.saved_steps(folder)[-1] == int(at.group(1))
  else:
    assert code in (0, -signal.SIGKILL)
    lost = runs.steps_lost(folder)
  runs.run(runs.toy, folder)
  runs.assert_same(folder, unbroken)
  title = 'to spare' if deadline > 1 else 'of 20 ms, then SIGKILL'
  note(f'SIGTERM with a deadline {title}', 1, lost)


def test_another_number_of_devices(unbroken, tmp_path, note):
  """One, eight, one: sums in another order, and nothing else."""
  folder = tmp_path / 'run'
  killed = functools.partial(runs.run, runs.toy, folder, -signal.SIGKILL)
  killed(kill_in_save=12)
  killed(kill_in_save=20, devices=8, partitioner={'zero_stage': 2})
  lost = runs.steps_lost(folder)
  text = runs.run(runs.toy, folder)
  assert runs.resumed_at(text) == 16
  for name, lines in runs.logged(unbroken).items():
    for line, found in zip(lines, runs.logged(folder)[name], strict=True):
      assert found == pytest.approx(line, rel=1e-4), name
  left, right = runs.state(folder), runs.state(unbroken)
  for name, value in right.items():
    np.testing.assert_allclose(left[name], value, rtol=1e-3, atol=1e-5)
  note('1, 8 and 1 devices, killed in between', 2, lost, 'equal to 1e-4')


@pytest.mark.parametrize('days', [-1, 400])
def test_the_clock_jumps(unbroken, tmp_path, note, days):
  jumps = {str(step): days * 86400.0 for step in (5, 9)}
  runs.run(runs.toy, tmp_path / 'run', clock_jumps=jumps)
  runs.assert_same(tmp_path / 'run', unbroken)
  note(f'the clock jumps {days:+} days, twice', 1, 0)


# ----------------------------------------------------------------------
# Disks that are full, or forget.
# ----------------------------------------------------------------------


def test_the_disk_is_full_for_a_while(unbroken, tmp_path, note):
  """A save or two fail; the run goes on, and a later one finds room."""
  folder = tmp_path / 'run'
  text = runs.run(runs.toy, folder, full_disk=[8, 17, 4000])
  warnings = re.findall('warning: checkpoint_([0-9]+) was not saved', text)
  assert warnings and set(warnings) <= {'4', '8', '12', '16'}
  runs.assert_same(folder, unbroken)
  note('the disk is full for a while', 1, 0)


def test_the_disk_stays_full(tmp_path, note):
  folder = tmp_path / 'run'
  text = runs.run(runs.toy, folder, code=2, full_disk=[12, -1, 4000])
  assert len(re.findall('error: .*make room', text)) == 1
  assert 'Traceback' not in text
  lost = runs.STEPS - runs.saved_steps(folder)[-1]
  note('the disk stays full', 1, lost, 'one line')


@pytest.mark.parametrize('way', runs.WAYS)
def test_a_shard_of_the_newest_checkpoint(
  killed_late, unbroken, tmp_path, way, note
):
  folder = tmp_path / 'run'
  shutil.copytree(killed_late, folder)
  newest = folder / f'checkpoint_{runs.saved_steps(folder)[-1]}'
  runs.spoil(runs.largest_file(newest), way)
  text = runs.run(runs.toy, folder)
  warnings = [x for x in text.splitlines() if x.startswith('warning')]
  assert len(warnings) == 1 and 'is broken and was renamed' in warnings[0]
  runs.assert_same(folder, unbroken)
  note(f'checkpoint shard: {way}', 1, 18 - runs.resumed_at(text))


def test_all_checkpoints_broken_is_one_line(killed_late, tmp_path, note):
  folder = tmp_path / 'run'
  shutil.copytree(killed_late, folder)
  for step in runs.saved_steps(folder):
    file = runs.largest_file(folder / f'checkpoint_{step}')
    runs.spoil(file, 'truncated')
  text = runs.run(runs.toy, folder, code=2)
  assert len(re.findall('error: .*no checkpoint can be read', text)) == 1
  assert 'Traceback' not in text
  note('every checkpoint truncated', 1, 18, 'one line')


# ----------------------------------------------------------------------
# Company, and numbers that are none.
# ----------------------------------------------------------------------


def test_two_writers(unbroken, tmp_path, note):
  folder = tmp_path / 'run'
  first = runs.start(runs.toy, folder, wait_at=9)
  while not (folder / 'waiting').exists():
    assert first.poll() is None, runs.printed(folder)
    time.sleep(0.01)
  second = subprocess.run(
    runs.toy(folder, {}),
    capture_output=True,
    text=True,
    check=False,
    timeout=runs.LIMIT,
  )
  (folder / 'waiting').unlink()
  assert first.wait(runs.LIMIT) == 0, runs.printed(folder)
  assert second.returncode == 2
  (line,) = second.stderr.splitlines()
  assert f'written by another run (process {first.pid} on' in line
  runs.assert_same(folder, unbroken)
  note('a second writer', 1, 0, 'one line')


def test_nan_in_batches_and_kills(place, tmp_path, note):
  """Two ill batches, then four in a row: refused, then passed over."""
  ill = {'nan_batches': [5, 14, 15, 16, 17]}
  runs.run(runs.toy, place / 'ill', **ill)
  folder, lost = tmp_path / 'run', 0
  for step in (15, 19):
    runs.run(runs.toy, folder, code=-signal.SIGKILL, kill_at=step, **ill)
    lost += runs.steps_lost(folder)
  runs.run(runs.toy, folder, **ill)
  runs.assert_same(folder, place / 'ill')
  assert runs.events(folder) == ['refused'] * 4 + ['rollback', 'refused']
  note('NaN in batches, and kills', 2, lost)


def assert_learnt_the_same(folder, other):
  """The same numbers, whatever the reports of refused steps say of theirs."""
  for found, expected in zip(
    runs.logged(folder)['train/metrics.jsonl'],
    runs.logged(other)['train/metrics.jsonl'],
    strict=True,
  ):
    # Another program computes them.
    assert found == pytest.approx(expected, rel=1e-4)
  for name, value in runs.state(other).items():
    assert np.isfinite(value).all()
    found = runs.state(folder)[name]
    np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-6)


def test_nan_in_gradients_is_as_if_in_the_batch(tmp_path, note):
  runs.run(runs.toy, tmp_path / 'batches', nan_batches=[5, 13])
  ill = {'nan_gradients': [5, 13]}
  runs.run(runs.toy, tmp_path / 'whole', **ill)
  assert runs.events(tmp_path / 'whole') == ['refused'] * 2
  assert_learnt_the_same(tmp_path / 'whole', tmp_path / 'batches')
  folder = tmp_path / 'run'
  runs.run(runs.toy, folder, code=-signal.SIGKILL, kill_at=15, **ill)
  lost = runs.steps_lost(folder)
  runs.run(runs.toy, folder, **ill)
  runs.assert_same(folder, tmp_path / 'whole')
  note('NaN in gradients, and a kill', 1, lost)


def test_nan_in_a_parameter_is_rolled_back(tmp_path, note):
  """Batches 14, 15 and 16 are refused; back to step 12, on at batch 17."""
  ill = {'nan_parameter': 14}
  runs.run(runs.toy, tmp_path / 'whole', **ill)
  expected = ['refused'] * 3 + ['rollback']
  assert runs.events(tmp_path / 'whole') == expected
  runs.run(runs.toy, tmp_path / 'batches', nan_batches=[14, 15, 16])
  runs.assert_same(tmp_path / 'whole', tmp_path / 'batches')
  folder = tmp_path / 'run'
  runs.run(runs.toy, folder, code=-signal.SIGKILL, kill_at=18, **ill)
  runs.run(runs.toy, folder, **ill)
  runs.assert_same(folder, tmp_path / 'whole')
  note('NaN in a parameter, and a kill', 1, 5)


def test_nan_in_every_batch_is_one_line(tmp_path, note):
  ill = list(range(60))
  text = runs.run(runs.toy, tmp_path / 'run', code=2, nan_batches=ill)
  lines = [x for x in text.splitlines() if x.startswith('error')]
  assert len(lines) == 1 and 'stopped at step 3' in lines[0]
  assert 'Traceback' not in text
  note('NaN in every batch', 1, 0, 'one line')
