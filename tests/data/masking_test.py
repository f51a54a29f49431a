# SPDX-License-Identifier: Apache-2.0
"""Masks: an exact count, never where they must not be, uniform, repeatable."""

import numpy as np
import pytest
from scipy import stats

from metro_jax.data import masking


def draw(maskable, rate=0.15, seed=0, epoch=0, first=0):
  rows = len(maskable)
  return masking.draw_masks(
    maskable, rate, seed, np.full(rows, epoch), np.arange(first, first + rows)
  )


@pytest.mark.parametrize(
  'n, rate, expected',
  [
    (0, 0.15, 0),
    (1, 0.15, 1),
    (2, 0.15, 1),
    (9, 0.15, 1),
    (10, 0.15, 2),
    (126, 0.15, 19),
    (510, 0.15, 77),
    (3, 0.5, 2),
    (4, 0.9, 4),
    (5, 0.0, 0),
  ],
)
def test_counts(n, rate, expected):
  assert masking.mask_counts(np.array([n]), rate) == expected


@pytest.mark.parametrize('length', [8, 61, 128, 512])
def test_exact_count_and_only_maskable(length):
  draws = np.random.default_rng(0)
  maskable = draws.random((200, length)) < draws.random((200, 1))
  maskable[0] = False
  maskable[1] = True
  masked = draw(maskable)
  expected = masking.mask_counts(maskable.sum(1), 0.15)
  assert np.array_equal(masked.sum(1), expected)
  assert not (masked & ~maskable).any()


@pytest.mark.parametrize('rate', [0.01, 0.15, 0.5, 0.99])
def test_max_predictions_is_never_passed(rate):
  for length in (8, 33, 128):
    maskable = np.zeros((length, length), bool)
    for row in range(length):
      maskable[row, 1 : min(row + 1, length - 1)] = True
    most = masking.max_predictions(length, rate)
    assert draw(maskable, rate).sum(1).max() == most


def test_all_equal_rows_and_unequal_rows_agree():
  """The short cut for equal counts chooses what the general way chooses."""
  full = np.ones((5, 64), bool)
  mixed = np.concatenate([full, np.tri(64, dtype=bool)[:20]])
  assert np.array_equal(draw(full), draw(mixed)[:5])


def test_masks_are_fresh_each_epoch_and_repeatable():
  maskable = np.ones((64, 126), bool)
  assert np.array_equal(draw(maskable, epoch=3), draw(maskable, epoch=3))
  base = draw(maskable)
  others = (
    draw(maskable, epoch=1),
    draw(maskable, seed=1),
    draw(maskable, first=1000),
  )
  for other in others:
    # 19 of 126 at random twice: 2.9 common positions a row on average.
    assert 2.0 < (base & other).sum() / 64 < 3.8


def test_a_row_does_not_depend_on_its_batch():
  maskable = np.ones((8, 40), bool)
  whole = draw(maskable)
  for row in range(8):
    assert np.array_equal(whole[row], draw(maskable[:1], first=row)[0])


def test_positions_are_uniform():
  length, rows = 100, 20000
  masked = draw(np.ones((rows, length), bool))
  counts = masked.sum(0)
  assert stats.chisquare(counts).pvalue > 1e-4
  # Not only one by one: neighbours are masked together as chance has it.
  together = (masked[:, :-1] & masked[:, 1:]).sum()
  chance = rows * (length - 1) * (15 / 100) * (14 / 99)
  assert abs(together - chance) < 5 * np.sqrt(chance)


def disguise(kept, random, rows=400, **changes):
  """A batch of ids 5..35, masked and disguised; ids from 40 are sentinels."""
  original = np.random.default_rng(0).integers(5, 36, (rows, 64), np.int32)
  masked = draw(np.ones((rows, 64), bool), 0.5)
  place = dict(seed=0, epoch=np.zeros(rows, int), index=np.arange(rows))
  got = masking.disguise(
    original, masked, kept, random, 40, **(place | changes)
  )
  return original, masked, got


def test_most_masked_tokens_are_mask_some_are_kept_and_some_are_any_token():
  original, masked, got = disguise(0.1, 0.2)
  assert got.dtype == np.int32
  assert np.array_equal(got[~masked], original[~masked])
  was, now = original[masked], got[masked]
  n, rest = now.size, now[(now != 4) & (now != was)]
  # Ids 5..39 alike; one in 35 of the random ones happens to be the original.
  expected = {'mask': 0.7, 'same': 0.1 + 0.2 / 35, 'other': 0.2 * 34 / 35}
  seen = {
    'mask': now == 4,
    'same': now == was,
    'other': (now != 4) & (now != was),
  }
  for name, p in expected.items():
    assert abs(seen[name].mean() - p) < 5 * (p * (1 - p) / n) ** 0.5, name
  counts = np.bincount(rest, minlength=40)
  assert counts[:5].sum() == 0 and counts.size == 40
  # Ids 36..39 are never the original: a little more of them.
  weight = np.where(np.arange(5, 40) < 36, 1 - 1 / 31, 1.0)
  share = rest.size * weight / weight.sum()
  assert stats.chisquare(counts[5:], share).pvalue > 1e-4


def test_without_a_disguise_every_masked_token_is_mask():
  original, masked, got = disguise(0.0, 0.0)
  assert np.array_equal(got, np.where(masked, 4, original))


def test_disguises_are_fresh_each_epoch_and_repeatable():
  _, _, first = disguise(0.1, 0.2)
  _, _, again = disguise(0.1, 0.2)
  _, _, later = disguise(0.1, 0.2, epoch=np.ones(400, int))
  assert np.array_equal(first, again) and (first != later).any()
  # A row does not depend on its batch.
  _, _, few = disguise(0.1, 0.2, rows=3)
  _, _, more = disguise(0.1, 0.2, rows=5)
  assert np.array_equal(few, more[:3])
