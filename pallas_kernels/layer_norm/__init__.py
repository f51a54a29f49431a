# SPDX-License-Identifier: Apache-2.0
"""LayerNorm over the last axis, float32 inside."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.layer_norm import gpu, reference, tpu

# Platform to kernel.
KERNELS: dict[str, Callable] = {
  'gpu': gpu.layer_norm,
  'tpu': tpu.layer_norm,
}


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float = 1e-5,
  *,
  backend: str = 'auto',
) -> jax.Array:
  """See `reference.layer_norm`."""
  return backends.call(
    'layer_norm',
    backend,
    reference.layer_norm,
    KERNELS,
    x,
    scale,
    bias,
    epsilon,
  )
