# SPDX-License-Identifier: Apache-2.0
"""Bias, mask, softmax and dropout of attention logits, the definition."""

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits
from pallas_kernels.attention.bias import PositionBias

# Finite, so that a fully masked row subtracts it from itself without a NaN.
_MASKED = -1e30
# Largest logit taken for the maximum of a fully masked row: far above _MASKED
# (whose exponential is then 0), far below any real logit.
_LOWEST_MAXIMUM = -1e20


def softmax_dropout(
  logits: jax.Array,
  *,
  scale: float = 1.0,
  bias: PositionBias | None = None,
  q_segments: jax.Array | None = None,
  kv_segments: jax.Array | None = None,
  causal: bool = False,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
  dtype=None,
) -> jax.Array:
  """dropout(softmax(scale * logits + bias, over allowed keys)).

  Args:
    logits: [batch, heads, queries, keys].
    scale: multiplies the logits, not the bias.
    bias: added after scaling.
    q_segments: int32 [batch, queries]; 0 is padding. None: nothing masked.
    kv_segments: int32 [batch, keys]. A query sees keys of its own segment.
    causal: whether query i sees only keys 0..i.
    dropout_rate: probability of a zero, may be traced. A Python 0 is free.
    seed: uint32 scalar, needed for dropout.
    rows: uint32 [batch], each row's index in the global batch.
    dtype: of the result; None is that of the logits.

  Returns:
    [batch, heads, queries, keys]; zeros where a query may see no key.
  """
  x = logits.astype(jnp.float32) * scale
  if bias is not None:
    x = x + bias.dense()
  allowed = allowed_keys(logits.shape, q_segments, kv_segments, causal)
  if allowed is not None:
    x = jnp.where(allowed, x, _MASKED)
  peak = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
  weight = jnp.exp(x - jnp.maximum(peak, _LOWEST_MAXIMUM))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  y = weight / jnp.maximum(total, 1e-30)
  if not (isinstance(dropout_rate, int | float) and dropout_rate == 0):
    kept = keep_mask(logits.shape, dropout_rate, seed, rows)
    y = jnp.where(kept, y * random_bits.keep_scale(dropout_rate), 0.0)
  return y.astype(dtype or logits.dtype)


def allowed_keys(
  shape: tuple[int, ...],
  q_segments: jax.Array | None,
  kv_segments: jax.Array | None,
  causal: bool,
) -> jax.Array | None:
  """Bool, broadcastable to `shape` [batch, heads, queries, keys], or None."""
  allowed = None
  if q_segments is not None:
    q, k = q_segments[:, None, :, None], kv_segments[:, None, None, :]
    allowed = (q == k) & (q != 0)
  if causal:
    past = random_bits.iota(shape, 2) >= random_bits.iota(shape, 3)
    allowed = past if allowed is None else allowed & past
  return allowed


def keep_mask(
  shape: tuple[int, ...],
  rate: float | jax.Array,
  seed: jax.Array,
  rows: jax.Array,
) -> jax.Array:
  """Bool [batch, heads, queries, keys]: the probabilities that stay."""
  heads = shape[1]
  plane = rows.astype(jnp.uint32)[:, None, None, None] * jnp.uint32(heads)
  plane = plane + random_bits.iota(shape, 1)
  query, key = random_bits.iota(shape, 2), random_bits.iota(shape, 3)
  return random_bits.keep(rate, seed, plane, query, key)
