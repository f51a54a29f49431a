# SPDX-License-Identifier: Apache-2.0
"""The Python API: tokens with their places, windows, batches, loading."""

import functools
import shutil

import gin
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_jax import data, inference, inference_text
from metro_jax.errors import UserError
from metro_jax.inference_answers import Candidate, Detection, Filling, Mask
from metro_jax.inference_text import Token

pytest_plugins = ('tiny_run',)

# One row alone and in company are computed by differently shaped products of
# float32: sums of up to 64 terms of order 1, through 2 layers and softmaxes.
TOLERANCE = 64 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope='module')
def model(tiny_run):
  return inference.load(tiny_run)


@pytest.fixture(scope='module')
def tokenizer(tiny_run):
  return inference_text.Tokenizer(data.Vocabulary(tiny_run))


def surfaces(text, tokens):
  return [text[t.start : t.end] for t in tokens]


# ----------------------------------------------------------------------
# Tokens.
# ----------------------------------------------------------------------


def test_tokens_are_those_of_training_and_say_where_they_are(tokenizer, model):
  text = '  Returns the\n  array, (twice). '
  tokens = tokenizer(text)
  assert [t.id for t in tokens] == model.vocabulary.encode(text)
  joined = ''.join(surfaces(text, tokens))
  assert joined == 'Returnsthearray,(twice).'


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_has_tokens_in_order(tokenizer, model, text):
  tokens = tokenizer(text)
  assert [t.id for t in tokens] == model.vocabulary.encode(text)
  ends = [0]
  for token in tokens:
    assert 0 <= token.start <= token.end <= len(text)
    assert token.start >= ends[-1] or token.end == ends[-1]
    ends.append(token.end)


def test_typed_specials_are_text_but_for_masks_in_fill(tokenizer):
  text = 'the [MASK] of [CLS] [PAD]'
  specials = set(range(5)) - {data.Vocabulary.unk_id}
  assert not specials & {t.id for t in tokenizer(text)}
  ids = [t.id for t in tokenizer(text, masks=True)]
  assert specials & set(ids) == {data.Vocabulary.mask_id}
  assert ids.count(data.Vocabulary.mask_id) == 1


def test_a_masked_word_takes_its_space_along(tokenizer):
  for text, whole in (
    ('the [MASK] of', 'the array of'),
    ('[MASK] the', 'Returns the'),
    ('the [MASK].', 'the array.'),
  ):
    masked = [t.id for t in tokenizer(text, masks=True)]
    original = [t.id for t in tokenizer(whole)]
    mask = masked.index(data.Vocabulary.mask_id)
    after = len(masked) - mask - 1
    assert masked[:mask] == original[:mask]
    assert masked[mask + 1 :] == original[len(original) - after :]


def test_places_of_masks_and_of_what_follows(tokenizer):
  text = 'un[MASK]able \u00e9[MASK][MASK] the array'
  tokens = tokenizer(text, masks=True)
  masks = [(t.start, t.end) for t in tokens if t.id == data.Vocabulary.mask_id]
  assert masks == [(2, 8), (14, 20), (20, 26)]
  assert [text[a:b] for a, b in masks] == ['[MASK]'] * 3
  assert ''.join(surfaces(text, tokens)) == text.replace(' ', '')


def test_a_character_of_several_bytes_belongs_to_each_of_them():
  # What SentencePiece says of byte pieces: only the last has a place.
  tokens = [Token(7, 0, 0), Token(8, 0, 0), Token(9, 0, 1), Token(5, 1, 4)]
  trimmed = inference_text._trim('\u20ac of', tokens, space=6)
  assert trimmed == [
    Token(7, 0, 1),
    Token(8, 0, 1),
    Token(9, 0, 1),
    Token(5, 2, 4),
  ]


# ----------------------------------------------------------------------
# Windows and batches.
# ----------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=5), st.integers(6, 70))
def test_windows_keep_every_token_once(lengths, room):
  found = inference_text.windows(lengths, room)
  for text, n in enumerate(lengths):
    own = [w for w in found if w.text == text]
    kept = [i for w in own for i in range(w.keep_start, w.keep_stop)]
    assert kept == list(range(n))
    for w in own:
      assert w.start <= w.keep_start <= w.keep_stop <= w.stop <= n
      assert w.stop - w.start <= room
      # Context on both sides, unless the text ends there.
      margin = room // 4 // 2
      assert w.keep_start - w.start >= margin or w.keep_start == 0
      assert w.stop - w.keep_stop >= margin or w.keep_stop == n


def test_long_texts_by_choice():
  assert inference_text.windows([9], 5, 'truncate') == [(0, 0, 5, 0, 5)]
  with pytest.raises(UserError, match=r'text 2 has 9 tokens.*takes 5'):
    inference_text.windows([3, 9], 5, 'error')
  with pytest.raises(UserError, match='long'):
    inference_text.windows([3], 5, 'cut')


def test_batches_are_of_like_length_and_lose_nothing():
  lengths = [3, 200, 14, 60, 61, 62, 0]
  chosen = inference_text.windows(lengths, 254)
  seen = []
  for members, size in inference_text.batches(chosen, 2, 256):
    assert len(members) <= 2
    for index in members:
      needed = lengths[index] + 2
      assert size / 2 < max(needed, 9) <= size
    seen += members
  assert sorted(seen) == list(range(len(lengths)))
  assert inference_text.bucket(250, 256) == 256
  assert inference_text.bucket(40, 41) == 41


def test_rows_are_what_training_rows_are(model):
  text = 'Returns the array.'
  ids = model.vocabulary.encode(text)
  batch = inference_text.rows([ids], 16, 2)
  row = model.vocabulary.row(text, 16)
  np.testing.assert_array_equal(batch['encoder_input_tokens'][0], row)
  np.testing.assert_array_equal(
    batch['encoder_segment_ids'], [row > 0, np.zeros(16)]
  )
  n = len(ids) + 2
  np.testing.assert_array_equal(
    batch['encoder_positions'][0], [*range(n), *[0] * (16 - n)]
  )


# ----------------------------------------------------------------------
# Answers.
# ----------------------------------------------------------------------

TEXTS = [
  'Returns the array of the list.',
  '',
  'the',
  'Returns the shape of each row for each item.',
]


def one_row(model, ids, mode, **options):
  """The model's answer about one row, unpadded, by hand."""
  batch = inference_text.rows([ids], len(ids) + 2, 1)
  predict = functools.partial(model.model.predict_batch, mode=mode, **options)
  answer = jax.jit(predict)(model.params, batch)
  return jax.tree.map(lambda x: np.asarray(x)[0], answer)


def test_detect_maps_every_token_whatever_the_company(model):
  for text, answer in zip(TEXTS, model.detect(TEXTS), strict=True):
    ids = model.vocabulary.encode(text)
    assert answer.text == text
    assert [t.id for t in answer.tokens] == ids
    expected = one_row(model, ids, 'detect')[1:-1]
    np.testing.assert_allclose(
      answer.p_replaced, expected, rtol=0, atol=TOLERANCE
    )
  assert 0 < answer.p_replaced.min() < answer.p_replaced.max() < 1


def test_encode_gives_hidden_states_and_cls(model):
  for text, answer in zip(TEXTS, model.encode(TEXTS), strict=True):
    h = one_row(model, model.vocabulary.encode(text), 'encode')
    assert answer.hidden.shape == (len(answer.tokens), 32)
    np.testing.assert_allclose(answer.hidden, h[1:-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(answer.cls, h[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize('head', ['auxiliary', 'lm'])
def test_fill_gives_the_likeliest_tokens(model, head):
  text = 'Returns the [MASK] of the [MASK].'
  plain, answer = model.fill(['no mask', text], top_k=3, head=head)
  assert plain.masks == [] and plain.filled == 'no mask'
  assert [(m.start, m.end) for m in answer.masks] == [(12, 18), (26, 32)]
  ids = [t.id for t in model._tokenize(text, masks=True)]
  expected = one_row(model, ids, 'fill', head=head, top_k=16)
  special = model.vocabulary.is_special(expected.ids)
  for slot, mask in enumerate(answer.masks):
    assert len(mask.candidates) == 3
    good = ~special[slot]
    assert [c.id for c in mask.candidates] == list(expected.ids[slot][good][:3])
    np.testing.assert_allclose(
      [c.probability for c in mask.candidates],
      expected.probabilities[slot][good][:3],
      rtol=1e-4,
    )


def test_a_long_text_is_answered_by_its_windows(model):
  text = 'Returns the shape of each row. ' * 20
  ids = model.vocabulary.encode(text)
  room = model.max_length - 2
  windows = inference_text.windows([len(ids)], room)
  assert len(windows) > 3
  answer = model.encode([text])[0]
  states = [one_row(model, ids[w.start : w.stop], 'encode') for w in windows]
  for w, h in zip(windows, states, strict=True):
    np.testing.assert_allclose(
      answer.hidden[w.keep_start : w.keep_stop],
      h[1:-1][w.keep_start - w.start : w.keep_stop - w.start],
      rtol=0,
      atol=1e-5,
    )
  cls = np.mean([h[0] for h in states], axis=0)
  np.testing.assert_allclose(answer.cls, cls, rtol=0, atol=1e-5)

  cut = model.detect([text], long='truncate')[0]
  assert len(cut.tokens) == len(cut.p_replaced) == room
  with pytest.raises(UserError, match=f'has {len(ids)} tokens'):
    model.detect([text], long='error')


def test_masks_of_a_long_text_are_answered_once_each(model):
  text = 'the [MASK] of ' * 40
  answer = model.fill([text], top_k=1)[0]
  assert len(answer.masks) == 40
  assert [m.start for m in answer.masks] == list(range(4, 14 * 40, 14))
  assert '[MASK]' not in answer.filled


def test_wrong_arguments_are_named(model):
  for call in (model.detect, model.fill, model.encode):
    with pytest.raises(UserError, match='list of texts'):
      call('one text')
  with pytest.raises(UserError, match='top_k = 0'):
    model.fill(['[MASK]'], top_k=0)
  with pytest.raises(UserError, match='head'):
    model.fill(['[MASK]'], head='main')


def test_filled_joins_words_as_they_are_written():
  def filling(text, *words):
    masks, start = [], 0
    for word in words:
      start = text.index('[MASK]', start)
      starts_word = word.startswith(' ')
      candidate = Candidate(word.strip(), starts_word, 1.0, 9)
      masks.append(Mask(start, start + 6, [candidate]))
      start += 6
    return Filling(text, masks).filled

  assert filling('the [MASK] of', ' sum') == 'the sum of'
  assert filling('un[MASK]able', 'do') == 'undoable'
  assert filling('the[MASK]', ' sum') == 'the sum'
  assert filling('([MASK])', ' sum') == '(sum)'
  assert filling('[MASK][MASK] x', ' a', ' b') == 'a b x'
  assert filling('[MASK][MASK] x', ' re', 'do') == 'redo x'


def test_replaced_joins_the_tokens_of_a_stretch():
  text = 'the banana of'
  tokens = [Token(9, 0, 3), Token(9, 4, 7), Token(9, 7, 10), Token(9, 11, 13)]
  p = np.array([0.1, 0.9, 0.6, 0.7], np.float32)
  detection = Detection(text, tokens, p)
  assert detection.replaced() == [(4, 10), (11, 13)]
  assert detection.replaced(0.65) == [(4, 7), (11, 13)]
  assert detection.replaced(1.0) == []


# ----------------------------------------------------------------------
# Loading.
# ----------------------------------------------------------------------


def test_load_takes_the_checkpoint_asked_for(tiny_run, model):
  assert model.step == 12
  earlier = inference.load(tiny_run, step=6)
  assert earlier.step == 6
  text = ['Returns the array.']
  a, b = model.encode(text)[0].cls, earlier.encode(text)[0].cls
  assert np.abs(a - b).max() > 1e-4


def test_load_restores_what_training_saved(tiny_run, model):
  """Loss of the loaded parameters on held-out text = what training logged."""
  from metro_jax import metrics, plot

  logged = plot.read_series(
    tiny_run / 'training_eval' / 'validation' / 'metrics.jsonl'
  )
  source = data.TextFiles(
    f'{tiny_run.parent}/text/*.txt', 'blank_line', validation_fraction=0.2
  )
  dataset = data.TokenDataset(
    source,
    'validation',
    length=32,
    batch_size=8,
    vocabulary=model.vocabulary,
    mask_rate=0.25,
    shuffle=False,
    data_dir=str(tiny_run.parent / 'data'),
  )
  loss_fn = jax.jit(model.model.loss_fn, static_argnames='train')
  _, found = loss_fn(
    model.params, dataset.batch(0), jax.random.key(0), 0, train=False
  )
  found = metrics.compute(jax.device_get(found))
  for name in ('loss/mlm', 'loss/rtd', 'loss/clm'):
    steps, values = logged[name]
    assert steps[-1] == 12
    assert found[name] == pytest.approx(values[-1], rel=1e-5)


def test_load_leaves_a_configuration_as_it_was(tiny_run):
  # Locked, as after training in the same process.
  gin.clear_config()
  gin.parse_config('MINE = 3')
  gin.finalize()
  try:
    inference.load(tiny_run)
    assert gin.query_parameter('%MINE') == 3
    assert gin.config_is_locked()
    with pytest.raises(ValueError, match='macro'):
      gin.query_parameter('%MODEL')
  finally:
    gin.clear_config()


def copy(tiny_run, tmp_path):
  return shutil.copytree(tiny_run, tmp_path / 'copy')


def test_one_model_does_not_colour_the_next(tiny_run, tmp_path):
  other = copy(tiny_run, tmp_path)
  config = other / 'config.gin'
  text = config.read_text()
  assert 'reset_cls = True' in text
  config.write_text(text.replace('reset_cls = True', 'reset_cls = False'))
  with pytest.raises(UserError, match='does not fit the model'):
    inference.load(other)
  inference.load(tiny_run)


def test_what_cannot_be_loaded_is_named(tiny_run, tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    inference.load(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'config\.gin: cannot be read'):
    inference.load(tmp_path)
  with pytest.raises(UserError, match='holds no checkpoint_7; it has'):
    inference.load(tiny_run, step=7)
  other = copy(tiny_run, tmp_path)
  (other / 'vocabulary.model').write_bytes(b'rubbish')
  with pytest.raises(UserError, match='vocabulary'):
    inference.load(other)
  (other / 'config.gin').write_text('MODEL = %NOTHING')
  with pytest.raises(UserError, match='does not describe a model'):
    inference.load(other)


def test_a_vocabulary_larger_than_the_model_is_refused(model, monkeypatch):
  monkeypatch.setattr(model.vocabulary, 'size', 10**6)
  with pytest.raises(UserError, match='VOCAB_SIZE'):
    inference.PretrainedModel(model.model, model.params, model.vocabulary)
