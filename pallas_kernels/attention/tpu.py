# SPDX-License-Identifier: Apache-2.0
"""Attention with relative bias for TPUs (Mosaic).

A step of the grid holds a block of queries against all keys of a head: rows
of the matrix are whole, in VMEM, so the softmax is taken at once and the
backward pass takes it again instead of keeping anything. That bounds the
number of keys, by far more than encoders of this family have.

Bias: a block of queries sees a window of the Toeplitz vector. Row r of its
matrix is the window moved by r: rows are made by doubling, and their gradient
is folded back by halves.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import backend
from pallas_kernels.attention import operands, tile
from pallas_kernels.attention.bias import PositionBias

_LANES, _SUBLANES = 128, 8
_BLOCK = 128  # Queries; half as many where there are more keys than this:
_MANY_KEYS = 1024
_MAX_KEYS = 2048


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
  """See `reference.attention`; for `axis`, `operands.make`."""
  del softmax_backend  # There is no separate softmax.
  backend.require_dtype('attention', q, k, v)
  backend.require(q.dtype == k.dtype == v.dtype, 'attention: mixed dtypes')
  backend.require(
    k.shape[1] <= _MAX_KEYS and q.shape[3] <= 256,
    f'attention: {k.shape[1]} keys of width {q.shape[3]} are more than the TPU'
    f' kernel holds at a time, {_MAX_KEYS} of 256',
  )
  how = tile.How(
    scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
    causal=causal,
    vector=bias is not None and bias.vector is not None,
    reset=bias is not None and bias.reset is not None,
    dropout=not operands.no_dropout(dropout_rate),
    interpret=interpret,
  )
  data = operands.make(
    q, k, bias, q_segments, kv_segments, dropout_rate, seed, rows, axis
  )
  return _attention(how, q, k, v, data)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q, k, v, data):
  return _forward(how, q, k, v, data)[0]


def _forward(how, q, k, v, data):
  shape = _Shape(q, k)
  specs = shape.specs()
  y = pl.pallas_call(
    functools.partial(_forward_kernel, how=how),
    out_shape=jax.ShapeDtypeStruct(shape.queries_padded, q.dtype),
    grid=shape.grid,
    in_specs=[specs['queries'], specs['keys'], specs['keys'], *specs['data']],
    out_specs=specs['queries'],
    compiler_params=_params('parallel'),
    interpret=how.interpret,
    name='attention_forward',
  )(
    shape.pad(q, shape.queries_padded),
    shape.pad(k, shape.keys_padded),
    shape.pad(v, shape.keys_padded),
    *shape.operands(data),
  )
  return shape.unpad(y, q.shape[1]), (q, k, v, data)


def _backward(how, residuals, g):
  q, k, v, data = residuals
  shape = _Shape(q, k)
  specs = shape.specs()
  like = jax.ShapeDtypeStruct
  sums = (shape.heads, shape.blocks, _SUBLANES, shape.window)
  to_cls = (shape.heads, 1, shape.keys_padded[2])
  dq, dk, dv, d_windows, d_to_cls = pl.pallas_call(
    functools.partial(_backward_kernel, how=how),
    out_shape=(
      like(shape.queries_padded, q.dtype),
      like(shape.keys_padded, jnp.float32),
      like(shape.keys_padded, jnp.float32),
      like(sums, jnp.float32),
      like(to_cls, jnp.float32),
    ),
    grid=shape.grid,
    in_specs=[
      specs['queries'],
      specs['keys'],
      specs['keys'],
      *specs['data'],
      specs['queries'],
    ],
    out_specs=(
      specs['queries'],
      specs['keys'],
      specs['keys'],
      pl.BlockSpec((1, *sums[1:]), lambda h, b, i: (h, 0, 0, 0)),
      pl.BlockSpec((1, *to_cls[1:]), lambda h, b, i: (h, 0, 0)),
    ),
    compiler_params=_params('arbitrary'),
    interpret=how.interpret,
    name='attention_backward',
  )(
    shape.pad(q, shape.queries_padded),
    shape.pad(k, shape.keys_padded),
    shape.pad(v, shape.keys_padded),
    *shape.operands(data),
    shape.pad(g, shape.queries_padded),
  )
  d_data = jax.tree.map(operands.no_gradient, data)
  if how.vector:
    d_data = d_data._replace(vector=shape.vector_gradient(d_windows))
  if how.reset:
    d_reset = jnp.sum(d_to_cls, axis=(1, 2))
    d_reset = jnp.stack([d_reset, jnp.zeros_like(d_reset)], axis=1)
    d_data = d_data._replace(reset=d_reset)
  return (
    shape.unpad(dq, q.shape[1]),
    shape.unpad(dk, k.shape[1]).astype(k.dtype),
    shape.unpad(dv, k.shape[1]).astype(v.dtype),
    d_data,
  )


_attention.defvjp(_forward, _backward)


def _params(batch):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', batch, batch),
  )


class _Shape:
  """Sizes, padded to blocks, and arrays in the kernels' layout."""

  def __init__(self, q, k):
    self.batch, self.queries, self.heads, self.width = q.shape
    self.keys = k.shape[1]
    many = self.keys > _MANY_KEYS
    self.block = _BLOCK // 2 if many else _BLOCK
    self.blocks = pl.cdiv(self.queries, self.block)
    keys = pl.cdiv(self.keys, _LANES) * _LANES
    self.window = pl.cdiv(keys + self.block, _LANES) * _LANES
    lead = (self.batch, self.heads)
    self.queries_padded = (*lead, self.blocks * self.block, self.width)
    self.keys_padded = (*lead, keys, self.width)
    # Outermost the heads: a bias gradient stays in VMEM for its whole head.
    self.grid = (self.heads, self.batch, self.blocks)

  def pad(self, x, padded):
    """[batch, length, heads, width] to `padded`, [batch, heads, .., width]."""
    more = ((0, 0), (0, padded[2] - x.shape[1]), (0, 0), (0, 0))
    return jnp.swapaxes(jnp.pad(x, more), 1, 2)

  def unpad(self, x, length):
    """The reverse."""
    return jnp.swapaxes(x[:, :, :length], 1, 2)

  def operands(self, data):
    """What both kernels read beside q, k and v."""
    queries = self.queries_padded[2] - self.queries
    keys = self.keys_padded[2] - self.keys
    vector = data.vector
    if vector.shape[1] == 1:  # No bias.
      vector = jnp.zeros((self.heads, self.queries + self.keys - 1))
    return (
      jnp.pad(data.q_codes, ((0, 0), (0, queries)))[:, :, None],
      jnp.pad(data.k_codes, ((0, 0), (0, keys)))[:, None, :],
      self._windows(vector),
      data.reset,
      lax.bitcast_convert_type(data.planes, jnp.int32),
      lax.bitcast_convert_type(data.threshold, jnp.int32),
      data.keep_scale,
    )

  def specs(self):
    """Block specs of `operands`, of queries and of keys."""
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    keys = self.keys_padded[2:]
    return {
      'queries': pl.BlockSpec(
        (1, 1, self.block, self.width), lambda h, b, i: (b, h, i, 0)
      ),
      'keys': pl.BlockSpec((1, 1, *keys), lambda h, b, i: (b, h, 0, 0)),
      'data': [
        pl.BlockSpec((1, self.block, 1), lambda h, b, i: (b, i, 0)),
        pl.BlockSpec((1, 1, keys[0]), lambda h, b, i: (b, 0, 0)),
        pl.BlockSpec(
          (1, 1, _SUBLANES, self.window), lambda h, b, i: (h, i, 0, 0)
        ),
        scalar,
        scalar,
        scalar,
        scalar,
      ],
    }

  def _windows(self, vector):
    """What each block sees of the vector: [heads, blocks, 8, window].

    Row s is the bias of query s of the block; `_unfold` makes the others.
    """
    size = (self.blocks - 1) * self.block + self.window
    before = self.queries_padded[2] - self.queries
    after = max(0, size - before - vector.shape[1])
    vector = jnp.pad(vector, ((0, 0), (before, after)))
    starts = [(self.blocks - 1 - i) * self.block for i in range(self.blocks)]
    cut = jnp.stack([vector[:, s : s + self.window] for s in starts], axis=1)
    rows = [
      jnp.roll(cut, s - (self.block - 1), axis=-1) for s in range(_SUBLANES)
    ]
    return jnp.stack(rows, axis=2)

  def vector_gradient(self, d_windows):
    """[heads, queries + keys - 1] from [heads, blocks, 8, window]."""
    size = (self.heads, self.queries + self.keys - 1)
    _, pull = jax.vjp(self._windows, jnp.zeros(size, jnp.float32))
    return pull(d_windows)[0]


def _logits(q, k, data, how, head):
  """Masked float32 logits [queries, keys], and the codes of both."""
  x = _dot(q, k, 1, 1) * how.scale
  q_code, k_code = data.q_codes[0], data.k_codes[0]
  if how.vector:
    bias = _unfold(data.vector[0, 0], x.shape)
    if how.reset:
      to_cls, from_cls = (data.reset[head, i] for i in (0, 1))
      bias = jnp.where(tile.is_first(k_code), to_cls, bias)
      bias = jnp.where(tile.is_first(q_code), from_cls, bias)
    x = x + bias
  allowed = tile.allowed(q_code, k_code)
  if how.causal:
    row, col = _coordinates(x.shape)
    allowed = allowed & (row >= col)
  return jnp.where(allowed, x, tile.MASKED), q_code, k_code


def _softmax(x):
  peak = jnp.max(x, axis=1, keepdims=True)
  p = jnp.exp(x - jnp.maximum(peak, tile.LOWEST_MAXIMUM))
  mass = jnp.sum(p, axis=1, keepdims=True)
  return p / jnp.maximum(mass, tile.LEAST_MASS)


def _dropped(x, data, how, head, batch):
  if not how.dropout:
    return x
  row, col = _coordinates(x.shape)
  return tile.dropped(
    x,
    data.planes[batch, head].astype(jnp.uint32),
    row,
    col,
    data.threshold[0].astype(jnp.uint32),
    data.keep_scale[0],
  )


def _coordinates(shape):
  row = lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0)
  row = row + pl.program_id(2) * shape[0]
  return row, lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)


def _forward_kernel(q_ref, k_ref, v_ref, *refs, how):
  *data, y_ref = refs
  data = operands.Operands(*data)
  head, batch = pl.program_id(0), pl.program_id(1)
  x, _, _ = _logits(q_ref[0, 0], k_ref[0, 0], data, how, head)
  p = _dropped(_softmax(x), data, how, head, batch)
  v = v_ref[0, 0]
  y_ref[0, 0] = _dot(p.astype(v.dtype), v, 1, 0).astype(y_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, *refs, how):
  *data, g_ref, dq_ref, dk_ref, dv_ref, d_window_ref, d_to_cls_ref = refs
  data = operands.Operands(*data)
  head, batch, block = (pl.program_id(i) for i in range(3))

  @pl.when(block == 0)
  def _():
    dk_ref[...] = jnp.zeros_like(dk_ref)
    dv_ref[...] = jnp.zeros_like(dv_ref)

  @pl.when((block == 0) & (batch == 0))
  def _():
    d_window_ref[...] = jnp.zeros_like(d_window_ref)
    d_to_cls_ref[...] = jnp.zeros_like(d_to_cls_ref)

  q, k, v, g = (ref[0, 0] for ref in (q_ref, k_ref, v_ref, g_ref))
  x, q_code, k_code = _logits(q, k, data, how, head)
  p = _softmax(x)
  kept = _dropped(p, data, how, head, batch)
  dp = _dropped(_dot(g, v, 1, 1), data, how, head, batch)
  ds = p * (dp - jnp.sum(p * dp, axis=1, keepdims=True))
  dv_ref[0, 0] += _dot(kept.astype(g.dtype), g, 0, 0)
  scaled = (ds * how.scale).astype(q.dtype)
  dk_ref[0, 0] += _dot(scaled, q, 0, 0)
  dq_ref[0, 0] = _dot(scaled, k, 1, 0).astype(dq_ref.dtype)
  if not how.vector:
    return
  if how.reset:
    ds = jnp.where(tile.is_first(q_code), 0.0, ds)
    to_cls = jnp.where(tile.is_first(k_code), ds, 0.0)
    d_to_cls_ref[0] += jnp.sum(to_cls, axis=0, keepdims=True)
    ds = ds - to_cls
  d_window_ref[0, block] += _fold(ds, d_window_ref.shape[3])


def _unfold(x, shape):
  """Toeplitz matrix of `shape` from its first 8 rows, [8, width].

  Row r is row 0 moved right by r, so the rows there are, moved by as many,
  are the next ones. Plain rotations: those with a stride need a TPU v5.
  """
  while x.shape[0] < shape[0]:
    x = jnp.concatenate([x, pltpu.roll(x, x.shape[0], 1)], axis=0)
  return x[:, : shape[1]]


def _fold(x, width):
  """The transpose of `_unfold`: [rows, keys] to [8, width]."""
  zeros = jnp.zeros((x.shape[0], width - x.shape[1]), x.dtype)
  x = jnp.concatenate([x, zeros], axis=1)
  while x.shape[0] > _SUBLANES:
    half = x.shape[0] // 2
    x = x[:half] + pltpu.roll(x[half:], width - half, 1)
  return x


def _dot(a, b, a_axis, b_axis):
  return lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
