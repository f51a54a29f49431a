# SPDX-License-Identifier: Apache-2.0
"""Learning rates as functions of the number of finished steps.

Warm-up counts the step that is being taken: the first step of W runs at
peak / W. (fairseq, which METRO-LM used, runs its first step at zero.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metro_jax.errors import UserError

# Finished steps (int scalar, may be traced) -> learning rate.
Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def _check(name: str, peak: float, warmup_steps: int) -> None:
  if peak < 0:
    raise UserError(f'training.{name}: peak is {peak}; it must not be negative')
  if warmup_steps < 0:
    raise UserError(
      f'training.{name}: warmup_steps is {warmup_steps}; give 0 or more'
    )


def _warmup(step: jax.typing.ArrayLike, warmup_steps: int) -> jax.Array:
  """Fraction of the peak during warm-up, 1 after it."""
  taken = jnp.asarray(step, jnp.float32) + 1.0
  return jnp.minimum(1.0, taken / max(1, warmup_steps))


def constant(peak: float, warmup_steps: int = 0) -> Schedule:
  """The peak, after a linear warm-up."""
  _check('constant', peak, warmup_steps)
  return lambda step: peak * _warmup(step, warmup_steps)


def linear_warmup_decay(
  peak: float, warmup_steps: int, total_steps: int, end: float = 0.0
) -> Schedule:
  """Linear from zero to the peak, then linear down to `end`.

  Args:
    peak: Learning rate at the end of the warm-up.
    warmup_steps: Length of the warm-up.
    total_steps: The step after which the rate stays at `end`.
    end: Learning rate at `total_steps`.

  Returns:
    A schedule.
  """
  _check('linear_warmup_decay', peak, warmup_steps)
  if total_steps <= warmup_steps:
    raise UserError(
      f'training.linear_warmup_decay: warmup_steps={warmup_steps} must be'
      f' less than total_steps={total_steps}; lower WARMUP_STEPS or raise'
      ' TRAIN_STEPS'
    )

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    done = jnp.asarray(step, jnp.float32) - warmup_steps
    left = 1.0 - jnp.clip(done / (total_steps - warmup_steps), 0.0, 1.0)
    decayed = end + (peak - end) * left
    return jnp.minimum(decayed, peak * _warmup(step, warmup_steps))

  return schedule


def rsqrt(peak: float, warmup_steps: int) -> Schedule:
  """Linear warm-up, then peak * sqrt(warmup_steps / step)."""
  _check('rsqrt', peak, max(1, warmup_steps))
  warmup = max(1, warmup_steps)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    taken = jnp.asarray(step, jnp.float32) + 1.0
    decayed = jnp.sqrt(warmup / jnp.maximum(taken, warmup))
    return peak * jnp.minimum(decayed, _warmup(step, warmup))

  return schedule
