# SPDX-License-Identifier: Apache-2.0
"""The op around the kernels: what is the same on every platform.

A kernel holds whole rows, so one pass over the logits makes the result, and
one over logits and cotangents makes the gradient: the softmax and the mask are
taken again, nothing but the logits is kept. A relative bias is read as a
vector.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.attention import operands, tile
from pallas_kernels.attention.bias import PositionBias, sum_batch
from pallas_kernels.no_gradient import no_gradient


class Kernels(Protocol):
  """What a platform brings."""

  MAX_KEYS: int

  def forward(
    self,
    how: tile.How,
    dtype: jnp.dtype,
    logits: jax.Array,
    untied: jax.Array | None,
    data: operands.Operands,
  ) -> jax.Array:
    """The result, [batch, heads, queries, keys] in `dtype`.

    Args:
      how: what to compile.
      dtype: of the result.
      logits: [batch, heads, queries, keys].
      untied: float32 [batch or 1, heads, queries, keys] or None.
      data: the other operands.
    """

  def backward(
    self,
    how: tile.How,
    logits: jax.Array,
    untied: jax.Array | None,
    data: operands.Operands,
    g: jax.Array,
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Cotangents, of the logits in their dtype.

    Args:
      how: what to compile.
      logits: as in `forward`.
      untied: as in `forward`.
      data: as in `forward`.
      g: cotangent of the result.

    Returns:
      Those of the logits; of the bias vector and of the reset scalars, which
      are not looked at where there is none.
    """


def make(kernels: Kernels) -> Callable:
  """The op of `reference.softmax_dropout` by a platform's kernels."""

  def op(
    logits: jax.Array,
    *,
    scale: float = 1.0,
    bias: PositionBias | None = None,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    causal: bool = False,
    dropout_rate: float | jax.Array = 0.0,
    seed: jax.Array | None = None,
    rows: jax.Array | None = None,
    dtype=None,
    axis: str | None = None,
    interpret: bool = False,
  ) -> jax.Array:
    backend.require_dtype('softmax_dropout', logits)
    backend.require(
      logits.shape[-1] <= kernels.MAX_KEYS,
      f'softmax_dropout: {logits.shape[-1]} keys are more than'
      f' {kernels.MAX_KEYS}, a row of which the kernel still holds at a time',
    )
    how = operands.how(bias, scale, causal, dropout_rate, interpret)
    data = operands.make(
      logits.shape,
      bias,
      q_segments,
      kv_segments,
      dropout_rate,
      seed,
      rows,
      axis,
    )
    untied = None if bias is None else bias.untied
    if untied is not None:
      untied = untied.astype(jnp.float32)
    static = (kernels, how, jnp.dtype(dtype or logits.dtype))
    return _softmax(static, logits, untied, data)

  return op


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(static, logits, untied, data):
  return _forward(static, logits, untied, data)[0]


def _forward(static, logits, untied, data):
  kernels, how, dtype = static
  y = kernels.forward(how, dtype, logits, untied, data)
  return y, (logits, untied, data)


def _backward(static, residuals, g):
  kernels, how, _ = static
  logits, untied, data = residuals
  d_logits, d_vector, d_reset = kernels.backward(how, logits, untied, data, g)
  d_data = jax.tree.map(no_gradient, data)
  if how.vector:
    d_data = d_data._replace(vector=d_vector)
  if how.reset:
    d_data = d_data._replace(reset=d_reset)
  d_untied = None
  if untied is not None:
    d_untied = d_logits.astype(jnp.float32) / how.scale
    if untied.shape[0] < logits.shape[0]:
      d_untied = sum_batch(d_untied)
  return d_logits, d_untied, d_data


_softmax.defvjp(_forward, _backward)
