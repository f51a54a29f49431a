# SPDX-License-Identifier: Apache-2.0
"""Faults, one after another: the same curve to the bit, or one clear line.

  make fault-test

prints a table of what was tried. METRO_FAULT_KILLS=200 kills a run so often,
at random moments; METRO_FAULT_RECIPES='metro_lm/tiny.gin t5/tiny.gin' does
so to runs of these recipes too.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TOY = pathlib.Path(__file__).parents[1] / 'training' / 'toy_run.py'
KILLS = int(os.environ.get('METRO_FAULT_KILLS', '4'))
RECIPES = os.environ.get('METRO_FAULT_RECIPES', '').split()
STEPS = 24
WORDS = ('the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'dog', 'ran', 'home')
TABLE: list[tuple[str, int, int, str]] = []


def toy(**options) -> list[str]:
  """The command of a toy run, but for MODEL_DIR."""
  return [str(TOY), json.dumps({'train_steps': STEPS, **options})]


def recipe(name: str, folder: pathlib.Path) -> list[str]:
  """The command of a run of a recipe, tiny."""
  draw = random.Random(0)
  texts = [' '.join(draw.choices(WORDS, k=20)) for _ in range(120)]
  (folder / 'corpus.txt').write_text('\n\n'.join(texts))
  macros = {
    'TEXT_FILES': folder / 'corpus.txt',
    'DATA_DIR': folder / 'data',
    'VOCAB_SIZE': 128,
    'LENGTH': 32,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': STEPS,
    'WARMUP_STEPS': 5,
    'STATS_PERIOD': 3,
    'CHECKPOINT_PERIOD': 4,
    'EVAL_PERIOD': 10,
    'EVAL_STEPS': 2,
    'modules.TransformerConfig.embed_dim': 16,
    'modules.TransformerConfig.mlp_dim': 32,
    'modules.TransformerConfig.num_heads': 2,
    'modules.TransformerConfig.num_layers': 1,
    'training.train.tensorboard': False,
  }
  return [f'--gin_file={name}'] + [f'--gin.{k}={v}' for k, v in macros.items()]


def start(command: list[str], folder: pathlib.Path) -> subprocess.Popen:
  """Starts a run; what it prints goes to a file beside the folder."""
  if command[0].endswith('.py'):
    words = [sys.executable, command[0], str(folder), *command[1:]]
  else:
    words = [sys.executable, '-m', 'metro_jax.train', *command]
    words.append(f'--gin.MODEL_DIR={folder}')
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  with folder.with_suffix('.log').open('w') as log:
    return subprocess.Popen(words, stdout=log, stderr=log, env=env)


def printed(folder: pathlib.Path) -> str:
  return folder.with_suffix('.log').read_text()


def finish(command: list[str], folder: pathlib.Path) -> str:
  """Runs to the end; what was printed."""
  assert start(command, folder).wait(300) == 0, printed(folder)
  return printed(folder)


def curve(folder: pathlib.Path) -> dict[str, list[dict]]:
  """All that was logged, but for times."""
  return {
    str(path.relative_to(folder)): [
      {k: v for k, v in json.loads(line).items() if not k.startswith('timing/')}
      for line in path.read_text().splitlines()
    ]
    for path in sorted(folder.rglob('*.jsonl'))
  }


def assert_same(folder: pathlib.Path, unbroken: pathlib.Path) -> None:
  # As text, in which a NaN equals itself.
  assert json.dumps(curve(folder)) == json.dumps(curve(unbroken))
  last = f'checkpoint_{STEPS}'
  assert (folder / last).is_dir() and (unbroken / last).is_dir()
  if (unbroken / 'final.npz').exists():
    expected, found = (np.load(f / 'final.npz') for f in (unbroken, folder))
    for name in expected.files:
      np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def resumed_at(text: str) -> int:
  found = re.search(r'at step (\d+) of', text)
  return int(found.group(1)) if found else 0


def saved_steps(folder: pathlib.Path) -> list[int]:
  """Steps with a finished checkpoint, ascending."""
  names = [p.name.removeprefix('checkpoint_') for p in folder.iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


def note(fault: str, tried: int, lost: int, end: str = 'same to the bit'):
  TABLE.append((fault, tried, lost, end))


@pytest.fixture(scope='module', autouse=True)
def table():
  yield
  print(f'\n\n{"fault":44} {"tried":>5} {"steps lost":>10}  end')
  for fault, tried, lost, end in TABLE:
    print(f'{fault:44} {tried:5} {lost:10}  {end}')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('runs') / 'unbroken'
  finish(toy(), folder)
  return folder


@pytest.fixture(scope='module')
def killed_late(tmp_path_factory) -> pathlib.Path:
  """A run that was killed before batch 18, with two checkpoints."""
  folder = tmp_path_factory.mktemp('runs') / 'killed_late'
  process = start(toy(kill_at=18), folder)
  assert process.wait(300) == -signal.SIGKILL, printed(folder)
  assert len(saved_steps(folder)) == 2
  return folder


# ----------------------------------------------------------------------
# Processes that end.
# ----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['toy', *RECIPES])
def test_sigkill_at_random_moments(name, tmp_path, unbroken):
  """Moments of the clock, counted from the first line of output."""
  if name == 'toy':
    command, whole = toy(), unbroken
  else:
    command, whole = recipe(name, tmp_path), tmp_path / 'whole'
    finish(command, whole)
  draw = random.Random(1)
  killed, lost = 0, 0
  folder = tmp_path / 'run'
  while killed < KILLS:
    process = start(command, folder)
    # Some of the kills fall into saves; the toy needs a second for 24 steps.
    while process.poll() is None and 'compiled' not in printed(folder):
      time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.8))
    process.kill()
    if process.wait() == 0:  # It was faster; once more from the start.
      assert_same(folder, whole)
      shutil.rmtree(folder)
      continue
    killed += 1
    lines = folder / 'train' / 'metrics.jsonl'
    done = lines.read_text().splitlines() if lines.exists() else []
    saved = max(saved_steps(folder), default=0)
    lost += max(0, (json.loads(done[-1])['step'] if done else 0) - saved)
  finish(command, folder)
  assert_same(folder, whole)
  assert not list(folder.glob('*tmp*')), 'unfinished saves stay behind'
  note(f'SIGKILL at a random moment ({name})', KILLS, lost)


def test_sigkill_inside_a_save(unbroken, tmp_path):
  folder = tmp_path / 'run'
  for step in (8, 16):
    process = start(toy(kill_in_save=step), folder)
    assert process.wait(300) == -signal.SIGKILL, printed(folder)
  finish(toy(), folder)
  assert_same(folder, unbroken)
  note('SIGKILL inside a save', 2, 8)


def test_clock_goes_back_a_day(unbroken, tmp_path):
  finish(toy(clock_jumps_at=9), tmp_path / 'run')
  assert_same(tmp_path / 'run', unbroken)
  note('the clock goes back a day', 1, 0)


# ----------------------------------------------------------------------
# Disks that forget.
# ----------------------------------------------------------------------


def spoil(file: pathlib.Path, way: str) -> None:
  data = bytearray(file.read_bytes())
  if way == 'bit flipped':
    data[len(data) // 2] ^= 1
  elif way == 'truncated':
    del data[len(data) // 2 :]
  elif way == 'zero bytes':
    data.clear()
  file.write_bytes(data)
  if way == 'missing':
    file.unlink()


@pytest.mark.parametrize(
  'way', ['bit flipped', 'truncated', 'zero bytes', 'missing']
)
def test_largest_file_of_the_newest_checkpoint(
  killed_late, unbroken, tmp_path, way
):
  folder = tmp_path / 'run'
  shutil.copytree(killed_late, folder)
  newest = folder / f'checkpoint_{saved_steps(folder)[-1]}'
  files = [p for p in newest.rglob('*') if p.is_file()]
  spoil(max(files, key=lambda p: p.stat().st_size), way)
  text = finish(toy(), folder)
  warnings = [x for x in text.splitlines() if x.startswith('warning')]
  assert len(warnings) == 1 and 'is broken and was renamed' in warnings[0]
  assert_same(folder, unbroken)
  note(f'newest checkpoint: {way}', 1, 18 - resumed_at(text))


# ----------------------------------------------------------------------
# Company, and numbers that are none.
# ----------------------------------------------------------------------


def test_two_writers(unbroken, tmp_path):
  folder = tmp_path / 'run'
  first = start(toy(wait_at=9), folder)
  while not (folder / 'waiting').exists():
    assert first.poll() is None, printed(folder)
    time.sleep(0.01)
  second = subprocess.run(
    [sys.executable, TOY, folder, json.dumps({'train_steps': STEPS})],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  (folder / 'waiting').unlink()
  assert first.wait(300) == 0, printed(folder)
  assert second.returncode == 2
  (line,) = second.stderr.splitlines()
  assert f'written by another run (process {first.pid} on' in line
  assert_same(folder, unbroken)
  note('a second writer', 1, 0, 'one line; the first ends as it would')


def test_nan_in_batches_and_a_kill(tmp_path):
  """Two ill batches, then four in a row: refused, then passed over."""
  options = {'nan_batches': [5, 14, 15, 16, 17]}
  finish(toy(**options), tmp_path / 'whole')
  for kill_at in (15, 19):
    process = start(toy(kill_at=kill_at, **options), tmp_path / 'run')
    assert process.wait(300) == -signal.SIGKILL, printed(tmp_path / 'run')
  finish(toy(**options), tmp_path / 'run')
  assert_same(tmp_path / 'run', tmp_path / 'whole')
  events = curve(tmp_path / 'run')['train/events.jsonl']
  assert [e['event'] for e in events] == ['refused'] * 4 + [
    'rollback',
    'refused',
  ]
  note('NaN in batches, and kills', 2, 8, 'same as NaN without kills')


def test_nan_in_every_batch_is_one_line(tmp_path):
  folder = tmp_path / 'run'
  process = start(toy(nan_batches=list(range(60))), folder)
  assert process.wait(300) == 2
  lines = [x for x in printed(folder).splitlines() if x.startswith('error')]
  assert len(lines) == 1 and 'stopped at step 3' in lines[0]
  assert 'Traceback' not in printed(folder)
  note('NaN in every batch', 1, 0, 'one line, exit code 2')
