# SPDX-License-Identifier: Apache-2.0
"""What posterior differential regularisation does, and what it costs."""

import functools

import jax
import numpy as np
import optax
import pretrain_models
import pytest

from metro_jax import finetune, models
from metro_jax.training.state import unbox

LENGTH, ROWS, STEPS = 8, 64, 200
RADIUS = 0.5
PDR = finetune.PosteriorDifferential(weight=1.0, radius=RADIUS)


def build(regularizer):
  tasks = {'task': ('classification', 2)}
  pretraining = pretrain_models.model()
  return models.with_heads(pretraining, tasks, regularizer, 0.0, 0.0)


def make_batch(seed, rows=ROWS):
  """Rows whose class is that of their first token; every tenth is wrong."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, pretrain_models.VOCAB, (rows, LENGTH))
  labels = tokens[:, 0] > pretrain_models.VOCAB // 2
  labels ^= rng.random(rows) < 0.1
  ones = np.ones((rows, LENGTH), np.int32)
  return {
    'encoder_input_tokens': tokens.astype(np.int32),
    'encoder_segment_ids': ones,
    'encoder_positions': np.arange(LENGTH, dtype=np.int32) * ones,
    'labels': labels.astype(np.float32),
    'weights': np.ones(rows, np.float32),
    'task_ids': np.zeros(rows, np.int32),
    'row_ids': np.arange(rows, dtype=np.uint32),
  }


@functools.cache
def trainer(regularizer):
  """(seed, batches) -> parameters after a step of Adam on each batch."""
  model, optimizer = build(regularizer), optax.adam(3e-3)

  def step(state, batch):
    params, slots, key = state
    key, now = jax.random.split(key)
    gradients = jax.grad(lambda p: model.loss_fn(p, batch, now, 0, True)[0])(
      params
    )
    updates, slots = optimizer.update(gradients, slots)
    return (optax.apply_updates(params, updates), slots, key), None

  @jax.jit
  def train(seed, batches):
    key = jax.random.key(seed)
    params = unbox(model.init(key, jax.tree.map(lambda x: x[0], batches)))
    state = (params, optimizer.init(params), key)
    return jax.lax.scan(step, state, batches)[0][0]

  return train


def perturbed(self, batch, noise):
  """Predictions for embeddings with noise on them."""
  rows = finetune.finetuner._flat(batch)
  x = self._embed(rows, None) + noise
  return self._predictions(x, batch, rows, None)['task']


@jax.jit
def predict(params, batch, noise):
  return build(None).finetuner.apply(
    {'params': params}, batch, noise, method=perturbed
  )


def change_and_accuracy(params, seed):
  """Mean symmetric KL of held-out rows under fresh noise, and accuracy."""
  batch = make_batch((seed, STEPS), 256)
  rng = np.random.default_rng(seed)
  shape = (256, LENGTH, pretrain_models.WIDTH)

  def log_p(noise):
    logits = np.asarray(predict(params, batch, noise), np.float64)
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)

  p = log_p(np.zeros(shape, np.float32))
  accuracy = np.mean((p[:, 1] > p[:, 0]) == (batch['labels'] > 0))
  changes = []
  for _ in range(8):
    q = log_p(rng.uniform(-RADIUS, RADIUS, shape).astype(np.float32))
    changes.append(((np.exp(p) - np.exp(q)) * (p - q)).sum(-1).mean())
  return float(np.mean(changes)), float(accuracy)


@pytest.mark.slow
def test_pdr_lowers_the_change_under_noise():
  """On rows and with noise that training has not seen; it still learns."""
  for seed in range(3):
    batches = [make_batch((seed, step)) for step in range(STEPS)]
    batches = jax.tree.map(lambda *x: np.stack(x), *batches)
    plain, steady = (
      change_and_accuracy(trainer(regularizer)(seed, batches), seed)
      for regularizer in (None, PDR)
    )
    assert min(plain[1], steady[1]) > 0.75
    assert steady[0] < 0.5 * plain[0]


def test_pdr_costs_a_second_pass():
  """Twice the FLOPs of a step, as XLA counts them and as the model says."""
  batch = make_batch(0, 16)
  costs, told = [], []
  for regularizer in (PDR, None):
    model = build(regularizer)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
    gradient = jax.jit(
      jax.grad(
        lambda p, model=model: model.loss_fn(
          p, batch, jax.random.key(0), 0, True
        )[0]
      )
    )
    costs.append(gradient.lower(shapes).compile().cost_analysis()['flops'])
    told.append(model.flops_per_step((16, LENGTH)))
  assert told[0] == 2 * told[1]
  # Embedding and the sums of the weights' gradients are there once; the noise
  # and the divergence are small beside 16 features.
  assert costs[0] / costs[1] == pytest.approx(2, rel=0.05)
