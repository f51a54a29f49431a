# SPDX-License-Identifier: Apache-2.0
"""Several real processes on this machine, through the real command line.

They talk over loopback with XLA's CPU collectives (gloo), as hosts of a
cluster would. What they learn, save and restore equals one process's.

Nearly all of the time goes into starting processes and compiling, so there are
as few runs as will do.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run

pytestmark = pytest.mark.slow
STEPS, HALF, ENDLESS = 8, 4, 10**6
ROOT = pathlib.Path(__file__).resolve().parents[2]
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('hosts')
  (root / 'text').mkdir()
  for index in range(40):
    (root / 'text' / f'{index}.txt').write_text(tiny_run.text(12, index))
  return root


def start(place, name, *, processes=1, devices=1, **macros):
  """Starts a run; a list of its processes, which write to NAME.log."""
  macros = {
    'MODEL_DIR': place / name,
    'TEXT_FILES': f'{place}/text/*.txt',
    'DATA_DIR': place / 'data',
    'VOCAB_SIZE': 256,
    'LENGTH': 32,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': STEPS,
    'WARMUP_STEPS': 2,
    'STATS_PERIOD': 1,
    'EVAL_PERIOD': HALF,
    'EVAL_STEPS': 1,
    'CHECKPOINT_PERIOD': HALF,
    # Of the schedule: however long the run is, it is the same program.
    'training.linear_warmup_decay.total_steps': 1000,
    'OPTIMIZER': '@training.adamw()',
    'data.TextFiles.validation_fraction': 0.2,
    'modules.TransformerConfig.embed_dim': 32,
    'modules.TransformerConfig.mlp_dim': 64,
    'modules.TransformerConfig.num_layers': 1,
    **macros,
  }
  command = [sys.executable, '-m', 'metro_jax.train']
  command += ['--gin_file=metro_lm/tiny.gin']
  command += [f'--gin.{key}={value}' for key, value in macros.items()]
  env = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'
    ' --xla_backend_optimization_level=0',
    'METRO_COMPILATION_CACHE': str(place / 'cache'),
  }
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  started = []
  for index in range(processes):
    words = [*command]
    if processes > 1:
      words += ['--multiprocess_gpu', f'--process_count={processes}']
      words += [f'--coordinator_address=127.0.0.1:{port}']
      words += [f'--process_index={index}']
    log = (place / f'{name}.{index}.log').open('a')
    started.append(
      subprocess.Popen(
        words, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
      )
    )
  return started


def finish(place, name, started, seconds=600):
  """Exit codes and what each process printed."""
  limit = time.monotonic() + seconds
  try:
    for process in started:
      process.wait(max(1, limit - time.monotonic()))
  finally:
    for process in started:
      if process.poll() is None:
        process.kill()
        process.wait()
  texts = [
    (place / f'{name}.{index}.log').read_text() for index in range(len(started))
  ]
  return [process.returncode for process in started], texts


def train(place, name, **options):
  codes, texts = finish(place, name, start(place, name, **options))
  assert not any(codes), '\n'.join(text[-2000:] for text in texts)
  return texts


def losses(place, name, folder='train'):
  path = place / name / folder / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return {line['step']: line['loss'] for line in lines}


def step_of(started, path, enough, seconds=600):
  """The last step that a run has logged, once it is one that will do."""
  limit = time.monotonic() + seconds
  while True:
    text = path.read_text()
    last = max(map(int, re.findall(r'^step +(\d+)/', text, re.M)), default=0)
    if enough(last):
      return last
    assert all(p.poll() is None for p in started), text[-2000:]
    assert time.monotonic() < limit, text[-2000:]
    time.sleep(0.02)


@pytest.fixture(scope='module')
def alone(place):
  """The same run in one process with one device."""
  train(place, 'alone')
  return losses(place, 'alone')


@pytest.fixture(scope='module')
def pair(place, alone):
  """Two processes that go on until one gets a signal: codes, texts."""
  started = start(place, 'pair', processes=2, TRAIN_STEPS=ENDLESS)
  try:
    step_of(started, place / 'pair.0.log', lambda step: step >= STEPS)
    started[1].send_signal(signal.SIGTERM)
  finally:
    out = finish(place, 'pair', started)
  return out


def close(ours, expected):
  """Sums in another order; Adam grows the rounding of each update."""
  tokens = 8 * 32
  for step, loss in expected.items():
    bound = tokens * EPS * 2**step
    np.testing.assert_allclose(ours[step], loss, rtol=bound)


def test_two_processes_learn_what_one_does(place, alone, pair):
  assert list(alone) == list(range(1, STEPS + 1))
  close(losses(place, 'pair'), alone)
  folder = 'training_eval/validation'
  close(losses(place, 'pair', folder), losses(place, 'alone', folder))


def test_only_the_first_process_speaks(pair):
  first, second = pair[1]
  assert len(re.findall(r'^step +1/', first, re.M)) == 1
  assert 'step' not in second


def test_a_signal_to_one_process_stops_both_and_saves(place, pair):
  codes, texts = pair
  assert codes == [0, 0], texts
  assert 'stopped by SIGTERM at step' in texts[0]
  step = max(losses(place, 'pair'))
  assert (place / 'pair' / f'checkpoint_{step}').is_dir()


def test_four_processes_save_and_two_resume(place, alone):
  """Two with two devices each, which go on as if nothing had happened."""
  train(place, 'four', processes=4, TRAIN_STEPS=HALF)
  first, _ = train(place, 'four', processes=2, devices=2)
  assert f'resuming {place}/four at step {HALF}' in first
  ours = losses(place, 'four')
  assert list(ours) == list(alone)
  close(ours, alone)
  position = f'checkpoint_{STEPS}/dataset/metadata'
  expected = (place / 'alone' / position).read_text()
  assert (place / 'four' / position).read_text() == expected


def test_a_dead_process_ends_the_others(place, alone):
  """Within a minute, in words; and the same command repeats what was lost."""
  period, name = 20, 'killed'
  pair = {'processes': 2, 'CHECKPOINT_PERIOD': period, 'EVAL_PERIOD': ENDLESS}
  started = start(place, name, TRAIN_STEPS=ENDLESS, **pair)

  def mid_way(step):
    """A checkpoint is there, and the next one is some steps away."""
    saved = place / name / f'checkpoint_{step // period * period}'
    return 3 <= step % period <= period // 2 and saved.is_dir()

  try:
    step_of(started, place / f'{name}.0.log', mid_way)
    started[1].kill()
    started[0].wait(60)
  finally:
    codes, texts = finish(place, name, started, 1)
  assert codes[0] not in (0, None)
  last = texts[0].strip().splitlines()[-1]
  assert last.startswith('error: process 0 of 2 cannot go on'), texts[0][-3000:]
  assert 'the same command on all goes on from the last checkpoint' in last
  before = losses(place, name)
  first, _ = train(place, name, TRAIN_STEPS=max(before), **pair)
  saved = int(re.search(rf'resuming {place}/{name} at step (\d+)', first)[1])
  assert saved and saved % period == 0 and saved < max(before)
  assert losses(place, name) == before  # To the bit.
