# SPDX-License-Identifier: Apache-2.0
"""Posterior differential regularisation (METRO-LM section 4.4)."""

import dataclasses

import jax
import jax.numpy as jnp

from metro_jax import ops
from metro_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PosteriorDifferential:
  """Predictions should not change when the input embeddings do, a little.

  Equations 11 and 12: the loss is L(f(x), y) + weight * R(f(x), f(x + noise)).
  The second pass keeps the dropout masks of the first, so that the two differ
  by the noise alone; gradients flow through both. R is the formulation's
  `divergence`: symmetric KL for classes, choices and both ends of a span,
  squared difference for a number.

  The paper leaves open which norm and which radius. Here each feature's noise
  is uniform in -radius..radius, which is uniform in a ball of the maximum norm;
  features come out of a LayerNorm, so 1 is their own size.

  Attributes:
    weight: alpha of equation 11. 0 computes no second pass.
    radius: c, the norm of the noise at most.
  """

  weight: float = 1.0
  radius: float = 0.1

  def __post_init__(self):
    for name, value in (('weight', self.weight), ('radius', self.radius)):
      if value < 0:
        raise UserError(
          f'PosteriorDifferential.{name}: {value} is negative; give 0 or more'
        )

  def perturb(
    self, x: jax.Array, seed: jax.Array, rows: jax.Array, valid: jax.Array
  ) -> jax.Array:
    """X + noise (equation 12).

    Args:
      x: [batch, length, width], embeddings.
      seed: uint32 scalar.
      rows: uint32 [batch], each row's index in the global batch: what its
        noise depends on, instead of where it lies.
      valid: bool [batch, length], False at padding, which stays as it is.

    Returns:
      The same shape and dtype.
    """
    bits = ops.random_bits
    u = bits.uniform(
      seed, rows[:, None, None], bits.iota(x.shape, 1), bits.iota(x.shape, 2)
    )
    noise = jnp.where(valid[..., None], (2 * u - 1) * self.radius, 0.0)
    return x + noise.astype(x.dtype)
