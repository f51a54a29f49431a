# SPDX-License-Identifier: Apache-2.0
"""Joining the processes of one run, before jax looks for devices.

TPU pods (by their metadata server or GKE's variables) and SLURM steps say by
themselves who takes part; elsewhere the command line does.
"""

import glob
import importlib.util
import os
import sys
import traceback
from typing import NoReturn

import jax

from metro_jax.errors import UserError

# How long a process may be silent before the others give up. A job that waits
# for a dead host costs all the others; a restart loses a checkpoint period.
HEARTBEAT_SECONDS = 30
LOST = 3  # Exit code of a process that cannot go on without the others.


def join(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
) -> None:
  """Joins the other processes of this run, if there are any.

  Args:
    coordinator: host:port of process 0; None to find out.
    count: number of processes.
    index: which one this is, from 0.

  Raises:
    UserError: if only some of these are given, or they make no sense.
  """
  given = (coordinator, count, index)
  if given == (None, None, None):
    _join_cluster()
    return
  if None in given:
    raise UserError(
      '--multiprocess_gpu needs --coordinator_address, --process_count and'
      ' --process_index'
    )
  if not 0 <= index < count:
    raise UserError(
      f'--process_index={index} is not one of 0 to {count - 1}'
      ' (--process_count)'
    )
  if ':' not in coordinator:
    raise UserError(
      f'--coordinator_address={coordinator}: write host:port, such as'
      f' {coordinator}:1234'
    )
  _initialize(
    coordinator_address=coordinator, num_processes=count, process_id=index
  )


def _join_cluster() -> None:
  if in_slurm_step() or on_tpu_host():
    try:
      _initialize()
    except ValueError:
      return  # jax finds no cluster around these chips: one host, alone.


def _initialize(**who: object) -> None:
  # What SIGTERM does, `training.preemption` decides; see there.
  jax.config.update('jax_enable_preemption_service', True)
  jax.distributed.initialize(**who, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def give_up(error: Exception) -> NoReturn:
  """Ends a process whose computation failed, most often for want of another.

  At once: an orderly exit would wait for the others.
  """
  traceback.print_exception(error)
  print(
    f'error: process {jax.process_index()} of {jax.process_count()} cannot go'
    f' on ({str(error).splitlines()[0][:120]}); where another process has'
    ' ended, the same command on all goes on from the last checkpoint',
    file=sys.stderr,
    flush=True,
  )
  os._exit(LOST)


def in_slurm_step() -> bool:
  """Whether `srun` started this process beside others."""
  return os.environ.get('SLURM_STEP_NUM_TASKS', '1') not in ('', '1')


def on_tpu_host() -> bool:
  """Whether TPU chips are plugged in here."""
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  return bool(chips) and importlib.util.find_spec('libtpu') is not None


def on_gpu_host() -> bool:
  """Whether the driver of a GPU (NVIDIA's, AMD's) is loaded here."""
  return any(os.path.exists(path) for path in ('/dev/nvidiactl', '/dev/kfd'))
