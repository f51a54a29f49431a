# SPDX-License-Identifier: Apache-2.0
"""Tokenising word by word, each word once.

Where no piece of a vocabulary crosses a space, a text's pieces are its words'
pieces one after another. Text repeats its words, so most are found in a table,
and the ids of a whole batch of texts are gathered by one NumPy call.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

_MAX_WORDS = 1 << 19
_MAX_CHARACTERS = 1 << 25
# The spaces of str.split that SentencePiece's nmt_nfkc does not call spaces.
_ODD = re.compile('[\x0b\x1c-\x1f\x85]')
_SPACES = re.compile('[ \t\n\r\f]+')


class WordTable:
  """Word -> ids, filled as words are met."""

  def __init__(self, encode_words: Callable[[list[str]], list[list[int]]]):
    self._encode_words = encode_words
    self._clear()

  def _clear(self) -> None:
    self._index: dict[str, int] = {}
    self._characters = 0
    self._ids = np.zeros(1 << 16, np.int32)
    self._ends = np.zeros(1 << 14, np.int64)  # Word i is ends[i]..ends[i + 1].

  def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, flat int32, and how many belong to each, int64."""
    words = [split_words(text) for text in texts]
    flat = list(itertools.chain.from_iterable(words))
    if len(self._index) > _MAX_WORDS or self._characters > _MAX_CHARACTERS:
      self._clear()
    numbers = list(map(self._index.get, flat))
    if None in numbers:
      self._learn(
        list(
          dict.fromkeys(
            w for w, n in zip(flat, numbers, strict=True) if n is None
          )
        )
      )
      numbers = list(map(self._index.__getitem__, flat))
    number = np.array(numbers, np.int64)
    starts = self._ends[number]
    counts = self._ends[number + 1] - starts
    ends = np.zeros(len(flat) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    place = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], counts)
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(w) for w in words], out=bounds[1:])
    return self._ids[place], np.diff(ends[bounds])

  def _learn(self, words: list[str]) -> None:
    encoded = self._encode_words(words)
    first = len(self._index)
    lengths = np.array([len(e) for e in encoded], np.int64)
    used = self._ends[first]
    need = used + int(lengths.sum())
    self._ids = _grown(self._ids, need)
    self._ids[used:need] = np.fromiter(
      itertools.chain.from_iterable(encoded), np.int32, need - used
    )
    last = first + len(words)
    self._ends = _grown(self._ends, last + 1)
    self._ends[first + 1 : last + 1] = used + np.cumsum(lengths)
    self._index.update(zip(words, range(first, last), strict=True))
    self._characters += sum(map(len, words))


def split_words(text: str) -> list[str]:
  """Words as SentencePiece's normaliser sees them: parted by ASCII spaces."""
  if _ODD.search(text) is None:
    return text.split()
  return [w for w in _SPACES.split(text) if w]


def _grown(array: np.ndarray, size: int) -> np.ndarray:
  if size <= len(array):
    return array
  larger = np.zeros(max(size, 2 * len(array)), array.dtype)
  larger[: len(array)] = array
  return larger
