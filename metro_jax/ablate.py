# SPDX-License-Identifier: Apache-2.0
"""Trains a recipe and its ablations alike, and compares them in one table.

  python -m metro_jax.ablate --gin_file=amos/tiny.gin \\
    --rows='ablations/amos/*.gin' --seeds=0,1,2 --output=runs/amos \\
    --gin.TRAIN_STEPS=300

Each row is a gin file that is added to the recipe. Every row, and the recipe
as it is, trains with each seed by `metro_jax.train`, in
OUTPUT/ROW/seed_SEED; all other --gin.NAME=VALUE hold for all of them. The same
command goes on where it was stopped, and trains nothing twice.

OUTPUT/table.md and table.json compare the rows on held-out text after the last
step: means over the seeds, and standard deviations. OUTPUT/curves.png draws
the first seed of each.
"""

import argparse
import dataclasses
import glob
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from metro_jax import plot
from metro_jax.data import command_line
from metro_jax.errors import UserError
from metro_jax.training import model_dir as model_dirs

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'gin_configs'
RECIPE = 'recipe'  # The row that changes nothing.
FINISHED = 'ablation.json'

# Metric: heading. A column is shown where any row has the metric.
COLUMNS = {
  'loss': 'loss',
  'loss/mlm': 'MLM',
  'loss/rtd': 'RTD',
  'loss/clm': 'CLM',
  'loss/cloze': 'cloze',
  'loss/scl': 'SCL',
  'replace_rate': 'replace rate',
  'replace_accuracy': 'replace accuracy',
  'rtd_auc': 'RTD AUC',
  'milliseconds_per_step': 'ms a step',
  'gflop_per_step': 'GFLOP a step',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One row with one seed.

  Attributes:
    row: its name.
    model_dir: where it trains.
    command: that trains it.
  """

  row: str
  model_dir: pathlib.Path
  command: tuple[str, ...]

  def finish(self) -> str | None:
    """Trains to the end, unless that has been done.

    Returns:
      None, or the last line that the run printed before it failed.
    """
    log = self.model_dir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    if self.result() is not None:
      return None
    with log.open('w') as file:
      code = subprocess.run(
        self.command, stdout=file, stderr=subprocess.STDOUT
      ).returncode
    if code == 128 + signal.SIGINT:
      raise KeyboardInterrupt
    if code or not _complete(self.model_dir):
      lines = log.read_text().strip().splitlines()
      return lines[-1] if lines else f'exit code {code}'
    finished = {'command': self.command, 'result': measure(self.model_dir)}
    (self.model_dir / FINISHED).write_text(json.dumps(finished, indent=2))
    return None

  def result(self) -> dict[str, float] | None:
    """What `measure` gave when this same command was done."""
    try:
      finished = json.loads((self.model_dir / FINISHED).read_text())
    except (OSError, json.JSONDecodeError):
      return None
    same = tuple(finished['command']) == self.command
    return finished['result'] if same else None


def _complete(model_dir: pathlib.Path) -> bool:
  """False for a run that was stopped, which is no failure of its own."""
  config = model_dirs.bindings_of((model_dir / 'config.gin').read_text())
  steps, _ = plot.load_run(model_dir).train['loss']
  return steps[-1] >= int(config['TRAIN_STEPS'])


def measure(model_dir: pathlib.Path) -> dict[str, float]:
  """The newest held-out metrics of a run, and what a step costs.

  Time is the median over the lines of the log; FLOPs are of one device.
  """
  run = plot.load_run(model_dir)
  values: dict[str, float] = {}
  for series in run.held_out.values():
    values |= plot.last_values(series)
  _, rates = run.train['timing/steps_per_second']
  values['milliseconds_per_step'] = 1e3 / statistics.median(rates)
  if 'timing/tflops_per_second_per_device' in run.train:
    _, tflops = run.train['timing/tflops_per_second_per_device']
    values['gflop_per_step'] = 1e3 * tflops[-1] / rates[-1]
  return values


def run_of(
  row: str,
  files: Sequence[str],
  bindings: Sequence[str],
  seed: int,
  output: pathlib.Path,
) -> Run:
  """A row with a seed, by the command that trains it.

  Args:
    row: its name.
    files: gin files in order, the recipe first.
    bindings: words of the form --gin.NAME=VALUE.
    seed: of the run.
    output: it trains in output/row/seed_SEED.
  """
  model_dir = output / row / f'seed_{seed}'
  words = [f'--gin_file={name}' for name in files]
  own = [f'--gin.RANDOM_SEED={seed}', f'--gin.MODEL_DIR={model_dir}']
  train = (sys.executable, '-m', 'metro_jax.train')
  return Run(row, model_dir, (*train, *words, *bindings, *own))


def check_bindings(words: Sequence[str]) -> None:
  """Refuses what is left of a command line and is no --gin.NAME=VALUE."""
  unknown = [word for word in words if not word.startswith('--gin.')]
  if unknown:
    raise UserError(f'{unknown[0]!r} is neither a flag nor --gin.NAME=VALUE')


def find_rows(patterns: Sequence[str]) -> dict[str, str]:
  """Gin files by name, of paths or patterns here or in gin_configs."""
  files: list[str] = []
  for pattern in patterns:
    found = sorted(glob.glob(pattern)) or sorted(
      glob.glob(str(CONFIGS / pattern))
    )
    if not found:
      raise UserError(
        f'--rows={pattern}: no such file, here or in gin_configs; try'
        " --rows='ablations/amos/*.gin'"
      )
    files += found
  rows = {pathlib.Path(file).stem: file for file in files}
  if len(rows) < len(set(files)):
    raise UserError('--rows: two files have one name, which names their row')
  return rows


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
  """A Markdown table of row -> results, one for each seed."""
  shown = [
    metric
    for metric in COLUMNS
    if any(metric in seed for seeds in results.values() for seed in seeds)
  ]
  lines = [
    ['row', *(COLUMNS[metric] for metric in shown)],
    ['---'] * (1 + len(shown)),
  ]
  for row, seeds in results.items():
    cells = [_cell([s[m] for s in seeds if m in s]) for m in shown]
    lines.append([row, *cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _cell(values: Sequence[float]) -> str:
  if not values:
    return ''
  mean = f'{statistics.fmean(values):.4g}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.2g}'


def compare(runs: Sequence[Run], output: pathlib.Path) -> list[str]:
  """Finishes all runs; writes the tables and the curves after each.

  Args:
    runs: in the order of the table.
    output: where they go.

  Returns:
    A line for each run that failed.
  """
  failures = []
  for number, run in enumerate(runs, 1):
    started = time.monotonic()
    failure = run.finish()
    seconds = time.monotonic() - started
    name = f'{run.row}, {run.model_dir.name}'
    print(f'{number} of {len(runs)}: {name}, {seconds:.0f} s', flush=True)
    if failure:
      failures.append(f'{name}: {failure}')
      print(f'  failed: {failure}', flush=True)
    _write(runs, output)
  return failures


def _write(runs: Sequence[Run], output: pathlib.Path) -> None:
  results: dict[str, list[dict[str, float]]] = {}
  first: dict[str, pathlib.Path] = {}
  for run in runs:
    result = run.result()
    if result is not None:
      results.setdefault(run.row, []).append(result)
      first.setdefault(run.row, run.model_dir)
  if not results:
    return
  (output / 'table.md').write_text(table(results))
  (output / 'table.json').write_text(json.dumps(results, indent=2) + '\n')
  curves = [plot.load_run(folder, row) for row, folder in first.items()]
  plot.draw(curves, output / 'curves.png')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.ablate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--gin_file', action='append', required=True, help='the recipe')
  add('--rows', nargs='+', required=True, metavar='FILE', help='gin files')
  add('--output', required=True, metavar='DIR', help='where all of it goes')
  add('--seeds', default='0', help='such as 0,1,2 (default: 0)')
  return parser


def main(argv: list[str]) -> None:
  """Trains and compares what the command line names."""
  flags, bindings = _parser().parse_known_args(argv)
  check_bindings(bindings)
  try:
    seeds = [int(seed) for seed in flags.seeds.split(',')]
  except ValueError:
    raise UserError(f'--seeds={flags.seeds}: give numbers, as 0,1,2') from None
  output = pathlib.Path(flags.output).expanduser()
  rows = {RECIPE: [], **{k: [v] for k, v in find_rows(flags.rows).items()}}
  runs = [
    run_of(row, [*flags.gin_file, *files], bindings, seed, output)
    for row, files in rows.items()
    for seed in seeds
  ]
  failures = compare(runs, output)
  print(f'{output}/table.md')
  if failures:
    raise UserError(f'{len(failures)} of {len(runs)} failed; {failures[0]}')


if __name__ == '__main__':
  command_line.run(main)
