# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own that meet with faults, and what to compare."""

import functools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

SCRIPTS = pathlib.Path(__file__).parents[1] / 'training'
RECIPES = ('metro_lm', 'metro_t5', 'amos', 'fast_electra')
STEPS, PERIOD = 24, 4  # Of the toy, the period is in toy_run.py.
LIMIT = 600  # Seconds after which a run hangs.
WORDS = 'the cat sat on a mat and the dog ran to the park by the old red house'

# (MODEL_DIR, what is to happen) -> words of a command line.
Command = Callable[[pathlib.Path, Mapping[str, Any]], list[str]]


def toy(
  folder: pathlib.Path, plan: Mapping[str, Any], steps: int = STEPS
) -> list[str]:
  """The command of a toy run."""
  options = json.dumps({'train_steps': steps, **plan})
  return [sys.executable, str(SCRIPTS / 'toy_run.py'), str(folder), options]


def recipe(name: str, text: pathlib.Path, steps: int = STEPS) -> Command:
  """The command line of a tiny run of a recipe, on a text made for it.

  Args:
    name: folder of gin_configs.
    text: folder of the text, and of what is made from it.
    steps: of the run; an epoch has about 15.
  """
  text.mkdir(parents=True, exist_ok=True)
  draw, corpus = random.Random(0), text / 'corpus.txt'
  if not corpus.exists():
    documents = [' '.join(draw.choices(WORDS.split(), k=20)) for _ in range(60)]
    corpus.write_text('\n\n'.join(documents))
  macros = {
    'TEXT_FILES': corpus,
    'DATA_DIR': text / 'data',
    'VOCAB_SIZE': 128,
    'LENGTH': 16,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': steps,
    'WARMUP_STEPS': 5,
    'STATS_PERIOD': 3,  # Windows lie across checkpoints.
    'CHECKPOINT_PERIOD': PERIOD,
    'training.train.eval_datasets': {},  # Nothing more to compile.
    'modules.TransformerConfig.embed_dim': 16,
    'modules.TransformerConfig.mlp_dim': 32,
    'modules.TransformerConfig.num_heads': 2,
    'modules.TransformerConfig.num_layers': 1,
    'training.Guard.window': 8,
    'training.Guard.max_refused': 3,
    'training.train.tensorboard': False,
  }
  if name == 'metro_t5':
    macros |= {
      'EXTRA_IDS': 0,
      'decoder/modules.TransformerConfig.num_layers': 1,
    }
  elif name == 'fast_electra':  # An auxiliary that has not been trained.
    macros['AUX_CHECKPOINT_PATH'] = None
  flags = [f'--gin_file={name}/tiny.gin']
  flags += [f'--gin.{k}={v}' for k, v in macros.items()]

  def command(folder: pathlib.Path, plan: Mapping[str, Any]) -> list[str]:
    script = str(SCRIPTS / 'recipe_run.py')
    return [sys.executable, script, str(folder), json.dumps(plan), *flags]

  return command


def start(
  command: Command, folder: pathlib.Path, devices: int = 1, **plan: Any
) -> subprocess.Popen:
  """Starts a run; what it prints goes to a file beside its folder."""
  flags = '--xla_backend_optimization_level=0'
  flags += f' --xla_force_host_platform_device_count={devices}'
  with folder.with_suffix('.log').open('w') as log:
    return subprocess.Popen(
      command(folder, plan),
      stdout=log,
      stderr=log,
      env=os.environ | {'XLA_FLAGS': flags},
    )


def printed(folder: pathlib.Path) -> str:
  """What the last process of a run printed."""
  return folder.with_suffix('.log').read_text()


def run(
  command: Command,
  folder: pathlib.Path,
  code: int = 0,
  devices: int = 1,
  **plan: Any,
) -> str:
  """Runs a process to its end, of which the exit code is known."""
  with start(command, folder, devices, **plan) as process:
    try:
      found = process.wait(LIMIT)
    finally:
      process.kill()
  assert found == code, f'exit code {found}, not {code}: {printed(folder)}'
  return printed(folder)


# ----------------------------------------------------------------------
# What a run left behind.
# ----------------------------------------------------------------------


def saved_steps(folder: pathlib.Path) -> list[int]:
  """Steps with a finished checkpoint, ascending."""
  names = [p.name.removeprefix('checkpoint_') for p in folder.glob('*_*')]
  return sorted(int(name) for name in names if name.isdigit())


def finished(folder: pathlib.Path) -> bool:
  """Whether the last process of a run came to its end."""
  log = folder.with_suffix('.log')
  return log.exists() and '\ndone: ' in log.read_text()


def last_logged(folder: pathlib.Path) -> int:
  """The step of the newest log line; 0 without any."""
  path = folder / 'train' / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  found = re.match(r'{"step": (\d+)', lines[-1]) if lines else None
  return int(found.group(1)) if found else 0


def steps_lost(folder: pathlib.Path) -> int:
  """Steps that are logged and have to be done again."""
  saved = max(saved_steps(folder), default=0)
  return max(0, last_logged(folder) - saved)


def resumed_at(text: str) -> int:
  """The step at which a process says that it resumes."""
  found = re.search(r'at step (\d+) of', text)
  return int(found.group(1)) if found else 0


def logged(folder: pathlib.Path) -> dict[str, list[dict]]:
  """All lines of all logs, but for times."""
  return {
    str(path.relative_to(folder)): [
      {k: v for k, v in json.loads(line).items() if not k.startswith('timing/')}
      for line in path.read_text().splitlines()
    ]
    for path in sorted(folder.rglob('*.jsonl'))
  }


def events(folder: pathlib.Path) -> list[str]:
  """What happened to a run, in a word each."""
  return [e['event'] for e in logged(folder).get('train/events.jsonl', [])]


@functools.cache
def state(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Parameters and slots of the last checkpoint, by name."""
  last = folder / f'checkpoint_{saved_steps(folder)[-1]}' / 'state'
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(last.resolve())
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same(folder: pathlib.Path, unbroken: pathlib.Path) -> None:
  """Two finished runs: the same logs and the same state, to the bit."""
  # As text, in which a NaN equals itself.
  found, expected = (json.dumps(logged(f)) for f in (folder, unbroken))
  assert found == expected
  assert saved_steps(folder)[-1] == saved_steps(unbroken)[-1]
  left, right = state(folder), state(unbroken)
  assert left.keys() == right.keys()
  for name, value in right.items():
    np.testing.assert_array_equal(left[name], value, err_msg=name)
  assert not list(folder.glob('*tmp*')), 'unfinished saves stay behind'


# ----------------------------------------------------------------------
# Disks that forget.
# ----------------------------------------------------------------------

WAYS = ('bit flipped', 'truncated', 'zero bytes', 'missing')


def spoil(file: pathlib.Path, way: str) -> None:
  """Does to a file what disks do."""
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


def largest_file(folder: pathlib.Path) -> pathlib.Path:
  """Of a checkpoint, the shard with its arrays."""
  files = (path for path in folder.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)
