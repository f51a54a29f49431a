# SPDX-License-Identifier: Apache-2.0
"""Batches on their devices before the step asks for them.

A dataset is a pure function of the step, so prefetching is a matter of asking
early, on another thread, and there is no iterator whose position could be
lost.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Protocol, TypeVar

import jax
import numpy as np

T = TypeVar('T')


class Dataset(Protocol):
  """What the trainer asks of data.

  Attributes:
    batch_size: Rows of a global batch.
    length: Tokens of a row.
    vocab_size: Ids are less than this.
    fingerprint: Identity of the data and its order.
  """

  batch_size: int
  length: int
  vocab_size: int
  fingerprint: str

  def batch(
    self, step: int, rows: slice | None = None
  ) -> Mapping[str, np.ndarray]:
    """Those rows of the global batch of a step: a pure function."""

  def position(self, step: int) -> Mapping[str, int]:
    """Epoch and example at which the batch of a step starts."""

  def save_assets(self, model_dir: str) -> None:
    """Puts what inference needs, the vocabulary, into a folder."""


def prefetch(
  load: Callable[[int], T], steps: range, depth: int = 2
) -> Iterator[T]:
  """Yields load(step) for each step, at most `depth` ahead of the consumer."""
  pool = futures.ThreadPoolExecutor(1, thread_name_prefix='prefetch')
  remaining = iter(steps)
  try:
    pending = deque(
      pool.submit(load, step) for step in itertools.islice(remaining, depth)
    )
    while pending:
      batch = pending.popleft().result()
      for step in itertools.islice(remaining, 1):
        pending.append(pool.submit(load, step))
      yield batch
  finally:
    pool.shutdown(cancel_futures=True)


def device_batches(
  dataset: Dataset, sharding: jax.sharding.NamedSharding, steps: range
) -> Iterator[dict[str, jax.Array]]:
  """Global batches as sharded arrays; each host loads only its own rows."""
  rows = _local_rows(sharding, dataset.batch_size)

  def load(step: int) -> dict[str, jax.Array]:
    local = dict(dataset.batch(step, rows))
    if rows is None:
      return jax.device_put(local, sharding)
    return {
      name: jax.make_array_from_process_local_data(
        sharding, x, (dataset.batch_size, *x.shape[1:])
      )
      for name, x in local.items()
    }

  return prefetch(load, steps)


def _local_rows(
  sharding: jax.sharding.NamedSharding, batch_size: int
) -> slice | None:
  """The rows of the global batch that this host's devices hold; None: all."""
  if jax.process_count() == 1:
    return None
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  parts = [index[0].indices(batch_size) for index in indices]
  return slice(min(p[0] for p in parts), max(p[1] for p in parts))
