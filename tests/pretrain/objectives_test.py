# SPDX-License-Identifier: Apache-2.0
"""Baselines' objectives: one-choice cloze, contrastive learning, MLM."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
from scipy import special

from metro_jax import metrics, modules, pretrain
from metro_jax.errors import UserError
from metro_jax.pretrain import MLM, RTD, CorrectiveLM, MaskedTokens
from metro_jax.pretrain.contrastive import crop

CLOSE = {'rel': 256 * float(np.finfo(np.float32).eps)}


@dataclasses.dataclass(frozen=True)
class MostLikely:
  """A sampler without chance."""

  carries_gradient: ClassVar[bool] = False
  rides_along: ClassVar[bool] = False

  def __call__(self, logits, seed, rows):
    return pretrain.Sample(jnp.argmax(logits, axis=-1))


@pytest.fixture(scope='module')
def batch():
  return pretrain_models.numbered(pretrain_models.batch())


def evaluate(model, params, batch, method):
  """Metrics of the loss, and what the method returns, without dropout."""
  _, values = pretrain_models.loss(model)(params, batch, jax.random.key(0), 0)

  def call(pretrainer, batch):
    masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
    corrupted = pretrainer.corrupt(masked, 1.0, False)
    outputs = pretrainer.encode(corrupted.tokens, masked, False)
    return method(pretrainer, masked, corrupted, outputs)

  rngs = {'sample': jax.random.key(0)}
  got = model.pretrainer.apply(
    {'params': params}, batch, rngs=rngs, method=call
  )
  return metrics.compute(values), jax.device_get(got)


@pytest.mark.parametrize('choices', [1, 3])
def test_cloze_is_a_softmax_over_the_original_and_its_rivals(batch, choices):
  objective = pretrain.OneChoiceCloze(choices=choices)
  model = pretrain_models.model(
    objectives=(MLM(z_loss=0.1), objective), sampler=MostLikely()
  )
  params = pretrain_models.drawn(model)

  def method(pretrainer, masked, corrupted, outputs):
    h = masked.gather(outputs.top)
    logits = pretrainer.lm_logits(h, corrupted).logits()
    proposed = corrupted.proposal.token_logits.logits()
    drawn = masked.gather(corrupted.tokens)
    return logits, proposed, masked.targets, drawn, masked

  values, (logits, proposed, targets, drawn, masked) = evaluate(
    model, params, batch, method
  )
  terms, found, mlm = [], [], []
  for i in zip(*np.nonzero(masked.weights), strict=True):
    x = logits[i].astype(np.float64)
    rivals = [] if drawn[i] == targets[i] else [x[drawn[i]]] * choices
    own = x[targets[i]]
    terms.append(special.logsumexp([own, *rivals]) - own)
    found.append(own >= max(rivals, default=-np.inf))
    log_z = special.logsumexp(proposed[i].astype(np.float64))
    mlm.append(log_z - proposed[i][targets[i]] + 0.1 * log_z**2)
  assert values['loss/cloze'] == pytest.approx(np.mean(terms), **CLOSE)
  assert values['loss/mlm'] == pytest.approx(np.mean(mlm), **CLOSE)
  assert values['cloze_accuracy'] == pytest.approx(np.mean(found))
  assert np.mean(np.array(terms) > 0) > 0


def test_every_draw_is_a_new_one(batch):
  model = pretrain_models.model()

  def method(pretrainer, masked, corrupted, outputs):
    del outputs
    return [pretrainer.draw(corrupted.proposal, masked).ids for _ in range(2)]

  _, (a, b) = evaluate(model, pretrain_models.drawn(model), batch, method)
  assert (a != b).any()


def contrast(z: np.ndarray, temperature: float) -> float:
  """Mean over 2B anchors of the cross entropy to the partner."""
  z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  n, terms = len(z), []
  for i in range(n):
    logits = z @ z[i] / temperature
    others = [j for j in range(n) if j != i]
    partner = (i + n // 2) % n
    terms.append(special.logsumexp(logits[others]) - logits[partner])
  return float(np.mean(terms))


def test_contrastive_loss(batch):
  objective = pretrain.SequenceContrastive(crop=1.0, temperature=0.5)
  model = pretrain_models.model(
    objectives=(MLM(), RTD(), objective), sampler=MostLikely()
  )
  params = pretrain_models.drawn(model)
  assert set(params['sequence_head']) == {'dense', 'norm'}

  def method(pretrainer, masked, corrupted, outputs):
    del corrupted
    whole = pretrainer.encode(masked.original, masked, False)
    first = [x.encoded[:, 0] for x in (outputs, whole)]
    return pretrainer.sequence_features(jnp.concatenate(first))

  values, z = evaluate(model, params, batch, method)
  expected = contrast(z.astype(np.float64), 0.5)
  assert values['loss/scl'] == pytest.approx(expected, **CLOSE)
  # Empty rows, which fill up the last batch of an evaluation, do not count.
  empty = {name: np.zeros_like(x) for name, x in batch.items()}
  both = {
    name: np.concatenate([x, empty[name]]) for name, x in batch.items()
  } | {'row_ids': np.arange(8, dtype=np.uint32)}
  _, more = pretrain_models.loss(model)(params, both, jax.random.key(0), 0)
  got = metrics.compute(more)['loss/scl']
  assert got == pytest.approx(expected, **CLOSE)


@pytest.mark.slow
def test_contrastive_learning_moves_the_main_model_and_its_own_head(batch):
  objectives = (MLM(), pretrain.SequenceContrastive())
  model = pretrain_models.model(objectives=objectives)
  params = pretrain_models.drawn(model)
  normalizers = {'mlm': np.float32(np.inf), 'scl': np.float32(1)}
  gradient = pretrain_models.gradient(model)
  _, grads = gradient(params, batch, jax.random.key(0), normalizers)
  moved = {
    part
    for part, tree in grads.items()
    if any(np.asarray(x).any() for x in jax.tree.leaves(tree))
  }
  assert moved == {'embedder', 'main', 'sequence_head'}


def test_crops_are_contiguous_parts_of_the_original():
  batch = pretrain_models.numbered(pretrain_models.batch(rows=64))
  masked = MaskedTokens.from_batch(batch)
  part = jax.device_get(crop(masked, 0.6, jnp.uint32(3)))
  sizes = (batch['encoder_segment_ids'] > 0).sum(1)
  starts = []
  for row, whole in enumerate(sizes):
    n = int(np.floor(0.6 * whole + 1e-9))
    valid = part.segment_ids[row] > 0
    assert valid.sum() == n and valid[:n].all()
    np.testing.assert_array_equal(part.positions[row, :n], np.arange(n))
    text = batch['encoder_target_tokens'][row, :whole]
    found = [
      i
      for i in range(whole - n + 1)
      if (text[i : i + n] == part.tokens[row, :n]).all()
    ]
    assert len(found) == 1
    starts.append(found[0] / (whole - n))
  assert min(starts) == 0 and max(starts) == 1
  # Uniform starts: the mean of 64 within five standard deviations.
  assert np.mean(starts) == pytest.approx(0.5, abs=5 * 0.36 / 8)
  assert not part.is_masked.any()


def test_masked_language_modelling_is_the_main_model_on_masked_tokens(batch):
  config = pretrain_models.config()
  model = pretrain_models.model(
    auxiliary=None,
    objectives=(CorrectiveLM(z_loss=0.5),),
    lm_head=modules.LMHead(config),
    share=(),
  )
  params = pretrain_models.drawn(model)
  assert set(params) == {'embedder', 'main', 'lm_head'}
  assert set(params['lm_head']) == {'dense', 'norm', 'bias'}

  def method(pretrainer, masked, corrupted, outputs):
    h = masked.gather(outputs.top)
    return pretrainer.lm_logits(h, corrupted).logits(), masked, corrupted.tokens

  values, (logits, masked, tokens) = evaluate(model, params, batch, method)
  np.testing.assert_array_equal(tokens, batch['encoder_input_tokens'])
  used = masked.weights > 0
  x = logits.astype(np.float64)[used]
  target = np.take_along_axis(
    batch['encoder_target_tokens'], masked.masked_positions, axis=1
  )[used]
  log_z = special.logsumexp(x, -1)
  loss = log_z - x[np.arange(len(x)), target] + 0.5 * log_z**2
  assert values['loss/clm'] == pytest.approx(loss.mean(), **CLOSE)
  answer = model.predict_batch(params, batch, 'fill', head='lm', top_k=1)
  got = np.asarray(answer.ids)[..., 0][np.asarray(answer.weights) > 0]
  np.testing.assert_array_equal(got, x.argmax(-1))


def test_electra_samples_from_the_pass_that_it_learns_from(batch):
  def proposal(second_pass: bool):
    auxiliary = pretrain.Auxiliary(
      pretrain_models.config(), 0.5, second_pass=second_pass
    )
    model = pretrain_models.model(auxiliary=auxiliary)

    def method(pretrainer, batch):
      masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
      return pretrainer.propose(masked, 1.0, train=True)

    got = model.pretrainer.apply(
      {'params': pretrain_models.drawn(model)},
      batch,
      rngs={'dropout': jax.random.key(0)},
      method=method,
    )
    return got, model.flops_per_step((1, pretrain_models.LENGTH))

  one, cost = proposal(False)
  two, more = proposal(True)
  learnt = np.asarray(one.token_logits.logits())
  np.testing.assert_array_equal(one.sampling_logits(), learnt)
  np.testing.assert_allclose(two.token_logits.logits(), learnt, atol=1e-5)
  assert np.abs(np.asarray(two.sampling_logits()) - learnt).max() > 0.1
  assert cost < more


def test_flops_of_heads_and_further_passes():
  def cost(*objectives, **changes):
    model = pretrain_models.model(objectives=objectives, **changes)
    return model.flops_per_step((1, pretrain_models.LENGTH))

  config, width = pretrain_models.config(), pretrain_models.WIDTH
  hidden = modules.RTDHead(config, hidden=True)
  more = cost(RTD(), rtd_head=hidden) - cost(RTD())
  assert more == 3 * 2 * pretrain_models.LENGTH * width**2
  deep = modules.LMHead(config)
  more = cost(CorrectiveLM(), lm_head=deep) - cost(CorrectiveLM())
  assert more == 3 * 2 * pretrain_models.SLOTS * width**2
  more = cost(RTD(), pretrain.SequenceContrastive()) - cost(RTD())
  main = cost(RTD(), auxiliary=None) / 3 - 2 * pretrain_models.LENGTH * width
  assert more == 3 * (main + 2 * 2 * width**2)


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda: pretrain.OneChoiceCloze(choices=0), 'OneChoiceCloze.choices'),
    (lambda: pretrain.SequenceContrastive(crop=0.0), 'crop'),
    (lambda: pretrain.SequenceContrastive(temperature=0.0), 'temperature'),
  ],
)
def test_values_out_of_range_are_refused(make, says):
  with pytest.raises(UserError, match=says):
    make()


def test_parts_that_do_not_fit_are_refused(batch):
  alone = pretrain_models.model(
    auxiliary=None, objectives=(pretrain.OneChoiceCloze(),)
  )
  with pytest.raises(UserError, match='draws its choices from an auxiliary'):
    jax.eval_shape(alone.init, jax.random.key(0), batch)
  shared = pretrain_models.model(
    lm_head=modules.LMHead(pretrain_models.config()),
    share=('token', 'lm_bias'),
  )
  with pytest.raises(UserError, match='LMHead of a bias and the table'):
    jax.eval_shape(shared.init, jax.random.key(0), batch)
