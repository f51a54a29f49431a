# SPDX-License-Identifier: Apache-2.0
"""Batches of this project's datasets as T5X asks for them."""

from typing import Any

import numpy as np
from clu.data import dataset_iterator

from metro_jax.training import prefetch


class Batches(dataset_iterator.DatasetIterator):
  """The batches of a dataset, for T5X to learn their shapes from."""

  def __init__(
    self, dataset: prefetch.Dataset, rows: slice, steps: int | None = None
  ):
    """Takes the rows of this host, and how many batches to end after."""
    self._dataset, self._rows, self._steps = dataset, rows, steps
    self.reset()

  def reset(self) -> None:
    """Back to the first batch."""
    self._step = 0

  def __iter__(self) -> 'Batches':
    # T5X iterates once for each evaluation.
    if self._steps is not None:
      self.reset()
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._steps is not None and self._step >= self._steps:
      raise StopIteration
    self._step += 1
    return dict(self._dataset.batch(self._step - 1, self._rows))

  @property
  def element_spec(self) -> dict[str, dataset_iterator.ArraySpec]:
    """Shapes of this host's part of a batch."""
    return {
      name: dataset_iterator.ArraySpec(x.dtype, x.shape)
      for name, x in self._dataset.batch(0, self._rows).items()
    }

  def save(self, filename: Any) -> None:
    """Nothing: a batch is a function of the step."""

  restore = save


def get_dataset(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Any,
  *,
  dataset: prefetch.Dataset,
  steps: int | None = None,
  **unused: Any,
) -> Batches:
  """`get_dataset_fn` of T5X for a dataset of this project."""
  del cfg, feature_converter_cls, unused
  rows = dataset.batch_size // num_shards
  part = slice(shard_id * rows, (shard_id + 1) * rows)
  return Batches(dataset, part, steps)


def get_eval_datasets(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Any,
  *,
  dataset: prefetch.Dataset,
  **unused: Any,
) -> dict[str, Batches]:
  """`train_eval_get_dataset_fn` of T5X for a dataset of this project."""
  of_host = (cfg, shard_id, num_shards, feature_converter_cls)
  batches = get_dataset(*of_host, dataset=dataset, steps=eval_steps, **unused)
  return {'validation': batches}
