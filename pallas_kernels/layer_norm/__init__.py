# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the last axis, float32 inside, of a residual sum if asked."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.layer_norm import gpu, reference, residual, tpu

# Platform to kernel.
KERNELS: dict[str, Callable] = {
  'gpu': residual.make(gpu),
  'tpu': residual.make(tpu),
}


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float = 1e-5,
  *,
  backend: str = 'auto',
  **kwargs,
) -> jax.Array:
  """See `reference.layer_norm`, which lists the keyword arguments."""
  return backends.call(
    'layer_norm',
    backend,
    reference.layer_norm,
    KERNELS,
    x,
    scale,
    bias,
    epsilon,
    **kwargs,
  )
