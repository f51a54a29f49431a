# SPDX-License-Identifier: Apache-2.0
"""Attention with relative bias, segments and dropout by counter hash."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.attention import gpu, reference, tpu
from pallas_kernels.attention.bias import PositionBias as PositionBias

# Platform to kernel.
KERNELS: dict[str, Callable] = {'gpu': gpu.attention, 'tpu': tpu.attention}


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  backend: str = 'auto',
  **kwargs,
) -> jax.Array:
  """See `reference.attention`, which lists the keyword arguments.

  Args:
    q: [batch, queries, heads, head_dim].
    k: [batch, keys, heads, head_dim].
    v: [batch, keys, heads, head_dim].
    backend: 'auto', 'xla' or 'pallas'.
    **kwargs: see there. `axis` needs a kernel: that of the whole op, or that
      of the softmax.

  Returns:
    [batch, queries, heads, head_dim].
  """
  return backends.call(
    'attention', backend, reference.attention, KERNELS, q, k, v, **kwargs
  )
