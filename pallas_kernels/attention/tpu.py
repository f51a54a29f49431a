# SPDX-License-Identifier: Apache-2.0
"""Attention with relative bias for TPUs (Mosaic).

A step of the grid holds a block of queries against all keys of a head: rows
of the matrix are whole, in VMEM, so the softmax is taken at once and the
backward pass takes it again instead of keeping anything. That bounds the
number of keys, by far more than encoders of this family have.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import backend
from pallas_kernels.attention import operands, tile, tpu_logits
from pallas_kernels.attention.bias import PositionBias
from pallas_kernels.no_gradient import no_gradient

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
  operands.check(q, k, v, bias)
  backend.require(
    k.shape[1] <= _MAX_KEYS and q.shape[3] <= 256,
    f'attention: {k.shape[1]} keys of width {q.shape[3]} are more than the TPU'
    f' kernel holds at a time, {_MAX_KEYS} of 256',
  )
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  how = operands.how(bias, scale, causal, dropout_rate, interpret)
  shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  data = operands.make(
    shape, bias, q_segments, kv_segments, dropout_rate, seed, rows, axis
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
  sums = (shape.heads, shape.blocks, tpu_logits.SUBLANES, shape.window)
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
  d_data = jax.tree.map(no_gradient, data)
  if how.vector:
    d_vector, d_reset = tpu_logits.bias_gradient(
      d_windows, d_to_cls, shape.queries, shape.keys, shape.block
    )
    d_data = d_data._replace(vector=d_vector)
    if how.reset:
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
    keys = pl.cdiv(self.keys, tpu_logits.LANES) * tpu_logits.LANES
    self.window = tpu_logits.window_width(keys, self.block)
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
      tpu_logits.windows(
        vector, self.queries, self.blocks, self.block, self.window
      ),
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
          (1, 1, tpu_logits.SUBLANES, self.window), lambda h, b, i: (h, i, 0, 0)
        ),
        scalar,
        scalar,
        scalar,
        scalar,
      ],
    }


def _logits(q, k, data, how, head):
  """Masked float32 logits [queries, keys]."""
  x = _dot(q, k, 1, 1) * how.scale
  return tpu_logits.masked(x, how, data, head, pl.program_id(2))


def _dropped(x, data, how, head, batch):
  return tpu_logits.dropped(x, how, data, head, batch, pl.program_id(2))


def _forward_kernel(q_ref, k_ref, v_ref, *refs, how):
  *data, y_ref = refs
  data = operands.Operands(*data)
  head, batch = pl.program_id(0), pl.program_id(1)
  x = _logits(q_ref[0, 0], k_ref[0, 0], data, how, head)
  p = _dropped(tile.softmax(x), data, how, head, batch)
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
  p = tile.softmax(_logits(q, k, data, how, head))
  kept = _dropped(p, data, how, head, batch)
  dp = _dropped(_dot(g, v, 1, 1), data, how, head, batch)
  ds = tile.softmax_gradient(p, dp)
  dv_ref[0, 0] += _dot(kept.astype(g.dtype), g, 0, 0)
  scaled = (ds * how.scale).astype(q.dtype)
  dk_ref[0, 0] += _dot(scaled, q, 0, 0)
  dq_ref[0, 0] = _dot(scaled, k, 1, 0).astype(dq_ref.dtype)
  if how.vector:
    tpu_logits.add_bias_gradient(
      ds, how, data, block, d_window_ref, d_to_cls_ref
    )


def _dot(a, b, a_axis, b_axis):
  return lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
