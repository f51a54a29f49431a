# SPDX-License-Identifier: Apache-2.0
"""A trace of a few steps, for TensorBoard's or Perfetto's eyes."""

import pathlib

import jax

# Steps left alone first: caches warm up, and buffers are allocated.
WARM_UP = 10


class Profiler:
  """Traces `count` steps once, into MODEL_DIR/profile."""

  def __init__(self, model_dir: str, first_step: int, count: int):
    self._folder = str(pathlib.Path(model_dir) / 'profile')
    self._start = first_step + WARM_UP if count > 0 else -1
    self._stop = self._start + count
    self._tracing = False

  def advance(self, step: int) -> None:
    """Starts or stops the trace if this finished step says so."""
    if step == self._start:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    elif self._tracing and step == self._stop:
      self.close()

  def close(self) -> None:
    """Ends a trace that the run ended before."""
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
