# SPDX-License-Identifier: Apache-2.0
"""LayerNorm with scale and bias, or RMSNorm with a scale alone."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dropout import Dropout, drop_hidden


class LayerNorm(nn.Module):
  """LayerNorm (or RMSNorm) over the last axis; statistics in float32.

  Attributes:
    config: of the stack.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    branch: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """Normalizes x, or x + dropout(branch).

    Args:
      x: [..., features].
      branch: [batch, length, features] like x.
      dropout: seeded, at whose hidden rate the branch is dropped; the masks
        are those of `drop_hidden` in place 0.

    Returns:
      The same shape and dtype.
    """

    def vector(name, init):
      init = nn.with_logical_partitioning(init, ('embed',))
      return self.param(name, init, (x.shape[-1],), jnp.float32)

    scale = vector('scale', initializers.ones)
    if self.config.norm == 'rms':
      if branch is not None:
        x = x + drop_hidden(branch, dropout, 0)
      wide = x.astype(jnp.float32)
      square = jnp.mean(wide * wide, axis=-1, keepdims=True)
      y = wide * jax.lax.rsqrt(square + self.config.norm_epsilon) * scale
      return y.astype(x.dtype)
    drop = {}
    if dropout is not None:
      here = dropout.fold(0)
      drop = {
        'dropout_rate': here.hidden,
        'seed': here.seed,
        'rows': here.rows,
      }
    return ops.layer_norm(
      x,
      scale,
      vector('bias', initializers.zeros),
      self.config.norm_epsilon,
      branch=branch,
      backend=self.config.layer_norm_backend,
      **drop,
    )
