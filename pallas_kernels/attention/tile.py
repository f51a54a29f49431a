# SPDX-License-Identifier: Apache-2.0
"""Tiles of the attention matrix: what kernels of all platforms share."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits

# As in `softmax_dropout/reference.py`: a fully masked row gives zeros.
MASKED = -1e30
LOWEST_MAXIMUM = -1e20
LEAST_MASS = 1e-30


@dataclasses.dataclass(frozen=True)
class How:
  """What a kernel is compiled for.

  Attributes:
    scale: of the products.
    causal: whether query i sees only keys 0..i.
    vector: whether there is a relative bias.
    reset: whether [CLS] has bias scalars of its own.
    dropout: whether there is dropout.
    interpret: run as plain JAX.
  """

  scale: float
  causal: bool
  vector: bool
  reset: bool
  dropout: bool
  interpret: bool


def code(segments: jax.Array, first: jax.Array) -> jax.Array:
  """Segment and "is a [CLS]" in one int32; 0 at padding."""
  return jnp.where(segments == 0, 0, 2 * segments + first)


def is_first(codes: jax.Array) -> jax.Array:
  """Whether a position is the [CLS] of its segment."""
  return (codes & 1) == 1


def allowed(q_codes: jax.Array, k_codes: jax.Array) -> jax.Array:
  """Whether query and key lie in one segment that is not padding."""
  q, k = q_codes >> 1, k_codes >> 1
  return (q == k) & (q != 0)


def dropped(
  x: jax.Array,
  plane: jax.Array,
  row: jax.Array,
  col: jax.Array,
  threshold: jax.Array,
  keep_scale: jax.Array,
) -> jax.Array:
  """Dropout of a tile, and of its cotangent.

  Args:
    x: float32 [rows, columns].
    plane: uint32 scalar, `random_bits.fold` of seed and plane.
    row: int32 [rows, 1], queries.
    col: int32 [1, columns], keys.
    threshold: uint32 scalar.
    keep_scale: float32 scalar.

  Returns:
    [rows, columns].
  """
  keys = random_bits.mix(
    row.astype(jnp.uint32) * jnp.uint32(random_bits.ROW) ^ plane
  )
  bits = random_bits.mix(keys + col.astype(jnp.uint32))
  return jnp.where(bits >= threshold, x * keep_scale, 0.0)
