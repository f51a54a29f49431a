# SPDX-License-Identifier: Apache-2.0
"""LayerNorm with scale and bias."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig


class LayerNorm(nn.Module):
  """LayerNorm over the last axis; statistics in float32."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., features] to the same shape and dtype."""

    def vector(name, init):
      init = nn.with_logical_partitioning(init, ('embed',))
      return self.param(name, init, (x.shape[-1],), jnp.float32)

    return ops.layer_norm(
      x,
      vector('scale', initializers.ones),
      vector('bias', initializers.zeros),
      self.config.norm_epsilon,
      backend=self.config.layer_norm_backend,
    )
