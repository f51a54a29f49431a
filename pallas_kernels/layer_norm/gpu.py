# SPDX-License-Identifier: Apache-2.0
"""LayerNorm for GPUs (Triton): a program holds a few whole rows.

Gradients of scale and bias: a program sums over its rows and writes one
partial row; XLA adds those up. No atomics, so results repeat bit for bit.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import backend
from pallas_kernels.layer_norm import tile

# Elements of a tile: 32 registers a thread for each array that is alive. The
# backward pass keeps three times as many alive and takes half the tile.
_TILE = 4096
_WARPS = 4
_MAX_FEATURES = 16384
# Of the backward pass: enough to fill the card, few partial rows to add up.
_PROGRAMS = 1024


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
    f'layer_norm: {features} features are more than {_MAX_FEATURES}, a row of'
    ' which the GPU kernel still holds in registers',
  )
  how = (float(epsilon), interpret)
  return _layer_norm(how, x.reshape(-1, features), scale, bias).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(how, x, scale, bias):
  return _forward(how, x, scale, bias)[0]


def _forward(how, x, scale, bias):
  epsilon, interpret = how
  rows, features = x.shape
  block = _block(features, _TILE)
  y = pl.pallas_call(
    functools.partial(_forward_kernel, epsilon=epsilon, block=block),
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid=(pl.cdiv(rows, block[0]),),
    compiler_params=_params(block),
    interpret=interpret,
    name='layer_norm_forward',
  )(x, scale, bias)
  return y, (x, scale, bias)


def _backward(how, residuals, g):
  epsilon, interpret = how
  x, scale, bias = residuals
  rows, features = x.shape
  block = _block(features, _TILE // 2)
  tiles = pl.cdiv(rows, block[0])
  programs = min(tiles, _PROGRAMS)
  partial = jax.ShapeDtypeStruct((programs, features), jnp.float32)
  dx, d_scale, d_bias = pl.pallas_call(
    functools.partial(
      _backward_kernel,
      epsilon=epsilon,
      block=block,
      repeats=pl.cdiv(tiles, programs),
    ),
    out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), partial, partial),
    grid=(programs,),
    compiler_params=_params(block),
    interpret=interpret,
    name='layer_norm_backward',
  )(x, scale, g)
  d_scale, d_bias = jnp.sum(d_scale, axis=0), jnp.sum(d_bias, axis=0)
  return dx, d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_layer_norm.defvjp(_forward, _backward)


def _block(features: int, size: int) -> tuple[int, int]:
  """Rows and columns of a tile: powers of two, as Triton wants them."""
  width = pl.next_power_of_2(features)
  return max(1, size // width), width


def _params(block: tuple[int, int]) -> plt.CompilerParams:
  # Wider rows by more threads, rather than by more registers.
  wide = max(1, block[1] // _TILE)
  return plt.CompilerParams(num_warps=_WARPS * wide, num_stages=1)


def _forward_kernel(x_ref, scale_ref, bias_ref, y_ref, *, epsilon, block):
  features = x_ref.shape[1]
  at, column, mask, inside = _place(pl.program_id(0), block, x_ref.shape)
  x = plt.load(x_ref.at[at], mask=mask, other=0.0).astype(jnp.float32)
  y, _ = tile.unit(x, features, epsilon, inside)
  y = y * _vector(scale_ref, column) + _vector(bias_ref, column)
  plt.store(y_ref.at[at], y.astype(y_ref.dtype), mask=mask)


def _backward_kernel(
  x_ref, scale_ref, g_ref, dx_ref, d_scale_ref, d_bias_ref, *, epsilon, block,
  repeats,
):  # fmt: skip
  features = x_ref.shape[1]
  program = pl.program_id(0)
  column = lax.broadcasted_iota(jnp.int32, (block[1],), 0)
  scale = _vector(scale_ref, column)

  def body(i, sums):
    index = program * repeats + i
    at, _, mask, inside = _place(index, block, x_ref.shape)
    x = plt.load(x_ref.at[at], mask=mask, other=0.0).astype(jnp.float32)
    g = plt.load(g_ref.at[at], mask=mask, other=0.0).astype(jnp.float32)
    y, inverse = tile.unit(x, features, epsilon, inside)
    dx = tile.gradient(y, inverse, g * scale, features)
    plt.store(dx_ref.at[at], dx.astype(dx_ref.dtype), mask=mask)
    return sums[0] + g * y, sums[1] + g

  zero = jnp.zeros(block, jnp.float32)
  d_scale, d_bias = lax.fori_loop(0, repeats, body, (zero, zero))
  for ref, total in ((d_scale_ref, d_scale), (d_bias_ref, d_bias)):
    plt.store(
      ref.at[program, column], jnp.sum(total, axis=0), mask=column < features
    )


def _place(index, block, shape):
  """Index arrays, columns and masks of the tile with this index."""
  row = index * block[0] + lax.broadcasted_iota(jnp.int32, (block[0],), 0)
  column = lax.broadcasted_iota(jnp.int32, (block[1],), 0)
  inside = (column < shape[1])[None, :]
  mask = (row < shape[0])[:, None] & inside
  return (row[:, None], column[None, :]), column, mask, inside


def _vector(ref, column):
  """[1, width] float32 of a vector in memory, 0 beyond its end."""
  x = plt.load(ref.at[column], mask=column < ref.shape[0], other=0.0)
  return x.astype(jnp.float32)[None, :]
