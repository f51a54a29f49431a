# SPDX-License-Identifier: Apache-2.0
"""Vocabulary loss for GPUs (Triton).

A program holds the summaries of a block of tokens and walks over a part of
the vocabulary; the parts are put together by XLA. Programs that run side by
side walk over the same part, so the table comes from the L2 cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import backend
from pallas_kernels.vocab_cross_entropy import tile

# Tokens, ids and features of a tile of logits; `aot_test.py` holds them to no
# register spills.
_TOKENS, _IDS, _FEATURES = 128, 128, 64
_SAMPLED_IDS = 64  # Of a tile while sampling, which needs more registers.
_WARPS, _STAGES = 8, 3
_PROGRAMS = 512  # Split the vocabulary until there are as many.


def check(width: int) -> None:
  """Raises NotImplementedError for a width that tiles do not fit."""
  backend.require(
    width % 16 == 0,
    f'vocab_cross_entropy: the GPU kernel takes widths divisible by 16, not'
    f' {width}',
  )


def summarize(x, table, bias, targets, first, draw, *, interpret):
  """See `chunked.Kernels`."""
  tokens, ids = x.shape[0], table.shape[0]
  width = _IDS if draw is None else _SAMPLED_IDS
  blocks, steps = pl.cdiv(tokens, _TOKENS), pl.cdiv(ids, width)
  steps_each = pl.cdiv(steps, max(1, min(steps, _PROGRAMS // blocks)))
  parts = pl.cdiv(steps, steps_each)
  kinds = [jnp.float32] * 3 + [jnp.int32]
  kinds += [] if draw is None else [jnp.float32, jnp.int32]
  extra = () if draw is None else (draw.keys, draw.cold.reshape(1))
  out = pl.pallas_call(
    functools.partial(_summarize_kernel, steps=steps_each, width=width),
    out_shape=[jax.ShapeDtypeStruct((parts, tokens), k) for k in kinds],
    grid=(blocks, parts),
    compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    interpret=interpret,
    name='vocab_summarize',
  )(x, table, bias, targets, first.reshape(1), *extra)
  return tile.combine(tile.Summary(*out))


def cotangents(
  x, table, bias, targets, first, end, lse, d_loss, d_sum, *, interpret
):
  """See `chunked.Kernels`."""
  tokens, ids = x.shape[0], table.shape[0]
  blocks = pl.cdiv(tokens, _TOKENS)
  d_logits, d_bias = pl.pallas_call(
    _cotangents_kernel,
    out_shape=(
      jax.ShapeDtypeStruct((tokens, ids), x.dtype),
      jax.ShapeDtypeStruct((blocks, ids), jnp.float32),
    ),
    grid=(blocks, pl.cdiv(ids, _IDS)),
    compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    interpret=interpret,
    name='vocab_cotangents',
  )(x, table, bias, targets, jnp.stack([first, end]), lse, d_loss, d_sum)
  return d_logits, 0, jnp.sum(d_bias, axis=0)


def _summarize_kernel(x_ref, table_ref, bias_ref, targets_ref, first_ref, *refs,
                      steps, width):  # fmt: skip
  outs = refs[-4:] if len(refs) == 4 else refs[-6:]
  sampling = len(outs) == 6
  part = pl.program_id(1)  # Not inside the loop: interpreters refuse that.
  row = _row(pl.program_id(0))
  there = row < x_ref.shape[0]
  load = functools.partial(_column, row=row, there=there)
  targets = load(targets_ref)
  keys = load(refs[0]) if sampling else None
  cold = refs[1][0] if sampling else None

  def body(step, summary):
    col = (part * steps + step) * width + _iota(width)
    x = _logits(x_ref, table_ref, bias_ref, row, col)
    ids = jnp.where(col < table_ref.shape[0], first_ref[0] + col, tile.NO_ID)
    ids = ids[None, :]
    return tile.update(summary, x, ids, targets, keys, cold, axis=1)

  start = tile.start((_TOKENS, 1), sampling)
  left = pl.cdiv(table_ref.shape[0], width) - part * steps
  summary = lax.fori_loop(0, jnp.minimum(steps, left), body, start)
  for ref, value in zip(outs, summary, strict=False):
    at = ref.at[part, row]
    plt.store(at, jnp.sum(value, axis=1).astype(ref.dtype), mask=there)


def _cotangents_kernel(
  x_ref, table_ref, bias_ref, targets_ref, bounds_ref, lse_ref, d_loss_ref,
  d_sum_ref, d_logits_ref, d_bias_ref,
):  # fmt: skip
  row = _row(pl.program_id(0))
  there = row < x_ref.shape[0]
  load = functools.partial(_column, row=row, there=there)
  col = pl.program_id(1) * _IDS + _iota(_IDS)
  ids = bounds_ref[0] + col
  ids = jnp.where(ids < bounds_ref[1], ids, tile.NO_ID)[None, :]
  x = _logits(x_ref, table_ref, bias_ref, row, col)
  x = jnp.where(ids < tile.NO_ID, x, tile.NOWHERE)
  d_logits = tile.gradient(
    x,
    ids,
    load(targets_ref),
    load(lse_ref),
    load(d_loss_ref),
    load(d_sum_ref),  # 0 past the last token.
  )
  inside = col < table_ref.shape[0]
  plt.store(
    d_logits_ref.at[row[:, None], col[None, :]],
    d_logits.astype(d_logits_ref.dtype),
    mask=there[:, None] & inside[None, :],
  )
  total = jnp.sum(d_logits, axis=0)
  plt.store(d_bias_ref.at[pl.program_id(0), col], total, mask=inside)


def _logits(x_ref, table_ref, bias_ref, row, col):
  """float32 [tokens, ids]; NOWHERE past the table's end."""
  size = _FEATURES
  while x_ref.shape[1] % size:
    size //= 2
  there, inside = row < x_ref.shape[0], col < table_ref.shape[0]

  def body(step, total):
    feature = step * size + _iota(size)
    x = plt.load(
      x_ref.at[row[:, None], feature[None, :]],
      mask=there[:, None],
      other=0.0,
    )
    table = plt.load(
      table_ref.at[col[:, None], feature[None, :]],
      mask=inside[:, None],
      other=0.0,
    )
    return total + plt.dot(x, table, trans_b=True)

  zero = jnp.zeros((row.shape[0], col.shape[0]), jnp.float32)
  total = lax.fori_loop(0, x_ref.shape[1] // size, body, zero)
  bias = plt.load(bias_ref.at[col], mask=inside, other=0.0)
  return jnp.where(inside[None, :], total + bias[None, :], tile.NOWHERE)


def _row(block):
  return block * _TOKENS + _iota(_TOKENS)


def _column(ref, row, there):
  """[tokens, 1] of a vector, 0 past its end."""
  zero = jnp.zeros((), ref.dtype)
  return plt.load(ref.at[row], mask=there, other=zero)[:, None]


def _iota(size):
  return lax.broadcasted_iota(jnp.int32, (size,), 0)
