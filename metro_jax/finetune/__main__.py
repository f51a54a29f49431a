# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a pretrained model: `python -m metro_jax.finetune`."""

import sys

from metro_jax import cli

USAGE = """Fine-tunes the model of a pretraining run on a task, or goes on.

  python -m metro_jax.finetune --gin.TASK=cola --gin.TASK_DIR=/data/glue \\
    --gin.INITIAL_CHECKPOINT_PATH=runs/base --gin.MODEL_DIR=runs/cola

Recipes: --gin_file=finetune/pdr.gin and others of gin_configs/finetune. Any
parameter: --gin.NAME=VALUE. The same command resumes."""


def main() -> int:
  """Runs the command line and returns the exit code."""
  return cli.main(
    'training.train',
    'gin_configs/runs/finetune.gin',
    USAGE,
    base='INITIAL_CHECKPOINT_PATH',
    then='predictions.predict',
  )


if __name__ == '__main__':
  sys.exit(main())
