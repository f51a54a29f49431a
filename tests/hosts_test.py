# SPDX-License-Identifier: Apache-2.0
"""Who joins whom, by environment and flags; tests/end_to_end does it."""

import glob
import importlib.util

import jax
import pytest

from metro_jax import hosts
from metro_jax.errors import UserError


@pytest.fixture
def joined(monkeypatch):
  """What jax.distributed.initialize is called with; a machine like any."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **kwargs: calls.append(kwargs)
  )
  monkeypatch.setattr(glob, 'glob', lambda pattern: [])
  for name in ('SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES'):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_alone(joined):
  hosts.join()
  assert joined == []


def test_by_flags(joined):
  hosts.join('10.0.0.1:1234', 4, 3)
  (call,) = joined
  assert call == {
    'coordinator_address': '10.0.0.1:1234',
    'num_processes': 4,
    'process_id': 3,
    'heartbeat_timeout_seconds': hosts.HEARTBEAT_SECONDS,
  }


@pytest.mark.parametrize(
  'tasks, expected', [('', 0), ('1', 0), ('2', 1), ('64', 1)]
)
def test_slurm(joined, monkeypatch, tasks, expected):
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', tasks)
  hosts.join()
  assert len(joined) == expected


@pytest.mark.parametrize('libtpu', [True, False])
def test_tpu_chips(joined, monkeypatch, libtpu):
  """A pod's metadata are for jax to read; chips say that it should."""
  monkeypatch.setattr(
    glob, 'glob', lambda p: ['/dev/accel0'] if 'accel' in p else []
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: libtpu or None)
  hosts.join()
  assert len(joined) == libtpu


def test_chips_of_one_host(joined, monkeypatch):
  """Without a cluster around them, jax raises ValueError."""

  def initialize(**kwargs):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(hosts, 'on_tpu_host', lambda: True)
  hosts.join()


@pytest.mark.parametrize(
  'given, message',
  [
    (('a:1', 2, None), '--multiprocess_gpu needs'),
    ((None, 2, 0), '--multiprocess_gpu needs'),
    (('a:1', 2, 2), '--process_index=2 is not one of 0 to 1'),
    (('a', 2, 0), 'write host:port, such as a:1234'),
  ],
)
def test_mistakes(joined, given, message):
  with pytest.raises(UserError, match=message):
    hosts.join(*given)
  assert joined == []
