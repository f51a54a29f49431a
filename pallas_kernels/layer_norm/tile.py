# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of rows that a kernel holds whole, and its gradient.

The backward pass has x and its cotangent in fast memory anyway, so it computes
the statistics again; the forward pass stores nothing but its result.
"""

import jax
import jax.numpy as jnp
from jax import lax


def unit(
  x: jax.Array, features: int, epsilon: float, inside: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Rows with mean 0 and deviation 1.

  Args:
    x: float32 [rows, width], zero where not `inside`.
    features: how many of the `width` columns are real.
    epsilon: added to the variance.
    inside: bool, broadcastable to x; None where all columns are real.

  Returns:
    [rows, width], zero where not inside, and 1 / deviation, [rows, 1].
  """
  mean = jnp.sum(x, axis=1, keepdims=True) / features
  centred = x - mean
  if inside is not None:
    centred = jnp.where(inside, centred, 0.0)
  variance = jnp.sum(centred * centred, axis=1, keepdims=True) / features
  inverse = lax.rsqrt(variance + epsilon)
  return centred * inverse, inverse


def gradient(
  y: jax.Array, inverse: jax.Array, g: jax.Array, features: int
) -> jax.Array:
  """Cotangent of x.

  Args:
    y: float32 [rows, width], from `unit`.
    inverse: float32 [rows, 1], from `unit`.
    g: float32 [rows, width], cotangent of y; zero outside.
    features: how many of the `width` columns are real.

  Returns:
    float32 [rows, width]; columns outside hold rubbish.
  """
  mean = jnp.sum(g, axis=1, keepdims=True) / features
  along = jnp.sum(g * y, axis=1, keepdims=True) / features
  return inverse * (g - mean - y * along)


def split(how, refs: tuple) -> tuple[tuple, tuple, tuple]:
  """References behind x: of the branch, of its dropout, the others.

  Args:
    how: `residual.How`.
    refs: of a kernel, without x.

  Returns:
    No or one branch, no or three operands of dropout, the rest.
  """
  branch, drop = int(how.branch), int(how.branch) + 3 * how.dropout
  return refs[:branch], refs[branch:drop], refs[drop:]
