# SPDX-License-Identifier: Apache-2.0
"""LayerNorm for TPUs (Mosaic): a step of the grid holds a block of rows.

The grid runs in order, so the gradients of scale and bias stay in VMEM and
are added up there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dropout.tile import dropped
from pallas_kernels.layer_norm import tile

# Elements of a block, 512 KiB in float32: half a dozen such arrays fit in the
# 16 MiB that a kernel gets by default, twice over for the pipeline.
_BLOCK = 128 * 1024
_ROWS = 16  # Rows of a bfloat16 tile.
MAX_FEATURES = _BLOCK // _ROWS


def forward(how, x, branch, drop, scale, bias):
  """See `residual.Kernels`."""
  grid, rows, vector = _specs(x.shape)
  return pl.pallas_call(
    functools.partial(_forward_kernel, how=how),
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid=grid,
    in_specs=[rows, *_extra(rows, branch, drop), vector, vector],
    out_specs=rows,
    compiler_params=_params('parallel'),
    interpret=how.interpret,
    name='layer_norm_forward',
  )(x, *branch, *_signed(drop), scale[None], bias[None])


def backward(how, x, branch, drop, scale, g):
  """See `residual.Kernels`."""
  grid, rows, vector = _specs(x.shape)
  like = jax.ShapeDtypeStruct
  total = like((1, x.shape[2]), jnp.float32)
  d_scale, d_bias, *d_rows = pl.pallas_call(
    functools.partial(_backward_kernel, how=how, length=x.shape[1]),
    out_shape=[total] * 2 + [like(x.shape, x.dtype)] * (1 + how.dropout),
    grid=grid,
    in_specs=[rows, *_extra(rows, branch, drop), vector, rows],
    out_specs=[vector] * 2 + [rows] * (1 + how.dropout),
    compiler_params=_params('arbitrary'),
    interpret=how.interpret,
    name='layer_norm_backward',
  )(x, *branch, *_signed(drop), scale[None], g)
  dx, *d_branch = d_rows
  return dx, d_scale[0], d_bias[0], *d_branch


def _params(order):
  return pltpu.CompilerParams(dimension_semantics=(order, order))


def _specs(shape):
  """Grid, and specs of [batch, length, features] and of [1, features]."""
  batch, length, features = shape
  most = max(_ROWS, _BLOCK // features // _ROWS * _ROWS)
  # Blocks of about one size, in whole tiles.
  size = pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), _ROWS) * _ROWS
  size = min(size, length)
  return (
    (batch, pl.cdiv(length, size)),
    pl.BlockSpec((None, size, features), lambda b, i: (b, i, 0)),
    pl.BlockSpec((1, features), lambda b, i: (0, 0)),
  )


def _extra(rows, branch, drop):
  scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
  return [rows for _ in branch] + [scalar for _ in drop]


def _signed(drop):
  """Scalars as int32, in place of uint32."""
  return [
    lax.bitcast_convert_type(x, jnp.int32) if x.dtype == jnp.uint32 else x
    for x in drop
  ]


def _dropped(x, drop, how):
  if not how.dropout:
    return x
  planes, threshold, keep_scale = drop
  batch, block = pl.program_id(0), pl.program_id(1)
  row = lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
  return dropped(
    x,
    planes[batch].astype(jnp.uint32),
    row + block * x.shape[0],
    lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1),
    threshold[0].astype(jnp.uint32),
    keep_scale[0],
  )


def _sum(x_ref, branch, drop, how):
  """float32 [rows, features], x and its branch."""
  x = x_ref[...].astype(jnp.float32)
  for ref in branch:
    x = x + _dropped(ref[...].astype(jnp.float32), drop, how)
  return x


def _forward_kernel(x_ref, *refs, how):
  branch, drop, (scale_ref, bias_ref, y_ref) = tile.split(how, refs)
  x = _sum(x_ref, branch, drop, how)
  y, _ = tile.unit(x, x.shape[1], how.epsilon)
  y = y * scale_ref[...].astype(jnp.float32)
  y_ref[...] = (y + bias_ref[...].astype(jnp.float32)).astype(y_ref.dtype)


def _backward_kernel(x_ref, *refs, how, length):
  branch, drop, refs = tile.split(how, refs)
  scale_ref, g_ref, d_scale_ref, d_bias_ref, dx_ref, *d_branch = refs
  batch, block = pl.program_id(0), pl.program_id(1)

  @pl.when((batch == 0) & (block == 0))
  def _():
    d_scale_ref[...] = jnp.zeros_like(d_scale_ref)
    d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

  # Rows past the end of the last block hold anything, NaN included.
  row = lax.broadcasted_iota(jnp.int32, (x_ref.shape[0], 1), 0)
  there = row + block * x_ref.shape[0] < length
  x = jnp.where(there, _sum(x_ref, branch, drop, how), 0.0)
  g = jnp.where(there, g_ref[...].astype(jnp.float32), 0.0)
  y, inverse = tile.unit(x, x.shape[1], how.epsilon)
  d_scale_ref[...] += jnp.sum(g * y, axis=0, keepdims=True)
  d_bias_ref[...] += jnp.sum(g, axis=0, keepdims=True)
  g = g * scale_ref[...].astype(jnp.float32)
  dx = tile.gradient(y, inverse, g, x.shape[1])
  dx_ref[...] = dx.astype(dx_ref.dtype)
  for ref in d_branch:
    ref[...] = _dropped(dx, drop, how).astype(ref.dtype)
