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

from pallas_kernels.dropout.tile import dropped
from pallas_kernels.layer_norm import tile

# Elements of a tile: 32 registers a thread for each array that is alive. The
# backward pass keeps three times as many alive and takes half the tile.
_TILE = 4096
_WARPS = 4
MAX_FEATURES = 16384
# Of the backward pass: enough to fill the card, few partial rows to add up.
_PROGRAMS = 1024


def forward(how, x, branch, drop, scale, bias):
  """See `residual.Kernels`."""
  length, features = x.shape[1:]
  x, *branch = (_rows(y) for y in (x, *branch))
  block = _block(features, _TILE)
  y = pl.pallas_call(
    functools.partial(_forward_kernel, how=how, block=block, length=length),
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid=(pl.cdiv(x.shape[0], block[0]),),
    compiler_params=_params(block),
    interpret=how.interpret,
    name='layer_norm_forward',
  )(x, *branch, *drop, scale, bias)
  return y.reshape(-1, length, features)


def backward(how, x, branch, drop, scale, g):
  """See `residual.Kernels`."""
  shape, length = x.shape, x.shape[1]
  x, g, *branch = (_rows(y) for y in (x, g, *branch))
  rows, features = x.shape
  block = _block(features, _TILE // 2)
  tiles = pl.cdiv(rows, block[0])
  programs = min(tiles, _PROGRAMS)
  like = jax.ShapeDtypeStruct
  partial = like((programs, features), jnp.float32)
  d_scale, d_bias, *d_rows = pl.pallas_call(
    functools.partial(
      _backward_kernel,
      how=how,
      block=block,
      length=length,
      repeats=pl.cdiv(tiles, programs),
    ),
    out_shape=[partial] * 2 + [like(x.shape, x.dtype)] * (1 + how.dropout),
    grid=(programs,),
    compiler_params=_params(block),
    interpret=how.interpret,
    name='layer_norm_backward',
  )(x, *branch, *drop, scale, g)
  dx, *d_branch = (y.reshape(shape) for y in d_rows)
  return dx, jnp.sum(d_scale, axis=0), jnp.sum(d_bias, axis=0), *d_branch


def _rows(x):
  return x.reshape(-1, x.shape[-1])


def _block(features: int, size: int) -> tuple[int, int]:
  """Rows and columns of a tile: powers of two, as Triton wants them."""
  width = pl.next_power_of_2(features)
  return max(1, size // width), width


def _params(block: tuple[int, int]) -> plt.CompilerParams:
  # Wider rows by more threads, rather than by more registers.
  wide = max(1, block[1] // _TILE)
  return plt.CompilerParams(num_warps=_WARPS * wide, num_stages=1)


class _Tile:
  """The tile of rows with an index, and what is read and written there."""

  def __init__(self, index, how, block, length, shape):
    self.how, self.length, self.features = how, length, shape[1]
    self.row = index * block[0] + _iota(block[0])
    self.column = _iota(block[1])
    self.inside = (self.column < shape[1])[None, :]
    self.mask = (self.row < shape[0])[:, None] & self.inside

  def load(self, ref):
    at = ref.at[self.row[:, None], self.column[None, :]]
    return plt.load(at, mask=self.mask, other=0.0).astype(jnp.float32)

  def store(self, ref, x):
    at = ref.at[self.row[:, None], self.column[None, :]]
    plt.store(at, x.astype(ref.dtype), mask=self.mask)

  def vector(self, ref):
    """[1, width] float32 of a vector in memory, 0 beyond its end."""
    there = self.column < self.features
    x = plt.load(ref.at[self.column], mask=there, other=0.0)
    return x.astype(jnp.float32)[None, :]

  def dropped(self, x, drop):
    if not self.how.dropout:
      return x
    planes, threshold, keep_scale = drop
    batch = self.row // self.length
    zero = jnp.zeros((), planes.dtype)
    plane = plt.load(planes.at[batch], mask=batch < planes.shape[0], other=zero)
    return dropped(
      x,
      plane[:, None],
      (self.row % self.length)[:, None],
      self.column[None, :],
      threshold[0],
      keep_scale[0],
    )

  def unit(self, x_ref, branch, drop):
    """See `tile.unit`, of the sum of x and its branch."""
    x = self.load(x_ref)
    for ref in branch:
      x = x + self.dropped(self.load(ref), drop)
    return tile.unit(x, self.features, self.how.epsilon, self.inside)


def _forward_kernel(x_ref, *refs, how, block, length):
  branch, drop, (scale_ref, bias_ref, y_ref) = tile.split(how, refs)
  this = _Tile(pl.program_id(0), how, block, length, x_ref.shape)
  y, _ = this.unit(x_ref, branch, drop)
  this.store(y_ref, y * this.vector(scale_ref) + this.vector(bias_ref))


def _backward_kernel(x_ref, *refs, how, block, length, repeats):
  branch, drop, refs = tile.split(how, refs)
  scale_ref, g_ref, d_scale_ref, d_bias_ref, dx_ref, *d_branch = refs
  program = pl.program_id(0)

  def body(i, sums):
    this = _Tile(program * repeats + i, how, block, length, x_ref.shape)
    g = this.load(g_ref)
    y, inverse = this.unit(x_ref, branch, drop)
    dx = tile.gradient(y, inverse, g * this.vector(scale_ref), this.features)
    this.store(dx_ref, dx)
    for ref in d_branch:
      this.store(ref, this.dropped(dx, drop))
    return sums[0] + g * y, sums[1] + g

  zero = jnp.zeros(block, jnp.float32)
  d_scale, d_bias = lax.fori_loop(0, repeats, body, (zero, zero))
  column = _iota(block[1])
  for ref, total in ((d_scale_ref, d_scale), (d_bias_ref, d_bias)):
    there = column < ref.shape[1]
    plt.store(ref.at[program, column], jnp.sum(total, axis=0), mask=there)


def _iota(size):
  return lax.broadcasted_iota(jnp.int32, (size,), 0)
