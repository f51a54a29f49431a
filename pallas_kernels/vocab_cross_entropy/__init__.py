# SPDX-License-Identifier: Apache-2.0
"""Language-model loss against a (tied) token table."""

from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.vocab_cross_entropy import reference
from pallas_kernels.vocab_cross_entropy.reference import (
  vocab_logits as vocab_logits,
)

KERNELS: dict[str, Callable] = {}  # Platform to kernel.


def vocab_cross_entropy(
  features: jax.Array,
  table: jax.Array,
  bias: jax.Array | None,
  targets: jax.Array,
  *,
  backend: str = 'auto',
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `reference.vocab_cross_entropy`."""
  return backends.call(
    'vocab_cross_entropy',
    backend,
    reference.vocab_cross_entropy,
    KERNELS,
    features,
    table,
    bias,
    targets,
  )
