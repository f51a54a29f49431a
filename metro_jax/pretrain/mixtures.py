# SPDX-License-Identifier: Apache-2.0
"""How the heads of a multi-head auxiliary share in a proposal (AMOS).

A mixture gives weights gamma over heads; what is sampled from is the softmax
of the logits mixed by them, which is equation 3 of AMOS: mixing the projected
hidden states is the same where the heads share their last map.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.modules import initializers
from metro_jax.pretrain.sampling import scale_gradient

Progress = jax.Array | float  # Fraction of training that has passed, 0..1.


class Mixture(Protocol):
  """Weights over heads.

  Attributes:
    learned: whether the weights have parameters, which need a gradient.
    mlm_gradient: factor on the gradient that goes from the sample into what
      is mixed, the predictions; 0 keeps it out.
  """

  learned: ClassVar[bool]
  mlm_gradient: float

  def __call__(
    self, hidden: Sequence[jax.Array], progress: Progress, seed: jax.Array
  ) -> jax.Array:
    """Weighs the heads.

    Args:
      hidden: per head the hidden states [batch, slots, embed_dim] under it.
      progress: fraction of training that has passed, 0..1.
      seed: uint32 scalar, the same for all rows of a step.

    Returns:
      float32, broadcastable to [batch, slots, heads]; sums to 1.
    """


class LearnedMixture(nn.Module):
  """gamma = softmax over heads of v . f (AMOS equation 3).

  f are hidden states before the projection of the MLM head. They are not
  detached: what comes back through the sample moves v and the layers below.

  Attributes:
    mlm_gradient: see `Mixture`; AMOS's "+ adv. MLM" has 0.1.
    init_stddev: of v.
  """

  mlm_gradient: float = 0.0
  init_stddev: float = 0.02
  learned: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self, hidden: Sequence[jax.Array], progress: Progress, seed: jax.Array
  ) -> jax.Array:
    """See `Mixture`."""
    del progress, seed
    v = self.param(
      'vector',
      nn.with_logical_partitioning(
        initializers.normal(self.init_stddev), ('embed',)
      ),
      (hidden[0].shape[-1],),
      jnp.float32,
    )
    scores = [jnp.sum(f.astype(jnp.float32) * v, axis=-1) for f in hidden]
    return jax.nn.softmax(jnp.stack(scores, axis=-1), axis=-1)


class _Given(abc.ABC):
  """A mixture without parameters, the same at all positions of a batch."""

  learned: ClassVar[bool] = False
  mlm_gradient: ClassVar[float] = 0.0

  def __call__(
    self, hidden: Sequence[jax.Array], progress: Progress, seed: jax.Array
  ) -> jax.Array:
    """See `Mixture`."""
    return self._of(len(hidden), progress, seed)[None, None]

  @abc.abstractmethod
  def _of(self, heads: int, progress: Progress, seed: jax.Array) -> jax.Array:
    """float32 [heads]."""


@dataclasses.dataclass(frozen=True)
class UniformMixture(_Given):
  """All heads alike ("- adv. train")."""

  def _of(self, heads: int, progress: Progress, seed: jax.Array) -> jax.Array:
    del progress, seed
    return jnp.full(heads, 1 / heads, jnp.float32)


@dataclasses.dataclass(frozen=True)
class FixedMixture(_Given):
  """Given weights ("w. final mix weights").

  Attributes:
    weights: one per head, shallow to deep; they sum to 1.
  """

  weights: Sequence[float]

  def __post_init__(self):
    if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-3:
      raise UserError(
        f'FixedMixture.weights: {tuple(self.weights)} must be 0 or more, and'
        ' sum to 1'
      )

  def _of(self, heads: int, progress: Progress, seed: jax.Array) -> jax.Array:
    del progress, seed
    if heads != len(self.weights):
      raise UserError(
        f'FixedMixture.weights: {len(self.weights)} weights for {heads} heads;'
        ' give one per depth of Auxiliary.mlm_layers'
      )
    return jnp.asarray(self.weights, jnp.float32)


@dataclasses.dataclass(frozen=True)
class RandomLayer(_Given):
  """One head for a whole batch, a new draw each step ("w. random layer")."""

  def _of(self, heads: int, progress: Progress, seed: jax.Array) -> jax.Array:
    del progress
    # The seed is a random number already, and the same in every microbatch.
    return jax.nn.one_hot((seed >> 8) % jnp.uint32(heads), heads)


@dataclasses.dataclass(frozen=True)
class LayerSwitch(_Given):
  """From shallow to deep, one head at a time ("w. layer switch").

  Attributes:
    at: the progress at which the next head takes over, ascending, one fewer
      than there are heads.
  """

  at: Sequence[float] = (1 / 3, 2 / 3)

  def _of(self, heads: int, progress: Progress, seed: jax.Array) -> jax.Array:
    del seed
    if len(self.at) != heads - 1 or list(self.at) != sorted(self.at):
      raise UserError(
        f'LayerSwitch.at: {tuple(self.at)} must be ascending, and one fewer'
        f' than the {heads} depths of Auxiliary.mlm_layers'
      )
    return jax.nn.one_hot(jnp.sum(progress >= jnp.asarray(self.at)), heads)


def mix(
  weights: jax.Array, values: Sequence[jax.Array], gradient: float
) -> jax.Array:
  """Weighted sum of what heads predict.

  Args:
    weights: float32, broadcastable to [batch, slots, heads].
    values: per head [batch, slots, features].
    gradient: factor on the gradient that goes into `values`.

  Returns:
    float32 [batch, slots, features].
  """
  total = jnp.zeros((), jnp.float32)
  for head, value in enumerate(values):
    value = (
      scale_gradient(value, gradient)
      if gradient
      else jax.lax.stop_gradient(value)
    )
    total += weights[..., head, None] * value.astype(jnp.float32)
  return total
