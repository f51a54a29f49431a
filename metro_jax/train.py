# SPDX-License-Identifier: Apache-2.0
"""Trains a model: `python -m metro_jax.train --gin_file=metro_lm/tiny.gin`."""

import sys

from metro_jax import cli

USAGE = """Trains a model, or goes on with it where it was left.

  python -m metro_jax.train --gin_file=metro_lm/tiny.gin \\
    --gin.MODEL_DIR=runs/tiny

On your own text: --gin.TEXT_FILES='/data/*.txt'. Any parameter of the recipe:
--gin.NAME=VALUE. The same command resumes."""


def main() -> int:
  """Runs the command line and returns the exit code."""
  return cli.main('training.train', 'gin_configs/runs/pretrain.gin', USAGE)


if __name__ == '__main__':
  sys.exit(main())
