# SPDX-License-Identifier: Apache-2.0
"""Passages in windows: [CLS] question [SEP] part of the passage [SEP].

A passage that is longer than the model is read in windows that overlap, each
`stride` tokens after the one before. A window without the whole answer has
none: its label is [CLS], position 0.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from metro_jax.data import vocabularies
from metro_jax.downstream.records import Passage
from metro_jax.errors import UserError
from metro_jax.inference_text import Tokenizer

MAX_QUESTION = 64  # Tokens; longer ones lose their end, as in BERT's reader.


@dataclasses.dataclass(frozen=True)
class Window:
  """A row of a passage.

  Attributes:
    owner: number of the record.
    tokens: int32 ids.
    first: position of the first token of the passage.
    spans: for each token of the passage, where it starts and ends in it.
    widest: for each of those tokens, whether no other window shows it with
      more context on its shorter side.
    answer: positions of the first and last token of the answer, or (0, 0).
  """

  owner: int
  tokens: np.ndarray
  first: int
  spans: Sequence[tuple[int, int]]
  widest: Sequence[bool]
  answer: tuple[int, int] = (0, 0)

  def candidates(self, length: int) -> np.ndarray:
    """int32 [length], 1 where a span may start or end: [CLS] and passage."""
    out = np.zeros(length, np.int32)
    out[0] = 1
    out[self.first : self.first + len(self.spans)] = 1
    return out


def windows_of(
  record: Passage,
  owner: int,
  tokenize: Tokenizer,
  length: int,
  stride: int,
) -> Iterator[Window]:
  """All windows of a record.

  Args:
    record: question and passage.
    owner: its number.
    tokenize: gives tokens with their places.
    length: most tokens in a row.
    stride: tokens from one window to the next.
  """
  question = [t.id for t in tokenize(record.question)][:MAX_QUESTION]
  first = len(question) + 2
  room = length - first - 1
  if not 0 < stride <= room:
    raise UserError(
      f'TASK_LENGTH, STRIDE: of {length} tokens, {room} are left for the'
      f' passage after a question, and windows move on by {stride} tokens;'
      ' make rows longer, or steps shorter'
    )
  tokens = tokenize(record.context)
  ids = [token.id for token in tokens]
  spans = [(token.start, token.end) for token in tokens]
  starts = [0]
  while starts[-1] + room < len(ids):
    starts.append(starts[-1] + stride)
  target = _answer(record, spans)
  for start in starts:
    stop = min(start + room, len(ids))
    row = [vocabularies.CLS, *question, vocabularies.SEP]
    row += [*ids[start:stop], vocabularies.SEP]
    answer = (0, 0)
    if target and start <= target[0] and target[1] < stop:
      answer = tuple(first + place - start for place in target)
    widest = [
      _best_window(place, starts, room, len(ids)) == start
      for place in range(start, stop)
    ]
    yield Window(
      owner,
      np.array(row, np.int32),
      first,
      spans[start:stop],
      widest,
      answer,
    )


def _answer(
  record: Passage, spans: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
  """Numbers of the first and last token of the first answer."""
  if not record.answers:
    return None
  text, start = record.answers[0]
  end = start + len(text)
  inside = [n for n, (a, b) in enumerate(spans) if a < end and b > start]
  return (inside[0], inside[-1]) if inside else None


def _best_window(
  place: int, starts: Sequence[int], room: int, total: int
) -> int:
  """The window that shows a token with the most context (BERT's rule)."""

  def context(start: int) -> float:
    stop = min(start + room, total)
    if not start <= place < stop:
      return -1.0
    return min(place - start, stop - 1 - place) + 0.01 * (stop - start)

  return max(starts, key=context)
