# SPDX-License-Identifier: Apache-2.0
"""A recipe's real training step, compiled before there is a machine.

Nothing here makes an array: parameters are shapes, and so is the batch.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from metro_jax.models.base import Model
from metro_jax.training import collectives as collectives_lib
from metro_jax.training import guards, info, initialization
from metro_jax.training.partitioning import Partitioner, bytes_per_device
from metro_jax.training.targets import Target

# What outlives a step.
HELD = ('parameters', 'optimizer slots')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run is, as far as its step is concerned.

  Attributes:
    model: Loss function and its parameters.
    optimizer: An optax transformation.
    batch_size: Rows of a global batch.
    length: Tokens of a row.
    partitioner: Mesh and ZeRO stage.
    num_microbatches: Parts of a batch whose gradients are added up.
    guard: Judges each step, see `guards`; None takes all.
    random_seed: Of initial values and dropout.
  """

  model: Model
  optimizer: optax.GradientTransformation
  batch_size: int
  length: int
  partitioner: Partitioner
  num_microbatches: int = 1
  guard: guards.StepGuard | None = None
  random_seed: int = 0

  def on(self, target: Target, **changes: Any) -> 'Plan':
    """The plan with a mesh of a target's devices.

    Args:
      target: The devices.
      **changes: Of the partitioner.
    """
    partitioner = dataclasses.replace(
      self.partitioner, devices=target.devices, **changes
    )
    partitioner.check_batch(self.batch_size, self.num_microbatches)
    return dataclasses.replace(self, partitioner=partitioner)

  @property
  def rows_per_device(self) -> int:
    """Rows of a device's part of the batch, microbatches together."""
    return self.batch_size // self.partitioner.batch_shards

  @functools.cached_property
  def layout(self) -> initialization.Layout:
    """Shapes and shardings of the state."""
    with self.partitioner.context():
      return initialization.make_layout(
        self.model, self.optimizer, self, self.partitioner, self.guard
      )

  def lower(self) -> jax.stages.Lowered:
    """The step that `training.train` would run, ready to be compiled."""
    with self.partitioner.context():
      lowered, _ = initialization.lower_step(
        self.model,
        self.optimizer,
        self,
        self.partitioner,
        self.layout,
        self.num_microbatches,
        self.random_seed,
        self.guard,
      )
    return lowered

  def batch(self, step: int, rows: slice | None = None) -> Mapping[str, Any]:
    """Zeros in the shapes of a batch: a plan is all the data there is."""
    del step
    count = len(range(self.batch_size)[rows or slice(None)])
    return self.model.build_batch_spec(count, self.length)


@dataclasses.dataclass(frozen=True)
class Report:
  """What compiling told.

  Attributes:
    target: Its name.
    devices: How many.
    mesh: Size by axis.
    zero_stage: 0 to 3.
    num_microbatches: Parts of a batch.
    parameters: Number by part of the model.
    flops: Model FLOPs of a step on one device, see `metro_jax.flops`.
    memory: Bytes on one device, by part; if it compiled, 'peak' is what they
      come to, for simulated devices an upper bound.
    limit: Bytes that a device has; None if it is simulated.
    over: The compiler's own words if it ran out of memory.
    collectives: What a device sends; none if it did not compile.
    seconds: What compiling took.
    bounds: Seconds that a step takes at least: 'compute' at the device's peak,
      'links' at all its links' bandwidth. Empty if it is simulated.
  """

  target: str
  devices: int
  mesh: Mapping[str, int]
  zero_stage: int
  num_microbatches: int
  parameters: Mapping[str, int]
  flops: float
  memory: Mapping[str, int]
  limit: float | None = None
  over: str | None = None
  collectives: tuple[collectives_lib.Collective, ...] = ()
  seconds: float = 0.0
  bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def fits(self) -> bool | None:
    """Whether a device's memory is enough; None if nobody can tell."""
    if self.limit is None:
      return None
    if self.over or sum(self.memory.get(k, 0) for k in HELD) > self.limit:
      return False
    return self.memory['peak'] <= self.limit if 'peak' in self.memory else None

  @property
  def missing(self) -> float:
    """Bytes that a device lacks; at least, if it was not compiled."""
    wanted = self.memory.get('peak', sum(self.memory.values()))
    return max(0.0, wanted - self.limit)


def held_bytes(plan: Plan) -> int:
  """Bytes on one device of what outlives a step.

  By shardings alone: cheap at any size.
  """
  memory = info.memory_per_device(plan.layout, plan.partitioner)
  return sum(memory[k] for k in HELD)


def describe(plan: Plan, target: Target) -> Report:
  """What is known of a plan on a target without compiling: takes seconds."""
  mesh = plan.partitioner.mesh
  return Report(
    target=target.name,
    devices=mesh.size,
    mesh=dict(mesh.shape),
    zero_stage=plan.partitioner.zero_stage,
    num_microbatches=plan.num_microbatches,
    parameters=info.totals_by_part(plan.layout.state.params),
    flops=plan.model.flops_per_step((plan.batch_size, plan.length)) / mesh.size,
    memory={
      **info.memory_per_device(plan.layout, plan.partitioner),
      'batch': _batch_bytes(plan),
    },
    limit=target.kind.memory if target.kind else None,
  )


def compile_plan(plan: Plan, target: Target) -> Report:
  """Compiles the training step of a plan that is on a target.

  Not if what is held between steps is too much already.
  """
  started = time.monotonic()
  report = describe(plan, target)
  if report.fits is False:
    return report
  lowered = plan.lower()
  try:
    compiled = lowered.compile(compiler_options=target.compiler_options)
  except jax.errors.JaxRuntimeError as error:
    words = _out_of_memory(str(error))
    if words is None:
      raise
    return dataclasses.replace(
      report, over=words, seconds=time.monotonic() - started
    )
  found = collectives_lib.find(compiled.as_text(), report.devices)
  return dataclasses.replace(
    report,
    memory=_with_activations(report.memory, compiled.memory_analysis(), target),
    collectives=tuple(found),
    bounds=_bounds(report.flops, found, target),
    seconds=time.monotonic() - started,
  )


def _bounds(
  flops: float, found: Sequence[collectives_lib.Collective], target: Target
) -> dict[str, float]:
  if target.kind is None:
    return {}
  moved = sum(c.moved for c in found)
  return {
    'compute': flops / target.kind.flops,
    'links': moved / target.bandwidth,
  }


def _batch_bytes(plan: Plan) -> int:
  spec = initialization.batch_spec(plan, plan.batch_size)
  shards = dict.fromkeys(spec, plan.partitioner.batch_sharding)
  return bytes_per_device(spec, shards)


def _with_activations(
  memory: Mapping[str, int], analysis: Any, target: Target
) -> dict[str, int]:
  """Adds what the compiler found: the peak, and what is not ours in it."""
  peak = analysis.peak_memory_in_bytes
  if target.platform == 'cpu':  # Its compiler's peak leaves temporaries out.
    peak = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  held = {k: v for k, v in memory.items() if k != 'gradients'}
  rest = peak - sum(held.values())
  if rest < memory['gradients']:  # They were never all there at once.
    parts = {'gradients, activations, temporaries': rest}
  else:
    parts = {
      'gradients': memory['gradients'],
      'activations, temporaries': rest - memory['gradients'],
    }
  return {**held, **parts, 'peak': peak}


def _out_of_memory(message: str) -> str | None:
  """The one sentence of an error that says what was too much."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  line = message.split('RESOURCE_EXHAUSTED:')[-1].strip().splitlines()[0]
  return line[:200]
