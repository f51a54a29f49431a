# SPDX-License-Identifier: Apache-2.0
"""The same recipe under T5X: losses of the native trainer, resuming, inference.

Runs where T5X can be imported; it is not on PyPI. docs/t5x.md says how.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
HAS_T5X = importlib.util.find_spec('t5x') is not None
# Float32, other orders of sums: T5X adds microbatches one after another.
TOLERANCE = 1e-4
STEPS = 6


def flags(root):
  macros = {
    'TEXT_FILES': f'{root}/text/*.txt',
    'DATA_DIR': str(root / 'data'),
    'VOCAB_SIZE': 256,
    'LENGTH': 32,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': STEPS,
    'WARMUP_STEPS': 2,
    'STATS_PERIOD': 1,
    'EVAL_PERIOD': 3,
    'EVAL_STEPS': 1,
    'CHECKPOINT_PERIOD': 3,
    'modules.TransformerConfig.embed_dim': 32,
    'modules.TransformerConfig.mlp_dim': 64,
    'modules.TransformerConfig.num_layers': 1,
  }
  return [f'--gin.{name}={value!r}' for name, value in macros.items()]


def test_importing_it_without_t5x_says_how_to_get_it():
  code = "import sys; sys.modules['t5x'] = None; import metro_jax.t5x_adapter"
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert 'not on PyPI' in last and "'.[t5x]'" in last


def native_losses(root):
  lines = (root / 'native' / 'train' / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in lines.splitlines()]
  return {row['step']: row['loss'] for row in rows if 'loss' in row}


def t5x_losses(root):
  from tensorflow.python.framework import tensor_util
  from tensorflow.python.summary import summary_iterator

  found = {}
  for path in sorted((root / 't5x' / 'train').glob('events*')):
    for event in summary_iterator.summary_iterator(str(path)):
      for value in event.summary.value:
        if value.tag == 'loss':
          loss = float(tensor_util.MakeNdarray(value.tensor))
          found.setdefault(event.step, []).append(loss)
  return found


@pytest.mark.slow
@pytest.mark.skipif(not HAS_T5X, reason='needs T5X, which is not on PyPI')
def test_losses_are_those_of_the_native_trainer_and_resuming_goes_on(tmp_path):
  (tmp_path / 'text').mkdir()
  for index in range(40):
    text = tiny_run.text(12, index)
    (tmp_path / 'text' / f'{index}.txt').write_text(text)
  recipe = '--gin_file=gin_configs/metro_lm/tiny.gin'
  count = '--xla_force_host_platform_device_count=2'
  environment = os.environ | {'XLA_FLAGS': count}

  def run(module, *more):
    command = [sys.executable, '-m', module, *more]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)

  native = f"--gin.MODEL_DIR='{tmp_path}/native'"
  run('metro_jax.train', recipe, *flags(tmp_path), native)
  paths = f'--gin_search_paths={ROOT},{ROOT}/gin_configs'
  folder = '--gin_file=gin_configs/t5x'
  here = f"--gin.MODEL_DIR='{tmp_path}/t5x'"
  # The second run goes on at half-way, with another ZeRO stage.
  for zero_stage, microbatches in ((1, 1), (3, 2)):
    shutil.rmtree(tmp_path / 't5x' / f'checkpoint_{STEPS}', ignore_errors=True)
    run(
      't5x.train',
      paths,
      f'{folder}/pretrain.gin',
      recipe,
      *flags(tmp_path),
      here,
      f'--gin.NUM_MICROBATCHES={microbatches}',
      f'--gin.ZERO_STAGE={zero_stage}',
    )
  ours, theirs = native_losses(tmp_path), t5x_losses(tmp_path)
  assert sorted(theirs) == list(range(1, STEPS + 1))
  for step, losses in theirs.items():
    assert len(losses) == (2 if step > STEPS // 2 else 1)
    np.testing.assert_allclose(losses, ours[step], rtol=TOLERANCE)
  environment |= {
    'METRO_TEXT_FILES': f'{tmp_path}/text/*.txt',
    'METRO_VOCABULARY': f'{tmp_path}/t5x/vocabulary.model',
  }
  run(
    't5x.infer',
    paths,
    f'{folder}/infer.gin',
    recipe,
    *flags(tmp_path),
    "--gin.MIXTURE_OR_TASK_NAME='metro_text'",
    "--gin.SPLIT='train'",
    "--gin.MODE='predict_with_aux'",
    f"--gin.CHECKPOINT_PATH='{tmp_path}/t5x/checkpoint_{STEPS}'",
    f"--gin.INFER_OUTPUT_DIR='{tmp_path}/answers'",
  )
  (path,) = (tmp_path / 'answers').glob('*.jsonl-00000-of-00001')
  answers = [json.loads(line) for line in path.read_text().splitlines()]
  assert answers
  for answer in answers:
    assert answer['prediction']
    p = np.array(answer['aux']['p_replaced'])
    assert p.shape == (32,) and np.all((p >= 0) & (p <= 1)) and np.any(p > 0)
