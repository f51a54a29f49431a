# SPDX-License-Identifier: Apache-2.0
"""What pretraining is worth downstream, at a size for two CPU cores.

  python -m benchmarks.downstream --text='corpus/*.txt' --task_dir=/data/glue \\
    --tasks=cola,sst2 --output=runs/downstream --steps=4000

Pretrains METRO-LM on the text, and the same main model by masked language
modelling (BERT's) for the same time: both recipes are timed first, in turn, and
MLM takes as many more steps as its steps are faster. Then fine-tunes both, and
the same network from a random start, for --finetune_steps steps of 32 rows:
each searches --grid with one seed, and runs its best point with --seeds seeds.
OUTPUT/table.md has medians and spreads.

The same command goes on where it was stopped. Other words go to pretraining:
--gin.LENGTH=128.
"""

import argparse
import glob
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from metro_jax import ablate, sweep
from metro_jax.data import command_line
from metro_jax.downstream import registry
from metro_jax.errors import UserError

RECIPES = {'metro_lm': 'metro_lm/tiny.gin', 'mlm': 'mlm/tiny.gin'}
SCRATCH = 'from scratch'
TURNS = 3
TIMED = {
  'TRAIN_STEPS': 60,
  'WARMUP_STEPS': 10,
  'STATS_PERIOD': 5,
  'EVAL_STEPS': 1,
}
TINY = '--gin_file=finetune/tiny.gin'
# Tokens; one in fifty sentences of CoLA's validation set is longer.
TASK_LENGTH = 32


def step_ratio(output: pathlib.Path, words: Sequence[str]) -> float:
  """Seconds of a METRO-LM step over those of an MLM step; timed in turn."""
  record = output / 'timing.json'
  if not record.exists():
    times: dict[str, list[float]] = {name: [] for name in RECIPES}
    for turn in range(TURNS):
      for name in RECIPES:
        more = [f'--gin.{key}={value}' for key, value in TIMED.items()]
        run = _pretraining(name, [*words, *more], turn, output / 'timing')
        times[name].append(_finished(run)['milliseconds_per_step'])
    record.write_text(json.dumps(times))
  times = json.loads(record.read_text())
  return statistics.median(
    a / b for a, b in zip(times['metro_lm'], times['mlm'], strict=True)
  )


def _pretraining(
  name: str, words: Sequence[str], seed: int, output: pathlib.Path
) -> ablate.Run:
  return ablate.run_of(name, [RECIPES[name]], words, seed, output)


def _finished(run: ablate.Run) -> Mapping[str, float]:
  failure = run.finish()
  if failure:
    why = failure.removeprefix('error: ')
    raise UserError(f'{run.model_dir}: {why}')
  return run.result() or {}


def pretrain(
  output: pathlib.Path, words: Sequence[str], steps: int
) -> dict[str, pathlib.Path]:
  """Pretrains both for the same time; their folders."""
  longer = round(steps * step_ratio(output, words))
  folders = {}
  for name, count in {'metro_lm': steps, 'mlm': longer}.items():
    more = [f'--gin.TRAIN_STEPS={count}', f'--gin.CHECKPOINT_PERIOD={count}']
    run = _pretraining(name, [*words, *more], 0, output / 'pretrained')
    print(f'{name}: {count} steps in {run.model_dir}', flush=True)
    _finished(run)
    folders[name] = run.model_dir
  return folders


def finetune(
  folders: Mapping[str, pathlib.Path],
  tasks: Sequence[str],
  bound: Mapping[str, Any],
  grid: Mapping[str, Sequence[Any]],
  seeds: int,
  output: pathlib.Path,
) -> dict[str, list[dict[str, Any]]]:
  """Fine-tunes from each start; the results of `sweep`, task by task."""
  scratch = '--gin_file=finetune/from_scratch.gin'
  starts = {name: (folder, [TINY]) for name, folder in folders.items()}
  starts[SCRATCH] = (folders['metro_lm'], [TINY, scratch])
  results: dict[str, list[dict[str, Any]]] = {}
  for task in tasks:
    for name, (folder, files) in starts.items():
      macros = {**bound, 'INITIAL_CHECKPOINT_PATH': folder}
      words = [*files, *(f'--gin.{k}={v}' for k, v in macros.items())]
      place = output / 'finetuned' / name.replace(' ', '_')
      runner = sweep.Sweep(place, words)
      result = sweep.sweep_task(runner, task, grid, seeds)
      results.setdefault(name, []).append(result)
      (output / 'table.md').write_text(table(results))
      (output / 'table.json').write_text(json.dumps(results, indent=2) + '\n')
  return results


def table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Markdown: a row for each start, median (smallest to largest) of a task."""
  tasks = max(results.values(), key=len)
  head = ['start', *(f'{r["task"]}, {r["metric"]}' for r in tasks)]
  lines = [head, ['---'] * len(head)]
  for name, cells in results.items():
    lines.append([name, *map(_cell, cells)])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _cell(result: Mapping[str, Any]) -> str:
  if result['median'] is None:
    return f'all {result["runs"]} failed'
  low, middle, high = (100 * result[k] for k in ('min', 'median', 'max'))
  failed = f', {result["failed"]} failed' if result['failed'] else ''
  return f'{middle:.1f} ({low:.1f} to {high:.1f}{failed})'


def main(argv: list[str]) -> None:
  """Pretrains, fine-tunes and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--text', required=True, help='files to pretrain on; a pattern')
  add('--task_dir', required=True, help='folder of the benchmark')
  add('--tasks', default='cola,sst2')
  add('--output', default='runs/downstream', metavar='DIR')
  add('--steps', type=int, default=4000, help='of METRO-LM')
  add('--grid', default='LEARNING_RATE=3e-4,1e-3,3e-3', help="as sweep's")
  add('--finetune_steps', type=int, default=1000, help='of every task')
  add('--seeds', type=int, default=5)
  flags, words = parser.parse_known_args(argv)
  if not glob.glob(flags.text, recursive=True):
    raise UserError(f'--text={flags.text}: no such file')
  grid, tasks = sweep.parse_grid(flags.grid), flags.tasks.split(',')
  for task in tasks:  # A mistake is told now, not after the pretraining.
    resolved = registry.resolve(task, flags.task_dir)
    for split in ('train', 'validation'):
      registry.read(resolved, flags.task_dir, split)
  output = pathlib.Path(flags.output)
  output.mkdir(parents=True, exist_ok=True)
  folders = pretrain(
    output, [f'--gin.TEXT_FILES={flags.text}', *words], flags.steps
  )
  bound = {
    'TASK_DIR': flags.task_dir,
    'TASK_LENGTH': TASK_LENGTH,
    'TRAIN_STEPS': flags.finetune_steps,
  }
  results = finetune(folders, tasks, bound, grid, flags.seeds, output)
  print(table(results), end='')


if __name__ == '__main__':
  command_line.run(main)
