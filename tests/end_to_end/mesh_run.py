# SPDX-License-Identifier: Apache-2.0
"""Trains a small METRO-LM a few steps and tells each step's loss.

As a script it does so in a process of its own, with its own device count:
`python mesh_run.py MODEL_DIR` prints a JSON list.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np

from metro_jax import models, modules, pretrain, training

STEPS, ROWS, LENGTH, VOCAB = 3, 16, 16, 64


class RandomRows:
  """A dataset of random rows of different lengths, 3 masks each."""

  batch_size, length, vocab_size, fingerprint = ROWS, LENGTH, VOCAB, 'random'

  def batch(self, step: int, rows: slice | None = None) -> dict:
    rng = np.random.default_rng(step)
    original = rng.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    size = rng.integers(LENGTH // 2, LENGTH + 1, (ROWS, 1))
    segments = (np.arange(LENGTH) < size).astype(np.int32)
    order = np.argsort(rng.random((ROWS, LENGTH)) + (segments == 0), axis=1)
    weights = (np.argsort(order, axis=1) < 3).astype(np.float32)
    original *= segments
    batch = {
      'encoder_input_tokens': np.where(weights > 0, 4, original),
      'encoder_target_tokens': original,
      'encoder_loss_weights': weights,
      'encoder_segment_ids': segments,
      'encoder_positions': np.arange(LENGTH, dtype=np.int32) * segments,
    }
    return {k: v[rows or slice(None)].copy() for k, v in batch.items()}

  def position(self, step: int) -> dict:
    return {'epoch': 0, 'example': step * ROWS}

  def save_assets(self, model_dir: str) -> None:
    pass


def metro_lm(**changes) -> models.PretrainingModel:
  """All of METRO-LM's techniques at width 32, with dropout in the main model.

  Args:
    **changes: of both models' TransformerConfig.
  """
  config = modules.TransformerConfig(
    vocab_size=VOCAB,
    embed_dim=32,
    num_heads=8,
    mlp_dim=64,
    num_layers=2,
    dtype='float32',
    scaled_init=True,
    positions=modules.PositionConfig(
      max_length=LENGTH, num_buckets=8, max_distance=16, reset_cls=True
    ),
    **changes,
  )
  shallow = dataclasses.replace(config, num_layers=1)
  return models.PretrainingModel(
    pretrain.Pretrainer(
      config=config,
      main=modules.Encoder(config),
      auxiliary=pretrain.Auxiliary(shallow),
      objectives=(pretrain.MLM(), pretrain.RTD(), pretrain.CorrectiveLM()),
      max_predictions=3,
    )
  )


def losses(
  folder: str, model: models.PretrainingModel | None = None, **options
) -> list[float]:
  """The loss of each step of a short run.

  Args:
    folder: its MODEL_DIR.
    model: what to train; the METRO-LM above.
    **options: of `training.train`.
  """
  training.train(
    model=model or metro_lm(),
    model_dir=folder,
    train_dataset=RandomRows(),
    train_steps=STEPS,
    optimizer=training.adamw(1e-3),
    stats_period=1,
    tensorboard=False,
    **options,
  )
  log = pathlib.Path(folder) / 'train' / 'metrics.jsonl'
  return [json.loads(line)['loss'] for line in log.read_text().splitlines()]


if __name__ == '__main__':
  print(json.dumps(losses(sys.argv[1])))
