# SPDX-License-Identifier: Apache-2.0
"""Counts of ids against a count by hand, when they are asked for."""

import types

import numpy as np

from metro_jax.data import TermCounts, term_counts


def test_counts_are_made_once_and_not_before_they_are_asked_for(monkeypatch):
  monkeypatch.setattr(term_counts, '_CHUNK', 7)  # Several chunks.
  tokens = np.random.default_rng(0).integers(5, 20, 100).astype(np.uint16)
  opened = []

  def dataset():
    opened.append(1)
    cache = types.SimpleNamespace(tokens=tokens)
    return types.SimpleNamespace(vocab_size=32, cache=cache)

  counts = TermCounts(dataset)
  assert not opened
  expected = [sum(int(t) == i for t in tokens) for i in range(32)]
  np.testing.assert_array_equal(counts(), expected)
  counts()
  assert len(opened) == 1
