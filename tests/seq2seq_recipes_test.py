# SPDX-License-Identifier: Apache-2.0
"""Recipes of METRO-T5 and T5: published sizes and settings, and that they run.

Sizes come from shapes alone: nothing is allocated.
"""

import json
import os
import pathlib
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest
import tiny_run

from metro_jax import data, infer, models, writing
from metro_jax.errors import UserError
from metro_jax.pretrain import RTD, CorrectiveLM

ROOT = pathlib.Path(__file__).resolve().parents[1]
ABLATIONS = sorted(
  path.stem for path in (ROOT / 'gin_configs/ablations/metro_t5').glob('*.gin')
)
SMALL = (
  'VOCAB_SIZE = 256',
  'LENGTH = 32',
  'BATCH_SIZE = 4',
  'RTD_WEIGHT = 50.0',
  'modules.TransformerConfig.embed_dim = 16',
  'modules.TransformerConfig.mlp_dim = 32',
  'modules.TransformerConfig.num_heads = 2',
  'modules.TransformerConfig.num_layers = 2',
  'aux/modules.TransformerConfig.num_layers = 1',
)


@pytest.fixture
def load():
  """Parses recipes as the command line does; returns MODEL."""

  def load(*recipes: str, bindings=()) -> object:
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    files = [f'gin_configs/{name}.gin' for name in ('runs/pretrain', *recipes)]
    gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
    return gin.query_parameter('%MODEL').scoped_configurable_fn()

  yield load
  gin.clear_config()


def value(macro: str):
  return gin.query_parameter(f'%{macro}')


# Recipe: millions of the main model without and with the head for detection,
# millions of the auxiliary's own (computed from the public code), published.
COUNTS = {
  'metro_t5/base': (225.6, 226.2, 29.8),
  'metro_t5/base_pp': (249.6, 250.2, None),
  'metro_t5/large_pp': (773.6, 774.7, 77.8),
}


@pytest.mark.parametrize('recipe', COUNTS)
def test_published_sizes(load, recipe):
  counts = load(recipe).parameter_counts()
  main, with_head, auxiliary = COUNTS[recipe]
  # The public code has two unused rows in each position table.
  near = 0.05 + 0.01
  assert counts['main'] / 1e6 == pytest.approx(main, abs=near)
  total = (counts['main'] + counts['heads']) / 1e6
  assert total == pytest.approx(with_head, abs=near)
  if auxiliary:
    assert counts['auxiliary'] / 1e6 == pytest.approx(auxiliary, abs=near)
  # The heads are RoBERTa's for detection, and nothing for the decoder.
  width = 1024 if 'large' in recipe else 768
  assert counts['heads'] == width**2 + 4 * width + 1


@pytest.mark.parametrize('size', ['base', 'base_pp'])
def test_the_baseline_has_the_same_model(load, size):
  def shapes(model):
    batch = model.build_batch_spec(1, 8)
    tree = jax.eval_shape(model.init, jax.random.key(0), batch)
    parts = {k: tree[k] for k in ('embedder', 'main')}
    return jax.tree.map(lambda x: x.shape, parts)

  assert shapes(load(f'metro_t5/{size}')) == shapes(load(f't5/{size}'))


def test_table_6(load):
  settings = ('TRAIN_STEPS', 'LEARNING_RATE', 'BATCH_SIZE', 'WARMUP_STEPS',
              'LENGTH', 'NUM_BUCKETS', 'MAX_DISTANCE', 'CLIP_NORM',
              'DROPOUT_RATE', 'WEIGHT_DECAY', 'RTD_WEIGHT')  # fmt: skip
  common = dict(BATCH_SIZE=2048, WARMUP_STEPS=10000, LENGTH=512,
                NUM_BUCKETS=32, MAX_DISTANCE=128, DROPOUT_RATE=0.1,
                WEIGHT_DECAY=0.01, RTD_WEIGHT=50.0)  # fmt: skip
  for size, own in {
    'base': dict(TRAIN_STEPS=125000, LEARNING_RATE=4e-4, CLIP_NORM=None),
    'base_pp': dict(TRAIN_STEPS=2000000, LEARNING_RATE=2e-4, CLIP_NORM=2.0),
  }.items():
    model = load(f'metro_t5/{size}')
    assert {name: value(name) for name in settings} == common | own
    mlm, rtd, clm = model.pretrainer.objectives
    assert (mlm.weight, rtd.weight, clm.weight) == (1, 50, 1)
    assert (rtd.source, clm.source) == ('encoder', 'decoder')
    assert (clm.positions, clm.copy) == ('masked', False)


def test_architecture_of_metro_t5(load):
  pretrainer = load('metro_t5/base').pretrainer
  encoder, decoder = pretrainer.main.config, pretrainer.main.decoder_config
  assert pretrainer.auxiliary.config.num_layers == 4
  assert pretrainer.auxiliary.config.positions.per_layer
  for config in (encoder, decoder, pretrainer.auxiliary.config):
    assert config.activation == 'relu' and config.norm_placement == 'post'
    assert config.positions.absolute and not config.positions.reset_cls
  assert encoder.num_layers == decoder.num_layers == 12
  assert encoder.positions.relative == 'metro' and encoder.positions.per_layer
  assert decoder.positions.relative is None
  # A mask on every seventh token, [CLS] and [SEP] included.
  assert pretrainer.max_predictions == round(0.15 * 512)


CHANGES = {
  'rtd_on_decoder': lambda m: m.objectives[1] == RTD(source='decoder'),
  'rtd_on_decoder_projection': lambda m: (
    m.objectives[1] == RTD(source='decoder') and m.lm_head.projection
  ),
  'clm_all': lambda m: (
    m.objectives[2] == CorrectiveLM(source='decoder', positions='all')
  ),
  'clm_copy': lambda m: (
    m.objectives[2] == CorrectiveLM(source='decoder', copy=True)
  ),
  'span_mask': lambda m: (
    gin.query_parameter('data.TokenDataset.mask_span') == 3.0
  ),
}


def test_every_row_of_table_4_is_here():
  assert set(ABLATIONS) == {*CHANGES, 't5_all_tokens'}


@pytest.mark.parametrize('row', CHANGES)
def test_rows_of_table_4(load, row):
  """What a row changes is there, is not there otherwise, and trains."""
  ablation = f'ablations/metro_t5/{row}'
  model = load('metro_t5/tiny', ablation, bindings=SMALL)
  assert CHANGES[row](model.pretrainer)
  assert_trains(model)
  plain = load('metro_t5/tiny', bindings=SMALL)
  if row != 'span_mask':
    assert not CHANGES[row](plain.pretrainer)


def assert_trains(model):
  """Traces a training step."""
  batch = model.build_batch_spec(4, 32)
  params = jax.eval_shape(model.init, jax.random.key(0), batch)

  def step(params, batch):
    def loss(params):
      return model.loss_fn(params, batch, jax.random.key(0), 0, True)[0]

    return jax.value_and_grad(loss)(params)

  value, gradient = jax.eval_shape(step, params, batch)
  assert value.shape == ()
  assert jax.tree.structure(gradient) == jax.tree.structure(params)


@pytest.mark.parametrize(
  'recipes, length, target_length, row_length, start, end',
  [
    (['t5/tiny'], 64, 21, 64, 4, 4),
    (['t5/tiny', 'ablations/metro_t5/t5_all_tokens'], 64, 64, 64, 4, 4),
    (['t5/span_corruption_base'], 512, 114, 570, 0, 3),
  ],
)
def test_span_corruption(
  load, recipes, length, target_length, row_length, start, end
):
  model = load(*recipes)
  assert isinstance(model, models.TextToTextModel)
  assert model.target_length == target_length <= model.max_target_length
  assert model.text_to_text.start_id == start and model.end_id == end
  assert value('LENGTH') == length <= model.max_length
  rows = gin.query_parameter('data.TokenDataset.length')
  assert rows.scoped_configurable_fn() == row_length
  assert_trains(load(*recipes, bindings=SMALL))


@pytest.mark.parametrize(
  'recipe', ['metro_t5/tiny', pytest.param('t5/tiny', marks=pytest.mark.slow)]
)
def test_training_from_the_command_line(tmp_path, recipe, monkeypatch):
  """Two steps and an evaluation, on text of one's own."""
  (tmp_path / 'text').mkdir()
  for index in range(20):
    text = tiny_run.text(12, index)
    (tmp_path / 'text' / f'{index}.txt').write_text(text)
  macros = {
    'MODEL_DIR': tmp_path / 'run',
    'TEXT_FILES': f'{tmp_path}/text/*.txt',
    'DATA_DIR': tmp_path / 'data',
    'TRAIN_STEPS': 2,
    'WARMUP_STEPS': 1,
    'STATS_PERIOD': 1,
    'EVAL_PERIOD': 2,
    'EVAL_STEPS': 1,
    'EXTRA_IDS': 8,
    'data.TextFiles.validation_fraction': 0.2,
    **dict(binding.split(' = ') for binding in SMALL),
  }
  subprocess.run(
    [
      sys.executable,
      '-m',
      'metro_jax.train',
      f'--gin_file={recipe}.gin',
      *(f'--gin.{name}={value}' for name, value in macros.items()),
    ],
    check=True,
    env=os.environ | {'XLA_FLAGS': ''},
  )
  lines = (tmp_path / 'run/train/metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  assert [line['step'] for line in lines] == [1, 2]
  assert all(np.isfinite(line['loss']) for line in lines)
  vocabulary = data.Vocabulary(tmp_path / 'run')
  assert vocabulary.extra_ids == 8
  check_writing(recipe, tmp_path, monkeypatch)


def check_writing(recipe: str, root: pathlib.Path, monkeypatch):
  """What the command line writes and scores is what the model does."""
  writer = writing.load(root / 'run')
  monkeypatch.setattr(writing, 'load', lambda *_: writer)

  def ask(mode: str, lines: list[str], *flags: str) -> list[dict]:
    (root / 'in.txt').write_text(''.join(f'{line}\n' for line in lines))
    given = (f'--model_dir={root}/run', f'--input={root}/in.txt')
    infer.main([*given, f'--mode={mode}', f'--output={root}/out.jsonl', *flags])
    out = (root / 'out.jsonl').read_text().splitlines()
    return [json.loads(line) for line in out]

  texts = ['Returns the [MASK] of the row.', 'the <extra_id_0> array', '']
  greedy = ask('generate', texts, '--length=8')
  assert [a['text'] for a in greedy] == texts
  sampling = ('--length=8', '--temperature=1', '--seed=3')
  sampled = ask('generate', texts, *sampling)
  assert sampled != greedy
  (alone,) = ask('generate', texts[:1], *sampling)
  assert alone['written'] == sampled[0]['written']
  pairs = [('the array', 'the row'), ('the array of the row', 'axis'), ('', '')]
  scored = ask('score', ['\t'.join(pair) for pair in pairs[:2]] + [''])
  for answer, (text, target) in zip(scored, pairs, strict=True):
    assert (answer['text'], answer['target']) == (text, target)
    # By itself, in a row of another length.
    (alone,) = writer.score([(text, target)])
    assert answer['tokens'] == alone.tokens > 0
    np.testing.assert_allclose(
      answer['log_probability'], alone.log_probability, rtol=1e-4
    )
  for mode, line, says in (
    ('score', 'no tab', 'has no tab'),
    ('generate', 'the array ' * 600, 'line 1 has .* tokens'),
    ('score', 'a\t' + 'array ' * 600, 'line 1 has .* tokens'),
    ('generate', '<extra_id_8>', 'it has 8 sentinels'),
  ):
    with pytest.raises(UserError, match=says):
      ask(mode, [line])
  if recipe.startswith('t5'):
    with pytest.raises(UserError, match='ask this one to generate or score'):
      ask('detect', ['the array'])
