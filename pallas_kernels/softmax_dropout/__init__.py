# SPDX-License-Identifier: Apache-2.0
"""Bias + mask + softmax + dropout in one op (METRO-LM Table 5)."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.softmax_dropout import reference

KERNELS: dict[str, Callable] = {}  # Platform to kernel.


def softmax_dropout(
  logits: jax.Array, *, backend: str = 'auto', **kwargs
) -> jax.Array:
  """See `reference.softmax_dropout`, which lists the keyword arguments."""
  return backends.call(
    'softmax_dropout',
    backend,
    reference.softmax_dropout,
    KERNELS,
    logits,
    **kwargs,
  )
