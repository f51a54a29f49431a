# SPDX-License-Identifier: Apache-2.0
"""Several real processes on this machine, through the real command line.

They talk over loopback with XLA's CPU collectives (gloo), as hosts of a
cluster would. What they learn, save and restore equals one process's.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run

pytestmark = pytest.mark.slow
STEPS, HALF = 8, 4
ROOT = pathlib.Path(__file__).resolve().parents[2]
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('hosts')
  (root / 'text').mkdir()
  for index in range(40):
    (root / 'text' / f'{index}.txt').write_text(tiny_run.text(12, index))
  return root


def start(place, name, *, processes=1, devices=4, **macros):
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
    'training.linear_warmup_decay.total_steps': STEPS,
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
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
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


def finish(place, name, started, seconds=300):
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


@pytest.fixture(scope='module')
def alone(place):
  """The same run in one process with the same four devices."""
  train(place, 'alone')
  return losses(place, 'alone')


@pytest.fixture(scope='module')
def pair(place, alone):
  """Half of the run by two processes of two devices."""
  return train(place, 'pair', processes=2, devices=2, TRAIN_STEPS=HALF)


def close(ours, expected):
  """Sums in another order; Adam grows the rounding of each update."""
  tokens = 8 * 32
  for step, loss in ours.items():
    bound = tokens * EPS * 2**step
    np.testing.assert_allclose(loss, expected[step], rtol=bound)


def test_two_processes_learn_what_one_does(place, alone, pair):
  ours = losses(place, 'pair')
  assert list(ours) == list(range(1, HALF + 1))
  close(ours, alone)
  evaluated = losses(place, 'pair', 'training_eval/validation')
  close(evaluated, losses(place, 'alone', 'training_eval/validation'))


def test_only_the_first_process_speaks(pair):
  first, second = pair
  assert first.count('step 1/4 |') == 1
  assert 'step' not in second


def test_one_process_goes_on_where_two_stopped(place, alone, pair):
  shutil.copytree(place / 'pair', place / 'single')
  shutil.copytree(place / 'pair', place / 'narrow')
  (text,) = train(place, 'single', devices=1)
  assert f'resuming {place}/single at step {HALF}' in text
  ours = losses(place, 'single')
  assert list(ours) == list(range(1, STEPS + 1))
  close(ours, alone)
  position = place / 'single' / f'checkpoint_{STEPS}' / 'dataset' / 'metadata'
  expected = place / 'alone' / f'checkpoint_{STEPS}' / 'dataset' / 'metadata'
  assert position.read_text() == expected.read_text()


def test_four_processes_save_and_two_resume(place, alone):
  train(place, 'four', processes=4, devices=1, TRAIN_STEPS=HALF)
  first, _ = train(place, 'four', processes=2, devices=1)
  assert f'resuming {place}/four at step {HALF}' in first
  close(losses(place, 'four'), alone)


def wait_for(path, text, seconds=180):
  limit = time.monotonic() + seconds
  while text not in (path.read_text() if path.exists() else ''):
    assert time.monotonic() < limit, path.read_text()[-2000:]
    time.sleep(0.2)


def test_a_signal_to_one_process_stops_both_and_saves(place, alone):
  started = start(place, 'stopped', processes=2, devices=1, TRAIN_STEPS=10**6)
  wait_for(place / 'stopped.0.log', 'step       2/')
  started[1].send_signal(signal.SIGTERM)
  codes, texts = finish(place, 'stopped', started, 120)
  assert codes == [0, 0], texts
  assert 'stopped by SIGTERM at step' in texts[0]
  step = max(losses(place, 'stopped'))
  assert (place / 'stopped' / f'checkpoint_{step}').is_dir()


def test_a_dead_process_ends_the_others(place, alone):
  started = start(place, 'killed', processes=2, devices=1, TRAIN_STEPS=10**6)
  wait_for(place / 'killed.0.log', 'step       6/')
  started[1].kill()
  killed = time.monotonic()
  codes, texts = finish(place, 'killed', started, 120)
  assert time.monotonic() - killed < 60
  assert codes[0] not in (0, None)
  last = texts[0].strip().splitlines()[-1]
  assert last.startswith('error: '), texts[0][-3000:]
  assert 'process' in last
  # The same command goes on from the last checkpoint.
  saved = max(
    int(p.name.split('_')[1])
    for p in (place / 'killed').glob('checkpoint_*')
    if p.name.split('_')[1].isdigit()
  )
  first, _ = train(
    place, 'killed', processes=2, devices=1, TRAIN_STEPS=saved + 1
  )
  assert f'resuming {place}/killed at step {saved}' in first
