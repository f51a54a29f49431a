# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of training steps compute: shapes and batches."""

import dataclasses

import numpy as np

MASK_ID, FIRST_ID = 4, 5
MASK_RATE = 0.15


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model and a batch.

  Attributes:
    width: of both Transformers, and of the token table.
    heads: attention heads of both.
    layers: of the main model.
    auxiliary_layers: of the auxiliary.
    vocab_size: rows of the token table.
    length: tokens in a row.
    batch_size: rows.
  """

  width: int
  heads: int
  layers: int
  auxiliary_layers: int
  vocab_size: int
  length: int
  batch_size: int

  @property
  def slots(self) -> int:
    """Masked tokens in a row."""
    return round(MASK_RATE * self.length)

  @property
  def tokens(self) -> int:
    """Tokens in a batch."""
    return self.length * self.batch_size


SHAPES = {
  'tiny': Shape(128, 4, 3, 2, 4096, 64, 32),
  'mini': Shape(128, 2, 4, 2, 8192, 128, 32),
  'small': Shape(256, 4, 12, 4, 32768, 128, 32),
  'base': Shape(768, 12, 12, 4, 32768, 512, 64),
}


def batches(shape: Shape, count: int, seed: int = 0) -> list[dict]:
  """Batches of random tokens, every row full, each masked in other places."""
  rng = np.random.default_rng(seed)
  size = (shape.batch_size, shape.length)
  return [_batch(rng, shape, size) for _ in range(count)]


def _batch(
  rng: np.random.Generator, shape: Shape, size: tuple[int, int]
) -> dict[str, np.ndarray]:
  original = rng.integers(FIRST_ID, shape.vocab_size, size, np.int32)
  masked = rng.random(size).argsort(-1) < shape.slots
  return {
    'encoder_input_tokens': np.where(masked, np.int32(MASK_ID), original),
    'encoder_target_tokens': original,
    'encoder_loss_weights': masked.astype(np.float32),
    'encoder_segment_ids': np.ones(size, np.int32),
    'encoder_positions': np.broadcast_to(
      np.arange(shape.length, dtype=np.int32), size
    ).copy(),
  }
