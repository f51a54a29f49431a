# SPDX-License-Identifier: Apache-2.0
"""Chunks stay inside documents; packed rows hold each chunk once."""

import numpy as np
import pytest

from metro_jax.data import packing, rows


def test_chunks_never_join_documents():
  draws = np.random.default_rng(0)
  sizes = draws.integers(0, 40, 500)
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  chosen = draws.random(500) < 0.7
  starts, lengths = rows.chunk(offsets, chosen, length=12)
  found = [(s, s + n) for s, n in zip(starts, lengths, strict=True)]
  expected = []
  for i in np.flatnonzero(chosen):
    for at in range(offsets[i], offsets[i + 1], 10):
      end = min(at + 10, offsets[i + 1])
      if end - at > 1:
        expected.append((at, end))
  assert found == expected


@pytest.mark.parametrize('seed', range(5))
def test_packing_uses_each_chunk_once_and_never_overflows(seed):
  draws = np.random.default_rng(seed)
  room = int(draws.integers(8, 200))
  lengths = draws.integers(1, room + 1, int(draws.integers(1, 3000)))
  members, bounds = packing.pack(lengths, room)
  assert np.array_equal(np.sort(members), np.arange(len(lengths)))
  used = np.add.reduceat(lengths[members], bounds[:-1])
  assert bounds[0] == 0
  assert bounds[-1] == len(members)
  assert (np.diff(bounds) > 0).all()
  assert used.max() <= room


def test_packing_leaves_little_room():
  draws = np.random.default_rng(0)
  lengths = np.minimum(2 + draws.geometric(0.03, 20000), 128)
  _, bounds = packing.pack(lengths, 128)
  assert lengths.sum() / (128 * (len(bounds) - 1)) > 0.98


def test_packing_nothing():
  members, bounds = packing.pack(np.zeros(0, np.int64), 16)
  assert len(members) == 0
  assert bounds.tolist() == [0]
