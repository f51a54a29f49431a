# SPDX-License-Identifier: Apache-2.0
"""Attention with relative bias, segments and dropout by counter hash."""

import functools
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
  axis: str | None = None,
  backend: str = 'auto',
  **kwargs,
) -> jax.Array:
  """See `reference.attention`, which lists the keyword arguments.

  Args:
    q: [batch, queries, heads, head_dim].
    k: [batch, keys, heads, head_dim].
    v: [batch, keys, heads, head_dim].
    axis: mesh axis over which the heads are split, inside shard_map; only
      kernels take it, and backend must be 'pallas'.
    backend: 'auto', 'xla' or 'pallas'.
    **kwargs: see there.

  Returns:
    [batch, queries, heads, head_dim].
  """
  if axis is not None and backend != 'pallas':
    raise ValueError(f"attention: axis={axis!r} needs 'pallas'")
  kernels = {p: functools.partial(f, axis=axis) for p, f in KERNELS.items()}
  return backends.call(
    'attention', backend, reference.attention, kernels, q, k, v, **kwargs
  )
