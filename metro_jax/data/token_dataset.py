# SPDX-License-Identifier: Apache-2.0
"""Batches as a pure function of (seed, step).

Rows come in the order of `EpochOrder`, masked by (seed, epoch, row).
"""

import os
import pathlib
from typing import Any

import numpy as np

from metro_jax.data import (
  epoch_order,
  files,
  hashing,
  masking,
  sources,
  spans,
  vocabularies,
)
from metro_jax.data import rows as rows_lib
from metro_jax.errors import UserError

VERSION = 1
SPLITS = ('train', 'validation', 'all')


class TokenDataset(epoch_order.EpochOrder):
  """Masked batches from a token cache, which is built on first use.

  Attributes:
    batch_size: rows of the global batch.
    length: tokens in a row, [CLS] and [SEP] included.
    vocabulary: the vocabulary.
    vocab_size: its number of ids.
    num_examples: rows in an epoch.
    fingerprint: identity of the data and its order; a resumed run must match.
  """

  def __init__(
    self,
    source: 'str | sources.Source',
    split: str = 'train',
    length: int = 512,
    batch_size: int = 256,
    seed: int = 0,
    vocabulary: 'str | vocabularies.Vocabulary | None' = None,
    vocabulary_size: int = 8192,
    packing: bool = False,
    mask_rate: float = 0.15,
    mask_special: bool = False,
    shuffle: bool = True,
    data_dir: str | None = None,
    extra_ids: int = 0,
    mask_span: float | None = None,
    mask_kept: float = 0.0,
    mask_random: float = 0.0,
  ):
    """Opens (or makes) vocabulary, token cache and row index.

    Args:
      source: a registered task or mixture by name, or `TextFiles`.
      split: 'train', 'validation' or 'all'.
      length: row length L, specials included.
      batch_size: rows of the global batch B.
      seed: of the order and the masks.
      vocabulary: a vocabulary or its path; None to train one of
        `vocabulary_size` on the source's train split and keep it.
      vocabulary_size: see `vocabulary`.
      packing: put several short documents into one row.
      mask_rate: fraction of a row's tokens that is masked.
      mask_special: whether [CLS] and [SEP] may be masked.
      shuffle: a new order and new masks each epoch. False: rows in the order
        of the text, the same masks every time, and a last batch filled up with
        empty rows - for evaluation.
      data_dir: where caches go; default METRO_DATA_DIR or ~/.cache/metro_jax.
      extra_ids: sentinels at the end of a vocabulary that is to be trained.
      mask_span: mask spans of so many tokens on average, T5's way, instead
        of single tokens; the number of masked tokens is the same.
      mask_kept: fraction of the masked tokens that are read as they are.
      mask_random: fraction that are read as any token. All others become
        [MASK].
    """
    _check(split, length, batch_size, mask_rate, mask_span)
    _check_disguise(mask_kept, mask_random)
    root = files.data_dir(data_dir)
    origin = sources.resolve(source, root)
    self.batch_size, self.length, self.seed = batch_size, length, seed
    self.mask_rate, self.mask_special = mask_rate, mask_special
    self.packing, self.shuffle, self.split = packing, shuffle, split
    self.mask_span = mask_span
    self.mask_kept, self.mask_random = mask_kept, mask_random
    self.vocabulary = sources.vocabulary_for(
      origin, vocabulary, vocabulary_size, root, extra_ids
    )
    self.vocab_size = self.vocabulary.size
    self.cache = sources.cache_for(origin, split, self.vocabulary, root)
    fraction = origin.validation_fraction
    within = split if fraction is not None else 'all'
    self.rows = rows_lib.load(
      self.cache, within, fraction or 0.0, length, packing
    )
    self.num_examples = self.rows.count
    if not self.num_examples:
      raise UserError(
        f'corpus {origin.name}: no text in split {split!r}; give more text,'
        ' shorter documents (DOCUMENT) or another'
        ' TextFiles.validation_fraction'
      )
    self.fingerprint = hashing.short_hash(
      VERSION,
      rows_lib.VERSION,
      self.cache.fingerprint,
      within,
      fraction,
      length,
      batch_size,
      seed,
      packing,
      mask_rate,
      mask_special,
      shuffle,
      *([mask_span] if mask_span else []),
      *([mask_kept, mask_random] if mask_kept or mask_random else []),
    )

  @property
  def max_predictions(self) -> int:
    """The most masked tokens that any row has."""
    return masking.max_predictions(
      self.length, self.mask_rate, self.mask_special
    )

  def batch(
    self, step: int, rows: slice | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some of its rows.

    Args:
      step: which batch, from 0; any number, in any order.
      rows: which rows of the global batch; None for all.

    Returns:
      encoder_input_tokens (masked), encoder_target_tokens (original),
      encoder_segment_ids (0 = padding), encoder_positions: int32 [rows, L];
      encoder_loss_weights: float32 [rows, L], 1 where masked.
    """
    return self.masked(*self.examples(step, rows))

  def masked(
    self, epoch: np.ndarray, index: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Rows by number, as they are masked in an epoch; see `batch`.

    Args:
      epoch: int array [rows].
      index: int array [rows]; -1 is an empty row.
    """
    original, segments, positions, maskable = self.originals(index)
    drawn = (maskable, self.mask_rate, self.seed, epoch, index)
    if self.mask_span is None:
      masked = masking.draw_masks(*drawn)
    else:
      masked = spans.draw_masks(*drawn, self.mask_span)
    ordinary = self.vocab_size - self.vocabulary.extra_ids
    hidden = (self.mask_kept, self.mask_random, ordinary)
    return {
      'encoder_input_tokens': masking.disguise(
        original, masked, *hidden, self.seed, epoch, index
      ),
      'encoder_target_tokens': original,
      'encoder_loss_weights': masked.astype(np.float32),
      'encoder_segment_ids': segments,
      'encoder_positions': positions,
    }

  def originals(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows by number, as nobody has masked them; -1 is an empty row.

    Args:
      index: int array [rows].

    Returns:
      int32 tokens, segments and positions, bool maskable: [rows, L] each.
    """
    return self._packed(index) if self.packing else self._single(index)

  def _single(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of one chunk: tokens, segments, positions, maskable [rows, L]."""
    lengths = self.rows.lengths[index] * (index >= 0)
    starts = self.rows.starts[index]
    tokens = np.zeros((len(index), self.length), np.int32)
    source = self.cache.tokens
    for row, start, n in zip(
      tokens, starts.tolist(), lengths.tolist(), strict=True
    ):
      row[1 : 1 + n] = source[start : start + n]
    filled = np.flatnonzero(index >= 0)
    tokens[filled, 0] = vocabularies.CLS
    tokens[filled, 1 + lengths[filled]] = vocabularies.SEP
    place = np.arange(self.length, dtype=np.int32)
    used = (lengths + 2) * (index >= 0)
    valid = place < used[:, None]
    segments = valid.astype(np.int32)
    if self.mask_special:
      maskable = valid
    else:
      maskable = place <= lengths[:, None]
      maskable[:, 0] = False
    return tokens, segments, segments * place, maskable

  def _packed(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of several chunks: tokens, segments, positions, maskable."""
    tokens, segments, positions = np.zeros(
      (3, len(index), self.length), np.int32
    )
    maskable = np.zeros((len(index), self.length), bool)
    place = np.arange(self.length, dtype=np.int32)
    edge = int(self.mask_special)
    for row in np.flatnonzero(index >= 0):
      first, last = self.rows.bounds[index[row] : index[row] + 2].tolist()
      at = 0
      for segment, member in enumerate(range(first, last), 1):
        start, n = int(self.rows.starts[member]), int(self.rows.lengths[member])
        end = at + n + 2
        tokens[row, at] = vocabularies.CLS
        tokens[row, at + 1 : end - 1] = self.cache.tokens[start : start + n]
        tokens[row, end - 1] = vocabularies.SEP
        segments[row, at:end] = segment
        positions[row, at:end] = place[: n + 2]
        maskable[row, at + 1 - edge : end - 1 + edge] = True
        at = end
    return tokens, segments, positions, maskable

  def save_assets(self, model_dir: str | os.PathLike) -> None:
    """Copies vocabulary.model there, with a JSON of what it is."""
    self.vocabulary.save(pathlib.Path(model_dir))

  def describe(self) -> dict[str, Any]:
    """What a person wants to know of this dataset, as plain values."""
    tokens = int(np.sum(self.rows.lengths, dtype=np.int64))
    room = self.num_examples * self.length
    return {
      'split': self.split,
      'rows': self.num_examples,
      'length': self.length,
      'tokens': tokens,
      'filled': (tokens + rows_lib.SPECIALS * len(self.rows.lengths)) / room,
      'steps_per_epoch': self.steps_per_epoch,
      'fingerprint': self.fingerprint,
      'cache': str(self.cache.path),
    }


def _check(
  split: str,
  length: int,
  batch_size: int,
  mask_rate: float,
  mask_span: float | None,
) -> None:
  if split not in SPLITS:
    raise UserError(
      f'TokenDataset.split = {split!r}: choose one of {", ".join(SPLITS)}'
    )
  if length < 8:
    raise UserError(f'TokenDataset.length (LENGTH) = {length}: give 8 or more')
  if batch_size < 1:
    raise UserError(
      f'TokenDataset.batch_size (BATCH_SIZE) = {batch_size}: give 1 or more'
    )
  if not 0 < mask_rate < 1:
    raise UserError(
      f'TokenDataset.mask_rate (MASK_RATE) = {mask_rate}: give a fraction'
      ' between 0 and 1'
    )
  if mask_span is not None and mask_span < 1:
    raise UserError(
      f'TokenDataset.mask_span = {mask_span}: give an average of 1 token or'
      ' more, or None for single tokens'
    )


def _check_disguise(kept: float, random: float) -> None:
  if min(kept, random) < 0 or kept + random > 1:
    raise UserError(
      f'TokenDataset.mask_kept (MASK_KEPT) = {kept} and mask_random'
      f' (MASK_RANDOM) = {random}: give fractions of at most 1 together'
    )
