# SPDX-License-Identifier: Apache-2.0
"""Real runs: the right alarm where something was planted, else none.

Short runs of the smallest recipe, narrower still; the guard is on.
METRO_ALARM_SEEDS=5 runs the healthy one with so many seeds.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from metro_jax.training import summaries

pytestmark = pytest.mark.slow

STEPS = 200
SEEDS = int(os.environ.get('METRO_ALARM_SEEDS', '1'))


def run(folder: pathlib.Path, **macros) -> list[str]:
  """Trains; the lines of the alarms that were raised."""
  defaults = {
    'MODEL_DIR': folder,
    'TRAIN_STEPS': STEPS,
    'WARMUP_STEPS': 30,
    'STATS_PERIOD': 10,
    'EVAL_PERIOD': STEPS,
    'EVAL_STEPS': 1,
    'BATCH_SIZE': 16,
    'modules.TransformerConfig.embed_dim': 64,
    'modules.TransformerConfig.mlp_dim': 128,
    'modules.TransformerConfig.num_layers': 2,
    'AUX_LAYERS': 1,
    'training.train.tensorboard': False,
  }
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'metro_jax.train',
      '--gin_file=metro_lm/tiny.gin',
      *(f'--gin.{k}={v}' for k, v in (defaults | macros).items()),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode in (0, 2), done.stderr
  return [x for x in done.stdout.splitlines() if x.startswith('alarm')]


@pytest.mark.parametrize('seed', range(SEEDS))
def test_healthy_runs_raise_none_and_refuse_nothing(tmp_path, seed):
  assert run(tmp_path, RANDOM_SEED=seed) == []
  lines = summaries.read_jsonl(tmp_path / 'train' / 'metrics.jsonl')
  assert len(lines) == STEPS // 10
  assert {line['refused_steps'] for line in lines} == {0.0}
  assert not (tmp_path / 'train' / summaries.EVENTS).exists()


def test_a_learning_rate_far_too_high(tmp_path):
  found = run(tmp_path, LEARNING_RATE=0.5)
  assert any('by' in words and 'of its size' in words for words in found), found


def test_a_text_that_the_auxiliary_knows_by_heart(tmp_path):
  text = 'the quick brown fox jumps over the lazy dog and runs away . ' * 30
  documents = '\n\n'.join([text] * 40)
  (tmp_path / 'text.txt').write_text(documents)
  found = run(
    tmp_path / 'run',
    TEXT_FILES=tmp_path / 'text.txt',
    DATA_DIR=tmp_path / 'data',
    VOCAB_SIZE=80,
  )
  assert any('auxiliary is too strong' in words for words in found), found
