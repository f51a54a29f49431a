# SPDX-License-Identifier: Apache-2.0
"""Bias, mask, softmax and dropout of attention logits, the definition."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits
from pallas_kernels.attention.bias import PositionBias, sum_batch

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
  none = random_bits.never(dropout_rate)
  drop = None if none else (dropout_rate, seed, rows)
  dense = None if bias is None else bias.dense()
  how = (scale, causal, jnp.dtype(dtype or logits.dtype))
  return _softmax(how, logits, dense, (q_segments, kv_segments), drop)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(how, logits, dense, segments, drop):
  return _forward(how, logits, dense, segments, drop)[0]


def _forward(how, logits, dense, segments, drop):
  x = _masked_logits(how, logits, dense, segments)
  peak = jnp.max(x, axis=-1, keepdims=True)
  peak = jnp.maximum(peak, _LOWEST_MAXIMUM)
  total = jnp.sum(jnp.exp(x - peak), axis=-1, keepdims=True)
  inverse = 1.0 / jnp.maximum(total, 1e-30)
  y = _dropped(jnp.exp(x - peak) * inverse, drop).astype(how[-1])
  return y, (logits, dense, segments, drop, peak, inverse, y)


def _backward(how, residuals, g):
  """Softmax's gradient from the logits and y, which are kept anyhow.

  Probabilities and dropout mask are computed again. Softmax needs the sum of
  probability times its cotangent; with dropout between, that is sum(g * y).
  """
  logits, dense, segments, drop, peak, inverse, y = residuals
  g = g.astype(jnp.float32)
  delta = jnp.sum(g * y.astype(jnp.float32), axis=-1, keepdims=True)
  x = _masked_logits(how, logits, dense, segments)
  dx = jnp.exp(x - peak) * inverse * (_dropped(g, drop) - delta)
  d_dense = None
  if dense is not None:
    d_dense = dx if dense.shape[0] == dx.shape[0] else sum_batch(dx)
  return (dx * how[0]).astype(logits.dtype), d_dense, None, None


_softmax.defvjp(_forward, _backward)


def _masked_logits(how, logits, dense, segments):
  scale, causal, _ = how
  x = logits.astype(jnp.float32) * scale
  if dense is not None:
    x = x + dense
  allowed = allowed_keys(logits.shape, *segments, causal)
  return x if allowed is None else jnp.where(allowed, x, _MASKED)


def _dropped(x, drop):
  """Zeros and scales by the mask: its own transpose."""
  if drop is None:
    return x
  rate, seed, rows = drop
  kept = keep_mask(x.shape, rate, seed, rows)
  return jnp.where(kept, x * random_bits.keep_scale(rate), 0.0)


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
