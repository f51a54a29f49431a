# SPDX-License-Identifier: Apache-2.0
"""Dropout as data: rates, seed and row ids travel as one call argument.

`None` in its place is a deterministic pass. Rates may be traced scalars
(curricula change them during a run); a rate that is a Python number stays
static through `jit`, `scan` and `remat`, so that a 0 costs nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops

_RATES = ('hidden', 'attention', 'mlp')


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Dropout:
  """What a forward pass drops.

  Attributes:
    hidden: rate on embeddings and on what each sublayer adds, 0..1.
    attention: rate on attention probabilities.
    mlp: rate after the activation of the feed-forward network.
    rows: uint32 [batch], index of each row in the global batch; masks depend
      on it, not on where the row lies. None: 0, 1, ...
    seed: uint32 scalar. None: the embedder and the stack draw one from the
      'dropout' stream of random numbers.
  """

  hidden: float | jax.Array = 0.0
  attention: float | jax.Array = 0.0
  mlp: float | jax.Array = 0.0
  rows: jax.Array | None = None
  seed: jax.Array | None = None

  def tree_flatten(self):
    """Arrays are leaves; Python numbers are structure."""
    rates = [getattr(self, name) for name in _RATES]
    static = tuple(r if isinstance(r, int | float) else None for r in rates)
    traced = [
      None if s is not None else r for r, s in zip(rates, static, strict=True)
    ]
    return (*traced, self.rows, self.seed), static

  @classmethod
  def tree_unflatten(cls, static, leaves):
    """Inverse of `tree_flatten`."""
    *traced, rows, seed = leaves
    rates = [t if s is None else s for t, s in zip(traced, static, strict=True)]
    return cls(*rates, rows=rows, seed=seed)

  def seeded(self, module: nn.Module, batch: int) -> 'Dropout':
    """With seed and rows filled in, from `module`'s 'dropout' stream."""
    seed, rows = self.seed, self.rows
    if seed is None:
      seed = jax.random.bits(module.make_rng('dropout'), (), jnp.uint32)
    if rows is None:
      rows = jnp.arange(batch, dtype=jnp.uint32)
    return dataclasses.replace(self, seed=seed, rows=rows)

  def fold(self, index: int | jax.Array) -> 'Dropout':
    """For one layer, or one place in a layer: independent masks."""
    return dataclasses.replace(
      self, seed=ops.random_bits.fold(self.seed, index)
    )


def drop_hidden(x: jax.Array, dropout: Dropout | None, place: int) -> jax.Array:
  """Drops features of x [batch, length, features] at the hidden rate.

  Args:
    x: hidden states.
    dropout: seeded, or None for no dropout.
    place: number of this place within the layer.

  Returns:
    The same shape and dtype.
  """
  if dropout is None:
    return x
  here = dropout.fold(place)
  return ops.dropout(x, here.hidden, here.seed, here.rows)
