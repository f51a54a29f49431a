# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes over seeds and search grids, and tells median and spread.

  python -m metro_jax.sweep --task=cola --task_dir=/data/glue \\
    --pretrained=runs/base --output=runs/sweep --grid=metro_lm_base

Each run is a `python -m metro_jax.finetune` in a folder of its own; the same
command goes on where it stopped. As the papers do, a grid is searched with one
seed, and its best point is run with the others; without a grid, the recipe's
own settings are run with all seeds. A run that fails, or whose loss is no
number, is reported as failed and is in no median. OUTPUT/results.md, .json and
.png hold the results so far.
"""

import argparse
import itertools
import json
import math
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metro_jax import sweep_plot
from metro_jax.errors import UserError
from metro_jax.predictions import RESULT

# The papers' search spaces, as macros of gin_configs/runs/finetune.gin.
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
  'metro_lm_base': {  # METRO-LM Table 11; at most 10 epochs.
    'LEARNING_RATE': (1e-5, 3e-5, 5e-5),
    'BATCH_SIZE': (16, 32),
    'WARMUP': (50, 100, 500),
    'EPOCHS': (10.0,),
  },
  'metro_lm_large': {
    'LEARNING_RATE': (1e-6, 5e-6, 1e-5),
    'BATCH_SIZE': (16, 32),
    'WARMUP': (50, 100, 500),
    'EPOCHS': (10.0,),
  },
  'metro_lm_xl': {
    'LEARNING_RATE': (8e-7, 8e-6, 1e-5),
    'BATCH_SIZE': (16, 32, 64),
    'WARMUP': (50, 100, 500),
    'HEAD_DROPOUT_RATE': (0.1, 0.15),
    'EPOCHS': (10.0,),
  },
  'metro_lm_xxl': {
    'LEARNING_RATE': (8e-7, 8e-6, 1e-5),
    'BATCH_SIZE': (32, 64, 128),
    'WARMUP': (50, 100, 500),
    'HEAD_DROPOUT_RATE': (0.1, 0.15),
    'EPOCHS': (10.0,),
  },
  'metro_t5': {  # METRO-T5 Table 7.
    'LEARNING_RATE': (1e-5, 2e-5, 3e-5, 4e-5, 5e-5),
    'BATCH_SIZE': (16, 32),
    'EPOCHS': (2.0, 3.0, 5.0, 10.0),
    'WARMUP': (0.06,),
    'WEIGHT_DECAY': (0.1,),
  },
  'fast_electra': {  # Fast-ELECTRA Table 4; with finetune/fast_electra.gin.
    'LEARNING_RATE': (5e-5, 1e-4, 3e-4),
    'BATCH_SIZE': (16, 32, 64),
    'EPOCHS': (2.0, 3.0, 5.0, 10.0),
    'WEIGHT_DECAY': (0.0, 0.01),
    'WARMUP': (0.06, 0.1),
  },
  'amos_glue': {  # AMOS Table 6; no clipping.
    'LEARNING_RATE': (1e-5, 2e-5, 3e-5, 4e-5, 5e-5),
    'BATCH_SIZE': (16, 32),
    'EPOCHS': (2.0, 3.0, 5.0, 10.0),
    'WARMUP': (0.06, 0.1),
    'CLIP_NORM': (None,),
  },
  'amos_squad': {
    'LEARNING_RATE': (2e-5, 3e-5, 4e-5, 5e-5),
    'BATCH_SIZE': (16, 32),
    'EPOCHS': (2.0, 3.0),
    'WARMUP': (0.06, 0.1),
    'CLIP_NORM': (None,),
  },
}
FAILED = 'failed.json'

Point = Mapping[str, Any]


def points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
  """All combinations of a grid."""
  return [
    dict(zip(grid, values, strict=True))
    for values in itertools.product(*grid.values())
  ]


def parse_grid(text: str) -> dict[str, tuple[Any, ...]]:
  """A grid by name, or `NAME=1e-4,3e-4;OTHER=16,32`.

  Args:
    text: as typed.

  Raises:
    UserError: if it is neither.
  """
  if text in GRIDS:
    return GRIDS[text]
  grid = {}
  for part in filter(None, text.split(';')):
    name, equals, values = part.partition('=')
    if not equals or not values:
      raise UserError(
        f'--grid={text}: give one of {list(GRIDS)}, or'
        ' LEARNING_RATE=1e-4,3e-4;BATCH_SIZE=16,32'
      )
    grid[name.strip()] = tuple(v.strip() for v in values.split(','))
  return grid


class Sweep:
  """Runs of one task, each in a folder of its own.

  Attributes:
    output: the folder of them all.
    command: words of `metro_jax.finetune` that all runs share.
  """

  def __init__(self, output: pathlib.Path, command: Sequence[str]):
    """Takes where to run, and what is the same for all runs."""
    self.output, self.command = output, list(command)

  def run(self, task: str, point: Point, seed: int) -> dict[str, Any]:
    """The result of one run, which is started if it is not there.

    Returns:
      `score` (None of a run that failed), `seed`, `folder`, and `error`.
    """
    folder = self.output / task / _name(point, seed)
    about = {'task': task, 'seed': seed, 'folder': str(folder), **point}
    finished = folder / RESULT
    if not finished.exists() and not (folder / FAILED).exists():
      self._start(task, point, seed, folder)
    if not finished.exists():
      error = json.loads((folder / FAILED).read_text())['error']
      return about | {'score': None, 'error': error}
    result = json.loads(finished.read_text())
    score = result['score']
    if not math.isfinite(score):
      return about | {'score': None, 'error': 'diverged'}
    scores = result['scores']
    return about | {
      'score': score,
      'metric': result['metric'],
      'last': result['last'],
      'scores': scores,
    }

  def _start(self, task: str, point: Point, seed: int, folder) -> None:
    words = [sys.executable, '-m', 'metro_jax.finetune', *self.command]
    bound = {'TASK': task, 'MODEL_DIR': folder, 'RANDOM_SEED': seed, **point}
    words += [f'--gin.{name}={value}' for name, value in bound.items()]
    print('$', ' '.join(words[1:]), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'log.txt').open('a') as log:
      done = subprocess.run(
        words, stdout=log, stderr=subprocess.STDOUT, check=False
      )
    if done.returncode == 130:
      raise KeyboardInterrupt
    if not (folder / RESULT).exists():
      lines = (folder / 'log.txt').read_text().splitlines()
      error = lines[-1] if lines else f'exit code {done.returncode}'
      if done.returncode == 2:  # The user's mistake: all runs would make it.
        raise UserError(error.removeprefix('error: '))
      (folder / FAILED).write_text(json.dumps({'error': error}) + '\n')


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Median and spread of the runs that ended well; the others are counted."""
  scores = [run['score'] for run in runs if run['score'] is not None]
  return {
    'runs': len(runs),
    'failed': len(runs) - len(scores),
    'median': statistics.median(scores) if scores else None,
    'min': min(scores, default=None),
    'max': max(scores, default=None),
    'stdev': statistics.stdev(scores) if len(scores) > 1 else None,
  }


def sweep_task(
  runner: Sweep, task: str, grid: Mapping[str, Sequence[Any]], seeds: int
) -> dict[str, Any]:
  """Searches the grid with seed 0, then runs its best point with all seeds."""
  searched = [runner.run(task, point, 0) for point in points(grid)]
  good = [run for run in searched if run['score'] is not None]
  if not good:
    best = {}
    runs = searched
  else:
    winner = max(good, key=lambda run: run['score'])
    best = {name: winner[name] for name in grid}
    runs = [runner.run(task, best, seed) for seed in range(seeds)]
  return {
    'task': task,
    'metric': next((r['metric'] for r in runs if 'metric' in r), None),
    'best': best,
    'searched': searched if grid else [],
    'runs_of_best': runs,
    **summarize(runs),
  }


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
  """The table of a sweep."""
  rows = [
    '| task | metric | median | min | max | stdev | runs | failed | settings |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for r in results:
    numbers = ' | '.join(_number(r[k]) for k in ('median', 'min', 'max'))
    settings = ', '.join(f'{k}={v}' for k, v in r['best'].items()) or 'recipe'
    rows.append(
      f'| {r["task"]} | {r["metric"]} | {numbers} | {_number(r["stdev"])}'
      f' | {r["runs"]} | {r["failed"]} | {settings} |'
    )
  return '\n'.join(rows) + '\n'


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.4g}'


def _name(point: Point, seed: int) -> str:
  """Folder of a run; the same settings have the same folder."""
  parts = [f'{name.lower()}={value}' for name, value in point.items()]
  return '_'.join([*parts, f'seed={seed}'])


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.sweep',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='Other words go to metro_jax.finetune: --gin_file=finetune/pdr.gin',
  )
  parser.add_argument('--task', required=True, help='cola, or cola,sst2,...')
  parser.add_argument('--task_dir', required=True, help='TASK_DIR of all tasks')
  parser.add_argument('--pretrained', required=True, help='a MODEL_DIR')
  parser.add_argument('--output', required=True, help='folder of all runs')
  parser.add_argument('--seeds', type=int, default=5, help='runs (default 5)')
  parser.add_argument(
    '--grid',
    default='',
    help=f'{", ".join(GRIDS)}, or NAME=1,2;OTHER=3,4; default: none',
  )
  flags, rest = parser.parse_known_args(argv)
  try:
    grid = parse_grid(flags.grid)
    output = pathlib.Path(flags.output)
    shared = [
      *rest,
      f'--gin.TASK_DIR={flags.task_dir}',
      f'--gin.INITIAL_CHECKPOINT_PATH={flags.pretrained}',
    ]
    runner = Sweep(output, shared)
    results = []
    for task in flags.task.split(','):
      results.append(sweep_task(runner, task, grid, flags.seeds))
      (output / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
      (output / 'results.md').write_text(markdown(results))
      sweep_plot.draw(results, output / 'results.png')
    print(markdown(results), end='')
    return 0
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; the same command goes on from here', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
