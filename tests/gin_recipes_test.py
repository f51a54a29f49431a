# SPDX-License-Identifier: Apache-2.0
"""Every recipe and every ablation trains, at a size of nothing.

A file is parsed as the command line parses it, and shrunk by bindings. Every
day all files build their models, and the step of each family is traced. The
slow tests trace the step of each file, and run some; families_test.py runs
each family. Files that differ in sizes alone are the same program then, which
is traced once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe_files

from metro_jax import metrics, models, training
from metro_jax.training import guards, initialization
from metro_jax.training.state import TrainState, named_leaves, unbox
from metro_jax.training.step import make_train_step

FILES = {name: (name,) for name in recipe_files.recipes()} | {
  name: (recipe_files.parent(name), name) for name in recipe_files.ablations()
}
# About the data alone; and all of METRO-LM's techniques, one after the other.
SPANS = 'ablations/metro_t5/span_mask.gin'
LAST_COMBINATION = 'ablations/metro_lm/combo_5_constrained_sharing.gin'
ROWS = 8  # One for each device.
# What no family's own recipe has.
SOME_ROWS = (
  'ablations/amos/separate_generators.gin',
  'ablations/amos/random_layer.gin',
  'ablations/fast_electra/drop_token.gin',
  'ablations/fast_electra/tf_to_soh.gin',
  'ablations/metro_lm/one_choice_cloze.gin',
  'ablations/metro_lm/tupe.gin',
)


def slow_unless_tiny(names) -> list:
  return [
    name
    if name.endswith('/tiny.gin')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]


def once(function):
  """Calls it for the first of all files that come out as the same program."""
  done = {}

  @functools.wraps(function)
  def call(name: str):
    recipe = recipe_files.load(*FILES[name])
    program = repr((recipe.model, recipe.frozen))
    if program not in done:
      done[program] = function(recipe)
    return done[program]

  return call


@once
def shapes_of_a_step(recipe: recipe_files.Recipe):
  """State before and after, metrics and report, without computing them."""
  model, optimizer = recipe.model, recipe.optimizer
  batch = recipe_files.batch(model)
  params = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
  step = make_train_step(model, optimizer)
  return state, *jax.eval_shape(step, state, None, batch)


@pytest.mark.parametrize('name', slow_unless_tiny(FILES))
def test_a_training_step_is_built(name):
  before, after, values, report = shapes_of_a_step(name)
  packed = jax.eval_shape(guards.StepReport.pack, *[jnp.float32(0)] * 4)
  assert (report.shape, report.dtype) == (packed.shape, packed.dtype)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  deep = recipe_files.load(*FILES[name]).deep
  if isinstance(deep, models.PretrainingModel):
    terms = {f'loss/{o.name}' for o in deep.pretrainer.objectives}
    assert terms <= set(values)
    if len(getattr(deep.pretrainer.auxiliary, 'depths', ())) > 1:
      # The depths that the file has fit together too.
      batch = recipe_files.batch(deep)
      jax.eval_shape(deep.init, jax.random.key(0), batch)


@pytest.mark.parametrize('name', recipe_files.recipes())
def test_a_recipe_builds_its_model(name):
  recipe = recipe_files.load(name)
  assert recipe.full.flops_per_step((1, 8)) > 0
  assert recipe.full.max_length >= 64


@pytest.mark.parametrize('name', recipe_files.ablations())
def test_a_row_changes_its_recipe(name):
  recipe, row = FILES[name]
  plain, changed = recipe_files.load(recipe), recipe_files.load(recipe, row)
  same_model = repr(plain.full) == repr(changed.full)
  assert same_model == (row in (SPANS, LAST_COMBINATION))
  assert (plain.rows == changed.rows) == (row != SPANS)


def test_no_two_rows_are_the_same():
  fulls = {
    name: repr((recipe_files.load(*FILES[name]).full, FILES[name][0]))
    for name in recipe_files.ablations()
    if name != SPANS
  }
  assert len(set(fulls.values())) == len(fulls)


def test_the_last_combination_is_metro_lm():
  base, combination = (
    recipe_files.load(*FILES[name])
    for name in ('metro_lm/base.gin', LAST_COMBINATION)
  )
  assert repr(base.full) == repr(combination.full)


class Rows:
  """A dataset of two random batches."""

  batch_size, length = ROWS, recipe_files.LENGTH

  def __init__(self, model):
    self.model = model

  def batch(self, step: int, rows: slice | None = None):
    batch = recipe_files.batch(self.model, ROWS, seed=step)
    return {k: x[rows or slice(None)] for k, x in batch.items()}


def two_steps(recipe: recipe_files.Recipe):
  """Losses, metrics, and parameters by name before and after."""
  model, optimizer = recipe.model, recipe.optimizer
  data, partitioner = Rows(model), training.Partitioner()
  with partitioner.context():
    plan = (model, optimizer, data, partitioner)
    layout = initialization.make_layout(*plan)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), layout.state.params
    )
    state = jax.device_put(
      TrainState.create(params, optimizer), layout.shardings
    )
    # Half the time of compiling is in making fast code of it.
    slow = {'xla_backend_optimization_level': 0}
    step = jax.jit(make_train_step(model, optimizer), compiler_options=slow)
    losses = []
    for index in range(2):
      batch = jax.device_put(data.batch(index), partitioner.batch_sharding)
      state, window, report = step(state, None, batch)
      losses.append(guards.StepReport.unpack(report).loss)
    after = jax.device_get(state.params)
  values = metrics.compute(jax.device_get(window))
  return losses, values, named_leaves(params), named_leaves(after)


@pytest.mark.slow
@pytest.mark.parametrize('name', SOME_ROWS)
def test_two_steps_on_eight_devices(name):
  recipe = recipe_files.load(*FILES[name])
  losses, values, before, after = two_steps(recipe)
  assert np.isfinite(losses).all() and losses[0] != losses[1]
  # What counts nothing (detections, where there are none) is not a number.
  named = ('loss', 'mlm_loss', 'mixture', 'curriculum', 'replace_rate')
  shown = [x for key, x in values.items() if key.split('/')[0] in named]
  assert np.isfinite(shown).all()
  if 'replace_rate' in values:
    assert 0 <= values['replace_rate'] <= 0.5
  for key, x in before.items():
    if recipe.frozen and key.startswith('auxiliary/'):
      np.testing.assert_array_equal(x, after[key])
    elif not key.endswith('key/bias'):  # It has no gradient but rounding.
      assert (x != after[key]).any(), key
