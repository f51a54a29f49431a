# SPDX-License-Identifier: Apache-2.0
"""T5's pretraining task: restore the spans that sentinels stand for.

Two styles of the same task:

't5': the text without [CLS], exact spans (see `spans.exact`), then [SEP].
  The target is sentinel, span, sentinel, span, ..., [SEP].
'metro_t5': METRO-T5's "T5 (ours)". The row as METRO models read it, scattered
  spans (see `spans.scattered`); the target ends with [MASK], which is its
  start token as well.
"""

import os
from typing import Any

import numpy as np

from metro_jax.data import hashing, spans, vocabularies
from metro_jax.data.token_dataset import TokenDataset
from metro_jax.errors import UserError

VERSION = 1
STYLES = ('t5', 'metro_t5')
TARGETS = ('spans', 'all')
_SPECIALS = 2  # [CLS] and [SEP] of a row.


def end_id(style: str) -> int:
  """The token that ends a target."""
  _check_choice('style', style, STYLES)
  return vocabularies.SEP if style == 't5' else vocabularies.MASK


def row_length(
  length: int, style: str = 't5', rate: float = 0.15, mean_span: float = 3.0
) -> int:
  """Length of the rows whose corrupted inputs have at most `length` tokens.

  What to bind `TokenDataset.length` to: 570 for T5's inputs of 512 tokens,
  which hold 568 tokens of text.
  """
  _check_choice('style', style, STYLES)
  if style != 't5':
    return length
  sizes = np.arange(2, 4 * length)
  noise, count = spans.exact_counts(sizes, rate, mean_span)
  inputs = sizes - noise + count + 1
  fits = sizes[np.maximum.accumulate(inputs) <= length]
  if not len(fits):
    raise UserError(f'LENGTH = {length}: too short to hold a span; give more')
  return int(fits[-1]) + _SPECIALS


def target_length(
  length: int,
  style: str = 't5',
  rate: float = 0.15,
  mean_span: float = 3.0,
  targets: str = 'spans',
) -> int:
  """The most tokens of a target, for inputs of at most `length`.

  114 for T5's inputs of 512; what the model's decoder must have positions for.
  """
  _check_choice('targets', targets, TARGETS)
  row = row_length(length, style, rate, mean_span)
  text = row - _SPECIALS
  if targets == 'all':
    return text + 1 if style == 't5' else row
  if style == 't5':
    noise, count = spans.exact_counts(np.array(text), rate, mean_span)
    return int(noise + count + 1)
  masked, sentinels = spans.scattered_limits(row, rate)
  return masked + sentinels + 1


class SpanCorruption:
  """Text-to-text batches from the rows of a `TokenDataset`.

  Attributes:
    dataset: where the rows come from; its own masks are not used.
    batch_size: rows of the global batch.
    length: tokens of an input.
    target_length: tokens of a target.
    vocab_size: ids are less than this.
    fingerprint: identity of the data, its order and its corruption.
  """

  def __init__(
    self,
    dataset: TokenDataset,
    style: str = 't5',
    rate: float = 0.15,
    mean_span: float = 3.0,
    targets: str = 'spans',
    length: int | None = None,
  ):
    """Checks that everything fits.

    Args:
      dataset: not packed, with a vocabulary that has sentinels.
      style: 't5' or 'metro_t5'; see above.
      rate: fraction of the tokens in spans, before METRO-T5's spans merge.
      mean_span: tokens per span in style 't5'; METRO-T5's have 3.
      targets: 'spans', or 'all' to decode the whole original.
      length: most tokens of an input; `dataset.length` must be `row_length` of
        it. None is what the dataset's rows allow.
    """
    if dataset.packing:
      raise UserError(
        'SpanCorruption.dataset: corrupts one text per row; set PACKING = False'
      )
    if not 0 < rate < 1 or mean_span < 1:
      raise UserError(
        f'SpanCorruption.rate, mean_span: {rate}, {mean_span}; give a fraction'
        ' between 0 and 1, and 1 or more tokens'
      )
    if length is None:
      length = _input_length(dataset.length, style, rate, mean_span)
    wanted = row_length(length, style, rate, mean_span)
    if dataset.length != wanted:
      raise UserError(
        f'SpanCorruption.length: inputs of {length} need rows of {wanted}, and'
        f' TokenDataset.length is {dataset.length}; bind it to'
        ' @data.row_length()'
      )
    self.dataset, self.style, self.targets = dataset, style, targets
    self.rate, self.mean_span, self.length = rate, mean_span, length
    self.target_length = target_length(length, style, rate, mean_span, targets)
    self.end_id = end_id(style)
    self.batch_size = dataset.batch_size
    self.vocab_size = dataset.vocab_size
    self.fingerprint = hashing.short_hash(
      VERSION, dataset.fingerprint, style, rate, mean_span, targets, length
    )
    self._sentinels = self._find_sentinels()

  def _find_sentinels(self) -> np.ndarray:
    """Their ids in order of use; index 0 is the first span's."""
    vocabulary = self.dataset.vocabulary
    row = self.dataset.length
    if self.style == 't5':
      sizes = np.arange(row - _SPECIALS + 1)
      most = int(spans.exact_counts(sizes, self.rate, self.mean_span)[1].max())
    else:
      most = spans.scattered_limits(row, self.rate)[1]
    if vocabulary.extra_ids < most:
      raise UserError(
        f'vocabulary {vocabulary.path}: its {vocabulary.extra_ids} sentinels'
        f' are fewer than the {most} spans that an input may have; train one'
        f' with EXTRA_IDS = {most} or more'
      )
    return np.array([vocabulary.sentinel_id(i) for i in range(most)], np.int32)

  @property
  def steps_per_epoch(self) -> int:
    """Batches that show every row once."""
    return self.dataset.steps_per_epoch

  def position(self, step: int) -> dict[str, int]:
    """Where the stream is before `step`: epoch, and example within it."""
    return self.dataset.position(step)

  def examples(
    self, step: int, rows: slice | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and row number of the rows of a batch, int64 [rows] each."""
    return self.dataset.examples(step, rows)

  def save_assets(self, model_dir: str | os.PathLike) -> None:
    """Copies vocabulary.model there, with a JSON of what it is."""
    self.dataset.save_assets(model_dir)

  def describe(self) -> dict[str, Any]:
    """What a person wants to know of this dataset, as plain values."""
    return self.dataset.describe() | {
      'style': self.style,
      'length': self.length,
      'target_length': self.target_length,
      'fingerprint': self.fingerprint,
    }

  def batch(
    self, step: int, rows: slice | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some of its rows.

    Args:
      step: which batch, from 0; any number, in any order.
      rows: which rows of the global batch; None for all.

    Returns:
      encoder_input_tokens, encoder_segment_ids (0 = padding),
      encoder_positions: int32 [rows, length]; decoder_target_tokens,
      decoder_segment_ids, decoder_positions: int32 [rows, target_length];
      decoder_loss_weights: float32, 1 where there is a token.
    """
    epoch, index = self.dataset.examples(step, rows)
    tokens, segments, _, _ = self.dataset.originals(index)
    sizes = segments.sum(axis=1, dtype=np.int64)
    if self.style == 't5':  # The text alone.
      tokens, sizes = tokens[:, 1:-1], np.maximum(sizes - _SPECIALS, 0)
    masked, empty = self._noise(sizes, tokens.shape[1], epoch, index)
    inputs, targets = self._parts(tokens, sizes, masked, empty)
    batch = {}
    for stream, name, (out, length) in (
      ('encoder', 'input_tokens', _padded(*inputs, self.length)),
      ('decoder', 'target_tokens', _padded(*targets, self.target_length)),
    ):
      place = np.arange(out.shape[1], dtype=np.int32)
      used = (place < length[:, None]).astype(np.int32)
      batch[f'{stream}_{name}'] = out
      batch[f'{stream}_segment_ids'] = used
      batch[f'{stream}_positions'] = place * used
    weights = batch['decoder_segment_ids'].astype(np.float32)
    return batch | {'decoder_loss_weights': weights}

  def _noise(self, sizes, width, epoch, index):
    seed = self.dataset.seed
    if self.style == 't5':
      masked = spans.exact(
        sizes, width, self.rate, self.mean_span, seed, epoch, index
      )
      return masked, np.zeros_like(masked)
    return spans.scattered(sizes, width, self.rate, seed, epoch, index)

  def _parts(self, tokens, sizes, masked, empty):
    """Values and which of them to keep, of inputs and of targets.

    Before each token is room for a sentinel, behind the last one for an end.
    """
    rows, width = tokens.shape
    real = np.arange(width) < sizes[:, None]
    begins = empty | (masked & ~np.pad(masked[:, :-1], ((0, 0), (1, 0))))
    number = np.maximum(np.cumsum(begins, axis=1) - 1, 0)
    sentinel = self._sentinels[number] if len(self._sentinels) else number
    values = np.stack([sentinel, tokens], axis=2).reshape(rows, -1)
    there = (sizes > 0)[:, None]  # A row of padding has no end.

    def part(with_sentinels, body, end):
      keep = np.stack([begins & with_sentinels, body], axis=2)
      keep = np.concatenate([keep.reshape(rows, -1), there & (end > 0)], axis=1)
      last = np.full((rows, 1), end, np.int32)
      return np.concatenate([values, last], axis=1), keep

    inputs_end = vocabularies.SEP if self.style == 't5' else 0
    inputs = part(True, real & ~masked, inputs_end)
    if self.targets == 'spans':
      return inputs, part(True, real & masked, self.end_id)
    # A row of METRO models ends with [SEP] already.
    return inputs, part(False, real, inputs_end)


def _padded(
  values: np.ndarray, keep: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Kept values [batch, n], moved to the left: [batch, length], and sizes."""
  out = np.zeros((len(values), length), np.int32)
  rows, columns = np.nonzero(keep)
  place = np.cumsum(keep, axis=1)[rows, columns] - 1
  out[rows, place] = values[rows, columns]
  return out, keep.sum(axis=1)


def _input_length(row: int, style: str, rate: float, mean_span: float) -> int:
  """Most tokens of the inputs that rows of this length become."""
  _check_choice('style', style, STYLES)
  if style != 't5':
    return row
  sizes = np.arange(2, row - _SPECIALS + 1)
  noise, count = spans.exact_counts(sizes, rate, mean_span)
  return int((sizes - noise + count + 1).max())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise UserError(f'SpanCorruption.{name}: {value!r} is not one of {choices}')
