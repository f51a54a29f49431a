# SPDX-License-Identifier: Apache-2.0
"""x @ w with a weight gradient in the form that CPUs multiply fastest.

Both dw = x^T g and its transpose g^T x are the same numbers. On CPU the one
whose left operand is narrower is faster; XLA would fold the transposition
back into the product, so a barrier stands between. Other platforms take the
plain form.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, dtype=None) -> jax.Array:
  """Product over the last axis of `x`, accumulated in float32.

  Args:
    x: [..., inputs].
    w: [inputs, outputs], any float dtype; multiplied in x's dtype. Its
      gradient comes in w's own dtype, not rounded to x's on the way.
    dtype: of the result; None is that of x.

  Returns:
    [..., outputs].
  """
  return _forward(x, w, dtype)[0]


def product(
  a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype, precision=None
) -> jax.Array:
  """Sums over one axis of each, in float32; [*rest of a, *rest of b]."""
  y = lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return y.astype(dtype)


def _forward(x, w, dtype):
  # Not through `matmul`: a rematerialisation policy must see the product.
  y = product(x, w.astype(x.dtype), x.ndim - 1, 0, dtype or x.dtype)
  return y, (x, w)


def _backward(dtype, residuals, g):
  del dtype  # The cotangent multiplies in x's dtype, as the forward pass did.
  x, w = residuals
  g = g.astype(x.dtype)
  dx = product(g, w.astype(g.dtype), g.ndim - 1, 1, x.dtype)
  return dx, weight_gradient(x, g, w.dtype)


def weight_gradient(x: jax.Array, g: jax.Array, dtype) -> jax.Array:
  """[inputs, outputs]: the sum over leading axes of x [.., i] * g [.., o]."""
  x = x.reshape(-1, x.shape[-1])
  g = g.reshape(-1, g.shape[-1])

  def plain(x, g):
    return product(x, g, 0, 0, dtype)

  def narrow_left(x, g):
    if x.shape[-1] <= g.shape[-1]:
      return lax.optimization_barrier(plain(x, g))
    return lax.optimization_barrier(product(g, x, 0, 0, dtype)).T

  return lax.platform_dependent(x, g, cpu=narrow_left, default=plain)


matmul.defvjp(_forward, _backward)
