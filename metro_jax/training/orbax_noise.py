# SPDX-License-Identifier: Apache-2.0
"""Silence where orbax would log pages of tracebacks about a full disk.

Failures of a save are told by `Checkpointer`, in one line, and what orbax says
beside it only hides that line. absl's --verbosity=1 lets everything through.
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any


@functools.cache
def silence() -> None:
  """Filters orbax's log and the callbacks of its abandoned writes."""
  logging.getLogger('absl').addFilter(_not_from_orbax)
  sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _verbose() -> bool:
  return logging.getLogger('absl').isEnabledFor(logging.DEBUG)


def _not_from_orbax(record: logging.LogRecord) -> bool:
  return _verbose() or 'orbax' not in record.pathname


def _unraisable(previous: Callable[[Any], None], unraisable: Any) -> None:
  # After one array failed, others report to an event loop that is gone.
  error = unraisable.exc_value
  late = isinstance(error, RuntimeError) and str(error) == (
    'Event loop is closed'
  )
  if _verbose() or not late:
    previous(unraisable)
