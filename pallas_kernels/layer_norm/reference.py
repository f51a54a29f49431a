# SPDX-License-Identifier: Apache-2.0
"""LayerNorm, the definition: statistics in float32."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dropout import dropout


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  *,
  branch: jax.Array | None = None,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

  Args:
    x: [..., features], float32 or bfloat16; [batch, length, features] with
      dropout.
    scale: [features].
    bias: [features].
    epsilon: added to the (biased) variance.
    branch: like x. What is normalized is then x + dropout(branch), a residual
      branch of a Post-LN block.
    dropout_rate: of the branch; may be traced. A Python 0 is free.
    seed: uint32 scalar, needed for dropout.
    rows: uint32 [batch], each row's index in the global batch.

  Returns:
    [..., features], in x's dtype.
  """
  if branch is not None:
    x = x + dropout(branch, dropout_rate, seed, rows)
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  centred = wide - mean
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  y = centred * lax.rsqrt(variance + epsilon)
  y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
  return y.astype(x.dtype)
