# SPDX-License-Identifier: Apache-2.0
"""The op around the kernels: what is the same on every platform.

Forward, a kernel goes over the vocabulary once and keeps a summary per token.
Backward, it goes over the vocabulary in chunks: a kernel computes the logits
of a chunk again and writes their cotangents, in compute dtype, and two plain
products make of those the gradients of features and table. At no time is
there an array of tokens x vocabulary.

With the vocabulary split over a mesh axis, every device summarises its own
part, and a few numbers per token are exchanged.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import backend, random_bits
from pallas_kernels.no_gradient import no_gradient
from pallas_kernels.vocab_cross_entropy import reference, tile

# Of the cotangents of a chunk; and bounds of a chunk's size in ids. Larger
# chunks add to the gradient of the features less often.
_CHUNK_BYTES = 256 * 2**20
_MIN_CHUNK, _MAX_CHUNK = 2048, 8192
_ALIGNED = 128


class Keys(NamedTuple):
  """What sampling needs, per token.

  Attributes:
    keys: uint32 [tokens], `random_bits.row_key` of each.
    cold: float32 scalar, 1 / temperature.
  """

  keys: jax.Array
  cold: jax.Array


class Kernels(Protocol):
  """What a platform brings."""

  def check(self, width: int) -> None:
    """Raises NotImplementedError for features of a width not supported."""

  def summarize(
    self,
    x: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    first: jax.Array,
    draw: Keys | None,
    *,
    interpret: bool,
  ) -> tile.Summary:
    """Summary of the logits of `table`, whose first row has the id `first`.

    Args:
      x: [tokens, width].
      table: [ids, width], in x's dtype.
      bias: float32 [ids].
      targets: int32 [tokens], ids that may lie outside this table.
      first: int32 scalar.
      draw: None for no sampling.
      interpret: run as plain JAX.

    Returns:
      Fields [tokens].
    """

  def cotangents(
    self,
    x: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    first: jax.Array,
    end: jax.Array,
    lse: jax.Array,
    d_loss: jax.Array,
    d_sum: jax.Array,
    *,
    interpret: bool,
  ) -> tuple[jax.Array, int, jax.Array]:
    """Cotangents of the logits of `table`.

    Args:
      x: [tokens, width].
      table: [ids, width], in x's dtype.
      bias: float32 [ids].
      targets: int32 [tokens].
      first: int32 scalar, id of the table's first row.
      end: int32 scalar; ids from here on do not exist.
      lse: float32 [tokens].
      d_loss: float32 [tokens].
      d_sum: float32 [tokens].
      interpret: run as plain JAX.

    Returns:
      [tokens, ids] or [ids, tokens] in x's dtype, which axis is tokens, and
      their sums over tokens, float32 [ids].
    """


def make(kernels: Kernels) -> Callable:
  """The op of `reference.vocab_cross_entropy` by a platform's kernels."""

  def op(
    features: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    *,
    draw: reference.Draw | None = None,
    axis: str | None = None,
    interpret: bool = False,
  ) -> tuple[jax.Array, ...]:
    width = features.shape[-1]
    backend.require_dtype('vocab_cross_entropy', features)
    kernels.check(width)
    x = features.reshape(-1, width)
    if bias is None:
      bias = jnp.zeros(table.shape[0], jnp.float32)
    if draw is not None:
      row = random_bits.iota(targets.shape, 1)
      keys = random_bits.row_key(draw.seed, draw.rows[:, None], row)
      cold = 1.0 / jnp.asarray(draw.temperature, jnp.float32)
      draw = Keys(keys.reshape(-1), cold)
    how = (kernels, axis, interpret)
    out = _cross_entropy(how, x, table, bias, targets.reshape(-1), draw)
    return tuple(y.reshape(targets.shape) for y in out)

  return op


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(how, x, table, bias, targets, draw):
  return _forward(how, x, table, bias, targets, draw)[0]


def _forward(how, x, table, bias, targets, draw):
  kernels, axis, interpret = how
  summary = kernels.summarize(
    x,
    table.astype(x.dtype),
    bias.astype(jnp.float32),
    targets,
    _first(axis, table.shape[0]),
    draw,
    interpret=interpret,
  )
  if axis is not None:
    gathered = jax.tree.map(lambda y: lax.all_gather(y, axis), summary)
    summary = tile.combine(gathered)
  lse = summary.peak + jnp.log(summary.total)
  out = (lse - summary.at_target, lse, summary.best)
  out += () if draw is None else (summary.sample,)
  return out, (x, table, bias, targets, draw, lse)


def _backward(how, residuals, cotangents):
  kernels, axis, interpret = how
  x, table, bias, targets, draw, lse = residuals
  d_loss, d_lse = cotangents[:2]
  if axis is not None:
    # shard_map hands each device its share of the cotangent of a result that
    # all of them hold.
    d_loss, d_lse = lax.psum((d_loss, d_lse), axis)
  first = _first(axis, table.shape[0])
  ids = table.shape[0]
  chunk = chunk_size(x.shape[0], ids, x.dtype.itemsize)
  count = -(-ids // chunk)
  tables, biases = (
    jnp.pad(a, [(0, count * chunk - ids)] + [(0, 0)] * (a.ndim - 1)).reshape(
      count, chunk, *a.shape[1:]
    )
    for a in (table.astype(x.dtype), bias.astype(jnp.float32))
  )

  def step(dx, part):
    index, table_part, bias_part = part
    d_logits, tokens, d_bias = kernels.cotangents(
      x,
      table_part,
      bias_part,
      targets,
      first + index * chunk,
      first + ids,
      lse,
      d_loss,
      d_loss + d_lse,
      interpret=interpret,
    )
    dx += _product(d_logits, table_part, 1 - tokens)
    d_table = _product(d_logits, x, tokens).astype(table.dtype)
    return dx, (d_table, d_bias)

  dx, (d_table, d_bias) = lax.scan(
    step,
    jnp.zeros(x.shape, jnp.float32),
    (jnp.arange(count, dtype=jnp.int32), tables, biases),
  )
  d_table = d_table.reshape(-1, x.shape[1])[:ids]
  d_bias = d_bias.reshape(-1)[:ids].astype(bias.dtype)
  nothing = jax.tree.map(no_gradient, (targets, draw))
  return dx.astype(x.dtype), d_table, d_bias, *nothing


_cross_entropy.defvjp(_forward, _backward)


def chunk_size(tokens: int, ids: int, itemsize: int) -> int:
  """Ids of a chunk of the backward pass."""
  size = _CHUNK_BYTES // (tokens * itemsize)
  size = min(max(size, _MIN_CHUNK), _MAX_CHUNK)
  chunks = -(-ids // size)
  return -(-ids // chunks // _ALIGNED) * _ALIGNED


def _first(axis, ids):
  """The first id of this device's part of the table."""
  index = 0 if axis is None else lax.axis_index(axis)
  return jnp.asarray(index * ids, jnp.int32)


def _product(a, b, contracted):
  """float32: a contracted along `contracted` with b's first axis."""
  return lax.dot_general(
    a, b, (((contracted,), (0,)), ((), ())), preferred_element_type=jnp.float32
  )
