# SPDX-License-Identifier: Apache-2.0
"""Small arrays that attention kernels read beside q, k and v."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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


def check(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: PositionBias | None
) -> None:
  """Raises NotImplementedError for what no attention kernel takes."""
  backend.require_dtype('attention', q, k, v)
  backend.require(q.dtype == k.dtype == v.dtype, 'attention: mixed dtypes')
  backend.require(
    bias is None or bias.untied is None,
    'attention: kernels take no untied position term, which is a whole'
    ' [queries, keys] matrix',
  )


def how(
  bias: PositionBias | None,
  scale: float,
  causal: bool,
  dropout_rate: float | jax.Array,
  interpret: bool,
) -> tile.How:
  """What a kernel is compiled for, from an op's arguments."""
  vector = bias is not None and bias.vector is not None
  return tile.How(
    scale=float(scale),
    causal=causal,
    vector=vector,
    reset=vector and bias.reset is not None,
    dropout=not random_bits.never(dropout_rate),
    interpret=interpret,
  )


def make(
  shape: tuple[int, int, int, int],
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
    shape: of the logits, [batch, heads, queries, keys].
    bias: position bias, whose untied part is not looked at.
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
  batch, heads, queries, keys = shape
  vector = reset = jnp.zeros((1, 1), jnp.float32)
  q_first = k_first = None
  if bias is not None and bias.vector is not None:
    vector = bias.vector.astype(jnp.float32)
    if bias.reset is not None:
      reset = bias.reset.astype(jnp.float32)
      q_first, k_first = bias.q_first, bias.k_first
  if random_bits.never(dropout_rate):
    planes = jnp.zeros((1, 1), jnp.uint32)
  else:
    devices, first = 1, jnp.uint32(0)
    if axis is not None:
      devices = lax.psum(1, axis)
      first = lax.axis_index(axis).astype(jnp.uint32) * jnp.uint32(heads)
    plane = rows.astype(jnp.uint32)[:, None] * jnp.uint32(heads * devices)
    plane = plane + first + jnp.arange(heads, dtype=jnp.uint32)
    planes = random_bits.fold(seed, plane)
  return Operands(
    q_codes=_codes((batch, queries), q_segments, q_first),
    k_codes=_codes((batch, keys), kv_segments, k_first),
    vector=vector,
    reset=reset,
    planes=planes,
    threshold=random_bits.threshold(dropout_rate)[None],
    keep_scale=random_bits.keep_scale(dropout_rate)[None],
  )


def _codes(shape, segments, first):
  segments = jnp.int32(1) if segments is None else segments.astype(jnp.int32)
  first = jnp.int32(0) if first is None else first.astype(jnp.int32)
  return jnp.broadcast_to(tile.code(segments, first), shape)
