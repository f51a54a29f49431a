# SPDX-License-Identifier: Apache-2.0
"""Silence where orbax would log pages of tracebacks about a broken disk.

Failures of a save or a restore are told by `Checkpointer`, in one line, and
what orbax says beside it only hides that line. absl's --verbosity=1 lets
everything through.
"""

import functools
import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any


@functools.cache
def silence() -> None:
  """Filters orbax's log, and the rest of what it had under way on failure."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_not_from_orbax)
  sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _verbose() -> bool:
  return logging.getLogger('absl').isEnabledFor(logging.DEBUG)


def _not_from_orbax(record: logging.LogRecord) -> bool:
  traceback = record.exc_info[2] if record.exc_info else None
  ours = 'orbax' in record.pathname or _passed_orbax(traceback)
  return _verbose() or not ours


def _passed_orbax(traceback: TracebackType | None) -> bool:
  while traceback:
    if 'orbax' in traceback.tb_frame.f_code.co_filename:
      return True
    traceback = traceback.tb_next
  return False


def _unraisable(previous: Callable[[Any], None], unraisable: Any) -> None:
  error = unraisable.exc_value
  # After one array failed, others report to an event loop that is gone.
  late = isinstance(error, RuntimeError) and str(error) == (
    'Event loop is closed'
  )
  if _verbose() or not (late or _passed_orbax(unraisable.exc_traceback)):
    previous(unraisable)
