# SPDX-License-Identifier: Apache-2.0
"""A training run of the toy model in a process of its own, and its accidents.

Usage: toy_run.py MODEL_DIR OPTIONS, with options as JSON: train_steps,
devices' Partitioner fields, and what is to happen at which batch.
"""

import json
import os
import pathlib
import resource
import signal
import sys
import threading
import time

import jax
import numpy as np
import toy

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training.state import named_leaves


class KillingDataset(toy.ToyDataset):
  """Accidents when the batch of a step is asked for."""

  def batch(self, step, rows=None):
    if step == OPTIONS.get('kill_at') and rows is None:
      os.kill(os.getpid(), signal.SIGKILL)
    if step == OPTIONS.get('terminate_at') and rows is None:
      os.kill(os.getpid(), signal.SIGTERM)
    if step == OPTIONS.get('clock_jumps_at'):
      now = time.time
      time.time = lambda: now() - 86400.0
    if step == OPTIONS.get('wait_at') and rows is None:
      (MODEL_DIR / 'waiting').touch()
      while (MODEL_DIR / 'waiting').exists():
        time.sleep(0.01)
    batch = super().batch(step, rows)
    if step in OPTIONS.get('nan_batches', ()):
      weights = batch['encoder_loss_weights']
      batch['encoder_loss_weights'] = weights * np.float32(np.nan)
    return batch


def kill_in_save(folder, step):
  """Kills the process as soon as the save of a step has begun."""
  while True:
    for path in folder.glob(f'checkpoint_{step}.*'):
      if any(path.rglob('ocdbt.process_0')):
        os.kill(os.getpid(), signal.SIGKILL)


OPTIONS = json.loads(sys.argv[2])
MODEL_DIR = pathlib.Path(sys.argv[1])


def main():
  if 'kill_in_save' in OPTIONS:
    threading.Thread(
      target=kill_in_save,
      args=(MODEL_DIR, OPTIONS['kill_in_save']),
      daemon=True,
    ).start()
  if 'largest_file' in OPTIONS:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (OPTIONS['largest_file'], hard))
  schedule = training.linear_warmup_decay(1e-2, 3, 1000)
  result = training.train(
    model=toy.ToyModel(width=OPTIONS.get('width', 16)),
    model_dir=str(MODEL_DIR),
    train_dataset=KillingDataset(),
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
