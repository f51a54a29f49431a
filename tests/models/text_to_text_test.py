# SPDX-License-Identifier: Apache-2.0
"""The text-to-text model: loss, scores, and text from a decode cache."""

import functools

import jax
import numpy as np
import pretrain_models
import pytest
import seq2seq_models
from flax import linen as nn
from pretraining_flops_test import products
from scipy import special

from metro_jax import metrics, models, modules
from metro_jax.errors import UserError

START, END, VOCAB = 4, 3, pretrain_models.VOCAB
INPUTS, TARGETS = 10, 7


def make(**changes) -> models.TextToTextModel:
  config = seq2seq_models.encoder_config()
  module = models.TextToText(config, seq2seq_models.main())
  return models.TextToTextModel(module, target_length=TARGETS, **changes)


MODEL = make()


@pytest.fixture(scope='module')
def params():
  batch = MODEL.build_batch_spec(1, INPUTS)
  shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), batch))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0.05, 0.35, x.shape).astype(np.float32), shapes
  )


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(1)
  inputs = rng.integers(5, VOCAB, (4, INPUTS)).astype(np.int32)
  targets = rng.integers(5, VOCAB, (4, TARGETS)).astype(np.int32)
  for row, (n, m) in enumerate([(10, 7), (4, 3), (7, 5), (9, 1)]):
    inputs[row, n:] = 0
    targets[row, m - 1], targets[row, m:] = END, 0
  return {'encoder_input_tokens': inputs, 'decoder_target_tokens': targets}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
  return model.text_to_text.apply({'params': params}, batch).logits()


def log_p(params, batch):
  """Log-probabilities [batch, target length] by NumPy; 0 at padding."""
  x = special.log_softmax(np.float64(logits_of(MODEL, params, batch)), axis=-1)
  targets = batch['decoder_target_tokens']
  picked = np.take_along_axis(x, targets[..., None], axis=-1)[..., 0]
  return np.where(targets > 0, picked, 0.0)


def loss(model, params, batch, normalizers=None, train=False):
  call = jax.jit(model.loss_fn, static_argnums=(4,))
  return call(params, batch, jax.random.key(0), 0, train, normalizers)


def test_the_loss_is_the_mean_over_target_tokens(params, batch):
  value, values = loss(MODEL, params, batch)
  count = (batch['decoder_target_tokens'] > 0).sum()
  expected = -log_p(params, batch).sum() / count
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  values = metrics.compute(values)
  assert values['loss'] == values['loss/lm'] == pytest.approx(expected)
  right = (
    logits_of(MODEL, params, batch).argmax(-1)
    == (batch['decoder_target_tokens'])
  )
  right = right[batch['decoder_target_tokens'] > 0]
  assert values['lm_accuracy'] == pytest.approx(right.mean())


def test_z_loss_and_weights(params, batch):
  targets = batch['decoder_target_tokens']
  weights = (targets > 0) * np.arange(TARGETS, dtype=np.float32)
  weighted = batch | {'decoder_loss_weights': weights}
  value, _ = loss(make(z_loss=0.1), params, weighted)
  lse = special.logsumexp(logits_of(MODEL, params, batch), axis=-1)
  expected = ((-log_p(params, batch) + 0.1 * lse**2) * weights).sum()
  np.testing.assert_allclose(value, expected / weights.sum(), rtol=1e-5)


def test_parts_add_up_to_the_whole_with_dropout(params, batch):
  whole = batch | {'row_ids': np.arange(4, dtype=np.uint32)}
  counts = MODEL.normalizers(whole)
  want, _ = loss(MODEL, params, whole, counts, True)
  halves = [{name: x[i::2] for name, x in whole.items()} for i in range(2)]
  got = sum(loss(MODEL, params, half, counts, True)[0] for half in halves)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert abs(want - loss(MODEL, params, whole, counts)[0]) > 1e-3


def test_scores_of_given_targets(params, batch):
  score = jax.jit(MODEL.score_batch, static_argnames='mean')
  expected = log_p(params, batch)
  np.testing.assert_allclose(
    score(params, batch), expected.sum(axis=1), rtol=1e-5
  )
  np.testing.assert_allclose(
    score(params, batch, mean=True), expected.sum(axis=1) / [7, 3, 5, 1],
    rtol=1e-5,
  )  # fmt: skip


def test_packed_pairs_score_as_they_do_alone(params, batch):
  """Rows 1 and 2 in one row of length 4 + 7 -> 11, targets 3 + 5 -> 8."""
  take = {'encoder': (4, 7), 'decoder': (3, 5)}
  packed = {}
  for stream, name in (
    ('encoder', 'input_tokens'),
    ('decoder', 'target_tokens'),
  ):
    parts = [
      batch[f'{stream}_{name}'][row, :n]
      for row, n in zip((1, 2), take[stream], strict=True)
    ]
    packed[f'{stream}_{name}'] = np.concatenate(parts)[None]
    sizes = [len(p) for p in parts]
    packed[f'{stream}_segment_ids'] = np.repeat([1, 2], sizes)[None]
    packed[f'{stream}_positions'] = np.concatenate(
      [np.arange(n) for n in sizes]
    )[None]
  alone = log_p(params, batch)[1:3].sum()
  together = jax.jit(MODEL.score_batch)(params, packed)[0]
  np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.fixture(scope='module')
def generate():
  return jax.jit(
    MODEL.generate,
    static_argnames=('length', 'beams', 'temperature', 'top_k', 'alpha'),
  )


def test_greedy_text_equals_decoding_without_a_cache(params, batch, generate):
  inputs = {'encoder_input_tokens': batch['encoder_input_tokens']}
  # So that a row or two end before they must.
  got = generate(params, inputs, length=TARGETS)
  tokens = np.zeros((4, TARGETS), np.int32)
  ended = np.zeros(4, bool)
  for index in range(TARGETS):
    # What is to come is not read: a placeholder stands there.
    targets = np.where(np.arange(TARGETS) < index, tokens, 5)
    grown = inputs | {
      'decoder_target_tokens': targets.astype(np.int32),
      'decoder_segment_ids': np.ones((4, TARGETS), np.int32),
    }
    best = np.asarray(logits_of(MODEL, params, grown))[:, index].argmax(-1)
    tokens[:, index] = np.where(ended, 0, best)
    ended |= best == END
  np.testing.assert_array_equal(got.tokens, tokens)
  scored = inputs | {'decoder_target_tokens': tokens}
  if (tokens > 0).any():
    np.testing.assert_allclose(
      got.scores, log_p(params, scored).sum(axis=1), rtol=1e-4
    )


def test_beams_are_scored_as_the_model_scores_them(params, batch, generate):
  """Keys and values follow the beam that they belong to."""
  inputs = {'encoder_input_tokens': batch['encoder_input_tokens']}
  got = generate(params, inputs, length=TARGETS, beams=3, alpha=0.0)
  assert got.tokens.shape == (4, 3, TARGETS)
  assert (np.diff(got.scores, axis=1) <= 0).all()
  for beam in range(3):
    tokens = np.asarray(got.tokens[:, beam])
    want = log_p(params, inputs | {'decoder_target_tokens': tokens})
    np.testing.assert_allclose(got.scores[:, beam], want.sum(axis=1), rtol=1e-4)
  assert len({tuple(t) for t in np.asarray(got.tokens[0])}) == 3


def test_samples_depend_on_key_and_row(params, batch, generate):
  inputs = {
    'encoder_input_tokens': batch['encoder_input_tokens'],
    'row_ids': np.arange(4, dtype=np.uint32),
  }
  options = {'length': TARGETS, 'temperature': 1.0}
  one = generate(params, inputs, rng=jax.random.key(0), **options)
  other = generate(params, inputs, rng=jax.random.key(1), **options)
  assert np.any(one.tokens != other.tokens)
  last = {name: x[2:] for name, x in inputs.items()}
  part = generate(params, last, rng=jax.random.key(0), **options)
  np.testing.assert_array_equal(one.tokens[2:], part.tokens)


def test_flops_are_those_of_the_traced_program():
  rows = 2
  batch = MODEL.build_batch_spec(rows, INPUTS)
  params = jax.eval_shape(MODEL.init, jax.random.key(0), batch)

  def forward(params, batch):
    module = MODEL.text_to_text
    return module.apply({'params': params}, batch).logits()

  count = products(jax.make_jaxpr(forward)(params, batch).jaxpr)
  assert MODEL.flops_per_step((rows, INPUTS)) == 3 * count


def test_parameters_are_those_of_a_metro_t5_checkpoint():
  def shapes(model):
    batch = model.build_batch_spec(1, INPUTS)
    tree = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): x.shape for path, x in leaves}

  ours, theirs = shapes(MODEL), shapes(seq2seq_models.metro_t5())
  assert ours.items() <= theirs.items()
  assert not any('auxiliary' in n or 'rtd' in n for n in ours)
  assert any('decoder' in n for n in ours)


def test_bad_input_is_refused(params, batch):
  config = seq2seq_models.encoder_config()
  with pytest.raises(UserError, match=r'TextToText.main: .* Encoder has none'):
    models.TextToText(config, modules.Encoder(config))
  with pytest.raises(UserError, match=r'length: 99 .* 32 positions'):
    MODEL.generate(params, batch, 99)
  with pytest.raises(UserError, match='beams, temperature'):
    MODEL.generate(params, batch, 5, beams=2, temperature=1.0)
  assert MODEL.max_length == MODEL.max_target_length == 32
  ask = functools.partial(MODEL.predict_batch, params, batch)
  with pytest.raises(UserError, match="mode: 'detect' is not one of"):
    ask('detect')
  score = MODEL.score_batch(params, batch)
  np.testing.assert_array_equal(ask('score'), score)


def test_a_metro_t5_run_writes_text(batch):
  pretraining = seq2seq_models.metro_t5()
  params = pretrain_models.init(pretraining)
  model = models.TextToTextModel.from_pretraining(pretraining)
  score = jax.jit(model.score_batch)(params, batch)
  assert score.shape == (4,) and (score < 0).all()
  with pytest.raises(UserError, match=r'Encoder has none'):
    models.TextToTextModel.from_pretraining(pretrain_models.model())
  shared = seq2seq_models.metro_t5(share=('token', 'lm_bias'), lm_head=None)
  with pytest.raises(UserError, match="with 'lm_bias' the auxiliary"):
    models.TextToTextModel.from_pretraining(shared)
