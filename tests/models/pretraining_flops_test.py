# SPDX-License-Identifier: Apache-2.0
"""FLOPs by formula against the matrix products of the traced program."""

import math

import jax
import pretrain_models
import pytest
import seq2seq_models

from metro_jax import pretrain
from metro_jax.pretrain import MLM, RTD, CorrectiveLM, MaskedTokens

ROWS, LENGTH, SLOTS = 2, 16, pretrain_models.SLOTS


def products(jaxpr) -> int:
  """Operations of all dot_generals, those of inner programs included."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracting, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      inner = math.prod(shape[axis] for axis in contracting)
      total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
    for inner in jax.core.jaxprs_in_params(equation.params):
      total += products(inner)
  return total


def traced(model, method) -> int:
  batch = model.build_batch_spec(ROWS, LENGTH)
  params = jax.eval_shape(model.init, jax.random.key(0), batch)

  def call(params, batch):
    return model.pretrainer.apply({'params': params}, batch, method=method)

  return products(jax.make_jaxpr(call)(params, batch).jaxpr)


def propose(pretrainer, batch):
  masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
  return pretrainer.propose(masked).sampling_logits()


@pytest.mark.parametrize(
  'objectives',
  [
    (RTD(),),
    (RTD(), CorrectiveLM()),
    (CorrectiveLM(positions='all'),),
  ],
)
def test_main_model_alone(objectives):
  model = pretrain_models.model(auxiliary=None, objectives=objectives)
  forward = traced(model, None)
  assert model.flops_per_step((ROWS, LENGTH)) == 3 * forward


def test_joint_training_adds_one_pass_of_the_auxiliary():
  joint = pretrain_models.model()
  alone = pretrain_models.model(
    auxiliary=None, objectives=joint.pretrainer.objectives[1:]
  )
  shape = (ROWS, LENGTH)
  auxiliary = traced(joint, propose)
  added = joint.flops_per_step(shape) - alone.flops_per_step(shape)
  assert added == 3 * auxiliary
  # An auxiliary with dropout runs forward once more, to be sampled from.
  second = pretrain_models.model(aux_dropout=0.1)
  added = second.flops_per_step(shape) - joint.flops_per_step(shape)
  assert added == auxiliary


def test_a_frozen_auxiliary_has_no_backward_pass():
  """Fast-ELECTRA's online and offline steps, against the joint one."""

  def step(**changes) -> int:
    model = pretrain_models.model(**changes)
    batch = model.build_batch_spec(ROWS, LENGTH)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)

    def loss(params, batch):
      return model.loss_fn(params, batch, jax.random.key(0), 0, True)[0]

    return products(jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr)

  warm = pretrain.Auxiliary(
    pretrain_models.config(), augmentation=pretrain.Temperature()
  )
  joint = step(objectives=(MLM(), RTD()))
  online = step(auxiliary=warm, objectives=(RTD(),), share=())
  offline = step(auxiliary=None, objectives=(RTD(),))
  proposal = traced(pretrain_models.model(), propose)
  assert online - offline == proposal
  # And a little more: the loss computes its logits again.
  assert joint - offline >= 3 * proposal


def test_only_masked_positions_touch_the_vocabulary():
  few, many = (
    pretrain_models.model(max_predictions=n).flops_per_step((1, LENGTH))
    for n in (2, 5)
  )
  # Per slot: the auxiliary's dense layer, and two products with the table.
  width, vocab = pretrain_models.WIDTH, pretrain_models.VOCAB
  assert many - few == 3 * (5 - 2) * 2 * (width**2 + 2 * width * vocab)


def test_narrow_tables_are_projected():
  config = pretrain_models.config(table_dim=8)
  narrow = pretrain_models.model(
    config=config,
    main=type(pretrain_models.pretrainer().main)(config),
    auxiliary=None,
    objectives=(CorrectiveLM(),),
  )
  assert narrow.flops_per_step((ROWS, LENGTH)) == 3 * traced(narrow, None)


def test_encoder_decoder():
  """Cross-attention, both stacks, and METRO-T5's head for detection."""
  model = seq2seq_models.metro_t5(
    auxiliary=None, objectives=(RTD(source='encoder'), CorrectiveLM())
  )
  assert model.flops_per_step((ROWS, LENGTH)) == 3 * traced(model, None)
