# SPDX-License-Identifier: Apache-2.0
"""Flash attention with relative bias for GPUs (Triton).

A program holds a block of queries (or keys, in the backward pass) and walks
over the others, so a [queries, keys] matrix exists only as tiles in registers.
The bias is read from the Toeplitz vector by key - query; the dropout mask is
hashed again wherever it is needed.

Gradient of the bias: a third backward kernel gives every tile of the matrix
to one program, which adds it up over the batch, then along its diagonals. No
atomics: results repeat bit for bit.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import backend
from pallas_kernels.attention import gpu_logits, operands, tile
from pallas_kernels.attention.bias import PositionBias, toeplitz
from pallas_kernels.dropout.tile import dropped
from pallas_kernels.no_gradient import no_gradient


class Tiles(NamedTuple):
  """Queries x keys of a tile, by kernel.

  Attributes:
    forward: of the forward pass.
    keys: of the gradients of keys and values.
    queries: of the gradient of queries.
    bias: of the gradient of the bias: square tiles of this side.
  """

  forward: tuple[int, int]
  keys: tuple[int, int]
  queries: tuple[int, int]
  bias: int


# `aot_test.py` holds these to no register spills.
_NARROW = Tiles((64, 64), (64, 64), (64, 64), 64)
_WIDE = Tiles((64, 64), (64, 32), (64, 32), 32)  # Rows of over 128 bytes.
_WARPS, _STAGES = 4, 2


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: PositionBias | None = None,
  q_segments: jax.Array | None = None,
  kv_segments: jax.Array | None = None,
  scale: float | None = None,
  causal: bool = False,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
  softmax_backend: str = 'auto',
  axis: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """See `reference.attention`."""
  del softmax_backend  # There is no separate softmax.
  operands.check(q, k, v, bias)
  width = q.shape[-1]
  backend.require(
    width in (16, 32, 64, 128),
    f'attention: the GPU kernel takes head widths of 16, 32, 64 and 128, not'
    f' {width}',
  )
  scale = width**-0.5 if scale is None else scale
  how = operands.how(bias, scale, causal, dropout_rate, interpret)
  shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  data = operands.make(
    shape, bias, q_segments, kv_segments, dropout_rate, seed, rows, axis
  )
  return _attention(how, q, k, v, data)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q, k, v, data):
  return _forward(how, q, k, v, data)[0]


def _tiles(q):
  return _NARROW if q.shape[3] * q.dtype.itemsize <= 128 else _WIDE


def _forward(how, q, k, v, data):
  block = _tiles(q).forward
  batch, queries, heads, _ = q.shape
  y, lse = pl.pallas_call(
    functools.partial(_forward_kernel, how=how, block=block),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32),
    ),
    grid=(pl.cdiv(queries, block[0]), heads, batch),
    name='attention_forward',
    **_how_to_call(how),
  )(q, k, v, *data)
  return y, (q, k, v, data, y, lse)


def _backward(how, residuals, g):
  q, k, v, data, y, lse = residuals
  tiles = _tiles(q)
  batch, queries, heads, _ = q.shape
  delta = jnp.einsum('bqhd,bqhd->bhq', y, g, preferred_element_type=jnp.float32)
  args = (q, k, v, *data, g, lse, delta)
  like = jax.ShapeDtypeStruct
  dk, dv = pl.pallas_call(
    functools.partial(_keys_kernel, how=how, block=tiles.keys),
    out_shape=(like(k.shape, k.dtype), like(v.shape, v.dtype)),
    grid=(pl.cdiv(k.shape[1], tiles.keys[1]), heads, batch),
    name='attention_backward_keys',
    **_how_to_call(how),
  )(*args)
  dq = pl.pallas_call(
    functools.partial(_queries_kernel, how=how, block=tiles.queries),
    out_shape=like(q.shape, q.dtype),
    grid=(pl.cdiv(queries, tiles.queries[0]), heads, batch),
    name='attention_backward_queries',
    **_how_to_call(how),
  )(*args)
  d_data = jax.tree.map(no_gradient, data)
  if how.vector:
    d_vector, d_reset = _bias_gradient(how, args, k.shape[1])
    d_data = d_data._replace(vector=d_vector)
    if how.reset:
      d_data = d_data._replace(reset=d_reset)
  return dq, dk, dv, d_data


_attention.defvjp(_forward, _backward)


def _how_to_call(how):
  return {
    'compiler_params': plt.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    'interpret': how.interpret,
  }


def _bias_gradient(how, args, keys):
  """Cotangents of the Toeplitz vector and of the reset scalars."""
  _, queries, heads, _ = args[0].shape
  side = _tiles(args[0]).bias
  rows, columns = pl.cdiv(queries, side), pl.cdiv(keys, side)
  partial = pl.pallas_call(
    functools.partial(_bias_kernel, how=how, block=(side, side)),
    out_shape=jax.ShapeDtypeStruct(
      (heads, rows, columns, 2 * side), jnp.float32
    ),
    grid=(rows * columns, heads),
    name='attention_backward_bias',
    **_how_to_call(how),
  )(*args)
  # The last diagonal of a tile does not exist; the kernel leaves there what
  # belongs to the [CLS] columns.
  to_cls = jnp.sum(partial[..., -1], axis=(1, 2))
  tiles = partial.at[..., -1].set(0.0)
  # Tiles on the same diagonal first: [heads * 2 side, rows + columns - 1].
  tiles = jnp.moveaxis(tiles, -1, 1).reshape(-1, rows, columns)
  shape = (tiles.shape[0], rows + columns - 1)
  _, pull = jax.vjp(
    lambda x: toeplitz(x, rows, columns), jnp.zeros(shape, jnp.float32)
  )
  sums = pull(tiles)[0].reshape(heads, 2 * side, -1)
  # Then diagonals of neighbouring tiles, which overlap by half.
  sums = jnp.moveaxis(sums, 1, 2)  # [heads, tile diagonal, diagonal in it].
  low, high = sums[..., :side], sums[..., side:]
  flat = jnp.pad(low, ((0, 0), (0, 1), (0, 0)))
  flat = flat + jnp.pad(high, ((0, 0), (1, 0), (0, 0)))
  flat = flat.reshape(heads, -1)
  start = rows * side - queries
  d_vector = flat[:, start : start + queries + keys - 1]
  return d_vector, jnp.stack([to_cls, jnp.zeros_like(to_cls)], axis=1)


class _Program:
  """What the kernels share: loading blocks and making tiles of the matrix."""

  def __init__(self, how, refs, head, batch):
    self.how, self.head, self.batch = how, head, batch
    self.q, self.k, self.v = refs[:3]
    self.data = operands.Operands(*refs[3:10])
    self.g, self.lse, self.delta = refs[10:13] if len(refs) > 10 else [None] * 3
    self.queries, self.keys = self.q.shape[1], self.k.shape[1]

  def rows(self, ref, at):
    """[block, width] of q, k, v or g."""
    column = _iota(ref.shape[3])
    return plt.load(
      ref.at[self.batch, at[:, None], self.head, column[None, :]],
      mask=(at < ref.shape[1])[:, None],
      other=0.0,
    )

  def store_rows(self, ref, at, value):
    column = _iota(ref.shape[3])
    plt.store(
      ref.at[self.batch, at[:, None], self.head, column[None, :]],
      value.astype(ref.dtype),
      mask=(at < ref.shape[1])[:, None],
    )

  def statistic(self, ref, at):
    """[block, 1] of lse or delta."""
    there = at < self.queries
    x = plt.load(ref.at[self.batch, self.head, at], mask=there, other=0.0)
    return x[:, None]

  def codes(self, ref, at):
    return gpu_logits.codes(ref, self.batch, at)

  def logits(self, q, k, row, col, q_code):
    """Masked float32 logits [rows, columns], and the codes of the keys."""
    x = plt.dot(q, k, trans_b=True) * self.how.scale
    k_code = self.codes(self.data.k_codes, col)[None, :]
    x = gpu_logits.masked(
      x, self.how, self.data, self.head, row, col, q_code[:, None], k_code
    )
    return x, k_code

  def dropped(self, x, row, col):
    if not self.how.dropout:
      return x
    return dropped(
      x,
      self.data.planes[self.batch, self.head],
      row[:, None],
      col[None, :],
      self.data.threshold[0],
      self.data.keep_scale[0],
    )

  def gradient(self, q, k, v, g, row, col, q_code):
    """Dropped probabilities, cotangent of the logits, codes of the keys."""
    x, k_code = self.logits(q, k, row, col, q_code)
    p = jnp.exp(x - self.statistic(self.lse, row))
    dp = plt.dot(g, v, trans_b=True)
    ds = p * (self.dropped(dp, row, col) - self.statistic(self.delta, row))
    return self.dropped(p, row, col), ds, k_code

  def end_of_keys(self, first_row, block):
    """How many blocks of keys a block of queries sees."""
    count = pl.cdiv(self.keys, block[1])
    if not self.how.causal:
      return count
    return jnp.minimum(count, pl.cdiv(first_row + block[0], block[1]))


def _forward_kernel(*refs, how, block):
  *refs, y_ref, lse_ref = refs
  this = _Program(how, refs, pl.program_id(1), pl.program_id(2))
  first = pl.program_id(0) * block[0]
  row = first + _iota(block[0])
  q, q_code = this.rows(this.q, row), this.codes(this.data.q_codes, row)

  def body(j, carry):
    total, peak, mass = carry
    col = j * block[1] + _iota(block[1])
    x, _ = this.logits(q, this.rows(this.k, col), row, col, q_code)
    new = jnp.maximum(peak, jnp.max(x, axis=1, keepdims=True))
    p, shrink = jnp.exp(x - new), jnp.exp(peak - new)
    mass = mass * shrink + jnp.sum(p, axis=1, keepdims=True)
    v = this.rows(this.v, col)
    p = this.dropped(p, row, col).astype(v.dtype)
    return total * shrink + plt.dot(p, v), new, mass

  start = (
    jnp.zeros((block[0], q.shape[1]), jnp.float32),
    jnp.full((block[0], 1), tile.LOWEST_MAXIMUM, jnp.float32),
    jnp.zeros((block[0], 1), jnp.float32),
  )
  end = this.end_of_keys(first, block)
  total, peak, mass = lax.fori_loop(0, end, body, start)
  mass = jnp.maximum(mass, tile.LEAST_MASS)
  this.store_rows(y_ref, row, total / mass)
  lse = jnp.sum(peak + jnp.log(mass), axis=1)
  there = row < this.queries
  plt.store(lse_ref.at[this.batch, this.head, row], lse, mask=there)


def _keys_kernel(*refs, how, block):
  *refs, dk_ref, dv_ref = refs
  this = _Program(how, refs, pl.program_id(1), pl.program_id(2))
  first = pl.program_id(0) * block[1]
  col = first + _iota(block[1])
  k, v = this.rows(this.k, col), this.rows(this.v, col)

  def body(i, carry):
    dk, dv = carry
    row = i * block[0] + _iota(block[0])
    q, g = this.rows(this.q, row), this.rows(this.g, row)
    q_code = this.codes(this.data.q_codes, row)
    p, ds, _ = this.gradient(q, k, v, g, row, col, q_code)
    dv = dv + plt.dot(p.astype(g.dtype), g, trans_a=True)
    return dk + plt.dot(ds.astype(q.dtype), q, trans_a=True), dv

  zero = jnp.zeros((block[1], k.shape[1]), jnp.float32)
  start = first // block[0] if how.causal else 0
  end = pl.cdiv(this.queries, block[0])
  dk, dv = lax.fori_loop(start, end, body, (zero, zero))
  this.store_rows(dk_ref, col, dk * how.scale)
  this.store_rows(dv_ref, col, dv)


def _queries_kernel(*refs, how, block):
  *refs, dq_ref = refs
  this = _Program(how, refs, pl.program_id(1), pl.program_id(2))
  first = pl.program_id(0) * block[0]
  row = first + _iota(block[0])
  q, g = this.rows(this.q, row), this.rows(this.g, row)
  q_code = this.codes(this.data.q_codes, row)

  def body(j, dq):
    col = j * block[1] + _iota(block[1])
    k, v = this.rows(this.k, col), this.rows(this.v, col)
    _, ds, _ = this.gradient(q, k, v, g, row, col, q_code)
    return dq + plt.dot(ds.astype(k.dtype), k)

  zero = jnp.zeros((block[0], q.shape[1]), jnp.float32)
  dq = lax.fori_loop(0, this.end_of_keys(first, block), body, zero)
  this.store_rows(dq_ref, row, dq * how.scale)


def _bias_kernel(*refs, how, block):
  *refs, out_ref = refs
  head, index = pl.program_id(1), pl.program_id(0)
  i, j = index // out_ref.shape[2], index % out_ref.shape[2]
  row, col = i * block[0] + _iota(block[0]), j * block[1] + _iota(block[1])

  def body(batch, carry):
    this = _Program(how, refs, head, batch)
    q, g = this.rows(this.q, row), this.rows(this.g, row)
    k, v = this.rows(this.k, col), this.rows(this.v, col)
    q_code = this.codes(this.data.q_codes, row)
    _, ds, k_code = this.gradient(q, k, v, g, row, col, q_code)
    if not how.reset:
      return carry[0] + ds, carry[1]
    ds = jnp.where(tile.is_first(q_code[:, None]), 0.0, ds)
    to_cls = jnp.where(tile.is_first(k_code), ds, 0.0)
    return carry[0] + (ds - to_cls), carry[1] + jnp.sum(to_cls, axis=1)

  start = jnp.zeros(block, jnp.float32), jnp.zeros(block[:1], jnp.float32)
  matrix, to_cls = lax.fori_loop(0, refs[0].shape[0], body, start)
  slot = _iota(2 * block[0])
  diagonal = _iota(block[1])[None, :] - _iota(block[0])[:, None]
  diagonal = diagonal + (block[0] - 1)

  def add_up(d, out):
    total = jnp.sum(jnp.where(diagonal == d, matrix, 0.0))
    return jnp.where(slot == d, total, out)

  out = jnp.where(slot == 2 * block[0] - 1, jnp.sum(to_cls), 0.0)
  out = lax.fori_loop(0, 2 * block[0] - 1, add_up, out)
  plt.store(out_ref.at[head, i, j, slot], out)


def _iota(size):
  return lax.broadcasted_iota(jnp.int32, (size,), 0)
