# SPDX-License-Identifier: Apache-2.0
"""Batches that were corrupted ahead of training: no auxiliary is needed.

The offline preprocessing of Fast-ELECTRA (section 4): what its auxiliary makes
of an epoch depends on the epoch alone, so it can be written once and read by
as many runs as wanted. `python -m metro_jax.corrupt` writes it.
"""

import functools
import os
import pathlib
from typing import Any

import numpy as np

from metro_jax.data import epoch_order, hashing, stream_files, vocabularies
from metro_jax.errors import UserError


class CorruptedStream(epoch_order.EpochOrder):
  """Corrupted batches from a stream, in the order of a `TokenDataset`.

  Attributes:
    batch_size: rows of the global batch.
    length: tokens in a row.
    vocabulary: the stream's vocabulary.
    vocab_size: its number of ids.
    num_examples: rows in an epoch.
    epochs: how many there are.
    manifest: what the stream was made from, with counts by epoch.
    fingerprint: identity of the data and its order; a resumed run must match.
  """

  def __init__(
    self,
    path: str,
    split: str = 'train',
    batch_size: int = 256,
    seed: int = 0,
    shuffle: bool = True,
    vocabulary: str | None = None,
    length: int | None = None,
    max_predictions: int | None = None,
    steps: int | None = None,
  ):
    """Opens a stream and checks that it is what the run wants.

    Args:
      path: STREAM_DIR of metro_jax.corrupt.
      split: 'train' or 'validation', a folder in it.
      batch_size: rows of the global batch B; any.
      seed: of the order; what is masked and replaced was settled in writing.
      shuffle: a new order each epoch. False: epoch 0, row by row, and a last
        batch filled up with empty rows - for evaluation.
      vocabulary: path of the vocabulary that the stream must have; None takes
        the stream's.
      length: tokens that its rows must have; None for any.
      max_predictions: how many masked positions of a row the model computes;
        None for all.
      steps: how many batches will be asked for; None for any number.

    Raises:
      UserError: if the stream is not that.
    """
    self._files = stream_files.StreamReader(pathlib.Path(path) / split)
    manifest = self.manifest = self._files.manifest
    self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
    self.num_examples, self.length = manifest['rows'], manifest['length']
    self.vocabulary = self._files.vocabulary
    self.vocab_size = self.vocabulary.size
    self.epochs = len(manifest['epochs'])
    _check(self, vocabulary, length, max_predictions, steps)
    self.fingerprint = hashing.short_hash(
      self._files.fingerprint, batch_size, seed, shuffle
    )

  @property
  def max_predictions(self) -> int:
    """The most masked tokens that any row has."""
    return self.manifest['slots']

  def batch(
    self, step: int, rows: slice | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some of its rows.

    Args:
      step: which batch, from 0; any number, in any order.
      rows: which rows of the global batch; None for all.

    Returns:
      The features of `TokenDataset.batch`, with replacements in the place of
      [MASK]; encoder_loss_weights is 1 where there was a mask.
    """
    return self.corrupted(*self.examples(step, rows))

  def corrupted(
    self, epoch: np.ndarray, index: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Rows by number, as they are corrupted in an epoch; see `batch`.

    Args:
      epoch: int array [rows].
      index: int array [rows]; -1 is an empty row.
    """
    if epoch.max() >= self.epochs:
      raise self._too_short(epoch.max() + 1)
    original, slots = self._gather(epoch, index)
    # Slots that are not in use point at a column that is cut off.
    place = slots['position'].astype(np.int64)
    tokens = np.pad(original, ((0, 0), (0, 1)))
    weights = np.zeros(tokens.shape, np.float32)
    np.put_along_axis(tokens, place, slots['token'].astype(np.int32), axis=1)
    np.put_along_axis(weights, place, np.float32(1), axis=1)
    segments, positions = _segments(original)
    return {
      'encoder_input_tokens': tokens[:, :-1].copy(),
      'encoder_target_tokens': original,
      'encoder_loss_weights': weights[:, :-1].copy(),
      'encoder_segment_ids': segments,
      'encoder_positions': positions,
    }

  def _gather(
    self, epoch: np.ndarray, index: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Original ids int32 [rows, length], (position, token) [rows, slots]."""
    original = np.zeros((len(index), self.length), np.int32)
    kind = stream_files.slot_dtype(self.length, self.vocab_size)
    slots = np.zeros((len(index), self.max_predictions), kind)
    slots['position'] = self.length
    size = self.manifest['shard_rows']
    for row in np.flatnonzero(index >= 0):
      number, within = divmod(int(index[row]), size)
      original[row] = self._originals[number][within]
      slots[row] = self._epoch(int(epoch[row]))[number][within]
    return original, slots

  @functools.cached_property
  def _originals(self) -> list[np.ndarray]:
    return self._arrays(None)

  @functools.cached_property
  def _opened(self) -> dict[int, list[np.ndarray]]:
    return {}

  def _epoch(self, epoch: int) -> list[np.ndarray]:
    """The files of an epoch; those of two epochs are kept open."""
    if epoch not in self._opened:
      while len(self._opened) > 1:
        del self._opened[min(self._opened)]
      self._opened[epoch] = self._arrays(epoch)
    return self._opened[epoch]

  def _arrays(self, epoch: int | None) -> list[np.ndarray]:
    count = -(-self.num_examples // self.manifest['shard_rows'])
    return [self._files.array(epoch, number) for number in range(count)]

  def save_assets(self, model_dir: str | os.PathLike) -> None:
    """Copies vocabulary.model there, with a JSON of what it is."""
    self.vocabulary.save(model_dir)

  def describe(self) -> dict[str, Any]:
    """What a person wants to know of this dataset, as plain values."""
    return {
      'stream': str(self._files.path),
      'rows': self.num_examples,
      'length': self.length,
      'epochs': self.epochs,
      'steps_per_epoch': self.steps_per_epoch,
      'fingerprint': self.fingerprint,
    }

  def _too_short(self, wanted: int) -> UserError:
    return UserError(
      f'STREAM_DIR: {self._files.path} holds {self.epochs} epochs of'
      f' {self.num_examples} rows, and TRAIN_STEPS of BATCH_SIZE'
      f' {self.batch_size} ask for {wanted}; lower TRAIN_STEPS, or write more'
      ' with metro_jax.corrupt --gin.EPOCHS'
    )


def _segments(original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Segment ids and positions within them, int32 [rows, length] each.

  Every segment begins with [CLS], which is nowhere else: text never yields
  control symbols.
  """
  starts = original == vocabularies.CLS
  valid = original != vocabularies.PAD
  place = np.arange(original.shape[1], dtype=np.int32)
  begun = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
  segments = np.cumsum(starts, axis=1, dtype=np.int32) * valid
  return segments, (place - begun).astype(np.int32) * valid


def _check(
  stream: CorruptedStream,
  vocabulary: str | None,
  length: int | None,
  max_predictions: int | None,
  steps: int | None,
) -> None:
  path = stream._files.path
  if vocabulary and vocabularies.Vocabulary(vocabulary).hash != (
    stream.vocabulary.hash
  ):
    raise UserError(
      f'VOCABULARY: {path} was written with another vocabulary than'
      f' {vocabulary}; give {stream.vocabulary.path}, or None'
    )
  if stream.batch_size < 1:
    raise UserError(f'BATCH_SIZE = {stream.batch_size}: give 1 or more')
  if length is not None and length != stream.length:
    raise UserError(
      f'LENGTH: {path} has rows of {stream.length} tokens, not {length}; set'
      f' LENGTH = {stream.length}'
    )
  if max_predictions is not None and max_predictions < stream.max_predictions:
    raise UserError(
      f'MASK_RATE: {path} has up to {stream.max_predictions} masked tokens in'
      f' a row, and the model computes {max_predictions} (MAX_PREDICTIONS);'
      ' give the MASK_RATE that it was written with'
    )
  if steps is not None and stream.shuffle:
    wanted = -(-steps * stream.batch_size // stream.num_examples)
    if wanted > stream.epochs:
      raise stream._too_short(wanted)
