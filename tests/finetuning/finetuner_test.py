# SPDX-License-Identifier: Apache-2.0
"""Heads, losses and posterior differential regularisation (equations 11-12)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest

from metro_jax import finetune, models
from metro_jax.errors import UserError
from metro_jax.training import step as step_lib
from metro_jax.training.state import unbox

ROWS, LENGTH = 4, 8
KINDS = {
  'classification': ('classification', 3),
  'regression': ('regression', 0),
  'ranking': ('ranking', 0),
  'span': ('span', 0),
}
PDR = finetune.PosteriorDifferential(weight=1.0, radius=0.2)


def build(kind='classification', regularizer=None, dropout=0.1, tasks=None):
  return models.with_heads(
    pretrain_models.model(),
    tasks or {'task': KINDS[kind]},
    regularizer,
    dropout,
    dropout,
  )


def make_batch(model, seed=0):
  rng = np.random.default_rng(seed)
  batch = dict(model.build_batch_spec(ROWS, LENGTH))
  shape = batch['encoder_input_tokens'].shape
  sizes = rng.integers(5, LENGTH + 1, shape[:-1])
  segments = (np.arange(LENGTH) < sizes[..., None]).astype(np.int32)
  tokens = rng.integers(5, pretrain_models.VOCAB, shape)
  batch['encoder_input_tokens'] = (tokens * segments).astype(np.int32)
  batch['encoder_segment_ids'] = segments
  batch['encoder_positions'] = np.arange(LENGTH, dtype=np.int32) * segments
  kind = next(iter(model.finetuner.tasks.values()))
  if isinstance(kind, finetune.Regression):
    batch['labels'] = rng.random(ROWS).astype(np.float32)
  elif isinstance(kind, finetune.Spans):
    batch['span_candidates'] = segments
    batch['labels'] = rng.integers(0, 5, (ROWS, 2)).astype(np.float32)
  else:
    batch['labels'] = rng.integers(0, 2, ROWS).astype(np.float32)
  batch['weights'] = np.array([1, 1, 1, 0], np.float32)
  return batch


def init(model, batch):
  params = unbox(jax.jit(model.init)(jax.random.key(0), batch))
  return jax.tree.map(lambda x: x + 0.05, params)


def value(model, params, batch, train=False):
  def loss(params, batch):
    return model.loss_fn(params, batch, jax.random.key(1), 0, train)

  return jax.jit(loss)(params, batch)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def oracle_loss(kind, logits, labels):
  if kind == 'regression':
    return (logits - labels) ** 2
  p = softmax(np.asarray(logits, np.float64))
  index = labels.astype(int)
  if kind == 'span':
    rows = np.arange(len(labels))
    ends = [-np.log(p[rows, e, index[:, e]]) for e in range(2)]
    return (ends[0] + ends[1]) / 2
  return -np.log(p[np.arange(len(labels)), index])


def oracle_divergence(kind, a, b):
  if kind == 'regression':
    return (a - b) ** 2
  p, q = (softmax(np.asarray(x, np.float64)) for x in (a, b))
  with np.errstate(divide='ignore', invalid='ignore'):
    terms = (p - q) * (np.log(p) - np.log(q))
  kl = np.where((p > 0) & (q > 0), terms, 0.0).sum(-1)
  return kl.mean(-1) if kind == 'span' else kl


@pytest.mark.parametrize(
  'kind',
  [
    'classification',
    'span',
    pytest.param('regression', marks=pytest.mark.slow),
    pytest.param('ranking', marks=pytest.mark.slow),
  ],
)
def test_losses_and_pdr_against_numpy(kind):
  """Without dropout, so that each pass can be computed alone as well."""
  seen = {}

  class Recorded(finetune.PosteriorDifferential):
    def perturb(self, x, seed, rows, valid):
      out = super().perturb(x, seed, rows, valid)
      seen['noise'] = out - x
      return out

  model = build(kind, Recorded(weight=1.5, radius=0.2), dropout=0.0)
  batch = make_batch(model)
  params = init(model, batch)

  def perturbed(self, batch, noise):
    rows = finetune.finetuner._flat(batch)
    x = self._embed(rows, None) + noise
    return self._predictions(x, batch, rows, None)

  @jax.jit
  def everything(params, batch):
    key = jax.random.key(1)
    trained, metrics = model.loss_fn(params, batch, key, 0, True)
    noise = seen.pop('noise')
    plain, _ = model.loss_fn(params, batch, key, 0, False)
    clean = model.outputs(params, batch)['task']
    noisy = model.finetuner.apply(
      {'params': params}, batch, noise, method=perturbed
    )['task']
    return trained, metrics['pdr/task'].total, plain, clean, noisy, noise

  found = jax.device_get(everything(params, batch))
  trained, pdr, plain, clean, noisy, noise = found
  valid = batch['encoder_segment_ids'].reshape(-1, LENGTH) > 0
  assert 0.15 < np.abs(noise[valid]).max() <= 0.2 + 1e-6
  assert (noise[~valid] == 0).all()
  weights = batch['weights']
  wanted = oracle_loss(kind, clean, batch['labels'])
  np.testing.assert_allclose(plain, (wanted * weights).sum() / 3, rtol=1e-5)
  change = oracle_divergence(kind, clean, noisy)
  assert change[:3].min() > 0
  # A difference of logarithms: its last digits are those of the logits.
  np.testing.assert_allclose(pdr, (change * weights).sum(), rtol=2e-3)
  total = ((wanted + 1.5 * change) * weights).sum() / 3
  np.testing.assert_allclose(trained, total, rtol=2e-4)


def test_weight_zero_is_plain_fine_tuning_to_the_bit():
  """The two are one program."""
  models_ = [build(), build(regularizer=finetune.PosteriorDifferential(0.0))]
  batch = make_batch(models_[0])
  shapes = unbox(jax.eval_shape(models_[0].init, jax.random.key(0), batch))
  programs = [program(m, batch, shapes) for m in models_]
  assert programs[0] == programs[1]
  assert program(build(regularizer=PDR), batch, shapes) != programs[0]


def program(model, batch, shapes):
  """The loss as a jaxpr, without addresses of Python objects."""
  traced = jax.make_jaxpr(
    lambda p: model.loss_fn(p, batch, jax.random.key(1), 0, True)[0]
  )(shapes)
  return re.sub('0x[0-9a-f]+', '', str(traced))


def test_several_tasks_keep_to_their_rows():
  tasks = {'one': ('classification', 3), 'two': ('classification', 2)}
  model = build(tasks=tasks, dropout=0.0)
  batch = make_batch(model)
  batch['task_ids'] = np.array([0, 1, 0, 1], np.int32)
  batch['labels'] = np.array([2, 1, 0, 1], np.float32)  # 2 is no class of two.
  params = init(model, batch)

  @jax.jit
  def both(params, batch):
    key = jax.random.key(1)
    found = model.loss_fn(params, batch, key, 0, False)
    return found, model.outputs(params, batch)

  (loss, metrics), logits = jax.device_get(both(params, batch))
  by_task = {
    'one': oracle_loss('', logits['one'][[0, 2]], batch['labels'][[0, 2]]),
    'two': oracle_loss('', logits['two'][[1]], batch['labels'][[1]]),
  }
  for name, values in by_task.items():
    found = metrics[f'loss/{name}']
    np.testing.assert_allclose(found.total, values.sum(), rtol=1e-5)
    assert float(found.count) == len(values)
  total = sum(values.sum() for values in by_task.values())
  np.testing.assert_allclose(loss, total / 3, rtol=1e-5)


@pytest.mark.slow
def test_microbatches_add_up():
  """Dropout and noise come of a row's number, not of where it lies."""
  model = build(regularizer=PDR)
  batch = make_batch(model)
  params = init(model, batch)
  found = []
  for parts in (1, 2):
    gradients_of = step_lib._make_gradients_of(model, parts, None)
    numbered = step_lib.number_rows(batch)
    found.append(jax.jit(gradients_of)(params, numbered, jax.random.key(2), 0))
  for a, b in zip(*(jax.tree.leaves(f[:2]) for f in found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_parameters_have_the_names_of_pretraining():
  pretraining = pretrain_models.model()
  shapes = jax.eval_shape(
    pretraining.init, jax.random.key(0), pretraining.build_batch_spec(2, LENGTH)
  )
  model = build()
  ours = jax.eval_shape(
    model.init, jax.random.key(0), model.build_batch_spec(2, LENGTH)
  )
  assert set(ours) == {'embedder', 'main', 'heads'}
  for part in ('embedder', 'main'):
    a, b = (jax.tree.map(jnp.shape, unbox(x[part])) for x in (ours, shapes))
    assert a == b


def test_mistakes():
  with pytest.raises(UserError, match='radius: -1 is negative'):
    finetune.PosteriorDifferential(radius=-1)
  with pytest.raises(UserError, match="'summary' tasks have no head"):
    build(tasks={'x': ('summary', 0)})
