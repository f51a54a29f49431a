# SPDX-License-Identifier: Apache-2.0
"""LayerNorm with scale and bias, or RMSNorm with a scale alone."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig


class LayerNorm(nn.Module):
  """LayerNorm (or RMSNorm) over the last axis; statistics in float32."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., features] to the same shape and dtype."""

    def vector(name, init):
      init = nn.with_logical_partitioning(init, ('embed',))
      return self.param(name, init, (x.shape[-1],), jnp.float32)

    scale = vector('scale', initializers.ones)
    if self.config.norm == 'rms':
      wide = x.astype(jnp.float32)
      square = jnp.mean(wide * wide, axis=-1, keepdims=True)
      y = wide * jax.lax.rsqrt(square + self.config.norm_epsilon) * scale
      return y.astype(x.dtype)
    return ops.layer_norm(
      x,
      scale,
      vector('bias', initializers.zeros),
      self.config.norm_epsilon,
      backend=self.config.layer_norm_backend,
    )
