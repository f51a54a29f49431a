# SPDX-License-Identifier: Apache-2.0
"""A sweep's book-keeping, on runs that are over at once."""

import json
import math
import subprocess

import pytest

from metro_jax import sweep


class Runs:
  """Stands for `metro_jax.finetune`: a score by settings, or a failure."""

  def __init__(self):
    self.started = []

  def __call__(self, words, stdout, stderr, check):
    bound = dict(w.removeprefix('--gin.').split('=', 1) for w in words[3:])
    self.started.append(bound)
    rate, seed = float(bound.get('LEARNING_RATE', 1)), int(bound['RANDOM_SEED'])
    if seed == 3:
      stdout.write('ValueError: out of luck\n')
      return subprocess.CompletedProcess(words, 1)
    score = math.nan if seed == 2 else rate / 10 + seed / 100
    result = {'score': score, 'metric': 'validation/mcc', 'last': 0.0}
    result['scores'] = {'validation': {'mcc': score}}
    with open(f'{bound["MODEL_DIR"]}/result.json', 'w') as file:
      json.dump(result, file)
    return subprocess.CompletedProcess(words, 0)


@pytest.fixture
def runs(monkeypatch):
  fake = Runs()
  monkeypatch.setattr(sweep.subprocess, 'run', fake)
  return fake


def call(tmp_path, *words):
  return sweep.main(
    [
      '--task=cola',
      '--task_dir=glue',
      '--pretrained=runs/a',
      f'--output={tmp_path}',
      *words,
    ]
  )


def test_search_then_seeds(tmp_path, runs, capsys):
  assert call(tmp_path, '--grid=LEARNING_RATE=1,2;BATCH_SIZE=8') == 0
  order = [(r['LEARNING_RATE'], r['RANDOM_SEED']) for r in runs.started]
  # The winner's first seed is not run twice.
  assert order == [
    ('1', '0'),
    ('2', '0'),
    *[('2', str(s)) for s in (1, 2, 3, 4)],
  ]
  (result,) = json.loads((tmp_path / 'results.json').read_text())
  assert result['best'] == {'LEARNING_RATE': '2', 'BATCH_SIZE': '8'}
  assert (result['runs'], result['failed']) == (5, 2)
  assert result['median'] == pytest.approx(0.21)
  assert (result['min'], result['max']) == pytest.approx((0.2, 0.24))
  errors = [r['error'] for r in result['runs_of_best'] if r['score'] is None]
  assert errors == ['diverged', 'ValueError: out of luck']
  table = (tmp_path / 'results.md').read_text()
  assert '| cola | validation/mcc | 0.21 | 0.2 | 0.24 |' in table
  assert capsys.readouterr().out.endswith(table)
  assert (tmp_path / 'results.png').read_bytes().startswith(b'\x89PNG')


def test_a_dot_for_every_run_that_ended_well(tmp_path, runs, monkeypatch):
  from matplotlib import pyplot

  monkeypatch.setattr(pyplot, 'close', lambda figure: None)
  assert call(tmp_path, '--task=cola,rte', '--grid=LEARNING_RATE=1,2') == 0
  axes = pyplot.gcf().axes
  monkeypatch.undo()
  pyplot.close('all')
  # Two points of the grid; of five seeds one failed and one diverged.
  for axis, task in zip(axes, ('cola', 'rte'), strict=True):
    assert axis.get_title(loc='left') == task
    grid, seeds, median = (line.get_ydata() for line in axis.lines)
    assert list(grid) == pytest.approx([0.1, 0.2])
    assert list(seeds) == pytest.approx([0.2, 0.21, 0.24])
    assert list(median) == pytest.approx([0.21, 0.21])
    words = [label.get_text() for label in axis.get_xticklabels()]
    assert words == ['grid, seed 0', '5 seeds\n2 failed']


def test_goes_on_where_it_stopped(tmp_path, runs):
  assert call(tmp_path, '--seeds=2') == 0
  assert len(runs.started) == 2
  assert call(tmp_path, '--seeds=3') == 0
  assert [r['RANDOM_SEED'] for r in runs.started] == ['0', '1', '2']


def test_interrupted_runs_are_run_again(tmp_path, runs, monkeypatch):
  def interrupted(words, **rest):
    return subprocess.CompletedProcess(words, 130)

  with monkeypatch.context() as patch:
    patch.setattr(sweep.subprocess, 'run', interrupted)
    assert call(tmp_path, '--seeds=1') == 130
  assert call(tmp_path, '--seeds=1') == 0
  assert len(runs.started) == 1


def test_a_users_mistake_ends_the_sweep(tmp_path, monkeypatch, capsys):
  def mistaken(words, stdout, **rest):
    stdout.write('error: TASK_DIR: glue is not a folder\n')
    return subprocess.CompletedProcess(words, 2)

  monkeypatch.setattr(sweep.subprocess, 'run', mistaken)
  assert call(tmp_path) == 2
  assert capsys.readouterr().err == 'error: TASK_DIR: glue is not a folder\n'


def test_grids_name_macros_of_the_run_file():
  from pathlib import Path

  text = Path(sweep.__file__).parents[1] / 'gin_configs/runs/finetune.gin'
  known = text.read_text()
  for grid in sweep.GRIDS.values():
    for name in grid:
      assert f'\n{name} = ' in known
  # METRO-LM Table 11, base: 3 rates, 2 batch sizes, 3 warm-ups.
  assert len(sweep.points(sweep.GRIDS['metro_lm_base'])) == 18


@pytest.mark.parametrize('text', ['metro', 'A=', 'LEARNING_RATE'])
def test_bad_grids(text, tmp_path, capsys):
  assert call(tmp_path, f'--grid={text}') == 2
  assert 'give one of' in capsys.readouterr().err
