# SPDX-License-Identifier: Apache-2.0
"""Auxiliary, stream, training and evaluation by the real command lines."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import corruption_models
import pytest

pytestmark = pytest.mark.slow

SIZES = {
  'VOCAB_SIZE': 160,
  'LENGTH': 16,
  'BATCH_SIZE': 16,
  'MASK_RATE': 0.15,
  'TRAIN_STEPS': 30,
  'WARMUP_STEPS': 2,
  'STATS_PERIOD': 10,
  'EVAL_PERIOD': 30,
  'EVAL_STEPS': 1,
  'CHECKPOINT_PERIOD': 30,
  'modules.TransformerConfig.embed_dim': 16,
  'modules.TransformerConfig.mlp_dim': 32,
  'modules.TransformerConfig.num_heads': 2,
  'AUX_LAYERS': 1,
  'DOCUMENT': 'line',
}


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('commands')
  corruption_models.write_text(folder)
  done = run(folder, 'train', 'mlm/tiny_auxiliary.gin', MODEL_DIR='auxiliary')
  assert done.returncode == 0, done.stderr
  return folder


def command(folder, name, recipe, *flags, **bindings) -> list[str]:
  values = {
    **SIZES,
    'TEXT_FILES': folder / 'corpus.txt',
    'DATA_DIR': folder / 'data',
    **bindings,
  }
  return [
    sys.executable,
    '-m',
    f'metro_jax.{name}',
    *([f'--gin_file={recipe}'] if recipe else []),
    *(f'--gin.{key}={value}' for key, value in values.items()),
    *flags,
  ]


ENVIRONMENT = {**os.environ, 'XLA_FLAGS': ''}


def run(folder, *words, **bindings):
  return subprocess.run(
    command(folder, *words, **bindings),
    cwd=folder,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )


def tree(path: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in sorted(path.rglob('*'))
    if p.is_file()
  }


def corrupt(folder, stream, *flags):
  return run(
    folder,
    'corrupt',
    'fast_electra/tiny.gin',
    '--gin_bindings=offline.corrupt.shard_rows = 32',
    *flags,
    AUX_CHECKPOINT_PATH='auxiliary',
    STREAM_DIR=stream,
  )


@pytest.fixture(scope='module')
def stream(place):
  done = corrupt(place, 'stream')
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_what_is_printed(stream):
  lines = stream.splitlines()
  assert 'train text' in lines[0] and 'tokens/s' in lines[0]
  assert 'train epoch 1/3 | temperature 1.' in lines[1]
  assert 'replaced' in lines[1] and 'ETA' in lines[1]
  assert 'stream/train is complete' in stream
  assert 'stream/validation is complete' in stream


def test_killed_and_shared_it_is_the_same_to_the_byte(place, stream):
  words = command(
    place,
    'corrupt',
    'fast_electra/tiny.gin',
    '--gin_bindings=offline.corrupt.shard_rows = 32',
    AUX_CHECKPOINT_PATH='auxiliary',
    STREAM_DIR='again',
  )
  with subprocess.Popen(words, cwd=place, env=ENVIRONMENT) as process:
    while process.poll() is None:
      if len(list(place.glob('again/train/epoch-000/*.json'))) > 1:
        process.send_signal(signal.SIGKILL)
        break
  assert process.returncode == -signal.SIGKILL
  for index in (0, 1):
    share = (f'--process_index={index}', '--process_count=2')
    done = corrupt(place, 'again', *share)
    assert done.returncode == 0, done.stderr
    assert ('left to the other processes' in done.stdout) == (index == 0)
  assert tree(place / 'again') == tree(place / 'stream')


def test_training_and_evaluation_without_the_auxiliary(place, stream):
  offline = ('fast_electra/offline_tiny.gin',)
  away = place / 'auxiliary'
  away.rename(place / 'gone')
  try:
    done = run(place, 'train', *offline, MODEL_DIR='run', STREAM_DIR='stream')
  finally:
    (place / 'gone').rename(away)
  assert done.returncode == 0, done.stderr
  lines = (place / 'run/train/metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  assert last['step'] == 30 and 0.02 < last['replace_rate'] < 0.15
  assert 'auxiliary' not in (place / 'run/model-info.txt').read_text()
  held_out = place / 'run/training_eval/validation/metrics.jsonl'
  before = json.loads(held_out.read_text())
  done = subprocess.run(
    [sys.executable, '-m', 'metro_jax.evaluate', '--gin.MODEL_DIR=run'],
    cwd=place,
    env=ENVIRONMENT,
    check=True,
  )
  assert json.loads(held_out.read_text()) == before


@pytest.mark.parametrize(
  'bindings, message',
  [
    ({'VOCABULARY': 'other.model'}, 'VOCABULARY: stream/train was written'),
    ({'TRAIN_STEPS': 300}, 'lower TRAIN_STEPS, or write more'),
    ({'MASK_RATE': 0.05}, 'MASK_RATE: stream/train has up to 2 masked'),
    ({'STREAM_DIR': 'nowhere'}, 'nowhere/train holds no stream'),
  ],
)
def test_mistakes_end_in_one_line(place, stream, bindings, message):
  if not (place / 'other.model').exists():
    flags = ('--output=other.model', '--size=150', '--document=line')
    subprocess.run(
      [
        *(sys.executable, '-m', 'metro_jax.vocabulary', *flags),
        *('--input', 'corpus.txt'),
      ],
      cwd=place,
      env=ENVIRONMENT,
      check=True,
    )
  given = {'MODEL_DIR': 'wrong', 'STREAM_DIR': 'stream'} | bindings
  done = run(place, 'train', 'fast_electra/offline_tiny.gin', **given)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line, line
