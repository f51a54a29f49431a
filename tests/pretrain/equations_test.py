# SPDX-License-Identifier: Apache-2.0
"""METRO-LM's equations 4 to 9 in NumPy, from the hidden states up.

The oracles take hidden states and parameters, and share no code with the
model: loops over positions, float64, the formulas as the paper has them.
"""

import types

import jax
import numpy as np
import pretrain_models
import pytest
from flax import linen as nn
from scipy import special, stats

from metro_jax import metrics, pretrain
from metro_jax.pretrain import MLM, RTD, CorrectiveLM, MaskedTokens

# Float32 sums of 16 to 64 terms, each good to as many roundings.
CLOSE = {'rtol': 64 * np.finfo(np.float32).eps}


def traced(pretrainer, batch, train=False):
  """The body of Pretrainer.__call__, with what lies between its lines."""
  masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
  corrupted = pretrainer.corrupt(masked, 1.0, train)
  outputs = pretrainer.encode(corrupted.tokens, masked, train)
  return corrupted.tokens, outputs.last, pretrainer.loss(outputs, corrupted)


def run(pretrainer, params, batch, train=False):
  """Tokens, hidden states, loss and metrics of one pass."""

  @jax.jit
  def call(params, batch):
    return pretrainer.apply(
      {'params': params},
      batch,
      train,
      rngs={name: jax.random.key(5) for name in ('dropout', 'sample')},
      method=traced,
      capture_intermediates=lambda module, _: (
        isinstance(module, nn.Module) and module.name == 'encoder'
      ),
      mutable=['intermediates'],
    )

  (tokens, h_main, (loss, values)), state = call(params, batch)
  passes = state['intermediates']['auxiliary']['encoder']['__call__']
  return types.SimpleNamespace(
    tokens=np.asarray(tokens),
    h_main=np.asarray(h_main, np.float64),
    h_aux=[np.asarray(one.last, np.float64) for one in passes],
    loss=float(loss),
    metrics=metrics.compute(values),
  )


@pytest.fixture(scope='module')
def result(tiny):
  return run(tiny.pretrainer, tiny.params, tiny.batch)


def masked_set(batch):
  return list(zip(*np.nonzero(batch['encoder_loss_weights']), strict=True))


def p_lm(h, table, bias):
  logits = table.astype(np.float64) @ h + bias
  return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def p_mlm(h, params):
  """Equation 4's softmax, with the head of the public code before it."""
  head, table = params['auxiliary']['mlm_head'], params['embedder']['token']
  x = h @ head['dense']['kernel'] + head['dense']['bias']
  x = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
  x = x * head['norm']['scale'] + head['norm']['bias']
  return p_lm(x, table['embedding'], head['bias'])


def p_clm(h, params):
  return p_lm(
    h, params['embedder']['token']['embedding'], params['lm_head']['bias']
  )


def p_original(h, params):
  head = params['rtd_head']['output']
  return 1 / (1 + np.exp(-(h @ head['kernel'][:, 0] + head['bias'][0])))


def mlm_loss(result, batch, params):
  original = batch['encoder_target_tokens']
  terms = [
    -np.log(p_mlm(result.h_aux[0][i], params)[original[i]])
    for i in masked_set(batch)
  ]
  return np.mean(terms)


def rtd_loss(result, batch, params):
  terms = []
  for i in zip(*np.nonzero(batch['encoder_segment_ids']), strict=True):
    p = p_original(result.h_main[i], params)
    same = result.tokens[i] == batch['encoder_target_tokens'][i]
    terms.append(-np.log(p) if same else -np.log(1 - p))
  return np.mean(terms)


def clm_loss(result, batch, params, weight=lambda h: 1.0):
  original = batch['encoder_target_tokens']
  terms = []
  for i in masked_set(batch):
    h = result.h_main[i]
    terms.append(-weight(h) * np.log(p_clm(h, params)[original[i]]))
  return np.mean(terms)


def test_equation_4_auxiliary_loss(tiny, result):
  expected = mlm_loss(result, tiny.batch, tiny.params)
  np.testing.assert_allclose(result.metrics['loss/mlm'], expected, **CLOSE)


def test_equation_5_changes_masked_positions_only(tiny, result):
  batch = tiny.batch
  masked = batch['encoder_loss_weights'] > 0
  original = batch['encoder_target_tokens']
  np.testing.assert_array_equal(result.tokens[~masked], original[~masked])
  assert (result.tokens[masked] != original[masked]).any()
  # [MASK] itself may be drawn, but is not what is left over.
  assert (result.tokens[masked] != pretrain_models.MASK).any()


def test_equation_5_draws_from_the_auxiliary(tiny):
  """One row many times over: its replacements are distributed as p_mlm."""
  count = 1500
  batch = pretrain_models.numbered(
    {name: np.repeat(x[:1], count, axis=0) for name, x in tiny.batch.items()}
  )
  result = run(tiny.pretrainer, tiny.params, batch)
  where = [position for row, position in masked_set(tiny.batch) if row == 0]
  for position in where:
    p = p_mlm(result.h_aux[0][0, position], tiny.params)
    seen = np.bincount(result.tokens[:, position], minlength=p.size)
    rare = p * count < 5
    cells = [np.append(x[~rare], x[rare].sum()) for x in (seen, p * count)]
    assert stats.chisquare(*cells).pvalue > 1e-3
    uniform = np.full(p.size, count / p.size)
    assert stats.chisquare(seen, uniform).pvalue < 1e-9


def test_equation_6_replaced_token_detection(tiny, result):
  expected = rtd_loss(result, tiny.batch, tiny.params)
  np.testing.assert_allclose(result.metrics['loss/rtd'], expected, **CLOSE)


def test_equation_8_simplified_corrective_lm(tiny, result):
  expected = clm_loss(result, tiny.batch, tiny.params)
  np.testing.assert_allclose(result.metrics['loss/clm'], expected, **CLOSE)


def test_equations_7_and_9_joint_loss(tiny, result):
  arguments = (result, tiny.batch, tiny.params)
  expected = (
    mlm_loss(*arguments) + 50 * rtd_loss(*arguments) + clm_loss(*arguments)
  )
  np.testing.assert_allclose(result.loss, expected, **CLOSE)
  np.testing.assert_allclose(result.metrics['loss'], expected, **CLOSE)


def test_weights_are_factors_of_the_terms(tiny, result):
  objectives = (MLM(weight=0.5), RTD(weight=7.0), CorrectiveLM(weight=3.0))
  pretrainer = pretrain_models.pretrainer(objectives=objectives)
  other = run(pretrainer, tiny.params, tiny.batch)
  m = result.metrics
  expected = 0.5 * m['loss/mlm'] + 7 * m['loss/rtd'] + 3 * m['loss/clm']
  np.testing.assert_allclose(other.loss, expected, **CLOSE)


def test_metrics_of_the_corruption_and_of_its_detection(tiny, result):
  """Figure 3's two curves, and what stands beside them."""
  batch, params = tiny.batch, tiny.params
  valid = batch['encoder_segment_ids'] > 0
  replaced = (result.tokens != batch['encoder_target_tokens'])[valid]
  found = np.array([p_original(h, params) for h in result.h_main[valid]]) < 0.5
  m = result.metrics
  mean = pytest.approx
  assert m['replace_rate'] == mean(replaced.mean())
  assert m['replace_accuracy'] == mean(found[replaced].mean())
  assert m['rtd_precision'] == mean(replaced[found].mean())
  assert m['rtd_accuracy'] == mean((found == replaced).mean())
  where = masked_set(batch)
  original = [batch['encoder_target_tokens'][i] for i in where]
  guess = [p_mlm(result.h_aux[0][i], params).argmax() for i in where]
  assert m['auxiliary_accuracy'] == mean(np.equal(guess, original).mean())
  corrected = [p_clm(result.h_main[i], params).argmax() for i in where]
  assert m['clm_accuracy'] == mean(np.equal(corrected, original).mean())
  surprise = [
    -np.log(p_mlm(result.h_aux[0][i], params)[result.tokens[i]]) for i in where
  ]
  assert m['auxiliary_entropy'] == mean(np.mean(surprise), rel=1e-5)
  assert m['dropped_masks'] == 0


def test_coco_lm_weighs_corrections_by_p_replaced(tiny):
  """COCO-LM's copy mechanism, as its code has it: a factor on the loss."""
  objectives = (MLM(), RTD(), CorrectiveLM(copy=True))
  pretrainer = pretrain_models.pretrainer(objectives=objectives)
  result = run(pretrainer, tiny.params, tiny.batch)
  expected = clm_loss(
    result,
    tiny.batch,
    tiny.params,
    weight=lambda h: 1 - p_original(h, tiny.params),
  )
  np.testing.assert_allclose(result.metrics['loss/clm'], expected, **CLOSE)


def test_corrective_lm_at_all_positions(tiny):
  objectives = (CorrectiveLM(positions='all'),)
  pretrainer = pretrain_models.pretrainer(objectives=objectives)
  result = run(pretrainer, tiny.params, tiny.batch)
  everywhere = {
    **tiny.batch,
    'encoder_loss_weights': tiny.batch['encoder_segment_ids'],
  }
  expected = clm_loss(result, everywhere, tiny.params)
  np.testing.assert_allclose(result.metrics['loss/clm'], expected, **CLOSE)


def test_zero_dropout_auxiliary_runs_once_and_samples_from_what_it_learns(tiny):
  """With dropout there is a second pass, from which the sample comes."""
  one = run(tiny.pretrainer, tiny.params, tiny.batch, train=True)
  dropping = pretrain_models.pretrainer(aux_dropout=0.5)
  two = run(dropping, tiny.params, tiny.batch, train=True)
  assert len(one.h_aux) == 1 and len(two.h_aux) == 2
  # The pass that is sampled from is the same in both, hence the tokens.
  np.testing.assert_array_equal(one.h_aux[0], two.h_aux[1])
  np.testing.assert_array_equal(one.tokens, two.tokens)
  assert np.abs(one.h_aux[0] - two.h_aux[0]).max() > 0.1
  # The loss is that of the pass with dropout.
  expected = mlm_loss(two, tiny.batch, tiny.params)
  np.testing.assert_allclose(two.metrics['loss/mlm'], expected, **CLOSE)
  assert one.metrics['loss/mlm'] != two.metrics['loss/mlm']
  # The entropy is that of the distribution that was sampled from.
  np.testing.assert_allclose(
    two.metrics['auxiliary_entropy'], one.metrics['auxiliary_entropy'], **CLOSE
  )


def test_evaluation_has_no_dropout_anywhere(tiny, result):
  dropping = pretrain_models.pretrainer(aux_dropout=0.5, dropout_rate=0.5)
  other = run(dropping, tiny.params, tiny.batch)
  assert len(other.h_aux) == 1
  assert other.loss == pytest.approx(result.loss, rel=1e-6)


def test_gumbel_is_another_way_to_the_same_recipe(tiny, result):
  pretrainer = pretrain_models.pretrainer(sampler=pretrain.Gumbel())
  other = run(pretrainer, tiny.params, tiny.batch)
  assert (other.tokens != result.tokens).any()
  np.testing.assert_allclose(
    other.metrics['loss/mlm'], result.metrics['loss/mlm'], **CLOSE
  )
