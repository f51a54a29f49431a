# SPDX-License-Identifier: Apache-2.0
"""Initial weights: BERT's normal, scaled by depth on demand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def normal(stddev: float | jax.Array) -> Initializer:
  """N(0, stddev^2), not truncated; `stddev` may be traced."""

  def init(key, shape, dtype=jnp.float32):
    return stddev * jax.random.normal(key, shape, dtype)

  return init


def depth_scaled(stddev: float, layer: int | jax.Array) -> Initializer:
  """Normal of stddev / sqrt(2 (layer + 1)): METRO-LM equation 10.

  The paper says neither where l starts nor which matrices are meant. Our
  reading: l counts from 0 at the input, and both matrices of the feed-forward
  network are scaled ("we scale the initialization of FFNs weights").

  Args:
    stddev: without scaling.
    layer: index of the layer, 0 nearest the input; traced under scan.

  Returns:
    An initializer.
  """
  layer = jnp.asarray(layer, jnp.float32)
  return normal(stddev * jax.lax.rsqrt(2.0 * (layer + 1.0)))


def zeros(key, shape, dtype=jnp.float32) -> jax.Array:
  """All zeros."""
  return jax.nn.initializers.zeros(key, shape, dtype)


def ones(key, shape, dtype=jnp.float32) -> jax.Array:
  """All ones."""
  return jax.nn.initializers.ones(key, shape, dtype)
