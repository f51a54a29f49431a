# SPDX-License-Identifier: Apache-2.0
"""A small corpus with known documents, and a vocabulary trained on it."""

import pathlib
import random

import pytest

from metro_jax import data
from metro_jax.data import vocabulary_training

WORDS_TEXT = (
  'the of and to in is that it was for on are as with his they at be this'
  ' from have or by one had not but what all were when we there can an your'
  ' which their said if do will each about how up out them then she many some'
  ' so these would other into has more her two like him see time could no make'
  ' than first been its who now people my made over did down only way find use'
  ' may water long little very after words called just where most know'
)
WORDS = WORDS_TEXT.split()


def make_documents(count: int = 300, seed: int = 0) -> list[str]:
  draw = random.Random(seed)
  return [
    ' '.join(draw.choices(WORDS, k=draw.choice([1, 2, 5, 20, 60, 200])))
    + f' number {i}.'
    for i in range(count)
  ]


@pytest.fixture(scope='session')
def documents() -> list[str]:
  return make_documents()


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory, documents) -> data.Vocabulary:
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  return vocabulary_training.train(documents, path, size=256, extra_ids=4)


@pytest.fixture
def text_file(tmp_path, documents) -> pathlib.Path:
  path = tmp_path / 'corpus.txt'
  path.write_text('\n'.join(documents) + '\n')
  return path
