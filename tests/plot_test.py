# SPDX-License-Identifier: Apache-2.0
"""Curves: what is read, what is drawn, what is said when there is nothing."""

import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import image, pyplot

from metro_jax import plot
from metro_jax.errors import UserError

matplotlib.use('agg')


def write_run(folder, steps=(10, 20, 30), held_out=(20,), **metrics):
  """A MODEL_DIR with metrics (functions of the step)."""
  for path, at in (('train', steps), ('training_eval/validation', held_out)):
    (folder / path).mkdir(parents=True)
    lines = [
      json.dumps({'step': s} | {name: f(s) for name, f in metrics.items()})
      for s in at
    ]
    (folder / path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def test_reads_what_was_logged_and_nothing_else(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(
    '{"step": 10, "loss": 4.5, "replace_rate": 1}\n'
    '{"step": 20, "loss": NaN, "replace_rate": 0.5, "note": "x"}\n'
    'rubbish\n[1, 2]\n{"loss": 3}\n'
    '{"step": 30, "loss": 2.5, "repl'
  )
  assert plot.read_series(path) == {
    'step': ([10, 20], [10.0, 20.0]),
    'loss': ([10], [4.5]),
    'replace_rate': ([10, 20], [1.0, 0.5]),
  }


def test_lines_are_training_and_dots_are_held_out(tmp_path):
  run = plot.load_run(
    write_run(tmp_path / 'a', loss=lambda s: 1 / s, other=lambda s: s)
  )
  _, axis = pyplot.subplots()
  plot._draw_panel(axis, plot.Panel('loss', 'Loss', 'nats'), [run])
  train, dots = axis.lines
  np.testing.assert_array_equal(train.get_xdata(), [10, 20, 30])
  np.testing.assert_allclose(train.get_ydata(), [1 / 10, 1 / 20, 1 / 30])
  assert train.get_linestyle() == '-' and dots.get_linestyle() == 'None'
  np.testing.assert_allclose(dots.get_xydata(), [[20, 1 / 20]])
  assert dots.get_marker() == 'o'
  pyplot.close('all')


def test_rates_are_per_cent_from_zero(tmp_path):
  run = plot.load_run(write_run(tmp_path / 'a', replace_rate=lambda s: s / 1e3))
  panel = next(p for p in plot.PANELS if p.metric == 'replace_rate')
  figure, axis = pyplot.subplots()
  plot._draw_panel(axis, panel, [run])
  figure.canvas.draw()
  assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 0.03
  labels = [label.get_text() for label in axis.get_yticklabels()]
  assert labels[0] == '0%' and '2%' in labels
  pyplot.close('all')


def drawn(runs, tmp_path, monkeypatch):
  """The figure that `draw` saves."""
  kept = []
  monkeypatch.setattr(pyplot, 'close', kept.append)
  path = plot.draw(runs, tmp_path / 'new' / 'curves.png')
  monkeypatch.undo()
  assert len(kept) == 1
  return path, kept[0]


def test_a_panel_for_each_metric_that_is_there(tmp_path, monkeypatch):
  metrics = {'loss': float, 'replace_rate': float, 'rtd_auc': float}
  run = plot.load_run(write_run(tmp_path / 'a', **metrics))
  path, figure = drawn([run], tmp_path, monkeypatch)
  titles = [axis.get_title('left') for axis in figure.axes if axis.axison]
  assert titles == ['Loss', 'Replace rate', 'RTD: area under ROC']
  assert not figure.legends
  pixels = image.imread(path)
  assert pixels.shape[0] > 300 and pixels.shape[1] > 900
  assert pixels.std() > 0.01  # Not a blank page.


def test_several_runs_have_a_legend_and_colours(tmp_path, monkeypatch):
  runs = [
    plot.load_run(write_run(tmp_path / name, loss=float)) for name in 'ab'
  ]
  _, figure = drawn(runs, tmp_path, monkeypatch)
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == ['a', 'b']
  lines = [x for x in figure.axes[0].lines if x.get_linestyle() == '-']
  assert len({line.get_color() for line in lines}) == 2


def test_names_tell_runs_apart(tmp_path):
  assert plot.names([tmp_path / 'x', tmp_path / 'y']) == ['x', 'y']
  same = [tmp_path / 'x' / 'run', tmp_path / 'y' / 'run']
  assert plot.names(same) == ['x/run', 'y/run']
  assert plot.names([tmp_path / 'x'] * 2) == ['x', 'x']


def test_nothing_to_draw_is_named(tmp_path):
  with pytest.raises(UserError, match=r'metrics\.jsonl: not found'):
    plot.load_run(tmp_path)
  (tmp_path / 'train').mkdir()
  (tmp_path / 'train' / 'metrics.jsonl').write_text('')
  with pytest.raises(UserError, match='no metrics yet'):
    plot.load_run(tmp_path)
  run = plot.load_run(write_run(tmp_path / 'a', unknown=float))
  with pytest.raises(UserError, match='none of the metrics'):
    plot.draw([run], tmp_path / 'x.png')
  run = plot.load_run(write_run(tmp_path / 'b', loss=float))
  with pytest.raises(UserError, match=r'--output=.*x\.doc'):
    plot.draw([run], tmp_path / 'x.doc')


def test_command_line(tmp_path):
  write_run(tmp_path / 'a', loss=float)

  def run(*arguments):
    return subprocess.run(
      [sys.executable, '-m', 'metro_jax.plot', *arguments],
      capture_output=True,
      text=True,
      check=False,
    )

  good = run(str(tmp_path / 'a'))
  assert good.returncode == 0
  assert good.stdout.strip() == str(tmp_path / 'a' / 'curves.png')
  assert image.imread(tmp_path / 'a' / 'curves.png').ndim == 3
  bad = run(str(tmp_path / 'a'), str(tmp_path / 'nowhere'))
  assert bad.returncode == 2 and bad.stdout == ''
  assert bad.stderr.startswith('error: ') and bad.stderr.count('\n') == 1


def test_a_panel_of_several_metrics_has_a_line_style_for_each(tmp_path):
  weights = {f'mixture/layer_{n}': (lambda s, n=n: s * n) for n in (12, 4, 8)}
  runs = [
    plot.load_run(write_run(tmp_path / 'amos', loss=float, **weights)),
    plot.load_run(write_run(tmp_path / 'metro', loss=float)),
  ]
  panel = next(p for p in plot.PANELS if p.metric == 'mixture/*')
  names = [f'mixture/layer_{n}' for n in (4, 8, 12)]
  assert [plot.members(panel, run) for run in runs] == [names, []]
  _, axis = pyplot.subplots()
  plot._draw_panel(axis, panel, runs)
  curves = [x for x in axis.lines if x.get_linestyle() != 'None']
  for curve, depth in zip(curves, (4, 8, 12), strict=True):
    np.testing.assert_array_equal(
      curve.get_ydata(), [10 * depth, 20 * depth, 30 * depth]
    )
  assert len({str(x._dash_pattern) for x in curves}) == 3
  assert {x.get_color() for x in curves} == {plot.COLOURS[0]}
  labels = [text.get_text() for text in axis.get_legend().get_texts()]
  assert labels == ['layer 4', 'layer 8', 'layer 12']
  pyplot.close('all')
