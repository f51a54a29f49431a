# SPDX-License-Identifier: Apache-2.0
"""From token ids to the input of a stack: Dropout(LN(token + position)).

One step before the encoder, which takes embeddings, not ids: so tables can be
shared between models, and a soft or noisy input is just another x.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Table
from metro_jax.modules.dropout import Dropout, drop_hidden
from metro_jax.modules.norm import LayerNorm


class Embedder(nn.Module):
  """Token table, position table and embedding norm.

  The three methods are the three steps, so that two models can share some of
  them: parameters exist only for the steps that are called.
  """

  config: TransformerConfig

  def setup(self) -> None:
    """Declares parameters; they come to be on first use."""
    config = self.config
    init = initializers.normal(config.init_stddev)
    width = config.table_width
    self.token = Table((config.vocab_size, width), ('vocab', 'embed'), init)
    self.position = Table(
      (config.positions.max_length, width), ('position', 'embed'), init
    )
    self.norm = LayerNorm(config)

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    valid: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """All three steps.

    Args:
      tokens: int32 [batch, length].
      positions: int32 [batch, length], restarting in each segment; None is
        0, 1, ... in every row.
      valid: bool [batch, length], False at padding; None: all valid.
      dropout: None for a deterministic pass.

    Returns:
      [batch, length, table_dim] in the compute dtype, zero at padding.
    """
    x = self.add_positions(self.lookup(tokens), positions)
    return self.normalize(x, valid, dropout)

  def lookup(self, tokens: jax.Array) -> jax.Array:
    """Rows of the token table for tokens int32 [batch, length]."""
    x = self.token(tokens).astype(self.config.compute_dtype)
    return _constrain(x)

  def add_positions(
    self, x: jax.Array, positions: jax.Array | None = None
  ) -> jax.Array:
    """Adds absolute position embeddings to x [batch, length, table_dim].

    Does nothing where the config has none, or has them untied (TUPE).
    """
    config = self.config.positions
    if not config.absolute or config.untied:
      return x
    length = x.shape[1]
    if length > config.max_length:
      raise UserError(
        f'PositionConfig.max_length: {config.max_length} rows of positions are'
        f' fewer than the sequence length {length}; raise it, or lower LENGTH'
      )
    if positions is None:
      positions = jnp.arange(length)[None]
    return x + self.position(positions).astype(x.dtype)

  def normalize(
    self,
    x: jax.Array,
    valid: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """The norm, dropout, and zeros at padding."""
    if self.config.embed_norm:
      x = self.norm(x)
    if dropout is not None:
      x = drop_hidden(x, dropout.seeded(self, x.shape[0]), 0)
    if valid is not None:
      x = jnp.where(valid[..., None], x, jnp.zeros((), x.dtype))
    return _constrain(x)

  def table(self) -> jax.Array:
    """The token table, float32 [vocabulary, table_dim], for tied heads."""
    return self.token.table()


def _constrain(x: jax.Array) -> jax.Array:
  return nn.with_logical_constraint(x, ('batch', 'length', 'embed'))
