# SPDX-License-Identifier: Apache-2.0
"""Language-model loss against a (tied) token table."""

import functools
from collections.abc import Callable

import jax

from pallas_kernels import backend as backends
from pallas_kernels.vocab_cross_entropy import chunked, gpu, reference, tpu
from pallas_kernels.vocab_cross_entropy.reference import Draw as Draw
from pallas_kernels.vocab_cross_entropy.reference import (
  vocab_logits as vocab_logits,
)

# Platform to kernel.
KERNELS: dict[str, Callable] = {
  'gpu': chunked.make(gpu),
  'tpu': chunked.make(tpu),
}


def vocab_cross_entropy(
  features: jax.Array,
  table: jax.Array,
  bias: jax.Array | None,
  targets: jax.Array,
  *,
  draw: Draw | None = None,
  axis: str | None = None,
  backend: str = 'auto',
) -> tuple[jax.Array, ...]:
  """See `reference.vocab_cross_entropy`.

  Args:
    features: [..., width].
    table: [vocabulary, width].
    bias: [vocabulary] or None.
    targets: int32 [...].
    draw: asks for a sample too.
    axis: mesh axis over which `table` and `bias` are split, inside shard_map;
      only kernels take it, and backend must be 'pallas'.
    backend: 'auto', 'xla' or 'pallas'.

  Returns:
    loss, log-sum-exp, most likely id and, with `draw`, a sample.
  """
  if axis is not None and backend != 'pallas':
    raise ValueError(f"vocab_cross_entropy: axis={axis!r} needs 'pallas'")
  kernels = {k: functools.partial(f, axis=axis) for k, f in KERNELS.items()}
  return backends.call(
    'vocab_cross_entropy',
    backend,
    reference.vocab_cross_entropy,
    kernels,
    features,
    table,
    bias,
    targets,
    draw=draw,
  )
