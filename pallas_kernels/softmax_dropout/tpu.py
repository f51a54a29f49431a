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
  return _call(_forward_kernel, how, dtype, logits, untied, data)


def backward(how, logits, untied, data, g):
  """See `rowwise.Kernels`."""
  return _call(_backward_kernel, how, logits.dtype, logits, untied, data, g)


def _call(kernel, how, dtype, logits, untied, data, *g):
  batch, heads, queries, keys = logits.shape
  rows = _BLOCK // pl.next_power_of_2(keys)
  rows = min(max(rows, _MIN_ROWS), _MAX_ROWS)
  blocks = pl.cdiv(queries, rows)
  width = tpu_logits.window_width(keys, rows)
  vector = data.vector
  if not how.vector:
    vector = jnp.zeros((heads, queries + keys - 1))
  tall = pl.BlockSpec((1, 1, rows, keys), lambda b, h, i: (b, h, i, 0))
  shared = pl.BlockSpec((1, 1, rows, keys), lambda b, h, i: (0, h, i, 0))
  scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
  extra = [] if untied is None else [untied]
  return pl.pallas_call(
    functools.partial(kernel, how=how),
    out_shape=jax.ShapeDtypeStruct(logits.shape, dtype),
    grid=(batch, heads, blocks),
    in_specs=[
      tall,
      pl.BlockSpec((1, rows, 1), lambda b, h, i: (b, i, 0)),
      pl.BlockSpec((1, 1, keys), lambda b, h, i: (b, 0, 0)),
      pl.BlockSpec(
        (1, 1, tpu_logits.SUBLANES, width), lambda b, h, i: (h, i, 0, 0)
      ),
      scalar,
      scalar,
      scalar,
      scalar,
      *[tall for _ in g],
      *[shared if x.shape[0] == 1 else tall for x in extra],
    ],
    out_specs=tall,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'parallel')
    ),
    interpret=how.interpret,
    name='softmax' + kernel.__name__.removesuffix('_kernel'),
  )(
    logits,
    data.q_codes[:, :, None],
    data.k_codes[:, None, :],
    tpu_logits.windows(vector, queries, blocks, rows, width),
    data.reset,
    lax.bitcast_convert_type(data.planes, jnp.int32),
    lax.bitcast_convert_type(data.threshold, jnp.int32),
    data.keep_scale,
    *g,
    *extra,
  )


def _probabilities(logits_ref, untied, data, how):
  x = logits_ref[0, 0].astype(jnp.float32) * how.scale
  for ref in untied:
    x = x + ref[0, 0]
  block = pl.program_id(2)
  x = tpu_logits.masked(x, how, data, pl.program_id(1), block)
  return tile.softmax(x)


def _dropped(x, data, how):
  batch, head, block = (pl.program_id(i) for i in range(3))
  return tpu_logits.dropped(x, how, data, head, batch, block)


def _forward_kernel(logits_ref, *refs, how):
  *data, y_ref = refs
  data, untied = operands.Operands(*data[:_DATA]), data[_DATA:]
  p = _probabilities(logits_ref, untied, data, how)
  y_ref[0, 0] = _dropped(p, data, how).astype(y_ref.dtype)


def _backward_kernel(logits_ref, *refs, how):
  *data, dx_ref = refs
  g_ref, untied = data[_DATA], data[_DATA + 1 :]
  data = operands.Operands(*data[:_DATA])
  p = _probabilities(logits_ref, untied, data, how)
  dp = _dropped(g_ref[0, 0].astype(jnp.float32), data, how)
  dx = tile.softmax_gradient(p, dp) * how.scale
  dx_ref[0, 0] = dx.astype(dx_ref.dtype)
