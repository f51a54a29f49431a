# SPDX-License-Identifier: Apache-2.0
"""Every recipe and every ablation trains: two steps at a size of nothing.

A file is parsed as the command line parses it, shrunk by bindings, and its
model takes two steps of its optimizer. Files that differ in sizes alone are
the same program then, which the compilation cache knows.
"""

import functools
import pathlib

import jax
import numpy as np
import optax
import pretrain_models
import pytest

from metro_jax import gin_loading, metrics
from metro_jax.training.state import named_leaves, unbox

gin = gin_loading.gin_registration.gin

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'gin_configs'
PARTS = ('runs', 'models', 'sizes')

SHRUNK = {
  'MODEL_DIR': '"unused"',
  'VOCAB_SIZE': pretrain_models.VOCAB,
  'LENGTH': pretrain_models.LENGTH,
  'MASK_RATE': 0.25,
  'TRAIN_STEPS': 4,
  'WARMUP_STEPS': 1,
  'DTYPE': '"float32"',
  'modules.TransformerConfig.embed_dim': 8,
  'modules.TransformerConfig.num_heads': 2,
  'modules.TransformerConfig.mlp_dim': 16,
  'modules.TransformerConfig.num_layers': 2,
  'pretrain.TermFrequency.counts': (1,) * pretrain_models.VOCAB,
}


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


def macro(name: str):
  return gin.config._CONFIG.get((name, 'gin.macro'), {}).get('value')


def bind(bindings: dict[str, object]) -> None:
  gin.parse_config([f'{name} = {value}' for name, value in bindings.items()])


def shallow() -> dict[str, object]:
  """Depths of the auxiliary that keep what a file says of its heads."""
  bindings = {}
  heads = macro('MLM_LAYERS')
  if heads:
    bindings['MLM_LAYERS'] = tuple(range(1, len(heads) + 1))
  if macro('AUX_LAYERS'):
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
  return bindings


def unread_macros() -> set[str]:
  """Macros that are bound, and that nothing refers to."""
  config = gin.config._CONFIG
  bound = {scope for scope, selector in config if selector == 'gin.macro'}
  read = {
    '/'.join(reference.scopes)
    for reference in gin.config.iterate_references(config)
    if reference.selector == 'gin.macro'
  }
  return bound - read


def load(name: str):
  """Model and optimizer of a file, shrunk."""
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file(str(CONFIGS / name))
  assert not unread_macros()
  bind(SHRUNK)
  deep = gin.query_parameter('%MODEL').scoped_configurable_fn()
  bind(shallow())
  model, optimizer = (
    gin.query_parameter(f'%{part}').scoped_configurable_fn()
    for part in ('MODEL', 'OPTIMIZER')
  )
  return deep, model, optimizer


def initial(model) -> dict:
  """Parameters by shape, without compiling an initialiser."""
  shapes = unbox(
    jax.eval_shape(model.init, jax.random.key(0), pretrain_models.batch())
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes
  )


@functools.cache
def batch() -> dict[str, np.ndarray]:
  return pretrain_models.numbered(pretrain_models.batch())


def two_steps(model, optimizer, params):
  """Losses, parameters and metrics after two steps."""

  def step(params, slots, step):
    def loss_fn(params):
      key = jax.random.fold_in(jax.random.key(0), step)
      return model.loss_fn(params, batch(), key, step, train=True)

    (loss, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, slots = optimizer.update(grads, slots, params)
    return optax.apply_updates(params, updates), slots, loss, values

  # Half the time of compiling is in making fast code of it.
  options = {'xla_backend_optimization_level': 0}
  compiled = jax.jit(step, compiler_options=options)
  slots, losses = optimizer.init(params), []
  for index in range(2):
    params, slots, loss, values = compiled(params, slots, np.int32(index))
    losses.append(float(loss))
  return losses, jax.device_get(params), metrics.compute(values)


@pytest.mark.parametrize('name', recipes())
def test_two_steps(name):
  with gin_loading._own_configuration():
    deep, model, optimizer = load(name)
    frozen = gin.query_parameter('FROZEN_PARAMS/gin.macro.value')
  if deep.pretrainer.auxiliary is not None:
    # At the depths that the file has, everything fits together.
    jax.eval_shape(deep.init, jax.random.key(0), pretrain_models.batch())
  before = initial(model)
  losses, after, values = two_steps(model, optimizer, before)
  assert np.isfinite(losses).all() and losses[0] != losses[1]
  assert 0 <= values['replace_rate'] <= 0.5
  after = named_leaves(after)
  for key, x in named_leaves(before).items():
    if frozen and key.startswith('auxiliary/'):
      np.testing.assert_array_equal(x, after[key])
    elif not key.endswith('key/bias'):  # It has no gradient but rounding.
      assert (x != after[key]).any(), key
  assert model.flops_per_step((4, pretrain_models.LENGTH)) > 0
