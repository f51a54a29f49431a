# SPDX-License-Identifier: Apache-2.0
"""Sequence contrastive learning with crops (COCO-LM)."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from metro_jax import metrics, ops
from metro_jax.errors import UserError
from metro_jax.modules import EncoderOutput
from metro_jax.pretrain.corruption import Corrupted, MaskedTokens
from metro_jax.pretrain.objectives import LossTerm

if TYPE_CHECKING:
  from metro_jax.pretrain.pretrainer import Pretrainer


@dataclasses.dataclass(frozen=True)
class SequenceContrastive:
  """A corrupted sequence is nearer to its own crop than to other sequences.

  Each row gives two vectors: of the first token of the corrupted sequence and
  of the first token of a crop of the original, both through the projection
  head and of unit length. Every vector is to find its partner among all
  others of the batch: cross entropy of cosines over the temperature.

  The others are those of the same microbatch: this is the one objective whose
  loss depends on how a batch is sliced. Of a packed row the first segment
  counts.

  Attributes:
    weight: factor in the loss.
    crop: length of the crop as a fraction of the sequence.
    temperature: tau.
  """

  name: ClassVar[str] = 'scl'
  weight: float = 1.0
  crop: float = 0.9
  temperature: float = 1.0

  def __post_init__(self):
    if not 0 < self.crop <= 1:
      raise UserError(f'SequenceContrastive.crop: {self.crop} is not in (0, 1]')
    if self.temperature <= 0:
      raise UserError(
        f'SequenceContrastive.temperature: {self.temperature} must be over 0'
      )

  def count(self, masked: MaskedTokens) -> jax.Array:
    """Rows that are not empty."""
    return jnp.sum(masked.valid[:, 0], dtype=jnp.float32)

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """See `Objective`."""
    del length, slots
    return {'sequence': 2, 'main': 1}

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: EncoderOutput, corrupted: Corrupted
  ) -> LossTerm:
    """See `Objective`."""
    masked = corrupted.masked
    cropped = crop(masked, self.crop, pretrainer.seed())
    other = pretrainer.encode(cropped.tokens, cropped, corrupted.train)
    first = [x.encoded[:, 0] for x in (outputs, other)]
    z = pretrainer.sequence_features(jnp.concatenate(first)).astype(jnp.float32)
    z *= jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)
    there = jnp.tile(masked.valid[:, 0], 2)
    cosines = jnp.einsum('id,jd->ij', z, z) / self.temperature
    possible = there & ~jnp.eye(len(z), dtype=bool)
    logits = jnp.where(possible, cosines, -1e9)
    partner = jnp.roll(jnp.arange(len(z)), len(z) // 2)
    own = jnp.take_along_axis(logits, partner[:, None], axis=1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=1) - own
    found = jnp.argmax(logits, axis=1) == partner
    return LossTerm(
      jnp.sum(loss, where=there) / 2,
      {'scl_accuracy': metrics.Mean.of(found, there)},
    )


def crop(
  masked: MaskedTokens, fraction: float, seed: jax.Array
) -> MaskedTokens:
  """A contiguous part of each row's original, moved to the row's start.

  It may begin anywhere, so [CLS] is often not in it.

  Args:
    masked: the batch.
    fraction: of the row's tokens that remain, rounded down.
    seed: uint32 scalar.

  Returns:
    The parts as an unmasked batch of the same shape.
  """
  length = masked.tokens.shape[1]
  place = jnp.arange(length)
  whole = jnp.sum(masked.segment_ids == 1, axis=1)
  # A little more than the product, which float32 may have rounded down.
  kept = jnp.floor(whole * fraction + 1e-4).astype(jnp.int32)
  kept = jnp.clip(kept, jnp.minimum(whole, 1), whole)
  zero = jnp.uint32(0)
  u = ops.random_bits.uniform(seed, masked.row_ids, zero, zero)
  start = jnp.floor(u * (whole - kept + 1)).astype(jnp.int32)
  source = jnp.minimum(start[:, None] + place, length - 1)
  inside = place < kept[:, None]
  tokens = jnp.take_along_axis(masked.original, source, axis=1)
  return MaskedTokens.from_batch(
    {
      'encoder_input_tokens': jnp.where(inside, tokens, 0),
      'encoder_segment_ids': inside.astype(jnp.int32),
      'encoder_positions': jnp.where(inside, place, 0),
      'row_ids': masked.row_ids,
    },
    max_predictions=1,
  )
