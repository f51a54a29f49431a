# SPDX-License-Identifier: Apache-2.0
"""Bias and mask of a tile of the attention matrix on GPUs."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.attention import operands, tile


def codes(ref: jax.Array, batch: jax.Array, at: jax.Array) -> jax.Array:
  """int32 [block], `tile.code` of these positions; padding past the end."""
  return plt.load(ref.at[batch, at], mask=at < ref.shape[1], other=0)


def masked(
  x: jax.Array,
  how: tile.How,
  data: operands.Operands,
  head: jax.Array,
  row: jax.Array,
  col: jax.Array,
  q_code: jax.Array,
  k_code: jax.Array,
) -> jax.Array:
  """Scaled logits with their bias, MASKED where they may not be seen.

  Args:
    x: float32 [rows, columns].
    how: of the kernel.
    data: references to the operands.
    head: index of the head.
    row: int32 [rows], queries.
    col: int32 [columns], keys.
    q_code: int32 [rows, 1].
    k_code: int32 [1, columns].

  Returns:
    [rows, columns].
  """
  if how.vector:
    queries, keys = data.q_codes.shape[1], data.k_codes.shape[1]
    offset = col[None, :] - row[:, None] + (queries - 1)
    inside = (row < queries)[:, None] & (col < keys)[None, :]
    bias = plt.load(data.vector.at[head, offset], mask=inside, other=0.0)
    if how.reset:
      to_cls, from_cls = (data.reset[head, i] for i in (0, 1))
      bias = jnp.where(tile.is_first(k_code), to_cls, bias)
      bias = jnp.where(tile.is_first(q_code), from_cls, bias)
    x = x + bias
  allowed = tile.allowed(q_code, k_code)
  if how.causal:
    allowed = allowed & (row[:, None] >= col[None, :])
  return jnp.where(allowed, x, tile.MASKED)
