# SPDX-License-Identifier: Apache-2.0
"""Sampling token ids from logits, two ways with the same distribution.

`categorical` inverts the cumulative distribution in two levels: two uniform
numbers a draw and one pass over the vocabulary. `gumbel` adds noise to every
logit and takes the maximum: a number per vocabulary entry, but it needs one
maximum only, so it can ride along with the pass of a vocabulary kernel.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits

_BLOCK = 128


def categorical(
  logits: jax.Array, seed: jax.Array, rows: jax.Array
) -> jax.Array:
  """One id per draw, from softmax(logits).

  First a block of 128 ids by the blocks' weights, then an id in it; each with
  its own uniform number, so that the 24 bits of one do not limit how rare a
  sampled id can be.

  Args:
    logits: [batch, draws, vocabulary].
    seed: uint32 scalar.
    rows: uint32 [batch], each row's index in the global batch.

  Returns:
    int32 [batch, draws].
  """
  batch, draws, size = logits.shape
  blocks = -(-size // _BLOCK)
  x = logits.astype(jnp.float32)
  weights = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
  weights = jnp.pad(weights, ((0, 0), (0, 0), (0, blocks * _BLOCK - size)))
  weights = weights.reshape(batch, draws, blocks, _BLOCK)
  plane, draw = _coordinates(logits, rows)
  u = [random_bits.uniform(seed, plane, draw, col) for col in (0, 1)]
  block = _invert(jnp.sum(weights, axis=-1), u[0])
  inside = jnp.take_along_axis(weights, block[..., None, None], axis=2)
  return block * _BLOCK + _invert(inside[:, :, 0], u[1])


def _invert(weights: jax.Array, u: jax.Array) -> jax.Array:
  """Least index whose cumulative weight exceeds u * total, int32 [..].

  Rounding in the sums may leave no such index, or point at a weight of zero:
  the last positive weight stands in, and zero weights are passed over.
  """
  index = jax.lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1)
  cumulative = jnp.cumsum(weights, axis=-1)
  beyond = cumulative > u[..., None] * cumulative[..., -1:]
  positive = weights > 0
  last = jnp.max(jnp.where(positive, index, 0), axis=-1)
  first = jnp.min(
    jnp.where(beyond & positive, index, weights.shape[-1]), axis=-1
  )
  return jnp.minimum(first, last)


def gumbel(logits: jax.Array, seed: jax.Array, rows: jax.Array) -> jax.Array:
  """One id per draw: argmax(logits + Gumbel noise).

  Args:
    logits: [batch, draws, vocabulary].
    seed: uint32 scalar.
    rows: uint32 [batch], each row's index in the global batch.

  Returns:
    int32 [batch, draws].
  """
  plane, draw = _coordinates(logits, rows)
  ids = random_bits.iota(logits.shape, 2)
  noise = random_bits.gumbel(
    random_bits.bits(seed, plane[..., None], draw[..., None], ids)
  )
  return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def _coordinates(logits, rows):
  plane = rows.astype(jnp.uint32)[:, None]
  return plane, random_bits.iota(logits.shape[:2], 1)
