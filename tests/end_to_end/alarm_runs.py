# SPDX-License-Identifier: Apache-2.0
"""Short real runs, healthy or with a planted failure, and their alarms.

  python tests/end_to_end/alarm_runs.py --folder=.cache/alarms --seeds=5

runs all four recipes and all failures with so many seeds, and prints a table.
What has been run is kept in the folder: the same command goes on.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = ('metro_lm', 'metro_t5', 'amos', 'fast_electra')
# Known by heart in a hundred steps.
FOX = 'the quick brown fox jumps over the lazy dog and runs away . ' * 30
# The recipes' smallest sizes, narrower still, on one vocabulary.
SMALL = {
  'WARMUP_STEPS': 30,
  'STATS_PERIOD': 10,
  'EVAL_STEPS': 1,
  'LENGTH': 32,
  'BATCH_SIZE': 16,
  'EXTRA_IDS': 0,
  'modules.TransformerConfig.embed_dim': 64,
  'modules.TransformerConfig.mlp_dim': 128,
  'modules.TransformerConfig.num_layers': 2,
  'training.train.tensorboard': False,
}


class Failure(NamedTuple):
  """A planted failure.

  Attributes:
    macros: what plants it.
    alarm: words of the alarm that is right.
    by_heart: whether the text is one sentence, again and again.
  """

  macros: Mapping[str, Any]
  alarm: str
  by_heart: bool = False


FAILURES = {
  'learning rate far too high': Failure(
    {'LEARNING_RATE': 0.5}, 'the learning rate is too high'
  ),
  'auxiliary too strong': Failure({}, 'the auxiliary is too strong', True),
  'uniform noise': Failure(
    {
      'AUXILIARY': '@pretrain.Uniform()',
      'OBJECTIVES': '(@pretrain.RTD(), @pretrain.CorrectiveLM())',
      'SHARE': '()',
    },
    'its proposals too random',
    True,
  ),
}


def train(
  folder: pathlib.Path, recipe: str, steps: int, **macros: Any
) -> list[str]:
  """Trains; the lines of the alarms that were raised.

  Args:
    folder: MODEL_DIR; what is printed goes to a file beside it.
    recipe: folder of gin_configs.
    steps: of the run.
    **macros: beside `SMALL`.
  """
  macros = SMALL | {'TRAIN_STEPS': steps, 'EVAL_PERIOD': steps} | macros
  flags = [f'--gin.{name}={value}' for name, value in macros.items()]
  words = [sys.executable, '-m', 'metro_jax.train', *flags]
  words += [f'--gin_file={recipe}/tiny.gin', f'--gin.MODEL_DIR={folder}']
  folder.parent.mkdir(parents=True, exist_ok=True)
  log = folder.with_name(f'{folder.name}.log')
  one = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  with (
    log.open('w') as file,
    subprocess.Popen(words, stdout=file, stderr=file, env=one) as process,
  ):
    try:
      code = process.wait()
    finally:
      process.kill()
  text = log.read_text()
  assert code in (0, 2), text  # 2: the guard has given up.
  return [line for line in text.splitlines() if line.startswith('alarm')]


def fail(folder: pathlib.Path, name: str, **macros: Any) -> list[str]:
  """Trains METRO-LM with a planted failure; the lines of the alarms."""
  failure = FAILURES[name]
  if failure.by_heart:
    folder.parent.mkdir(parents=True, exist_ok=True)
    text = folder.parent / 'fox.txt'
    text.write_text('\n\n'.join([FOX] * 40))
    data = {'TEXT_FILES': text, 'DATA_DIR': folder.parent, 'VOCAB_SIZE': 128}
    macros = data | macros
  return train(folder, 'metro_lm', 300, **failure.macros, **macros)


def main() -> int:
  """Runs what has not been run yet, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=600)
  options = parser.parse_args()
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  folder = options.folder.resolve()
  record = folder / 'alarms.jsonl'
  lines = record.read_text().splitlines() if record.exists() else []
  known = {tuple(x['run']): x for x in map(json.loads, lines)}
  auxiliary = folder / 'metro_lm-0'  # Fast-ELECTRA's.
  for seed in range(options.seeds):
    for name in (*RECIPES, *FAILURES):
      if (name, seed) in known:
        continue
      place, macros = folder / f'{name}-{seed}', {'RANDOM_SEED': seed}
      if name == 'fast_electra':
        macros['AUX_CHECKPOINT_PATH'] = auxiliary
      if name in RECIPES:
        found = train(place, name, options.steps, **macros)
        right = not found
      else:
        found = fail(place, name, **macros)
        right = any(FAILURES[name].alarm in line for line in found)
      line = {'run': (name, seed), 'right': right, 'alarms': found}
      known[name, seed] = line
      with record.open('a') as file:
        file.write(json.dumps(line) + '\n')
      print(json.dumps(line), flush=True)
  print(f'\n{"run":28} {"seeds":>5} {"as it should be":>15} {"alarms":>6}')
  for name in (*RECIPES, *FAILURES):
    mine = [x for (n, _), x in known.items() if n == name]
    right = sum(x['right'] for x in mine)
    alarms = sum(len(x['alarms']) for x in mine)
    print(f'{name:28} {len(mine):5} {right:15} {alarms:6}')
  return 0


if __name__ == '__main__':
  os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  )
  sys.exit(main())
