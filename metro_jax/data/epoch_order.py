# SPDX-License-Identifier: Apache-2.0
"""Which row of which epoch an example of the stream is.

Example n of the stream (n = step * batch_size + row) is row
permutation(n mod size) of epoch n div size. Nothing is iterated, so a
restarted run asks for its step and has it, and each host asks for its rows of
the global batch.
"""

import numpy as np

from metro_jax.data import hashing


class EpochOrder:
  """Rows by step; what datasets that know their rows have in common.

  Attributes:
    num_examples: rows in an epoch.
    batch_size: rows of the global batch.
    seed: of the order.
    shuffle: a new order each epoch. False: the order of the rows, epoch 0
      every time, and a last batch filled up with empty rows.
  """

  num_examples: int
  batch_size: int
  seed: int
  shuffle: bool

  @property
  def steps_per_epoch(self) -> int:
    """Batches that show every row once; the last may be partly another's."""
    return -(-self.num_examples // self.batch_size)

  def position(self, step: int) -> dict[str, int]:
    """Where the stream is before `step`: epoch, and example within it."""
    if not self.shuffle:
      step %= self.steps_per_epoch
    epoch, example = divmod(step * self.batch_size, self.num_examples)
    return {'epoch': epoch, 'example': example}

  def examples(
    self, step: int, rows: slice | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and row number of the asked rows of a batch, int64 [rows] each.

    Row number -1 is an empty row.
    """
    row = np.arange(self.batch_size, dtype=np.int64)[rows or slice(None)]
    if not self.shuffle:
      index = step % self.steps_per_epoch * self.batch_size + row
      index[index >= self.num_examples] = -1
      return np.zeros_like(index), index
    epoch, place = np.divmod(
      np.int64(step) * self.batch_size + row, self.num_examples
    )
    return epoch, hashing.permute(place, self.num_examples, self.seed, epoch)
