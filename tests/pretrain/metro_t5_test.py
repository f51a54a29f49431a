# SPDX-License-Identifier: Apache-2.0
"""METRO-T5: RTD on the encoder, decoding the original, loss where masked."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
import seq2seq_models

from metro_jax import metrics, modules
from metro_jax.errors import UserError
from metro_jax.pretrain import MLM, RTD, CorrectiveLM, MaskedTokens

# Float32 sums of 16 to 64 terms, each good to as many roundings.
CLOSE = {'rtol': 64 * np.finfo(np.float32).eps}
TERMS = ('mlm', 'rtd', 'clm')


@pytest.fixture(scope='module')
def tiny() -> types.SimpleNamespace:
  model = seq2seq_models.metro_t5()
  return types.SimpleNamespace(
    model=model,
    params=pretrain_models.init(model),
    batch=pretrain_models.numbered(pretrain_models.batch()),
  )


def traced(pretrainer, batch):
  """The body of Pretrainer.__call__, with what lies between its lines.

  And each term's gradient with respect to the hidden states.
  """
  masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
  corrupted = pretrainer.corrupt(masked, 1.0, False)
  outputs = pretrainer.encode(corrupted.tokens, masked, False)
  loss = pretrainer.loss(outputs, corrupted)

  def term(term, encoded, decoded):
    normalizers = {t: 1.0 if t == term else jnp.inf for t in TERMS}
    states = modules.MainOutput(encoded, decoded)
    return pretrainer.loss(states, corrupted, normalizers)[0]

  arguments = (outputs.encoded, outputs.decoded)
  gradients = {t: jax.grad(term, (1, 2))(t, *arguments) for t in TERMS[1:]}
  return corrupted.tokens, *arguments, loss, gradients


def run(model, params, batch):
  @jax.jit
  def call(params, batch):
    return model.pretrainer.apply(
      {'params': params},
      batch,
      rngs={'sample': jax.random.key(5)},
      method=traced,
    )

  names = ('tokens', 'encoded', 'decoded', 'loss', 'gradients')
  out = dict(zip(names, jax.device_get(call(params, batch)), strict=True))
  loss, values = out.pop('loss')
  return types.SimpleNamespace(
    loss=loss, metrics=metrics.compute(values), **out
  )


@pytest.fixture(scope='module')
def result(tiny):
  return run(tiny.model, tiny.params, tiny.batch)


def masked_set(batch):
  return list(zip(*np.nonzero(batch['encoder_loss_weights']), strict=True))


def p_lm(h, table):
  logits = table.astype(np.float64) @ h
  return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def p_original(h, head):
  """RoBERTa's head: linear, ReLU, LayerNorm, linear."""
  x = np.maximum(h @ head['dense']['kernel'] + head['dense']['bias'], 0)
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
  x = x * head['norm']['scale'] + head['norm']['bias']
  x = x @ head['output']['kernel'][:, 0] + head['output']['bias'][0]
  return 1 / (1 + np.exp(-x))


def clm_loss(result, tiny, weight=lambda i: 1.0):
  table = tiny.params['embedder']['token']['embedding']
  original = tiny.batch['encoder_target_tokens']
  terms = [
    -weight(i) * np.log(p_lm(result.decoded[i], table)[original[i]])
    for i in masked_set(tiny.batch)
  ]
  return np.mean(terms)


def test_equation_13_detection_on_the_encoder(tiny, result):
  original = tiny.batch['encoder_target_tokens']
  terms = []
  for i in zip(*np.nonzero(tiny.batch['encoder_segment_ids']), strict=True):
    p = p_original(np.float64(result.encoded[i]), tiny.params['rtd_head'])
    terms.append(-np.log(p if result.tokens[i] == original[i] else 1 - p))
  np.testing.assert_allclose(
    result.metrics['loss/rtd'], np.mean(terms), **CLOSE
  )


def test_equation_14_decoding_where_masked(tiny, result):
  np.testing.assert_allclose(
    result.metrics['loss/clm'], clm_loss(result, tiny), **CLOSE
  )


def test_equation_15_joint_loss(result):
  m = result.metrics
  expected = m['loss/mlm'] + 50 * m['loss/rtd'] + m['loss/clm']
  np.testing.assert_allclose(result.loss, expected, **CLOSE)


def test_the_decoder_reads_the_original_one_token_late(tiny, result):
  """And [MASK] first; the encoder reads the corrupted row."""
  batch, params = tiny.batch, tiny.params
  original, segments = (
    batch[f'encoder_{name}'] for name in ('target_tokens', 'segment_ids')
  )
  reads = np.roll(original, 1, axis=1)
  reads[:, 0] = pretrain_models.MASK
  config = seq2seq_models.encoder_config()

  @jax.jit
  def direct(params, tokens, reads):
    table = params['embedder']['token']['embedding']
    x = modules.Embedder(config).apply(
      {'params': params['embedder']},
      tokens,
      batch['encoder_positions'],
      segments > 0,
    )
    return seq2seq_models.main().apply(
      {'params': params['main']},
      x,
      segments,
      batch['encoder_positions'],
      decoder_x=table[reads],
      decoder_segment_ids=segments,
      decoder_positions=batch['encoder_positions'],
    )

  want = direct(params, result.tokens, reads)
  np.testing.assert_allclose(result.encoded, want.encoded, atol=1e-5)
  np.testing.assert_allclose(result.decoded, want.decoded, atol=1e-5)


def test_decoder_positions_that_are_not_masked_add_nothing(tiny, result):
  masked = tiny.batch['encoder_loss_weights'] > 0
  encoded, decoded = result.gradients['clm']
  assert not encoded.any()
  np.testing.assert_array_equal(np.any(decoded != 0, axis=-1), masked)


def test_detection_reads_every_token_of_the_encoder_only(tiny, result):
  valid = tiny.batch['encoder_segment_ids'] > 0
  encoded, decoded = result.gradients['rtd']
  np.testing.assert_array_equal(np.any(encoded != 0, axis=-1), valid)
  assert not decoded.any()


def test_which_parameters_the_terms_move(tiny):
  gradient = pretrain_models.gradient(tiny.model)

  def moved(term):
    normalizers = {t: np.float32(1 if t == term else np.inf) for t in TERMS}
    _, grads = gradient(tiny.params, tiny.batch, jax.random.key(0), normalizers)
    return {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, x in jax.tree_util.tree_leaves_with_path(grads)
      if np.any(x) and np.all(np.isfinite(x))
    }

  def parts(paths):
    return {'/'.join(path.split('/')[: 1 + (path[:4] == 'main')])
            for path in paths}  # fmt: skip

  main = {'main/encoder', 'main/decoder', 'main/decoder_embedder'}
  assert parts(moved('mlm')) == {'auxiliary', 'embedder'}
  assert parts(moved('rtd')) == {'embedder', 'main/encoder', 'rtd_head'}
  assert parts(moved('clm')) == {'embedder'} | main
  # Cross-attention is how the decoder hears of the encoder.
  cross = 'main/decoder/stack/layers_0/cross_attention/query/kernel'
  assert cross in moved('clm')


def test_a_weighted_lm_loss_asks_the_detector_of_the_encoder(tiny):
  objectives = (MLM(), RTD(source='encoder'), CorrectiveLM(copy=True))
  model = seq2seq_models.metro_t5(objectives=objectives)
  result = run(model, tiny.params, tiny.batch)

  def weight(i):
    head = tiny.params['rtd_head']
    return 1 - p_original(np.float64(result.encoded[i]), head)

  np.testing.assert_allclose(
    result.metrics['loss/clm'], clm_loss(result, tiny, weight), **CLOSE
  )
  # The weight is a constant.
  assert not result.gradients['clm'][0].any()


def test_ablations_of_table_4(tiny):
  """Detection on the decoder, and the loss at all positions."""
  model = seq2seq_models.metro_t5(
    objectives=(MLM(), RTD(source='decoder'), CorrectiveLM(positions='all'))
  )
  result = run(model, tiny.params, tiny.batch)
  valid = tiny.batch['encoder_segment_ids'] > 0
  for term in ('rtd', 'clm'):
    encoded, decoded = result.gradients[term]
    assert not encoded.any()
    np.testing.assert_array_equal(np.any(decoded != 0, axis=-1), valid)


def parts_of(model):
  batch = model.build_batch_spec(1, 8)
  return jax.eval_shape(model.init, jax.random.key(0), batch)


def test_heads_have_the_parameters_of_their_kind():
  config = seq2seq_models.encoder_config()
  params = parts_of(seq2seq_models.metro_t5())
  assert set(params['rtd_head']) == {'dense', 'norm', 'output'}
  assert 'lm_head' not in params
  projected = parts_of(
    seq2seq_models.metro_t5(lm_head=modules.LMHead(config, projection=True))
  )
  assert set(projected['lm_head']) == {'dense', 'norm', 'bias'}
  assert set(parts_of(seq2seq_models.metro_t5(rtd_head=None))['rtd_head']) == {
    'output'
  }


def test_a_shared_bias_needs_a_plain_head():
  model = seq2seq_models.metro_t5(share=('token', 'lm_bias'))
  with pytest.raises(UserError, match=r"Pretrainer\.share: 'lm_bias'"):
    parts_of(model)


def test_the_longest_sequence_is_the_shorter_tables():
  short = seq2seq_models.decoder_config(
    positions=modules.PositionConfig(max_length=9, relative=None)
  )
  config = seq2seq_models.encoder_config()
  model = seq2seq_models.metro_t5(main=modules.EncoderDecoder(config, short))
  assert model.max_length == 9


def test_predictions(tiny):
  """Filling in: the decoder reads the guesses, since nothing else is known."""
  batch = {
    name: x
    for name, x in tiny.batch.items()
    if name not in ('encoder_target_tokens', 'row_ids')
  }
  ask = jax.jit(
    tiny.model.predict_batch, static_argnums=2, static_argnames=('head',)
  )
  fill = ask(tiny.params, batch, 'fill', head='lm')
  assert fill.ids.shape == (*fill.positions.shape, 5)
  table = tiny.params['embedder']['token']['embedding']

  @jax.jit
  def decoded(params):
    def states(pretrainer):
      masked = MaskedTokens.from_batch(batch, None)
      guess = jnp.argmax(pretrainer.propose(masked).sampling_logits(), -1)
      tokens = masked.fill(guess)
      known = MaskedTokens.from_batch(
        batch | {'encoder_input_tokens': tokens,
                 'encoder_target_tokens': tokens}
      )  # fmt: skip
      return pretrainer.encode(tokens, known, False).decoded

    return tiny.model.pretrainer.apply({'params': params}, method=states)

  h = jax.device_get(decoded(tiny.params))
  for row, position in masked_set(batch):
    slot = list(fill.positions[row]).index(position)
    want = np.argsort(-p_lm(h[row, position], table))[:5]
    np.testing.assert_array_equal(fill.ids[row, slot], want)
