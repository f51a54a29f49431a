# SPDX-License-Identifier: Apache-2.0
"""Ids, special spellings, the fast tokeniser against SentencePiece itself."""

import json
import pickle
import random
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies

from metro_jax import data
from metro_jax.data import vocabulary_training
from metro_jax.errors import UserError


def test_ids(vocabulary):
  assert vocabulary.size == 256
  assert vocabulary.pieces(range(5)) == [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
  ]
  assert vocabulary.extra_ids == 4
  assert [vocabulary.piece(256 - 1 - i) for i in range(4)] == [
    f'<extra_id_{i}>' for i in range(4)
  ]
  assert vocabulary.sentinel_id(3) == 252
  with pytest.raises(UserError, match='extra_ids'):
    vocabulary.sentinel_id(4)


def test_matches_sentencepiece_reading_of_the_file(vocabulary):
  processor = sentencepiece.SentencePieceProcessor(str(vocabulary.path))
  assert processor.vocab_size() == vocabulary.size
  for i in range(vocabulary.size):
    assert processor.id_to_piece(i) == vocabulary.piece(i)
    assert processor.is_control(i) == bool(vocabulary.is_special(i))


@pytest.mark.parametrize('piece', ['[MASK]', '[CLS]', '[PAD]', '<extra_id_0>'])
def test_special_spellings_in_text_are_text(vocabulary, piece):
  for text in (piece, f'the {piece} of', f'x{piece}x', piece * 3):
    ids = vocabulary.encode(text)
    assert ids
    assert not vocabulary.is_special(ids).any()
    assert vocabulary.encode_batch([text])[0].tolist() == ids
    assert vocabulary.decode(ids) == text


def test_unknown_characters_and_round_trip(vocabulary):
  ids = vocabulary.encode('the 中 of')
  assert ids.count(vocabulary.unk_id) == 1
  assert vocabulary.decode(vocabulary.encode('The People, ~9!')) == (
    'The People, ~9!'
  )


TEXTS = strategies.text(
  strategies.one_of(
    strategies.characters(codec='utf-8'),
    strategies.sampled_from(' \t\n\r\x0b\x1c\x85\xa0\u3000\u200b\u0301the.'),
  ),
  max_size=60,
)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(strategies.lists(TEXTS, max_size=5))
def test_fast_tokeniser_equals_sentencepiece(vocabulary, texts):
  assert vocabulary._words is not None
  flat, lengths = vocabulary.encode_batch(texts)
  found = np.split(flat, np.cumsum(lengths)[:-1]) if texts else []
  assert [f.tolist() for f in found] == [vocabulary.encode(t) for t in texts]


def test_fast_tokeniser_forgets_and_learns_again(vocabulary, monkeypatch):
  monkeypatch.setattr('metro_jax.data.word_table._MAX_WORDS', 50)
  fresh = pickle.loads(pickle.dumps(vocabulary))
  draw = random.Random(0)
  for _ in range(20):
    text = ' '.join(
      ''.join(draw.choices('aeiounst', k=draw.randint(1, 5))) for _ in range(40)
    )
    assert fresh.encode_batch([text])[0].tolist() == vocabulary.encode(text)


def test_lone_surrogates_are_replaced(vocabulary):
  text = json.loads('"the \\ud800 of"')
  assert vocabulary.encode_batch([text, 'x'])[1].tolist() == [
    len(vocabulary.encode(text)),
    len(vocabulary.encode('x')),
  ]


def test_training_is_deterministic(tmp_path, documents, vocabulary):
  again = vocabulary_training.train(
    iter(documents), tmp_path / 'again.model', size=256, extra_ids=4
  )
  assert again.hash == vocabulary.hash
  other = vocabulary_training.train(
    documents, tmp_path / 'other.model', size=240, extra_ids=4
  )
  assert other.hash != vocabulary.hash


def test_byte_fallback(tmp_path, documents):
  trained = vocabulary_training.train(
    documents, tmp_path / 'b.model', size=512, byte_fallback=True
  )
  ids = trained.encode('中 the')
  assert trained.unk_id not in ids
  assert trained.decode(ids) == '中 the'
  assert trained.encode_batch(['中 the'])[0].tolist() == ids


def test_row_and_save(tmp_path, vocabulary):
  row = vocabulary.row('the people of the water', 8)
  assert row[0] == vocabulary.cls_id
  assert row.shape == (8,)
  assert vocabulary.sep_id in row
  vocabulary.save(tmp_path)
  assert data.Vocabulary(tmp_path).hash == vocabulary.hash
  about = json.loads((tmp_path / 'vocabulary.json').read_text())
  assert about['size'] == 256


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(size=10), 'VOCAB_SIZE'),
    (dict(size=500_000), '131072'),
    (dict(size=100_000), 'at most'),
    (dict(size=256, extra_ids=200), 'extra_ids'),
  ],
)
def test_bad_sizes(tmp_path, documents, arguments, message):
  with pytest.raises(UserError, match=message):
    vocabulary_training.train(documents, tmp_path / 'x.model', **arguments)
  assert not list(tmp_path.iterdir())


def test_no_words(tmp_path):
  with pytest.raises(UserError, match='no words'):
    vocabulary_training.train(['', ' \n'], tmp_path / 'x.model', size=256)


def test_bad_files(tmp_path, vocabulary):
  with pytest.raises(UserError, match='No such file'):
    data.Vocabulary(tmp_path / 'missing.model')
  broken = tmp_path / 'broken.model'
  broken.write_bytes(vocabulary.path.read_bytes()[:1000])
  with pytest.raises(UserError, match='SentencePiece'):
    data.Vocabulary(broken)
  broken.write_text('hello there, this is no model')
  with pytest.raises(UserError, match='vocabulary'):
    data.Vocabulary(broken)
  foreign = tmp_path / 'foreign.model'
  words = tmp_path / 'words.txt'
  words.write_text('the cat sat on the mat\n' * 10)
  with foreign.open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      input=str(words),
      model_writer=file,
      vocab_size=30,
      model_type='bpe',
      hard_vocab_limit=False,
      minloglevel=2,
    )
  with pytest.raises(UserError, match=r'metro_jax\.vocabulary'):
    data.Vocabulary(foreign)


def test_loads_without_sentencepiece_and_tensorflow(vocabulary):
  code = (
    "import sys\nfor n in ('sentencepiece', 'tensorflow', 'seqio'):"
    ' sys.modules[n] = None\nfrom metro_jax.data import Vocabulary\n'
    f'v = Vocabulary({str(vocabulary.path)!r})\n'
    f'assert v.hash == {vocabulary.hash!r}\n'
    f"assert v.decode({vocabulary.encode('the people')}) == 'the people'\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
