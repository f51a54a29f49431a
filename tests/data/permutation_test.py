# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch: every row once, another order each epoch."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from metro_jax.data import hashing

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 100, 127, 128, 1000, 4097, 65537]


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
  return hashing.permute(np.arange(size), size, seed, np.full(size, epoch))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('epoch', [0, 1, 2**33])
def test_permutation_is_a_bijection(size, epoch):
  for seed in (0, 1, -5, 2**63):
    assert np.array_equal(np.sort(order(size, seed, epoch)), np.arange(size))


def test_every_small_size_is_a_bijection():
  for size in range(1, 300):
    assert len(set(order(size, 3, 4).tolist())) == size


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = [order(1000, s, e) for s in range(3) for e in range(3)]
  for i, a in enumerate(orders):
    for b in orders[:i]:
      # Two random orders agree at one place on average.
      assert np.count_nonzero(a == b) < 12


def test_one_call_may_cross_epochs():
  epoch = np.repeat([0, 1, 2], 50)
  place = np.tile(np.arange(50), 3)
  mixed = hashing.permute(place, 50, 7, epoch).reshape(3, 50)
  assert np.array_equal(mixed, [order(50, 7, e) for e in range(3)])


def test_places_are_uniform():
  """Where the first row goes, over many epochs, by chi-square."""
  size, epochs = 20, 8000
  first = hashing.permute(
    np.zeros(epochs, np.int64), size, 1, np.arange(epochs)
  )
  counts = np.bincount(first, minlength=size)
  assert stats.chisquare(counts).pvalue > 1e-4
  # Neighbours must not stay neighbours: the step between two places.
  second = hashing.permute(
    np.ones(epochs, np.int64), size, 1, np.arange(epochs)
  )
  steps = np.bincount((second - first) % size, minlength=size)[1:]
  assert stats.chisquare(steps).pvalue > 1e-4


def test_large_sizes_stay_in_range():
  size = 3_000_000_019
  place = np.array([0, 1, size - 1, size // 2], np.int64)
  found = hashing.permute(place, size, 0, np.zeros(4, np.int64))
  assert len(set(found.tolist())) == 4
  assert ((found >= 0) & (found < size)).all()


def test_hashes_do_not_depend_on_the_process():
  code = (
    'import numpy as np; from metro_jax.data import hashing, masking;'
    'a = np.arange(40); z = a * 0;'
    'print(hashing.permute(a, 40, 5, z).tolist(), hashing.text_hash("é"),'
    'masking.draw_masks(np.ones((40, 9), bool), .3, 1, z, a).tobytes().hex())'
  )
  outputs = {
    subprocess.run(
      [sys.executable, '-c', code],
      check=True,
      capture_output=True,
      env={**os.environ, 'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('0', '1')
  }
  assert len(outputs) == 1
