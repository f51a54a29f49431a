# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny recipe of a family a few steps, at a size of nothing.

As a script it does so in a process of its own, with its own device count:
`python family_run.py FOLDER FAMILY ...` prints each family's losses as JSON.
"""

import json
import pathlib
import sys

import recipe_files

from metro_jax import training

STEPS, ROWS = 4, 16


class RandomRows:
  """Random batches of the features that a model takes."""

  batch_size, length, fingerprint = ROWS, recipe_files.LENGTH, 'random'
  vocab_size = recipe_files.VOCAB

  def __init__(self, model):
    self.model = model

  def batch(self, step: int, rows: slice | None = None) -> dict:
    batch = recipe_files.batch(self.model, ROWS, seed=step)
    return {k: x[rows or slice(None)] for k, x in batch.items()}

  def position(self, step: int) -> dict:
    return {'epoch': 0, 'example': step * ROWS}

  def save_assets(self, model_dir: str) -> None:
    pass


def train(family: str, model_dir: pathlib.Path, steps: int = STEPS):
  """The final state of a run that is begun or gone on with."""
  recipe = recipe_files.load(f'{family}/tiny.gin')
  return training.train(
    model=recipe.model,
    model_dir=str(model_dir),
    train_dataset=RandomRows(recipe.model),
    train_steps=steps,
    optimizer=recipe.optimizer,
    stats_period=1,
    tensorboard=False,
  ).state


def losses(model_dir: pathlib.Path) -> list[float]:
  log = model_dir / 'train' / 'metrics.jsonl'
  return [json.loads(line)['loss'] for line in log.read_text().splitlines()]


if __name__ == '__main__':
  found = {}
  for name in sys.argv[2:]:
    folder = pathlib.Path(sys.argv[1]) / name
    train(name, folder)
    found[name] = losses(folder)
  print(json.dumps(found))
