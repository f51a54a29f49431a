# SPDX-License-Identifier: Apache-2.0
"""Softmax and dropout for GPUs (Triton): a program holds a few whole rows."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.attention import gpu_logits, operands, tile
from pallas_kernels.attention.bias import PositionBias
from pallas_kernels.dropout.tile import dropped

# Elements of a tile: 32 registers a thread for each array that is alive, half
# in the backward pass; `aot_test.py` holds them to no register spills.
_TILE = 4096
_WARPS = 4
MAX_KEYS = 16384
_DATA = len(operands.Operands._fields)  # References of a kernel.


def forward(how, dtype, logits, untied, data):
  """See `rowwise.Kernels`."""
  return _call(_forward_kernel, how, dtype, _TILE, logits, untied, data)


def backward(how, logits, untied, data, g):
  """See `rowwise.Kernels`.

  The gradient of the bias is a sum of the logits' cotangents, which are in
  memory anyway: XLA adds them up.
  """
  kernel, dtype = _backward_kernel, logits.dtype
  dx = _call(kernel, how, dtype, _TILE // 2, logits, untied, data, g)
  if not how.vector:
    return dx, None, None

  def dense(vector, reset):
    """The bias written out; only its gradient is ever computed."""
    first = (tile.is_first(c) for c in (data.q_codes, data.k_codes))
    bias = PositionBias(*dx.shape[2:], vector, reset, *first).dense()
    return jnp.broadcast_to(bias, dx.shape)

  _, pull = jax.vjp(dense, data.vector, data.reset if how.reset else None)
  return dx, *pull(dx.astype(jnp.float32) / how.scale)


def _call(kernel, how, dtype, size, logits, untied, data, *g):
  batch, heads, queries, keys = logits.shape
  width = pl.next_power_of_2(keys)
  block = max(1, size // width), width
  wide = max(1, width // _TILE)  # Long rows by more threads.
  return pl.pallas_call(
    functools.partial(kernel, how=how, block=block),
    out_shape=jax.ShapeDtypeStruct(logits.shape, dtype),
    grid=(pl.cdiv(queries, block[0]), heads, batch),
    compiler_params=plt.CompilerParams(num_warps=_WARPS * wide, num_stages=1),
    interpret=how.interpret,
    name='softmax' + kernel.__name__.removesuffix('_kernel'),
  )(logits, *data, *g, *([] if untied is None else [untied]))


class _Rows:
  """The rows of a program."""

  def __init__(self, how, data, block):
    self.how, self.data = how, operands.Operands(*data)
    self.head, self.batch = pl.program_id(1), pl.program_id(2)
    self.row = pl.program_id(0) * block[0] + _iota(block[0])
    self.col = _iota(block[1])
    sizes = self.data.q_codes.shape[1], self.data.k_codes.shape[1]
    self.mask = (self.row < sizes[0])[:, None] & (self.col < sizes[1])[None, :]

  def load(self, ref):
    """float32 [rows, keys] of an array [batch or 1, heads, queries, keys]."""
    at = ref.at[self._at(ref)]
    return plt.load(at, mask=self.mask, other=0.0).astype(jnp.float32)

  def store(self, ref, x):
    plt.store(ref.at[self._at(ref)], x.astype(ref.dtype), mask=self.mask)

  def _at(self, ref):
    batch = self.batch if ref.shape[0] > 1 else 0
    return batch, self.head, self.row[:, None], self.col[None, :]

  def probabilities(self, logits_ref, untied_refs):
    x = self.load(logits_ref) * self.how.scale
    for ref in untied_refs:
      x = x + self.load(ref)
    q_code, k_code = (
      gpu_logits.codes(ref, self.batch, at)
      for ref, at in (
        (self.data.q_codes, self.row),
        (self.data.k_codes, self.col),
      )
    )
    x = gpu_logits.masked(
      x,
      self.how,
      self.data,
      self.head,
      self.row,
      self.col,
      q_code[:, None],
      k_code[None, :],
    )
    return tile.softmax(x)

  def dropped(self, x):
    if not self.how.dropout:
      return x
    return dropped(
      x,
      self.data.planes[self.batch, self.head],
      self.row[:, None],
      self.col[None, :],
      self.data.threshold[0],
      self.data.keep_scale[0],
    )


def _forward_kernel(logits_ref, *refs, how, block):
  *data, y_ref = refs
  data, untied = data[:_DATA], data[_DATA:]
  rows = _Rows(how, data, block)
  rows.store(y_ref, rows.dropped(rows.probabilities(logits_ref, untied)))


def _backward_kernel(logits_ref, *refs, how, block):
  *data, dx_ref = refs
  data, g_ref, untied = data[:_DATA], data[_DATA], data[_DATA + 1 :]
  rows = _Rows(how, data, block)
  p = rows.probabilities(logits_ref, untied)
  dx = tile.softmax_gradient(p, rows.dropped(rows.load(g_ref)))
  rows.store(dx_ref, dx * how.scale)


def _iota(size):
  return lax.broadcasted_iota(jnp.int32, (size,), 0)
