# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint of a MODEL_DIR on held-out text."""

import sys

from metro_jax import cli

USAGE = """Evaluates the newest checkpoint of a MODEL_DIR on held-out text.

  python -m metro_jax.evaluate --gin.MODEL_DIR=runs/tiny

The recipe is MODEL_DIR/config.gin. An older checkpoint:
--gin.training.evaluate.step=2000. More batches: --gin.EVAL_STEPS=500."""


def main() -> int:
  """Runs the command line and returns the exit code."""
  return cli.main('training.evaluate', 'gin_configs/runs/eval.gin', USAGE)


if __name__ == '__main__':
  sys.exit(main())
