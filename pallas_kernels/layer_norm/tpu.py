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

from pallas_kernels import backend
from pallas_kernels.layer_norm import tile

# Elements of a block, 512 KiB in float32: half a dozen such arrays fit in the
# 16 MiB that a kernel gets by default, twice over for the pipeline.
_BLOCK = 128 * 1024
_ROWS = 16  # Rows of a bfloat16 tile.
_MAX_FEATURES = _BLOCK // _ROWS


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  *,
  interpret: bool = False,
) -> jax.Array:
  """See `reference.layer_norm`."""
  features = x.shape[-1]
  backend.require_dtype('layer_norm', x)
  backend.require(
    features <= _MAX_FEATURES,
    f'layer_norm: {features} features are more than the {_MAX_FEATURES} of'
    ' which the TPU kernel holds a block of rows',
  )
  how = (float(epsilon), interpret)
  return _layer_norm(how, x.reshape(-1, features), scale, bias).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(how, x, scale, bias):
  return _forward(how, x, scale, bias)[0]


def _forward(how, x, scale, bias):
  epsilon, interpret = how
  grid, rows, vector = _specs(x.shape)
  y = pl.pallas_call(
    functools.partial(_forward_kernel, epsilon=epsilon),
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid=grid,
    in_specs=[rows, vector, vector],
    out_specs=rows,
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
    interpret=interpret,
    name='layer_norm_forward',
  )(x, scale[None], bias[None])
  return y, (x, scale, bias)


def _backward(how, residuals, g):
  epsilon, interpret = how
  x, scale, bias = residuals
  grid, rows, vector = _specs(x.shape)
  total = jax.ShapeDtypeStruct((1, x.shape[1]), jnp.float32)
  dx, d_scale, d_bias = pl.pallas_call(
    functools.partial(_backward_kernel, epsilon=epsilon, rows=x.shape[0]),
    out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), total, total),
    grid=grid,
    in_specs=[rows, vector, rows],
    out_specs=(rows, vector, vector),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    interpret=interpret,
    name='layer_norm_backward',
  )(x, scale[None], g)
  return dx, d_scale[0].astype(scale.dtype), d_bias[0].astype(bias.dtype)


_layer_norm.defvjp(_forward, _backward)


def _specs(shape):
  """Grid, and specs of [rows, features] and of [1, features]."""
  rows, features = shape
  size = min(rows, max(_ROWS, _BLOCK // features // _ROWS * _ROWS))
  return (
    (pl.cdiv(rows, size),),
    pl.BlockSpec((size, features), lambda i: (i, 0)),
    pl.BlockSpec((1, features), lambda i: (0, 0)),
  )


def _forward_kernel(x_ref, scale_ref, bias_ref, y_ref, *, epsilon):
  x = x_ref[...].astype(jnp.float32)
  y, _ = tile.unit(x, x.shape[1], epsilon)
  y = y * scale_ref[...].astype(jnp.float32)
  y_ref[...] = (y + bias_ref[...].astype(jnp.float32)).astype(y_ref.dtype)


def _backward_kernel(
  x_ref, scale_ref, g_ref, dx_ref, d_scale_ref, d_bias_ref, *, epsilon, rows
):
  @pl.when(pl.program_id(0) == 0)
  def _():
    d_scale_ref[...] = jnp.zeros_like(d_scale_ref)
    d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

  # Rows past the end of the last block hold anything, NaN included.
  row = lax.broadcasted_iota(jnp.int32, (x_ref.shape[0], 1), 0)
  there = row + pl.program_id(0) * x_ref.shape[0] < rows
  x = jnp.where(there, x_ref[...].astype(jnp.float32), 0.0)
  g = jnp.where(there, g_ref[...].astype(jnp.float32), 0.0)
  y, inverse = tile.unit(x, x.shape[1], epsilon)
  d_scale_ref[...] += jnp.sum(g * y, axis=0, keepdims=True)
  d_bias_ref[...] += jnp.sum(g, axis=0, keepdims=True)
  g = g * scale_ref[...].astype(jnp.float32)
  dx = tile.gradient(y, inverse, g, x.shape[1])
  dx_ref[...] = dx.astype(dx_ref.dtype)
