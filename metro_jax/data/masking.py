# SPDX-License-Identifier: Apache-2.0
"""Masks of a fixed count, drawn for a whole batch at once.

An example with n maskable tokens has exactly max(1, round(rate * n)) of them
masked, so the model's static number of predictions is never overrun. Each
position gets a hash of (seed, epoch, index, position); the positions with the
smallest hashes are the mask: a uniform draw without replacement that any
process can repeat.
"""

import numpy as np

from metro_jax.data import hashing, vocabularies

_STREAM = 2
_DISGUISE_STREAM = 16
_ORDINARY = len(vocabularies.SPECIAL_PIECES)  # The first id that is text.


def max_predictions(length: int, rate: float, special: bool = False) -> int:
  """The most tokens that a row of `length` can have masked.

  Args:
    length: row length, [CLS] and [SEP] included.
    rate: fraction of the maskable tokens that is masked.
    special: whether [CLS] and [SEP] may be masked too.
  """
  return int(mask_counts(np.array(length if special else length - 2), rate))


def mask_counts(maskable: np.ndarray, rate: float) -> np.ndarray:
  """How many of n tokens are masked: max(1, round(rate * n)), at most n.

  Halves round up, and nothing is masked at rate 0.

  Args:
    maskable: int array [...] of token counts n.
    rate: fraction of them to mask.

  Returns:
    int64 array [...].
  """
  # The small term keeps 0.15 * 10 = 1.4999... on the side of 1.5.
  counts = np.floor(rate * maskable + 0.5 + 1e-9).astype(np.int64)
  return np.minimum(np.maximum(counts, 1 if rate > 0 else 0), maskable)


def draw_masks(
  maskable: np.ndarray,
  rate: float,
  seed: int,
  epoch: np.ndarray,
  index: np.ndarray,
) -> np.ndarray:
  """Chooses which tokens to mask.

  Args:
    maskable: bool array [batch, length], False at specials and padding.
    rate: fraction of the maskable tokens to mask.
    seed: the seed of the masks.
    epoch: int array [batch].
    index: int array [batch]: which example each row is.

  Returns:
    bool array [batch, length], True at masked positions.
  """
  counts = mask_counts(np.count_nonzero(maskable, axis=1), rate)
  key = hashing.keys(seed, _STREAM, epoch, index)
  return choose(maskable, counts, key)


def choose(
  allowed: np.ndarray, counts: np.ndarray, row: np.ndarray
) -> np.ndarray:
  """A uniform draw without replacement in each row.

  Args:
    allowed: bool array [batch, length]: among which places.
    counts: int array [batch]: how many of them, at most all.
    row: uint32 array [batch], a key for each row.

  Returns:
    bool array [batch, length], True at the chosen places.
  """
  batch, length = allowed.shape
  place = np.arange(length, dtype=np.uint32)
  draws = hashing.mix(place * np.uint32(0x9E3779B1))[None] + row[:, None]
  hashing.mix(draws)
  # The position in the low bits breaks ties, so that a count is exact.
  low = np.uint32((1 << max(1, (length - 1).bit_length())) - 1)
  draws &= ~low
  draws |= place
  np.copyto(draws, np.uint32(0xFFFFFFFF), where=~allowed)
  if not counts.any():
    return np.zeros((batch, length), bool)
  highest = int(counts.max())
  # Only the smallest few are sorted: masks are a small part of a row.
  smallest = np.partition(draws, highest - 1, axis=1)[:, :highest]
  if (counts != highest).any():
    smallest = np.sort(smallest, axis=1)
    threshold = smallest[np.arange(batch), np.maximum(counts, 1) - 1]
  else:
    threshold = smallest[:, highest - 1]
  chosen = draws <= threshold[:, None]
  chosen &= allowed
  # Of a row that is to have none, the threshold is one draw too high.
  chosen &= counts[:, None] > 0
  return chosen


def disguise(
  original: np.ndarray,
  masked: np.ndarray,
  kept: float,
  random: float,
  ordinary: int,
  seed: int,
  epoch: np.ndarray,
  index: np.ndarray,
) -> np.ndarray:
  """What is read at masked positions: mostly [MASK].

  BERT keeps a tenth of the masked tokens as they are and puts any token in
  the place of another tenth; all of them are to be predicted.

  Args:
    original: int32 array [batch, length].
    masked: bool array [batch, length].
    kept: fraction of the masked tokens that stay.
    random: fraction that become a token of the vocabulary, all ids alike.
    ordinary: the first id after those of text.
    seed: the seed of the masks.
    epoch: int array [batch].
    index: int array [batch]: which example each row is.

  Returns:
    int32 array [batch, length].
  """
  inputs = np.where(masked, np.int32(vocabularies.MASK), original)
  if not kept and not random:
    return inputs
  row, place = np.nonzero(masked)
  key = hashing.keys(seed, _DISGUISE_STREAM, epoch[row], index[row], place)
  u = key / 2.0**32
  any_token = _ORDINARY + hashing.mix(key.copy()) % (ordinary - _ORDINARY)
  drawn = np.where(u < kept + random, any_token, vocabularies.MASK)
  inputs[row, place] = np.where(u < kept, original[row, place], drawn)
  return inputs
