# SPDX-License-Identifier: Apache-2.0
"""How often each id of the vocabulary is in a corpus."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

_CHUNK = 1 << 24


class _Dataset(Protocol):
  vocab_size: int

  @property
  def cache(self):
    """Has `tokens`, all of the text."""


class TermCounts:
  """Counts of all ids over the text behind a dataset, when they are called for.

  Nothing is opened before the first call: a model that holds one can be built
  where the data are not. The text's held-out part is counted too.

  Attributes:
    dataset: makes the dataset.
  """

  def __init__(self, dataset: Callable[[], _Dataset]):
    """See the class."""
    self.dataset = dataset
    self._counts: np.ndarray | None = None

  def __call__(self) -> np.ndarray:
    """int64 [vocabulary]."""
    if self._counts is None:
      dataset = self.dataset()
      tokens = dataset.cache.tokens
      counts = np.zeros(dataset.vocab_size, np.int64)
      for start in range(0, len(tokens), _CHUNK):
        counts += np.bincount(
          tokens[start : start + _CHUNK], minlength=dataset.vocab_size
        )
      self._counts = counts
    return self._counts
