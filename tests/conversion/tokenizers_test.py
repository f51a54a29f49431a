# SPDX-License-Identifier: Apache-2.0
"""An exported tokenizer gives the ids that training saw."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_jax import data
from metro_jax.conversion import tokenizer_files
from metro_jax.data import vocabulary_training
from metro_jax.errors import UserError

pytest.importorskip('tokenizers')

TEXTS = (
  'Returns the mean of each row, or NaN.',
  '  two  spaces \t and\na tab ',
  'ﬁ ligature, ½, Ａ wide, e\u0301 combining, \u200b zero width',
  'unknown: 日本語 \U0001f600\U0001f600 end',
  'aaa aaaa aaaaaaa abab',
  '',
)


@pytest.fixture(scope='module', params=[False, True], ids=['unk', 'bytes'])
def pair(request, tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'x.model'
  text = 'the array of each row is aaaa aaa abab returns mean naïve words '
  documents = [text * 20, 'Returns the mean value. ' * 30, 'of (a, b) [c]' * 9]
  vocabulary = vocabulary_training.train(
    documents,
    path,
    size=420 if request.param else 190,
    extra_ids=4,
    byte_fallback=request.param,
  )
  return vocabulary, tokenizer_files.build(path)


def ids(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize('text', TEXTS)
def test_same_ids(pair, text):
  vocabulary, tokenizer = pair
  assert ids(tokenizer, text) == vocabulary.encode(text)


@given(
  st.lists(
    st.sampled_from([*'abemnrtw ,.()', 'the', ' array', ' mean', '日', 'é']),
    max_size=30,
  ).map(''.join)
)
@settings(max_examples=200, deadline=None)
def test_same_ids_of_any_text(pair, text):
  vocabulary, tokenizer = pair
  assert ids(tokenizer, text) == vocabulary.encode(text)


def test_files_load_in_transformers(pair, tmp_path):
  transformers = pytest.importorskip('transformers')
  vocabulary, _ = pair
  tokenizer_files.write(tmp_path, vocabulary, 32)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  text = 'the mean of each row'
  row = vocabulary.row(text, 32)
  assert theirs(text)['input_ids'] == row[row != 0].tolist()
  assert theirs.mask_token_id == data.Vocabulary.mask_id
  assert theirs.pad_token_id == data.Vocabulary.pad_id
  assert len(theirs) == vocabulary.size
  assert theirs.decode(vocabulary.encode(text)) == text


# ----------------------------------------------------------------------
# A tokenizer from elsewhere.
# ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def wordpiece(tmp_path_factory):
  """tokenizer.json as BERT's folders have it, specials in the middle."""
  tokenizers = pytest.importorskip('tokenizers')
  words = [
    'the',
    'mean',
    'of',
    'each',
    'row',
    'is',
    'returned',
    'un',
    '##able',
    '##s',
    'play',
  ]
  words += [*'abcdefghijklmnopqrstuvwxyz'] + [
    f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz'
  ]
  texts = ['[PAD]', *words[:9], '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words[9:]]
  path = tmp_path_factory.mktemp('wordpiece') / 'tokenizer.json'
  (path.parent / 'vocab.txt').write_text('\n'.join(texts))
  made = tokenizers.BertWordPieceTokenizer(str(path.parent / 'vocab.txt'))
  made.save(str(path))
  return made, data.open_vocabulary(path.parent), texts


def test_wordpiece_ids_move_and_tokens_stay(wordpiece):
  theirs, vocabulary, texts = wordpiece
  assert vocabulary.size == len(texts)
  assert [texts[i] for i in vocabulary.order[:5]] == [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
  ]
  for text in ('The mean of plays, each row.', 'unable  rows', ''):
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert vocabulary.order[vocabulary.encode(text)].tolist() == ids
  flat, lengths = vocabulary.encode_batch(['the mean', '', 'of rows'])
  assert lengths.tolist() == [2, 0, 3]
  assert vocabulary.decode(flat) == 'the mean of rows'
  # A special token typed in a text is text.
  assert data.Vocabulary.mask_id not in vocabulary.encode('the [MASK]')
  assert vocabulary.is_special([0, 1, 2, 3, 4, 5]).tolist() == (
    [True, False, True, True, True, False]
  )


def test_wordpiece_tokens_know_their_places(wordpiece):
  from metro_jax import inference_text

  _, vocabulary, _ = wordpiece
  text = 'the [MASK] of rows'
  tokens = inference_text.Tokenizer(vocabulary)(text, masks=True)
  assert [text[t.start : t.end] for t in tokens] == [
    'the',
    '[MASK]',
    'of',
    'row',
    's',
  ]
  assert tokens[1].id == data.Vocabulary.mask_id


def test_a_vocabulary_survives_pickling_and_saving(wordpiece, tmp_path):
  import pickle

  _, vocabulary, _ = wordpiece
  again = pickle.loads(pickle.dumps(vocabulary))
  assert again.encode('the mean') == vocabulary.encode('the mean')
  vocabulary.save(tmp_path)
  assert data.open_vocabulary(tmp_path).hash == vocabulary.hash


def test_a_tokenizer_without_specials_is_refused(tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, 'a'))
  made.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(UserError, match=r'has no \[PAD\]'):
    data.open_vocabulary(tmp_path)
