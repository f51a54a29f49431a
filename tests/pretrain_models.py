# SPDX-License-Identifier: Apache-2.0
"""Tiny models and batches for the tests of pretraining."""

import functools

import jax
import numpy as np
from flax import linen as nn

from metro_jax import models, modules, pretrain

VOCAB, WIDTH, LENGTH, BATCH, SLOTS = 64, 16, 16, 4, 4
MASK = 4


def config(layers: int = 1, **changes) -> modules.TransformerConfig:
  defaults = {
    'vocab_size': VOCAB,
    'embed_dim': WIDTH,
    'num_heads': 2,
    'mlp_dim': 32,
    'num_layers': layers,
    'dtype': 'float32',
    # Large weights: distributions far from uniform, gradients far from zero.
    'init_stddev': 0.3,
    'positions': modules.PositionConfig(
      max_length=2 * LENGTH, num_buckets=8, max_distance=16, reset_cls=True
    ),
  }
  return modules.TransformerConfig(**(defaults | changes))


def pretrainer(aux_dropout: float = 0.0, **changes) -> pretrain.Pretrainer:
  defaults = {
    'config': config(),
    'main': modules.Encoder(config()),
    'auxiliary': pretrain.Auxiliary(config(), dropout_rate=aux_dropout),
    'max_predictions': SLOTS,
  }
  return pretrain.Pretrainer(**(defaults | changes))


def model(**changes) -> models.PretrainingModel:
  return models.PretrainingModel(pretrainer(**changes))


def batch(rows: int = BATCH, seed: int = 0) -> dict[str, np.ndarray]:
  """Rows of different lengths with 1 to SLOTS masks each."""
  rng = np.random.default_rng(seed)
  original = rng.integers(5, VOCAB, (rows, LENGTH)).astype(np.int32)
  weights = np.zeros((rows, LENGTH), np.float32)
  segments = np.zeros((rows, LENGTH), np.int32)
  for row in range(rows):
    size = int(rng.integers(LENGTH // 2, LENGTH + 1))
    masks = int(rng.integers(1, SLOTS + 1))
    weights[row, 1 + rng.choice(size - 2, masks, replace=False)] = 1
    segments[row, :size] = 1
  original *= segments
  positions = np.arange(LENGTH, dtype=np.int32) * segments
  return {
    'encoder_input_tokens': np.where(weights > 0, MASK, original),
    'encoder_target_tokens': original,
    'encoder_loss_weights': weights,
    'encoder_segment_ids': segments,
    'encoder_positions': positions,
  }


def init(a_model: models.PretrainingModel, seed: int = 0) -> dict:
  """Parameters, with the zero-initialised ones moved away from zero."""
  start = jax.jit(a_model.init)
  params = nn.unbox(start(jax.random.key(seed), batch()))
  leaves, structure = jax.tree.flatten(jax.device_get(params))
  rng = np.random.default_rng(seed)
  noisy = [x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in leaves]
  return jax.tree.unflatten(structure, noisy)


def drawn(a_model: models.PretrainingModel, seed: int = 0) -> dict:
  """Parameters like those of `init`, by shape: nothing is compiled."""
  shapes = nn.unbox(jax.eval_shape(a_model.init, jax.random.key(0), batch()))
  rng = np.random.default_rng(seed)

  def draw(path, x) -> np.ndarray:
    mean = 1.0 if 'scale' in jax.tree_util.keystr(path) else 0.0
    return rng.normal(mean, 0.3, x.shape).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def numbered(a_batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With the row ids that a trainer adds."""
  rows = len(a_batch['encoder_input_tokens'])
  return {**a_batch, 'row_ids': np.arange(rows, dtype=np.uint32)}


def rows_of(a_batch: dict[str, np.ndarray], rows) -> dict[str, np.ndarray]:
  return {name: x[rows] for name, x in a_batch.items()}


def loss(a_model: models.PretrainingModel):
  """Compiled (params, batch, rng, step) -> (loss, metrics) of evaluation."""
  return jax.jit(functools.partial(a_model.loss_fn, train=False))


def gradient(a_model: models.PretrainingModel):
  """(params, numbered batch, rng, normalizers) -> (loss, metrics), gradients.

  Compiled once per shape, for training.
  """

  def call(params, batch, rng, normalizers):
    return a_model.loss_fn(
      params, batch, rng, 0, train=True, normalizers=normalizers
    )

  compiled = jax.jit(jax.value_and_grad(call, has_aux=True))

  def gradient(params, batch, rng, normalizers=None):
    normalizers = normalizers or a_model.normalizers(batch)
    return compiled(params, batch, rng, jax.device_get(normalizers))

  return gradient
