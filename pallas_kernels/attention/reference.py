# SPDX-License-Identifier: Apache-2.0
"""Attention written out, the definition. Holds the [q, k] matrix in memory."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.bias import PositionBias
from pallas_kernels.softmax_dropout import softmax_dropout


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: PositionBias | None = None,
  q_segments: jax.Array | None = None,
  kv_segments: jax.Array | None = None,
  scale: float | None = None,
  causal: bool = False,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
  softmax_backend: str = 'auto',
  axis: str | None = None,
) -> jax.Array:
  """softmax(scale * q k^T + bias, allowed keys), dropout, times v.

  Args:
    q: [batch, queries, heads, head_dim].
    k: [batch, keys, heads, head_dim].
    v: [batch, keys, heads, head_dim].
    bias: position bias, added after scaling.
    q_segments: int32 [batch, queries]; 0 is padding. None: nothing masked.
    kv_segments: int32 [batch, keys]. A query sees keys of its own segment.
    scale: of the products; None is 1 / sqrt(head_dim).
    causal: whether query i sees only keys 0..i.
    dropout_rate: probability that a weight is dropped; may be traced.
    seed: uint32 scalar, needed for dropout.
    rows: uint32 [batch], each row's index in the global batch.
    softmax_backend: implementation of bias + mask + softmax + dropout.
    axis: mesh axis over which the heads are split, inside shard_map; needs
      softmax_backend 'pallas'.

  Returns:
    [batch, queries, heads, head_dim] in q's dtype; zeros where a query may
    see no key.
  """
  logits = jnp.einsum(
    'bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32
  )
  weights = softmax_dropout(
    logits,
    scale=q.shape[-1] ** -0.5 if scale is None else scale,
    bias=bias,
    q_segments=q_segments,
    kv_segments=kv_segments,
    causal=causal,
    dropout_rate=dropout_rate,
    seed=seed,
    rows=rows,
    dtype=v.dtype,
    axis=axis,
    backend=softmax_backend,
  )
  y = jnp.einsum(
    'bhqk,bkhd->bqhd', weights, v, preferred_element_type=jnp.float32
  )
  return y.astype(q.dtype)
