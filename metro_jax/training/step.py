# SPDX-License-Identifier: Apache-2.0
"""One step of training, as a pure function of state, metrics and batch.

The loss of a batch is a sum of totals over counts. The counts depend on the
batch alone, so the step asks the model for them once, over the whole global
batch, and hands them to every microbatch: gradients and losses of microbatches
then *add up* to those of the whole batch, whatever its parts look like.

Random draws depend on (seed, step) and on `row_ids`, a row's index in the
global batch. So microbatches, shardings and device counts change nothing but
the order of sums.

A guard judges the step before it is taken (see `guards`): one that it refuses
leaves everything but the step's number as it was.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metro_jax.metrics import Mean
from metro_jax.models.base import Model
from metro_jax.training import guards
from metro_jax.training.state import TrainState

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, Any]


def make_train_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
  random_seed: int = 0,
  gradient_shardings: PyTree = None,
  update_shardings: PyTree = None,
  guard: guards.StepGuard | None = None,
) -> Callable[[TrainState, Metrics, Batch], tuple[TrainState, Metrics, Any]]:
  """Builds the function that is compiled once and called every step.

  Args:
    model: Loss function and counts.
    optimizer: An optax transformation; its `learning_rate` is logged if it
      has one.
    num_microbatches: Parts whose gradients are added up, one after the other.
    random_seed: Root of all random draws.
    gradient_shardings: Shardings to hold gradients to (ZeRO stage 2 and 3).
    update_shardings: Shardings to hold new parameters to until they have been
      judged. With those of the slots (ZeRO stage 1) a device has old and new
      values of its own share at a time, not of all parameters.
    guard: Refuses steps that would do harm; None takes all.

  Returns:
    (state, window, batch) -> (new state, window + metrics of this step, a
    packed `guards.StepReport`). The window is the sum of metrics since they
    were last logged: it stays on the device, and is part of a checkpoint.
  """
  guard = guard or guards.NoGuard()
  gradients_of = _make_gradients_of(model, num_microbatches, gradient_shardings)

  def train_step(
    state: TrainState, window: Metrics | None, batch: Batch
  ) -> tuple[TrainState, Metrics, jax.Array]:
    rng = jax.random.fold_in(jax.random.key(random_seed), state.step)
    loss, gradients, metrics = gradients_of(
      state.params, number_rows(batch), rng, state.step
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    grad_norm = optax.global_norm(gradients)
    verdict, refused, memory = guard.judge(
      state.guard, loss, grad_norm, optax.global_norm(updates)
    )
    params = constrain(
      optax.apply_updates(state.params, updates), update_shardings
    )
    good = verdict == guards.GOOD
    params = guard.choose(good, params, state.params)
    param_norm = optax.global_norm(params)
    opt_state = guard.choose_slots(
      good,
      opt_state,
      state.opt_state,
      gradients,
      lambda gradients, old: optimizer.update(gradients, old, state.params)[1],
    )
    metrics['loss'] = once(loss)
    metrics.update(non_padding_fraction(batch))
    metrics['grad_norm'] = once(grad_norm)
    metrics['param_norm'] = once(param_norm)
    metrics.update(norms_of_parts(gradients, updates, params))
    if hasattr(optimizer, 'learning_rate'):
      metrics['learning_rate'] = once(optimizer.learning_rate(state.step))
    metrics = guard.choose(good, metrics, zeros_like(metrics))
    metrics['refused_steps'] = once(~good)
    new_state = TrainState(state.step + 1, params, opt_state, memory)
    report = guards.StepReport.pack(loss, grad_norm, verdict, refused)
    return new_state, add_to(window, metrics), report

  return train_step


def make_eval_step(
  model: Model, outputs: bool = False
) -> Callable[[PyTree, Metrics, Batch, jax.Array], tuple[Metrics, Any]]:
  """Builds the function of one batch of an evaluation.

  The key depends on the batch's index only, so that evaluations at different
  steps of training are comparable and repeatable to the bit.

  Args:
    model: Its loss_fn is called with train=False.
    outputs: Whether to return the model's predictions as well. They come of
      the same forward pass, which XLA computes once.

  Returns:
    (params, window, batch, index) -> (window + metrics of the batch,
    predictions or None).
  """

  def eval_step(
    params: PyTree, window: Metrics | None, batch: Batch, index: jax.Array
  ) -> tuple[Metrics, Any]:
    rng = jax.random.fold_in(jax.random.key(0), index)
    batch = number_rows(batch)
    loss, metrics = model.loss_fn(params, batch, rng, index, train=False)
    window = add_to(window, {'loss': once(loss), **metrics})
    return window, model.outputs(params, batch) if outputs else None

  return eval_step


def _make_gradients_of(
  model: Model, num_microbatches: int, shardings: PyTree
) -> Callable[..., tuple[jax.Array, PyTree, Metrics]]:
  """Loss, gradients and metrics of a whole batch, in parts if so asked."""

  def part(params, batch, rng, step, normalizers):
    def loss_fn(params):
      return model.loss_fn(
        params, batch, rng, step, train=True, normalizers=normalizers
      )

    (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params
    )
    return loss, constrain(to_fp32(gradients), shardings), metrics

  def whole(params, batch, rng, step):
    normalizers = model.normalizers(batch)
    if num_microbatches == 1:
      return part(params, batch, rng, step, normalizers)

    def accumulate(sums, index):
      micro = take_microbatch(batch, index, num_microbatches)
      sums = add(sums, part(params, micro, rng, step, normalizers))
      loss, gradients, metrics = sums
      return (loss, constrain(gradients, shardings), metrics), None

    first = take_microbatch(batch, 0, num_microbatches)
    shapes = jax.eval_shape(part, params, first, rng, step, normalizers)
    sums, _ = jax.lax.scan(
      accumulate, zeros_like(shapes), jnp.arange(num_microbatches)
    )
    return sums

  return whole


def non_padding_fraction(batch: Batch) -> Metrics:
  """`non_padding_fraction/<stream>` and `/overall`, by the segment ids.

  Args:
    batch: Segment ids [batch, length], 0 at padding, are the entries called
      `<stream>_segment_ids`; without any, nothing is known.
  """
  suffix = '_segment_ids'
  fractions = {
    key.removesuffix(suffix): Mean(
      total=jnp.sum(ids != 0, dtype=jnp.float32), count=jnp.float32(ids.size)
    )
    for key, ids in batch.items()
    if key.endswith(suffix)
  }
  if fractions:
    fractions['overall'] = functools.reduce(add, list(fractions.values()))
  return {f'non_padding_fraction/{k}': v for k, v in fractions.items()}


def norms_of_parts(
  gradients: PyTree, updates: PyTree, params: PyTree
) -> Metrics:
  """`grad_norm/<part>` and `update_ratio/<part>`, a part being a top name.

  The ratio of an update's norm to the parameters' tells a learning rate that
  is too high (0.01 and more) or too low (below 1e-5), whatever the model.

  Args:
    gradients: by part.
    updates: what the step would add to the parameters, by part.
    params: by part.

  Returns:
    Metrics.
  """
  metrics = {}
  for part in params:
    size = optax.global_norm(params[part])
    step = optax.global_norm(updates[part])
    metrics[f'grad_norm/{part}'] = once(optax.global_norm(gradients[part]))
    metrics[f'update_ratio/{part}'] = once(step / jnp.maximum(size, 1e-12))
  return metrics


def number_rows(batch: Batch) -> Batch:
  """Adds `row_ids` uint32 [batch]: each row's index in the global batch."""
  rows = next(iter(batch.values())).shape[0]
  return {**batch, 'row_ids': jnp.arange(rows, dtype=jnp.uint32)}


def take_microbatch(
  batch: Batch, index: jax.typing.ArrayLike, count: int
) -> Batch:
  """Rows index, index + count, index + 2 count, ... of a batch.

  Interleaved rather than in blocks: each device then holds an equal share of
  every microbatch already, and nothing moves between devices.
  """

  def take(x: jax.Array) -> jax.Array:
    parts = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    return jax.lax.dynamic_index_in_dim(parts, index, axis=1, keepdims=False)

  return jax.tree.map(take, batch)


def constrain(tree: PyTree, shardings: PyTree) -> PyTree:
  """Holds a tree to shardings; None leaves the choice to XLA."""
  if shardings is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, shardings)


def add_to(window: Metrics | None, metrics: Metrics) -> Metrics:
  """A window with one more step's metrics; None starts a window."""
  return metrics if window is None else add(window, metrics)


def add(left: PyTree, right: PyTree) -> PyTree:
  """Metrics and gradients merge by addition."""
  return jax.tree.map(jnp.add, left, right)


def once(value: jax.Array) -> Mean:
  """A metric whose value over a window is its mean over the steps."""
  return Mean(total=jnp.asarray(value, jnp.float32), count=jnp.float32(1))


def to_fp32(tree: PyTree) -> PyTree:
  """Gradients add up in fp32 whatever the parameters' type."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def zeros_like(shapes: PyTree) -> PyTree:
  """Zeros with the shapes of a tree; a window or a sum before its start."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
