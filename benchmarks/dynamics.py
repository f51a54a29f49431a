# SPDX-License-Identifier: Apache-2.0
"""Training dynamics that the papers report, at a small size on real text.

  python -m benchmarks.dynamics --output=runs/dynamics

Trains every row of STUDIES with every seed by metro_jax.train, smaller than
the tiny recipes, on the embedded corpus; --gin.NAME=VALUE change that. The
same command goes on where it was stopped, and trains nothing twice. After
each run OUTPUT/dynamics.png and OUTPUT/dynamics.md show what is there: a line
is the mean over the seeds, a band their range.
"""

import argparse
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from metro_jax import ablate, plot
from metro_jax.data import command_line
from metro_jax.plot import Panel

SMALLER = {
  'VOCAB_SIZE': 1024,
  'LENGTH': 32,
  'TRAIN_STEPS': 800,
  'WARMUP_STEPS': 50,
  'STATS_PERIOD': 20,
  'EVAL_PERIOD': 100,
  'EVAL_STEPS': 8,
  'CHECKPOINT_PERIOD': 800,
  'modules.TransformerConfig.embed_dim': 64,
  'modules.TransformerConfig.mlp_dim': 256,
  'modules.TransformerConfig.num_layers': 2,
}
# Detection alone is learnt later. The frozen auxiliary is that of the METRO-LM
# run with the same seed, whose positions must be the same.
FAST = {
  'TRAIN_STEPS': 2000,
  'CHECKPOINT_PERIOD': 2000,
  'modules.PositionConfig.reset_cls': True,
}

ROWS = {
  'metro_lm': ('metro_lm/tiny.gin',),
  'amos': ('amos/tiny.gin',),
  'fast_electra': ('fast_electra/tiny.gin',),
  'fixed_auxiliary': (
    'fast_electra/tiny.gin',
    'ablations/fast_electra/fixed_auxiliary.gin',
  ),
  'uniform': ('fast_electra/tiny.gin', 'ablations/fast_electra/uniform.gin'),
  'metro_t5': ('metro_t5/tiny.gin',),
  'span_mask': ('metro_t5/tiny.gin', 'ablations/metro_t5/span_mask.gin'),
  'rtd_on_decoder': (
    'metro_t5/tiny.gin',
    'ablations/metro_t5/rtd_on_decoder.gin',
  ),
}


@dataclasses.dataclass(frozen=True)
class Study:
  """One plot.

  Attributes:
    panel: what is drawn.
    rows: of ROWS.
    held_out: whether it is measured on held-out text, where a curriculum has
      ended; else on the batches of training.
    from_zero: whether an axis of shares begins at 0.
  """

  panel: Panel
  rows: tuple[str, ...]
  held_out: bool = False
  from_zero: bool = True


_ENCODERS = ('fast_electra', 'fixed_auxiliary', 'uniform')
STUDIES = (
  Study(
    Panel('replace_rate', 'METRO-LM, Figure 3a', 'replaced, of all', True),
    ('metro_lm',),
    from_zero=False,  # It falls by a few hundredths of itself.
  ),
  Study(
    Panel('replace_accuracy', 'METRO-LM, Figure 3b', 'detected', True),
    ('metro_lm',),
  ),
  Study(
    Panel('replace_accuracy', 'METRO-T5, Figure 3a', 'detected', True),
    ('metro_t5', 'span_mask', 'rtd_on_decoder'),
  ),
  Study(
    Panel('loss/clm', 'METRO-T5, Figure 3b', 'CLM loss, nats per token'),
    ('metro_t5', 'rtd_on_decoder'),
  ),
  Study(
    Panel('loss/rtd', 'Fast-ELECTRA: easy noise', 'RTD loss, nats per token'),
    _ENCODERS,
  ),
  Study(
    Panel('replace_accuracy', 'Fast-ELECTRA: start', 'detected', True),
    _ENCODERS,
  ),
  Study(
    Panel('rtd_auc', 'Fast-ELECTRA: same noise', 'RTD AUC, held-out'),
    ('fast_electra', 'fixed_auxiliary'),
    held_out=True,
  ),
  Study(
    Panel('mixture/*', 'AMOS, Figure 3a', 'mixture weight', True), ('amos',)
  ),
)


def runs(
  output: pathlib.Path, seeds: Sequence[int], bindings: Sequence[str]
) -> list[ablate.Run]:
  """All of them, the first seed of each row before the second of any."""
  every = []
  for seed in seeds:
    auxiliary = output / 'metro_lm' / f'seed_{seed}'
    for row, files in ROWS.items():
      own = SMALLER
      if files[0].startswith('fast_electra'):
        own = own | FAST
        if row != 'uniform':
          own = own | {'AUX_CHECKPOINT_PATH': auxiliary}
      words = [f'--gin.{name}={value}' for name, value in own.items()]
      every.append(ablate.run_of(row, files, [*words, *bindings], seed, output))
  return every


Curve = tuple[np.ndarray, np.ndarray]  # Steps; values [seeds, steps].


def curves(study: Study, done: Sequence[ablate.Run]) -> dict[str, Curve]:
  """The lines of a study by name, of all seeds of a row that have it."""
  lines = {}
  for row in study.rows:
    loaded = [plot.load_run(run.model_dir) for run in done if run.row == row]
    if not loaded:
      continue
    for metric in plot.members(study.panel, loaded[0]):
      series = [
        run.held_out['validation'][metric]
        if study.held_out
        else run.train[metric]
        for run in loaded
      ]
      name = row if metric == study.panel.metric else metric.split('/')[-1]
      lines[name] = _together(series)
  return lines


def _together(series: Sequence[tuple[list[int], list[float]]]) -> Curve:
  """Several runs at the steps that all of them have logged."""
  by_step = [dict(zip(*one, strict=True)) for one in series]
  steps = sorted(set.intersection(*map(set, by_step)))
  return np.asarray(steps), np.asarray([[d[s] for s in steps] for d in by_step])


def table(done: Sequence[ablate.Run]) -> str:
  """Markdown: each line at the start, at a third and at the end."""
  text = '| plot | line | seeds | first | a third | last |\n'
  text += '|---|---|---|---|---|---|\n'
  for study in STUDIES:
    for name, (steps, values) in curves(study, done).items():
      places = (0, int(np.searchsorted(steps, steps[-1] / 3)), -1)
      cells = [_cell(values[:, place]) for place in places]
      row = (study.panel.title, name, str(len(values)), *cells)
      text += f'| {" | ".join(row)} |\n'
  return text


def _cell(values: np.ndarray) -> str:
  mean = f'{statistics.fmean(values):.3f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.3f}'


def draw(done: Sequence[ablate.Run], path: pathlib.Path) -> None:
  """A panel for each study, a colour for each line of it."""
  import matplotlib

  matplotlib.use('agg')  # No display needed.
  from matplotlib import pyplot

  figure, grid = pyplot.subplots(2, 4, figsize=(13.2, 5.6))
  for study, axis in zip(STUDIES, grid.flat, strict=True):
    lines = curves(study, done)
    for colour, (name, line) in zip(plot.COLOURS, lines.items(), strict=False):
      _draw_line(axis, line, colour, name.replace('_', ' '))
    plot.dress(axis, study.panel)
    if not study.from_zero:
      axis.autoscale(axis='y')
    if lines:
      axis.legend(fontsize=8, frameon=False)
  figure.tight_layout(h_pad=1.4, w_pad=1.6)
  figure.savefig(path, dpi=120, facecolor='white')
  pyplot.close(figure)


def _draw_line(axis: Any, line: Curve, colour: str, name: str) -> None:
  steps, values = line
  axis.plot(steps, values.mean(axis=0), color=colour, lw=1.5, label=name)
  low, high = values.min(axis=0), values.max(axis=0)
  axis.fill_between(steps, low, high, color=colour, alpha=0.25, lw=0)


def main(argv: list[str]) -> None:
  """Trains what is left to train, and draws after each run."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', default='runs/dynamics', metavar='DIR')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  flags, bindings = parser.parse_known_args(argv)
  ablate.check_bindings(bindings)
  output = pathlib.Path(flags.output)
  planned = runs(output, flags.seeds, bindings)
  for number, run in enumerate(planned, 1):
    failure = run.finish()
    print(f'{number} of {len(planned)}: {run.row}, {run.model_dir.name}')
    if failure:
      print(f'  failed: {failure}')
    done = [run for run in planned if run.result() is not None]
    draw(done, output / 'dynamics.png')
    (output / 'dynamics.md').write_text(table(done))


if __name__ == '__main__':
  command_line.run(main)
