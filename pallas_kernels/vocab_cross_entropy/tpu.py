# SPDX-License-Identifier: Apache-2.0
"""Vocabulary loss for TPUs (Mosaic).

Blocks of logits stand upright, [ids, tokens]: what there is one of per token
is then a row of lanes, in VMEM and in HBM, where a column would be padded to
128 lanes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import backend
from pallas_kernels.vocab_cross_entropy import tile

_TOKENS, _IDS = 256, 256
_MAX_WIDTH = 4096  # A float32 block of 256 rows takes 4 MiB, held twice.


def check(width: int) -> None:
  """Raises NotImplementedError for a width that VMEM does not hold."""
  backend.require(
    width <= _MAX_WIDTH,
    f'vocab_cross_entropy: the TPU kernel takes widths up to {_MAX_WIDTH}, not'
    f' {width}',
  )


def summarize(x, table, bias, targets, first, draw, *, interpret):
  """See `chunked.Kernels`."""
  tokens, ids = x.shape[0], table.shape[0]
  rows, columns = min(_TOKENS, tokens), min(_IDS, ids)
  token = pl.BlockSpec((1, rows), lambda i, j: (0, i))
  scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
  kinds = [jnp.float32] * 3 + [jnp.int32]
  kinds += [] if draw is None else [jnp.float32, jnp.int32]
  extra = () if draw is None else (draw.keys[None], draw.cold.reshape(1))
  out = pl.pallas_call(
    functools.partial(_summarize_kernel, ids=ids, sampling=draw is not None),
    out_shape=[jax.ShapeDtypeStruct((1, tokens), kind) for kind in kinds],
    grid=(pl.cdiv(tokens, rows), pl.cdiv(ids, columns)),
    in_specs=[
      pl.BlockSpec((rows, x.shape[1]), lambda i, j: (i, 0)),
      pl.BlockSpec((columns, x.shape[1]), lambda i, j: (j, 0)),
      pl.BlockSpec((columns, 1), lambda i, j: (j, 0)),
      token,
      scalar,
      *([] if draw is None else [token, scalar]),
    ],
    out_specs=[token] * len(kinds),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary')
    ),
    interpret=interpret,
    name='vocab_summarize',
  )(x, table, bias[:, None], targets[None], first.reshape(1), *extra)
  return tile.Summary(*(y[0] for y in out))


def cotangents(
  x, table, bias, targets, first, end, lse, d_loss, d_sum, *, interpret
):
  """See `chunked.Kernels`."""
  tokens, ids = x.shape[0], table.shape[0]
  rows, columns = min(_TOKENS, tokens), min(_IDS, ids)
  token = pl.BlockSpec((1, rows), lambda j, i: (0, i))
  per_id = pl.BlockSpec((columns, 1), lambda j, i: (j, 0))
  d_logits, d_bias = pl.pallas_call(
    functools.partial(_cotangents_kernel, tokens=tokens),
    out_shape=(
      jax.ShapeDtypeStruct((ids, tokens), x.dtype),
      jax.ShapeDtypeStruct((ids, 1), jnp.float32),
    ),
    grid=(pl.cdiv(ids, columns), pl.cdiv(tokens, rows)),
    in_specs=[
      pl.BlockSpec((rows, x.shape[1]), lambda j, i: (i, 0)),
      pl.BlockSpec((columns, x.shape[1]), lambda j, i: (j, 0)),
      per_id,
      token,
      pl.BlockSpec(memory_space=pltpu.SMEM),
      token,
      token,
      token,
    ],
    out_specs=(
      pl.BlockSpec((columns, rows), lambda j, i: (j, i)),
      per_id,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary')
    ),
    interpret=interpret,
    name='vocab_cotangents',
  )(
    x,
    table,
    bias[:, None],
    targets[None],
    jnp.stack([first, end]),
    lse[None],
    d_loss[None],
    d_sum[None],
  )
  return d_logits, 1, d_bias[:, 0]


def _summarize_kernel(
  x_ref, table_ref, bias_ref, targets_ref, first_ref, *refs, ids, sampling
):
  outs = refs[2:] if sampling else refs
  block = pl.program_id(1)

  @pl.when(block == 0)
  def _():
    for ref, value in zip(
      outs, tile.start(targets_ref.shape, sampling), strict=False
    ):
      ref[...] = value

  x = _logits(x_ref, table_ref, bias_ref)
  column = lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
  local = block * x.shape[0] + column
  x = jnp.where(local < ids, x, tile.NOWHERE)
  summary = tile.update(
    tile.Summary(*(ref[...] for ref in outs)),
    x,
    jnp.where(local < ids, first_ref[0] + local, tile.NO_ID),
    targets_ref[...],
    refs[0][...] if sampling else None,
    refs[1][0] if sampling else None,
    axis=0,
  )
  for ref, value in zip(outs, summary, strict=False):
    ref[...] = value


def _cotangents_kernel(
  x_ref, table_ref, bias_ref, targets_ref, bounds_ref, lse_ref, d_loss_ref,
  d_sum_ref, d_logits_ref, d_bias_ref, *, tokens,
):  # fmt: skip
  @pl.when(pl.program_id(1) == 0)
  def _():
    d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

  x = _logits(x_ref, table_ref, bias_ref)
  ids = lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
  ids = ids + (bounds_ref[0] + pl.program_id(0) * x.shape[0])
  token = lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1)
  token = token + pl.program_id(1) * x.shape[1]
  d_logits = tile.gradient(
    x, ids, targets_ref[...], lse_ref[...], d_loss_ref[...], d_sum_ref[...]
  )
  # Blocks past the end hold anything, NaN included.
  there = (ids < bounds_ref[1]) & (token < tokens)
  d_logits = jnp.where(there, d_logits, 0.0)
  d_logits_ref[...] = d_logits.astype(d_logits_ref.dtype)
  d_bias_ref[...] += jnp.sum(d_logits, axis=1, keepdims=True)


def _logits(x_ref, table_ref, bias_ref):
  """float32 [ids, tokens]."""
  x = lax.dot_general(
    table_ref[...],
    x_ref[...],
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return x + bias_ref[...]
