# SPDX-License-Identifier: Apache-2.0
"""Recipes and ablations out of their gin files, shrunk for tests."""

import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np
import pretrain_models

from metro_jax import gin_loading, models

gin = gin_loading.gin_registration.gin

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'gin_configs'
PARTS = ('runs', 'models', 'sizes', 'ablations', 'finetune', 't5x')
FAMILIES = ('amos', 'coco_lm', 'electra', 'fast_electra', 'metro_lm',
            'metro_t5', 'mlm', 't5')  # fmt: skip
# What sizes/ set for all families, and some have no use for.
OF_SIZES = {'AUX_LAYERS', 'RTD_WEIGHT', 'NUM_BUCKETS', 'MAX_DISTANCE'}
VOCAB, LENGTH = pretrain_models.VOCAB, pretrain_models.LENGTH

SHRUNK = {
  'MODEL_DIR': '"unused"',
  'VOCAB_SIZE': VOCAB,
  'LENGTH': LENGTH,
  'MASK_RATE': 0.25,
  'TRAIN_STEPS': 4,
  'WARMUP_STEPS': 1,
  'DTYPE': '"float32"',
  'DROPOUT_RATE': 0.1,
  'NUM_BUCKETS': 8,
  'MAX_DISTANCE': 16,
  'modules.PositionConfig.max_length': 4 * LENGTH,
  'modules.PositionConfig.neighbour_bias': 0.0,
  'modules.TransformerConfig.init_stddev': 0.02,
  'modules.TransformerConfig.embed_dim': 8,
  'modules.TransformerConfig.num_heads': 2,
  'modules.TransformerConfig.mlp_dim': 16,
  'modules.TransformerConfig.num_layers': 2,
  'pretrain.TermFrequency.counts': (1,) * VOCAB,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a file describes.

  Attributes:
    full: the model at its own size.
    deep: narrow, with the auxiliary's own depths.
    model: narrow and shallow.
    optimizer: of the run.
    frozen: patterns of parameters that are not trained.
    rows: bindings of its dataset.
  """

  full: Any
  deep: Any
  model: Any
  optimizer: Any
  frozen: tuple[str, ...]
  rows: dict[str, Any]


def recipes() -> list[str]:
  """Files that stand for a run: not the parts that they are made of."""
  names = [
    str(path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob('*.gin'))
  ]
  return [
    name
    for name in names
    if name.split('/')[0] not in PARTS
    # metro_lm/metro_lm.gin is what the sizes of a family have in common.
    and len(set(name.removesuffix('.gin').split('/'))) > 1
  ]


def ablations() -> list[str]:
  """Files of rows, which are added to a recipe."""
  paths = sorted((CONFIGS / 'ablations').rglob('*.gin'))
  return [str(path.relative_to(CONFIGS)) for path in paths]


def parent(name: str) -> str:
  """The recipe that an ablation says it is added to."""
  text = (CONFIGS / name).read_text()
  first, itself = re.findall(r'--gin_file=(\S+)', text)
  assert itself == name
  return first


@functools.cache
def load(*names: str, **bindings: object) -> Recipe:
  """Parses files in this order, and bindings, as the command line does."""
  with gin_loading._own_configuration():
    gin.add_config_file_search_path(str(ROOT))
    for name in ('runs/pretrain.gin', *names):
      gin.parse_config_file(str(CONFIGS / name))
    _bind(bindings)
    assert _unread_macros() <= OF_SIZES
    rows = _bound('TokenDataset')
    full = _built('MODEL')
    _bind(SHRUNK | bindings)
    deep = _built('MODEL')
    _bind(_shallow())
    frozen = _macro('FROZEN_PARAMS')
    return Recipe(
      full, deep, _built('MODEL'), _built('OPTIMIZER'), frozen, rows
    )


def plan(name: str):
  """The `training.Plan` of a recipe at its own size, as precompile reads it."""
  with gin_loading._own_configuration():
    gin.add_config_file_search_path(str(ROOT))
    for file in ('runs/precompile.gin', name):
      gin.parse_config_file(str(CONFIGS / file))
    return gin.get_configurable('training.Plan')()


def batch(model, rows: int = pretrain_models.BATCH, seed: int = 0):
  """Random rows, of the features that the model takes."""
  if not isinstance(model, models.TextToTextModel):
    return pretrain_models.batch(rows, seed)
  rng = np.random.default_rng(seed)
  out = {}
  for stream, name, length in (
    ('encoder', 'input_tokens', LENGTH),
    ('decoder', 'target_tokens', model.target_length),
  ):
    size = rng.integers(length // 2, length + 1, (rows, 1))
    tokens = rng.integers(5, VOCAB, (rows, length)).astype(np.int32)
    place = np.arange(length, dtype=np.int32)
    out[f'{stream}_{name}'] = tokens * (place < size)
    out[f'{stream}_segment_ids'] = (place < size).astype(np.int32)
    out[f'{stream}_positions'] = place * (place < size)
  weights = out['decoder_segment_ids'].astype(np.float32)
  return {**out, 'decoder_loss_weights': weights}


def _macro(name: str):
  return gin.config._CONFIG.get((name, 'gin.macro'), {}).get('value')


def _built(macro: str):
  return gin.query_parameter(f'%{macro}').scoped_configurable_fn()


def _bind(bindings: dict[str, object]) -> None:
  gin.parse_config([f'{name} = {value}' for name, value in bindings.items()])


def _bound(configurable: str) -> dict[str, Any]:
  return {
    f'{scope}/{parameter}': repr(value)
    for (scope, selector), values in gin.config._CONFIG.items()
    if selector.endswith(f'.{configurable}')
    for parameter, value in values.items()
  }


def _shallow() -> dict[str, object]:
  """Depths of the auxiliary that keep what a file says of its heads."""
  bindings = {}
  heads = _macro('MLM_LAYERS')
  if heads:
    bindings['MLM_LAYERS'] = tuple(range(1, len(heads) + 1))
  if _macro('AUX_LAYERS'):
    bindings['AUX_LAYERS'] = len(heads) if heads else 1
  for (scope, selector), values in list(gin.config._CONFIG.items()):
    if selector.endswith('AuxiliaryEnsemble') and 'depths' in values:
      order = sorted(set(values['depths']))
      bindings['pretrain.AuxiliaryEnsemble.depths'] = tuple(
        order.index(depth) + 1 for depth in values['depths']
      )
    if scope == 'aux' and 'embed_dim' in values:
      bindings['aux/modules.TransformerConfig.embed_dim'] = 4
      bindings['aux/modules.TransformerConfig.num_heads'] = 2
      bindings['aux/modules.TransformerConfig.mlp_dim'] = 8
    if 'table_dim' in values:
      bindings['modules.TransformerConfig.table_dim'] = 8
    if scope == 'decoder' and 'num_layers' in values:
      bindings['decoder/modules.TransformerConfig.num_layers'] = 2
  return bindings


def _unread_macros() -> set[str]:
  """Macros that are bound, and that nothing refers to."""
  config = gin.config._CONFIG
  bound = {scope for scope, selector in config if selector == 'gin.macro'}
  read = {
    '/'.join(reference.scopes)
    for reference in gin.config.iterate_references(config)
    if reference.selector == 'gin.macro'
  }
  return bound - read
