# SPDX-License-Identifier: Apache-2.0
"""A recipe is a choice of parts: other parts fit, wrong ones are refused."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
from flax import linen as nn

from metro_jax import metrics, models, modules, pretrain
from metro_jax.errors import UserError
from metro_jax.pretrain import MLM, RTD, CorrectiveLM, LossTerm, Proposal


class Announcer(nn.Module):
  """Proposes token 10 + 10 * progress everywhere: no model, a schedule."""

  def __call__(self, masked, embedder, share, progress, train):
    token = jnp.round(10 + 10 * jnp.asarray(progress)).astype(jnp.int32)
    tokens = jnp.broadcast_to(token, masked.weights.shape)
    features = 100 * jax.nn.one_hot(tokens, pretrain_models.VOCAB)
    return Proposal(
      modules.TokenLogits(features, jnp.eye(pretrain_models.VOCAB))
    )


@dataclasses.dataclass(frozen=True)
class ReadReplacements:
  """An objective whose loss is the mean id of the replacements."""

  name: ClassVar[str] = 'read'
  weight: float = 1.0

  def count(self, masked):
    return jnp.sum(masked.weights)

  def __call__(self, pretrainer, outputs, corrupted):
    ids = corrupted.masked.gather(corrupted.tokens)
    return LossTerm(jnp.sum(ids * corrupted.masked.weights), {})


def test_another_auxiliary_follows_progress():
  """It is steps over curriculum steps, 1 at the end and in evaluation."""
  pretrainer = pretrain_models.pretrainer(
    auxiliary=Announcer(), objectives=(ReadReplacements(),)
  )
  model = models.PretrainingModel(pretrainer, curriculum_steps=200)
  params = pretrain_models.init(model)
  assert set(params) == {'embedder', 'main'}

  def loss(model, step, train):
    batch, key = pretrain_models.batch(), jax.random.key(0)
    return model.loss_fn(params, batch, key, step, train)[0]

  steps = jnp.array([0, 100, 200, 1000])
  training = jax.jit(jax.vmap(lambda step: loss(model, step, True)))(steps)
  np.testing.assert_allclose(training, [10, 15, 20, 20])
  assert loss(model, 0, False) == 20
  assert loss(models.PretrainingModel(pretrainer), 0, False) == 20


def test_a_corrupted_stream_needs_no_auxiliary():
  batch = pretrain_models.numbered(pretrain_models.batch())
  masked = batch['encoder_loss_weights'] > 0
  # Of every other row the masked tokens are replaced, by the next id.
  replaced = masked & (np.arange(len(masked)) % 2 == 0)[:, None]
  stream = batch['encoder_target_tokens'] + replaced.astype(np.int32)
  batch |= {'encoder_input_tokens': stream}
  model = pretrain_models.model(
    auxiliary=None, objectives=(RTD(), CorrectiveLM())
  )
  params = pretrain_models.init(model)
  assert set(params) == {'embedder', 'main', 'rtd_head', 'lm_head'}
  _, values = pretrain_models.loss(model)(params, batch, jax.random.key(0), 0)
  valid = batch['encoder_segment_ids'] > 0
  values = metrics.compute(values)
  assert values['replace_rate'] == pytest.approx(replaced.sum() / valid.sum())


def test_overflowing_masks_are_counted_and_not_trained_on():
  """Two slots: as if the later masks had never been drawn."""
  batch = pretrain_models.numbered(pretrain_models.batch())
  weights = batch['encoder_loss_weights']
  kept = weights * (np.cumsum(weights, axis=1) <= 2)
  fewer = batch | {
    'encoder_loss_weights': kept,
    'encoder_input_tokens': np.where(
      kept > 0, pretrain_models.MASK, batch['encoder_target_tokens']
    ),
  }
  model = pretrain_models.model(max_predictions=2)
  params = pretrain_models.init(model)
  loss = pretrain_models.loss(model)
  (over, of_over), (exact, of_exact) = (
    loss(params, b, jax.random.key(0), 0) for b in (batch, fewer)
  )
  assert over == exact
  of_over, of_exact = metrics.compute(of_over), metrics.compute(of_exact)
  assert of_over.pop('dropped_masks') == pytest.approx(
    1 - kept.sum() / weights.sum()
  )
  assert of_exact.pop('dropped_masks') == 0
  assert of_over == of_exact


def test_parameters_are_boxed_with_logical_axes():
  model = pretrain_models.model()
  batch = model.build_batch_spec(2, 8)
  boxed = jax.eval_shape(model.init, jax.random.key(0), batch)
  table = boxed['embedder']['token']['embedding']
  assert table.names == ('vocab', 'embed')
  everything = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )
  assert all(isinstance(x, nn.Partitioned) for x in everything)


def test_heads_come_to_be_when_an_objective_calls_them():
  def parts(*objectives):
    model = pretrain_models.model(objectives=objectives)
    batch = model.build_batch_spec(1, 8)
    return set(jax.eval_shape(model.init, jax.random.key(0), batch))

  common = {'embedder', 'main', 'auxiliary'}
  assert parts(MLM(), RTD()) == common | {'rtd_head'}
  assert parts(MLM(), CorrectiveLM()) == common | {'lm_head'}
  assert parts(RTD(), MLM(), CorrectiveLM(copy=True)) == common | {
    'rtd_head',
    'lm_head',
  }


def wide(**changes) -> pretrain.Auxiliary:
  return pretrain.Auxiliary(pretrain_models.config(**changes))


@pytest.mark.parametrize(
  'changes, parameter, says',
  [
    ({'share': ('tokens',)}, 'Pretrainer.share', "'tokens' is not one of"),
    ({'max_predictions': 0}, 'Pretrainer.max_predictions', 'at least 1'),
    ({'dropout_rate': 1.0}, 'Pretrainer.dropout_rate', 'not in'),
    ({'objectives': ()}, 'Pretrainer.objectives', 'one or more'),
    ({'objectives': (RTD(), RTD())}, 'Pretrainer.objectives', 'of its kind'),
    ({'auxiliary': None}, 'Pretrainer.objectives', 'there is none'),
    ({'auxiliary': wide(vocab_size=128)}, 'Pretrainer.share', 'vocab_size'),
    ({'auxiliary': wide(embed_dim=32)}, 'Pretrainer.share', 'table_width'),
    ({'objectives': (RTD(source='decoder'),)}, 'RTD.source', "no 'decoder'"),
    (
      {'objectives': (CorrectiveLM(source='tpo'),)},
      'CorrectiveLM.source',
      "no 'tpo'",
    ),
  ],
)
def test_parts_that_do_not_fit_are_refused(changes, parameter, says):
  model = pretrain_models.model(**changes)
  batch = model.build_batch_spec(1, 8)
  with pytest.raises(UserError) as error:
    jax.eval_shape(model.init, jax.random.key(0), batch)
  message = str(error.value)
  assert message.startswith(parameter + ':') and says in message
  assert '\n' not in message


def test_an_unknown_choice_of_positions_is_refused():
  with pytest.raises(UserError, match=r'CorrectiveLM\.positions'):
    CorrectiveLM(positions='some')


def test_an_auxiliary_of_another_width_shares_tables_of_one_width():
  """ELECTRA's small models: both project the same narrow table."""
  config = pretrain_models.config(table_dim=8)
  narrow = pretrain_models.config(embed_dim=4, table_dim=8)
  model = pretrain_models.model(
    config=config,
    main=modules.Encoder(config),
    auxiliary=pretrain.Auxiliary(narrow),
    share=('token', 'position', 'norm'),
  )
  batch = model.build_batch_spec(1, 8)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  assert params['embedder']['token']['embedding'].shape == (64, 8)
  assert params['auxiliary']['mlm_head']['dense']['kernel'].shape == (4, 8)
