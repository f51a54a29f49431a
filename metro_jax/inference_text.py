# SPDX-License-Identifier: Apache-2.0
"""Text in, windows of token ids out, every token with its place in the text.

Offsets are of characters in the text as it was given: `text[start:end]` is
what a token stands for, without the space that SentencePiece counts to the
word after it.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from metro_jax import data
from metro_jax.errors import UserError

MASK = '[MASK]'
# Unicode keeps this code point free for a program's own use. It holds the
# place of [MASK] while the text around it is tokenised, so that "un[MASK]able"
# stays one word.
_HOLDER = '\ufdd0'
_SHORTEST_BUCKET = 16
LONG = ('window', 'truncate', 'error')


class TooLong(UserError):
  """A text is longer than the model; `index` says which."""

  def __init__(
    self, index: int, tokens: int, room: int, long: str | None = 'window'
  ):
    """Takes the index of the text, its tokens, and the most there may be.

    Args:
      index: of the text.
      tokens: that it has.
      room: the most there may be.
      long: which of LONG would take it, if any.
    """
    self.index, self.tokens, self.room = index, tokens, room
    self.long = long
    super().__init__(self.about(f'text {index + 1}'))

  def about(self, name: str) -> str:
    """The message, with a name for the text."""
    mend = f', or choose long={self.long!r} (--long={self.long})'
    return (
      f'{name} has {self.tokens} tokens and the model takes {self.room};'
      f' shorten it{mend if self.long else ""}'
    )


class Token(NamedTuple):
  """A piece of a text.

  Attributes:
    id: in the vocabulary.
    start: first character that the token stands for.
    end: one past its last character; equals start for a piece that is a
      space only.
  """

  id: int
  start: int
  end: int


class Window(NamedTuple):
  """A stretch of one text's tokens that goes through the model at once.

  Attributes:
    text: index of the text.
    start: first token.
    stop: one past the last token.
    keep_start: first token whose result is taken from this window.
    keep_stop: one past the last such token.
  """

  text: int
  start: int
  stop: int
  keep_start: int
  keep_stop: int


class Tokenizer:
  """A vocabulary with character offsets.

  The ids are those that `data.Vocabulary.encode` gives.
  """

  def __init__(self, vocabulary: data.Vocabulary):
    """Takes a vocabulary."""
    self._vocabulary = vocabulary
    self._space = vocabulary.space_id

  def __call__(self, text: str, masks: bool = False) -> list[Token]:
    """Tokens of a text, without [CLS] and [SEP].

    Args:
      text: the text.
      masks: whether [MASK] in the text is the mask token; otherwise it is
        text like any other.
    """
    clean = text.encode('utf-8', 'replace').decode('utf-8')
    if not masks or MASK not in text:
      return _trim(clean, self._pieces(clean), self._space)
    parts = clean.replace(_HOLDER, '\ufffd').split(MASK)
    held = _HOLDER.join(parts)
    tokens = list(
      _place_masks(held, _trim(held, self._pieces(held), self._space))
    )
    # Each [MASK] is five characters longer than what held its place.
    lengths = itertools.accumulate(len(p) + 1 for p in parts[:-1])
    holders = [end - 1 for end in lengths]
    extra = len(MASK) - 1

    def original(place: int) -> int:
      return place + extra * bisect.bisect_left(holders, place)

    return [Token(t.id, original(t.start), original(t.end)) for t in tokens]

  def _pieces(self, text: str) -> list[Token]:
    return [Token(*found) for found in self._vocabulary.located(text)]


def _trim(text: str, tokens: list[Token], space: int) -> list[Token]:
  """Leaves out leading spaces; gives each byte of a character all of it.

  Args:
    text: the text.
    tokens: with SentencePiece's places.
    space: id of the piece that is a space only; it has no character.

  Returns:
    The tokens.
  """
  out = []
  following = len(text), len(text)
  for token in reversed(tokens):
    start, end = token.start, token.end
    if start == end and token.id != space:
      # Only the last byte of a character has its place.
      out.append(Token(token.id, *following))
      continue
    surface = text[start:end]
    start += len(surface) - len(surface.lstrip())
    following = min(start, end), end
    out.append(Token(token.id, *following))
  return out[::-1]


def _place_masks(text: str, tokens: list[Token]) -> Iterator[Token]:
  """The tokens with a mask for each holder.

  A piece that is nothing but the space before a mask is left out: a masked
  word has taken its space with it.
  """
  masked = -1  # The last holder that has its mask.
  for index, token in enumerate(tokens):
    surface = text[token.start : token.end]
    if _HOLDER in surface:
      for place in range(token.start, token.end):
        if text[place] != _HOLDER:
          # SentencePiece joins neighbours that it does not know.
          yield Token(token.id, place, place + 1)
        elif place > masked:
          masked = place
          yield Token(data.Vocabulary.mask_id, place, place + 1)
    elif surface or not _mask_follows(text, tokens, index):
      yield token


def _mask_follows(text: str, tokens: list[Token], index: int) -> bool:
  after = tokens[index + 1] if index + 1 < len(tokens) else None
  return after is not None and text[after.start : after.start + 1] == _HOLDER


def windows(
  lengths: Sequence[int], room: int, long: str = 'window'
) -> list[Window]:
  """Cuts texts into windows.

  Neighbouring windows share a quarter of their tokens, so that every token
  whose result counts has an eighth of a window or more on either side, where
  the text has it.

  Args:
    lengths: tokens of each text.
    room: the most tokens of a window.
    long: what becomes of a longer text: 'window' cuts it into several,
      'truncate' takes its first window, 'error' refuses it.

  Returns:
    Windows in the order of the texts; a text without tokens has one, empty.
  """
  if long not in LONG:
    raise UserError(f'long = {long!r}: choose one of {", ".join(LONG)}')
  shared = room // 4
  out = []
  for text, n in enumerate(lengths):
    if n > room and long == 'error':
      raise TooLong(text, n, room)
    if n <= room or long == 'truncate':
      n = min(n, room)
      out.append(Window(text, 0, n, 0, n))
      continue
    starts = [*range(0, n - room, room - shared), n - room]
    # Each overlap is parted in the middle.
    cuts = [(a + room + b) // 2 for a, b in itertools.pairwise(starts)]
    bounds = itertools.pairwise([0, *cuts, n])
    for start, (first, last) in zip(starts, bounds, strict=True):
      out.append(Window(text, start, start + room, first, last))
  return out


def bucket(length: int, longest: int) -> int:
  """The padded length: powers of two and the numbers half-way between."""
  size = _SHORTEST_BUCKET
  while size < length:
    half = size + size // 2
    if length <= half:
      size = half
      break
    size *= 2
  return min(size, longest)


def batches(
  chosen: Sequence[Window], batch_size: int, longest: int
) -> Iterator[tuple[list[int], int]]:
  """Groups windows of like length, so that little is computed on padding.

  Args:
    chosen: the windows.
    batch_size: the most windows of a batch.
    longest: the most tokens of a row, [CLS] and [SEP] included.

  Yields:
    Indices of windows, and the padded length of their rows.
  """
  groups: dict[int, list[int]] = {}
  for index, window in enumerate(chosen):
    size = bucket(window.stop - window.start + 2, longest)
    groups.setdefault(size, []).append(index)
  for size, members in sorted(groups.items()):
    for start in range(0, len(members), batch_size):
      yield members[start : start + batch_size], size


def rows(
  ids: Sequence[Sequence[int]], length: int, count: int
) -> dict[str, np.ndarray]:
  """A batch by the names that models take.

  Args:
    ids: token ids of each row, without specials.
    length: padded length.
    count: rows of the batch; those over len(ids) are empty.

  Returns:
    int32 [count, length] arrays, and encoder_loss_weights float32, 1 at
    masks.
  """
  vocabulary = data.Vocabulary
  tokens = np.full((count, length), vocabulary.pad_id, np.int32)
  lengths = np.zeros(count, np.int32)
  for row, own in enumerate(ids):
    filled = [vocabulary.cls_id, *own, vocabulary.sep_id]
    tokens[row, : len(filled)] = filled
    lengths[row] = len(filled)
  place = np.arange(length, dtype=np.int32)
  segments = (place < lengths[:, None]).astype(np.int32)
  return {
    'encoder_input_tokens': tokens,
    'encoder_target_tokens': tokens,
    'encoder_loss_weights': (tokens == vocabulary.mask_id).astype(np.float32),
    'encoder_segment_ids': segments,
    'encoder_positions': segments * place,
  }
