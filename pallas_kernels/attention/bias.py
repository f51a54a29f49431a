# SPDX-License-Identifier: Apache-2.0
"""Position bias of attention in compact form.

A relative bias depends on (key - query) only, so a head's [q, k] matrix is
Toeplitz: q + k - 1 numbers. Kernels read those; only the XLA reference ever
writes the matrix out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax


def toeplitz(vector: jax.Array, q_length: int, k_length: int) -> jax.Array:
  """Matrix with entry [.., q, k] = vector[.., k - q + q_length - 1].

  Written as tile, slice and reshape: its gradient is then a dense sum, not a
  scatter. With period q_length + k_length (one spare element), stepping one
  less than a period per row moves every row by one.

  Args:
    vector: [heads, q_length + k_length - 1], from key - query =
      -(q_length - 1) up to k_length - 1.
    q_length: number of queries.
    k_length: number of keys.

  Returns:
    [heads, q_length, k_length].
  """
  period = q_length + k_length
  spare = jnp.pad(vector, ((0, 0), (0, 1)))
  flat = jnp.tile(spare, (1, q_length))
  start = q_length - 1
  flat = flat[:, start : start + q_length * (period - 1)]
  return flat.reshape(-1, q_length, period - 1)[:, :, :k_length]


@jax.custom_vjp
def for_batch(x: jax.Array, like: jax.Array) -> jax.Array:
  """Repeats x [1, ...] to the leading size of `like`; see `sum_batch`."""
  return jnp.broadcast_to(x, (like.shape[0], *x.shape[1:]))


def sum_batch(x: jax.Array) -> jax.Array:
  """Sum over the leading axis, which stays as 1.

  As a product with ones on CPU, where XLA's own sum over [32, 4, 128, 128]
  takes 20 times as long.
  """

  def product(x):
    ones = jnp.ones((1, x.shape[0]), x.dtype)
    return (ones @ x.reshape(x.shape[0], -1)).reshape(1, *x.shape[1:])

  def plain(x):
    return jnp.sum(x, axis=0, keepdims=True)

  return lax.platform_dependent(x, cpu=product, default=plain)


for_batch.defvjp(
  lambda x, like: (for_batch(x, like), None),
  lambda _, g: (sum_batch(g), None),
)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('vector', 'reset', 'q_first', 'k_first', 'untied'),
  meta_fields=('q_length', 'k_length'),
)
@dataclasses.dataclass(frozen=True)
class PositionBias:
  """What is added to the attention logits for positions. None: absent.

  Attributes:
    q_length: number of queries.
    k_length: number of keys.
    vector: [heads, q_length + k_length - 1], relative bias by key - query.
    reset: [heads, 2], in place of the relative bias: 0 where another token
      looks at a [CLS], 1 where a [CLS] looks at anything, itself included.
      Entry 1 shifts all logits of a query alike and so cancels in the
      softmax; its gradient is exactly zero.
    q_first: bool [batch or 1, q_length], True at each segment's [CLS].
    k_first: bool [batch or 1, k_length], the same for keys.
    untied: [batch or 1, heads, q_length, k_length], the absolute-position
      term of TUPE, already scaled and reset.
  """

  q_length: int
  k_length: int
  vector: jax.Array | None = None
  reset: jax.Array | None = None
  q_first: jax.Array | None = None
  k_first: jax.Array | None = None
  untied: jax.Array | None = None

  def dense(self) -> jax.Array | None:
    """The whole matrix, float32 [batch or 1, heads, q_length, k_length]."""
    total = None
    if self.vector is not None:
      total = toeplitz(
        self.vector.astype(jnp.float32), self.q_length, self.k_length
      )[None]
      if self.reset is not None:
        total = self._with_reset(total)
    if self.untied is not None:
      untied = self.untied.astype(jnp.float32)
      total = untied if total is None else total + untied
    return total

  def _with_reset(self, total: jax.Array) -> jax.Array:
    total = for_batch(total, self.k_first)
    to_cls, from_cls = (
      self.reset.astype(jnp.float32)[None, :, i, None, None] for i in (0, 1)
    )
    total = jnp.where(self.k_first[:, None, None, :], to_cls, total)
    # Without stop_gradient rounding noise would stand in for the exact zero,
    # and Adam would scale it up to full steps.
    from_cls = lax.stop_gradient(from_cls)
    return jnp.where(self.q_first[:, None, :, None], from_cls, total)
