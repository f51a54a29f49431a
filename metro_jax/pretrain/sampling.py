# SPDX-License-Identifier: Apache-2.0
"""How replacements are drawn from the auxiliary's distributions.

A sampler decides whether a gradient crosses from X_noise back to the
auxiliary; through these two, none does.
"""

import dataclasses
from typing import Protocol

import jax

from metro_jax import ops


class Sampler(Protocol):
  """Draws one id per masked position."""

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> jax.Array:
    """Draws from softmax(logits).

    Args:
      logits: float32 [batch, slots, vocabulary].
      seed: uint32 scalar.
      rows: uint32 [batch], each row's index in the global batch.

    Returns:
      int32 [batch, slots], a function of logits, seed, row and slot.
    """


@dataclasses.dataclass(frozen=True)
class Categorical:
  """Inverts the cumulative distribution: a hash or two per draw."""

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> jax.Array:
    """See `Sampler`."""
    return ops.sample_categorical(jax.lax.stop_gradient(logits), seed, rows)


@dataclasses.dataclass(frozen=True)
class Gumbel:
  """Maximum of logits plus Gumbel noise: a hash per vocabulary entry."""

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> jax.Array:
    """See `Sampler`."""
    return ops.sample_gumbel(jax.lax.stop_gradient(logits), seed, rows)
