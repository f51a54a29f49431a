# SPDX-License-Identifier: Apache-2.0
"""The feed-forward network of a block, and activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.dropout import Dropout


def gelu(x: jax.Array) -> jax.Array:
  """X * Phi(x), exact, float32 inside; [...] to the same shape and dtype."""
  wide = x.astype(jnp.float32)
  y = 0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))
  return y.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': gelu,
  'relu': jax.nn.relu,
}


class MLP(nn.Module):
  """Dense, activation, dropout, Dense."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layer: int | jax.Array = 0,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """Maps [batch, length, embed_dim] to the same shape.

    Args:
      x: hidden states.
      layer: index in the stack, for scaled initialisation; may be traced.
      dropout: seeded, or None.

    Returns:
      What the block adds to its residual stream, before dropout.
    """
    config = self.config
    init = (
      initializers.depth_scaled(config.init_stddev, layer)
      if config.scaled_init
      else initializers.normal(config.init_stddev)
    )
    wide, narrow = config.mlp_dim, config.embed_dim
    dtype = config.compute_dtype
    bias = {'use_bias': config.use_bias}
    h = Dense((narrow, wide), ('embed', 'mlp'), dtype, init, name='wi', **bias)(
      x
    )
    h = ACTIVATIONS[config.activation](h)
    if dropout is not None:
      h = ops.dropout(h, dropout.mlp, dropout.seed, dropout.rows)
    h = nn.with_logical_constraint(h, ('batch', 'length', 'mlp'))
    return Dense(
      (wide, narrow), ('mlp', 'embed'), dtype, init, name='wo', **bias
    )(h)
