# SPDX-License-Identifier: Apache-2.0
"""X_orig and X_noise: which tokens are masked, and what took their place.

A batch has L positions, of which at most P = max_predictions are masked. All
that touches the vocabulary is computed for the P masked positions of a row
("slots"), in ascending order; slots without a mask have weight 0.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax.modules import Dropout

if TYPE_CHECKING:
  from metro_jax.losses import TokenLoss
  from metro_jax.pretrain.proposal import Proposal

_PAD = 0

Batch = Mapping[str, jax.Array]


@struct.dataclass
class MaskedTokens:
  """A batch with masked positions.

  Attributes:
    tokens: int32 [batch, length], the original but for the masked positions.
    original: int32 [batch, length].
    segment_ids: int32 [batch, length]; 0 is padding.
    positions: int32 [batch, length], restarting in each segment.
    row_ids: uint32 [batch], each row's index in the global batch: what random
      draws depend on, instead of where the row happens to lie.
    slot: int32 [batch, length], which slot a masked position has, else -1.
    masked_positions: int32 [batch, slots].
    weights: float32 [batch, slots], 1 where the slot is in use.
    dropped: float32 scalar, masks of the batch that found no slot.
  """

  tokens: jax.Array
  original: jax.Array
  segment_ids: jax.Array
  positions: jax.Array
  row_ids: jax.Array
  slot: jax.Array
  masked_positions: jax.Array
  weights: jax.Array
  dropped: jax.Array

  @classmethod
  def from_batch(
    cls, batch: Batch, max_predictions: int | None = None
  ) -> 'MaskedTokens':
    """Finds the masked positions.

    A row with more masks than slots keeps its first ones. The others become
    what they would be had nobody masked them: the original token is put back,
    and no objective counts them as masked. `dropped` says how many.

    Args:
      batch: encoder_input_tokens, and, where they differ from a single
        unmasked segment of non-zero ids, encoder_target_tokens (original),
        encoder_loss_weights (non-zero where masked), encoder_segment_ids,
        encoder_positions, all [batch, length], and row_ids [batch].
      max_predictions: slots per row; None for the length.

    Returns:
      The same as a struct.
    """
    tokens = batch['encoder_input_tokens']
    rows, length = tokens.shape
    slots = min(max_predictions or length, length)
    original = batch.get('encoder_target_tokens', tokens)
    segment_ids = batch.get('encoder_segment_ids')
    if segment_ids is None:
      segment_ids = (original != _PAD).astype(jnp.int32)
    positions = batch.get('encoder_positions')
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    weights = batch.get('encoder_loss_weights', jnp.zeros((rows, length)))
    wanted = (weights > 0) & (segment_ids > 0)
    rank = jnp.cumsum(wanted, axis=1, dtype=jnp.int32)
    kept = wanted & (rank <= slots)
    # As many positions lie before the mask of slot s as have rank <= s.
    places = jnp.sum(
      rank[:, None, :] <= jnp.arange(slots)[:, None], axis=-1, dtype=jnp.int32
    )
    return cls(
      tokens=jnp.where(kept, tokens, original),
      original=original,
      segment_ids=segment_ids,
      positions=positions,
      row_ids=batch.get('row_ids', jnp.arange(rows, dtype=jnp.uint32)),
      slot=jnp.where(kept, rank - 1, -1),
      masked_positions=jnp.minimum(places, length - 1),
      weights=(places < length).astype(jnp.float32),
      dropped=jnp.sum(wanted & ~kept, dtype=jnp.float32),
    )

  @property
  def valid(self) -> jax.Array:
    """False at padding; bool [batch, length]."""
    return self.segment_ids > 0

  @property
  def is_masked(self) -> jax.Array:
    """The set M of the papers, bool [batch, length]."""
    return self.slot >= 0

  @property
  def targets(self) -> jax.Array:
    """int32 [batch, slots], the original tokens of the masked positions."""
    return self.gather(self.original)

  def gather(self, x: jax.Array) -> jax.Array:
    """What x [batch, length, ...] holds at the slots: [batch, slots, ...]."""
    index = self.masked_positions
    index = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  def fill(self, ids: jax.Array) -> jax.Array:
    """The original with int [batch, slots] at the masked positions.

    Equation 5 of METRO-LM. A gather by slot: no scatter is needed.
    """
    return jnp.where(self.is_masked, self._by_slot(ids), self.original)

  def spread(self, x: jax.Array) -> jax.Array:
    """Inverse of `gather`: [batch, slots, ...] where masked, else zero."""
    here = self.is_masked.reshape(self.slot.shape + (1,) * (x.ndim - 2))
    return jnp.where(here, self._by_slot(x), jnp.zeros((), x.dtype))

  def _by_slot(self, x: jax.Array) -> jax.Array:
    index = jnp.maximum(self.slot, 0)
    index = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  def dropout(self, rate: float, train: bool) -> Dropout | None:
    """Dropout of hidden states and attention for these rows, or None."""
    if not train or rate == 0:
      return None
    return Dropout(hidden=rate, attention=rate, rows=self.row_ids)


@struct.dataclass
class Corrupted:
  """A batch with replaced tokens: what the main model reads.

  Attributes:
    tokens: int32 [batch, length], X_noise.
    masked: what it was made from.
    proposal: where the replacements came from; None if the batch came
      corrupted.
    relaxed: float32 [batch, slots, vocabulary], what stands in for the drawn
      ids in the backward pass; None where no gradient crosses.
    sampling_loss: of the original tokens under what the replacements were
      drawn from, if that is known already.
    train: whether dropout is on.
  """

  tokens: jax.Array
  masked: MaskedTokens
  proposal: 'Proposal | None' = None
  relaxed: jax.Array | None = None
  sampling_loss: 'TokenLoss | None' = None
  train: bool = struct.field(pytree_node=False, default=False)

  @property
  def replaced(self) -> jax.Array:
    """Where X_noise differs from X_orig, bool [batch, length].

    A sample that happens to be the original replaces nothing.
    """
    return self.tokens != self.masked.original
