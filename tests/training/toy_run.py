# SPDX-License-Identifier: Apache-2.0
"""A training run of the toy model in a process of its own, and its accidents.

Usage: toy_run.py MODEL_DIR OPTIONS, with options as JSON: train_steps, fields
of the toy, `largest_file` (bytes), and those of `accidents`.
"""

import json
import pathlib
import resource
import sys

import accidents
import jax
import numpy as np
import toy

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training.state import named_leaves


class Dataset(toy.ToyDataset):
  """Accidents when the batch of a step is asked for."""

  def batch(self, step, rows=None):
    return PLANTED.batch(super().batch, step, rows)


OPTIONS = json.loads(sys.argv[2])
MODEL_DIR = pathlib.Path(sys.argv[1])
PLANTED = accidents.Accidents(
  MODEL_DIR, {k: v for k, v in OPTIONS.items() if k in accidents.KINDS}
)


def main():
  PLANTED.install()
  if 'largest_file' in OPTIONS:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (OPTIONS['largest_file'], hard))
  schedule = training.linear_warmup_decay(1e-2, 3, 1000)
  result = training.train(
    model=toy.ToyModel(width=OPTIONS.get('width', 16)),
    model_dir=str(MODEL_DIR),
    train_dataset=Dataset(),
    train_steps=OPTIONS['train_steps'],
    optimizer=training.adamw(schedule),
    eval_datasets={'validation': toy.ToyDataset(seed=1, batch_size=8)},
    eval_period=6,
    eval_steps=2,
    stats_period=5,
    checkpoints=training.CheckpointConfig(period=4, keep=2),
    guard=training.Guard(window=8, max_refused=3),
    partitioner=training.Partitioner(**OPTIONS.get('partitioner', {})),
    num_microbatches=OPTIONS.get('num_microbatches', 1),
    tensorboard=False,
  )
  params = {
    k: np.asarray(x)
    for k, x in named_leaves(jax.device_get(result.state.params)).items()
  }
  np.savez(MODEL_DIR / 'final.npz', **params)


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
