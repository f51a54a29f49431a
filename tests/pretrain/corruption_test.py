# SPDX-License-Identifier: Apache-2.0
import numpy as np

from metro_jax.pretrain import MaskedTokens

# Row 0 has 3 masks, row 1 has 1 and ends in padding, row 2 has none.
ORIGINAL = np.array(
  [[2, 11, 12, 13, 14, 3], [2, 21, 22, 3, 0, 0], [2, 31, 32, 33, 34, 3]],
  np.int32,
)
WEIGHTS = np.array(
  [[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.float32
)
BATCH = {
  'encoder_input_tokens': np.where(WEIGHTS > 0, 4, ORIGINAL),
  'encoder_target_tokens': ORIGINAL,
  'encoder_loss_weights': WEIGHTS,
}


def test_slots_are_the_masked_positions_in_order():
  masked = MaskedTokens.from_batch(BATCH, max_predictions=4)
  np.testing.assert_array_equal(
    masked.weights, [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
  )
  used = np.asarray(masked.weights) > 0
  np.testing.assert_array_equal(
    np.asarray(masked.masked_positions)[used], [1, 3, 4, 2]
  )
  np.testing.assert_array_equal(
    np.asarray(masked.targets)[used], [11, 13, 14, 22]
  )
  np.testing.assert_array_equal(masked.is_masked, WEIGHTS > 0)
  np.testing.assert_array_equal(masked.valid, ORIGINAL > 0)
  np.testing.assert_array_equal(masked.row_ids, [0, 1, 2])
  assert masked.dropped == 0


def test_fill_replaces_masked_positions_only():
  masked = MaskedTokens.from_batch(BATCH, max_predictions=4)
  ids = np.array(
    [[41, 42, 43, 99], [51, 99, 99, 99], [99, 99, 99, 99]], np.int32
  )
  np.testing.assert_array_equal(
    masked.fill(ids),
    [[2, 41, 12, 42, 43, 3], [2, 21, 51, 3, 0, 0], [2, 31, 32, 33, 34, 3]],
  )


def test_gather_takes_hidden_states_too():
  masked = MaskedTokens.from_batch(BATCH, max_predictions=4)
  h = np.stack([ORIGINAL, -ORIGINAL], axis=-1).astype(np.float32)
  gathered = np.asarray(masked.gather(h))
  assert gathered.shape == (3, 4, 2)
  np.testing.assert_array_equal(gathered[0, :3, 1], [-11, -13, -14])
  assert np.isfinite(gathered).all()


def test_a_mask_without_a_slot_is_as_if_it_had_not_been_drawn():
  kept = WEIGHTS.copy()
  kept[0, 4] = 0
  fewer = {
    **BATCH,
    'encoder_input_tokens': np.where(kept > 0, 4, ORIGINAL),
    'encoder_loss_weights': kept,
  }
  over = MaskedTokens.from_batch(BATCH, max_predictions=2)
  exact = MaskedTokens.from_batch(fewer, max_predictions=2)
  assert over.dropped == 1 and exact.dropped == 0
  for name in ('tokens', 'slot', 'masked_positions', 'weights', 'original'):
    np.testing.assert_array_equal(getattr(over, name), getattr(exact, name))


def test_masks_on_padding_do_not_count():
  batch = {**BATCH, 'encoder_loss_weights': np.ones_like(WEIGHTS)}
  masked = MaskedTokens.from_batch(batch)
  np.testing.assert_array_equal(masked.is_masked, ORIGINAL > 0)


def test_more_slots_than_positions_are_never_made():
  assert MaskedTokens.from_batch(BATCH, 100).weights.shape == (3, 6)
  assert MaskedTokens.from_batch(BATCH).weights.shape == (3, 6)


def test_tokens_alone_are_an_unmasked_batch():
  masked = MaskedTokens.from_batch({'encoder_input_tokens': ORIGINAL})
  np.testing.assert_array_equal(masked.tokens, ORIGINAL)
  assert not np.asarray(masked.is_masked).any()
  np.testing.assert_array_equal(masked.positions[0], np.arange(6))


def test_packed_batches_keep_their_segments():
  segments = np.array([[1, 1, 1, 2, 2, 0]] * 3, np.int32)
  positions = np.array([[0, 1, 2, 0, 1, 0]] * 3, np.int32)
  masked = MaskedTokens.from_batch(
    {
      **BATCH,
      'encoder_segment_ids': segments,
      'encoder_positions': positions,
    }
  )
  np.testing.assert_array_equal(masked.segment_ids, segments)
  np.testing.assert_array_equal(masked.positions, positions)
  np.testing.assert_array_equal(masked.valid, segments > 0)
