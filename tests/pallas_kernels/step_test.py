# SPDX-License-Identifier: Apache-2.0
"""The training step with kernels on and off."""

import collections

import jax
import numpy as np
import pretrain_models
import pytest
import quick
import step_case
from flax.traverse_util import flatten_dict

from metro_jax import modules, pretrain
from metro_jax.training.state import unbox
from pallas_kernels import backend

PLATFORMS = {'gpu': 'cuda', 'tpu': 'tpu'}


def lowered(platform: str, kernels: str) -> str:
  """The program that a platform's compiler is given."""
  step, args = step_case.train_step(kernels)
  with backend.target(platform):
    traced = jax.jit(step).trace(*args)
    return traced.lower(lowering_platforms=(PLATFORMS[platform],)).as_text()


@pytest.mark.parametrize('platform', PLATFORMS)
def test_no_matrix_of_attention_and_no_logits(platform):
  text = lowered(platform, 'pallas')
  assert not step_case.matrices(text) and not step_case.logits(text)


def test_that_test_would_see_them():
  text = lowered('gpu', 'xla')
  assert step_case.matrices(text) and step_case.logits(text)


@pytest.mark.slow
@pytest.mark.parametrize('platform', PLATFORMS)
def test_loss_and_gradients_are_those_of_xla(platform):
  def model(kernels):
    config = pretrain_models.config(embed_dim=32, **step_case.on(kernels))
    return pretrain_models.model(
      config=config,
      main=modules.Encoder(config),
      auxiliary=pretrain.Auxiliary(config),
      sampler=pretrain.Gumbel(),
    )

  batch = pretrain_models.numbered(pretrain_models.batch())
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.normal(0.3, 0.3, x.shape)),
    unbox(jax.eval_shape(model('xla').init, jax.random.key(0), batch)),
  )

  def gradient(model):
    def call(params):
      return model.loss_fn(params, batch, jax.random.key(3), 0, train=True)

    return quick.jit(jax.value_and_grad(call, has_aux=True))(params)

  (want, metrics), wanted = gradient(model('xla'))
  with backend.target(platform, interpret=True):
    (loss, kernel_metrics), gradients = gradient(model('pallas'))
  # Both sum at most 1024 terms at a time (tokens x features of a weight's
  # gradient), in orders of their own; a dozen such sums follow each other.
  bound = 12 * 2.0**-24 * 1024**0.5
  np.testing.assert_allclose(loss, want, rtol=bound)
  assert metrics['replace_rate'] == kernel_metrics['replace_rate']
  got, want = (flatten_dict(g, sep='/') for g in (gradients, wanted))
  assert set(got) == set(want)
  # Some biases have none at all but roundings of what cancels: those of keys.
  # What is large beside them is the gradient of the module's weights.
  largest = collections.defaultdict(float)
  for name, g in want.items():
    module = name.rpartition('/')[0]
    largest[module] = max(largest[module], np.abs(g).max())
  for name, g in want.items():
    atol = bound * largest[name.rpartition('/')[0]]
    np.testing.assert_allclose(got[name], g, rtol=0, atol=atol, err_msg=name)
