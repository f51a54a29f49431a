# SPDX-License-Identifier: Apache-2.0
"""Notebooks run from top to bottom, and are kept without outputs."""

import json
import pathlib
import re

import numpy as np
import pytest
from tiny_run import STEPS, text

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'metro_jax' / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
COLAB = 'https://colab.research.google.com/github/'
# What makes a run take seconds.
SMALL = {
  'VOCAB_SIZE': 256,
  'LENGTH': 32,
  'BATCH_SIZE': 8,
  'EVAL_STEPS': 1,
  'STATS_PERIOD': 1,
  'modules.TransformerConfig.embed_dim': 32,
  'modules.TransformerConfig.mlp_dim': 64,
  'modules.TransformerConfig.num_layers': 1,
}

pytest_plugins = ('tiny_run',)


def cells(path):
  return json.loads(path.read_text())['cells']


def bindings(values):
  return ' '.join(f'--gin.{name}={x}' for name, x in values.items())


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_hold_no_outputs_and_valid_code(path):
  for cell in cells(path):
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
      compile(''.join(cell['source']), path.name, 'exec')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_badges_open_their_notebook(path):
  first = ''.join(cells(path)[0]['source'])
  address = re.search(rf'\({COLAB}([\w./-]+)\)', first).group(1)
  assert address.endswith(f'/blob/main/{path.relative_to(ROOT)}')
  # Nothing is installed from an address that nobody typed.
  assert "SOURCE = ''" in ''.join(cells(path)[1]['source'])
  assert f'({COLAB}{address})' in (ROOT / 'docs/notebooks.md').read_text()


@pytest.fixture
def execute(monkeypatch):
  """Runs a notebook's cells in one namespace, as a kernel does."""
  import matplotlib
  from matplotlib import pyplot

  monkeypatch.setenv('MPLBACKEND', 'agg')  # Of commands.
  matplotlib.use('agg')

  def run(name, **environment):
    for key, value in environment.items():
      monkeypatch.setenv(key, str(value))
    scope = {'__name__': '__main__'}
    for cell in cells(FOLDER / f'{name}.ipynb'):
      if cell['cell_type'] == 'code':
        exec(compile(''.join(cell['source']), name, 'exec'), scope)
    return scope

  yield run
  pyplot.close('all')


@pytest.mark.slow
def test_corruption_explorer_runs(tiny_run, execute):
  scope = execute('corruption_explorer', MODEL_DIR=tiny_run, DRAWS=2)
  changed = scope['table'][:, 0]
  # The colder, the fewer words change.
  assert 0 <= changed[0] <= changed[-1] <= 1
  assert np.all(np.isfinite(scope['table'][-1]))
  assert scope['steps'] == [STEPS // 2, STEPS]


@pytest.mark.slow
def test_quickstart_runs(tmp_path, execute):
  (tmp_path / 'text').mkdir()
  for index in range(40):
    path = tmp_path / 'text' / f'{index}.txt'
    path.write_text(text(12, index))
  places = {
    'TEXT_FILES': f'{tmp_path}/text/*.txt',
    'DATA_DIR': tmp_path / 'data',
  }
  model_dir = tmp_path / 'run'
  more = bindings(SMALL | places)
  scope = execute('quickstart', STEPS=4, MODEL_DIR=model_dir, MORE=more)
  assert scope['encoding'].hidden.shape[1] == 32
  assert (model_dir / 'curves.png').stat().st_size > 10_000


@pytest.mark.slow
def test_finetuning_runs(tiny_run, tmp_path, execute):
  scope = execute(
    'finetuning',
    PRETRAINED=tiny_run,
    TASK_DIR=tmp_path / 'task',
    TEXT_FILES=f'{tiny_run.parent}/text/*.txt',
    EXAMPLES=40,
    MORE=bindings({'EPOCHS': 1.0, 'EVALUATIONS': 1, 'BATCH_SIZE': 8}),
  )
  assert set(scope['results']) == {'pretrained', 'from scratch'}
  # A prediction for each line of the file without labels.
  assert len(scope['predicted']) == len(scope['files']['new']) > 0
  assert {*scope['predicted']} <= {'changed', 'whole'}


@pytest.mark.slow
def test_released_checkpoint_runs(tmp_path, execute, capsys):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  tokens = [
    *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'chef', 'cooked'),
    *('ate', 'drove', 'cloud', 'meal', 'a', 'cat', 'sat'),
  ]
  sizes = {
    'vocab_size': len(tokens),
    'hidden_size': 16,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 24,
    'max_position_embeddings': 20,
    'embedding_size': 12,
  }
  config = transformers.ElectraConfig(**sizes)
  for name, kind in (
    ('main', transformers.ElectraForPreTraining),
    ('generator', transformers.ElectraForMaskedLM),
  ):
    folder = tmp_path / name
    kind(config).save_pretrained(folder)
    (folder / 'vocab.txt').write_text('\n'.join(tokens))
    tokenizer = transformers.BertTokenizerFast(str(folder / 'vocab.txt'))
    tokenizer.save_pretrained(folder)
  scope = execute(
    'released_checkpoint',
    SOURCE=tmp_path / 'main',
    AUXILIARY=tmp_path / 'generator',
    MODEL_DIR=tmp_path / 'run',
  )
  # Float32 through one layer, sums in other orders.
  assert scope['difference'] < 1e-5
  assert len(scope['found']) == 8
