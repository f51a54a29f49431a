# SPDX-License-Identifier: Apache-2.0
"""Keeps the pages of a step's temporaries, where steps run on the CPU.

XLA's CPU client allocates what a step needs in between when the step starts
and frees it at its end. glibc gives blocks of that size back to the kernel,
which then zeroes the same pages again, step after step: 100,000 page faults a
step at width 256, a tenth of its time and more.
"""

import ctypes
import os

import jax

from metro_jax import hosts

# Of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_pages() -> bool:
  """Has malloc keep what is freed, for the rest of this process.

  To be called before jax looks for devices: a thread that has made an arena of
  its own by then still maps large blocks one by one. The process holds on to
  the most memory it ever needed, and little more.

  Returns:
    Whether anything was changed: only where jax will run on the CPU, and only
    with glibc.
  """
  if not runs_on_cpu():
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:  # macOS, musl.
    return False
  # In one heap that never shrinks: blocks of any size, from all threads.
  settings = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
  return all([mallopt(option, value) for option, value in settings])


def runs_on_cpu() -> bool:
  """Told without asking jax for its devices, which would start threads."""
  wanted = jax.config.jax_platforms or os.environ.get('JAX_PLATFORMS')
  if wanted:
    return wanted.split(',')[0] == 'cpu'
  return not (hosts.on_tpu_host() or hosts.on_gpu_host())
