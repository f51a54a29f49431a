# SPDX-License-Identifier: Apache-2.0
"""Tiles of the attention matrix: what kernels of all platforms share."""

import dataclasses

import jax
import jax.numpy as jnp

# As in `softmax_dropout/reference.py`: a fully masked row gives zeros.
MASKED = -1e30
LOWEST_MAXIMUM = -1e20
LEAST_MASS = 1e-30


@dataclasses.dataclass(frozen=True)
class How:
  """What a kernel is compiled for.

  Attributes:
    scale: of the products.
    causal: whether query i sees only keys 0..i.
    vector: whether there is a relative bias.
    reset: whether [CLS] has bias scalars of its own.
    dropout: whether there is dropout.
    interpret: run as plain JAX.
  """

  scale: float
  causal: bool
  vector: bool
  reset: bool
  dropout: bool
  interpret: bool


def code(segments: jax.Array, first: jax.Array) -> jax.Array:
  """Segment and "is a [CLS]" in one int32; 0 at padding."""
  return jnp.where(segments == 0, 0, 2 * segments + first)


def is_first(codes: jax.Array) -> jax.Array:
  """Whether a position is the [CLS] of its segment."""
  return (codes & 1) == 1


def allowed(q_codes: jax.Array, k_codes: jax.Array) -> jax.Array:
  """Whether query and key lie in one segment that is not padding."""
  q, k = q_codes >> 1, k_codes >> 1
  return (q == k) & (q != 0)


def softmax(x: jax.Array) -> jax.Array:
  """Of whole rows of float32 logits; zeros where all are MASKED."""
  peak = jnp.max(x, axis=1, keepdims=True)
  p = jnp.exp(x - jnp.maximum(peak, LOWEST_MAXIMUM))
  return p / jnp.maximum(jnp.sum(p, axis=1, keepdims=True), LEAST_MASS)


def softmax_gradient(p: jax.Array, dp: jax.Array) -> jax.Array:
  """Cotangent of the logits of whole rows, from p and its cotangent."""
  return p * (dp - jnp.sum(p * dp, axis=1, keepdims=True))
