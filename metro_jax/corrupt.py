# SPDX-License-Identifier: Apache-2.0
"""Corrupts a corpus ahead of training (Fast-ELECTRA, section 4)."""

import sys

from metro_jax import cli

USAGE = """Writes what a frozen auxiliary makes of a corpus, epoch by epoch.

  python -m metro_jax.corrupt --gin_file=fast_electra/tiny.gin \\
    --gin.AUX_CHECKPOINT_PATH=runs/auxiliary --gin.STREAM_DIR=streams/tiny

The recipe is that of the run which is to read the stream. As many epochs as it
will need: --gin.EPOCHS=N for others. The same command goes on where it was
stopped. To share the work among N machines, give each --process_count=N and
its own --process_index; the result is the same."""


def main() -> int:
  """Runs the command line and returns the exit code."""
  return cli.main('offline.corrupt', 'gin_configs/runs/corrupt.gin', USAGE)


if __name__ == '__main__':
  sys.exit(main())
