# SPDX-License-Identifier: Apache-2.0
"""A small vocabulary whose pieces are easy to tell."""

import random

import pytest

from metro_jax import data
from metro_jax.data import vocabulary_training

WORDS_TEXT = (
  'the cat sat on mat a dog ran in park who where is not was it they he she'
  ' because so city of and word'
)
WORDS = WORDS_TEXT.split()


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory) -> data.Vocabulary:
  draw = random.Random(0)
  texts = [' '.join(draw.choices(WORDS, k=20)) for _ in range(300)]
  texts.append('abcdefghijklmnopqrstuvwxyz . , ? ABCDEFGH')
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  return vocabulary_training.train(texts, path, size=302)
