# SPDX-License-Identifier: Apache-2.0
"""`metro_jax.train` in a process of its own, and its accidents.

Usage: recipe_run.py MODEL_DIR ACCIDENTS FLAGS ..., accidents as JSON.
"""

import functools
import json
import pathlib
import sys

import accidents

from metro_jax import cli, data, train


def main() -> int:
  """Plants the accidents and runs the command line."""
  folder, plan, *words = sys.argv[1:]
  planted = accidents.Accidents(pathlib.Path(folder), json.loads(plan))
  planted.install()
  load = data.TokenDataset.batch

  def batch(self, step, rows=None):
    read = functools.partial(load, self)
    if self.split != 'train':
      return read(step, rows)
    return planted.batch(read, step, rows)

  data.TokenDataset.batch = batch
  return cli.main(
    'training.train',
    'gin_configs/runs/pretrain.gin',
    train.USAGE,
    [sys.argv[0], f'--gin.MODEL_DIR={folder}', *words],
  )


if __name__ == '__main__':
  sys.exit(main())
