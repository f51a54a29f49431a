# SPDX-License-Identifier: Apache-2.0
"""LayerNorm, the definition: statistics in float32."""

import jax
import jax.numpy as jnp
from jax import lax


def layer_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

  Args:
    x: [..., features], float32 or bfloat16.
    scale: [features].
    bias: [features].
    epsilon: added to the (biased) variance.

  Returns:
    [..., features], in x's dtype.
  """
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  centred = wide - mean
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  y = centred * lax.rsqrt(variance + epsilon)
  y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
  return y.astype(x.dtype)
