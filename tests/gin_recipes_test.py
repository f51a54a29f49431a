# SPDX-License-Identifier: Apache-2.0
"""Every recipe and every ablation trains, at a size of nothing.

A file is parsed as the command line parses it, and shrunk by bindings. Every
day all files build their models, and the step of each family is traced. The
slow tests train all files, on eight devices and resumed; families_test.py does
so by the real trainer for some. Files that differ in numbers alone are the same
program then, which is trained once.
"""

import dataclasses
import functools
import re

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


def once(function):
  """Calls it for the first of all files that come out as the same program."""
  done = {}

  @functools.wraps(function)
  def call(name: str):
    recipe = recipe_files.load(*FILES[name])
    # What is 0 may leave a part out; other numbers are constants in it.
    program = re.sub(
      r'(?<![\w.])\d+\.\d+',
      lambda number: '#' if float(number.group()) else '0',
      repr((recipe.model, recipe.frozen)),
    )
    if program not in done:
      done[program] = function(recipe)
    return done[program]

  return call


def shapes_of_a_step(recipe: recipe_files.Recipe):
  """State before and after, metrics and report, without computing them."""
  model, optimizer = recipe.model, recipe.optimizer
  batch = recipe_files.batch(model)
  params = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
  step = make_train_step(model, optimizer)
  return state, *jax.eval_shape(step, state, None, batch)


@pytest.mark.parametrize('family', recipe_files.FAMILIES)
def test_a_training_step_is_built(family):
  recipe = recipe_files.load(f'{family}/tiny.gin')
  before, after, values, report = shapes_of_a_step(recipe)
  packed = jax.eval_shape(guards.StepReport.pack, *[jnp.float32(0)] * 4)
  assert (report.shape, report.dtype) == (packed.shape, packed.dtype)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  if isinstance(recipe.model, models.PretrainingModel):
    objectives = recipe.model.pretrainer.objectives
    assert {f'loss/{o.name}' for o in objectives} <= set(values)


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


@pytest.mark.parametrize('family', ['metro_lm', 'amos', 'coco_lm', 'metro_t5'])
def test_a_rate_is_carried_over_for_what_grows_on_both_sides(family):
  """The first update of Adam is the rate, for gradients of one."""

  def at_width(width: int):
    recipe = recipe_files.load(
      f'{family}/tiny.gin',
      'models/width_transfer.gin',
      BASE_WIDTH=4,
      WIDTH=width,
      MLP_WIDTH=2 * width,
      NUM_HEADS=width // 4,
      WARMUP_STEPS=0,
      **{
        'modules.TransformerConfig.embed_dim': '%WIDTH',
        'modules.TransformerConfig.mlp_dim': '%MLP_WIDTH',
        'modules.TransformerConfig.num_heads': '%NUM_HEADS',
        'training.adamw.epsilon': 0.0,
        'training.adamw.clip_norm': None,
      },
    )
    params = unbox(
      jax.eval_shape(
        recipe.model.init, jax.random.key(0), recipe_files.batch(recipe.model)
      )
    )
    return recipe, params

  recipe, wide = at_width(8)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), wide)  # Nothing decays.
  ones = jax.tree.map(jnp.ones_like, zeros)
  optimizer = recipe.optimizer
  updates, _ = optimizer.update(ones, optimizer.init(zeros), zeros)
  updates = named_leaves(updates)
  wider = named_leaves(at_width(16)[1])
  halved = set()
  for name, value in named_leaves(wide).items():
    # Heads are counted, and are as wide: an axis [heads, 4] grows once.
    grown = sum(
      a != b for a, b in zip(value.shape, wider[name].shape, strict=True)
    )
    factor = 0.5 if grown > 1 else 1.0
    rate = optimizer.learning_rate(0)
    np.testing.assert_allclose(updates[name], -rate * factor, rtol=1e-5)
    halved |= {name.split('/')[-1]} if grown > 1 else set()
  assert halved == {'kernel'}


class Rows:
  """A dataset of two random batches."""

  batch_size, length = ROWS, recipe_files.LENGTH

  def __init__(self, model):
    self.model = model

  def batch(self, step: int, rows: slice | None = None):
    batch = recipe_files.batch(self.model, ROWS, seed=step)
    return {k: x[rows or slice(None)] for k, x in batch.items()}


@dataclasses.dataclass(frozen=True)
class Run:
  """Two steps on all devices, and the second once more from the first.

  Attributes:
    losses: of the two steps.
    values: metrics of the second.
    before: the state that they begin with.
    after: the state that they end with.
    resumed: the same, from a copy of the state between them.
  """

  losses: list[float]
  values: dict[str, float]
  before: TrainState
  after: TrainState
  resumed: TrainState


@once
def two_steps(recipe: recipe_files.Recipe) -> Run:
  model, optimizer = recipe.model, recipe.optimizer
  data, partitioner = Rows(model), training.Partitioner()
  with partitioner.context():
    plan = (model, optimizer, data, partitioner)
    layout = initialization.make_layout(*plan)
    step = jax.jit(
      make_train_step(model, optimizer),
      out_shardings=(layout.shardings, None, None),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), layout.state.params
    )
    fresh = jax.device_get(TrainState.create(params, optimizer))

    def one_step(index, state):
      batch = jax.device_put(data.batch(index), partitioner.batch_sharding)
      state = jax.device_put(state, layout.shardings)
      return jax.device_get(step(state, None, batch))

    first, _, report = one_step(0, fresh)
    second, values, last_report = one_step(1, first)
    resumed, *_ = one_step(1, first)
  losses = [guards.StepReport.unpack(x).loss for x in (report, last_report)]
  return Run(losses, metrics.compute(values), fresh, second, resumed)


def files_of(family: str) -> list[str]:
  return [name for name in FILES if family in name.split('/')]


@pytest.mark.slow
@pytest.mark.parametrize('family', recipe_files.FAMILIES)
def test_all_train_on_eight_devices_and_resume(family):
  assert jax.device_count() == ROWS
  for name in files_of(family):
    try:
      check(two_steps(name), recipe_files.load(*FILES[name]).frozen)
    except Exception as error:
      raise AssertionError(f'{name}: {error}') from error


def check(run: Run, frozen: tuple[str, ...]):
  assert np.isfinite(run.losses).all() and run.losses[0] != run.losses[1]
  # What counts nothing (detections, where there are none) is not a number.
  named = ('loss', 'mlm_loss', 'mixture', 'curriculum', 'replace_rate')
  shown = [x for key, x in run.values.items() if key.split('/')[0] in named]
  assert np.isfinite(shown).all()
  assert 0 <= run.values.get('replace_rate', 0) <= 0.5
  jax.tree.map(np.testing.assert_array_equal, run.resumed, run.after)
  after = named_leaves(run.after.params)
  for key, x in named_leaves(run.before.params).items():
    if frozen and key.startswith('auxiliary/'):
      np.testing.assert_array_equal(x, after[key])
    elif not key.endswith('key/bias'):  # It has no gradient but rounding.
      assert (x != after[key]).any(), key


@pytest.mark.slow
def test_depths_of_heads_fit_together():
  """At a file's own depths, which the runs above have shrunk."""
  seen = 0
  for name in files_of('amos'):
    deep = recipe_files.load(*FILES[name]).deep
    if len(getattr(deep.pretrainer.auxiliary, 'depths', ())) > 1:
      batch = recipe_files.batch(deep)
      jax.eval_shape(deep.init, jax.random.key(0), batch)
      seen += 1
  assert seen > 9
