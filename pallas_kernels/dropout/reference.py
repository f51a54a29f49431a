# SPDX-License-Identifier: Apache-2.0
"""Dropout of hidden states by counter hash, the definition."""

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits


def dropout(
  x: jax.Array,
  rate: float | jax.Array,
  seed: jax.Array,
  rows: jax.Array,
) -> jax.Array:
  """Zeroes features with probability `rate`, scales the rest by 1/(1-rate).

  Args:
    x: [batch, length, features].
    rate: probability of zero, 0..1; may be traced. A Python 0 is free.
    seed: uint32 scalar.
    rows: uint32 [batch], each row's index in the global batch.

  Returns:
    [batch, length, features], in x's dtype.
  """
  if random_bits.never(rate):
    return x
  plane = rows.astype(jnp.uint32)[:, None, None]
  position = random_bits.iota(x.shape, 1)
  feature = random_bits.iota(x.shape, 2)
  kept = random_bits.keep(rate, seed, plane, position, feature)
  scale = random_bits.keep_scale(rate)
  return jnp.where(kept, x * scale.astype(x.dtype), jnp.zeros((), x.dtype))
