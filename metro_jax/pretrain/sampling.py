# SPDX-License-Identifier: Apache-2.0
"""How replacements are drawn from the auxiliary's distributions.

A sampler decides whether a gradient crosses from X_noise back to the
auxiliary. Through `Categorical` and `Gumbel` none does; through
`GumbelStraightThrough` one does, with its sign turned (AMOS).
"""

import dataclasses
import functools
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax import losses, ops
from metro_jax.errors import UserError


@struct.dataclass
class Sample:
  """What was drawn.

  Attributes:
    ids: int32 [batch, slots].
    relaxed: float32 [batch, slots, vocabulary], probabilities that stand in
      for the drawn ids in the backward pass; None where no gradient crosses.
    loss: of the original tokens under the distributions that were drawn from,
      where the draw rode along with it.
  """

  ids: jax.Array
  relaxed: jax.Array | None = None
  loss: losses.TokenLoss | None = None


class Sampler(Protocol):
  """Draws one id per masked position.

  Attributes:
    carries_gradient: whether a sample has a `relaxed` form.
    rides_along: whether the draw is that of `losses.sampled_cross_entropy`,
      which needs no logits in memory.
  """

  carries_gradient: ClassVar[bool]
  rides_along: ClassVar[bool]

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> Sample:
    """Draws from softmax(logits).

    Args:
      logits: float32 [batch, slots, vocabulary].
      seed: uint32 scalar.
      rows: uint32 [batch], each row's index in the global batch.

    Returns:
      A function of logits, seed, row and slot.
    """


@dataclasses.dataclass(frozen=True)
class Categorical:
  """Inverts the cumulative distribution: a hash or two per draw."""

  carries_gradient: ClassVar[bool] = False
  rides_along: ClassVar[bool] = False

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> Sample:
    """See `Sampler`."""
    logits = jax.lax.stop_gradient(logits)
    return Sample(ops.sample_categorical(logits, seed, rows))


@dataclasses.dataclass(frozen=True)
class Gumbel:
  """Maximum of logits plus Gumbel noise: a hash per vocabulary entry.

  Slower than `Categorical` where logits are in memory anyway, as they are
  without a kernel; with one, it spares them.
  """

  carries_gradient: ClassVar[bool] = False
  rides_along: ClassVar[bool] = True

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> Sample:
    """See `Sampler`."""
    logits = jax.lax.stop_gradient(logits)
    return Sample(ops.sample_gumbel(logits, seed, rows))


@dataclasses.dataclass(frozen=True)
class GumbelStraightThrough:
  """The draw of `Gumbel`, with the gradient of a softmax (AMOS section 3.3).

  Forward: the id with the greatest logit + noise, nothing softened. Backward:
  as if the main model had read softmax((logits + noise) / temperature).

  Attributes:
    temperature: tau; the smaller, the nearer to the draw.
    gradient_scale: factor on the gradient that goes back through the sample;
      -1 is AMOS's gradient reversal, which makes the auxiliary seek what the
      main model finds hard.
  """

  carries_gradient: ClassVar[bool] = True
  rides_along: ClassVar[bool] = False
  temperature: float = 0.3
  gradient_scale: float = -1.0

  def __post_init__(self):
    if self.temperature <= 0:
      raise UserError(
        f'GumbelStraightThrough.temperature: {self.temperature} must be over 0'
      )

  def __call__(
    self, logits: jax.Array, seed: jax.Array, rows: jax.Array
  ) -> Sample:
    """See `Sampler`."""
    noisy = logits + ops.gumbel_noise(logits.shape, seed, rows)
    relaxed = jax.nn.softmax(noisy / self.temperature, axis=-1)
    ids = jnp.argmax(jax.lax.stop_gradient(noisy), axis=-1).astype(jnp.int32)
    return Sample(ids, scale_gradient(relaxed, self.gradient_scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
  """The same x; its gradient is multiplied by `scale`."""
  del scale
  return x


scale_gradient.defvjp(
  lambda x, scale: (x, None), lambda scale, _, g: (scale * g,)
)


@jax.custom_vjp
def straight_through(relaxed: jax.Array, table: jax.Array) -> jax.Array:
  """Zeros, with the gradient of relaxed @ table towards `relaxed` alone.

  Added to the embeddings of the drawn ids, it leaves them and the gradient of
  the table as they are, and lets the gradient of relaxed embeddings pass.

  Args:
    relaxed: [..., vocabulary].
    table: [vocabulary, width].

  Returns:
    [..., width] in the table's dtype.
  """
  shape = relaxed.shape[:-1] + table.shape[-1:]
  return jnp.zeros(shape, table.dtype)


def _backward(table, g):
  return ops.matmul(g, table.T, jnp.float32), jnp.zeros_like(table)


straight_through.defvjp(
  lambda r, table: (straight_through(r, table), table), _backward
)
