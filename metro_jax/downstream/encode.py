# SPDX-License-Identifier: Apache-2.0
"""Records as rows of token ids.

A row is [CLS] a [SEP], or [CLS] a [SEP] b [SEP]. One that is too long loses
tokens at the end of its longer text; how many rows did is counted.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from metro_jax.data import hashing, vocabularies
from metro_jax.downstream.records import (
  Example,
  Passage,
  Question,
  Record,
  Task,
)
from metro_jax.downstream.windows import Window, windows_of
from metro_jax.inference_text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Rows of one split, ready to be put into batches.

  Attributes:
    rows: token ids of each row, int32 arrays.
    choices: rows that are compared with each other lie so many together.
    owners: int64 [units], the record of each unit of `choices` rows.
    labels: float32 [units] or [units, 2].
    windows: of passages, one a row; None for other kinds.
    truncated: rows that were cut.
  """

  rows: Sequence[np.ndarray]
  choices: int
  owners: np.ndarray
  labels: np.ndarray
  windows: Sequence[Window] | None = None
  truncated: int = 0

  def __len__(self) -> int:
    """Units: examples as batches count them."""
    return len(self.owners)

  def digest(self) -> str:
    """Identity of the rows and their labels, wherever they were read from."""
    found = hashlib.blake2b(self.labels.tobytes(), digest_size=8)
    for row in self.rows:
      found.update(len(row).to_bytes(4, 'little') + row.tobytes())
    return found.hexdigest()


def encode(
  task: Task,
  records: Sequence[Record],
  vocabulary: vocabularies.Vocabulary,
  length: int,
  train: bool,
  stride: int = 128,
  seed: int = 0,
) -> Encoded:
  """Encodes a split.

  Args:
    task: whose split it is.
    records: of the split.
    vocabulary: of the model.
    length: most tokens in a row.
    train: whether labels are to be learnt: choices then lie together, and
      windows without an answer say so.
    stride: tokens from one window of a passage to the next.
    seed: of the right choice that a wrong one is paired with.
  """
  if task.kind == 'span':
    return _passages(records, vocabulary, length, stride)
  if task.kind == 'ranking':
    return _questions(records, vocabulary, length, train, seed)
  rows, truncated = _rows([r.texts for r in records], vocabulary, length)
  labels = np.array([_label(task, r) for r in records], np.float32)
  return Encoded(rows, 1, np.arange(len(records)), labels, None, truncated)


def _label(task: Task, record: Example) -> float:
  """Class number, or number in 0..1; 0 where it is not told."""
  if record.label is None:
    return 0.0
  if task.kind == 'regression':
    return record.label / task.upper
  return float(task.labels.index(record.label))


def _questions(
  records: Sequence[Question],
  vocabulary: vocabularies.Vocabulary,
  length: int,
  train: bool,
  seed: int,
) -> Encoded:
  """Choices next to each other for training, each alone otherwise.

  Where questions have different numbers of choices, training compares pairs:
  each wrong choice with one of the right ones (ReCoRD in METRO-LM).
  """
  sizes = {len(record.choices) for record in records}
  texts, owners, labels = [], [], []
  for owner, record in enumerate(records):
    if not train:
      texts += record.choices
      owners += [owner] * len(record.choices)
    elif len(sizes) == 1 and len(record.best) == 1:
      texts += record.choices
      owners.append(owner)
      labels.append(record.best[0])
    else:
      for right, wrong in _pairs(record, owner, seed):
        texts += [record.choices[right], record.choices[wrong]]
        owners.append(owner)
        labels.append(0)
  rows, truncated = _rows(texts, vocabulary, length)
  choices = len(rows) // max(len(owners), 1)
  numbers = np.array(labels if train else np.zeros(len(owners)), np.float32)
  owned = np.array(owners, np.int64)
  return Encoded(rows, choices, owned, numbers, None, truncated)


def _pairs(record: Question, owner: int, seed: int):
  """(right, wrong) for each wrong choice; the right one is drawn."""
  wrong = [n for n in range(len(record.choices)) if n not in record.best]
  if not record.best or not wrong:
    return
  place = np.arange(len(wrong))
  drawn = hashing.keys(seed, 7, np.full(len(wrong), owner), place)
  for number, key in zip(wrong, drawn.tolist(), strict=True):
    yield record.best[key % len(record.best)], number


def _passages(
  records: Sequence[Passage],
  vocabulary: vocabularies.Vocabulary,
  length: int,
  stride: int,
) -> Encoded:
  tokenize = Tokenizer(vocabulary)
  windows = list(
    itertools.chain.from_iterable(
      windows_of(record, owner, tokenize, length, stride)
      for owner, record in enumerate(records)
    )
  )
  return Encoded(
    [w.tokens for w in windows],
    1,
    np.array([w.owner for w in windows], np.int64),
    np.array([w.answer for w in windows], np.float32).reshape(-1, 2),
    windows,
  )


def _rows(
  texts: Sequence[tuple[str, ...]],
  vocabulary: vocabularies.Vocabulary,
  length: int,
) -> tuple[list[np.ndarray], int]:
  """Rows, and how many of them were cut."""
  flat, lengths = vocabulary.encode_batch([t for pair in texts for t in pair])
  pieces = iter(np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else [])
  rows, truncated = [], 0
  for pair in texts:
    parts = [next(pieces) for _ in pair]
    kept = _fit([len(p) for p in parts], length - 1 - len(parts))
    truncated += kept != [len(p) for p in parts]
    row = [np.array([vocabularies.CLS], np.int32)]
    for part, count in zip(parts, kept, strict=True):
      row += [part[:count], np.array([vocabularies.SEP], np.int32)]
    rows.append(np.concatenate(row).astype(np.int32))
  return rows, truncated


def _fit(lengths: Sequence[int], room: int) -> list[int]:
  """Lengths that fit into `room`: the longest gives until two are equal."""
  kept = list(lengths)
  excess = sum(kept) - room
  if excess <= 0:
    return kept
  if len(kept) == 1:
    return [room]
  short = min(kept)
  if short <= room // 2:
    return [
      n if n == short and kept.count(n) == 1 else room - short for n in kept
    ]
  return [room - room // 2, room // 2]
