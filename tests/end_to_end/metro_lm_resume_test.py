# SPDX-License-Identifier: Apache-2.0
"""A METRO-LM run that is killed again and again ends as if it never had been.

The real command line on real text, SIGKILL, the same command, to the bit.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS, PERIOD = 40, 4
WORDS = 'the cat sat on a mat and the dog ran to the park by the old red house'


@pytest.fixture(scope='module')
def command(tmp_path_factory) -> list[str]:
  """All but MODEL_DIR. The text is small: 40 steps are several epochs."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  words = WORDS.split()
  documents = [' '.join(rng.choice(words, 20)) for _ in range(120)]
  (folder / 'corpus.txt').write_text('\n\n'.join(documents))
  bindings = {
    'TEXT_FILES': folder / 'corpus.txt',
    'DATA_DIR': folder / 'data',
    'VOCAB_SIZE': 128,
    'LENGTH': 16,
    'BATCH_SIZE': 16,
    'TRAIN_STEPS': STEPS,
    'WARMUP_STEPS': 5,
    'STATS_PERIOD': 3,  # Windows lie across checkpoints.
    'CHECKPOINT_PERIOD': PERIOD,
    'EVAL_PERIOD': 10,
    'EVAL_STEPS': 2,
    'modules.TransformerConfig.embed_dim': 16,
    'modules.TransformerConfig.mlp_dim': 32,
    'modules.TransformerConfig.num_heads': 2,
    'modules.TransformerConfig.num_layers': 2,
    'AUX_LAYERS': 1,
    'training.train.tensorboard': False,
  }
  return [
    sys.executable,
    '-m',
    'metro_jax.train',
    '--gin_file=metro_lm/tiny.gin',
    *(f'--gin.{name}={value}' for name, value in bindings.items()),
  ]


def run(
  command: list[str],
  model_dir: pathlib.Path,
  kill_when: Callable[[], bool] = lambda: False,
) -> int:
  """Runs to the end, or to the moment when it is to be killed."""
  words = [*command, f'--gin.MODEL_DIR={model_dir}']
  log = model_dir.with_suffix('.log').open('a')
  one = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  with (
    log,
    subprocess.Popen(words, stdout=log, stderr=log, env=one) as process,
  ):
    deadline = time.monotonic() + 400
    while process.poll() is None:
      assert time.monotonic() < deadline, 'the run hangs'
      if kill_when():
        process.send_signal(signal.SIGKILL)
      time.sleep(0.001)
  return process.returncode


def logged(path: pathlib.Path) -> list[dict]:
  """All logged values but those of the clock."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in line.items() if not k.startswith('timing/')}
    for line in lines
  ]


def saved(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Parameters and slots of the last checkpoint, by name."""
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(model_dir.resolve() / f'checkpoint_{STEPS}' / 'state')
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def lines_of(model_dir: pathlib.Path) -> int:
  log = model_dir / 'train' / 'metrics.jsonl'
  return len(log.read_text().splitlines()) if log.exists() else 0


def saving(model_dir: pathlib.Path, step: int) -> bool:
  """Whether the save of a step has begun and not ended."""
  final = model_dir / f'checkpoint_{step}'
  begun = any(model_dir.glob(f'checkpoint_{step}.*'))
  return begun and not final.exists()


def test_killed_five_times_and_equal_to_the_bit(command, tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  assert run(command, whole) == 0
  moments = [
    lambda: lines_of(broken) >= 2,
    lambda: saving(broken, 3 * PERIOD),
    lambda: lines_of(broken) >= 6,
    lambda: saving(broken, 7 * PERIOD),
    lambda: lines_of(broken) >= 11,
  ]
  for moment in moments:
    assert run(command, broken, moment) == -signal.SIGKILL
  assert run(command, broken) == 0
  for log in ('train', 'training_eval/validation'):
    log = pathlib.Path(log) / 'metrics.jsonl'
    expected = logged(whole / log)
    assert len({line['loss'] for line in expected}) == len(expected)
    assert logged(broken / log) == expected
  expected, actual = saved(whole), saved(broken)
  assert expected.keys() == actual.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)
