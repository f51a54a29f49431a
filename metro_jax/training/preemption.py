# SPDX-License-Identifier: Apache-2.0
"""Leaving on request: the current step is finished and saved, then we go."""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax


class StopSignal:
  """Notes SIGTERM and SIGINT while it is entered.

  A second SIGINT is not caught: whoever presses Ctrl-C twice does not want to
  wait. Outside the main thread (a notebook's worker) nothing is caught.

  With several processes SIGTERM is left to jax, whose notice of a preemption
  reaches them all, wherever it was sent; a SIGINT is passed on as one.

  Attributes:
    received: The signal's number, or None.
  """

  def __init__(self):
    self.received: int | None = None
    self._previous: dict[int, object] = {}

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      alone = jax.process_count() == 1
      for number in (signal.SIGINT, *((signal.SIGTERM,) if alone else ())):
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.received = number
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)
      if jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; the same answer on all hosts.

    With several hosts the signal may reach them at different steps, so they
    agree on one through jax's coordination service.
    """
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      reached = multihost_utils.reached_preemption_sync_point(step)
      if reached and self.received is None:
        self.received = signal.SIGTERM
      return reached
    return self.received is not None
