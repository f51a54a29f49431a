# SPDX-License-Identifier: Apache-2.0
"""Attention with relative bias, segments and dropout by counter hash."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.attention import gpu, reference
from pallas_kernels.attention.bias import PositionBias as PositionBias

# Platform to kernel.
KERNELS: dict[str, Callable] = {'gpu': gpu.attention}


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  backend: str = 'auto',
  **kwargs,
) -> jax.Array:
  """See `reference.attention`, which lists the keyword arguments."""
  return backends.call(
    'attention', backend, reference.attention, KERNELS, q, k, v, **kwargs
  )
