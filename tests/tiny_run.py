# SPDX-License-Identifier: Apache-2.0
"""A MODEL_DIR that the real command line trained for a few steps.

A pytest plugin: a test module that wants it says
`pytest_plugins = ('tiny_run',)` and asks for the fixture.
"""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from metro_jax.data import files

STEPS = 12
LENGTH = 32
WORDS = (
  *('array', 'axis', 'cache', 'column', 'count', 'dtype', 'element', 'error'),
  *('field', 'file', 'gradient', 'index', 'integer', 'item', 'key', 'layer'),
  *('length', 'line', 'list', 'matrix', 'mean', 'name', 'number', 'offset'),
  *('parameter', 'path', 'range', 'result', 'row', 'shape', 'size', 'slice'),
  *('state', 'step', 'string', 'sum', 'table', 'tensor', 'type', 'width'),
)


def text(sentences: int, seed: int) -> str:
  """Sentences that a vocabulary can be trained on; the same every time."""
  rng = random.Random(seed)
  out = []
  for _ in range(sentences):
    a, b, c = rng.choices(WORDS, k=3)
    out.append(f'Returns the {a} of the {b} for each {c}.')
  return ' '.join(out)


def train(root: pathlib.Path) -> pathlib.Path:
  """Trains root/run on root/text, unless it has been done."""
  model_dir = root / 'run'
  with files.lock(model_dir):
    if (model_dir / f'checkpoint_{STEPS}').is_dir():
      return model_dir
    (root / 'text').mkdir(exist_ok=True)
    for index in range(40):
      (root / 'text' / f'{index}.txt').write_text(text(12, index))
    macros = {
      'MODEL_DIR': model_dir,
      'TEXT_FILES': f'{root}/text/*.txt',
      'DATA_DIR': root / 'data',
      'VOCAB_SIZE': 256,
      'LENGTH': LENGTH,
      'BATCH_SIZE': 8,
      'TRAIN_STEPS': STEPS,
      'WARMUP_STEPS': 2,
      'STATS_PERIOD': 4,
      'EVAL_PERIOD': 6,
      'EVAL_STEPS': 1,
      'CHECKPOINT_PERIOD': 6,
      'data.TextFiles.validation_fraction': 0.2,
      'modules.TransformerConfig.embed_dim': 32,
      'modules.TransformerConfig.mlp_dim': 64,
      'modules.TransformerConfig.num_layers': 2,
    }
    command = [
      sys.executable,
      '-m',
      'metro_jax.train',
      '--gin_file=metro_lm/tiny.gin',
      *(f'--gin.{name}={value}' for name, value in macros.items()),
    ]
    subprocess.run(command, check=True, env=os.environ | {'XLA_FLAGS': ''})
  return model_dir


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> pathlib.Path:
  """The MODEL_DIR; workers of one pytest share it."""
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent
  return train(root)
