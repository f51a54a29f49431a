# SPDX-License-Identifier: Apache-2.0
"""Every recipe and every ablation trains, at a size of nothing.

A file is parsed as the command line parses it, and shrunk by bindings. The
trainer's step is traced for each of them, and run by the slow tests. Files that
differ in sizes alone are the same program then, which is looked at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe_files

from metro_jax import metrics, models, training
from metro_jax.training import initialization
from metro_jax.training.state import TrainState, named_leaves, unbox
from metro_jax.training.step import make_train_step

FILES = {name: (name,) for name in recipe_files.recipes()} | {
  name: (recipe_files.parent(name), name) for name in recipe_files.ablations()
}
ROWS = 8  # One for each device.


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
  model, optimizer = recipe.model, recipe.optimizer
  batch = recipe_files.batch(model)
  params = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
  step = make_train_step(model, optimizer)
  return state, *jax.eval_shape(step, state, None, batch)


@pytest.mark.parametrize('name', FILES)
def test_a_training_step_is_built(name):
  before, after, values, loss = shapes_of_a_step(name)
  assert loss.shape == () and loss.dtype == jnp.float32
  assert jax.tree.structure(after) == jax.tree.structure(before)
  recipe = recipe_files.load(*FILES[name])
  if isinstance(recipe.model, models.TextToTextModel):
    return
  pretrainer = recipe.deep.pretrainer
  assert {f'loss/{o.name}' for o in pretrainer.objectives} <= set(values)
  if len(getattr(pretrainer.auxiliary, 'depths', ())) > 1:
    # At the depths that the file has, everything fits together.
    batch = recipe_files.batch(recipe.deep)
    jax.eval_shape(recipe.deep.init, jax.random.key(0), batch)


@pytest.mark.parametrize('name', recipe_files.ablations())
def test_a_row_changes_its_recipe(name):
  recipe, row = FILES[name]
  plain, changed = recipe_files.load(recipe), recipe_files.load(recipe, row)
  same_model = repr(plain.full) == repr(changed.full)
  assert same_model == (row == 'ablations/metro_t5/span_mask.gin')
  assert not same_model or plain.rows != changed.rows


def test_no_two_rows_are_the_same():
  fulls = {
    name: repr((recipe_files.load(*FILES[name]).full, FILES[name][0]))
    for name in recipe_files.ablations()
    if not name.endswith('span_mask.gin')
  }
  assert len(set(fulls.values())) == len(fulls)


def test_the_last_combination_is_metro_lm():
  row = 'ablations/metro_lm/combo_5_constrained_sharing.gin'
  base, combination = (
    recipe_files.load(*FILES[name]) for name in ('metro_lm/base.gin', row)
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


@once
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
    step, empty_window = initialization.compile_step(*plan, layout, 1, 0)
    losses, window = [], empty_window()
    for index in range(2):
      batch = jax.device_put(data.batch(index), partitioner.batch_sharding)
      state, window, loss = step(state, window, batch)
      losses.append(float(loss))
    after = jax.device_get(state.params)
  values = metrics.compute(jax.device_get(window))
  return losses, values, named_leaves(params), named_leaves(after)


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_two_steps_on_eight_devices(name):
  losses, values, before, after = two_steps(name)
  assert np.isfinite(losses).all() and losses[0] != losses[1]
  assert all(np.isfinite(x) for x in values.values())
  if 'replace_rate' in values:
    assert 0 <= values['replace_rate'] <= 0.5
  recipe = recipe_files.load(*FILES[name])
  for key, x in before.items():
    if recipe.frozen and key.startswith('auxiliary/'):
      np.testing.assert_array_equal(x, after[key])
    elif not key.endswith('key/bias'):  # It has no gradient but rounding.
      assert (x != after[key]).any(), key
  shape = (ROWS, recipe_files.LENGTH)
  assert recipe.model.flops_per_step(shape) > 0
