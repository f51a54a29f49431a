# SPDX-License-Identifier: Apache-2.0
"""Dropout inside kernels."""

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits


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
    plane: uint32, `random_bits.fold` of seed and plane; a scalar, or [rows, 1].
    row: int32 [rows, 1].
    col: int32 [1, columns].
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
