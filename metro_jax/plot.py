# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of runs.

  python -m metro_jax.plot runs/tiny
  python -m metro_jax.plot runs/a runs/b --output=compare.png

Reads MODEL_DIR/train/metrics.jsonl and MODEL_DIR/training_eval/*/metrics.jsonl.
Lines are training, dots are held-out text. A panel is there if a run has its
metric: replace rate and replace accuracy (METRO-LM, Figure 3; METRO-T5, Figure
3a; AMOS, Figure 3b), the CLM loss (METRO-T5, Figure 3b), the weights of a
mixture (AMOS, Figure 3a), a curriculum's gamma (Fast-ELECTRA, equation 2).
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
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
  '#882255',
  '#999933',
  '#888888',
)
_COLUMNS = (4, 3)  # Whichever leaves fewer empty places.
_INK = '#333333'
# Lines of one run in one panel.
_STYLES = ('-', (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
# Evaluation has no speed, and is always at the end of a curriculum.
_TRAINING_ONLY = ('timing/', 'curriculum/')
# Where a metric has been logged for a single step, a line shows nothing.
_POINTS_FOR_LINE = 2


@dataclasses.dataclass(frozen=True)
class Panel:
  """One small plot.

  Attributes:
    metric: name in metrics.jsonl; 'a/*' for all whose names begin with 'a/',
      each in a line of its own.
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
  Panel('loss/cloze', 'Main: one-choice cloze loss', 'nats per masked token'),
  Panel('loss/scl', 'Main: contrastive loss', 'nats per sequence'),
  Panel('loss/lm', 'Decoder: LM loss', 'nats per token'),
  Panel('mlm_loss/*', 'Auxiliary: loss by head', 'nats per masked token'),
  Panel('replace_rate', 'Replace rate', 'of all tokens', True),
  Panel('replace_accuracy', 'Replace accuracy', 'of replaced tokens', True),
  Panel('rtd_auc', 'RTD: area under ROC', '0.5 is chance'),
  Panel('mixture/*', 'Mixture weights', 'of masked tokens', True),
  Panel('curriculum/gamma', 'Curriculum: gamma', 'how easy, from 0'),
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

  panels = [p for p in PANELS if any(members(p, r) for r in runs)]
  if not panels:
    raise UserError(
      f'{runs[0].name}: none of the metrics that are drawn were logged:'
      f' {", ".join(p.metric for p in PANELS)}'
    )
  columns = min(_COLUMNS, key=lambda n: -len(panels) % n)
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  figure, grid = pyplot.subplots(
    rows, columns, figsize=(3.3 * columns, 2.75 * rows + 0.5), squeeze=False
  )
  axes = list(grid.flat)
  for panel, one in zip(panels, axes, strict=False):
    _draw_panel(one, panel, runs)
  for one in axes[len(panels) :]:
    one.set_axis_off()
  _caption(figure, runs)
  path = pathlib.Path(output).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor='white')
  except (OSError, ValueError) as error:
    raise UserError(f'--output={path}: {error}') from error
  finally:
    pyplot.close(figure)
  return path


def members(panel: Panel, run: Run) -> list[str]:
  """Metrics of a run that belong in a panel, 'layer_4' before 'layer_10'."""
  prefix, star, _ = panel.metric.partition('*')
  if not star:
    return [panel.metric] if panel.metric in run.train else []

  def in_order(name: str) -> list[int | str]:
    return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', name)]

  found = [name for name in run.train if name.startswith(prefix)]
  return sorted(found, key=in_order)


def _draw_panel(axis: Any, panel: Panel, runs: Sequence[Run]) -> None:
  """Lines for training, dots for held-out text; a colour for each run."""
  names = list(dict.fromkeys(n for run in runs for n in members(panel, run)))
  styles = dict(zip(names, itertools.cycle(_STYLES)))
  for index, run in enumerate(runs):
    colour = COLOURS[index % len(COLOURS)]
    look = {'color': colour, 'lw': 1.5}
    for name in members(panel, run):
      steps, values = run.train[name]
      marker = '' if len(steps) >= _POINTS_FOR_LINE else '_'
      axis.plot(steps, values, ls=styles[name], marker=marker, **look)
      if name.startswith(_TRAINING_ONLY):
        continue
      for series in run.held_out.values():
        steps, values = series.get(name, ([], []))
        axis.plot(
          steps, values, 'o', color=colour, ms=4.5, mfc='white', mew=1.3
        )
  dress(axis, panel)
  if len(names) > 1:
    _name_lines(axis, styles)


def _name_lines(axis: Any, styles: Mapping[str, Any]) -> None:
  """Which line style is which metric, by the last part of its name."""
  from matplotlib import lines

  handles = [
    lines.Line2D(
      [], [], color=_INK, lw=1.2, ls=style, label=_plain(name.split('/')[-1])
    )
    for name, style in styles.items()
  ]
  axis.legend(
    handles=handles, fontsize=8, frameon=False, handlelength=2.4, loc='best'
  )


def _plain(name: str) -> str:
  return name.replace('_', ' ')


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


def _caption(figure: Any, runs: Sequence[Run]) -> None:
  """What lines and dots are; the runs' names where there are several."""
  from matplotlib import lines

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
    handles = [
      lines.Line2D([], [], color=colour, lw=1.5, label=run.name)
      for run, colour in zip(runs, itertools.cycle(COLOURS), strict=False)
    ]
    columns = min(len(runs), 6)
    room += 0.25 * -(-len(runs) // columns)
    figure.legend(
      handles=handles,
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
