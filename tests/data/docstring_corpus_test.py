# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: prose kept, markup dropped, large and repeatable."""

import os
import re
import subprocess
import sys

import pytest

from metro_jax import data
from metro_jax.data import docstring_corpus, docstring_text, files, sources

SOURCE = '''
"""Module for the things that are done with numbers and with letters.

.. note::

   This is a directive, and all of its block is left out of the corpus.

Usage:

    >>> compute(3)
    the output of a doctest is not a text for the model to learn from

A second paragraph, with ``code`` and :class:`~package.Name` in the middle of
it, is joined to one line. See `the page <https://example.org/x>`_ for more.
"""

def compute(x, y):
  """Computes what is to be computed from both of the arguments.

  Args:
    x: The first of the arguments, which is used for all of the work.
    y (int): The second argument, and it may be left out in most cases.

  Parameters
  ----------
  z : array_like, optional
      An array that is there to be read by the people of this test.

  Returns:
    x + y[0]  {z: w}

  ```
  for this is the code in a fence and it is not in the corpus
  ```
  | a table | of the kind | that has bars |
  """

def nested():
  class Inner:
    """Les chaînes françaises ne sont pas gardées dans ce corpus anglais."""
'''

EXPECTED = [
  'Module for the things that are done with numbers and with letters.',
  'A second paragraph, with code and package.Name in the middle of it, is'
  ' joined to one line. See the page for more.',
  'Computes what is to be computed from both of the arguments.',
  'The first of the arguments, which is used for all of the work.',
  'The second argument, and it may be left out in most cases.',
  'An array that is there to be read by the people of this test.',
]


def test_prose_is_kept_and_markup_dropped():
  found = docstring_text.paragraphs_of_source(SOURCE.encode())
  assert found == EXPECTED


@pytest.mark.parametrize(
  'source', [b'', b'x = (', b'\xff"""a"""', b'"""a\x00"""', b'"""short"""']
)
def test_files_without_prose(source):
  assert docstring_text.paragraphs_of_source(source) == []


def test_a_corpus_of_ten_megabytes():
  root = files.data_dir()
  documents = list(data.Docstrings(root).documents())
  assert sum(map(len, documents)) >= 10_000_000
  assert len(documents) > 1000
  assert min(map(len, documents)) >= 200
  paragraphs = [p for text in documents for p in text.split('\n\n')]
  # Repeats can only come from documents parted at 65,536 characters.
  assert len(set(paragraphs)) > 0.999 * len(paragraphs)
  sample = paragraphs[:: len(paragraphs) // 500]
  assert all(docstring_text.is_prose(p) for p in sample)
  assert not any('>>>' in p or '```' in p for p in sample)
  text = ' '.join(sample)
  words = re.findall('[a-z]+', text.lower())
  assert words.count('the') > 0.04 * len(words)


def test_splits_part_the_corpus():
  source = sources.Docstrings(files.data_dir())
  train, held_out = (set(source.documents(s)) for s in ('train', 'validation'))
  assert not train & held_out
  assert len(train) + len(held_out) == len(list(source.documents()))
  assert 0.01 < len(held_out) / len(train) < 0.04


BUILD = """
import pathlib, sys
from metro_jax.data import docstring_corpus as corpus
corpus.PACKAGES = (('optax', 'optax'), ('absl', 'absl-py'), ('no', 'no-such'))
corpus._roots.cache_clear()
every = corpus._roots
corpus._roots = lambda: every()[1:]  # Without the standard library: seconds.
print(corpus.path(pathlib.Path(sys.argv[1])).name)
"""


def test_the_same_environment_gives_the_same_bytes(tmp_path):
  built = []
  for i in range(2):
    root = tmp_path / str(i)
    done = subprocess.run(
      [sys.executable, '-c', BUILD, root],
      check=True,
      capture_output=True,
      text=True,
      env=os.environ | {'PYTHONHASHSEED': str(i)},
    )
    built.append((root / 'docstrings' / done.stdout.strip()).read_bytes())
  assert built[0] == built[1]
  assert len(built[0]) > 100_000


def test_fingerprint_follows_versions(monkeypatch):
  before = docstring_corpus.fingerprint()
  roots = docstring_corpus._roots()
  other = (*roots[:-1], (roots[-1][0], '0.0.0', roots[-1][2]))
  monkeypatch.setattr(docstring_corpus, '_roots', lambda: other)
  assert docstring_corpus.fingerprint() != before
