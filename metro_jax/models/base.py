# SPDX-License-Identifier: Apache-2.0
"""What a trainer knows of a model."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from metro_jax.metrics import BinaryHistogram, Mean

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Mean | BinaryHistogram]
Params = dict[str, Any]


class Model(Protocol):
  """A function from parameters and a batch to a loss and metrics."""

  @property
  def vocab_size(self) -> int:
    """Ids that the model can embed: 0..vocab_size - 1."""

  @property
  def max_length(self) -> int:
    """The longest sequence that the model can embed."""

  def build_batch_spec(self, batch_size: int, length: int) -> Batch:
    """A batch of zeros with all the features that the model reads."""

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Initial parameters, boxed with their logical axes."""

  def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
    """What the loss divides by, from a global batch, before it is sliced."""

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array | int,
    train: bool,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """The loss of a batch, or the part of a slice in the loss of the whole.

    Args:
      params: parameters, boxed or not.
      batch: features [batch, length], and `row_ids` uint32 [batch]: each
        row's index in the global batch (default: 0, 1, ...).
      rng: key of the step. All slices of a batch get the same: `row_ids` tell
        their rows apart.
      step: number of the step, from 0.
      train: False for evaluation, which ignores `rng` and `step`.
      normalizers: of the global batch; None if `batch` is all of it.

    Returns:
      float32 scalar, and metrics which add up over slices and batches.
    """

  def flops_per_step(self, batch_shape: tuple[int, int]) -> float:
    """Model FLOPs of a training step on a batch of [batch, length]."""

  def outputs(self, params: Params, batch: Batch) -> Mapping[str, jax.Array]:
    """Predictions of a batch, [batch, ...] each, for a dataset's `score`.

    Asked only with datasets that have a `score`; other models need none.
    """
