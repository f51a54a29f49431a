# SPDX-License-Identifier: Apache-2.0
"""Faults on the real command line, recipe by recipe; corruption; data shards.

A recipe is run twice with the same NaNs in a batch, in a gradient and in a
parameter. One run meets with nothing else, the other with a chain of faults;
both must end with the same logs, parameters and slots, to the bit.
"""

import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import corruption_models as tiny
import fault_runs as runs
import numpy as np
import pytest

from metro_jax.errors import UserError

pytestmark = pytest.mark.slow

# Step 6's parameters are ill: 6, 7 and 8 are refused, the run goes back to 4,
# and reads on four batches later.
NAN = {'nan_batches': [3], 'nan_parameter': 5, 'nan_gradients': [10]}
PASSED_OVER = 4


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tmp_path_factory.mktemp('corpus')


@pytest.mark.parametrize('name', runs.RECIPES)
def test_a_chain_of_faults(name, corpus, tmp_path, note):
  command = runs.recipe(name, corpus)
  draw = random.Random(name)
  whole, folder = tmp_path / 'whole', tmp_path / 'run'
  runs.run(command, whole, **NAN)
  happened = runs.events(whole)
  assert happened[-5:] == ['refused'] * 3 + ['rollback', 'refused']
  note(f'{name}: NaN in batch, parameter, gradient', 3, 4, 'refused; back once')

  # SIGKILL at a random moment, in the second epoch.
  process = runs.start(command, folder, **NAN)
  while runs.last_logged(folder) < 18:
    assert process.poll() is None, runs.printed(folder)
    time.sleep(0.001)
  time.sleep(draw.uniform(0, 0.05))
  process.kill()
  assert process.wait() == -signal.SIGKILL, 'it was too fast'
  done = runs.last_logged(folder)

  # The newest checkpoint spoilt. Then the clock goes back, the disk is full for
  # two saves or one, and SIGKILL inside the last.
  begin, newest = runs.saved_steps(folder)[-2:]
  way = runs.WAYS[runs.RECIPES.index(name)]
  runs.spoil(runs.largest_file(folder / f'checkpoint_{newest}'), way)
  batch = begin + PASSED_OVER
  printed = runs.run(
    command,
    folder,
    code=-signal.SIGKILL,
    clock_jumps={str(batch + 1): -86400.0},
    full_disk=[batch + 2, batch + 11, 20_000],
    kill_in_save=runs.STEPS,
    **NAN,
  )
  assert f'falling back to checkpoint_{begin}' in printed
  note(f'{name}: SIGKILL; newest shard {way}', 2, done - begin)
  full = re.findall('warning: checkpoint_[0-9]+ was not saved', printed)
  assert full, printed
  again = runs.saved_steps(folder)[-1]
  lost = runs.STEPS - again
  note(f'{name}: clock back; disk full; kill in save', 3, lost)

  # A second resume, and SIGTERM with a deadline; then to the end.
  printed = runs.run(
    command,
    folder,
    terminate_at=again + PASSED_OVER + 2,
    deadline=120.0,
    **NAN,
  )
  assert runs.resumed_at(printed) == again
  (at,) = re.findall(r'SIGTERM at step (\d+) of', printed)
  assert runs.saved_steps(folder)[-1] == int(at) < runs.STEPS
  runs.run(command, folder, **NAN)
  runs.assert_same(folder, whole)
  note(f'{name}: second resume; SIGTERM, deadline', 2, 0)


# ----------------------------------------------------------------------
# Fast-ELECTRA's corruption ahead of training.
# ----------------------------------------------------------------------

KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = {paths!r}
import pytest
import corruption_models as tiny
from offline_corruption_test import die_at
place = pathlib.Path({place!r})
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
die_at({write}, die, pytest.MonkeyPatch())
tiny.write(place, tiny.datasets(place), 'killed')
"""


def test_sigkill_inside_corrupt(place, text, stream, note):
  here, draw = pathlib.Path(__file__).parent, random.Random(0)
  for _ in range(2):
    script = KILLED.format(
      paths=[str(here), str(here.parent)],
      place=str(place),
      write=draw.randint(2, 9),
    )
    done = subprocess.run(
      [sys.executable, '-c', script], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  tiny.write(place, text, 'killed')
  assert tiny.tree(place / 'killed') == tiny.tree(stream)
  note('corrupt: SIGKILL inside a file', 2, 0, 'same to the byte')


@pytest.mark.parametrize('way', runs.WAYS)
def test_a_shard_of_a_stream(stream, tmp_path, way, note):
  copy = tmp_path / 'copy'
  shutil.copytree(stream, copy)
  runs.spoil(copy / 'train' / 'epoch-001' / '00001.npy', way)
  with pytest.raises(UserError, match=r'epoch-001/00001\.npy') as error:
    tiny.opened(copy)
  assert '\n' not in str(error.value)
  note(f'shard of a corrupted stream: {way}', 1, 0, 'one line')


@pytest.mark.parametrize('way', runs.WAYS)
def test_a_shard_of_the_token_cache(tmp_path, way, note):
  """Named in one line; without it, it is built anew, the same to the bit."""
  tiny.write_text(tmp_path)
  before = tiny.datasets(tmp_path)['train']
  batch = before.batch(3)
  runs.spoil(before.cache.path / 'tokens.bin', way)
  with pytest.raises(UserError, match='delete that folder') as error:
    tiny.datasets(tmp_path)
  assert '\n' not in str(error.value)
  shutil.rmtree(before.cache.path)
  after = tiny.datasets(tmp_path)['train']
  assert after.fingerprint == before.fingerprint
  for name, value in after.batch(3).items():
    np.testing.assert_array_equal(value, batch[name])
  note(f'shard of a token cache: {way}', 1, 0, 'one line; rebuilt')
