# SPDX-License-Identifier: Apache-2.0
"""A step compiled from shapes alone: its memory by part, its collectives."""

import dataclasses

import numpy as np
import pytest
import toy

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import ahead, initialization, targets


@dataclasses.dataclass(frozen=True)
class Model(toy.ToyModel):
  """The toy, which also tells the shapes of its batch."""

  def build_batch_spec(self, batch_size, length):
    dataset = toy.ToyDataset(batch_size, length)
    return {k: np.zeros_like(v) for k, v in dataset.batch(0).items()}


PLAN = ahead.Plan(
  model=Model(width=32),
  optimizer=training.adamw(1e-2),
  batch_size=32,
  length=8,
  partitioner=training.Partitioner(zero_stage=1),
  guard=training.Guard(window=7),
)
# width x (vocabulary, 2 layers of twice its width, a bias, 4 heads of 4).
PARAMETERS = 32 * (64 + 2 * 64 + 2 + 16)


TABLE = 32 * 64
DEVICES = targets.find('cpu:8')


@pytest.mark.parametrize('stage', range(4))
def test_memory_by_part(stage):
  plan = PLAN.on(DEVICES, zero_stage=stage)
  found = ahead.describe(plan, DEVICES)
  assert sum(found.parameters.values()) == PARAMETERS
  numbers = {'parameters': 1, 'gradients': 1, 'optimizer slots': 2}
  split_from = {'parameters': 3, 'gradients': 2, 'optimizer slots': 1}
  for name, count in numbers.items():
    share = 4 * count * PARAMETERS // (8 if stage >= split_from[name] else 1)
    # Beside the moments the optimizer keeps a count of 4 bytes or two.
    assert 0 <= found.memory[name] - share <= 8, name
  # Five features of four rows of eight tokens.
  assert found.memory['batch'] == 5 * 4 * 8 * 4
  assert found.fits is None
  assert found.flops == PLAN.model.flops_per_step((32, 8)) / 8


@pytest.fixture(scope='module')
def compiled():
  """By stage: 0 is plain data parallelism."""
  return {
    stage: ahead.compile_plan(PLAN.on(DEVICES, zero_stage=stage), DEVICES)
    for stage in (0, 1)
  }


def by_kind(report):
  return {c.kind: c for c in report.collectives}


def test_data_parallelism_sums_each_gradient_once(compiled):
  (sums,) = by_kind(compiled[0]).values()
  assert sums.kind == 'all-reduce'
  # The table has two gradients, as input and as output; then a few scalars.
  gradients = 4 * (PARAMETERS + TABLE)
  assert gradients <= sums.size < gradients + 200
  assert sums.moved == pytest.approx(2 * 7 / 8 * sums.size, rel=1e-3)


def test_zero_1_gathers_each_parameter_once(compiled):
  """Its other half, reduce-scatter, the CPU backend writes as all-reduce."""
  plain, sharded = (by_kind(compiled[stage]) for stage in (0, 1))
  assert sharded['all-gather'].size == 4 * PARAMETERS
  # What is sent to sum the gradients does not grow.
  assert sharded['all-reduce'].size <= plain['all-reduce'].size + 200


def test_a_guard_keeps_one_share_of_the_old_parameters(compiled):
  """Of all of them, it would take as much memory as ZeRO saves."""
  plan = dataclasses.replace(PLAN, guard=None).on(DEVICES)
  without = ahead.compile_plan(plan, DEVICES)
  more = compiled[1].memory['peak'] - without.memory['peak']
  assert more < 4 * PARAMETERS / 2


def test_the_peak_is_the_sum_of_its_parts(compiled):
  memory = dict(compiled[1].memory)
  peak = memory.pop('peak')
  assert peak == sum(memory.values())
  assert min(memory.values()) > 0


def test_a_batch_that_does_not_divide():
  with pytest.raises(UserError, match='not divisible by the 5 devices'):
    PLAN.on(targets.find('cpu:5'))


def test_the_step_that_is_planned_is_the_step_that_trains(tmp_path):
  """To the letter: the program that `train` gives to the compiler."""
  programs = []
  lower_step = initialization.lower_step

  def noted(*args):
    lowered, shapes = lower_step(*args)
    programs.append(lowered.as_text())
    return lowered, shapes

  plan = dataclasses.replace(PLAN, num_microbatches=2, random_seed=3).on(
    DEVICES, zero_stage=2
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(initialization, 'lower_step', noted)
    training.train(
      model=plan.model,
      model_dir=str(tmp_path),
      train_dataset=toy.ToyDataset(plan.batch_size, plan.length),
      train_steps=1,
      optimizer=plan.optimizer,
      partitioner=plan.partitioner,
      num_microbatches=plan.num_microbatches,
      guard=plan.guard,
      random_seed=plan.random_seed,
      tensorboard=False,
    )
  assert programs == [plan.lower().as_text()]


def test_limits_and_bounds(compiled):
  report = compiled[1]
  assert report.fits is None and report.bounds == {}
  peak = report.memory['peak']
  roomy, tight = (
    dataclasses.replace(report, limit=float(n)) for n in (peak, peak - 10)
  )
  assert roomy.fits and roomy.missing == 0
  assert tight.fits is False and tight.missing == 10
  kind = targets.Kind(memory=1, flops=1e9, memory_bandwidth=1, link=1e6)
  target = dataclasses.replace(DEVICES, kind=kind)
  bounds = ahead._bounds(report.flops, report.collectives, target)
  moved = sum(c.moved for c in report.collectives)
  assert bounds == {'compute': report.flops / 1e9, 'links': moved / 1e6}
