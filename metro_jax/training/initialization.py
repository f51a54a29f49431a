# SPDX-License-Identifier: Apache-2.0
"""The state a run starts from, made where it will live.

A fresh state is created already sharded (a jit with output shardings), so no
device ever holds it whole.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metro_jax.models.base import Model
from metro_jax.training import checks, guards
from metro_jax.training import step as step_lib
from metro_jax.training.partitioning import Partitioner
from metro_jax.training.prefetch import Dataset
from metro_jax.training.state import TrainState, unbox

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shapes of a state and where its parts lie.

  Attributes:
    boxed: Parameters in logical-axis boxes, as shapes.
    state: TrainState of ShapeDtypeStruct, with shardings.
    shardings: TrainState of NamedSharding.
  """

  boxed: PyTree
  state: TrainState
  shardings: TrainState


def batch_spec(dataset: Dataset, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of a dataset, with so many rows."""
  sample = dataset.batch(0, slice(0, 1))
  return {
    name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    for name, x in sample.items()
  }


def make_layout(
  model: Model,
  optimizer: optax.GradientTransformation,
  dataset: Dataset,
  partitioner: Partitioner,
  guard: guards.StepGuard | None = None,
) -> Layout:
  """Plans a state without making it."""
  checks.check_optimizer(optimizer)
  guard = guard or guards.NoGuard()
  batch = batch_spec(dataset, partitioner.batch_shards)
  boxed = jax.eval_shape(lambda b: model.init(jax.random.key(0), b), batch)
  state = jax.eval_shape(
    lambda params: TrainState.create(params, optimizer, guard.init()),
    unbox(boxed),
  )
  shardings = partitioner.state_shardings(boxed, state)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )
  return Layout(boxed, state, shardings)


def params_layout(
  model: Model, dataset: Dataset, partitioner: Partitioner
) -> PyTree:
  """Shapes and shardings of the parameters alone, for use without training."""
  return make_layout(model, optax.identity(), dataset, partitioner).state.params


def initial_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  dataset: Dataset,
  partitioner: Partitioner,
  layout: Layout,
  random_seed: int,
) -> TrainState:
  """A fresh state, created sharded. The seed alone decides its values."""
  spec = batch_spec(dataset, partitioner.batch_shards)

  def create(rng: jax.Array) -> TrainState:
    batch = {k: jnp.zeros(x.shape, x.dtype) for k, x in spec.items()}
    params = unbox(model.init(rng, batch))
    return TrainState.create(
      params, optimizer, step_lib.zeros_like(layout.state.guard)
    )

  create = jax.jit(create, out_shardings=layout.shardings)
  return create(jax.random.key(random_seed))


def compile_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  dataset: Dataset,
  partitioner: Partitioner,
  layout: Layout,
  num_microbatches: int,
  random_seed: int,
  guard: guards.StepGuard | None = None,
) -> tuple[Callable[..., Any], Callable[[], PyTree]]:
  """Compiles the train step before the first batch is there.

  Returns:
    The step, see `step.make_train_step`, which overwrites (donates) state and
    window; and a function that makes an empty window.
  """
  lowered, shapes = lower_step(
    model,
    optimizer,
    dataset,
    partitioner,
    layout,
    num_microbatches,
    random_seed,
    guard,
  )
  empty_window = jax.jit(
    lambda: step_lib.zeros_like(shapes), out_shardings=partitioner.replicated
  )
  return lowered.compile(), empty_window


def lower_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  dataset: Dataset,
  partitioner: Partitioner,
  layout: Layout,
  num_microbatches: int,
  random_seed: int,
  guard: guards.StepGuard | None = None,
) -> tuple[jax.stages.Lowered, PyTree]:
  """The train step, ready to be compiled, and the shapes of its window."""
  train_step = step_lib.make_train_step(
    model,
    optimizer,
    num_microbatches=num_microbatches,
    random_seed=random_seed,
    gradient_shardings=partitioner.gradient_shardings(layout.boxed),
    update_shardings=partitioner.update_shardings(layout.boxed),
    guard=guard,
  )
  batch = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=partitioner.batch_sharding
    )
    for name, x in batch_spec(dataset, dataset.batch_size).items()
  }
  _, shapes, _ = jax.eval_shape(train_step, layout.state, None, batch)
  everywhere = partitioner.replicated
  window = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    shapes,
  )
  jitted = jax.jit(
    train_step,
    donate_argnums=(0, 1),
    out_shardings=(layout.shardings, everywhere, everywhere),
  )
  return jitted.lower(layout.state, window, batch), shapes


def empty_guard(
  layout: Layout, partitioner: Partitioner
) -> Callable[[], PyTree]:
  """A function that makes the memory of a guard which has seen nothing."""
  return jax.jit(
    lambda: step_lib.zeros_like(layout.state.guard),
    out_shardings=partitioner.replicated,
  )


def refill(empty: PyTree, leaves: list[np.ndarray]) -> PyTree:
  """Puts saved leaves, of a metrics window or a guard, into an empty one.

  A model that reports other metrics than before starts a new window, another
  guard a new memory: no reason to refuse to go on.
  """
  like, structure = jax.tree.flatten(empty)
  fits = [(x.shape, x.dtype) for x in like] == [
    (x.shape, x.dtype) for x in leaves
  ]
  if not fits:
    return empty
  shardings = [x.sharding for x in like]
  return jax.tree.unflatten(structure, jax.device_put(leaves, shardings))
