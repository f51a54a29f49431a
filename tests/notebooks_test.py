# SPDX-License-Identifier: Apache-2.0
"""Notebooks run from top to bottom, and are kept without outputs."""

import json
import pathlib

import pytest
from tiny_run import STEPS, text

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / 'metro_jax' / 'notebooks').glob('*.ipynb'))

pytest_plugins = ('tiny_run',)


def cells(path):
  return json.loads(path.read_text())['cells']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_hold_no_outputs_and_valid_code(path):
  for cell in cells(path):
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
      compile(''.join(cell['source']), path.name, 'exec')


def execute(path):
  """Runs all cells in one namespace, as a kernel does."""
  scope = {'__name__': '__main__'}
  for cell in cells(path):
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), path.name, 'exec'), scope)
  return scope


@pytest.mark.slow
def test_corruption_explorer_runs(tiny_run, monkeypatch):
  monkeypatch.setenv('MPLBACKEND', 'agg')
  monkeypatch.setenv('MODEL_DIR', str(tiny_run))
  scope = execute(ROOT / 'metro_jax/notebooks/corruption_explorer.ipynb')
  # The colder, the fewer words change.
  assert scope['table'][0, 0] <= scope['table'][-1, 0]
  assert scope['steps'] == [STEPS // 2, STEPS]


@pytest.mark.slow
def test_quickstart_runs(tmp_path, monkeypatch):
  (tmp_path / 'text').mkdir()
  for index in range(40):
    path = tmp_path / 'text' / f'{index}.txt'
    path.write_text(text(12, index))
  bindings = {
    'TEXT_FILES': f'{tmp_path}/text/*.txt',
    'DATA_DIR': tmp_path / 'data',
    'VOCAB_SIZE': 256,
    'BATCH_SIZE': 8,
    'EVAL_STEPS': 1,
    'modules.TransformerConfig.embed_dim': 32,
    'modules.TransformerConfig.mlp_dim': 64,
    'modules.TransformerConfig.num_layers': 1,
  }
  words = ' '.join(f'--gin.{name}={x}' for name, x in bindings.items())
  monkeypatch.setenv('BINDINGS', words)
  monkeypatch.setenv('STEPS', '4')
  monkeypatch.setenv('MODEL_DIR', str(tmp_path / 'run'))
  scope = execute(ROOT / 'metro_jax/notebooks/quickstart.ipynb')
  assert scope['encoding'].hidden.shape[1] == 32
