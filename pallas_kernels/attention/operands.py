# SPDX-License-Identifier: Apache-2.0
"""Small arrays that attention kernels read beside q, k and v."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import backend, random_bits
from pallas_kernels.attention import tile
from pallas_kernels.attention.bias import PositionBias


class Operands(NamedTuple):
  """All always there, so that kernels have one signature.

  Attributes:
    q_codes: int32 [batch, queries], `tile.code`.
    k_codes: int32 [batch, keys].
    vector: float32 [heads, queries + keys - 1], or [1, 1] for no bias.
    reset: float32 [heads, 2], or [1, 1].
    planes: uint32 [batch, heads], hash of seed and plane, or [1, 1].
    threshold: uint32 [1], random bits below are dropped.
    keep_scale: float32 [1].
  """

  q_codes: jax.Array
  k_codes: jax.Array
  vector: jax.Array
  reset: jax.Array
  planes: jax.Array
  threshold: jax.Array
  keep_scale: jax.Array


def no_dropout(rate: float | jax.Array) -> bool:
  """Whether the rate is a Python 0."""
  return isinstance(rate, int | float) and rate == 0


def make(
  q: jax.Array,
  k: jax.Array,
  bias: PositionBias | None,
  q_segments: jax.Array | None,
  kv_segments: jax.Array | None,
  dropout_rate: float | jax.Array,
  seed: jax.Array | None,
  rows: jax.Array | None,
  axis: str | None,
) -> Operands:
  """See `reference.attention` for the arguments.

  Args:
    q: [batch, queries, heads, head_dim].
    k: [batch, keys, heads, head_dim].
    bias: position bias.
    q_segments: int32 [batch, queries] or None.
    kv_segments: int32 [batch, keys] or None.
    dropout_rate: may be traced.
    seed: uint32 scalar.
    rows: uint32 [batch].
    axis: mesh axis over which the heads are split, inside shard_map: a head's
      dropout mask is that of its number among all heads.

  Returns:
    What kernels read.
  """
  backend.require(
    bias is None or bias.untied is None,
    'attention: kernels take no untied position term, which is a whole'
    ' [queries, keys] matrix',
  )
  vector = reset = jnp.zeros((1, 1), jnp.float32)
  q_first = k_first = None
  if bias is not None and bias.vector is not None:
    vector = bias.vector.astype(jnp.float32)
    if bias.reset is not None:
      reset = bias.reset.astype(jnp.float32)
      q_first, k_first = bias.q_first, bias.k_first
  if no_dropout(dropout_rate):
    planes = jnp.zeros((1, 1), jnp.uint32)
  else:
    heads, devices, first = q.shape[2], 1, jnp.uint32(0)
    if axis is not None:
      devices = lax.psum(1, axis)
      first = lax.axis_index(axis).astype(jnp.uint32) * jnp.uint32(heads)
    plane = rows.astype(jnp.uint32)[:, None] * jnp.uint32(heads * devices)
    plane = plane + first + jnp.arange(heads, dtype=jnp.uint32)
    planes = random_bits.fold(seed, plane)
  return Operands(
    q_codes=_codes(q, q_segments, q_first),
    k_codes=_codes(k, kv_segments, k_first),
    vector=vector,
    reset=reset,
    planes=planes,
    threshold=random_bits.threshold(dropout_rate)[None],
    keep_scale=random_bits.keep_scale(dropout_rate)[None],
  )


def no_gradient(x: jax.Array) -> jax.Array | np.ndarray:
  """The cotangent of an operand that takes none."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.zeros_like(x)
  return np.zeros(x.shape, jax.dtypes.float0)


def _codes(x, segments, first):
  shape = x.shape[:2]
  segments = jnp.int32(1) if segments is None else segments.astype(jnp.int32)
  first = jnp.int32(0) if first is None else first.astype(jnp.int32)
  return jnp.broadcast_to(tile.code(segments, first), shape)
