# SPDX-License-Identifier: Apache-2.0
"""Bias + mask + softmax + dropout in one op (METRO-LM Table 5)."""

import functools
from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.softmax_dropout import gpu, reference, rowwise, tpu

# Platform to kernel.
KERNELS: dict[str, Callable] = {
  'gpu': rowwise.make(gpu),
  'tpu': rowwise.make(tpu),
}


def softmax_dropout(
  logits: jax.Array,
  *,
  axis: str | None = None,
  backend: str = 'auto',
  **kwargs,
) -> jax.Array:
  """See `reference.softmax_dropout`, which lists the keyword arguments.

  Args:
    logits: [batch, heads, queries, keys].
    axis: mesh axis over which the heads are split, inside shard_map; only
      kernels take it, and backend must be 'pallas'.
    backend: 'auto', 'xla' or 'pallas'.
    **kwargs: see there.

  Returns:
    [batch, heads, queries, keys].
  """
  if axis is not None and backend != 'pallas':
    raise ValueError(f"softmax_dropout: axis={axis!r} needs 'pallas'")
  kernels = {p: functools.partial(f, axis=axis) for p, f in KERNELS.items()}
  return backends.call(
    'softmax_dropout',
    backend,
    reference.softmax_dropout,
    kernels,
    logits,
    **kwargs,
  )
