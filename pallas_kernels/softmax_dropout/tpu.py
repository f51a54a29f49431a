# SPDX-License-Identifier: Apache-2.0
"""Softmax and dropout for TPUs (Mosaic): a step holds a block of whole rows."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import operands, tile, tpu_logits

# Elements of a block, 512 KiB in float32, of which a dozen fit in the 16 MiB
# that a kernel gets by default; and bounds of its rows: bfloat16 comes in
# tiles of 16, and windows of the bias are made for powers of two.
_BLOCK = 128 * 1024
_MIN_ROWS, _MAX_ROWS = 16, 128
MAX_KEYS = _BLOCK // _MIN_ROWS
_DATA = len(operands.Operands._fields)  # References of a kernel.


def forward(how, dtype, logits, untied, data):
  """See `rowwise.Kernels`."""
  shape = _Shape(logits)
  return pl.pallas_call(
    functools.partial(_forward_kernel, how=how),
    out_shape=jax.ShapeDtypeStruct(logits.shape, dtype),
    grid=shape.grid,
    in_specs=shape.specs(untied),
    out_specs=shape.tall,
    compiler_params=_params('parallel'),
    interpret=how.interpret,
    name='softmax_forward',
  )(*shape.arguments(how, logits, untied, data))


def backward(how, logits, untied, data, g):
  """See `rowwise.Kernels`."""
  shape, like = _Shape(logits), jax.ShapeDtypeStruct
  outs, specs = [like(logits.shape, logits.dtype)], [shape.tall]
  if how.vector:
    windows = (shape.blocks, tpu_logits.SUBLANES, shape.window)
    outs += [
      like((shape.heads, *windows), jnp.float32),
      like((shape.heads, 1, shape.padded), jnp.float32),
    ]
    # A head's sums stay in VMEM until all its blocks are done.
    specs += [
      pl.BlockSpec((1, *windows), lambda h, b, i: (h, 0, 0, 0)),
      pl.BlockSpec((1, 1, shape.padded), lambda h, b, i: (h, 0, 0)),
    ]
  dx, *sums = pl.pallas_call(
    functools.partial(_backward_kernel, how=how),
    out_shape=outs,
    grid=shape.grid,
    in_specs=[shape.tall, *shape.specs(untied)],
    out_specs=specs,
    compiler_params=_params('arbitrary'),
    interpret=how.interpret,
    name='softmax_backward',
  )(g, *shape.arguments(how, logits, untied, data))
  if not how.vector:
    return dx, None, None
  sizes = shape.queries, shape.keys, shape.rows
  return dx, *tpu_logits.bias_gradient(*sums, *sizes)


def _params(order):
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', order, order),
  )


class _Shape:
  """Sizes of blocks, and what kernels read in that layout.

  Blocks reach past the ends of rows and columns. What lies there may be
  anything; codes of 0 mask it.
  """

  def __init__(self, logits):
    self.batch, self.heads, self.queries, self.keys = logits.shape
    rows = _BLOCK // pl.next_power_of_2(self.keys)
    self.rows = min(max(rows, _MIN_ROWS), _MAX_ROWS)
    self.blocks = pl.cdiv(self.queries, self.rows)
    lanes = tpu_logits.LANES
    self.padded = pl.cdiv(self.keys, lanes) * lanes
    self.window = tpu_logits.window_width(self.padded, self.rows)
    # Outermost the heads, whose gradients of the bias are added up.
    self.grid = (self.heads, self.batch, self.blocks)
    block = (1, 1, self.rows, self.padded)
    self.tall = pl.BlockSpec(block, lambda h, b, i: (b, h, i, 0))
    self.shared = pl.BlockSpec(block, lambda h, b, i: (0, h, i, 0))

  def specs(self, untied):
    """Of `arguments`."""
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    out = [
      self.tall,
      pl.BlockSpec((1, self.rows, 1), lambda h, b, i: (b, i, 0)),
      pl.BlockSpec((1, 1, self.padded), lambda h, b, i: (b, 0, 0)),
      pl.BlockSpec(
        (1, 1, tpu_logits.SUBLANES, self.window), lambda h, b, i: (h, i, 0, 0)
      ),
      *[scalar] * 4,
    ]
    if untied is not None:
      out.append(self.shared if untied.shape[0] == 1 else self.tall)
    return out

  def arguments(self, how, logits, untied, data):
    """Logits, the fields of `operands.Operands`, and the untied term."""
    vector = data.vector
    if not how.vector:
      vector = jnp.zeros((self.heads, self.queries + self.keys - 1))
    rows = self.blocks * self.rows - self.queries
    columns = self.padded - self.keys
    return (
      logits,
      jnp.pad(data.q_codes, ((0, 0), (0, rows)))[:, :, None],
      jnp.pad(data.k_codes, ((0, 0), (0, columns)))[:, None, :],
      tpu_logits.windows(
        vector, self.queries, self.blocks, self.rows, self.window
      ),
      data.reset,
      lax.bitcast_convert_type(data.planes, jnp.int32),
      lax.bitcast_convert_type(data.threshold, jnp.int32),
      data.keep_scale,
      *([] if untied is None else [untied]),
    )


def _probabilities(logits_ref, data, untied, how):
  x = logits_ref[0, 0].astype(jnp.float32) * how.scale
  for ref in untied:
    x = x + ref[0, 0]
  head, block = pl.program_id(0), pl.program_id(2)
  return tile.softmax(tpu_logits.masked(x, how, data, head, block))


def _dropped(x, data, how):
  head, batch, block = (pl.program_id(i) for i in range(3))
  return tpu_logits.dropped(x, how, data, head, batch, block)


def _forward_kernel(logits_ref, *refs, how):
  *refs, y_ref = refs
  data, untied = operands.Operands(*refs[:_DATA]), refs[_DATA:]
  p = _probabilities(logits_ref, data, untied, how)
  y_ref[0, 0] = _dropped(p, data, how).astype(y_ref.dtype)


def _backward_kernel(g_ref, logits_ref, *refs, how):
  count = 3 if how.vector else 1
  refs, (dx_ref, *sums) = refs[:-count], refs[-count:]
  data, untied = operands.Operands(*refs[:_DATA]), refs[_DATA:]
  batch, block = pl.program_id(1), pl.program_id(2)
  p = _probabilities(logits_ref, data, untied, how)
  dp = _dropped(g_ref[0, 0].astype(jnp.float32), data, how)
  # Past the ends g holds anything, NaN included; p is 0 there.
  ds = tile.softmax_gradient(p, jnp.where(p > 0.0, dp, 0.0))
  dx_ref[0, 0] = (ds * how.scale).astype(dx_ref.dtype)
  if not how.vector:
    return

  @pl.when((block == 0) & (batch == 0))
  def _():
    for ref in sums:
      ref[...] = jnp.zeros_like(ref)

  tpu_logits.add_bias_gradient(ds, how, data, block, *sums)
