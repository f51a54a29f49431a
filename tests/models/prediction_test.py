# SPDX-License-Identifier: Apache-2.0
"""What a pretrained model answers, against its own logits in NumPy."""

import functools
import types

import jax
import numpy as np
import pretrain_models
import pytest

from metro_jax.errors import UserError
from metro_jax.pretrain import RTD, Corrupted, MaskedTokens


@pytest.fixture(scope='module')
def tiny():
  model = pretrain_models.model()

  @functools.partial(jax.jit, static_argnums=(2,), static_argnames=('head',))
  def predict(params, batch, mode, **options):
    return model.predict_batch(params, batch, mode, **options)

  return types.SimpleNamespace(
    model=model,
    params=pretrain_models.init(model),
    batch=pretrain_models.batch(),
    predict=predict,
  )


def apply(tiny, method):
  return tiny.model.pretrainer.apply(
    {'params': tiny.params}, tiny.batch, method=method
  )


def test_detect_is_the_probability_of_a_replaced_token(tiny):
  def logits(pretrainer, batch):
    masked = MaskedTokens.from_batch(
      {k: batch[k] for k in ('encoder_input_tokens', 'encoder_segment_ids')}
    )
    outputs = pretrainer.encode(masked.tokens, masked, train=False)
    return pretrainer.rtd_logits(outputs.top)

  x = np.asarray(apply(tiny, logits), np.float64)
  valid = tiny.batch['encoder_segment_ids'] > 0
  result = tiny.predict(tiny.params, tiny.batch, 'detect')
  np.testing.assert_allclose(
    result, np.where(valid, 1 / (1 + np.exp(x)), 0), rtol=1e-5
  )


def test_detect_and_encode_read_the_input_tokens_only(tiny):
  tokens = tiny.batch['encoder_input_tokens']
  segments = tiny.batch['encoder_segment_ids']
  other = tiny.batch | {
    'encoder_target_tokens': np.ones_like(tokens),
    'encoder_loss_weights': np.ones(tokens.shape, np.float32),
  }
  bare = {'encoder_input_tokens': tokens, 'encoder_segment_ids': segments}
  valid = segments > 0
  for mode in ('detect', 'encode'):
    expected = tiny.predict(tiny.params, tiny.batch, mode)
    result = tiny.predict(tiny.params, other, mode)
    np.testing.assert_array_equal(result, expected)
    # Another program, which may round otherwise.
    np.testing.assert_allclose(
      np.asarray(tiny.predict(tiny.params, bare, mode))[valid],
      np.asarray(expected)[valid],
      atol=1e-5,
    )
  assert expected.shape == (*tokens.shape, pretrain_models.WIDTH)


def test_encode_sees_a_changed_token_but_not_padding(tiny):
  batch = {'encoder_input_tokens': tiny.batch['encoder_target_tokens']}
  first = tiny.predict(tiny.params, batch, 'encode')
  longer = {'encoder_input_tokens': np.pad(*batch.values(), [(0, 0), (0, 3)])}
  padded = tiny.predict(tiny.params, longer, 'encode')
  valid = batch['encoder_input_tokens'] > 0
  np.testing.assert_allclose(
    np.asarray(padded[:, : valid.shape[1]])[valid],
    np.asarray(first)[valid],
    atol=1e-5,
  )
  changed = batch['encoder_input_tokens'].copy()
  changed[0, 3] = 5 + (changed[0, 3] + 1) % 50
  other = tiny.predict(tiny.params, {'encoder_input_tokens': changed}, 'encode')
  moved = np.abs(np.asarray(other - first)).max(axis=(1, 2))
  assert moved[0] > 1e-2 and not moved[1:].any()


def test_fill_ranks_the_auxiliary_distribution(tiny):
  def logits(pretrainer, batch):
    masked = MaskedTokens.from_batch(batch)
    return pretrainer.propose(masked).sampling_logits()

  x = np.asarray(apply(tiny, logits), np.float64)
  p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  result = tiny.predict(tiny.params, tiny.batch, 'fill')
  used = np.asarray(result.weights) > 0
  assert used.sum() == tiny.batch['encoder_loss_weights'].sum()
  rows = np.nonzero(used)[0]
  where = np.asarray(result.positions)[used]
  assert (tiny.batch['encoder_loss_weights'][rows, where] == 1).all()
  best = np.argsort(-p, axis=-1)[..., :5]
  np.testing.assert_array_equal(np.asarray(result.ids)[used], best[used])
  np.testing.assert_allclose(
    np.asarray(result.probabilities)[used],
    np.take_along_axis(p, best, -1)[used],
    rtol=1e-4,
  )


def test_fill_finds_mask_tokens_by_itself(tiny):
  tokens = np.where(
    tiny.batch['encoder_loss_weights'] > 0,
    pretrain_models.MASK,
    tiny.batch['encoder_target_tokens'],
  )
  bare = {'encoder_input_tokens': tokens}
  result = tiny.predict(tiny.params, bare, 'fill')
  expected = tiny.predict(tiny.params, tiny.batch, 'fill')
  used = np.asarray(expected.weights) > 0
  np.testing.assert_array_equal(result.weights, expected.weights)
  np.testing.assert_array_equal(
    np.asarray(result.ids)[used], np.asarray(expected.ids)[used]
  )


def test_fill_by_the_main_model_corrects_the_best_guesses(tiny):
  def logits(pretrainer, batch):
    masked = MaskedTokens.from_batch(batch, max_predictions=4)
    guess = pretrainer.propose(masked).sampling_logits().argmax(-1)
    corrupted = Corrupted(masked.fill(guess), masked)
    h = pretrainer.encode(corrupted.tokens, masked, train=False).top
    return pretrainer.lm_logits(masked.gather(h), corrupted).logits()

  expected = np.asarray(apply(tiny, logits)).argmax(-1)
  result = tiny.model.predict_batch(
    tiny.params, tiny.batch, 'fill', head='lm', top_k=2, max_fills=4
  )
  assert result.ids.shape == (*expected.shape, 2)
  used = np.asarray(result.weights) > 0
  np.testing.assert_array_equal(
    np.asarray(result.ids)[..., 0][used], expected[used]
  )


def test_questions_that_a_model_cannot_answer(tiny):
  def ask(model, mode, **options):
    model.predict_batch(tiny.params, tiny.batch, mode, **options)

  rtd_only = pretrain_models.model(objectives=(RTD(),), auxiliary=None)
  with pytest.raises(UserError, match="'translate' is not one of"):
    ask(tiny.model, 'translate')
  with pytest.raises(UserError, match="'decoder' is not one of"):
    ask(tiny.model, 'fill', head='decoder')
  with pytest.raises(UserError, match="objective 'mlm'"):
    ask(rtd_only, 'fill')
  with pytest.raises(UserError, match="objective 'clm'"):
    ask(rtd_only, 'fill', head='lm')
  no_rtd = pretrain_models.model(
    objectives=tiny.model.pretrainer.objectives[2:]
  )
  with pytest.raises(UserError, match='needs a model trained with the RTD'):
    ask(no_rtd, 'detect')
