# SPDX-License-Identifier: Apache-2.0
"""Runs of `python -m metro_jax.finetune`, and what they left."""

import json
import os
import pathlib
import subprocess
import sys

# What these programs cost is their compilation; the next start of a run finds
# it done.
ENVIRONMENT = os.environ | {
  'XLA_FLAGS': '--xla_backend_optimization_level=0',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


def finetune(pretrained, folder, model_dir, *words, check=True, task='sst2'):
  """One run on a task of a folder; its exit and what it printed."""
  macros = {
    'TASK': task,
    'TASK_DIR': folder,
    'INITIAL_CHECKPOINT_PATH': pretrained,
    'MODEL_DIR': model_dir,
  }
  command = [
    sys.executable,
    '-m',
    'metro_jax.finetune',
    '--gin_file=finetune/tiny.gin',
    *(f'--gin.{name}={value}' for name, value in macros.items()),
    *words,
  ]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    check=False,
    env=ENVIRONMENT,
  )
  if check and done.returncode:
    raise AssertionError(done.stderr[-3000:])
  return done


def lines(path: pathlib.Path) -> list[dict]:
  """Of a JSON-lines file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def history(model_dir: pathlib.Path, split: str = 'validation') -> list[dict]:
  """All evaluations of a run."""
  return lines(model_dir / 'training_eval' / split / 'metrics.jsonl')


def result(model_dir: pathlib.Path) -> dict:
  """How it ended."""
  return json.loads((model_dir / 'result.json').read_text())


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  """A JSON-lines file, and its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
