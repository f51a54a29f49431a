# SPDX-License-Identifier: Apache-2.0
"""Whether a step may be taken: judged on the device, inside the step.

A step that is refused changes neither parameters nor slots nor metrics; only
its number is spent, so that the next step has the next batch. What the judge
remembers is part of a checkpoint, and its verdict is a function of that memory
and of the step: a resumed run refuses the same steps as an unbroken one.

The verdict rests on what is known before the parameters change: loss, gradients
and updates. So XLA writes new values or old ones as it computes them, and never
holds two sets of parameters.

What happens when refusing does not help is decided on the host, see
`recovery`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax.errors import UserError

PyTree = Any

GOOD, NON_FINITE, LOSS_SPIKE, NORM_SPIKE = range(4)
REASONS = (
  'good',
  'loss, gradient or update is not finite',
  'the loss spiked',
  'the gradient norm spiked',
)

# A spread never counts for less than this: of the loss, as a share of its
# mean; of the logarithm of the gradient norm. So with 8 sigmas, what is less
# than 16 % above the mean loss, or 7 times the mean norm, is never a spike.
_LEAST_SPREAD = (0.02, 0.25)
_LEAST_NORM = 1e-30  # Zero gradients have a logarithm too.


class GuardState(struct.PyTreeNode):
  """What a guard remembers.

  Attributes:
    history: float32 [2, window]: loss, and logarithm of the gradient norm, of
      the last steps that were taken.
    taken: int32 scalar: how many steps were taken.
    refused: int32 scalar: how many were refused since the last that was taken.
  """

  history: jax.Array
  taken: jax.Array
  refused: jax.Array


class StepGuard(Protocol):
  """What a training step and its loop ask of a guard.

  Attributes:
    max_refused: steps refused in a row after which refusing does not help.
    max_rollbacks: how often the run then goes back to a checkpoint before it
      gives up.
  """

  max_refused: int
  max_rollbacks: int

  def init(self) -> PyTree:
    """What is remembered before the first step; zeros."""

  def judge(
    self,
    memory: PyTree,
    loss: jax.Array,
    grad_norm: jax.Array,
    update_norm: jax.Array,
  ) -> tuple[jax.Array, jax.Array, PyTree]:
    """Judges a step before it is taken.

    Args:
      memory: of the steps before.
      loss: float32 scalar.
      grad_norm: float32 scalar, of all gradients.
      update_norm: float32 scalar, of what would be added to the parameters.

    Returns:
      The verdict, an int32 index of `REASONS`; how many steps in a row have
      been refused, int32; the memory after the step.
    """

  def choose(self, good: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new tree where a step is taken, the old one where it is refused."""

  def choose_slots(
    self,
    good: jax.Array,
    new: PyTree,
    old: PyTree,
    gradients: PyTree,
    update: Callable[[PyTree, PyTree], PyTree],
  ) -> PyTree:
    """As `choose`, of the optimizer's slots.

    Args:
      good: bool scalar.
      new: update(gradients, old).
      old: before the step.
      gradients: of the step.
      update: a pure function.
    """


@dataclasses.dataclass(frozen=True)
class NoGuard:
  """Takes every step."""

  max_refused: int = 1
  max_rollbacks: int = 0

  def init(self) -> PyTree:
    """See `StepGuard`."""
    return ()

  def judge(
    self,
    memory: PyTree,
    loss: jax.Array,
    grad_norm: jax.Array,
    update_norm: jax.Array,
  ) -> tuple[jax.Array, jax.Array, PyTree]:
    """See `StepGuard`."""
    del loss, grad_norm, update_norm
    return jnp.int32(GOOD), jnp.int32(0), memory

  def choose(self, good: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """See `StepGuard`."""
    del good, old
    return new

  def choose_slots(
    self,
    good: jax.Array,
    new: PyTree,
    old: PyTree,
    gradients: PyTree,
    update: Callable[[PyTree, PyTree], PyTree],
  ) -> PyTree:
    """See `StepGuard`."""
    del good, old, gradients, update
    return new


@dataclasses.dataclass(frozen=True)
class Guard:
  """Refuses steps that are not finite, and spikes.

  Not finite is NaN or infinity in loss, gradients or updates. A spike is a
  loss, or a gradient norm, more than `sigmas` standard deviations above its
  mean over the last `window` steps that were taken; until there are so many,
  none is one. Norms are compared by their logarithms, since they are skewed.
  Of a slow divergence a guard sees nothing: that is what `health` is for.

  Attributes:
    sigmas: deviations that make a spike; None lets spikes pass.
    window: steps that are remembered.
    max_refused: steps refused in a row after which refusing does not help.
    max_rollbacks: how often the run then goes back to a checkpoint, and past
      the data that it had seen since, before it gives up. PaLM (Chowdhery et
      al. 2022, section 5.1) got over its spikes by this.
  """

  sigmas: float | None = 8.0
  window: int = 100
  max_refused: int = 10
  max_rollbacks: int = 3

  def __post_init__(self):
    for name, least in (
      ('window', 2),
      ('max_refused', 1),
      ('max_rollbacks', 0),
    ):
      value = getattr(self, name)
      if value < least:
        raise UserError(
          f'training.Guard.{name} is {value}; give {least} or more'
        )
    if self.sigmas is not None and self.sigmas <= 0:
      raise UserError(
        f'training.Guard.sigmas is {self.sigmas}; give a positive number, or'
        ' None to let spikes pass'
      )

  def init(self) -> GuardState:
    """See `StepGuard`."""
    return GuardState(
      jnp.zeros((2, self.window), jnp.float32),
      taken=jnp.zeros([], jnp.int32),
      refused=jnp.zeros([], jnp.int32),
    )

  def judge(
    self,
    memory: GuardState,
    loss: jax.Array,
    grad_norm: jax.Array,
    update_norm: jax.Array,
  ) -> tuple[jax.Array, jax.Array, GuardState]:
    """See `StepGuard`."""
    norm = jnp.log(jnp.maximum(grad_norm, _LEAST_NORM))
    seen = jnp.stack([loss.astype(jnp.float32), norm])
    loss_spike, norm_spike = self._spikes(memory, seen)
    finite = jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])).all()
    verdict = jnp.select(
      [~finite, loss_spike, norm_spike],
      [NON_FINITE, LOSS_SPIKE, NORM_SPIKE],
      GOOD,
    ).astype(jnp.int32)
    good = verdict == GOOD
    place = memory.taken % self.window
    after = GuardState(
      history=jnp.where(
        good, memory.history.at[:, place].set(seen), memory.history
      ),
      taken=memory.taken + good,
      refused=jnp.where(good, 0, memory.refused + 1),
    )
    return verdict, after.refused, after

  def choose(self, good: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """See `StepGuard`."""
    return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)

  def choose_slots(
    self,
    good: jax.Array,
    new: PyTree,
    old: PyTree,
    gradients: PyTree,
    update: Callable[[PyTree, PyTree], PyTree],
  ) -> PyTree:
    """See `StepGuard`.

    The updates were made from new slots too, so XLA would write all of these
    first, and then choose in a second pass through memory. Computed anew, each
    is chosen as it is made. The barrier is there lest XLA see that they are the
    same.
    """
    del new
    gradients, old = jax.lax.optimization_barrier((gradients, old))
    return self.choose(good, update(gradients, old), old)

  def _spikes(self, memory: GuardState, seen: jax.Array) -> jax.Array:
    """Bool [2]: whether loss and norm are spikes."""
    if self.sigmas is None:
      return jnp.zeros(2, bool)
    mean = jnp.mean(memory.history, axis=1)
    scale = jnp.stack([jnp.abs(mean[0]), jnp.float32(1)])
    least = jnp.asarray(_LEAST_SPREAD, jnp.float32) * scale
    spread = jnp.maximum(jnp.std(memory.history, axis=1), least)
    full = memory.taken >= self.window
    return full & (seen > mean + self.sigmas * spread)


@dataclasses.dataclass(frozen=True)
class StepReport:
  """What the host is told of a step; on the device it is one small array.

  Attributes:
    loss: its loss.
    grad_norm: its gradient norm.
    verdict: an index of `REASONS`.
    refused: steps refused in a row, this one included.
  """

  loss: float
  grad_norm: float
  verdict: int
  refused: int

  @staticmethod
  def pack(
    loss: jax.Array,
    grad_norm: jax.Array,
    verdict: jax.Array,
    refused: jax.Array,
  ) -> jax.Array:
    """float32 [4]: one copy to the host instead of four."""
    return jnp.stack(
      [jnp.asarray(x, jnp.float32) for x in (loss, grad_norm, verdict, refused)]
    )

  @classmethod
  def unpack(cls, packed: Any) -> 'StepReport':
    """The inverse of `pack`; waits until the step has been computed."""
    loss, norm, verdict, refused = jax.device_get(packed).tolist()
    return cls(loss, norm, int(verdict), int(refused))
