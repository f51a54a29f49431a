# SPDX-License-Identifier: Apache-2.0
"""How fast a run goes, counted over the time that steps took.

Compilation, evaluation and waiting for a disk are not time of steps: the
clock is stopped for them, or has not started.
"""

import contextlib
import time
from collections.abc import Iterator

import jax


class Meter:
  """A stopwatch over steps.

  Attributes:
    batch_size: Sequences in a step.
    tokens_per_step: Token positions in a step, padding included.
    flops_per_step: Model FLOPs of a step, or None if not known.
    peak_flops: Peak FLOP/s of a device, or None if not known.
  """

  def __init__(
    self,
    batch_size: int,
    tokens_per_step: int,
    flops_per_step: float | None = None,
    peak_flops: float | None = None,
  ):
    self.batch_size = batch_size
    self.tokens_per_step = tokens_per_step
    self.flops_per_step = flops_per_step
    self.peak_flops = peak_flops
    self._born = time.monotonic()
    self.start(0)

  def start(self, step: int) -> None:
    """Starts the clock at a finished step."""
    self._step, self._started = step, time.monotonic()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time inside does not count."""
    begun = time.monotonic()
    yield
    self._started += time.monotonic() - begun

  def read(self, step: int, filled: float = 1.0) -> dict[str, float]:
    """Rates since the last reading, by T5X's names; starts the next.

    Args:
      step: Finished steps, all of them computed by now.
      filled: The fraction of token positions that is not padding.
    """
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._started, 1e-9)
    devices = jax.device_count()
    readings = {
      'timing/seconds': now - self._started,
      'timing/steps_per_second': rate,
      'timing/seqs_per_second': rate * self.batch_size,
      'timing/seqs_per_second_per_core': rate * self.batch_size / devices,
      'timing/tokens_per_second': rate * self.tokens_per_step * filled,
      'timing/uptime': now - self._born,
    }
    if self.flops_per_step:
      flops = rate * self.flops_per_step / devices
      readings['timing/tflops_per_second_per_device'] = flops / 1e12
      if self.peak_flops:
        readings['timing/mfu'] = flops / self.peak_flops
    self.start(step)
    return readings
