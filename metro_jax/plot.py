# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of runs.

  python -m metro_jax.plot runs/tiny
  python -m metro_jax.plot runs/a runs/b --output=compare.png

Reads MODEL_DIR/train/metrics.jsonl and MODEL_DIR/training_eval/*/metrics.jsonl.
Lines are training, dots are held-out text. Replace rate and replace accuracy
are those of METRO-LM, Figure 3.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from metro_jax.data import command_line
from metro_jax.errors import UserError

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
)
_COLUMNS = 4
_INK = '#333333'
# Where a metric has been logged for a single step, a line shows nothing.
_POINTS_FOR_LINE = 2


@dataclasses.dataclass(frozen=True)
class Panel:
  """One small plot.

  Attributes:
    metric: name in metrics.jsonl.
    title: what it is, in words.
    unit: label of the vertical axis.
    percent: whether the values are fractions to be shown as per cent.
  """

  metric: str
  title: str
  unit: str
  percent: bool = False


PANELS = (
  Panel('loss', 'Loss', 'weighted sum'),
  Panel('loss/mlm', 'Auxiliary: MLM loss', 'nats per masked token'),
  Panel('loss/clm', 'Main: CLM loss', 'nats per masked token'),
  Panel('loss/rtd', 'Main: RTD loss', 'nats per token'),
  Panel('replace_rate', 'Replace rate', 'of all tokens', True),
  Panel('replace_accuracy', 'Replace accuracy', 'of replaced tokens', True),
  Panel('rtd_auc', 'RTD: area under ROC', '0.5 is chance'),
  Panel('timing/tokens_per_second', 'Speed', 'tokens per second'),
)

Series = dict[str, tuple[list[int], list[float]]]


@dataclasses.dataclass(frozen=True)
class Run:
  """The metrics of one MODEL_DIR.

  Attributes:
    name: shown in the legend.
    train: metric -> (steps, values).
    held_out: name of an evaluation set -> the same.
  """

  name: str
  train: Series
  held_out: dict[str, Series]


def read_series(path: pathlib.Path) -> Series:
  """Metrics of a file by name; what is not a finite number is left out.

  A torn last line, as a run that is still writing may have, is passed over.
  """
  series: Series = {}
  with path.open(encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        values = json.loads(line)
      except ValueError:
        continue
      for name, value in _numbers(values).items():
        steps, numbers = series.setdefault(name, ([], []))
        steps.append(values['step'])
        numbers.append(value)
  return series


def _numbers(values: Any) -> dict[str, float]:
  if not isinstance(values, dict) or not isinstance(values.get('step'), int):
    return {}
  return {
    name: float(value)
    for name, value in values.items()
    if isinstance(value, int | float) and math.isfinite(value)
  }


def load_run(model_dir: str | os.PathLike, name: str | None = None) -> Run:
  """Reads the metrics of a MODEL_DIR.

  Args:
    model_dir: where a run writes.
    name: for the legend; the folder's own name by default.

  Returns:
    What is there; at least one training metric.
  """
  folder = pathlib.Path(model_dir).expanduser()
  path = folder / 'train' / 'metrics.jsonl'
  if not path.is_file():
    raise UserError(
      f'{path}: not found; give the MODEL_DIR of a run that has logged'
      ' something (STATS_PERIOD says how often)'
    )
  train = read_series(path)
  if not train:
    raise UserError(f'{path}: holds no metrics yet; wait for STATS_PERIOD')
  evaluations = sorted(folder.glob('training_eval/*/metrics.jsonl'))
  held_out = {p.parent.name: read_series(p) for p in evaluations}
  return Run(name or folder.resolve().name, train, held_out)


def names(model_dirs: Sequence[str | os.PathLike]) -> list[str]:
  """The shortest ends of the paths that tell all runs apart."""
  parts = [pathlib.Path(d).expanduser().resolve().parts for d in model_dirs]
  for depth in range(1, max(map(len, parts)) + 1):
    tails = ['/'.join(p[-depth:]) for p in parts]
    if len(set(tails)) == len(set(parts)):
      break
  return tails


def draw(runs: Sequence[Run], output: str | os.PathLike) -> pathlib.Path:
  """Draws small multiples, one metric each.

  Args:
    runs: of `load_run`.
    output: image file; its ending says the format (.png, .svg, .pdf).

  Returns:
    The file.
  """
  import matplotlib

  matplotlib.use('agg')  # No display needed.
  from matplotlib import pyplot

  panels = [p for p in PANELS if any(p.metric in r.train for r in runs)]
  if not panels:
    raise UserError(
      f'{runs[0].name}: none of the metrics that are drawn were logged:'
      f' {", ".join(p.metric for p in PANELS)}'
    )
  columns = min(_COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  figure, grid = pyplot.subplots(
    rows, columns, figsize=(3.3 * columns, 2.75 * rows + 0.5), squeeze=False
  )
  axes = list(grid.flat)
  for panel, one in zip(panels, axes, strict=False):
    _draw_panel(one, panel, runs)
  for one in axes[len(panels) :]:
    one.set_axis_off()
  _caption(figure, runs, axes[0])
  path = pathlib.Path(output).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor='white')
  except (OSError, ValueError) as error:
    raise UserError(f'--output={path}: {error}') from error
  finally:
    pyplot.close(figure)
  return path


def _draw_panel(axis: Any, panel: Panel, runs: Sequence[Run]) -> None:
  """Lines for training, dots for held-out text."""
  for index, run in enumerate(runs):
    colour = COLOURS[index % len(COLOURS)]
    steps, values = run.train.get(panel.metric, ([], []))
    marker = '' if len(steps) >= _POINTS_FOR_LINE else '_'
    axis.plot(
      steps, values, color=colour, lw=1.5, marker=marker, label=run.name
    )
    if panel.metric.startswith('timing/'):
      continue
    for series in run.held_out.values():
      steps, values = series.get(panel.metric, ([], []))
      axis.plot(steps, values, 'o', color=colour, ms=4.5, mfc='white', mew=1.3)
  dress(axis, panel)


def dress(axis: Any, panel: Panel) -> None:
  """Title, units, ticks; nothing that is not read."""
  from matplotlib import ticker

  axis.set_title(
    panel.title, loc='left', fontsize=10.5, fontweight='bold', color=_INK
  )
  axis.set_ylabel(panel.unit, fontsize=8.5, color=_INK)
  axis.tick_params(labelsize=8.5, colors=_INK, length=3)
  axis.spines[['top', 'right']].set_visible(False)
  axis.spines[['left', 'bottom']].set_color('#999999')
  axis.grid(axis='y', color='#e6e6e6', lw=0.8)
  axis.set_axisbelow(True)
  axis.xaxis.set_major_locator(
    ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
  )
  axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axis.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
  axis.margins(x=0.03, y=0.08)
  if panel.percent:
    axis.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.3g}%')
  elif panel.metric.startswith('timing/'):
    axis.yaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  if panel.percent or panel.metric.startswith('timing/'):
    axis.set_ylim(0, 1.1 * max(axis.dataLim.y1, 1e-3))


def _caption(figure: Any, runs: Sequence[Run], first: Any) -> None:
  """What lines and dots are; the runs' names where there are several."""
  height = figure.get_figheight()
  several = len(runs) > 1
  text = 'Horizontal: training steps.  Lines: training.'
  if any(any(run.held_out.values()) for run in runs):
    text += '  Dots: held-out text.'
  if not several:
    text = f'{runs[0].name}.  {text}'
  figure.text(
    0.012, 1 - 0.22 / height, text, fontsize=9, color='#666666', va='center'
  )
  room = 0.4
  if several:
    handles, labels = first.get_legend_handles_labels()
    columns = min(len(runs), 6)
    room += 0.25 * -(-len(runs) // columns)
    figure.legend(
      handles,
      labels,
      loc='upper left',
      bbox_to_anchor=(0.005, 1 - 0.33 / height),
      ncols=columns,
      frameon=False,
      fontsize=9.5,
    )
  figure.tight_layout(rect=(0, 0, 1, 1 - room / height), h_pad=1.4, w_pad=1.6)


def last_values(series: Mapping[str, tuple[list[int], list[float]]]) -> dict:
  """The newest value of every metric."""
  return {name: values[-1] for name, (_, values) in series.items()}


def main(argv: list[str]) -> None:
  """Draws the runs named on the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.plot',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('model_dir', nargs='+', metavar='MODEL_DIR')
  parser.add_argument(
    '--output',
    metavar='FILE',
    help='image to write (.png, .svg, .pdf); default: curves.png in the'
    ' MODEL_DIR, or here when several are given',
  )
  flags = parser.parse_args(argv)
  dirs = flags.model_dir
  runs = [load_run(d, n) for d, n in zip(dirs, names(dirs), strict=True)]
  default = pathlib.Path(dirs[0]) / 'curves.png'
  output = flags.output or (default if len(dirs) == 1 else 'curves.png')
  print(draw(runs, output))


if __name__ == '__main__':
  command_line.run(main)
