# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes a corpus is made of: documents, or one line that says why."""

import gzip
import json
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from metro_jax import data
from metro_jax.data import text_files, vocabulary_training
from metro_jax.errors import UserError

# What is special to somebody on the way: C, UTF-8, JSON, gzip, the vocabulary.
PIECES = (
  b'\x00',
  b'\xff\xfe',
  b'\xed\xa0\x80',  # A surrogate, which UTF-8 forbids.
  b'\xf0\x9f\x98',  # The beginning of a character.
  b'\x1b[2J\x07\x7f\x85',
  b'[MASK] [CLS] <extra_id_0> \xe2\x96\x81',
  b'{"text": "\\ud800 \\u0000"}\n',
  b'{"text": ',
  b'\x1f\x8b\x08\x00',
  b'\n\n',
  b'\r',
  b'the of and ' * 20,
)
BYTES = strategies.lists(
  strategies.one_of(
    strategies.sampled_from(PIECES), strategies.binary(max_size=40)
  ),
  max_size=12,
).map(b''.join)
FUZZ = hypothesis.settings(
  max_examples=150,
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def check(vocabulary, path, unit):
  """Reads and tokenises a file as a run would."""
  try:
    found = list(data.TextFiles(path, document=unit).documents())
  except UserError as error:
    assert '\n' not in str(error)
    return
  for text in found:
    assert 0 < len(text) <= text_files.MAX_DOCUMENT
    assert text.strip()
  ids, counts = vocabulary.encode_batch(found)
  assert counts.sum() == len(ids) and len(counts) == len(found)
  assert ((ids >= 0) & (ids < vocabulary.size)).all()
  assert not vocabulary.is_special(ids).any()
  assert isinstance(vocabulary.decode(ids), str)


@FUZZ
@hypothesis.given(BYTES, strategies.sampled_from(text_files._UNITS))
def test_any_bytes_are_documents_or_one_line(vocabulary, tmp_path, raw, unit):
  path = tmp_path / 'a.txt'
  path.write_bytes(raw)
  check(vocabulary, path, unit)


@FUZZ
@hypothesis.given(
  BYTES, strategies.integers(0, 10**6), strategies.integers(0, 255)
)
def test_any_archive_is_documents_or_one_line(
  vocabulary, tmp_path, raw, place, value
):
  archive = bytearray(gzip.compress(b'the of and to in is\n' * 9 + raw))
  archive[place % len(archive)] = value
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(archive[: len(archive) - place % 7])
  check(vocabulary, path, 'line')


def test_a_vocabulary_is_trained_on_hostile_text(tmp_path):
  draw = random.Random(0)
  hostile = [p.decode('utf-8', 'replace') for p in PIECES]
  texts = [''.join(draw.choices(hostile, k=8)) for _ in range(200)]
  texts.append(json.loads('"the \\ud800 of"'))
  vocabulary = vocabulary_training.train(texts, tmp_path / 'v.model', size=128)
  ids, _ = vocabulary.encode_batch(texts)
  assert not vocabulary.is_special(ids).any()
  assert np.mean(ids == vocabulary.unk_id) < 0.5


def test_special_spellings_never_become_special_ids(vocabulary):
  """Not even put together from pieces that the normaliser changes."""
  for text in ('[MASK]', '\uff3bMASK\uff3d', '[MA\u200bSK]', '[\x00MASK]'):
    ids, _ = vocabulary.encode_batch([text])
    assert not vocabulary.is_special(ids).any(), text


# ----------------------------------------------------------------------
# Broken archives among many.
# ----------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path):
  """40 archives; the second is cut off in the middle."""
  for index in range(40):
    draw = random.Random(index)
    count = 100_000 if index == 1 else 50  # Some three megabytes.
    lines = [f'{index} {draw.random()} the water' for _ in range(count)]
    whole = gzip.compress('\n'.join(lines).encode())
    cut = len(whole) // 2 if index == 1 else len(whole)
    (tmp_path / f'{index:02}.txt.gz').write_bytes(whole[:cut])
  return tmp_path


def test_a_broken_archive_among_many_costs_its_rest(archives, capsys):
  pattern = f'{archives}/*.gz'
  corpus = data.TextFiles(pattern, document='line', broken_fraction=0.03)
  found = list(corpus.documents())
  assert corpus.broken == 1
  assert 39 * 50 + 25_000 < len(found) < 39 * 50 + 50_000
  assert found == list(corpus.documents()), 'the same again'
  warnings = capsys.readouterr().err.splitlines()
  assert len(warnings) == 2 and '01.txt.gz: broken gzip' in warnings[0]


@pytest.mark.parametrize('fraction', [0.0, 0.02])
def test_one_more_than_allowed_stops(archives, fraction):
  corpus = data.TextFiles(
    f'{archives}/*.gz', document='line', broken_fraction=fraction
  )
  with pytest.raises(UserError, match='of 40 files 0 may be broken'):
    list(corpus.documents())


def test_mistake():
  with pytest.raises(UserError, match=r'broken_fraction = 1\.5'):
    data.TextFiles('x', broken_fraction=1.5)
