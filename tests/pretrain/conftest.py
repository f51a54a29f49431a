# SPDX-License-Identifier: Apache-2.0
"""One tiny model, its parameters and its compiled functions, for all tests."""

import types

import jax
import pretrain_models
import pytest


@pytest.fixture(scope='session')
def tiny() -> types.SimpleNamespace:
  model = pretrain_models.model()
  return types.SimpleNamespace(
    model=model,
    pretrainer=model.pretrainer,
    params=pretrain_models.init(model),
    batch=pretrain_models.numbered(pretrain_models.batch()),
    loss=pretrain_models.loss(model),
    gradient=pretrain_models.gradient(model),
    rng=jax.random.key(3),
  )
