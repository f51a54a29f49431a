# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning recipes on top of a pretraining recipe, as the command reads."""

import pathlib
import re

import gin
import pytest

from metro_jax import downstream

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = [
  path
  for path in sorted((ROOT / 'gin_configs' / 'finetune').glob('*.gin'))
  if path.stem not in ('text_to_text', 'metro_t0')
]


@pytest.fixture
def configuration(tmp_path):
  """Gin after config.gin of a pretraining run and the run file."""
  import metro_jax.gin_registration  # noqa: F401

  gin.clear_config()
  for path in (ROOT, ROOT / 'gin_configs'):
    gin.add_config_file_search_path(str(path))
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file('metro_lm/tiny.gin')
  gin.parse_config('PRETRAINED_MODEL = @models.PretrainingModel()')
  gin.parse_config_file('gin_configs/runs/finetune.gin')
  yield
  gin.clear_config()


def bind(**macros):
  for name, value in macros.items():
    gin.parse_config(f'{name} = {value!r}')


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_recipes_build(recipe, configuration, tmp_path):
  gin.parse_config_file(f'finetune/{recipe.name}')
  bind(TASK_DIR=str(tmp_path))
  if recipe.stem != 'mnli_plus':
    bind(TASK='squad2' if recipe.stem == 'squad' else 'cola')
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.finetuner.config.embed_dim == 128
  assert model.max_length == 64
  names = ['mnli', 'snli', 'anli'] if recipe.stem == 'mnli_plus' else None
  assert names in (None, list(model.finetuner.tasks))
  has_noise = recipe.stem in ('mnli_plus', 'pdr')
  assert (model.finetuner.regularizer is not None) == has_noise
  page = (ROOT / 'docs' / 'finetuning.md').read_text()
  assert f'`finetune/{recipe.name}`' in page


@pytest.mark.parametrize('recipe', ['text_to_text', 'metro_t0'])
def test_text_to_text_builds(recipe, tmp_path):
  import metro_jax.gin_registration  # noqa: F401

  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.add_config_file_search_path(str(ROOT / 'gin_configs'))
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file('metro_t5/tiny.gin')
  gin.parse_config('PRETRAINED_MODEL = @models.PretrainingModel()')
  gin.parse_config_file('gin_configs/runs/finetune.gin')
  gin.parse_config_file(f'finetune/{recipe}.gin')
  page = (ROOT / 'docs' / 'finetuning.md').read_text()
  assert f'`finetune/{recipe}.gin`' in page
  bind(TASK='xsum', TASK_DIR=str(tmp_path))
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  length = 256 if recipe == 'metro_t0' else 64
  assert (model.ranks, model.target_length) == (False, length)
  gin.parse_config('MODEL = @models.with_heads()')
  with pytest.raises(ValueError, match="'generation' tasks have no head on an"):
    gin.query_parameter('%MODEL').scoped_configurable_fn()
  gin.clear_config()


def test_own_task_of_the_page(configuration, tmp_path):
  page = (ROOT / 'docs' / 'finetuning.md').read_text()
  block = re.search(r'```\n(# sentiment.gin\n.*?)```', page, re.S).group(1)
  (tmp_path / 'own.gin').write_text(block)
  (tmp_path / 'train.tsv').write_text('review\tstars\nx\t1\ny\t2\nz\t5\n')
  gin.parse_config_file(str(tmp_path / 'own.gin'))
  bind(TASK_DIR=str(tmp_path))
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.finetuner.tasks['own'].classes == 3


def test_tasks_of_the_page_are_those_there_are():
  page = (ROOT / 'docs' / 'finetuning.md').read_text()
  table = page.split('## Tasks')[1].split('Metrics are')[0]
  named = {
    name
    for row in re.findall(r'^\| (`.*?) \|', table, re.M)
    for name in re.findall(r'`(\w+)`', row)
  } - {'TASK'}
  assert named == set(downstream.TASKS)
