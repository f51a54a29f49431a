# SPDX-License-Identifier: Apache-2.0
"""A sweep as a picture: every run a dot, each task in a panel of its own."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from metro_jax import plot

_GRID, _SEEDS = '#999999', plot.COLOURS[0]
_WIDTH, _HEIGHT = 3.3, 2.4  # Inches a panel.


def draw(
  results: Sequence[Mapping[str, Any]], output: pathlib.Path
) -> pathlib.Path:
  """Draws the scores of all runs, and the medians over seeds.

  Args:
    results: of `sweep.sweep_task`, one a task.
    output: image file.

  Returns:
    The file.
  """
  import matplotlib

  matplotlib.use('agg')  # No display needed.
  from matplotlib import pyplot

  # Whichever leaves fewer empty places.
  columns = min(len(results), min((4, 3), key=lambda n: -len(results) % n))
  rows = -(-len(results) // columns)
  figure, grid = pyplot.subplots(
    rows,
    columns,
    figsize=(max(_WIDTH * columns, 4.5), _HEIGHT * rows + 0.3),
    squeeze=False,
  )
  for result, axis in zip(results, grid.flat, strict=False):
    _draw_task(axis, result)
  for axis in list(grid.flat)[len(results) :]:
    axis.set_axis_off()
  height = figure.get_size_inches()[1]
  figure.text(
    0.012,
    1 - 0.18 / height,
    'Each dot is a run; the line is the median over seeds',
    fontsize=9,
    color='#666666',
    va='center',
  )
  figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height), h_pad=1.4, w_pad=1.6)
  figure.savefig(output, dpi=120, facecolor='white')
  pyplot.close(figure)
  return output


def _draw_task(axis: Any, result: Mapping[str, Any]) -> None:
  """A strip for the searched grid, if any, and one for the seeds."""
  strips = [('seeds', result['runs_of_best'], _SEEDS)]
  if len(result['searched']) > 1:
    strips.insert(0, ('grid', result['searched'], _GRID))
  for place, (_, runs, colour) in enumerate(strips):
    scores = sorted(r['score'] for r in runs if r['score'] is not None)
    axis.plot(
      [place + x for x in _spread(len(scores))],
      scores,
      'o',
      ms=5,
      mfc='white' if colour == _GRID else colour,
      mec=colour,
      mew=1.2,
      alpha=0.85,
    )
  last = len(strips) - 1
  if result['median'] is not None:
    axis.plot(
      [last - 0.28, last + 0.28],
      [result['median']] * 2,
      color=plot.COLOURS[1],
      lw=2,
      zorder=1,
    )
    axis.annotate(
      f'{result["median"]:.4g}',
      (last + 0.32, result['median']),
      va='center',
      fontsize=8.5,
      color=plot.COLOURS[1],
    )
  name = (result['metric'] or '').split('/')[-1].replace('_', ' ')
  plot.dress(axis, plot.Panel('', result['task'], name))
  if result['median'] is None:
    axis.set_yticks([])
  axis.set_xlim(-0.6, last + 0.85)
  axis.set_xticks(range(len(strips)), [_tick(name, r) for name, r, _ in strips])


def _tick(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
  """What a strip is, with the number of its runs and of those that failed."""
  failed = sum(run['score'] is None for run in runs)
  count = 'grid, seed 0' if name == 'grid' else f'{len(runs)} seeds'
  return f'{count}\n{failed} failed' if failed else count


def _spread(count: int) -> list[float]:
  """Offsets that keep dots of neighbouring scores apart."""
  return [(-0.09, 0.09, 0.0)[n % 3] for n in range(count)]
