# SPDX-License-Identifier: Apache-2.0
"""Bias and mask of a block of whole rows of the attention matrix on TPUs.

A block of queries sees a window of the Toeplitz vector. Row r of its matrix
is the window moved by r: rows are made by doubling, and their gradient is
folded back by halves.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import operands, tile
from pallas_kernels.dropout import tile as dropout

LANES, SUBLANES = 128, 8


def window_width(keys: int, block: int) -> int:
  """Entries of the vector that a block of queries may see, in whole lanes."""
  return pl.cdiv(keys + block, LANES) * LANES


def windows(
  vector: jax.Array, queries: int, blocks: int, block: int, width: int
) -> jax.Array:
  """What each block of queries sees of the vector.

  Args:
    vector: float32 [heads, queries + keys - 1].
    queries: number of queries.
    blocks: number of blocks.
    block: queries of a block, a power of two from 8 on.
    width: `window_width`.

  Returns:
    [heads, blocks, 8, width]. Row s is the bias of query s of the block;
    `unfold` makes the others.
  """
  before = blocks * block - queries
  size = (blocks - 1) * block + width
  after = max(0, size - before - vector.shape[1])
  vector = jnp.pad(vector, ((0, 0), (before, after)))
  starts = [(blocks - 1 - i) * block for i in range(blocks)]
  cut = jnp.stack([vector[:, s : s + width] for s in starts], axis=1)
  rows = [jnp.roll(cut, s - (block - 1), axis=-1) for s in range(SUBLANES)]
  return jnp.stack(rows, axis=2)


def unfold(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Toeplitz matrix of `shape` from its first 8 rows, [8, width].

  Row r is row 0 moved right by r, so the rows there are, moved by as many,
  are the next ones. Plain rotations: those with a stride need a TPU v5.
  """
  while x.shape[0] < shape[0]:
    x = jnp.concatenate([x, pltpu.roll(x, x.shape[0], 1)], axis=0)
  return x[:, : shape[1]]


def fold(x: jax.Array, width: int) -> jax.Array:
  """The transpose of `unfold`: [rows, keys] to [8, width]."""
  zeros = jnp.zeros((x.shape[0], width - x.shape[1]), x.dtype)
  x = jnp.concatenate([x, zeros], axis=1)
  while x.shape[0] > SUBLANES:
    half = x.shape[0] // 2
    x = x[:half] + pltpu.roll(x[half:], width - half, 1)
  return x


def coordinates(
  shape: tuple[int, int], block: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Queries int32 [rows, 1] of a block with this index, keys [1, columns]."""
  row = lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0) + block * shape[0]
  return row, lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)


def masked(
  x: jax.Array,
  how: tile.How,
  data: operands.Operands,
  head: jax.Array,
  block: jax.Array,
) -> jax.Array:
  """Scaled logits with their bias, MASKED where they may not be seen.

  Args:
    x: float32 [rows, keys].
    how: of the kernel.
    data: references to this block's part of the operands, in the place of
      the vector this block's window.
    head: index of the head.
    block: index of the block of queries.

  Returns:
    [rows, keys].
  """
  q_code, k_code = data.q_codes[0], data.k_codes[0]
  if how.vector:
    bias = unfold(data.vector[0, 0], x.shape)
    if how.reset:
      to_cls, from_cls = (data.reset[head, i] for i in (0, 1))
      bias = jnp.where(tile.is_first(k_code), to_cls, bias)
      bias = jnp.where(tile.is_first(q_code), from_cls, bias)
    x = x + bias
  allowed = tile.allowed(q_code, k_code)
  if how.causal:
    row, col = coordinates(x.shape, block)
    allowed = allowed & (row >= col)
  return jnp.where(allowed, x, tile.MASKED)


def dropped(
  x: jax.Array,
  how: tile.How,
  data: operands.Operands,
  head: jax.Array,
  batch: jax.Array,
  block: jax.Array,
) -> jax.Array:
  """Dropout of [rows, keys], and of its cotangent."""
  if not how.dropout:
    return x
  row, col = coordinates(x.shape, block)
  return dropout.dropped(
    x,
    data.planes[batch, head].astype(jnp.uint32),
    row,
    col,
    data.threshold[0].astype(jnp.uint32),
    data.keep_scale[0],
  )


def add_bias_gradient(
  ds: jax.Array,
  how: tile.How,
  data: operands.Operands,
  block: jax.Array,
  d_windows: jax.Array,
  d_to_cls: jax.Array,
) -> None:
  """Adds up what the cotangents of a block's logits mean for the bias.

  Args:
    ds: float32 [rows, keys].
    how: of the kernel.
    data: as in `masked`.
    block: index of the block of queries.
    d_windows: reference to float32 [1, blocks, 8, width], of this head.
    d_to_cls: reference to float32 [1, 1, keys], of this head.
  """
  if how.reset:
    ds = jnp.where(tile.is_first(data.q_codes[0]), 0.0, ds)
    to_cls = jnp.where(tile.is_first(data.k_codes[0]), ds, 0.0)
    d_to_cls[0] += jnp.sum(to_cls, axis=0, keepdims=True)
    ds = ds - to_cls
  d_windows[0, block] += fold(ds, d_windows.shape[3])


def bias_gradient(
  d_windows: jax.Array,
  d_to_cls: jax.Array,
  queries: int,
  keys: int,
  block: int,
) -> tuple[jax.Array, jax.Array]:
  """Cotangents of the vector and of the reset scalars.

  Args:
    d_windows: float32 [heads, blocks, 8, width].
    d_to_cls: float32 [heads, 1, keys], padded.
    queries: number of queries.
    keys: number of keys.
    block: queries of a block.

  Returns:
    float32 [heads, queries + keys - 1] and [heads, 2].
  """
  heads, blocks, _, width = d_windows.shape
  _, pull = jax.vjp(
    lambda vector: windows(vector, queries, blocks, block, width),
    jnp.zeros((heads, queries + keys - 1), jnp.float32),
  )
  d_reset = jnp.sum(d_to_cls, axis=(1, 2))
  d_reset = jnp.stack([d_reset, jnp.zeros_like(d_reset)], axis=1)
  return pull(d_windows)[0], d_reset
