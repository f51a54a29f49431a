# SPDX-License-Identifier: Apache-2.0
"""The demo's task: half of the sentences have two words exchanged."""

import random

from metro_jax.scripts import finetune_demo


def test_two_neighbours_change_places():
  text = 'Returns the mean of the array axis by axis.'
  words = text.split(' ')
  for seed in range(20):
    found = finetune_demo.exchange(text, random.Random(seed))
    found = found.split(' ')
    moved = [
      n for n, (a, b) in enumerate(zip(words, found, strict=True)) if a != b
    ]
    assert len(moved) == 2
    assert moved[1] == moved[0] + 1
    assert found[moved[0]] == words[moved[1]]
    assert moved[0] > 0
    assert moved[1] < len(words) - 1


def test_labels_tell_what_was_done():
  texts = [f'The row number {n} of a table.' for n in range(200)]
  rows = finetune_demo.examples(texts)
  for text, (shown, label) in zip(texts, rows, strict=True):
    assert (shown == text) == (label == 'whole')
  assert 70 < sum(label == 'changed' for _, label in rows) < 130
